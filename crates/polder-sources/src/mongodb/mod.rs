//! MongoDB (and servers that speak its protocol) as a source.
//!
//! A plan reads the matching documents once, in one snapshot where the server has such, infers the
//! schema over every one of them and sets their bytes aside on disk; its splits decode them from
//! there. Nothing is written to the server, and no change stream is opened here. Who has learnt the schema
//! that way may ask the server for some of the documents, as long as these fit it (`pushed`), or for what it
//! makes of them (`answer`).

mod answer;
mod drain;
mod failure;
mod pushed;
mod query;
mod rows;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures::TryStreamExt;
use mongodb::error::{Error as DriverError, ErrorKind};
use mongodb::options::{ClientOptions, Collation, FindOptions};
use mongodb::results::CollectionType;
use mongodb::{Client, Database};
use polder_core::spec::Mode;
use polder_core::{
    Answer, AnswerRequest, Capabilities, CursorRange, CursorValue, Doubt, Error, ErrorCode, Field,
    LakeType, Learnt, PartPlan, PartRequest, ReadPlan, ReadRequest, Result, RunProgress, Source,
    SourceTable, Stage, TableSchema, TextOf,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OnceCell;

use self::drain::{Drained, Question};
use self::failure::{is_refusal, source_error};
use crate::backoff::Backoff;
use crate::connections::{Connections, Line};
use crate::document::{self, Dialect, Inference, InferenceOptions};
use crate::names::{self, nearest};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Servers from this version of the protocol on, MongoDB 5.0, read in snapshots.
const SNAPSHOT_WIRE: i32 = 13;
/// Every collection's key.
const ID: &str = "_id";
/// Collections `discover` lists at most.
const COLLECTIONS_MAX: usize = 1_000;
/// How late a document may arrive with a time from its client's clock. The next read starts this far
/// before the server's present time, and documents read again are recognised by their key.
const ARRIVAL_LAG_MICROS: i64 = 5 * 60 * 1_000_000;

/// One database of a MongoDB server.
///
/// A read counts as one connection while it reads: decoding what it has set aside needs none. Connections
/// that the driver keeps for the next read, or to watch the server with, do not count.
pub struct MongodbSource {
    name: String,
    url: SecretString,
    database: String,
    line: Line,
    client: OnceCell<Client>,
}

impl MongodbSource {
    /// Does not connect yet.
    pub fn new(name: &str, url: SecretString, database: &str) -> Self {
        let line = Line::new(name, &Connections::new(), None);
        let (name, database) = (name.to_owned(), database.to_owned());
        Self { name, url, database, line, client: OnceCell::new() }
    }

    /// The same with its connections among those of the process, `max` of them at most.
    #[must_use]
    pub fn within(self, connections: &Arc<Connections>, max: Option<NonZeroU32>) -> Self {
        let line = Line::new(&self.name, connections, max);
        Self { line, ..self }
    }

    async fn client(&self) -> Result<&Client> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Client> {
        // The driver's message may repeat the address, and with it the password.
        let unread = |error: DriverError| match &*error.kind {
            ErrorKind::DnsResolve { .. } | ErrorKind::Io(_) => Error::new(
                ErrorCode::SourceUnavailable,
                format!("the servers of source {} cannot be looked up", self.name),
            )
            .hint("check the host's name and that the DNS answers"),
            _ => Error::new(
                ErrorCode::SpecInvalid,
                format!("the address of source {} is no MongoDB address", self.name),
            )
            .hint(
                "write mongodb://user:password@host:port/ or mongodb+srv://…, special characters \
                 percent-encoded",
            ),
        };
        let mut options = ClientOptions::parse(self.url.expose_secret()).await.map_err(unread)?;
        options.server_selection_timeout.get_or_insert(CONNECT_TIMEOUT);
        options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
        options.app_name.get_or_insert_with(|| "polder".to_owned());
        Client::with_options(options).map_err(source_error)
    }

    async fn database(&self) -> Result<Database> {
        Ok(self.client().await?.database(&self.database))
    }

    /// What the server says of itself. One that takes no further connection is asked again for a while.
    async fn hello(&self, progress: &RunProgress) -> Result<Document> {
        let database = self.database().await?;
        let mut backoff = Backoff::default();
        loop {
            let error = match database.run_command(doc! { "hello": 1 }).await {
                Ok(hello) => return Ok(hello),
                Err(error) => error,
            };
            let pause = if is_refusal(&error) { backoff.pause() } else { None };
            let Some(pause) = pause else { return Err(source_error(error)) };
            progress.wait_for(format!("a connection to {}: its server refuses it", self.name));
            tokio::time::sleep(pause).await;
            progress.go_on();
        }
    }

    /// Fails for a collection that does not exist: an empty table would hide a wrong name.
    async fn require(&self, collection: &str) -> Result<()> {
        let names = self.database().await?.list_collection_names().await;
        let names = match names.map_err(source_error) {
            Ok(names) => names,
            // A user who may read but not list.
            Err(error) if error.code() == ErrorCode::SourceDenied => return Ok(()),
            Err(error) => return Err(error),
        };
        if names.iter().any(|name| name == collection) {
            return Ok(());
        }
        let message = format!("database {} has no collection {collection}", self.database);
        let missing = Error::new(ErrorCode::SourceNotFound, message);
        Err(match nearest(collection, names.iter().map(String::as_str)) {
            Some(names) => missing.hint(format!("it has {names}")),
            None => missing.hint("see `polder discover` for what it has"),
        })
    }
}

#[async_trait]
impl Source for MongodbSource {
    fn capabilities(&self) -> Capabilities {
        Capabilities { cursor: true, objects: false, complete_schema: false }
    }

    async fn check(&self) -> Result<String> {
        let _open = self.line.wait_to_ask().await?;
        let database = self.database().await?;
        let info = database.run_command(doc! { "buildInfo": 1 }).await.map_err(source_error)?;
        let names = database.list_collection_names().await.map_err(source_error)?;
        let version = info.get_str("version").unwrap_or("of an unknown version");
        Ok(format!("MongoDB {version}, database {}: {} collections", self.database, names.len()))
    }

    async fn discover(&self) -> Result<Vec<SourceTable>> {
        let _open = self.line.wait_to_ask().await?;
        let database = self.database().await?;
        let found = database.list_collections().await.map_err(source_error)?;
        let mut found: Vec<_> = found.try_collect().await.map_err(source_error)?;
        found.retain(|collection| !collection.name.starts_with("system."));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.truncate(COLLECTIONS_MAX);
        let mut tables = Vec::with_capacity(found.len());
        for collection in found {
            let view = matches!(collection.collection_type, CollectionType::View);
            let documents = database.collection::<Document>(&collection.name);
            // Views have no count of their own.
            let rows = if view { None } else { documents.estimated_document_count().await.ok() };
            tables.push(SourceTable {
                name: collection.name,
                kind: if view { "view" } else { "collection" },
                schema: TableSchema::default(),
                key: vec![ID.to_owned()],
                cursors: Vec::new(),
                // Which columns there are is not known before all documents are read.
                mode: Mode::FullRefresh,
                rows_estimated: rows,
            });
        }
        Ok(tables)
    }

    fn named_in_sql(&self, schema: Option<&str>, table: &str) -> Option<String> {
        let ours = schema == Some(self.database.as_str()) && !table.contains("{org}");
        ours.then(|| table.to_owned())
    }

    async fn plan(&self, request: ReadRequest) -> Result<ReadPlan> {
        Ok(Box::pin(self.plan_all(&request)).await?.0)
    }

    async fn learn(&self, request: ReadRequest) -> Result<(ReadPlan, Option<Learnt>)> {
        let (plan, found) = Box::pin(self.plan_all(&request)).await?;
        // Columns that the request has made, or that are none, say nothing of the collection's.
        let untouched = request.cursor.is_none()
            && request.columns.is_none()
            && request.types.is_empty()
            && request.known_schema.is_none()
            && !plan.schema.fields.is_empty();
        let learnt = untouched.then(|| Learnt {
            schema: plan.schema.clone(),
            rows: plan.rows_estimated.unwrap_or(0),
            paths: found.paths(),
            found: Arc::new(found),
        });
        Ok((plan, learnt))
    }

    async fn plan_part(&self, part: PartRequest) -> Result<Option<PartPlan>> {
        let PartRequest { read: request, learnt, limit } = part;
        let Some(known) = learnt.found.downcast_ref::<Inference>() else { return Ok(None) };
        let Some(schema) = columns_of(&learnt.schema, request.columns.as_deref()) else {
            return Ok(None);
        };
        let asked = Asked::of(&request, known, limit)?;
        let options = InferenceOptions::of(&request);
        let Some(drained) = self.ask(&request, asked.question(), options).await? else {
            return Ok(None);
        };
        let wanted = request.columns.as_deref();
        let fits = known.covers(&drained.inference, wanted);
        // Of all documents, it can be told whether a column has no such values any more.
        if !fits || (asked.is_all && !drained.inference.covers(known, wanted)) {
            return Ok(None);
        }
        let rows = drained.spill.rows();
        request.progress.estimate(rows);
        let doubts = drained.snapshot.is_none().then_some(Doubt::NoSnapshot);
        let plan = ReadPlan {
            splits: document::splits(drained.spill, &schema, Dialect::Extended, &request),
            schema,
            snapshot: drained.snapshot,
            rows_estimated: Some(rows),
            cursor_ceiling: None,
            cursor_floor: None,
            key_is_unique: false,
            objects: BTreeMap::new(),
            doubts: doubts.into_iter().collect(),
            warnings: drained.warning.into_iter().collect(),
        };
        Ok(Some(PartPlan { plan, statement: asked.statement() }))
    }

    async fn answer(&self, request: AnswerRequest) -> Result<Option<Answer>> {
        Box::pin(answer::answer(self, &request)).await
    }

    /// Of what type a cursor is, only its documents tell.
    async fn doubts(&self, request: &ReadRequest) -> Result<Vec<Doubt>> {
        let mut doubts = Vec::new();
        if request.cursor.is_some() {
            doubts.extend(of_cursor(true));
        }
        let _open = self.line.wait(request).await?;
        let hello = self.hello(&request.progress).await?;
        let shards = hello.get_str("msg").is_ok_and(|text| text == "isdbgrid");
        let version = hello.get_i32("maxWireVersion").unwrap_or(0);
        let has_snapshots = (shards || hello.contains_key("setName")) && version >= SNAPSHOT_WIRE;
        doubts.extend((!has_snapshots).then_some(Doubt::NoSnapshot));
        Ok(doubts)
    }
}

/// What the server is asked of a part.
struct Asked {
    filter: Document,
    find: FindOptions,
    /// Whether no document is left out.
    is_all: bool,
}

impl Asked {
    fn of(request: &ReadRequest, known: &Inference, limit: Option<u64>) -> Result<Self> {
        let own = query::filter(request.filter.as_ref(), request.cursor.as_ref(), &request.org)?;
        // Values that are not sent would not be seen to be of another type.
        let is_read = |column: &&str| {
            request.columns.as_ref().is_none_or(|columns| columns.iter().any(|name| name == column))
        };
        let all_read = request.predicate.columns().iter().all(is_read);
        let pushed = if all_read { pushed::push(&request.predicate, known) } else { None };
        let mut find = FindOptions::default();
        find.projection = query::projection(request.columns.as_deref());
        find.limit = limit.and_then(|limit| i64::try_from(limit).ok());
        if pushed.as_ref().is_some_and(|pushed| pushed.has_texts) {
            find.collation = Some(Collation::builder().locale("simple").build());
        }
        let is_all = pushed.is_none() && find.limit.is_none();
        let filter = match pushed {
            None => own,
            Some(pushed) if own.is_empty() => pushed.filter,
            Some(pushed) => doc! { "$and": [own, pushed.filter] },
        };
        Ok(Self { filter, find, is_all })
    }

    fn question(&self) -> Question {
        Question::Find { filter: self.filter.clone(), options: Box::new(self.find.clone()) }
    }

    /// In the words of the server's `find`.
    fn statement(&self) -> String {
        let mut said = doc! { "filter": self.filter.clone() };
        if let Some(projection) = &self.find.projection {
            said.insert("projection", projection.clone());
        }
        if let Some(limit) = self.find.limit {
            said.insert("limit", limit);
        }
        if self.find.collation.is_some() {
            said.insert("collation", doc! { "locale": "simple" });
        }
        format!("find={}", Bson::Document(said).into_relaxed_extjson())
    }
}

/// These columns of a schema, in this order; `None` if one is not there.
fn columns_of(schema: &TableSchema, columns: Option<&[String]>) -> Option<TableSchema> {
    let Some(columns) = columns else { return Some(schema.clone()) };
    let fields = columns.iter().map(|name| schema.field(name).cloned());
    Some(TableSchema::new(fields.collect::<Option<_>>()?))
}

impl MongodbSource {
    /// Asks the server; `None` if it refuses the question.
    async fn ask(
        &self,
        request: &ReadRequest,
        question: Question,
        options: InferenceOptions,
    ) -> Result<Option<Drained>> {
        request.progress.enter(Stage::Inferring);
        let _open = self.line.wait(request).await?;
        self.hello(&request.progress).await?;
        let collection = query::collection(&request.from, &request.org)?;
        self.require(&collection).await?;
        let read = drain::Read {
            client: self.client().await?.clone(),
            documents: self.database().await?.collection(&collection),
            question,
            options,
            progress: request.progress.clone(),
        };
        match read.run_in_time().await {
            Ok(drained) => Ok(drained),
            // A view with a collation of its own takes no other one; a server may lack an operator, or time.
            Err(error) if error.code() == ErrorCode::SourceFailed => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the collection has no collation; false where that cannot be found out.
    async fn compares_bytes(&self, request: &ReadRequest) -> Result<bool> {
        let _open = self.line.wait(request).await?;
        let collection = query::collection(&request.from, &request.org)?;
        let database = self.database().await?;
        let found = database.list_collections().filter(doc! { "name": collection }).await;
        let found: Vec<_> = match found {
            Ok(found) => found.try_collect().await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        Ok(found.first().is_some_and(|found| found.options.collation.is_none()))
    }

    /// Plans a read of all documents that the request means, and what they have told.
    async fn plan_all(&self, request: &ReadRequest) -> Result<(ReadPlan, Inference)> {
        let collection = query::collection(&request.from, &request.org)?;
        let filter = query::filter(request.filter.as_ref(), request.cursor.as_ref(), &request.org)?;
        names::each_once(request.columns.as_deref())?;
        query::check_cursor(request.cursor.as_ref(), request.columns.as_deref())?;
        let mut find = FindOptions::default();
        find.projection = query::projection(request.columns.as_deref());
        request.progress.enter(Stage::Inferring);
        // Until all documents are read: the splits need no server.
        let _open = self.line.wait(request).await?;
        // Its time is taken before the first document is: what arrives later is the next read's.
        let hello = self.hello(&request.progress).await?;
        let server_time = hello.get_datetime("localTime").ok().copied();
        self.require(&collection).await?;
        let documents = self.database().await?.collection(&collection);
        if filter.is_empty() {
            request.progress.estimate(documents.estimated_document_count().await.unwrap_or(0));
        }
        let read = drain::Read {
            client: self.client().await?.clone(),
            documents,
            question: Question::Find { filter, options: Box::new(find) },
            options: InferenceOptions::of(request),
            progress: request.progress.clone(),
        };
        let drained = read.run().await?;
        let (schema, mut warnings) = drained.inference.finish()?;
        if let Some(range) = &request.cursor {
            follow(range, &schema, &drained.inference)?;
        }
        warnings.extend(drained.warning);
        let rows = drained.spill.rows();
        request.progress.estimate(rows);
        let ceiling = server_time.and_then(|time| {
            ceiling(&schema, request.cursor.as_ref()?.column.as_str(), time.timestamp_millis())
        });
        let key_is_unique = request.key.iter().any(|column| column == ID)
            && schema.field(ID).is_some_and(is_one_kind);
        let mut doubts = Vec::new();
        if request.cursor.is_some() {
            doubts.extend(of_cursor(ceiling.is_some()));
            let ambiguous = !key_is_unique && !request.key.is_empty();
            doubts.extend(ambiguous.then_some(Doubt::KeyNotUnique));
        }
        doubts.extend(drained.snapshot.is_none().then_some(Doubt::NoSnapshot));
        let plan = ReadPlan {
            splits: document::splits(drained.spill, &schema, Dialect::Extended, request),
            schema,
            snapshot: drained.snapshot,
            rows_estimated: Some(rows),
            cursor_ceiling: ceiling,
            cursor_floor: None,
            key_is_unique,
            objects: BTreeMap::new(),
            doubts,
            warnings,
        };
        Ok((plan, drained.inference))
    }
}

/// Whoever writes a document sets all of its members, its `_id` too: an `ObjectId` starts with the time of
/// the client's clock. Documents without the cursor are not read again once there is a bound.
fn of_cursor(tells_time: bool) -> [Doubt; 2] {
    let order = if tells_time { Doubt::ApplicationClock } else { Doubt::UnorderedCursor };
    [order, Doubt::ChangesUnstamped]
}

/// Whether all values of `_id` are of one BSON type, so that none are equal in the lake: a text may
/// stand for values of several.
fn is_one_kind(id: &Field) -> bool {
    let plain = matches!(id.data_type, LakeType::Int | LakeType::Long | LakeType::Uuid);
    plain || id.text_of == Some(TextOf::ObjectId)
}

/// Fails where the next read could not find what is new by the cursor.
fn follow(range: &CursorRange, schema: &TableSchema, inference: &Inference) -> Result<()> {
    let Some(field) = schema.field(&range.column) else { return Ok(()) };
    if inference.is_ordered(field, range.lower.as_ref()) {
        return Ok(());
    }
    let message = format!("column {:?} cannot be a cursor", field.name);
    Err(Error::new(ErrorCode::SpecInvalid, message)
        .detail(format!(
            "it is read as {}, from values that MongoDB does not compare with each other",
            field.data_type
        ))
        .hint(
            "use a column that has integers, dates, texts or ObjectIds in every document, and \
             nothing else",
        ))
}

/// The cursor value at `millis` less the lag, for cursors that tell time.
fn ceiling(schema: &TableSchema, cursor: &str, millis: i64) -> Option<CursorValue> {
    let field = schema.field(cursor)?;
    let micros = millis.saturating_mul(1000).saturating_sub(ARRIVAL_LAG_MICROS);
    match (&field.data_type, field.text_of) {
        (LakeType::Timestamptz, _) => Some(CursorValue::Timestamptz(micros)),
        (LakeType::Timestamp, _) => Some(CursorValue::Timestamp(micros)),
        (LakeType::Date, _) => {
            i32::try_from(micros.div_euclid(86_400_000_000)).ok().map(CursorValue::Date)
        }
        // An ObjectId starts with the seconds of its client's clock.
        (LakeType::String, Some(TextOf::ObjectId)) => {
            let seconds = u32::try_from(micros.div_euclid(1_000_000)).ok()?;
            Some(CursorValue::Text(format!("{seconds:08x}{:016}", 0)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cursors_that_tell_time_have_a_ceiling() {
        let schema = TableSchema::new(vec![
            Field::new("at", LakeType::Timestamptz),
            Field::text("_id", TextOf::ObjectId),
            Field::new("local", LakeType::Timestamp),
            Field::new("day", LakeType::Date),
            Field::new("n", LakeType::Long),
        ]);
        let at = |column| ceiling(&schema, column, 1_700_000_300_000);
        assert_eq!(at("at"), Some(CursorValue::Timestamptz(1_700_000_000_000_000)));
        assert_eq!(at("_id"), Some(CursorValue::Text("6553f1000000000000000000".into())));
        assert_eq!(at("local"), Some(CursorValue::Timestamp(1_700_000_000_000_000)));
        assert_eq!(at("day"), Some(CursorValue::Date(19_675)));
        assert_eq!(at("n"), None);
        assert_eq!(at("missing"), None);
    }
}
