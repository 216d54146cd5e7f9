//! Histories of a table that several sessions write to, with long transactions, late commits and
//! rollbacks, while incremental runs read it: after every run the lake has what was committed before
//! it, each row once.
//!
//! Writers set stamps back, too. Of a cursor that is `xmin`, or a time that a trigger sets, nothing is missed
//! then; of one that writers set, what is below the mark may be, and no run says that it is exact.
//!
//! The model is itself put to the test: a source whose mark ignores open transactions has to be caught.
//!
//! Each history is made from a number. What a run and writers do at the same time goes as it happens
//! to; everything else goes one after the other, so that what has to be there is known exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use polder_core::{
    Capabilities, CursorValue, Doubt, Guarantee, ReadPlan, ReadRequest, Result, Source, SourceTable,
};
use polder_pipeline::{IngestReport, Outcome};
use polder_sources::postgres::PostgresSource;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;

use super::database::{Database, Session};
use crate::support::{Scratch, org};

/// Histories whose cursor is a number that the server hands out. All of a history is within a second.
const NUMBERS: u64 = 540;
/// Histories whose cursor is `xmin`, beside a time that is set back.
const TRANSACTIONS: u64 = 300;
/// Histories whose cursor is a time. The mark stays a second behind the clock: they take longer.
const TIMES: u64 = 100;
/// The same where a trigger sets the time, whatever writers say.
const TRIGGERED: u64 = 30;
/// The same where writers set the time back.
const SET_BACK: u64 = 30;
/// How far back that is, at most: beyond the mark, and not.
const SET_BACK_MS: u64 = 3_000;
const DATABASES: u64 = 10;
/// Between the steps of a history over times.
const PAUSE_MS: u64 = 110;
const SESSIONS: usize = 2;

/// What the cursor of a history is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stamp {
    Number,
    Time,
    Triggered,
    SetBack,
    Transaction,
}

const STAMPS: [Stamp; 5] =
    [Stamp::Time, Stamp::Triggered, Stamp::SetBack, Stamp::Transaction, Stamp::Number];
/// Those by which a mark that passes open transactions misses rows.
const IN_ORDER: [Stamp; 3] = [Stamp::Time, Stamp::Transaction, Stamp::Number];

impl Stamp {
    fn steps(self) -> usize {
        match self {
            Self::Number | Self::Transaction => 12,
            Self::Time | Self::Triggered | Self::SetBack => 22,
        }
    }

    fn histories(self) -> u64 {
        match self {
            Self::Number => NUMBERS,
            Self::Transaction => TRANSACTIONS,
            Self::Time => TIMES,
            Self::Triggered => TRIGGERED,
            Self::SetBack => SET_BACK,
        }
    }

