//! A database of a test's own.

use std::sync::atomic::{AtomicU32, Ordering};

use polder_sources::postgres::PostgresSource;
use secrecy::SecretString;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

fn server_url() -> String {
    std::env::var("POLDER_TEST_PG_URL").expect(
        "POLDER_TEST_PG_URL is not set: run `cargo xtask services up` and set what it prints",
    )
}

pub(super) struct Database {
    name: String,
    url: String,
}

impl Database {
    pub(super) async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polder_pipeline_{}_{number}", std::process::id());
        let admin = connect(&server_url()).await;
        admin.run(&format!("CREATE DATABASE {name}")).await;
        let server = server_url();
        let (base, _) = server.rsplit_once('/').expect("the URL names a database");
        Self { url: format!("{base}/{name}"), name }
    }

    pub(super) async fn session(&self) -> Session {
        connect(&self.url).await
    }

    pub(super) fn source(&self) -> PostgresSource {
        PostgresSource::open("revdb", SecretString::from(self.url.as_str())).expect("source")
    }

    pub(super) async fn drop(self) {
        let sql = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        connect(&server_url()).await.run(&sql).await;
    }
}

/// A session, closed when it is dropped.
pub(super) struct Session {
    client: Client,
    _connection: JoinSet<()>,
}

impl Session {
    pub(super) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.expect(sql);
    }

    /// Numbers and texts of two columns.
    pub(super) async fn rows(&self, sql: &str) -> Vec<(i64, String)> {
        let rows = self.client.query(sql, &[]).await.expect(sql);
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }
}

async fn connect(url: &str) -> Session {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connection");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        connection.await.ok();
    });
    Session { client, _connection: tasks }
}
