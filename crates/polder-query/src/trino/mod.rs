//! A Trino that works beside Polder: queries of the operator, and `optimize` of lake tables; it reads
//! sources for runs and writes their rows, too.
//!
//! It keeps no org from another: what a statement may name is for Trino's own access control, so only the
//! operator's sessions are taken.

mod client;
mod failure;
mod import;
mod pages;
mod segments;
mod statement;
mod stopping;
#[cfg(test)]
mod tests;
mod types;
mod values;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{Stream, StreamExt};
use polder_core::spec::EngineKind;
use polder_core::{
    Authorized, Description, Engine, Error, ErrorCode, Import, Imported, Importer, Optimizer,
    OrgId, Principal, QueryStream, Result, RunProgress, Session, SnapshotMark, Stage,
};
use tokio::task::JoinSet;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

pub use client::TrinoSettings;

use client::{Client, Page, Statement, Stats};
use pages::Pages;
use statement::{only_query, quoted};

/// How long a process that ends waits until Trino was told what to stop.
const SETTLING_MAX: Duration = Duration::from_secs(2);
/// How often it is looked whether statements have ended that were to be stopped, and the pause between looks.
const LOOKS_MAX: u32 = 120;
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Where Trino's Iceberg connector writes the query that made a snapshot.
const QUERY_ID: &str = "trino_query_id";

/// One Trino, by its client protocol.
#[derive(Debug)]
pub struct TrinoEngine {
    client: Client,
    /// The statements under way. They end by themselves when nobody reads them any more.
    tasks: Mutex<JoinSet<()>>,
}

impl TrinoEngine {
    /// Calls nobody yet.
    ///
    /// # Errors
    /// `spec.invalid` for settings that cannot be used.
    pub fn new(settings: TrinoSettings) -> Result<Self> {
        Ok(Self { client: Client::new(settings)?, tasks: Mutex::default() })
    }

    /// Whether Trino answers, and has the lake; what it has there.
    ///
    /// # Errors
    /// `lake.unavailable` when it cannot be reached; `query.invalid` when it has no such catalog.
    pub async fn check(&self) -> Result<String> {
        let lake = self.client.lake();
        let sql = format!("SHOW SCHEMAS FROM {}", quoted(lake));
        let mut pages = self.start(Statement { sql, properties: Vec::new() });
        let mut schemas = 0;
        while let Some(page) = pages.next().await? {
            schemas += page.rows().len();
        }
        Ok(format!("{schemas} schemas in its catalog {lake}"))
    }

    /// Waits, not for long, until Trino was told to stop what nobody reads any more: for the end of a process.
    pub async fn settle(&self) {
        let mut tasks = {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        let all = async { while tasks.join_next().await.is_some() {} };
        // Trino stops what nobody asks for by itself, some minutes later.
        let _ = tokio::time::timeout(SETTLING_MAX, all).await;
    }

    /// The texts of the first column.
    async fn texts(&self, sql: String) -> Result<Vec<String>> {
        let mut pages = self.start(Statement { sql, properties: Vec::new() });
        let mut texts = Vec::new();
        while let Some(page) = pages.next().await? {
            let rows = page.rows().iter();
            texts.extend(rows.filter_map(|row| Some(row.first()?.as_str()?.to_owned())));
        }
        Ok(texts)
    }

    fn start(&self, statement: Statement) -> Pages {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        Pages::start(&mut tasks, &self.client, statement)
    }
}

#[async_trait]
impl Engine for TrinoEngine {
    /// Only for the operator; Trino's own limits hold for memory.
    async fn query(&self, sql: &str, session: &Session) -> Result<QueryStream> {
        if !matches!(session.principal, Principal::Operator) {
            let message = "only the operator may ask Trino: it keeps no org from another here";
            return Err(
                Error::new(ErrorCode::ControlDenied, message).hint("ask without engine: trino")
            );
        }
        if !session.snapshots.is_empty() {
            let message = "Trino reads tables at a snapshot only where the statement names it";
            return Err(Error::new(ErrorCode::QueryInvalid, message));
        }
        let sql = only_query(sql)?.to_owned();
        let mut pages = self.start(Statement { sql, properties: Vec::new() });
        let (first, schema) = loop {
            let Some(page) = pages.next().await? else {
                return Err(Error::new(ErrorCode::QueryFailed, "Trino's answer has no columns"));
            };
            if let Some(columns) = &page.columns {
                let schema = types::schema(columns)?;
                break (page, schema);
            }
        };
        let rows = Reading { schema: schema.clone(), pages, rows: 0, rows_max: session.rows_max };
        Ok(QueryStream { schema, batches: rows.stream(first).boxed() })
    }

    /// Is not asked of Trino: its columns come with the first page of an answer.
    async fn describe(&self, _: &str, _: &Session) -> Result<Description> {
        let message = "Trino tells a statement's columns with its answer alone";
        Err(Error::new(ErrorCode::QueryInvalid, message))
    }
}

/// The rows of an answer that begins with a page.
struct Reading {
    schema: SchemaRef,
    pages: Pages,
    rows: u64,
    rows_max: Option<u64>,
}

impl Reading {
    fn stream(self, first: Page) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let state = (self, Some(first));
        futures::stream::try_unfold(state, async |(mut rows, first)| {
            let mut next = first;
            loop {
                let page = match next.take() {
                    Some(page) => Some(page),
                    None => rows.pages.next().await?,
                };
                let Some(page) = page else { return Ok::<_, Error>(None) };
                if let Some(batch) = rows.batch(&page)? {
                    return Ok(Some((batch, (rows, None))));
                }
            }
        })
    }

