//! When runs happen by themselves, and how much of the machine an org may take: `schedule:` and
//! `limits:` of pipeline files.
//!
//! Pure rules of time: what was queued when is the control plane's to remember.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveTime, Timelike};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::external::EXTERNAL;
use super::{ByteCount, Limits};
use crate::erasure::Span;
use crate::{Error, ErrorCode, OrgId, Result};

/// When a table is run by `polder serve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSpec {
    /// Minute, hour, day of the month, month, day of the week: `15 * * * *`; or `@hourly`, `@daily`;
    /// `external` where an orchestrator has the clock.
    pub cron: CronText,
    /// The time zone of the hours: an IANA name such as `Europe/Amsterdam`.
    #[serde(default)]
    pub timezone: TimeZone,
    /// The org's runs come later by a part of this that is always the same: `10m`.
    #[serde(default)]
    pub jitter: Jitter,
    /// What becomes of times that passed while nothing could be queued.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// What becomes of a time at which the last run of the schedule has not ended.
    #[serde(default)]
    pub overlap: Overlap,
    /// Whether a run that succeeded is followed by a validation.
    #[serde(default)]
    pub validate: ValidateWhen,
    /// When the table is validated besides: a cron text of its own, in the same time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_at: Option<CronText>,
    /// The hours of the day, in the same time zone, in which validations begin that nobody asked for by hand:
    /// `22:00-06:00`. Others wait for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validate_within: Option<Hours>,
    /// When the table is maintained: a cron text of its own, in the same time zone. Maintenance
    /// waits until nothing else does, but not for longer than an hour.
    #[serde(default)]
    pub maintain: Option<CronText>,
}

/// What becomes of times that were missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// One run for all of them, at once: a run reads all there is since the last one.
    #[default]
    Latest,
    /// None: the next time is waited for.
    Skip,
}

/// What becomes of a time at which the last run of the schedule has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It is left out.
    #[default]
    Skip,
    /// One run waits for the end of the other; never two.
    Queue,
}

/// When a table is validated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidateWhen {
    /// When somebody asks: `polder validate`, the API.
    #[default]
    Never,
    /// After each run that succeeded.
    AfterRun,
}

/// The least memory of an org in MB: what one run needs.
const ORG_MEMORY_MB_MIN: u32 = 16;

/// How much of the machine an org may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OrgLimits {
    /// Runs at the same time, over all servers; without, what a server gives one org.
    #[schemars(range(min = 1))]
    pub runs: Option<u32>,
    /// The org's share where many wait: one of weight 2 has two turns for each of an org of weight 1.
    #[schemars(range(min = 1, max = 1000))]
    pub weight: Option<u32>,
    /// Rows that runs read in a day (UTC). Once there were so many, the org's next ingestion begins on
    /// the next day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub rows_per_day: Option<u64>,
    /// Bytes that runs write into the lake in a day, likewise: `50 GB`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<ByteCount>,
    /// Memory in MB of the org's runs in one process, all together; the process's own limit holds as
    /// well. A run for which nothing is left waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16))]
    pub memory_mb: Option<u32>,
    /// Connections to any one source that the org's runs have in one process at the same time. A run
    /// for which none is left waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub connections: Option<u32>,
}

impl OrgLimits {
    /// These, and those of `below` that are not said here.
    #[must_use]
    pub fn over(&self, below: &Self) -> Self {
        Self {
            runs: self.runs.or(below.runs),
            weight: self.weight.or(below.weight),
            rows_per_day: self.rows_per_day.or(below.rows_per_day),
            bytes_per_day: self.bytes_per_day.or(below.bytes_per_day),
            memory_mb: self.memory_mb.or(below.memory_mb),
            connections: self.connections.or(below.connections),
        }
    }

