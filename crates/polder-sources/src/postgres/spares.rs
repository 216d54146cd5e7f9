//! The sessions of one plan. Each sees the plan's snapshot while its transaction lives, and could read
//! any of the plan's splits: one that has read its own waits until the others are read too, in case a
//! connection breaks.
//!
//! How a split is read is not known here, nor how often it is tried.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::connect::Session;

/// What the splits of a plan share.
#[derive(Default)]
pub(super) struct Spares {
    held: Mutex<Held>,
    /// Something has changed.
    changed: Notify,
}

#[derive(Default)]
struct Held {
    /// Sessions that have read their split, no more than somebody may have use for.
    idle: Vec<Session>,
    /// Sessions that have not.
    busy: usize,
    /// Splits without a session.
    waiting: usize,
}

/// A session that is to read a split. Dropped before [`Self::done`], it is lost to the other splits.
pub(super) struct Reading {
    pub(super) session: Session,
    counted: Counted,
}

struct Counted {
    spares: Arc<Spares>,
    busy: bool,
}

/// A split that waits for a session.
struct Waiting<'a>(&'a Spares);

impl Spares {
    /// One for each session, all of which see one snapshot.
    pub(super) fn of(sessions: Vec<Session>) -> (Arc<Self>, Vec<Reading>) {
        let spares = Arc::new(Self::default());
        spares.held().busy = sessions.len();
        let readings = sessions.into_iter().map(|session| Reading {
            session,
            counted: Counted { spares: Arc::clone(&spares), busy: true },
        });
        let readings = readings.collect();
        (spares, readings)
    }

    /// A session that has read its own split, once there is one; `None` if none is left that sees the
    /// snapshot.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Reading> {
        self.held().waiting += 1;
        let _waiting = Waiting(self);
        loop {
            let changed = self.changed.notified();
            {
                let mut held = self.held();
                if let Some(session) = held.idle.pop() {
                    held.busy += 1;
                    let counted = Counted { spares: Arc::clone(self), busy: true };
                    return Some(Reading { session, counted });
                }
                if held.busy == 0 {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Takes back a session that has read its split. Returns those that nobody can have use for.
    fn put_back(&self, session: Session) -> Vec<Session> {
        let mut held = self.held();
        held.busy -= 1;
        let left = if held.busy == 0 && held.waiting == 0 {
            let mut all = std::mem::take(&mut held.idle);
            all.push(session);
            all
        } else if held.idle.is_empty() {
            held.idle.push(session);
            Vec::new()
        } else {
            vec![session]
        };
        drop(held);
        self.changed.notify_waiters();
        left
    }

    /// Closes what is kept for nobody any more.
    fn tidy(&self) {
        let mut held = self.held();
        let over = held.busy == 0 && held.waiting == 0;
        let left = if over { std::mem::take(&mut held.idle) } else { Vec::new() };
        drop(held);
        drop(left);
        self.changed.notify_waiters();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    /// Whether other sessions see the same snapshot.
    pub(super) fn is_shared(&self) -> bool {
        let held = self.counted.spares.held();
        held.busy + held.idle.len() > 1
    }

    /// The split is read to its end.
    pub(super) async fn done(self) {
        let Self { session, mut counted } = self;
        counted.busy = false;
        for session in counted.spares.put_back(session) {
            session.close().await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.busy {
            self.spares.held().busy -= 1;
            self.spares.tidy();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.held().waiting -= 1;
        self.0.tidy();
    }
}
