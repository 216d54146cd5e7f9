//! Who may hold how much of something at once: weighted shares by key, first come, first served.
//!
//! What is shared and how much there is of it is the caller's to say. A key that nobody holds or waits
//! for takes no room.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use polder_core::RunProgress;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The limit of a key without one: what is held is counted all the same.
const NO_LIMIT: usize = Semaphore::MAX_PERMITS;

/// What is held of something, by key.
pub struct Shares<K: Ord> {
    entries: Mutex<BTreeMap<K, Entry>>,
}

struct Entry {
    limit: usize,
    held: usize,
    /// Whoever holds a share or waits for one.
    users: usize,
    /// Permits for what nobody holds; closed and replaced when the limit becomes another one.
    free: Arc<Semaphore>,
}

/// A part that is held until this is dropped.
pub struct Share<K: Ord> {
    of: Arc<Shares<K>>,
    key: K,
    amount: usize,
}

impl<K: Ord + Clone> Shares<K> {
    /// Nothing is held yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { entries: Mutex::new(BTreeMap::new()) })
    }

    /// Waits for a part of so much; for all there is, where `limit` is less. Whoever waited first comes
    /// first, also where a smaller part is free. A caller with another limit than those before changes it
    /// for all: what is held meanwhile stays held.
    pub async fn take(self: &Arc<Self>, key: K, wanted: u32, limit: Option<u32>) -> Share<K> {
        let mut share = self.join(key, limit);
        loop {
            let (free, amount) = share.offered(wanted);
            // It is closed once the limit is another one: then what is offered is asked for anew.
            if let Ok(permits) = free.acquire_many(amount).await
                && share.accept(&free, permits, amount)
            {
                return share;
            }
        }
    }

    /// A part of so much, if nobody waits and it is free.
    pub fn take_free(
        self: &Arc<Self>,
        key: K,
        wanted: u32,
        limit: Option<u32>,
    ) -> Option<Share<K>> {
        let mut share = self.join(key, limit);
        let (free, amount) = share.offered(wanted);
        let permits = free.try_acquire_many(amount).ok()?;
        share.accept(&free, permits, amount).then_some(share)
    }

    /// What is held now, by key, of the keys that are asked for.
    pub fn held(&self, of: impl Fn(&K) -> bool) -> Vec<(K, usize)> {
        let entries = self.entries();
        let asked = entries.iter().filter(|(key, entry)| entry.held > 0 && of(key));
        asked.map(|(key, entry)| (key.clone(), entry.held)).collect()
    }

    /// A share of nothing, that has a place among the key's users.
    fn join(self: &Arc<Self>, key: K, limit: Option<u32>) -> Share<K> {
        // A limit of nothing would let nobody through, for ever.
        let limit = limit.map_or(NO_LIMIT, |limit| limit.max(1) as usize);
        let mut entries = self.entries();
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
            limit,
            held: 0,
            users: 0,
            free: Arc::new(Semaphore::new(limit)),
        });
        entry.users += 1;
        if entry.limit != limit {
            entry.limit = limit;
            entry.free.close();
            entry.free = Arc::new(Semaphore::new(limit.saturating_sub(entry.held)));
        }
        drop(entries);
        Share { of: Arc::clone(self), key, amount: 0 }
    }
}

impl<K: Ord> Shares<K> {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<K, Entry>> {
        // Numbers stay right after a panic elsewhere.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord> Share<K> {
    /// What to wait at, and for how much.
    fn offered(&self, wanted: u32) -> (Arc<Semaphore>, u32) {
        let entries = self.of.entries();
        // A user's entry is there as long as the user.
        let Some(entry) = entries.get(&self.key) else {
            return (Arc::new(Semaphore::new(NO_LIMIT)), wanted);
        };
        let amount = u32::try_from(entry.limit).map_or(wanted, |limit| wanted.min(limit));
        (Arc::clone(&entry.free), amount)
    }

