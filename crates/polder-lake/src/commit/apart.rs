//! Whether rows are there twice, by a hash of what tells them apart.
//!
//! Hashes are put into heaps by their first byte as rows come; each heap is small enough for a table of it to stay
//! in the processor's caches.

use std::collections::HashSet;

use polder_core::Result;

use crate::error;

/// Hashes are put into as many heaps, by their first byte.
pub(super) const HEAPS: usize = 256;
const ENOUGH: usize = 1 << 10;

/// The rows of one part.
#[derive(Debug)]
pub(super) struct Apart {
    /// Of the heaps, those are kept that are in this part: each of so many, from one on.
    part: (usize, usize),
    heaps: Vec<Vec<u64>>,
}

impl Apart {
    /// For so many rows, about.
    pub(super) fn new((part, parts): (usize, usize), rows: usize) -> Self {
        // A little more than the average, so that few heaps have to grow, which doubles them.
        let room = rows / HEAPS + rows / HEAPS / 8;
        let heap = |heap| Vec::with_capacity(if heap % parts == part { room } else { 0 });
        Self { part: (part, parts), heaps: (0..HEAPS).map(heap).collect() }
    }

    pub(super) fn add(&mut self, hashes: &[u64]) {
        let (part, parts) = self.part;
        for hash in hashes {
            let heap = (hash >> 56) as usize;
            if parts == 1 || heap % parts == part {
                self.heaps[heap].push(*hash);
            }
        }
    }
}

/// The hashes that rows of all parts have more than once, worked out by so many threads. Where a heap has more
/// than [`ENOUGH`] of them, not all: of a key that tells nothing apart, some say so.
///
/// # Errors
/// `internal` if it was stopped.
pub(super) async fn repeated(parts: Vec<Apart>, at_once: usize) -> Result<HashSet<u64>> {
    let mut heaps: Vec<Vec<Vec<u64>>> = vec![Vec::new(); HEAPS];
    for part in parts {
        heaps.iter_mut().zip(part.heaps).for_each(|(heap, own)| heap.push(own));
    }
    let share = HEAPS.div_ceil(at_once.max(1));
    let mut found = Vec::new();
    while !heaps.is_empty() {
        let own = heaps.split_off(heaps.len().saturating_sub(share));
        found.push(tokio::task::spawn_blocking(move || {
            let (mut places, mut found) = (Vec::new(), Vec::new());
            for heap in own {
                twice(&heap, &mut places, &mut found);
                found.sort_unstable();
                found.dedup();
            }
            found
        }));
    }
    let found: Vec<Vec<u64>> = futures::future::try_join_all(found).await.map_err(error::join)?;
    Ok(found.into_iter().flatten().collect())
}

/// Adds the hashes of one heap that are there more than once. `places`: memory to use again.
fn twice(heap: &[Vec<u64>], places: &mut Vec<u64>, found: &mut Vec<u64>) {
    let count: usize = heap.iter().map(Vec::len).sum();
    // A quarter of the places stays empty. Their first bytes are the same: the others say where.
    places.clear();
    places.resize((count / 3 * 4 + 4).next_power_of_two(), 0);
    let (mask, mut zeros) = (places.len() - 1, 0);
    let enough = found.len() + ENOUGH;
    for hash in heap.iter().flatten() {
        if *hash == 0 {
            // An empty place.
            zeros += 1;
            continue;
        }
        let mut at = *hash as usize & mask;
        while places[at] != 0 && places[at] != *hash {
            at = (at + 1) & mask;
        }
        if places[at] == *hash {
            found.push(*hash);
            if found.len() >= enough {
                break;
            }
        }
        places[at] = *hash;
    }
    found.extend((zeros > 1).then_some(0));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes() -> impl Strategy<Value = u64> {
        // Few of them, in few heaps, next to each other.
        prop_oneof![(0..3_u64, 0..20_u64).prop_map(|(heap, rest)| heap << 56 | rest), any::<u64>()]
    }

    proptest! {
        #[test]
        fn what_is_there_twice_is_found(
            parts in prop::collection::vec(prop::collection::vec(hashes(), 0..60), 0..4),
            of in 1..5_usize,
            at_once in 1..4_usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            let mut found = HashSet::new();
            for part in 0..of {
                let apart = parts.iter().map(|hashes| {
                    let mut apart = Apart::new((part, of), hashes.len());
                    hashes.chunks(7).for_each(|hashes| apart.add(hashes));
                    apart
                });
                let own = runtime.block_on(repeated(apart.collect(), at_once)).expect("ended");
                prop_assert!(own.is_disjoint(&found));
                found.extend(own);
            }
            let mut seen = HashSet::new();
            let twice = parts.iter().flatten().filter(|hash| !seen.insert(**hash));
            prop_assert_eq!(found, twice.copied().collect::<HashSet<u64>>());
        }
    }

    #[tokio::test]
    async fn of_many_rows_that_are_there_twice_some_are_found() {
        let mut apart = Apart::new((0, 1), 0);
        let of_a_heap = |rest: u64| 7 << 56 | rest;
        for _ in 0..2 {
            apart.add(&(0..10_000).map(of_a_heap).collect::<Vec<_>>());
        }
        let found = repeated(vec![apart], 2).await.expect("ended");
        assert_eq!(found.len(), ENOUGH);
        assert!(found.iter().all(|hash| hash >> 56 == 7));
    }
}
