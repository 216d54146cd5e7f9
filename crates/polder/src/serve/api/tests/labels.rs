//! `/metrics` has few labels, however many orgs there are, and its sums are over all of them.

use std::collections::{BTreeMap, BTreeSet};

use polder_control::queue::{Asked, JobKind, Order};
use polder_control::runs::{self, RunState};
use polder_control::{Spent, Store};
use polder_core::Principal;

use super::*;

/// An org with so many runs that wait, a run of today, and two verdicts.
async fn busy(store: &Store, id: &str, waiting: usize, verdict: &str) {
    let org = Principal::Operator.authorize(&id.parse().unwrap()).unwrap();
    let asked = |at: usize| {
        let (table, source) = (format!("t{at}"), "files".to_owned());
        Asked { table, source, validate: false }
    };
    let tables: Vec<Asked> = (0..waiting).map(asked).collect();
    let order = Order {
        kind: JobKind::Ingest,
        tables: &tables,
        full_refresh: false,
        asked_by: "test",
        traceparent: None,
    };
    queue::submit(store, &org, order).await.unwrap();
    let run = runs::enqueue(store, &org, "used").await.unwrap();
    let (spent, ended) = (Spent { rows: 4, bytes: 4 }, (RunState::Succeeded, "{}"));
    runs::finish(store, &org, run, spent, ended).await.unwrap();
    for (table, verdict) in [("a", verdict), ("b", "verified")] {
        let report = json!({ "verdict": verdict }).to_string();
        let said = (RunState::Succeeded, report.as_str());
        runs::keep_validation(store, &org, (table, 0), said, &[]).await.unwrap();
    }
}

/// Values by name and labels; none is there twice.
fn samples(page: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let again = found.insert((name.to_owned(), labels.to_owned()), value.to_owned());
        assert!(again.is_none(), "twice: {line}");
    }
    found
}

#[tokio::test]
async fn sixty_orgs_have_fifty_labels_and_the_sums_are_over_all() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    // One has the name that stands for the rest, and most runs of all.
    let mut waiting = 30;
    busy(&server.store, "other", waiting, "failed").await;
    for at in 0..59 {
        let (runs, verdict) = (at % 7 + 1, if at % 2 == 0 { "verified" } else { "failed" });
        busy(&server.store, &format!("m{at:02}"), runs, verdict).await;
        waiting += runs;
    }
    let claimer = queue::Claimer { owner: "s", per_org: 9 };
    for _ in 0..5 {
        assert!(queue::claim(&server.store, claimer).await.unwrap().is_some());
    }
    let url = format!("sqlite://{}", server.folder.path().join("c.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let limited = sqlx::query("UPDATE polder_turns SET rows_max = 1").execute(&pool).await;
    assert_eq!(limited.unwrap().rows_affected(), 60);
    pool.close().await;
    let answer = server.call(&operator, "GET", "/metrics", Value::Null).await;
    assert_eq!(answer.status, StatusCode::OK);
    let found = samples(&String::from_utf8(answer.bytes).unwrap());
    let sum = |name: &str, part: &str| -> usize {
        let own = found.iter().filter(|((of, labels), _)| of == name && labels.contains(part));
        own.map(|(_, value)| value.parse::<usize>().unwrap()).sum()
    };
    assert_eq!(sum("polder_runs_waiting", "org="), waiting - 5);
    assert_eq!(sum("polder_runs_running", "org="), 5);
    assert_eq!(sum("polder_org_limited", "org="), 60);
    assert_eq!(sum("polder_tables_by_verdict", "verdict=\"failed\""), 30);
    assert_eq!(sum("polder_tables_by_verdict", "verdict=\"verified\""), 90);
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, text) in found.keys() {
        if let Some((_, rest)) = text.split_once("org=\"") {
            let org = rest.split('"').next().unwrap();
            labels.entry(name.as_str()).or_default().insert(org);
        }
    }
    assert_eq!(labels.len(), 5, "{labels:?}");
    for (name, orgs) in labels {
        assert_eq!((orgs.len(), orgs.contains("other")), (51, true), "{name}: {orgs:?}");
    }
}
