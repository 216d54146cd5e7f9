//! The audit log: every change and every refusal, each entry bound to the one before by its hash.
//!
//! An entry that is edited, taken out or put in breaks the chain. Entries cut off at the end leave a
//! chain that holds; they are found by a [`Head`] that was written down elsewhere before.

use chrono::Utc;
use polder_core::digest::hex;
use polder_core::{Error, ErrorCode, Result};
use ring::digest;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::store::{Store, Transaction, commit, failed};

/// Entries read at a time.
const PAGE: i64 = 1000;

/// Something that somebody did, or was refused.
#[derive(Clone, Debug, Default)]
pub struct Event {
    /// `key:plk_…`, `client:…`, `oidc:<issuer>#<subject>`, `cli:…`, `webhook`, or `-` for nobody known.
    pub who: String,
    /// `table.create`, `key.revoke`, …
    pub action: String,
    pub org: Option<String>,
    /// What it was done to.
    pub subject: Option<String>,
    /// `done`, or the code of the error it was refused with.
    pub outcome: String,
    /// What changed, or a reason: no secrets, no cell values.
    pub detail: Option<String>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// From 1, without gaps.
    pub seq: i64,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    pub who: String,
    pub action: String,
    pub org: Option<String>,
    pub subject: Option<String>,
    pub outcome: String,
    pub detail: Option<String>,
    /// Over everything above and the hash of the entry before: 64 hex digits.
    pub hash: String,
}

/// How far the log went at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub seq: i64,
    pub hash: String,
}

/// Adds an entry.
pub async fn record(store: &Store, event: &Event) -> Result<Head> {
    let mut transaction = store.begin().await?;
    let head = append(&mut transaction, event).await?;
    commit(transaction).await?;
    Ok(head)
}

/// Adds entries of these times (milliseconds since the epoch), in their order, in one transaction: all or
/// none.
pub async fn record_all(store: &Store, events: &[(i64, Event)]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let mut transaction = store.begin().await?;
    for (at_ms, event) in events {
        append_at(&mut transaction, *at_ms, event).await?;
    }
    commit(transaction).await
}

/// Adds an entry in the transaction of what it tells of. The log's head is held until its end.
pub(crate) async fn append(transaction: &mut Transaction, event: &Event) -> Result<Head> {
    append_at(transaction, Utc::now().timestamp_millis(), event).await
}

async fn append_at(transaction: &mut Transaction, at_ms: i64, event: &Event) -> Result<Head> {
    let row =
        sqlx::query("UPDATE polder_audit_head SET seq = seq + 1 WHERE id = 1 RETURNING seq, hash")
            .fetch_one(&mut **transaction)
            .await
            .map_err(unwritable)?;
    let previous: String = row.try_get("hash").map_err(unwritable)?;
    let mut entry = Entry {
        seq: row.try_get("seq").map_err(unwritable)?,
        at_ms,
        who: event.who.clone(),
        action: event.action.clone(),
        org: event.org.clone(),
        subject: event.subject.clone(),
        outcome: event.outcome.clone(),
        detail: event.detail.clone(),
        hash: String::new(),
    };
    entry.hash = chained(&previous, &entry)?;
    sqlx::query(
        "INSERT INTO polder_audit (seq, at_ms, who, action, org, subject, outcome, detail, hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(entry.seq)
    .bind(entry.at_ms)
    .bind(entry.who)
    .bind(entry.action)
    .bind(entry.org)
    .bind(entry.subject)
    .bind(entry.outcome)
    .bind(entry.detail)
    .bind(entry.hash.clone())
    .execute(&mut **transaction)
    .await
    .map_err(unwritable)?;
    sqlx::query("UPDATE polder_audit_head SET hash = $1 WHERE id = 1")
        .bind(entry.hash.clone())
        .execute(&mut **transaction)
        .await
        .map_err(unwritable)?;
    Ok(Head { seq: entry.seq, hash: entry.hash })
}

/// The entries after one, oldest first, at most `limit`.
pub async fn after(store: &Store, seq: i64, limit: i64) -> Result<Vec<Entry>> {
    let rows = sqlx::query(
        "SELECT seq, at_ms, who, action, org, subject, outcome, detail, hash \
         FROM polder_audit WHERE seq > $1 ORDER BY seq LIMIT $2",
    )
    .bind(seq)
    .bind(limit)
    .fetch_all(store.pool())
    .await
    .map_err(unreadable)?;
    rows.iter().map(entry).collect()
}

/// The newest entries, the newest last.
pub async fn newest(store: &Store, limit: i64) -> Result<Vec<Entry>> {
    let head = head(store).await?;
    after(store, (head.seq - limit).max(0), limit).await
}

/// How far the log goes.
pub async fn head(store: &Store) -> Result<Head> {
    let row = sqlx::query("SELECT seq, hash FROM polder_audit_head WHERE id = 1")
        .fetch_one(store.pool())
        .await
        .map_err(unreadable)?;
    Ok(Head {
        seq: row.try_get("seq").map_err(unreadable)?,
        hash: row.try_get("hash").map_err(unreadable)?,
    })
}

/// Whether the log still has the entry at which it ended when a head was written down.
pub async fn holds(store: &Store, written: &Head) -> Result<bool> {
    if written.seq == 0 {
        return Ok(true);
    }
    let row = sqlx::query("SELECT hash FROM polder_audit WHERE seq = $1")
        .bind(written.seq)
        .fetch_optional(store.pool())
        .await
        .map_err(unreadable)?;
    let Some(row) = row else { return Ok(false) };
    Ok(row.try_get::<String, _>("hash").map_err(unreadable)? == written.hash)
}

/// What a look through the whole log found.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    pub entries: i64,
    pub head: Head,
    /// What is wrong, in the log's order; empty if nothing is.
    pub problems: Vec<String>,
}

