//! Schedules and limits follow the desired state, whatever changes while they do.

mod service;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use polder_core::Principal;
use polder_core::spec::{OrgSpec, ProcessConfig};
use serde_json::json;
use uuid::Uuid;

use super::follow::Walk;
use super::*;
use crate::clock::Clock;
use crate::config::Declared;
use crate::desired::{self, Author, Change, LakeFacts, OrgLayer, TemplateChange};

const HOURLY: &str = "0 * * * *";
const HOUR_MS: i64 = 3_600_000;

/// Files with a template of two tables that run by this cron text, and orgs that take it.
fn files<'a>(cron: &str, orgs: impl IntoIterator<Item = &'a str>) -> Declared {
    let table = |name: &str| json!({ "name": name, "source": "exports", "from": "t.csv" });
    let schedule = json!({ "cron": cron, "maintain": "7 0 * * *" });
    let templates = json!({ "crm": { "schedule": schedule, "tables": [table("a"), table("b")] } });
    let org = |id: &str| -> OrgSpec {
        serde_json::from_value(json!({ "id": id, "template": "crm" })).expect("org")
    };
    Declared {
        templates: serde_json::from_value(templates).expect("templates"),
        orgs: orgs.into_iter().map(|id| (id.to_owned(), org(id))).collect(),
    }
}

/// What the API says of an org.
fn layer(text: serde_json::Value) -> OrgLayer {
    serde_json::from_value(text).expect("layer")
}

/// Each schedule's spec and next time, by org, table and kind.
type Rows = BTreeMap<String, (String, i64)>;

struct Control {
    store: Store,
    process: ProcessConfig,
    now: Arc<AtomicI64>,
}

impl Control {
    async fn new() -> Self {
        let process = json!({
            "lake": { "warehouse": "./lake", "catalog": "sqlite://./c.db" },
            "store": { "url": "sqlite://./c.db" },
            "sources": { "exports": { "type": "files", "url": "./exports" } },
        });
        // 15 January 2027, 8:00 UTC.
        let now = Arc::new(AtomicI64::new(1_800_000_000_000));
        let read = Arc::clone(&now);
        let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
        Self {
            store: Store::in_memory().await.with_clock(clock),
            process: serde_json::from_value(process).expect("process"),
            now,
        }
    }

    fn author() -> Author {
        Author { who: "test".to_owned(), why: None }
    }

    /// Lets time pass.
    fn pass(&self, ms: i64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }

    async fn apply(&self, files: &Declared) {
        let now = desired::load(&self.store, &Principal::Operator).await.expect("desired");
        let plan = desired::plan(&self.process, &now, files, &LakeFacts::new()).expect("plan");
        desired::apply(&self.store, &plan, &Self::author()).await.expect("applied");
    }

    async fn change(&self, id: &str, layer: OrgLayer) {
        let org = Principal::Operator.authorize(&id.parse().expect("id")).expect("org");
        let author = Self::author();
        let change = Change { process: &self.process, author: &author, dry_run: false, yes: true };
        desired::change(&self.store, &org, change, |_| Ok(layer)).await.expect("changed");
    }

    /// Changes the template by the API.
    async fn patch_template(&self, patch: serde_json::Value) {
        let serde_json::Value::Object(patch) = patch else { panic!("an object") };
        let (store, operator) = (&self.store, Principal::Operator);
        let change = TemplateChange::begin(store, &operator, &self.process, "crm", |now| {
            desired::patch_template("crm", now.expect("there"), &patch)
        });
        let mut change = change.await.expect("begun");
        while let Some(orgs) = change.page(store).await.expect("page") {
            for org in &orgs {
                change.take(org, &LakeFacts::new()).expect("planned");
            }
        }
        let plan = change.finish();
        desired::apply_template(store, &plan, &Self::author()).await.expect("changed");
    }

    async fn sql(&self, text: &str) {
        sqlx::query(text).execute(self.store.pool()).await.expect("executed");
    }

    async fn begin(&self, since: Option<i64>) -> (Walk, i64) {
        let until = desired::revision(&self.store).await.expect("revision");
        (Walk::begin(&self.store, since, until).await.expect("begun"), until)
    }

    async fn step(&self, walk: &mut Walk, page: usize) -> bool {
        walk.step(&self.store, &self.process, page).await.expect("stepped")
    }

    async fn follow(&self, since: Option<i64>) -> i64 {
        follow(&self.store, &self.process, since).await.expect("followed")
    }

