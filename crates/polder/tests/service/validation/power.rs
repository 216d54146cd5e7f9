//! Rows that were damaged after they were published: each kind of damage is found by the check it is the
//! business of, with the rows' keys, and by no other one.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, ListArray, RecordBatch, StringArray,
    StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use polder_core::validation::Verdict;

use super::damage::{booleans, bytes, ids, numbers, only, place, taken_from, texts, with};
use super::proof::{Proof, ROWS, failed, samples};

const HOUR: i64 = 3_600_000_000;

/// One kind of damage: what becomes of the rows, and what has to be found.
struct Damage {
    what: &'static str,
    alter: fn(&RecordBatch) -> Vec<RecordBatch>,
    /// The checks that have to fail, no more and no fewer.
    checks: &'static [&'static str],
    /// Keys that have to be named.
    keys: &'static [&'static str],
}

async fn found(proof: &Proof, right: &RecordBatch, damages: &[Damage]) {
    for damage in damages {
        proof.replace(&(damage.alter)(right)).await;
        let report = proof.validate().await;
        let expected: BTreeSet<String> = damage.checks.iter().map(|c| (*c).to_owned()).collect();
        assert_eq!(failed(&report), expected, "{}: {:#?}", damage.what, report.checks);
        assert_eq!(report.verdict, Verdict::Failed, "{}", damage.what);
        let named = samples(&report);
        for key in damage.keys {
            assert!(named.contains(*key), "{}: {key} of {named:?}", damage.what);
        }
    }
    // The rows themselves are right: put back, they are verified.
    proof.replace(std::slice::from_ref(right)).await;
    let report = proof.validate().await;
    assert_eq!(report.verdict, Verdict::Verified, "{:#?}", report.checks);
}

fn seven(id: i32) -> bool {
    id == 7
}

fn all(_id: i32) -> bool {
    true
}

const ROW_DAMAGES: &[Damage] = &[
    Damage {
        what: "a row is lost",
        alter: |rows| vec![only(rows, |id| id != 7)],
        checks: &["missing_keys"],
        keys: &["id=7"],
    },
    Damage {
        what: "a range of rows is lost",
        alter: |rows| vec![only(rows, |id| !(100..300).contains(&id))],
        checks: &["missing_keys"],
        keys: &[],
    },
    Damage {
        what: "the last row is lost: a bound that is off by one",
        alter: |rows| vec![only(rows, |id| id != ROWS)],
        checks: &["missing_keys"],
        keys: &["id=600"],
    },
    Damage {
        what: "all rows but one are lost",
        alter: |rows| vec![only(rows, seven)],
        checks: &["missing_keys"],
        keys: &[],
    },
    Damage {
        what: "a row is there twice",
        alter: |rows| vec![rows.clone(), only(rows, seven)],
        checks: &["duplicates"],
        keys: &["id=7"],
    },
    Damage {
        what: "a file is there twice",
        alter: |rows| vec![rows.clone(), rows.clone()],
        checks: &["duplicates"],
        keys: &[],
    },
    Damage {
        what: "a row is there again with other values",
        alter: |rows| {
            let other = texts(&only(rows, seven), "name", all, |_| Some("other".into()));
            vec![rows.clone(), other]
        },
        checks: &["duplicates"],
        keys: &["id=7"],
    },
    Damage {
        what: "a row that no source has",
        alter: |rows| {
            let made_up = numbers::<Int32Type>(&only(rows, seven), "id", all, |_| Some(5000));
            vec![rows.clone(), made_up]
        },
        checks: &["extra_keys"],
        keys: &["id=5000"],
    },
    Damage {
        what: "another org's row",
        alter: |rows| {
            let foreign = numbers::<Int32Type>(&only(rows, seven), "id", all, |_| Some(700));
            vec![rows.clone(), texts(&foreign, "org_id", all, |_| Some("2".into()))]
        },
        checks: &["org_filter"],
        keys: &["id=700"],
    },
    Damage {
        what: "a key is another one",
        alter: |rows| vec![numbers::<Int32Type>(rows, "id", seven, |_| Some(5000))],
        checks: &["missing_keys", "extra_keys"],
        keys: &["id=7", "id=5000"],
    },
    Damage {
        what: "two rows have each other's key",
        alter: |rows| {
            let pair = |id: i32| id == 7 || id == 14;
            vec![numbers::<Int32Type>(rows, "id", pair, |id| Some(21 - id))]
        },
        checks: &[
            "values name",
            "values note",
            "values code",
            "values mood",
            "values amount",
            "values free",
            "values price",
            "values ratio",
            "values big",
            "values active",
            "values born",
            "values opening",
            "values at",
            "values span",
            "values tags",
            "values sizes",
            "values doc",
            "values address",
            "values data",
            "values token",
            "values updated_at",
        ],
        keys: &["id=7", "id=14"],
    },
];

