//! Which lake type each column gets, and how the server is asked for it.
//!
//! The rule: exact or refused. A type whose binary form Polder reads keeps its kind; every other
//! one comes as PostgreSQL's own text. Decoding is done in `decode`.

use std::collections::HashSet;

use polder_core::spec::OnUnrepresentable;
use polder_core::{Error, ErrorCode, Field, LakeType, ReadRequest, Result};

use super::catalog::{Column, ColumnType, Relation, nearest};
use super::cursor::Cursor;
use super::names::identifier;
use super::transactions;
use super::written::Written;

/// One column of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnRead {
    pub(super) field: Field,
    /// The expression to select.
    pub(super) sql: String,
    /// What its text, or that of its elements, is made of, if the server sends no text.
    pub(super) written: Option<Written>,
    /// The source's type, for messages.
    pub(super) type_name: String,
    /// What becomes of values that the lake type does not have.
    pub(super) policy: OnUnrepresentable,
}

/// Object ids of built-in types (PostgreSQL's `pg_type.dat`); they never change.
pub(super) mod oid {
    pub(in crate::postgres) const BOOL: u32 = 16;
    pub(in crate::postgres) const BYTEA: u32 = 17;
    pub(in crate::postgres) const NAME: u32 = 19;
    pub(in crate::postgres) const INT8: u32 = 20;
    pub(in crate::postgres) const INT2: u32 = 21;
    pub(in crate::postgres) const INT4: u32 = 23;
    pub(in crate::postgres) const TEXT: u32 = 25;
    pub(in crate::postgres) const OID: u32 = 26;
    pub(in crate::postgres) const JSON: u32 = 114;
    pub(in crate::postgres) const CIDR: u32 = 650;
    pub(in crate::postgres) const FLOAT4: u32 = 700;
    pub(in crate::postgres) const FLOAT8: u32 = 701;
    pub(in crate::postgres) const INET: u32 = 869;
    pub(in crate::postgres) const BPCHAR: u32 = 1042;
    pub(in crate::postgres) const VARCHAR: u32 = 1043;
    pub(in crate::postgres) const DATE: u32 = 1082;
    pub(in crate::postgres) const TIME: u32 = 1083;
    pub(in crate::postgres) const TIMESTAMP: u32 = 1114;
    pub(in crate::postgres) const TIMESTAMPTZ: u32 = 1184;
    pub(in crate::postgres) const INTERVAL: u32 = 1186;
    pub(in crate::postgres) const NUMERIC: u32 = 1700;
    pub(in crate::postgres) const UUID: u32 = 2950;
    pub(in crate::postgres) const JSONB: u32 = 3802;
}

/// What becomes of a value between its own type and the form that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cast {
    No,
    /// By the server, before it sends it.
    Text,
    Long,
    /// To the bytes of a text, as the database has them. A cast would drop the blanks of a `char(n)`.
    Bytes {
        blanks: bool,
    },
    /// To text, once it has come.
    Here(Written),
}

impl Cast {
    fn is_to_text(self) -> bool {
        matches!(self, Self::Text | Self::Here(_))
    }
}

/// The lake type that holds all of a PostgreSQL type's values, but for the odd ones that
/// `on_unrepresentable` is about.
pub(super) fn natural(data_type: &ColumnType) -> LakeType {
    as_it_is(data_type).0
}

fn as_it_is(data_type: &ColumnType) -> (LakeType, Cast) {
    match &data_type.element {
        Some(element) => {
            let (element, cast) = scalar(element);
            (LakeType::list_of(element), cast)
        }
        None => scalar(data_type),
    }
}

fn scalar(data_type: &ColumnType) -> (LakeType, Cast) {
    let lake_type = match data_type.oid {
        oid::BOOL => LakeType::Boolean,
        oid::INT2 | oid::INT4 => LakeType::Int,
        oid::INT8 => LakeType::Long,
        // Unsigned 32 bits.
        oid::OID => return (LakeType::Long, Cast::Long),
        oid::FLOAT4 => LakeType::Float,
        oid::FLOAT8 => LakeType::Double,
        oid::NUMERIC => match decimal(data_type.modifier) {
            Some(decimal) => decimal,
            None => return (LakeType::String, Cast::Here(Written::Numeric)),
        },
        oid::JSONB => return (LakeType::String, Cast::Here(Written::Jsonb)),
        oid::INET | oid::CIDR => return (LakeType::String, Cast::Here(Written::Network)),
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::JSON => LakeType::String,
        oid::BYTEA => LakeType::Binary,
        oid::UUID => LakeType::Uuid,
        oid::DATE => LakeType::Date,
        oid::TIME => LakeType::Time,
        oid::TIMESTAMP => LakeType::Timestamp,
        oid::TIMESTAMPTZ => LakeType::Timestamptz,
        oid::INTERVAL => LakeType::interval(),
        _ if data_type.is_enum => LakeType::String,
        _ => return (LakeType::String, Cast::Text),
    };
    (lake_type, Cast::No)
}