    async fn rows(&self) -> Rows {
        let sql = "SELECT org, table_name, kind, source, spec, next_ms FROM polder_schedules";
        let rows = sqlx::query(sql).fetch_all(self.store.pool()).await.expect("rows");
        let one = |row: &AnyRow| {
            let Entry { org, table, kind, spec, next_ms, .. } = read(row).expect("row");
            (format!("{org}/{table}/{}", kind.as_str()), (spec, next_ms))
        };
        rows.iter().map(one).collect()
    }

    /// Orgs that have schedules.
    async fn orgs(&self) -> Vec<String> {
        let rows = self.rows().await;
        let mut orgs: Vec<String> =
            rows.keys().filter_map(|key| Some(key.split_once('/')?.0.to_owned())).collect();
        orgs.dedup();
        orgs
    }

    /// The store has what the whole desired state says now, and nothing else.
    async fn check(&self) {
        let state = desired::load(&self.store, &Principal::Operator).await.expect("desired");
        let templates = state.templates();
        let mut wanted = BTreeMap::new();
        for (id, document) in &state.orgs {
            let org = desired::effective(&self.process, &templates, id, document);
            for table in org.expect("org").pipeline().tables {
                let Some(schedule) = &table.schedule else { continue };
                let text = serde_json::to_string(schedule).expect("text");
                if schedule.maintain.is_some() {
                    wanted.insert(format!("{id}/{}/maintain", table.name), text.clone());
                }
                if schedule.validate_at.is_some() {
                    wanted.insert(format!("{id}/{}/validate", table.name), text.clone());
                }
                wanted.insert(format!("{id}/{}/ingest", table.name), text);
            }
        }
        let there = self.rows().await.into_iter().map(|(key, (spec, _))| (key, spec));
        assert_eq!(there.collect::<BTreeMap<_, _>>(), wanted);
    }
}

#[tokio::test]
async fn orgs_come_in_pages_and_each_is_scheduled_once() {
    for page in [1, 2, 3, 7, 100] {
        let control = Control::new().await;
        control.apply(&files(HOURLY, ["1", "2", "3", "4", "5", "6", "7"])).await;
        let (mut walk, until) = control.begin(None).await;
        let mut full = 0;
        while control.step(&mut walk, page).await {
            full += 1;
            assert_eq!(control.orgs().await.len(), full * page);
        }
        assert_eq!(full, 7 / page);
        control.check().await;
        let rows = control.rows().await;
        control.pass(3 * HOUR_MS);
        assert_eq!(control.follow(Some(until)).await, until);
        // Another server, or this one when it starts again.
        assert_eq!(control.follow(None).await, until);
        assert_eq!(control.rows().await, rows, "schedules go on where they are");
    }
}

#[tokio::test]
async fn more_orgs_than_a_page_are_followed_to_the_last() {
    let control = Control::new().await;
    let ids: Vec<String> = (0..450).map(|id| id.to_string()).collect();
    control.apply(&files(HOURLY, ids.iter().map(String::as_str))).await;
    let known = control.follow(None).await;
    control.check().await;
    assert_eq!(control.rows().await.len(), 450 * 4);
    // More than a page of them goes.
    let even = ids.iter().filter(|id| id.ends_with(['0', '2', '4', '6', '8']));
    control.apply(&files(HOURLY, even.map(String::as_str))).await;
    let known = control.follow(Some(known)).await;
    control.check().await;
    assert_eq!(control.rows().await.len(), 225 * 4);
    control.apply(&files("30 * * * *", ids.iter().map(String::as_str))).await;
    control.follow(Some(known)).await;
    control.check().await;
}

