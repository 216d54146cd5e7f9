//! What a run promises about the rows it read, and why it promises no more.
//!
//! A source says what it found as [`Doubt`]s ([`crate::ReadPlan::doubts`]); what they mean for a table
//! of some mode is decided here. Nothing here looks at a source.

use std::cmp::Reverse;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::{Mode, TableSpec};

/// What is known of the rows of a run and of the mark it leaves for the next one.
///
/// It speaks of the rows that the source shows to the role that reads: of those that the filter takes,
/// as they were when they were read. Rows that are deleted are not its matter, nor those that the table
/// spec leaves out by its own word (`retention`, `on_bad_line: reject`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Every committed row is there, once. It rests on what the catalog and the sessions of the
    /// source show: an application that writes a column with a default by itself does not show.
    #[default]
    Exact,
    /// No row is missed, but a row may be there twice.
    AtLeastOnce,
    /// A row may be missed, or be there twice.
    BestEffort,
}

impl Guarantee {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::AtLeastOnce => "at_least_once",
            Self::BestEffort => "best_effort",
        }
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reason for which a read is not exact. Its word is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doubt {
    /// Nothing shows that the server's clock stamps the rows that come.
    ApplicationClock,
    /// Nothing shows that the cursor's values come in order.
    UnorderedCursor,
    /// The cursor's sequence hands out numbers in blocks, to each session its own.
    CachedSequence,
    /// Nothing shows that the server moves the cursor of a row that changes.
    ChangesUnstamped,
    /// The role may not see when other sessions' transactions began.
    HiddenTransactions,
    /// A prepared transaction was open, and when it began is not recorded.
    PreparedTransaction,
    /// The server is a standby.
    Standby,
    /// Rows come from other transactions than the database's own.
    WrittenElsewhere,
    /// The source table is a view.
    View,
    /// Row-level security is active for the role.
    RowSecurity,
    /// Rows come from a foreign table.
    ForeignTable,
    /// The server has no snapshot for the read.
    NoSnapshot,
    /// Nothing vouches that the key names one row.
    KeyNotUnique,
    /// The table spec names no key.
    NoKey,
    /// The cursor has not the digits to tell two states of a row apart.
    CoarseCursor,
    /// The cursor is a transaction's number, which a row may get anew without a change.
    RewrittenRows,
    /// The commit's answer was lost, and what the run had seen of the source with it.
    AnswerLost,
}

