//! A catalog between the lake and any other catalog, that loses, delays and repeats.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use polder_core::{Error, ErrorCode, Result};
use polder_lake::{Catalog, CommitFailure, TableState};

use crate::between::Between;

/// What happens to one attempt to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// The catalog cannot be reached: nothing is sent.
    BeforeSend,
    /// It is sent, never carried out, and no answer comes.
    AfterSend,
    /// It lands, and no answer comes.
    AnswerLost,
    /// It lands, the transport sends it again, and the client sees the second answer: 409.
    ConflictAfterLanding,
    /// 409, because of something that does not concern the table.
    Conflict,
    /// 500, not carried out.
    Error500,
    /// 500, and it has landed.
    Error500Landed,
    /// 503: not carried out, try again.
    Busy503,
    /// A timeout; it lands after the client has read the table again, before its next attempt.
    LateBeforeTheNext,
    /// A timeout; it arrives when the client has long made up its mind.
    LateAtTheEnd,
    /// It takes its time.
    Slow,
    /// A definite refusal.
    Refused,
    /// It lands, no answer comes, and the catalog cannot be read for a moment.
    AnswerLostThenAway,
    /// It lands, no answer comes, and the catalog cannot be read any more.
    AnswerLostThenDark,
    /// [`Self::ConflictAfterLanding`], and the catalog cannot be read any more.
    ConflictThenDark,
    /// It is not carried out, no answer comes, and the catalog cannot be read any more.
    AfterSendThenDark,
    /// 409 that is true of this attempt, and the catalog cannot be read any more.
    TrueConflictThenDark,
}

const DARK: usize = 1_000;
const SLOW: Duration = Duration::from_millis(200);

type Request = (TableIdent, Vec<TableRequirement>, Vec<TableUpdate>);

#[derive(Debug)]
pub(crate) struct FaultyCatalog {
    inner: Arc<dyn Catalog>,
    /// The faults of the next attempts; none when used up.
    faults: Mutex<VecDeque<Fault>>,
    attempts: AtomicUsize,
    /// Loads that fail from now on.
    dark: AtomicUsize,
    late: Mutex<Vec<Request>>,
    later: Mutex<Vec<Request>>,
}

impl FaultyCatalog {
    pub(crate) fn new(inner: Arc<dyn Catalog>) -> Self {
        Self {
            inner,
            faults: Mutex::default(),
            attempts: AtomicUsize::new(0),
            dark: AtomicUsize::new(0),
            late: Mutex::default(),
            later: Mutex::default(),
        }
    }

    /// The faults of the next attempts.
    pub(crate) fn next(&self, faults: &[Fault]) {
        *self.faults.lock().expect("faults") = faults.iter().copied().collect();
        self.attempts.store(0, Ordering::SeqCst);
        self.dark.store(0, Ordering::SeqCst);
    }

    pub(crate) fn attempts(&self) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }

    /// Lets what is still under way arrive. Returns how many of them landed.
    pub(crate) async fn settle(&self) -> usize {
        self.arrive(&self.late).await + self.arrive(&self.later).await
    }

    async fn arrive(&self, waiting: &Mutex<Vec<Request>>) -> usize {
        let requests = std::mem::take(&mut *waiting.lock().expect("requests"));
        let mut landed = 0;
        for (ident, requirements, updates) in requests {
            landed += usize::from(self.inner.commit(&ident, &requirements, updates).await.is_ok());
        }
        landed
    }
}

fn unknown() -> CommitFailure {
    CommitFailure::Unknown(Error::new(ErrorCode::LakeUnavailable, "no answer"))
}

fn failed_500() -> CommitFailure {
    CommitFailure::Unknown(Error::new(ErrorCode::LakeFailed, "500"))
}

fn conflict() -> CommitFailure {
    CommitFailure::Conflict(Error::new(ErrorCode::LakeConflict, "409"))
}

fn rejected(code: ErrorCode) -> CommitFailure {
    CommitFailure::Rejected(Error::new(code, "not carried out"))
}

#[async_trait]
impl Between for FaultyCatalog {
    fn inner(&self) -> &dyn Catalog {
        &*self.inner
    }

    async fn load(&self, ident: &TableIdent) -> Result<Option<TableState>> {
        let away = |left: usize| left.checked_sub(1);
        if self.dark.fetch_update(Ordering::SeqCst, Ordering::SeqCst, away).is_ok() {
            return Err(Error::new(ErrorCode::LakeUnavailable, "the catalog is away"));
        }
        self.inner.load(ident).await
    }

    async fn commit(
        &self,
        ident: &TableIdent,
        requirements: &[TableRequirement],
        updates: Vec<TableUpdate>,
    ) -> Result<TableState, CommitFailure> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        self.arrive(&self.late).await;
        let fault = self.faults.lock().expect("faults").pop_front().unwrap_or(Fault::Nothing);
        let request = (ident.clone(), requirements.to_vec(), updates.clone());
        let send = || self.inner.commit(ident, requirements, updates);
        let dark = |loads: usize| self.dark.store(loads, Ordering::SeqCst);
        match fault {
            Fault::Nothing => send().await,
            Fault::Slow => {
                tokio::time::sleep(SLOW).await;
                send().await
            }
            Fault::BeforeSend | Fault::Busy503 => Err(rejected(ErrorCode::LakeUnavailable)),
            Fault::Refused => Err(rejected(ErrorCode::LakeFailed)),
            Fault::Conflict => Err(conflict()),
            Fault::AfterSend => Err(unknown()),
            Fault::Error500 => Err(failed_500()),
            Fault::AnswerLost => send().await.and(Err(unknown())),
            Fault::Error500Landed => send().await.and(Err(failed_500())),
            Fault::ConflictAfterLanding => send().await.and(Err(conflict())),
            Fault::LateBeforeTheNext => {
                self.late.lock().expect("late").push(request);
                Err(unknown())
            }
            Fault::LateAtTheEnd => {
                self.later.lock().expect("later").push(request);
                Err(unknown())
            }
            Fault::AnswerLostThenAway => {
                dark(2);
                send().await.and(Err(unknown()))
            }
            Fault::AnswerLostThenDark => {
                dark(DARK);
                send().await.and(Err(unknown()))
            }
            Fault::ConflictThenDark => {
                dark(DARK);
                send().await.and(Err(conflict()))
            }
            Fault::AfterSendThenDark => {
                dark(DARK);
                Err(unknown())
            }
            Fault::TrueConflictThenDark => {
                dark(DARK);
                Err(conflict())
            }
        }
    }
}
