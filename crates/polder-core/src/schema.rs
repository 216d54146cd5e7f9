//! The shape of a table in Iceberg's words, and its one Arrow layout.
//!
//! Sources describe what they read with [`TableSchema`] and emit record batches in exactly
//! [`TableSchema::to_arrow`]'s layout; the lake turns it into an Iceberg schema with field ids. No
//! Iceberg types appear here.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::{
    DataType, Field as ArrowField, FieldRef, Fields, Schema as ArrowSchema, SchemaRef, TimeUnit,
};
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorCode, Result};

/// A column type of the lake: Iceberg v2's types (spec, *Schemas and Data Types*), without map.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LakeType {
    Boolean,
    /// 32 bits; PostgreSQL's `int2` too, as Iceberg has nothing smaller.
    Int,
    Long,
    Float,
    Double,
    /// Precision 1–38, scale 0–precision.
    Decimal {
        precision: u8,
        scale: u8,
    },
    Date,
    /// Microseconds since midnight.
    Time,
    /// Microseconds, without time zone.
    Timestamp,
    /// Microseconds since the epoch, UTC.
    Timestamptz,
    String,
    /// 16 bytes, big endian.
    Uuid,
    Binary,
    List(Box<Field>),
    Struct(Vec<Field>),
}

/// A column, a struct's member, or a list's element (then its name is `element`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Field {
    pub name: String,
    pub data_type: LakeType,
    pub nullable: bool,
    /// The source's own stable id of the column, by which a rename is recognised: PostgreSQL's
    /// `attnum`. `None` where the source has no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<i32>,
    /// What the text of a string column stands for. `None`: the source's own strings. Text of two
    /// kinds never shares a column, so that every value can be told for what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_of: Option<TextOf>,
    /// The source has dropped the column; the table keeps it for its old rows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retired: bool,
}

/// What a string column's text stands for, where it is not the source's own strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextOf {
    /// JSON text (MongoDB extended JSON for MongoDB's values), strings in quotes: the source's
    /// values there have no common type.
    Json,
    /// A MongoDB `ObjectId` as 24 hex digits.
    ObjectId,
    /// Decimals that no `decimal(p, s)` holds together.
    Decimal,
}

impl Field {
    /// A nullable field without a source id.
    pub fn new(name: impl Into<String>, data_type: LakeType) -> Self {
        Self {
            name: name.into(),
            data_type,
            nullable: true,
            source_id: None,
            text_of: None,
            retired: false,
        }
    }

    /// A nullable string field whose text stands for something else.
    pub fn text(name: impl Into<String>, text_of: TextOf) -> Self {
        Self { text_of: Some(text_of), ..Self::new(name, LakeType::String) }
    }

    #[must_use]
    pub fn required(mut self) -> Self {
        self.nullable = false;
        self
    }

    #[must_use]
    pub fn with_source_id(mut self, id: i32) -> Self {
        self.source_id = Some(id);
        self
    }

    /// The Arrow field of this layout, without field-id metadata.
    pub fn to_arrow(&self) -> ArrowField {
        ArrowField::new(&self.name, self.data_type.to_arrow(), self.nullable)
    }
}

/// The name of a list's element field, as Iceberg and Parquet writers name it.
pub const LIST_ELEMENT: &str = "element";

impl LakeType {
    /// A list whose elements may be null.
    pub fn list_of(element: LakeType) -> Self {
        Self::List(Box::new(Field::new(LIST_ELEMENT, element)))
    }

    /// PostgreSQL's `interval`, lossless: months, days and microseconds are not interchangeable
    /// (PostgreSQL manual 8.5.4).
    pub fn interval() -> Self {
        Self::Struct(vec![
            Field::new("months", Self::Int).required(),
            Field::new("days", Self::Int).required(),
            Field::new("microseconds", Self::Long).required(),
        ])
    }

    /// The one Arrow type that carries this type between crates.
    ///
    /// Strings and binaries use 32-bit offsets; uuid is `FixedSizeBinary(16)`; timestamptz carries
    /// the zone `+00:00`, as Iceberg's Arrow conversions do.
    pub fn to_arrow(&self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::Int => DataType::Int32,
            Self::Long => DataType::Int64,
            Self::Float => DataType::Float32,
            Self::Double => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale as i8),
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            Self::String => DataType::Utf8,
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Binary => DataType::Binary,
            Self::List(element) => DataType::List(Arc::new(element.to_arrow())),
            Self::Struct(fields) => DataType::Struct(arrow_fields(fields)),
        }
    }

    /// Whether every value of `self` is also a value of `wider`, in a way Iceberg's schema
    /// evolution allows in place (spec, *Schema Evolution*: int→long, float→double, decimal
    /// precision may grow at the same scale).
    pub fn promotes_to(&self, wider: &LakeType) -> bool {
        match (self, wider) {
            (Self::Int, Self::Long) | (Self::Float, Self::Double) => true,
            (
                Self::Decimal { precision: from, scale: s1 },
                Self::Decimal { precision: to, scale: s2 },
            ) => s1 == s2 && from <= to,
            (a, b) => a == b,
        }
    }
}

