//! DataFusion over the lake and the sources.

mod doubles;
mod engine;
mod error;
mod field_ids;
mod filter;
mod metadata;
mod names;
mod parquet;
mod rewrite;
mod source;
mod statement;
mod table;
mod uuids;
mod version;
mod weight;
mod with_queries;
mod workers;

pub use engine::{DataFusionEngine, DataFusionSettings};
pub use source::OpenSource;
