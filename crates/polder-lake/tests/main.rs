//! The lake from outside: on local disk with SQLite, and (in `service`) on S3 and PostgreSQL.

mod commits;
mod conformance;
mod evolution;
mod expire;
mod faults;
mod files;
mod partitions;
mod rest;
mod rollback;
mod service;
mod staging;
mod support;
mod tables;
mod types;
