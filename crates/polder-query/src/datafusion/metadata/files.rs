//! `"t$files"`: the data files of a state with what their manifests say of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Builder, MapBuilder, StringBuilder};
use polder_core::{Literal, Result};
use polder_lake::{FileMetrics, StateMetrics};

use super::super::error::planning;
use super::texts::text;
use super::{Columns, counts, map_names, texts};

/// Maps are by the field ids of columns, as `bigint`: an index into a map has to be of its keys' type, and
/// that is the type of a whole number in SQL.
pub(super) fn columns(state: &StateMetrics) -> Result<Columns> {
    let all = &state.files;
    let numbers = |of: fn(&FileMetrics) -> &BTreeMap<i32, u64>| numbers(all.iter().map(of));
    let bounds = |of: fn(&FileMetrics) -> &BTreeMap<i32, Literal>| bounds(all.iter().map(of));
    Ok(vec![
        ("file_path", texts(all.iter().map(|file| Some(file.path.clone()))), false),
        ("record_count", counts(all.iter().map(|file| Some(file.rows))), true),
        ("file_size_in_bytes", counts(all.iter().map(|file| Some(file.size_bytes))), false),
        ("column_sizes", numbers(|file| &file.column_bytes)?, true),
        ("value_counts", numbers(|file| &file.value_counts)?, true),
        ("null_value_counts", numbers(|file| &file.null_counts)?, true),
        ("nan_value_counts", numbers(|file| &file.nan_counts)?, true),
        ("lower_bounds", bounds(|file| &file.lower_bounds)?, true),
        ("upper_bounds", bounds(|file| &file.upper_bounds)?, true),
    ])
}

fn numbers<'a>(of: impl Iterator<Item = &'a BTreeMap<i32, u64>>) -> Result<ArrayRef> {
    let mut maps = MapBuilder::new(Some(map_names()), Int64Builder::new(), Int64Builder::new());
    for counts in of {
        for (id, count) in counts {
            maps.keys().append_value(i64::from(*id));
            maps.values().append_option(i64::try_from(*count).ok());
        }
        maps.append(true).map_err(|error| planning(error.into()))?;
    }
    Ok(Arc::new(maps.finish()))
}

fn bounds<'a>(of: impl Iterator<Item = &'a BTreeMap<i32, Literal>>) -> Result<ArrayRef> {
    let mut maps = MapBuilder::new(Some(map_names()), Int64Builder::new(), StringBuilder::new());
    for bounds in of {
        for (id, bound) in bounds {
            maps.keys().append_value(i64::from(*id));
            maps.values().append_option(text(bound));
        }
        maps.append(true).map_err(|error| planning(error.into()))?;
    }
    Ok(Arc::new(maps.finish()))
}
