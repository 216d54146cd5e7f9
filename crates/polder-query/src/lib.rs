//! SQL over the lake and the sources: implementations of [`polder_core::Engine`].
//!
//! The only crate that names datafusion. No query writes, and nothing is read but the lake tables the
//! session's principal may see, and the operator's sources. What changes files is
//! [`polder_core::Optimizer`], by Trino. Formatting results is the caller's.

mod datafusion;
mod trino;

pub use ::datafusion::DATAFUSION_VERSION;

pub use crate::datafusion::{DataFusionEngine, DataFusionSettings, OpenSource, stack_bytes};
pub use crate::trino::{TrinoEngine, TrinoSettings};

/// What speaking PostgreSQL's protocol needs of SQL: its statements, parameters and system tables.
pub mod postgres {
    pub use crate::datafusion::{
        Column, Listed, Piece, PostgresCatalog, Shown, Value, Word, bind, parameters, pieces,
    };
}
