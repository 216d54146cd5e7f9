//! What of an SQL condition the server can decide: a filter that every document passes for which the
//! condition may be true.
//!
//! MongoDB compares within one type, and SQL within the column's, which depends on the types of all
//! documents. So a comparison is said for columns that have held one kind of scalar, and every document
//! whose value there is of another type is asked for as well: whoever reads it learns that the column is
//! of another type now. Whoever asks filters again.

use std::collections::BTreeMap;

use bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use polder_core::{CmpOp, Literal, Predicate};

use super::query::{TYPES, of_other_types};
use crate::document::{Inference, Scalars, UNNAMED};

/// Levels of `$and` within `$or` within `$and` … that are said; a server takes documents of about 100.
const DEPTH_MAX: usize = 20;

/// A filter, and what it relies on.
#[derive(Debug, PartialEq)]
pub(super) struct Pushed {
    pub(super) filter: Document,
    /// Whether texts are compared: by their bytes, whatever the collection's collation.
    pub(super) has_texts: bool,
    /// The columns whose values are compared, and what these have to be.
    pub(super) compared: BTreeMap<String, Scalars>,
}

/// What can be said of the predicate; `None` if that is nothing.
pub(super) fn push(predicate: &Predicate, known: &Inference) -> Option<Pushed> {
    pushed(predicate, known, false)
}

/// The whole predicate: of the documents that have values of the kinds known in the columns compared, those
/// for which it is true, and no others. `None` if it cannot be said.
pub(super) fn push_whole(predicate: &Predicate, known: &Inference) -> Option<Pushed> {
    pushed(predicate, known, true)
}

fn pushed(predicate: &Predicate, known: &Inference, is_whole: bool) -> Option<Pushed> {
    let mut saying = Saying { known, is_whole, compared: BTreeMap::new() };
    let said = saying.say(predicate, true, 0)?;
    let has_texts = saying.compared.values().any(|scalars| *scalars == Scalars::String);
    let others =
        saying.compared.iter().map(|(column, scalars)| of_other_types(column, types(*scalars)));
    let others: Vec<_> = others.collect();
    let filter = if others.is_empty() { said } else { any([vec![said], others].concat()) };
    Some(Pushed { filter, has_texts, compared: saying.compared })
}

struct Saying<'a> {
    known: &'a Inference,
    /// Whether nothing may be left unsaid.
    is_whole: bool,
    /// The columns whose values are compared.
    compared: BTreeMap<String, Scalars>,
}

