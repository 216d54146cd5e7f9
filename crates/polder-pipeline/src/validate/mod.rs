//! Validation: one lake table held to its source at a common point (ADR 0017).
//!
//! ```text
//! table's state ─► source's snapshot ─► schema ─► pending keys ─► ranges on both sides ─► rows of those that differ
//! ```
//!
//! Nothing is changed, on either side, unless [`validate_and_keep`] finds the table wrong and its policy
//! says so. What is found is a report.

mod act;
pub(crate) mod checks;
pub(crate) mod lake;
mod record;
mod sql;
mod streamed;
mod verdicts;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polder_core::evolution::{self, Evolution};
use polder_core::spec::{Mode, OnDroppedColumn, OnSchemaChange, TableSpec};
use polder_core::validation::{self, Check, Named, PENDING_MAX, Told, Verdict, range_of};
use polder_core::{
    Authorized, Checkpoint, CursorRange, DigestRequest, Digests, Engine, Error, ErrorCode, OrgId,
    RangeDigest, Result, RowDigest, RunProgress, Source, TableSchema,
};
use polder_lake::{FileFault, Lake, LakeTable};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::ingest::{IngestLimits, conform::Conform, whole_table};
use checks::{Checks, Found, Meaning};
use lake::{LakeDigests, Wanted};
use streamed::Streamed;

pub(crate) use act::keep;
pub use act::{Quarantine, validate_and_keep};
pub(crate) use checks::now_ms;
pub(crate) use lake::Compared;
use record::results;
pub(crate) use sql::Asked;
pub use verdicts::{LastVerdict, Verdicts, verdicts};

/// Ranges whose rows are listed, of those that differ.
const RANGES_LISTED_MAX: usize = 64;
/// Rows listed of each side.
const ROWS_LISTED_MAX: usize = 200_000;
/// Repeated keys that are named and looked for in the source.
const REPEATED_LISTED_MAX: usize = 16;

/// One table to validate.
#[derive(Clone)]
pub struct ValidateRequest {
    pub org: Authorized<OrgId>,
    pub table: TableSpec,
    pub limits: IngestLimits,
    /// How long after a run rows may be pending.
    pub fresh_within: Duration,
    /// Answers the checks of the table spec; without it they are not asked.
    pub engine: Option<Arc<dyn Engine>>,
    /// What is read of the source, and what it waits for.
    pub progress: Arc<RunProgress>,
    /// Stops the validation at the next step.
    pub cancel: CancellationToken,
}

/// What is known of one table version.
#[derive(Clone, Debug, Serialize)]
pub struct ValidationReport {
    pub id: Uuid,
    pub org: String,
    pub table: String,
    /// The version that the table's rows are, with what was added to it since.
    pub version: Option<String>,
    pub snapshot_id: Option<i64>,
    /// The source's name for the state that was compared.
    pub source_snapshot: Option<String>,
    /// Its name for the very rows of that state, where it has one and none was pending.
    #[serde(skip)]
    pub source_state: Option<String>,
    /// The worst of the checks'.
    pub verdict: Verdict,
    /// Source rows that the table need not have yet.
    pub pending: usize,
    pub checks: Vec<Check>,
    /// The state was a run's, and was not published.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub staged: bool,
    /// What the policy `quarantine` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Quarantine>,
    /// Milliseconds since the epoch.
    pub started_ms: i64,
    pub duration_ms: u64,
}

/// Holds a table to its source. `known`: what was said of it before; a source that tells its state by a
/// name is not read again for what was proven of the same states.
///
/// # Errors
/// `lake.not_found` for a table that was never loaded; whatever the source reports; `lake.*` where the
/// lake cannot be asked at all. What is wrong with the table is no error, but in the report.
pub async fn validate(
    lake: &Lake,
    source: &dyn Source,
    request: &ValidateRequest,
    known: &Verdicts,
) -> Result<ValidationReport> {
    let (org, name) = (request.org.get(), &request.table.name);
    let work = Box::pin(validate_once(lake, source, request, known));
    let done = tokio::select! {
        () = request.cancel.cancelled() => {
            Err(Error::new(ErrorCode::Cancelled, "the validation was cancelled"))
        }
        done = work => done,
    };
    done.map_err(|error| error.within(&format!("org {org}, table {name}")))
}

