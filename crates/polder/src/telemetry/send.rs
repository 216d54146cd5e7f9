//! Sends spans to a collector: OTLP over HTTP, in protobuf (the `OpenTelemetry` protocol, 1.10).
//!
//! Spans that end wait in a bounded queue, and a task of its own sends them, in batches. Whoever ends a
//! span never waits for that: what does not fit or is not taken is lost, and told at most once a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::trace::{Link, SpanKind, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    self as sdk, IdGenerator, RandomIdGenerator, Sampler, SamplingResult, SdkTracerProvider,
    ShouldSample, SpanData, SpanProcessor,
};
use polder_core::spec::TelemetryConfig;
use polder_core::{Error, ErrorCode, Result};
use prost::Message;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use secrecy::ExposeSecret;
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::ours;
use crate::app::App;
use crate::outgoing;

/// Spans that wait, and those of one call.
const WAITING_MAX: usize = 4096;
const BATCH_MAX: usize = 512;
/// How long spans that have ended wait for others.
const PAUSE: Duration = Duration::from_secs(1);
/// Calls of one batch where another may be answered otherwise, and how long one may take.
const TRIES_MAX: u32 = 3;
const CALL_MAX: Duration = Duration::from_secs(10);
/// How long the last spans may take.
const END_MAX: Duration = Duration::from_secs(5);
/// How often it is told that spans were lost.
const TELL: Duration = Duration::from_mins(1);

/// The collector, as `[telemetry]` names it.
pub(super) struct Collector {
    url: Url,
    headers: HeaderMap,
    client: Client,
}

/// Spans on their way to a collector.
pub(super) struct Spans {
    provider: SdkTracerProvider,
    sending: JoinSet<()>,
    stop: CancellationToken,
}

/// Whether a span is sent of a trace whose caller sends it. A caller may be anybody and chooses the trace's
/// id: of requests the share counts, by chance. A run goes on as its request did, which is ours.
#[derive(Clone, Debug)]
struct OfCallers(Sampler);

impl ShouldSample for OfCallers {
    fn should_sample(
        &self,
        parent_context: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        span_kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if *span_kind == SpanKind::Server {
            let chance = RandomIdGenerator::default().new_trace_id();
            return self.0.should_sample(
                parent_context,
                chance,
                name,
                span_kind,
                attributes,
                links,
            );
        }
        let all = Sampler::AlwaysOn;
        all.should_sample(parent_context, trace_id, name, span_kind, attributes, links)
    }
}

impl Spans {
    /// Begins to send, if `[telemetry]` is there. Needs a runtime.
    ///
    /// # Errors
    /// As [`super::check`].
    pub(super) fn open(app: &App) -> Result<Option<Self>> {
        let collector = Self::settings(app)?;
        let config = app.config.process.telemetry.as_ref();
        Ok(config.zip(collector).map(|(config, collector)| Self::to(config, collector)))
    }

    /// # Errors
    /// As [`super::check`].
    pub(super) fn settings(app: &App) -> Result<Option<Collector>> {
        let Some(config) = &app.config.process.telemetry else { return Ok(None) };
        let collector = Collector::open(app, config);
        collector.map(Some).map_err(|error| error.within("[telemetry] of polder.toml"))
    }

    fn to(config: &TelemetryConfig, collector: Collector) -> Self {
        let resource = Resource::builder_empty()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let (sender, spans) = mpsc::channel(WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let sending = Sending {
            resource: ResourceAttributesWithSchema::from(&resource),
            collector,
            spans,
            lost: Arc::clone(&lost),
            why: None,
            told: None,
        };
        let share = Sampler::TraceIdRatioBased(config.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_sampler(
                Sampler::parent_based(share.clone()).with_remote_parent_sampled(OfCallers(share)),
            )
            .with_resource(resource)
            .with_span_processor(Queue { sender, lost })
            .build();
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(sending.run(stop.clone()));
        Self { provider, sending: tasks, stop }
    }

    /// Makes spans of ours such that are sent. Events are lines, and no part of traces.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("polder"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(ours(is_span))
    }

    /// Sends what waits, for a few seconds at most.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(END_MAX, self.sending.join_next()).await.is_err() {
            tracing::warn!("the last traces were not sent: the collector takes too long");
        }
    }
}

