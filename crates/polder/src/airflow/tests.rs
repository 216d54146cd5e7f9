#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Mutex;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::routing::{get, patch, post};
use polder_core::Principal;
use tokio::task::JoinSet;

use super::*;

/// DAGs in one page, however many are asked for.
const PAGE_MAX: usize = 2;

/// What answers as Airflow 3 does, as far as it is asked.
#[derive(Clone, Default)]
pub(crate) struct StandIn {
    dags: Arc<Mutex<BTreeMap<String, Known>>>,
    calls: Arc<Mutex<Vec<String>>>,
}

#[derive(Default)]
struct Known {
    tags: Vec<String>,
    running: bool,
    paused: bool,
}

impl Known {
    /// Databases may compare without regard to case.
    fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own.eq_ignore_ascii_case(tag))
    }
}

type Answer = (StatusCode, String);

impl StandIn {
    pub(crate) async fn start(tasks: &mut JoinSet<()>) -> (Self, String) {
        let known = Self::default();
        let routes = Router::new()
            .route("/af/auth/token", post(sign_in))
            .route("/af/api/v2/dags", get(list))
            .route("/af/api/v2/dags/{dag}", patch(pause).delete(remove))
            .route("/af/api/v2/dags/{dag}/dagRuns", get(runs))
            .route("/af/api/v2/dags/{dag}/dagRuns/{run}", patch(end))
            .with_state(known.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/af", listener.local_addr().unwrap());
        tasks.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (known, url)
    }

    pub(crate) fn has(&self, dag: &str, tags: &[&str]) {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let known = Known { tags, ..Known::default() };
        self.dags.lock().unwrap().insert(dag.to_owned(), known);
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.dags.lock().unwrap().keys().cloned().collect()
    }

    fn called(&self, call: &str, headers: &HeaderMap) -> bool {
        self.calls.lock().unwrap().push(call.to_owned());
        headers.get("authorization").is_some_and(|key| key == "Bearer good")
    }
}

/// An Airflow that is signed in to by this password.
pub(crate) fn signing_in(url: &str, password: &str) -> Airflow {
    let access = Access::Password { username: "eve".to_owned(), password: password.into() };
    let airflow = Airflow::at(url, true, access).unwrap();
    Airflow { pause: Duration::from_millis(1), ..airflow }
}

async fn sign_in(body: String) -> Answer {
    let body: Value = serde_json::from_str(&body).unwrap();
    if body == json!({ "username": "eve", "password": "pw" }) {
        return (StatusCode::CREATED, json!({ "access_token": "good" }).to_string());
    }
    (StatusCode::UNAUTHORIZED, json!({ "detail": body["password"] }).to_string())
}

async fn list(
    State(known): State<StandIn>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Answer {
    if !known.called("list", &headers) {
        return (StatusCode::UNAUTHORIZED, String::new());
    }
    let asked: Url = format!("http://x/?{}", query.unwrap()).parse().unwrap();
    let asked: Vec<(String, String)> = asked.query_pairs().into_owned().collect();
    let one = |name: &str| asked.iter().find(|(key, _)| key == name).unwrap().1.clone();
    assert_eq!((one("tags_match_mode"), one("exclude_stale")), ("all".into(), "false".into()));
    let dags = known.dags.lock().unwrap();
    let tags: Vec<&String> =
        asked.iter().filter(|(key, _)| key == "tags").map(|(_, tag)| tag).collect();
    let wanted = dags.iter().filter(|(_, dag)| tags.iter().all(|tag| dag.has(tag.as_str())));
    let wanted: Vec<Value> = wanted
        .map(|(id, dag)| {
            let tags = dag.tags.iter().map(|tag| json!({ "name": tag, "dag_id": id }));
            json!({ "dag_id": id, "tags": tags.collect::<Vec<_>>(), "is_paused": dag.paused })
        })
        .collect();
    let total = wanted.len();
    let offset: usize = one("offset").parse().unwrap();
    let page: Vec<Value> = wanted.into_iter().skip(offset).take(PAGE_MAX).collect();
    (StatusCode::OK, json!({ "dags": page, "total_entries": total }).to_string())
}

async fn pause(
    State(known): State<StandIn>,
    Path(dag): Path<String>,
    headers: HeaderMap,
    body: String,
) -> Answer {
    assert!(known.called(&format!("pause {dag}"), &headers));
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), json!({ "is_paused": true }));
    match known.dags.lock().unwrap().get_mut(&dag) {
        Some(found) => {
            found.paused = true;
            (StatusCode::OK, "{}".to_owned())
        }
        None => (StatusCode::NOT_FOUND, "{}".to_owned()),
    }
}