    /// # Errors
    /// `spec.invalid` for an org that could never run.
    pub fn check(&self) -> Result<()> {
        let nothing = self.runs == Some(0)
            || self.rows_per_day == Some(0)
            || self.bytes_per_day == Some(ByteCount(0))
            || self.connections == Some(0);
        if nothing || self.weight.is_some_and(|weight| !(1..=1000).contains(&weight)) {
            return Err(Error::new(ErrorCode::SpecInvalid, "limits under which nothing would run")
                .hint("weight is 1 to 1000, the others 1 or more; `enabled: false` stops an org"));
        }
        if let Some(mb) = self.memory_mb.filter(|mb| *mb < ORG_MEMORY_MB_MIN) {
            let message = format!("a limit of {mb} MB of memory, in which no run has room");
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint(format!("memory_mb is {ORG_MEMORY_MB_MIN} or more; leave it out for none")));
        }
        Ok(())
    }

    /// The memory of one run in bytes: an equal part of the org's for each of the runs that it may have
    /// at the same time in a process, but what one needs at least, and not more than others' runs have.
    pub fn memory_of_run(&self, process: &Limits, runs_of_org: usize) -> usize {
        let most = process.memory_of_run();
        let Some(mb) = self.memory_mb else { return most };
        let runs = self.runs.map_or(runs_of_org, |runs| runs_of_org.min(runs as usize)).max(1);
        let least = (ORG_MEMORY_MB_MIN as usize) << 20;
        (((mb as usize) << 20) / runs).max(least).min(most)
    }

    /// Runs of the org that have room in a process at the same time: another one would wait there, in a place
    /// of others. `None` where neither its memory nor its connections have a limit.
    pub fn runs_in_process(&self, process: &Limits) -> Option<usize> {
        let of_memory = self.memory_mb.map(|mb| {
            let most = process.memory_mb.min(mb as usize) << 20;
            most / self.memory_of_run(process, process.runs_of_org()).max(1)
        });
        let of_connections = self.connections.map(|most| most as usize);
        of_memory.into_iter().chain(of_connections).min().map(|runs| runs.max(1))
    }
}

impl ScheduleSpec {
    /// The first time after `after_ms` at which an org's table is to run, in milliseconds since the
    /// epoch; `None` if there is none, such as for 30 February.
    pub fn next_ms(&self, org: &OrgId, after_ms: i64) -> Option<i64> {
        self.next_of(&self.cron, org, after_ms)
    }

    /// As [`Self::next_ms`], of maintenance.
    pub fn next_maintenance_ms(&self, org: &OrgId, after_ms: i64) -> Option<i64> {
        self.next_of(self.maintain.as_ref()?, org, after_ms)
    }

    /// As [`Self::next_ms`], of validations by time.
    pub fn next_validation_ms(&self, org: &OrgId, after_ms: i64) -> Option<i64> {
        self.next_of(self.validate_at.as_ref()?, org, after_ms)
    }

    /// Until when a validation that nobody asked for by hand is to wait; `None` if it may begin.
    pub fn validation_waits_until_ms(&self, now_ms: i64) -> Option<i64> {
        let hours = self.validate_within?;
        let now = DateTime::from_timestamp_millis(now_ms)?.with_timezone(&self.timezone.0);
        if hours.contain(now.time()) {
            return None;
        }
        let begin: CronText =
            format!("{} {} * * *", hours.from % 60, hours.from / 60).parse().ok()?;
        begin.next(&now).map(|begin| begin.timestamp_millis())
    }

    fn next_of(&self, cron: &CronText, org: &OrgId, after_ms: i64) -> Option<i64> {
        let shift = self.jitter.of(org);
        let after = DateTime::from_timestamp_millis(after_ms.checked_sub(shift)?)?;
        let next = cron.next(&after.with_timezone(&self.timezone.0))?;
        next.timestamp_millis().checked_add(shift)
    }
}

/// Some hours of each day, in minutes since midnight: those from the first, up to the second of the same day or
/// the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    from: u32,
    to: u32,
}

