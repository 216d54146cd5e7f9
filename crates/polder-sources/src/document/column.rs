//! Documents to record batches: one tree of builders in the shape of the schema.
//!
//! A member is looked up by position, then by name; members a document lacks cost nothing, as
//! columns are padded with nulls only when they are next written or finished.

use std::sync::Arc;

use arrow::array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder,
    Float32Builder, Float64Builder, Int32Builder, Int64Builder, NullBufferBuilder, StringBuilder,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow::array::{ArrayRef, ListArray, RecordBatch, RecordBatchOptions, StructArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, Fields, SchemaRef};
use polder_core::spec::OnUnrepresentable;
use polder_core::{
    ALTERED_KEYS_MAX, Error, ErrorCode, Field, LakeType, Result, RunProgress, TableSchema, TextOf,
};

use super::convert;
use super::infer::UNNAMED;
use super::names::Names;
use super::raw::{Element, Elements, Value, malformed, utf8};
use super::rows;
use super::text::{self, Dialect};
use crate::values::{Exact, Unfit};

/// How values are turned into columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecoderOptions {
    pub(crate) dialect: Dialect,
    pub(crate) on_unrepresentable: OnUnrepresentable,
}

/// Builds batches of one schema.
pub(crate) struct Decoder {
    schema: SchemaRef,
    root: Members,
    rows: usize,
    fixed_width: usize,
    context: Context,
    /// The columns that name a row.
    key: Vec<String>,
    /// Columns with altered values, and the rows they are in, since the last batch.
    altered_keys: Vec<(String, String)>,
}

struct Context {
    options: DecoderOptions,
    /// Reused for every text that is written.
    text: String,
    /// The columns with altered values in the row at hand, as long as their rows are remembered.
    altered: Vec<String>,
}

/// The columns of a struct, or of the table.
struct Members {
    names: Names,
    columns: Vec<Column>,
}

/// One path: its builder and how many rows it has so far.
pub(super) struct Column {
    path: String,
    builder: Builder,
    rows: usize,
    /// Values changed by policy since the last batch.
    altered: u64,
    /// How many of them were named with their row.
    named: usize,
}

enum Builder {
    Boolean(BooleanBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Float(Float32Builder),
    Double(Float64Builder),
    Decimal { builder: Decimal128Builder, precision: u8, scale: u8 },
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Timestamptz(TimestampMicrosecondBuilder),
    String { builder: StringBuilder, text_of: Option<TextOf> },
    Uuid(FixedSizeBinaryBuilder),
    Binary(BinaryBuilder),
    List(Box<ListBuilder>),
    Struct(Box<StructBuilder>),
}

struct ListBuilder {
    field: FieldRef,
    offsets: Vec<i32>,
    nulls: NullBufferBuilder,
    element: Column,
}

struct StructBuilder {
    fields: Fields,
    nulls: NullBufferBuilder,
    members: Members,
}

impl Decoder {
    pub(crate) fn new(schema: &TableSchema, options: DecoderOptions) -> Self {
        Self {
            schema: schema.to_arrow(),
            root: Members::new(&schema.fields, ""),
            rows: 0,
            fixed_width: schema.fields.iter().map(|f| convert::fixed_width(&f.data_type)).sum(),
            context: Context { options, text: String::new(), altered: Vec::new() },
            key: Vec::new(),
            altered_keys: Vec::new(),
        }
    }

    /// Names rows by these columns.
    pub(crate) fn with_key(self, key: Vec<String>) -> Self {
        Self { key, ..self }
    }

    /// Adds one document as a row. Top-level members that are no columns are left out: the schema
    /// was made from all documents, so they were not asked for.
    pub(crate) fn append(&mut self, document: &[u8]) -> Result<()> {
        let appended = self.root.append(document, self.rows, &mut self.context, true);
        appended.map_err(|error| rows::named(error, document, &self.key))?;
        if !self.context.altered.is_empty() {
            self.remember(document);
        }
        self.rows += 1;
        Ok(())
    }

    #[cold]
    fn remember(&mut self, document: &[u8]) {
        let key = rows::name(document, &self.key);
        for column in self.context.altered.drain(..) {
            self.altered_keys.extend(key.iter().map(|key| (column.clone(), key.clone())));
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// A guess at the Arrow bytes a document of `bytes` becomes.
    pub(crate) fn estimate(&self, bytes: usize) -> usize {
        bytes.max(self.fixed_width)
    }

    /// The rows so far as a batch; counts the values that policy changed.
    pub(crate) fn finish(&mut self, progress: &RunProgress) -> Result<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        let arrays = self.root.finish(rows, progress)?;
        for (column, key) in self.altered_keys.drain(..) {
            progress.add_altered_key(&column, key);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options).map_err(internal)
    }
}

impl Members {
    fn new(fields: &[Field], parent: &str) -> Self {
        let mut names = Names::default();
        let columns = fields
            .iter()
            .map(|field| {
                names.add(field.name.as_bytes());
                Column::new(field, parent)
            })
            .collect();
        Self { names, columns }
    }

