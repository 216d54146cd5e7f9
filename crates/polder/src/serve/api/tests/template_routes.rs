//! Templates changed through the API, and what an org's own routes say of schedules.

use super::*;

const CRM: &str = "/v1/templates/crm";

async fn with(server: &Server, key: &str, request: (&str, &str), header: (&str, &str)) -> Answer {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), header];
    let body = json!({ "tables": [] });
    server.send(request.0, request.1, &headers, &body).await
}

#[tokio::test]
async fn a_template_is_read_by_those_whose_orgs_take_it() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    for (id, template) in [("9", json!(null)), ("8", json!("other"))] {
        let body = json!({ "tables": [] });
        server.call(&operator, "PUT", "/v1/templates/other", body).await;
        let new = json!({ "id": id, "template": template });
        assert_eq!(server.call(&operator, "POST", "/v1/orgs", new).await.status, 201);
    }
    let cases: [(&[&str], &[&str]); 3] =
        [(&["1"], &["crm"]), (&["9"], &[]), (&["1", "8"], &["crm", "other"])];
    for (orgs, expect) in cases {
        let reader = server.key(Role::Reader, orgs).await;
        let seen = server.call(&reader, "GET", "/v1/templates", Value::Null).await;
        let items = seen.body["items"].as_array().unwrap();
        let names: Vec<_> = items.iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, expect, "{orgs:?}");
        for name in ["crm", "other", "none"] {
            let path = format!("/v1/templates/{name}");
            let found = server.call(&reader, "GET", &path, Value::Null).await;
            let expect = if names.contains(&name) { 200 } else { 404 };
            assert_eq!(found.status.as_u16(), expect, "{orgs:?} {name}");
        }
    }
    let found = server.call(&operator, "GET", CRM, Value::Null).await;
    assert_eq!((&found.body["declared"], &found.body["adjusted"]), (&json!(true), &json!(false)));
    assert_eq!(found.body["tables"][1]["name"], "account");
    let pages = server.call(&operator, "GET", "/v1/templates?limit=1", Value::Null).await;
    let next = pages.body["next_cursor"].as_str().unwrap();
    let rest = format!("/v1/templates?cursor={next}");
    let rest = server.call(&operator, "GET", &rest, Value::Null).await;
    assert_eq!(
        (&rest.body["items"][0]["name"], &rest.body["next_cursor"]),
        (&json!("other"), &Value::Null)
    );
}

#[tokio::test]
async fn a_change_is_seen_before_it_is_made_and_reaches_every_org() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let first = server.call(&operator, "GET", CRM, Value::Null).await;
    let patch = json!({ "tables": { "account": { "description": "Who buys" } } });
    let tried = format!("{CRM}?dry_run=true");
    let dry = server.call(&operator, "PATCH", &tried, patch.clone()).await;
    assert_eq!((dry.status.as_u16(), &dry.body["dry_run"]), (200, &json!(true)), "{}", dry.body);
    let plan = &dry.body["plan"];
    assert_eq!(
        (&plan["orgs"], &plan["orgs_changed"], &plan["change"]),
        (&json!(2), &json!(2), &json!(2))
    );
    assert_eq!((&plan["destructive"], &plan["examples"][0]["org"]), (&json!(0), &json!("1")));
    assert_eq!(plan["examples"][0]["settings"], json!(["description"]));
    let still = server.call(&operator, "GET", CRM, Value::Null).await;
    assert_eq!(still.header("etag"), first.header("etag"));
    let hash = plan["hash"].as_str().unwrap();
    // Others' changes that touch nothing of it leave the plan as it is.
    let new = json!({ "id": "77" });
    assert_eq!(server.call(&operator, "POST", "/v1/orgs", new).await.status, 201);
    let planned = format!("{CRM}?plan={}", &hash[..12]);
    let made = server.call(&operator, "PATCH", &planned, patch).await;
    assert_eq!(
        (made.status.as_u16(), &made.body["plan"]["hash"]),
        (200, &json!(hash)),
        "{}",
        made.body
    );
    assert_eq!(made.body["template"]["adjusted"], true);
    for org in ["1", "2"] {
        let of_org = format!("/v1/orgs/{org}/tables/account");
        let table = server.call(&operator, "GET", &of_org, Value::Null).await;
        assert_eq!(table.body["spec"]["description"], "Who buys");
    }
    let stale = with(&server, &operator, ("PUT", CRM), ("if-match", first.header("etag"))).await;
    assert_eq!((stale.status.as_u16(), stale.code()), (412, "control.stale"));
    let states = server.call(&operator, "GET", &format!("{CRM}/history"), Value::Null).await;
    let states = states.body["items"].as_array().unwrap();
    assert!(states.last().unwrap()["who"].as_str().unwrap().starts_with("key:plk_"), "{states:?}");
    let log = audit::newest(&server.store, 100).await.unwrap();
    let said =
        log.iter().rfind(|entry| entry.action.starts_with("PATCH") && entry.outcome == "done");
    let said = said.unwrap().detail.as_deref().unwrap();
    assert!(said.contains(&hash[..12]) && said.contains("2 of 2 orgs"), "{said}");
    // What the files say is theirs again.
    let mut back = first.body.clone();
    back.as_object_mut().unwrap().retain(|name, _| name == "tables");
    let back = server.call(&operator, "PUT", CRM, back).await;
    assert_eq!((back.status.as_u16(), &back.body["template"]["adjusted"]), (200, &json!(false)));
    assert_eq!(back.header("etag"), first.header("etag"));
}