async fn validate_once(
    lake: &Lake,
    source: &dyn Source,
    request: &ValidateRequest,
    known: &Verdicts,
) -> Result<ValidationReport> {
    let (started, started_ms) = (Instant::now(), now_ms());
    // Before the source's snapshot, so that no row of the lake is newer than it.
    let table = lake.table(&request.org, &request.table.name).await?.ok_or_else(|| {
        Error::new(ErrorCode::LakeNotFound, "the table was never loaded")
            .hint("load it with `polder run`")
    })?;
    let mut validation = Validation {
        request,
        known,
        table: &table,
        checkpoint: table.checkpoint()?.unwrap_or_default(),
        checks: Checks::new(),
        pending: 0,
        source_snapshot: None,
        source_state: None,
    };
    Box::pin(validation.run(source)).await?;
    Box::pin(validation.ask()).await?;
    let Validation { checks, pending, source_snapshot, source_state, .. } = validation;
    let checks = checks.done;
    let current = table.versions().into_iter().find(|version| version.current);
    Ok(ValidationReport {
        id: Uuid::new_v4(),
        org: request.org.get().to_string(),
        table: request.table.name.clone(),
        version: current.map(|version| format!("v{}", version.number)),
        snapshot_id: table.current_snapshot().map(|snapshot| snapshot.id),
        source_snapshot,
        source_state,
        verdict: Verdict::worst(checks.iter().map(|check| check.verdict)).unwrap_or_default(),
        pending,
        checks,
        staged: false,
        quarantine: None,
        started_ms,
        duration_ms: started.elapsed().as_millis() as u64,
    })
}

struct Validation<'a> {
    request: &'a ValidateRequest,
    known: &'a Verdicts,
    table: &'a LakeTable,
    checkpoint: Checkpoint,
    checks: Checks,
    pending: usize,
    source_snapshot: Option<String>,
    source_state: Option<String>,
}

