//! Who may call: holders of API keys, which the control store knows (`polder keys`), clients declared in
//! `polder.toml`, each with a secret and, unless it is the operator's, one org, and holders of tokens of an
//! `OpenID` provider (`oidc`).
//!
//! A client's token is `polder1.<expiry>.<client id>.<signature>`: an HMAC-SHA256 under the client's own
//! secret. So nothing has to be stored, tokens outlive a restart, and changing a secret or removing
//! a client ends its tokens at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use polder_control::{Store, keys};
use polder_core::digest::hex;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use ring::{digest, hmac};
use secrecy::{ExposeSecret, SecretString};

use super::oidc::Oidc;
use super::strangers::Strangers;

/// How long a token is good.
pub(crate) const TOKEN_SECONDS: u64 = 3600;
/// Secrets shorter than this could be guessed from a token.
const SECRET_CHARS_MIN: usize = 16;
const FORMAT: &str = "polder1";
/// Where keys are asked for once there is one: how often it is looked for.
const LOOK: Duration = Duration::from_secs(2);

/// Everybody who may call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients {
    by_id: BTreeMap<String, Client>,
    /// Where keys are known, and whether they are asked for without any client.
    keys: Option<Store>,
    keys_required: bool,
    /// Whose tokens are taken too.
    oidc: Option<Arc<Oidc>>,
    /// Keys are asked for as soon as one was made.
    once_made: Option<OnceMade>,
    strangers: Arc<Strangers>,
}

/// Whether a key was made since the start, as it was found last.
#[derive(Clone, Debug, Default)]
struct OnceMade {
    found: Arc<AtomicBool>,
    looked: Arc<Mutex<Option<Instant>>>,
}

#[derive(Clone, Debug)]
struct Client {
    key: hmac::Key,
    principal: Principal,
}

/// Somebody who showed who they are.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) id: Identity,
    pub(crate) principal: Principal,
}

/// What somebody showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Nothing, where nobody has to authenticate.
    Anybody,
    /// A key: what it begins with.
    Key(String),
    /// A token of a client in `polder.toml`: its id.
    Client(String),
    /// A token of an `OpenID` provider: `<issuer>#<subject>`.
    Subject(String),
}

impl Caller {
    /// Who it is, in the audit log and in histories.
    pub(crate) fn who(&self) -> String {
        match &self.id {
            Identity::Anybody => "anybody".to_owned(),
            Identity::Key(id) => format!("key:{id}"),
            Identity::Client(id) => format!("client:{id}"),
            Identity::Subject(id) => format!("oidc:{id}"),
        }
    }
}