#[tokio::test]
async fn what_takes_tables_away_needs_a_yes_and_the_plan_that_was_seen() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let patch = json!({ "tables": { "account": null } });
    let send = async |query: &str| {
        server.call(&operator, "PATCH", &format!("{CRM}{query}"), patch.clone()).await
    };
    let dry = send("?dry_run=true").await;
    assert_eq!(
        (&dry.body["plan"]["drop"], &dry.body["plan"]["destructive"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(dry.body["plan"]["examples"][0]["destructive"], true);
    let refused = send("").await;
    assert_eq!((refused.status.as_u16(), refused.code()), (409, "control.conflict"));
    assert!(refused.body["hint"].as_str().unwrap().contains("yes=true"), "{}", refused.body);
    for (query, status) in [
        ("?yes=true&plan=000000000000", 412),
        ("?yes=true&plan=0", 412),
        ("?yes=perhaps", 400),
        ("?sure=true", 400),
    ] {
        assert_eq!(send(query).await.status.as_u16(), status, "{query}");
    }
    let org = server.call(&operator, "GET", "/v1/orgs/1", Value::Null).await;
    assert_eq!(org.body["tables"], 2, "nothing was changed");
    let hash = dry.body["plan"]["hash"].as_str().unwrap();
    let made = send(&format!("?yes=true&plan={hash}")).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    let org = server.call(&operator, "GET", "/v1/orgs/1", Value::Null).await;
    assert_eq!(org.body["tables"], 1);
    assert_eq!(send("?yes=true").await.code(), "spec.unknown_name", "it is gone already");
}

#[tokio::test]
async fn a_template_is_made_once_and_taken_out_when_nobody_takes_it() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let path = "/v1/templates/small%20one";
    let none = with(&server, &operator, ("PUT", path), ("if-match", "*")).await;
    assert_eq!((none.status.as_u16(), none.code()), (412, "control.stale"));
    let made = with(&server, &operator, ("PUT", path), ("if-none-match", "*")).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.header("location"), path);
    let again = with(&server, &operator, ("PUT", path), ("if-none-match", "*")).await;
    assert_eq!(again.status, StatusCode::PRECONDITION_FAILED);
    let account = json!({ "name": "account", "source": "files", "from": "{org}/account*.csv" });
    let whole = json!({ "schedule": { "cron": "0 3 * * *" }, "tables": [account] });
    let changed = server.call(&operator, "PUT", path, whole).await;
    assert_eq!((changed.status.as_u16(), &changed.body["plan"]["orgs"]), (200, &json!(0)));
    let new = json!({ "id": "7", "template": "small one" });
    assert_eq!(server.call(&operator, "POST", "/v1/orgs", new).await.status, 201);
    let table = server.call(&operator, "GET", "/v1/orgs/7/tables/account", Value::Null).await;
    assert_eq!(table.body["spec"]["schedule"]["cron"], "0 3 * * *", "{}", table.body);
    for query in ["", "?dry_run=true"] {
        let used = server.call(&operator, "DELETE", &format!("{path}{query}"), Value::Null).await;
        assert_eq!((used.status.as_u16(), used.code()), (409, "control.conflict"));
        assert!(used.body["detail"].as_str().unwrap().contains("1 org takes"), "{}", used.body);
    }
    let files = server.call(&operator, "DELETE", CRM, Value::Null).await;
    assert!(files.body["detail"].as_str().unwrap().contains("2 orgs take"), "{}", files.body);
    let other = json!({ "template": "crm" });
    assert_eq!(server.call(&operator, "PATCH", "/v1/orgs/7", other).await.status, 200);
    let gone = server.call(&operator, "DELETE", path, Value::Null).await;
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.body);
    assert_eq!(server.call(&operator, "GET", path, Value::Null).await.status, 404);
    assert_eq!(server.call(&operator, "DELETE", path, Value::Null).await.status, 404);
    let states = server.call(&operator, "GET", &format!("{path}/history"), Value::Null).await;
    assert_eq!(states.body["items"].as_array().unwrap().len(), 3, "{}", states.body);
}

