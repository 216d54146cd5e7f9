//! The rows of states, table after table, in the lake's own order.

use arrow::array::RecordBatch;
use futures::TryStreamExt;
use polder_core::Result;
use polder_lake::{BatchStream, LakeTable, OrderedScan, ScanRequest};

use super::states::State;
use super::token::Place;

/// Rows of one file of one table.
pub(super) struct Part {
    pub(super) batch: RecordBatch,
    /// Of the batch's first row.
    pub(super) place: Place,
}

/// Reads all rows from a place on. A table's files are looked up when it is its turn.
pub(super) struct Rows {
    tables: Vec<(LakeTable, ScanRequest)>,
    next: Place,
    scan: Option<OrderedScan>,
    open: Option<BatchStream>,
    /// Rows of the open file that were sent before.
    skip: u64,
}

impl Rows {
    pub(super) fn new(states: &[State], since_us: Option<i64>, next: Place) -> Self {
        let wanted = |state: &State| {
            let request = ScanRequest {
                snapshot: Some(state.snapshot.id),
                filter: state.since(since_us),
                columns: None,
            };
            (state.table.clone(), request)
        };
        let tables = states.iter().map(wanted).collect();
        Self { tables, next, scan: None, open: None, skip: next.rows }
    }

    /// The next rows; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<Part>> {
        loop {
            let Some((table, request)) = self.tables.get(self.next.table) else { return Ok(None) };
            let scan = match &self.scan {
                Some(scan) => scan,
                None => &*self.scan.insert(table.ordered(request.clone()).await?),
            };
            if self.next.file >= scan.files() {
                self.scan = None;
                self.skip = 0;
                self.next = Place { table: self.next.table + 1, file: 0, rows: 0 };
                continue;
            }
            let open = if let Some(open) = &mut self.open {
                open
            } else {
                self.next.rows = 0;
                self.open.insert(scan.read(self.next.file)?)
            };
            let Some(batch) = open.try_next().await? else {
                self.open = None;
                self.skip = 0;
                self.next = Place { file: self.next.file + 1, rows: 0, ..self.next };
                continue;
            };
            let place = self.next;
            let rows = batch.num_rows() as u64;
            self.next.rows += rows;
            let sent = self.skip.saturating_sub(place.rows).min(rows);
            if sent == rows {
                continue;
            }
            let kept = (rows - sent) as usize;
            let place = Place { rows: place.rows + sent, ..place };
            return Ok(Some(Part { batch: batch.slice(sent as usize, kept), place }));
        }
    }
}