async fn remove(
    State(known): State<StandIn>,
    Path(dag): Path<String>,
    headers: HeaderMap,
) -> Answer {
    assert!(known.called(&format!("remove {dag}"), &headers));
    let mut dags = known.dags.lock().unwrap();
    let status = match dags.get(&dag) {
        None => StatusCode::NOT_FOUND,
        Some(found) if found.running => StatusCode::CONFLICT,
        Some(found) => {
            assert!(found.paused, "no run of it begins");
            dags.remove(&dag);
            StatusCode::NO_CONTENT
        }
    };
    (status, String::new())
}

async fn runs(State(known): State<StandIn>, Path(dag): Path<String>, headers: HeaderMap) -> Answer {
    assert!(known.called(&format!("runs {dag}"), &headers));
    let running = known.dags.lock().unwrap()[&dag].running;
    let runs: Vec<Value> = if running {
        vec![json!({ "dag_run_id": "manual__2026-01-01T00:00:00+00:00" })]
    } else {
        vec![]
    };
    (StatusCode::OK, json!({ "dag_runs": runs, "total_entries": runs.len() }).to_string())
}

async fn end(
    State(known): State<StandIn>,
    Path((dag, run)): Path<(String, String)>,
    headers: HeaderMap,
    body: String,
) -> Answer {
    assert!(known.called(&format!("end {dag} {run}"), &headers));
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), json!({ "state": "failed" }));
    known.dags.lock().unwrap().get_mut(&dag).unwrap().running = false;
    (StatusCode::OK, "{}".to_owned())
}

fn org(id: &str) -> Authorized<OrgId> {
    Principal::Operator.authorize(&id.parse().unwrap()).unwrap()
}

#[tokio::test]
async fn all_of_an_orgs_dags_go_and_those_of_no_other() {
    let mut tasks = JoinSet::new();
    let (known, url) = StandIn::start(&mut tasks).await;
    let works = ["ingest", "maintain", "old", "validate"];
    for work in works {
        known.has(&format!("polder_a1_{work}"), &["polder", "org:a1", work]);
        known.has(&format!("polder_A1_{work}"), &["polder", "org:A1", work]);
        known.has(&format!("polder_a1_1_{work}"), &["polder", "org:a1_1", work]);
    }
    known.has("mine", &["org:a1"]);
    let others = known.ids().len() - works.len();
    let airflow = signing_in(&url, "pw");
    airflow.check().await.unwrap();
    let session = airflow.sign_in().await.unwrap();
    let found = session.dags(&org("a1")).await.unwrap();
    assert_eq!(found, works.map(|work| format!("polder_a1_{work}")), "on several pages");
    known.dags.lock().unwrap().get_mut("polder_a1_old").unwrap().running = true;
    for dag in &found {
        session.remove(dag).await.unwrap();
    }
    session.remove("polder_a1_old").await.unwrap();
    assert_eq!(session.dags(&org("a1")).await.unwrap(), Vec::<String>::new());
    assert_eq!(known.ids().len(), others);
    let calls = known.calls.lock().unwrap();
    let ended = "end polder_a1_old manual__2026-01-01T00:00:00+00:00";
    assert_eq!(calls.iter().filter(|call| call.starts_with("end ")).collect::<Vec<_>>(), [ended]);
}

#[tokio::test]
async fn what_airflow_refuses_is_said_without_any_secret() {
    let mut tasks = JoinSet::new();
    let (_, url) = StandIn::start(&mut tasks).await;
    let refused = signing_in(&url, "hunter2").sign_in().await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::ControlOrchestrator);
    assert!(refused.message().contains("401"), "{refused:?}");
    assert!(!format!("{refused:?}").contains("hunter2"), "{refused:?}");
    let token = Airflow::at(&url, true, Access::Token("stale".into())).unwrap();
    let refused = token.check().await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::ControlOrchestrator);
    let away = signing_in("http://127.0.0.1:9/", "hunter2").sign_in().await.err().unwrap();
    assert!(away.retryable() && !format!("{away:?}").contains("hunter2"));
    // An address that has a password, or is of a private network, is none.
    for bad in ["http://eve:pw@127.0.0.1:9/", "https://127.0.0.1/"] {
        let access = Access::Token("t".into());
        assert_eq!(Airflow::at(bad, false, access).unwrap_err().code(), ErrorCode::SpecInvalid);
    }
}

#[tokio::test]
async fn no_id_leads_to_another_address() {
    let airflow = signing_in("http://127.0.0.1:9/af/", "pw");
    for id in ["", ".", ".."] {
        airflow.place(&["api", "v2", "dags", id]).unwrap_err();
    }
    let odd = airflow.place(&["api", "v2", "dags", "a/../b?c#d"]).unwrap();
    assert_eq!(odd.as_str(), "http://127.0.0.1:9/af/api/v2/dags/a%2F..%2Fb%3Fc%23d");
}
