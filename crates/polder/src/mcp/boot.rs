//! `bootstrap`: one state of an org's tables, and their rows in answers of a size that a model can take.

use futures::TryStreamExt;
use polder_control::audit::Event;
use polder_control::desired;
use polder_core::spec::TableSpec;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Principal, Result};
use rmcp::model::Tool;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Agent;
use crate::bootstrap::{AsOf, Budget, Format, Token, Wanted as Choice, microseconds};
use crate::caps::Caps;

/// Bytes of an answer: one row is sent whatever its size, up to this.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// What the tool takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    org: Option<String>,
    #[serde(default)]
    tables: Vec<String>,
    pin: Option<String>,
    as_of: Option<String>,
    since: Option<String>,
    entity: Option<String>,
    rows_max: Option<u64>,
    tokens_max: Option<u64>,
    resume: Option<String>,
}

pub(super) fn tool() -> Tool {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let number =
        |description: &str| json!({ "type": "integer", "minimum": 1, "description": description });
    super::tool(
        "bootstrap",
        "Fixes the states of an org's tables at one moment: for each its snapshot, columns with what they \
         hold, rows, freshness, last verdict, and the FROM clause that reads exactly that state, whatever \
         is loaded meanwhile. With rows_max or tokens_max it hands out rows as well; call again with \
         resume set to mark.next for those that follow.",
        json!({
            "type": "object",
            "properties": {
                "org": text("The org, where you may see several"),
                "tables": {
                    "type": "array",
                    "items": text("The table: `opportunity`, or with its namespace, `org_401.opportunity`"),
                },
                "pin": text("Take the states that this pin names instead of the present ones"),
                "as_of": text("Take the states of this time: 2026-01-31T12:00:00Z"),
                "since": text("Leave out rows of earlier events: 2026-01-31T12:00:00Z"),
                "entity": text("Hand out one document for each row of this table, such as opportunity, with \
                                the rows of other tables that belong to it"),
                "rows_max": number("Hand out at most so many rows or documents"),
                "tokens_max": number("Hand out at most so many tokens, by estimate"),
                "resume": text("Go on where the last answer ended: its mark.next"),
            },
            "additionalProperties": false,
        }),
    )
}

impl Agent {
    pub(super) async fn bootstrap(&self, wanted: Wanted) -> Result<Value> {
        let org = self.org_of(&wanted)?;
        let specs = self.specs(&org).await?;
        let budget = Budget {
            rows_max: wanted.rows_max,
            tokens_max: wanted.tokens_max,
            bytes_max: Some(Caps::AGENT.bytes_max as u64),
        };
        let reads = budget.rows_max.is_some() || budget.tokens_max.is_some();
        let resumed = wanted.resume.is_some();
        let opened = match &wanted.resume {
            Some(token) => {
                let others = [&wanted.pin, &wanted.as_of, &wanted.since, &wanted.entity];
                if !wanted.tables.is_empty() || others.iter().any(|said| said.is_some()) {
                    return Err(invalid("resume goes with org, rows_max and tokens_max alone"));
                }
                self.bootstraps.resume(&org, specs, Token::parse(token)?).await?
            }
            None => self.bootstraps.open(&org, specs, choice(&org, &wanted)?).await?,
        };
        let manifest = serde_json::to_value(&opened.manifest)
            .map_err(|cause| Error::new(ErrorCode::Internal, "no JSON").caused_by(cause))?;
        let event = Event {
            action: "mcp bootstrap".to_owned(),
            org: Some(org.get().to_string()),
            outcome: "done".to_owned(),
            detail: Some(opened.manifest.names()),
            ..Event::default()
        };
        self.record(event).await?;
        if !reads {
            return Ok(manifest);
        }
        let mut bytes = opened.stream(Format::Ndjson, budget).await?;
        let mut text = Vec::new();
        while let Some(more) = bytes.try_next().await? {
            text.extend(more);
            if text.len() > ANSWER_BYTES_MAX {
                let message = "one row is larger than an answer may be";
                return Err(Error::new(ErrorCode::QueryLimit, message)
                    .hint("say since or fewer tables, or read it by query"));
            }
        }
        let mut answer = if resumed { json!({ "org": manifest["org"] }) } else { manifest };
        (answer["rows"], answer["mark"]) = taken_apart(&text)?;
        Ok(answer)
    }

