//! Cancel requests: they come by a connection of their own, and name the one that is meant by a number
//! and a secret that only its client was told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The connections there are.
#[derive(Debug, Default)]
pub(super) struct Running {
    last: AtomicI32,
    by_process: Mutex<HashMap<i32, Entry>>,
}

#[derive(Debug)]
struct Entry {
    secret: i32,
    /// Of the statement that is under way.
    statement: CancellationToken,
}

/// One connection among them. It is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    running: Arc<Running>,
    pub(super) process: i32,
    pub(super) secret: i32,
}

impl Running {
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        let process = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let [.., a, b, c, d] = Uuid::new_v4().into_bytes();
        let secret = i32::from_be_bytes([a, b, c, d]);
        self.entries().insert(process, Entry { secret, statement: CancellationToken::new() });
        Place { running: Arc::clone(self), process, secret }
    }

    /// Cancels the statement that a connection is at, if the secret is right.
    pub(super) fn cancel(&self, process: i32, secret: i32) {
        if let Some(entry) = self.entries().get(&process).filter(|entry| entry.secret == secret) {
            entry.statement.cancel();
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<i32, Entry>> {
        self.by_process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// A statement begins: requests that came before do not mean it.
    pub(super) fn begin(&self) -> CancellationToken {
        let token = CancellationToken::new();
        if let Some(entry) = self.running.entries().get_mut(&self.process) {
            entry.statement = token.clone();
        }
        token
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.entries().remove(&self.process);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_statement_that_runs_is_cancelled_and_only_by_who_knows_the_secret() {
        let running = Arc::new(Running::default());
        let (own, other) = (running.enter(), running.enter());
        running.cancel(own.process, own.secret);
        let (statement, others) = (own.begin(), other.begin());
        running.cancel(own.process, own.secret.wrapping_add(1));
        running.cancel(other.process.wrapping_add(1), own.secret);
        assert!(!statement.is_cancelled(), "an earlier request, or a wrong secret");
        running.cancel(own.process, own.secret);
        assert!(statement.is_cancelled() && !others.is_cancelled());
        assert!(!own.begin().is_cancelled());
        drop(own);
        assert_eq!(running.entries().len(), 1);
    }
}
