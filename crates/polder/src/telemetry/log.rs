//! The logs of runs: lines that are told inside of a run's span go to its record in the control store.
//!
//! A line is what stderr has at the level `info`, with its fields. Of an attempt that says much, the first
//! and the last lines are kept. They are written down once a second while the run works, and when it has
//! ended; a store that does not take them holds up nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use polder_control::Store;
use polder_control::run_logs::{self, LINES_MAX, Line};
use polder_core::{OrgId, Principal, Result};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Span, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};
use uuid::Uuid;

/// Lines of one attempt that are kept from its beginning and from its end. With the one that says how many
/// are left out between, they are a run's most.
const FIRST_MAX: usize = LINES_MAX / 2;
const LAST_MAX: usize = LINES_MAX - FIRST_MAX - 1;
const MESSAGE_CHARS_MAX: usize = 2000;
const VALUE_CHARS_MAX: usize = 500;
const FIELDS_MAX: usize = 20;
/// What every line of the run would repeat.
const OF_THE_RUN: [&str; 3] = ["org", "table", "run_id"];
/// How often lines are written down, and how long the last ones may take.
const WRITE: Duration = Duration::from_secs(1);
const WRITE_MAX: Duration = Duration::from_secs(5);

/// Gives lines to the run in whose span they are told.
pub(super) struct Catcher;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Catcher {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(mut scope) = context.event_scope(event) else { return };
        let lines = scope.find_map(|span| {
            let extensions = span.extensions();
            extensions.get::<Lines>().cloned()
        });
        let Some(lines) = lines else { return };
        let mut told = Told::default();
        event.record(&mut told);
        lines.take(event.metadata().level().as_str(), told);
    }
}

/// What an event says.
#[derive(Default)]
struct Told {
    message: String,
    fields: Map<String, Value>,
}

impl Told {
    fn keep(&mut self, field: &Field, value: Value) {
        let name = field.name();
        if self.fields.len() < FIELDS_MAX && !OF_THE_RUN.contains(&name) {
            self.fields.insert(name.to_owned(), value);
        }
    }

    fn keep_text(&mut self, field: &Field, text: &str) {
        if field.name() == "message" {
            self.message = bounded(text, MESSAGE_CHARS_MAX);
        } else {
            self.keep(field, bounded(text, VALUE_CHARS_MAX).into());
        }
    }
}

impl Visit for Told {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.keep_text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.keep_text(field, &format!("{value:?}"));
    }
}

/// A text of so many characters at most, which PostgreSQL takes.
fn bounded(text: &str, chars_max: usize) -> String {
    let mut chars = text.chars().map(|c| if c == '\0' { '\u{FFFD}' } else { c });
    let mut kept: String = chars.by_ref().take(chars_max).collect();
    if chars.next().is_some() {
        kept.push('…');
    }
    kept
}

/// The lines of one attempt that are not written down yet.
#[derive(Clone)]
struct Lines(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    attempt: i64,
    told: usize,
    first: VecDeque<Line>,
    /// Those that are the last so far. They wait for the end.
    last: VecDeque<Line>,
}

impl Waiting {
    /// Attempts one after the other, and each one's lines in their order.
    fn place(&self, line: usize) -> i64 {
        (self.attempt << 32) + line as i64
    }
}

impl Lines {
    fn of(attempt: i64) -> Self {
        Self(Arc::new(Mutex::new(Waiting { attempt, ..Waiting::default() })))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Lines stay readable after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, level: &str, told: Told) {
        let fields = Value::Object(told.fields).to_string();
        let (level, at_ms) = (level.to_ascii_lowercase(), Utc::now().timestamp_millis());
        let mut waiting = self.waiting();
        let is_first = waiting.told < FIRST_MAX;
        // One place is left for the line that says how many are left out.
        let seq = waiting.place(waiting.told + usize::from(!is_first));
        let line = Line { seq, at_ms, level, message: told.message, fields };
        waiting.told += 1;
        if is_first {
            return waiting.first.push_back(line);
        }
        waiting.last.push_back(line);
        if waiting.last.len() > LAST_MAX {
            waiting.last.pop_front();
        }
    }

    /// What may be written down while the run works.
    fn so_far(&self) -> Vec<Line> {
        self.waiting().first.iter().cloned().collect()
    }

    /// Those lines are written down.
    fn written(&self, lines: usize) {
        let first = &mut self.waiting().first;
        first.drain(..lines.min(first.len()));
    }

