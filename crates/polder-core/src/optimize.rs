//! Which data files of a table are worth rewriting: pure rules.
//!
//! A rewrite costs the bytes it reads. It gains the files that are there no more, each of which costs
//! every query a request, a footer and a task; and the deletes that need not be applied any more.
//! Small files of one partition are merged smallest first, and a file joins only those that are not
//! much smaller together: so a byte is rewritten a few times on its way to a full file, however often
//! rows come (as in a log-structured merge tree).

/// What a file costs queries beside its bytes, as bytes: two files of a fourth of the target are
/// worth merging, two of half of it are not.
const FILE_COST_FRACTION: u64 = 4;
/// How much larger a file may be than the smaller ones it is merged with, together.
const TIER: u64 = 4;
/// Delete files from which on a data file is rewritten, however few rows they delete.
const DELETE_FILES_MAX: usize = 10;

/// How files shall be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aim {
    /// The size data files aim at, in bytes. Files of three quarters of it are left alone.
    pub target_bytes: u64,
    /// The part of a file's rows from which on, being deleted, they are worth rewriting the file.
    pub deleted_ratio: f64,
    /// Bytes that one commit may exchange, at most; one bin is exchanged whatever its size.
    pub commit_bytes: u64,
    /// Whether files are worth rewriting for being in another order than asked for.
    pub sorts: bool,
}

impl Aim {
    /// Files of this size, with the usual rest.
    pub fn at(target_bytes: u64) -> Self {
        let commit_bytes = (8 * target_bytes).max(1 << 30);
        Self { target_bytes, deleted_ratio: 0.1, commit_bytes, sorts: false }
    }
}

/// A data file, as far as rewriting it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileCost {
    /// Files with the same number are in one partition.
    pub partition: usize,
    /// It lies in partitions that new files do not have.
    pub misplaced: bool,
    /// Its rows are not known to be in the order that new files have.
    pub unsorted: bool,
    pub size_bytes: u64,
    pub rows: u64,
    pub deleted_rows: u64,
    pub delete_files: usize,
}

impl FileCost {
    /// The size its rows would have without those that are deleted.
    fn live_bytes(&self) -> u64 {
        let live = self.rows.saturating_sub(self.deleted_rows);
        (u128::from(self.size_bytes) * u128::from(live) / u128::from(self.rows.max(1))) as u64
    }

    fn is_small(&self, aim: &Aim) -> bool {
        self.size_bytes < aim.target_bytes / 4 * 3
    }

    /// Worth a rewrite of its own.
    fn must_go(&self, aim: &Aim) -> bool {
        let many = self.deleted_rows as f64 >= aim.deleted_ratio * self.rows as f64;
        let deletes = self.delete_files > 0 && (many || self.delete_files >= DELETE_FILES_MAX);
        deletes || (aim.sorts && self.unsorted)
    }
}

/// Files that become one, or a few: their places in the list that was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bin {
    pub files: Vec<usize>,
    pub bytes: u64,
}

/// The bins that are worth their rewrite.
///
/// Misplaced files come first, with as many in a bin as one commit exchanges, as nothing is known of
/// the partitions that their rows go to.
pub fn plan(files: &[FileCost], aim: &Aim) -> Vec<Bin> {
    let mut bins = misplaced(files, aim);
    let mut rest: Vec<usize> = (0..files.len())
        .filter(|at| !files[*at].misplaced)
        .filter(|at| files[*at].is_small(aim) || files[*at].must_go(aim))
        .collect();
    rest.sort_by_key(|at| (files[*at].partition, files[*at].size_bytes, *at));
    for partition in rest.chunk_by(|a, b| files[*a].partition == files[*b].partition) {
        let mut bin = Bin::default();
        for at in partition {
            let bytes = files[*at].size_bytes;
            let full = bin.bytes + bytes > aim.target_bytes || bytes > bin.bytes * TIER;
            if full && !bin.files.is_empty() {
                bins.extend(worth(std::mem::take(&mut bin), files, aim));
            }
            bin.files.push(*at);
            bin.bytes += bytes;
        }
        bins.extend(worth(bin, files, aim));
    }
    bins
}

