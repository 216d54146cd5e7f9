//! The data plane over a lake on local disk.

mod maintain;
mod merge;
mod service;
mod support;