/// `numeric(p, s)` where Iceberg has it too. The modifier holds precision and scale in 16 bits each,
/// offset by 4; since PostgreSQL 15 the scale is signed, in 11 bits (`numeric.c`).
fn decimal(modifier: i32) -> Option<LakeType> {
    let packed = u32::try_from(modifier.checked_sub(4)?).ok()?;
    let scale = ((packed & 0x7ff) ^ 0x400) as i32 - 0x400;
    let (precision, scale) = (u8::try_from(packed >> 16).ok()?, u8::try_from(scale).ok()?);
    (precision <= 38 && scale <= precision).then_some(LakeType::Decimal { precision, scale })
}

/// The columns to read, in the order of the batches; a cursor that is no column comes last.
///
/// # Errors
/// `source.not_found` for a column that does not exist; `spec.invalid` for a type that cannot be
/// declared, a column named twice, or a cursor that cannot be one.
pub(super) fn choose(relation: &Relation, request: &ReadRequest) -> Result<Vec<ColumnRead>> {
    let by_transaction = match &request.cursor {
        Some(range) => transactions::are_cursor(relation, &range.column)?,
        None => false,
    };
    let chosen: Vec<&Column> = match &request.columns {
        None => relation.columns.iter().collect(),
        Some(names) => {
            let names =
                names.iter().filter(|name| !(by_transaction && *name == transactions::XMIN));
            let found = names.map(|name| find(relation, name, "columns"));
            found.collect::<Result<_>>()?
        }
    };
    let mut names = HashSet::new();
    if let Some(twice) = chosen.iter().find(|column| !names.insert(&*column.name)) {
        let message = format!("column {:?} is named twice", twice.name);
        return Err(Error::new(ErrorCode::SpecInvalid, message).detail(relation.display()));
    }
    for name in request.types.keys() {
        find(relation, name, "types")?;
    }
    if let Some(cursor) = request.cursor.as_ref().filter(|_| !by_transaction) {
        find(relation, &cursor.column, "cursor")?;
        if !names.contains(&*cursor.column) {
            let message = format!("the cursor {:?} is not among the columns", cursor.column);
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .detail(relation.display())
                .hint("add it to `columns`: its values say how far the table was read"));
        }
    }
    let read = chosen.into_iter().map(|column| read(relation, column, request));
    read.chain(by_transaction.then(|| Ok(transactions::column()))).collect()
}

/// Where the columns of these names are among those read; names that are not are left out.
pub(super) fn numbers(columns: &[ColumnRead], names: &[String]) -> Vec<usize> {
    let number = |name: &String| columns.iter().position(|column| column.field.name == *name);
    names.iter().filter_map(number).collect()
}

pub(super) fn find<'a>(relation: &'a Relation, name: &str, key: &str) -> Result<&'a Column> {
    if let Some(column) = relation.columns.iter().find(|column| column.name == name) {
        return Ok(column);
    }
    let names: Vec<String> = relation.columns.iter().map(|column| column.name.clone()).collect();
    let like = nearest(name, &names);
    let hint = if like.is_empty() {
        format!("its columns are {}", names.join(", "))
    } else {
        format!("did you mean {}?", like.join(", "))
    };
    Err(Error::new(ErrorCode::SourceNotFound, format!("there is no column {name:?}"))
        .detail(format!("{}, named under `{key}`", relation.display()))
        .hint(hint))
}

fn read(relation: &Relation, column: &Column, request: &ReadRequest) -> Result<ColumnRead> {
    let is_cursor = request.cursor.as_ref().is_some_and(|cursor| cursor.column == column.name);
    let (mut data_type, mut cast) = match request.types.get(&column.name) {
        Some(declared) => declare(relation, column, declared)?,
        None => as_it_is(&column.data_type),
    };
    let policy = match request.on_unrepresentable {
        // A row without its cursor would not be recognised when it is read again.
        OnUnrepresentable::Null if is_cursor => OnUnrepresentable::Error,
        policy => policy,
    };
    if is_cursor {
        Cursor::of(relation, &column.name)?;
        if data_type == LakeType::String && cast.is_to_text() {
            let message = format!("the cursor {:?} cannot be read as text", column.name);
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .detail(relation.display())
                .hint("take it out of `types`"));
        }
    } else if policy == OnUnrepresentable::Text && has_odd_values(&data_type) {
        (data_type, cast) = (LakeType::String, Cast::Text);
    }
    let required = column.required && !may_become_null(&data_type, policy);
    let field = Field::new(&column.name, data_type).with_source_id(i32::from(column.number));
    Ok(ColumnRead {
        sql: expression(&column.name, &field.data_type, cast),
        written: match cast {
            Cast::Here(written) => Some(written),
            Cast::No | Cast::Text | Cast::Long | Cast::Bytes { .. } => None,
        },
        field: if required { field.required() } else { field },
        type_name: column.type_name.clone(),
        policy,
    })
}

