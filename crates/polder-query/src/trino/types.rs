//! Trino's types as Arrow's, as exactly as the lake has them: times with all their digits, instants in
//! UTC, decimals as such. What Arrow or JSON cannot hold exactly is refused by name.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use polder_core::{Error, ErrorCode, Result};
use serde::Deserialize;
use serde_json::Value;

/// The zone of instants, as the lake writes it.
const UTC: &str = "+00:00";
/// Digits of a second that Arrow has.
const DIGITS_MAX: u64 = 9;

/// A column of an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Column {
    name: String,
    type_signature: Signature,
}

/// A type and what it is made with.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signature {
    raw_type: String,
    #[serde(default)]
    arguments: Vec<Argument>,
}

/// A number, a type, or a member of a row: told apart by what the value is.
#[derive(Clone, Debug, Deserialize)]
struct Argument {
    value: Value,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    #[serde(default)]
    field_name: Option<MemberName>,
    type_signature: Signature,
}

#[derive(Clone, Debug, Deserialize)]
struct MemberName {
    name: String,
}

/// # Errors
/// `query.invalid` for a column whose values Arrow or JSON cannot hold exactly.
pub(super) fn schema(columns: &[Column]) -> Result<SchemaRef> {
    let field = |column: &Column| {
        let data_type = column
            .type_signature
            .data_type()
            .map_err(|error| error.within(&format!("column {:?} of the answer", column.name)))?;
        Ok(Field::new(&column.name, data_type, true))
    };
    let fields = columns.iter().map(field).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Schema::new(fields)))
}

impl Signature {
    fn data_type(&self) -> Result<DataType> {
        Ok(match self.raw_type.as_str() {
            "unknown" => DataType::Null,
            "boolean" => DataType::Boolean,
            "tinyint" => DataType::Int8,
            "smallint" => DataType::Int16,
            "integer" => DataType::Int32,
            "bigint" => DataType::Int64,
            "real" => DataType::Float32,
            "double" => DataType::Float64,
            "decimal" => self.decimal()?,
            "varchar"
            | "char"
            | "json"
            | "ipaddress"
            | "interval day to second"
            | "interval year to month" => DataType::Utf8,
            "varbinary" => DataType::Binary,
            "uuid" => DataType::FixedSizeBinary(16),
            "date" => DataType::Date32,
            "time" => DataType::Time64(self.unit()?),
            "timestamp" => DataType::Timestamp(self.unit()?, None),
            "timestamp with time zone" => DataType::Timestamp(self.unit()?, Some(UTC.into())),
            "array" => {
                let element = self.inner(0)?.data_type()?;
                DataType::List(Arc::new(Field::new("element", element, true)))
            }
            "row" => DataType::Struct(self.members()?.into()),
            other => {
                let message =
                    format!("a value of Trino's type {other} cannot be taken over exactly");
                return Err(Error::new(ErrorCode::QueryInvalid, message).hint(
                    "cast it: CAST(… AS varchar); of a map, map_entries(…) is an array of rows",
                ));
            }
        })
    }

    fn number(&self, at: usize) -> Result<u64> {
        let number = self.arguments.get(at).and_then(|argument| argument.value.as_u64());
        number.ok_or_else(|| self.malformed())
    }

    fn decimal(&self) -> Result<DataType> {
        let precision = u8::try_from(self.number(0)?).map_err(|_| self.malformed())?;
        let scale = i8::try_from(self.number(1)?).map_err(|_| self.malformed())?;
        Ok(DataType::Decimal128(precision, scale))
    }

    /// Microseconds, as the lake has them, unless there are more digits.
    fn unit(&self) -> Result<TimeUnit> {
        match self.number(0)? {
            0..=6 => Ok(TimeUnit::Microsecond),
            7..=DIGITS_MAX => Ok(TimeUnit::Nanosecond),
            digits => {
                let message = format!("{} has {digits} digits of a second", self.raw_type);
                Err(Error::new(ErrorCode::QueryInvalid, message)
                    .hint("cast it to one of 6: CAST(… AS timestamp(6))"))
            }
        }
    }

    fn inner(&self, at: usize) -> Result<Self> {
        let value = self.arguments.get(at).map(|argument| argument.value.clone());
        value.and_then(|value| serde_json::from_value(value).ok()).ok_or_else(|| self.malformed())
    }

    fn members(&self) -> Result<Vec<Field>> {
        let member = |(at, argument): (usize, &Argument)| {
            let member: Member =
                serde_json::from_value(argument.value.clone()).map_err(|_| self.malformed())?;
            let name = member.field_name.map_or_else(|| format!("field{at}"), |named| named.name);
            Ok(Field::new(name, member.type_signature.data_type()?, true))
        };
        self.arguments.iter().enumerate().map(member).collect()
    }

    fn malformed(&self) -> Error {
        let message = format!("Trino describes a type {} that cannot be read", self.raw_type);
        Error::new(ErrorCode::QueryFailed, message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn signature(raw: &str, arguments: &[Value]) -> Value {
        let arguments: Vec<Value> =
            arguments.iter().map(|value| json!({ "kind": "X", "value": value })).collect();
        json!({ "rawType": raw, "arguments": arguments })
    }

    fn data_type(signature: &Value) -> Result<DataType> {
        let column = json!({ "name": "c", "type": "…", "typeSignature": signature });
        let column: Column = serde_json::from_value(column).expect("column");
        Ok(schema(&[column])?.field(0).data_type().clone())
    }

    #[test]
    fn types_are_those_of_the_lake() {
        let micros = TimeUnit::Microsecond;
        let cases = [
            (signature("bigint", &[]), DataType::Int64),
            (signature("decimal", &[json!(18), json!(2)]), DataType::Decimal128(18, 2)),
            (signature("varchar", &[json!(2_147_483_647)]), DataType::Utf8),
            (signature("timestamp", &[json!(6)]), DataType::Timestamp(micros, None)),
            (
                signature("timestamp with time zone", &[json!(3)]),
                DataType::Timestamp(micros, Some("+00:00".into())),
            ),
            (signature("time", &[json!(9)]), DataType::Time64(TimeUnit::Nanosecond)),
        ];
        for (signature, expected) in cases {
            assert_eq!(data_type(&signature).expect("type"), expected, "{signature}");
        }
        let long = signature("bigint", &[]);
        let list = data_type(&signature("array", std::slice::from_ref(&long))).expect("list");
        assert_eq!(list, DataType::List(Arc::new(Field::new("element", DataType::Int64, true))));
        let named = json!({ "fieldName": { "name": "a" }, "typeSignature": long });
        let unnamed = json!({ "typeSignature": signature("date", &[]) });
        let row = data_type(&signature("row", &[named, unnamed])).expect("row");
        let fields = vec![
            Field::new("a", DataType::Int64, true),
            Field::new("field1", DataType::Date32, true),
        ];
        assert_eq!(row, DataType::Struct(fields.into()));
    }

    #[test]
    fn what_cannot_be_exact_is_refused() {
        let long = signature("bigint", &[]);
        let cases = [
            signature("map", &[long.clone(), long]),
            signature("time with time zone", &[json!(3)]),
            signature("timestamp", &[json!(12)]),
            signature("HyperLogLog", &[]),
        ];
        for signature in cases {
            let error = data_type(&signature).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::QueryInvalid, "{signature}");
            assert!(error.hint_text().is_some());
        }
    }
}