impl Hours {
    fn contain(self, time: NaiveTime) -> bool {
        let minute = time.hour() * 60 + time.minute();
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl FromStr for Hours {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let minutes = |part: &str| {
            let time = NaiveTime::parse_from_str(part.trim(), "%H:%M").ok()?;
            Some(time.hour() * 60 + time.minute())
        };
        let found =
            text.split_once('-').and_then(|(from, to)| Some((minutes(from)?, minutes(to)?)));
        let (from, to) = found.filter(|(from, to)| from != to).ok_or_else(|| {
            Error::new(ErrorCode::SpecInvalid, format!("{text:?} is no part of a day"))
                .hint("write two different times of the day: 22:00-06:00")
        })?;
        Ok(Self { from, to })
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

/// A cron text that was understood; none where somebody else has the clock. What it is understood as takes some
/// 5 kB, and one text is many tables'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronText(Option<Arc<Cron>>);

impl CronText {
    /// The first time after this one; `None` if there is none that Polder keeps.
    fn next(&self, after: &DateTime<Tz>) -> Option<DateTime<Tz>> {
        self.0.as_ref()?.find_next_occurrence(after, false).ok()
    }
}

impl FromStr for CronText {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == EXTERNAL {
            return Ok(Self(None));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed);
        parser.build().parse(text).map(|cron| Self(Some(Arc::new(cron)))).map_err(|cause| {
            Error::new(ErrorCode::SpecInvalid, format!("{text:?} is no cron text"))
                .hint("write minute hour day month weekday: \"15 * * * *\", or @hourly, @daily")
                .caused_by(cause)
        })
    }
}

impl fmt::Display for CronText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref().map_or(EXTERNAL, |cron| cron.as_str()))
    }
}

/// A time zone by its IANA name; UTC unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeZone(Tz);

impl Default for TimeZone {
    fn default() -> Self {
        Self(Tz::UTC)
    }
}

impl FromStr for TimeZone {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|cause: chrono_tz::ParseError| {
            Error::new(ErrorCode::SpecInvalid, format!("{text:?} is no time zone"))
                .hint("write an IANA name: UTC, Europe/Amsterdam, America/New_York")
                .caused_by(cause)
        })
    }
}

impl fmt::Display for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// Over how long a time the orgs' runs are spread; not at all unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jitter(Duration);

/// Longer than a day, the day that a cron text names would mean nothing.
const JITTER_MAX: Duration = Duration::from_hours(24);

impl Jitter {
    /// An org's own part in milliseconds, the same each time and on each machine.
    fn of(self, org: &OrgId) -> i64 {
        let span = self.0.as_millis() as u64;
        if span == 0 {
            return 0;
        }
        (twox_hash::XxHash64::oneshot(0, org.as_str().as_bytes()) % span) as i64
    }
}

impl FromStr for Jitter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Span(span) = text.parse()?;
        if span > JITTER_MAX {
            return Err(Error::new(ErrorCode::SpecInvalid, format!("a jitter of {text}"))
                .hint("write 24h or less: runs are spread over it"));
        }
        Ok(Self(span))
    }
}

impl fmt::Display for Jitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs())
    }
}

/// Texts in files and documents, by their own `FromStr` and `Display`.
macro_rules! texts {
    ($($name:ident, $description:literal, $example:literal;)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                super::pipeline::parse_text(deserializer)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "description": $description,
                    "examples": [$example]
                })
            }
        }
    )*};
}

