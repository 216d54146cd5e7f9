//! API keys: `plk_<id>_<secret>`. The secret is 256 random bits, shown once and stored as a SHA-256;
//! the id says which key it is, in logs and lists, without giving it away.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use polder_core::digest::hex;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result, Role};
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::store::{Store, failed};

/// What every key begins with, so that scanners of leaked secrets know one.
pub const PREFIX: &str = "plk_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

/// What is known of a key: never its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// `plk_<id>`: what the key begins with.
    pub id: String,
    pub role: Role,
    /// Whose; empty for an operator's.
    pub orgs: Vec<String>,
    /// What it is for, in the words of whoever made it.
    pub name: Option<String>,
    /// Milliseconds since the epoch.
    pub created_ms: i64,
    pub expires_ms: Option<i64>,
    pub revoked_ms: Option<i64>,
}

/// A key to be made.
#[derive(Clone, Debug)]
pub struct KeyRequest {
    pub role: Role,
    pub orgs: Vec<OrgId>,
    pub name: Option<String>,
    /// Milliseconds since the epoch; never if absent.
    pub expires_ms: Option<i64>,
}

/// Makes a key. The second value is the key itself, which nothing can show again.
///
/// # Errors
/// `spec.invalid` for an operator's key of some orgs, another role's of none, and one that has
/// expired already.
pub async fn create(store: &Store, request: &KeyRequest) -> Result<(Key, SecretString)> {
    let now = Utc::now().timestamp_millis();
    let invalid = |message: String| Error::new(ErrorCode::SpecInvalid, message);
    match (request.role, request.orgs.is_empty()) {
        (Role::Operator, false) => {
            return Err(invalid("an operator's key is for every org".to_owned())
                .hint("leave --org out, or choose another role"));
        }
        (role, true) if role != Role::Operator => {
            return Err(invalid(format!("a key of role {} needs an org", role.as_str()))
                .hint("name its orgs: --org 401"));
        }
        _ => {}
    }
    if request.expires_ms.is_some_and(|expires| expires <= now) {
        return Err(invalid("the key would have expired already".to_owned()));
    }
    let id = format!("{PREFIX}{}", hex(&random::<ID_BYTES>()?));
    let secret = URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?);
    let shown = SecretString::from(format!("{id}_{secret}"));
    let key = Key {
        id,
        role: request.role,
        orgs: request.orgs.iter().map(ToString::to_string).collect(),
        name: request.name.clone(),
        created_ms: now,
        expires_ms: request.expires_ms,
        revoked_ms: None,
    };
    sqlx::query(
        "INSERT INTO polder_keys (id, hash, role, orgs, name, created_ms, expires_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&key.id)
    .bind(hash(shown.expose_secret()))
    .bind(key.role.as_str())
    .bind(key.orgs.join(" "))
    .bind(&key.name)
    .bind(key.created_ms)
    .bind(key.expires_ms)
    .execute(store.pool())
    .await
    .map_err(|error| failed("the key cannot be stored", error))?;
    Ok((key, shown))
}

/// All keys, the oldest first: those that are good no more too.
pub async fn list(store: &Store) -> Result<Vec<Key>> {
    let rows = sqlx::query(
        "SELECT id, hash, role, orgs, name, created_ms, expires_ms, revoked_ms \
         FROM polder_keys ORDER BY created_ms, id",
    )
    .fetch_all(store.pool())
    .await
    .map_err(unreadable)?;
    rows.iter().map(key).collect()
}

/// Ends a key at once.
///
/// # Errors
/// `control.not_found` for a key that there is not, or that was revoked before.
pub async fn revoke(store: &Store, id: &str) -> Result<()> {
    let done =
        sqlx::query("UPDATE polder_keys SET revoked_ms = $1 WHERE id = $2 AND revoked_ms IS NULL")
            .bind(Utc::now().timestamp_millis())
            .bind(id)
            .execute(store.pool())
            .await
            .map_err(|error| failed("the key cannot be revoked", error))?;
    if done.rows_affected() == 0 {
        return Err(unknown());
    }
    Ok(())
}

/// Another key of the same role and orgs; the old one stays good until `old_expires_ms`.
///
/// # Errors
/// As [`revoke`] and [`create`].
pub async fn rotate(
    store: &Store,
    id: &str,
    old_expires_ms: i64,
    expires_ms: Option<i64>,
) -> Result<(Key, SecretString)> {
    let found = list(store).await?.into_iter().find(|key| key.id == id);
    let old = found.filter(|key| key.revoked_ms.is_none()).ok_or_else(unknown)?;
    let orgs = old.orgs.iter().map(|org| org.parse()).collect::<Result<Vec<OrgId>>>()?;
    let request = KeyRequest { role: old.role, orgs, name: old.name.clone(), expires_ms };
    let made = create(store, &request).await?;
    let end = old.expires_ms.map_or(old_expires_ms, |end| end.min(old_expires_ms));
    sqlx::query("UPDATE polder_keys SET expires_ms = $1 WHERE id = $2")
        .bind(end)
        .bind(id)
        .execute(store.pool())
        .await
        .map_err(|error| failed("the old key's end cannot be stored", error))?;
    Ok(made)
}

