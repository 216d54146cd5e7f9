//! Which snapshots and references of a table are kept: pure rules.
//!
//! They are Iceberg's (spec, *Snapshot Retention Policy*), with two more: of the versions, the tags
//! `v1`, `v2`, …, the latest few and the current one are kept; and a state of `main` has its time from when
//! `main` went on from it, not from when it was made, so that whoever opened it has all of that time.
//! Nothing is removed here.

use std::collections::{HashMap, HashSet};

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The latest versions; the current one is kept beside them.
    pub versions: usize,
    /// How long a state that nothing names stays after `main` went on from it, in milliseconds. Queries
    /// that opened it while it was the present one have as long. Below zero nothing stays for its age.
    pub history_ms: i64,
    /// States of `main`'s history kept whatever their age, the present one included.
    pub history_min: usize,
}

/// A snapshot, as far as retention goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotAge {
    pub id: i64,
    pub parent: Option<i64>,
    /// Milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// When `main` went on from it, as its log says; `None` if it is the present state, never was it, or
    /// the log has forgotten.
    pub left_ms: Option<i64>,
    /// A run has made it and not published it.
    pub staged: bool,
    /// It holds rows that went from the table, for longer than is allowed.
    pub overdue: bool,
}

impl SnapshotAge {
    /// When it ceased to be the present state, where a child of this age took its place. Clocks may differ.
    fn replaced_ms(&self, child_ms: i64) -> i64 {
        self.left_ms.unwrap_or(child_ms).max(self.timestamp_ms)
    }
}

fn within(since_ms: i64, most_ms: i64, now_ms: i64) -> bool {
    most_ms >= 0 && now_ms - since_ms <= most_ms
}

/// How long what a run has staged stays, whatever names it: the run may be about to publish it. In
/// milliseconds.
pub const STAGED_MS_MAX: i64 = 24 * 60 * 60 * 1000;

/// A branch or tag, as far as retention goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub snapshot: i64,
    pub kind: NamedKind,
    /// `max-ref-age-ms`, where whoever set it said so.
    pub age_max_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedKind {
    Main,
    /// With its own `min-snapshots-to-keep` and `max-snapshot-age-ms`.
    Branch {
        history_min: Option<usize>,
        history_ms: Option<i64>,
    },
    /// A published full refresh.
    Version(u64),
    /// The state before a rollback, which was made then (milliseconds since the epoch).
    BeforeRollback(i64),
    Tag,
}

/// What goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// Names of tags and branches, in order.
    pub names: Vec<String>,
    /// Ids of snapshots that no name that stays leads to, in order.
    pub snapshots: Vec<i64>,
    /// The current version's name, if its own state is overdue: it names `main`'s state from now on.
    pub moved: Vec<String>,
    /// Names that stay and keep overdue rows: tags and branches of others, and `main` itself.
    pub holding: Vec<String>,
}

/// Decides what goes now.
pub fn expiry(
    snapshots: &[SnapshotAge],
    named: &[Named],
    retention: &Retention,
    now_ms: i64,
) -> Expiry {
    let by_id: HashMap<i64, &SnapshotAge> =
        snapshots.iter().map(|found| (found.id, found)).collect();
    let lineage = |head: i64| {
        let first = by_id.get(&head).copied();
        std::iter::successors(first, |child| by_id.get(&child.parent?).copied())
    };
    let overdue = |id: i64| by_id.get(&id).is_some_and(|found| found.overdue);
    let (keep, current) =
        versions_kept(named, retention, |head| lineage(head).map(|found| found.id).collect());
    let main = named.iter().find(|name| name.kind == NamedKind::Main).map(|main| main.snapshot);
    let moves = |name: &Named| {
        let is_current = matches!(name.kind, NamedKind::Version(n) if current == Some(n));
        is_current && overdue(name.snapshot) && main.is_some_and(|main| !overdue(main))
    };
    let stays = |name: &Named| {
        let age = by_id.get(&name.snapshot).map_or(0, |found| now_ms - found.timestamp_ms);
        match name.kind {
            NamedKind::Main => true,
            NamedKind::Version(number) if current == Some(number) => true,
            NamedKind::Version(number) => keep.contains(&number) && !overdue(name.snapshot),
            NamedKind::BeforeRollback(at_ms) => {
                now_ms - at_ms <= retention.history_ms && !overdue(name.snapshot)
            }
            NamedKind::Branch { .. } | NamedKind::Tag => {
                name.age_max_ms.is_none_or(|most| age <= most)
            }
        }
    };
    let (staying, going): (Vec<&Named>, Vec<&Named>) = named.iter().partition(|name| stays(name));
    let mut needed = kept_without_a_name(snapshots, retention, now_ms);
    let mut expiry = Expiry::default();
    for name in staying {
        if moves(name) {
            expiry.moved.push(name.name.clone());
            continue;
        }
        if overdue(name.snapshot) {
            expiry.holding.push(name.name.clone());
        }
        needed.extend(kept_history(name.kind, lineage(name.snapshot), retention, now_ms));
    }
    expiry.names = going.into_iter().map(|name| name.name.clone()).collect();
    expiry.snapshots =
        snapshots.iter().map(|found| found.id).filter(|id| !needed.contains(id)).collect();
    expiry.names.sort_unstable();
    expiry.snapshots.sort_unstable();
    expiry.moved.sort_unstable();
    expiry.holding.sort_unstable();
    expiry
}

