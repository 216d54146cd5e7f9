//! The catalog that `polder serve` offers, over connections that break: what our own client makes of it.
//! Every commit is made once by the call that was to make it, and no file is left of the attempts.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use polder_lake::{RestSettings, StageKind};
use uuid::Uuid;

use self::What::{Announce, Commit, Load};
use super::proxy::Fate::{self, Cut, Last, Late, Passes, Silent, Slow, Torn, Unanswered, Unsent};
use super::proxy::{Asked, Proxy};
use super::rest::connect;
use super::served::Served;
use crate::faulty::changes::{Before, CHANGES, Change};
use crate::faulty::{Connect, Ground, Place, side_by_side};
use crate::stress;
use crate::support::*;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Load,
    /// A new table (`stage-create`).
    Announce,
    Commit,
}

impl What {
    /// What a request does with a table, and the namespace that it is in; `None` of other requests.
    fn of(asked: &Asked) -> Option<(&str, Self)> {
        let (_, below) = asked.path.split_once("/namespaces/")?;
        let (namespace, table) = below.split_once("/tables")?;
        let what = match (asked.method.as_str(), table.is_empty()) {
            ("GET", false) => Self::Load,
            ("POST", true) => Self::Announce,
            ("POST", false) => Self::Commit,
            _ => return None,
        };
        Some((namespace, what))
    }
}

/// The next request of a kind, and what becomes of it.
type Step = (What, Fate);

/// What becomes of one commit, and of what is asked in its course.
const COMMITS: [&[Step]; 11] = [
    &[(Commit, Unsent)],
    &[(Commit, Torn)],
    &[(Commit, Unanswered)],
    &[(Commit, Cut)],
    &[(Commit, Slow)],
    &[(Commit, Late(50))],
    &[(Commit, Late(700))],
    &[(Commit, Unsent), (Commit, Unanswered)],
    &[(Commit, Unanswered), (Load, Cut), (Load, Unsent)],
    &[(Commit, Torn), (Load, Torn), (Commit, Cut), (Load, Unanswered)],
    // It comes when all is over.
    &[(Commit, Last), (Commit, Unsent), (Commit, Cut)],
];

/// The same when a table is new.
const ANNOUNCEMENTS: [&[Step]; 5] = [
    &[(Announce, Unsent)],
    &[(Announce, Cut), (Announce, Unanswered)],
    &[(Announce, Late(300)), (Commit, Unanswered)],
    &[(Announce, Unanswered), (Commit, Late(50))],
    &[(Announce, Torn), (Commit, Cut), (Load, Cut)],
];

/// One commit in so many of the writers breaks, and one load: they are repeated a few times only.
const COMMIT_EVERY: usize = 7;
const LOAD_EVERY: usize = 97;
const OF_WRITERS: [Fate; 5] = [Unsent, Unanswered, Cut, Torn, Slow];

/// A way to the server by which each namespace's requests meet what was planned for them.
struct Way {
    proxy: Proxy,
    plans: Plans,
    connect: Connect,
    place: Place,
}

type Plans = Arc<Mutex<HashMap<String, VecDeque<Step>>>>;

fn through(served: &Served, choose: impl Fn(&Asked) -> Fate + Send + Sync + 'static) -> Proxy {
    let address = served.uri.strip_prefix("http://").and_then(|rest| rest.split('/').next());
    Proxy::start(address.expect("an address"), choose)
}

fn rest(proxy: &Proxy) -> RestSettings {
    RestSettings { uri: format!("http://{}/iceberg", proxy.address), ..RestSettings::default() }
}

fn choose(plans: &Plans, asked: &Asked) -> Fate {
    let Some((namespace, what)) = What::of(asked) else { return Passes };
    let mut plans = plans.lock().expect("plans");
    let Some(steps) = plans.get_mut(namespace) else { return Passes };
    if asked.waits {
        return if steps.is_empty() { Passes } else { Last };
    }
    match steps.front() {
        Some((next, _)) if *next == what => steps.pop_front().map_or(Passes, |(_, fate)| fate),
        _ => Passes,
    }
}

impl Way {
    fn to(served: &Served) -> Arc<Self> {
        let plans = Plans::default();
        let chosen = Arc::clone(&plans);
        let proxy = through(served, move |asked| choose(&chosen, asked));
        let connect = connect(rest(&proxy));
        Arc::new(Self { proxy, plans, connect, place: served.place() })
    }

    async fn ground(&self) -> Ground {
        Ground::on(&self.connect, &self.place).await
    }

    fn plan(&self, ground: &Ground, steps: &[Step]) {
        let namespace = ground.org.get().namespace();
        let steps = steps.iter().copied().collect();
        self.plans.lock().expect("plans").insert(namespace, steps);
    }

