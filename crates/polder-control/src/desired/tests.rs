//! Two doors, one state.

mod groups;
mod undo;
mod unreadable;

use polder_core::spec::RetentionSpec;
use polder_core::{Error, ErrorCode, Principal};
use serde_json::json;

use super::*;
use crate::churn::{self, Notice};
use crate::store::Store;

const TABLE: &str = r#"{ "name": "opportunity", "source": "revdb", "from": "public.opportunity",
    "filter": "org_id = {org}", "mode": "append", "cursor": "updated_at", "key": ["id"] }"#;

fn process() -> ProcessConfig {
    serde_json::from_value(json!({
        "lake": { "warehouse": "./lake", "catalog": "sqlite://./c.db" },
        "store": { "url": "sqlite://./c.db" },
        "sources": { "revdb": { "type": "postgres", "url": "env:REVDB_URL" } },
    }))
    .expect("process")
}

fn table(name: &str) -> Value {
    let mut table: Value = serde_json::from_str(TABLE).expect("table");
    table["name"] = json!(name);
    table
}

fn declared(tables: &[&str], orgs: &Value) -> Declared {
    let tables: Vec<Value> = tables.iter().map(|name| table(name)).collect();
    let templates = json!({ "crm": { "tables": tables } });
    let orgs: Vec<OrgSpec> = serde_json::from_value(orgs.clone()).expect("orgs");
    Declared {
        templates: serde_json::from_value(templates).expect("templates"),
        orgs: orgs.into_iter().map(|org| (org.id.clone(), org)).collect(),
    }
}

/// What commands see of the state after the files were looked at.
struct Settled {
    pipelines: Vec<OrgPipeline>,
    left: Vec<Left>,
}

struct Control {
    store: Store,
    process: ProcessConfig,
    _folder: tempfile::TempDir,
}

impl Control {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        let store = Store::open(&url).await.expect("store");
        Self { store, process: process(), _folder: folder }
    }

    /// One in which nothing can be taken back.
    async fn at_once() -> Self {
        let mut control = Self::new().await;
        control.process.governance.undo = Some("0s".to_owned());
        control
    }

    fn author() -> Author {
        Author { who: "test".to_owned(), why: Some("because".to_owned()) }
    }

    async fn desired(&self) -> Desired {
        load(&self.store, &Principal::Operator).await.expect("desired")
    }

    async fn plan(&self, declared: &Declared, lake: &LakeFacts) -> Plan {
        plan(&self.process, &self.desired().await, declared, lake).expect("plan")
    }

    async fn settle(&self, declared: &Declared) -> Settled {
        let author = Self::author();
        let now = settle(&self.store, &self.process, declared, &author).await.expect("settled");
        Settled {
            pipelines: look(&self.process, &now, declared).expect("pipelines"),
            left: left(&self.process, &now, declared).expect("what is left"),
        }
    }

    async fn change(
        &self,
        id: &str,
        decide: impl FnOnce(Current<'_>) -> Result<OrgLayer>,
    ) -> Result<EffectiveOrg> {
        let org = Principal::Operator.authorize(&id.parse()?)?;
        let author = Self::author();
        let what = Change { process: &self.process, author: &author, dry_run: false, yes: true };
        change(&self.store, &org, what, decide).await
    }
}

fn names(pipelines: &[OrgPipeline]) -> Vec<String> {
    let tables = pipelines.iter().flat_map(|p| p.tables.iter().map(move |t| (&p.org, &t.name)));
    tables.map(|(org, table)| format!("{org}/{table}")).collect()
}

fn layer(tables: Value) -> OrgLayer {
    OrgLayer { tables: serde_json::from_value(tables).expect("tables"), ..OrgLayer::default() }
}

