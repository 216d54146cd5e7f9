//! Arrow's types → PostgreSQL's: the number of each, and what its arrays are cast to before they are written.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use pgwire::messages::data::FieldDescription;

/// PostgreSQL's numbers of types.
pub(super) mod oid {
    pub(in crate::serve::pgwire) const BOOL: u32 = 16;
    pub(in crate::serve::pgwire) const BYTEA: u32 = 17;
    pub(in crate::serve::pgwire) const NAME: u32 = 19;
    pub(in crate::serve::pgwire) const INT8: u32 = 20;
    pub(in crate::serve::pgwire) const INT2: u32 = 21;
    pub(in crate::serve::pgwire) const INT4: u32 = 23;
    pub(in crate::serve::pgwire) const TEXT: u32 = 25;
    pub(in crate::serve::pgwire) const OID: u32 = 26;
    pub(in crate::serve::pgwire) const JSON: u32 = 114;
    pub(in crate::serve::pgwire) const FLOAT4: u32 = 700;
    pub(in crate::serve::pgwire) const FLOAT8: u32 = 701;
    pub(in crate::serve::pgwire) const BPCHAR: u32 = 1042;
    pub(in crate::serve::pgwire) const VARCHAR: u32 = 1043;
    pub(in crate::serve::pgwire) const DATE: u32 = 1082;
    pub(in crate::serve::pgwire) const TIME: u32 = 1083;
    pub(in crate::serve::pgwire) const TIMESTAMP: u32 = 1114;
    pub(in crate::serve::pgwire) const TIMESTAMPTZ: u32 = 1184;
    pub(in crate::serve::pgwire) const INTERVAL: u32 = 1186;
    pub(in crate::serve::pgwire) const NUMERIC: u32 = 1700;
    pub(in crate::serve::pgwire) const UUID: u32 = 2950;
    pub(in crate::serve::pgwire) const JSONB: u32 = 3802;
}

/// Types and those of their arrays.
const ARRAYS: [(u32, u32); 20] = [
    (oid::BOOL, 1000),
    (oid::BYTEA, 1001),
    (oid::NAME, 1003),
    (oid::INT2, 1005),
    (oid::INT4, 1007),
    (oid::TEXT, 1009),
    (oid::BPCHAR, 1014),
    (oid::VARCHAR, 1015),
    (oid::INT8, 1016),
    (oid::FLOAT4, 1021),
    (oid::FLOAT8, 1022),
    (oid::OID, 1028),
    (oid::TIMESTAMP, 1115),
    (oid::DATE, 1182),
    (oid::TIME, 1183),
    (oid::TIMESTAMPTZ, 1185),
    (oid::INTERVAL, 1187),
    (oid::NUMERIC, 1231),
    (oid::UUID, 2951),
    (oid::JSON, 199),
];

/// The type of an array's elements, if it is one.
pub(super) fn element(of: u32) -> Option<u32> {
    ARRAYS.iter().find(|(_, array)| *array == of).map(|(element, _)| *element)
}

/// A type of a column as the protocol has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kind {
    pub(super) oid: u32,
    /// Bytes of a value; -1 for those of any length.
    pub(super) length: i16,
    /// Precision and scale of a decimal; else -1.
    pub(super) modifier: i32,
    /// What arrays are cast to; `None` where values are written as JSON.
    pub(super) canonical: Option<DataType>,
}

impl Kind {
    fn new(oid: u32, length: i16, canonical: DataType) -> Self {
        Self { oid, length, modifier: -1, canonical: Some(canonical) }
    }

    fn decimal(precision: u8, scale: i8, canonical: DataType) -> Self {
        let modifier = match u8::try_from(scale) {
            Ok(scale) => ((i32::from(precision) << 16) | i32::from(scale)) + 4,
            Err(_) => -1,
        };
        Self { modifier, ..Self::new(oid::NUMERIC, -1, canonical) }
    }

    fn json() -> Self {
        Self { oid: oid::JSON, length: -1, modifier: -1, canonical: None }
    }