fn expression(name: &str, data_type: &LakeType, cast: Cast) -> String {
    let list = if matches!(data_type, LakeType::List(_)) { "[]" } else { "" };
    let column = identifier(name);
    match cast {
        Cast::No | Cast::Here(_) => column,
        Cast::Text => format!("{column}::pg_catalog.text{list}"),
        Cast::Long => format!("{column}::pg_catalog.int8{list}"),
        // The server sends no text that is not what its encoding says; as SQL_ASCII it is bytes.
        Cast::Bytes { blanks: false } => {
            format!("pg_catalog.convert_to({column}::pg_catalog.text, 'SQL_ASCII')")
        }
        Cast::Bytes { blanks: true } => format!(
            "CASE WHEN {column} IS NOT NULL \
             THEN pg_catalog.convert_to(pg_catalog.concat({column}), 'SQL_ASCII') END"
        ),
    }
}

/// Whether PostgreSQL has values of this kind that the lake type does not have.
pub(super) fn has_odd_values(data_type: &LakeType) -> bool {
    match data_type {
        LakeType::Decimal { .. }
        | LakeType::Date
        | LakeType::Time
        | LakeType::Timestamp
        | LakeType::Timestamptz
        | LakeType::Struct(_)
        | LakeType::List(_) => true,
        LakeType::Boolean
        | LakeType::Int
        | LakeType::Long
        | LakeType::Float
        | LakeType::Double
        | LakeType::String
        | LakeType::Uuid
        | LakeType::Binary => false,
    }
}

fn may_become_null(data_type: &LakeType, policy: OnUnrepresentable) -> bool {
    match policy {
        OnUnrepresentable::Error | OnUnrepresentable::Text => false,
        OnUnrepresentable::Null => has_odd_values(data_type),
        // NaN, infinite intervals and arrays of several dimensions have no nearest value.
        OnUnrepresentable::Clamp => {
            matches!(data_type, LakeType::Decimal { .. } | LakeType::Struct(_) | LakeType::List(_))
        }
    }
}

/// The type a table spec declares, if the column can be read as it.
fn declare(relation: &Relation, column: &Column, declared: &LakeType) -> Result<(LakeType, Cast)> {
    let (natural, cast) = as_it_is(&column.data_type);
    let oid = column.data_type.oid;
    let text = matches!(oid, oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::JSON);
    let numeric = oid == oid::NUMERIC;
    let possible = match declared {
        LakeType::String if natural == LakeType::String => return Ok((natural, cast)),
        LakeType::String => return Ok((LakeType::String, Cast::Text)),
        LakeType::Decimal { .. } => numeric,
        // The bytes as they are: the way out for text that is not UTF-8 (encoding SQL_ASCII).
        LakeType::Binary => text || oid == oid::BYTEA,
        other => natural == *other || (natural.promotes_to(other) && cast == Cast::No),
    };
    if possible {
        let cast = match declared {
            LakeType::Binary if text => Cast::Bytes { blanks: oid == oid::BPCHAR },
            _ if numeric => Cast::No,
            _ => cast,
        };
        return Ok((declared.clone(), cast));
    }
    let mut ways = vec!["string".to_owned()];
    if numeric {
        ways.push("decimal(p, s)".to_owned());
    } else if natural != LakeType::String {
        ways.push(natural.to_string());
    }
    match natural {
        LakeType::Int => ways.push("long".to_owned()),
        LakeType::Float => ways.push("double".to_owned()),
        _ if text => ways.push("binary".to_owned()),
        _ => {}
    }
    let message = format!("column {:?} cannot be read as {declared}", column.name);
    Err(Error::new(ErrorCode::SpecInvalid, message)
        .detail(format!("{}: its type is {}", relation.display(), column.type_name))
        .hint(format!("it can be declared as {}", ways.join(", "))))
}