#[tokio::test]
async fn both_doors_lead_to_one_state() {
    let control = Control::new().await;
    let files = declared(&["account", "opportunity"], &json!([{ "id": "401", "template": "crm" }]));
    let settled = control.settle(&files).await;
    assert_eq!(names(&settled.pipelines), ["401/account", "401/opportunity"]);
    let new = OrgLayer { template: Some("crm".to_owned()), ..OrgLayer::default() };
    let added = control.change("402", |now| {
        assert!(now.org.is_none());
        Ok(new)
    });
    added.await.expect("org");
    let own = table("lead");
    let patch = json!({ "opportunity": { "key": ["a"] }, "account": null, "lead": own });
    control.change("401", |_| Ok(layer(patch))).await.expect("tables");
    let settled = control.settle(&files).await;
    assert_eq!(
        names(&settled.pipelines),
        ["401/opportunity", "401/lead", "402/account", "402/opportunity"],
    );
    assert_eq!(settled.pipelines[0].tables[0].key, ["a"], "the API's word stays");
    assert!(settled.left.is_empty());
    // What the files say anew comes in below it.
    let mut changed = files.clone();
    let spec = &mut changed.templates.get_mut("crm").expect("crm").tables[1];
    spec.key = vec!["b".to_owned()];
    spec.cursor = Some("changed_at".to_owned());
    let settled = control.settle(&changed).await;
    let spec = &settled.pipelines[0].tables[0];
    assert_eq!((spec.key[0].as_str(), spec.cursor.as_deref()), ("a", Some("changed_at")));
    assert_eq!(settled.pipelines[1].tables[1].key, ["b"]);
}

#[tokio::test]
async fn what_files_drop_is_left_until_it_is_applied() {
    let control = Control::new().await;
    let orgs = json!([{ "id": "401", "template": "crm" }, { "id": "402", "template": "crm" }]);
    control.settle(&declared(&["account", "opportunity"], &orgs)).await;
    let fewer = declared(&["opportunity"], &json!([{ "id": "401", "template": "crm" }]));
    for _ in 0..2 {
        let settled = control.settle(&fewer).await;
        assert_eq!(names(&settled.pipelines), ["401/opportunity"], "it does not run");
        let left: Vec<_> =
            settled.left.iter().map(|left| format!("{}/{}", left.org, left.table)).collect();
        assert_eq!(left, ["401/account", "402/account", "402/opportunity"]);
    }
    let lake = LakeFacts::from([(("401".parse().expect("id"), "account".to_owned()), Some(7))]);
    let plan = control.plan(&fewer, &lake).await;
    assert_eq!((plan.destructive, plan.orgs_removed.as_slice()), (3, &["402".to_owned()][..]));
    let account = &plan.tables[0];
    assert_eq!((account.action, account.rows), (Action::Drop, Some(7)));
    apply(&control.store, &plan, &Control::author()).await.expect("applied");
    let settled = control.settle(&fewer).await;
    assert!(settled.left.is_empty());
    assert!(control.plan(&fewer, &lake).await.is_empty());
    let gone = Principal::Operator.authorize(&"402".parse().expect("id")).expect("org");
    assert!(org(&control.store, &gone).await.expect("asked").is_none());
    let states = history(&control.store, &gone, None, 100).await.expect("history");
    assert_eq!(states.len(), 2, "what it was is remembered");
    assert_eq!((states[0].who.as_str(), states[0].why.as_deref()), ("test", Some("because")));
}

/// Rows and states that the next maintenance would remove go like tables: when somebody says so.
#[tokio::test]
async fn what_files_tighten_is_left_until_it_is_applied() {
    let control = Control::at_once().await;
    let orgs = |overrides: Value| {
        json!([{ "id": "401", "template": "crm", "overrides": overrides },
               { "id": "402", "template": "crm" }])
    };
    let keep = |keep: &str| json!({ "column": "created_at", "keep": keep });
    let with = |overrides: Value, patch: &Value| {
        let mut files = declared(&["a", "b"], &orgs(overrides));
        let table = &mut files.templates.get_mut("crm").expect("crm").tables[0];
        let patched = merge_patch(serde_json::to_value(&*table).expect("json"), patch);
        *table = serde_json::from_value(patched).expect("spec");
        files
    };
    let own = json!({ "a": { "retention": keep("5 years") } });
    let before = with(
        own,
        &json!({ "retention": keep("12 months"), "maintenance": { "keep_versions": 5 } }),
    );
    control.settle(&before).await;
    let tighter = with(
        json!({}),
        &json!({
            "retention": keep("6 months"), "key": ["other"],
            "maintenance": { "keep_versions": 3, "target_file_mb": 64 },
        }),
    );
    for _ in 0..2 {
        let settled = control.settle(&tighter).await;
        let kept: Vec<_> = settled
            .pipelines
            .iter()
            .map(|pipeline| {
                let table = &pipeline.tables[0];
                let keep = table.retention.as_ref().expect("retention").keep.to_string();
                (keep, table.maintenance.keep_versions, table.key[0].clone())
            })
            .collect();
        let other = "other".to_owned();
        let expect = [("5 years".to_owned(), 5, other.clone()), ("12 months".to_owned(), 5, other)];
        assert_eq!(kept, expect, "what takes nothing away is applied");
        assert_eq!(settled.pipelines[0].tables[0].maintenance.target_file_mb, 64);
        assert_eq!(settled.left.len(), 2, "{:?}", settled.left);
        let said = settled.left[1].sentence();
        assert!(said.starts_with("402/a: retention: 12 months -> 6 months"), "{said}");
        assert!(said.contains("keep_versions: 5 -> 3"), "{said}");
        assert!(settled.left[0].goes[0].contains("5 years -> 6 months"), "{:?}", settled.left);
    }
    let plan = control.plan(&tighter, &LakeFacts::new()).await;
    assert_eq!(plan.destructive, 2);
    assert!(plan.tables.iter().all(|table| table.action == Action::Change && table.destructive));
    apply(&control.store, &plan, &Control::author()).await.expect("applied");
    let settled = control.settle(&tighter).await;
    assert!(settled.left.is_empty());
    let keep = settled.pipelines[0].tables[0].retention.as_ref().expect("retention").keep;
    assert_eq!(keep.to_string(), "6 months");
    // What keeps more takes nothing away.
    let looser = with(json!({}), &json!({ "maintenance": { "keep_versions": 9 } }));
    assert!(control.settle(&looser).await.left.is_empty());
    assert_eq!(control.plan(&looser, &LakeFacts::new()).await.tables.len(), 0);
}

