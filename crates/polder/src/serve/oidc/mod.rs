//! Tokens of an `OpenID` provider: JWTs that one issuer signed for one audience, and what their claims
//! make of a caller.
//!
//! The issuer's keys are kept by one task, [`Refresher`]: it reads them again when they have aged, and
//! when a token names a key that is not known, at most every [`PAUSE`]. Requests only ask it and wait, so
//! that nobody who hangs up keeps it from its work. Nothing of a token is logged but why it was refused.

mod issuer;
mod keys;
mod signature;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use polder_core::spec::OidcConfig;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result, Role};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use issuer::{CALL_MAX, Fetched, Issuer};
use keys::KeySet;
use signature::ALGORITHMS;

/// Between two calls of the issuer.
const PAUSE: Duration = Duration::from_secs(10);
/// How long keys are still taken after they should have been read again and could not.
const KEPT: Duration = Duration::from_hours(1);
/// How far the issuer's clock may be from this one's.
const LEEWAY_SECONDS: u64 = 60;
const TOKEN_BYTES_MAX: usize = 16 * 1024;
const KEY_ID_BYTES_MAX: usize = 256;
const SUBJECT_BYTES_MAX: usize = 255;

/// One issuer, whose tokens are taken.
#[derive(Debug)]
pub(crate) struct Oidc {
    config: OidcConfig,
    validation: Validation,
    known: watch::Receiver<Known>,
    wanted: Arc<Notify>,
    pause: Duration,
}

/// Who keeps the issuer's keys.
#[derive(Debug)]
pub(crate) struct Refresher {
    /// The issuer's address, as it calls itself.
    address: String,
    /// Absent as long as it has not said where its keys are.
    issuer: Option<Issuer>,
    known: watch::Sender<Known>,
    wanted: Arc<Notify>,
    pause: Duration,
    kept: Duration,
}

/// What is known of the issuer's keys.
#[derive(Debug)]
struct Known {
    keys: KeySet,
    /// When the issuer was called for the last time.
    tried: Instant,
    /// Until when the keys are taken for the newest, and until when they are taken at all.
    fresh: Instant,
    kept: Instant,
    /// Whether the last call failed.
    failing: bool,
}

impl Known {
    fn new(fetched: Fetched, kept: Duration) -> Self {
        let now = Instant::now();
        let fresh = now + fetched.age;
        Self { keys: fetched.keys, tried: now, fresh, kept: fresh + kept, failing: false }
    }

    /// Of an issuer that could not be asked yet.
    fn nothing() -> Self {
        let now = Instant::now();
        Self { keys: KeySet::default(), tried: now, fresh: now, kept: now, failing: true }
    }

    fn find(&self, id: &str, algorithm: Algorithm) -> Option<DecodingKey> {
        let taken = Instant::now() < self.kept;
        self.keys.find(id, algorithm).filter(|_| taken).cloned()
    }
}

impl Oidc {
    /// Asks the issuer for its keys. The second value has to run for as long as tokens are taken. Of an
    /// issuer that does not answer, or has no keys, no token is taken until it does: it is asked on and on.
    ///
    /// # Errors
    /// `spec.invalid` for a configuration that contradicts itself or the issuer.
    pub(crate) async fn open(config: &OidcConfig) -> Result<(Self, Refresher)> {
        Self::with(config, PAUSE, KEPT).await
    }