/// Some of the files, in bins of the target's size, each of one partition.
pub fn pack(files: &[FileCost], wanted: &[usize], aim: &Aim) -> Vec<Bin> {
    let mut wanted = wanted.to_vec();
    wanted.sort_by_key(|at| (files[*at].partition, *at));
    let mut bins: Vec<Bin> = Vec::new();
    for at in wanted {
        let file = &files[at];
        let fits = |bin: &&mut Bin| {
            let alike = bin.files.first().is_some_and(|f| files[*f].partition == file.partition);
            alike && bin.bytes + file.size_bytes <= aim.target_bytes
        };
        match bins.last_mut().filter(fits) {
            Some(bin) => {
                bin.files.push(at);
                bin.bytes += file.size_bytes;
            }
            None => bins.push(Bin { files: vec![at], bytes: file.size_bytes }),
        }
    }
    bins
}

/// Only the files that lie in other partitions than new ones.
pub fn misplaced(files: &[FileCost], aim: &Aim) -> Vec<Bin> {
    let mut bins: Vec<Bin> = Vec::new();
    for (at, file) in files.iter().enumerate().filter(|(_, file)| file.misplaced) {
        match bins.last_mut().filter(|bin| bin.bytes + file.size_bytes <= aim.commit_bytes) {
            Some(bin) => {
                bin.files.push(at);
                bin.bytes += file.size_bytes;
            }
            None => bins.push(Bin { files: vec![at], bytes: file.size_bytes }),
        }
    }
    bins
}

fn worth(bin: Bin, files: &[FileCost], aim: &Aim) -> Option<Bin> {
    let must = bin.files.iter().any(|at| files[*at].must_go(aim));
    let live: u64 = bin.files.iter().map(|at| files[*at].live_bytes()).sum();
    let after = live.div_ceil(aim.target_bytes.max(1));
    let saved = (bin.files.len() as u64).saturating_sub(after);
    let gain = saved * (aim.target_bytes / FILE_COST_FRACTION);
    (must || (saved > 0 && gain >= bin.bytes)).then_some(bin)
}