    fn append(
        &mut self,
        document: &[u8],
        row: usize,
        context: &mut Context,
        top: bool,
    ) -> Result<()> {
        let mut next = 0;
        for element in Elements::new(document)? {
            let element = element?;
            let key = if top && element.key.is_empty() { UNNAMED.as_bytes() } else { element.key };
            let Some(number) = self.names.find(key, next) else {
                if top {
                    continue;
                }
                return Err(changed("a member that no earlier reading had"));
            };
            let column = &mut self.columns[number];
            if column.rows > row {
                return Err(changed("a member twice"));
            }
            column.pad(row);
            column.append(&element, context)?;
            next = number + 1;
        }
        Ok(())
    }

    fn finish(&mut self, rows: usize, progress: &RunProgress) -> Result<Vec<ArrayRef>> {
        self.columns.iter_mut().map(|column| column.finish(rows, progress)).collect()
    }
}

impl Column {
    pub(super) fn new(field: &Field, parent: &str) -> Self {
        let path = match parent {
            "" => field.name.clone(),
            parent => format!("{parent}.{}", field.name),
        };
        let builder = Builder::new(field, &path);
        Self { path, builder, rows: 0, altered: 0, named: 0 }
    }

    /// Adds nulls up to `rows`.
    pub(super) fn pad(&mut self, rows: usize) {
        if self.rows < rows {
            self.builder.append_nulls(rows - self.rows);
            self.rows = rows;
        }
    }

    fn append(&mut self, element: &Element<'_>, context: &mut Context) -> Result<()> {
        let value = element.value();
        if matches!(value, Value::Null) {
            self.builder.append_nulls(1);
            self.rows += 1;
            return Ok(());
        }
        let outcome = match &mut self.builder {
            Builder::String { builder, text_of } => {
                context.text.clear();
                write_text(&mut context.text, element, *text_of, context.options.dialect)
                    .map_err(|error| error.within(&format!("column {}", self.path)))?;
                builder.append_value(&context.text);
                self.rows += 1;
                return Ok(());
            }
            Builder::Struct(builder) => {
                let Value::Document(bytes) = value else { return Err(self.refused(element)) };
                builder.append(bytes, self.rows, context)?;
                self.rows += 1;
                return Ok(());
            }
            Builder::List(builder) => {
                let Value::Array(bytes) = value else { return Err(self.refused(element)) };
                builder.append(bytes, context)?;
                self.rows += 1;
                return Ok(());
            }
            scalar => scalar.append_scalar(value, context.options.on_unrepresentable),
        };
        match outcome {
            Stored::Exactly => {}
            Stored::Altered => self.note_altered(&mut context.altered),
            Stored::Malformed => return Err(self.refused(element)),
            Stored::Inexact => {
                return Err(self.refused(element).hint(
                    "set `on_unrepresentable: null`, `clamp` or `text`, or declare another type \
                     under `types:`",
                ));
            }
        }
        self.rows += 1;
        Ok(())
    }

    /// Counts an altered value; `columns` are those that have one in the row at hand.
    fn note_altered(&mut self, columns: &mut Vec<String>) {
        self.altered += 1;
        if self.named < ALTERED_KEYS_MAX && !columns.contains(&self.path) {
            self.named += 1;
            columns.push(self.path.clone());
        }
    }

    /// Adds a text as CSV has it.
    pub(super) fn append_text(
        &mut self,
        text: &[u8],
        policy: OnUnrepresentable,
        altered: &mut Vec<String>,
    ) -> Result<Stored> {
        let stored = match &mut self.builder {
            Builder::String { builder, .. } => {
                builder.append_value(utf8(text)?);
                Stored::Exactly
            }
            scalar => scalar.append_scalar(Value::String(text), policy),
        };
        self.rows += usize::from(matches!(stored, Stored::Exactly | Stored::Altered));
        if matches!(stored, Stored::Altered) {
            self.note_altered(altered);
        }
        Ok(stored)
    }

    fn refused(&self, element: &Element<'_>) -> Error {
        let kind = element.type_name();
        Error::new(
            ErrorCode::SourceUnrepresentable,
            format!("a value of column {} does not fit its type exactly", self.path),
        )
        .detail(format!("the value is of type {kind}"))
        .hint("declare another type under `types:`")
    }

