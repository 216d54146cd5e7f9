//! A database per test.

use std::sync::atomic::{AtomicU32, Ordering};

use bson::Document;
use mongodb::{Client, Collection};
use polder_sources::mongodb::MongodbSource;
use secrecy::SecretString;

pub(super) fn server_url() -> String {
    std::env::var("POLDER_TEST_MONGO_URL").expect(
        "POLDER_TEST_MONGO_URL is not set: run `cargo xtask services up` and set what it prints",
    )
}

/// A database of the test's own, dropped at the end.
pub(super) struct Database {
    pub(super) name: String,
    client: Client,
}

impl Database {
    pub(super) async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("polder_test_{}_{number}", std::process::id());
        let client = Client::with_uri_str(server_url()).await.expect("client");
        Self { name, client }
    }

    pub(super) fn collection(&self, name: &str) -> Collection<Document> {
        self.client.database(&self.name).collection(name)
    }

    /// Adds documents to a collection, which exists afterwards even if there are none.
    pub(super) async fn insert(&self, name: &str, documents: Vec<Document>) {
        if documents.is_empty() {
            let database = self.client.database(&self.name);
            database.create_collection(name).await.expect("collection");
        } else {
            self.collection(name).insert_many(documents).await.expect("documents");
        }
    }

    pub(super) async fn run(&self, command: Document) -> Document {
        self.client.database(&self.name).run_command(command).await.expect("command")
    }

    pub(super) fn source(&self) -> MongodbSource {
        open(&server_url(), &self.name)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = self.name.clone();
        // Out of the test's runtime, which may be going down with a panic.
        let drop = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async {
                let client = Client::with_uri_str(server_url()).await.expect("client");
                client.database(&name).drop().await.expect("drop");
            });
        });
        drop.join().ok();
    }
}

pub(super) fn open(url: &str, database: &str) -> MongodbSource {
    MongodbSource::new("conversations", SecretString::from(url), database)
}
