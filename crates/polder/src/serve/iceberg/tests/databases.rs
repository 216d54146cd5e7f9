//! The databases a catalog can be in.

use std::process::Command;

use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Database {
    Sqlite,
    Postgres,
}

/// Makes each function a test with the catalog in SQLite, and one in PostgreSQL that needs the servers
/// of `cargo xtask services up`.
macro_rules! on_each {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::$test($crate::serve::iceberg::tests::Database::Sqlite).await;
                }
            )*
        }

        mod service {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::$test($crate::serve::iceberg::tests::Database::Postgres).await;
                }
            )*
        }
    };
}
pub(super) use on_each;

/// A database of a test's own, dropped at its end.
pub(super) struct PostgresDatabase {
    server: String,
    name: String,
}

impl PostgresDatabase {
    pub(super) fn new() -> Self {
        let server = std::env::var("POLDER_TEST_PG_URL").expect(
            "POLDER_TEST_PG_URL is not set: run `cargo xtask services up` and \
             `eval \"$(cargo xtask services env)\"`",
        );
        let name = format!("served_{}", Uuid::new_v4().simple());
        let database = Self { server, name };
        database.run(&format!("CREATE DATABASE {}", database.name)).unwrap();
        database
    }

    /// The server's address with this database's name.
    pub(super) fn url(&self) -> String {
        let (base, _) = self.server.rsplit_once('/').unwrap();
        format!("{base}/{}", self.name)
    }

    fn run(&self, sql: &str) -> Result<(), String> {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.server]);
        let output = psql.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        let _ = self.run(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}
