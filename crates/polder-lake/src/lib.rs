//! The lake: one Iceberg table per org and source table, on object storage or local disk.
//!
//! This is the only crate that names `iceberg`. It opens the catalog and the store ([`Lake`]), stages
//! rows as Parquet files nobody sees yet ([`Stage`], [`TableWriter`]), publishes them in exactly one
//! table commit together with schema, checkpoint and run id ([`Stage::commit`]), and plans and reads
//! ([`LakeTable`]).
//!
//! It decides nothing about *when* or *what* to ingest, holds no SQL engine, and authenticates
//! nobody: every call that touches an org's tables demands an [`Authorized`](polder_core::Authorized)
//! org id. Names of orgs and tables never become paths.

mod aws;
mod catalog;
mod check;
mod commit;
mod delta;
mod equality;
mod erase;
mod error;
pub mod failpoint;
mod field_ids;
mod hold;
mod intake;
mod lake;
mod maintain;
mod management;
mod metrics;
mod ordered;
mod placed;
mod predicate;
mod read;
mod scan;
mod schema;
mod settings;
mod stage;
mod storage;
mod table;
mod write;

pub use catalog::service;
pub use catalog::{Catalog, CommitFailure, GlueCatalog, RestCatalog, SqlCatalog, TableState};
pub use check::{FileFault, TagFault};
pub use commit::{Expired, ExpiryRequest, FilesCommitted, Gate, RolledBack};
pub use erase::OrgEntries;
pub use field_ids::{check_readable, field_id, read_as};
pub use intake::Intake;
pub use lake::{AuditHead, Lake};
pub use maintain::{
    LiveFile, MetadataRequest, MetadataTidied, OrphanRequest, Orphans, RowsBefore, TableFiles,
    TableSize,
};
pub use metrics::{FileMetrics, MetricField, StateMetrics};
pub use ordered::OrderedScan;
pub use placed::{Placed, PlacedStream};
pub use polder_core::{CmpOp, Literal, Predicate};
pub use scan::{BatchStream, ScanFile, ScanPlan, ScanRequest};
pub use settings::{CatalogSettings, GlueSettings, LakeSettings, RestSettings, S3Settings};
pub use stage::{Committed, RowDelta, RunSummary, Stage, StageKind, StageRequest, Writers};
pub use storage::{Below, Store, TemporaryKeys};
pub use table::{LakeTable, Pin, RefInfo, RefKind, Rollback, SnapshotInfo, Summary, Version};
pub use write::{StagedDeletes, StagedFile, TableWriter};