/// Also where an org takes another template, and where a table of its own comes into the one it has.
#[tokio::test]
async fn what_tightens_by_way_of_templates_is_left_too() {
    let control = Control::at_once().await;
    let keep = json!({ "column": "created_at", "keep": "30 days" });
    let retention: Option<RetentionSpec> = serde_json::from_value(keep).expect("retention");
    let with_short = |mut files: Declared| {
        let mut short = files.templates["crm"].clone();
        for table in &mut short.tables {
            table.retention.clone_from(&retention);
        }
        files.templates.insert("short".to_owned(), short);
        files
    };
    let orgs = json!([{ "id": "401", "template": "crm" },
                      { "id": "402", "template": "crm", "tables": [table("own")] }]);
    control.settle(&with_short(declared(&["a"], &orgs))).await;
    let orgs = json!([{ "id": "401", "template": "short" }, { "id": "402", "template": "crm" }]);
    let mut after = with_short(declared(&["a", "own"], &orgs));
    after.templates.get_mut("crm").expect("crm").tables[1].retention.clone_from(&retention);
    for _ in 0..2 {
        let settled = control.settle(&after).await;
        let tables = settled.pipelines.iter().flat_map(|pipeline| &pipeline.tables);
        let tables: Vec<_> = tables.map(|table| (&table.name, &table.retention)).collect();
        assert_eq!(tables.len(), 3, "{tables:?}");
        assert!(tables.iter().all(|(_, retention)| retention.is_none()), "{tables:?}");
        let left: Vec<_> = settled.left.iter().map(|left| (&*left.org, &*left.table)).collect();
        assert_eq!(left, [("401", "a"), ("402", "own")]);
    }
    let plan = control.plan(&after, &LakeFacts::new()).await;
    assert_eq!(plan.destructive, 2);
    apply(&control.store, &plan, &Control::author()).await.expect("applied");
    let settled = control.settle(&after).await;
    assert!(settled.left.is_empty());
    let all = settled.pipelines.iter().flat_map(|pipeline| &pipeline.tables);
    assert_eq!(all.filter(|table| table.retention.is_some()).count(), 3);
}

#[tokio::test]
async fn what_was_applied_is_in_the_audit_log_whoever_did_it() {
    let control = Control::new().await;
    let files = declared(&["a"], &json!([{ "id": "401", "template": "crm" }]));
    control.settle(&files).await;
    control.settle(&files).await;
    let log = crate::audit::after(&control.store, 0, 10).await.expect("log");
    assert_eq!(log.len(), 1, "{log:?}");
    let said = (log[0].who.as_str(), log[0].action.as_str(), log[0].outcome.as_str());
    assert_eq!(said, ("test", "plan.apply", "done"));
    assert!(log[0].detail.as_deref().is_some_and(|text| text.ends_with(": because")), "{log:?}");
}

