//! DAGs of an org leave Airflow with their history, by Airflow's own API (ADR 0033).
//!
//! Which DAGs are an org's is told by the tags that the provider gives them, `polder` and `org:<id>`.
//! What the API does not remove, Airflow's audit log and the log files of its workers, stays, and so
//! does the file that DAGs are made from.

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use polder_core::spec::AirflowConfig;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::app::App;
use crate::outgoing;

/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(30);
/// An answer has no more bytes than that.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// DAGs and runs asked for at a time.
const PAGE: usize = 100;
/// An org has a few DAGs; more are none of an org.
const DAGS_MAX: usize = 10_000;
/// Times that a DAG is tried to be removed whose steps still run, and the pause between them.
const TRIES_MAX: u32 = 60;
const PAUSE: Duration = Duration::from_secs(1);
/// The tag of all DAGs that the provider makes.
const TAG: &str = "polder";

/// An Airflow, not signed in to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Airflow {
    client: Client,
    url: Url,
    access: Arc<Access>,
    pause: Duration,
}

/// How to sign in.
enum Access {
    Token(SecretString),
    Password { username: String, password: SecretString },
}

/// An Airflow that was signed in to.
pub(crate) struct Session<'a> {
    airflow: &'a Airflow,
    token: SecretString,
}

#[derive(Deserialize)]
struct Signed {
    access_token: String,
}

#[derive(Deserialize)]
struct Dags {
    dags: Vec<Dag>,
    total_entries: usize,
}

#[derive(Deserialize)]
struct Dag {
    dag_id: String,
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
}

#[derive(Deserialize)]
struct Runs {
    dag_runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    dag_run_id: String,
}

impl Dag {
    fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own.name == tag)
    }
}

impl Airflow {
    /// The one that the configuration names, if it does.
    ///
    /// # Errors
    /// `spec.invalid` for an address that may not be called, or for another number of ways to sign in than
    /// one; `spec.secret` for a secret that cannot be read.
    pub(crate) fn open(app: &App) -> Result<Option<Self>> {
        let opened = app.config.process.airflow.as_ref().map(|config| {
            Self::of(app, config).map_err(|error| error.within("[airflow] of polder.toml"))
        });
        opened.transpose()
    }

    fn of(app: &App, config: &AirflowConfig) -> Result<Self> {
        let access = match (&config.token, &config.username, &config.password) {
            (Some(token), None, None) => Access::Token(app.secret(token)?),
            (None, Some(username), Some(password)) => {
                let password = app.secret(password)?;
                Access::Password { username: username.clone(), password }
            }
            _ => {
                let message = "it is not said how to sign in";
                return Err(Error::new(ErrorCode::SpecInvalid, message)
                    .hint("write username and password, or token alone"));
            }
        };
        Self::at(&config.url, config.private, access)
    }

    fn at(url: &str, private: bool, access: Access) -> Result<Self> {
        let url = outgoing::checked(url, private)?;
        let client = outgoing::client(private, CALL_MAX)?;
        Ok(Self { client, url, access: Arc::new(access), pause: PAUSE })
    }

    /// Its address, without any secret.
    pub(crate) fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Signs in.
    ///
    /// # Errors
    /// `control.orchestrator`, as of all calls.
    pub(crate) async fn sign_in(&self) -> Result<Session<'_>> {
        let (username, password) = match &*self.access {
            Access::Token(token) => return Ok(Session { airflow: self, token: token.clone() }),
            Access::Password { username, password } => (username, password.expose_secret()),
        };
        let body = json!({ "username": username, "password": password }).to_string();
        let place = self.place(&["auth", "token"])?;
        let request = self.client.post(place).header(CONTENT_TYPE, "application/json").body(body);
        let answer = request.send().await.map_err(|cause| self.away(cause))?;
        let answer = self.expect(answer, "signing in")?;
        let Signed { access_token } = self.read(answer, "signing in").await?;
        Ok(Session { airflow: self, token: SecretString::from(access_token) })
    }

    /// Signs in, and looks whether DAGs can be listed.
    pub(crate) async fn check(&self) -> Result<()> {
        let session = self.sign_in().await?;
        session.page(&[TAG], 0).await.map(drop)
    }

    fn place(&self, parts: &[&str]) -> Result<Url> {
        // Such a part would be left out, and the address be that of all DAGs.
        if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return Err(self.failed("it has an id that no address can have"));
        }
        let mut place = self.url.clone();
        let no_path = |()| self.failed("its address has no path");
        place.path_segments_mut().map_err(no_path)?.pop_if_empty().extend(parts);
        Ok(place)
    }

    fn expect(&self, answer: Response, what: &str) -> Result<Response> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        // Of the body nothing: it may repeat what was sent.
        Err(self.failed(&format!("{what} is answered by {status}")))
    }

    async fn read<T: DeserializeOwned>(&self, mut answer: Response, what: &str) -> Result<T> {
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|cause| self.away(cause))? {
            if body.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(self.failed(&format!("{what} is answered by too much")));
            }
            body.extend_from_slice(&part);
        }
        let read = serde_json::from_slice(&body);
        read.map_err(|_| self.failed(&format!("{what} is not answered as Airflow 3 does")))
    }

    fn away(&self, cause: reqwest::Error) -> Error {
        self.failed("it cannot be called").caused_by(cause.without_url())
    }

    fn failed(&self, why: &str) -> Error {
        let message = format!("Airflow at {}: {why}", self.url);
        Error::new(ErrorCode::ControlOrchestrator, message)
            .hint("see whether it runs, and whether [airflow] names a user who may delete DAGs")
    }
}