/// What a run is about to publish, and what was `main`'s state until lately, whatever moved `main`.
fn kept_without_a_name(
    snapshots: &[SnapshotAge],
    retention: &Retention,
    now_ms: i64,
) -> HashSet<i64> {
    let under_way =
        |found: &SnapshotAge| found.staged && now_ms - found.timestamp_ms <= STAGED_MS_MAX;
    let left = |found: &SnapshotAge| {
        let left = found.left_ms.map(|_| found.replaced_ms(found.timestamp_ms));
        !found.overdue && left.is_some_and(|left| within(left, retention.history_ms, now_ms))
    };
    let kept = snapshots.iter().filter(|found| under_way(found) || left(found));
    kept.map(|found| found.id).collect()
}

/// What stays of the history of a name, whose states come latest first.
fn kept_history<'a>(
    kind: NamedKind,
    lineage: impl Iterator<Item = &'a SnapshotAge>,
    retention: &Retention,
    now_ms: i64,
) -> Vec<i64> {
    let (least, ms) = history(kind, retention);
    let of_main = matches!(kind, NamedKind::Main | NamedKind::BeforeRollback(_));
    let states: Vec<&SnapshotAge> = lineage
        .enumerate()
        .take_while(|(index, found)| *index == 0 || !found.overdue)
        .map(|(_, found)| found)
        .collect();
    let recent = |index: usize| {
        let found = states[index];
        let child = index.checked_sub(1).filter(|_| of_main).map(|child| states[child]);
        let since = child.map_or(found.timestamp_ms, |child| found.replaced_ms(child.timestamp_ms));
        index < least || within(since, ms, now_ms)
    };
    // Whoever reads a history goes from state to state: none in between may be missing.
    let kept = (0..states.len()).rev().find(|index| recent(*index)).map_or(0, |last| last + 1);
    states[..kept].iter().map(|found| found.id).collect()
}

/// How many states of a name's history stay, and those of which age.
fn history(kind: NamedKind, retention: &Retention) -> (usize, i64) {
    match kind {
        NamedKind::Main => (retention.history_min.max(1), retention.history_ms),
        NamedKind::Branch { history_min, history_ms } => {
            let ms = history_ms.unwrap_or(retention.history_ms);
            (history_min.unwrap_or(retention.history_min).max(1), ms)
        }
        // Queries may have opened what `main`'s history was before the rollback.
        NamedKind::BeforeRollback(_) => (1, retention.history_ms),
        // Other tags name a state and no history.
        NamedKind::Version(_) | NamedKind::Tag => (1, -1),
    }
}