impl Saying<'_> {
    /// Passed by all documents for which the predicate may be true, or false where it is not to hold.
    fn say(&mut self, predicate: &Predicate, holds: bool, depth: usize) -> Option<Document> {
        match predicate {
            Predicate::True => None,
            Predicate::Not(inner) => self.say(inner, !holds, depth),
            Predicate::And(..) | Predicate::Or(..) => self.join(predicate, holds, depth),
            Predicate::Cmp { column, op, value } => {
                let op = if holds { *op } else { op.negated() };
                self.compare(column, op, value)
            }
            Predicate::In { column, values } => self.member(column, values, holds),
            Predicate::IsNull(column) => self.is_null(column, holds),
            Predicate::IsNotNull(column) => self.is_null(column, !holds),
            Predicate::StartsWith { column, prefix } => self.starts_with(column, prefix, holds),
        }
    }

    fn join(&mut self, predicate: &Predicate, holds: bool, depth: usize) -> Option<Document> {
        if depth == DEPTH_MAX {
            return None;
        }
        let every = matches!(predicate, Predicate::And(..)) == holds;
        let mut parts = Vec::new();
        flatten(predicate, holds, every, &mut parts);
        let is_whole = self.is_whole;
        let said = parts.into_iter().map(|(part, holds)| self.say(part, holds, depth + 1));
        if every && is_whole {
            return said.collect::<Option<Vec<_>>>().map(|said| doc! { "$and": said });
        }
        if every {
            let mut said: Vec<Document> = said.flatten().collect();
            return if said.len() > 1 { Some(doc! { "$and": said }) } else { said.pop() };
        }
        said.collect::<Option<Vec<_>>>().map(any)
    }

    /// What the column holds, if it can be compared by the server.
    fn column(&mut self, column: &str) -> Option<Scalars> {
        if !is_plain(column) {
            return None;
        }
        let scalars = self.known.scalars(column)?;
        self.compared.insert(column.to_owned(), scalars);
        Some(scalars)
    }

    /// Whether there is a value does not depend on its type.
    fn is_null(&self, column: &str, holds: bool) -> Option<Document> {
        let said = match (holds, self.is_whole) {
            // An array that has a null passes, too.
            (true, false) => doc! { column: Bson::Null },
            (true, true) => doc! { "$nor": [present(column)] },
            (false, _) => present(column),
        };
        is_plain(column).then_some(said)
    }

    fn compare(&mut self, column: &str, op: CmpOp, value: &Literal) -> Option<Document> {
        match (self.column(column)?, value) {
            (Scalars::Boolean, Literal::Boolean(value)) => match op {
                CmpOp::Eq => Some(doc! { column: { "$eq": *value } }),
                CmpOp::NotEq => Some(doc! { column: { "$eq": !*value } }),
                _ => None,
            },
            (Scalars::Date, Literal::Timestamptz(micros)) => Some(at(column, op, *micros)),
            (scalars, value) => match (Constant::of(scalars, value)?, op) {
                (Constant::Value(value), op) => Some(ordered(column, op, &value)),
                (Constant::Foreign, CmpOp::Eq) => Some(nothing(column)),
                (Constant::Foreign, CmpOp::NotEq) => Some(present(column)),
                (Constant::Foreign, _) => None,
            },
        }
    }

    fn member(&mut self, column: &str, values: &[Literal], holds: bool) -> Option<Document> {
        let scalars = self.column(column)?;
        let constants = values.iter().map(|value| Constant::of(scalars, value));
        let constants = constants.collect::<Option<Vec<_>>>()?.into_iter();
        let values: Vec<Bson> = constants.filter_map(Constant::value).collect();
        Some(if holds {
            doc! { column: { "$in": values } }
        } else {
            doc! { column: { "$nin": values, "$type": types(scalars).to_vec() } }
        })
    }

    fn starts_with(&mut self, column: &str, prefix: &str, holds: bool) -> Option<Document> {
        if self.column(column)? != Scalars::String || prefix.contains('\0') {
            return None;
        }
        let end = after(prefix);
        Some(match (holds, end) {
            (true, Some(end)) => doc! { column: { "$gte": prefix, "$lt": end } },
            (true, None) => doc! { column: { "$gte": prefix } },
            (false, Some(end)) => {
                any(vec![doc! { column: { "$lt": prefix } }, doc! { column: { "$gte": end } }])
            }
            (false, None) => doc! { column: { "$lt": prefix } },
        })
    }
}

/// The parts of a conjunction, if `every` one has to hold, or else of a disjunction; each with whether it is
/// to hold.
fn flatten<'a>(
    predicate: &'a Predicate,
    holds: bool,
    every: bool,
    parts: &mut Vec<(&'a Predicate, bool)>,
) {
    match predicate {
        Predicate::Not(inner) => flatten(inner, !holds, every, parts),
        Predicate::And(left, right) if holds == every => {
            flatten(left, holds, every, parts);
            flatten(right, holds, every, parts);
        }
        Predicate::Or(left, right) if holds != every => {
            flatten(left, holds, every, parts);
            flatten(right, holds, every, parts);
        }
        other => parts.push((other, holds)),
    }
}

fn any(documents: Vec<Document>) -> Document {
    doc! { "$or": documents }
}

/// Whether a filter can name the column: not where its name would be a path or an operator.
pub(super) fn is_plain(column: &str) -> bool {
    !column.is_empty() && !column.contains(['.', '$', '\0']) && column != UNNAMED
}

fn present(column: &str) -> Document {
    doc! { column: { "$type": TYPES.to_vec() } }
}

fn nothing(column: &str) -> Document {
    doc! { column: { "$in": Vec::<Bson>::new() } }
}

/// The names of the types that such a column holds.
pub(super) fn types(scalars: Scalars) -> &'static [&'static str] {
    match scalars {
        Scalars::Boolean => &["bool"],
        Scalars::Integers { int: true, long: true } => &["int", "long"],
        Scalars::Integers { int: true, long: false } => &["int"],
        Scalars::Integers { .. } => &["long"],
        Scalars::String => &["string"],
        Scalars::ObjectId => &["objectId"],
        Scalars::Date => &["date"],
    }
}

