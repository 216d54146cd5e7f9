//! What a server and its query processes say to each other. Requests are JSON behind their length, answers are frames: a
//! byte for the kind, four for the length, and as many bytes. Lengths are little-endian.
//!
//! Both ends are of one binary: nothing here has versions.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result, Session};
use serde::{Deserialize, Serialize};

/// Bytes of the longest frame.
pub(super) const FRAME_BYTES_MAX: usize = 256 << 20;
/// Bytes of kind and length.
pub(super) const HEAD_BYTES: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The process takes a request: nothing of the last one is left.
    Ready,
    /// Which of a statement's parameters have a type, as JSON. A schema follows: of these, then of the columns.
    Known,
    /// A whole Arrow IPC stream: a schema, and one batch or none.
    Rows,
    /// There is no more.
    End,
    /// An error, as JSON. There is no more.
    Failed,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Ready, Self::Known, Self::Rows, Self::End, Self::Failed];

    const fn byte(self) -> u8 {
        match self {
            Self::Ready => b'R',
            Self::Known => b'K',
            Self::Rows => b'B',
            Self::End => b'E',
            Self::Failed => b'F',
        }
    }
}

/// The head of a frame that is no longer than [`FRAME_BYTES_MAX`].
pub(super) fn head(kind: Kind, length: usize) -> [u8; HEAD_BYTES] {
    let [a, b, c, d] = (length as u32).to_le_bytes();
    [kind.byte(), a, b, c, d]
}

/// What a head says; `None` for one that no process writes.
pub(super) fn of_head(head: [u8; HEAD_BYTES]) -> Option<(Kind, usize)> {
    let [byte, length @ ..] = head;
    let kind = Kind::ALL.into_iter().find(|kind| kind.byte() == byte)?;
    let length = u32::from_le_bytes(length) as usize;
    (length <= FRAME_BYTES_MAX).then_some((kind, length))
}

/// A statement, for whom and within which limits: a session as the server has authorised it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// What it takes and gives is asked, and not its rows.
    pub(super) describe: bool,
    pub(super) sql: String,
    scope: Scope,
    rows_max: Option<u64>,
    memory_bytes_max: usize,
    snapshots: BTreeMap<String, i64>,
    pushdown: bool,
}

/// A principal. Orgs are written as their namespaces, which the management org has too.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Scope {
    Operator,
    Org(String),
    Member { role: String, orgs: Vec<String> },
}

impl Scope {
    fn of(principal: &Principal) -> Result<Self> {
        Ok(match principal {
            Principal::Operator => Self::Operator,
            Principal::Org(org) => Self::Org(org.namespace()),
            Principal::Member { role, orgs } => Self::Member {
                role: role.as_str().to_owned(),
                orgs: orgs.iter().map(OrgId::namespace).collect(),
            },
            _ => return Err(broken("a principal is of no known kind")),
        })
    }

    fn principal(&self) -> Result<Principal> {
        let org = |namespace: &String| {
            OrgId::from_namespace(namespace).ok_or_else(|| broken("a namespace is of no org"))
        };
        Ok(match self {
            Self::Operator => Principal::Operator,
            Self::Org(namespace) => Principal::Org(org(namespace)?),
            Self::Member { role, orgs } => Principal::Member {
                role: role.parse()?,
                orgs: orgs.iter().map(org).collect::<Result<_>>()?,
            },
        })
    }
}

impl Request {
    pub(super) fn new(describe: bool, sql: &str, session: &Session) -> Result<Self> {
        let Session { principal, rows_max, memory_bytes_max, snapshots, pushdown } = session;
        Ok(Self {
            describe,
            sql: sql.to_owned(),
            scope: Scope::of(principal)?,
            rows_max: *rows_max,
            memory_bytes_max: *memory_bytes_max,
            snapshots: snapshots.clone(),
            pushdown: *pushdown,
        })
    }

    pub(super) fn session(&self) -> Result<Session> {
        Ok(Session {
            principal: self.scope.principal()?,
            rows_max: self.rows_max,
            memory_bytes_max: self.memory_bytes_max,
            snapshots: self.snapshots.clone(),
            pushdown: self.pushdown,
        })
    }
}

/// An error on its way to the server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    code: ErrorCode,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    causes: Vec<String>,
}

impl From<&Error> for Told {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code(),
            message: error.message().to_owned(),
            detail: error.detail_text().map(str::to_owned),
            hint: error.hint_text().map(str::to_owned),
            causes: error.causes(),
        }
    }
}

impl Told {
    pub(super) fn into_error(self) -> Error {
        let mut error = Error::new(self.code, self.message);
        if let Some(detail) = self.detail {
            error = error.detail(detail);
        }
        if let Some(hint) = self.hint {
            error = error.hint(hint);
        }
        let causes = self.causes.into_iter().rev();
        let chain =
            causes.fold(None::<Box<Cause>>, |below, text| Some(Box::new(Cause { text, below })));
        match chain {
            Some(cause) => error.caused_by(*cause),
            None => error,
        }
    }
}

