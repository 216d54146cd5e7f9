//! `Idempotency-Key`: what was answered to a request with a key, kept for a day, so that whoever
//! repeats it gets the first one's answer, from any server of this store.

use std::time::Duration;

use chrono::Utc;
use polder_core::{Error, ErrorCode, Result};
use sqlx::Row;

use crate::store::{Store, failed};

/// How long an answer is kept.
pub const LIFETIME: Duration = Duration::from_hours(24);
/// A request that was begun and whose server died holds its key so long.
const ABANDONED: Duration = Duration::from_mins(5);

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

/// Takes a key for a request. `id` names caller and key, `request` what is asked for; both are
/// opaque here.
///
/// # Errors
/// `control.conflict` when the key was used for another request, or the first one is still under way.
pub async fn begin(store: &Store, id: &str, request: &str) -> Result<Begun> {
    let now = Utc::now().timestamp_millis();
    let old = now - LIFETIME.as_millis() as i64;
    let abandoned = now - ABANDONED.as_millis() as i64;
    sqlx::query(
        "DELETE FROM polder_idempotency WHERE at_ms < $1 OR (status IS NULL AND at_ms < $2)",
    )
    .bind(old)
    .bind(abandoned)
    .execute(store.pool())
    .await
    .map_err(wrong)?;
    let taken = sqlx::query(
        "INSERT INTO polder_idempotency (id, request, at_ms) VALUES ($1, $2, $3) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(id)
    .bind(request)
    .bind(now)
    .execute(store.pool())
    .await
    .map_err(wrong)?;
    if taken.rows_affected() > 0 {
        return Ok(Begun::New);
    }
    let row =
        sqlx::query("SELECT request, status, headers, body FROM polder_idempotency WHERE id = $1")
            .bind(id)
            .fetch_optional(store.pool())
            .await
            .map_err(wrong)?;
    let conflict = |message: &str| Error::new(ErrorCode::ControlConflict, message);
    let under_way = || {
        conflict("a request with this Idempotency-Key is under way").hint("repeat it in a moment")
    };
    let row = row.ok_or_else(under_way)?;
    if row.try_get::<String, _>("request").map_err(wrong)? != request {
        return Err(conflict("the Idempotency-Key was used for another request")
            .hint("use a new key for each new request"));
    }
    let status: Option<i64> = row.try_get("status").map_err(wrong)?;
    let status = status.and_then(|status| u16::try_from(status).ok()).ok_or_else(under_way)?;
    Ok(Begun::Answered(Answer {
        status,
        headers: row.try_get("headers").map_err(wrong)?,
        body: row.try_get("body").map_err(wrong)?,
    }))
}

/// Keeps the answer of a request that [`begin`] said is new.
pub async fn keep(store: &Store, id: &str, answer: &Answer) -> Result<()> {
    sqlx::query("UPDATE polder_idempotency SET status = $1, headers = $2, body = $3 WHERE id = $4")
        .bind(i64::from(answer.status))
        .bind(&answer.headers)
        .bind(&answer.body)
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

fn wrong(error: sqlx::Error) -> Error {
    failed("the answers of earlier requests cannot be reached", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_used_once_and_answers_again() {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        let store = Store::open(&url).await.expect("store");
        assert_eq!(begin(&store, "a", "x").await.expect("new"), Begun::New);
        let under_way = begin(&store, "a", "x").await.expect_err("not answered yet");
        assert_eq!(under_way.code(), ErrorCode::ControlConflict);
        let answer = Answer { status: 201, headers: "{}".to_owned(), body: "b".to_owned() };
        keep(&store, "a", &answer).await.expect("kept");
        assert_eq!(begin(&store, "a", "x").await.expect("known"), Begun::Answered(answer));
        assert!(begin(&store, "a", "y").await.is_err(), "another request");
        forget(&store, "a").await.expect("freed");
        assert_eq!(begin(&store, "a", "y").await.expect("new"), Begun::New);
        let old = sqlx::query("UPDATE polder_idempotency SET status = 200, at_ms = 1");
        old.execute(store.pool()).await.expect("aged");
        assert_eq!(begin(&store, "a", "z").await.expect("new"), Begun::New);
    }
}
