//! A template of the store that cannot be read: its orgs stop, and no others.

use super::*;

const NEWER: [&str; 2] = ["declared", "adjusted"];

/// Two templates with an org each, of which one cannot be read.
async fn broken(layer: &str) -> (Control, Declared) {
    let control = Control::new().await;
    let orgs = json!([{ "id": "1", "template": "crm" }, { "id": "2", "template": "other" }]);
    let mut files = declared(&["a"], &orgs);
    files.templates.insert("other".to_owned(), files.templates["crm"].clone());
    control.settle(&files).await;
    let sql = format!(
        "UPDATE polder_desired SET {layer} = '{{\"tables\":7}}' \
         WHERE kind = 'template' AND id = 'other'"
    );
    sqlx::query(&sql).execute(control.store.pool()).await.expect("broken");
    (control, files)
}

#[tokio::test]
async fn others_go_on_and_are_changed() {
    for layer in NEWER {
        let (control, mut files) = broken(layer).await;
        // The files say nothing of it, as where the API made it.
        files.templates.remove("other");
        files.orgs.remove("2");
        files.templates.get_mut("crm").expect("crm").tables[0].key = vec!["new".to_owned()];
        let settled = control.settle(&files).await;
        assert_eq!(names(&settled.pipelines), ["1/a"], "{layer}");
        assert_eq!(settled.pipelines[0].tables[0].key, ["new"], "{layer}");
        let said: Vec<String> = settled.left.iter().map(Left::sentence).collect();
        assert_eq!(said.len(), 1, "{layer}: {said:?}");
        assert!(said[0].contains("org 2: template \"other\" cannot be read"), "{said:?}");
        let plan = control.plan(&files, &LakeFacts::new()).await;
        assert_eq!((plan.orgs_unreadable[0].org.as_str(), plan.tables.len()), ("2", 0), "{layer}");
        // Nobody knows what it would lose, so it stays as it is.
        apply(&control.store, &plan, &Control::author()).await.expect("applied");
        let org = Principal::Operator.authorize(&"2".parse().expect("id")).expect("org");
        assert!(super::super::org(&control.store, &org).await.expect("asked").is_some());
        let layer = OrgLayer { name: Some("One".to_owned()), ..OrgLayer::default() };
        control.change("1", |_| Ok(layer.clone())).await.expect("another org");
        let refused = control.change("2", |_| Ok(layer)).await.expect_err("its template");
        assert_eq!(refused.code(), ErrorCode::SpecInvalid);
        patch(&control, "crm", json!({ "tables": { "a": { "key": ["x"] } } })).await.expect("crm");
    }
}

#[tokio::test]
async fn it_is_mended_by_the_files_or_by_the_api() {
    let (control, files) = broken("declared").await;
    let settled = control.settle(&files).await;
    assert_eq!(names(&settled.pipelines), ["1/a", "2/a"], "the files say it anew");
    for layer in NEWER {
        let (control, files) = broken(layer).await;
        let change = json!({ "schedule": null });
        let refused = patch(&control, "other", change).await.expect_err("half of it");
        assert_eq!(refused.code(), ErrorCode::SpecInvalid, "{layer}");
        let spec = files.templates["crm"].clone();
        let plan = planned(&control, "other", |now| {
            assert!(now.is_none());
            Ok(spec.clone())
        });
        let plan = plan.await.expect("planned");
        assert!(!plan.new && plan.orgs == 1 && plan.destructive == 0, "{layer}: {plan:?}");
        apply_template(&control.store, &plan, &Control::author()).await.expect("given anew");
        let mut without = files.clone();
        without.templates.remove("other");
        assert_eq!(names(&control.settle(&without).await.pipelines), ["1/a", "2/a"], "{layer}");
    }
}

/// What it kept before is not known: a first retention takes rows away.
#[tokio::test]
async fn mending_it_with_a_retention_needs_a_yes_and_holds_nobody_else_back() {
    let (control, mut files) = broken("declared").await;
    let keep = json!({ "column": "created_at", "keep": "6 months" });
    let other = files.templates.get_mut("other").expect("other");
    other.tables[0].retention = Some(serde_json::from_value(keep).expect("retention"));
    files.templates.get_mut("crm").expect("crm").tables[0].key = vec!["new".to_owned()];
    let settled = control.settle(&files).await;
    assert_eq!(names(&settled.pipelines), ["1/a"]);
    assert_eq!(settled.pipelines[0].tables[0].key, ["new"], "of another template");
    assert!(settled.left.iter().any(|left| left.org == "2" && !left.goes.is_empty()));
    let plan = control.plan(&files, &LakeFacts::new()).await;
    assert_eq!(plan.destructive, 1);
    apply(&control.store, &plan, &Control::author()).await.expect("applied");
    assert_eq!(names(&control.settle(&files).await.pipelines), ["1/a", "2/a"]);
}

/// Two orgs, of which nobody can read a layer of the second.
async fn broken_org(layer: &str, text: &str) -> (Control, Declared) {
    let control = Control::new().await;
    let orgs = json!([{ "id": "1", "template": "crm" }, { "id": "2", "template": "crm" }]);
    let files = declared(&["a"], &orgs);
    control.settle(&files).await;
    let sql = format!("UPDATE polder_desired SET {layer} = $1 WHERE kind = 'org' AND id = '2'");
    let broken = sqlx::query(&sql).bind(text).execute(control.store.pool()).await;
    assert_eq!(broken.expect("broken").rows_affected(), 1);
    (control, files)
}

