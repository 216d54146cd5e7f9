//! What runs may hold in this process: memory, of which an org may have a share of its own, and how many
//! splits and connections go with it.
//!
//! A run takes all of its memory at once and before its first connection. Of connections it waits for one
//! and takes others if they are free (`polder-sources`). So no run waits for one that waits for it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use polder_core::spec::{Limits, OrgLimits};
use polder_core::{Error, ErrorCode, OrgId, Result, RunProgress};
use polder_pipeline::IngestLimits;
use polder_sources::shares::{Share, Shares, told};
use tokio_util::sync::CancellationToken;

/// Memory that a split needs for its batches.
const SPLIT_BYTES: usize = 6 << 20;
/// The unit in which memory is handed out.
const UNIT_BYTES: usize = 1 << 10;
const UNITS_PER_MB: usize = (1 << 20) / UNIT_BYTES;

/// The process's limits, and what the runs of each org hold of them.
pub(crate) struct Room {
    pub(crate) limits: Limits,
    /// Runs of one org at the same time.
    runs_of_org: usize,
    memory: Arc<Shares<OrgId>>,
}

/// What one run may use until this is dropped.
pub(crate) struct Place {
    pub(crate) memory_bytes: usize,
    splits: NonZeroUsize,
    connections: Option<u32>,
    _memory: Share<OrgId>,
}

impl Room {
    pub(crate) fn new(limits: Limits, runs_of_org: usize) -> Self {
        Self { limits, runs_of_org, memory: Shares::new() }
    }

    /// Waits for the memory of a run, and says so while it does.
    ///
    /// # Errors
    /// `cancelled` when the run is, while it waits.
    pub(crate) async fn enter(
        &self,
        org: &OrgId,
        limits: &OrgLimits,
        progress: &RunProgress,
        cancel: &CancellationToken,
    ) -> Result<Place> {
        let memory_bytes = limits.memory_of_run(&self.limits, self.runs_of_org);
        let most_mb = self.most_mb(limits);
        let most = limits.memory_mb.map(|_| units(most_mb * UNITS_PER_MB));
        let taking = self.memory.take(org.clone(), units(memory_bytes / UNIT_BYTES), most);
        let words = || format!("memory: other runs of the org hold its {most_mb} MB");
        let memory = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                let message = "the run was cancelled before it began";
                return Err(Error::new(ErrorCode::Cancelled, message));
            }
            memory = told(taking, progress, words) => memory,
        };
        let splits = NonZeroUsize::new(self.limits.splits).unwrap_or(NonZeroUsize::MIN);
        let fit = NonZeroUsize::new(memory_bytes / SPLIT_BYTES).unwrap_or(NonZeroUsize::MIN);
        Ok(Place {
            memory_bytes,
            splits: if limits.memory_mb.is_some() { splits.min(fit) } else { splits },
            connections: limits.connections,
            _memory: memory,
        })
    }

    /// The memory in MB that the org's runs may hold together.
    pub(crate) fn most_mb(&self, limits: &OrgLimits) -> usize {
        limits.memory_mb.map_or(self.limits.memory_mb, |mb| self.limits.memory_mb.min(mb as usize))
    }

    /// The memory in MB that the org's runs hold now, rounded up.
    pub(crate) fn held_mb(&self, org: &OrgId) -> usize {
        let held = self.memory.held(|of| of == org);
        held.iter().map(|(_, units)| units).sum::<usize>().div_ceil(UNITS_PER_MB)
    }
}

impl Place {
    pub(crate) fn limits(&self) -> IngestLimits {
        IngestLimits {
            splits: self.splits,
            memory_bytes: self.memory_bytes,
            connections: self.connections,
        }
    }
}

fn units(units: usize) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn room(runs: usize) -> Room {
        Room::new(Limits { runs, memory_mb: 256, splits: 8, ..Limits::default() }, runs)
    }

    fn org(id: &str) -> OrgId {
        id.parse().expect("id")
    }

    /// A place, if there is one at once; what is waited for otherwise.
    fn enter(room: &Room, id: &str, limits: &OrgLimits) -> std::result::Result<Place, String> {
        let progress = RunProgress::default();
        let entered =
            room.enter(&org(id), limits, &progress, &CancellationToken::new()).now_or_never();
        entered
            .map(|place| place.expect("not cancelled"))
            .ok_or_else(|| progress.snapshot().waiting_for.unwrap_or_default())
    }

    #[test]
    fn an_orgs_runs_share_its_memory_and_those_of_others_have_theirs() {
        let room = room(4);
        let small = OrgLimits { memory_mb: Some(40), ..OrgLimits::default() };
        let first = enter(&room, "1", &small).expect("room");
        // 10 MB for each of four runs would be less than one needs.
        assert_eq!((first.memory_bytes, first.splits.get()), (16 << 20, 2));
        let _second = enter(&room, "1", &small).expect("room");
        assert_eq!(room.held_mb(&org("1")), 32);
        let waits = enter(&room, "1", &small).err().expect("8 MB are left");
        assert_eq!(waits, "memory: other runs of the org hold its 40 MB");
        let other = enter(&room, "2", &OrgLimits::default()).expect("room");
        assert_eq!((other.memory_bytes, other.splits.get()), (64 << 20, 8));
        drop(first);
        assert!(enter(&room, "1", &small).is_ok());
        assert_eq!(room.held_mb(&org("1")), 16, "what is dropped is given back");
        assert_eq!((room.most_mb(&small), room.most_mb(&OrgLimits::default())), (40, 256));
        let large = OrgLimits { memory_mb: Some(1_000_000), ..OrgLimits::default() };
        assert_eq!(room.most_mb(&large), 256);
    }

    #[test]
    fn without_limits_as_many_runs_as_the_process_has_find_room() {
        let room = room(3);
        let all: Vec<Place> =
            (0..3).map(|_| enter(&room, "1", &OrgLimits::default()).expect("room")).collect();
        assert!(all.iter().all(|place| place.memory_bytes == (256 << 20) / 3));
        let same = OrgLimits { memory_mb: Some(256), ..OrgLimits::default() };
        drop(all);
        let all: Vec<Place> = (0..3).map(|_| enter(&room, "1", &same).expect("room")).collect();
        assert_eq!(all.len(), 3);
    }

    #[tokio::test]
    async fn who_waits_for_memory_can_be_cancelled() {
        let room = room(1);
        let limits =
            OrgLimits { memory_mb: Some(16), connections: Some(3), ..OrgLimits::default() };
        let held = enter(&room, "1", &limits).expect("room");
        assert_eq!(held.limits().connections, Some(3));
        let (cancel, progress) = (CancellationToken::new(), RunProgress::default());
        let id = org("1");
        let waits = room.enter(&id, &limits, &progress, &cancel);
        let (entered, ()) = tokio::join!(waits, async { cancel.cancel() });
        assert_eq!(entered.err().expect("cancelled").code(), ErrorCode::Cancelled);
        drop(held);
        assert!(enter(&room, "1", &limits).is_ok());
        assert_eq!(room.held_mb(&id), 0);
    }
}
