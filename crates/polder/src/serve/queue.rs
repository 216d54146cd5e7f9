//! Carries out queued runs in this process, side by side within its limits, and holds on to each
//! while it works. Who may run what, and in which order, is `polder_control::queue`'s; what a run does
//! stands in `jobs.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use polder_control::Spent;
use polder_control::alerts::{self, Alert};
use polder_control::queue::{
    self, Claimer, Ended, JobKind, LEASE, Lease, Outcome, QueuedRun, Renewed,
};
use polder_core::{ErrorCode, Result, RunProgress};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::jobs::{Done, Jobs};
use super::metrics::Metrics;
use crate::output;
use crate::telemetry::{self, RunLog};

/// How often the queue is looked at when nobody says that something is in it: runs that other
/// servers took in, and those of servers that died.
const LOOK: Duration = Duration::from_secs(1);
/// How often in a lease a run's progress is written down, if there is any: once a second.
const TELLS: u32 = 15;

/// Alerts that are sent at one time; each may take a minute where nobody answers.
const SENDING_MAX: usize = 100;

/// The runs of one server.
pub(crate) struct Runner {
    pub(crate) jobs: Jobs,
    /// Told when a run was queued here.
    pub(crate) wake: Arc<Notify>,
    pub(crate) stop: CancellationToken,
    /// This server's name in leases; another one after each start.
    pub(crate) owner: String,
    pub(crate) metrics: Arc<Metrics>,
}