#[tokio::test]
async fn an_org_that_was_removed_leaves_no_hole_in_a_listing() {
    let control = Control::new().await;
    let orgs = |ids: &[&str]| -> Value {
        ids.iter().map(|id| json!({ "id": id, "template": "crm" })).collect()
    };
    control.settle(&declared(&["account"], &orgs(&["1", "2", "3", "4", "5"]))).await;
    let plan =
        control.plan(&declared(&["account"], &orgs(&["1", "3", "5"])), &LakeFacts::new()).await;
    apply(&control.store, &plan, &Control::author()).await.expect("applied");
    let member = |ids: &[&str]| Principal::Member {
        role: polder_core::Role::Reader,
        orgs: ids.iter().map(|id| id.parse().expect("id")).collect(),
    };
    let store = &control.store;
    let page = async |principal: &Principal, after: &str, limit| {
        let (found, templates) = super::orgs(store, principal, after, limit).await.expect("orgs");
        assert_eq!(templates.len(), 1);
        found.into_iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>()
    };
    let operator = Principal::Operator;
    assert_eq!(page(&operator, "", 2).await, ["1", "3"], "a full page");
    assert_eq!(page(&operator, "3", 2).await, ["5"]);
    let some = member(&["5", "2", "1", "9", "1"]);
    assert_eq!(page(&some, "", 1).await, ["1"]);
    assert_eq!(page(&some, "", 9).await, ["1", "5"]);
    assert_eq!(page(&some, "1", 9).await, ["5"]);
    assert_eq!(page(&Principal::Org("3".parse().expect("id")), "", 9).await, ["3"]);
    assert!(page(&member(&[]), "", 9).await.is_empty());
    // More than one statement takes.
    let many: Vec<String> = (0..1_200).map(|n| format!("a{n}")).chain(["5".to_owned()]).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(page(&member(&many), "", 9).await, ["5"]);
}

#[tokio::test]
async fn a_plan_says_what_becomes_of_tables_and_holds_for_one_state() {
    let control = Control::new().await;
    let orgs = json!([{ "id": "401", "template": "crm" }]);
    let files = declared(&["a", "b", "c"], &orgs);
    let first = control.plan(&files, &LakeFacts::new()).await;
    assert!(first.tables.iter().all(|table| table.action == Action::Create));
    assert_eq!(first.hash, control.plan(&files, &LakeFacts::new()).await.hash);
    apply(&control.store, &first, &Control::author()).await.expect("applied");
    let again = apply(&control.store, &first, &Control::author()).await.expect_err("older state");
    assert_eq!(again.code(), ErrorCode::ControlStale);
    let mut next = files.clone();
    let tables = &mut next.templates.get_mut("crm").expect("crm").tables;
    tables[0].cursor = Some("id".to_owned());
    tables[1].partition = vec!["month(created_at)".parse().expect("field")];
    tables[2].enabled = false;
    let lake = ["a", "b", "c"].map(|name| (("401".parse().expect("id"), name.to_owned()), Some(9)));
    let plan = control.plan(&next, &LakeFacts::from(lake)).await;
    let said: Vec<_> = plan
        .tables
        .iter()
        .map(|t| (t.table.as_str(), t.action, t.settings[0].as_str(), t.rows_to_read))
        .collect();
    assert_eq!(
        said,
        [
            ("a", Action::Rewrite, "cursor", Some(9)),
            ("b", Action::Change, "partition", None),
            ("c", Action::Switch, "enabled", None),
        ],
    );
    assert_eq!(plan.destructive, 0);
    control.change("401", |now| Ok(now.layer())).await.expect("changed in between");
    assert!(apply(&control.store, &plan, &Control::author()).await.is_err());
    assert_ne!(control.plan(&next, &LakeFacts::new()).await.hash, plan.hash);
}

/// Each is what the next run does: `TableSpec::reads` is what it compares with the table's checkpoint.
#[tokio::test]
async fn a_plan_says_of_every_change_that_reloads_a_table_that_it_does() {
    let cases = [
        ("append", json!({ "mode": "merge" }), Action::Rewrite),
        ("append", json!({ "mode": "full_refresh" }), Action::Rewrite),
        ("append", json!({ "key": ["other"] }), Action::Change),
        ("merge", json!({ "mode": "append" }), Action::Rewrite),
        ("merge", json!({ "key": ["other"] }), Action::Rewrite),
        ("merge", json!({ "deleted_at": "gone_at" }), Action::Rewrite),
        ("merge", json!({ "partition": ["month(created_at)"] }), Action::Change),
    ];
    for (mode, change, action) in cases {
        let control = Control::new().await;
        let orgs = json!([{ "id": "401", "template": "crm" }]);
        let mut files = declared(&["a"], &orgs);
        let set = |files: &mut Declared, patch: &Value| {
            let table = &mut files.templates.get_mut("crm").expect("crm").tables[0];
            let patched = merge_patch(serde_json::to_value(&*table).expect("json"), patch);
            *table = serde_json::from_value(patched).expect("spec");
        };
        set(&mut files, &json!({ "mode": mode }));
        control.settle(&files).await;
        set(&mut files, &change);
        let lake = LakeFacts::from([(("401".parse().expect("id"), "a".to_owned()), Some(9))]);
        let plan = control.plan(&files, &lake).await;
        assert_eq!(plan.tables[0].action, action, "{mode} {change}");
    }
}

