//! Connections: the address, TLS, and sessions that end in an orderly way.
//!
//! What is asked over a session is not decided here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use polder_core::{Error, ErrorCode, OrgId, ReadRequest, Result, RunProgress};
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::ToSql;
use tokio_postgres::{CancelToken, Client, Config, Row, SimpleQueryMessage};

use super::failure;
use super::tls::{self, Connector, CopyBytes};
use crate::backoff::Backoff;
use crate::connections::{Connection, Connections, Line};

/// The application name of sessions that serve no org.
const APPLICATION: &str = "polder";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an abandoned session may take to cancel its statement and say goodbye.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
/// When a silent connection is asked whether it still lives, how often again, and how often in vain.
const KEEPALIVE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 6;
/// How long bytes we sent may go unacknowledged: the same for a connection that is not silent.
const UNACKNOWLEDGED: Duration = Duration::from_mins(2);
/// The oldest server spoken to: the oldest one PostgreSQL still maintains.
const VERSION_MIN: u32 = 13;

/// A server's address and how to reach it. Nothing is connected yet.
pub(super) struct Server {
    /// The source's name, for messages.
    name: String,
    config: Config,
    connector: Connector,
    line: Line,
    farewells: Arc<Farewells>,
}

/// A server's address without its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `host:port/database`.
    pub address: String,
    pub user: Option<String>,
    /// Whether the address has a password.
    pub password: bool,
    /// Whether the connection has to be encrypted, with a certificate of the host's name.
    pub verified: bool,
}

impl Server {
    /// Reads `postgres://user:password@host:port/database?sslmode=…` or the keyword form.
    ///
    /// `sslmode`: `disable`; `prefer` (the default) encrypts if the server can, without knowing who
    /// it is, as libpq does; `require`, and its synonym `verify-full`, demand a certificate for the
    /// host's name signed by one of Mozilla's roots or, with `sslrootcert=FILE` (PEM), by one of
    /// that file's. An unverified `require`, as libpq has it, is not offered.
    ///
    /// # Errors
    /// `spec.invalid`, without repeating any of the address, which may hold a password, whole or in
    /// part: the driver ends user and password at the first `@`.
    pub(super) fn new(name: &str, url: &SecretString) -> Result<Self> {
        let (url, root_file) = own_parameters(url.expose_secret());
        let invalid = |what: &str| {
            Error::new(ErrorCode::SpecInvalid, format!("the address of source {name} {what}")).hint(
                "write postgres://user:password@host:port/database, percent-encode special \
                 characters in user and password; parameters known: sslmode (disable, prefer, \
                 require, verify-full), sslrootcert, connect_timeout, options and the other \
                 keywords of tokio-postgres",
            )
        };
        let mut config: Config =
            url.parse().map_err(|_: tokio_postgres::Error| invalid("cannot be read"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(invalid("names no host"));
        }
        if at_in_host(&url, &config) {
            return Err(invalid("has an @ where the host begins")
                .hint("write an @ in user or password as %40"));
        }
        patience(&mut config, &url);
        let connector = Connector::new(&mut config, root_file.as_deref())?;
        let line = Line::new(name, &Connections::new(), None);
        Ok(Self { name: name.to_owned(), config, connector, line, farewells: Arc::default() })
    }

    /// The same with its connections among those of the process.
    pub(super) fn within(self, line: Line) -> Self {
        Self { line, ..self }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where the server is and who calls, for other systems' configurations.
    pub(super) fn place(&self) -> Place {
        let must = self.connector.asks_for().unwrap_or(self.config.get_ssl_mode());
        Place {
            address: self.address(None),
            user: self.config.get_user().map(str::to_owned),
            password: self.config.get_password().is_some(),
            verified: must == SslMode::Require,
        }
    }

    /// `host:port/database`, for messages.
    pub(super) fn address(&self, database: Option<&str>) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            #[cfg(unix)]
            Some(Host::Unix(path)) => path.display().to_string(),
            None => {
                self.config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default()
            }
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let database = database.or(self.config.get_dbname()).or(self.config.get_user());
        format!("{host}:{port}/{}", database.unwrap_or_default())
    }

    /// Opens the session that a read begins with, in `database` or in the one of the address. Waits
    /// until it may be open; a server that has no connection left is asked again for a while.
    ///
    /// # Errors
    /// `source.unavailable`, `source.denied`, or `source.not_found` for an unknown database.
    pub(super) async fn session(
        &self,
        database: Option<&str>,
        request: &ReadRequest,
    ) -> Result<Session> {
        let open = self.line.wait(request).await?;
        let application = application(&request.org);
        self.connect(database, &application, open, Some(&request.progress)).await
    }

    /// Opens a further session for a read that has one; `None` if no further one may be open now.
    pub(super) async fn another(
        &self,
        database: Option<&str>,
        request: &ReadRequest,
    ) -> Option<Result<Session>> {
        let open = self.line.another(request)?;
        Some(self.connect(database, &application(&request.org), open, None).await)
    }

    /// Opens a session that serves no org's read.
    ///
    /// # Errors
    /// As [`Self::session`].
    pub(super) async fn session_to_ask(&self) -> Result<Session> {
        let open = self.line.wait_to_ask().await?;
        self.connect(None, APPLICATION, open, None).await
    }

    /// `patient`: told while the server has no connection left; without it that is an error at once.
    async fn connect(
        &self,
        database: Option<&str>,
        application: &str,
        open: Connection,
        patient: Option<&RunProgress>,
    ) -> Result<Session> {
        let mut config = self.config.clone();
        config.application_name(application);
        if let Some(database) = database {
            config.dbname(database);
        }
        let place = self.address(database);
        // The driver's own timeout ends with the socket: a server may accept and say nothing.
        let timeout = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        let timeout = timeout * (config.get_hosts().len().max(1) as u32 + 1);
        let mut backoff = Backoff::default();
        let (client, connection, connector) = loop {
            let connector = self.connector.anew();
            let connected = tokio::time::timeout(timeout, config.connect(connector.clone())).await;
            let error = match connected {
                Ok(Ok((client, connection))) => break (client, connection, connector),
                Ok(Err(error)) => error,
                Err(_) => return Err(failure::silent(&self.name, &place, timeout)),
            };
            let pause = patient.filter(|_| failure::is_full(&error)).zip(backoff.pause());
            let Some((progress, pause)) = pause else {
                return Err(failure::connecting(&error, &self.name, &place));
            };
            progress.wait_for(format!("a connection to {}: its server has none left", self.name));
            tokio::time::sleep(pause).await;
            progress.go_on();
        };
        let version = connection.parameter("server_version").unwrap_or_default().to_owned();
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(sqlstate = ?error.code(), "a PostgreSQL connection ended early");
            }
        });
        let session = Session {
            live: Some(Live { client, task, busy: false, open }),
            major: major(&version),
            version,
            place,
            handle: connector.handle(),
            connector,
            farewells: Arc::clone(&self.farewells),
            runtime: Handle::current(),
        };
        session.supported()?;
        if let Some(database) = database {
            session.is_in(database).await?;
        }
        Ok(session)
    }
}

