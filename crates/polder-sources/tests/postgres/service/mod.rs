//! Needs a PostgreSQL server whose role may create databases and roles: `POLDER_TEST_PG_URL`.

mod ceilings;
mod conformance;
mod cursors;
mod errors;
mod policies;
mod shapes;
mod snapshots;
mod support;
mod types;
