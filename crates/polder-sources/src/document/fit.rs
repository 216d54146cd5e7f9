//! Whether documents tell nothing that others have not told, and which columns hold one kind of scalar.

use super::infer::{Inference, Node, Seen};
use super::types;

/// The values of a column that are all of one kind, null aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalars {
    Boolean,
    /// Of 32 bits, of 64, or some of either.
    Integers {
        int: bool,
        long: bool,
    },
    String,
    ObjectId,
    /// Of the years 1 to 9999.
    Date,
}

impl Inference {
    /// Whether the documents that `other` has seen change nothing in the schema of these, were they added.
    /// Looks at some columns of `other` only, if they are named.
    pub(crate) fn covers(&self, other: &Self, columns: Option<&[String]>) -> bool {
        let named = |node: &Node| {
            columns.is_none_or(|columns| columns.iter().any(|name| *name.as_bytes() == *node.name))
        };
        other
            .root
            .members
            .iter()
            .filter(|member| named(member))
            .all(|member| covers_member(&self.root, member))
    }

    /// What a column of scalars of one kind holds; `None` for any other column.
    pub(crate) fn scalars(&self, column: &str) -> Option<Scalars> {
        let seen = self.seen(column);
        if seen.is_empty() {
            None
        } else if seen.only(Seen::BOOLEAN) {
            Some(Scalars::Boolean)
        } else if seen.only(Seen::INTEGERS) {
            let long = seen.has(Seen::LONG.with(Seen::LONG_WIDE));
            Some(Scalars::Integers { int: seen.has(Seen::INT), long })
        } else if seen.only(Seen::STRING) {
            Some(Scalars::String)
        } else if seen.only(Seen::OBJECT_ID) {
            Some(Scalars::ObjectId)
        } else if seen.only(Seen::DATE) {
            Some(Scalars::Date)
        } else {
            None
        }
    }

    /// Whether a column has held no values but of this kind, integers of either size; `None`: but nulls.
    pub(crate) fn holds_only(&self, column: &str, kind: Option<Scalars>) -> bool {
        let kind = match kind {
            None => Seen::default(),
            Some(Scalars::Boolean) => Seen::BOOLEAN,
            Some(Scalars::Integers { .. }) => Seen::INTEGERS,
            Some(Scalars::String) => Seen::STRING,
            Some(Scalars::ObjectId) => Seen::OBJECT_ID,
            Some(Scalars::Date) => Seen::DATE,
        };
        self.seen(column).only(kind)
    }

    /// Whether a column cannot be read, unless as text: in it, or in what it is made of, there was a date that
    /// no timestamp is.
    pub(crate) fn is_refused(&self, column: &str) -> bool {
        fn outside(node: &Node) -> bool {
            node.seen.has(Seen::DATE_OUTSIDE)
                || node.members.iter().any(outside)
                || node.element.as_deref().is_some_and(outside)
        }
        self.member(column).is_some_and(outside)
    }

    /// The types at a column; none if there is no such column.
    fn seen(&self, column: &str) -> Seen {
        self.member(column).map_or(Seen::default(), |member| member.seen)
    }

    fn member(&self, column: &str) -> Option<&Node> {
        self.root.members.get(self.root.names.find(column.as_bytes(), 0)?)
    }

    /// Columns and nested fields that are remembered.
    pub(crate) fn paths(&self) -> usize {
        self.root.paths()
    }
}

fn covers_member(known: &Node, member: &Node) -> bool {
    let found = known.names.find(&member.name, 0).and_then(|number| known.members.get(number));
    found.is_some_and(|found| covers(found, member))
}

/// Whether the values at a path leave its type as it is.
fn covers(known: &Node, other: &Node) -> bool {
    // Text holds everything.
    if known.seen.has(Seen::TEXT) {
        return true;
    }
    if !other.seen.only(known.seen) {
        return false;
    }
    if known.seen.has(Seen::DECIMALS) {
        let ((before, after), (wanted_before, wanted_after)) =
            (types::digits(known), types::digits(other));
        if wanted_before > before || wanted_after > after {
            return false;
        }
    }
    let elements =
        other.element.as_deref().filter(|element| element.is_used()).is_none_or(|other| {
            let known = known.element.as_deref().filter(|element| element.is_used());
            known.is_some_and(|known| covers(known, other))
        });
    elements && other.members.iter().all(|member| covers_member(known, member))
}