/// The application name of an org's sessions.
fn application(org: &OrgId) -> String {
    format!("polder/{org}")
}

/// Whether a part of the password may have been taken for the host or the database. Neither has an
/// `@` of its own: a database's would be `%40` in a URL.
fn at_in_host(url: &str, config: &Config) -> bool {
    let after = url.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
    let in_url = after
        .is_some_and(|(_, rest)| rest.split('?').next().is_some_and(|rest| rest.contains('@')));
    in_url || config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(h) if h.contains('@')))
}

/// Sets what the address leaves open: how long to wait for a server that says nothing.
fn patience(config: &mut Config, url: &str) {
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    // The driver does not tell its default from what the address says.
    if !url.contains("keepalives_idle") {
        config.keepalives_idle(KEEPALIVE);
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(KEEPALIVE_INTERVAL);
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(KEEPALIVE_RETRIES);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(UNACKNOWLEDGED);
    }
}

/// `15` of `15.14 (Debian …)` and `19` of `19devel`.
fn major(version: &str) -> u32 {
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Takes out of a URL what the driver does not know: `sslrootcert`, and `verify-full` for `require`.
fn own_parameters(url: &str) -> (String, Option<String>) {
    let Some((base, query)) = url.rsplit_once('?').filter(|_| url.contains("://")) else {
        return (url.to_owned(), None);
    };
    let mut roots = None;
    let mut rest = Vec::new();
    for parameter in query.split('&') {
        match parameter.split_once('=') {
            Some(("sslrootcert", file)) => roots = Some(percent_decoded(file)),
            Some(("sslmode", "verify-full")) => rest.push("sslmode=require"),
            _ => rest.push(parameter),
        }
    }
    (format!("{base}?{}", rest.join("&")), roots)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One connection. Dropping it cancels the statement that runs on it, if any, and closes it.
pub(super) struct Session {
    /// `None` only while the session is being taken apart.
    live: Option<Live>,
    /// The server's version as it says it: `15.14 (Debian …)`.
    pub(super) version: String,
    pub(super) major: u32,
    place: String,
    connector: Connector,
    /// `None` where the driver keeps the connection to itself.
    handle: Option<tls::Handle>,
    farewells: Arc<Farewells>,
    runtime: Handle,
}

struct Live {
    client: Client,
    task: JoinSet<()>,
    busy: bool,
    /// Given back when the connection has ended.
    open: Connection,
}

impl Session {
    /// The client to ask with.
    ///
    /// # Errors
    /// `internal` after the session was closed, which no caller can do.
    pub(super) fn client(&self) -> Result<&Client> {
        let live = self.live.as_ref();
        live.map(|live| &live.client)
            .ok_or_else(|| Error::new(ErrorCode::Internal, "the PostgreSQL session is closed"))
    }

    /// Takes the content of the next COPY away from the driver, where that can be. To be called before
    /// the statement is sent.
    pub(super) fn take_copy(&self) -> Option<CopyBytes> {
        self.handle.as_ref().map(tls::Handle::take_copy)
    }

    /// Whether a statement runs that has to be cancelled when the session is dropped.
    pub(super) fn set_busy(&mut self, busy: bool) {
        if let Some(live) = &mut self.live {
            live.busy = busy;
        }
    }

    /// Starts the transaction in which a table is read, with settings that hold for it alone: a
    /// pooler in between hands the server's session on to others.
    ///
    /// Takes no snapshot yet.
    pub(super) async fn begin(&self) -> Result<()> {
        let mut sql = String::from(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL TimeZone = 'UTC'; \
             SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'; \
             SET LOCAL extra_float_digits = 3; SET LOCAL standard_conforming_strings = on; \
             SET LOCAL bytea_output = 'hex'; SET LOCAL client_encoding = 'UTF8'; \
             SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; \
             SET LOCAL idle_in_transaction_session_timeout = 0",
        );
        if self.major >= 17 {
            sql.push_str("; SET LOCAL transaction_timeout = 0");
        }
        self.run(&sql, "beginning a transaction").await?;
        // Notices a client that was killed even while nothing is being sent. Servers on systems
        // that cannot tell refuse the setting.
        self.attempt("SET LOCAL client_connection_check_interval = '10s'").await
    }

    /// Runs a statement whose failure does not matter to the transaction it is part of.
    async fn attempt(&self, sql: &str) -> Result<()> {
        let doing = "beginning a transaction";
        let tried = format!("SAVEPOINT polder; {sql}; RELEASE SAVEPOINT polder");
        match self.run(&tried, doing).await {
            Err(error) if error.code() != ErrorCode::SourceUnavailable => {
                let undo = "ROLLBACK TO SAVEPOINT polder; RELEASE SAVEPOINT polder";
                self.run(undo, doing).await
            }
            done => done,
        }
    }

    /// The first column of the first row, as text; `None` for null and without a row.
    pub(super) async fn text(&self, sql: &str, doing: &str) -> Result<Option<String>> {
        let asked = self.client()?.simple_query(sql).await;
        let messages = asked.map_err(|error| self.failed(&error, doing))?;
        Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(ToOwned::to_owned),
            _ => None,
        }))
    }

    /// Runs statements that return nothing. `doing` says what for, for messages.
    pub(super) async fn run(&self, sql: &str, doing: &str) -> Result<()> {
        let done = self.client()?.batch_execute(sql).await;
        done.map_err(|error| failure::asking(&error, doing, &self.place))
    }

    /// The rows that `sql` returns. `doing` says what for, for messages.
    pub(super) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        doing: &str,
    ) -> Result<Vec<Row>> {
        let rows = self.client()?.query(sql, parameters).await;
        rows.map_err(|error| self.failed(&error, doing))
    }

    /// The one row that `sql` returns.
    pub(super) async fn row(&self, sql: &str, doing: &str) -> Result<Row> {
        let row = self.client()?.query_one(sql, &[]).await;
        row.map_err(|error| self.failed(&error, doing))
    }

    /// Turns the driver's error into ours. `doing` says what was asked for.
    pub(super) fn failed(&self, error: &tokio_postgres::Error, doing: &str) -> Error {
        failure::asking(error, doing, &self.place)
    }

    /// Ends the transaction and the connection, and waits for both.
    pub(super) async fn close(mut self) {
        if let Some(live) = self.live.take() {
            farewell(live, None).await;
        }
    }

    fn supported(&self) -> Result<()> {
        if self.major >= VERSION_MIN {
            return Ok(());
        }
        let message = format!("PostgreSQL {} is too old", self.version);
        Err(Error::new(ErrorCode::SourceFailed, message)
            .detail(self.place.clone())
            .hint(format!("version {VERSION_MIN} is the oldest that can be read")))
    }

    /// Makes sure that the server did not cut the database's name short (as servers before 17 do),
    /// which could lead into another org's database.
    async fn is_in(&self, database: &str) -> Result<()> {
        let sql = "SELECT current_database()::text";
        let row = self.row(sql, "asking for the database's name").await?;
        if row.get::<_, &str>(0) == database {
            return Ok(());
        }
        Err(Error::new(ErrorCode::SourceNotFound, format!("there is no database {database:?}"))
            .detail(self.place.clone())
            .hint("PostgreSQL's names have at most 63 bytes"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            let cancel = live.busy.then(|| live.client.cancel_token());
            let work = farewell(live, cancel.map(|token| (token, self.connector.anew())));
            self.farewells.add(work, &self.runtime);
        }
    }
}

