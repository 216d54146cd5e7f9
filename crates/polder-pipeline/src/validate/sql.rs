//! `checks:` of a table spec: SQL over the org's own lake tables, asked as the org itself, read only.
//!
//! The statement is the spec's; nothing is put into it. The table is read at the snapshot that is
//! validated, the org's other tables as they are now.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use polder_core::spec::SqlCheck;
use polder_core::validation::{Check, CheckName, SAMPLES_MAX, Verdict};
use polder_core::{Authorized, Engine, Error, ErrorCode, OrgId, Principal, Result, Session};

/// Rows of an answer that are counted at most.
const ROWS_MAX: u64 = 1_000_000;
/// How long one check may take.
const TIME_MAX: Duration = Duration::from_mins(10);
/// Characters of a sample row.
const SAMPLE_CHARS: usize = 200;

/// What checks are asked of.
pub(crate) struct Asked<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) org: &'a Authorized<OrgId>,
    pub(crate) table: &'a str,
    pub(crate) snapshot: Option<i64>,
    pub(crate) memory_bytes: usize,
}

/// Memory for one statement.
const MEMORY_BYTES_MAX: usize = 64 << 20;

impl Asked<'_> {
    /// Asks one check.
    ///
    /// # Errors
    /// What may be tried again. A statement that cannot be answered is a finding.
    pub(crate) async fn check(&self, check: &SqlCheck) -> Result<Check> {
        let answer = tokio::time::timeout(TIME_MAX, self.answer(&check.sql)).await;
        let answer = answer.unwrap_or_else(|_| {
            let message = format!("it took longer than {} s", TIME_MAX.as_secs());
            Err(Error::new(ErrorCode::QueryLimit, message))
        });
        let expected = check.expect.to_string();
        let found = match answer {
            Ok((rows, samples)) => {
                let right = rows == check.expect.0;
                let verdict = if right { Verdict::Verified } else { Verdict::Failed };
                let more = if rows > ROWS_MAX { "more than " } else { "" };
                let observed = format!("{more}{} rows", rows.min(ROWS_MAX));
                let samples = if right { Vec::new() } else { samples };
                Check::new(CheckName::Sql, verdict, expected, observed).with_samples(samples)
            }
            Err(error) if error.retryable() => return Err(error),
            Err(error) => {
                let hint = error.hint_text().map(|hint| format!(" ({hint})")).unwrap_or_default();
                let observed = format!("no answer: {}{hint}", error.message());
                Check::new(CheckName::Sql, Verdict::Stale, expected, observed)
            }
        };
        Ok(found.named(&check.name))
    }

    /// The number of rows, and a few of them.
    async fn answer(&self, sql: &str) -> Result<(u64, Vec<String>)> {
        let snapshot = self.snapshot.map(|id| (self.table.to_owned(), id));
        let session = Session {
            principal: Principal::Org(self.org.get().clone()),
            rows_max: None,
            memory_bytes_max: self.memory_bytes.min(MEMORY_BYTES_MAX),
            snapshots: BTreeMap::from_iter(snapshot),
            pushdown: true,
        };
        let mut answer = self.engine.query(sql, &session).await?;
        let (mut rows, mut samples) = (0, Vec::new());
        while let Some(batch) = answer.batches.try_next().await? {
            rows += batch.num_rows() as u64;
            sample(&batch, &mut samples)?;
            if rows > ROWS_MAX {
                break;
            }
        }
        Ok((rows, samples))
    }
}

fn sample(batch: &RecordBatch, samples: &mut Vec<String>) -> Result<()> {
    let options = FormatOptions::new().with_null("null");
    let unprintable =
        |error| Error::new(ErrorCode::Internal, "rows of a check cannot be shown").caused_by(error);
    for row in 0..batch.num_rows() {
        if samples.len() == SAMPLES_MAX {
            break;
        }
        let mut shown = Vec::new();
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            let value = ArrayFormatter::try_new(column, &options).map_err(unprintable)?;
            shown.push(format!("{}={}", field.name(), value.value(row)));
        }
        samples.push(shown.join(", ").chars().take(SAMPLE_CHARS).collect());
    }
    Ok(())
}
