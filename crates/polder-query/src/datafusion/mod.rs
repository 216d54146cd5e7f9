//! DataFusion over the lake and the sources.

mod batches;
mod bounded;
mod compact;
mod conditions;
mod doubles;
mod engine;
mod error;
mod field_ids;
mod filter;
mod keys;
mod learnt;
mod metadata;
mod names;
mod parquet;
mod postgres;
mod pushdown;
mod reach;
mod rewrite;
mod series;
mod shared;
mod sieve;
mod source;
mod statement;
mod statistics;
mod table;
mod uuids;
mod version;
mod views;
mod weight;
mod with_queries;
mod workers;

pub use engine::{DataFusionEngine, DataFusionSettings};
pub use postgres::{
    Column, Listed, Piece, PostgresCatalog, Shown, Value, Word, bind, parameters, pieces,
};
pub use source::OpenSource;
pub use workers::stack_bytes;
