//! One read of a source and what it brought: the steps that the tests of all sources share.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::concat_batches;
use arrow::datatypes::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use futures::TryStreamExt;
use polder_core::checkpoint::ObjectState;
use polder_core::spec::{Filter, FormatOptions, OnUnrepresentable};
use polder_core::{
    CursorRange, CursorValue, Doubt, Error, Field, LakeType, ReadPlan, ReadRequest, Result,
    RunProgress, Source, TableSchema,
};

/// How a null is shown.
pub(crate) const NULL: &str = "∅";

/// A read of everything in `from` by one split for org 401, failing on odd values.
pub(crate) fn request(from: &str) -> ReadRequest {
    ReadRequest {
        org: "401".parse().expect("org"),
        from: from.to_owned(),
        filter: None,
        predicate: polder_core::Predicate::True,
        columns: None,
        cursor: None,
        snapshot_read: None,
        key: Vec::new(),
        objects_read: BTreeMap::new(),
        known_schema: None,
        types: BTreeMap::new(),
        on_unrepresentable: OnUnrepresentable::Error,
        format: FormatOptions::default(),
        splits_max: NonZeroUsize::MIN,
        batch_bytes: 4 << 20,
        connections: polder_core::ConnectionLimits::default(),
        progress: Arc::new(RunProgress::default()),
    }
}

/// Short forms for the parts of a request that tests vary.
pub(crate) trait Vary {
    /// An SQL condition.
    fn filter(self, sql: &str) -> Self;
    /// A filter document.
    fn matching(self, document: serde_json::Value) -> Self;
    fn policy(self, policy: OnUnrepresentable) -> Self;
    fn splits(self, splits: usize) -> Self;
    fn cursor(self, column: &str, lower: Option<CursorValue>) -> Self;
    fn key(self, columns: &[&str]) -> Self;
    fn types(self, types: &[(&str, &str)]) -> Self;
    fn columns(self, columns: &[&str]) -> Self;
    fn known(self, schema: &TableSchema) -> Self;
}

impl Vary for ReadRequest {
    fn filter(self, sql: &str) -> Self {
        Self { filter: Some(Filter::Sql(sql.to_owned())), ..self }
    }

    fn matching(self, document: serde_json::Value) -> Self {
        let serde_json::Value::Object(document) = document else { panic!("a map") };
        Self { filter: Some(Filter::Document(document)), ..self }
    }

    fn policy(self, policy: OnUnrepresentable) -> Self {
        Self { on_unrepresentable: policy, ..self }
    }

    fn splits(self, splits: usize) -> Self {
        Self { splits_max: NonZeroUsize::new(splits).expect("splits"), ..self }
    }

    fn cursor(self, column: &str, lower: Option<CursorValue>) -> Self {
        Self { cursor: Some(CursorRange { column: column.to_owned(), lower }), ..self }
    }

    fn key(self, columns: &[&str]) -> Self {
        Self { key: columns.iter().map(|&name| name.to_owned()).collect(), ..self }
    }

    fn types(self, types: &[(&str, &str)]) -> Self {
        let parse = |&(name, text): &(&str, &str)| (name.to_owned(), text.parse().expect("type"));
        Self { types: types.iter().map(parse).collect(), ..self }
    }

    fn columns(self, columns: &[&str]) -> Self {
        Self { columns: Some(columns.iter().map(|&name| name.to_owned()).collect()), ..self }
    }

    fn known(self, schema: &TableSchema) -> Self {
        Self { known_schema: Some(schema.clone()), ..self }
    }
}

/// What one read brought.
pub(crate) struct Read {
    pub(crate) schema: TableSchema,
    pub(crate) rows: RecordBatch,
    pub(crate) splits: usize,
    pub(crate) batches: usize,
    pub(crate) warnings: Vec<String>,
    pub(crate) doubts: Vec<Doubt>,
    pub(crate) floor: Option<CursorValue>,
    pub(crate) snapshot: Option<String>,
    pub(crate) ceiling: Option<CursorValue>,
    pub(crate) rows_estimated: Option<u64>,
    pub(crate) objects: BTreeMap<String, ObjectState>,
}

pub(crate) async fn read(source: &dyn Source, request: ReadRequest) -> Result<Read> {
    let plan = source.plan(request).await?;
    drain(plan).await
}

/// The error of a read that has to fail.
pub(crate) async fn refused(source: &dyn Source, request: ReadRequest) -> Error {
    let place = format!("{} {:?}", request.from, request.types);
    read(source, request).await.err().unwrap_or_else(|| panic!("{place} was read"))
}