/// Who shows this key; `None` for one that is not known, was revoked or has expired.
pub async fn principal(store: &Store, shown: &str) -> Result<Option<(Key, Principal)>> {
    let Some((id, _)) = shown.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')) else {
        return Ok(None);
    };
    let row = sqlx::query(
        "SELECT id, hash, role, orgs, name, created_ms, expires_ms, revoked_ms \
         FROM polder_keys WHERE id = $1",
    )
    .bind(format!("{PREFIX}{id}"))
    .fetch_optional(store.pool())
    .await
    .map_err(unreadable)?;
    let Some(row) = row else { return Ok(None) };
    let stored: String = row.try_get("hash").map_err(unreadable)?;
    let key = key(&row)?;
    let now = Utc::now().timestamp_millis();
    let ended = key.revoked_ms.is_some() || key.expires_ms.is_some_and(|end| end <= now);
    // Hashes of 256 random bits: how long a comparison takes says nothing of use.
    if ended || stored != hash(shown) {
        return Ok(None);
    }
    let principal = match key.role {
        Role::Operator => Principal::Operator,
        role => {
            let orgs = key.orgs.iter().map(|org| org.parse()).collect::<Result<Vec<_>>>()?;
            Principal::Member { role, orgs }
        }
    };
    Ok(Some((key, principal)))
}

/// Whether a key was ever made.
pub async fn any(store: &Store) -> Result<bool> {
    let row = sqlx::query("SELECT 1 AS one FROM polder_keys LIMIT 1");
    Ok(row.fetch_optional(store.pool()).await.map_err(unreadable)?.is_some())
}

fn key(row: &AnyRow) -> Result<Key> {
    let text = |column: &str| row.try_get::<String, _>(column).map_err(unreadable);
    Ok(Key {
        id: text("id")?,
        role: text("role")?.parse()?,
        orgs: text("orgs")?.split_whitespace().map(str::to_owned).collect(),
        name: row.try_get("name").map_err(unreadable)?,
        created_ms: row.try_get("created_ms").map_err(unreadable)?,
        expires_ms: row.try_get("expires_ms").map_err(unreadable)?,
        revoked_ms: row.try_get("revoked_ms").map_err(unreadable)?,
    })
}

fn unknown() -> Error {
    Error::new(ErrorCode::ControlNotFound, "there is no such key, or it was revoked")
        .hint("`polder keys list` shows them: a key is named by what it begins with, plk_…")
}

fn unreadable(error: sqlx::Error) -> Error {
    failed("the keys cannot be read", error)
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::new(ErrorCode::Internal, "the system gives no random numbers"))?;
    Ok(bytes)
}

fn hash(shown: &str) -> String {
    hex(digest::digest(&digest::SHA256, shown.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store(folder: &tempfile::TempDir) -> Store {
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        Store::open(&url).await.expect("store")
    }

    fn writer(expires_ms: Option<i64>) -> KeyRequest {
        let orgs = vec!["401".parse().expect("org")];
        KeyRequest { role: Role::Writer, orgs, name: None, expires_ms }
    }

    #[tokio::test]
    async fn a_key_is_known_by_all_of_it_and_stored_as_a_hash() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder).await;
        assert!(!any(&store).await.expect("any"));
        let (key, shown) = create(&store, &writer(None)).await.expect("key");
        let shown = shown.expose_secret();
        assert!(shown.starts_with("plk_") && shown.starts_with(&key.id), "{shown}");
        let (found, who) = principal(&store, shown).await.expect("asked").expect("known");
        assert_eq!(found, key);
        let orgs = vec!["401".parse().expect("org")];
        assert_eq!(who, Principal::Member { role: Role::Writer, orgs });
        let secret = shown.strip_prefix(&format!("{}_", key.id)).expect("secret");
        for wrong in [&shown[..shown.len() - 1], &key.id, "plk_", "plk_x_y", "", secret] {
            assert!(principal(&store, wrong).await.expect("asked").is_none(), "{wrong}");
        }
        let database = std::fs::read(folder.path().join("c.db")).expect("file");
        let log = std::fs::read(folder.path().join("c.db-wal")).unwrap_or_default();
        for bytes in [database, log] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()));
        }
    }

    #[tokio::test]
    async fn keys_end_by_time_by_word_and_by_another() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder).await;
        let now = Utc::now().timestamp_millis();
        assert!(create(&store, &writer(Some(now - 1))).await.is_err());
        let (_, short) = create(&store, &writer(Some(now + 300))).await.expect("key");
        let (old, first) = create(&store, &writer(None)).await.expect("key");
        let (new, second) = rotate(&store, &old.id, now + 60_000, None).await.expect("key");
        for shown in [&short, &first, &second] {
            assert!(principal(&store, shown.expose_secret()).await.expect("asked").is_some());
        }
        tokio::time::sleep(std::time::Duration::from_millis(320)).await;
        assert!(principal(&store, short.expose_secret()).await.expect("asked").is_none());
        revoke(&store, &new.id).await.expect("revoked");
        assert!(principal(&store, second.expose_secret()).await.expect("asked").is_none());
        let again = revoke(&store, &new.id).await.expect_err("twice");
        assert_eq!(again.code(), ErrorCode::ControlNotFound);
        assert!(
            rotate(&store, &new.id, now, None).await.is_err(),
            "nothing comes of a revoked key"
        );
    }

    #[tokio::test]
    async fn a_key_is_for_orgs_or_for_all() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder).await;
        let mut request = writer(None);
        request.orgs.clear();
        assert!(create(&store, &request).await.is_err());
        request.role = Role::Operator;
        let (_, shown) = create(&store, &request).await.expect("key");
        let (_, who) =
            principal(&store, shown.expose_secret()).await.expect("asked").expect("known");
        assert_eq!(who, Principal::Operator);
        request.orgs = vec!["1".parse().expect("org")];
        assert!(create(&store, &request).await.is_err());
    }
}