    pub(super) fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::new(oid::BOOL, 1, DataType::Boolean),
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => {
                Self::new(oid::INT2, 2, DataType::Int16)
            }
            DataType::Int32 | DataType::UInt16 => Self::new(oid::INT4, 4, DataType::Int32),
            DataType::Int64 | DataType::UInt32 => Self::new(oid::INT8, 8, DataType::Int64),
            DataType::UInt64 => Self::decimal(20, 0, DataType::Decimal128(20, 0)),
            DataType::Float16 | DataType::Float32 => Self::new(oid::FLOAT4, 4, DataType::Float32),
            DataType::Float64 => Self::new(oid::FLOAT8, 8, DataType::Float64),
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale) => {
                Self::decimal(*precision, *scale, DataType::Decimal128(*precision, *scale))
            }
            DataType::Decimal256(precision, scale) => {
                Self::decimal(*precision, *scale, data_type.clone())
            }
            DataType::FixedSizeBinary(16) => Self::new(oid::UUID, 16, data_type.clone()),
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => Self::new(oid::BYTEA, -1, DataType::Binary),
            DataType::Date32 | DataType::Date64 => Self::new(oid::DATE, 4, DataType::Date32),
            DataType::Time32(_) | DataType::Time64(_) => {
                Self::new(oid::TIME, 8, DataType::Time64(TimeUnit::Microsecond))
            }
            DataType::Timestamp(_, None) => {
                Self::new(oid::TIMESTAMP, 8, DataType::Timestamp(TimeUnit::Microsecond, None))
            }
            DataType::Timestamp(_, zone) => {
                let canonical = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
                Self::new(oid::TIMESTAMPTZ, 8, canonical)
            }
            DataType::Interval(_) | DataType::Duration(_) => {
                Self::new(oid::INTERVAL, 16, DataType::Interval(IntervalUnit::MonthDayNano))
            }
            DataType::List(element)
            | DataType::LargeList(element)
            | DataType::FixedSizeList(element, _) => Self::list(element.data_type()),
            DataType::Dictionary(_, values) => Self::of(values),
            DataType::RunEndEncoded(_, values) => Self::of(values.data_type()),
            DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Self::new(oid::TEXT, -1, DataType::Utf8)
            }
            _ => Self::json(),
        }
    }

    /// An array of plain values; lists of anything else are JSON.
    fn list(of: &DataType) -> Self {
        let inner = Self::of(of);
        let array = ARRAYS.iter().find(|(element, _)| *element == inner.oid);
        match (array, inner.canonical) {
            (Some((_, array)), Some(canonical)) if !canonical.is_nested() => {
                let element = Arc::new(Field::new("item", canonical, true));
                let list = Self::new(*array, -1, DataType::List(element));
                Self { modifier: inner.modifier, ..list }
            }
            _ => Self::json(),
        }
    }

    /// What a column of this type is announced as.
    pub(super) fn described(&self, name: &str, format: i16) -> FieldDescription {
        // No name has a zero byte on the wire: it would end there.
        let name = name.replace('\0', "");
        FieldDescription::new(name, 0, 0, self.oid, self.length, self.modifier, format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_lake_has_one_of_postgresql() {
        let list = |of: DataType| DataType::List(Arc::new(Field::new("element", of, true)));
        let point = DataType::Struct(vec![Field::new("x", DataType::Int32, true)].into());
        let zoned = DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()));
        let cases = [
            (DataType::Boolean, oid::BOOL, -1),
            (DataType::Int32, oid::INT4, -1),
            (DataType::Int64, oid::INT8, -1),
            (DataType::Float32, oid::FLOAT4, -1),
            (DataType::Float64, oid::FLOAT8, -1),
            (DataType::Decimal128(12, 2), oid::NUMERIC, ((12 << 16) | 2) + 4),
            (DataType::Utf8, oid::TEXT, -1),
            (DataType::Binary, oid::BYTEA, -1),
            (DataType::FixedSizeBinary(16), oid::UUID, -1),
            (DataType::FixedSizeBinary(4), oid::BYTEA, -1),
            (DataType::Date32, oid::DATE, -1),
            (DataType::Time64(TimeUnit::Microsecond), oid::TIME, -1),
            (DataType::Timestamp(TimeUnit::Microsecond, None), oid::TIMESTAMP, -1),
            (zoned.clone(), oid::TIMESTAMPTZ, -1),
            (list(DataType::Int64), 1016, -1),
            (list(zoned), 1185, -1),
            (list(list(DataType::Int64)), oid::JSON, -1),
            (list(point.clone()), oid::JSON, -1),
            (point, oid::JSON, -1),
            (DataType::UInt64, oid::NUMERIC, (20 << 16) + 4),
            (DataType::Null, oid::TEXT, -1),
        ];
        for (data_type, oid, modifier) in cases {
            let kind = Kind::of(&data_type);
            assert_eq!((kind.oid, kind.modifier), (oid, modifier), "{data_type}");
        }
        assert_eq!((element(1016), element(20)), (Some(oid::INT8), None));
    }
}
