//! Documents (BSON) to Arrow: a schema inferred over every document, then columns.
//!
//! MongoDB's documents come as BSON; JSON lines are turned into BSON once, while they are parsed, so
//! that both share one inference and one decoder. Documents are walked as bytes: no serde, no JSON,
//! no allocation per value. Nothing here talks to a server or knows a file format.

mod cells;
mod column;
mod convert;
mod fit;
mod infer;
mod names;
mod raw;
mod rows;
mod spill;
mod split;
mod text;
mod types;

pub(crate) use cells::{TextColumns, accepts, refusal};
pub(crate) use fit::Scalars;
pub(crate) use infer::{Inference, InferenceOptions, MEMBERS_MAX, UNNAMED};
pub(crate) use names::Names;
pub(crate) use raw::documents_of;
pub(crate) use spill::{Spill, SpillWriter};
pub(crate) use split::{one_split, splits};
pub(crate) use text::Dialect;
pub(crate) use types::DATE_MILLIS;

#[cfg(test)]
mod tests;
