//! Bootstrap: what an agent or a training job boots with. A manifest that fixes one state of an org's
//! tables, and all their rows as one stream that can be taken up again where it broke off.
//!
//! Which states is decided in `states.rs`, the order of rows by the lake ([`polder_lake::OrderedScan`]), documents
//! of one entity with what belongs to it in `entity.rs` (what nests where in `tree.rs`), bytes in `encode.rs`, and budgets and marks in
//! `send.rs`. Who may ask is the caller's matter. The order never changes for the same states, so
//! that a token has to say no more than which states and how far (ADR 0024).

mod budget;
mod encode;
mod entity;
mod key;
mod manifest;
mod rows;
mod send;
mod states;
mod token;
mod tree;

use std::sync::Arc;

use chrono::{DateTime, NaiveDate, NaiveTime};
use polder_core::spec::TableSpec;
use polder_core::{Authorized, Error, ErrorCode, OrgId, Result};
use polder_lake::Lake;
use polder_query::DataFusionEngine;
use tokio::sync::Semaphore;

pub(crate) use budget::Budget;
pub(crate) use encode::Format;
pub(crate) use manifest::{Manifest, name_in_sql};
pub(crate) use send::ByteStream;
pub(crate) use token::Token;

use entity::Entities;
use rows::Rows;
use send::{Pieces, Sender};
use states::{State, States};

/// Tables of one bootstrap at most: its token has to fit into an address.
pub(crate) const TABLES_MAX: usize = 200;
/// Bootstraps by entity at the same time: each sorts all its tables, with the memory of one query.
pub(crate) const ENTITIES_MAX: usize = 2;

/// What bootstraps work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Bootstraps {
    lake: Lake,
    /// An engine of their own: several queries of one bootstrap are open at once, and must not wait
    /// for each other behind somebody's query.
    engine: Arc<DataFusionEngine>,
    /// Bytes for all queries of one bootstrap.
    memory_bytes: usize,
    turns: Arc<Semaphore>,
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// By name; all of the org's without.
    pub(crate) tables: Option<Vec<String>>,
    pub(crate) as_of: AsOf,
    /// Microseconds since the epoch: rows of earlier events are left out.
    pub(crate) since_us: Option<i64>,
    /// The table whose rows become documents; rows as they are without.
    pub(crate) entity: Option<String>,
}

/// Which state of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum AsOf {
    #[default]
    Now,
    /// What was current then: milliseconds since the epoch.
    Time(i64),
    Pin(String),
}

/// A bootstrap whose states are fixed.
pub(crate) struct Bootstrap {
    pub(crate) manifest: Manifest,
    context: Bootstraps,
    org: Authorized<OrgId>,
    states: Vec<State>,
    token: Token,
}

impl AsOf {
    /// What a time and a pin say, of which one at most is given.
    ///
    /// # Errors
    /// `spec.invalid` for both, and for what is no time.
    pub(crate) fn parse(as_of: Option<&str>, pin: Option<&str>) -> Result<Self> {
        match (as_of, pin) {
            (None, None) => Ok(Self::Now),
            (Some(text), None) => Ok(Self::Time(microseconds("as_of", text)?.div_euclid(1000))),
            (None, Some(pin)) => Ok(Self::Pin(pin.to_owned())),
            (Some(_), Some(_)) => {
                let message = "as_of and pin exclude each other";
                Err(Error::new(ErrorCode::SpecInvalid, message).hint("say one of them"))
            }
        }
    }
}

/// A time, or a date's first moment in UTC, in microseconds since the epoch.
///
/// # Errors
/// `spec.invalid`, with `what` it was to be.
pub(crate) fn microseconds(what: &str, text: &str) -> Result<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.timestamp_micros());
    }
    if let Ok(date) = text.parse::<NaiveDate>() {
        return Ok(date.and_time(NaiveTime::MIN).and_utc().timestamp_micros());
    }
    let message = format!("{what} is {text:?}, and no time with a zone");
    Err(Error::new(ErrorCode::SpecInvalid, message)
        .hint("write 2026-01-31T12:00:00Z (a + is %2B in an address) or 2026-01-31"))
}

