//! Committing: exactly one table commit an action, whatever happens to answers.
//!
//! One call of [`Catalog::commit`](crate::Catalog::commit) is one attempt. Between attempts the table
//! is read anew and searched for the action's own id, so that a commit whose answer was lost is found
//! and never made twice. Files are removed only when it is certain that no metadata can name them.
//!
//! The actions exist because `iceberg` 0.10 has only `fast_append`, whose own retry doubles rows when
//! an answer is lost. Each goes when upstream has it.

mod apart;
mod audit;
mod conflicts;
mod expire;
mod files;
mod manifests;
mod pins;
mod publish;
mod read_back;
mod rollback;
mod snapshot;
mod staging;

use std::collections::BTreeMap;
use std::time::Duration;

use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention};
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use rand::Rng;

pub(crate) use expire::expired_from;
pub use expire::{Expired, ExpiryRequest};
pub use files::FilesCommitted;
pub(crate) use manifests::{Fragmented, fragmented};
pub use publish::Gate;
pub(crate) use rollback::KEPT_AS;
pub use rollback::RolledBack;
pub(crate) use snapshot::{deletes_of, is_live, read_list};
pub(crate) use staging::STAGING;

use crate::catalog::{self, CommitFailure, TableState};
use crate::lake::Lake;

/// Commits tried before giving up.
const ATTEMPTS_MAX: u32 = 8;
/// Tries to read the table after an unclear answer, within one attempt.
const LOADS_MAX: u32 = 4;
/// The first pause between attempts; it doubles up to [`PAUSE_MAX`], and a random part is left off.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// One change to a table, made anew for every state of the table it meets.
pub(crate) trait Action {
    /// What the caller learns of the commit.
    type Done;

    /// The action's commit, if the table has it. `sent`: this call has sent it at least once.
    fn find(&self, present: &TableState, sent: bool) -> Option<Self::Done>;

    /// Checks that the change still makes sense on top of the table's present state.
    ///
    /// # Errors
    /// `lake.conflict` if it does not.
    fn validate(&self, present: Option<&TableState>) -> Result<()>;

    /// Makes the change for a state, and writes the metadata files it needs.
    async fn prepare(&mut self, present: Option<&TableState>) -> Result<Prepared<Self::Done>>;

    /// The branch or tag that the change moves beside `main`, or instead of it.
    fn branch(&self) -> Option<&str> {
        None
    }

    /// The metadata files written so far.
    fn written(&self) -> Vec<String>;

    /// Of the metadata files written, those that the table does not have although the action's commit
    /// is made: files of other attempts, which cannot land any more.
    async fn superseded(&self, _landed: &TableState, _done: &Self::Done) -> Vec<String> {
        Vec::new()
    }
}

/// A change ready to be sent.
pub(crate) struct Prepared<T> {
    pub(crate) updates: Vec<TableUpdate>,
    /// What is true once they are committed.
    pub(crate) done: T,
}

/// A commit that was not made, as far as is known.
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// The action's metadata files, to be removed with its data files; `None` if nothing may be
    /// removed.
    pub(crate) leftovers: Option<Vec<String>>,
}

/// Makes the action's commit, once. Returns the state of the table that has it, too.
pub(crate) async fn commit<A: Action>(
    lake: &Lake,
    ident: &TableIdent,
    action: &mut A,
) -> Result<(A::Done, TableState), Failure> {
    let mut attempts = Attempts {
        lake,
        ident,
        action: &mut *action,
        unclear: None,
        conflicted: false,
        sent: false,
        prepared: 0,
    };
    let (done, landed, found) = attempts.run().await?;
    if found || attempts.prepared > 1 {
        let superseded = action.superseded(&landed, &done).await;
        if let Err(error) = lake.store().delete(superseded).await {
            tracing::warn!(table = %ident, "metadata files stay until orphan removal: {error}");
        }
    }
    Ok((done, landed))
}

struct Attempts<'a, A> {
    lake: &'a Lake,
    ident: &'a TableIdent,
    action: &'a mut A,
    /// An attempt whose answer was lost, as long as it may yet land.
    unclear: Option<Unclear>,
    /// An attempt met a conflict, and the table was not read since. A request that was sent twice on
    /// its way conflicts with itself.
    conflicted: bool,
    sent: bool,
    /// Attempts for which files were written.
    prepared: u32,
}