texts! {
    CronText, "Minute, hour, day of the month, month, day of the week; or `external`.", "15 * * * *";
    TimeZone, "A time zone by its IANA name.", "Europe/Amsterdam";
    Jitter, "A whole number and s, m or h, 24h at most.", "10m";
    Hours, "Two times of the day, the first one within.", "22:00-06:00";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(document: &serde_json::Value) -> ScheduleSpec {
        serde_json::from_value(document.clone()).expect("schedule")
    }

    fn ms(text: &str) -> i64 {
        text.parse::<DateTime<chrono::Utc>>().expect("time").timestamp_millis()
    }

    #[test]
    fn the_next_time_is_in_the_schedules_own_zone() {
        let cases = [
            ("15 * * * *", "UTC", "2026-11-26T20:15:00Z", "2026-11-26T21:15:00Z"),
            ("15 * * * *", "UTC", "2026-11-26T20:14:59Z", "2026-11-26T20:15:00Z"),
            ("0 6 * * *", "Europe/Amsterdam", "2026-07-01T00:00:00Z", "2026-07-01T04:00:00Z"),
            ("0 6 * * *", "Europe/Amsterdam", "2026-12-01T00:00:00Z", "2026-12-01T05:00:00Z"),
            ("0 9 * * 1", "America/New_York", "2026-11-26T00:00:00Z", "2026-11-30T14:00:00Z"),
            ("@daily", "Asia/Kolkata", "2026-01-01T00:00:00Z", "2026-01-01T18:30:00Z"),
            // The hour that does not exist, and the one that is there twice.
            ("30 2 * * *", "Europe/Amsterdam", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"),
            ("30 2 * * *", "Europe/Amsterdam", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"),
            ("30 2 * * *", "Europe/Amsterdam", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        ];
        let org = "401".parse().expect("id");
        for (cron, timezone, after, expected) in cases {
            let spec = schedule(&serde_json::json!({ "cron": cron, "timezone": timezone }));
            assert_eq!(spec.next_ms(&org, ms(after)), Some(ms(expected)), "{cron} {timezone}");
        }
        let never = schedule(&serde_json::json!({ "cron": "0 0 30 2 *" }));
        assert_eq!(never.next_ms(&org, 0), None);
    }

    #[test]
    fn validations_wait_for_their_hours() {
        let night = ("22:00-06:00", "Europe/Amsterdam");
        let noon = ("11:30-12:15", "UTC");
        let cases = [
            (night, "2026-01-10T20:59:59Z", Some("2026-01-10T21:00:00Z")),
            (night, "2026-01-10T21:00:00Z", None),
            (night, "2026-01-10T23:30:00Z", None),
            (night, "2026-01-11T04:59:59Z", None),
            (night, "2026-01-11T05:00:00Z", Some("2026-01-11T21:00:00Z")),
            // An hour earlier in summer.
            (night, "2026-07-10T19:59:59Z", Some("2026-07-10T20:00:00Z")),
            (night, "2026-07-10T20:00:00Z", None),
            (noon, "2026-01-10T11:29:00Z", Some("2026-01-10T11:30:00Z")),
            (noon, "2026-01-10T12:14:59Z", None),
            (noon, "2026-01-10T12:15:00Z", Some("2026-01-11T11:30:00Z")),
            // Hours that a day does not have are the next one's.
            (
                ("02:10-02:50", "Europe/Amsterdam"),
                "2026-03-29T01:00:00Z",
                Some("2026-03-30T00:10:00Z"),
            ),
        ];
        for ((hours, timezone), now, until) in cases {
            let spec = schedule(&serde_json::json!({
                "cron": "@hourly", "timezone": timezone, "validate_within": hours,
            }));
            assert_eq!(spec.validation_waits_until_ms(ms(now)), until.map(ms), "{hours} {now}");
        }
        let any = schedule(&serde_json::json!({ "cron": "@hourly" }));
        assert_eq!(any.validation_waits_until_ms(0), None);
    }

    #[test]
    fn an_orgs_jitter_is_its_own_and_always_the_same() {
        let spec = schedule(&serde_json::json!({ "cron": "@hourly", "jitter": "10m" }));
        let mut shifts = Vec::new();
        for id in 0..1000 {
            let org: OrgId = id.to_string().parse().expect("id");
            let first = spec.next_ms(&org, ms("2026-01-01T00:30:00Z")).expect("time");
            let second = spec.next_ms(&org, first).expect("time");
            assert_eq!(second - first, 3_600_000, "no time is left out or doubled");
            shifts.push(first - ms("2026-01-01T01:00:00Z"));
        }
        assert!(shifts.iter().all(|shift| (0..600_000).contains(shift)));
        let early = shifts.iter().filter(|shift| **shift < 300_000).count();
        assert!((400..600).contains(&early), "spread evenly: {early} of 1,000 in the first half");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_hint() {
        for (field, text) in [
            ("cron", "61 * * * *"),
            ("cron", "* * * *"),
            ("cron", "0 0 0 * * *"),
            ("cron", ""),
            ("timezone", "Amsterdam"),
            ("jitter", "25h"),
            ("validate_at", "daily"),
            ("validate_within", "22:00"),
            ("validate_within", "22:00-24:00"),
            ("validate_within", "08:00-08:00"),
            ("validate_within", "ten-six"),
            ("jitter", "10"),
        ] {
            let mut document = serde_json::json!({ "cron": "@hourly" });
            document[field] = text.into();
            let error = serde_json::from_value::<ScheduleSpec>(document).expect_err(text);
            assert!(error.to_string().contains("write "), "{error}");
        }
        let none = OrgLimits::default();
        none.check().expect("no limits");
        for nothing in [
            OrgLimits { runs: Some(0), ..none.clone() },
            OrgLimits { weight: Some(0), ..none.clone() },
            OrgLimits { rows_per_day: Some(0), ..none.clone() },
            OrgLimits { bytes_per_day: Some(ByteCount(0)), ..none.clone() },
            OrgLimits { connections: Some(0), ..none.clone() },
            OrgLimits { memory_mb: Some(15), ..none.clone() },
        ] {
            let error = nothing.check().expect_err("nothing would run");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("or more")), "{nothing:?}");
        }
        OrgLimits { runs: Some(1), weight: Some(3), rows_per_day: Some(1), ..none.clone() }
            .check()
            .expect("good");
        OrgLimits { memory_mb: Some(16), connections: Some(1), ..none }.check().expect("good");
    }

    #[test]
    fn an_org_has_as_many_runs_in_a_process_as_have_room() {
        let process = Limits { runs: 8, memory_mb: 512, ..Limits::default() };
        let cases = [
            // The org's memory and connections, and its runs.
            (None, None, None),
            (Some(16), None, Some(1)),
            (Some(40), None, Some(2)),
            (Some(112), None, Some(7)),
            (Some(10_000), None, Some(8)),
            (None, Some(3), Some(3)),
            (Some(40), Some(1), Some(1)),
        ];
        for (memory_mb, connections, runs) in cases {
            let org = OrgLimits { memory_mb, connections, ..OrgLimits::default() };
            assert_eq!(org.runs_in_process(&process), runs, "{org:?}");
        }
    }

    #[test]
    fn a_run_has_an_equal_part_of_its_orgs_memory_within_that_of_all_runs() {
        let process = Limits { runs: 4, memory_mb: 256, ..Limits::default() };
        let cases = [
            // The org's memory and runs, its runs in the process, and the MB of one.
            (None, None, 3, 64),
            (Some(1000), None, 3, 64),
            (Some(96), None, 3, 32),
            (Some(96), Some(2), 3, 48),
            (Some(96), Some(9), 3, 32),
            (Some(20), None, 3, 16),
            (Some(16), None, 0, 16),
        ];
        for (memory_mb, runs, runs_of_org, mb) in cases {
            let org = OrgLimits { runs, memory_mb, ..OrgLimits::default() };
            let bytes = org.memory_of_run(&process, runs_of_org);
            assert_eq!(bytes, mb << 20, "{org:?}, {runs_of_org} runs");
        }
        let small = Limits { runs: 4, memory_mb: 16, ..Limits::default() };
        let org = OrgLimits { memory_mb: Some(16), ..OrgLimits::default() };
        assert_eq!(org.memory_of_run(&small, 3), 4 << 20, "the process's holds");
    }

    #[test]
    fn limits_of_a_day_are_not_written_where_there_are_none() {
        let document = serde_json::json!({ "runs": 2, "weight": null });
        let limits: OrgLimits = serde_json::from_value(document.clone()).expect("limits");
        assert_eq!(serde_json::to_value(limits).expect("document"), document);
        let document = serde_json::json!({ "rows_per_day": 7, "bytes_per_day": "1 GB" });
        let limits: OrgLimits = serde_json::from_value(document).expect("limits");
        assert_eq!(limits.bytes_per_day, Some(ByteCount(1_000_000_000)));
        let document = serde_json::json!({
            "runs": null, "weight": null, "memory_mb": 64, "connections": 2
        });
        let limits: OrgLimits = serde_json::from_value(document.clone()).expect("limits");
        assert_eq!((limits.memory_mb, limits.connections), (Some(64), Some(2)));
        assert_eq!(serde_json::to_value(limits).expect("document"), document);
    }

    #[test]
    fn a_schedule_is_written_as_it_is_read() {
        let document = serde_json::json!({
            "cron": "15 * * * *", "timezone": "Europe/Amsterdam", "jitter": "600s",
            "catch_up": "skip", "overlap": "queue", "validate": "after_run",
            "maintain": "0 3 * * *",
        });
        // Schedules that stand in a store from before go on as they are.
        assert_eq!(serde_json::to_value(schedule(&document)).expect("document"), document);
        let document = serde_json::json!({
            "cron": "15 * * * *", "timezone": "UTC", "jitter": "0s", "catch_up": "latest",
            "overlap": "skip", "validate": "never", "validate_at": "0 3 * * 0",
            "validate_within": "22:00-06:05", "maintain": null,
        });
        assert_eq!(serde_json::to_value(schedule(&document)).expect("document"), document);
    }
}