    /// The cursor's column, the type of the column `stamp`, and what kind the cursor is.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Number => ("stamp", "bigint", "number"),
            Self::Time => ("stamp", "timestamptz", "time"),
            Self::Triggered => ("stamp", "timestamptz", "time of a trigger"),
            Self::SetBack => ("stamp", "timestamptz", "time set back"),
            Self::Transaction => ("xmin", "timestamptz", "transaction"),
        }
    }

    fn is_time(self) -> bool {
        matches!(self, Self::Time | Self::Triggered | Self::SetBack)
    }

    /// What a run has to say of its rows.
    fn guarantee(self, changes: bool) -> Guarantee {
        match self {
            Self::Triggered => Guarantee::Exact,
            Self::Transaction if changes => Guarantee::Exact,
            Self::Transaction => Guarantee::AtLeastOnce,
            Self::Number | Self::Time | Self::SetBack => Guarantee::BestEffort,
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
    /// Rows that runs had to read, where stamps are set back: those at or above the mark.
    owed: BTreeSet<(i64, String)>,
    /// Of rows whose stamps are set back: how many a run found since its mark, and was not to find.
    late: Late,
    /// Where the lake had other rows than were committed.
    wrong: Vec<String>,
}

/// Rows whose stamps were set back.
#[derive(Clone, Copy, Default)]
struct Late {
    /// Read by runs since a mark.
    found: u64,
    missed: u64,
}

impl History<'_> {
    /// The value of the stamp as a writer sets it: the transaction's time, the time or number now, or a time
    /// before.
    fn stamp(&mut self) -> String {
        let back = match self.stamp {
            Stamp::Number => return "nextval('stamps')".to_owned(),
            Stamp::Time => false,
            Stamp::SetBack => true,
            Stamp::Triggered | Stamp::Transaction => self.rng.random_bool(0.5),
        };
        let now = ["now()", "clock_timestamp()"][self.rng.random_range(0..2)];
        if back {
            let back_ms = self.rng.random_range(1..=SET_BACK_MS);
            format!("{now} - interval '{back_ms} milliseconds'")
        } else {
            now.to_owned()
        }
    }

    /// One statement that writes rows.
    fn write(&mut self) -> String {
        let (stamp, table) = (self.stamp(), self.table.clone());
        let note = self.rng.random_range(0..1_000_000);
        if self.changes && self.next > 0 && self.rng.random_bool(0.5) {
            let skip = self.rng.random_range(0..self.next);
            // A row that another transaction has changed is left to it.
            return format!(
                "UPDATE {table} SET stamp = {stamp}, note = '{note}' WHERE id = (
                     SELECT id FROM {table} ORDER BY id OFFSET (
                         {skip} % (SELECT greatest(count(*), 1) FROM {table})) LIMIT 1
                     FOR UPDATE SKIP LOCKED)"
            );
        }
        let rows = self.rng.random_range(1..4);
        let first = self.next;
        self.next += rows;
        let values: Vec<String> =
            (first..first + rows).map(|id| format!("({id}, '{note}', {stamp})")).collect();
        format!("INSERT INTO {table} (id, note, stamp) VALUES {}", values.join(", "))
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
        if self.stamp.is_time() {
            tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
        }
    }

    /// A run with nobody writing, and what the lake table has after it.
    async fn settle(
        &mut self,
        scratch: &Scratch,
        source: &dyn Source,
        step: usize,
        runs: &mut Runs,
    ) {
        let mark = mark(scratch).await;
        let report = run(scratch, source, self, runs).await;
        let promised = self.stamp.guarantee(self.changes);
        if report.guarantee != promised {
            let (name, said) = (&self.name, (report.guarantee, &report.guarantee_reasons));
            self.wrong.push(format!("{name} after step {step}: said {said:?}, not {promised}"));
        }
        let found = self.stored(scratch).await;
        if self.stamp == Stamp::SetBack {
            self.compare_late(found, mark, step).await;
        } else {
            self.compare(found, step).await;
        }
    }

    /// The lake table is what is committed.
    async fn compare(&mut self, found: Vec<(i64, String)>, step: usize) {
        let mut expected = self.committed("true").await;
        expected.sort();
        if found != expected {
            let name = &self.name;
            self.wrong.push(format!("{name} after step {step}: {found:?}, not {expected:?}"));
        }
    }

    /// What was at or above the mark of a run, or there at the first one, is in the lake as long as it is
    /// in the source; no row is there twice, and none that was never committed.
    async fn compare_late(&mut self, found: Vec<(i64, String)>, mark: Option<i64>, step: usize) {
        let since = mark.map_or_else(
            || "true".to_owned(),
            |micros| format!("(extract(epoch FROM stamp) * 1000000)::bigint >= {micros}"),
        );
        let (all, due) = (self.committed("true").await, self.committed(&since).await);
        if mark.is_some() {
            self.late.found += due.len() as u64;
        }
        self.owed.extend(due);
        let stored = by_id(&found);
        let is_stored = |(id, note): &&(i64, String)| stored.get(id) == Some(&note.as_str());
        let lost: Vec<_> =
            all.iter().filter(|row| self.owed.contains(*row) && !is_stored(row)).collect();
        let present = by_id(&all);
        // An older state of a row may be what is left of it.
        let is_made_up = |(id, note): &&(i64, String)| match present.get(id) {
            Some(now) => !self.changes && *now != note,
            None => true,
        };
        let made_up: Vec<_> = found.iter().filter(is_made_up).collect();
        if !lost.is_empty() || !made_up.is_empty() || stored.len() < found.len() {
            let name = &self.name;
            self.wrong.push(format!(
                "{name} after step {step}, mark {mark:?}: {lost:?} lost, {made_up:?} made up in \
                 {found:?}"
            ));
        }
        self.late.missed += all.iter().filter(|row| !is_stored(row)).count() as u64;
    }

    async fn committed(&self, condition: &str) -> Vec<(i64, String)> {
        let table = &self.table;
        self.reader.rows(&format!("SELECT id, note FROM {table} WHERE {condition}")).await
    }

    /// The rows of the lake table, sorted.
    async fn stored(&self, scratch: &Scratch) -> Vec<(i64, String)> {
        let rows = scratch.rows().await;
        let ids = rows.column_by_name("id").expect("id").as_primitive::<Int64Type>();
        let notes = rows.column_by_name("note").expect("note").as_string::<i32>();
        let mut found: Vec<(i64, String)> =
            (0..rows.num_rows()).map(|row| (ids.value(row), notes.value(row).to_owned())).collect();
        found.sort();
        found
    }
}

