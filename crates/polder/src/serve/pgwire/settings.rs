//! The settings of one connection: what SET changes and SHOW shows. No other connection sees them.
//!
//! Those that would change what an answer means (time zone, encoding, styles) have one value here, and
//! another is refused. Those that mean nothing here are remembered.

use std::collections::BTreeMap;
use std::time::Duration;

use super::failure::{Failure, Outcome, state};

/// The version that clients are told; they ask `pg_catalog` accordingly.
pub(super) const VERSION: &str = "15.12";
const VERSION_NUMBER: &str = "150012";
const TIMEOUT: &str = "statement_timeout";
const APPLICATION: &str = "application_name";
const VALUE_CHARS_MAX: usize = 1_000;

/// What a setting may become.
enum Rule {
    /// Nothing else: these words mean the value that it has.
    Fixed(&'static [&'static str]),
    /// Anything: it means nothing here.
    Any,
    Timeout,
    /// Schemas in which bare names are looked up anyway.
    SearchPath,
}

const ON: &[&str] = &["on", "true", "yes", "1"];
const OFF: &[&str] = &["off", "false", "no", "0"];

/// Every setting: its name as SHOW has it, its value at the beginning, and its rule.
static KNOWN: &[(&str, &str, Rule)] = &[
    (APPLICATION, "", Rule::Any),
    ("bytea_output", "hex", Rule::Fixed(&["hex"])),
    ("client_encoding", "UTF8", Rule::Fixed(&["utf8", "utf-8", "unicode"])),
    ("client_min_messages", "notice", Rule::Any),
    ("DateStyle", "ISO, MDY", Rule::Fixed(&["iso", "iso, mdy", "iso, dmy", "iso, ymd"])),
    ("default_transaction_isolation", "read committed", Rule::Any),
    ("default_transaction_read_only", "on", Rule::Any),
    ("extra_float_digits", "1", Rule::Any),
    ("idle_in_transaction_session_timeout", "0", Rule::Any),
    ("in_hot_standby", "off", Rule::Fixed(OFF)),
    ("integer_datetimes", "on", Rule::Fixed(ON)),
    ("IntervalStyle", "postgres", Rule::Fixed(&["postgres"])),
    ("is_superuser", "off", Rule::Fixed(OFF)),
    ("lc_collate", "C", Rule::Fixed(&["c"])),
    ("lc_ctype", "C", Rule::Fixed(&["c"])),
    ("lc_messages", "C", Rule::Any),
    ("lc_monetary", "C", Rule::Any),
    ("lc_numeric", "C", Rule::Any),
    ("lock_timeout", "0", Rule::Any),
    ("max_identifier_length", "63", Rule::Fixed(&["63"])),
    ("row_security", "on", Rule::Any),
    ("search_path", "", Rule::SearchPath),
    ("server_encoding", "UTF8", Rule::Fixed(&["utf8"])),
    ("server_version", VERSION, Rule::Fixed(&[VERSION])),
    ("server_version_num", VERSION_NUMBER, Rule::Fixed(&[VERSION_NUMBER])),
    ("standard_conforming_strings", "on", Rule::Fixed(ON)),
    (TIMEOUT, "0", Rule::Timeout),
    (
        "TimeZone",
        "UTC",
        Rule::Fixed(&["utc", "etc/utc", "gmt", "etc/gmt", "zulu", "universal", "z", "0", "00:00"]),
    ),
    ("transaction_isolation", "read committed", Rule::Any),
    ("transaction_read_only", "on", Rule::Fixed(ON)),
    ("session_authorization", "", Rule::Fixed(&[])),
];
/// Those that clients are told of when a connection begins.
const REPORTED: [&str; 11] = [
    APPLICATION,
    "client_encoding",
    "DateStyle",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "server_encoding",
    "server_version",
    "standard_conforming_strings",
    "TimeZone",
];

/// The settings of a connection.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// What was set, by the name in `KNOWN`.
    set: BTreeMap<&'static str, String>,
    /// What RESET brings back: what the connection began with.
    first: BTreeMap<&'static str, String>,
    /// What it was before SET LOCAL, and at the beginning of the transaction.
    local: BTreeMap<&'static str, Option<String>>,
    before: Option<BTreeMap<&'static str, String>>,
    user: String,
    schema: Option<String>,
}

impl Settings {
    /// Of a user whose bare table names are looked up in a schema.
    pub(super) fn new(user: String, schema: Option<String>) -> Self {
        let (set, first, local) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { set, first, local, before: None, user, schema }
    }

