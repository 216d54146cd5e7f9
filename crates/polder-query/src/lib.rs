//! SQL over the lake and the sources: implementations of [`polder_core::Engine`].
//!
//! The only crate that names datafusion. It changes nothing: no statement writes, and nothing is
//! read but the lake tables the session's principal may see, and the operator's sources. Formatting
//! results is the caller's.

mod datafusion;

pub use ::datafusion::DATAFUSION_VERSION;

pub use crate::datafusion::{DataFusionEngine, DataFusionSettings, OpenSource};
