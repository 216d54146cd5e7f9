//! `request_table`: an agent with a writer's key asks for a table of its org. It goes through the API as
//! everybody's requests do: the same checks, the same audit log. The first call plans and changes
//! nothing; the second, with the plan's hash, carries out exactly what was planned. How a server
//! elsewhere is called is in `remote.rs`.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderValue, Request, StatusCode, header};
use polder_core::{Error, ErrorCode, Result};
use rmcp::model::{Tool, ToolAnnotations};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::Agent;
use super::remote::Remote;
use crate::serve::{path_segment, sha256};

/// The tool's name.
pub(super) const NAME: &str = "request_table";
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;
pub(super) const REASON: &str = "an agent, by request_table";

/// The API, with the caller's own credentials.
#[derive(Clone)]
pub(crate) enum Door {
    /// In this process; `authorization` is none where nobody has to authenticate.
    Here { routes: Router, authorization: Option<HeaderValue> },
    /// A server's.
    There(Remote),
}

impl Door {
    /// The API of a server; none for a key whose owner may not ask for tables.
    ///
    /// # Errors
    /// `spec.invalid`, `spec.secret` for what is no address and no key; `control.unauthenticated` for a key
    /// that is not good; `control.store` for a server that cannot be called.
    pub(crate) async fn there(url: &str, key: &SecretString) -> Result<Option<Self>> {
        let remote = Remote::new(url, key)?;
        Ok(remote.offers(NAME).await?.then_some(Self::There(remote)))
    }
}

/// What the tool takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TableRequest {
    org: Option<String>,
    name: String,
    #[serde(default)]
    settings: Map<String, Value>,
    plan_hash: Option<String>,
}

pub(super) fn tool() -> Tool {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let schema = json!({
        "type": "object",
        "properties": {
            "org": text("The org, where you may see several"),
            "name": text("The table: `opportunity`"),
            "settings": {
                "type": "object",
                "description": "Settings of the table spec that are not to be found out: mode, cursor, key, …",
            },
            "plan_hash": text("The plan's hash, to carry it out"),
        },
        "required": ["name"],
        "additionalProperties": false,
    });
    let writes = ToolAnnotations::new().read_only(false).destructive(false).open_world(false);
    Tool::new(
        NAME,
        "Asks for a table to be brought into the lake. The first call answers with a plan and its hash, and \
         changes nothing; show the plan to whoever asked you. The second call, with plan_hash, adds the \
         table to the org's pipeline and queues its first run. list_tables shows it once it is loaded.",
        Arc::new(super::object(schema)),
    )
    .annotate(writes)
}

impl Agent {
    pub(super) async fn request_table(&self, wanted: TableRequest) -> Result<Value> {
        let org = self.org(wanted.org.as_deref())?;
        let mut body = wanted.settings.clone();
        if body.insert("name".to_owned(), json!(wanted.name)).is_some() {
            return Err(Error::new(ErrorCode::SpecInvalid, "settings name the table again")
                .hint("say its name as `name` alone"));
        }
        let place = format!("/v1/orgs/{}", path_segment(org.get().as_str()));
        let body = Value::Object(body);
        let dry = self.post(&format!("{place}/tables?dry_run=true"), &body).await?;
        let plan = json!({
            "org": org.get().as_str(),
            "table": wanted.name,
            "spec": dry["spec"],
            "resolved": dry["resolved"],
            "then": "the table is added to the org's pipeline, and its first run is queued",
        });
        let hash = sha256(plan.to_string().as_bytes());
        let Some(confirmed) = wanted.plan_hash else {
            return Ok(json!({ "plan": plan, "plan_hash": hash, "done": false }));
        };
        if confirmed != hash {
            let message = "the plan is another one by now, or was never made";
            return Err(Error::new(ErrorCode::ControlStale, message)
                .hint("call request_table without plan_hash, and look at the plan it gives"));
        }
        let added = self.post(&format!("{place}/tables"), &body).await?;
        let run = self.post(&format!("{place}/runs"), &json!({ "tables": [wanted.name] })).await?;
        Ok(json!({
            "done": true, "table": wanted.name, "spec": added["spec"], "operation": run["id"],
            "status": run["status"],
        }))
    }

    /// What the API answers, as the caller.
    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let (status, bytes) = match self.door.as_ref().ok_or_else(lost)? {
            Door::Here { routes, authorization } => {
                post_here(routes, authorization.as_ref(), path, body).await?
            }
            Door::There(remote) => remote.post(path, body).await?,
        };
        answered(status, &bytes)
    }
}

async fn post_here(
    routes: &Router,
    authorization: Option<&HeaderValue>,
    path: &str,
    body: &Value,
) -> Result<(StatusCode, Vec<u8>)> {
    let mut request = Request::post(path)
        .header("polder-reason", REASON)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Body::from(body.to_string())).map_err(|_| lost())?;
    // The routes answer every request; there is no error.
    let Ok(response) = routes.clone().oneshot(request).await;
    let status = response.status();
    let bytes = to_bytes(response.into_body(), ANSWER_BYTES_MAX).await.map_err(|_| lost())?;
    Ok((status, bytes.to_vec()))
}

/// What an answer says.
///
/// # Errors
/// What the API refused it with; `internal` for what is no answer of an API.
pub(super) fn answered(status: StatusCode, bytes: &[u8]) -> Result<Value> {
    let answer: Value = serde_json::from_slice(bytes).map_err(|_| lost())?;
    if status.is_success() {
        return Ok(answer);
    }
    let said = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    Err(Error::new(code_of(status), said("detail")).detail(said("code")).hint(said("hint")))
}

fn lost() -> Error {
    Error::new(ErrorCode::Internal, "the API does not answer")
}

/// What an agent can act on: the API's own code is in the detail.
fn code_of(status: StatusCode) -> ErrorCode {
    match status.as_u16() {
        400 => ErrorCode::SpecInvalid,
        401 => ErrorCode::ControlUnauthenticated,
        403 => ErrorCode::ControlDenied,
        404 => ErrorCode::ControlNotFound,
        409 => ErrorCode::ControlConflict,
        422 => ErrorCode::SpecUnknownName,
        503 => ErrorCode::ControlStore,
        _ => ErrorCode::Internal,
    }
}
