//! Swaps in SQLite, which has one writer at a time. One task carries out whatever swaps wait in one
//! database transaction, so that one flush of the database's log serves them all. Each of them
//! succeeds or fails by itself.

use std::sync::Arc;

use sqlx::{Connection, SqlitePool};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::begin::begin;
use super::entries::{Swap, move_pointer};
use crate::error::{self, StatementOutcome};

/// Swaps that wait; more have to wait to get in.
const WAITING_MAX: usize = 1024;
/// Swaps carried out together.
const TOGETHER_MAX: usize = 128;

#[derive(Debug)]
pub(super) struct Writer {
    waiting: mpsc::Sender<Waiting>,
    /// Ends when this is dropped.
    _task: JoinSet<()>,
}

/// Swaps of which all are made, or none.
#[derive(Debug)]
struct Waiting {
    swaps: Vec<Swap>,
    answer: oneshot::Sender<Answer>,
}

/// Whether the swaps were made; the error is one that several may get.
type Answer = Result<bool, Arc<sqlx::Error>>;

impl Writer {
    pub(super) fn start(pool: SqlitePool) -> Self {
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let mut task = JoinSet::new();
        task.spawn(run(pool, queue));
        Self { waiting, _task: task }
    }

    /// Makes all swaps, or none; true if they were made. They are also made if nobody waits for the
    /// answer any more.
    pub(super) async fn swap(&self, swaps: Vec<Swap>) -> Answer {
        // An outcome nobody knows, as the task may have been stopped in the middle.
        let lost = || Arc::new(sqlx::Error::WorkerCrashed);
        let (answer, answered) = oneshot::channel();
        self.waiting.send(Waiting { swaps, answer }).await.map_err(|_| lost())?;
        answered.await.unwrap_or_else(|_| Err(lost()))
    }
}

async fn run(pool: SqlitePool, mut queue: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::with_capacity(TOGETHER_MAX);
    while queue.recv_many(&mut waiting, TOGETHER_MAX).await > 0 {
        let answers = carry_out(&pool, &waiting).await;
        for (one, answer) in waiting.drain(..).zip(answers) {
            // Fails if the request behind it was given up.
            let _ = one.answer.send(answer);
        }
    }
}

async fn carry_out(pool: &SqlitePool, waiting: &[Waiting]) -> Vec<Answer> {
    if waiting.len() > 1 {
        match together(pool, waiting).await {
            Ok(made) => return made.into_iter().map(Ok).collect(),
            // None was made, and one of them may be why: each by itself.
            Err(cause) if error::statement_outcome(&cause) == StatementOutcome::Refused => {}
            // The database is the reason, and it is the same for all.
            Err(cause) => {
                let cause = Arc::new(cause);
                return waiting.iter().map(|_| Err(Arc::clone(&cause))).collect();
            }
        }
    }
    let mut answers = Vec::with_capacity(waiting.len());
    for one in waiting {
        let made = together(pool, std::slice::from_ref(one)).await;
        answers.push(made.map(|made| made == [true]).map_err(Arc::new));
    }
    answers
}