impl Session<'_> {
    /// The ids of the org's DAGs, in order; also of those that no file makes any more.
    pub(crate) async fn dags(&self, org: &Authorized<OrgId>) -> Result<Vec<String>> {
        let own = format!("org:{}", org.get());
        let (mut found, mut seen) = (Vec::new(), 0);
        loop {
            let page = self.page(&[TAG, &own], seen).await?;
            seen += page.dags.len();
            if seen > DAGS_MAX {
                return Err(self.airflow.failed("it lists more DAGs than an org can have"));
            }
            let last = page.dags.is_empty() || seen >= page.total_entries;
            // What other words its database takes for equal, other orgs' ids among them, is not the org's.
            let ours = page.dags.into_iter().filter(|dag| dag.has(TAG) && dag.has(&own));
            found.extend(ours.map(|dag| dag.dag_id));
            if last {
                found.sort_unstable();
                found.dedup();
                return Ok(found);
            }
        }
    }

    /// Some of the DAGs with all these tags.
    async fn page(&self, tags: &[&str], offset: usize) -> Result<Dags> {
        let mut place = self.airflow.place(&["api", "v2", "dags"])?;
        for tag in tags {
            place.query_pairs_mut().append_pair("tags", tag);
        }
        place
            .query_pairs_mut()
            .append_pair("tags_match_mode", "all")
            .append_pair("exclude_stale", "false")
            .append_pair("order_by", "dag_id")
            .append_pair("limit", &PAGE.to_string())
            .append_pair("offset", &offset.to_string());
        self.get(place, "the list of DAGs").await
    }

    /// Removes a DAG with its runs and all that Airflow keeps of them. One that is gone is no error.
    pub(crate) async fn remove(&self, dag: &str) -> Result<()> {
        let place = self.airflow.place(&["api", "v2", "dags", dag])?;
        // So that no run of it begins meanwhile.
        let paused = self.send(Method::PATCH, place.clone(), json!({ "is_paused": true })).await?;
        if paused.status() == StatusCode::NOT_FOUND {
            return Ok(());
        }
        self.airflow.expect(paused, "pausing a DAG")?;
        for _ in 0..TRIES_MAX {
            let removed = self.send(Method::DELETE, place.clone(), Value::Null).await?;
            match removed.status() {
                StatusCode::NOT_FOUND => return Ok(()),
                // Steps of it run.
                StatusCode::CONFLICT => self.end_runs(dag).await?,
                _ => return self.airflow.expect(removed, "removing a DAG").map(drop),
            }
            tokio::time::sleep(self.airflow.pause).await;
        }
        Err(self.airflow.failed("steps of a DAG go on, though its runs were ended"))
    }

    async fn end_runs(&self, dag: &str) -> Result<()> {
        let mut place = self.airflow.place(&["api", "v2", "dags", dag, "dagRuns"])?;
        place
            .query_pairs_mut()
            .append_pair("state", "running")
            .append_pair("state", "queued")
            .append_pair("limit", &PAGE.to_string());
        let running: Runs = self.get(place, "the list of runs").await?;
        for run in running.dag_runs {
            let id = run.dag_run_id.as_str();
            let place = self.airflow.place(&["api", "v2", "dags", dag, "dagRuns", id])?;
            let ended = self.send(Method::PATCH, place, json!({ "state": "failed" })).await?;
            // One that has ended by itself, or whose DAG no file makes any more, needs no end.
            if !matches!(ended.status(), StatusCode::NOT_FOUND | StatusCode::CONFLICT) {
                self.airflow.expect(ended, "ending a run")?;
            }
        }
        Ok(())
    }

    async fn get<T: DeserializeOwned>(&self, place: Url, what: &str) -> Result<T> {
        let answer = self.send(Method::GET, place, Value::Null).await?;
        let answer = self.airflow.expect(answer, what)?;
        self.airflow.read(answer, what).await
    }

    async fn send(&self, method: Method, place: Url, body: Value) -> Result<Response> {
        let mut request = self
            .airflow
            .client
            .request(method, place)
            .bearer_auth(self.token.expose_secret())
            .header(ACCEPT, "application/json");
        if !body.is_null() {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        request.send().await.map_err(|cause| self.airflow.away(cause))
    }
}

impl fmt::Debug for Airflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Airflow").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}
