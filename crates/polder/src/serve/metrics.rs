//! `/metrics`, in Prometheus' text format: counters of this process, and what the store says now.
//!
//! Names are part of the API: `docs/reference/metrics.md`. Labels are few: the orgs with the most open
//! runs have one each, all others share `other`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use polder_control::queue::{self, JobKind};
use polder_control::{Store, usage, verdicts};
use polder_core::validation::Verdict;
use polder_core::{OrgId, Principal, Result};

/// Orgs with a label of their own.
const ORGS_MAX: usize = 50;
/// The label that stands for the rest.
const OTHER: &str = "other";
/// Upper bounds of the histograms' buckets, in seconds.
const BUCKETS: [f64; 10] = [0.1, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0];

/// What this process has counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// By kind and how they ended.
    runs: BTreeMap<(&'static str, &'static str), u64>,
    delays: BTreeMap<&'static str, Histogram>,
    durations: BTreeMap<&'static str, Histogram>,
    /// By method and status.
    requests: BTreeMap<(String, u16), u64>,
    limited: u64,
    /// Validations by what they found.
    verdicts: BTreeMap<&'static str, u64>,
    /// Query processes that were started and that ended, by why.
    query_processes: BTreeMap<&'static str, u64>,
    /// The audit log is not as it was written down.
    audit_damaged: bool,
}

#[derive(Clone, Debug, Default)]
struct Histogram {
    /// How many were at most the bound of each bucket.
    below: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        for (bucket, bound) in self.below.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

impl Metrics {
    /// A run began so long after it was due.
    pub(crate) fn began(&self, kind: JobKind, late_ms: i64) {
        let seconds = late_ms.max(0) as f64 / 1000.0;
        self.with(|counted| counted.delays.entry(kind.as_str()).or_default().add(seconds));
    }

    /// An attempt ended.
    pub(crate) fn ended(&self, kind: JobKind, how: &'static str, took: Duration) {
        self.with(|counted| {
            *counted.runs.entry((kind.as_str(), how)).or_default() += 1;
            counted.durations.entry(kind.as_str()).or_default().add(took.as_secs_f64());
        });
    }

    /// A validation was carried out.
    pub(crate) fn validated(&self, verdict: Verdict) {
        self.with(|counted| *counted.verdicts.entry(verdict.as_str()).or_default() += 1);
    }

    /// A request of the API was answered.
    pub(crate) fn answered(&self, method: &str, status: u16) {
        self.with(|counted| {
            *counted.requests.entry((method.to_owned(), status)).or_default() += 1;
        });
    }

    /// A request came too soon.
    pub(crate) fn limited(&self) {
        self.with(|counted| counted.limited += 1);
    }

    /// A query process was started, or is of no more use.
    pub(crate) fn query_process(&self, event: &'static str) {
        self.with(|counted| *counted.query_processes.entry(event).or_default() += 1);
    }

    /// Whether the audit log was found to go on from where it was written down.
    pub(crate) fn audited(&self, is_whole: bool) {
        self.with(|counted| counted.audit_damaged = !is_whole);
    }

    fn with(&self, change: impl FnOnce(&mut Counted)) {
        // Counters stay readable after a panic elsewhere.
        change(&mut self.counted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The whole page.
    ///
    /// # Errors
    /// `control.store` when the store cannot be asked.
    pub(crate) async fn page(&self, store: &Store) -> Result<String> {
        let mut page = Page::default();
        let depths = queue::depths(store, &Principal::Operator).await?;
        let sources = queue::sources(store).await?;
        let limited = usage::limited(store, &Principal::Operator).await?;
        let verdicts = verdicts::of_orgs(store, &Principal::Operator).await?;
        self.with(|counted| page.counted(counted));
        page.depths(depths, store.now_ms());
        page.limited(&limited);
        page.verdicts(verdicts, store.now_ms());
        page.head("polder_source_blocked", "gauge", "1 while no run reads the source.");
        for source in sources {
            let blocked = source.paused || source.open_until_ms > store.now_ms();
            page.line("polder_source_blocked", &[("source", &source.source)], u8::from(blocked));
        }
        Ok(page.0)
    }
}

/// One of the counts of an org.
type Count = fn(&queue::Depth) -> u64;

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a text does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let escape =
            |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escape(text))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn counted(&mut self, counted: &Counted) {
        self.head("polder_runs_total", "counter", "Attempts at runs that ended here, by how.");
        for ((kind, how), runs) in &counted.runs {
            self.line("polder_runs_total", &[("kind", *kind), ("outcome", *how)], runs);
        }
        let (name, help) =
            ("polder_run_delay_seconds", "From when a run was due to its beginning.");
        self.histogram(name, help, &counted.delays);
        let (name, help) = ("polder_run_duration_seconds", "How long attempts at runs took.");
        self.histogram(name, help, &counted.durations);
        self.head("polder_http_requests_total", "counter", "Requests to the API, by answer.");
        for ((method, status), requests) in &counted.requests {
            let status = status.to_string();
            let labels = [("method", method.as_str()), ("status", status.as_str())];
            self.line("polder_http_requests_total", &labels, requests);
        }
        self.head("polder_http_limited_total", "counter", "Requests that came too soon.");
        self.line("polder_http_limited_total", &[], counted.limited);
        let name = "polder_validations_total";
        self.head(name, "counter", "Validations that were carried out here, by what they found.");
        for (verdict, validations) in &counted.verdicts {
            self.line(name, &[("verdict", *verdict)], validations);
        }
        let name = "polder_query_processes_total";
        self.head(name, "counter", "Query processes that were started, and that ended, by why.");
        for (event, processes) in &counted.query_processes {
            self.line(name, &[("event", *event)], processes);
        }
        let name = "polder_audit_damaged";
        self.head(name, "gauge", "1 while the audit log is not as it was written down before.");
        self.line(name, &[], u8::from(counted.audit_damaged));
    }