fn arrow_fields(fields: &[Field]) -> Fields {
    fields.iter().map(|field| FieldRef::new(field.to_arrow())).collect()
}

impl fmt::Display for LakeType {
    /// Iceberg's notation: `decimal(18, 2)`, `list<string>`, `struct<a: int, b: string>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("boolean"),
            Self::Int => f.write_str("int"),
            Self::Long => f.write_str("long"),
            Self::Float => f.write_str("float"),
            Self::Double => f.write_str("double"),
            Self::Decimal { precision, scale } => write!(f, "decimal({precision}, {scale})"),
            Self::Date => f.write_str("date"),
            Self::Time => f.write_str("time"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Timestamptz => f.write_str("timestamptz"),
            Self::String => f.write_str("string"),
            Self::Uuid => f.write_str("uuid"),
            Self::Binary => f.write_str("binary"),
            Self::List(element) => write!(f, "list<{}>", element.data_type),
            Self::Struct(fields) => {
                f.write_str("struct<")?;
                for (index, field) in fields.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{}: {}", field.name, field.data_type)?;
                }
                f.write_str(">")
            }
        }
    }
}

impl FromStr for LakeType {
    type Err = Error;

    /// Reads the scalar types of [`LakeType`]'s notation, as `types:` of a table spec declares them.
    fn from_str(text: &str) -> Result<Self> {
        let name = text.trim().to_ascii_lowercase();
        Ok(match name.as_str() {
            "boolean" => Self::Boolean,
            "int" => Self::Int,
            "long" => Self::Long,
            "float" => Self::Float,
            "double" => Self::Double,
            "date" => Self::Date,
            "time" => Self::Time,
            "timestamp" => Self::Timestamp,
            "timestamptz" => Self::Timestamptz,
            "string" => Self::String,
            "uuid" => Self::Uuid,
            "binary" => Self::Binary,
            other => return decimal(other).ok_or_else(|| unknown_type(text)),
        })
    }
}

fn decimal(text: &str) -> Option<LakeType> {
    let inner = text.strip_prefix("decimal(")?.strip_suffix(')')?;
    let (precision, scale) = inner.split_once(',')?;
    let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    (1..=38).contains(&precision).then_some(())?;
    (scale <= precision).then_some(LakeType::Decimal { precision, scale })
}

fn unknown_type(text: &str) -> Error {
    Error::new(ErrorCode::SpecInvalid, format!("{text:?} is not a column type")).hint(
        "use boolean, int, long, float, double, decimal(p, s) with p ≤ 38, date, time, timestamp, \
         timestamptz, string, uuid or binary",
    )
}

/// A table's columns, in order. Names are unique.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableSchema {
    pub fields: Vec<Field>,
}

impl TableSchema {
    pub fn new(fields: Vec<Field>) -> Self {
        Self { fields }
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The layout every batch of this table has, without field-id metadata.
    pub fn to_arrow(&self) -> SchemaRef {
        Arc::new(ArrowSchema::new(arrow_fields(&self.fields)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_types_read_back_what_they_print() {
        let types = [
            LakeType::Boolean,
            LakeType::Int,
            LakeType::Decimal { precision: 38, scale: 10 },
            LakeType::Timestamptz,
            LakeType::Uuid,
        ];
        for data_type in types {
            assert_eq!(data_type.to_string().parse::<LakeType>().expect("type"), data_type);
        }
        for bad in ["decimal(39,0)", "decimal(3,4)", "varchar", "list<int>", ""] {
            assert_eq!(bad.parse::<LakeType>().expect_err(bad).code(), ErrorCode::SpecInvalid);
        }
    }

    #[test]
    fn promotion_is_iceberg_s() {
        let decimal = |precision, scale| LakeType::Decimal { precision, scale };
        let cases = [
            (LakeType::Int, LakeType::Long, true),
            (LakeType::Long, LakeType::Int, false),
            (LakeType::Float, LakeType::Double, true),
            (LakeType::Int, LakeType::Double, false),
            (decimal(10, 2), decimal(12, 2), true),
            (decimal(10, 2), decimal(12, 3), false),
            (decimal(12, 2), decimal(10, 2), false),
            (LakeType::String, LakeType::String, true),
        ];
        for (from, to, expected) in cases {
            assert_eq!(from.promotes_to(&to), expected, "{from} → {to}");
        }
    }
}
