//! Which row of each key stays: the newest by cursor, of those that a run has read and of those that
//! the table has. Pure: rows come from elsewhere, one after another, in any order.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::mem;

use super::keys::{Bytes, Marked, Part};

/// A row of a staged file: the file's number and the row's in it.
pub(super) type Place = (usize, u64);

/// What an entry takes beside the bytes of key and cursor.
const ENTRY_BYTES: usize = 128;

/// The keys that a run has read, or a part of them.
#[derive(Default)]
pub(super) struct Winners {
    rows: HashMap<Bytes, Winner>,
    /// Staged rows that do not stay.
    losers: Vec<Place>,
    bytes: usize,
}

struct Winner {
    cursor: Bytes,
    row: Row,
    /// The table has a row of the key, which goes.
    replaces: bool,
}

#[derive(Debug, PartialEq)]
enum Row {
    Staged(Place),
    /// Several of one cursor value: which of them is decided by what is in them.
    Tied(Vec<Place>),
    /// The source has marked it as deleted.
    Marked,
    /// The table's own row, which the source has still.
    Kept,
}

/// What became of the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) deleted: u64,
}

impl Winners {
    /// Begins with the marked rows of a part.
    pub(super) fn new(marked: &Marked, part: Part) -> Self {
        let mut winners = Self::default();
        for (key, cursor) in marked.iter().filter(|(key, _)| part.has(key)) {
            winners.bytes += key.len() + cursor.len() + ENTRY_BYTES;
            let winner = Winner { cursor: cursor.clone(), row: Row::Marked, replaces: false };
            winners.rows.insert(key.clone(), winner);
        }
        winners
    }

    /// Takes in a staged row: the newest of a key stays. A row marked as deleted wins over others of
    /// its cursor value.
    pub(super) fn add(&mut self, key: &[u8], cursor: &[u8], place: Place) {
        let Some(winner) = self.rows.get_mut(key) else {
            self.bytes += key.len() + cursor.len() + ENTRY_BYTES;
            let row = Row::Staged(place);
            let winner = Winner { cursor: cursor.into(), row, replaces: false };
            self.rows.insert(key.into(), winner);
            return;
        };
        match cursor.cmp(&winner.cursor) {
            Ordering::Less => self.losers.push(place),
            Ordering::Greater => {
                winner.cursor = cursor.into();
                let before = mem::replace(&mut winner.row, Row::Staged(place));
                before.lose(&mut self.losers);
            }
            Ordering::Equal => {
                match &mut winner.row {
                    Row::Staged(first) => winner.row = Row::Tied(vec![*first, place]),
                    Row::Tied(places) => places.push(place),
                    Row::Marked | Row::Kept => self.losers.push(place),
                }
                self.bytes += mem::size_of::<Place>();
            }
        }
    }

    /// Roughly what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.rows.keys()
    }

    /// The staged rows of which one has to be chosen, by their places, with their key.
    pub(super) fn tied(&self) -> HashMap<Place, Bytes> {
        let tied = self.rows.iter().filter_map(|(key, winner)| match &winner.row {
            Row::Tied(places) => Some(places.iter().map(|place| (*place, key.clone()))),
            _ => None,
        });
        tied.flatten().collect()
    }

    /// Ends the ties: `chosen` has the row that stays for each of their keys.
    pub(super) fn choose(&mut self, chosen: &HashMap<Bytes, Place>) {
        for (key, winner) in &mut self.rows {
            let Row::Tied(places) = &winner.row else { continue };
            let stays = chosen.get(key).or(places.first()).copied();
            self.losers.extend(places.iter().filter(|place| Some(**place) != stays));
            if let Some(stays) = stays {
                winner.row = Row::Staged(stays);
            }
        }
    }

    /// Whether a row that the table has goes. `read_again`: the keys of rows which the run has met
    /// unchanged. The source has such a row still, beside others of its key, and it stays if it is not
    /// older. Any other row of a key that was read is one the source has no more.
    pub(super) fn replaces(
        &mut self,
        key: &[u8],
        cursor: &[u8],
        read_again: &HashSet<Bytes>,
    ) -> bool {
        let Some(winner) = self.rows.get_mut(key) else { return false };
        if read_again.contains(key) && *cursor >= *winner.cursor {
            winner.cursor = cursor.into();
            mem::replace(&mut winner.row, Row::Kept).lose(&mut self.losers);
            return false;
        }
        if winner.row == Row::Kept {
            return false;
        }
        winner.replaces = true;
        true
    }

    /// The staged rows that do not stay, and what became of the keys.
    pub(super) fn finish(self) -> (Vec<Place>, Counts) {
        let mut counts = Counts::default();
        for winner in self.rows.values() {
            match (&winner.row, winner.replaces) {
                (Row::Staged(_) | Row::Tied(_), false) => counts.inserted += 1,
                (Row::Staged(_) | Row::Tied(_), true) => counts.updated += 1,
                (Row::Marked, true) => counts.deleted += 1,
                (Row::Marked, false) | (Row::Kept, _) => {}
            }
        }
        (self.losers, counts)
    }
}