    /// Waits for what is late, and looks whether all that was planned came to pass.
    async fn settle(&self, ground: &Ground, case: &str) {
        self.proxy.settle().await;
        let plans = self.plans.lock().expect("plans");
        let left = plans.get(&ground.org.get().namespace());
        assert!(left.is_none_or(VecDeque::is_empty), "{case}: {left:?} did not come to pass");
    }

    /// One change, and the same again.
    async fn hold(&self, change: Change, steps: &[Step]) {
        let case = format!("{change:?} {steps:?}");
        let ground = self.ground().await;
        let before = Before::make(&ground).await;
        let id = Uuid::new_v4();
        self.plan(&ground, steps);
        let done = change.make(&ground.lake, &before, id).await;
        self.settle(&ground, &case).await;
        assert!(!done.expect(&case), "{case}: this very call made it");
        assert_eq!(ground.ids().await, change.expected(), "{case}");
        assert_eq!(ground.orphans().await, [].into(), "{case}");
        let again = change.make(&ground.clean, &before, id).await.expect(&case);
        let runs_once = !matches!(change, Change::Rollback | Change::ExpireSnapshots);
        assert_eq!(again, runs_once, "{case}: found, or made now");
        assert_eq!(ground.ids().await, change.expected(), "{case}: once and no more");
        let checked = ground.check().await;
        assert_eq!(checked.metadata.snapshots().len(), change.snapshots(), "{case}");
        assert_eq!(checked.delete_files, change.delete_files(), "{case}");
    }

    /// A new table, and the same run again.
    async fn hold_new(&self, steps: &[Step]) {
        let case = format!("{steps:?}");
        let ground = self.ground().await;
        let (request, name) = (request(StageKind::Replace, &id_and_text()), ground.table.as_str());
        self.plan(&ground, steps);
        let done = run_of(&ground.lake, (&ground.org, name), request.clone(), &[rows(0..3)]).await;
        self.settle(&ground, &case).await;
        assert!(!done.expect(&case).already, "{case}: this very call made it");
        assert_eq!(ground.ids().await, [0, 1, 2], "{case}");
        assert_eq!(ground.orphans().await, [].into(), "{case}");
        let again = run_of(&ground.clean, (&ground.org, name), request, &[rows(0..3)]).await;
        assert!(again.expect(&case).already, "{case}");
        assert_eq!(ground.check().await.metadata.snapshots().len(), 1, "{case}");
    }
}

/// The steps where the first commit meets them, and of a run, which stages before it publishes, where
/// the second does.
fn each(stages: bool, steps: &[Step]) -> Vec<Vec<Step>> {
    let first = steps.to_vec();
    let second = [&[(Commit, Passes)], steps].concat();
    if stages { vec![first, second] } else { vec![first] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_costs_no_commit_and_doubles_none() {
    let served = Served::start();
    let way = Way::to(&served);
    let cases = CHANGES.into_iter().flat_map(|change| {
        let series = COMMITS.into_iter().flat_map(move |steps| each(change.stages(), steps));
        series.map(move |steps| (change, steps))
    });
    let cases = cases.map(|(change, steps)| {
        let way = Arc::clone(&way);
        async move { way.hold(change, &steps).await }
    });
    side_by_side(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_made_once_over_connections_that_break() {
    let served = Served::start();
    let way = Way::to(&served);
    let commits = COMMITS.into_iter().flat_map(|steps| each(true, steps));
    let announced = ANNOUNCEMENTS.into_iter().map(<[Step]>::to_vec);
    let cases = commits.chain(announced).map(|steps| {
        let way = Arc::clone(&way);
        async move { way.hold_new(&steps).await }
    });
    side_by_side(cases).await;
}

/// The client gives up after a minute without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_never_comes_is_found() {
    let served = Served::start();
    let way = Way::to(&served);
    let cases = [Change::AppendFiles, Change::RowDelta, Change::Rollback].into_iter();
    let cases = cases.map(|change| {
        let way = Arc::clone(&way);
        async move { way.hold(change, &[(Commit, Silent)]).await }
    });
    side_by_side(cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_over_connections_that_break_lose_and_double_nothing() {
    let served = Served::start();
    let (commits, loads) = (AtomicUsize::new(1), AtomicUsize::new(1));
    let proxy = through(&served, move |asked| {
        let (counted, every) = match What::of(asked) {
            Some((_, Commit)) => (&commits, COMMIT_EVERY),
            Some((_, Load)) => (&loads, LOAD_EVERY),
            _ => return Passes,
        };
        let number = counted.fetch_add(1, Ordering::SeqCst);
        let turn = number / every % OF_WRITERS.len();
        if number.is_multiple_of(every) { OF_WRITERS[turn] } else { Passes }
    });
    stress::hold_all(&connect(rest(&proxy)), &served.place(), true).await;
}