    fn histogram(&mut self, name: &str, help: &str, of: &BTreeMap<&'static str, Histogram>) {
        self.head(name, "histogram", help);
        for (kind, histogram) in of {
            let bucket = format!("{name}_bucket");
            for (below, bound) in histogram.below.iter().zip(BUCKETS) {
                self.line(&bucket, &[("kind", *kind), ("le", &bound.to_string())], below);
            }
            self.line(&bucket, &[("kind", *kind), ("le", "+Inf")], histogram.count);
            self.line(&format!("{name}_sum"), &[("kind", *kind)], histogram.sum);
            self.line(&format!("{name}_count"), &[("kind", *kind)], histogram.count);
        }
    }

    /// Orgs that have reached a limit of the day; the rest are one.
    fn limited(&mut self, orgs: &[OrgId]) {
        let name = "polder_org_limited";
        self.head(name, "gauge", "Orgs that have reached a limit of the day: no ingestion begins.");
        let orgs: Vec<&OrgId> = orgs.iter().collect();
        let (named, rest) = split(orgs, |org| *org);
        for org in named {
            self.line(name, &[("org", org.as_str())], 1);
        }
        if !rest.is_empty() {
            self.line(name, &[("org", OTHER)], rest.len());
        }
    }

    /// Tables by their last verdict, and how old these are, by org: those first that have the most tables which
    /// are not verified, then those whose verdicts are oldest. The rest are one.
    fn verdicts(&mut self, mut orgs: Vec<verdicts::OfOrg>, now_ms: i64) {
        let wrong = |of: &verdicts::OfOrg| {
            let others = of.tables.iter().filter(|(verdict, _)| **verdict != Verdict::Verified);
            others.map(|(_, tables)| *tables).sum::<u64>()
        };
        orgs.sort_by_key(|of| (std::cmp::Reverse(wrong(of)), of.oldest_ms));
        let (orgs, rest) = split(orgs, |of| &of.org);
        let mut others: BTreeMap<Verdict, u64> = BTreeMap::new();
        for (verdict, tables) in rest.iter().flat_map(|of| &of.tables) {
            *others.entry(*verdict).or_default() += tables;
        }
        let name = "polder_tables_by_verdict";
        self.head(name, "gauge", "Tables by what their last validation said.");
        for of in &orgs {
            for (verdict, tables) in &of.tables {
                self.line(name, &[("org", of.org.as_str()), ("verdict", verdict.as_str())], tables);
            }
        }
        for (verdict, tables) in &others {
            self.line(name, &[("org", OTHER), ("verdict", verdict.as_str())], tables);
        }
        let age = |ms: i64| (now_ms - ms).max(0) as f64 / 1000.0;
        let name = "polder_verdict_age_seconds";
        self.head(
            name,
            "gauge",
            "Since the last validation of the table that waits longest for one.",
        );
        for of in &orgs {
            self.line(name, &[("org", of.org.as_str())], age(of.oldest_ms));
        }
        if let Some(oldest) = rest.iter().map(|of| of.oldest_ms).min() {
            self.line(name, &[("org", OTHER)], age(oldest));
        }
    }

