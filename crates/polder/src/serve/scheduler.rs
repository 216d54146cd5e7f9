//! Keeps the schedules of the desired state going: looks when the next one is due, and puts its run into
//! the queue. What is due is `polder_control::schedule`'s to say. Several servers may do it at once.

use std::sync::Arc;
use std::time::Duration;

use polder_control::{Store, schedule};
use polder_core::Result;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// How often the desired state and the schedules are looked at, where nothing is due before.
const LOOK: Duration = Duration::from_secs(1);

/// The scheduler of one server.
pub(crate) struct Scheduler {
    pub(crate) app: Arc<App>,
    pub(crate) store: Store,
    /// Told when runs were queued.
    pub(crate) wake: Arc<Notify>,
    pub(crate) stop: CancellationToken,
}

impl Scheduler {
    /// Schedules until `stop`.
    pub(crate) async fn run(&self) {
        let mut known = None;
        while !self.stop.is_cancelled() {
            let wait = match self.look(&mut known).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!("the schedules cannot be looked at: {error}");
                    LOOK
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Queues what is due; how long nothing will be. `known` is the revision of the desired state that the
    /// schedules are as.
    async fn look(&self, known: &mut Option<i64>) -> Result<Duration> {
        let process = &self.app.config.process;
        *known = Some(schedule::follow(&self.store, process, *known).await?);
        let ticked = schedule::tick(&self.store).await?;
        if ticked.queued > 0 {
            tracing::debug!(queued = ticked.queued, skipped = ticked.skipped, "schedules were due");
            self.wake.notify_one();
        }
        let next = schedule::next_ms(&self.store).await?;
        let wait = next.map_or(LOOK, |next| {
            Duration::from_millis((next - self.store.now_ms()).max(0).unsigned_abs())
        });
        // What is overdue now is paused: its time does not come sooner by looking more often.
        Ok(if wait.is_zero() { LOOK } else { wait.min(LOOK) })
    }
}
