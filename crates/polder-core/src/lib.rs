//! The words of Polder, its pure rules, its errors and the traits at its seams.
//!
//! No I/O, no async runtime, no Iceberg and no query engine here: everything in this crate can be
//! tested without a server or a file. The crates above implement [`Source`] (outside system →
//! Arrow) and [`Engine`] (SQL); the third seam, the catalog, lives in `polder-lake`.

pub mod certificate;
pub mod checkpoint;
pub mod digest;
pub mod engine;
pub mod erasure;
pub mod error;
pub mod evolution;
pub mod guarantee;
pub mod keys;
pub mod management;
pub mod optimize;
pub mod org;
pub mod predicate;
pub mod progress;
pub mod retention;
pub mod schema;
pub mod secret;
pub mod source;
pub mod spec;
pub mod subplan;
pub mod validation;

pub use certificate::{Certificate, Signature, SignedCertificate};
pub use checkpoint::{Checkpoint, Content, CursorValue};
pub use engine::{
    Carried, Description, Engine, Import, Imported, Importer, Optimizer, QueryStream, REFUSED,
    Session, SnapshotMark,
};
pub use erasure::{AirflowDags, Erasure, ErasureStep, Hold, Inventory, Remains, Verification};
pub use error::{Error, ErrorCode, Result};
pub use guarantee::{Assurance, Doubt, Guarantee, Reason};
pub use management::{ManagementTable, ORG_COLUMN};
pub use org::{Authorized, OrgId, Principal, Right, Role};
pub use predicate::{CmpOp, Literal, Predicate};
pub use progress::{ALTERED_KEYS_MAX, ProgressSnapshot, RunProgress, Stage, Tally};
pub use schema::{Field, LakeType, TableSchema, TextOf};
pub use secret::{SecretRef, SecretResolver};
pub use source::{
    Answer, AnswerRequest, Batch, BatchStream, Capabilities, ConnectionLimits, CursorRange,
    DigestRequest, Digests, Handover, Learnt, PartPlan, PartRequest, RangeDigest, ReadPlan,
    ReadRequest, RowDigest, Source, SourceTable, Split, Standing,
};
pub use subplan::SubPlan;
