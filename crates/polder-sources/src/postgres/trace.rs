//! The rows of refused and of altered values, named by their key.
//!
//! They are looked for afterwards, in the few rows that were decoded together: reading that meets no
//! such value pays nothing for it.

use std::iter::once;

use arrow::array::ArrayRef;

use super::decode::{Column, Refusal, Room};
use super::frame::Rows;
use super::read::{Job, Stop, column};
use crate::keys;

/// Says which of these rows, which lie in `buffer`, the values were in, if `taken` ends the read or some were altered.
#[cold]
pub(super) fn rows(
    job: &Job,
    rows: &Rows,
    buffer: &[u8],
    index: usize,
    taken: Result<(), Refusal>,
) -> Result<(), Stop> {
    match taken {
        Ok(()) => {
            altered(job, rows, buffer, index);
            Ok(())
        }
        Err(refusal) => Err(refused(job, rows, buffer, index, refusal)),
    }
}

fn refused(job: &Job, rows: &Rows, buffer: &[u8], index: usize, refusal: Refusal) -> Stop {
    let row = rows
        .column(buffer, index)
        .position(|field| decoded(job, index, field).and_then(Column::finish).is_err());
    Stop::Column { index, refusal, key: row.and_then(|row| key(job, rows, buffer, row)) }
}

/// Remembers those of these rows that have altered values in the column.
fn altered(job: &Job, rows: &Rows, buffer: &[u8], index: usize) {
    let Some(read) = job.columns.get(index).filter(|_| !job.key.is_empty()) else { return };
    for (row, field) in rows.column(buffer, index).enumerate() {
        if !job.progress.wants_altered_key(&read.field.name) {
            return;
        }
        if decoded(job, index, field).is_ok_and(|mut column| column.take_altered() > 0)
            && let Some(key) = key(job, rows, buffer, row)
        {
            job.progress.add_altered_key(&read.field.name, key);
        }
    }
}

/// What ends the read because the column after `arrays` could not be finished; the columns after it
/// are the `rest`.
#[cold]
pub(super) fn unfinished(
    job: &Job,
    arrays: Vec<ArrayRef>,
    refusal: Refusal,
    rest: impl Iterator<Item = Column>,
) -> Stop {
    let index = arrays.len();
    let mut finished: Vec<Option<ArrayRef>> = arrays.into_iter().map(Some).collect();
    finished.push(None);
    finished.extend(rest.map(|column| column.finish().ok()));
    let key = match refusal {
        Refusal::NotUtf8 { row } => {
            name(job, |index| keys::text(finished.get(index)?.as_ref()?, row))
        }
        _ => None,
    };
    Stop::Column { index, refusal, key }
}

/// A column of this one field.
fn decoded(job: &Job, index: usize, field: Option<&[u8]>) -> Result<Column, Refusal> {
    let mut column = column(job, &job.columns[index], Room::default());
    column.extend(once(field))?;
    Ok(column)
}

fn key(job: &Job, rows: &Rows, buffer: &[u8], row: usize) -> Option<String> {
    name(job, |index| {
        let array =
            decoded(job, index, rows.column(buffer, index).nth(row)?).and_then(Column::finish);
        keys::text(&array.ok()?, 0)
    })
}

/// A row's name, of the values of its key's columns.
fn name(job: &Job, value: impl Fn(usize) -> Option<String>) -> Option<String> {
    keys::name(job.key.iter().map(|&index| (&*job.columns[index].field.name, value(index))))
}