impl Doubt {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::ApplicationClock,
        Self::UnorderedCursor,
        Self::CachedSequence,
        Self::ChangesUnstamped,
        Self::HiddenTransactions,
        Self::PreparedTransaction,
        Self::Standby,
        Self::WrittenElsewhere,
        Self::View,
        Self::RowSecurity,
        Self::ForeignTable,
        Self::NoSnapshot,
        Self::KeyNotUnique,
        Self::NoKey,
        Self::CoarseCursor,
        Self::RewrittenRows,
        Self::AnswerLost,
    ];

    /// What is left of the guarantee.
    pub const fn guarantee(self) -> Guarantee {
        match self {
            Self::NoKey | Self::CoarseCursor | Self::RewrittenRows => Guarantee::AtLeastOnce,
            Self::ApplicationClock
            | Self::UnorderedCursor
            | Self::CachedSequence
            | Self::ChangesUnstamped
            | Self::HiddenTransactions
            | Self::PreparedTransaction
            | Self::Standby
            | Self::WrittenElsewhere
            | Self::View
            | Self::RowSecurity
            | Self::ForeignTable
            | Self::NoSnapshot
            | Self::KeyNotUnique
            | Self::AnswerLost => Guarantee::BestEffort,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApplicationClock => "application_clock",
            Self::UnorderedCursor => "unordered_cursor",
            Self::CachedSequence => "cached_sequence",
            Self::ChangesUnstamped => "changes_unstamped",
            Self::HiddenTransactions => "hidden_transactions",
            Self::PreparedTransaction => "prepared_transaction",
            Self::Standby => "standby",
            Self::WrittenElsewhere => "written_elsewhere",
            Self::View => "view",
            Self::RowSecurity => "row_security",
            Self::ForeignTable => "foreign_table",
            Self::NoSnapshot => "no_snapshot",
            Self::KeyNotUnique => "key_not_unique",
            Self::NoKey => "no_key",
            Self::CoarseCursor => "coarse_cursor",
            Self::RewrittenRows => "rewritten_rows",
            Self::AnswerLost => "answer_lost",
        }
    }

    /// What may go wrong and, where there is a remedy, what to do.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::ApplicationClock => {
                "nothing shows that the server's clock sets the cursor of new rows: one that comes with \
                 a time before the mark is missed; DEFAULT now() shows it"
            }
            Self::UnorderedCursor => {
                "nothing shows that the cursor's values come in order: a row that comes with one below \
                 the mark is missed; an identity column shows it"
            }
            Self::CachedSequence => {
                "each session takes a block of the cursor's sequence: a row with a lower number that \
                 comes later is missed; set CACHE 1"
            }
            Self::ChangesUnstamped => {
                "nothing shows that the server moves the cursor of a row that changes: a change that \
                 leaves it, or sets it below the mark, is missed; a BEFORE UPDATE trigger shows it"
            }
            Self::HiddenTransactions => {
                "the role may not see when other sessions' transactions began: rows committed more \
                 than 10 minutes after their cursor value are missed; GRANT pg_read_all_stats to the \
                 role, and leave track_activities on"
            }
            Self::PreparedTransaction => {
                "a prepared transaction was open: its rows are missed if it began more than 10 \
                 minutes before it was prepared"
            }
            Self::Standby => {
                "the server is a standby, which does not see the primary's open transactions: rows \
                 committed more than 10 minutes after their cursor value are missed"
            }
            Self::WrittenElsewhere => {
                "the table is foreign, materialized or subscribed to: rows that appear in it more \
                 than 10 minutes after their cursor value are missed"
            }
            Self::View => {
                "the source is a view: a row may appear in it by a change that its cursor does not \
                 tell, and is missed then"
            }
            Self::RowSecurity => {
                "row-level security is active for the role: a row that its policies show later than \
                 its cursor value says is missed"
            }
            Self::ForeignTable => {
                "rows come from a foreign table, which need not answer from one state: a row that \
                 changes during the read may be missed or be there twice"
            }
            Self::NoSnapshot => {
                "the server has no snapshot for the read: a row that changes meanwhile may be missed \
                 or be there twice"
            }
            Self::KeyNotUnique => {
                "no unique index vouches for the key: of two rows with one key (in append: and one \
                 cursor value) one may stand for both"
            }
            Self::NoKey => {
                "the table spec names no key: rows read again are recognised as a whole, and one that \
                 changed meanwhile is there twice"
            }
            Self::CoarseCursor => {
                "the cursor has less than six digits of a second: rows that are read again are \
                 recognised as a whole, and one that changed meanwhile is there twice"
            }
            Self::RewrittenRows => {
                "a row's transaction number changes without the row where ALTER TABLE rewrites the table \
                 or numbers begin again: it is there twice then; mode: merge keeps one"
            }
            Self::AnswerLost => "the commit's answer was lost, and with it what the run had seen",
        }
    }

    /// Whether it takes anything from a table of this mode.
    const fn matters(self, mode: Mode) -> bool {
        match self {
            // In `append`, a row is a state of it, and one without a value of its own is none.
            Self::ChangesUnstamped => matches!(mode, Mode::Merge),
            // Whatever is read again, one row stands for a key.
            Self::CoarseCursor | Self::NoKey | Self::RewrittenRows => matches!(mode, Mode::Append),
            _ => true,
        }
    }
}

/// A reason, as reports have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub word: Doubt,
    pub text: &'static str,
}

impl From<Doubt> for Reason {
    fn from(word: Doubt) -> Self {
        Self { word, text: word.sentence() }
    }
}

/// A guarantee and why it is not exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Assurance {
    pub guarantee: Guarantee,
    /// The gravest first; none if it is exact.
    pub reasons: Vec<Reason>,
}

impl Assurance {
    /// What remains of a table's guarantee under a source's doubts.
    pub fn of(spec: &TableSpec, doubts: &[Doubt]) -> Self {
        let no_key = (spec.cursor.is_some() && spec.key.is_empty()).then_some(Doubt::NoKey);
        let doubts = doubts.iter().copied().chain(no_key);
        let mut doubts: Vec<Doubt> = doubts.filter(|doubt| doubt.matters(spec.mode)).collect();
        doubts.sort_unstable_by_key(|doubt| (Reverse(doubt.guarantee()), *doubt));
        doubts.dedup();
        Self {
            guarantee: doubts.first().map_or(Guarantee::Exact, |gravest| gravest.guarantee()),
            reasons: doubts.into_iter().map(Reason::from).collect(),
        }
    }

