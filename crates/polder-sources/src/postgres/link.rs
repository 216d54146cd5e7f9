//! A connection to a server, whomever it serves.
//!
//! Who may open one, and for how long, is not known here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::{CancelToken, Client, Statement};

use super::names::literal;
use super::tls::{self, Connector};

/// How long an abandoned session may take to cancel its statement and say goodbye.
pub(super) const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
/// Statements that a session keeps prepared.
const STATEMENTS_MAX: usize = 64;
/// What a session has of one read, which the next must not have: all that `DISCARD ALL` takes away but prepared
/// statements. On servers older than the fix of CVE-2024-10978 only `RESET ROLE` brings back a login's own role.
const RESET: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; \
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
    SET application_name = 'polder'";

/// One connection.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) task: JoinSet<()>,
    /// The server's version as it says it.
    pub(super) version: String,
    pub(super) connector: Connector,
    /// `None` where the driver keeps the connection to itself.
    pub(super) handle: Option<tls::Handle>,
    /// By their text.
    pub(super) statements: Mutex<HashMap<String, Statement>>,
    pub(super) opened: Instant,
}

impl Link {
    /// Makes it a session of this name.
    pub(super) async fn serve(&self, application: &str) -> Result<(), tokio_postgres::Error> {
        let name = literal(application);
        self.client.batch_execute(&format!("SET application_name = {name}")).await
    }

    /// Takes away what a session had; `in_transaction`: the transaction too.
    pub(super) async fn reset(&self, in_transaction: bool) -> Result<(), tokio_postgres::Error> {
        // Without one the server would note a warning.
        let end = if in_transaction { "ROLLBACK; " } else { "" };
        self.client.batch_execute(&format!("{end}{RESET}")).await
    }

    /// For statements of which there are few.
    pub(super) async fn prepared(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let statements = || self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = statements().get(sql) {
            return Ok(known.clone());
        }
        let statement = self.client.prepare(sql).await?;
        let mut statements = statements();
        if statements.len() < STATEMENTS_MAX {
            statements.insert(sql.to_owned(), statement.clone());
        }
        Ok(statement)
    }

    /// Ends the connection, and waits for it.
    pub(super) async fn close(self) {
        farewell(self, None).await;
    }
}

/// Cancels what runs, says goodbye and waits for the connection to end.
pub(super) async fn farewell(link: Link, cancel: Option<(CancelToken, Connector)>) {
    let Link { client, mut task, statements, .. } = link;
    let goodbye = async {
        if let Some((token, connector)) = cancel {
            // A failure here means that the server is gone, or that the statement just ended.
            token.cancel_query(connector).await.ok();
        }
        drop((client, statements));
        while task.join_next().await.is_some() {}
    };
    // After the timeout the task is aborted, which closes the socket.
    tokio::time::timeout(FAREWELL_TIMEOUT, goodbye).await.ok();
}
