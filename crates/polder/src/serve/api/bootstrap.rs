//! `GET /v1/orgs/{org}/bootstrap`: a manifest of an org's tables at one moment, and their rows as one stream.

use axum::body::Body as Stream;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use futures::TryStreamExt;
use polder_control::audit::{self, Event};
use polder_control::desired::EffectiveOrg;
use polder_core::spec::TableSpec;
use polder_core::{Authorized, OrgId, Right};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::gate::Who;
use super::orgs::effective;
use super::paging::{Named, Params, answer};
use super::problem::{Problem, Reply};
use crate::bootstrap::{AsOf, Bootstrap, Budget, Format, Manifest, Token, Wanted, microseconds};

/// Which tables and rows, in which form, and how many.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BootstrapRequest {
    /// Names, with commas between them; all of the org's lake tables when absent. A comma or a `\` in
    /// a name is written `\,`, `\\`.
    tables: Option<String>,
    /// Leave out rows of earlier events (`event_time` of the table specs): RFC 3339, or a date.
    since: Option<String>,
    /// The states that were current then, RFC 3339 or a date; the present ones when absent.
    as_of: Option<String>,
    /// The states that this pin names.
    pin: Option<String>,
    /// `rows`, or `entity`: one document for each row of a table, with what belongs to it.
    shape: Option<String>,
    /// The table whose rows become documents (`shape=entity`); `opportunity` when absent.
    entity: Option<String>,
    /// `arrow`, `parquet` or `ndjson`; the manifest alone, as JSON, when absent.
    format: Option<String>,
    /// At most so many rows (documents) in this answer.
    #[param(value_type = Option<u64>, minimum = 1)]
    rows_max: Option<String>,
    /// At most so many bytes of rows.
    #[param(value_type = Option<u64>, minimum = 1)]
    bytes_max: Option<String>,
    /// At most so many tokens of a language model, by estimate (`format=ndjson`).
    #[param(value_type = Option<u64>, minimum = 1)]
    tokens_max: Option<String>,
    /// Go on from here: `token` of a manifest, or `next` of a mark. Goes with `format` and budgets alone.
    resume: Option<String>,
}

/// Read an org's tables at one moment: a manifest, then all rows.
///
/// Every table is at the state it had at one and the same moment, while runs go on. The rows come in one
/// order, with marks among them from which `resume` goes on; to an agent's key, 10,000 rows and 1 MiB of them
/// in one answer at most. See `docs/how-to/bootstrap.md`.
#[utoipa::path(get, path = "/v1/orgs/{org}/bootstrap", tag = "lake",
    params(("org" = String, Path, description = "The org's id."), BootstrapRequest),
    responses((status = 200, description = "The manifest; with `format`, the rows too.", content(
        (Manifest = "application/json"),
        (Vec<u8> = "application/vnd.apache.arrow.stream"),
        (Vec<u8> = "application/x-tar"),
        (String = "application/x-ndjson"),
    ))))]
pub(super) async fn bootstrap(
    State(api): State<Api>,
    who: Who,
    Named(org): Named<String>,
    Params(request): Params<BootstrapRequest>,
) -> Reply {
    let org = who.org(&org, Right::Read)?;
    let specs = specs(effective(&api, &org).await?);
    let format = request.format()?;
    let budget = request.budget()?;
    let opened = request.open(&api, &org, specs).await?;
    let record = event(&who, &org, &opened, &request);
    let Some(format) = format else {
        if budget != Budget::default() {
            return Err(Problem::invalid("a budget is for rows: say format= as well"));
        }
        recorded(&api, &record).await?;
        return Ok(answer(StatusCode::OK, &opened.manifest));
    };
    let bytes = opened.stream(format, budget).await?;
    recorded(&api, &record).await?;
    let told = bytes.inspect_err(|error| tracing::warn!("a bootstrap was cut off: {error}"));
    let mut headers = HeaderMap::new();
    let kind = header::HeaderValue::from_static(format.media_type());
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    Ok((StatusCode::OK, headers, Stream::from_stream(told)).into_response())
}

fn specs(org: EffectiveOrg) -> Vec<TableSpec> {
    org.tables.into_iter().map(|table| table.spec).collect()
}

/// One entry a call, before the first byte is sent: who read which states.
async fn recorded(api: &Api, event: &Event) -> Reply<()> {
    audit::record(&api.store, event).await?;
    Ok(())
}