    /// Takes the settings that a connection begins with. A time zone is passed over: drivers send that of
    /// their machine, and every answer says its offset.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub(super) fn begin<'a>(
        &mut self,
        given: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Outcome<()> {
        for (name, value) in given {
            if !name.eq_ignore_ascii_case("TimeZone") {
                self.set(name, &[value.to_owned()], false)?;
            }
        }
        self.first.clone_from(&self.set);
        Ok(())
    }

    /// # Errors
    /// 42704 for a setting that there is not, 22023 and 0A000 for a value that it cannot have.
    pub(super) fn set(&mut self, name: &str, value: &[String], local: bool) -> Outcome<()> {
        let &(name, _, ref rule) = find(name)?;
        let text = value.join(", ");
        if text.chars().count() > VALUE_CHARS_MAX {
            let message = format!("a setting has {VALUE_CHARS_MAX} characters at most");
            return Err(Failure::new(state::BAD_SETTING, message));
        }
        match rule {
            Rule::Fixed(same) if same.contains(&text.to_ascii_lowercase().as_str()) => {
                return Ok(());
            }
            Rule::Fixed(_) => {
                let message = format!("{name} is always {:?}", self.show(name)?);
                return Err(Failure::new(state::UNSUPPORTED, message)
                    .hint("times are in UTC, and texts in UTF-8"));
            }
            Rule::SearchPath => self.check_path(value)?,
            Rule::Timeout => {
                timeout(&text)?;
            }
            Rule::Any => {}
        }
        let old = self.set.insert(name, text);
        if local {
            self.local.entry(name).or_insert(old);
        }
        Ok(())
    }

    fn check_path(&self, schemas: &[String]) -> Outcome<()> {
        let own = self.schema.as_deref();
        let known = ["$user", "public", "pg_catalog", ""];
        let other = schemas.iter().flat_map(|list| list.split(',')).map(str::trim).find(|schema| {
            let schema = schema.trim_matches('"');
            !known.contains(&schema) && own != Some(schema)
        });
        let Some(other) = other else { return Ok(()) };
        let message = format!("search_path cannot have {other:?}");
        Err(Failure::new(state::UNSUPPORTED, message).hint(
            "connect to the database org_<id>, or write the schema before the table: org_<id>.deal",
        ))
    }

    /// # Errors
    /// 42704 for a setting that there is not.
    pub(super) fn reset(&mut self, name: Option<&str>) -> Outcome<()> {
        let Some(name) = name else {
            self.set.clone_from(&self.first);
            return Ok(());
        };
        let &(name, ..) = find(name)?;
        match self.first.get(name) {
            Some(first) => self.set.insert(name, first.clone()),
            None => self.set.remove(name),
        };
        Ok(())
    }

    /// # Errors
    /// 42704 for a setting that there is not.
    pub(super) fn show(&self, name: &str) -> Outcome<String> {
        let &(name, first, _) = find(name)?;
        if name == "session_authorization" {
            return Ok(self.user.clone());
        }
        let path = || self.schema.clone().unwrap_or_else(|| "public".to_owned());
        let first = if name == "search_path" { path() } else { first.to_owned() };
        Ok(self.set.get(name).cloned().unwrap_or(first))
    }

    /// A setting's name as PostgreSQL writes it.
    ///
    /// # Errors
    /// 42704 for a setting that there is not.
    pub(super) fn title(name: &str) -> Outcome<&'static str> {
        find(name).map(|(name, ..)| *name)
    }

    /// All of them, by name.
    pub(super) fn all(&self) -> Vec<(&'static str, String)> {
        let shown = KNOWN.iter().filter_map(|(name, ..)| Some((*name, self.show(name).ok()?)));
        shown.collect()
    }

    /// Those that a client is told of when its connection begins.
    pub(super) fn reported(&self) -> Vec<(&'static str, String)> {
        REPORTED.into_iter().filter_map(|name| Some((name, self.show(name).ok()?))).collect()
    }

    /// Whether a client is told when it changes.
    pub(super) fn is_told(name: &str) -> bool {
        name.eq_ignore_ascii_case(APPLICATION)
    }

    /// How long a statement may take; `None` for ever.
    pub(super) fn timeout(&self) -> Option<Duration> {
        timeout(self.set.get(TIMEOUT).map_or("0", String::as_str)).ok().flatten()
    }

    /// A transaction begins.
    pub(super) fn open(&mut self) {
        if self.before.is_none() {
            self.before = Some(self.set.clone());
        }
    }

    /// It ends: what was set for it alone is as before, and all if it was rolled back.
    pub(super) fn close(&mut self, kept: bool) {
        for (name, old) in std::mem::take(&mut self.local) {
            match old {
                Some(old) => self.set.insert(name, old),
                None => self.set.remove(name),
            };
        }
        if let Some(before) = self.before.take().filter(|_| !kept) {
            self.set = before;
        }
    }
}

