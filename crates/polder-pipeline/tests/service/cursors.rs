//! Histories of a table that several sessions write to, with long transactions, late commits and
//! rollbacks, while incremental runs read it: after every run the lake has what was committed before
//! it, each row once.
//!
//! The model is itself put to the test: a source whose mark ignores open transactions has to be caught.
//!
//! Each history is made from a number. What a run and writers do at the same time goes as it happens
//! to; everything else goes one after the other, so that what has to be there is known exactly.

use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use polder_core::{Capabilities, Doubt, ReadPlan, ReadRequest, Result, Source, SourceTable};
use polder_pipeline::Outcome;
use polder_sources::postgres::PostgresSource;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;

use super::database::{Database, Session};
use crate::support::Scratch;

/// Histories whose cursor is a number that the server hands out. All of a history is within a second.
const NUMBERS: u64 = 540;
/// Histories whose cursor is `xmin`.
const TRANSACTIONS: u64 = 300;
/// Histories whose cursor is a time. The mark stays a second behind the clock: they take longer.
const TIMES: u64 = 160;
const DATABASES: u64 = 10;
/// Between the steps of a history over times.
const PAUSE_MS: u64 = 110;
const SESSIONS: usize = 2;

/// What the cursor of a history is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stamp {
    Number,
    Time,
    Transaction,
}

const STAMPS: [Stamp; 3] = [Stamp::Time, Stamp::Transaction, Stamp::Number];

impl Stamp {
    fn steps(self) -> usize {
        match self {
            Self::Number | Self::Transaction => 12,
            Self::Time => 22,
        }
    }

    fn histories(self) -> u64 {
        match self {
            Self::Number => NUMBERS,
            Self::Transaction => TRANSACTIONS,
            Self::Time => TIMES,
        }
    }

    /// The cursor's column, its type if it has one, and what kind it is.
    fn words(self) -> (&'static str, Option<&'static str>, &'static str) {
        match self {
            Self::Number => ("stamp", Some("bigint"), "number"),
            Self::Time => ("stamp", Some("timestamptz"), "time"),
            Self::Transaction => ("xmin", None, "transaction"),
        }
    }
}

/// What a session is doing.
struct Writer {
    session: Session,
    open: bool,
}

struct History<'a> {
    name: String,
    rng: StdRng,
    stamp: Stamp,
    /// Rows change, and the table is merged by its key; otherwise rows are only added.
    changes: bool,
    writers: &'a mut [Writer],
    /// Sees what is committed.
    reader: &'a Session,
    table: String,
    next: i64,
    /// Where the lake had other rows than were committed.
    wrong: Vec<String>,
}