    async fn with(
        config: &OidcConfig,
        pause: Duration,
        kept: Duration,
    ) -> Result<(Self, Refresher)> {
        signature::install();
        if config.audience.is_empty() {
            return Err(Error::new(ErrorCode::SpecInvalid, "[server.oidc] audience is empty"));
        }
        let (address, mut issuer) = (config.issuer.clone(), None);
        let first = match fetch(&address, &mut issuer).await {
            Ok(fetched) => Known::new(fetched, kept),
            Err(error) if error.code() == ErrorCode::ControlIssuer => {
                let causes = error.causes();
                tracing::error!(
                    ?causes,
                    "no token of the OpenID provider is taken until it answers: {error}"
                );
                Known::nothing()
            }
            Err(error) => return Err(error),
        };
        let mut validation = Validation::new(Algorithm::RS256);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&config.issuer]);
        validation.set_audience(&[&config.audience]);
        let (known, looked_at) = watch::channel(first);
        let wanted = Arc::new(Notify::new());
        let shared = Arc::clone(&wanted);
        let refresher = Refresher { address, issuer, known, wanted: shared, pause, kept };
        let config = config.clone();
        Ok((Self { config, validation, known: looked_at, wanted, pause }, refresher))
    }

    /// Who holds a token: issuer and subject, and what its claims make them. `None` for a token that is
    /// no good.
    ///
    /// # Errors
    /// `control.issuer` where the token may be good, and the issuer cannot be asked for its key.
    pub(crate) async fn caller(&self, token: &str) -> Result<Option<(String, Principal)>> {
        let found = self.look(token).await?;
        if let Err(why) = &found {
            tracing::debug!("a token was refused: {why}");
        }
        Ok(found.ok())
    }

    /// The inner result says why a token is no good, in words that hold nothing of it.
    async fn look(&self, token: &str) -> Result<Result<(String, Principal), &'static str>> {
        if token.len() > TOKEN_BYTES_MAX {
            return Ok(Err("it is too long"));
        }
        let Ok(header) = decode_header(token) else {
            return Ok(Err("it is no JWT, or of an unknown algorithm"));
        };
        if !ALGORITHMS.contains(&header.alg) {
            return Ok(Err("its algorithm is not taken"));
        }
        if header.crit.is_some() {
            return Ok(Err("it has a critical header"));
        }
        let Some(id) = header.kid.filter(|id| id.len() <= KEY_ID_BYTES_MAX) else {
            return Ok(Err("it names no key"));
        };
        let Some(key) = self.key(&id, header.alg).await? else {
            return Ok(Err("its key is not the issuer's"));
        };
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        Ok(match decode::<Map<String, Value>>(token, &key, &validation) {
            Ok(token) => self.admit(&token.claims),
            Err(error) => Err(why(error.kind())),
        })
    }

    /// The issuer's key of this id, for which the issuer is asked anew if it is not known.
    async fn key(&self, id: &str, algorithm: Algorithm) -> Result<Option<DecodingKey>> {
        let mut known = self.known.clone();
        let (found, tried) = {
            let known = known.borrow_and_update();
            (known.find(id, algorithm), known.tried)
        };
        if found.is_some() {
            return Ok(found);
        }
        if tried.elapsed() >= self.pause {
            self.wanted.notify_one();
            // Whether something has changed is seen below.
            let _ = timeout(CALL_MAX * 2, known.changed()).await;
        }
        let known = known.borrow();
        let found = known.find(id, algorithm);
        if found.is_none() && known.failing {
            let message = "the OpenID provider cannot be asked for the key of this token";
            return Err(Error::new(ErrorCode::ControlIssuer, message).hint("try again later"));
        }
        Ok(found)
    }

    /// What claims that are the issuer's make of a caller.
    fn admit(&self, claims: &Map<String, Value>) -> Result<(String, Principal), &'static str> {
        let OidcConfig { issuer, roles_claim, orgs_claim, subject_claim, .. } = &self.config;
        // The library takes a list that holds it, too.
        if claims.get("iss").and_then(Value::as_str) != Some(issuer.as_str()) {
            return Err("it is another issuer's");
        }
        let subject = claims.get(subject_claim).and_then(Value::as_str).unwrap_or_default();
        let plain = !subject.is_empty() && !subject.chars().any(char::is_control);
        if !plain || subject.len() > SUBJECT_BYTES_MAX {
            return Err("it has no subject");
        }
        let role: Role = claims
            .get(roles_claim)
            .and_then(word)
            .and_then(|word| word.parse().ok())
            .ok_or("it has no role, or not one")?;
        let orgs = orgs(claims.get(orgs_claim)).ok_or("its orgs cannot be read")?;
        let principal =
            Principal::of(role, orgs).map_err(|_| "its orgs do not go with its role")?;
        Ok((format!("{issuer}#{subject}"), principal))
    }
}

/// A text, or the only one of a list.
fn word(value: &Value) -> Option<&str> {
    match value {
        Value::Array(values) => match &values[..] {
            [value] => value.as_str(),
            _ => None,
        },
        value => value.as_str(),
    }
}

/// The orgs of a claim: none where there is none. One that cannot be read spoils all.
fn orgs(claim: Option<&Value>) -> Option<Vec<OrgId>> {
    match claim {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(text)) => {
            text.split_whitespace().map(|id| id.parse::<OrgId>().ok()).collect()
        }
        Some(Value::Array(ids)) => {
            ids.iter().map(|id| id.as_str()?.parse::<OrgId>().ok()).collect()
        }
        Some(_) => None,
    }
}

/// Why a token was refused, without a word of it.
fn why(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it is not good yet",
        ErrorKind::InvalidIssuer => "it is another issuer's",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::MissingRequiredClaim(_) => "it lacks exp, iss or aud",
        _ => "it cannot be read",
    }
}

/// The issuer's keys; first where they are, if that is not known yet.
async fn fetch(address: &str, issuer: &mut Option<Issuer>) -> Result<Fetched> {
    let known = match issuer.take() {
        Some(known) => known,
        None => Issuer::discover(address).await?,
    };
    let fetched = known.keys().await;
    *issuer = Some(known);
    fetched
}

impl Refresher {
    /// Keeps the keys, for ever.
    pub(crate) async fn run(mut self) {
        loop {
            let (tried, fresh) = {
                let known = self.known.borrow();
                (known.tried, known.fresh)
            };
            tokio::select! {
                () = self.wanted.notified() => {}
                () = sleep_until(fresh.max(tried + self.pause)) => {}
            }
            // Somebody may have asked while the last answer was on its way.
            if tried.elapsed() >= self.pause {
                self.refresh().await;
            }
        }
    }

    async fn refresh(&mut self) {
        let fetched = fetch(&self.address, &mut self.issuer).await;
        let before = self.known.borrow().failing;
        match fetched {
            Ok(fetched) => {
                if before {
                    tracing::info!("the OpenID provider answers again");
                }
                let kept = self.kept;
                self.known.send_modify(|known| *known = Known::new(fetched, kept));
            }
            Err(error) => {
                if !before {
                    let causes = error.causes();
                    tracing::warn!(
                        ?causes,
                        "the OpenID provider's keys stay as they were: {error}"
                    );
                }
                self.known.send_modify(|known| {
                    known.tried = Instant::now();
                    known.failing = true;
                });
            }
        }
    }
}
