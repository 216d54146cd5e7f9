//! Rows that the source marks as deleted: they are not written, and remembered by their keys.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use arrow::array::{Array, RecordBatch};
use arrow::compute::{filter_record_batch, is_not_null, is_null};
use polder_core::{Error, ErrorCode, Result};

use super::keys::{Keys, Marked};
use crate::ingest::known::failed;

/// What an entry takes beside the bytes of key and cursor.
const ENTRY_BYTES: usize = 96;

/// Takes marked rows out of batches. Shared by the workers of a run.
pub(crate) struct Gone {
    /// Whether the rows' keys are of use: something may have to be deleted.
    remembers: bool,
    bytes_max: usize,
    marked: Mutex<(Marked, usize)>,
}

impl Gone {
    pub(crate) fn new(remembers: bool, bytes_max: usize) -> Self {
        Self { remembers, bytes_max, marked: Mutex::new((HashMap::new(), 0)) }
    }

    /// The batch without marked rows.
    ///
    /// # Errors
    /// `source.failed` for more marked rows than memory has room for.
    pub(crate) fn without(&self, keys: &Keys, records: RecordBatch) -> Result<RecordBatch> {
        let marks = match keys.marks(&records)? {
            Some(marks) if marks.null_count() < marks.len() => marks,
            _ => return Ok(records),
        };
        let split = |error| failed("leave out deleted rows", error);
        let living = is_null(marks).map_err(split)?;
        if self.remembers {
            let marked = is_not_null(marks).map_err(split)?;
            self.remember(keys, &filter_record_batch(&records, &marked).map_err(split)?)?;
        }
        filter_record_batch(&records, &living).map_err(split)
    }

    fn remember(&self, keys: &Keys, records: &RecordBatch) -> Result<()> {
        let encoded = keys.encode(records)?;
        let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
        let (marked, bytes) = &mut *marked;
        for (key, cursor) in encoded.keys.iter().zip(&encoded.cursors) {
            let (key, cursor) = (key.as_ref(), cursor.as_ref());
            match marked.get_mut(key) {
                Some(newest) if **newest < *cursor => *newest = cursor.into(),
                Some(_) => {}
                None => {
                    *bytes += key.len() + cursor.len() + ENTRY_BYTES;
                    marked.insert(key.into(), cursor.into());
                }
            }
        }
        if *bytes <= self.bytes_max {
            return Ok(());
        }
        let message = "more rows are marked as deleted than the run has memory for";
        Err(Error::new(ErrorCode::SourceFailed, message)
            .detail(format!("{} keys, {} MB", marked.len(), self.bytes_max >> 20))
            .hint(
                "raise [limits] memory_mb (or memory_mb of the org's limits), or run once with \
                 --full-refresh, which needs none of them where the source has a unique index on the \
                 key",
            ))
    }

    /// The marked rows that were met.
    pub(super) fn take(&self) -> Marked {
        std::mem::take(&mut self.marked.lock().unwrap_or_else(PoisonError::into_inner).0)
    }
}
