//! What the process tells of itself: lines on stderr, the logs of runs, and, where `[telemetry]` says so,
//! traces by OTLP.
//!
//! All three hear the same spans and events of `tracing`. Ids, names, counts and words of ours are in
//! them, no values of cells, no SQL and no secrets. Nothing here fails or holds up what it tells of.

mod log;
mod send;
mod spans;
#[cfg(test)]
mod tests;

use polder_core::Result;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::app::App;

pub(crate) use log::RunLog;
pub(crate) use spans::{note_end, note_org, request, run_span, traceparent};

use log::Catcher;
use send::Spans;

/// Traces and logs of runs, from [`Self::begin`] to [`Self::end`].
pub(crate) struct Telemetry {
    spans: Option<Spans>,
}

impl Telemetry {
    /// Hears what the process tells from here on.
    ///
    /// # Errors
    /// As [`check`].
    pub(crate) fn begin(app: &App) -> Result<Self> {
        let spans = Spans::open(app)?;
        let heard = tracing_subscriber::registry().with(printed()).with(caught());
        // Without a layer that is not there: one makes every disabled line cost more.
        match &spans {
            Some(spans) => heard.with(spans.layer()).init(),
            None => heard.init(),
        }
        Ok(Self { spans })
    }

    /// Sends the traces that wait, as far as it takes no longer than some seconds.
    pub(crate) async fn end(self) {
        if let Some(spans) = self.spans {
            spans.end().await;
        }
    }
}

/// For commands without runs and requests: lines on stderr alone.
pub(crate) fn print() {
    tracing_subscriber::registry().with(printed()).init();
}

/// Looks whether `[telemetry]` is right. Nobody is called.
///
/// # Errors
/// `spec.invalid` for an address that may not be called and for other values that cannot be, `spec.secret`
/// for a secret that cannot be read or is no value of a header.
pub(crate) fn check(app: &App) -> Result<()> {
    Spans::settings(app).map(drop)
}

/// Lines on stderr, as `POLDER_LOG` asks for.
fn printed<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> + Send + Sync {
    let filter = EnvFilter::try_from_env("POLDER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(filter)
}

/// The logs of runs.
fn caught<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> + Send + Sync {
    // All spans: a task may have entered a later one than its run's.
    Catcher.with_filter(ours(|_| true))
}

/// What is told by this process's own code, and matters to others. What libraries say may hold anything.
fn ours<F>(wanted: F) -> FilterFn<impl Fn(&Metadata<'_>) -> bool>
where
    F: Fn(&Metadata<'_>) -> bool,
{
    let own = |metadata: &Metadata<'_>| {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("polder")
    };
    filter_fn(move |metadata| own(metadata) && wanted(metadata))
        .with_max_level_hint(LevelFilter::INFO)
}