impl Bootstraps {
    pub(crate) fn new(lake: Lake, engine: DataFusionEngine, memory_bytes: usize) -> Self {
        let turns = Arc::new(Semaphore::new(ENTITIES_MAX));
        Self { lake, engine: Arc::new(engine), memory_bytes, turns }
    }

    /// Fixes the states of the tables that are wanted. `specs` are the org's.
    ///
    /// # Errors
    /// `lake.not_found` for a table or state that is not there; `spec.invalid` for what cannot be
    /// put together.
    pub(crate) async fn open(
        &self,
        org: &Authorized<OrgId>,
        specs: Vec<TableSpec>,
        wanted: Wanted,
    ) -> Result<Bootstrap> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        if let AsOf::Time(ms) = wanted.as_of
            && ms > now_ms
        {
            return Err(Error::new(ErrorCode::SpecInvalid, "as_of is in the future")
                .hint("leave it out for the present states"));
        }
        let States { found: mut states, mut left_out, chosen } =
            states::find(&self.lake, org, specs, &wanted).await?;
        if let Some(root) = &wanted.entity {
            let apart = entity::keep_related(&mut states, root, wanted.tables.is_some())?;
            left_out.extend(apart);
        }
        if states.len() > TABLES_MAX {
            let message = format!("a bootstrap has {TABLES_MAX} tables at most");
            return Err(Error::new(ErrorCode::QueryLimit, message).hint("name those needed"));
        }
        let token = Token::first(org.get(), &wanted, &states);
        let manifest =
            manifest::write(&self.lake, org, &states, (&token, left_out, chosen)).await?;
        let (context, org) = (self.clone(), org.clone());
        Ok(Bootstrap { manifest, context, org, states, token })
    }

    /// Goes on where a token was given.
    ///
    /// # Errors
    /// `spec.invalid` for a token that is none, or another org's; `lake.not_found` where a state has
    /// expired since.
    pub(crate) async fn resume(
        &self,
        org: &Authorized<OrgId>,
        specs: Vec<TableSpec>,
        token: Token,
    ) -> Result<Bootstrap> {
        token.check(org.get())?;
        let mut states = states::again(&self.lake, org, specs, &token).await?;
        if let Some(root) = &token.entity {
            entity::keep_related(&mut states, root, true)?;
        }
        let manifest =
            manifest::write(&self.lake, org, &states, (&token, Vec::new(), states::Chosen::Token))
                .await?;
        let (context, org) = (self.clone(), org.clone());
        Ok(Bootstrap { manifest, context, org, states, token })
    }
}

impl Bootstrap {
    /// The manifest and the rows, up to the budget, in this format.
    ///
    /// # Errors
    /// `spec.invalid` for a format or budget that does not go with the shape; `query.*`.
    pub(crate) async fn stream(self, format: Format, budget: Budget) -> Result<ByteStream> {
        budget.check(format)?;
        if self.token.entity.is_some() && format != Format::Ndjson {
            return Err(Error::new(ErrorCode::SpecInvalid, "documents of entities are JSON")
                .hint("ask for format=ndjson, or leave shape=entity out"));
        }
        let pieces = self.pieces().await?;
        let tables = self.states.iter().map(|state| state.table.name().to_owned()).collect();
        Sender::start(format, budget, &self.manifest, (self.token, tables, pieces))
    }

    async fn pieces(&self) -> Result<Pieces> {
        match &self.token.entity {
            None => {
                let rows = Rows::new(&self.states, self.token.since_us, self.token.place());
                Ok(Pieces::rows(rows))
            }
            Some(root) => {
                let entities =
                    Entities::open(&self.context, &self.org, &self.states, root, &self.token);
                Ok(Pieces::entities(entities.await?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_zone() {
        let found = |text: &str| microseconds("since", text).ok();
        assert_eq!(found("1970-01-02"), Some(86_400_000_000));
        assert_eq!(found("1970-01-01T01:00:00.5+01:00"), Some(500_000));
        for bad in ["1970-01-01T01:00:00", "yesterday", ""] {
            assert_eq!(found(bad), None, "{bad:?}");
        }
    }
}
