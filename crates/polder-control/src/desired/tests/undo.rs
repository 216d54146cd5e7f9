//! What keeps less, and how long it can be taken back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use uuid::Uuid;

use super::*;
use crate::clock::Clock;

const DAY_MS: i64 = 86_400_000;

/// A control plane whose time passes when it is told to.
struct Timed {
    control: Control,
    now: Arc<AtomicI64>,
}

impl Timed {
    async fn new() -> Self {
        let Control { store, process, _folder: folder } = Control::new().await;
        let now = Arc::new(AtomicI64::new(chrono::Utc::now().timestamp_millis()));
        let read = Arc::clone(&now);
        let clock = Clock::of(move || read.load(Ordering::SeqCst), Uuid::now_v7);
        let store = store.with_clock(clock);
        Self { control: Control { store, process, _folder: folder }, now }
    }

    fn pass(&self, ms: i64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }

    /// How long runs and maintenance keep the rows of each table, by org and table.
    async fn kept(&self, files: &Declared) -> Vec<String> {
        let now = self.control.desired().await;
        let pipelines = look(&self.control.process, &now, files).expect("pipelines");
        let tables = pipelines.iter().flat_map(|p| p.tables.iter().map(move |t| (&p.org, t)));
        let one = |(org, table): (&OrgId, &TableSpec)| {
            let keep = table.retention.as_ref().map(|retention| retention.keep.to_string());
            let keep = keep.unwrap_or_else(|| "for ever".to_owned());
            format!("{org}/{}: {keep}, {}", table.name, table.maintenance.keep_versions)
        };
        tables.map(one).collect()
    }

    async fn pending(&self) -> Vec<String> {
        let pending = pending(&self.control.process, &self.control.desired().await);
        pending.iter().map(|one| format!("{}/{}", one.org, one.table)).collect()
    }

    async fn apply(&self, files: &Declared) -> Plan {
        let plan = self.control.plan(files, &LakeFacts::new()).await;
        apply(&self.control.store, &plan, &Control::author()).await.expect("applied");
        plan
    }