impl History<'_> {
    /// The value of the cursor as a writer sets it: the transaction's time, or the time or number now.
    fn cursor(&mut self) -> Option<&'static str> {
        match self.stamp {
            Stamp::Number => Some("nextval('stamps')"),
            Stamp::Time => Some(["now()", "clock_timestamp()"][self.rng.random_range(0..2)]),
            Stamp::Transaction => None,
        }
    }

    /// One statement that writes rows.
    fn write(&mut self) -> String {
        let (cursor, table) = (self.cursor(), self.table.clone());
        let note = self.rng.random_range(0..1_000_000);
        if self.changes && self.next > 0 && self.rng.random_bool(0.5) {
            let set = cursor.map_or_else(String::new, |cursor| format!("stamp = {cursor}, "));
            let skip = self.rng.random_range(0..self.next);
            // A row that another transaction has changed is left to it.
            return format!(
                "UPDATE {table} SET {set}note = '{note}' WHERE id = (
                     SELECT id FROM {table} ORDER BY id OFFSET (
                         {skip} % (SELECT greatest(count(*), 1) FROM {table})) LIMIT 1
                     FOR UPDATE SKIP LOCKED)"
            );
        }
        let rows = self.rng.random_range(1..4);
        let first = self.next;
        self.next += rows;
        let (column, value) = match cursor {
            Some(cursor) => (", stamp", format!(", {cursor}")),
            None => ("", String::new()),
        };
        let values: Vec<String> =
            (first..first + rows).map(|id| format!("({id}, '{note}'{value})")).collect();
        format!("INSERT INTO {table} (id, note{column}) VALUES {}", values.join(", "))
    }

    /// What one of the sessions does next.
    async fn step(&mut self) {
        let who = self.rng.random_range(0..SESSIONS);
        let what = self.rng.random_range(0..10);
        let open = self.writers[who].open;
        let sql = match what {
            // With `now()`, rows written later have the stamp of this moment.
            0..3 if !open => "BEGIN".to_owned(),
            0..2 => "COMMIT".to_owned(),
            2 => "ROLLBACK".to_owned(),
            3 if open => {
                format!("SAVEPOINT s; {}; ROLLBACK TO s; {}", self.write(), self.write())
            }
            _ => self.write(),
        };
        match sql.as_str() {
            "BEGIN" => self.writers[who].open = true,
            "COMMIT" | "ROLLBACK" => self.writers[who].open = false,
            _ => {}
        }
        self.writers[who].session.run(&sql).await;
    }

    async fn pause(&self) {
        if self.stamp == Stamp::Time {
            tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
        }
    }

    /// The lake table is what is committed.
    async fn compare(&mut self, scratch: &Scratch, step: usize) {
        let mut expected =
            self.reader.rows(&format!("SELECT id, note FROM {} ORDER BY id", self.table)).await;
        expected.sort();
        let rows = scratch.rows().await;
        let ids = rows.column_by_name("id").expect("id").as_primitive::<Int64Type>();
        let notes = rows.column_by_name("note").expect("note").as_string::<i32>();
        let mut found: Vec<(i64, String)> =
            (0..rows.num_rows()).map(|row| (ids.value(row), notes.value(row).to_owned())).collect();
        found.sort();
        if found != expected {
            let name = &self.name;
            self.wrong.push(format!("{name} after step {step}: {found:?}, not {expected:?}"));
        }
    }
}

/// What the runs of histories did.
#[derive(Default)]
struct Runs {
    incremental: u64,
    /// Those whose mark had moved, so that they did not read all there was.
    partial: u64,
    wrong: Vec<String>,
}

impl Runs {
    fn add(&mut self, other: Self) {
        self.incremental += other.incremental;
        self.partial += other.partial;
        self.wrong.extend(other.wrong);
    }
}

async fn history(
    seed: u64,
    stamp: Stamp,
    source: &dyn Source,
    (reader, writers): (&Session, &mut [Writer]),
) -> Runs {
    let mut rng = StdRng::seed_from_u64(seed);
    let changes = rng.random_bool(0.5);
    let table = format!("h{seed}");
    let (cursor, stamp_type, kind) = stamp.words();
    let column = stamp_type.map_or_else(String::new, |of| format!(", stamp {of} NOT NULL"));
    let columns = format!("id bigint PRIMARY KEY, note text NOT NULL{column}");
    reader.run(&format!("CREATE TABLE {table} ({columns})")).await;
    let scratch = Scratch::new(json!({
        "source": "revdb", "from": table, "key": ["id"], "cursor": cursor,
        "mode": if changes { "merge" } else { "append" },
    }))
    .await;
    let name = format!("history {seed} ({kind}, {})", if changes { "merge" } else { "append" });
    let wrong = Vec::new();
    let mut history = History { name, rng, stamp, changes, writers, reader, table, next: 0, wrong };
    let mut runs = Runs::default();
    let steps = stamp.steps();
    for step in 0..steps {
        match history.rng.random_range(0..9) {
            0 => {
                run(&scratch, source, &history, &mut runs).await;
                history.compare(&scratch, step).await;
            }
            1 => {
                // Writers go on while the run reads.
                let beside = async {
                    for _ in 0..4 {
                        history.step().await;
                    }
                };
                let report = scratch.run_from(source);
                tokio::join!(Box::pin(report), beside);
            }
            _ => history.step().await,
        }
        history.pause().await;
    }
    for writer in history.writers.iter_mut() {
        if std::mem::take(&mut writer.open) {
            let end = if history.rng.random_bool(0.7) { "COMMIT" } else { "ROLLBACK" };
            writer.session.run(end).await;
        }
    }
    run(&scratch, source, &history, &mut runs).await;
    history.compare(&scratch, steps).await;
    reader.run(&format!("DROP TABLE {}", history.table)).await;
    runs.wrong = history.wrong;
    runs
}