/// A constant of the query among the values of a column.
enum Constant {
    Value(Bson),
    /// No value of the column is equal to it.
    Foreign,
}

impl Constant {
    /// `None` if it cannot be told.
    fn of(scalars: Scalars, value: &Literal) -> Option<Self> {
        let value = match (scalars, value) {
            (Scalars::Boolean, Literal::Boolean(value)) => Some(Bson::from(*value)),
            (Scalars::Integers { .. }, Literal::Int(value)) => Some(Bson::from(*value)),
            (Scalars::Integers { .. }, Literal::Long(value)) => Some(Bson::from(*value)),
            // Not every server compares what is behind it.
            (Scalars::String, Literal::String(text)) if !text.contains('\0') => {
                Some(Bson::from(text.as_str()))
            }
            (Scalars::ObjectId, Literal::String(text)) => object_id(text).map(Bson::from),
            (Scalars::Date, Literal::Timestamptz(micros)) => {
                let whole = micros.rem_euclid(1000) == 0;
                whole.then(|| date(micros.div_euclid(1000)))
            }
            _ => return None,
        };
        Some(value.map_or(Self::Foreign, Self::Value))
    }

    fn value(self) -> Option<Bson> {
        match self {
            Self::Value(value) => Some(value),
            Self::Foreign => None,
        }
    }
}

/// The id that has this text in the lake: small hexadecimal digits.
fn object_id(text: &str) -> Option<ObjectId> {
    let is_text = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_text { ObjectId::parse_str(text).ok() } else { None }
}

fn ordered(column: &str, op: CmpOp, value: &Bson) -> Document {
    let operator = match op {
        CmpOp::Eq => "$eq",
        CmpOp::Lt => "$lt",
        CmpOp::LtEq => "$lte",
        CmpOp::Gt => "$gt",
        CmpOp::GtEq => "$gte",
        // `$ne` would bring the documents without a value, too.
        CmpOp::NotEq => {
            return any(vec![
                doc! { column: { "$lt": value.clone() } },
                doc! { column: { "$gt": value.clone() } },
            ]);
        }
    };
    doc! { column: { operator: value.clone() } }
}

/// A comparison with a time in microseconds; dates have milliseconds.
fn at(column: &str, op: CmpOp, micros: i64) -> Document {
    let (millis, between) = (micros.div_euclid(1000), micros.rem_euclid(1000) != 0);
    match op {
        CmpOp::Eq if between => nothing(column),
        CmpOp::NotEq if between => present(column),
        // `millis` is the last one before it.
        CmpOp::Lt if between => ordered(column, CmpOp::LtEq, &date(millis)),
        CmpOp::GtEq if between => ordered(column, CmpOp::Gt, &date(millis)),
        op => ordered(column, op, &date(millis)),
    }
}

fn date(millis: i64) -> Bson {
    Bson::DateTime(DateTime::from_millis(millis))
}

