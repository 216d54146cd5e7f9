//! Who may call: holders of API keys, which the control store knows (`polder keys`), and clients
//! declared in `polder.toml`, each with a secret and, unless it is the operator's, one org.
//!
//! A client's token is `polder1.<expiry>.<client id>.<signature>`: an HMAC-SHA256 under the client's own
//! secret. So nothing has to be stored, tokens outlive a restart, and changing a secret or removing
//! a client ends its tokens at once.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use polder_control::{Store, keys};
use polder_core::digest::hex;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use ring::{digest, hmac};
use secrecy::{ExposeSecret, SecretString};

/// How long a token is good.
pub(crate) const TOKEN_SECONDS: u64 = 3600;
/// Secrets shorter than this could be guessed from a token.
const SECRET_CHARS_MIN: usize = 16;
const FORMAT: &str = "polder1";

/// Everybody who may call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients {
    by_id: BTreeMap<String, Client>,
    /// Where keys are known, and whether they are asked for without any client.
    keys: Option<Store>,
    keys_required: bool,
}

#[derive(Clone, Debug)]
struct Client {
    key: hmac::Key,
    principal: Principal,
}

/// Somebody who showed who they are.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The client's id, or what the key begins with; none where nobody has to authenticate.
    pub(crate) client: Option<String>,
    pub(crate) principal: Principal,
}

impl Caller {
    /// Who it is, in the audit log and in histories.
    pub(crate) fn who(&self) -> String {
        match &self.client {
            Some(id) if id.starts_with(keys::PREFIX) => format!("key:{id}"),
            Some(id) => format!("client:{id}"),
            None => "anybody".to_owned(),
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

    /// Whether callers have to show who they are.
    pub(crate) fn required(&self) -> bool {
        self.keys_required || !self.by_id.is_empty()
    }

    /// Who sent a request with these headers: by key or token. A key that is no good is refused even
    /// where nobody has to authenticate.
    ///
    /// # Errors
    /// `control.store`.
    pub(crate) async fn who(&self, headers: &HeaderMap) -> Result<Option<Caller>> {
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let shown = token.filter(|token| token.starts_with(keys::PREFIX));
        let (Some(store), Some(shown)) = (&self.keys, shown) else {
            return Ok(self.caller(token));
        };
        let known = keys::principal(store, shown).await?;
        Ok(known.map(|(key, principal)| Caller { client: Some(key.id), principal }))
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
        let id = self.caller(Some(token))?.client?;
        Some(self.by_id.get(&id)?.issue(&id, now() + TOKEN_SECONDS))
    }

    /// Who holds this token; everybody is the operator where nobody has to authenticate.
    pub(crate) fn caller(&self, token: Option<&str>) -> Option<Caller> {
        if !self.required() {
            return Some(Caller { client: None, principal: Principal::Operator });
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
        (seconds > now()).then_some(Caller { client: Some(id), principal })
    }
}

impl Client {
    fn issue(&self, id: &str, expiry: u64) -> String {
        let signature = hmac::sign(&self.key, signed(id, expiry).as_bytes());
        format!("{FORMAT}.{expiry}.{}.{}", hex(id.as_bytes()), hex(signature.as_ref()))
    }
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
        assert_eq!(caller.client.as_deref(), Some("crm.401"));
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
        assert!(clients.caller(Some(&client.issue("trino", now() + 5))).is_some());
        let old = client.issue("trino", now() - 1);
        assert!(clients.caller(Some(&old)).is_none());
        let (_, rest) = old.split_once('.').expect("token");
        let (_, rest) = rest.split_once('.').expect("token");
        let later = format!("{FORMAT}.{}.{rest}", now() + 100);
        assert!(clients.caller(Some(&later)).is_none());
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