/// Carries out what can be, in one transaction. With an error, nothing was.
async fn together(pool: &SqlitePool, waiting: &[Waiting]) -> Result<Vec<bool>, sqlx::Error> {
    let mut transaction = begin(pool, "BEGIN IMMEDIATE").await?;
    let mut made = Vec::with_capacity(waiting.len());
    for one in waiting {
        if let [swap] = &one.swaps[..] {
            // If this pointer is not where it was seen, the statement changes nothing.
            made.push(move_pointer!(&mut *transaction, swap));
            continue;
        }
        let mut savepoint = transaction.begin().await?;
        let mut all = true;
        for swap in &one.swaps {
            all = all && move_pointer!(&mut *savepoint, swap);
        }
        if all {
            savepoint.commit().await?;
        } else {
            savepoint.rollback().await?;
        }
        made.push(all);
    }
    transaction.commit().await?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use iceberg::{NamespaceIdent, TableIdent};
    use tempfile::TempDir;

    use super::*;
    use crate::catalog::sql::{CATALOG, EntryKind, SCHEMA};

    /// A database with Iceberg's tables and the namespace `a`.
    async fn database() -> (TempDir, SqlitePool) {
        let folder = TempDir::new().expect("folder");
        let url = format!("sqlite://{}/c.db?mode=rwc", folder.path().display());
        let pool = SqlitePool::connect(&url).await.expect("database");
        let namespace =
            "INSERT INTO iceberg_namespace_properties VALUES ('polder', 'a', 'exists', 'true')";
        for statement in SCHEMA.into_iter().chain([namespace]) {
            sqlx::query(statement).execute(&pool).await.expect(statement);
        }
        (folder, pool)
    }

    fn swap(name: &str, from: Option<&str>, to: &str) -> Swap {
        let ident = TableIdent::new(NamespaceIdent::new("a".to_owned()), name.to_owned());
        let from = from.map(str::to_owned);
        Swap { ident, kind: EntryKind::Table, from, to: to.to_owned() }
    }

    fn waiting(swaps: &[Swap]) -> Waiting {
        Waiting { swaps: swaps.to_vec(), answer: oneshot::channel().0 }
    }

    async fn pointers(pool: &SqlitePool) -> Vec<(String, String)> {
        let sql = "SELECT table_name, metadata_location FROM iceberg_tables
                   WHERE catalog_name = $1 ORDER BY table_name";
        sqlx::query_as(sql).bind(CATALOG).fetch_all(pool).await.expect("rows")
    }

    fn found(rows: &[(&str, &str)]) -> Vec<(String, String)> {
        rows.iter().map(|(name, to)| ((*name).to_owned(), (*to).to_owned())).collect()
    }

    #[tokio::test]
    async fn each_of_many_succeeds_or_fails_by_itself() {
        let (_folder, pool) = database().await;
        let many = [
            waiting(&[swap("t", None, "t0")]),
            // Its first part fits, and goes with the second.
            waiting(&[swap("u", None, "u0"), swap("v", Some("v0"), "v1")]),
            waiting(&[swap("t", Some("t0"), "t1")]),
            waiting(&[swap("t", Some("t0"), "t2")]),
            waiting(&[swap("t", None, "t3")]),
            waiting(&[swap("u", None, "u1"), swap("w", None, "w0"), swap("t", Some("t1"), "t4")]),
        ];
        let made: Vec<bool> =
            carry_out(&pool, &many).await.into_iter().map(|one| one.expect("answer")).collect();
        assert_eq!(made, [true, false, true, false, false, true]);
        assert_eq!(pointers(&pool).await, found(&[("t", "t4"), ("u", "u1"), ("w", "w0")]));
    }

    #[tokio::test]
    async fn one_that_the_database_refuses_takes_no_other_with_it() {
        let (_folder, pool) = database().await;
        let trigger = "CREATE TRIGGER refuse BEFORE INSERT ON iceberg_tables
                       WHEN NEW.table_name = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END";
        sqlx::query(trigger).execute(&pool).await.expect("trigger");
        let many = [
            waiting(&[swap("t", None, "t0")]),
            waiting(&[swap("u", None, "u0"), swap("bad", None, "b0")]),
            waiting(&[swap("t", Some("t0"), "t1")]),
        ];
        let answers = carry_out(&pool, &many).await;
        assert!(matches!(answers[..], [Ok(true), Err(_), Ok(true)]), "{answers:?}");
        assert_eq!(pointers(&pool).await, found(&[("t", "t1")]));
    }

    #[tokio::test]
    async fn what_was_handed_over_is_made_also_if_nobody_waits() {
        let (_folder, pool) = database().await;
        let writer = Writer::start(pool.clone());
        {
            let given_up = writer.swap(vec![swap("t", None, "t0")]);
            futures::pin_mut!(given_up);
            assert!(futures::poll!(given_up).is_pending());
        }
        let later = (0..300).map(|n| writer.swap(vec![swap(&format!("u{n:03}"), None, "u")]));
        let answers = futures::future::join_all(later).await;
        assert!(answers.iter().all(|one| matches!(one, Ok(true))), "{answers:?}");
        assert_eq!(pointers(&pool).await.len(), 301);
        assert!(!writer.swap(vec![swap("t", None, "t1")]).await.expect("answer"), "it is there");
    }
}