/// One error of a chain that was told as texts.
#[derive(Debug)]
struct Cause {
    text: String,
    below: Option<Box<Cause>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.below.as_deref().map(|below| below as &(dyn StdError + 'static))
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|cause| broken("no JSON").caused_by(cause))
}

/// What the two say is not understood: a bug.
pub(super) fn broken(what: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("server and query process disagree: {what}"))
}

/// A schema and one batch or none, as a whole stream.
pub(super) fn written(schema: &Schema, batch: Option<&RecordBatch>) -> Result<Vec<u8>> {
    let write = || -> std::result::Result<Vec<u8>, ArrowError> {
        let mut writer = StreamWriter::try_new(Vec::new(), schema)?;
        if let Some(batch) = batch {
            writer.write(batch)?;
        }
        writer.into_inner()
    };
    write().map_err(|cause| {
        let message = "the answer has a type that cannot be sent";
        Error::new(ErrorCode::QueryFailed, message).caused_by(cause)
    })
}

/// What [`written`] has written.
pub(super) fn read(bytes: &[u8]) -> Result<(SchemaRef, Option<RecordBatch>)> {
    let read = || -> std::result::Result<_, ArrowError> {
        let mut reader = StreamReader::try_new(bytes, None)?;
        let schema = reader.schema();
        Ok((schema, reader.next().transpose()?))
    };
    read().map_err(|cause| broken("no Arrow stream").caused_by(cause))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatchOptions, StringArray};
    use arrow::datatypes::{DataType, Field};
    use polder_core::Role;

    use super::*;

    #[test]
    fn a_session_arrives_as_it_was_and_never_wider() {
        let org = |id: &str| id.parse::<OrgId>().expect("id");
        let some = vec![org("401"), org("a-b_c")];
        let principals = [
            Principal::Operator,
            Principal::Org(org("401")),
            Principal::Org(OrgId::management()),
            Principal::Member { role: Role::Agent, orgs: some.clone() },
            Principal::Member { role: Role::Reader, orgs: some },
        ];
        for principal in principals {
            let session = Session {
                principal: principal.clone(),
                rows_max: Some(7),
                memory_bytes_max: 1 << 40,
                snapshots: BTreeMap::from([("deal".to_owned(), i64::MIN)]),
                pushdown: false,
            };
            let sent =
                json(&Request::new(true, "SELECT 1", &session).expect("sent")).expect("json");
            let request: Request = serde_json::from_slice(&sent).expect("request");
            let arrived = request.session().expect("session");
            assert_eq!(format!("{arrived:?}"), format!("{session:?}"));
            assert_eq!((arrived.principal, request.sql.as_str()), (principal, "SELECT 1"));
        }
        let stranger = Scope::Member { role: "agent".to_owned(), orgs: vec!["public".to_owned()] };
        assert!(stranger.principal().is_err());
    }

    #[test]
    fn an_error_keeps_its_code_its_texts_and_its_causes() {
        let inner = Error::new(ErrorCode::SourceDenied, "no").caused_by(std::io::Error::other("x"));
        let error = Error::new(ErrorCode::QueryInvalid, "bad").detail("here").hint("so");
        let error = error.caused_by(inner);
        let told: Told =
            serde_json::from_slice(&json(&Told::from(&error)).expect("json")).expect("told");
        let told = told.into_error();
        let parts = |error: &Error| {
            let texts = [Some(error.message()), error.detail_text(), error.hint_text()];
            (error.code(), texts.map(|text| text.map(str::to_owned)), error.causes())
        };
        assert_eq!(parts(&told), parts(&error));
        assert_eq!(told.causes(), ["no", "x"]);
    }

    #[test]
    fn heads_are_read_as_they_are_written_and_no_others() {
        for kind in Kind::ALL {
            for length in [0, 1, 70_000, FRAME_BYTES_MAX] {
                assert_eq!(of_head(head(kind, length)), Some((kind, length)));
            }
            assert_eq!(of_head(head(kind, FRAME_BYTES_MAX + 1)), None);
        }
        assert_eq!(of_head([0; HEAD_BYTES]), None);
    }

    #[test]
    fn batches_arrive_as_they_were_also_without_rows_and_without_columns() {
        let fields =
            vec![Field::new("n", DataType::Int64, false), Field::new("t", DataType::Utf8, true)];
        let schema = Schema::new_with_metadata(fields, [("k".to_owned(), "v".to_owned())].into());
        let schema = Arc::new(schema);
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                Arc::new(Int64Array::from(vec![1, 2, 3])),
                Arc::new(StringArray::from(vec![Some("a"), None, Some("c")])),
            ],
        );
        let batch = batch.expect("batch");
        let options = RecordBatchOptions::new().with_row_count(Some(5));
        let bare = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options);
        let empty = RecordBatch::new_empty(Arc::clone(&schema));
        for batch in [batch.slice(1, 2), batch, empty, bare.expect("batch")] {
            let bytes = written(&batch.schema(), Some(&batch)).expect("written");
            let (schema, arrived) = read(&bytes).expect("read");
            assert_eq!((schema, arrived), (batch.schema(), Some(batch)));
        }
        let (alone, none) = read(&written(&schema, None).expect("written")).expect("read");
        assert_eq!((alone, none), (schema, None));
    }
}
