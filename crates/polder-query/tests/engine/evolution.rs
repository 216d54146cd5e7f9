//! Tables whose columns changed: old files are read as the table is now.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray, StructArray};
use arrow::datatypes::DataType;
use polder_core::{Field, LakeType, TableSchema};

use super::lake::{Rows, TestLake, array};

#[tokio::test]
async fn an_added_column_is_null_in_old_files() {
    let test = TestLake::new().await;
    let old = TableSchema::new(vec![Field::new("id", LakeType::Long)]);
    let mut new = old.clone();
    new.fields.push(Field::new("Größe", LakeType::String));
    let rows = |schema, parts| Rows { org: "1", table: "t", schema, partition: &[], parts };
    let first: Vec<ArrayRef> = vec![array(Int64Array::from(vec![1, 2]))];
    test.replace(rows(&old, vec![first])).await;
    let second: Vec<ArrayRef> =
        vec![array(Int64Array::from(vec![3, 4])), array(StringArray::from(vec![Some("x"), None]))];
    test.append(rows(&new, vec![second])).await;
    let cases = [
        ("SELECT * FROM lake.org_1.t ORDER BY id", "1|\n2|\n3|x\n4|"),
        ("SELECT id FROM lake.org_1.t WHERE \"Größe\" = 'x'", "3"),
        ("SELECT count(*) FROM lake.org_1.t WHERE \"Größe\" IS NULL", "3"),
        ("SELECT count(*) FROM lake.org_1.t WHERE \"Größe\" IS NOT NULL", "1"),
        ("SELECT count(\"Größe\"), count(*) FROM lake.org_1.t", "1|4"),
        ("SELECT \"Größe\" FROM lake.org_1.t WHERE id = 1", ""),
        ("SELECT max(\"Größe\") FROM lake.org_1.t WHERE id < 3", ""),
        ("SELECT coalesce(\"Größe\", 'none') FROM lake.org_1.t WHERE id = 2", "none"),
    ];
    for (sql, expected) in cases {
        assert_eq!(test.text(sql).await.expect(sql), expected, "{sql}");
    }
}

#[tokio::test]
async fn a_replaced_table_has_only_its_new_columns() {
    let test = TestLake::new().await;
    let schema = |name: &str, data_type| {
        TableSchema::new(vec![
            Field::new("id", LakeType::Long).with_source_id(1),
            Field::new(name, data_type).with_source_id(2),
        ])
    };
    let (before, after) = (schema("a", LakeType::Int), schema("b", LakeType::String));
    let rows = |schema, parts| Rows { org: "1", table: "t", schema, partition: &[], parts };
    let id = || array(Int64Array::from(vec![1]));
    test.replace(rows(&before, vec![vec![id(), array(Int32Array::from(vec![7]))]])).await;
    test.replace(rows(&after, vec![vec![id(), array(StringArray::from(vec!["seven"]))]])).await;
    assert_eq!(test.text("SELECT * FROM lake.org_1.t").await.expect("rows"), "1|seven");
    let old = "SELECT a FROM lake.org_1.t FOR VERSION AS OF 'v1'";
    assert_eq!(test.text(old).await.expect("rows"), "7");
    assert!(test.text("SELECT a FROM lake.org_1.t").await.is_err());
}

#[tokio::test]
async fn structs_and_tables_without_rows() {
    let test = TestLake::new().await;
    let inner = LakeType::Struct(vec![Field::new("City", LakeType::String)]);
    let schema = TableSchema::new(vec![
        Field::new("id", LakeType::Long).required(),
        Field::new("address", inner.clone()),
    ]);
    let rows = |parts| Rows { org: "1", table: "t", schema: &schema, partition: &["id"], parts };
    test.replace(rows(Vec::new())).await;
    let empty = [
        ("SELECT * FROM lake.org_1.t", ""),
        ("SELECT count(*), max(id), count(address['City']) FROM lake.org_1.t", "0||0"),
        ("SELECT id FROM lake.org_1.t WHERE id > 1 GROUP BY id ORDER BY id", ""),
        ("SELECT count(*) FROM lake.org_1.t a JOIN lake.org_1.t b ON a.id = b.id", "0"),
    ];
    for (sql, expected) in empty {
        assert_eq!(test.text(sql).await.expect(sql), expected, "{sql}");
    }
    let batches = test.batches("SELECT * FROM lake.org_1.t").await.expect("no rows");
    assert!(batches.iter().all(|batch| batch.num_rows() == 0));
    let DataType::Struct(members) = inner.to_arrow() else { panic!("a struct") };
    let cities: Vec<ArrayRef> = vec![Arc::new(StringArray::from(vec!["Delft", "Gouda"]))];
    let address = StructArray::new(members, cities, None);
    let part = vec![array(Int64Array::from(vec![1, 2])), array(address)];
    test.append(rows(vec![part])).await;
    let found = test.text("SELECT id FROM lake.org_1.t WHERE address['City'] = 'Gouda'").await;
    assert_eq!(found.expect("a row"), "2");
}