/// A commit that was sent, and may be carried out late.
struct Unclear {
    requirements: Vec<TableRequirement>,
    /// The sequence number of the snapshot that it adds, if it does.
    number: Option<i64>,
}

impl Unclear {
    /// Whether it cannot land any more, now or later. That `main` is elsewhere does not say so: after
    /// a rollback it may come back. A number that is taken stays taken (spec, *Sequence Numbers*).
    fn is_over(&self, present: Option<&TableState>) -> bool {
        let of_it = |present: &TableState| {
            let uuid = TableRequirement::UuidMatch { uuid: present.metadata.uuid() };
            self.requirements.contains(&uuid)
        };
        match (present, self.number) {
            (Some(present), Some(number)) if of_it(present) => {
                number <= present.metadata.last_sequence_number()
            }
            _ => catalog::check(present, &self.requirements).is_err(),
        }
    }
}

impl<A: Action> Attempts<'_, A> {
    /// The outcome, the state that has it, and whether it was found there rather than acknowledged.
    async fn run(&mut self) -> Result<(A::Done, TableState, bool), Failure> {
        let mut last = None;
        let mut pause = PAUSE;
        for _ in 0..ATTEMPTS_MAX {
            let present = match self.load().await {
                Ok(present) => present,
                Err(error) => return Err(self.failure(error)),
            };
            if let Some((done, landed)) = self.find(present.as_ref()) {
                return self.found(done, landed);
            }
            match self.attempt(present.as_ref()).await {
                Ok((done, landed)) => return Ok((done, landed, false)),
                Err(CommitFailure::Rejected(error)) if !may_repeat(&error) => {
                    return Err(self.failure(error));
                }
                Err(CommitFailure::Rejected(error) | CommitFailure::Unknown(error)) => {
                    last = Some(error);
                }
                Err(CommitFailure::Conflict(error)) => {
                    self.conflicted = true;
                    last = Some(error);
                }
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        match self.load().await {
            Ok(present) => match self.find(present.as_ref()) {
                Some((done, landed)) => self.found(done, landed),
                None => Err(self.failure(last.unwrap_or_else(conflict))),
            },
            Err(error) => Err(self.failure(error)),
        }
    }

    /// Reads the table, and learns whether an unclear attempt can still land.
    async fn load(&mut self) -> Result<Option<TableState>> {
        let mut tries = 0;
        let present = loop {
            match self.lake.state(self.ident).await {
                Ok(present) => break present,
                Err(error) if error.retryable() && tries + 1 < LOADS_MAX => {
                    tries += 1;
                    tokio::time::sleep(jittered(PAUSE * 2_u32.pow(tries))).await;
                }
                Err(error) => return Err(error),
            }
        };
        if self.find(present.as_ref()).is_none() {
            self.conflicted = false;
            self.unclear.take_if(|unclear| unclear.is_over(present.as_ref()));
        }
        Ok(present)
    }

    fn find(&self, present: Option<&TableState>) -> Option<(A::Done, TableState)> {
        let present = present?;
        Some((self.action.find(present, self.sent)?, present.clone()))
    }

    /// A commit that the table has. If another call has made it, an attempt of this one that is late may
    /// still bring its snapshot: its files have to stay, and the outcome is unknown until it is over.
    fn found(
        &self,
        done: A::Done,
        landed: TableState,
    ) -> Result<(A::Done, TableState, bool), Failure> {
        let adds = self.unclear.as_ref().filter(|unclear| unclear.number.is_some());
        if adds.is_some_and(|unclear| !unclear.is_over(Some(&landed))) {
            return Err(self.failure(conflict()));
        }
        Ok((done, landed, true))
    }

    async fn attempt(
        &mut self,
        present: Option<&TableState>,
    ) -> Result<(A::Done, TableState), CommitFailure> {
        self.action.validate(present).map_err(CommitFailure::Rejected)?;
        self.prepared += 1;
        let prepared = self.action.prepare(present).await.map_err(CommitFailure::Rejected)?;
        self.sent = true;
        let Prepared { updates, done } = prepared;
        let requirements = requirements(present, self.action.branch());
        let number = updates.iter().find_map(sequence_number);
        let mut asked = requirements.clone();
        asked.extend(same_order(present, &updates));
        match self.lake.catalog().commit(self.ident, &asked, updates).await {
            Ok(landed) => Ok((done, landed)),
            Err(failure) => {
                if matches!(failure, CommitFailure::Unknown(_)) {
                    self.unclear = Some(Unclear { requirements, number });
                }
                Err(failure)
            }
        }
    }

    fn failure(&self, error: Error) -> Failure {
        let table = self.ident.to_string();
        if self.unclear.is_some() || self.conflicted {
            let unknown = Error::new(
                ErrorCode::LakeUnknownOutcome,
                "the outcome of the commit could not be learnt",
            )
            .detail(table)
            .hint("run again: the next run finds the commit, or makes it")
            .caused_by(error);
            return Failure { error: unknown, leftovers: None };
        }
        Failure { error: error.detail(table), leftovers: Some(self.action.written()) }
    }
}

/// What must still be so when the catalog takes the commit: the state the updates were made for.
fn requirements(present: Option<&TableState>, branch: Option<&str>) -> Vec<TableRequirement> {
    let Some(present) = present else { return vec![TableRequirement::NotExist] };
    let metadata = &present.metadata;
    let mut requirements = vec![
        TableRequirement::UuidMatch { uuid: metadata.uuid() },
        TableRequirement::RefSnapshotIdMatch {
            r#ref: MAIN_BRANCH.to_owned(),
            snapshot_id: metadata.current_snapshot_id(),
        },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: metadata.current_schema_id() },
        TableRequirement::LastAssignedFieldIdMatch {
            last_assigned_field_id: metadata.last_column_id(),
        },
        TableRequirement::DefaultSpecIdMatch {
            default_spec_id: metadata.default_partition_spec_id(),
        },
        TableRequirement::LastAssignedPartitionIdMatch {
            last_assigned_partition_id: metadata.last_partition_id(),
        },
    ];
    requirements.extend(branch.map(|branch| TableRequirement::RefSnapshotIdMatch {
        r#ref: branch.to_owned(),
        snapshot_id: metadata.snapshot_for_ref(branch).map(|found| found.snapshot_id()),
    }));
    requirements
}

