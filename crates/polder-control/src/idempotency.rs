//! `Idempotency-Key`: what was answered to a request with a key, kept for a while, so that whoever
//! repeats it gets the first one's answer, from any server of this store.
//!
//! [`begin`] takes the key before the request is carried out, so that no other server carries it out
//! meanwhile, and [`keep`] writes a second time. [`Answers`] write once, when the request has been
//! carried out, and those that come together in one transaction: for changes that are refused by
//! themselves when they are asked for twice.

use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use polder_core::{Error, ErrorCode, Result};
use sqlx::Row;
use tokio::sync::{Mutex, oneshot};

use crate::store::{Store, commit, failed};

/// How long [`keep`] keeps an answer.
pub const LIFETIME: Duration = Duration::from_hours(24);
/// A request that was begun and whose server died holds its key so long.
const ABANDONED: Duration = Duration::from_mins(5);
/// How often [`Answers`] remove those that are over.
const SWEEP: Duration = Duration::from_mins(1);

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Headers worth repeating, as a JSON object.
    pub headers: String,
    pub body: String,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Nobody used it: carry the request out, then [`keep`] its answer or [`forget`] it.
    New,
    Answered(Answer),
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// [`begin`] has taken it.
    UnderWay,
    Answered(Answer),
    /// It was used for another request.
    AnotherRequest,
}