/// What a change of an org does that is there.
fn there(now: &Current<'_>) -> Result<OrgLayer> {
    let none = || Error::new(ErrorCode::ControlNotFound, "there is no such org");
    now.org.map(|_| now.layer()).ok_or_else(none)
}

#[tokio::test]
async fn an_org_that_cannot_be_read_stops_alone_and_stays_as_it_is() {
    for (layer, text) in
        NEWER.into_iter().flat_map(|layer| [(layer, "{"), (layer, "{\"tables\":7}")])
    {
        let (control, mut files) = broken_org(layer, text).await;
        // The files say nothing of it, as where the API made it.
        files.orgs.remove("2");
        files.templates.get_mut("crm").expect("crm").tables[0].key = vec!["new".to_owned()];
        let settled = control.settle(&files).await;
        assert_eq!(names(&settled.pipelines), ["1/a"], "{layer} {text}");
        assert_eq!(settled.pipelines[0].tables[0].key, ["new"], "{layer} {text}");
        let said: Vec<String> = settled.left.iter().map(Left::sentence).collect();
        assert_eq!(said.len(), 1, "{layer} {text}: {said:?}");
        for part in ["org 2: what the store has of the org cannot be read: ", "POST /v1/orgs"] {
            assert!(said[0].contains(part), "{said:?}");
        }
        assert_eq!(said[0].contains("polder apply"), layer == "declared", "{said:?}");
        let plan = control.plan(&files, &LakeFacts::new()).await;
        assert_eq!((plan.orgs_unreadable[0].org.as_str(), plan.tables.len()), ("2", 0), "{layer}");
        assert!(plan.is_empty(), "{layer} {text}");
        let change = json!({ "tables": { "a": { "key": ["x"] } } });
        patch(&control, "crm", change).await.expect("its template");
        control.change("1", |now| there(&now)).await.expect("another org");
        let refused = control.change("2", |now| there(&now)).await.expect_err("the org");
        assert_eq!(refused.code(), ErrorCode::SpecInvalid, "{layer} {text}");
        assert!(refused.hint_text().is_some_and(|hint| hint.contains("POST /v1/orgs")));
        let sql = format!("SELECT {layer} AS kept FROM polder_desired WHERE id = '2'");
        let row = sqlx::query(&sql).fetch_one(control.store.pool()).await.expect("row");
        let kept: String = sqlx::Row::try_get(&row, "kept").expect("text");
        assert_eq!(kept, text, "{layer}");
    }
}

#[tokio::test]
async fn an_org_is_mended_by_the_files_or_by_the_api() {
    let (control, files) = broken_org("declared", "{").await;
    let settled = control.settle(&files).await;
    assert_eq!(names(&settled.pipelines), ["1/a", "2/a"], "the files say it anew");
    assert!(settled.left.is_empty());
    // They do not say what the API has said.
    let (control, files) = broken_org("adjusted", "{").await;
    let settled = control.settle(&files).await;
    assert_eq!((names(&settled.pipelines), settled.left.len()), (vec!["1/a".to_owned()], 1));
    for layer in NEWER {
        let (control, mut files) = broken_org(layer, "{").await;
        let new = OrgLayer { template: Some("crm".to_owned()), ..OrgLayer::default() };
        let given = control.change("2", |now| {
            assert!(now.org.is_none());
            Ok(new)
        });
        given.await.expect("given anew");
        files.orgs.remove("2");
        let settled = control.settle(&files).await;
        assert_eq!(names(&settled.pipelines), ["1/a", "2/a"], "{layer}");
        assert!(settled.left.is_empty(), "{layer}");
        assert!(control.plan(&files, &LakeFacts::new()).await.orgs_unreadable.is_empty());
    }
}

/// As of a template: what it kept before is not known.
#[tokio::test]
async fn mending_an_org_with_a_retention_needs_a_yes_and_holds_nobody_else_back() {
    let (control, _) = broken_org("declared", "{").await;
    let keep = json!({ "a": { "retention": { "column": "created_at", "keep": "6 months" } } });
    let orgs = json!([{ "id": "1", "template": "crm" },
                      { "id": "2", "template": "crm", "overrides": keep }]);
    let mut files = declared(&["a"], &orgs);
    files.templates.get_mut("crm").expect("crm").tables[0].key = vec!["new".to_owned()];
    let settled = control.settle(&files).await;
    assert_eq!(names(&settled.pipelines), ["1/a"]);
    assert_eq!(settled.pipelines[0].tables[0].key, ["new"], "of the template that both take");
    assert!(settled.left.iter().any(|left| left.org == "2" && !left.goes.is_empty()));
    let org = Principal::Operator.authorize(&"2".parse().expect("id")).expect("org");
    let author = Control::author();
    let (process, store) = (&control.process, &control.store);
    let unsure = Change { process, author: &author, dry_run: false, yes: false };
    let own = OrgLayer { template: Some("crm".to_owned()), ..layer(keep) };
    let refused = change(store, &org, unsure, |_| Ok(own)).await.expect_err("rows go");
    assert_eq!(refused.code(), ErrorCode::ControlConflict);
    let plan = control.plan(&files, &LakeFacts::new()).await;
    assert_eq!(plan.destructive, 1);
    apply(&control.store, &plan, &Control::author()).await.expect("applied");
    assert_eq!(names(&control.settle(&files).await.pipelines), ["1/a", "2/a"]);
}