    fn batch(&mut self, page: &Page) -> Result<Option<RecordBatch>> {
        let data = page.rows();
        if data.is_empty() {
            return Ok(None);
        }
        self.rows += data.len() as u64;
        if let Some(max) = self.rows_max.filter(|max| self.rows > *max) {
            let message = format!("the query has more than {max} rows");
            return Err(Error::new(ErrorCode::QueryLimit, message).hint("add LIMIT or aggregate"));
        }
        values::batch(&self.schema, data).map(Some)
    }
}

#[async_trait]
impl Optimizer for TrinoEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Trino
    }

    async fn optimize(
        &self,
        org: &Authorized<OrgId>,
        table: &str,
        target_mb: u64,
        progress: &RunProgress,
    ) -> Result<SnapshotMark> {
        let namespace = org.get().namespace();
        check_names(&[namespace.as_str(), table])?;
        let lake = self.client.lake();
        let names = [lake, namespace.as_str(), table].map(quoted).join(".");
        let sql =
            format!("ALTER TABLE {names} EXECUTE optimize(file_size_threshold => '{target_mb}MB')");
        let size = (format!("{lake}.target_max_file_size"), format!("{target_mb}MB"));
        let mut pages = self.start(Statement { sql, properties: vec![size] });
        let (mut id, mut counted) = (String::new(), Stats::default());
        while let Some(page) = pages.next().await? {
            count(progress, counted, page.stats);
            (id, counted) = (page.id, page.stats);
        }
        progress.go_on();
        Ok(SnapshotMark { key: QUERY_ID, value: id })
    }
}

#[async_trait]
impl Importer for TrinoEngine {
    async fn import(&self, import: Import<'_>, progress: &RunProgress) -> Result<Imported> {
        let namespace = import.org.get().namespace();
        check_names(&[namespace.as_str(), import.source, import.table])?;
        let lake = self.client.lake();
        let sql = import::insert(lake, &namespace, &import)?;
        let property = |name: &str, value: String| (format!("{lake}.{name}"), value);
        let properties = vec![
            property("target_max_file_size", format!("{}MB", import.file_mb)),
            // They would be of a table that is gone.
            property("collect_extended_statistics_on_write", "false".to_owned()),
        ];
        let mut pages = self.start(Statement { sql, properties });
        let (mut id, mut rows) = (String::new(), None);
        progress.enter(Stage::Reading);
        loop {
            let page = match pages.next().await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(error) => {
                    let number = error.detail_text().and_then(import::refusal);
                    return Err(number.map_or(error, |number| import::refused(number, &import)));
                }
            };
            import::tell(progress, page.stats);
            rows = import::rows(&page).or(rows);
            id = page.id;
        }
        progress.go_on();
        let rows = rows.ok_or_else(|| {
            let message = "Trino does not say how many rows it has written";
            Error::new(ErrorCode::QueryFailed, message).detail(format!("Trino's query {id}"))
        })?;
        Ok(Imported { rows, mark: SnapshotMark { key: QUERY_ID, value: id } })
    }

    async fn stop(&self, org: &Authorized<OrgId>) -> Result<()> {
        let under_way = stopping::under_way(self.client.lake(), &org.get().namespace());
        for _ in 0..LOOKS_MAX {
            let ids = self.texts(under_way.clone()).await;
            let ids = ids.map_err(|error| error.within("ending what Trino does for the org"))?;
            if ids.is_empty() {
                return Ok(());
            }
            for id in ids {
                if let Err(error) = self.texts(stopping::kill(&id)).await {
                    // It may have ended by itself: the next look says.
                    tracing::warn!(query = id, "Trino does not stop a statement: {error}");
                }
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        let message = "Trino goes on with statements of an org that leaves";
        Err(Error::new(ErrorCode::LakeUnavailable, message).detail(org.get().to_string()).hint(
            "end them there; where this Trino is gone for good, take [trino] out of polder.toml",
        ))
    }
}

/// # Errors
/// `spec.invalid` for names that Trino cannot find.
fn check_names(names: &[&str]) -> Result<()> {
    match names.iter().find(|name| name.chars().any(char::is_uppercase)) {
        None => Ok(()),
        Some(name) => {
            let message = format!("Trino writes names in lower case, and cannot find {name:?}");
            Err(Error::new(ErrorCode::SpecInvalid, message).hint("give the table engine: embedded"))
        }
    }
}

/// Trino's counts grow; ours are added to.
fn count(progress: &RunProgress, before: Stats, now: Stats) {
    if now.queued {
        progress.wait_for("Trino: the statement is queued there");
        return;
    }
    progress.enter(Stage::Reading);
    progress.add_read(
        now.processed_rows.saturating_sub(before.processed_rows),
        now.processed_bytes.saturating_sub(before.processed_bytes),
    );
}