/// Takes a key for a request. `id` names caller and key, `request` what is asked for; both are
/// opaque here.
///
/// # Errors
/// `control.conflict` when the key was used for another request, or the first one is still under way.
pub async fn begin(store: &Store, id: &str, request: &str) -> Result<Begun> {
    expire(store).await?;
    let now = now_ms();
    let taken = sqlx::query(
        "INSERT INTO polder_idempotency (id, request, at_ms, until_ms) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(id)
    .bind(request)
    .bind(now)
    .bind(now + ABANDONED.as_millis() as i64)
    .execute(store.pool())
    .await
    .map_err(wrong)?;
    if taken.rows_affected() > 0 {
        return Ok(Begun::New);
    }
    let conflict = |message: &str| Error::new(ErrorCode::ControlConflict, message);
    match find(store, id, request).await? {
        Found::Answered(answer) => Ok(Begun::Answered(answer)),
        Found::AnotherRequest => Err(conflict("the Idempotency-Key was used for another request")
            .hint("use a new key for each new request")),
        // Nothing: it ended just now.
        Found::UnderWay | Found::Nothing => {
            Err(conflict("a request with this Idempotency-Key is under way")
                .hint("repeat it in a moment"))
        }
    }
}

/// What is known of a key; changes nothing. `id` and `request` as for [`begin`].
pub async fn find(store: &Store, id: &str, request: &str) -> Result<Found> {
    let row = sqlx::query(
        "SELECT request, status, headers, body FROM polder_idempotency \
         WHERE id = $1 AND until_ms > $2",
    )
    .bind(id)
    .bind(now_ms())
    .fetch_optional(store.pool())
    .await
    .map_err(wrong)?;
    let Some(row) = row else { return Ok(Found::Nothing) };
    if row.try_get::<String, _>("request").map_err(wrong)? != request {
        return Ok(Found::AnotherRequest);
    }
    let status: Option<i64> = row.try_get("status").map_err(wrong)?;
    let Some(status) = status.and_then(|status| u16::try_from(status).ok()) else {
        return Ok(Found::UnderWay);
    };
    Ok(Found::Answered(Answer {
        status,
        headers: row.try_get("headers").map_err(wrong)?,
        body: row.try_get("body").map_err(wrong)?,
    }))
}

/// Keeps the answer of a request that [`begin`] said is new.
pub async fn keep(store: &Store, id: &str, answer: &Answer) -> Result<()> {
    sqlx::query(
        "UPDATE polder_idempotency SET status = $1, headers = $2, body = $3, until_ms = $4 \
         WHERE id = $5",
    )
    .bind(i64::from(answer.status))
    .bind(&answer.headers)
    .bind(&answer.body)
    .bind(now_ms() + LIFETIME.as_millis() as i64)
    .bind(id)
    .execute(store.pool())
    .await
    .map_err(wrong)?;
    Ok(())
}

/// Frees the key of a request whose answer says "try again".
pub async fn forget(store: &Store, id: &str) -> Result<()> {
    sqlx::query("DELETE FROM polder_idempotency WHERE id = $1")
        .bind(id)
        .execute(store.pool())
        .await
        .map_err(wrong)?;
    Ok(())
}

/// Removes the answers that are over.
async fn expire(store: &Store) -> Result<()> {
    sqlx::query("DELETE FROM polder_idempotency WHERE until_ms <= $1")
        .bind(now_ms())
        .execute(store.pool())
        .await
        .map_err(wrong)?;
    Ok(())
}

/// Keeps answers of requests that nobody has begun. Cheap where many come at once: whoever has the
/// turn writes for all who wait.
#[derive(Debug)]
pub struct Answers {
    store: Store,
    lifetime: Duration,
    waiting: StdMutex<Vec<Waiting>>,
    /// When those that are over were removed last, for whoever has the turn.
    turn: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Waiting {
    id: String,
    request: String,
    answer: Answer,
    /// Whether it was kept; none where it could not be written.
    tell: oneshot::Sender<Option<bool>>,
}

impl Answers {
    pub fn new(store: Store, lifetime: Duration) -> Self {
        Self { store, lifetime, waiting: StdMutex::default(), turn: Mutex::default() }
    }

    /// What is known of a key, as [`find`] says it.
    pub async fn find(&self, id: &str, request: &str) -> Result<Found> {
        find(&self.store, id, request).await
    }

    /// Keeps an answer, unless another server has kept one. Then that one stands, but for a refusal
    /// of what was done here: the two were under way at the same moment.
    ///
    /// # Errors
    /// `control.store`.
    pub async fn keep(&self, id: &str, request: &str, answer: Answer) -> Result<bool> {
        let (tell, told) = oneshot::channel();
        let (id, request) = (id.to_owned(), request.to_owned());
        let waiting = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting().push(Waiting { id, request, answer, tell });
        let mut swept = self.turn.lock().await;
        // Empty if whoever had the turn before wrote this one too.
        let together = std::mem::take(&mut *waiting());
        if !together.is_empty() {
            self.write(together).await;
            if swept.is_none_or(|at| at.elapsed() > SWEEP) {
                *swept = Some(Instant::now());
                if let Err(error) = expire(&self.store).await {
                    tracing::debug!("answers that are over were not removed: {error}");
                }
            }
        }
        drop(swept);
        let lost = || Error::new(ErrorCode::ControlStore, "an answer could not be kept");
        told.await.ok().flatten().ok_or_else(lost)
    }

    async fn write(&self, mut together: Vec<Waiting>) {
        // In one order everywhere: servers that write the same keys wait for each other.
        together.sort_by(|a, b| a.id.cmp(&b.id));
        let written = self.written(&together).await;
        if let Err(error) = &written {
            let causes = error.causes();
            tracing::warn!(answers = together.len(), ?causes, "answers were not kept: {error}");
        }
        let mut written = written.unwrap_or_default().into_iter();
        for one in together {
            // Fails if the request behind it was given up.
            let _ = one.tell.send(written.next());
        }
    }

    /// Which of them were kept. With an error, none was.
    async fn written(&self, together: &[Waiting]) -> Result<Vec<bool>> {
        let now = now_ms();
        let until = now + self.lifetime.as_millis() as i64;
        let mut transaction = self.store.begin().await?;
        let mut written = Vec::with_capacity(together.len());
        for Waiting { id, request, answer, .. } in together {
            let done = sqlx::query(
                "INSERT INTO polder_idempotency \
                 (id, request, at_ms, until_ms, status, headers, body) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT (id) DO UPDATE SET request = excluded.request, \
                 at_ms = excluded.at_ms, until_ms = excluded.until_ms, status = excluded.status, \
                 headers = excluded.headers, body = excluded.body \
                 WHERE polder_idempotency.until_ms <= excluded.at_ms \
                 OR (polder_idempotency.request = excluded.request \
                 AND polder_idempotency.status >= 400 AND excluded.status < 400)",
            )
            .bind(id)
            .bind(request)
            .bind(now)
            .bind(until)
            .bind(i64::from(answer.status))
            .bind(&answer.headers)
            .bind(&answer.body)
            .execute(&mut *transaction)
            .await
            .map_err(wrong)?;
            written.push(done.rows_affected() > 0);
        }
        commit(transaction).await?;
        Ok(written)
    }
}

fn now_ms() -> i64 {
    Utc::now().timestamp_millis()
}

fn wrong(error: sqlx::Error) -> Error {
    failed("the answers of earlier requests cannot be reached", error)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status, headers: "{}".to_owned(), body: format!("b{status}") }
    }

    async fn age(store: &Store, sql: &str) {
        sqlx::query(sql).execute(store.pool()).await.expect("aged");
    }

    #[tokio::test]
    async fn a_key_is_used_once_and_answers_again() {
        let store = Store::in_memory().await;
        assert_eq!(begin(&store, "a", "x").await.expect("new"), Begun::New);
        let under_way = begin(&store, "a", "x").await.expect_err("not answered yet");
        assert_eq!(under_way.code(), ErrorCode::ControlConflict);
        let answer = answer(201);
        keep(&store, "a", &answer).await.expect("kept");
        assert_eq!(begin(&store, "a", "x").await.expect("known"), Begun::Answered(answer));
        assert!(begin(&store, "a", "y").await.is_err(), "another request");
        forget(&store, "a").await.expect("freed");
        assert_eq!(begin(&store, "a", "y").await.expect("new"), Begun::New);
        age(&store, "UPDATE polder_idempotency SET status = 200, until_ms = 1").await;
        assert_eq!(begin(&store, "a", "z").await.expect("new"), Begun::New);
    }

    #[tokio::test]
    async fn an_answer_outlives_the_server_and_ends() {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        let open = || async {
            Answers::new(Store::open(&url).await.expect("store"), Duration::from_mins(1))
        };
        let first = open().await;
        assert_eq!(first.find("a", "x").await.expect("found"), Found::Nothing);
        assert!(first.keep("a", "x", answer(200)).await.expect("written"));
        drop(first);
        let second = open().await;
        assert_eq!(second.find("a", "x").await.expect("found"), Found::Answered(answer(200)));
        assert_eq!(second.find("a", "y").await.expect("found"), Found::AnotherRequest);
        age(&second.store, "UPDATE polder_idempotency SET until_ms = 1").await;
        assert_eq!(second.find("a", "x").await.expect("found"), Found::Nothing);
        // What is over is written over, and removed with the first that is kept.
        assert!(second.keep("a", "y", answer(404)).await.expect("written"));
        age(&second.store, "UPDATE polder_idempotency SET until_ms = 1").await;
        let third = open().await;
        assert!(third.keep("b", "x", answer(200)).await.expect("written"));
        let rows = sqlx::query("SELECT id FROM polder_idempotency");
        assert_eq!(rows.fetch_all(third.store.pool()).await.expect("rows").len(), 1);
    }

    #[tokio::test]
    async fn of_two_servers_answers_the_one_that_succeeded_stands() {
        let store = Store::in_memory().await;
        let one = Answers::new(store.clone(), Duration::from_mins(1));
        let other = Answers::new(store, Duration::from_mins(1));
        assert!(one.keep("a", "x", answer(409)).await.expect("written"));
        assert!(!other.keep("a", "x", answer(404)).await.expect("written"));
        assert!(!other.keep("a", "y", answer(200)).await.expect("written"), "another request");
        assert_eq!(one.find("a", "x").await.expect("found"), Found::Answered(answer(409)));
        assert!(other.keep("a", "x", answer(200)).await.expect("written"));
        assert!(!one.keep("a", "x", answer(409)).await.expect("written"));
        assert!(!one.keep("a", "x", answer(204)).await.expect("written"));
        assert_eq!(one.find("a", "x").await.expect("found"), Found::Answered(answer(200)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_are_kept_together_and_none_is_lost() {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        let store = Store::open(&url).await.expect("store");
        let answers = Arc::new(Answers::new(store, Duration::from_mins(1)));
        let mut keeping = JoinSet::new();
        for number in 0..300 {
            let answers = Arc::clone(&answers);
            keeping.spawn(async move {
                answers.keep(&format!("k{number}"), "x", answer(200)).await.expect("written")
            });
        }
        while let Some(kept) = keeping.join_next().await {
            assert!(kept.expect("task"));
        }
        for number in 0..300 {
            let found = answers.find(&format!("k{number}"), "x").await.expect("found");
            assert_eq!(found, Found::Answered(answer(200)));
        }
    }
}