    pub(super) fn finish(&mut self, rows: usize, progress: &RunProgress) -> Result<ArrayRef> {
        self.pad(rows);
        self.rows = 0;
        progress.add_altered(&self.path, std::mem::take(&mut self.altered));
        self.builder.finish(rows, progress)
    }
}

/// What became of a value.
pub(super) enum Stored {
    Exactly,
    Altered,
    /// It is no value of the type.
    Malformed,
    /// The type does not hold it, and the policy says error.
    Inexact,
}

impl Builder {
    /// Without room for values: of thousands of columns it would be megabytes.
    fn new(field: &Field, path: &str) -> Self {
        match &field.data_type {
            LakeType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(0)),
            LakeType::Int => Self::Int(Int32Builder::with_capacity(0)),
            LakeType::Long => Self::Long(Int64Builder::with_capacity(0)),
            LakeType::Float => Self::Float(Float32Builder::with_capacity(0)),
            LakeType::Double => Self::Double(Float64Builder::with_capacity(0)),
            LakeType::Decimal { precision, scale } => Self::Decimal {
                builder: Decimal128Builder::with_capacity(0)
                    .with_data_type(field.data_type.to_arrow()),
                precision: *precision,
                scale: *scale,
            },
            LakeType::Date => Self::Date(Date32Builder::with_capacity(0)),
            LakeType::Time => Self::Time(Time64MicrosecondBuilder::with_capacity(0)),
            LakeType::Timestamp => Self::Timestamp(TimestampMicrosecondBuilder::with_capacity(0)),
            LakeType::Timestamptz => Self::Timestamptz(
                TimestampMicrosecondBuilder::with_capacity(0)
                    .with_data_type(field.data_type.to_arrow()),
            ),
            LakeType::String => {
                Self::String { builder: StringBuilder::with_capacity(0, 0), text_of: field.text_of }
            }
            LakeType::Uuid => Self::Uuid(FixedSizeBinaryBuilder::with_capacity(0, 16)),
            LakeType::Binary => Self::Binary(BinaryBuilder::with_capacity(0, 0)),
            LakeType::List(element) => Self::List(Box::new(ListBuilder {
                field: Arc::new(element.to_arrow()),
                offsets: vec![0],
                nulls: NullBufferBuilder::new(0),
                element: Column::new(element, path),
            })),
            LakeType::Struct(members) => Self::Struct(Box::new(StructBuilder {
                fields: match field.data_type.to_arrow() {
                    DataType::Struct(fields) => fields,
                    _ => Fields::empty(),
                },
                nulls: NullBufferBuilder::new(0),
                members: Members::new(members, path),
            })),
        }
    }

    fn append_nulls(&mut self, count: usize) {
        match self {
            Self::Boolean(builder) => builder.append_nulls(count),
            Self::Int(builder) => builder.append_nulls(count),
            Self::Long(builder) => builder.append_nulls(count),
            Self::Float(builder) => builder.append_nulls(count),
            Self::Double(builder) => builder.append_nulls(count),
            Self::Decimal { builder, .. } => builder.append_nulls(count),
            Self::Date(builder) => builder.append_nulls(count),
            Self::Time(builder) => builder.append_nulls(count),
            Self::Timestamp(builder) | Self::Timestamptz(builder) => builder.append_nulls(count),
            Self::String { builder, .. } => builder.append_nulls(count),
            Self::Uuid(builder) => builder.append_nulls(count),
            Self::Binary(builder) => builder.append_nulls(count),
            Self::List(builder) => {
                let end = builder.offsets.last().copied().unwrap_or(0);
                builder.offsets.extend(std::iter::repeat_n(end, count));
                builder.nulls.append_n_nulls(count);
            }
            Self::Struct(builder) => builder.nulls.append_n_nulls(count),
        }
    }

