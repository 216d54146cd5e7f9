//! From the types seen at each path to the table's schema.
//!
//! The rules, all lossless: integers widen to long; integers and doubles share a double where every
//! integer is within ±2^53; decimals and integers share a decimal where 38 digits are enough;
//! documents become structs with the union of their members, arrays lists of their elements' common
//! type. Everything else that does not agree becomes JSON text. A path of a known schema keeps its
//! type where the values fit it.

use std::collections::HashSet;

use polder_core::schema::LIST_ELEMENT;
use polder_core::spec::OnUnrepresentable;
use polder_core::{Field, LakeType, Result, TableSchema, TextOf};

use super::infer::{InferenceOptions, Node, Seen};
use super::raw::utf8;

/// The dates a timestamp column holds, in milliseconds: the years 1 to 9999.
pub(crate) const DATE_MILLIS: std::ops::RangeInclusive<i64> =
    -62_135_596_800_000..=253_402_300_799_999;
/// Digits a decimal column can have.
const DIGITS_MAX: u32 = 38;

/// The type of one path.
type Typed = (LakeType, Option<TextOf>);

pub(super) fn schema(
    root: &Node,
    options: &InferenceOptions,
) -> Result<(TableSchema, Vec<String>)> {
    let known = options.known.as_ref().map_or(&[][..], |schema| &schema.fields);
    let mut fields = members(root, known, options)?;
    let mut warnings = Vec::new();
    if let Some(columns) = &options.columns {
        fields = columns
            .iter()
            .map(|name| {
                let found = fields.iter().find(|field| field.name == *name);
                found.cloned().unwrap_or_else(|| {
                    warnings.push(format!("no document read has the column {name}"));
                    Field::new(name, LakeType::String)
                })
            })
            .collect();
    }
    for field in &mut fields {
        if let Some(declared) = options.declared.get(&field.name) {
            *field = Field::new(&field.name, declared.clone());
        }
    }
    for (name, declared) in &options.declared {
        let wanted = options.columns.as_ref().is_none_or(|columns| columns.contains(name));
        if wanted && !fields.iter().any(|field| field.name == *name) {
            fields.push(Field::new(name, declared.clone()));
        }
    }
    separate_dotted_names(&mut fields, &mut warnings);
    Ok((TableSchema::new(fields), warnings))
}

/// The fields of a document type: known ones first, new ones in the order they were first seen.
fn members(node: &Node, known: &[Field], options: &InferenceOptions) -> Result<Vec<Field>> {
    let mut fields = Vec::with_capacity(node.members.len());
    for old in known {
        let member = node.names.find(old.name.as_bytes(), fields.len());
        let field = match member {
            Some(member) => field(&node.members[member], &old.name, Some(old), options)?,
            None => nullable(old),
        };
        fields.push(field);
    }
    for member in &node.members {
        let name = utf8(&member.name)?;
        if !known.iter().any(|old| old.name == name) {
            fields.push(field(member, name, None, options)?);
        }
    }
    Ok(fields)
}

fn field(
    node: &Node,
    name: &str,
    known: Option<&Field>,
    options: &InferenceOptions,
) -> Result<Field> {
    let (data_type, text_of) = typed(node, known, options)?;
    Ok(Field { text_of, ..Field::new(name, data_type) })
}

fn typed(node: &Node, known: Option<&Field>, options: &InferenceOptions) -> Result<Typed> {
    const TEXT: Typed = (LakeType::String, Some(TextOf::Json));
    let seen = node.seen;
    if seen.is_empty() {
        return Ok(match known {
            Some(old) => (nullable_inside(&old.data_type), old.text_of),
            None => (LakeType::String, None),
        });
    }
    if seen.has(Seen::TEXT) || known.is_some_and(|old| old.text_of == Some(TextOf::Json)) {
        return Ok(TEXT);
    }
    if seen == Seen::DOCUMENT {
        let old = match known.map(|old| &old.data_type) {
            Some(LakeType::Struct(fields)) => &fields[..],
            _ => &[],
        };
        let fields = members(node, old, options)?;
        // Parquet has no struct without members.
        return Ok(if fields.is_empty() { TEXT } else { (LakeType::Struct(fields), None) });
    }
    if seen == Seen::ARRAY {
        return list(node, known, options);
    }
    Ok(scalar(node, known, options.on_unrepresentable).unwrap_or(TEXT))
}

fn list(node: &Node, known: Option<&Field>, options: &InferenceOptions) -> Result<Typed> {
    let old = match known.map(|old| &old.data_type) {
        Some(LakeType::List(element)) => Some(&**element),
        _ => None,
    };
    let element = node.element.as_deref().filter(|element| element.is_used());
    Ok(match (element, old) {
        (Some(element), old) => {
            (LakeType::List(Box::new(field(element, LIST_ELEMENT, old, options)?)), None)
        }
        (None, Some(old)) => (LakeType::List(Box::new(nullable(old))), None),
        // Arrays without elements say nothing of their elements' type.
        (None, None) => (LakeType::String, Some(TextOf::Json)),
    })
}

/// A known field with everything nullable, as inferred fields are.
fn nullable(field: &Field) -> Field {
    let data_type = nullable_inside(&field.data_type);
    Field { text_of: field.text_of, ..Field::new(&field.name, data_type) }
}

fn nullable_inside(data_type: &LakeType) -> LakeType {
    match data_type {
        LakeType::Struct(fields) => LakeType::Struct(fields.iter().map(nullable).collect()),
        LakeType::List(element) => LakeType::List(Box::new(nullable(element))),
        other => other.clone(),
    }
}