impl Collector {
    fn open(app: &App, config: &TelemetryConfig) -> Result<Self> {
        if !(0.0..=1.0).contains(&config.sample_ratio) {
            let message = format!("sample_ratio is {}", config.sample_ratio);
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("it is a share: write a number from 0.0 to 1.0"));
        }
        let text = app.address(&config.url)?;
        let url = outgoing::checked(text.expose_secret(), config.private)?;
        let mut headers = HeaderMap::new();
        for (name, reference) in &config.headers {
            let header = HeaderName::try_from(name.as_str()).map_err(|_| {
                Error::new(ErrorCode::SpecInvalid, format!("{name:?} is no name of a header"))
                    .hint("write headers = { authorization = \"env:NAME\" }")
            })?;
            let secret = app.secret(reference)?;
            let mut value = HeaderValue::try_from(secret.expose_secret()).map_err(|_| {
                let message = format!("the value of the header {name:?} is none of a header");
                Error::new(ErrorCode::SpecSecret, message).hint(format!(
                    "look for line breaks and other control characters in {reference}"
                ))
            })?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        Ok(Self { url, headers, client: outgoing::client(config.private, CALL_MAX)? })
    }

    /// Has a batch taken, by one call once it is to `stop`.
    ///
    /// # Errors
    /// Why it was not, in words without the address.
    async fn take(&self, body: &[u8], stop: &CancellationToken) -> Result<(), String> {
        let mut tries = 0;
        loop {
            tries += 1;
            let call = self.client.post(self.url.clone()).headers(self.headers.clone());
            let (why, again) = match call.body(body.to_vec()).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => (answer.status().to_string(), may_change(answer.status())),
                Err(error) if error.is_timeout() => ("no answer came".to_owned(), true),
                Err(_) => ("the collector cannot be called".to_owned(), true),
            };
            if !again || tries == TRIES_MAX {
                return Err(why);
            }
            tokio::select! {
                () = stop.cancelled() => return Err(why),
                () = tokio::time::sleep(PAUSE * tries) => {}
            }
        }
    }
}

fn is_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span()
}

/// The answers after which OTLP has another call.
fn may_change(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Where spans go that have ended.
#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<SpanData>,
    lost: Arc<AtomicU64>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut sdk::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.sender.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends.
struct Sending {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    spans: Receiver<SpanData>,
    lost: Arc<AtomicU64>,
    /// Why the last batch was lost.
    why: Option<String>,
    /// When it was told last that spans were lost.
    told: Option<Instant>,
}

impl Sending {
    /// Sends until `stop`, and then what waits.
    async fn run(mut self, stop: CancellationToken) {
        let mut is_last = false;
        while !is_last {
            tokio::select! {
                () = stop.cancelled() => is_last = true,
                () = tokio::time::sleep(PAUSE) => {}
            }
            loop {
                let mut batch = Vec::new();
                while batch.len() < BATCH_MAX
                    && let Ok(span) = self.spans.try_recv()
                {
                    batch.push(span);
                }
                if batch.is_empty() {
                    break;
                }
                self.send(batch, &stop).await;
            }
            self.tell();
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>, stop: &CancellationToken) {
        let spans = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        if let Err(why) = self.collector.take(&body, stop).await {
            self.lost.fetch_add(spans, Ordering::Relaxed);
            self.why = Some(why);
        }
    }

    fn tell(&mut self) {
        if self.told.is_some_and(|told| told.elapsed() < TELL) {
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.told = Some(Instant::now());
            let why = self.why.take().unwrap_or_else(|| "too many waited".to_owned());
            tracing::warn!(spans = lost, "traces were not sent: {why}");
        }
    }
}

#[cfg(test)]
impl Spans {
    /// To an address of a test.
    pub(super) fn to_address(url: &str, sample_ratio: f64) -> Self {
        let config = TelemetryConfig {
            url: url.to_owned(),
            headers: std::collections::BTreeMap::new(),
            service_name: "test".to_owned(),
            sample_ratio,
            private: true,
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let client = outgoing::client(true, CALL_MAX).expect("client");
        Self::to(&config, Collector { url: url.parse().expect("url"), headers, client })
    }
}
