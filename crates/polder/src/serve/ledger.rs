//! Entries of the audit log that are written a moment later: several in one transaction, in the order in
//! which they came, so that a client that commits hundreds of times a second does not wait for the log's
//! head each time. A process that is killed loses those of the last moment.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use polder_control::Store;
use polder_control::audit::{self, Event};
use tokio_util::sync::CancellationToken;

use super::pace::Pace;

/// How long an entry waits for others.
const MOMENT: Duration = Duration::from_millis(200);
/// Entries written in one transaction, which holds the log's head.
const BATCH: usize = 200;
/// Entries that wait, at most: what a store that cannot be written to is waited for.
const WAITING_MAX: usize = 20_000;
/// The longest text of an entry.
const TEXT_CHARS_MAX: usize = 500;
/// Refusals of one caller that have an entry each, at once, and how often one more.
const REFUSALS: (u32, Duration) = (100, Duration::from_secs(2));

/// What is to be written.
#[derive(Debug)]
pub(crate) struct Ledger {
    store: Store,
    /// With the time of each, in milliseconds since the epoch.
    waiting: Mutex<VecDeque<(i64, Event)>>,
    /// Held while entries are written: their order is the log's.
    writing: tokio::sync::Mutex<()>,
    refusals: Pace,
    /// Refusals without an entry of their own.
    left_out: AtomicU64,
    /// Entries for which there was no room.
    lost: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(store: Store) -> Self {
        let (at_once, every) = REFUSALS;
        Self {
            store,
            waiting: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            refusals: Pace::every(every, at_once),
            left_out: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Takes an entry, to be written in a moment.
    pub(crate) fn add(&self, mut event: Event) {
        // Clients choose names: PostgreSQL takes no text with a zero in it, and none is to be very long.
        event.who = shown(&event.who);
        event.action = shown(&event.action);
        event.subject = event.subject.map(|text| shown(&text));
        event.detail = event.detail.map(|text| shown(&text));
        let mut waiting = self.waiting();
        if waiting.len() < WAITING_MAX {
            waiting.push_back((Utc::now().timestamp_millis(), event));
            return;
        }
        drop(waiting);
        self.lost.fetch_add(1, Ordering::Relaxed);
        tracing::error!(action = event.action, who = event.who, "an audit entry was lost");
    }

    /// The same of a refusal: whoever is refused all the time has few entries, and the number of the rest.
    pub(super) fn add_refusal(&self, event: Event, now: Instant) {
        if self.refusals.take(&event.who, now).is_ok() {
            self.add(event);
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what waits. What cannot be written goes on waiting.
    pub(crate) async fn flush(&self) {
        let _writing = self.writing.lock().await;
        loop {
            let batch: Vec<_> = self.waiting().iter().take(BATCH).cloned().collect();
            if batch.is_empty() {
                return;
            }
            if let Err(error) = audit::record_all(&self.store, &batch).await {
                let waiting = self.waiting().len();
                tracing::error!(waiting, "audit entries are not written yet: {error}");
                return;
            }
            // Others are added at the end alone, and nobody else writes.
            self.waiting().drain(..batch.len());
        }
    }

    /// Writes what comes, until `stop`. What comes after that is for [`Self::flush`].
    pub(crate) async fn run(&self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(MOMENT) => {}
            }
            self.flush().await;
        }
    }

    /// Adds one entry for all that had none since this was called last.
    pub(crate) fn sum_up(&self) {
        let sums = [
            (&self.left_out, "requests that were refused", "refused"),
            (&self.lost, "entries that the log had no room for", "lost"),
        ];
        for (count, action, outcome) in sums {
            let more = count.swap(0, Ordering::Relaxed);
            if more > 0 {
                self.add(Event {
                    who: "-".to_owned(),
                    action: action.to_owned(),
                    outcome: outcome.to_owned(),
                    detail: Some(format!("and {more} more")),
                    ..Event::default()
                });
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<(i64, Event)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A text as the log has it.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(TEXT_CHARS_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn ledger() -> (Ledger, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("folder");
        let url = format!("sqlite://{}", folder.path().join("c.db").display());
        (Ledger::new(Store::open(&url).await.expect("store")), folder)
    }

    fn event(who: &str, number: usize) -> Event {
        let subject = Some(number.to_string());
        Event { who: who.to_owned(), subject, outcome: "done".to_owned(), ..Event::default() }
    }

    async fn written(ledger: &Ledger) -> Vec<audit::Entry> {
        audit::after(&ledger.store, 0, 10_000).await.expect("read")
    }

    #[tokio::test]
    async fn entries_are_written_in_their_order_and_once() {
        let (ledger, _folder) = ledger().await;
        for number in 0..BATCH + 50 {
            ledger.add(event("a", number));
        }
        tokio::join!(ledger.flush(), ledger.flush());
        let log = written(&ledger).await;
        let said: Vec<_> = log.iter().map(|entry| entry.subject.clone()).collect();
        let expect: Vec<_> = (0..BATCH + 50).map(|number| Some(number.to_string())).collect();
        assert_eq!(said, expect);
        assert!(audit::verify(&ledger.store, None).await.expect("verified").problems.is_empty());
    }

    #[tokio::test]
    async fn they_are_written_by_themselves_and_the_last_at_the_end() {
        let (ledger, _folder) = ledger().await;
        let (ledger, stop) = (Arc::new(ledger), CancellationToken::new());
        let run = async {
            ledger.run(&stop).await;
        };
        let work = async {
            ledger.add(event("a", 1));
            let began = Instant::now();
            while written(&ledger).await.is_empty() {
                assert!(began.elapsed() < Duration::from_mins(1), "nothing is written");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            ledger.add(event("a", 2));
            stop.cancel();
        };
        tokio::join!(run, work);
        assert_eq!(written(&ledger).await.len(), 2);
    }

    #[tokio::test]
    async fn there_is_an_end_to_what_waits() {
        let (ledger, _folder) = ledger().await;
        for number in 0..WAITING_MAX + 3 {
            ledger.add(event("a", number));
        }
        assert_eq!(ledger.waiting().len(), WAITING_MAX);
        assert_eq!(ledger.lost.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn an_entry_with_a_strange_name_keeps_no_other_from_being_written() {
        let (ledger, _folder) = ledger().await;
        let strange = format!("a\0b\u{1f}c{}", "d".repeat(TEXT_CHARS_MAX));
        ledger.add(Event { subject: Some(strange), ..event("a", 1) });
        ledger.flush().await;
        let log = written(&ledger).await;
        let said = log[0].subject.as_deref().expect("subject");
        assert!(said.starts_with("a\u{fffd}b\u{fffd}cd"), "{said}");
        assert_eq!(said.chars().count(), TEXT_CHARS_MAX);
    }

    #[tokio::test]
    async fn whoever_is_refused_all_the_time_has_few_entries() {
        let (ledger, _folder) = ledger().await;
        let now = Instant::now();
        for number in 0..130 {
            ledger.add_refusal(event("a", number), now);
        }
        ledger.add_refusal(event("b", 0), now);
        ledger.sum_up();
        ledger.sum_up();
        ledger.flush().await;
        let log = written(&ledger).await;
        assert_eq!(log.len(), 102, "100 of one, one of another, and the rest");
        assert_eq!(log[101].detail.as_deref(), Some("and 30 more"));
    }
}
