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

use crate::store::{Store, Transaction, commit, failed};

/// What every key begins with, so that scanners of leaked secrets know one.
pub const PREFIX: &str = "plk_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;
const NAME_CHARS_MAX: usize = 200;
const SELECT: &str = "SELECT id, hash, role, orgs, name, created_ms, expires_ms, revoked_ms \
                      FROM polder_keys";

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

impl Key {
    /// When a key ends that takes the place of this one now: it is good as long as this one was meant to be
    /// when it was made.
    pub fn next_expires_ms(&self) -> Option<i64> {
        let lifetime = self.expires_ms? - self.created_ms;
        Some(Utc::now().timestamp_millis().saturating_add(lifetime))
    }
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

/// What can be meant by a request, before anything is made.
///
/// # Errors
/// `spec.invalid` for an operator's key of some orgs, another role's of none, one that has expired
/// already, and a name that is no line of text.
pub fn check(request: &KeyRequest) -> Result<()> {
    Principal::of(request.role, request.orgs.clone()).map_err(|error| {
        let operator = request.role == Role::Operator;
        let others = "name its orgs: --org 401, or by the API \"orgs\": [\"401\"]";
        error.hint(if operator { "leave its orgs out, or choose another role" } else { others })
    })?;
    let no_line =
        |name: &String| name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control);
    if request.name.as_ref().is_some_and(no_line) {
        let message = format!("a key's name has {NAME_CHARS_MAX} characters at most");
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint("and none that control a terminal, such as ends of lines"));
    }
    check_end(request.expires_ms)
}

/// # Errors
/// `spec.invalid` for an end that has passed.
pub fn check_end(expires_ms: Option<i64>) -> Result<()> {
    if expires_ms.is_some_and(|expires| expires <= Utc::now().timestamp_millis()) {
        let message = "the key would have expired already";
        return Err(Error::new(ErrorCode::SpecInvalid, message));
    }
    Ok(())
}

/// Makes a key. The second value is the key itself, which nothing can show again.
///
/// # Errors
/// As [`check`].
pub async fn create(store: &Store, request: &KeyRequest) -> Result<(Key, SecretString)> {
    check(request)?;
    let (key, shown) = make(request)?;
    let mut transaction = store.begin().await?;
    insert(&mut transaction, &key, &shown).await?;
    commit(transaction).await?;
    Ok((key, shown))
}

/// A key that nobody knows yet.
fn make(request: &KeyRequest) -> Result<(Key, SecretString)> {
    let id = format!("{PREFIX}{}", hex(&random::<ID_BYTES>()?));
    let secret = URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?);
    let shown = SecretString::from(format!("{id}_{secret}"));
    let key = Key {
        id,
        role: request.role,
        orgs: request.orgs.iter().map(ToString::to_string).collect(),
        name: request.name.clone(),
        created_ms: Utc::now().timestamp_millis(),
        expires_ms: request.expires_ms,
        revoked_ms: None,
    };
    Ok((key, shown))
}

async fn insert(transaction: &mut Transaction, key: &Key, shown: &SecretString) -> Result<()> {
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
    .execute(&mut **transaction)
    .await
    .map(drop)
    .map_err(|error| failed("the key cannot be stored", error))
}

/// All keys, the oldest first: those that are good no more too.
pub async fn list(store: &Store) -> Result<Vec<Key>> {
    let sql = format!("{SELECT} ORDER BY created_ms, id");
    let rows = sqlx::query(&sql).fetch_all(store.pool()).await.map_err(unreadable)?;
    rows.iter().map(key).collect()
}

/// So many keys after one, by their ids: those that are good no more too.
pub async fn page(store: &Store, after: &str, limit: usize) -> Result<Vec<Key>> {
    let sql = format!("{SELECT} WHERE id > $1 ORDER BY id LIMIT $2");
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = sqlx::query(&sql).bind(after).bind(limit).fetch_all(store.pool()).await;
    rows.map_err(unreadable)?.iter().map(key).collect()
}

/// The key that begins with this, good or not.
pub async fn find(store: &Store, id: &str) -> Result<Option<Key>> {
    row(store, id).await?.as_ref().map(key).transpose()
}

async fn row(store: &Store, id: &str) -> Result<Option<AnyRow>> {
    let sql = format!("{SELECT} WHERE id = $1");
    sqlx::query(&sql).bind(id).fetch_optional(store.pool()).await.map_err(unreadable)
}

/// What of a text may be shown where a key's id is expected: somebody may have sent the whole key.
pub fn shown_part(text: &str) -> &str {
    let secret = text.strip_prefix(PREFIX).and_then(|rest| rest.find('_'));
    secret.map_or(text, |at| &text[..PREFIX.len() + at])
}

