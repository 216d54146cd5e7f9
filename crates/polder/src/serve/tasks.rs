//! Requests that change something are carried out to their end, also if their client hangs up: the HTTP
//! server drops a request's own future then, wherever it is.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tracing::Instrument;

/// Requests that are carried out at one time. More have to wait.
const RUNNING_MAX: usize = 256;

/// What is carried out now.
#[derive(Debug)]
pub(crate) struct Tasks {
    places: Arc<Semaphore>,
    running: Mutex<JoinSet<()>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(RUNNING_MAX)), running: Mutex::default() }
    }
}

impl Tasks {
    /// Carries work out and gives what came of it. Once it has begun it is done also where nobody waits
    /// for it any more, and told of in the request's span. `None` if it ended without a word: by a panic, or
    /// at the server's end.
    pub(super) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let (tell, told) = oneshot::channel();
        let work = work.in_current_span();
        self.start(async move {
            let done = work.await;
            drop(place);
            // Fails if nobody waits.
            let _ = tell.send(done);
        });
        told.await.ok()
    }

    fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running.spawn(work);
    }

    /// Waits for all that has begun.
    pub(super) async fn drain(&self) {
        let mut running =
            std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        while running.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_has_begun_is_done_though_nobody_waits_for_it() {
        let (tasks, done) = (Tasks::default(), Arc::new(AtomicBool::new(false)));
        let set = Arc::clone(&done);
        let work = async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            set.store(true, Ordering::SeqCst);
            7
        };
        let given_up = tokio::time::timeout(Duration::from_millis(5), tasks.finish(work)).await;
        assert!(given_up.is_err() && !done.load(Ordering::SeqCst));
        tasks.drain().await;
        assert!(done.load(Ordering::SeqCst));
        assert_eq!(tasks.finish(async { 8 }).await, Some(8));
    }
}
