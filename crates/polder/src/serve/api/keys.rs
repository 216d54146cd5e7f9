//! Keys: who may call. Operators see and make all; an org's admins those of writers, readers and agents of
//! orgs that are all theirs. The key itself stands in the answer that makes it, and nowhere else.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use chrono::{DateTime, Utc};
use polder_control::keys::{self, KeyRequest};
use polder_control::{churn, desired};
use polder_core::{Error, ErrorCode, OrgId, Principal, Right, Role};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::etag::{self, IfMatch};
use super::gate::{NO_STORE, Note, Who, unauthenticated};
use super::paging::{Body, DryRun, Named, Paging, Params, answer, cursor};
use super::problem::{Problem, Reply};
use crate::output::rfc3339;
use crate::serve::clients::Identity;

/// The roles of keys that an org's admins make for others.
const GIVEN: [Role; 3] = [Role::Writer, Role::Reader, Role::Agent];
/// Keys that are read from the store at once.
const PAGE: usize = 1000;
/// How long a key stays good that another one takes the place of, unless the request says otherwise.
const OLD_MS: i64 = 24 * 60 * 60 * 1000;

/// How long keys are good at most that somebody with a token of an `OpenID` provider makes: the provider can
/// take its word back, and keys do not ask it.
const OF_TOKEN_MS: i64 = 90 * 24 * 60 * 60 * 1000;

/// What is known of a key.
#[derive(Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the API's word")]
pub(super) struct Key {
    /// What it begins with: `plk_…`. Null in a dry run.
    id: Option<String>,
    /// `operator`, `admin`, `writer`, `reader` or `agent`.
    #[schema(value_type = String)]
    role: Role,
    /// Whose; empty for an operator's, which is for all.
    orgs: Vec<String>,
    /// What it is for.
    name: Option<String>,
    /// `good`, `expired` or `revoked`.
    state: &'static str,
    /// RFC 3339; null in a dry run.
    #[schema(format = "date-time")]
    created_at: Option<String>,
    /// Null: it does not end by itself.
    #[schema(format = "date-time")]
    expires_at: Option<String>,
    #[schema(format = "date-time")]
    revoked_at: Option<String>,
    /// The key itself: in the answer that makes it, this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// A page of keys.
#[derive(Serialize, ToSchema)]
pub(super) struct Keys {
    items: Vec<Key>,
    /// The next page's cursor; null at the end.
    next_cursor: Option<String>,
}

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// `operator`, `admin`, `writer`, `reader` or `agent`; the last three for admins.
    #[schema(value_type = String, pattern = "^(operator|admin|writer|reader|agent)$")]
    role: Role,
    /// The orgs that it is for; none for an operator's.
    #[serde(default)]
    orgs: Vec<String>,
    /// What it is for, in a line of 200 characters at most.
    #[serde(default)]
    name: Option<String>,
    /// When it ends, RFC 3339; where it is absent, when the caller's own key does. Never later than that. Of
    /// a caller with a token it is needed, and 90 days from now at most.
    #[serde(default)]
    #[schema(format = "date-time")]
    expires_at: Option<String>,
}

/// How a key takes the place of another.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Rotation {
    /// Until when the old key stays good, RFC 3339; for a day when absent. Never longer than it would have been.
    #[schema(format = "date-time")]
    old_until: Option<String>,
    /// When the new key ends, RFC 3339; where it is absent, it is good as long as the old one was meant to be
    /// when it was made. Never longer than the caller's own.
    #[schema(format = "date-time")]
    expires_at: Option<String>,
}

impl From<&keys::Key> for Key {
    fn from(key: &keys::Key) -> Self {
        let is_over = |end: i64| end <= Utc::now().timestamp_millis();
        let state = match (key.revoked_ms, key.expires_ms) {
            (Some(_), _) => "revoked",
            (None, Some(end)) if is_over(end) => "expired",
            _ => "good",
        };
        Self {
            id: Some(key.id.clone()),
            role: key.role,
            orgs: key.orgs.clone(),
            name: key.name.clone(),
            state,
            created_at: Some(rfc3339(key.created_ms)),
            expires_at: key.expires_ms.map(rfc3339),
            revoked_at: key.revoked_ms.map(rfc3339),
            key: None,
        }
    }
}