/// Ends a key at once.
///
/// # Errors
/// `control.not_found` for a key that there is not, or that was revoked before.
pub async fn revoke(store: &Store, id: &str) -> Result<()> {
    revoke_if(store, id, |_| Ok(())).await.map(drop)
}

/// As [`revoke`], if `check` has nothing against it: it gets the key as it is then. The key after it.
///
/// # Errors
/// As [`revoke`]; what `check` says of a key that is there.
pub async fn revoke_if(
    store: &Store,
    id: &str,
    check: impl FnOnce(&Key) -> Result<()>,
) -> Result<Key> {
    let mut transaction = store.begin().await?;
    let found = held(&mut transaction, id).await?.ok_or_else(unknown)?;
    check(&found)?;
    if found.revoked_ms.is_some() {
        return Err(unknown());
    }
    let revoked_ms = Some(Utc::now().timestamp_millis());
    sqlx::query("UPDATE polder_keys SET revoked_ms = $1 WHERE id = $2")
        .bind(revoked_ms)
        .bind(id)
        .execute(&mut *transaction)
        .await
        .map_err(|error| failed("the key cannot be revoked", error))?;
    commit(transaction).await?;
    Ok(Key { revoked_ms, ..found })
}

/// The key that begins with this, as it stays until the transaction ends.
async fn held(transaction: &mut Transaction, id: &str) -> Result<Option<Key>> {
    let sql = "UPDATE polder_keys SET revoked_ms = revoked_ms WHERE id = $1";
    let held = sqlx::query(sql).bind(id).execute(&mut **transaction).await;
    held.map_err(|error| failed("the key cannot be held", error))?;
    let sql = format!("{SELECT} WHERE id = $1");
    let row = sqlx::query(&sql).bind(id).fetch_optional(&mut **transaction).await;
    row.map_err(unreadable)?.as_ref().map(key).transpose()
}

/// Another key of the same role and orgs; the old one stays good until `old_expires_ms`. Without
/// `expires_ms` it is good as long as the old one was meant to be when it was made. Both or neither.
///
/// # Errors
/// As [`revoke`] and [`create`].
pub async fn rotate(
    store: &Store,
    id: &str,
    old_expires_ms: i64,
    expires_ms: Option<i64>,
) -> Result<(Key, SecretString)> {
    rotate_if(store, id, old_expires_ms, expires_ms, |_| Ok(())).await
}

/// As [`rotate`], if `check` has nothing against it: it gets the old key as it is then.
///
/// # Errors
/// As [`rotate`]; what `check` says of a key that is there.
pub async fn rotate_if(
    store: &Store,
    id: &str,
    old_expires_ms: i64,
    expires_ms: Option<i64>,
    check: impl FnOnce(&Key) -> Result<()>,
) -> Result<(Key, SecretString)> {
    let mut transaction = store.begin().await?;
    let old = held(&mut transaction, id).await?.ok_or_else(unknown)?;
    check(&old)?;
    let now = Utc::now().timestamp_millis();
    let is_good =
        |key: &Key| key.revoked_ms.is_none() && key.expires_ms.is_none_or(|end| end > now);
    let old = Some(old).filter(is_good).ok_or_else(unknown)?;
    let orgs = old.orgs.iter().map(|org| org.parse()).collect::<Result<Vec<OrgId>>>()?;
    let expires_ms = expires_ms.or_else(|| old.next_expires_ms());
    let request = KeyRequest { role: old.role, orgs, name: old.name.clone(), expires_ms };
    check_end(expires_ms)?;
    let (new, shown) = make(&request)?;
    insert(&mut transaction, &new, &shown).await?;
    let end = old.expires_ms.map_or(old_expires_ms, |end| end.min(old_expires_ms));
    sqlx::query("UPDATE polder_keys SET expires_ms = $1 WHERE id = $2")
        .bind(end)
        .bind(id)
        .execute(&mut *transaction)
        .await
        .map_err(|error| failed("the old key's end cannot be stored", error))?;
    commit(transaction).await?;
    Ok((new, shown))
}