/// Reads all splits of a plan, one after the other.
pub(crate) async fn drain(plan: ReadPlan) -> Result<Read> {
    let splits = plan.splits.len();
    let arrow = plan.schema.to_arrow();
    let mut batches: Vec<RecordBatch> = Vec::new();
    for split in plan.splits {
        let read: Vec<_> = split.read().try_collect().await?;
        for batch in read {
            assert_eq!(batch.records.schema(), arrow, "batches have the plan's layout");
            batches.push(batch.records);
        }
    }
    let rows = if arrow.fields().is_empty() {
        let count = batches.iter().map(RecordBatch::num_rows).sum();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(arrow, Vec::new(), &options).expect("rows")
    } else {
        concat_batches(&arrow, &batches).expect("batches")
    };
    Ok(Read {
        schema: plan.schema,
        rows,
        splits,
        batches: batches.len(),
        warnings: plan.warnings,
        doubts: plan.doubts,
        snapshot: plan.snapshot,
        ceiling: plan.cursor_ceiling,
        floor: plan.cursor_floor,
        rows_estimated: plan.rows_estimated,
        objects: plan.objects,
    })
}

impl Read {
    /// The schema in short: `a int, b string(Json)`.
    pub(crate) fn types(&self) -> String {
        let word = |field: &Field| {
            let text_of = field.text_of.map_or(String::new(), |text_of| format!("({text_of:?})"));
            format!("{} {}{text_of}", field.name, field.data_type)
        };
        self.schema.fields.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    /// A column's values, in the order read.
    pub(crate) fn shown(&self, column: &str) -> Vec<String> {
        let field = self.schema.field(column).expect(column);
        let array = self.rows.column_by_name(column).expect(column);
        (0..array.len()).map(|row| show(&field.data_type, array, row)).collect()
    }

    /// A column's values, sorted as texts.
    pub(crate) fn sorted_texts(&self, column: &str) -> Vec<String> {
        let mut values = self.shown(column);
        values.sort_unstable();
        values
    }
}

/// A value that tells itself apart from every other: doubles with all their digits, −0 and `NaN`
/// included, decimals with their scale, times in UTC.
fn show(data_type: &LakeType, array: &ArrayRef, row: usize) -> String {
    if array.is_null(row) {
        return NULL.to_owned();
    }
    match data_type {
        LakeType::Boolean => array.as_boolean().value(row).to_string(),
        LakeType::Int => array.as_primitive::<Int32Type>().value(row).to_string(),
        LakeType::Long => array.as_primitive::<Int64Type>().value(row).to_string(),
        LakeType::Float => format!("{:?}", array.as_primitive::<Float32Type>().value(row)),
        LakeType::Double => format!("{:?}", array.as_primitive::<Float64Type>().value(row)),
        LakeType::Decimal { .. } => array.as_primitive::<Decimal128Type>().value_as_string(row),
        LakeType::Date => {
            let date = array.as_primitive::<Date32Type>().value_as_date(row);
            date.expect("date").format("%Y-%m-%d").to_string()
        }
        LakeType::Time => {
            let time = array.as_primitive::<Time64MicrosecondType>().value_as_time(row);
            time.expect("time").format("%H:%M:%S%.f").to_string()
        }
        LakeType::Timestamp | LakeType::Timestamptz => {
            let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
            let time = chrono::DateTime::from_timestamp_micros(micros).expect("time");
            let zone = if *data_type == LakeType::Timestamptz { "Z" } else { "" };
            time.format("%Y-%m-%dT%H:%M:%S%.f").to_string() + zone
        }
        LakeType::String => array.as_string::<i32>().value(row).to_owned(),
        LakeType::Binary => hex(array.as_binary::<i32>().value(row)),
        LakeType::Uuid => uuid::Uuid::from_slice(array.as_fixed_size_binary().value(row))
            .expect("uuid")
            .to_string(),
        LakeType::List(element) => {
            let list = array.as_list::<i32>().value(row);
            let elements = (0..list.len()).map(|index| show(&element.data_type, &list, index));
            format!("[{}]", elements.collect::<Vec<_>>().join(", "))
        }
        LakeType::Struct(members) => {
            let columns = members.iter().zip(array.as_struct().columns());
            let member = |(member, column): (&Field, &ArrayRef)| {
                format!("{}: {}", member.name, show(&member.data_type, column, row))
            };
            format!("{{{}}}", columns.map(member).collect::<Vec<_>>().join(", "))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