#[tokio::test]
async fn what_changes_between_two_pages_is_neither_missed_nor_had_twice() {
    let control = Control::new().await;
    control.apply(&files(HOURLY, ["b", "c", "d", "e", "f", "g"])).await;
    let (mut walk, until) = control.begin(None).await;
    assert!(control.step(&mut walk, 2).await);
    assert_eq!(control.orgs().await, ["b", "c"]);
    let first = control.rows().await;
    control.pass(2 * HOUR_MS);
    // Of orgs that were seen and of those that were not, one changes, one goes and one comes each.
    let own = json!({ "tables": { "a": { "schedule": { "cron": "30 * * * *" } } } });
    control.change("b", layer(own)).await;
    control.change("f", layer(json!({ "enabled": false }))).await;
    control.change("a", layer(json!({ "template": "crm" }))).await;
    control.change("z", layer(json!({ "template": "crm" }))).await;
    control.apply(&files(HOURLY, ["b", "d", "e", "f"])).await;
    while control.step(&mut walk, 2).await {}
    assert_eq!(control.orgs().await, ["b", "d", "e"], "what changed is the next look's");
    let next = control.follow(Some(until)).await;
    assert_eq!(next, desired::revision(&control.store).await.expect("revision"));
    assert_eq!(control.orgs().await, ["a", "b", "d", "e", "z"]);
    control.check().await;
    let rows = control.rows().await;
    for key in ["b/b/ingest", "b/b/maintain"] {
        assert_eq!(rows[key], first[key], "it did not change, and goes on where it is");
    }
    let queued = async |wanted: &[(&str, i64)]| {
        tick(&control.store).await.expect("looked");
        let sql = "SELECT org, table_name, count(*) AS runs FROM polder_queue \
                   GROUP BY org, table_name ORDER BY org, table_name";
        let rows = sqlx::query(sql).fetch_all(control.store.pool()).await.expect("rows");
        let text = |row: &AnyRow, column: &str| row.try_get::<String, _>(column).expect("text");
        let one = |row: &AnyRow| {
            let runs: i64 = row.try_get("runs").expect("number");
            (format!("{}/{}", text(row, "org"), text(row, "table_name")), runs)
        };
        let there: Vec<(String, i64)> = rows.iter().map(one).collect();
        let wanted: Vec<(String, i64)> =
            wanted.iter().map(|(place, runs)| ((*place).to_owned(), *runs)).collect();
        assert_eq!(there, wanted);
    };
    // It was due while the others came in.
    queued(&[("b/b", 1)][..]).await;
    control.pass(HOUR_MS);
    let all = ["a/a", "a/b", "b/a", "b/b", "d/a", "d/b", "e/a", "e/b", "z/a", "z/b"];
    // The last run of b/b still waits: its time is left out.
    queued(&all.map(|place| (place, 1))[..]).await;
    assert_eq!(control.follow(None).await, next);
    assert_eq!(control.orgs().await, ["a", "b", "d", "e", "z"]);
    queued(&all.map(|place| (place, 1))[..]).await;
}

#[tokio::test]
async fn a_look_goes_over_what_changed_alone_and_over_all_if_a_template_did() {
    let control = Control::new().await;
    control.apply(&files(HOURLY, ["1", "2", "3"])).await;
    let known = control.follow(None).await;
    // Whoever looks at org 1 would see that it lacks something, and at 9 that nobody speaks of it.
    control.sql("DELETE FROM polder_schedules WHERE org = '1'").await;
    control.sql("UPDATE polder_schedules SET org = '9' WHERE org = '3' AND table_name = 'a'").await;
    assert_eq!(control.follow(Some(known)).await, known);
    control.change("2", layer(json!({ "limits": { "runs": 3, "weight": 2 } }))).await;
    let next = control.follow(Some(known)).await;
    assert!(next > known);
    assert_eq!(control.orgs().await, ["2", "3", "9"]);
    let sql = "SELECT org, weight, runs_max FROM polder_turns";
    let row = sqlx::query(sql).fetch_one(control.store.pool()).await.expect("the only one");
    let number = |column: &str| row.try_get::<i64, _>(column).expect("number");
    assert_eq!((number("weight"), number("runs_max")), (2, 3));
    control.apply(&files("15 * * * *", ["1", "2", "3"])).await;
    let last = control.follow(Some(next)).await;
    control.check().await;
    // Of a revision that is not there yet, in a store that was brought back from a copy, nothing is known.
    control.sql("DELETE FROM polder_schedules WHERE org = '1'").await;
    assert_eq!(control.follow(Some(last + 5)).await, last);
    control.check().await;
}

#[tokio::test]
async fn what_either_door_says_of_a_template_reaches_the_schedules_of_all_orgs() {
    let control = Control::new().await;
    let mut files = files(HOURLY, ["1", "2", "3"]);
    control.apply(&files).await;
    control.change("9", layer(json!({ "template": "crm" }))).await;
    let known = control.follow(None).await;
    assert_eq!(control.rows().await.len(), 4 * 4);
    let patch = json!({ "schedule": { "cron": "15 * * * *" }, "tables": { "b": null } });
    control.patch_template(patch).await;
    let known = control.follow(Some(known)).await;
    control.check().await;
    let rows = control.rows().await;
    assert_eq!(rows.len(), 4 * 2, "{rows:?}");
    assert!(rows.values().all(|(spec, _)| spec.contains("15 * * * *")), "{rows:?}");
    // Below the API's word, which stays.
    let own = json!({ "cron": "45 * * * *" });
    files.templates.get_mut("crm").expect("crm").tables[0].schedule =
        Some(serde_json::from_value(own).expect("schedule"));
    control.apply(&files).await;
    control.follow(Some(known)).await;
    control.check().await;
    let rows = control.rows().await;
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert!(rows.values().all(|(spec, _)| spec.contains("45 * * * *")), "{rows:?}");
}