impl Clients {
    /// Adds a client; without an org it is an operator.
    ///
    /// # Errors
    /// `spec.secret` for a secret that is too short.
    pub(crate) fn add(
        &mut self,
        id: &str,
        secret: &SecretString,
        org: Option<OrgId>,
    ) -> Result<()> {
        let secret = secret.expose_secret();
        if secret.chars().count() < SECRET_CHARS_MIN {
            return Err(Error::new(
                ErrorCode::SpecSecret,
                format!("the secret of client {id} has less than {SECRET_CHARS_MIN} characters"),
            )
            .hint("use a random one, for instance of `openssl rand -hex 32`"));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let principal = org.map_or(Principal::Operator, Principal::Org);
        self.by_id.insert(id.to_owned(), Client { key, principal });
        Ok(())
    }

    /// Also takes the keys of this store; `required`: from everybody who is no client.
    pub(crate) fn take_keys(&mut self, store: Store, required: bool) {
        self.keys = Some(store);
        self.keys_required = required;
    }

    /// Also takes the tokens of this issuer.
    pub(crate) fn take_tokens(&mut self, oidc: Oidc) {
        self.oidc = Some(Arc::new(oidc));
    }

    /// Asks for keys as soon as the first one was made, in whichever process.
    pub(crate) fn ask_once_made(&mut self) {
        self.once_made = Some(OnceMade::default());
    }

    /// Whether callers have to show who they are.
    pub(crate) fn required(&self) -> bool {
        let is_made = |once: &OnceMade| once.found.load(Ordering::Acquire);
        self.keys_required
            || !self.by_id.is_empty()
            || self.oidc.is_some()
            || self.once_made.as_ref().is_some_and(is_made)
    }

    /// Those who show what is no good.
    pub(crate) fn strangers(&self) -> &Strangers {
        &self.strangers
    }

    /// Looks from time to time whether a key was made.
    async fn look(&self) -> Result<()> {
        let (Some(store), Some(once)) = (&self.keys, &self.once_made) else { return Ok(()) };
        let looked = || once.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if self.required() || looked().is_some_and(|at| at.elapsed() < LOOK) {
            return Ok(());
        }
        if keys::any(store).await? {
            once.found.store(true, Ordering::Release);
            tracing::warn!("a key was made: from now on callers have to show one");
        }
        *looked() = Some(Instant::now());
        Ok(())
    }

    /// Who sent a request with these headers: by key or token. A key that is no good is refused even
    /// where nobody has to authenticate.
    ///
    /// # Errors
    /// `control.store`; `control.issuer` where an `OpenID` provider cannot be asked.
    pub(crate) async fn who(&self, headers: &HeaderMap) -> Result<Option<Caller>> {
        self.look().await?;
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let Some(shown) = token else { return Ok(self.caller(None)) };
        if let Some(store) = self.keys.as_ref().filter(|_| shown.starts_with(keys::PREFIX)) {
            let known = keys::principal(store, shown).await?;
            return Ok(
                known.map(|(key, principal)| Caller { id: Identity::Key(key.id), principal })
            );
        }
        match &self.oidc {
            Some(oidc) if !is_own(shown) => {
                let known = oidc.caller(shown).await?;
                Ok(known.map(|(who, principal)| Caller { id: Identity::Subject(who), principal }))
            }
            _ => Ok(self.caller(token)),
        }
    }

    /// A token for whoever knows the client's secret.
    pub(crate) fn token(&self, id: &str, secret: &str) -> Option<String> {
        let client = self.by_id.get(id)?;
        // Compared as signatures, in constant time: the key was made of the true secret.
        let given = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let proof = hmac::sign(&given, id.as_bytes());
        hmac::verify(&client.key, id.as_bytes(), proof.as_ref()).ok()?;
        Some(client.issue(id, now() + TOKEN_SECONDS))
    }

    /// Another token for the holder of one that is still good.
    pub(crate) fn renew(&self, token: &str) -> Option<String> {
        let Identity::Client(id) = self.caller(Some(token))?.id else { return None };
        Some(self.by_id.get(&id)?.issue(&id, now() + TOKEN_SECONDS))
    }

    /// Who holds this token; everybody is the operator where nobody has to authenticate.
    pub(crate) fn caller(&self, token: Option<&str>) -> Option<Caller> {
        if !self.required() {
            return Some(Caller { id: Identity::Anybody, principal: Principal::Operator });
        }
        let [FORMAT, expiry, id, signature] = token?.splitn(4, '.').collect::<Vec<_>>()[..] else {
            return None;
        };
        let id = decode(id)?;
        let client = self.by_id.get(&id)?;
        let seconds: u64 = expiry.parse().ok()?;
        let signature = bytes(signature)?;
        hmac::verify(&client.key, signed(&id, seconds).as_bytes(), &signature).ok()?;
        let principal = client.principal.clone();
        (seconds > now()).then_some(Caller { id: Identity::Client(id), principal })
    }
}

impl Client {
    fn issue(&self, id: &str, expiry: u64) -> String {
        let signature = hmac::sign(&self.key, signed(id, expiry).as_bytes());
        format!("{FORMAT}.{expiry}.{}.{}", hex(id.as_bytes()), hex(signature.as_ref()))
    }
}

/// Whether a token is one of [`Client::issue`], good or not.
fn is_own(token: &str) -> bool {
    token.strip_prefix(FORMAT).is_some_and(|rest| rest.starts_with('.'))
}

/// What a token's signature is over. Never what [`Clients::token`] compares secrets by.
fn signed(id: &str, expiry: u64) -> String {
    format!("{FORMAT}\n{expiry}\n{id}")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs())
}