    /// What there is to be written down once the run has ended.
    fn rest(&self) -> Vec<Line> {
        let waiting = self.waiting();
        let left_out = waiting.told.saturating_sub(FIRST_MAX + waiting.last.len());
        let gap = waiting.last.front().filter(|_| left_out > 0).map(|next| Line {
            seq: waiting.place(FIRST_MAX),
            at_ms: next.at_ms,
            level: "info".to_owned(),
            message: format!("{left_out} lines are left out here"),
            fields: "{}".to_owned(),
        });
        waiting.first.iter().cloned().chain(gap).chain(waiting.last.iter().cloned()).collect()
    }
}

/// The log of one attempt at a run.
pub(crate) struct RunLog {
    store: Store,
    org: OrgId,
    run_id: Uuid,
    lines: Lines,
}

impl RunLog {
    /// Begins to keep what is told in the run's span. `attempt` has to grow with each one.
    pub(crate) fn begin(
        span: &Span,
        store: &Store,
        (org, run_id): (&OrgId, Uuid),
        attempt: i64,
    ) -> Self {
        let lines = Lines::of(attempt);
        // Without a subscriber of ours there is no such span, and nothing is kept.
        span.with_subscriber(|(id, dispatch)| {
            let registry = dispatch.downcast_ref::<Registry>();
            if let Some(span) = registry.and_then(|registry| registry.span(id)) {
                span.extensions_mut().insert(lines.clone());
            }
        });
        Self { store: store.clone(), org: org.clone(), run_id, lines }
    }

    /// Writes lines down while the work goes on, which is done in the run's span, and when it has ended.
    pub(crate) async fn kept<T>(&self, work: impl Future<Output = T>) -> T {
        let ended = tokio::select! {
            ended = work => ended,
            never = self.write() => match never {},
        };
        let last = tokio::time::timeout(WRITE_MAX, self.end()).await;
        let (org, run_id) = (&self.org, self.run_id);
        match last {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%org, %run_id, "the run's log was not kept: {error}");
            }
            Err(_) => tracing::warn!(%org, %run_id, "the run's log was not kept: no answer came"),
        }
        ended
    }

    async fn write(&self) -> Infallible {
        loop {
            tokio::time::sleep(WRITE).await;
            // What is not written now is written with the next.
            let _ = self.append(&self.lines.so_far()).await;
        }
    }

    async fn append(&self, lines: &[Line]) -> Result<()> {
        let org = Principal::Operator.authorize(&self.org)?;
        run_logs::append(&self.store, &org, self.run_id, lines).await?;
        self.lines.written(lines.len());
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        self.append(&self.lines.rest()).await?;
        run_logs::forget_old(&self.store, &Principal::Operator.authorize(&self.org)?).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &Lines, message: &str) {
        lines.take("WARN", Told { message: message.to_owned(), fields: Map::new() });
    }

    #[test]
    fn of_many_lines_the_first_and_the_last_are_kept_and_the_gap_is_told() {
        let lines = Lines::of(3);
        told(&lines, "0");
        assert_eq!(lines.so_far().len(), 1);
        lines.written(1);
        let all = LINES_MAX + 6;
        for line in 1..all {
            told(&lines, &line.to_string());
        }
        let first = lines.so_far();
        assert_eq!((first.len(), first[0].message.as_str()), (FIRST_MAX - 1, "1"));
        let rest = lines.rest();
        assert_eq!(rest.len() + 1, LINES_MAX, "with the one that is written");
        let words = |at: usize| rest[at].message.as_str();
        assert_eq!(words(FIRST_MAX - 1), "7 lines are left out here");
        assert_eq!(words(FIRST_MAX), (FIRST_MAX + 7).to_string());
        assert_eq!(rest[rest.len() - 1].message, (all - 1).to_string());
        assert!(rest.windows(2).all(|two| two[0].seq < two[1].seq), "each in its place");
        assert_eq!(rest[0].seq, (3 << 32) + 1);
        assert_eq!(rest[0].level, "warn");
    }

    #[test]
    fn what_just_fits_is_kept_whole() {
        let lines = Lines::of(0);
        let all = FIRST_MAX + LAST_MAX;
        for line in 0..all {
            told(&lines, &line.to_string());
        }
        let rest = lines.rest();
        assert_eq!(rest.len(), all);
        assert!(rest.iter().all(|line| !line.message.contains("left out")));
    }

    #[test]
    fn texts_are_bounded_and_hold_nothing_that_a_store_refuses() {
        assert_eq!(bounded("a\0b", 9), "a\u{FFFD}b");
        assert_eq!(bounded("äöü", 3), "äöü");
        assert_eq!(bounded("äöü", 2), "äö…");
    }
}