impl Validation<'_> {
    async fn run(&mut self, source: &dyn Source) -> Result<()> {
        self.checks.add([checks::tags(&self.table.misplaced_tags())]);
        let mut digests = self.digests(source).await?;
        self.source_snapshot = digests.snapshot();
        let complete = source.capabilities().complete_schema;
        let comparable = self.schema(digests.schema(), complete);
        let spec = &self.request.table;
        if !self.can_compare(&comparable)? {
            // A check says so. What the table is by itself can be told nevertheless.
            self.files(&Compared::of(&TableSchema::default(), spec, false)).await?;
            return Ok(());
        }
        digests.compare(&comparable, &spec.key)?;
        if let Some(at_ms) = self.proven(&mut *digests).await? {
            let compared = Compared::of(&comparable, spec, digests.cursor_is_coarse());
            let before = self.checks.done.len();
            let Some(lake) = self.files(&compared).await? else { return Ok(()) };
            if self.content_is_right() == Some(true) && lake.repeated_rows == 0 {
                self.proven_before(&lake, at_ms);
                return Ok(());
            }
            // Its rows are others, or keys repeat: they have to be named.
            self.checks.done.truncate(before);
            self.source_state = None;
        }
        let pending: HashSet<u64> = digests.pending().await?.into_iter().collect();
        self.pending = pending.len();
        self.freshness();
        let too_many = self.pending > PENDING_MAX;
        let mut compared = Compared::of(&comparable, spec, digests.cursor_is_coarse());
        compared.bits = validation::range_bits(self.rows());
        compared.pending = Arc::new(pending);
        if too_many {
            if self.files(&compared).await?.is_some() {
                self.checks.add([checks::too_many_pending()]);
            }
            return Ok(());
        }
        // Each side is fixed, and neither waits for the other.
        let (lake, source) = tokio::join!(self.files(&compared), digests.ranges(compared.bits));
        let Some(lake) = lake? else { return Ok(()) };
        self.rows_compared(&mut *digests, &comparable, &compared, (lake, source?)).await?;
        self.remember(&mut *digests).await
    }

    /// When both sides were found equal in the states they have now, if the source's name for its rows
    /// tells it.
    async fn proven(&mut self, digests: &mut dyn Digests) -> Result<Option<i64>> {
        let current = self.table.current_snapshot().map(|snapshot| snapshot.id);
        let Some((said, true)) = self.known.of(current) else { return Ok(None) };
        if said.verdict != Verdict::Verified || said.source_state.is_none() {
            return Ok(None);
        }
        let state = digests.state().await?;
        let proven = (state == said.source_state).then_some(said.at_ms);
        self.source_state = state.filter(|_| proven.is_some());
        Ok(proven)
    }

    /// Remembers which rows were compared, if all were and are as they have to be.
    async fn remember(&mut self, digests: &mut dyn Digests) -> Result<()> {
        let right = self.checks.done.iter().all(|check| check.verdict == Verdict::Verified);
        if self.pending == 0 && right {
            self.source_state = digests.state().await?;
        }
        Ok(())
    }

    /// Whether the rows are those that runs have stored; `None` if that is not known.
    fn content_is_right(&self) -> Option<bool> {
        let content = self.checks.done.iter().find(|c| c.check == validation::CheckName::Content);
        content.map(|check| check.verdict == Verdict::Verified)
    }

    /// What is left to be said where neither side has changed.
    fn proven_before(&mut self, lake: &LakeDigests, at_ms: i64) {
        let spec = &self.request.table;
        self.freshness();
        if !spec.key.is_empty() {
            let returns = spec.mode == Mode::Append && spec.cursor.is_some();
            self.checks.add([checks::staged_duplicates(lake.repeated_rows, returns)]);
        }
        self.checks.add(checks::proven(at_ms));
    }

    /// Asks the checks of the table spec.
    async fn ask(&mut self) -> Result<()> {
        let Some(engine) = &self.request.engine else { return Ok(()) };
        for check in &self.request.table.checks {
            let asked = Asked {
                engine: engine.as_ref(),
                org: &self.request.org,
                table: &self.request.table.name,
                snapshot: self.table.current_snapshot().map(|snapshot| snapshot.id),
                memory_bytes: self.request.limits.memory_bytes,
            };
            let found = asked.check(check).await?;
            self.checks.add([found]);
        }
        Ok(())
    }

    /// Whether rows can be told apart, and are those that the table was made of.
    ///
    /// # Errors
    /// `spec.unknown_name` for a key or cursor that neither side has.
    fn can_compare(&mut self, comparable: &TableSchema) -> Result<bool> {
        let spec = &self.request.table;
        let cursor = spec.cursor.as_ref().filter(|_| spec.mode == Mode::Append);
        let present = self.table.schema();
        for column in spec.key.iter().chain(cursor) {
            if present.field(column).is_none() {
                let message = format!("the table has no column {column:?}");
                return Err(Error::new(ErrorCode::SpecUnknownName, message)
                    .hint("correct key: and cursor: in the table spec, or run first"));
            }
        }
        let (asked, reads) = (&self.checkpoint.reads, spec.reads().to_string());
        if !asked.is_empty() && *asked != reads {
            self.checks.add([checks::other_spec()]);
            return Ok(false);
        }
        let tells_apart = |column: &String| comparable.field(column).is_some();
        Ok(!comparable.fields.is_empty() && spec.key.iter().chain(cursor).all(tells_apart))
    }

    fn rows(&self) -> u64 {
        self.table.current_snapshot().and_then(|snapshot| snapshot.rows).unwrap_or(0)
    }

    /// The source's side, computed there if it can be.
    async fn digests<'s>(&self, source: &'s dyn Source) -> Result<Box<dyn Digests + 's>> {
        let (request, spec) = (self.request, &self.request.table);
        let parallel = spec.validation.parallel(request.limits.splits);
        let limits = IngestLimits { splits: parallel, ..request.limits };
        let mut read = whole_table(spec, request.org.get(), limits, &request.progress);
        read.known_schema = (!source.capabilities().complete_schema).then(|| self.table.schema());
        // A run reads it, if only as one more column.
        let cursor = spec.cursor.clone().filter(|_| spec.mode != Mode::FullRefresh);
        read.cursor = cursor.map(|column| CursorRange { column, lower: None });
        let asked = DigestRequest {
            settled_below: self.checkpoint.cursor.clone().filter(|_| spec.mode == Mode::Append),
            settled_at: self.checkpoint.snapshot.clone(),
            statement_timeout: spec.validation.time_per_statement(),
            parallel,
            read,
        };
        if let Some(digests) = source.digest(asked.clone()).await? {
            return Ok(digests);
        }
        let memory = request.limits.memory_bytes / 2;
        // Where the server does not say which rows a merge has seen, their cursor does.
        let settled_below = self.checkpoint.cursor.clone();
        let settled_below = settled_below.filter(|_| spec.mode != Mode::FullRefresh);
        let asked = DigestRequest { settled_below, ..asked };
        let streamed = Streamed::plan(source, asked, &self.checkpoint, memory).await?;
        Ok(Box::new(streamed))
    }

    /// Checks the columns, and returns those that can be compared, as the table has them.
    fn schema(&mut self, incoming: &TableSchema, complete: bool) -> TableSchema {
        let present = self.table.schema();
        // Neither policy refuses anything.
        let (policy, dropped) = (OnSchemaChange::Evolve, OnDroppedColumn::Keep);
        let changes = match evolution::decide(&present, incoming, complete, policy, dropped) {
            Ok(Evolution::InPlace { changes, .. } | Evolution::Refresh { changes }) => changes,
            Ok(Evolution::Unchanged) | Err(_) => Vec::new(),
        };
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let published = self.table.columns_as_published();
        self.checks.add([checks::schema(&present, published.as_ref(), &changes)]);
        let comparable = |field: &&polder_core::Field| {
            let read = incoming.fields.iter().filter(|read| read.name == field.name);
            let read = TableSchema::new(read.cloned().collect());
            if complete {
                // The source's words are those of its own types.
                return read.fields.iter().any(|read| read.data_type == field.data_type);
            }
            let column = TableSchema::new(vec![(*field).clone()]);
            Conform::new(&read, &column).is_ok()
        };
        let fields = present.fields.iter().filter(|field| !field.retired).filter(comparable);
        TableSchema::new(fields.cloned().collect())
    }

    fn freshness(&mut self) {
        let last = self.table.snapshots().into_iter().rev().find(|info| info.run_id.is_some());
        let age_ms = last.map_or(0, |last| now_ms() - last.timestamp_ms);
        let target_ms = self.request.fresh_within.as_millis() as i64;
        self.checks.add([checks::freshness(age_ms, target_ms, self.pending)]);
    }

    /// Reads the table. `None` if it cannot be read: then that is the finding.
    async fn files(&mut self, compared: &Compared) -> Result<Option<LakeDigests>> {
        let files = self.table.current_snapshot().and_then(|snapshot| snapshot.files);
        let memory = self.request.limits.memory_bytes / 2;
        let read = lake::digests(self.table, compared, memory).await;
        let digests = match read {
            Ok(digests) => digests,
            Err(error) if error.retryable() => return Err(error),
            Err(error) => {
                let faults = self.faults().await?;
                if faults.is_empty() {
                    return Err(error);
                }
                self.checks.add([checks::files(&faults, files.unwrap_or(0))]);
                return Ok(None);
            }
        };
        let lost = self.table.current_snapshot().and_then(|snapshot| snapshot.rows);
        let faults = match lost {
            Some(listed) if listed != digests.content.rows => self.faults().await?,
            _ => Vec::new(),
        };
        self.checks.add([checks::files(&faults, files.unwrap_or(0))]);
        self.checks.add(checks::content(self.checkpoint.content, digests.content));
        let misplaced = self.table.misplaced_files().await?;
        self.checks.add([checks::partitions(&misplaced)]);
        Ok(Some(digests))
    }

    /// The files that cannot be read; where the manifests cannot, those.
    async fn faults(&self) -> Result<Vec<FileFault>> {
        match self.table.unreadable_files().await {
            Err(error) if !error.retryable() => {
                let mut what = error.to_string();
                for cause in error.causes() {
                    what = format!("{what}: {cause}");
                }
                Ok(vec![FileFault { path: "metadata".to_owned(), what }])
            }
            found => found,
        }
    }

    async fn rows_compared(
        &mut self,
        digests: &mut dyn Digests,
        columns: &TableSchema,
        compared: &Compared,
        (lake, source): (LakeDigests, BTreeMap<u64, RangeDigest>),
    ) -> Result<()> {
        let bits = compared.bits;
        let differ = validation::different(&source, &lake.ranges);
        let mut listed: Vec<u64> = differ.iter().copied().take(RANGES_LISTED_MAX).collect();
        let mut repeated: Vec<u64> = lake.repeated.iter().copied().collect();
        repeated.sort_unstable();
        repeated.truncate(REPEATED_LISTED_MAX);
        let ranges = (differ.len(), listed.len());
        listed.extend(repeated.iter().map(|key| range_of(*key, bits)));
        listed.sort_unstable();
        listed.dedup();
        let (ours, theirs) = self.listed(digests, compared, &listed, &repeated).await?;
        let told = match (compared.key.is_empty(), &compared.cursor) {
            (true, _) => Told::Whole,
            (false, None) => Told::Key,
            (false, Some(_)) => Told::ReturningKey,
        };
        let pending = &compared.pending;
        let settled: Vec<RowDigest> =
            theirs.iter().filter(|row| !pending.contains(&row.key)).cloned().collect();
        let differences = validation::compare(&ours, &settled, told);
        let extra: Vec<u64> = differences.extra.iter().map(|row| row.key).collect();
        let meaning = Meaning {
            mode: self.request.table.mode,
            content_is_right: self.content_is_right(),
            common_point: digests.has_common_point(),
            as_read: digests.is_as_read(),
        };
        // A row may have become another org's since the run, where nobody can say which rows are settled.
        let foreign: HashSet<u64> = if extra.is_empty() || !meaning.tells_foreign() {
            HashSet::new()
        } else {
            digests.foreign(&extra).await?.into_iter().collect()
        };
        let foreign =
            differences.extra.iter().filter(|row| foreign.contains(&row.key)).cloned().collect();
        let found = Found {
            spec: &self.request.table,
            columns,
            source: total(&source),
            lake: total(&lake.ranges),
            pending: self.pending,
            differences,
            ranges,
            foreign,
            repeated: (lake.repeated_rows, named(&repeated, &theirs)),
            has_key: !compared.key.is_empty(),
            meaning,
        };
        self.checks.add(found.checks());
        Ok(())
    }

    /// The rows of some ranges on both sides, and the repeated keys of the lake.
    async fn listed(
        &self,
        digests: &mut dyn Digests,
        compared: &Compared,
        ranges: &[u64],
        repeated: &[u64],
    ) -> Result<(Vec<RowDigest>, Vec<RowDigest>)> {
        if ranges.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let ours = digests.rows(compared.bits, ranges, ROWS_LISTED_MAX).await?;
        let wanted = Wanted {
            ranges: ranges.iter().copied().collect(),
            keys: repeated.iter().copied().collect(),
            rows_max: ROWS_LISTED_MAX,
        };
        Ok((ours, lake::list(self.table, compared, wanted).await?))
    }
}

impl Compared {
    /// By the table spec's key and cursor, if there are columns.
    pub(crate) fn of(columns: &TableSchema, spec: &TableSpec, coarse: bool) -> Self {
        let some = !columns.fields.is_empty();
        let cursor = spec.cursor.clone().filter(|_| some && spec.mode == Mode::Append);
        Self {
            columns: columns.fields.iter().map(|field| field.name.clone()).collect(),
            key: if some { spec.key.clone() } else { Vec::new() },
            cursor,
            coarse,
            bits: 0,
            pending: Arc::default(),
            snapshot: None,
        }
    }
}

fn total(ranges: &BTreeMap<u64, RangeDigest>) -> RangeDigest {
    ranges.values().fold(RangeDigest::default(), |all, range| RangeDigest {
        rows: all.rows + range.rows,
        sum: all.sum.wrapping_add(range.sum),
    })
}

/// Keys by their names; by their words where no row was listed.
fn named(keys: &[u64], rows: &[RowDigest]) -> Vec<Named> {
    let name = |key: &u64| {
        let found = rows.iter().find(|row| row.key == *key);
        let name = found.map_or_else(|| format!("key {key:016x}"), |row| row.name.clone());
        Named { key: *key, name }
    };
    keys.iter().map(name).collect()
}