/// Reads the log from its beginning and follows the chain; then looks for a head that was written
/// down before.
pub async fn verify(store: &Store, checkpoint: Option<&Head>) -> Result<Verified> {
    let mut problems = Vec::new();
    let mut last = Head::default();
    let mut met = checkpoint.is_none_or(|head| head.seq == 0);
    loop {
        let page = after(store, last.seq, PAGE).await?;
        if page.is_empty() {
            break;
        }
        for entry in page {
            if entry.seq != last.seq + 1 {
                problems.push(format!("entries {} to {} are missing", last.seq + 1, entry.seq - 1));
            }
            if chained(&last.hash, &entry)? != entry.hash {
                problems
                    .push(format!("entry {} is not what it was when it was written", entry.seq));
            }
            last = Head { seq: entry.seq, hash: entry.hash };
            met |= checkpoint == Some(&last);
        }
    }
    if last != head(store).await? {
        problems.push(format!("the log ends at entry {}, which is not its head", last.seq));
    }
    if let Some(head) = checkpoint.filter(|_| !met) {
        let message = format!("entry {} is not there as it was written down elsewhere", head.seq);
        problems.push(message);
    }
    Ok(Verified { entries: last.seq, head: last, problems })
}

fn chained(previous: &str, entry: &Entry) -> Result<String> {
    let Entry { seq, at_ms, who, action, org, subject, outcome, detail, .. } = entry;
    let content = (previous, seq, at_ms, who, action, org, subject, outcome, detail);
    let text = serde_json::to_string(&content).map_err(|error| {
        Error::new(ErrorCode::Internal, "an audit entry cannot be hashed").caused_by(error)
    })?;
    Ok(hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()))
}

fn entry(row: &AnyRow) -> Result<Entry> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(unreadable);
    let maybe = |column: &str| row.try_get::<Option<String>, _>(column).map_err(unreadable);
    Ok(Entry {
        seq: row.try_get("seq").map_err(unreadable)?,
        at_ms: row.try_get("at_ms").map_err(unreadable)?,
        who: text("who")?,
        action: text("action")?,
        org: maybe("org")?,
        subject: maybe("subject")?,
        outcome: text("outcome")?,
        detail: maybe("detail")?,
        hash: text("hash")?,
    })
}

fn unreadable(error: sqlx::Error) -> Error {
    failed("the audit log cannot be read", error)
}