    pub fn is_exact(&self) -> bool {
        self.guarantee == Guarantee::Exact
    }

    /// Its reasons' words, as in `application_clock, no_key`.
    pub fn words(reasons: &[Reason]) -> String {
        reasons.iter().map(|reason| reason.word.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// With all that is to be said: `best_effort; no_snapshot: …`.
impl fmt::Display for Assurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.guarantee)?;
        for Reason { word, text } in &self.reasons {
            write!(f, "; {}: {text}", word.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(mode: &str, cursor: Option<&str>, key: &[&str]) -> TableSpec {
        let spec = json!({
            "name": "t", "source": "s", "from": "t", "mode": mode, "cursor": cursor, "key": key,
        });
        serde_json::from_value(spec).expect("spec")
    }

    #[test]
    fn the_gravest_doubt_decides() {
        use Doubt::{
            ApplicationClock, ChangesUnstamped, CoarseCursor, NoKey, NoSnapshot, RewrittenRows,
            View,
        };
        use Guarantee::{AtLeastOnce, BestEffort, Exact};
        let (id, none): (&[&str], &[&str]) = (&["id"], &[]);
        let at = Some("at");
        let cases: [(TableSpec, &[Doubt], Guarantee, &[Doubt]); 13] = [
            (spec("full_refresh", None, none), &[], Exact, &[]),
            (spec("full_refresh", None, none), &[NoSnapshot], BestEffort, &[NoSnapshot]),
            // A cursor is of no use there, nor is a key.
            (spec("full_refresh", at, none), &[], Exact, &[]),
            // Files.
            (spec("append", None, none), &[], Exact, &[]),
            (spec("append", at, id), &[], Exact, &[]),
            (spec("append", at, none), &[], AtLeastOnce, &[NoKey]),
            (spec("append", at, id), &[CoarseCursor], AtLeastOnce, &[CoarseCursor]),
            (spec("append", at, id), &[ChangesUnstamped], Exact, &[]),
            (spec("merge", at, id), &[CoarseCursor], Exact, &[]),
            (spec("merge", at, id), &[RewrittenRows], Exact, &[]),
            (spec("append", at, id), &[RewrittenRows], AtLeastOnce, &[RewrittenRows]),
            (spec("merge", at, id), &[ChangesUnstamped], BestEffort, &[ChangesUnstamped]),
            (
                spec("append", at, none),
                &[View, ApplicationClock, View],
                BestEffort,
                &[ApplicationClock, View, NoKey],
            ),
        ];
        for (spec, doubts, guarantee, reasons) in cases {
            let found = Assurance::of(&spec, doubts);
            let words: Vec<Doubt> = found.reasons.iter().map(|reason| reason.word).collect();
            assert_eq!((found.guarantee, &words[..]), (guarantee, reasons), "{spec:?} {doubts:?}");
            assert_eq!(found.is_exact(), reasons.is_empty());
        }
    }

    #[test]
    fn words_are_those_of_json_and_no_two_are_alike() {
        let mut words = Vec::new();
        for doubt in Doubt::ALL {
            assert_eq!(serde_json::to_value(doubt).expect("json"), doubt.as_str());
            assert_ne!(doubt.guarantee(), Guarantee::Exact, "{doubt:?}");
            words.push(doubt.as_str());
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Doubt::ALL.len());
        for guarantee in [Guarantee::Exact, Guarantee::AtLeastOnce, Guarantee::BestEffort] {
            assert_eq!(serde_json::to_value(guarantee).expect("json"), guarantee.as_str());
        }
    }

    #[test]
    fn reasons_are_a_word_and_a_sentence() {
        let found = Assurance::of(&spec("append", Some("at"), &[]), &[]);
        let json = serde_json::to_value(&found.reasons).expect("json");
        assert_eq!(json, json!([{ "word": "no_key", "text": Doubt::NoKey.sentence() }]));
        assert!(
            found.to_string().starts_with("at_least_once; no_key: the table spec names no key")
        );
        assert_eq!(Assurance::words(&found.reasons), "no_key");
        assert_eq!(Assurance::default().to_string(), "exact");
    }
}
