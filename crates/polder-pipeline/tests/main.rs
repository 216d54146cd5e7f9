//! The data plane over a lake on local disk.

mod guarantee;
mod maintain;
mod merge;
mod reread;
mod service;
mod support;
mod validate;
mod wide;
