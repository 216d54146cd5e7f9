//! Who calls: nobody, the holder of a token, or an OAuth2 client that gets itself tokens
//! (RFC 6749, section 4.4) and renews them before they expire.

use std::time::{Duration, Instant};

use polder_core::{Error, ErrorCode, Result};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::address;
use super::client::{Exchange, Lost};
use crate::settings::RestSettings;

const SCOPE: &str = "catalog";
/// A token is renewed this long before its end, or after four fifths of a short life.
const MARGIN: Duration = Duration::from_mins(1);
/// Tries to get a token while its server does not answer.
const TRIES_MAX: u32 = 3;
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(super) enum Auth {
    Nobody,
    Token(SecretString),
    Client(Box<OAuthClient>),
}

#[derive(Debug)]
pub(super) struct OAuthClient {
    id: String,
    secret: SecretString,
    server: Url,
    scope: String,
    exchange: Exchange,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    token: SecretString,
    /// Without a stated end the token is used until it is refused.
    renew_at: Option<Instant>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct TokenRefusal {
    error: String,
    #[serde(default)]
    error_description: Option<String>,
}

impl Auth {
    /// # Errors
    /// `spec.*` for a credential or a token server that cannot be used.
    pub(super) fn new(settings: &RestSettings, catalog: &Url, exchange: Exchange) -> Result<Self> {
        let Some(credential) = &settings.credential else {
            return Ok(settings.token.clone().map_or(Self::Nobody, Self::Token));
        };
        let (id, secret) = credential.expose_secret().split_once(':').ok_or_else(|| {
            Error::new(ErrorCode::SpecSecret, "[catalog.rest] credential has no `:`")
                .hint("its value is the client's id and secret: id:secret")
        })?;
        let server = match &settings.oauth2_server_uri {
            Some(uri) => address::parse("[catalog.rest] oauth2_server_uri", uri, true)?,
            None => address::below(catalog, "v1/oauth/tokens")?,
        };
        Ok(Self::Client(Box::new(OAuthClient {
            id: id.to_owned(),
            secret: secret.into(),
            server,
            scope: settings.scope.clone().unwrap_or_else(|| SCOPE.to_owned()),
            exchange,
            held: Mutex::new(None),
        })))
    }

    /// The token to send with a request.
    pub(super) async fn token(&self) -> Result<Option<SecretString>> {
        match self {
            Self::Nobody => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::Client(client) => {
                let mut held = client.held.lock().await;
                let good = |held: &&Held| held.renew_at.is_none_or(|at| Instant::now() < at);
                if let Some(held) = held.as_ref().filter(good) {
                    return Ok(Some(held.token.clone()));
                }
                client.renew(&mut held).await.map(Some)
            }
        }
    }

    /// Another token in place of one that the catalog has refused; `None` if there is no other.
    pub(super) async fn instead_of(&self, refused: &SecretString) -> Result<Option<SecretString>> {
        let Self::Client(client) = self else { return Ok(None) };
        let mut held = client.held.lock().await;
        // Another request may have renewed it meanwhile.
        let other = |held: &&Held| held.token.expose_secret() != refused.expose_secret();
        if let Some(held) = held.as_ref().filter(other) {
            return Ok(Some(held.token.clone()));
        }
        client.renew(&mut held).await.map(Some)
    }
}

impl OAuthClient {
    async fn renew(&self, held: &mut Option<Held>) -> Result<SecretString> {
        let mut tries = 1;
        let answer = loop {
            match self.ask().await {
                Err(error) if error.retryable() && tries < TRIES_MAX => {
                    tokio::time::sleep(PAUSE * tries).await;
                    tries += 1;
                }
                other => break other?,
            }
        };
        let renew_at = answer.expires_in.map(|seconds| {
            let life = Duration::from_secs(seconds);
            Instant::now() + life.saturating_sub(MARGIN.min(life / 5))
        });
        let token = SecretString::from(answer.access_token);
        *held = Some(Held { token: token.clone(), renew_at });
        Ok(token)
    }

    async fn ask(&self) -> Result<TokenAnswer> {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &self.id),
            ("client_secret", self.secret.expose_secret()),
            ("scope", &self.scope),
        ];
        let sent: Vec<_> = form.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let request = self.exchange.form(&self.server, &sent);
        let answer = self.exchange.send(request).await.map_err(Lost::into_error)?;
        let server = self.server.to_string();
        if answer.status.is_success() {
            // The text is not repeated: it holds the token.
            return serde_json::from_slice(&answer.body).map_err(|_| {
                let message =
                    "the catalog's token server answered with something else than a token";
                Error::new(ErrorCode::LakeFailed, message).detail(server)
            });
        }
        let code = answer.status.as_u16();
        if answer.status.is_server_error() || code == 429 {
            let message = format!("the catalog's token server cannot answer now ({code})");
            return Err(Error::new(ErrorCode::LakeUnavailable, message).detail(server));
        }
        let message = format!("the catalog's token server refuses the credential ({code})");
        let error = Error::new(ErrorCode::LakeFailed, message)
            .detail(server)
            .hint("check [catalog.rest] credential, scope and oauth2_server_uri");
        Err(match serde_json::from_slice::<TokenRefusal>(&answer.body) {
            Ok(said) => error.caused_by(self.words(&said)),
            Err(_) => error,
        })
    }

    /// What the server said, unless it repeats the secret.
    fn words(&self, said: &TokenRefusal) -> String {
        let description = said.error_description.as_deref().unwrap_or_default();
        let text: String = format!("{} {description}", said.error).chars().take(300).collect();
        if text.contains(self.secret.expose_secret()) { said.error.clone() } else { text }
    }
}