const TEXT_DAMAGES: &[Damage] = &[
    Damage {
        what: "two columns are swapped",
        alter: |rows| {
            let (name, note) = (rows.column_by_name("name"), rows.column_by_name("note"));
            let (name, note) = (name.unwrap().clone(), note.unwrap().clone());
            vec![with(&with(rows, "name", note), "note", name)]
        },
        checks: &["values name", "values note"],
        keys: &[],
    },
    Damage {
        what: "a text is cut short",
        alter: |rows| vec![texts(rows, "name", seven, |t| t.map(|t| t[..5].into()))],
        checks: &["values name"],
        keys: &["id=7"],
    },
    Damage {
        what: "texts are normalised to NFD",
        alter: |rows| vec![texts(rows, "name", all, |t| t.map(|t| t.replace('ë', "e\u{308}")))],
        checks: &["values name"],
        keys: &[],
    },
    Damage {
        what: "letters are folded",
        alter: |rows| vec![texts(rows, "name", seven, |t| t.map(str::to_lowercase))],
        checks: &["values name"],
        keys: &["id=7"],
    },
    Damage {
        what: "the end of a line is another one",
        alter: |rows| vec![texts(rows, "name", seven, |t| t.map(|t| t.replace("\r\n", "\n")))],
        checks: &["values name"],
        keys: &["id=7"],
    },
    Damage {
        what: "blanks at the end are cut",
        alter: |rows| vec![texts(rows, "code", seven, |t| t.map(|t| t.trim_end().into()))],
        checks: &["values code"],
        keys: &["id=7"],
    },
    Damage {
        what: "null in the place of an empty text",
        alter: |rows| vec![texts(rows, "note", seven, |_| None)],
        checks: &["values note"],
        keys: &["id=7"],
    },
    Damage {
        what: "an empty text in the place of null",
        alter: |rows| vec![texts(rows, "note", |id| id == 6, |_| Some(String::new()))],
        checks: &["values note"],
        keys: &["id=6"],
    },
    Damage {
        what: "JSON is written anew",
        alter: |rows| vec![texts(rows, "doc", seven, |t| t.map(|t| t.replace(": ", ":")))],
        checks: &["values doc"],
        keys: &["id=7"],
    },
    Damage {
        what: "zeros at the end of a number are dropped",
        alter: |rows| {
            vec![texts(rows, "free", seven, |t| t.map(|t| t.trim_end_matches('0').into()))]
        },
        checks: &["values free"],
        keys: &["id=7"],
    },
    Damage {
        what: "a label of an enumeration is another one",
        alter: |rows| vec![texts(rows, "mood", seven, |_| Some("low".into()))],
        checks: &["values mood"],
        keys: &["id=7"],
    },
    Damage {
        what: "an address lost its mask",
        alter: |rows| vec![texts(rows, "address", seven, |t| t.map(|t| t.replace("/32", "")))],
        checks: &["values address"],
        keys: &["id=7"],
    },
];

