//! Connections: the address, TLS, and sessions that end in an orderly way.
//!
//! What is asked over a session is not decided here.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use polder_core::{Error, ErrorCode, OrgId, ReadRequest, Result, RunProgress};
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Row, SimpleQueryMessage};

use super::link::{FAREWELL_TIMEOUT, Link, farewell};
use super::resting::{Home, Resting};
use super::tls::{Connector, CopyBytes};
use super::{failure, tls};
use crate::backoff::Backoff;
use crate::connections::{Connection, Connections, Line};

/// The application name of sessions that serve no org.
const APPLICATION: &str = "polder";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// When a silent connection is asked whether it still lives, how often again, and how often in vain.
const KEEPALIVE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 6;
/// How long bytes we sent may go unacknowledged: the same for a connection that is not silent.
const UNACKNOWLEDGED: Duration = Duration::from_mins(2);
/// How long a session that rested may take to say that it still lives.
const AGAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a server may take to note that a session has ended.
const GIVES_WAY: Duration = Duration::from_millis(100);
/// The oldest server spoken to: the oldest one PostgreSQL still maintains.
const VERSION_MIN: u32 = 13;

/// A server's address and how to reach it. Nothing is connected yet.
pub(super) struct Server {
    /// The source's name, for messages.
    name: String,
    url: Arc<SecretString>,
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
        let whole = Arc::new(url.clone());
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
        let (name, farewells) = (name.to_owned(), Arc::default());
        Ok(Self { name, url: whole, config, connector, line, farewells })
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

    /// A session that rests, or a new one. `patient`: told while the server has no connection left; without it that
    /// is an error at once.
    async fn connect(
        &self,
        database: Option<&str>,
        application: &str,
        open: Connection,
        patient: Option<&RunProgress>,
    ) -> Result<Session> {
        let home = Home {
            source: self.name.clone(),
            url: Arc::clone(&self.url),
            database: database.map(str::to_owned),
        };
        if let Some(link) = self.line.resting().take(&home) {
            let again = tokio::time::timeout(AGAIN_TIMEOUT, link.serve(application)).await;
            if let Ok(Ok(())) = again {
                return Ok(self.over(link, open, home));
            }
            // The server, or the way to it, is another one now.
            drop((link, self.line.resting().beyond(&self.name, 0)));
        }
        if let Some(room) = self.line.room() {
            for link in self.line.resting().beyond(&self.name, room) {
                link.close().await;
            }
        }
        let link = self.link(database, application, patient).await?;
        let session = self.over(link, open, home);
        session.supported()?;
        if let Some(database) = database {
            session.is_in(database).await?;
        }
        Ok(session)
    }

    fn over(&self, link: Link, open: Connection, home: Home) -> Session {
        Session {
            major: major(&link.version),
            version: link.version.clone(),
            place: self.address(home.database.as_deref()),
            live: Some(Live { link, busy: false, open }),
            began: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            home,
            resting: Arc::clone(self.line.resting()),
            farewells: Arc::clone(&self.farewells),
            runtime: Handle::current(),
        }
    }

