//! Against a real PostgreSQL.

mod cursors;
mod database;
mod extremes;