fn event(
    who: &Who,
    org: &Authorized<OrgId>,
    opened: &Bootstrap,
    request: &BootstrapRequest,
) -> Event {
    let tables = opened.manifest.names();
    let form = request.format.as_deref().unwrap_or("manifest");
    let on = if request.resume.is_some() { ", resumed" } else { "" };
    Event {
        who: who.0.who(),
        action: "GET /v1/orgs/{org}/bootstrap".to_owned(),
        org: Some(org.get().to_string()),
        subject: Some(format!("/v1/orgs/{}/bootstrap", org.get())),
        outcome: "done".to_owned(),
        detail: Some(format!("{form}{on}: {tables}")),
    }
}

impl BootstrapRequest {
    fn format(&self) -> Reply<Option<Format>> {
        let Some(text) = self.format.as_deref() else { return Ok(None) };
        let format = Format::parse(text).ok_or_else(|| {
            Problem::invalid(format!("format is arrow, parquet or ndjson, and not {text:?}"))
        })?;
        Ok(Some(format))
    }

    fn budget(&self) -> Reply<Budget> {
        let number = |name: &str, text: &Option<String>| match text.as_deref().map(str::parse) {
            None => Ok(None),
            Some(Ok(number)) if number > 0 => Ok(Some(number)),
            _ => Err(Problem::invalid(format!("{name} has to be a number from 1"))),
        };
        Ok(Budget {
            rows_max: number("rows_max", &self.rows_max)?,
            bytes_max: number("bytes_max", &self.bytes_max)?,
            tokens_max: number("tokens_max", &self.tokens_max)?,
        })
    }

    async fn open(
        &self,
        api: &Api,
        org: &Authorized<OrgId>,
        specs: Vec<TableSpec>,
    ) -> Reply<Bootstrap> {
        let Some(token) = &self.resume else {
            return Ok(Box::pin(api.bootstraps.open(org, specs, self.wanted()?)).await?);
        };
        let choice = [&self.tables, &self.since, &self.as_of, &self.pin, &self.shape, &self.entity];
        if choice.iter().any(|said| said.is_some()) {
            return Err(Problem::invalid(
                "resume goes with format and budgets alone: the rest is in the token",
            ));
        }
        Ok(Box::pin(api.bootstraps.resume(org, specs, Token::parse(token)?)).await?)
    }

    fn wanted(&self) -> Reply<Wanted> {
        let as_of = AsOf::parse(self.as_of.as_deref(), self.pin.as_deref())?;
        let entity = match (self.shape.as_deref(), &self.entity) {
            (None | Some("rows"), None) => None,
            (Some("entity"), named) => {
                Some(named.clone().unwrap_or_else(|| "opportunity".to_owned()))
            }
            (None | Some("rows"), Some(_)) => {
                return Err(Problem::invalid("entity= goes with shape=entity"));
            }
            (Some(other), _) => {
                let text = format!("shape is rows or entity, and not {other:?}");
                return Err(Problem::invalid(text));
            }
        };
        Ok(Wanted {
            tables: self.tables.as_deref().map(names).transpose()?,
            as_of,
            since_us: self.since.as_deref().map(|text| microseconds("since", text)).transpose()?,
            entity,
        })
    }
}

/// `a,b\,c` → `a` and `b,c`.
fn names(text: &str) -> Reply<Vec<String>> {
    let mut names = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let next = match letter {
            ',' => {
                names.push(String::new());
                continue;
            }
            '\\' => letters.next().ok_or_else(|| Problem::invalid("tables ends with \\"))?,
            other => other,
        };
        if let Some(last) = names.last_mut() {
            last.push(next);
        }
    }
    if names.iter().any(String::is_empty) {
        return Err(Problem::invalid("tables has an empty name"));
    }
    let mut seen = std::collections::HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(Problem::invalid(format!("tables names {twice:?} twice")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_empty_ones_refused() {
        let found = |text: &str| names(text).ok();
        let owned = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(found("a"), owned(&["a"]));
        assert_eq!(found("a,b\\,c,d\\\\"), owned(&["a", "b,c", "d\\"]));
        for bad in ["", "a,", ",a", "a\\", "a,b,a"] {
            assert_eq!(found(bad), None, "{bad:?}");
        }
    }
}