    /// Open runs by org, those with the most first; the rest are one.
    fn depths(&mut self, mut depths: Vec<queue::Depth>, now_ms: i64) {
        depths.sort_by_key(|depth| std::cmp::Reverse(depth.waiting + depth.running));
        let (depths, rest) = split(depths, |depth| &depth.org);
        let sum = |of: Count| rest.iter().map(of).sum::<u64>();
        let others = (sum(|depth| depth.waiting), sum(|depth| depth.running));
        let gauges: [(&str, &str, Count, u64); 2] = [
            ("polder_runs_waiting", "Runs in the queue.", |depth| depth.waiting, others.0),
            ("polder_runs_running", "Runs that servers work on.", |depth| depth.running, others.1),
        ];
        for (name, help, of, others) in gauges {
            self.head(name, "gauge", help);
            for depth in &depths {
                self.line(name, &[("org", depth.org.as_str())], of(depth));
            }
            if !rest.is_empty() {
                self.line(name, &[("org", OTHER)], others);
            }
        }
        let oldest = depths.iter().chain(&rest).filter_map(|depth| depth.oldest_due_ms).min();
        let late = oldest.map_or(0, |due| (now_ms - due).max(0)) as f64 / 1000.0;
        let name = "polder_queue_oldest_seconds";
        self.head(
            name,
            "gauge",
            "How long the run waits that is due longest, whatever it waits for.",
        );
        self.line(name, &[], late);
    }
}

/// The first ones, which have labels of their own, and the rest. An org of the very name that stands for the rest
/// is one of them: no series may be there twice.
fn split<T>(all: Vec<T>, org: impl Fn(&T) -> &OrgId) -> (Vec<T>, Vec<T>) {
    let (mut named, mut rest): (Vec<T>, Vec<T>) =
        all.into_iter().partition(|one| org(one).as_str() != OTHER);
    rest.extend(named.split_off(named.len().min(ORGS_MAX)));
    (named, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_prometheus_reads_and_has_few_labels() {
        let metrics = Metrics::default();
        metrics.began(JobKind::Ingest, 700);
        metrics.began(JobKind::Ingest, -5);
        metrics.ended(JobKind::Ingest, "succeeded", Duration::from_secs(3));
        metrics.answered("GET", 200);
        metrics.limited();
        metrics.audited(false);
        metrics.query_process("started");
        metrics.validated(Verdict::Stale);
        metrics.validated(Verdict::Stale);
        let mut page = Page::default();
        metrics.with(|counted| page.counted(counted));
        let depth = |id: u64| queue::Depth {
            org: id.to_string().parse().expect("id"),
            waiting: id,
            running: 1,
            oldest_due_ms: Some(5_000),
        };
        page.depths((1..=60).map(depth).collect(), 7_500);
        let limited: Vec<OrgId> =
            (100..153).map(|id: u64| id.to_string().parse().expect("id")).collect();
        page.limited(&limited);
        let judged = |id: u64| verdicts::OfOrg {
            org: (1000 + id).to_string().parse().expect("id"),
            tables: BTreeMap::from([(Verdict::Verified, 3), (Verdict::Failed, id % 2)]),
            oldest_ms: 7_000 - id as i64 * 100,
        };
        page.verdicts((0..60).map(judged).collect(), 8_000);
        let text = page.0;
        for line in [
            "polder_runs_total{kind=\"ingest\",outcome=\"succeeded\"} 1",
            "polder_run_delay_seconds_bucket{kind=\"ingest\",le=\"0.1\"} 1",
            "polder_run_delay_seconds_bucket{kind=\"ingest\",le=\"1\"} 2",
            "polder_run_delay_seconds_bucket{kind=\"ingest\",le=\"+Inf\"} 2",
            "polder_run_delay_seconds_sum{kind=\"ingest\"} 0.7",
            "polder_http_requests_total{method=\"GET\",status=\"200\"} 1",
            "polder_http_limited_total 1",
            "polder_audit_damaged 1",
            "polder_query_processes_total{event=\"started\"} 1",
            "polder_runs_waiting{org=\"60\"} 60",
            "polder_runs_waiting{org=\"other\"} 55",
            "polder_runs_running{org=\"other\"} 10",
            "polder_queue_oldest_seconds 2.5",
            "polder_org_limited{org=\"149\"} 1",
            "polder_org_limited{org=\"other\"} 3",
            "polder_validations_total{verdict=\"stale\"} 2",
            "polder_tables_by_verdict{org=\"1001\",verdict=\"failed\"} 1",
            "polder_tables_by_verdict{org=\"1058\",verdict=\"verified\"} 3",
            "polder_tables_by_verdict{org=\"other\",verdict=\"verified\"} 30",
            "polder_verdict_age_seconds{org=\"1001\"} 1.1",
            "polder_verdict_age_seconds{org=\"other\"} 2.8",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("{org=\"10\"}"), "{text}");
        let mut page = Page::default();
        page.line("m", &[("l", "a\"b\\c\nd")], 1);
        assert_eq!(page.0, "m{l=\"a\\\"b\\\\c\\nd\"} 1\n");
    }
}