fn unwritable(error: sqlx::Error) -> Error {
    failed("the audit log cannot be written", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn log(entries: usize) -> (Store, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        let store = Store::open(&url).await.expect("store");
        for number in 0..entries {
            let outcome = if number % 2 == 0 { "done" } else { "control.denied" };
            let event = Event {
                who: "key:plk_a".to_owned(),
                action: "table.create".to_owned(),
                org: Some("401".to_owned()),
                subject: (number != 0).then(|| format!("t{number}")),
                outcome: outcome.to_owned(),
                detail: None,
            };
            record(&store, &event).await.expect("recorded");
        }
        (store, folder)
    }

    async fn sql(store: &Store, text: &str) {
        sqlx::query(text).execute(store.pool()).await.expect(text);
    }

    #[tokio::test]
    async fn an_untouched_log_holds() {
        let (store, _folder) = log(5).await;
        let before = head(&store).await.expect("head");
        assert_eq!(before.seq, 5);
        let verified = verify(&store, Some(&before)).await.expect("verified");
        assert_eq!((verified.entries, verified.problems.len()), (5, 0));
        let newest: Vec<_> = newest(&store, 2).await.expect("read").iter().map(|e| e.seq).collect();
        assert_eq!(newest, [4, 5]);
    }

    #[tokio::test]
    async fn many_entries_go_in_at_once_and_in_order() {
        let (store, _folder) = log(1).await;
        let event = |name: &str| Event { subject: Some(name.to_owned()), ..Event::default() };
        let events = [(5, event("a")), (3, event("b")), (4, event("c"))];
        record_all(&store, &events).await.expect("recorded");
        record_all(&store, &[]).await.expect("nothing to do");
        let read = after(&store, 1, 10).await.expect("read");
        let said: Vec<_> = read.iter().map(|e| (e.seq, e.at_ms, e.subject.as_deref())).collect();
        assert_eq!(said, [(2, 5, Some("a")), (3, 3, Some("b")), (4, 4, Some("c"))]);
        assert!(verify(&store, None).await.expect("verified").problems.is_empty());
    }

    #[tokio::test]
    async fn edits_holes_and_insertions_are_found() {
        for (change, expect) in [
            ("UPDATE polder_audit SET who = 'key:plk_b' WHERE seq = 3", "entry 3 is not what"),
            ("UPDATE polder_audit SET subject = '' WHERE seq = 1", "entry 1 is not what"),
            ("DELETE FROM polder_audit WHERE seq = 2", "entries 2 to 2 are missing"),
            ("UPDATE polder_audit SET seq = 7 WHERE seq = 5", "entries 5 to 6 are missing"),
            (
                "INSERT INTO polder_audit SELECT 6, at_ms, who, action, org, subject, outcome, \
                 detail, hash FROM polder_audit WHERE seq = 5",
                "entry 6 is not what",
            ),
        ] {
            let (store, _folder) = log(5).await;
            sql(&store, change).await;
            let problems = verify(&store, None).await.expect("verified").problems;
            assert!(
                problems.iter().any(|problem| problem.contains(expect)),
                "{change}: {problems:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_log_that_was_cut_off_is_found_by_its_checkpoint() {
        let (store, _folder) = log(5).await;
        let written_down = head(&store).await.expect("head");
        assert!(holds(&store, &Head::default()).await.expect("asked"));
        assert!(holds(&store, &written_down).await.expect("asked"));
        sql(&store, "DELETE FROM polder_audit WHERE seq > 3").await;
        sql(
            &store,
            "UPDATE polder_audit_head SET seq = 3, \
             hash = (SELECT hash FROM polder_audit WHERE seq = 3)",
        )
        .await;
        assert!(verify(&store, None).await.expect("verified").problems.is_empty(), "a whole chain");
        assert!(!holds(&store, &written_down).await.expect("asked"));
        let found = verify(&store, Some(&written_down)).await.expect("verified").problems;
        assert_eq!(found, ["entry 5 is not there as it was written down elsewhere"]);
        // Going on from there does not help: the fifth entry is another one.
        for _ in 0..3 {
            record(&store, &Event::default()).await.expect("recorded");
        }
        assert!(!holds(&store, &written_down).await.expect("asked"));
        assert_eq!(verify(&store, Some(&written_down)).await.expect("verified").problems.len(), 1);
    }
}
