//! The lake from outside: on local disk with SQLite, and (in `service`) on S3 and PostgreSQL.

mod between;
mod bounds;
mod commits;
mod conformance;
mod erase;
mod evolution;
mod expire;
mod faults;
mod faulty;
mod files;
mod foreign;
mod histories;
mod lost;
mod maintain;
mod management;
mod merge;
mod partitions;
mod rest;
mod rollback;
mod service;
mod staging;
mod store_faults;
mod stress;
mod support;
mod tables;
mod types;
