//! How a connection begins: TLS, who it is, and for which database.
//!
//! The password is a key of `polder keys`, or a token, as the API takes it in `Authorization`: it goes the same
//! way, so that whoever may not call the API may not connect. Keys are known by their digest alone, so
//! it has to come as it is; over an address that others can reach, by TLS only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use axum::extract::ConnectInfo;
use axum::http::header::AUTHORIZATION;
use axum::http::{Extensions, HeaderMap, HeaderValue};
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey,
};
use polder_control::audit::Event;
use polder_core::{ErrorCode, OrgId, Principal, Role};

use super::Door;
use super::cancel::Place;
use super::failure::{Failure, Outcome, state};
use super::frontend::{Asked, Opening, opening};
use super::settings::Settings;
use super::wire::{Gone, Wire};
use crate::serve::clients::Caller;

/// The database that holds whatever its visitor may see.
const LAKE: &str = "lake";
/// What the audit log calls this door.
const ACTION: &str = "CONNECT postgres";
/// Requests for encryption that a client may make before it begins.
const REQUESTS_MAX: usize = 3;
const PROTOCOL_3_0: i32 = 196_608;

/// A client that has begun.
pub(super) struct Visitor {
    pub(super) wire: Wire,
    /// What it showed, for the next statement too.
    pub(super) shown: HeaderMap,
    pub(super) database: Database,
    pub(super) user: String,
    pub(super) settings: Settings,
}

/// The part of the lake that a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Database {
    Lake,
    Org(OrgId),
}

impl Database {
    /// # Errors
    /// 3D000 for a name that is none.
    fn named(name: &str) -> Outcome<Self> {
        if name == LAKE {
            return Ok(Self::Lake);
        }
        let org = OrgId::from_namespace(name).or_else(|| name.parse().ok());
        org.map(Self::Org).ok_or_else(|| Self::none(name))
    }

    /// Of an org that is not there and of one that is another's: nobody can tell which.
    fn none(name: &str) -> Failure {
        let message = format!("[control.not_found] database {name:?} does not exist");
        Failure::new(state::NO_DATABASE, message)
            .hint("connect to lake, or to org_<id> for one org alone")
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Lake => LAKE.to_owned(),
            Self::Org(org) => org.namespace(),
        }
    }

    /// What somebody may do here: never more than they may, and in an org's database nothing of others.
    ///
    /// # Errors
    /// 3D000 where the org is not theirs.
    pub(super) fn narrow(&self, principal: &Principal) -> Outcome<Principal> {
        let Self::Org(org) = self else { return Ok(principal.clone()) };
        let none = || Self::none(&org.namespace());
        principal.authorize(org).map_err(|_| none())?;
        let role = match principal.role() {
            Role::Operator => Role::Reader,
            role => role,
        };
        Principal::of(role, vec![org.clone()]).map_err(|_| none())
    }
}

/// What a client said at the beginning.
struct Said {
    minor: u16,
    parameters: BTreeMap<String, String>,
}

/// Lets a client in. `None` where there is nobody to talk to: a cancel request, or a client that was
/// refused and told so.
pub(super) async fn welcome(
    door: &Door,
    wire: Wire,
    peer: SocketAddr,
    place: &Place,
) -> Result<Option<Visitor>, Gone> {
    let Some((mut wire, said)) = begun(door, wire).await? else { return Ok(None) };
    match admitted(door, &mut wire, &said, peer).await? {
        Ok((shown, database, settings, user)) => {
            wire.trust();
            wire.put(&Authentication::Ok);
            negotiate(&mut wire, &said);
            for (name, value) in settings.reported() {
                wire.put(&ParameterStatus::new(name.to_owned(), value));
            }
            let (process, secret) = (place.process, SecretKey::I32(place.secret));
            wire.put(&BackendKeyData::new(process, secret));
            Ok(Some(Visitor { wire, shown, database, user, settings }))
        }
        Err(failure) => {
            wire.fail(&failure.fatal());
            wire.flush().await?;
            Ok(None)
        }
    }
}