impl Runner {
    /// Works until `stop`; then gives back what it has not done.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(Arc::clone(&self).work(), self.send_alerts());
    }

    async fn work(self: Arc<Self>) {
        let limits = &self.jobs.app.config.process.limits;
        let places = limits.runs.max(1);
        let per_org = limits.runs_of_org();
        let mut tasks = JoinSet::new();
        while !self.stop.is_cancelled() {
            while tasks.len() < places {
                let claimer = Claimer { owner: &self.owner, per_org };
                match queue::claim(&self.jobs.store, claimer).await {
                    Ok(Some((run, lease))) => {
                        let runner = Arc::clone(&self);
                        tasks.spawn(async move { Box::pin(runner.carry_out(run, lease)).await });
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!("the queue cannot be looked at: {error}");
                        break;
                    }
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                Some(joined) = tasks.join_next() => ended(joined),
            }
        }
        while let Some(joined) = tasks.join_next().await {
            ended(joined);
        }
    }

    /// Sends the alerts that wait until `stop`. Whoever is slow to hear of one holds no place of a run; what was
    /// not taken by then waits in the store.
    async fn send_alerts(self: Arc<Self>) {
        let mut sending = JoinSet::new();
        while !self.stop.is_cancelled() {
            while sending.try_join_next().is_some() {}
            match alerts::due(&self.jobs.store, SENDING_MAX - sending.len()).await {
                Ok(due) => {
                    for waiting in due {
                        let runner = Arc::clone(&self);
                        sending.spawn(async move {
                            runner.jobs.alerts().send(&runner.jobs.store, waiting).await;
                        });
                    }
                }
                Err(error) => tracing::warn!("alerts that wait cannot be looked at: {error}"),
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Carries a run out in a span of its own, whose lines are its log.
    async fn carry_out(&self, run: QueuedRun, lease: Lease) {
        if self.put_off(&run, &lease).boxed().await {
            return;
        }
        let trace = run.traceparent.as_deref();
        let span = telemetry::run_span(&run.org, &run.table, run.run_id, run.kind, trace);
        let of = (&run.org, run.run_id);
        let log = RunLog::begin(&span, &self.jobs.store, of, lease.attempt());
        log.kept(self.attempt(run, lease).instrument(span).boxed()).await;
    }

    /// Whether the run's time has not come. What else is wrong with it, its attempt says.
    async fn put_off(&self, run: &QueuedRun, lease: &Lease) -> bool {
        let Ok(Some(until)) = self.jobs.waits_until_ms(run).await else { return false };
        let (org, table, run_id) = (&run.org, &run.table, run.run_id);
        match queue::postpone(&self.jobs.store, lease, until).await {
            Ok(()) => tracing::debug!(%org, table, %run_id, "the validation waits for its hours"),
            // It is taken again when the lease ends.
            Err(error) => {
                tracing::warn!(%org, table, %run_id, "the validation was not put off: {error}");
            }
        }
        true
    }

    async fn attempt(&self, run: QueuedRun, lease: Lease) {
        let (org, table, run_id) = (run.org.clone(), run.table.clone(), run.run_id);
        let (cancel, began) = (self.stop.child_token(), Instant::now());
        self.metrics.began(run.kind, self.jobs.store.now_ms() - run.due_ms);
        let progress = Arc::new(RunProgress::default());
        let outcome = tokio::select! {
            outcome = self.jobs.carry_out(&run, &progress, &cancel).boxed() => outcome,
            () = self.hold(&lease, &progress, &cancel).boxed() => {
                tracing::warn!(%org, table, %run_id, "the run is another server's now");
                Span::current().record("outcome", "lost");
                self.metrics.ended(run.kind, "lost", began.elapsed());
                return;
            }
        };
        let said = self.record(&lease, &outcome).boxed().await;
        match (&outcome, &said) {
            (Ok(done), Ok(Some(Ended::Done(_)))) => {
                let kind = run.kind.as_str();
                if let Some(verdict) = done.verdict {
                    self.metrics.validated(verdict);
                }
                tracing::info!(%org, table, %run_id, kind, "the run succeeded");
            }
            (Err(error), Ok(Some(Ended::Again(_)))) => {
                tracing::warn!(%org, table, %run_id, code = %error.code(),
                    "the run failed and is tried again: {error}");
            }
            // It is another server's by now, or that it ended was not recorded, which is said below.
            (Ok(_), _) => {}
            (Err(error), _) => {
                tracing::warn!(%org, table, %run_id, code = %error.code(), "the run ended: {error}");
            }
        }
        match said {
            Ok(ended) => {
                let spent = outcome.as_ref().map(|done| done.spent).unwrap_or_default();
                telemetry::note_end(&Span::current(), word(ended), &outcome, spent);
                self.metrics.ended(run.kind, word(ended), began.elapsed());
            }
            // The lease ends, and the run is found landed when it is taken up again.
            Err(error) => {
                tracing::warn!(%org, table, %run_id, "the run's end was not recorded: {error}");
            }
        }
        if run.kind == JobKind::Ingest {
            // It may have queued another.
            self.wake.notify_one();
        }
    }

    /// Records how the run ended; gives it back if it ended because the server does.
    async fn record(&self, lease: &Lease, outcome: &Result<Done>) -> Result<Option<Ended>> {
        let mut spent = Spent::default();
        let mut told: &[Alert] = &[];
        let (end, report) = match outcome {
            Ok(done) => {
                spent = done.spent;
                told = &done.alerts;
                (Outcome::Succeeded, done.report.clone())
            }
            Err(error) if error.code() == ErrorCode::Cancelled => {
                if self.stop.is_cancelled() {
                    return queue::release(&self.jobs.store, lease).await.map(|()| None);
                }
                (Outcome::Cancelled, output::error_json(error).to_string())
            }
            Err(error) => (Outcome::Failed(error.code()), output::error_json(error).to_string()),
        };
        let store = &self.jobs.store;
        queue::finish_telling(store, lease, end, (spent, &report), told).await.map(Some)
    }

    /// Holds on to a run, and says how far it is; ends when it is lost.
    async fn hold(&self, lease: &Lease, progress: &RunProgress, cancel: &CancellationToken) {
        let store = &self.jobs.store;
        // Counters and texts always become JSON.
        let now = || serde_json::to_string(&progress.snapshot()).unwrap_or_default();
        let tell = move |now: String| async move { queue::tell(store, lease, &now).await };
        let renew = move || queue::renew(store, lease);
        hold_on(LEASE, now, tell, renew, cancel).await;
    }
}

fn ended(joined: std::result::Result<(), JoinError>) {
    if let Err(error) = joined {
        tracing::error!("a run panicked, and is taken up again when its lease ends: {error}");
    }
}

/// Renews a lease that lasts so long, and tells `now` where it has changed; ends when it is lost, or has
/// ended because the store did not answer in time.
async fn hold_on<T, R>(
    lasts: Duration,
    now: impl Fn() -> String,
    tell: impl Fn(String) -> T,
    renew: impl Fn() -> R,
    cancel: &CancellationToken,
) where
    T: Future<Output = Result<()>>,
    R: Future<Output = Result<Renewed>>,
{
    let (mut held, mut renewed) = (Instant::now(), Instant::now());
    let mut told = String::new();
    loop {
        tokio::time::sleep(lasts / TELLS).await;
        let left = lasts.saturating_sub(held.elapsed());
        if left.is_zero() {
            tracing::warn!("a lease ended: the store did not answer in time");
            return;
        }
        let due = (lasts / 3).saturating_sub(renewed.elapsed());
        if !due.is_zero() {
            let now = now();
            if now != told {
                // A store that hangs does not keep the lease from being renewed.
                match tokio::time::timeout(due, tell(now.clone())).await {
                    Ok(Ok(())) => told = now,
                    Ok(Err(error)) => {
                        tracing::warn!("a run's progress was not written down: {error}");
                    }
                    Err(_) => tracing::warn!("a run's progress was not written down in time"),
                }
            }
            continue;
        }
        renewed = Instant::now();
        match tokio::time::timeout(left.min(lasts / 3), renew()).await {
            Ok(Ok(Renewed::Held)) => held = renewed,
            Ok(Ok(Renewed::CancelWanted)) => {
                held = renewed;
                cancel.cancel();
            }
            Ok(Ok(Renewed::Lost)) => return,
            Ok(Err(error)) => tracing::warn!("a lease was not renewed: {error}"),
            Err(_) => tracing::warn!("a lease was not renewed: the store does not answer"),
        }
    }
}

/// How a run ended, in a metric's label.
fn word(ended: Option<Ended>) -> &'static str {
    match ended {
        Some(Ended::Done(state)) => state.as_str(),
        Some(Ended::Again(_)) => "retried",
        Some(Ended::Lost) => "lost",
        None => "released",
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LASTS: Duration = Duration::from_secs(1);
    /// Tries of what a machine that stands still for a moment spoils.
    const TRIES: u32 = 5;

    /// How long a run is held whose progress changes all the time, and how often its lease was renewed.
    async fn held<T, R>(tell: impl Fn() -> T, renew: impl Fn(u32) -> R) -> (Duration, u32)
    where
        T: Future<Output = Result<()>>,
        R: Future<Output = Result<Renewed>>,
    {
        let (said, asked) = (AtomicU32::new(0), AtomicU32::new(0));
        let now = || said.fetch_add(1, Ordering::SeqCst).to_string();
        let renew = || renew(asked.fetch_add(1, Ordering::SeqCst));
        let began = Instant::now();
        let cancel = CancellationToken::new();
        let hold = hold_on(LASTS, now, |_| tell(), renew, &cancel);
        tokio::time::timeout(LASTS * 60, hold).await.expect("it ends");
        (began.elapsed(), asked.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn progress_that_hangs_does_not_keep_a_lease_from_being_renewed() {
        let renew = |asked: u32| ready(Ok(if asked < 6 { Renewed::Held } else { Renewed::Lost }));
        for _ in 0..TRIES {
            let (took, asked) = held(pending, renew).await;
            if asked == 7 {
                assert!(took > LASTS * 2, "{took:?}");
                return;
            }
        }
        panic!("it never was renewed until it was lost");
    }

    /// Not before the lease, and at least once not much after it.
    async fn ends_with_the_lease<T, R>(tell: impl Fn() -> T + Copy, renew: impl Fn(u32) -> R + Copy)
    where
        T: Future<Output = Result<()>>,
        R: Future<Output = Result<Renewed>>,
    {
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            let (took, _) = held(tell, renew).await;
            assert!(took >= LASTS, "{took:?}");
            if took < LASTS * 3 / 2 {
                return;
            }
            seen.push(took);
        }
        panic!("{seen:?}");
    }

    #[tokio::test]
    async fn a_store_that_hangs_ends_the_hold_with_the_lease() {
        ends_with_the_lease(pending, |_| pending()).await;
        // Also where it answers that it cannot.
        let down = || polder_core::Error::new(ErrorCode::ControlStore, "down");
        ends_with_the_lease(|| ready(Err(down())), |_| ready(Err(down()))).await;
    }
}