/// The common type of scalars; `None` where there is none but text.
fn scalar(node: &Node, known: Option<&Field>, policy: OnUnrepresentable) -> Option<Typed> {
    let (data_type, text_of) = inferred_scalar(node, policy)?;
    let Some(old) = known else { return Some((data_type, text_of)) };
    let kept = match &old.data_type {
        LakeType::String => {
            let decimals = old.text_of == Some(TextOf::Decimal) && node.seen.only(Seen::DECIMALS);
            decimals || (data_type == LakeType::String && old.text_of == text_of)
        }
        LakeType::Double => {
            data_type == LakeType::Double
                || (node.seen.only(Seen::INTEGERS) && !node.seen.has(Seen::LONG_WIDE))
        }
        LakeType::Decimal { precision, scale } => {
            let (before, after) = digits(node);
            let room = u32::from(precision - scale);
            let altered = matches!(policy, OnUnrepresentable::Null | OnUnrepresentable::Clamp);
            let numbers = node.seen.only(Seen::INTEGERS.with(Seen::DECIMALS))
                && (altered || !node.seen.has(Seen::DECIMAL_SPECIAL));
            if numbers && (before > room || after > u32::from(*scale)) {
                return decimal(before.max(room), after.max(u32::from(*scale)))
                    .or(Some(data_type))
                    .map(|data_type| (data_type, text_of));
            }
            numbers
        }
        known => text_of.is_none() && data_type.promotes_to(known),
    };
    Some(if kept { (old.data_type.clone(), old.text_of) } else { (data_type, text_of) })
}

fn inferred_scalar(node: &Node, policy: OnUnrepresentable) -> Option<Typed> {
    let seen = node.seen;
    let altered = matches!(policy, OnUnrepresentable::Null | OnUnrepresentable::Clamp);
    let plain = |data_type| Some((data_type, None));
    if seen.only(Seen::BOOLEAN) {
        plain(LakeType::Boolean)
    } else if seen.only(Seen::INT) {
        plain(LakeType::Int)
    } else if seen.only(Seen::INTEGERS) {
        plain(LakeType::Long)
    } else if seen.only(Seen::INT.with(Seen::LONG).with(Seen::DOUBLE)) {
        plain(LakeType::Double)
    } else if seen.only(Seen::INTEGERS.with(Seen::DECIMALS)) {
        let (before, after) = digits(node);
        match decimal(before, after) {
            Some(data_type) if altered || !seen.has(Seen::DECIMAL_SPECIAL) => plain(data_type),
            _ if seen.only(Seen::DECIMALS) => Some((LakeType::String, Some(TextOf::Decimal))),
            _ => None,
        }
    } else if seen.only(Seen::STRING) {
        plain(LakeType::String)
    } else if seen.only(Seen::OBJECT_ID) {
        Some((LakeType::String, Some(TextOf::ObjectId)))
    } else if seen.only(Seen::DATES) {
        let outside = seen.has(Seen::DATE_OUTSIDE) && policy == OnUnrepresentable::Text;
        if outside { None } else { plain(LakeType::Timestamptz) }
    } else if seen.only(Seen::BINARY) {
        plain(LakeType::Binary)
    } else if seen.only(Seen::UUID) {
        plain(LakeType::Uuid)
    } else {
        None
    }
}

/// Digits before and after the point that the path's numbers need.
pub(super) fn digits(node: &Node) -> (u32, u32) {
    let (min, max) = node.integers;
    let largest = min.unsigned_abs().max(max.unsigned_abs());
    let integers = largest.checked_ilog10().map_or(0, |log| log + 1);
    (node.decimal_digits.0.max(integers), node.decimal_digits.1)
}

fn decimal(before: u32, after: u32) -> Option<LakeType> {
    let precision = (before + after).max(1);
    (precision <= DIGITS_MAX)
        .then_some(LakeType::Decimal { precision: precision as u8, scale: after as u8 })
}

/// Iceberg finds fields by their full name, parts joined by dots. Where a member called `a.b` meets
/// the member `b` of a struct `a`, the struct's top-level column becomes text.
fn separate_dotted_names(fields: &mut [Field], warnings: &mut Vec<String>) {
    if !fields.iter().any(has_dot) {
        return;
    }
    let mut taken: HashSet<String> = fields.iter().map(|field| field.name.clone()).collect();
    for field in fields {
        let mut inside = Vec::new();
        full_names(&field.data_type, &field.name, &mut inside);
        let unique: HashSet<_> = inside.iter().collect();
        if unique.len() < inside.len() || inside.iter().any(|name| taken.contains(name)) {
            warnings
                .push(format!("{} is stored as text: dots make its names ambiguous", field.name));
            *field = Field::text(&field.name, TextOf::Json);
        } else {
            taken.extend(inside);
        }
    }
}

fn has_dot(field: &Field) -> bool {
    field.name.contains('.')
        || match &field.data_type {
            LakeType::Struct(fields) => fields.iter().any(has_dot),
            LakeType::List(element) => has_dot(element),
            _ => false,
        }
}

fn full_names(data_type: &LakeType, prefix: &str, names: &mut Vec<String>) {
    let mut enter = |field: &Field| {
        let name = format!("{prefix}.{}", field.name);
        full_names(&field.data_type, &name, names);
        names.push(name);
    };
    match data_type {
        LakeType::Struct(fields) => fields.iter().for_each(&mut enter),
        LakeType::List(element) => enter(element),
        _ => {}
    }
}