/// The client's first words, by TLS where it asks for that and there is a certificate.
async fn begun(door: &Door, mut wire: Wire) -> Result<Option<(Wire, Said)>, Gone> {
    for _ in 0..=REQUESTS_MAX {
        // Whoever sends no length that could be true speaks another protocol.
        let Some(body) = wire.opening().await? else { return Ok(None) };
        match opening(body) {
            Ok(Opening::Tls) => match &door.tls {
                Some(tls) if !wire.secure => {
                    wire.answer(b'S').await?;
                    wire = wire.secured(tls).await?;
                }
                _ => wire.answer(b'N').await?,
            },
            Ok(Opening::Gss) => wire.answer(b'N').await?,
            Ok(Opening::Cancel { process, secret }) => {
                door.running.cancel(process, secret);
                return Ok(None);
            }
            Ok(Opening::Start { minor, parameters }) => {
                return Ok(Some((wire, Said { minor, parameters })));
            }
            Err(failure) => {
                wire.fail(&failure.fatal());
                wire.flush().await?;
                return Ok(None);
            }
        }
    }
    Ok(None)
}

/// Clients of later versions are told which of their wishes are not known here.
fn negotiate(wire: &mut Wire, said: &Said) {
    let unknown: Vec<String> =
        said.parameters.keys().filter(|name| name.starts_with("_pq_.")).cloned().collect();
    if said.minor > 0 || !unknown.is_empty() {
        wire.put(&NegotiateProtocolVersion::new(PROTOCOL_3_0, unknown));
    }
}

type Admitted = (HeaderMap, Database, Settings, String);

async fn admitted(
    door: &Door,
    wire: &mut Wire,
    said: &Said,
    peer: SocketAddr,
) -> Result<Outcome<Admitted>, Gone> {
    if door.tls.is_some() && !wire.secure && !peer.ip().to_canonical().is_loopback() {
        let message = "a password comes by TLS only";
        return Ok(Err(Failure::new(state::NOT_ALLOWED, message).hint("set sslmode=require")));
    }
    let mut shown = HeaderMap::new();
    let mut caller = match door.settings.clients.who(&shown).await {
        Ok(caller) => caller,
        Err(error) => return Ok(Err(error.into())),
    };
    if caller.is_none() {
        wire.put(&Authentication::CleartextPassword);
        wire.flush().await?;
        let password = match wire.asked().await? {
            Ok(Asked::Password(password)) => password,
            Ok(_) => return Ok(Err(Failure::protocol("a password is expected"))),
            Err(failure) => return Ok(Err(failure)),
        };
        // A key or token has no other characters; of another password nobody has to hear.
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {password}")) {
            value.set_sensitive(true);
            shown.insert(AUTHORIZATION, value);
            caller = match door.settings.clients.who(&shown).await {
                Ok(caller) => caller,
                Err(error) => return Ok(Err(error.into())),
            };
        }
    }
    let Some(caller) = caller else { return Ok(Err(stranger(door, peer))) };
    Ok(settled(door, said, &caller)
        .map(|(database, settings, user)| (shown, database, settings, user)))
}

/// Somebody whose password is no good.
fn stranger(door: &Door, peer: SocketAddr) -> Failure {
    let (strangers, now) = (door.settings.clients.strangers(), Instant::now());
    let mut from = Extensions::new();
    from.insert(ConnectInfo(peer));
    if strangers.failed(&from, now).is_err() {
        strangers.leave_out();
        door.settings.metrics.limited();
        let message = "too many connections without a good key came from this address";
        return Failure::new(state::TOO_OFTEN, message);
    }
    if strangers.take_entry(now) {
        door.settings.ledger.add(Event {
            who: "-".to_owned(),
            action: ACTION.to_owned(),
            outcome: ErrorCode::ControlUnauthenticated.as_str().to_owned(),
            ..Event::default()
        });
    }
    let message = "[control.unauthenticated] no valid key was given as password";
    Failure::new(state::BAD_PASSWORD, message)
        .hint("the password is a key of `polder keys create`: plk_…")
}

