//! What clients of PostgreSQL send beside plain queries: several statements in one text, parameters, and
//! questions to `pg_catalog`.
//!
//! Nothing here knows the protocol. Parameters become literals of the SQL text, so that a query with
//! parameters is planned, limited and authorised as any other; `pg_catalog` is answered from names that a
//! query of the same session listed, and reads nothing else.

mod catalog;
mod literals;
mod split;
mod tables;

pub use catalog::PostgresCatalog;
pub use literals::{Value, bind, parameters};
pub use split::{Piece, Word, pieces};
pub use tables::{Column, Listed, Shown};