impl Row {
    fn lose(self, losers: &mut Vec<Place>) {
        match self {
            Self::Staged(place) => losers.push(place),
            Self::Tied(places) => losers.extend(places),
            Self::Marked | Self::Kept => {}
        }
    }
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Part = Part { index: 0, of: 1 };

    fn marked(rows: &[(&str, &str)]) -> Marked {
        let row = |(key, cursor): &(&str, &str)| (key.as_bytes().into(), cursor.as_bytes().into());
        rows.iter().map(row).collect()
    }

    fn winners(marks: &[(&str, &str)], rows: &[(&str, &str)]) -> Winners {
        let mut winners = Winners::new(&marked(marks), ALL);
        for (number, (key, cursor)) in rows.iter().enumerate() {
            winners.add(key.as_bytes(), cursor.as_bytes(), (0, number as u64));
        }
        winners
    }

    fn finish(winners: Winners) -> (Vec<u64>, [u64; 3]) {
        let (losers, counts) = winners.finish();
        let mut losers: Vec<u64> = losers.into_iter().map(|(_, row)| row).collect();
        losers.sort_unstable();
        (losers, [counts.inserted, counts.updated, counts.deleted])
    }

    fn set(keys: &[&str]) -> HashSet<Bytes> {
        keys.iter().map(|key| key.as_bytes().into()).collect()
    }

    #[test]
    fn the_newest_row_of_a_key_stays_whatever_the_order() {
        for rows in [
            [("a", "1"), ("a", "3"), ("a", "2"), ("b", "1")],
            [("a", "3"), ("b", "1"), ("a", "2"), ("a", "1")],
        ] {
            let newest = rows.iter().position(|row| *row == ("a", "3")).expect("row") as u64;
            let (losers, counts) = finish(winners(&[], &rows));
            assert_eq!((losers.len(), losers.contains(&newest)), (2, false));
            assert_eq!(counts, [2, 0, 0]);
        }
    }

    #[test]
    fn a_mark_takes_away_what_is_not_newer() {
        let rows = [("a", "1"), ("b", "2"), ("c", "3")];
        let marks = [("a", "2"), ("b", "2"), ("c", "2"), ("d", "2")];
        let mut winners = winners(&marks, &rows);
        let none = HashSet::new();
        for key in ["a", "c", "x"] {
            assert_eq!(winners.replaces(key.as_bytes(), b"0", &none), key != "x", "{key}");
        }
        // b and d were never in the table.
        assert_eq!(finish(winners), (vec![0, 1], [0, 1, 1]));
    }

    #[test]
    fn ties_go_by_what_is_chosen() {
        let mut winners = winners(&[], &[("a", "1"), ("a", "1"), ("a", "1"), ("b", "1")]);
        let tied = winners.tied();
        assert_eq!(tied.len(), 3);
        assert!(!tied.contains_key(&(0, 3)));
        winners.choose(&HashMap::from([(Bytes::from(*b"a"), (0, 1))]));
        assert!(winners.tied().is_empty());
        assert_eq!(finish(winners), (vec![0, 2], [2, 0, 0]));
        // A newer one ends a tie before it is decided.
        let late = super::tests::winners(&[], &[("a", "1"), ("a", "1"), ("a", "2")]);
        assert!(late.tied().is_empty());
        assert_eq!(finish(late), (vec![0, 1], [1, 0, 0]));
    }

    #[test]
    fn a_stored_row_stays_only_if_the_source_has_it_still_and_no_newer_one() {
        let check = |stored: &str, read_again: &[&str], expect: (bool, Vec<u64>, [u64; 3])| {
            let mut winners = winners(&[], &[("a", "2")]);
            let goes = winners.replaces(b"a", stored.as_bytes(), &set(read_again));
            let (losers, counts) = finish(winners);
            assert_eq!((goes, losers, counts), expect, "{stored} {read_again:?}");
        };
        check("1", &[], (true, vec![], [0, 1, 0]));
        // The source's clock went back.
        check("3", &[], (true, vec![], [0, 1, 0]));
        check("1", &["a"], (true, vec![], [0, 1, 0]));
        check("2", &["a"], (false, vec![0], [0, 0, 0]));
        check("3", &["a"], (false, vec![0], [0, 0, 0]));
    }

    #[test]
    fn parts_share_the_keys() {
        let marks: Vec<(String, String)> =
            (0..100).map(|n| (format!("k{n}"), "1".into())).collect();
        let marks: Marked =
            marks.iter().map(|(k, c)| (k.as_bytes().into(), c.as_bytes().into())).collect();
        let sizes: Vec<usize> =
            (0..4).map(|index| Winners::new(&marks, Part { index, of: 4 }).keys().len()).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 100);
        assert!(sizes.iter().all(|size| *size > 5), "{sizes:?}");
    }
}
