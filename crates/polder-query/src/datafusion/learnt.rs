//! What reading all rows has told of the columns of sources' tables, kept for the statements to come.
//!
//! It may be out of date: a source notices that by the rows it reads, and then the statement is planned
//! anew, with what all rows tell.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polder_core::{Error, ErrorCode, Learnt};

/// After this long a table's columns are learnt anew, if somebody asks.
const AGE_MAX: Duration = Duration::from_mins(10);
/// Columns and nested fields of all tables that are kept, of about 200 bytes each.
const PATHS_MAX: usize = 100_000;

/// What is kept, by `<source>.<database>.<collection>`. SQL reads a source without any org's filter.
pub(super) struct Kept {
    tables: Mutex<Tables>,
    age_max: Duration,
    paths_max: usize,
}

#[derive(Default)]
struct Tables {
    by_place: HashMap<String, Table>,
    /// Counts uses.
    uses: u64,
}

struct Table {
    learnt: Arc<Learnt>,
    since: Instant,
    /// The number of its last use.
    used: u64,
}

impl Default for Kept {
    fn default() -> Self {
        Self { tables: Mutex::default(), age_max: AGE_MAX, paths_max: PATHS_MAX }
    }
}

impl Kept {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, place: &str) -> Option<Arc<Learnt>> {
        let mut tables = self.tables();
        tables.uses += 1;
        let uses = tables.uses;
        let table = tables.by_place.get_mut(place)?;
        if table.since.elapsed() >= self.age_max {
            tables.by_place.remove(place);
            return None;
        }
        table.used = uses;
        Some(Arc::clone(&table.learnt))
    }

    /// Keeps it, and gives up those that were not used for the longest time where there is no room.
    fn put(&self, place: &str, learnt: Learnt, since: Instant) {
        let mut tables = self.tables();
        tables.uses += 1;
        let table = Table { learnt: Arc::new(learnt), since, used: tables.uses };
        tables.by_place.insert(place.to_owned(), table);
        while tables.by_place.values().map(|table| table.learnt.paths).sum::<usize>()
            > self.paths_max
        {
            let oldest = tables.by_place.iter().min_by_key(|(_, table)| table.used);
            let Some(oldest) = oldest.map(|(place, _)| place.clone()) else { return };
            tables.by_place.remove(&oldest);
        }
    }

    fn forget(&self, place: &str) {
        self.tables().by_place.remove(place);
    }
}

/// What one statement knows of tables before it reads them.
pub(super) struct Known {
    kept: Arc<Kept>,
    /// Whether it takes what is kept.
    takes: bool,
    has_taken: AtomicBool,
    outdated: AtomicBool,
}

impl Known {
    /// A statement that goes by what is kept, or one that learns anew.
    pub(super) fn new(kept: &Arc<Kept>, takes: bool) -> Arc<Self> {
        let (has_taken, outdated) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { kept: Arc::clone(kept), takes, has_taken, outdated })
    }

    pub(super) fn of(&self, place: &str) -> Option<Arc<Learnt>> {
        if !self.takes {
            return None;
        }
        let learnt = self.kept.get(place)?;
        self.has_taken.store(true, Ordering::Relaxed);
        Some(learnt)
    }

    /// Keeps what a read that began at `since` has told.
    pub(super) fn learn(&self, place: &str, learnt: Option<Learnt>, since: Instant) {
        match learnt {
            Some(learnt) => self.kept.put(place, learnt, since),
            None => self.kept.forget(place),
        }
    }

    /// Notes that the rows of a table are not as they were; what planning ends with.
    pub(super) fn outdate(&self, place: &str) -> Error {
        self.kept.forget(place);
        self.outdated.store(true, Ordering::Relaxed);
        Error::new(ErrorCode::SourceUnavailable, "the source's columns changed meanwhile")
            .hint("try again")
    }

    /// The statement once more, learning anew, if what was kept is out of date (EXPLAIN takes the error
    /// for a plan), or may be why planning has failed: a name may be a new column's, and a type another
    /// one now.
    pub(super) fn anew(&self, error: Option<&Error>) -> Option<Arc<Self>> {
        let invalid = error.is_some_and(|error| error.code() == ErrorCode::QueryInvalid);
        let may_be_why = self.has_taken.load(Ordering::Relaxed) && invalid;
        let again = may_be_why || self.outdated.load(Ordering::Relaxed);
        again.then(|| Self::new(&self.kept, false))
    }
}

#[cfg(test)]
mod tests {
    use polder_core::TableSchema;

    use super::*;

    fn learnt(rows: u64, paths: usize) -> Learnt {
        Learnt { schema: TableSchema::default(), rows, paths, found: Arc::new(()) }
    }

    #[test]
    fn the_least_recently_used_give_way_and_the_old_are_gone() {
        let kept = Kept { paths_max: 10, ..Kept::default() };
        let now = Instant::now();
        for (place, rows) in [("a", 1), ("b", 2)] {
            kept.put(place, learnt(rows, 4), now);
        }
        assert_eq!(kept.get("a").expect("kept").rows, 1);
        kept.put("c", learnt(3, 4), now);
        assert!(kept.get("b").is_none());
        assert!(kept.get("a").is_some() && kept.get("c").is_some());
        kept.put("d", learnt(4, 11), now);
        assert!(["a", "b", "c", "d"].iter().all(|place| kept.get(place).is_none()));
        let brief = Kept { age_max: Duration::ZERO, ..Kept::default() };
        brief.put("a", learnt(1, 1), now);
        assert!(brief.get("a").is_none());
    }

    #[test]
    fn a_statement_is_planned_anew_once_and_only_if_it_took_what_was_kept() {
        let kept = Arc::new(Kept::default());
        let invalid = Error::new(ErrorCode::QueryInvalid, "no such column");
        let first = Known::new(&kept, true);
        assert!(first.of("a").is_none());
        assert!(first.anew(Some(&invalid)).is_none());
        first.learn("a", Some(learnt(1, 1)), Instant::now());
        let second = Known::new(&kept, true);
        assert!(second.of("a").is_some());
        let denied = Error::new(ErrorCode::SourceDenied, "no");
        assert!(second.anew(Some(&denied)).is_none());
        assert!(second.anew(None).is_none());
        let third = second.anew(Some(&invalid)).expect("once more");
        assert!(third.of("a").is_none());
        assert!(third.anew(Some(&invalid)).is_none());
        let error = second.outdate("a");
        assert!(second.anew(Some(&error)).is_some());
        assert!(second.anew(None).is_some());
        assert!(kept.get("a").is_none());
    }
}