    async fn link(
        &self,
        database: Option<&str>,
        application: &str,
        patient: Option<&RunProgress>,
    ) -> Result<Link> {
        let mut config = self.config.clone();
        config.application_name(application);
        if let Some(database) = database {
            config.dbname(database);
        }
        let place = self.address(database);
        // The driver's own timeout ends with the socket: a server may accept and say nothing.
        let timeout = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        let timeout = timeout * (config.get_hosts().len().max(1) as u32 + 1);
        let (mut backoff, mut gave_way) = (Backoff::default(), false);
        let (client, connection, connector) = loop {
            let connector = self.connector.anew();
            let connected = tokio::time::timeout(timeout, config.connect(connector.clone())).await;
            let error = match connected {
                Ok(Ok((client, connection))) => break (client, connection, connector),
                Ok(Err(error)) => error,
                Err(_) => return Err(failure::silent(&self.name, &place, timeout)),
            };
            let full = failure::is_full(&error);
            if full && !gave_way {
                gave_way = true;
                // Of other sources too, which may be of the same server. It takes a moment to note that they have ended.
                for link in self.line.resting().all() {
                    link.close().await;
                    tokio::time::sleep(GIVES_WAY).await;
                }
                continue;
            }
            let pause = patient.filter(|_| full).zip(backoff.pause());
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
        let (handle, opened) = (connector.handle(), Instant::now());
        Ok(Link { client, task, version, handle, connector, statements: Mutex::default(), opened })
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

/// One connection that serves one read. Dropping it cancels the statement that runs on it, if any, and closes it.
pub(super) struct Session {
    /// `None` only while the session is being taken apart.
    live: Option<Live>,
    /// Whether it has begun a transaction.
    began: AtomicBool,
    /// Whether a statement that it keeps has failed.
    failed: AtomicBool,
    /// The server's version as it says it: `15.14 (Debian …)`.
    pub(super) version: String,
    pub(super) major: u32,
    place: String,
    home: Home,
    resting: Arc<Resting>,
    farewells: Arc<Farewells>,
    runtime: Handle,
}

struct Live {
    link: Link,
    busy: bool,
    /// Given back when the connection has ended, or rests.
    open: Connection,
}

impl Session {
    fn link(&self) -> Result<&Link> {
        let live = self.live.as_ref();
        live.map(|live| &live.link)
            .ok_or_else(|| Error::new(ErrorCode::Internal, "the PostgreSQL session is closed"))
    }

    /// The client to ask with.
    ///
    /// # Errors
    /// `internal` after the session was closed, which no caller can do.
    pub(super) fn client(&self) -> Result<&Client> {
        self.link().map(|link| &link.client)
    }

    /// Takes the content of the next COPY away from the driver, where that can be. To be called before
    /// the statement is sent.
    pub(super) fn take_copy(&self) -> Option<CopyBytes> {
        self.live.as_ref()?.link.handle.as_ref().map(tls::Handle::take_copy)
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
        self.began.store(true, Ordering::Relaxed);
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

    /// The rows that `sql` returns, one of the few statements that every read makes. `doing` says what for, for messages.
    pub(super) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        doing: &str,
    ) -> Result<Vec<Row>> {
        let link = self.link()?;
        let rows = async { link.client.query(&link.prepared(sql).await?, parameters).await };
        let rows = rows.await;
        self.failed.fetch_or(rows.is_err(), Ordering::Relaxed);
        rows.map_err(|error| self.failed(&error, doing))
    }

    /// The rows that a statement made for one table returns.
    pub(super) async fn query_once(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
        doing: &str,
    ) -> Result<Vec<Row>> {
        let rows = self.client()?.query(sql, parameters).await;
        rows.map_err(|error| self.failed(&error, doing))
    }

    /// Ends the transaction, and keeps what it did.
    pub(super) async fn commit(&self, doing: &str) -> Result<()> {
        self.run("COMMIT", doing).await?;
        self.began.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The one row that `sql` returns, as [`Self::query`].
    pub(super) async fn row(&self, sql: &str, doing: &str) -> Result<Row> {
        let link = self.link()?;
        let row = async { link.client.query_one(&link.prepared(sql).await?, &[]).await };
        let row = row.await;
        self.failed.fetch_or(row.is_err(), Ordering::Relaxed);
        row.map_err(|error| self.failed(&error, doing))
    }

    /// Turns the driver's error into ours. `doing` says what was asked for.
    pub(super) fn failed(&self, error: &tokio_postgres::Error, doing: &str) -> Error {
        failure::asking(error, doing, &self.place)
    }

    /// Ends the transaction. The connection rests for others; one that cannot be as it was is closed.
    pub(super) async fn close(mut self) {
        let Some(Live { link, busy, open }) = self.live.take() else { return };
        let in_transaction = self.began.load(Ordering::Relaxed);
        let rests = !busy
            && !self.failed.load(Ordering::Relaxed)
            && tokio::time::timeout(FAREWELL_TIMEOUT, link.reset(in_transaction))
                .await
                .is_ok_and(|reset| reset.is_ok());
        let left = if rests { self.resting.put(&self.home, link) } else { vec![link] };
        for link in left {
            link.close().await;
        }
        // Only now: what rests is counted before it is no longer held.
        drop(open);
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
        if let Some(Live { link, busy, open }) = self.live.take() {
            let cancel = busy.then(|| (link.client.cancel_token(), link.connector.anew()));
            let work = async move {
                farewell(link, cancel).await;
                drop(open);
            };
            self.farewells.add(work, &self.runtime);
        }
    }
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