/// Cancels what runs, says goodbye and waits for the connection to end.
async fn farewell(live: Live, cancel: Option<(CancelToken, Connector)>) {
    let Live { client, mut task, open, .. } = live;
    let goodbye = async {
        if let Some((token, connector)) = cancel {
            // A failure here means that the server is gone, or that the statement just ended.
            token.cancel_query(connector).await.ok();
        }
        drop(client);
        while task.join_next().await.is_some() {}
    };
    // After the timeout the task is aborted, which closes the socket.
    tokio::time::timeout(FAREWELL_TIMEOUT, goodbye).await.ok();
    drop(task);
    drop(open);
}

/// The tasks that close abandoned sessions, owned by the source.
#[derive(Default)]
struct Farewells(Mutex<JoinSet<()>>);

impl Farewells {
    fn add(&self, work: impl Future<Output = ()> + Send + 'static, runtime: &Handle) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(work, runtime);
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn server(url: &str) -> Result<Server> {
        Server::new("revdb", &SecretString::from(url))
    }

    #[test]
    fn an_address_that_cannot_be_read_is_not_repeated() {
        for url in ["postgres://u:hunter2@h:x/db", "nonsense hunter2", "postgres:///?hunter2=1", ""]
        {
            let error = server(url).err().expect(url);
            assert_eq!(error.code(), ErrorCode::SpecInvalid);
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }

    #[test]
    fn no_part_of_a_password_becomes_the_host() {
        for url in [
            "postgres://u:p@hunter2@db/x",
            "postgresql://u:p@hunter2/w@db/x",
            "postgres://u:p@a,hunter2@db:5432/x?sslmode=disable",
            "postgres://u:p@db/x?host=p@hunter2",
            "host=p@hunter2 user=u",
        ] {
            let error = server(url).err().expect(url);
            assert_eq!(error.code(), ErrorCode::SpecInvalid);
            assert!(error.hint_text().expect("hint").contains("%40"));
            assert!(!format!("{error:?}").contains("hunter2"));
        }
        let server = server("postgres://u%40x:p%40ss@db/x?options=-c%20a=b@c").expect("url");
        assert_eq!(server.address(None), "db:5432/x");
    }

    #[test]
    fn patience_is_ours_unless_the_address_says_otherwise() {
        let own = server("postgres://h/d").expect("url").config;
        assert_eq!(own.get_keepalives_idle(), KEEPALIVE);
        assert_eq!(own.get_keepalives_interval(), Some(KEEPALIVE_INTERVAL));
        assert_eq!(own.get_keepalives_retries(), Some(KEEPALIVE_RETRIES));
        assert_eq!(own.get_tcp_user_timeout(), Some(&UNACKNOWLEDGED));
        let url = "postgres://h/d?keepalives_idle=7200&keepalives_interval=3&keepalives_retries=2\
                   &tcp_user_timeout=5";
        let said = server(url).expect("url").config;
        assert_eq!(said.get_keepalives_idle(), Duration::from_hours(2));
        assert_eq!(said.get_keepalives_interval(), Some(Duration::from_secs(3)));
        assert_eq!(said.get_keepalives_retries(), Some(2));
        assert_eq!(said.get_tcp_user_timeout(), Some(&Duration::from_secs(5)));
    }

    #[test]
    fn versions_in_the_making_count_too() {
        let cases =
            [("15.14 (Debian 15.14-1)", 15), ("18beta1", 18), ("17rc1", 17), ("19devel", 19)];
        for (version, expected) in cases {
            assert_eq!(major(version), expected);
        }
        assert_eq!(major(""), 0);
    }

    #[test]
    fn the_address_shown_holds_no_password() {
        let server = server("postgres://u:hunter2@h:5433/db?sslmode=verify-full").expect("url");
        assert_eq!(server.address(None), "h:5433/db");
        assert_eq!(server.address(Some("other")), "h:5433/other");
        assert_eq!(server.connector.asks_for(), Some(SslMode::Require));
    }

    #[test]
    fn own_parameters_are_taken_out() {
        let (url, roots) =
            own_parameters("postgres://h/d?sslrootcert=%2Fa%20b.pem&sslmode=require");
        assert_eq!(
            (url.as_str(), roots.as_deref()),
            ("postgres://h/d?sslmode=require", Some("/a b.pem"))
        );
        let error = server("postgres://h/d?sslrootcert=/nowhere.pem").err().expect("no such file");
        assert!(error.hint_text().expect("hint").contains("PEM"));
    }
}