impl Key {
    /// A key that would be made.
    fn to_be(request: &KeyRequest) -> Self {
        Self {
            id: None,
            role: request.role,
            orgs: request.orgs.iter().map(ToString::to_string).collect(),
            name: request.name.clone(),
            state: "good",
            created_at: None,
            expires_at: request.expires_ms.map(rfc3339),
            revoked_at: None,
            key: None,
        }
    }
}

/// The tag covers all that is shown of it.
fn tag(key: &keys::Key) -> String {
    etag::of(&Key::from(key))
}

fn shown(key: &keys::Key) -> Response {
    etag::tagged(answer(StatusCode::OK, &Key::from(key)), &tag(key))
}

/// Whether a key is the caller's to see and to end.
fn is_theirs(principal: &Principal, key: &keys::Key) -> bool {
    if *principal == Principal::Operator {
        return true;
    }
    let own = |org: &String| {
        let org = org.parse::<OrgId>();
        org.is_ok_and(|org| principal.authorize_to(Right::Administer, &org).is_ok())
    };
    GIVEN.contains(&key.role) && !key.orgs.is_empty() && key.orgs.iter().all(own)
}

/// The key that a path names, if it is the caller's to see.
async fn find(api: &Api, who: &Who, id: &str) -> Reply<keys::Key> {
    let found = keys::find(&api.store, id).await?;
    let found = found.filter(|key| is_theirs(&who.0.principal, key));
    found.ok_or_else(|| {
        let problem = Problem::no_key(keys::shown_part(id));
        if who.0.principal == Principal::Operator { problem } else { problem.refusing() }
    })
}

/// List the keys that the caller may see: what they begin with, never the keys themselves.
#[utoipa::path(get, path = "/v1/keys", operation_id = "list_keys", tag = "keys", params(Paging),
    responses((status = 200, body = Keys)))]
pub(super) async fn list(
    State(api): State<Api>,
    who: Who,
    Params(paging): Params<Paging>,
) -> Reply {
    who.require(Right::Administer)?;
    let (limit, mut after) = (paging.limit()?, paging.after()?);
    let mut items: Vec<Key> = Vec::new();
    let mut more = true;
    while more && items.len() <= limit {
        let page = keys::page(&api.store, &after, PAGE).await?;
        more = page.len() == PAGE;
        if let Some(last) = page.last() {
            after.clone_from(&last.id);
        }
        let theirs = page.iter().filter(|key| is_theirs(&who.0.principal, key));
        items.extend(theirs.map(Key::from));
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let last = items.last().and_then(|key| key.id.as_deref()).filter(|_| more);
    let next_cursor = last.map(cursor);
    Ok(answer(StatusCode::OK, &Keys { items, next_cursor }))
}

/// Read what is known of one key.
#[utoipa::path(get, path = "/v1/keys/{key}", operation_id = "read_key", tag = "keys",
    params(("key" = String, Path, description = "What the key begins with: `plk_…`.")),
    responses((status = 200, body = Key)))]
pub(super) async fn read(State(api): State<Api>, who: Who, Named(key): Named<String>) -> Reply {
    who.require(Right::Administer)?;
    Ok(shown(&find(&api, &who, &key).await?))
}

/// Make a key. It is shown this once, also to whoever repeats the request with its `Idempotency-Key`.
/// Admins make keys of writers, readers and agents for orgs of theirs.
#[utoipa::path(post, path = "/v1/keys", operation_id = "create_key", tag = "keys", params(DryRun),
    request_body = NewKey,
    responses((status = 201, body = Key,
               headers(("Location" = String, description = "/v1/keys/<id>"))),
              (status = 200, body = Key, description = "A dry run.")))]
