//! A database per test, and the few steps every test takes.

use std::sync::atomic::{AtomicU32, Ordering};

use polder_sources::postgres::PostgresSource;
use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

pub(super) use crate::reading::{Read, Vary, drain, read, request};

fn server_url() -> String {
    std::env::var("POLDER_TEST_PG_URL").expect(
        "POLDER_TEST_PG_URL is not set: run `cargo xtask services up` and set what it prints",
    )
}

/// A database of the test's own, dropped at the end.
pub(super) struct Database {
    pub(super) name: String,
    pub(super) url: String,
    client: Client,
    _connection: JoinSet<()>,
}

impl Database {
    pub(super) async fn new() -> Self {
        Self::with("").await
    }

    /// `options` are those of CREATE DATABASE.
    pub(super) async fn with(options: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::create(&format!("polder_test_{}_{number}", std::process::id()), options).await
    }

    pub(super) async fn named(name: &str) -> Self {
        Self::create(name, "").await
    }

    async fn create(name: &str, options: &str) -> Self {
        let (admin, _connection) = connect(&server_url()).await;
        let sql = format!("CREATE DATABASE \"{name}\" {options}");
        admin.batch_execute(&sql).await.expect("database");
        let url = with_database(&server_url(), name);
        let (client, connection) = connect(&url).await;
        Self { name: name.to_owned(), url, client, _connection: connection }
    }

    pub(super) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.expect(sql);
    }

    /// A session besides the database's own.
    pub(super) async fn session(&self) -> (Client, JoinSet<()>) {
        connect(&self.url).await
    }

    pub(super) async fn texts(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let rows = self.client.query(sql, &[]).await.expect(sql);
        let texts = rows.iter().map(|row| (0..row.len()).map(|index| row.get(index)).collect());
        texts.collect()
    }

    pub(super) async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.expect(sql).get(0)
    }

    pub(super) fn source(&self) -> PostgresSource {
        open(&self.url)
    }

    /// The source as another role sees it.
    pub(super) fn source_as(&self, role: &str) -> PostgresSource {
        let (_, rest) = self.url.split_once('@').expect("the URL names a user");
        open(&format!("postgres://{role}@{rest}"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS \"{}\" WITH (FORCE)", self.name);
        // Out of the test's runtime, which may be going down with a panic.
        let drop = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async {
                let (admin, _connection) = connect(&server_url()).await;
                admin.batch_execute(&sql).await.expect("drop");
            });
        });
        drop.join().ok();
    }
}

pub(super) fn open(url: &str) -> PostgresSource {
    PostgresSource::open("revdb", SecretString::from(url)).expect("source")
}

pub(super) fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, q)| (base, Some(q)));
    let (server, _) = base.rsplit_once('/').expect("the URL names a database");
    query.map_or(format!("{server}/{name}"), |query| format!("{server}/{name}?{query}"))
}

async fn connect(url: &str) -> (Client, JoinSet<()>) {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connection");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        connection.await.ok();
    });
    (client, tasks)
}

impl Read {
    /// A column as PostgreSQL would print it, in the order read.
    pub(super) fn texts(&self, column: &str) -> Vec<Option<String>> {
        let field = self.schema.field(column).expect(column);
        let array = self.rows.column_by_name(column).expect(column);
        (0..array.len()).map(|row| super::types::text(&field.data_type, array, row)).collect()
    }

    /// The integers of a column, sorted.
    pub(super) fn sorted(&self, column: &str) -> Vec<i64> {
        let number = |text: Option<String>| text.expect("value").parse().expect("integer");
        let mut values: Vec<i64> = self.texts(column).into_iter().map(number).collect();
        values.sort_unstable();
        values
    }
}
