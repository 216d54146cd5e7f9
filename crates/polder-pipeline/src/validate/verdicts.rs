//! What validations have said of tables, read from `validation_results`: by state and by version.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use polder_core::management::VALIDATION_RESULTS;
use polder_core::validation::Verdict;
use polder_core::{Authorized, OrgId, Principal, Result};
use polder_lake::{CmpOp, Lake, Literal, Predicate, ScanRequest};
use serde::Serialize;

/// What one validation said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastVerdict {
    pub verdict: Verdict,
    /// The version that the table's rows were, with what was added to it.
    pub version: Option<String>,
    /// The state of the table that it was said of.
    pub snapshot_id: Option<i64>,
    /// The state of the source that it was compared with.
    pub source_snapshot: Option<String>,
    /// The source's name for the rows that were compared, where it has one and none was pending.
    #[serde(skip)]
    pub source_state: Option<String>,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
}

/// What was said of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    last: Option<LastVerdict>,
    of_snapshots: HashMap<i64, LastVerdict>,
    of_versions: BTreeMap<String, LastVerdict>,
}

impl Verdicts {
    /// The last word on a state of the table; if there is none, the last one on an earlier state, and
    /// false.
    pub fn of(&self, snapshot: Option<i64>) -> Option<(&LastVerdict, bool)> {
        let own = snapshot.and_then(|id| self.of_snapshots.get(&id));
        own.map(|found| (found, true)).or_else(|| self.last.as_ref().map(|found| (found, false)))
    }

    /// The last word on a version (`v3`), in whichever state it was.
    pub fn of_version(&self, version: &str) -> Option<&LastVerdict> {
        self.of_versions.get(version)
    }

    /// The states whose last word was `verified`, the latest word first.
    pub fn verified(&self) -> Vec<i64> {
        let good = self.of_snapshots.iter().filter(|(_, said)| said.verdict == Verdict::Verified);
        let mut good: Vec<(i64, i64)> = good.map(|(id, said)| (said.at_ms, *id)).collect();
        good.sort_unstable_by(|a, b| b.cmp(a));
        good.into_iter().map(|(_, id)| id).collect()
    }

    fn take(&mut self, said: LastVerdict) {
        let newer = |known: Option<&LastVerdict>| known.is_none_or(|k| said.at_ms >= k.at_ms);
        if let Some(id) = said.snapshot_id.filter(|id| newer(self.of_snapshots.get(id))) {
            self.of_snapshots.insert(id, said.clone());
        }
        let version = said.version.clone();
        if let Some(version) = version.filter(|name| newer(self.of_versions.get(name))) {
            self.of_versions.insert(version, said.clone());
        }
        if newer(self.last.as_ref()) {
            self.last = Some(said);
        }
    }
}

/// What was said, by org and table: of all tables, of an org's, or of one.
///
/// # Errors
/// `lake.*` when the management table cannot be read.
pub async fn verdicts(
    lake: &Lake,
    of: Option<(&Authorized<OrgId>, Option<&str>)>,
) -> Result<HashMap<(String, String), Verdicts>> {
    let mut found = HashMap::new();
    // The rows are filtered by the org that the caller was found entitled to.
    let table = lake.management_table(&Principal::Operator, VALIDATION_RESULTS.name).await?;
    let Some(table) = table.filter(|table| table.current_snapshot().is_some()) else {
        return Ok(found);
    };
    let is = |column: &str, text: &str| Predicate::Cmp {
        column: column.to_owned(),
        op: CmpOp::Eq,
        value: Literal::String(text.to_owned()),
    };
    let filter = of.map_or(Predicate::True, |(org, table)| {
        let org = is("org", org.get().as_str());
        table.map_or(org.clone(), |table| org.and(is("table", table)))
    });
    let mut columns = [
        "org",
        "table",
        "table_verdict",
        "version",
        "source_snapshot",
        "snapshot_id",
        "started_at",
    ]
    .map(str::to_owned)
    .to_vec();
    // Not in tables that an earlier version has made.
    let later = ["staged", "source_state"].into_iter();
    columns.extend(later.filter(|name| table.schema().field(name).is_some()).map(str::to_owned));
    let scan = ScanRequest { snapshot: None, filter, columns: Some(columns) };
    let mut batches = table.read(scan).await?;
    while let Some(batch) = batches.try_next().await? {
        take(&batch, &mut found);
    }
    Ok(found)
}

fn take(batch: &RecordBatch, found: &mut HashMap<(String, String), Verdicts>) {
    let text = |column: usize, row: usize| -> Option<String> {
        let array = batch.column(column).as_string::<i32>();
        array.is_valid(row).then(|| array.value(row).to_owned())
    };
    let snapshots = batch.column(5).as_primitive::<Int64Type>();
    let started = batch.column(6).as_primitive::<TimestampMicrosecondType>();
    let staged = batch.column_by_name("staged").map(|column| column.as_boolean().clone());
    let states = batch.column_by_name("source_state").map(AsArray::as_string::<i32>);
    let state = |row: usize| {
        states.filter(|states| states.is_valid(row)).map(|states| states.value(row).to_owned())
    };
    for row in 0..batch.num_rows() {
        // Nobody has seen such a state.
        if staged.as_ref().is_some_and(|staged| staged.is_valid(row) && staged.value(row)) {
            continue;
        }
        let verdict = text(2, row).and_then(|text| Verdict::parse(&text));
        let (Some(org), Some(table), Some(verdict)) = (text(0, row), text(1, row), verdict) else {
            continue;
        };
        let verdicts = found.entry((org, table)).or_default();
        verdicts.take(LastVerdict {
            verdict,
            version: text(3, row),
            snapshot_id: snapshots.is_valid(row).then(|| snapshots.value(row)),
            source_snapshot: text(4, row),
            source_state: state(row),
            at_ms: started.value(row) / 1000,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(verdict: Verdict, version: &str, snapshot: i64, at_ms: i64) -> LastVerdict {
        let version = Some(version.to_owned());
        LastVerdict {
            verdict,
            version,
            snapshot_id: Some(snapshot),
            source_snapshot: None,
            source_state: None,
            at_ms,
        }
    }

    #[test]
    fn the_last_word_counts_of_each_state_and_version() {
        let mut verdicts = Verdicts::default();
        assert_eq!(verdicts.of(Some(1)), None);
        for one in [
            said(Verdict::Failed, "v2", 20, 7),
            said(Verdict::Verified, "v1", 10, 3),
            said(Verdict::Failed, "v1", 10, 2),
            said(Verdict::Verified, "v1", 11, 5),
        ] {
            verdicts.take(one);
        }
        let of = |id| verdicts.of(Some(id)).map(|(said, own)| (said.verdict, said.at_ms, own));
        assert_eq!(of(10), Some((Verdict::Verified, 3, true)));
        assert_eq!(of(99), Some((Verdict::Failed, 7, false)), "the last one, of an earlier state");
        assert_eq!(verdicts.of_version("v1").map(|said| said.at_ms), Some(5));
        assert_eq!(verdicts.of_version("v3"), None);
        assert_eq!(verdicts.verified(), [11, 10]);
    }
}
