//! A statement on its way to the engine: who asks, found anew for each, and within which limits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use polder_core::{Description, Error, ErrorCode, QueryStream, Right, Session};
use polder_query::postgres::Shown;
use tokio::time::Instant;

use super::connection::Connection;
use super::failure::{Failure, Outcome, state};
use super::listing;
use super::rows::{Rows, Watch};
use super::settings::VERSION;
use crate::caps::Caps;

/// How long a listing is good for the next question: psql and drivers ask several at once.
const LISTED_FOR: Duration = Duration::from_secs(3);

impl Connection<'_> {
    /// Whoever sends this statement, as it is now: a key may have been revoked since the last.
    async fn session(&mut self) -> Outcome<(Session, Option<Caps>)> {
        let settings = &self.door.settings;
        let caller = settings.clients.who(&self.visitor.shown).await?.ok_or_else(|| {
            let message = "[control.unauthenticated] the key is no longer good";
            Failure::new(state::NOT_ALLOWED, message).fatal()
        })?;
        // One bucket with `/v1`.
        if settings.pace.take(&caller.who(), std::time::Instant::now()).is_err() {
            settings.metrics.limited();
            let message = "[http.too_many] too many requests at once";
            return Err(
                Failure::new(state::TOO_OFTEN, message).hint("wait a moment ([server] rate_limit)")
            );
        }
        let principal = self.visitor.database.narrow(&caller.principal).map_err(Failure::fatal)?;
        let role = principal.role();
        if !role.has(Right::Read) {
            let message = format!("a {} may not do this", role.as_str());
            return Err(Error::new(ErrorCode::ControlDenied, message).into());
        }
        let caps = Caps::of(role);
        let session = Session {
            principal,
            rows_max: caps.map(|caps| caps.rows_max as u64),
            memory_bytes_max: settings.app.config.process.limits.query_memory_mb << 20,
            snapshots: BTreeMap::default(),
            pushdown: true,
        };
        Ok((session, caps))
    }

    /// Starts a query.
    pub(super) async fn start(
        &mut self,
        sql: &str,
        formats: &[i16],
        watch: &Watch,
    ) -> Outcome<Rows> {
        let begun = Instant::now();
        let (session, caps) = self.session().await?;
        let found = self.found(sql, &session, (caps, begun), watch).await?;
        Rows::new(found, formats, (caps, begun))
    }

    /// The same for what is not sent.
    pub(super) async fn open(&mut self, sql: &str, watch: &Watch) -> Outcome<QueryStream> {
        let begun = Instant::now();
        let (session, caps) = self.session().await?;
        self.found(sql, &session, (caps, begun), watch).await
    }

    /// What a statement with parameters takes and gives.
    pub(super) async fn description(&mut self, sql: &str, watch: &Watch) -> Outcome<Description> {
        let begun = Instant::now();
        let (session, caps) = self.session().await?;
        let engine = Arc::clone(&self.door.settings.engine);
        within((caps, begun), watch, engine.describe(sql, &session)).await
    }

    async fn found(
        &mut self,
        sql: &str,
        session: &Session,
        caps: (Option<Caps>, Instant),
        watch: &Watch,
    ) -> Outcome<QueryStream> {
        let door = self.door;
        if !door.catalog.concerns(sql) {
            return within(caps, watch, door.settings.engine.query(sql, session)).await;
        }
        let tables = match &self.listed {
            Some((at, tables)) if at.elapsed() < LISTED_FOR => Arc::clone(tables),
            _ => {
                let listing = listing::tables(door.settings.engine.as_ref(), session);
                let tables = within(caps, watch, listing).await?;
                self.listed = Some((Instant::now(), Arc::clone(&tables)));
                tables
            }
        };
        let shown = Shown {
            database: self.visitor.database.name(),
            user: self.visitor.user.clone(),
            schema: listing::default_schema(&session.principal),
            version: format!("PostgreSQL {VERSION} (Polder {})", env!("CARGO_PKG_VERSION")),
            tables: tables.as_ref().clone(),
        };
        within(caps, watch, door.catalog.query(sql, shown)).await
    }
}

/// Waits for the engine, as long as the statement may go on.
async fn within<T>(
    (caps, begun): (Option<Caps>, Instant),
    watch: &Watch,
    work: impl Future<Output = polder_core::Result<T>>,
) -> Outcome<T> {
    let Some(caps) = caps else { return Ok(watch.over(work).await??) };
    let late = tokio::time::timeout_at(begun + caps.time_max, work);
    match watch.over(late).await? {
        Ok(done) => Ok(done?),
        Err(_) => Err(caps.too_long().into()),
    }
}