    /// The table specs of an org; none of one that only the lake knows.
    pub(super) async fn specs(&self, org: &Authorized<OrgId>) -> Result<Vec<TableSpec>> {
        let Some((document, templates)) = desired::org(&self.store, org).await? else {
            return Ok(Vec::new());
        };
        let process = &self.app.config.process;
        let effective = desired::effective(process, &templates, org.get(), &document)?;
        Ok(effective.tables.into_iter().map(|table| table.spec).collect())
    }

    /// The org that is meant: the one named, or that of the tables, or the only one there is.
    fn org_of(&self, wanted: &Wanted) -> Result<Authorized<OrgId>> {
        let of_table = wanted.tables.iter().find_map(|name| namespaced(name));
        self.org(wanted.org.as_deref().or(of_table.map(|(namespace, _)| namespace)))
    }

    /// The org of a name or namespace, or the only one that the agent may see. Another's does not exist.
    pub(super) fn org(&self, named: Option<&str>) -> Result<Authorized<OrgId>> {
        let missing = |name: &str| {
            Error::new(ErrorCode::LakeNotFound, format!("there is no org {name:?}"))
                .hint("list_tables says which there are")
        };
        let org = match (named, &self.principal) {
            (Some(name), _) => {
                let org = OrgId::from_namespace(name).or_else(|| name.parse().ok());
                org.ok_or_else(|| missing(name))?
            }
            (None, Principal::Org(org)) => org.clone(),
            (None, Principal::Member { orgs, .. }) if orgs.len() == 1 => orgs[0].clone(),
            (None, _) => return Err(invalid("you may see several orgs: say which, as org")),
        };
        self.principal.authorize(&org).map_err(|_| missing(named.unwrap_or_default()))
    }
}

fn choice(org: &Authorized<OrgId>, wanted: &Wanted) -> Result<Choice> {
    let mut names = Vec::new();
    for name in &wanted.tables {
        names.push(match namespaced(name) {
            Some((namespace, table)) if namespace == org.get().namespace() => table.to_owned(),
            Some(_) => {
                let message = format!("there is no table {name:?} in this org");
                return Err(Error::new(ErrorCode::LakeNotFound, message)
                    .hint("list_tables says which there are"));
            }
            None => name.clone(),
        });
    }
    let as_of = AsOf::parse(wanted.as_of.as_deref(), wanted.pin.as_deref())?;
    let since = wanted.since.as_deref().map(|text| microseconds("since", text));
    Ok(Choice {
        tables: (!names.is_empty()).then_some(names),
        as_of,
        since_us: since.transpose()?,
        entity: wanted.entity.clone(),
    })
}

/// `lake.org_401.deal` and `org_401.deal` → namespace and table.
pub(super) fn namespaced(name: &str) -> Option<(&str, &str)> {
    let plain = name.strip_prefix("lake.").unwrap_or(name);
    let (namespace, table) = plain.split_once('.')?;
    OrgId::from_namespace(namespace).map(|_| (namespace, table))
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, message)
}

/// The lines of a bootstrap: its rows, and the last mark.
fn taken_apart(text: &[u8]) -> Result<(Value, Value)> {
    let (mut rows, mut mark) = (Vec::new(), Value::Null);
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut line: Value = serde_json::from_slice(line)
            .map_err(|cause| Error::new(ErrorCode::Internal, "no JSON").caused_by(cause))?;
        if !line["mark"].is_null() {
            mark = line["mark"].take();
        } else if line["manifest"].is_null() {
            rows.push(line);
        }
    }
    Ok((Value::Array(rows), mark))
}