#[tokio::test]
async fn what_is_no_template_is_refused_with_a_hint() {
    let server = Server::new().await;
    let operator = server.key(Role::Operator, &[]).await;
    let table = |setting: &str, said: &str| {
        let mut table = json!({ "name": "t", "source": "files", "from": "{org}/t.csv" });
        table[setting] = json!(said);
        table
    };
    let twice = [table("name", "t"), table("name", "t")];
    for body in [
        json!({}),
        json!({ "tables": [table("source", "nope")] }),
        json!({ "tables": twice }),
        json!({ "tables": [table("mode", "merge")] }),
        json!({ "tables": [table("cursr", "x")] }),
        json!({ "tables": [], "schedule": { "cron": "61 * * * *" } }),
        json!({ "tables": [], "name": "x" }),
    ] {
        let refused = server.call(&operator, "PUT", "/v1/templates/new", body.clone()).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"), "{body}");
    }
    for body in [
        json!({ "tables": 1 }),
        json!({ "tables": { "lead": {} } }),
        json!({ "tables": { "lead": null } }),
        json!({ "tables": { "account": { "name": "other" } } }),
        json!({ "tables": { "account": 1 } }),
        json!({ "tables": { "account": { "source": null } } }),
        json!({ "name": "x" }),
        json!([]),
    ] {
        let refused = server.call(&operator, "PATCH", CRM, body.clone()).await;
        assert!(refused.code().starts_with("spec."), "{body}: {}", refused.body);
    }
    let none = server.call(&operator, "PATCH", "/v1/templates/none", json!({})).await;
    assert_eq!((none.status.as_u16(), none.code()), (404, "control.not_found"));
}

#[tokio::test]
async fn an_orgs_schedule_is_said_by_its_admin_and_given_back() {
    let server = Server::new().await;
    let (writer, admin) =
        (server.key(Role::Writer, &["1"]).await, server.key(Role::Admin, &["1"]).await);
    let schedule = json!({ "cron": "0 5 * * *", "catch_up": "skip", "overlap": "queue" });
    let body = json!({ "schedule": schedule });
    assert_eq!(server.call(&writer, "PATCH", "/v1/orgs/1", body.clone()).await.status, 403);
    let dry = server.call(&admin, "PATCH", "/v1/orgs/1?dry_run=true", body.clone()).await;
    assert_eq!(dry.body["schedule"]["cron"], "0 5 * * *", "{}", dry.body);
    let before = server.call(&admin, "GET", "/v1/orgs/1", Value::Null).await;
    assert_eq!(before.body["schedule"], Value::Null);
    let set = server.call(&admin, "PATCH", "/v1/orgs/1", body).await;
    assert_eq!(set.body["schedule"]["catch_up"], "skip", "{}", set.body);
    assert_ne!(set.header("etag"), before.header("etag"));
    let own = json!({ "schedule": { "cron": "7 * * * *" } });
    server.call(&writer, "PATCH", "/v1/orgs/1/tables/account", own).await;
    for (table, cron) in [("opportunity", "0 5 * * *"), ("account", "7 * * * *")] {
        let path = format!("/v1/orgs/1/tables/{table}");
        let found = server.call(&writer, "GET", &path, Value::Null).await;
        assert_eq!(found.body["spec"]["schedule"]["cron"], cron);
    }
    let other = server.key(Role::Reader, &["2"]).await;
    let other = server.call(&other, "GET", "/v1/orgs/2/tables/opportunity", Value::Null).await;
    assert!(other.body["spec"]["schedule"].is_null(), "an org's own");
    let back = server.call(&admin, "PATCH", "/v1/orgs/1", json!({ "schedule": null })).await;
    assert_eq!(back.body["schedule"], Value::Null);
    for bad in [json!({ "cron": "x" }), json!({ "every": "day" }), json!("@daily")] {
        let body = json!({ "schedule": bad });
        let refused = server.call(&admin, "PATCH", "/v1/orgs/1", body).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, "spec.invalid"));
    }
    // The rest of an org is the operator's.
    let limits = json!({ "schedule": { "cron": "@daily" }, "limits": { "runs": 9 } });
    assert_eq!(server.call(&admin, "PATCH", "/v1/orgs/1", limits).await.status, 403);
}