#[tokio::test]
async fn a_setting_that_goes_is_a_change_as_one_that_comes() {
    let control = Control::new().await;
    let plain = declared(&["a"], &json!([{ "id": "401", "template": "crm" }]));
    let mut sorted = plain.clone();
    let tables = &mut sorted.templates.get_mut("crm").expect("crm").tables;
    tables[0].sort = Some(vec!["id desc".parse().expect("field")]);
    let first = control.plan(&plain, &LakeFacts::new()).await;
    apply(&control.store, &first, &Control::author()).await.expect("applied");
    let lake = LakeFacts::from([(("401".parse().expect("id"), "a".to_owned()), Some(9))]);
    for next in [&sorted, &plain] {
        let change = control.plan(next, &lake).await;
        let [table] = change.tables.as_slice() else { panic!("{:?}", change.tables) };
        assert_eq!(
            (table.action, table.settings.as_slice()),
            (Action::Change, &["sort".to_owned()][..])
        );
        assert_eq!((table.rows_to_read, change.destructive), (None, 0));
        apply(&control.store, &change, &Control::author()).await.expect("applied");
    }
}

#[tokio::test]
async fn a_change_sees_the_state_it_is_made_on_and_leaves_nothing_when_it_is_refused() {
    let control = Control::new().await;
    let made = control.change("1", |_| Ok(OrgLayer::default())).await.expect("made");
    let renamed = control.change("1", |now| {
        assert_eq!(now.org.expect("there").1, &made);
        Ok(OrgLayer { name: Some("Acme".to_owned()), ..now.layer() })
    });
    let next = renamed.await.expect("named");
    assert!(next.revision > made.revision);
    let stale = Error::new(ErrorCode::ControlStale, "changed");
    assert!(control.change("1", |_| Err(stale)).await.is_err());
    let bad = layer(json!({ "t": { "source": "nope", "from": "x" } }));
    let refused = control.change("1", |_| Ok(bad)).await.expect_err("no such source");
    assert_eq!(refused.code(), ErrorCode::SpecInvalid);
    assert_eq!(control.desired().await.revision, next.revision, "nothing came of it");
}

#[tokio::test]
async fn a_template_in_use_does_not_go() {
    let control = Control::new().await;
    control.settle(&declared(&["a"], &json!([]))).await;
    let org = OrgLayer { template: Some("crm".to_owned()), ..OrgLayer::default() };
    control.change("1", |_| Ok(org)).await.expect("org");
    let nothing = Declared::default();
    let desired = control.desired().await;
    let error = plan(&control.process, &desired, &nothing, &LakeFacts::new()).expect_err("in use");
    assert_eq!(error.code(), ErrorCode::SpecUnknownName);
    let settled = control.settle(&nothing).await;
    assert_eq!(names(&settled.pipelines), ["1/a"], "no folder of files: the API's orgs go on");
}

#[test]
fn patches_are_merged_as_rfc_7396_says() {
    let cases = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": "foo"}), json!(null), json!(null)),
        (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ];
    for (target, patch, expect) in cases {
        assert_eq!(merge_patch(target.clone(), &patch), expect, "{target} {patch}");
    }
    let (first, second) = (json!({"a": 1, "b": {"x": 1}}), json!({"a": null, "b": {"y": null}}));
    let both = patch_after(first.clone(), &second);
    for target in [json!({"b": {"y": 2}}), json!({"a": 0, "c": 3})] {
        let one_by_one = merge_patch(merge_patch(target.clone(), &first), &second);
        assert_eq!(merge_patch(target, &both), one_by_one);
    }
}