/// The SHA-256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

fn decode(hex: &str) -> Option<String> {
    String::from_utf8(bytes(hex)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients() -> Clients {
        let mut clients = Clients::default();
        let add = |clients: &mut Clients, id: &str, org: Option<&str>| {
            let org = org.map(|org| org.parse().expect("org"));
            clients.add(id, &SecretString::from(format!("{id}-0123456789abcdef")), org)
        };
        add(&mut clients, "trino", None).expect("client");
        add(&mut clients, "crm.401", Some("401")).expect("client");
        clients
    }

    #[test]
    fn a_token_is_good_for_its_client_alone() {
        let clients = clients();
        let token = clients.token("crm.401", "crm.401-0123456789abcdef").expect("token");
        let caller = clients.caller(Some(&token)).expect("caller");
        assert_eq!(caller.id, Identity::Client("crm.401".into()));
        assert_eq!(caller.principal, Principal::Org("401".parse().expect("org")));
        assert!(clients.renew(&token).is_some());
        let forged = token.replace(&hex(b"crm.401"), &hex(b"trino"));
        for bad in [forged.as_str(), "", "polder1", "polder1.1.2.3", "x.y.z.w", &token[1..]] {
            assert!(clients.caller(Some(bad)).is_none(), "{bad}");
        }
        assert!(clients.caller(None).is_none());
        assert!(clients.token("crm.401", "wrong-0123456789abcdef").is_none());
        assert!(clients.token("nobody", "crm.401-0123456789abcdef").is_none());
    }

    #[test]
    fn a_token_ends() {
        let clients = clients();
        let client = &clients.by_id["trino"];
        assert!(clients.caller(Some(&client.issue("trino", now() + 600))).is_some());
        let old = client.issue("trino", now() - 1);
        assert!(clients.caller(Some(&old)).is_none());
        let (_, rest) = old.split_once('.').expect("token");
        let (_, rest) = rest.split_once('.').expect("token");
        let later = format!("{FORMAT}.{}.{rest}", now() + 100);
        assert!(clients.caller(Some(&later)).is_none());
    }

    #[tokio::test]
    async fn the_first_key_closes_a_server_that_runs() {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        let store = Store::open(&url).await.expect("store");
        let clients = |asks: bool| {
            let mut clients = Clients::default();
            clients.take_keys(store.clone(), false);
            if asks {
                clients.ask_once_made();
            }
            clients
        };
        let (asks, never) = (clients(true), clients(false));
        let nothing = HeaderMap::new();
        for clients in [&asks, &never] {
            let caller = clients.who(&nothing).await.expect("asked").expect("anybody");
            assert_eq!(caller.principal, Principal::Operator);
        }
        let (role, orgs) = (polder_core::Role::Operator, Vec::new());
        let request = keys::KeyRequest { role, orgs, name: None, expires_ms: None };
        let (_, shown) = keys::create(&store, &request).await.expect("key");
        tokio::time::sleep(LOOK).await;
        assert!(asks.who(&nothing).await.expect("asked").is_none() && asks.required());
        assert!(never.who(&nothing).await.expect("asked").is_some() && !never.required());
        let mut headers = HeaderMap::new();
        let bearer = format!("Bearer {}", shown.expose_secret());
        headers.insert(AUTHORIZATION, bearer.parse().expect("value"));
        assert!(asks.who(&headers).await.expect("asked").is_some());
    }

    #[test]
    fn without_clients_everybody_is_the_operator_and_short_secrets_are_refused() {
        let mut clients = Clients::default();
        assert_eq!(clients.caller(None).expect("open").principal, Principal::Operator);
        let error = clients.add("a", &SecretString::from("hunter2"), None).expect_err("short");
        assert!(!format!("{error:?}").contains("hunter2"));
        assert!(!clients.required());
    }
}