const NUMBER_DAMAGES: &[Damage] = &[
    Damage {
        what: "numbers are rounded",
        alter: |rows| {
            let whole = |v: i128| Some((v + 50).div_euclid(100) * 100);
            vec![numbers::<Decimal128Type>(rows, "amount", all, whole)]
        },
        checks: &["values amount"],
        keys: &[],
    },
    Damage {
        what: "the last digit is another one",
        alter: |rows| vec![numbers::<Decimal128Type>(rows, "amount", seven, |v| Some(v + 1))],
        checks: &["values amount"],
        keys: &["id=7"],
    },
    Damage {
        what: "a double is the next one",
        alter: |rows| {
            let nine = |id| id == 9;
            vec![numbers::<Float64Type>(rows, "price", nine, |v| Some(v.next_up()))]
        },
        checks: &["values price"],
        keys: &["id=9"],
    },
    Damage {
        what: "a float is the next one",
        alter: |rows| vec![numbers::<Float32Type>(rows, "ratio", seven, |v| Some(v.next_down()))],
        checks: &["values ratio"],
        keys: &["id=7"],
    },
    Damage {
        what: "minus zero lost its sign",
        alter: |rows| {
            let eight = |id| id == 8;
            vec![numbers::<Float64Type>(rows, "price", eight, |v| Some(v.abs()))]
        },
        checks: &["values price"],
        keys: &["id=8"],
    },
    Damage {
        what: "null in the place of NaN",
        alter: |rows| vec![numbers::<Float64Type>(rows, "price", seven, |_| None)],
        checks: &["values price"],
        keys: &["id=7"],
    },
    Damage {
        what: "a number went through a double",
        alter: |rows| {
            vec![numbers::<Int64Type>(rows, "big", |id| id == 8, |v| Some(v as f64 as i64))]
        },
        checks: &["values big"],
        keys: &["id=8"],
    },
    Damage {
        what: "true and false are exchanged",
        alter: |rows| vec![booleans(rows, "active", seven, |v| Some(!v))],
        checks: &["values active"],
        keys: &["id=7"],
    },
];

const TIME_DAMAGES: &[Damage] = &[
    Damage {
        what: "a date is a day off",
        alter: |rows| vec![numbers::<Date32Type>(rows, "born", seven, |v| Some(v - 1))],
        checks: &["values born"],
        keys: &["id=7"],
    },
    Damage {
        what: "times are of another time zone",
        alter: |rows| {
            vec![numbers::<TimestampMicrosecondType>(rows, "at", all, |v| Some(v + 2 * HOUR))]
        },
        checks: &["values at"],
        keys: &[],
    },
    Damage {
        what: "instants are of another time zone, in the same partition",
        alter: |rows| {
            let ten = |id| id == 10;
            vec![numbers::<TimestampMicrosecondType>(rows, "updated_at", ten, |v| Some(v + HOUR))]
        },
        checks: &["values updated_at"],
        keys: &["id=10"],
    },
    Damage {
        what: "a cursor is a microsecond off",
        alter: |rows| {
            vec![numbers::<TimestampMicrosecondType>(rows, "updated_at", seven, |v| Some(v + 1))]
        },
        checks: &["values updated_at"],
        keys: &["id=7"],
    },
    Damage {
        what: "microseconds are cut",
        alter: |rows| {
            let cut = |v: i64| Some(v / 1_000_000 * 1_000_000);
            vec![numbers::<Time64MicrosecondType>(rows, "opening", seven, cut)]
        },
        checks: &["values opening"],
        keys: &["id=7"],
    },
    Damage {
        what: "a month became thirty days",
        alter: |rows| {
            let span = rows.column_by_name("span").unwrap().as_struct();
            let (fields, mut members, nulls) = span.clone().into_parts();
            let eight: Vec<bool> = ids(rows).iter().map(|id| *id == 7).collect();
            let months = members[0].as_primitive::<Int32Type>().iter().zip(&eight);
            let months: Vec<i32> = months.map(|(v, of)| v.unwrap() - i32::from(*of)).collect();
            let days = members[1].as_primitive::<Int32Type>().iter().zip(&eight);
            let days: Vec<i32> = days.map(|(v, of)| v.unwrap() + 30 * i32::from(*of)).collect();
            members[0] = Arc::new(arrow::array::Int32Array::from(months));
            members[1] = Arc::new(arrow::array::Int32Array::from(days));
            vec![with(rows, "span", Arc::new(StructArray::new(fields, members, nulls)))]
        },
        checks: &["values span"],
        keys: &["id=7"],
    },
];

