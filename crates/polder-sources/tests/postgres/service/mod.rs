//! Needs a PostgreSQL server whose role may create databases and roles: `POLDER_TEST_PG_URL`.

mod broken;
mod ceilings;
mod conformance;
mod connections;
mod cursors;
mod errors;
mod guarantees;
mod handover;
mod policies;
mod shapes;
mod snapshots;
mod support;
mod transactions;
mod types;