#[tokio::test]
async fn an_org_that_is_leaving_is_not_changed_any_more() {
    let control = Control::new().await;
    control.change("1", |_| Ok(OrgLayer::default())).await.expect("made");
    let org = Principal::Operator.authorize(&"1".parse().expect("id")).expect("org");
    let notice = Notice {
        event_id: "a".to_owned(),
        asked_by: "eve".to_owned(),
        via: "cli",
        reason: None,
        grace_ms: 1_000,
    };
    churn::ask(&control.store, &org, &notice).await.expect("leaving");
    let refused = control.change("1", |_| Ok(layer(json!({ "lead": table("lead") })))).await;
    assert_eq!(refused.expect_err("leaving").code(), ErrorCode::LakeFenced);
    assert!(names(&control.settle(&declared(&[], &json!([]))).await.pipelines).is_empty());
    control.change("2", |_| Ok(OrgLayer::default())).await.expect("another org");
}

/// Those that are gone take no place of a page, and whoever belongs to a few orgs gets those alone.
#[tokio::test]
async fn pages_of_orgs_end_where_the_orgs_do() {
    let control = Control::new().await;
    let orgs = |ids: &[&str]| -> Value { ids.iter().map(|id| json!({ "id": id })).collect() };
    let apply_files = async |ids: &[&str]| {
        let plan = control.plan(&declared(&["a"], &orgs(ids)), &LakeFacts::new()).await;
        apply(&control.store, &plan, &Control::author()).await.expect("applied");
    };
    apply_files(&["1", "2", "3", "4", "5", "6"][..]).await;
    apply_files(&["1", "3", "4", "6"][..]).await;
    let pages = async |principal: Principal| {
        let mut pages: Vec<Vec<String>> = Vec::new();
        let mut after = String::new();
        loop {
            let (found, _) =
                super::orgs(&control.store, &principal, &after, 2).await.expect("page");
            let Some((last, _)) = found.last() else { return pages };
            after = last.to_string();
            pages.push(found.iter().map(|(id, _)| id.to_string()).collect());
        }
    };
    assert_eq!(pages(Principal::Operator).await, [["1", "3"], ["4", "6"]]);
    let some = ["6", "2", "9", "1", "1", "4"].map(|id| id.parse::<OrgId>().expect("id"));
    let member = Principal::Member { role: polder_core::Role::Reader, orgs: some.to_vec() };
    assert_eq!(pages(member).await, [vec!["1", "4"], vec!["6"]]);
    assert_eq!(pages(Principal::Org("3".parse().expect("id"))).await, [["3"]]);
    assert!(pages(Principal::Org("2".parse().expect("id"))).await.is_empty());
}

/// An org's own word stays, with its history, when files are applied below it.
#[tokio::test]
async fn applying_files_leaves_the_adjusted_layer_where_it_is() {
    let control = Control::new().await;
    let own = OrgLayer { name: Some("Acme".to_owned()), ..OrgLayer::default() };
    control.change("1", |_| Ok(own)).await.expect("made");
    let files = declared(&["a"], &json!([{ "id": "1", "template": "crm" }]));
    let plan = control.plan(&files, &LakeFacts::new()).await;
    let applied = apply(&control.store, &plan, &Control::author()).await.expect("applied");
    let org = Principal::Operator.authorize(&"1".parse().expect("id")).expect("org");
    let (document, _) = super::org(&control.store, &org).await.expect("asked").expect("there");
    assert_eq!(document.revision, applied.revision);
    assert_eq!(document.declared.and_then(|org| org.template).as_deref(), Some("crm"));
    assert_eq!(document.adjusted.and_then(|layer| layer.name).as_deref(), Some("Acme"));
    let states = history(&control.store, &org, None, 100).await.expect("history");
    assert_eq!(states[1].adjusted.as_ref().expect("layer")["name"], "Acme");
    assert_eq!(states[1].declared.as_ref().expect("layer")["template"], "crm");
}

/// A change of a template, with its plan made as the API makes it.
async fn planned(
    control: &Control,
    name: &str,
    decide: impl Fn(Option<&TemplateSpec>) -> Result<TemplateSpec>,
) -> Result<TemplatePlan> {
    let (store, process) = (&control.store, &control.process);
    let operator = Principal::Operator;
    let mut change = TemplateChange::begin(store, &operator, process, name, decide).await?;
    let mut looked = 0;
    while let Some(orgs) = change.page(store).await? {
        assert!(orgs.len() <= 100, "a page at a time");
        for org in &orgs {
            change.take(org, &LakeFacts::new())?;
        }
        looked += orgs.len();
    }
    let plan = change.finish();
    assert!(plan.orgs_changed <= looked);
    Ok(plan)
}