#[tokio::test]
async fn an_org_that_cannot_be_read_stops_no_other() {
    let control = Control::new().await;
    control.apply(&files(HOURLY, ["1", "2", "3"])).await;
    let known = control.follow(None).await;
    control
        .sql(
            "UPDATE polder_desired SET adjusted = '{\"tables\":{\"a\":{\"source\":\"nowhere\"}}}' \
             WHERE kind = 'org' AND id = '2'",
        )
        .await;
    control.sql("DELETE FROM polder_schedules WHERE org = '3'").await;
    assert_eq!(control.follow(None).await, known);
    assert_eq!(control.orgs().await, ["1", "3"]);
}

#[tokio::test]
async fn an_org_whose_row_is_no_json_stops_no_other() {
    for column in ["declared", "adjusted"] {
        let control = Control::new().await;
        control.apply(&files(HOURLY, ["1", "2"])).await;
        control.follow(None).await;
        let broken = format!("UPDATE polder_desired SET {column} = '{{' WHERE id = '2'");
        control.sql(&broken).await;
        let known = control.follow(None).await;
        assert_eq!(control.orgs().await, ["1"], "{column}");
        control.change("2", layer(json!({ "template": "crm" }))).await;
        control.follow(Some(known)).await;
        assert_eq!(control.orgs().await, ["1", "2"], "{column}");
        control.check().await;
    }
}

#[tokio::test]
async fn a_template_that_cannot_be_read_stops_the_orgs_that_take_it_alone() {
    let control = Control::new().await;
    let mut files = files(HOURLY, ["1", "2"]);
    let other = files.templates["crm"].clone();
    files.templates.insert("other".to_owned(), other);
    files.orgs.get_mut("2").expect("org").template = Some("other".to_owned());
    control.apply(&files).await;
    let known = control.follow(None).await;
    assert_eq!(control.orgs().await, ["1", "2"]);
    for broken in ["'{\"tables\":7}'", "'{\"tables\":{\"a\":{\"mode\":\"nowhere\"}}}'"] {
        control
            .sql(&format!(
                "UPDATE polder_desired SET adjusted = {broken} \
                 WHERE kind = 'template' AND id = 'other'"
            ))
            .await;
        control.sql("DELETE FROM polder_schedules").await;
        assert_eq!(control.follow(None).await, known);
        assert_eq!(control.orgs().await, ["1"], "{broken}");
    }
}

#[tokio::test]
async fn validations_have_times_of_their_own() {
    let control = Control::new().await;
    control.apply(&files("30 8 * * *", ["1"])).await;
    let own = json!({ "cron": "0 0 1 1 *", "validate_at": "15 * * * *", "validate_within": "22:00-06:00" });
    let layered = json!({ "tables": { "a": { "schedule": own } } });
    control.change("1", layer(layered)).await;
    let known = control.follow(None).await;
    control.check().await;
    let queued = async || {
        tick(&control.store).await.expect("looked");
        let sql = "SELECT table_name, kind, off_peak FROM polder_queue ORDER BY table_name, kind";
        let rows = sqlx::query(sql).fetch_all(control.store.pool()).await.expect("rows");
        let one = |row: &AnyRow| {
            let text = |column: &str| row.try_get::<String, _>(column).expect("text");
            let off_peak: i64 = row.try_get("off_peak").expect("number");
            format!("{} {} {off_peak}", text("table_name"), text("kind"))
        };
        rows.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(queued().await, [""; 0]);
    control.pass(HOUR_MS);
    // One that waits is not doubled by the next hour's.
    assert_eq!(queued().await, ["a validate 1", "b ingest 0"]);
    control.pass(HOUR_MS);
    assert_eq!(queued().await, ["a validate 1", "b ingest 0"]);
    // Without a time of its own there is no such schedule any more.
    let own = json!({ "cron": "0 0 1 1 *", "validate": "after_run" });
    let layered = json!({ "tables": { "a": { "schedule": own } } });
    control.change("1", layer(layered)).await;
    control.follow(Some(known)).await;
    control.check().await;
    assert!(!control.rows().await.contains_key("1/a/validate"));
}
