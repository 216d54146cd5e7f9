//! SQL over the lake: implementations of [`polder_core::Engine`].
//!
//! The only crate that names datafusion. It changes nothing: no statement writes, and nothing is
//! read but the lake tables the session's principal may see. Formatting results is the caller's.

mod datafusion;

pub use ::datafusion::DATAFUSION_VERSION;

pub use crate::datafusion::{DataFusionEngine, DataFusionSettings};