async fn patch(control: &Control, name: &str, patch: Value) -> Result<TemplatePlan> {
    let Value::Object(patch) = patch else { panic!("an object") };
    let plan = planned(control, name, |now| {
        patch_template(name, now.ok_or_else(|| no_template(name))?, &patch)
    })
    .await?;
    apply_template(&control.store, &plan, &Control::author()).await?;
    Ok(plan)
}

async fn templates(control: &Control) -> Templates {
    control.desired().await.templates()
}

#[tokio::test]
async fn a_template_of_many_orgs_is_changed_in_pages_and_told_by_counts() {
    let control = Control::new().await;
    let org = |id: usize| json!({ "id": format!("o{id}"), "template": "crm" });
    let mut orgs: Vec<Value> = (0..250).map(org).collect();
    orgs.push(json!({ "id": "apart" }));
    control.settle(&declared(&["a", "b"], &json!(orgs))).await;
    let change = json!({ "tables": { "a": { "cursor": "changed_at" }, "b": null } });
    let plan = patch(&control, "crm", change).await.expect("changed");
    assert_eq!((plan.orgs, plan.orgs_changed, plan.destructive), (250, 250, 250));
    let expect = Actions { change: 250, drop: 250, ..Actions::default() };
    assert_eq!(plan.actions, expect);
    assert_eq!(plan.examples.len(), 20);
    assert!(plan.examples.iter().all(|table| table.destructive && table.table == "b"));
    let again = planned(&control, "crm", |now| Ok(now.cloned().unwrap_or_default())).await;
    let again = again.expect("planned");
    assert_eq!((again.orgs, again.orgs_changed), (250, 0));
    let before = control.desired().await.revision;
    apply_template(&control.store, &again, &Control::author()).await.expect("nothing to do");
    assert_eq!(control.desired().await.revision, before);
}

#[tokio::test]
async fn a_template_follows_the_files_where_the_api_said_nothing() {
    let control = Control::new().await;
    let orgs = json!([{ "id": "401", "template": "crm" }]);
    let files = declared(&["a", "b"], &orgs);
    control.settle(&files).await;
    let lead = table("lead");
    let change = json!({ "tables": { "a": { "key": ["x"] }, "b": null, "lead": lead } });
    patch(&control, "crm", change).await.expect("changed");
    let settled = control.settle(&files).await;
    assert_eq!(names(&settled.pipelines), ["401/a", "401/lead"], "applying again undoes nothing");
    assert!(settled.left.is_empty());
    let mut next = declared(&["a", "b", "c"], &orgs);
    next.templates.get_mut("crm").expect("crm").tables[0].cursor = Some("changed_at".to_owned());
    let settled = control.settle(&next).await;
    assert_eq!(names(&settled.pipelines), ["401/a", "401/c", "401/lead"]);
    let spec = &settled.pipelines[0].tables[0];
    assert_eq!((spec.key[0].as_str(), spec.cursor.as_deref()), ("x", Some("changed_at")));
    // What the files take away, they take away below the API's word.
    let plan = control.plan(&declared(&["b"], &orgs), &LakeFacts::new()).await;
    let gone: Vec<_> = plan.tables.iter().filter(|t| t.destructive).map(|t| &t.table).collect();
    assert_eq!(gone, ["a", "c"]);
    // Said to be what the files say, it is theirs again.
    let back = next.templates["crm"].clone();
    let plan = planned(&control, "crm", |_| Ok(back.clone())).await.expect("planned");
    assert!(!plan.adjusted && plan.declared);
    apply_template(&control.store, &plan, &Control::author()).await.expect("changed");
    assert_eq!(templates(&control).await["crm"], next.templates["crm"]);
    assert!(control.desired().await.templates["crm"].adjusted.is_none());
}

#[tokio::test]
async fn files_that_do_not_fit_what_the_api_said_are_refused() {
    let control = Control::new().await;
    let mut files = declared(&["a"], &json!([]));
    let keep = json!({ "column": "created_at", "keep": "6 months" });
    files.templates.get_mut("crm").expect("crm").tables[0].retention =
        Some(serde_json::from_value(keep).expect("retention"));
    control.settle(&files).await;
    let longer = json!({ "tables": { "a": { "retention": { "keep": "9 months" } } } });
    patch(&control, "crm", longer).await.expect("changed");
    let bare = declared(&["a"], &json!([]));
    let refused = plan(&control.process, &control.desired().await, &bare, &LakeFacts::new());
    assert_eq!(refused.expect_err("half a setting").code(), ErrorCode::SpecInvalid);
}

