//! Statements with parameters: their types as the statement says them, and values in their places.

use arrow::array::{ArrayRef, Decimal128Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use polder_core::{Engine, Field, LakeType, Principal, TableSchema};
use polder_query::postgres::{Value, bind};

use super::lake::{Rows, TestLake, array, org, session};

async fn lake() -> TestLake {
    let test = TestLake::new().await;
    let schema = TableSchema::new(vec![
        Field::new("id", LakeType::Long),
        Field::new("name", LakeType::String),
        Field::new("amount", LakeType::Decimal { precision: 18, scale: 2 }),
        Field::new("at", LakeType::Timestamptz),
    ]);
    let amounts = Decimal128Array::from(vec![50, 150, 250]);
    let amounts = amounts.with_precision_and_scale(18, 2).expect("fits");
    let times = TimestampMicrosecondArray::from(vec![0, 1_000_001, 2_000_000]);
    let part: Vec<ArrayRef> = vec![
        array(Int64Array::from(vec![2, 10, 100])),
        array(StringArray::from(vec!["a", "it's", "\\"])),
        array(amounts),
        array(times.with_timezone("+00:00")),
    ];
    let (parts, partition) = (vec![part], &[]);
    test.replace(Rows { org: "1", table: "t", schema: &schema, partition, parts }).await;
    test
}

#[tokio::test]
async fn a_statement_says_what_it_takes_and_gives() {
    let test = lake().await;
    let session = session(Principal::Org(org("1")));
    let sql = "SELECT id, amount FROM t WHERE id = $1 AND name = $2 AND amount > $3 AND at < $4";
    let found = test.engine.describe(sql, &session).await.expect("described");
    let types: Vec<_> = found.parameters.into_iter().map(|known| known.expect("known")).collect();
    assert_eq!(types[..2], [DataType::Int64, DataType::Utf8]);
    assert!(matches!(types[2], DataType::Decimal128(..)), "{types:?}");
    assert!(matches!(types[3], DataType::Timestamp(_, Some(_))), "{types:?}");
    let columns = found.schema.fields().iter().map(|field| field.data_type().clone());
    assert_eq!(columns.collect::<Vec<_>>(), [DataType::Int64, DataType::Decimal128(18, 2)]);
    let none = test.engine.describe("SELECT $1", &session).await.expect("described");
    assert_eq!(none.parameters, [None]);
    for bad in ["SELECT $1 FROM nothing", "DELETE FROM t WHERE id = $1", "SELECT $0"] {
        assert!(test.engine.describe(bad, &session).await.is_err(), "{bad}");
    }
    let foreign = self::session(Principal::Org(org("2")));
    assert!(test.engine.describe("SELECT id FROM org_1.t", &foreign).await.is_err());
}

#[tokio::test]
async fn values_are_found_as_they_are_in_the_table() {
    let test = lake().await;
    let word = |value: &str| Value::Text(value.to_owned());
    let cases = [
        ("id = $1", Value::Integer(10), "10"),
        ("id < $1", Value::Integer(-1), ""),
        ("name = $1", word("it's"), "10"),
        ("name = $1", word("\\"), "100"),
        ("name = $1", word("' OR true --"), ""),
        ("amount = $1", Value::Decimal("1.50".into()), "10"),
        ("amount > $1", Value::Decimal("1.500000000001".into()), "100"),
        ("at = $1", Value::Timestamptz("1970-01-01 00:00:01.000001+00".into()), "10"),
        ("at = $1", Value::Timestamptz("1970-01-01 01:00:01.000001+01:00".into()), "10"),
        ("array_has($1, id)", Value::List(vec![Value::Integer(2), Value::Integer(7)]), "2"),
        ("id = $1", Value::Null(Some(DataType::Int64)), ""),
        ("id = $1 + 0", Value::Double(2.0), "2"),
        ("$1", Value::Boolean(false), ""),
    ];
    let session = session(Principal::Org(org("1")));
    for (filter, value, expected) in cases {
        let sql = bind(&format!("SELECT id FROM t WHERE {filter}"), &[value]).expect(filter);
        let found = test.text_for(&sql, &session).await.expect(&sql);
        assert_eq!(found.trim(), expected, "{sql}");
    }
    let kept =
        bind("SELECT $1, $2", &[Value::Bytes(vec![0, 255]), Value::Date("2026-01-02".into())]);
    let batches = test.batches_for(&kept.expect("bound"), &session).await.expect("batches");
    let schema = batches[0].schema();
    let types = schema.fields().iter().map(|field| field.data_type().clone());
    assert_eq!(types.collect::<Vec<_>>(), [DataType::Binary, DataType::Date32]);
}
