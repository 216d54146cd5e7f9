//! Days and times as PostgreSQL sends them, and as the lake counts them: from 1970.
//!
//! Intervals are no times; they are taken apart in `decode`.

use super::decode::Flaw;

/// From PostgreSQL's epoch, 2000-01-01, to Unix's.
pub(super) const EPOCH_DAYS: i32 = 10_957;
pub(super) const DAY_MICROS: i64 = 86_400_000_000;
/// 0001-01-01 and 9999-12-31 in days since 1970: the years every reader of the lake can show.
pub(super) const DATES: (i32, i32) = (-719_162, 2_932_896);

pub(super) const OUTSIDE: &str = "is outside the years 1 to 9999 (or infinite)";

#[inline]
pub(super) fn date(raw: [u8; 4]) -> Result<i32, Flaw<i32>> {
    let days = i32::from_be_bytes(raw).saturating_add(EPOCH_DAYS);
    within(days, DATES)
}

#[inline]
pub(super) fn timestamp(raw: [u8; 8]) -> Result<i64, Flaw<i64>> {
    let micros = i64::from_be_bytes(raw).saturating_add(i64::from(EPOCH_DAYS) * DAY_MICROS);
    let (first, last) = DATES;
    within(micros, (i64::from(first) * DAY_MICROS, (i64::from(last) + 1) * DAY_MICROS - 1))
}

#[inline]
fn within<T: Ord + Copy>(value: T, (first, last): (T, T)) -> Result<T, Flaw<T>> {
    if value >= first && value <= last {
        return Ok(value);
    }
    Err(Flaw::Unrepresentable { reason: OUTSIDE, nearest: Some(value.clamp(first, last)) })
}

/// PostgreSQL has 24:00:00, which no lake type has.
#[inline]
pub(super) fn time(raw: [u8; 8]) -> Result<i64, Flaw<i64>> {
    let micros = i64::from_be_bytes(raw);
    match micros {
        0..DAY_MICROS => Ok(micros),
        DAY_MICROS => {
            Err(Flaw::Unrepresentable { reason: "is 24:00:00", nearest: Some(DAY_MICROS - 1) })
        }
        _ => Err(Flaw::Malformed("a time outside the day")),
    }
}
