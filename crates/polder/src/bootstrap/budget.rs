//! How much one answer may hold. Bytes are those of the rows: of their JSON text in NDJSON, of their
//! Arrow buffers in the other formats; what frames them is not counted.

use polder_core::{Error, ErrorCode, Result};

use super::Format;

/// Bytes of JSON that are counted as one token of a language model. An estimate, on the safe side for
/// English; a client that needs more counts for itself.
const TOKEN_BYTES: u64 = 3;

/// The most that one answer may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the API's words")]
pub(crate) struct Budget {
    pub(crate) rows_max: Option<u64>,
    pub(crate) bytes_max: Option<u64>,
    pub(crate) tokens_max: Option<u64>,
}

impl Budget {
    /// # Errors
    /// `spec.invalid` for none at all, and for tokens of what is no text.
    pub(crate) fn check(self, format: Format) -> Result<()> {
        let invalid = |message: &str| Error::new(ErrorCode::SpecInvalid, message);
        if [self.rows_max, self.bytes_max, self.tokens_max].contains(&Some(0)) {
            return Err(invalid("a budget of 0 lets nothing through"));
        }
        if self.tokens_max.is_some() && format != Format::Ndjson {
            return Err(invalid("tokens_max counts text").hint("ask for format=ndjson"));
        }
        Ok(())
    }
}

/// What was sent so far, of a budget.
#[derive(Debug)]
pub(super) struct Spent {
    budget: Budget,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Which budget came to its end.
    pub(super) stopped_by: Option<&'static str>,
}

impl Spent {
    pub(super) fn new(budget: Budget) -> Self {
        Self { budget, rows: 0, bytes: 0, stopped_by: None }
    }

    /// How many of `rows` rows, from the first, may still be sent; `bytes_of(n)` is the size of the
    /// first `n`, and grows with `n`. One row is always let through, so that every answer gets on.
    pub(super) fn take(&mut self, rows: usize, bytes_of: impl Fn(usize) -> u64) -> usize {
        let left = self.budget.rows_max.map_or(u64::MAX, |max| max.saturating_sub(self.rows));
        let by_rows = rows.min(usize::try_from(left).unwrap_or(usize::MAX));
        if by_rows < rows {
            self.stopped_by = Some("rows_max");
        }
        let mut taken = by_rows;
        for (max, name) in [
            (self.budget.bytes_max, "bytes_max"),
            (self.budget.tokens_max.map(|max| max.saturating_mul(TOKEN_BYTES)), "tokens_max"),
        ] {
            let Some(left) = max.map(|max| max.saturating_sub(self.bytes)) else { continue };
            if taken > 0 && bytes_of(taken) > left {
                self.stopped_by = Some(name);
                taken = most(taken, |n| bytes_of(n) <= left);
            }
        }
        if taken == 0 && by_rows > 0 && self.rows == 0 {
            taken = 1;
        }
        self.rows += taken as u64;
        self.bytes += if taken == 0 { 0 } else { bytes_of(taken) };
        if taken == rows {
            self.stopped_by = None;
        }
        taken
    }
}

/// The largest number below `rows` that `fits`; 0 if none does.
fn most(rows: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut not) = (0, rows);
    while not - fitting > 1 {
        let middle = usize::midpoint(fitting, not);
        if fits(middle) {
            fitting = middle;
        } else {
            not = middle;
        }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_as_fits_and_never_nothing() {
        let budget = |rows_max, bytes_max, tokens_max| Budget { rows_max, bytes_max, tokens_max };
        // Each batch has 10 rows of 5 bytes.
        let cases = [
            (budget(None, None, None), vec![10, 10], None),
            (budget(Some(20), None, None), vec![10, 10], None),
            (budget(Some(13), None, None), vec![10, 3], Some("rows_max")),
            (budget(None, Some(64), None), vec![10, 2], Some("bytes_max")),
            (budget(None, Some(100), None), vec![10, 10], None),
            (budget(None, None, Some(5)), vec![3, 0], Some("tokens_max")),
            (budget(None, Some(4), None), vec![1, 0], Some("bytes_max")),
            (budget(Some(12), Some(55), None), vec![10, 1], Some("bytes_max")),
        ];
        for (budget, expect, stopped_by) in cases {
            let mut spent = Spent::new(budget);
            let mut taken = vec![spent.take(10, |n| n as u64 * 5)];
            taken.push(if taken[0] < 10 { 0 } else { spent.take(10, |n| n as u64 * 5) });
            assert_eq!((taken.clone(), spent.stopped_by), (expect, stopped_by), "{budget:?}");
            let rows: usize = taken.iter().sum();
            assert_eq!((spent.rows, spent.bytes), (rows as u64, rows as u64 * 5));
        }
    }

    #[test]
    fn a_budget_that_means_nothing_is_refused() {
        let none = Budget { bytes_max: Some(0), ..Budget::default() };
        assert!(none.check(Format::Arrow).is_err());
        let tokens = Budget { tokens_max: Some(9), ..Budget::default() };
        assert!(tokens.check(Format::Parquet).is_err() && tokens.check(Format::Ndjson).is_ok());
    }
}