/// The database and the settings that somebody asks for.
fn settled(door: &Door, said: &Said, caller: &Caller) -> Outcome<(Database, Settings, String)> {
    let given = |name: &str| said.parameters.get(name).map(String::as_str);
    let user = given("user").unwrap_or_default().to_owned();
    // As PostgreSQL has it where a client names none.
    let name = given("database").filter(|name| !name.is_empty()).unwrap_or(&user);
    let database = Database::named(name)?;
    let principal = database.narrow(&caller.principal).inspect_err(|_| {
        let event = Event {
            who: caller.who(),
            action: ACTION.to_owned(),
            subject: Some(name.to_owned()),
            outcome: ErrorCode::ControlDenied.as_str().to_owned(),
            ..Event::default()
        };
        door.settings.ledger.add_refusal(event, Instant::now());
    })?;
    if given("replication").is_some_and(|wish| wish != "false" && wish != "off" && wish != "0") {
        return Err(Failure::new(state::UNSUPPORTED, "there is no replication"));
    }
    let mut settings = Settings::new(user.clone(), super::listing::default_schema(&principal));
    let not_settings = ["user", "database", "options", "replication"];
    let plain = said.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let plain =
        plain.filter(|(name, _)| !not_settings.contains(name) && !name.starts_with("_pq_."));
    let options = options(given("options").unwrap_or_default())?;
    let options = options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    settings.begin(plain.chain(options))?;
    Ok((database, settings, user))
}

/// The settings in `-c name=value --name=value`; a backslash keeps a blank together with what it stands in.
fn options(text: &str) -> Outcome<Vec<(String, String)>> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.extend(letters.next()),
            letter if letter.is_whitespace() => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next(),
            word => word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).map(str::to_owned),
        };
        let setting = setting.as_deref().and_then(|setting| setting.split_once('='));
        let (name, value) = setting.ok_or_else(|| {
            Failure::new(state::BAD_SETTING, "options are not understood")
                .hint("write -c name=value")
        })?;
        options.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(id: &str) -> OrgId {
        id.parse().expect("org")
    }

    #[test]
    fn a_database_is_the_lake_or_one_org() {
        assert_eq!(Database::named("lake"), Ok(Database::Lake));
        for name in ["org_401", "401"] {
            assert_eq!(Database::named(name), Ok(Database::Org(org("401"))));
        }
        for none in ["", "a b", "../x", "'"] {
            let failure = Database::named(none).expect_err(none);
            assert_eq!(failure.state, state::NO_DATABASE);
        }
    }

    #[test]
    fn nobody_gets_more_by_naming_a_database() {
        for role in Role::ALL {
            let orgs = if role == Role::Operator { Vec::new() } else { vec![org("1"), org("2")] };
            let all = Principal::of(role, orgs).expect("principal");
            assert_eq!(Database::Lake.narrow(&all), Ok(all.clone()));
            let one = Database::Org(org("1")).narrow(&all).expect("own");
            assert!(one.authorize(&org("1")).is_ok() && one.authorize(&org("2")).is_err());
            let expected = if role == Role::Operator { Role::Reader } else { role };
            assert_eq!(one.role(), expected, "{role:?}");
            let other = Database::Org(org("3")).narrow(&all);
            assert_eq!(other.is_ok(), role == Role::Operator);
        }
        let foreign = Database::Org(org("2")).narrow(&Principal::Org(org("1")));
        assert_eq!(foreign.expect_err("foreign"), Database::none("org_2"));
    }

    #[test]
    fn options_are_settings() {
        let found = options("-c statement_timeout=5s  --search-path=a\\ b -cdatestyle=ISO");
        let expected = [("statement_timeout", "5s"), ("search_path", "a b"), ("datestyle", "ISO")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(found, Ok(expected.to_vec()));
        assert_eq!(options(""), Ok(Vec::new()));
        assert!(options("-x").is_err() && options("-c").is_err());
    }
}
