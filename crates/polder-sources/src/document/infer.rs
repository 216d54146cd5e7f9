//! Learns what types the values at each path of a set of documents have.
//!
//! A tree of paths collects, per path, the set of types seen and the range of its numbers; what that
//! means as a column type is decided in `types`. Paths that no column can hold (too deep, too many
//! members, a member twice in one document) are marked for text, so that nothing is lost.

use std::collections::{BTreeMap, HashSet};

use bson::oid::ObjectId;
use polder_core::spec::OnUnrepresentable;
use polder_core::{CursorValue, Error, ErrorCode, Field, LakeType, Result, TableSchema, TextOf};

use super::names::Names;
use super::raw::{Decimal, Element, Elements, Value, malformed};
use super::rows;
use super::types;

/// Nesting beyond this becomes text: engines and Parquet readers get slow or give up.
const DEPTH_MAX: usize = 32;
/// Members of one document type beyond this become text: such documents are maps, not records.
pub(crate) const MEMBERS_MAX: usize = 1_000;
/// Paths of one table.
const PATHS_MAX: usize = 10_000;
/// What a top-level member without a name is called.
pub(crate) const UNNAMED: &str = "_unnamed";

/// What the schema is to be like.
#[derive(Clone, Debug, Default)]
pub(crate) struct InferenceOptions {
    /// The lake table's schema; its columns come first and keep their types where values fit.
    pub(crate) known: Option<TableSchema>,
    /// Types declared by column.
    pub(crate) declared: BTreeMap<String, LakeType>,
    /// The columns wanted, in order; all when absent.
    pub(crate) columns: Option<Vec<String>>,
    pub(crate) on_unrepresentable: OnUnrepresentable,
    /// The columns that name a row.
    pub(crate) key: Vec<String>,
}

/// The tree of paths.
pub(crate) struct Inference {
    pub(super) root: Node,
    walk: Walk,
    options: InferenceOptions,
}

/// What is counted over the whole walk.
#[derive(Default)]
struct Walk {
    /// The columns wanted; all when absent.
    wanted: Option<HashSet<Box<[u8]>>>,
    paths: usize,
    /// Numbers the documents walked, nested ones too, to find members that appear twice.
    documents: u64,
}

/// What was seen at one path.
#[derive(Default)]
pub(super) struct Node {
    pub(super) seen: Seen,
    pub(super) names: Names,
    pub(super) members: Vec<Node>,
    pub(super) element: Option<Box<Node>>,
    /// Smallest and largest of the integers.
    pub(super) integers: (i64, i64),
    /// Digits before and after the point that the finite decimals need.
    pub(super) decimal_digits: (u32, u32),
    /// The last document that had this member.
    document: u64,
    pub(super) name: Box<[u8]>,
}

/// A set of the types seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(pub(super) u32);

impl Seen {
    pub(super) const BOOLEAN: Self = Self(1);
    pub(super) const INT: Self = Self(1 << 1);
    pub(super) const LONG: Self = Self(1 << 2);
    /// An integer that a double does not hold exactly (beyond ±2^53).
    pub(super) const LONG_WIDE: Self = Self(1 << 3);
    pub(super) const DOUBLE: Self = Self(1 << 4);
    pub(super) const DECIMAL: Self = Self(1 << 5);
    /// `NaN` or an infinity among decimals.
    pub(super) const DECIMAL_SPECIAL: Self = Self(1 << 6);
    pub(super) const STRING: Self = Self(1 << 7);
    pub(super) const OBJECT_ID: Self = Self(1 << 8);
    pub(super) const DATE: Self = Self(1 << 9);
    /// A date outside the years 1 to 9999.
    pub(super) const DATE_OUTSIDE: Self = Self(1 << 10);
    pub(super) const BINARY: Self = Self(1 << 11);
    pub(super) const UUID: Self = Self(1 << 12);
    pub(super) const DOCUMENT: Self = Self(1 << 13);
    pub(super) const ARRAY: Self = Self(1 << 14);
    /// Something only text holds.
    pub(super) const TEXT: Self = Self(1 << 15);

