//! The order of rows in files ↔ Iceberg sort orders. Columns are named by their field ids there, so that
//! one that is renamed keeps its place.

use iceberg::spec::{
    NullOrder, Schema, SortDirection, SortField as IcebergSortField, SortOrder, Transform,
};
use polder_core::spec::SortField;
use polder_core::{Error, ErrorCode, Result};

use crate::error;

/// The Iceberg order of a table's `sort`, under no id yet; the unsorted one for none.
///
/// # Errors
/// `spec.unknown_name` for a column that is not there; `spec.invalid` for one that holds lists or
/// structs, or that stands twice.
pub(crate) fn sort_order(fields: &[SortField], schema: &Schema) -> Result<SortOrder> {
    let mut found: Vec<IcebergSortField> = Vec::with_capacity(fields.len());
    for field in fields {
        let column = schema.as_struct().field_by_name(&field.column).ok_or_else(|| {
            let message = format!("sort by {field}: there is no such column");
            Error::new(ErrorCode::SpecUnknownName, message)
                .detail(format!("column {:?}", field.column))
        })?;
        if !column.field_type.is_primitive() {
            let message = format!("sort by {field}: not for this column's type");
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .detail(format!("column {:?} holds lists or structs", field.column))
                .hint("sort by columns that hold single values"));
        }
        if found.iter().any(|other| other.source_id == column.id) {
            let message = format!("sort by {field}: the column stands there twice");
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("name each column of `sort` once, the most significant first"));
        }
        let direction =
            if field.descending { SortDirection::Descending } else { SortDirection::Ascending };
        let null_order = if field.nulls_first { NullOrder::First } else { NullOrder::Last };
        found.push(IcebergSortField {
            source_id: column.id,
            transform: Transform::Identity,
            direction,
            null_order,
        });
    }
    let order = SortOrder::builder().with_fields(found).build_unbound();
    order.map_err(|cause| error::iceberg("build the sort order", cause))
}

/// An Iceberg order under the columns' present names; `None` for what we have no words for: an order by
/// a transform, by a member of a struct, or by a column that is gone.
pub(crate) fn sort_fields(order: &SortOrder, schema: &Schema) -> Option<Vec<SortField>> {
    let field = |field: &IcebergSortField| {
        let columns = schema.as_struct();
        let column = columns.field_by_id(field.source_id)?;
        (field.transform == Transform::Identity && column.field_type.is_primitive()).then(|| {
            SortField {
                column: column.name.clone(),
                descending: field.direction == SortDirection::Descending,
                nulls_first: field.null_order == NullOrder::First,
            }
        })
    };
    order.fields.iter().map(field).collect()
}

#[cfg(test)]
mod tests {
    use iceberg::spec::{ListType, NestedField, PrimitiveType, Type};

    use super::*;

    fn schema(name: &str) -> Schema {
        let long = || Type::Primitive(PrimitiveType::Long);
        let list = Type::List(ListType::new(NestedField::list_element(4, long(), false).into()));
        let fields = vec![
            NestedField::optional(2, name, long()).into(),
            NestedField::optional(1, "id", long()).into(),
            NestedField::optional(3, "tags", list).into(),
        ];
        Schema::builder().with_fields(fields).build().expect("schema")
    }

    fn fields(texts: &[&str]) -> Vec<SortField> {
        texts.iter().map(|text| text.parse().expect("field")).collect()
    }

    #[test]
    fn an_order_follows_its_columns_under_other_names() {
        let asked = fields(&["at desc", "id nulls last"]);
        let order = sort_order(&asked, &schema("at")).expect("order");
        assert_eq!(order.fields.iter().map(|field| field.source_id).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(sort_fields(&order, &schema("at")), Some(asked));
        let renamed = fields(&["created desc", "id nulls last"]);
        assert_eq!(sort_fields(&order, &schema("created")), Some(renamed));
        assert!(sort_order(&[], &schema("at")).expect("none").is_unsorted());
        assert_eq!(sort_fields(&SortOrder::unsorted_order(), &schema("at")), Some(Vec::new()));
    }

    #[test]
    fn what_cannot_be_sorted_by_is_refused() {
        let cases = [
            (&["nope"][..], ErrorCode::SpecUnknownName),
            (&["tags"][..], ErrorCode::SpecInvalid),
            (&["id", "id desc"][..], ErrorCode::SpecInvalid),
        ];
        for (asked, code) in cases {
            let error = sort_order(&fields(asked), &schema("at")).expect_err("refused");
            assert_eq!(error.code(), code, "{asked:?}");
        }
    }

    #[test]
    fn orders_of_others_that_have_no_words_here_are_none() {
        let field = |source_id, transform| IcebergSortField {
            source_id,
            transform,
            direction: SortDirection::Ascending,
            null_order: NullOrder::First,
        };
        for field in [field(1, Transform::Bucket(4)), field(9, Transform::Identity)] {
            let order = SortOrder { order_id: 1, fields: vec![field] };
            assert_eq!(sort_fields(&order, &schema("at")), None);
        }
    }
}
