//! The seam to SQL engines.

use std::pin::Pin;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use futures::Stream;

use crate::{Principal, Result};

/// For whom and within which limits a query runs.
#[derive(Clone, Debug)]
pub struct Session {
    /// Decides which orgs' namespaces exist for the query.
    pub principal: Principal,
    /// The most rows to return; more is an error of code `query.limit`. `None`: no limit.
    pub rows_max: Option<u64>,
    /// Bytes of memory the query's operators may hold.
    pub memory_bytes_max: usize,
}

/// The rows of a query. Dropping it cancels the query.
pub struct QueryStream {
    pub schema: SchemaRef,
    pub batches: Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>,
}

/// Something that answers SQL.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Plans and starts one read-only statement.
    ///
    /// # Errors
    /// `query.invalid` for SQL that cannot be planned or that is not a query; `lake.not_found` for a
    /// snapshot or tag that does not exist.
    async fn query(&self, sql: &str, session: &Session) -> Result<QueryStream>;
}