    pub(super) const INTEGERS: Self = Self(Self::INT.0 | Self::LONG.0 | Self::LONG_WIDE.0);
    const NUMBERS: Self = Self(Self::INTEGERS.0 | Self::DOUBLE.0 | Self::DECIMALS.0);
    pub(super) const DECIMALS: Self = Self(Self::DECIMAL.0 | Self::DECIMAL_SPECIAL.0);
    pub(super) const DATES: Self = Self(Self::DATE.0 | Self::DATE_OUTSIDE.0);

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing but `other` was seen.
    pub(super) const fn only(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl Inference {
    pub(crate) fn new(options: InferenceOptions) -> Self {
        let name = |column: &String| column.as_bytes().into();
        let wanted = options.columns.as_ref().map(|columns| columns.iter().map(name).collect());
        Self { root: Node::default(), walk: Walk { wanted, ..Walk::default() }, options }
    }

    /// Takes one document's values into account.
    ///
    /// # Errors
    /// `source.malformed` for broken bytes; `source.unrepresentable` for a document whose top level
    /// has a member twice or more members than a table can have columns.
    pub(crate) fn see(&mut self, document: &[u8]) -> Result<()> {
        let seen = self.root.see_document(&mut self.walk, document, 0);
        seen.and_then(
            |()| if self.root.seen.has(Seen::TEXT) { Err(no_row(document)) } else { Ok(()) },
        )
        .map_err(|error| rows::named(error, document, &self.options.key))
    }

    /// Whether a column's values, null aside, compare with each other and with the lower bound of
    /// the read, so that the highest of them says how far the table was read.
    pub(crate) fn is_ordered(&self, field: &Field, lower: Option<&CursorValue>) -> bool {
        let Some(number) = self.root.names.find(field.name.as_bytes(), 0) else { return true };
        let seen = self.root.members[number].seen;
        match (&field.data_type, field.text_of) {
            (LakeType::Int | LakeType::Long, _) => seen.only(Seen::NUMBERS),
            (LakeType::Date | LakeType::Timestamp | LakeType::Timestamptz, _) => {
                seen.only(Seen::DATES)
            }
            (LakeType::String, None | Some(TextOf::ObjectId)) => {
                let ids = match lower {
                    Some(CursorValue::Text(text)) => ObjectId::parse_str(text).is_ok(),
                    _ => true,
                };
                seen.only(Seen::STRING) || (ids && seen.only(Seen::OBJECT_ID))
            }
            _ => seen.is_empty(),
        }
    }

    /// The schema of all documents seen, and what the reader should know about it.
    pub(crate) fn finish(&self) -> Result<(TableSchema, Vec<String>)> {
        types::schema(&self.root, &self.options)
    }
}

/// Why a document's members cannot be the columns of a table.
#[cold]
fn no_row(document: &[u8]) -> Error {
    let refused = |what: &str| {
        let message = format!("a document cannot become a row: {what}");
        Error::new(ErrorCode::SourceUnrepresentable, message)
            .detail(format!("the limit is {MEMBERS_MAX} columns and {PATHS_MAX} nested fields"))
            .hint("choose the columns to read with `columns:`")
    };
    match rows::twice(document) {
        Some(name) => refused(&format!("it has the member {name:?} twice")),
        None => refused("the table would have too many columns"),
    }
}

impl Walk {
    /// Whether a top-level member is none of the columns wanted.
    fn leaves_out(&self, key: &[u8]) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| !wanted.contains(key))
    }
}

impl Node {
    fn see_document(&mut self, walk: &mut Walk, bytes: &[u8], depth: usize) -> Result<()> {
        walk.documents += 1;
        let document = walk.documents;
        let mut next = 0;
        for element in Elements::new(bytes)? {
            let element = element?;
            let key =
                if element.key.is_empty() && depth == 0 { UNNAMED.as_bytes() } else { element.key };
            if depth == 0 && walk.leaves_out(key) {
                continue;
            }
            let Some(number) = self.member(walk, key, next)? else {
                self.become_text(walk);
                return Ok(());
            };
            let member = &mut self.members[number];
            if member.document == document {
                self.become_text(walk);
                return Ok(());
            }
            member.document = document;
            member.see(walk, &element, depth + 1)?;
            next = number + 1;
        }
        Ok(())
    }