fn find(name: &str) -> Outcome<&'static (&'static str, &'static str, Rule)> {
    KNOWN.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let message = format!("unrecognized configuration parameter {name:?}");
        Failure::new(state::NO_SETTING, message).hint("SHOW ALL lists those there are")
    })
}

/// Milliseconds, or a number with a unit; 0 for none.
fn timeout(text: &str) -> Outcome<Option<Duration>> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let number = number.parse::<u64>().ok().filter(|_| unit > 0);
    // As in PostgreSQL: what an int of milliseconds holds.
    let millis = number.and_then(|number| number.checked_mul(unit));
    let millis = millis.filter(|millis| *millis <= u64::from(i32::MAX.unsigned_abs()));
    let millis = millis.ok_or_else(|| {
        Failure::new(state::BAD_SETTING, format!("{text:?} is no timeout"))
            .hint("write milliseconds, or a number with ms, s, min, h or d")
    })?;
    Ok((millis > 0).then(|| Duration::from_millis(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new("ann".to_owned(), Some("org_1".to_owned()))
    }

    fn set(settings: &mut Settings, name: &str, value: &str) -> Outcome<()> {
        settings.set(name, &[value.to_owned()], false)
    }

    #[test]
    fn what_would_change_an_answer_is_refused() {
        let mut own = settings();
        for (name, value) in [
            ("TimeZone", "Europe/Berlin"),
            ("client_encoding", "LATIN1"),
            ("datestyle", "German"),
            ("bytea_output", "escape"),
            ("search_path", "org_2"),
            ("transaction_read_only", "off"),
            ("session_authorization", "bob"),
        ] {
            let error = set(&mut own, name, value).expect_err(name);
            assert_eq!(error.state, state::UNSUPPORTED, "{name}");
        }
        for (name, value) in [
            ("timezone", "Etc/UTC"),
            ("Client_Encoding", "UTF8"),
            ("search_path", "\"$user\", org_1"),
            ("extra_float_digits", "3"),
        ] {
            set(&mut own, name, value).expect(name);
        }
        assert_eq!(set(&mut own, "work_mem", "1").expect_err("none").state, state::NO_SETTING);
        assert_eq!(own.show("TIMEZONE").expect("zone"), "UTC");
        assert_eq!(own.show("session_authorization").expect("user"), "ann");
        assert_eq!(own.all().len(), KNOWN.len());
    }

    #[test]
    fn timeouts_have_units() {
        let mut own = settings();
        assert_eq!(own.timeout(), None);
        for (text, millis) in [("250", 250), ("5s", 5_000), ("1 min", 60_000), ("2h", 7_200_000)] {
            set(&mut own, "statement_timeout", text).expect(text);
            assert_eq!(own.timeout(), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "-1", "5 years", "x", "99999999999"] {
            let error = set(&mut own, "statement_timeout", bad).expect_err(bad);
            assert_eq!(error.state, state::BAD_SETTING);
        }
        own.reset(None).expect("reset");
        assert_eq!(own.timeout(), None);
    }

    #[test]
    fn a_transaction_takes_back_what_was_set_in_it() {
        let mut own = settings();
        let zone = [("TimeZone", "America/New_York"), (TIMEOUT, "1s")];
        own.begin(zone.into_iter()).expect("begun");
        let one_second = Some(Duration::from_secs(1));
        assert_eq!(own.timeout(), one_second);
        for kept in [true, false] {
            own.open();
            own.set(TIMEOUT, &["2s".to_owned()], true).expect("local");
            assert_eq!(own.timeout(), Some(Duration::from_secs(2)));
            own.close(kept);
            assert_eq!(own.timeout(), one_second);
        }
        own.open();
        set(&mut own, TIMEOUT, "3s").expect("set");
        own.close(false);
        assert_eq!(own.timeout(), one_second);
        own.open();
        set(&mut own, TIMEOUT, "3s").expect("set");
        own.close(true);
        assert_eq!(own.timeout(), Some(Duration::from_secs(3)));
        own.reset(Some(TIMEOUT)).expect("reset");
        assert_eq!(own.timeout(), one_second);
    }
}