#[cfg(test)]
mod tests {
    use bson::{Bson, DateTime, Document, doc};

    use super::super::InferenceOptions;
    use super::*;

    fn seen(documents: &[Document]) -> Inference {
        let mut inference = Inference::new(InferenceOptions::default());
        for document in documents {
            inference.see(&document.to_vec().expect("bytes")).expect("a document");
        }
        inference
    }

    #[test]
    fn a_document_that_tells_something_new_is_not_covered() {
        let decimal = |text: &str| Bson::Decimal128(text.parse().expect("decimal"));
        let known = seen(&[
            doc! { "n": 1_i32, "s": "x", "d": decimal("10.25"), "e": [{ "a": 1_i64 }] },
            doc! { "n": 1_i64, "m": 1_i32, "t": Bson::Null, "o": { "p": true } },
            doc! { "m": "x", "at": DateTime::from_millis(0), "l": [] },
        ]);
        let covered = [
            doc! {},
            doc! { "n": 7_i64, "s": Bson::Null, "l": [] },
            doc! { "m": "y", "o": { "p": Bson::Null }, "e": [{ "a": 5_i64 }, {}] },
            doc! { "d": decimal("-99.1") },
        ];
        for document in covered {
            assert!(known.covers(&seen(std::slice::from_ref(&document)), None), "{document}");
        }
        let new = [
            doc! { "new": Bson::Null },
            doc! { "n": 1.5 },
            doc! { "n": [1_i32] },
            doc! { "s": 1_i32 },
            doc! { "m": 1.5 },
            doc! { "t": 1_i32 },
            doc! { "d": decimal("100.1") },
            doc! { "d": decimal("1.125") },
            doc! { "d": decimal("NaN") },
            doc! { "at": DateTime::MAX },
            doc! { "o": { "q": 1_i32 } },
            doc! { "e": [{ "a": "x" }] },
            doc! { "l": [1_i32] },
        ];
        for document in new {
            assert!(!known.covers(&seen(std::slice::from_ref(&document)), None), "{document}");
            let other = ["x".to_owned()];
            assert!(
                known.covers(&seen(std::slice::from_ref(&document)), Some(&other)),
                "{document}"
            );
        }
    }

    #[test]
    fn columns_of_one_kind_are_known() {
        let known = seen(&[
            doc! { "i": 1_i32, "l": 1_i64, "b": true, "s": "x", "x": 1_i32, "a": [1_i32] },
            doc! { "i": 1_i64, "l": i64::MAX, "b": Bson::Null, "d": DateTime::now(), "x": 0.5 },
            doc! { "o": bson::oid::ObjectId::new(), "n": Bson::Null, "y": DateTime::MAX },
        ]);
        let cases = [
            ("i", Some(Scalars::Integers { int: true, long: true })),
            ("l", Some(Scalars::Integers { int: false, long: true })),
            ("b", Some(Scalars::Boolean)),
            ("s", Some(Scalars::String)),
            ("d", Some(Scalars::Date)),
            ("o", Some(Scalars::ObjectId)),
        ];
        for (column, expected) in cases {
            assert_eq!(known.scalars(column), expected, "{column}");
        }
        for column in ["x", "a", "n", "y", "nowhere"] {
            assert_eq!(known.scalars(column), None, "{column}");
        }
        let int = Some(Scalars::Integers { int: true, long: false });
        let held = [
            ("i", int, true),
            ("l", int, true),
            ("s", int, false),
            ("b", Some(Scalars::Boolean), true),
            ("b", None, false),
            ("x", int, false),
            ("y", Some(Scalars::Date), false),
            ("n", None, true),
            ("nowhere", None, true),
        ];
        for (column, kind, expected) in held {
            assert_eq!(known.holds_only(column, kind), expected, "{column}");
        }
        let nested = seen(&[doc! { "in": { "l": [{ "at": DateTime::MIN }] }, "b": {} }]);
        for (known, column, expected) in [
            (&known, "y", true),
            (&known, "d", false),
            (&nested, "in", true),
            (&nested, "b", false),
        ] {
            assert_eq!(known.is_refused(column), expected, "{column}");
        }
    }
}
