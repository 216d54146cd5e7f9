//! The PostgreSQL source: `COPY … (FORMAT binary)` over one snapshot, decoded straight into Arrow.
//!
//! A read is planned over one session, which takes a lock and then a snapshot; each further split
//! imports that snapshot into a session of its own and reads a range of blocks. Every column is
//! read exactly or refused (`on_unrepresentable`). Nothing is written to the source: transactions
//! are read only. Checkpoints, retries and batches' destinations are not known here.
//!
//! | module | what it knows |
//! |---|---|
//! | `names`, `filter`, `predicate` | what may be put into SQL text, and how |
//! | `connect`, `link`, `resting`, `tls`, `tap`, `failure` | sessions, TLS, who reads the wire, errors |
//! | `catalog`, `discover` | the server's tables, columns and types |
//! | `columns` | PostgreSQL types → lake types |
//! | `cursor`, `horizon` | the bound of an incremental read, and how far it may move |
//! | `transactions` | `cursor: xmin`: by the transactions that wrote the rows |
//! | `doubts` | what sets the cursor's values, and who may see it |
//! | `plan`, `select`, `read`, `spares` | snapshot, splits, batches, sessions when one breaks |
//! | `answer`, `relational` | parts of queries that the server answers by itself |
//! | `handover` | the statement of a read that Trino carries out |
//! | `digest`, `words` | digests that the server computes, for validation |
//! | `frame`, `decode`, `bytes`, `numeric`, `written` | COPY's binary form |

mod answer;
mod bytes;
mod catalog;
mod columns;
mod connect;
mod cursor;
mod decode;
mod digest;
mod discover;
mod doubts;
mod failure;
mod filter;
mod frame;
mod handover;
mod horizon;
mod link;
mod names;
mod numeric;
mod plan;
mod predicate;
mod read;
mod relational;
mod resting;
mod select;
mod spares;
mod tap;
mod times;
mod tls;
mod trace;
mod transactions;
mod versions;
mod words;
mod written;

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use polder_core::{
    Answer, AnswerRequest, Capabilities, DigestRequest, Digests, Doubt, Error, ErrorCode, Handover,
    ReadPlan, ReadRequest, Result, Source, SourceTable,
};
use secrecy::SecretString;

pub use self::connect::Place;
pub(crate) use self::resting::Resting;

use self::connect::Server;
use crate::connections::{Connections, Line};

/// A PostgreSQL database, version 13 or later.
///
/// A read holds one connection for each of its splits, `splits_max` at most and no more than may be open,
/// from its plan on until the split is read or dropped; one of them until all are, in case another breaks. Each shows
/// the application name `polder/<org>`. One whose split is read rests for a moment, as `polder`, for the next read.
pub struct PostgresSource {
    server: Server,
}

impl PostgresSource {
    /// Takes the address `postgres://user:password@host:port/database?sslmode=…`; nothing is
    /// connected yet. `name` is the source's name in the configuration, for messages.
    ///
    /// `sslmode` is `prefer` (the default: encrypts if the server can, whoever it is), `disable`,
    /// `require` or `verify-full`. The last two are the same here: the certificate has to be signed
    /// by one of Mozilla's roots, or by one in the file that `sslrootcert` names, for the host.
    ///
    /// # Errors
    /// `spec.invalid` when the address cannot be read; it is never repeated.
    #[expect(clippy::needless_pass_by_value, reason = "a secret is handed over, not kept around")]
    pub fn open(name: &str, url: SecretString) -> Result<Self> {
        Server::new(name, &url).map(|server| Self { server })
    }

    /// The same with its connections among those of the process, `max` of them at most.
    #[must_use]
    pub fn within(self, connections: &Arc<Connections>, max: Option<NonZeroU32>) -> Self {
        let line = Line::new(self.server.name(), connections, max);
        Self { server: self.server.within(line) }
    }

    /// What of the address is no secret, for systems that connect by themselves.
    pub fn place(&self) -> Place {
        self.server.place()
    }
}

impl PostgresSource {
    fn of_table(&self, error: Error, from: &str) -> Error {
        match error.detail_text() {
            Some(_) => error,
            None => error.detail(format!("source {}, from {from}", self.server.name())),
        }
    }
}

#[async_trait]
impl Source for PostgresSource {
    fn capabilities(&self) -> Capabilities {
        Capabilities { cursor: true, objects: false, complete_schema: true }
    }

    async fn check(&self) -> Result<String> {
        let session = self.server.session_to_ask().await?;
        let found = format!("PostgreSQL {} at {}", session.version, self.server.address(None));
        session.close().await;
        Ok(found)
    }

    async fn discover(&self) -> Result<Vec<SourceTable>> {
        let session = self.server.session_to_ask().await?;
        let tables = discover::tables(&session).await;
        session.close().await;
        tables
    }

    fn named_in_sql(&self, schema: Option<&str>, table: &str) -> Option<String> {
        names::from_of(schema?, table)
    }

    /// Fixes a snapshot. The sessions that hold it are closed as their splits are read or dropped;
    /// until then the server cannot clean up rows that were deleted since.
    async fn plan(&self, request: ReadRequest) -> Result<ReadPlan> {
        let plan = Box::pin(plan::plan(&self.server, &request)).await;
        plan.map_err(|error| self.of_table(error, &request.from))
    }

    /// Holds one session, its lock and its snapshot until the table is released.
    async fn hand_over(&self, request: ReadRequest) -> Result<Handover> {
        let handover = Box::pin(handover::hand_over(&self.server, &request)).await;
        handover.map_err(|error| self.of_table(error, &request.from))
    }

    async fn doubts(&self, request: &ReadRequest) -> Result<Vec<Doubt>> {
        let doubts = Box::pin(doubts::doubts(&self.server, request)).await;
        doubts.map_err(|error| self.of_table(error, &request.from))
    }

    /// Holds one session and its snapshot until the digests are dropped.
    async fn digest(&self, request: DigestRequest) -> Result<Option<Box<dyn Digests>>> {
        let digests = Box::pin(digest::digests(&self.server, &request)).await;
        digests.map_err(|error| self.of_table(error, &request.read.from))
    }

    /// Holds one session and its snapshot until the split is read or dropped.
    async fn answer(&self, request: AnswerRequest) -> Result<Option<Answer>> {
        match Box::pin(answer::answer(&self.server, &request)).await {
            // Not a statement for this server; its tables can be read all the same.
            Err(error) if error.code() != ErrorCode::SourceUnavailable => {
                tracing::debug!(code = ?error.code(), "a part of a query is not pushed down");
                Ok(None)
            }
            answer => answer,
        }
    }
}
