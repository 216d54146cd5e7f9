//! A namespace is dropped while something is put into it: one of the two is refused.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::databases::{Database, on_each};
use super::{Answer, Catalog, new_table};

on_each!(
    a_table_is_created_in_a_namespace_or_the_namespace_dropped,
    a_table_is_moved_into_a_namespace_or_the_namespace_dropped,
    a_namespace_is_created_below_one_or_that_one_dropped,
    commits_to_the_same_tables_in_any_order_all_land,
);

const ROUNDS: u32 = 100;
/// Where a machine is so slow or so quick that one of the two always came first, there are more.
const ROUNDS_MAX: u32 = 200;
/// Rounds until the moments come again.
const MOMENTS: u32 = 20;

/// Drops the namespace `a` while `request` is carried out, again and again, at other moments of it.
/// Before each round the namespace is there, empty, and `prepare` has been sent.
async fn race(database: Database, prepare: Option<(&str, &Value)>, request: (&str, &Value)) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("other").await;
    let (mut dropped, mut put) = (0, 0);
    // How long the request takes.
    let mut took = Duration::from_millis(20);
    for round in 0..ROUNDS_MAX {
        if round >= ROUNDS {
            if dropped > 0 && put > 0 {
                break;
            }
            // Further apart.
            if round.is_multiple_of(MOMENTS) {
                took *= 2;
            }
        }
        catalog.namespace("a").await;
        if let Some((path, body)) = prepare {
            assert_eq!(catalog.post(path, body).await.status, StatusCode::OK);
        }
        // At first the request waits for half as long as it takes, at the end the other one for longer.
        let late = took * (round % MOMENTS) / 12;
        let early = took / 2;
        let drop = async {
            pause(late.saturating_sub(early)).await;
            catalog.send("DELETE", "/v1/namespaces/a", &[], &Value::Null).await
        };
        let put_in = async {
            pause(early.saturating_sub(late)).await;
            let started = Instant::now();
            let answer = catalog.post(request.0, request.1).await;
            (answer, started.elapsed())
        };
        let (drop, (answer, lasted)) = tokio::join!(drop, put_in);
        if answer.status.is_success() {
            if round < ROUNDS {
                took = took.mul_f64(0.8) + lasted.mul_f64(0.2);
            }
            assert_eq!(drop.error_type(), "NamespaceNotEmptyException", "round {round}");
            put += 1;
        } else {
            assert_eq!(drop.status, StatusCode::NO_CONTENT, "round {round}: {}", drop.body);
            assert_eq!(answer.error_type(), "NoSuchNamespaceException", "round {round}");
            dropped += 1;
        }
        empty(&catalog).await;
    }
    assert!(dropped > 0 && put > 0, "{dropped} times dropped, {put} times put in");
}

/// Waits shorter than a timer can.
async fn pause(duration: Duration) {
    let started = Instant::now();
    while started.elapsed() < duration {
        tokio::task::yield_now().await;
    }
}

/// Removes everything, also what lies in a namespace that is not there.
async fn empty(catalog: &Catalog) {
    let delete = |path: String| async move {
        let answer: Answer = catalog.send("DELETE", &path, &[], &Value::Null).await;
        answer.status
    };
    for (namespace, table) in [("a", "t"), ("other", "t")] {
        delete(format!("/v1/namespaces/{namespace}/tables/{table}")).await;
    }
    delete("/v1/namespaces/a%1Fb".to_owned()).await;
    delete("/v1/namespaces/a".to_owned()).await;
    catalog.namespace("a").await;
    let tables = catalog.get("/v1/namespaces/a/tables").await;
    assert_eq!(tables.body["identifiers"], json!([]));
    let below = catalog.get("/v1/namespaces?parent=a").await;
    assert_eq!(below.body["namespaces"], json!([]));
    assert_eq!(delete("/v1/namespaces/a".to_owned()).await, StatusCode::NO_CONTENT);
}

async fn a_table_is_created_in_a_namespace_or_the_namespace_dropped(database: Database) {
    race(database, None, ("/v1/namespaces/a/tables", &new_table("t"))).await;
}

async fn a_table_is_moved_into_a_namespace_or_the_namespace_dropped(database: Database) {
    let rename = json!({
        "source": { "namespace": ["other"], "name": "t" },
        "destination": { "namespace": ["a"], "name": "t" },
    });
    let table = new_table("t");
    let prepare = ("/v1/namespaces/other/tables", &table);
    race(database, Some(prepare), ("/v1/tables/rename", &rename)).await;
}

async fn a_namespace_is_created_below_one_or_that_one_dropped(database: Database) {
    race(database, None, ("/v1/namespaces", &json!({ "namespace": ["a", "b"] }))).await;
}

/// Transactions that name the same tables in opposite orders, and commits to single ones.
async fn commits_to_the_same_tables_in_any_order_all_land(database: Database) {
    let catalog = Catalog::open(database).await;
    catalog.namespace("a").await;
    for name in ["t", "u"] {
        catalog.table("a", name).await;
    }
    let change = |name: &str, number: u32| {
        json!({
            "identifier": { "namespace": ["a"], "name": name }, "requirements": [],
            "updates": [{ "action": "set-properties", "updates": { format!("k{number}"): "v" } }],
        })
    };
    let commits = (0..24).map(|number| {
        let (path, body) = match number % 4 {
            0 => (
                "/v1/transactions/commit",
                json!({ "table-changes": [change("t", number), change("u", number)] }),
            ),
            1 => (
                "/v1/transactions/commit",
                json!({ "table-changes": [change("u", number), change("t", number)] }),
            ),
            2 => ("/v1/namespaces/a/tables/t", change("t", number)),
            _ => ("/v1/namespaces/a/tables/u", change("u", number)),
        };
        let catalog = &catalog;
        async move {
            // Who was slower too often is told so, and may ask again.
            loop {
                let answer = catalog.post(path, &body).await;
                if answer.error_type() != "CommitFailedException" {
                    return answer.status;
                }
            }
        }
    });
    let done = futures::future::join_all(commits).await;
    assert!(done.iter().all(StatusCode::is_success), "{done:?}");
    for name in ["t", "u"] {
        let found = catalog.get(&format!("/v1/namespaces/a/tables/{name}")).await;
        assert_eq!(found.body["metadata"]["properties"].as_object().unwrap().len(), 18, "{name}");
    }
}
