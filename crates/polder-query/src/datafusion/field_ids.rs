//! Files read by Iceberg field id: a renamed column, one that was added later, a widened type, a
//! struct with new members.
//!
//! DataFusion matches a file's columns with the table's by name. Here every column carries its id
//! (`PARQUET:field_id`) on both sides, at every nested level, and ids alone decide. Which columns a
//! table has, and how a file's column becomes the table's, is the lake's business.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::CastOptions;
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_datafusion_err, exec_err};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column, lit};
use datafusion::physical_expr_adapter::{PhysicalExprAdapter, PhysicalExprAdapterFactory};
use polder_lake::{check_readable, field_id, read_as};

const EXACT: CastOptions<'static> =
    CastOptions { safe: false, format_options: arrow::util::display::FormatOptions::new() };

/// Makes the adapter of one file.
#[derive(Debug)]
pub(super) struct FieldIdAdapterFactory;

impl PhysicalExprAdapterFactory for FieldIdAdapterFactory {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let by_id = file
            .fields()
            .iter()
            .enumerate()
            .filter_map(|(index, field)| field_id(field).map(|id| (id, index)))
            .collect();
        Ok(Arc::new(FieldIdAdapter { table, file, by_id }))
    }
}

/// Rewrites expressions over the table's columns into expressions over one file's columns.
#[derive(Debug)]
struct FieldIdAdapter {
    table: SchemaRef,
    file: SchemaRef,
    /// Positions in the file by field id.
    by_id: HashMap<i32, usize>,
}

impl PhysicalExprAdapter for FieldIdAdapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        expr.transform_down(|expr| match expr.as_any().downcast_ref::<Column>() {
            // The new expression speaks of the file's columns: do not look into it again.
            Some(column) => {
                let rewritten = self.column(column)?;
                Ok(Transformed::new(rewritten, true, TreeNodeRecursion::Jump))
            }
            None => Ok(Transformed::no(expr)),
        })
        .data()
    }
}

impl FieldIdAdapter {
    fn column(&self, column: &Column) -> Result<Arc<dyn PhysicalExpr>> {
        let wanted = self.table.field_with_name(column.name())?;
        let Some(id) = field_id(wanted) else {
            return exec_err!("column {} has no field id", column.name());
        };
        let Some(index) = self.by_id.get(&id).copied() else {
            if !wanted.is_nullable() {
                return exec_err!("a data file lacks the required column {}", column.name());
            }
            return Ok(lit(ScalarValue::try_new_null(wanted.data_type())?));
        };
        let found = self.file.field(index);
        let read: Arc<dyn PhysicalExpr> = Arc::new(Column::new(found.name(), index));
        if found.data_type() == wanted.data_type() {
            return Ok(read);
        }
        check_readable(found, wanted).map_err(|error| DataFusionError::External(error.into()))?;
        if wanted.data_type().is_nested() {
            let to = Arc::new(wanted.clone());
            return Ok(Arc::new(ConvertExpr { expr: read, to }));
        }
        // DataFusion moves this cast to the literal's side, so that statistics still prune.
        Ok(Arc::new(CastExpr::new(read, wanted.data_type().clone(), Some(EXACT))))
    }
}

/// A nested column of a file in the table's layout.
#[derive(Debug, Eq)]
struct ConvertExpr {
    expr: Arc<dyn PhysicalExpr>,
    to: FieldRef,
}

impl PartialEq for ConvertExpr {
    fn eq(&self, other: &Self) -> bool {
        self.expr.eq(&other.expr) && self.to.eq(&other.to)
    }
}

impl Hash for ConvertExpr {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.expr.hash(state);
        self.to.hash(state);
    }
}

impl fmt::Display for ConvertExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by_field_id({})", self.expr)
    }
}

impl PhysicalExpr for ConvertExpr {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn return_field(&self, _file: &Schema) -> Result<FieldRef> {
        Ok(Arc::clone(&self.to))
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let from = self.expr.return_field(&batch.schema())?;
        let array = self.expr.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(ColumnarValue::Array(read_as(&array, &from, &self.to)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.expr]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let expr = children.pop().ok_or_else(|| exec_datafusion_err!("one child is expected"))?;
        Ok(Arc::new(Self { expr, to: Arc::clone(&self.to) }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Array, ArrayRef, AsArray, Int32Array, Int64Array, ListArray, StringArray, StructArray,
    };
    use arrow::datatypes::{DataType, Field};

    use super::*;

    const FIELD_ID: &str = "PARQUET:field_id";

    fn field(name: &str, id: i32, data_type: DataType) -> Field {
        Field::new(name, data_type, true)
            .with_metadata(HashMap::from([(FIELD_ID.to_owned(), id.to_string())]))
    }

    fn read(file: Vec<(Field, ArrayRef)>, wanted: Field) -> Result<ArrayRef> {
        let (fields, arrays): (Vec<_>, Vec<_>) = file.into_iter().unzip();
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(wanted.name(), 0));
        let table = Arc::new(Schema::new(vec![wanted]));
        let adapter = FieldIdAdapterFactory.create(table, schema)?;
        adapter.rewrite(column)?.evaluate(&batch)?.into_array(batch.num_rows())
    }

    fn ints() -> ArrayRef {
        Arc::new(Int32Array::from(vec![Some(1), None]))
    }

    #[test]
    fn ids_decide_and_names_do_not() {
        let names: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
        let file = vec![
            (field("b", 1, DataType::Int32), ints()),
            (field("a", 2, DataType::Utf8), Arc::clone(&names)),
        ];
        let read_b = read(file.clone(), field("b", 2, DataType::Utf8)).expect("by id");
        assert_eq!(&read_b, &names);
        let added = read(file.clone(), field("a", 3, DataType::Utf8)).expect("added");
        assert_eq!(added.null_count(), 2);
        let wide = read(file, field("z", 1, DataType::Int64)).expect("widened");
        assert_eq!(wide.as_primitive(), &Int64Array::from(vec![Some(1), None]));
    }

    #[test]
    fn types_iceberg_does_not_promote_are_refused() {
        let cases = [DataType::Utf8, DataType::Int16, DataType::Float64, DataType::Date32];
        for wanted in cases {
            let file = vec![(field("a", 1, DataType::Int32), ints())];
            let error = read(file, field("a", 1, wanted.clone())).expect_err("refused");
            assert!(error.to_string().contains("as Int32"), "{wanted}: {error}");
        }
    }

    #[test]
    fn structs_in_lists_grow() {
        let old = DataType::Struct(vec![field("x", 3, DataType::Int32)].into());
        let new = DataType::Struct(
            vec![field("added", 4, DataType::Utf8), field("y", 3, DataType::Int64)].into(),
        );
        let structs =
            StructArray::new(vec![field("x", 3, DataType::Int32)].into(), vec![ints()], None);
        let element = Arc::new(field("element", 2, old));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([2, 0]);
        let list = ListArray::new(Arc::clone(&element), offsets, Arc::new(structs), None);
        let file = vec![(field("l", 1, DataType::List(element)), Arc::new(list) as ArrayRef)];
        let wanted = DataType::List(Arc::new(field("item", 2, new)));
        let read = read(file, field("l", 1, wanted.clone())).expect("read");
        assert_eq!(read.data_type(), &wanted);
        let first = read.as_list::<i32>().value(0);
        assert_eq!(first.as_struct().column(0).null_count(), 2);
        let y = first.as_struct().column(1);
        assert_eq!(y.as_primitive(), &Int64Array::from(vec![Some(1), None]));
    }
}