/// Who shows this key; `None` for one that is not known, was revoked or has expired.
pub async fn principal(store: &Store, shown: &str) -> Result<Option<(Key, Principal)>> {
    let Some((id, _)) = shown.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')) else {
        return Ok(None);
    };
    let Some(row) = row(store, &format!("{PREFIX}{id}")).await? else { return Ok(None) };
    let stored: String = row.try_get("hash").map_err(unreadable)?;
    let key = key(&row)?;
    let now = Utc::now().timestamp_millis();
    let ended = key.revoked_ms.is_some() || key.expires_ms.is_some_and(|end| end <= now);
    // Hashes of 256 random bits: how long a comparison takes says nothing of use.
    if ended || stored != hash(shown) {
        return Ok(None);
    }
    let orgs = key.orgs.iter().map(|org| org.parse()).collect::<Result<Vec<OrgId>>>()?;
    let principal = Principal::of(key.role, orgs)?;
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
    Error::new(ErrorCode::ControlNotFound, "there is no such key, or it has ended")
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
    async fn a_key_is_ended_or_followed_as_it_is_known_or_not_at_all() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder).await;
        let (made, shown) = create(&store, &writer(None)).await.expect("key");
        let stale = |_: &Key| Err(Error::new(ErrorCode::ControlStale, "it has changed"));
        let soon = Utc::now().timestamp_millis() + 60_000;
        let refused = revoke_if(&store, &made.id, stale).await.expect_err("stale");
        assert_eq!(refused.code(), ErrorCode::ControlStale);
        let refused = rotate_if(&store, &made.id, soon, None, stale).await.expect_err("stale");
        assert_eq!(refused.code(), ErrorCode::ControlStale);
        assert_eq!(
            list(&store).await.expect("keys"),
            std::slice::from_ref(&made),
            "it is as it was"
        );
        assert!(principal(&store, shown.expose_secret()).await.expect("asked").is_some());
        let is_it = |now: &Key| {
            assert_eq!(*now, made);
            Ok(())
        };
        rotate_if(&store, &made.id, soon, None, is_it).await.expect("followed");
        let ended = revoke_if(&store, &made.id, |now| {
            assert_eq!(now.expires_ms, Some(soon));
            Ok(())
        });
        let ended = ended.await.expect("ended");
        assert!(ended.revoked_ms.is_some());
        assert_eq!(find(&store, &made.id).await.expect("asked"), Some(ended));
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
    async fn keys_are_found_by_their_ids_in_pages() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder).await;
        let mut made = Vec::new();
        for _ in 0..5 {
            made.push(create(&store, &writer(None)).await.expect("key").0);
        }
        made.sort_by(|a, b| a.id.cmp(&b.id));
        let first = page(&store, "", 3).await.expect("page");
        let second = page(&store, &first[2].id, 3).await.expect("page");
        assert_eq!([first, second].concat(), made);
        assert_eq!(find(&store, &made[0].id).await.expect("asked").as_ref(), Some(&made[0]));
        assert_eq!(find(&store, "plk_").await.expect("asked"), None);
        for bad in ["a\nb".to_owned(), "x".repeat(201)] {
            let request = KeyRequest { name: Some(bad), ..writer(None) };
            assert!(create(&store, &request).await.is_err());
        }
    }

    #[test]
    fn a_whole_key_is_not_shown_where_its_id_is_expected() {
        for (text, shown) in
            [("plk_ab_secret_part", "plk_ab"), ("plk_ab", "plk_ab"), ("x_y", "x_y"), ("", "")]
        {
            assert_eq!(shown_part(text), shown);
        }
    }

    #[tokio::test]
    async fn a_rotated_key_ends_as_the_old_one_would_have_and_nothing_is_half_done() {
        let folder = tempfile::tempdir().expect("folder");
        let store = store(&folder).await;
        let now = Utc::now().timestamp_millis();
        let (old, _) = create(&store, &writer(Some(now + 3_600_000))).await.expect("key");
        let lifetime = |key: &Key| key.expires_ms.expect("an end") - key.created_ms;
        let (new, _) = rotate(&store, &old.id, now + 60_000, None).await.expect("key");
        assert!((lifetime(&new) - lifetime(&old)).abs() < 10_000, "{old:?} {new:?}");
        let (said, _) = rotate(&store, &new.id, now, Some(now + 90_000)).await.expect("key");
        assert_eq!(said.expires_ms, Some(now + 90_000));
        let (endless, _) = create(&store, &writer(None)).await.expect("key");
        let (next, _) = rotate(&store, &endless.id, now + 60_000, None).await.expect("key");
        assert_eq!(next.expires_ms, None);
        // The old key's end cannot be stored: there is no new one either.
        let keys = list(&store).await.expect("keys").len();
        let broken = "CREATE TRIGGER broken BEFORE UPDATE ON polder_keys \
                      BEGIN SELECT RAISE(ABORT, 'full'); END";
        sqlx::query(broken).execute(store.pool()).await.expect("trigger");
        rotate(&store, &next.id, now, None).await.expect_err("refused");
        assert_eq!(list(&store).await.expect("keys").len(), keys);
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