    /// Takes what was waited for; false if the limit has become another one at that moment.
    fn accept(&mut self, free: &Arc<Semaphore>, permits: SemaphorePermit<'_>, amount: u32) -> bool {
        let mut entries = self.of.entries();
        let Some(entry) = entries.get_mut(&self.key) else { return false };
        if !Arc::ptr_eq(&entry.free, free) {
            return false;
        }
        permits.forget();
        entry.held += amount as usize;
        self.amount = amount as usize;
        true
    }
}

impl<K: Ord> Drop for Share<K> {
    fn drop(&mut self) {
        let mut entries = self.of.entries();
        let Some(entry) = entries.get_mut(&self.key) else { return };
        let before = entry.limit.saturating_sub(entry.held);
        entry.held = entry.held.saturating_sub(self.amount);
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 {
            entries.remove(&self.key);
            return;
        }
        // Less than was held where the limit has come down meanwhile.
        entry.free.add_permits(entry.limit.saturating_sub(entry.held) - before);
    }
}

/// Waits, and says what for as long as it does.
pub async fn told<T>(
    taking: impl Future<Output = T>,
    progress: &RunProgress,
    what: impl FnOnce() -> String,
) -> T {
    let mut taking = pin!(taking);
    if let Some(taken) = taking.as_mut().now_or_never() {
        return taken;
    }
    progress.wait_for(what());
    let taken = taking.await;
    progress.go_on();
    taken
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::{JoinSet, yield_now};

    use super::*;

    /// Lets all that can go on do so.
    async fn settle() {
        for _ in 0..50 {
            yield_now().await;
        }
    }

    fn is_empty(shares: &Shares<&'static str>) -> bool {
        shares.entries().is_empty()
    }

    #[tokio::test]
    async fn who_came_first_is_first_also_where_less_would_be_free() {
        let shares = Shares::new();
        let first = shares.take("a", 3, Some(4)).await;
        let (order, mut tasks) = (Arc::new(Mutex::new(Vec::new())), JoinSet::new());
        for (name, wanted) in [("large", 4), ("small", 1), ("last", 4)] {
            let (shares, order) = (Arc::clone(&shares), Arc::clone(&order));
            tasks.spawn(async move {
                let _share = shares.take("a", wanted, Some(4)).await;
                order.lock().expect("order").push(name);
            });
            settle().await;
        }
        assert!(order.lock().expect("order").is_empty(), "one is free, and the first wants four");
        assert!(shares.take_free("a", 1, Some(4)).is_none(), "nobody passes those who wait");
        assert!(shares.take("b", 4, Some(4)).now_or_never().is_some(), "keys are apart");
        drop(first);
        tasks.join_all().await;
        assert_eq!(*order.lock().expect("order"), ["large", "small", "last"]);
        assert!(is_empty(&shares));
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_nothing_along() {
        let shares = Shares::new();
        let first = shares.take("a", 2, Some(2)).await;
        for _ in 0..20 {
            let mut tasks = JoinSet::new();
            let waiting = Arc::clone(&shares);
            tasks.spawn(async move { waiting.take("a", 2, Some(2)).await });
            settle().await;
            tasks.shutdown().await;
        }
        assert_eq!(shares.held(|_| true), [("a", 2)]);
        drop(first);
        assert!(is_empty(&shares));
        // Given up in the very moment in which it is free.
        let first = shares.take("a", 2, Some(2)).await;
        let mut tasks = JoinSet::new();
        let waiting = Arc::clone(&shares);
        tasks.spawn(async move { waiting.take("a", 2, Some(2)).await });
        settle().await;
        drop(first);
        tasks.shutdown().await;
        assert!(shares.take("a", 2, Some(2)).now_or_never().is_some());
        assert!(is_empty(&shares));
    }

    #[tokio::test]
    async fn a_limit_that_changes_holds_from_then_on_and_lets_all_through() {
        let shares = Shares::new();
        let (one, two) = (shares.take("a", 2, Some(4)).await, shares.take("a", 2, Some(4)).await);
        let waiting = Arc::clone(&shares);
        let mut tasks = JoinSet::new();
        // Wants more than there will be.
        tasks.spawn(async move { waiting.take("a", 4, Some(4)).await });
        settle().await;
        let lower = Arc::clone(&shares);
        tasks.spawn(async move { lower.take("a", 1, Some(2)).await });
        settle().await;
        drop(one);
        settle().await;
        assert_eq!(shares.held(|_| true), [("a", 2)], "two are held, and that is all there is");
        drop(two);
        while let Some(share) = tasks.join_next().await {
            assert!(share.expect("taken").amount <= 2);
        }
        let held = shares.take("a", 1, Some(1)).await;
        let more = shares.take("a", 1, Some(3)).now_or_never().expect("there is more now");
        assert_eq!(shares.held(|_| true), [("a", 2)]);
        drop((held, more));
        assert!(is_empty(&shares));
    }

    #[tokio::test]
    async fn without_a_limit_all_is_counted_and_nobody_waits() {
        let shares = Shares::new();
        let held: Vec<_> = (0..9)
            .map(|_| shares.take("a", u32::MAX, None).now_or_never().expect("at once"))
            .collect();
        assert_eq!(shares.held(|_| true), [("a", 9 * u32::MAX as usize)]);
        assert!(shares.held(|key| *key == "b").is_empty());
        drop(held);
        assert!(shares.take("a", 7, Some(0)).now_or_never().is_some(), "none is one");
        assert!(is_empty(&shares));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_more_is_held_than_there_is_whatever_comes_and_goes() {
        const LIMIT: u32 = 5;
        let (shares, held) = (Shares::new(), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for number in 0..200_u32 {
            let (shares, held) = (Arc::clone(&shares), Arc::clone(&held));
            tasks.spawn(async move {
                let wanted = number % LIMIT + 1;
                let _share = shares.take("a", wanted, Some(LIMIT)).await;
                let now = held.fetch_add(wanted as usize, Ordering::SeqCst) + wanted as usize;
                assert!(now <= LIMIT as usize, "{now} are held");
                yield_now().await;
                held.fetch_sub(wanted as usize, Ordering::SeqCst);
            });
        }
        tasks.join_all().await;
        assert!(is_empty(&shares));
    }

    #[tokio::test]
    async fn what_is_waited_for_is_told_while_it_is() {
        let (shares, progress) = (Shares::new(), Arc::new(RunProgress::default()));
        let first = shares.take("a", 1, Some(1)).await;
        let (waiting, tells) = (Arc::clone(&shares), Arc::clone(&progress));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            told(waiting.take("a", 1, Some(1)), &tells, || "room".to_owned()).await
        });
        settle().await;
        assert_eq!(progress.snapshot().waiting_for.as_deref(), Some("room"));
        drop(first);
        tasks.join_all().await;
        assert_eq!(progress.snapshot().waiting_for, None);
    }
}
