//! The files source: on local disk here, in a bucket below `service`.

mod conformance;
mod csv;
mod json_lines;
mod objects;
mod parquet;
mod service;
mod support;
