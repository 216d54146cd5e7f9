//! Histories of a table that several sessions write to, with long transactions, late commits and
//! rollbacks, while incremental runs read it: after every run the lake has what was committed before
//! it, each row once.
//!
//! Each history is made from a number. What a run and writers do at the same time goes as it happens
//! to; everything else goes one after the other, so that what has to be there is known exactly.

use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use polder_pipeline::Outcome;
use polder_sources::postgres::PostgresSource;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::database::{Database, Session};
use crate::support::Scratch;

/// Histories whose cursor is a number that the server hands out. All of a history is within a second.
const NUMBERS: u64 = 840;
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
}

impl Stamp {
    fn steps(self) -> usize {
        match self {
            Self::Number => 12,
            Self::Time => 22,
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
}

impl History<'_> {
    /// The value of the cursor as a writer sets it: the transaction's time, or the time or number now.
    fn cursor(&mut self) -> &'static str {
        match self.stamp {
            Stamp::Number => "nextval('stamps')",
            Stamp::Time => ["now()", "clock_timestamp()"][self.rng.random_range(0..2)],
        }
    }

    /// One statement that writes rows.
    fn write(&mut self) -> String {
        let (cursor, table) = (self.cursor(), self.table.clone());
        let note = self.rng.random_range(0..1_000_000);
        if self.changes && self.next > 0 && self.rng.random_bool(0.5) {
            let skip = self.rng.random_range(0..self.next);
            // A row that another transaction has changed is left to it.
            return format!(
                "UPDATE {table} SET stamp = {cursor}, note = '{note}' WHERE id = (
                     SELECT id FROM {table} ORDER BY id OFFSET (
                         {skip} % (SELECT greatest(count(*), 1) FROM {table})) LIMIT 1
                     FOR UPDATE SKIP LOCKED)"
            );
        }
        let rows = self.rng.random_range(1..4);
        let first = self.next;
        self.next += rows;
        let values: Vec<String> =
            (first..first + rows).map(|id| format!("({id}, {cursor}, '{note}')")).collect();
        format!("INSERT INTO {table} (id, stamp, note) VALUES {}", values.join(", "))
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
    async fn compare(&self, scratch: &Scratch, step: usize) {
        let mut expected =
            self.reader.rows(&format!("SELECT id, note FROM {} ORDER BY id", self.table)).await;
        expected.sort();
        let rows = scratch.rows().await;
        let ids = rows.column_by_name("id").expect("id").as_primitive::<Int64Type>();
        let notes = rows.column_by_name("note").expect("note").as_string::<i32>();
        let mut found: Vec<(i64, String)> =
            (0..rows.num_rows()).map(|row| (ids.value(row), notes.value(row).to_owned())).collect();
        found.sort();
        assert_eq!(found, expected, "{} after step {step}", self.name);
    }
}

/// What the runs of histories did.
#[derive(Default)]
struct Runs {
    incremental: u64,
    /// Those whose mark had moved, so that they did not read all there was.
    partial: u64,
}

async fn history(
    seed: u64,
    stamp: Stamp,
    source: &PostgresSource,
    (reader, writers): (&Session, &mut [Writer]),
) -> Runs {
    let mut rng = StdRng::seed_from_u64(seed);
    let changes = rng.random_bool(0.5);
    let table = format!("h{seed}");
    let (stamp_type, mode) = match stamp {
        Stamp::Number => ("bigint", "number"),
        Stamp::Time => ("timestamptz", "time"),
    };
    reader
        .run(&format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, stamp {stamp_type} NOT NULL, note text NOT NULL)"
        ))
        .await;
    let scratch = Scratch::new(json!({
        "source": "revdb", "from": table, "key": ["id"], "cursor": "stamp",
        "mode": if changes { "merge" } else { "append" },
    }))
    .await;
    let name = format!("history {seed} ({mode}, {})", if changes { "merge" } else { "append" });
    let mut history = History { name, rng, stamp, changes, writers, reader, table, next: 0 };
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
    runs
}

async fn run(scratch: &Scratch, source: &PostgresSource, history: &History<'_>, runs: &mut Runs) {
    let report = scratch.run_from(source).await;
    if report.outcome != Outcome::FullRefresh {
        let all = history.reader.rows(&format!("SELECT id, note FROM {}", history.table)).await;
        runs.incremental += 1;
        runs.partial += u64::from(report.rows_read < all.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_missed_or_doubled_whatever_commits_when() {
    let lanes = (0..DATABASES).map(|lane| {
        tokio::spawn(async move {
            let database = Database::new().await;
            let reader = database.session().await;
            reader.run("CREATE SEQUENCE stamps").await;
            let source = database.source();
            let mut writers = Vec::new();
            for _ in 0..SESSIONS {
                writers.push(Writer { session: database.session().await, open: false });
            }
            let (mut numbers, mut times) = (Runs::default(), Runs::default());
            for seed in (lane..NUMBERS + TIMES).step_by(DATABASES as usize) {
                let (stamp, runs) = if seed < TIMES {
                    (Stamp::Time, &mut times)
                } else {
                    (Stamp::Number, &mut numbers)
                };
                let done = Box::pin(history(seed, stamp, &source, (&reader, &mut writers))).await;
                runs.incremental += done.incremental;
                runs.partial += done.partial;
            }
            drop((reader, writers, source));
            database.drop().await;
            [numbers, times]
        })
    });
    let mut all = [Runs::default(), Runs::default()];
    for lane in lanes.collect::<Vec<_>>() {
        for (sum, runs) in all.iter_mut().zip(lane.await.expect("no history fails")) {
            sum.incremental += runs.incremental;
            sum.partial += runs.partial;
        }
    }
    for (runs, histories) in all.iter().zip([NUMBERS, TIMES]) {
        // Histories in which every mark stayed at the beginning would show nothing.
        assert!(runs.incremental > histories, "{} of {histories}", runs.incremental);
        assert!(runs.partial > histories / 2, "{} of {histories}", runs.partial);
    }
}