/// The first bins, as many as one commit exchanges.
pub fn first_commit(bins: &[Bin], aim: &Aim) -> usize {
    let mut bytes = 0;
    let fits = |bin: &&Bin| {
        let first = bytes == 0;
        bytes += bin.bytes.max(1);
        first || bytes <= aim.commit_bytes
    };
    bins.iter().take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1 << 20;

    fn aim() -> Aim {
        Aim { commit_bytes: 1024 * MB, ..Aim::at(128 * MB) }
    }

    fn file(mb: u64) -> FileCost {
        FileCost {
            partition: 0,
            misplaced: false,
            unsorted: false,
            size_bytes: mb * MB,
            rows: 1000,
            deleted_rows: 0,
            delete_files: 0,
        }
    }

    /// The sizes in each bin, in megabytes.
    fn bins(files: &[FileCost]) -> Vec<Vec<u64>> {
        let size = |at: &usize| files[*at].size_bytes / MB;
        plan(files, &aim()).iter().map(|bin| bin.files.iter().map(size).collect()).collect()
    }

    fn sizes(mb: &[u64]) -> Vec<FileCost> {
        mb.iter().map(|mb| file(*mb)).collect()
    }

    #[test]
    fn small_files_are_merged_where_that_is_worth_it() {
        let none: [Vec<u64>; 0] = [];
        assert_eq!(bins(&sizes(&[])), none);
        assert_eq!(bins(&sizes(&[1])), none, "alone it stays as it is");
        assert_eq!(bins(&sizes(&[1, 1])), [[1, 1]]);
        assert_eq!(bins(&sizes(&[60, 60])), none, "one file less is not worth 120 MB");
        assert_eq!(bins(&sizes(&[25; 5])), [[25; 5]]);
        assert_eq!(bins(&sizes(&[100, 128, 500])), none, "they are large enough");
        assert_eq!(bins(&sizes(&[1, 1, 1, 90])), [[1, 1, 1]], "90 MB wait for more");
        assert_eq!(bins(&sizes(&[20, 20, 20, 90])), [[20, 20, 20]], "not over the target");
        let many = bins(&sizes(&[1; 1000]));
        assert_eq!(many.len(), 8);
        assert_eq!(many.iter().map(Vec::len).sum::<usize>(), 1000);
    }

    #[test]
    fn partitions_are_kept_apart() {
        let mut files = sizes(&[1, 1, 1, 1, 1]);
        files[1].partition = 1;
        files[4].partition = 1;
        let found = plan(&files, &aim());
        let places: Vec<&[usize]> = found.iter().map(|bin| bin.files.as_slice()).collect();
        assert_eq!(places, [&[0, 2, 3][..], &[1, 4]]);
    }

    #[test]
    fn deletes_are_applied_where_they_are_many() {
        let with =
            |deleted_rows, delete_files| FileCost { deleted_rows, delete_files, ..file(400) };
        assert!(bins(&[with(99, 1)]).is_empty());
        assert_eq!(bins(&[with(100, 1)]), [[400]]);
        assert_eq!(bins(&[with(10, 10)]), [[400]], "ten delete files to open");
        assert_eq!(bins(&[with(1000, 1)]), [[400]], "nothing is left of it");
    }

    #[test]
    fn files_in_another_order_go_once_and_only_if_that_is_asked_for() {
        let unsorted = |mb| FileCost { unsorted: true, ..file(mb) };
        let files = [unsorted(400), file(300), unsorted(2)];
        assert!(bins(&files).is_empty(), "large ones are left alone");
        let asked = Aim { sorts: true, ..aim() };
        let found = plan(&files, &asked);
        let places: Vec<&[usize]> = found.iter().map(|bin| bin.files.as_slice()).collect();
        assert_eq!(places, [&[2][..], &[0]]);
        assert!(plan(&[file(400), file(300), file(2)], &asked).is_empty(), "they are sorted now");
    }

    #[test]
    fn misplaced_files_go_whatever_their_size_as_many_as_a_commit_takes() {
        let moved = |mb| FileCost { misplaced: true, ..file(mb) };
        let files = [moved(400), file(1), moved(500), moved(300), moved(2000)];
        assert_eq!(bins(&files), [vec![400, 500], vec![300], vec![2000]]);
        let found = plan(&files, &aim());
        assert_eq!(first_commit(&found, &aim()), 1);
        let small = plan(&sizes(&[1; 1000]), &aim());
        assert_eq!(first_commit(&small, &aim()), 8);
        assert_eq!(first_commit(&[], &aim()), 0);
    }

    proptest! {
        /// Rows that come a little at a time are rewritten a few times each, and few files stay.
        #[test]
        fn trickling_rows_are_not_rewritten_for_ever(added in prop::collection::vec(1..6_u64, 200..400)) {
            let aim = aim();
            let (mut files, mut rewritten, mut all) = (Vec::new(), 0, 0);
            for mb in added {
                files.push(file(mb));
                all += mb * MB;
                let found = plan(&files, &aim);
                rewritten += found.iter().map(|bin| bin.bytes).sum::<u64>();
                let gone: Vec<usize> = found.iter().flat_map(|bin| bin.files.clone()).collect();
                let made = found.iter().map(|bin| FileCost { size_bytes: bin.bytes, ..file(0) });
                let made: Vec<FileCost> = made.collect();
                let mut at = 0;
                files.retain(|_| { at += 1; !gone.contains(&(at - 1)) });
                files.extend(made);
            }
            prop_assert!(rewritten <= 8 * all, "{} MB for {} MB", rewritten / MB, all / MB);
            let full = all / (aim.target_bytes / 4 * 3);
            prop_assert!((files.len() as u64) <= full + 12, "{} files", files.len());
            prop_assert_eq!(files.iter().map(|file| file.size_bytes).sum::<u64>(), all);
        }

        #[test]
        fn no_file_is_in_two_bins_and_none_of_another_partition(
            given in prop::collection::vec((0..3_usize, any::<bool>(), 0..300_u64, 0..1000_u64), 0..60),
        ) {
            let files: Vec<FileCost> = given.iter().map(|(partition, misplaced, mb, deleted)| FileCost {
                partition: *partition, misplaced: *misplaced, deleted_rows: *deleted,
                delete_files: usize::from(*deleted > 0), ..file(*mb)
            }).collect();
            let mut seen = std::collections::HashSet::new();
            for bin in plan(&files, &aim()) {
                prop_assert!(!bin.files.is_empty());
                let first = files[bin.files[0]];
                for at in &bin.files {
                    prop_assert!(seen.insert(*at));
                    prop_assert_eq!(files[*at].misplaced, first.misplaced);
                    prop_assert!(first.misplaced || files[*at].partition == first.partition);
                }
            }
        }
    }
}