/// The numbers of the versions that stay, and the current one's.
fn versions_kept(
    named: &[Named],
    retention: &Retention,
    lineage: impl Fn(i64) -> Vec<i64>,
) -> (HashSet<u64>, Option<u64>) {
    let mut versions: Vec<(u64, i64)> = named
        .iter()
        .filter_map(|name| match name.kind {
            NamedKind::Version(number) => Some((number, name.snapshot)),
            _ => None,
        })
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    let mut kept: HashSet<u64> =
        versions.iter().take(retention.versions).map(|(number, _)| *number).collect();
    let main = named.iter().find(|name| name.kind == NamedKind::Main);
    let current = main.into_iter().flat_map(|main| lineage(main.snapshot)).find_map(|id| {
        versions.iter().find(|(_, snapshot)| *snapshot == id).map(|(number, _)| *number)
    });
    kept.extend(current);
    (kept, current)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    /// Snapshots 1, 2, … a day apart, each the child of the one before; it is day `count`.
    fn days(count: i64) -> Vec<SnapshotAge> {
        (1..=count)
            .map(|id| SnapshotAge {
                id,
                parent: (id > 1).then_some(id - 1),
                timestamp_ms: id * DAY,
                left_ms: None,
                staged: false,
                overdue: false,
            })
            .collect()
    }

    fn named(name: &str, snapshot: i64, kind: NamedKind) -> Named {
        Named { name: name.to_owned(), snapshot, kind, age_max_ms: None }
    }

    fn version(number: u64, snapshot: i64) -> Named {
        named(&format!("v{number}"), snapshot, NamedKind::Version(number))
    }

    const RETENTION: Retention = Retention { versions: 2, history_ms: 3 * DAY, history_min: 1 };

    fn gone(snapshots: &[SnapshotAge], named: &[Named], now: i64) -> (Vec<String>, Vec<i64>) {
        let Expiry { names, snapshots, .. } = expiry(snapshots, named, &RETENTION, now * DAY);
        (names, snapshots)
    }

    #[test]
    fn what_a_run_has_staged_stays_for_a_day_though_nothing_names_it() {
        let mut snapshots = days(3);
        snapshots[1].staged = true;
        let main = [named("main", 3, NamedKind::Main)];
        let short = Retention { history_ms: -1, ..RETENTION };
        let gone = |now_ms| expiry(&snapshots, &main, &short, now_ms).snapshots;
        assert_eq!(gone(3 * DAY), [1]);
        assert_eq!(gone(3 * DAY + 1), [1, 2]);
    }

    #[test]
    fn the_latest_versions_and_a_recent_history_stay() {
        let names =
            [named("main", 10, NamedKind::Main), version(1, 2), version(2, 4), version(3, 6)];
        // v2 and v3, and the history of three days.
        assert_eq!(gone(&days(10), &names, 10), (vec!["v1".into()], vec![1, 2, 3, 5]));
        // A month later the present state stays, whatever its age.
        let later = gone(&days(10), &names, 40);
        assert_eq!(later, (vec!["v1".into()], vec![1, 2, 3, 5, 7, 8, 9]));
    }

    #[test]
    fn a_state_has_its_time_from_when_another_took_its_place() {
        let mut snapshots = days(2);
        snapshots[1].timestamp_ms = 40 * DAY;
        let main = [named("main", 2, NamedKind::Main)];
        let gone = |snapshots: &[SnapshotAge], now_ms| {
            expiry(snapshots, &main, &RETENTION, now_ms).snapshots
        };
        assert_eq!(
            gone(&snapshots, 43 * DAY),
            [0_i64; 0],
            "the present one for 39 days until then"
        );
        assert_eq!(gone(&snapshots, 43 * DAY + 1), [1]);
        // What took its place was made on day 40, and published on day 42.
        snapshots[0].left_ms = Some(42 * DAY);
        assert_eq!(gone(&snapshots, 45 * DAY), [0_i64; 0]);
        assert_eq!(gone(&snapshots, 45 * DAY + 1), [1]);
        // A clock that is behind takes nothing from it.
        snapshots[0].left_ms = Some(0);
        assert_eq!(gone(&snapshots, 4 * DAY), [0_i64; 0]);
        let none = Retention { history_ms: -1, ..RETENTION };
        assert_eq!(expiry(&snapshots, &main, &none, 0).snapshots, [1], "below zero, no age counts");
    }

    #[test]
    fn what_main_went_back_from_has_its_time_though_nothing_names_it() {
        let mut snapshots = days(4);
        // Another engine has set `main` back from 4 to 2 on day 6, and left no name.
        (snapshots[2].left_ms, snapshots[3].left_ms) = (Some(4 * DAY), Some(6 * DAY));
        let main = [named("main", 2, NamedKind::Main)];
        assert_eq!(gone(&snapshots, &main, 7), (vec![], vec![1]));
        assert_eq!(gone(&snapshots, &main, 9), (vec![], vec![1, 3]));
        assert_eq!(gone(&snapshots, &main, 10), (vec![], vec![1, 3, 4]));
        // A state in between that was the present one again lately keeps those between it and `main`.
        let mut snapshots = days(3);
        (snapshots[0].left_ms, snapshots[1].left_ms) = (Some(9 * DAY), Some(3 * DAY));
        let main = [named("main", 3, NamedKind::Main)];
        assert_eq!(gone(&snapshots, &main, 10), (vec![], vec![]));
        snapshots[1].overdue = true;
        assert_eq!(gone(&snapshots, &main, 10), (vec![], vec![2]));
        snapshots[0].overdue = true;
        assert_eq!(gone(&snapshots, &main, 10), (vec![], vec![1, 2]));
    }

    #[test]
    fn a_version_that_was_gone_back_to_stays() {
        let mut snapshots = days(6);
        snapshots.push(SnapshotAge {
            id: 7,
            parent: Some(2),
            timestamp_ms: 7 * DAY,
            left_ms: None,
            staged: false,
            overdue: false,
        });
        let names = [
            named("main", 7, NamedKind::Main),
            version(1, 2),
            version(2, 4),
            version(3, 6),
            named("before-rollback-1", 6, NamedKind::BeforeRollback(7 * DAY)),
        ];
        // Queries may still read what was `main`'s history until the rollback: 5 was replaced on day 6.
        assert_eq!(gone(&snapshots, &names, 9), (vec![], vec![1, 3]), "v1 is the current one");
        assert_eq!(gone(&snapshots, &names, 7), (vec![], vec![1]));
        let later = gone(&snapshots, &names, 11);
        assert_eq!(later, (vec!["before-rollback-1".into()], vec![1, 3, 5]));
    }

    #[test]
    fn names_of_others_stay_as_long_as_they_say() {
        let forever = named("audit", 1, NamedKind::Tag);
        let mut short = named("try", 2, NamedKind::Tag);
        short.age_max_ms = Some(5 * DAY);
        let kind = NamedKind::Branch { history_min: Some(3), history_ms: Some(0) };
        let branch = named("branch", 6, kind);
        let names = [named("main", 10, NamedKind::Main), forever, short, branch];
        assert_eq!(gone(&days(10), &names, 10), (vec!["try".into()], vec![2, 3]));
        assert_eq!(gone(&days(10), &names, 7).0, Vec::<String>::new());
    }

    #[test]
    fn without_history_the_present_state_stays() {
        let names = [named("main", 3, NamedKind::Main)];
        assert_eq!(gone(&days(3), &names, 100), (vec![], vec![1, 2]));
        let none = Retention { versions: 0, history_ms: 0, history_min: 0 };
        assert_eq!(expiry(&days(3), &names, &none, 100 * DAY).snapshots, [1, 2]);
        let two = Retention { history_min: 2, ..none };
        assert_eq!(expiry(&days(3), &names, &two, 100 * DAY).snapshots, [1]);
        assert_eq!(expiry(&[], &[], &none, 0), Expiry::default());
    }

    #[test]
    fn states_with_overdue_rows_go_unless_others_name_them() {
        let mut snapshots = days(10);
        snapshots[..8].iter_mut().for_each(|found| found.overdue = true);
        let names = [
            named("main", 10, NamedKind::Main),
            version(1, 2),
            version(2, 6),
            named("audit", 4, NamedKind::Tag),
            named("before-rollback-1", 5, NamedKind::BeforeRollback(9 * DAY)),
        ];
        let found = expiry(&snapshots, &names, &RETENTION, 10 * DAY);
        assert_eq!(found.names, ["before-rollback-1", "v1"]);
        assert_eq!(found.moved, ["v2"], "the current version names what is left of it");
        assert_eq!(found.holding, ["audit"]);
        assert_eq!(found.snapshots, [1, 2, 3, 5, 6, 7, 8], "the history is shorter than its days");
        // Before retention has taken the rows from the table there is nothing to move to.
        for found in &mut snapshots {
            found.overdue = true;
        }
        let found = expiry(&snapshots, &names, &RETENTION, 10 * DAY);
        assert_eq!(
            (found.moved, found.holding),
            (vec![], vec!["audit".into(), "main".into(), "v2".into()])
        );
    }
}
