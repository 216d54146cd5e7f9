//! Two doors, one state.

use polder_core::{Error, ErrorCode, Principal};
use serde_json::json;

use super::*;
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
        settle(&self.store, &self.process, declared, &Self::author()).await.expect("settled")
    }

    async fn change(
        &self,
        id: &str,
        decide: impl FnOnce(Current<'_>) -> Result<OrgLayer>,
    ) -> Result<EffectiveOrg> {
        let org = Principal::Operator.authorize(&id.parse()?)?;
        let author = Self::author();
        let what = Change { process: &self.process, author: &author, dry_run: false };
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
    let states = history(&control.store, &gone).await.expect("history");
    assert_eq!(states.len(), 2, "what it was is remembered");
    assert_eq!((states[0].who.as_str(), states[0].why.as_deref()), ("test", Some("because")));
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