    /// The API's door, without a yes where it is not said.
    async fn change(
        &self,
        id: &str,
        yes: bool,
        decide: impl FnOnce(Current<'_>) -> Result<OrgLayer>,
    ) -> Result<EffectiveOrg> {
        let org = Principal::Operator.authorize(&id.parse()?)?;
        let author = Control::author();
        let process = &self.control.process;
        let what = Change { process, author: &author, dry_run: false, yes };
        change(&self.control.store, &org, what, decide).await
    }

    async fn undo(&self, id: &str, table: &str) -> Result<EffectiveOrg> {
        let org: OrgId = id.parse()?;
        self.change(id, false, |current| undone(&current, &org, table)).await
    }
}

/// Files of one template with one table, that keeps its rows so long.
fn keeping(keep: Option<&str>, versions: usize, orgs: &[&str]) -> Declared {
    let orgs: Vec<Value> = orgs.iter().map(|id| json!({ "id": id, "template": "crm" })).collect();
    let mut files = declared(&["a"], &json!(orgs));
    let table = &mut files.templates.get_mut("crm").expect("crm").tables[0];
    let retention = keep.map(|keep| json!({ "column": "created_at", "keep": keep }));
    table.retention = retention.map(|said| serde_json::from_value(said).expect("retention"));
    table.maintenance.keep_versions = versions;
    files
}

fn patch_of(table: &str, keep: &Value) -> OrgLayer {
    layer(json!({ table: { "retention": keep } }))
}

#[tokio::test]
async fn what_is_applied_is_not_carried_out_before_it_can_be_taken_back_no_more() {
    let timed = Timed::new().await;
    timed.apply(&keeping(Some("12 months"), 5, &["1", "2"])).await;
    assert!(timed.pending().await.is_empty(), "what is new takes nothing away");
    let tighter = keeping(Some("6 months"), 3, &["1", "2"]);
    let plan = timed.apply(&tighter).await;
    assert_eq!((plan.destructive, plan.undo_seconds), (2, 86_400));
    let before = ["1/a: 12 months, 5", "2/a: 12 months, 5"];
    assert_eq!(timed.kept(&tighter).await, before);
    assert_eq!(timed.pending().await, ["1/a", "2/a"]);
    // Another plan shows what waits, and keeps its hash while it does.
    let next = keeping(Some("9 months"), 3, &["1", "2"]);
    let (one, two) = {
        let one = timed.control.plan(&next, &LakeFacts::new()).await;
        timed.pass(DAY_MS - 1);
        (one, timed.control.plan(&next, &LakeFacts::new()).await)
    };
    assert_eq!((one.pending.len(), one.pending[0].who.as_str()), (2, "test"));
    assert!(one.pending[0].goes[0].starts_with("retention: 12 months -> 6 months"), "{one:?}");
    assert_eq!(one.hash, two.hash);
    assert_eq!(timed.kept(&tighter).await, before, "a millisecond before");
    timed.pass(1);
    assert_eq!(timed.kept(&tighter).await, ["1/a: 6 months, 3", "2/a: 6 months, 3"]);
    assert!(timed.pending().await.is_empty());
    assert_eq!(
        timed.undo("1", "a").await.expect_err("too late").code(),
        ErrorCode::ControlConflict
    );
}

#[tokio::test]
async fn it_is_taken_back_by_one_word_or_by_the_earlier_settings() {
    let timed = Timed::new().await;
    timed.apply(&keeping(None, 5, &["1", "2"])).await;
    let tighter = keeping(Some("6 months"), 3, &["1", "2"]);
    timed.apply(&tighter).await;
    let back = timed.undo("1", "a").await.expect("taken back");
    let table = &back.table("a").expect("there").spec;
    assert_eq!((table.retention.as_ref(), table.maintenance.keep_versions), (None, 5));
    assert_eq!(timed.pending().await, ["2/a"]);
    timed.pass(2 * DAY_MS);
    let kept = ["1/a: for ever, 5", "2/a: 6 months, 3"];
    assert_eq!(timed.kept(&tighter).await, kept, "for good, whatever the files say");
    for table in ["a", "b"] {
        assert!(timed.undo("1", table).await.is_err(), "{table}: nothing waits");
    }
    timed.apply(&keeping(Some("3 months"), 3, &["1", "2"])).await;
    assert_eq!(timed.pending().await, ["2/a"]);
    timed.apply(&keeping(Some("6 months"), 3, &["1", "2"])).await;
    assert!(timed.pending().await.is_empty());
}

/// Twice in one window: nothing goes that was there at its beginning, by whatever column rows have an age.
#[tokio::test]
async fn a_second_word_does_not_carry_out_the_first() {
    let timed = Timed::new().await;
    let files = keeping(Some("12 months"), 5, &["1"]);
    timed.apply(&files).await;
    let by = |column: &str, keep: &str| json!({ "column": column, "keep": keep });
    timed.change("1", true, |_| Ok(patch_of("a", &by("created_at", "6 months")))).await.expect("6");
    timed.pass(DAY_MS - 1);
    timed.change("1", true, |_| Ok(patch_of("a", &by("created_at", "3 months")))).await.expect("3");
    timed.pass(DAY_MS - 1);
    assert_eq!(timed.kept(&files).await, ["1/a: 12 months, 5"]);
    timed.change("1", true, |_| Ok(patch_of("a", &by("seen_at", "3 months")))).await.expect("seen");
    assert_eq!(
        timed.kept(&files).await,
        ["1/a: for ever, 5"],
        "neither column says what both keep"
    );
    timed.pass(DAY_MS);
    assert_eq!(timed.kept(&files).await, ["1/a: 3 months, 5"]);
}

#[tokio::test]
async fn a_table_that_comes_back_to_keep_less_needs_a_yes_and_waits() {
    let timed = Timed::new().await;
    let files = keeping(Some("12 months"), 5, &["1"]);
    timed.apply(&files).await;
    timed.change("1", true, |_| Ok(layer(json!({ "a": null })))).await.expect("left");
    timed.pass(400 * DAY_MS);
    assert!(timed.pending().await.is_empty(), "nothing is done to it");
    let short = json!({ "column": "created_at", "keep": "1 month" });
    let again = || Ok(patch_of("a", &short));
    let unsure = timed.change("1", false, |_| again()).await.expect_err("it would keep less");
    assert_eq!(unsure.code(), ErrorCode::ControlConflict);
    assert!(unsure.message().contains("12 months -> 1 month"), "{unsure}");
    // As it was it comes back without one.
    timed.change("1", false, |_| Ok(OrgLayer::default())).await.expect("as it was");
    assert_eq!(timed.kept(&files).await, ["1/a: 12 months, 5"]);
    timed.change("1", true, |_| Ok(layer(json!({ "a": null })))).await.expect("left");
    timed.change("1", true, |_| again()).await.expect("meant");
    assert_eq!(timed.kept(&files).await, ["1/a: 12 months, 5"]);
    assert_eq!(timed.pending().await, ["1/a"]);
    timed.pass(DAY_MS);
    assert_eq!(timed.kept(&files).await, ["1/a: 1 month, 5"]);
}

#[tokio::test]
async fn an_org_that_comes_back_is_held_to_what_it_kept() {
    let timed = Timed::new().await;
    timed.apply(&keeping(None, 5, &["1", "2"])).await;
    timed.apply(&keeping(None, 5, &["1"])).await;
    let mut files = keeping(None, 5, &["1", "2"]);
    let mut short = files.templates["crm"].clone();
    let keep = json!({ "column": "created_at", "keep": "1 month" });
    short.tables[0].retention = Some(serde_json::from_value(keep).expect("retention"));
    files.templates.insert("short".to_owned(), short);
    files.orgs.get_mut("2").expect("org").template = Some("short".to_owned());
    let settled = timed.control.settle(&files).await;
    assert_eq!(names(&settled.pipelines), ["1/a"], "not without polder apply");
    assert_eq!((settled.left.len(), settled.left[0].org.as_str()), (1, "2"), "{:?}", settled.left);
    let new = || OrgLayer { template: Some("short".to_owned()), ..OrgLayer::default() };
    assert!(timed.change("2", false, |_| Ok(new())).await.is_err(), "nor by the API");
    timed.apply(&files).await;
    assert_eq!(timed.pending().await, ["2/a"]);
    assert_eq!(timed.kept(&files).await, ["1/a: for ever, 5", "2/a: for ever, 5"]);
}

#[tokio::test]
async fn a_template_that_keeps_less_waits_for_each_of_its_orgs() {
    let timed = Timed::new().await;
    let files = keeping(Some("12 months"), 5, &["1", "2"]);
    timed.apply(&files).await;
    timed.change("2", true, |_| Ok(patch_of("a", &json!({ "keep": "2 years" })))).await.expect("2");
    let shorter = json!({ "tables": { "a": { "retention": { "keep": "6 months" } } } });
    let plan = patch(&timed.control, "crm", shorter).await.expect("changed");
    assert_eq!((plan.destructive, plan.undo_seconds), (1, 86_400));
    assert_eq!(timed.pending().await, ["1/a"]);
    let kept = ["1/a: 12 months, 5", "2/a: 2 years, 5"];
    assert_eq!(timed.kept(&files).await, kept);
    timed.undo("1", "a").await.expect("for one org");
    timed.pass(DAY_MS);
    assert_eq!(timed.kept(&files).await, kept);
}

#[tokio::test]
async fn without_a_window_there_is_none_and_what_was_meant_at_once_holds_at_once() {
    let mut timed = Timed::new().await;
    timed.control.process.governance.undo = Some("0s".to_owned());
    timed.apply(&keeping(None, 5, &["1"])).await;
    let tighter = keeping(Some("6 months"), 5, &["1"]);
    timed.apply(&tighter).await;
    assert_eq!(timed.kept(&tighter).await, ["1/a: 6 months, 5"]);
    timed.control.process.governance.undo = Some("7d".to_owned());
    let tighter = keeping(Some("3 months"), 5, &["1"]);
    timed.apply(&tighter).await;
    assert_eq!(timed.kept(&tighter).await, ["1/a: 6 months, 5"]);
    let org = Principal::Operator.authorize(&"1".parse().expect("id")).expect("org");
    end_undo(&timed.control.store, &org, "a").await.expect("ended");
    assert_eq!(timed.kept(&tighter).await, ["1/a: 3 months, 5"]);
    timed.control.process.governance.undo = Some("soon".to_owned());
    assert_eq!(
        timed.control.process.governance.undo_ms().expect_err("no length").code(),
        ErrorCode::SpecInvalid
    );
}
