//! Groups of a template's tables, which orgs switch on and off.

use super::*;

/// A template of four tables, two of them in a group that is off unless an org says otherwise.
fn files(orgs: &Value) -> Declared {
    let mut files = declared(&["account", "lead", "case", "comment"], orgs);
    let groups = json!({
        "sales": { "tables": ["lead"] },
        "support": { "description": "Of the help desk", "tables": ["case", "comment"],
                     "enabled": false },
    });
    let crm = files.templates.get_mut("crm").expect("crm");
    crm.groups = serde_json::from_value(groups).expect("groups");
    files
}

fn three(second: &Value) -> Declared {
    files(&json!([
        { "id": "1", "template": "crm" },
        { "id": "2", "template": "crm", "groups": second },
        { "id": "3", "template": "crm", "groups": { "support": true },
          "overrides": { "comment": { "enabled": false } } },
    ]))
}

fn switch(groups: Value) -> OrgLayer {
    OrgLayer { groups: serde_json::from_value(groups).expect("groups"), ..OrgLayer::default() }
}

#[tokio::test]
async fn orgs_switch_groups_on_and_off_by_either_door() {
    let control = Control::new().await;
    let settled = control.settle(&three(&json!({ "support": true, "sales": false }))).await;
    let expect = [
        "1/account",
        "1/lead",
        "2/account",
        "2/case",
        "2/comment",
        "3/account",
        "3/lead",
        "3/case",
    ];
    assert_eq!(names(&settled.pipelines), expect, "an org's word on a table is nearer");
    let changed = control.change("1", |_| Ok(switch(json!({ "support": true })))).await;
    let changed = changed.expect("switched");
    let on = |name: &str, on: bool| (name.to_owned(), on);
    assert_eq!(changed.groups, BTreeMap::from([on("sales", true), on("support", true)]));
    assert_eq!(changed.pipeline().tables.len(), 4);
    // The API's word over the files', and a table's own over its group's.
    let patch = json!({ "case": { "enabled": true } });
    let both = OrgLayer { groups: switch(json!({ "support": false })).groups, ..layer(patch) };
    let changed = control.change("2", |_| Ok(both)).await.expect("switched");
    let tables = changed.pipeline().tables;
    let on: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(on, ["account", "case"]);
    // A group of another template is of no account.
    control.change("1", |_| Ok(switch(json!({ "support": true, "nope": true })))).await.expect("1");
}

#[tokio::test]
async fn a_plan_says_what_a_switched_group_does_and_nothing_of_it_is_destructive() {
    let control = Control::new().await;
    control.settle(&three(&json!({}))).await;
    let next = three(&json!({ "support": true, "sales": false }));
    let plan = control.plan(&next, &LakeFacts::new()).await;
    let said: Vec<_> =
        plan.tables.iter().map(|t| (t.org.as_str(), t.table.as_str(), t.action)).collect();
    let switched = |table| ("2", table, Action::Switch);
    assert_eq!(said, ["lead", "case", "comment"].map(switched));
    assert!(plan.tables.iter().all(|table| table.settings == ["enabled"]));
    assert_eq!(plan.destructive, 0);
    // Of a template: every org that says nothing of the group.
    let on = json!({ "groups": { "support": { "enabled": true } } });
    let plan = patch(&control, "crm", on).await.expect("changed");
    assert_eq!((plan.actions.switch, plan.orgs_changed), (4, 2));
    let crm = templates(&control).await["crm"].groups.clone();
    assert!(crm["support"].enabled && crm["support"].description.is_some(), "{crm:?}");
    let gone = json!({ "groups": { "support": null } });
    patch(&control, "crm", gone).await.expect("taken out");
    assert_eq!(templates(&control).await["crm"].groups.len(), 1);
    let back = patch(&control, "crm", json!({ "groups": null })).await.expect("none");
    assert!(back.adjusted && back.spec.groups.is_empty());
}

#[tokio::test]
async fn groups_name_tables_of_their_template_each_once() {
    let control = Control::new().await;
    control.settle(&three(&json!({}))).await;
    for (groups, code) in [
        (json!({ "x": { "tables": ["nope"] } }), ErrorCode::SpecUnknownName),
        (json!({ "x": { "tables": ["lead"] } }), ErrorCode::SpecInvalid),
        (json!({ "x": { "tables": ["account", "account"] } }), ErrorCode::SpecInvalid),
        (json!({ "x": { "enabled": true } }), ErrorCode::SpecInvalid),
        (json!({ "x": { "tables": [], "on": true } }), ErrorCode::SpecInvalid),
    ] {
        let refused = patch(&control, "crm", json!({ "groups": groups })).await;
        assert_eq!(refused.expect_err("refused").code(), code, "{groups}");
    }
    let refused = patch(&control, "crm", json!({ "tables": { "case": null } })).await;
    assert_eq!(refused.expect_err("in a group").code(), ErrorCode::SpecUnknownName);
}

/// What files drop is not run; if it was off before, nobody begins to run it.
#[tokio::test]
async fn a_dropped_table_of_a_group_that_is_off_stays_off() {
    let control = Control::new().await;
    let orgs = json!([{ "id": "1", "template": "crm" }]);
    control.settle(&files(&orgs)).await;
    control.settle(&declared(&["account"], &orgs)).await;
    let org = Principal::Operator.authorize(&"1".parse().expect("id")).expect("org");
    let (document, templates) =
        super::super::org(&control.store, &org).await.expect("asked").expect("there");
    let effective = effective(&control.process, &templates, org.get(), &document).expect("org");
    let tables = effective.pipeline().tables;
    let on: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(on, ["account", "lead"]);
}
