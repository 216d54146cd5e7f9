//! Histories in pages, what becomes of the lake, limits of templates, and what sources offer.

use super::*;

/// All items of a listing, two at a time.
async fn all(server: &Server, key: &str, path: &str) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.call(key, "GET", &format!("{path}?limit=2{cursor}"), Value::Null).await;
        assert_eq!(page.status, StatusCode::OK, "{}", page.body);
        let items = page.body["items"].as_array().unwrap();
        assert!(items.len() <= 2, "{}", page.body);
        found.extend(items.iter().cloned());
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return found,
        }
    }
}

#[tokio::test]
async fn histories_come_in_pages() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    for name in ["a", "b", "c", "d"] {
        let body = json!({ "name": name });
        assert_eq!(server.call(&operator, "PATCH", "/v1/orgs/1", body).await.status, 200);
        let body = json!({ "tables": { "account": { "description": name } } });
        assert_eq!(server.call(&operator, "PATCH", "/v1/templates/crm", body).await.status, 200);
    }
    let cases: [(&str, &[&str]); 2] = [
        ("/v1/orgs/1/history", &["adjusted", "name"]),
        ("/v1/templates/crm/history", &["adjusted", "tables", "account", "description"]),
    ];
    for (path, place) in cases {
        let states = all(&server, &operator, path).await;
        let said = |state: &Value| place.iter().fold(state.clone(), |at, name| at[*name].clone());
        let said: Vec<Value> = states.iter().map(said).collect();
        assert_eq!(said, [Value::Null, json!("a"), json!("b"), json!("c"), json!("d")], "{path}");
        let bad = server.call(&operator, "GET", &format!("{path}?cursor=eA"), Value::Null).await;
        assert_eq!((bad.status.as_u16(), bad.code()), (400, "spec.invalid"), "{path}");
    }
}

#[tokio::test]
async fn a_change_of_a_table_says_what_becomes_of_the_lake() {
    let server = Server::new().await;
    let writer = server.key(Role::Writer, &["1"]).await;
    let path = "/v1/orgs/1/tables/opportunity";
    let read = server.call(&writer, "GET", path, Value::Null).await;
    assert!(read.body.get("effect").is_none(), "{}", read.body);
    for (patch, action, settings) in [
        (json!({}), "keep", json!([])),
        (json!({ "description": "What may be sold" }), "change", json!(["description"])),
        (json!({ "enabled": false }), "switch", json!(["enabled"])),
    ] {
        for query in ["?dry_run=true", ""] {
            let to = format!("{path}{query}");
            let changed = server.call(&writer, "PATCH", &to, patch.clone()).await;
            let effect = &changed.body["effect"];
            assert_eq!(
                (&effect["action"], &effect["settings"]),
                (&json!(action), &settings),
                "{to}"
            );
            assert_eq!((&effect["rows"], &effect["rows_to_read"]), (&Value::Null, &Value::Null));
        }
    }
}

#[tokio::test]
async fn a_pause_is_refused_of_a_table_that_has_changed_since() {
    let server = Server::new().await;
    let writer = server.key(Role::Writer, &["1"]).await;
    let path = "/v1/orgs/1/tables/opportunity";
    let tag = server.call(&writer, "GET", path, Value::Null).await.header("etag").to_owned();
    let bearer = format!("Bearer {writer}");
    let headers = [("authorization", bearer.as_str()), ("if-match", tag.as_str())];
    let pause = format!("{path}/pause");
    assert_eq!(server.send("POST", &pause, &headers, &Value::Null).await.status, 200);
    let new = json!({ "description": "new" });
    assert_eq!(server.call(&writer, "PATCH", path, new).await.status, 200);
    for word in ["pause", "resume"] {
        let to = format!("{path}/{word}");
        let stale = server.send("POST", &to, &headers, &Value::Null).await;
        assert_eq!((stale.status.as_u16(), stale.code()), (412, "control.stale"), "{word}");
    }
    let found = server.call(&writer, "GET", "/v1/orgs/1/schedules", Value::Null).await;
    assert_eq!(found.body["pauses"].as_array().unwrap().len(), 1, "{}", found.body);
}

#[tokio::test]
async fn orgs_take_their_templates_limits_but_for_their_own() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let own = json!({ "limits": { "runs": 5 } });
    assert_eq!(server.call(&operator, "PATCH", "/v1/orgs/2", own).await.status, 200);
    let limits = json!({ "limits": { "runs": 2, "rows_per_day": 10, "memory_mb": 64 } });
    let template = "/v1/templates/crm";
    let dry = format!("{template}?dry_run=true");
    let plan = server.call(&operator, "PATCH", &dry, limits.clone()).await.body["plan"].clone();
    let told = (&plan["orgs"], &plan["orgs_limited"], &plan["orgs_changed"]);
    assert_eq!(told, (&json!(2), &json!(2), &json!(0)), "{plan}");
    let made = server.call(&operator, "PATCH", template, limits).await;
    assert_eq!(made.body["template"]["limits"]["rows_per_day"], 10, "{}", made.body);
    let new = json!({ "id": "3", "template": "crm" });
    assert_eq!(server.call(&operator, "POST", "/v1/orgs", new).await.status, 201);
    for (org, runs) in [("1", 2), ("2", 5), ("3", 2)] {
        let path = format!("/v1/orgs/{org}");
        let found = server.call(&operator, "GET", &path, Value::Null).await.body;
        let limits = &found["limits"];
        assert_eq!(
            (&limits["runs"], &limits["rows_per_day"]),
            (&json!(runs), &json!(10)),
            "{found}"
        );
        let used = server.call(&operator, "GET", &format!("{path}/usage"), Value::Null).await.body;
        assert_eq!(used["limits"]["rows_left"], 10, "{used}");
        assert_eq!(used["now"]["memory_mb_max"], 64, "{used}");
    }
    for bad in [json!({ "runs": 0 }), json!({ "rums": 1 }), json!(7)] {
        let body = json!({ "limits": bad });
        let refused = server.call(&operator, "PATCH", template, body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"), "{bad}");
    }
    let none = server.call(&operator, "PATCH", template, json!({ "limits": null })).await;
    assert_eq!(none.body["template"]["limits"], Value::Null, "{}", none.body);
    let one = server.call(&operator, "GET", "/v1/orgs/1", Value::Null).await.body;
    assert_eq!(one["limits"]["runs"], Value::Null, "{one}");
}

#[tokio::test]
async fn what_a_source_offers_comes_with_advice() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let offered = server.call(&operator, "GET", "/v1/sources/files/tables", Value::Null).await;
    let table = &offered.body[0];
    assert_eq!(table["cursors"], json!([]), "files have none: {}", offered.body);
    assert!(table.get("partition").is_some(), "{}", offered.body);
}

#[tokio::test]
async fn a_table_that_nothing_was_done_to_has_no_maintenance() {
    let server = Server::new().await;
    let reader = server.key(Role::Reader, &["1"]).await;
    let path = "/v1/orgs/1/tables/opportunity/maintenance";
    let found = server.call(&reader, "GET", path, Value::Null).await;
    assert_eq!(found.status, StatusCode::OK, "{}", found.body);
    assert_eq!(found.body, json!({ "items": [], "next_cursor": null }));
    let bad = server.call(&reader, "GET", &format!("{path}?cursor=eA"), Value::Null).await;
    assert_eq!((bad.status.as_u16(), bad.code()), (400, "spec.invalid"));
}