async fn run(scratch: &Scratch, source: &dyn Source, history: &History<'_>, runs: &mut Runs) {
    let report = scratch.run_from(source).await;
    if report.outcome != Outcome::FullRefresh {
        let all = history.reader.rows(&format!("SELECT id, note FROM {}", history.table)).await;
        runs.incremental += 1;
        runs.partial += u64::from(report.rows_read < all.len() as u64);
    }
}

/// A database of a lane's own, with all that its histories need.
struct Lane {
    database: Database,
    reader: Session,
    writers: Vec<Writer>,
}

impl Lane {
    async fn new() -> Self {
        let database = Database::new().await;
        let reader = database.session().await;
        reader.run("CREATE SEQUENCE stamps").await;
        let mut writers = Vec::new();
        for _ in 0..SESSIONS {
            writers.push(Writer { session: database.session().await, open: false });
        }
        Self { database, reader, writers }
    }

    async fn run(
        &mut self,
        source: &dyn Source,
        stamp: Stamp,
        seeds: impl Iterator<Item = u64>,
    ) -> Runs {
        let mut runs = Runs::default();
        for seed in seeds {
            let sessions = (&self.reader, &mut self.writers[..]);
            runs.add(Box::pin(history(seed, stamp, source, sessions)).await);
        }
        runs
    }

    async fn drop(self) {
        drop((self.reader, self.writers));
        self.database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_missed_or_doubled_whatever_commits_when() {
    let mut lanes = JoinSet::new();
    for lane in 0..DATABASES {
        lanes.spawn(async move {
            let mut own = Lane::new().await;
            let source = own.database.source();
            let mut all = Vec::new();
            let mut first = 0;
            for stamp in STAMPS {
                let seeds = (first..first + stamp.histories()).filter(|n| n % DATABASES == lane);
                all.push(Box::pin(own.run(&source, stamp, seeds)).await);
                first += stamp.histories();
            }
            drop(source);
            own.drop().await;
            all
        });
    }
    let mut all = STAMPS.map(|_| Runs::default());
    while let Some(lane) = lanes.join_next().await {
        for (sum, runs) in all.iter_mut().zip(lane.expect("a lane ends")) {
            sum.add(runs);
        }
    }
    for (runs, stamp) in all.iter().zip(STAMPS) {
        let histories = stamp.histories();
        assert!(runs.wrong.is_empty(), "{}", runs.wrong.join("\n"));
        // Histories in which every mark stayed at the beginning would show nothing.
        assert!(runs.incremental > histories, "{stamp:?}: {} of {histories}", runs.incremental);
        assert!(runs.partial > histories / 2, "{stamp:?}: {} of {histories}", runs.partial);
    }
}

/// Its mark is the highest value that was seen, whatever is still open.
struct Hasty(PostgresSource);

#[async_trait]
impl Source for Hasty {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn check(&self) -> Result<String> {
        self.0.check().await
    }

    async fn discover(&self) -> Result<Vec<SourceTable>> {
        self.0.discover().await
    }

    fn named_in_sql(&self, schema: Option<&str>, table: &str) -> Option<String> {
        self.0.named_in_sql(schema, table)
    }

    async fn plan(&self, request: ReadRequest) -> Result<ReadPlan> {
        let plan = self.0.plan(request).await?;
        Ok(ReadPlan { cursor_ceiling: None, ..plan })
    }

    async fn doubts(&self, request: &ReadRequest) -> Result<Vec<Doubt>> {
        self.0.doubts(request).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_passes_open_transactions_is_found_out() {
    let mut lanes = JoinSet::new();
    for stamp in STAMPS {
        lanes.spawn(async move {
            let mut own = Lane::new().await;
            let source = Hasty(own.database.source());
            let histories = if stamp == Stamp::Time { 16 } else { 80 };
            let runs = Box::pin(own.run(&source, stamp, 0..histories)).await;
            drop(source);
            own.drop().await;
            (stamp, histories, runs)
        });
    }
    while let Some(lane) = lanes.join_next().await {
        let (stamp, histories, runs) = lane.expect("a lane ends");
        let found = runs.wrong.len();
        assert!(found > 0, "{stamp:?}: {histories} histories, and no row is missed in any");
        assert!(runs.incremental > 0, "{stamp:?}: every run was a full load");
    }
}