    fn append_scalar(&mut self, value: Value<'_>, policy: OnUnrepresentable) -> Stored {
        const INT: (i64, i64) = (i32::MIN as i64, i32::MAX as i64);
        match self {
            Self::Boolean(b) => store(convert::boolean(value), policy, |v| b.append_option(v)),
            // Within 32 bits by the bounds given.
            Self::Int(b) => store(convert::integer(value, INT.0, INT.1), policy, |v| {
                b.append_option(v.map(|v| v as i32));
            }),
            Self::Long(b) => store(convert::integer(value, i64::MIN, i64::MAX), policy, |v| {
                b.append_option(v);
            }),
            Self::Float(b) => store(convert::float(value), policy, |v| b.append_option(v)),
            Self::Double(b) => store(convert::double(value), policy, |v| b.append_option(v)),
            Self::Decimal { builder: b, precision, scale } => {
                store(convert::decimal(value, *precision, *scale), policy, |v| b.append_option(v))
            }
            Self::Date(b) => store(convert::date(value), policy, |v| b.append_option(v)),
            Self::Time(b) => store(convert::time(value), policy, |v| b.append_option(v)),
            Self::Timestamp(b) => store(convert::timestamp(value), policy, |v| b.append_option(v)),
            Self::Timestamptz(b) => {
                store(convert::timestamptz(value), policy, |v| b.append_option(v))
            }
            Self::Uuid(b) => store(convert::uuid(value), policy, |v| match v {
                // 16 bytes, as the builder was made for.
                Some(bytes) => b.append_value(bytes).unwrap_or_default(),
                None => b.append_null(),
            }),
            Self::Binary(b) => store(convert::binary(value), policy, |v| b.append_option(v)),
            Self::String { .. } | Self::List(_) | Self::Struct(_) => Stored::Malformed,
        }
    }

    fn finish(&mut self, rows: usize, progress: &RunProgress) -> Result<ArrayRef> {
        Ok(match self {
            Self::Boolean(builder) => Arc::new(builder.finish()),
            Self::Int(builder) => Arc::new(builder.finish()),
            Self::Long(builder) => Arc::new(builder.finish()),
            Self::Float(builder) => Arc::new(builder.finish()),
            Self::Double(builder) => Arc::new(builder.finish()),
            Self::Decimal { builder, .. } => Arc::new(builder.finish()),
            Self::Date(builder) => Arc::new(builder.finish()),
            Self::Time(builder) => Arc::new(builder.finish()),
            Self::Timestamp(builder) | Self::Timestamptz(builder) => Arc::new(builder.finish()),
            Self::String { builder, .. } => Arc::new(builder.finish()),
            Self::Uuid(builder) => Arc::new(builder.finish()),
            Self::Binary(builder) => Arc::new(builder.finish()),
            Self::List(builder) => builder.finish(progress)?,
            Self::Struct(builder) => {
                let arrays = builder.members.finish(rows, progress)?;
                let nulls = builder.nulls.finish();
                let array = StructArray::try_new(builder.fields.clone(), arrays, nulls);
                Arc::new(array.map_err(internal)?)
            }
        })
    }
}

/// Hands a converted value, or what policy makes of it, to the builder.
fn store<T>(
    converted: Exact<T>,
    policy: OnUnrepresentable,
    append: impl FnOnce(Option<T>),
) -> Stored {
    match converted {
        Ok(value) => {
            append(Some(value));
            Stored::Exactly
        }
        Err(Unfit::Malformed) => Stored::Malformed,
        Err(unfit) => match unfit.resolve(policy) {
            Some(value) => {
                append(value);
                Stored::Altered
            }
            None => Stored::Inexact,
        },
    }
}

impl StructBuilder {
    fn append(&mut self, bytes: &[u8], row: usize, context: &mut Context) -> Result<()> {
        self.members.append(bytes, row, context, false)?;
        self.nulls.append_non_null();
        Ok(())
    }
}

impl ListBuilder {
    fn append(&mut self, bytes: &[u8], context: &mut Context) -> Result<()> {
        for element in Elements::new(bytes)? {
            self.element.append(&element?, context)?;
        }
        let end = i32::try_from(self.element.rows)
            .map_err(|_| malformed("a batch has too many list elements"))?;
        self.offsets.push(end);
        self.nulls.append_non_null();
        Ok(())
    }

    fn finish(&mut self, progress: &RunProgress) -> Result<ArrayRef> {
        let elements = self.element.rows;
        let values = self.element.finish(elements, progress)?;
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let array = ListArray::try_new(self.field.clone(), offsets, values, self.nulls.finish());
        Ok(Arc::new(array.map_err(internal)?))
    }
}

pub(super) fn write_text(
    out: &mut String,
    element: &Element<'_>,
    text_of: Option<TextOf>,
    dialect: Dialect,
) -> Result<()> {
    match (element.value(), text_of) {
        (Value::String(bytes), None) => out.push_str(utf8(bytes)?),
        (Value::ObjectId(bytes), None | Some(TextOf::ObjectId)) => text::write_hex(out, bytes),
        (Value::Decimal(value), None | Some(TextOf::Decimal)) => text::write_decimal(out, value),
        _ => text::write(out, element, dialect)?,
    }
    Ok(())
}

fn changed(what: &str) -> Error {
    Error::new(ErrorCode::Internal, "a document differs between its two readings").detail(what)
}

pub(super) fn internal(error: arrow::error::ArrowError) -> Error {
    Error::new(ErrorCode::Internal, "a batch could not be built").caused_by(error)
}