    /// The member's number, added if need be; `None` where no struct can have it.
    fn member(&mut self, walk: &mut Walk, key: &[u8], hint: usize) -> Result<Option<usize>> {
        if let Some(number) = self.names.find(key, hint) {
            return Ok(Some(number));
        }
        if key.is_empty() || self.members.len() == MEMBERS_MAX || walk.paths == PATHS_MAX {
            return Ok(None);
        }
        if std::str::from_utf8(key).is_err() {
            return Err(malformed("a member's name is not UTF-8"));
        }
        walk.paths += 1;
        self.members.push(Self { name: key.into(), ..Self::default() });
        Ok(Some(self.names.add(key)))
    }

    fn see(&mut self, walk: &mut Walk, element: &Element<'_>, depth: usize) -> Result<()> {
        if self.seen.has(Seen::TEXT) {
            return Ok(());
        }
        match element.value() {
            Value::Null => {}
            Value::Boolean(_) => self.seen.add(Seen::BOOLEAN),
            Value::Int(value) => {
                self.seen.add(Seen::INT);
                self.see_integer(i64::from(value));
            }
            Value::Long(value) => {
                self.seen.add(Seen::LONG);
                if value.unsigned_abs() > 1 << 53 {
                    self.seen.add(Seen::LONG_WIDE);
                }
                self.see_integer(value);
            }
            Value::Double(_) => self.seen.add(Seen::DOUBLE),
            Value::Decimal(value) => self.see_decimal(value),
            Value::String(_) => self.seen.add(Seen::STRING),
            Value::ObjectId(_) => self.seen.add(Seen::OBJECT_ID),
            Value::Date(millis) => {
                let outside = !types::DATE_MILLIS.contains(&millis);
                self.seen.add(if outside { Seen::DATE_OUTSIDE } else { Seen::DATE });
            }
            Value::Binary(0, _) => self.seen.add(Seen::BINARY),
            Value::Binary(4, bytes) if bytes.len() == 16 => self.seen.add(Seen::UUID),
            Value::Document(_) | Value::Array(_) if depth >= DEPTH_MAX => self.become_text(walk),
            Value::Document(bytes) => {
                self.seen.add(Seen::DOCUMENT);
                self.see_document(walk, bytes, depth)?;
            }
            Value::Array(bytes) => {
                self.seen.add(Seen::ARRAY);
                let node = self.element.get_or_insert_default();
                for element in Elements::new(bytes)? {
                    node.see(walk, &element?, depth + 1)?;
                    node.document = 1;
                }
            }
            Value::Binary(..) | Value::Symbol(_) | Value::Other => self.become_text(walk),
        }
        Ok(())
    }

    fn see_integer(&mut self, value: i64) {
        self.integers = (self.integers.0.min(value), self.integers.1.max(value));
    }

    fn see_decimal(&mut self, value: Decimal) {
        let Decimal::Finite { coefficient, exponent, .. } = value else {
            return self.seen.add(Seen::DECIMAL_SPECIAL);
        };
        self.seen.add(Seen::DECIMAL);
        if coefficient == 0 {
            return;
        }
        let digits = coefficient.ilog10() as i32 + 1;
        let (before, after) = ((digits + exponent).max(0), (-exponent).max(0));
        let (before, after) = (before.cast_unsigned(), after.cast_unsigned());
        let so_far = self.decimal_digits;
        self.decimal_digits = (so_far.0.max(before), so_far.1.max(after));
    }

    /// Gives up on a column of its own type and on everything below.
    fn become_text(&mut self, walk: &mut Walk) {
        self.seen.add(Seen::TEXT);
        let members = std::mem::take(&mut self.members);
        let element = self.element.take();
        walk.paths -= members.iter().map(Node::paths).sum::<usize>()
            + element.map_or(0, |element| element.paths() - 1);
        self.names = Names::default();
    }

    /// The paths at and below this member. A list's element is not counted by itself.
    pub(super) fn paths(&self) -> usize {
        1 + self.members.iter().map(Node::paths).sum::<usize>()
            + self.element.as_ref().map_or(0, |element| element.paths() - 1)
    }

    /// Whether any value, null included, was seen at this element of an array.
    pub(super) fn is_used(&self) -> bool {
        self.document != 0
    }
}

impl InferenceOptions {
    /// What a read asks for.
    pub(crate) fn of(request: &polder_core::ReadRequest) -> Self {
        Self {
            known: request.known_schema.clone(),
            declared: request.types.clone(),
            columns: request.columns.clone(),
            on_unrepresentable: request.on_unrepresentable,
            key: request.key.clone(),
        }
    }
}