fn by_id(rows: &[(i64, String)]) -> BTreeMap<i64, &str> {
    rows.iter().map(|(id, note)| (*id, note.as_str())).collect()
}

/// Where the next run begins to read, in microseconds; `None` where it loads everything.
async fn mark(scratch: &Scratch) -> Option<i64> {
    let table = scratch.lake.table(&org(), "t").await.expect("load")?;
    match table.checkpoint().expect("checkpoint")?.cursor {
        Some(CursorValue::Timestamptz(micros)) => Some(micros),
        _ => None,
    }
}

/// What the runs of histories did.
#[derive(Default)]
struct Runs {
    incremental: u64,
    /// Those whose mark had moved, so that they did not read all there was.
    partial: u64,
    late: Late,
    wrong: Vec<String>,
}

impl Runs {
    fn add(&mut self, other: Self) {
        self.incremental += other.incremental;
        self.partial += other.partial;
        self.late.found += other.late.found;
        self.late.missed += other.late.missed;
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
    let columns = format!("id bigint PRIMARY KEY, note text NOT NULL, stamp {stamp_type} NOT NULL");
    reader.run(&format!("CREATE TABLE {table} ({columns})")).await;
    if stamp == Stamp::Triggered {
        let trigger = format!("BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW");
        reader.run(&format!("CREATE TRIGGER t {trigger} EXECUTE FUNCTION stamp()")).await;
    }
    let scratch = Scratch::new(json!({
        "source": "revdb", "from": table, "key": ["id"], "cursor": cursor,
        "mode": if changes { "merge" } else { "append" },
    }))
    .await;
    let name = format!("history {seed} ({kind}, {})", if changes { "merge" } else { "append" });
    let (owed, late, wrong) = (BTreeSet::new(), Late::default(), Vec::new());
    let mut history =
        History { name, rng, stamp, changes, writers, reader, table, next: 0, owed, late, wrong };
    let mut runs = Runs::default();
    let steps = stamp.steps();
    for step in 0..steps {
        match history.rng.random_range(0..9) {
            0 => history.settle(&scratch, source, step, &mut runs).await,
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
    history.settle(&scratch, source, steps, &mut runs).await;
    reader.run(&format!("DROP TABLE {}", history.table)).await;
    (runs.late, runs.wrong) = (history.late, history.wrong);
    runs
}

async fn run(
    scratch: &Scratch,
    source: &dyn Source,
    history: &History<'_>,
    runs: &mut Runs,
) -> IngestReport {
    let report = scratch.run_from(source).await;
    if report.outcome != Outcome::FullRefresh {
        let all = history.reader.rows(&format!("SELECT id, note FROM {}", history.table)).await;
        runs.incremental += 1;
        runs.partial += u64::from(report.rows_read < all.len() as u64);
    }
    report
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
        let body = "$$ BEGIN NEW.stamp := clock_timestamp(); RETURN NEW; END $$";
        let language = "RETURNS trigger LANGUAGE plpgsql";
        reader.run(&format!("CREATE FUNCTION stamp() {language} AS {body}")).await;
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
        let share = if histories < 100 { histories / 4 } else { histories / 2 };
        assert!(runs.partial > share, "{stamp:?}: {} of {histories}", runs.partial);
        if stamp == Stamp::SetBack {
            // A run that missed none of them would not show why it promises less.
            let Late { found, missed } = runs.late;
            assert!(found > 0 && missed > 0, "{found} found, {missed} missed");
        }
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
    for stamp in IN_ORDER {
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