pub(super) async fn create(
    State(api): State<Api>,
    who: Who,
    Params(dry): Params<DryRun>,
    body: Body,
) -> Reply {
    who.require(Right::Administer)?;
    let (dry_run, new) = (dry.wanted()?, body.parse::<NewKey>()?);
    let operator = who.0.principal == Principal::Operator;
    if !operator && !GIVEN.contains(&new.role) {
        let message = "admins make keys of writers, readers and agents alone";
        let error = Error::new(ErrorCode::ControlDenied, message);
        return Err(error.hint("ask the operator for another one").into());
    }
    let mut orgs: Vec<OrgId> = Vec::new();
    for id in &new.orgs {
        let org = check_org(&api, &who, id).await?;
        if !orgs.contains(&org) {
            orgs.push(org);
        }
    }
    let asked = new.expires_at.as_deref().map(|text| time("expires_at", text)).transpose()?;
    if asked.is_none() && matches!(who.0.id, Identity::Subject(_)) {
        let message =
            "expires_at is needed of whoever calls with a token: 90 days from now at most";
        return Err(Problem::invalid(message));
    }
    let expires_ms = end(&api, &who, asked).await?;
    let request = KeyRequest { role: new.role, orgs, name: new.name, expires_ms };
    if dry_run {
        keys::check(&request)?;
        return Ok(answer(StatusCode::OK, &Key::to_be(&request)));
    }
    let (made, secret) = keys::create(&api.store, &request).await?;
    let detail = format!("{} {}", made.role.as_str(), made.orgs.join(" "));
    let note = Note { subject: Some(made.id.clone()), ..note(&made, detail) };
    Ok(shown_once(&made, &secret, note))
}

/// An org that a key may be for: one that is there and the caller's, and is not about to go.
async fn check_org(api: &Api, who: &Who, id: &str) -> Reply<OrgId> {
    let org = who.org(id, Right::Administer)?;
    if desired::org(&api.store, &org).await?.is_none() {
        return Err(Problem::no_org(id));
    }
    if churn::in_force(&api.store, &org).await?.is_some() {
        let message = format!("org {} has left or is leaving", org.get());
        let error = Error::new(ErrorCode::LakeFenced, message);
        return Err(error.hint("no key is made for it any more").into());
    }
    Ok(org.get().clone())
}

/// When a key ends that the caller makes: not after the caller's own, where that is a key, and within 90
/// days where it is a token.
async fn end(api: &Api, who: &Who, asked: Option<i64>) -> Reply<Option<i64>> {
    let (latest, why) = match &who.0.id {
        Identity::Key(own) => {
            let own = keys::find(&api.store, own).await?.ok_or_else(unauthenticated)?;
            (own.expires_ms, "your own key ends")
        }
        Identity::Subject(_) => {
            let latest = Utc::now().timestamp_millis() + OF_TOKEN_MS;
            (Some(latest), "keys that are made with a token end")
        }
        Identity::Anybody | Identity::Client(_) => return Ok(asked),
    };
    match (asked, latest) {
        (Some(asked), Some(latest)) if asked > latest => {
            let message = format!("{why} at {}, and this one would later", rfc3339(latest));
            Err(Error::new(ErrorCode::ControlDenied, message)
                .hint("leave expires_at out, or say an earlier time")
                .into())
        }
        (asked, latest) => Ok(asked.or(latest)),
    }
}

fn time(name: &str, text: &str) -> Reply<i64> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_millis());
    time.map_err(|_| {
        Problem::invalid(format!("{name} has to be a time such as 2027-01-31T12:00:00Z"))
    })
}

/// The org for the audit log, where a key is for one.
fn note(key: &keys::Key, detail: String) -> Note {
    let org = if let [org] = key.orgs.as_slice() { Some(org.clone()) } else { None };
    Note { org, subject: None, detail: Some(detail) }
}

