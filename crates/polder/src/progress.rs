//! Shows runs while they work: bars on a terminal, plain lines elsewhere, nothing with `--json`.
//!
//! Reads the runs' counters on a timer; the runs know nothing of it.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use polder_core::{ProgressSnapshot, RunProgress, Stage};
use tokio::task::JoinSet;

use crate::output;

/// How often bars move.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// How often a plain line says that a run is still alive.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// One run to show.
struct Shown {
    label: String,
    progress: Arc<RunProgress>,
    bar: Option<ProgressBar>,
}

/// A display of running runs, drawn on stderr until it is dropped.
pub(crate) struct Display {
    bars: Option<MultiProgress>,
    shown: Vec<Shown>,
    ticker: JoinSet<()>,
}

impl Display {
    /// `quiet`: show nothing at all.
    pub(crate) fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { bars, shown: Vec::new(), ticker: JoinSet::new() }
    }

    /// Adds a run before [`Self::start`].
    pub(crate) fn watch(&mut self, label: String, progress: Arc<RunProgress>) {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::no_length());
            bar.set_style(style());
            bar.set_prefix(label.clone());
            bar
        });
        self.shown.push(Shown { label, progress, bar });
    }

    /// Begins to draw.
    pub(crate) fn start(&mut self, quiet: bool) {
        if quiet {
            return;
        }
        let shown = std::mem::take(&mut self.shown);
        let interval = if self.bars.is_some() { BAR_INTERVAL } else { LINE_INTERVAL };
        self.ticker.spawn(async move {
            let mut pace: Vec<Pace> = shown.iter().map(|_| Pace::new()).collect();
            let mut timer = tokio::time::interval(interval);
            timer.tick().await;
            loop {
                timer.tick().await;
                for (shown, pace) in shown.iter().zip(&mut pace) {
                    draw(shown, pace);
                }
            }
        });
    }

    /// A line that stays above the bars.
    pub(crate) fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => output::note(text),
        }
    }

    /// Removes the bars.
    pub(crate) fn finish(mut self) {
        self.ticker.abort_all();
        if let Some(bars) = &self.bars {
            drop(bars.clear());
        }
    }
}

fn style() -> ProgressStyle {
    // The template is a constant: were it wrong, every run would show it.
    ProgressStyle::with_template("{prefix:<28} {bar:24} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// When a run began to move rows, for its rate.
struct Pace {
    began: Option<Instant>,
}

impl Pace {
    fn new() -> Self {
        Self { began: None }
    }

    /// Rows a second since the first row.
    fn rate(&mut self, rows: u64) -> f64 {
        if rows == 0 {
            self.began = None;
            return 0.0;
        }
        let began = *self.began.get_or_insert_with(Instant::now);
        rows as f64 / began.elapsed().as_secs_f64().max(0.1)
    }
}

fn draw(shown: &Shown, pace: &mut Pace) {
    let now = shown.progress.snapshot();
    let text = words(&now, pace);
    match &shown.bar {
        None if matches!(now.stage, Stage::Waiting | Stage::Done) => {}
        None => output::note(&format!("{}: {text}", shown.label)),
        Some(bar) if now.stage == Stage::Done => bar.finish_and_clear(),
        Some(bar) => {
            if now.rows_estimated > 0 {
                bar.set_length(now.rows_estimated.max(now.rows_read));
                bar.set_position(now.rows_read);
            }
            bar.set_message(text);
        }
    }
}

/// `reading 1,200,000 rows, 240.1 MB, 310,000 rows/s, 4 s left`.
fn words(now: &ProgressSnapshot, pace: &mut Pace) -> String {
    let rate = pace.rate(now.rows_read);
    if let Some(what) = &now.waiting_for {
        return format!("waiting for {what}");
    }
    if now.rows_read == 0 {
        return now.stage.as_str().to_owned();
    }
    let (rows, size) = (output::number(now.rows_read), output::bytes(now.bytes_read));
    let speed = output::number(rate as u64);
    let mut text = format!("{} {rows} rows, {size}, {speed} rows/s", now.stage.as_str());
    let left = now.rows_estimated.saturating_sub(now.rows_read);
    if left > 0 && rate > 0.0 {
        let _ = write!(text, ", {:.0} s left", left as f64 / rate);
    }
    text
}
