//! The key of an entity: what its documents are ordered by, and what others refer to it by.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use polder_core::{Error, ErrorCode, LakeType, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

/// One key. Two of one kind are ordered as the engine orders their columns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Key {
    Long(i64),
    Text(String),
    Uuid(Uuid),
}

/// What columns can be compared as keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Long,
    Text,
    Uuid,
}

impl Kind {
    /// `None` for types that make no keys.
    pub(super) fn of(data_type: &LakeType) -> Option<Self> {
        match data_type {
            LakeType::Int | LakeType::Long => Some(Self::Long),
            LakeType::String => Some(Self::Text),
            LakeType::Uuid => Some(Self::Uuid),
            _ => None,
        }
    }
}

impl Key {
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Long(number) => json!(number),
            Self::Text(text) => json!(text),
            Self::Uuid(id) => json!(id.to_string()),
        }
    }

    /// The keys of a column, one a row.
    ///
    /// # Errors
    /// `query.failed` for a row without one.
    pub(super) fn column(column: &ArrayRef) -> Result<Vec<Self>> {
        let other = || Error::new(ErrorCode::Internal, "a key of another type");
        if column.null_count() > 0 {
            return Err(Error::new(ErrorCode::QueryFailed, "a row of the entity has no key")
                .hint("the table spec's `key` has to name a column without nulls"));
        }
        let rows = 0..column.len();
        match column.data_type() {
            DataType::FixedSizeBinary(16) => {
                let ids = column.as_fixed_size_binary();
                let key = |row| Uuid::from_slice(ids.value(row)).map(Self::Uuid);
                rows.map(key).collect::<Result<_, _>>().map_err(|_| other())
            }
            kind if kind.is_integer() => {
                let numbers = cast(column, &DataType::Int64).map_err(crate::answer::failed)?;
                let numbers = numbers.as_primitive::<Int64Type>();
                Ok(rows.map(|row| Self::Long(numbers.value(row))).collect())
            }
            _ => {
                let texts = cast(column, &DataType::Utf8).map_err(|_| other())?;
                let texts = texts.as_string::<i32>();
                Ok(rows.map(|row| Self::Text(texts.value(row).to_owned())).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{FixedSizeBinaryArray, Int32Array, StringArray};

    use super::*;

    #[test]
    fn keys_are_ordered_as_their_columns() {
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![-3, 2, 10]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["10", "9", "ä"]));
        let bytes = [[0_u8; 16], [1; 16], [255; 16]].map(|id| id.to_vec());
        let ids = FixedSizeBinaryArray::try_from_iter(bytes.into_iter()).expect("ids");
        for column in [numbers, texts, Arc::new(ids)] {
            let keys = Key::column(&column).expect("keys");
            assert!(keys.is_sorted() && keys.len() == 3, "{keys:?}");
            for key in keys {
                let text = serde_json::to_string(&key).expect("text");
                assert_eq!(serde_json::from_str::<Key>(&text).expect("key"), key);
            }
        }
        let nulls: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
        assert_eq!(Key::column(&nulls).expect_err("null").code(), ErrorCode::QueryFailed);
    }
}