fn shown_once(made: &keys::Key, secret: &SecretString, note: Note) -> Response {
    let document = Key { key: Some(secret.expose_secret().to_owned()), ..Key::from(made) };
    let mut response = answer(StatusCode::CREATED, &document);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(NO_STORE));
    // A key's id has no characters that an address could not hold.
    if let Ok(place) = HeaderValue::from_str(&format!("/v1/keys/{}", made.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response.extensions_mut().insert(note);
    response
}

/// Make another key of the same role and orgs. It is shown this once; the old one stays good for a while.
#[utoipa::path(post, path = "/v1/keys/{key}/rotate", operation_id = "rotate_key", tag = "keys",
    params(("key" = String, Path, description = "What the old key begins with: `plk_…`."), DryRun),
    request_body = Rotation,
    responses((status = 201, body = Key,
               headers(("Location" = String, description = "/v1/keys/<id>"))),
              (status = 200, body = Key, description = "A dry run.")))]
pub(super) async fn rotate(
    State(api): State<Api>,
    who: Who,
    Named(key): Named<String>,
    Params(dry): Params<DryRun>,
    body: Body,
) -> Reply {
    who.require(Right::Administer)?;
    let wanted = IfMatch::of(&who.1);
    let check = |now: &keys::Key| wanted.check(&tag(now));
    let old = find(&api, &who, &key).await?;
    check(&old)?;
    let (dry_run, said) = (dry.wanted()?, body.parse_or_default::<Rotation>()?);
    let read = |name: &str, text: Option<String>| text.map(|text| time(name, &text)).transpose();
    let until = read("old_until", said.old_until)?;
    let asked = read("expires_at", said.expires_at)?;
    let latest = end(&api, &who, asked).await?;
    let as_long = if asked.is_some() { None } else { old.next_expires_ms() };
    let expires_ms = as_long.into_iter().chain(latest).min();
    let is_over = old.expires_ms.is_some_and(|end| end <= Utc::now().timestamp_millis());
    if old.revoked_ms.is_some() || is_over {
        let ended = if is_over { "has expired" } else { "was revoked" };
        let message = format!("{} {ended}, and nothing comes of it", old.id);
        let error = Error::new(ErrorCode::ControlConflict, message);
        return Err(error.hint("make a new key: POST /v1/keys").into());
    }
    for org in &old.orgs {
        check_org(&api, &who, org).await?;
    }
    if dry_run {
        keys::check_end(expires_ms)?;
        let would = Key::from(&keys::Key { expires_ms, ..old });
        return Ok(answer(StatusCode::OK, &Key { id: None, created_at: None, ..would }));
    }
    let until = until.unwrap_or_else(|| Utc::now().timestamp_millis() + OLD_MS);
    let (made, secret) = keys::rotate_if(&api.store, &old.id, until, expires_ms, check).await?;
    let detail = format!("now {}", made.id);
    let note = Note { subject: Some(old.id), ..note(&made, detail) };
    Ok(shown_once(&made, &secret, note))
}

/// End a key at once.
#[utoipa::path(delete, path = "/v1/keys/{key}", operation_id = "revoke_key", tag = "keys",
    params(("key" = String, Path, description = "What the key begins with: `plk_…`."), DryRun),
    responses((status = 200, body = Key)))]
pub(super) async fn revoke(
    State(api): State<Api>,
    who: Who,
    Named(key): Named<String>,
    Params(dry): Params<DryRun>,
) -> Reply {
    who.require(Right::Administer)?;
    let (dry_run, wanted) = (dry.wanted()?, IfMatch::of(&who.1));
    let check = |now: &keys::Key| wanted.check(&tag(now));
    let found = find(&api, &who, &key).await?;
    if dry_run || found.revoked_ms.is_some() {
        check(&found)?;
        return Ok(shown(&found));
    }
    let ended = keys::revoke_if(&api.store, &found.id, check).await?;
    let mut response = shown(&ended);
    let note = Note { subject: Some(found.id), ..note(&ended, "revoked".to_owned()) };
    response.extensions_mut().insert(note);
    Ok(response)
}