/// That new orders get the ids that they were expected to get, by which new files may be marked. Where an
/// order comes back that was another meanwhile, this holds again: it does not say that a commit is over.
fn same_order(present: Option<&TableState>, updates: &[TableUpdate]) -> Option<TableRequirement> {
    let relies = updates.iter().any(|update| {
        matches!(update, TableUpdate::AddSortOrder { .. } | TableUpdate::AddSnapshot { .. })
    });
    let default_sort_order_id = present.filter(|_| relies)?.metadata.default_sort_order_id();
    Some(TableRequirement::DefaultSortOrderIdMatch { default_sort_order_id })
}

/// The number of the snapshot that an update adds, if the number decides whether it may be added:
/// not that of a first one.
fn sequence_number(update: &TableUpdate) -> Option<i64> {
    let TableUpdate::AddSnapshot { snapshot } = update else { return None };
    snapshot.parent_snapshot_id().map(|_| snapshot.sequence_number())
}

/// What points a branch or tag at a snapshot.
fn point(name: &str, snapshot_id: i64, retention: SnapshotRetention) -> TableUpdate {
    let reference = SnapshotReference::new(snapshot_id, retention);
    TableUpdate::SetSnapshotRef { ref_name: name.to_owned(), reference }
}

/// What points `main` at a snapshot; the branch keeps its retention.
fn main_to(snapshot_id: i64, refs: &BTreeMap<String, SnapshotReference>) -> TableUpdate {
    let retention = refs
        .get(MAIN_BRANCH)
        .map_or_else(|| SnapshotRetention::branch(None, None, None), |main| main.retention.clone());
    point(MAIN_BRANCH, snapshot_id, retention)
}

/// A hiccup of the store or the catalog is worth another attempt with the same data files; a conflict
/// found by [`Action::validate`] is not: the run has to read again.
fn may_repeat(error: &Error) -> bool {
    error.retryable() && error.code() != ErrorCode::LakeConflict
}

pub(crate) fn no_table(table: &str) -> Error {
    Error::new(ErrorCode::LakeNotFound, format!("there is no table {table:?}"))
        .hint("`polder tables` lists all tables")
}

fn conflict() -> Error {
    Error::new(ErrorCode::LakeConflict, "another run changed the table meanwhile")
        .hint("nothing was published; run again")
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}