/// The first text after all that begin so, by the order of bytes; `None` if there is none.
fn after(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        let next = match last {
            // Surrogates are no characters.
            '\u{D7FF}' => Some('\u{E000}'),
            last => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::InferenceOptions;

    fn known() -> Inference {
        let mut inference = Inference::new(InferenceOptions::default());
        let first = doc! {
            "_id": ObjectId::from_bytes([1; 12]), "n": 1_i32, "l": 1_i64, "s": "x", "b": true,
            "at": DateTime::from_millis(0), "x": 1_i32, "f": 0.5, "a.b": 1_i32, "$c": 1_i32,
            "a": [1_i32], "": 1_i32, "o": { "p": 1_i32 }, "u": Bson::Null,
        };
        for document in [first, doc! { "x": "1", "l": 1_i32 }] {
            inference.see(&document.to_vec().expect("bytes")).expect("a document");
        }
        inference
    }

    fn cmp(column: &str, op: CmpOp, value: Literal) -> Predicate {
        Predicate::Cmp { column: column.to_owned(), op, value }
    }

    fn text(value: &str) -> Literal {
        Literal::String(value.to_owned())
    }

    fn not(predicate: Predicate) -> Predicate {
        Predicate::Not(Box::new(predicate))
    }

    fn or(left: Predicate, right: Predicate) -> Predicate {
        Predicate::Or(Box::new(left), Box::new(right))
    }

    fn filter(predicate: &Predicate) -> Option<Document> {
        push(predicate, &known()).map(|pushed| pushed.filter)
    }

    /// `said`, or a value of another type.
    fn or_other(said: Document, column: &str, types: &[&str]) -> Document {
        doc! { "$or": [said, of_other_types(column, types)] }
    }

    #[test]
    fn comparisons_are_of_one_type_or_bring_what_is_of_another() {
        let five = || Literal::Int(5);
        let n = |said| Some(or_other(said, "n", &["int"]));
        let cases = [
            (cmp("n", CmpOp::Eq, five()), n(doc! { "n": { "$eq": 5_i32 } })),
            (cmp("n", CmpOp::GtEq, five()), n(doc! { "n": { "$gte": 5_i32 } })),
            (not(cmp("n", CmpOp::GtEq, five())), n(doc! { "n": { "$lt": 5_i32 } })),
            (
                cmp("n", CmpOp::NotEq, five()),
                n(doc! { "$or": [{ "n": { "$lt": 5_i32 } }, { "n": { "$gt": 5_i32 } }] }),
            ),
            (
                cmp("l", CmpOp::Lt, Literal::Long(7)),
                Some(or_other(doc! { "l": { "$lt": 7_i64 } }, "l", &["int", "long"])),
            ),
            (
                cmp("b", CmpOp::NotEq, Literal::Boolean(true)),
                Some(or_other(doc! { "b": { "$eq": false } }, "b", &["bool"])),
            ),
            (
                Predicate::In { column: "n".to_owned(), values: vec![five(), Literal::Int(6)] },
                n(doc! { "n": { "$in": [5_i32, 6_i32] } }),
            ),
            (
                not(Predicate::In { column: "n".to_owned(), values: vec![five()] }),
                n(doc! { "n": { "$nin": [5_i32], "$type": ["int"] } }),
            ),
        ];
        for (predicate, expected) in cases {
            assert_eq!(filter(&predicate), expected, "{predicate:?}");
        }
    }

    #[test]
    fn texts_compare_by_bytes_and_ids_by_their_digits() {
        let s = |said| Some(or_other(said, "s", &["string"]));
        let id = |said| Some(or_other(said, "_id", &["objectId"]));
        let (hex, oid) = ("0101010101010101010101ff", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 255]);
        let oid = ObjectId::from_bytes(oid);
        let starts = |prefix: &str| Predicate::StartsWith {
            column: "s".to_owned(),
            prefix: prefix.to_owned(),
        };
        let cases = [
            (cmp("s", CmpOp::Gt, text("é")), s(doc! { "s": { "$gt": "é" } })),
            (starts("ab"), s(doc! { "s": { "$gte": "ab", "$lt": "ac" } })),
            (
                not(starts("a\u{D7FF}")),
                s(
                    doc! { "$or": [{ "s": { "$lt": "a\u{D7FF}" } }, { "s": { "$gte": "a\u{E000}" } }] },
                ),
            ),
            (starts("\u{10FFFF}"), s(doc! { "s": { "$gte": "\u{10FFFF}" } })),
            (cmp("_id", CmpOp::LtEq, text(hex)), id(doc! { "_id": { "$lte": oid } })),
            (cmp("_id", CmpOp::Eq, text("no id")), id(nothing("_id"))),
            (cmp("_id", CmpOp::Eq, text(&hex.to_uppercase())), id(nothing("_id"))),
            (cmp("_id", CmpOp::NotEq, text("no id")), id(present("_id"))),
            (cmp("_id", CmpOp::Lt, text("no id")), None),
            (cmp("s", CmpOp::Eq, text("a\0b")), None),
        ];
        for (predicate, expected) in cases {
            assert_eq!(filter(&predicate), expected, "{predicate:?}");
        }
        assert!(push(&starts("ab"), &known()).expect("said").has_texts);
        assert!(!push(&cmp("_id", CmpOp::Eq, text(hex)), &known()).expect("said").has_texts);
    }

    #[test]
    fn times_between_two_milliseconds_are_met_by_neither() {
        let cases = [
            (CmpOp::Eq, 2000, ordered("at", CmpOp::Eq, &date(2))),
            (CmpOp::Eq, 2001, nothing("at")),
            (CmpOp::NotEq, 2001, present("at")),
            (CmpOp::Lt, 2000, ordered("at", CmpOp::Lt, &date(2))),
            (CmpOp::Lt, 2001, ordered("at", CmpOp::LtEq, &date(2))),
            (CmpOp::LtEq, 2001, ordered("at", CmpOp::LtEq, &date(2))),
            (CmpOp::Gt, 2001, ordered("at", CmpOp::Gt, &date(2))),
            (CmpOp::GtEq, 2001, ordered("at", CmpOp::Gt, &date(2))),
            (CmpOp::GtEq, -1, ordered("at", CmpOp::Gt, &date(-1))),
        ];
        for (op, micros, said) in cases {
            let predicate = cmp("at", op, Literal::Timestamptz(micros));
            assert_eq!(filter(&predicate), Some(or_other(said, "at", &["date"])), "{predicate:?}");
        }
    }

    #[test]
    fn what_cannot_be_said_is_not_asked() {
        let one = || Literal::Int(1);
        for column in ["x", "f", "a.b", "$c", "a", "_unnamed", "o", "u", "nowhere"] {
            assert_eq!(filter(&cmp(column, CmpOp::Eq, one())), None, "{column}");
        }
        for column in ["a.b", "$c", "_unnamed"] {
            assert_eq!(filter(&Predicate::IsNull(column.to_owned())), None, "{column}");
        }
        assert_eq!(filter(&cmp("n", CmpOp::Eq, text("1"))), None);
        assert_eq!(filter(&Predicate::True), None);
        let (said, unsaid) = (cmp("n", CmpOp::Eq, one()), cmp("f", CmpOp::Eq, one()));
        let n = Some(or_other(doc! { "n": { "$eq": 1_i32 } }, "n", &["int"]));
        assert_eq!(filter(&said.clone().and(unsaid.clone())), n);
        assert_eq!(filter(&or(said.clone(), unsaid.clone())), None);
        let negated = ordered("n", CmpOp::NotEq, &Bson::from(1_i32));
        let negated = Some(or_other(negated, "n", &["int"]));
        assert_eq!(filter(&not(or(said.clone(), unsaid.clone()))), negated);
        assert_eq!(filter(&not(said.and(unsaid))), None);
    }

    #[test]
    fn a_predicate_is_said_whole_or_not_at_all() {
        let whole = |predicate: &Predicate| push_whole(predicate, &known());
        let (said, unsaid) =
            (cmp("n", CmpOp::Eq, Literal::Int(1)), cmp("f", CmpOp::Eq, Literal::Int(1)));
        assert_eq!(whole(&said.clone().and(unsaid.clone())), None);
        assert_eq!(whole(&or(said.clone(), unsaid)), None);
        let null = Predicate::IsNull("f".to_owned());
        let absent = doc! { "$nor": [present("f")] };
        assert_eq!(whole(&null).expect("said").filter, absent);
        assert_eq!(whole(&not(null.clone())).expect("said").filter, present("f"));
        let both = whole(&said.and(null)).expect("said");
        let all = doc! { "$and": [{ "n": { "$eq": 1_i32 } }, absent] };
        assert_eq!(both.filter, or_other(all, "n", &["int"]));
        let ints = Scalars::Integers { int: true, long: false };
        assert_eq!(both.compared, BTreeMap::from([("n".to_owned(), ints)]));
    }

    #[test]
    fn nulls_need_no_type_and_long_chains_no_depth() {
        let null = Predicate::IsNull("f".to_owned());
        assert_eq!(filter(&null), Some(doc! { "f": Bson::Null }));
        assert_eq!(filter(&not(null)), Some(present("f")));
        let equal = |n| cmp("n", CmpOp::Eq, Literal::Int(n));
        let chain = (1..500).fold(equal(0), |all, n| or(all, equal(n)));
        let said = filter(&chain).expect("said");
        let inner = said.get_array("$or").expect("or")[0].as_document().expect("a document");
        assert_eq!(inner.get_array("$or").expect("or").len(), 500);
    }
}