#[tokio::test]
async fn a_template_that_nobody_takes_goes_and_one_that_changed_meanwhile_does_not() {
    let control = Control::new().await;
    control.settle(&declared(&["a"], &json!([]))).await;
    let author = Control::author();
    let own = TemplateSpec {
        tables: vec![serde_json::from_value(table("a")).expect("table")],
        ..TemplateSpec::default()
    };
    let plan = planned(&control, "own", |now| {
        assert!(now.is_none());
        Ok(own.clone())
    });
    let plan = plan.await.expect("planned");
    assert!(plan.new && !plan.declared);
    control.change("1", |_| Ok(OrgLayer::default())).await.expect("in between");
    let stale = apply_template(&control.store, &plan, &author).await.expect_err("older state");
    assert_eq!(stale.code(), ErrorCode::ControlStale);
    let plan = planned(&control, "own", |_| Ok(own.clone())).await.expect("planned");
    apply_template(&control.store, &plan, &author).await.expect("made");
    let layer = OrgLayer { template: Some("own".to_owned()), ..OrgLayer::default() };
    control.change("1", |_| Ok(layer)).await.expect("takes it");
    let remove = async |name: &str, dry_run: bool| {
        let change = Change { process: &control.process, author: &author, dry_run, yes: true };
        let operator = Principal::Operator;
        remove_template(&control.store, &operator, name, change, |_| Ok(())).await
    };
    let used = remove("own", false).await.expect_err("in use");
    assert_eq!(used.code(), ErrorCode::ControlConflict);
    assert!(used.to_string().contains(": 1"), "{used}");
    let files = remove("crm", false).await.expect_err("of files");
    assert!(files.to_string().contains("pipeline files"), "{files}");
    assert_eq!(remove("none", false).await.expect_err("none").code(), ErrorCode::ControlNotFound);
    control.change("1", |_| Ok(OrgLayer::default())).await.expect("takes it no more");
    remove("own", true).await.expect("it would go");
    assert!(templates(&control).await.contains_key("own"));
    remove("own", false).await.expect("gone");
    assert!(!templates(&control).await.contains_key("own"));
    let states = template_history(&control.store, &Principal::Operator, "own", (None, 100)).await;
    assert_eq!(states.expect("history").len(), 2);
    let member = Principal::Org("1".parse().expect("id"));
    assert!(template_history(&control.store, &member, "own", (None, 100)).await.is_err());
}

#[tokio::test]
async fn a_template_without_the_schedule_of_the_files_has_none() {
    let control = Control::new().await;
    let mut files = declared(&["a"], &json!([{ "id": "1", "template": "crm" }]));
    let daily = json!({ "cron": "0 3 * * *", "catch_up": "skip" });
    files.templates.get_mut("crm").expect("crm").schedule =
        Some(serde_json::from_value(daily).expect("schedule"));
    control.settle(&files).await;
    patch(&control, "crm", json!({ "schedule": { "cron": "0 5 * * *" } })).await.expect("later");
    let found = templates(&control).await;
    let said = serde_json::to_value(&found["crm"].schedule).expect("schedule");
    assert_eq!((&said["cron"], &said["catch_up"]), (&json!("0 5 * * *"), &json!("skip")));
    let plan = patch(&control, "crm", json!({ "schedule": null })).await.expect("none");
    assert_eq!(plan.examples[0].settings, ["schedule"], "a setting that goes is one that changes");
    assert!(templates(&control).await["crm"].schedule.is_none());
    assert!(control.settle(&files).await.pipelines[0].tables[0].schedule.is_none());
    let own = OrgLayer {
        schedule: Some(serde_json::from_value(json!({ "cron": "7 * * * *" })).expect("schedule")),
        ..OrgLayer::default()
    };
    let org = control.change("1", |_| Ok(own)).await.expect("own");
    assert_eq!(org.tables[0].spec.schedule, org.schedule);
    assert!(org.schedule.is_some());
}

#[test]
fn a_null_inside_of_a_setting_is_not_lost_in_silence() {
    let filter = json!({ "org": "{org}", "deleted": null });
    let mut spec = table("a");
    spec["filter"] = filter;
    let spec: TableSpec = serde_json::from_value(spec).expect("table");
    let wanted = TemplateSpec { tables: vec![spec], ..TemplateSpec::default() };
    let refused = TemplateDocument::default().saying("crm", &wanted).expect_err("lost");
    assert_eq!(refused.code(), ErrorCode::SpecInvalid);
}
