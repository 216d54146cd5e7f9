//! Beginning a transaction so that giving up on it leaves nothing behind.

use sqlx::{Database, Pool, Transaction};

/// Begins a transaction by a statement of one's own.
///
/// In a task of its own: sqlx 0.8.6 looks at the connection once more after SQLite has begun. Whoever gives
/// up between the two gives a connection back to the pool that is inside a transaction, holds the
/// database's lock, and refuses every later one (`InvalidSavePointStatement`). A task is not given up; what
/// it has begun is rolled back if nobody waits for it.
pub(super) async fn begin<D: Database>(
    pool: &Pool<D>,
    statement: &'static str,
) -> Result<Transaction<'static, D>, sqlx::Error> {
    let pool = pool.clone();
    #[expect(clippy::disallowed_methods, reason = "it has to go on when its owner gives up")]
    let begun = tokio::spawn(async move { pool.begin_with(statement).await });
    begun.await.map_err(|_| sqlx::Error::WorkerCrashed)?
}

#[cfg(test)]
mod tests {
    use std::task::Poll;
    use std::time::{Duration, Instant};

    use sqlx::sqlite::SqlitePoolOptions;
    use sqlx::{Sqlite, SqlitePool};

    use super::*;

    type Begun = Result<Transaction<'static, Sqlite>, sqlx::Error>;

    async fn database() -> SqlitePool {
        let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:");
        pool.await.expect("database")
    }

    /// Begins, and gives up after so many steps; the transaction if it was quicker.
    async fn steps(beginning: impl Future<Output = Begun>, mut left: u32) -> Option<Begun> {
        let mut beginning = Box::pin(beginning);
        let given_up = futures::future::poll_fn(|context| match beginning.as_mut().poll(context) {
            Poll::Ready(begun) => Poll::Ready(Some(begun)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        });
        given_up.await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_that_is_given_up_leaves_the_connection_as_it_was() {
        let pool = database().await;
        for left in (0..8).cycle().take(2_000) {
            if let Some(begun) = steps(begin(&pool, "BEGIN IMMEDIATE"), left).await {
                begun.expect("begun").rollback().await.expect("rolled back");
            }
        }
        begin(&pool, "BEGIN IMMEDIATE").await.expect("the connection is as good as before");
    }

    /// Once this fails, sqlx has been mended, and this module may go.
    ///
    /// It shows in two ways: a connection inside a transaction, or, more seldom, one that never comes back.
    #[tokio::test(flavor = "multi_thread")]
    async fn sqlx_by_itself_loses_the_connection() {
        let (pool, start) = (database().await, Instant::now());
        for left in (0..8).cycle().take_while(|_| start.elapsed() < Duration::from_mins(1)) {
            match steps(pool.begin_with("BEGIN IMMEDIATE"), left).await {
                Some(Err(sqlx::Error::InvalidSavePointStatement | sqlx::Error::PoolTimedOut)) => {
                    return;
                }
                Some(begun) => begun.expect("begun").rollback().await.expect("rolled back"),
                None => {}
            }
        }
        panic!("it never was");
    }
}
