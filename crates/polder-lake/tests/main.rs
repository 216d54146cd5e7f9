//! The lake from outside: on local disk with SQLite, and (in `service`) on S3 and PostgreSQL.

mod commits;
mod evolution;
mod expire;
mod faults;
mod faulty;
mod files;
mod histories;
mod partitions;
mod rollback;
mod service;
mod store_faults;
mod stress;
mod support;
mod tables;
mod types;