const OTHER_DAMAGES: &[Damage] = &[
    Damage {
        what: "bytes are cut short",
        alter: |rows| vec![bytes(rows, "data", seven, |v| v[1..].to_vec())],
        checks: &["values data"],
        keys: &["id=7"],
    },
    Damage {
        what: "a bit of some bytes is another one",
        alter: |rows| vec![bytes(rows, "data", seven, |v| v.iter().map(|byte| byte ^ 1).collect())],
        checks: &["values data"],
        keys: &["id=7"],
    },
    Damage {
        what: "a uuid's bytes are turned",
        alter: |rows| {
            let seventh = place(rows, 7);
            let tokens = rows.column_by_name("token").unwrap().as_fixed_size_binary().clone();
            let turned = tokens.iter().enumerate().map(|(row, token)| {
                let mut token = token.unwrap().to_vec();
                if row == seventh {
                    token.reverse();
                }
                token
            });
            let turned = FixedSizeBinaryArray::try_from_iter(turned).unwrap();
            vec![with(rows, "token", Arc::new(turned))]
        },
        checks: &["values token"],
        keys: &["id=7"],
    },
    Damage {
        what: "the elements of a list are in another order",
        alter: |rows| vec![with(rows, "tags", turned_list(rows, 7))],
        checks: &["values tags"],
        keys: &["id=7"],
    },
    Damage {
        what: "null in the place of an empty list",
        alter: |rows| vec![taken_from(rows, "tags", 9, 8)],
        checks: &["values tags"],
        keys: &["id=9"],
    },
    Damage {
        what: "an element of a list is another row's",
        alter: |rows| vec![taken_from(rows, "sizes", 7, 15)],
        checks: &["values sizes"],
        keys: &["id=7"],
    },
];

/// The tags with those of one row turned round.
fn turned_list(rows: &RecordBatch, id: i32) -> ArrayRef {
    let at = place(rows, id);
    let tags = rows.column_by_name("tags").unwrap().as_list::<i32>();
    let range = tags.value_offsets();
    let (from, to) = (range[at] as usize, range[at + 1] as usize);
    let values = tags.values().as_string::<i32>();
    let turned: StringArray = (0..values.len())
        .map(|index| {
            let index = if (from..to).contains(&index) { from + to - 1 - index } else { index };
            values.is_valid(index).then(|| values.value(index))
        })
        .collect();
    let DataType::List(field) = tags.data_type() else { panic!("a list") };
    let turned: ArrayRef = Arc::new(turned);
    let turned = cast(&turned, field.data_type()).unwrap();
    let nulls = tags.nulls().cloned();
    Arc::new(ListArray::new(field.clone(), tags.offsets().clone(), turned, nulls))
}

#[tokio::test]
async fn damaged_rows_are_found_and_named() {
    let proof = Proof::new("full_refresh").await;
    let report = proof.validate().await;
    assert_eq!(report.verdict, Verdict::Verified, "{:#?}", report.checks);
    assert_eq!(report.version.as_deref(), Some("v1"));
    let right = proof.rows().await;
    found(&proof, &right, ROW_DAMAGES).await;
    found(&proof, &right, TEXT_DAMAGES).await;
    found(&proof, &right, NUMBER_DAMAGES).await;
    found(&proof, &right, TIME_DAMAGES).await;
    found(&proof, &right, OTHER_DAMAGES).await;
}

/// The same in a table that grows: the newest row of a key counts there, and no damage of rows is
/// taken for rows still to come.
#[tokio::test]
async fn damaged_rows_of_a_growing_table_are_found_and_named() {
    let proof = Proof::new("append").await;
    let right = proof.rows().await;
    // A row that the lake alone has may have been deleted in the source: only the content tells.
    found(&proof, &right, ROW_DAMAGES).await;
    found(&proof, &right, &TEXT_DAMAGES[..4]).await;
    found(&proof, &right, NUMBER_DAMAGES).await;
}
