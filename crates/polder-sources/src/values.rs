//! Values written as text, read exactly: numbers, dates and times as CSV files and strings hold them.
//!
//! Nothing is rounded here. A reader returns what the text says; whether a column holds that exactly
//! is asked separately, so that "not a number" and "too many digits" stay two things.

use std::ops::RangeInclusive;

use chrono::NaiveDate;
use polder_core::spec::OnUnrepresentable;

/// Why a column does not get a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit<T> {
    /// It is no value of this kind at all.
    Malformed,
    /// It is one, but the column's type does not hold it exactly; the nearest that it does, if any.
    Inexact(Option<T>),
}

impl<T> Unfit<T> {
    /// What the policy makes of the value: `Some` to store (null or the nearest), `None` to refuse.
    #[expect(clippy::option_option, reason = "null is a value to store")]
    pub(crate) fn resolve(self, policy: OnUnrepresentable) -> Option<Option<T>> {
        match (self, policy) {
            (Self::Inexact(_), OnUnrepresentable::Null) => Some(None),
            (Self::Inexact(nearest), OnUnrepresentable::Clamp) => Some(nearest),
            _ => None,
        }
    }
}

/// Every double keeps 15 digits (IEEE 754), far from the ends of its range.
const DOUBLE_KEEPS: u128 = 10_u128.pow(15);

pub(crate) type Exact<T> = std::result::Result<T, Unfit<T>>;

/// `±coefficient × 10^exponent`, without trailing zeros after the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) negative: bool,
    pub(crate) coefficient: u128,
    pub(crate) exponent: i32,
}

impl Number {
    pub(crate) fn new(negative: bool, coefficient: u128, exponent: i32) -> Self {
        Self { negative, coefficient, exponent }
    }

    pub(crate) fn from_integer(value: i64) -> Self {
        Self::new(value < 0, u128::from(value.unsigned_abs()), 0)
    }

    /// The digits that print a double and read back as the same one; `None` for `NaN` and infinities.
    pub(crate) fn from_double(value: f64) -> Option<Self> {
        let mut text = ShortText::default();
        std::fmt::Write::write_fmt(&mut text, format_args!("{value:e}")).ok()?;
        number(text.as_str())
    }

    /// The unscaled value in `decimal(precision, scale)`; the nearest is rounded half away from zero.
    pub(crate) fn to_decimal(self, precision: u8, scale: u8) -> Exact<i128> {
        let largest = 10_i128.pow(u32::from(precision)) - 1;
        let sign = if self.negative { -1 } else { 1 };
        let shift = self.exponent.saturating_add(i32::from(scale));
        if self.coefficient == 0 {
            return Ok(0);
        }
        if shift >= 0 {
            let power = 10_u128.checked_pow(shift.cast_unsigned());
            let scaled = power.and_then(|power| self.coefficient.checked_mul(power));
            let scaled = scaled.and_then(|value| i128::try_from(value).ok());
            return match scaled {
                Some(value) if value <= largest => Ok(sign * value),
                _ => Err(Unfit::Inexact(Some(sign * largest))),
            };
        }
        // A power beyond 128 bits is more than twice any coefficient: nothing is left of the value.
        let power = 10_u128.checked_pow(shift.unsigned_abs()).unwrap_or(u128::MAX);
        let (whole, rest) = (self.coefficient / power, self.coefficient % power);
        let nearest = whole + u128::from(rest >= power.div_ceil(2));
        match i128::try_from(nearest) {
            Ok(value) if value <= largest && rest == 0 => Ok(sign * value),
            Ok(value) if value <= largest => Err(Unfit::Inexact(Some(sign * value))),
            _ => Err(Unfit::Inexact(Some(sign * largest))),
        }
    }

    /// The whole number within `min..=max`.
    pub(crate) fn to_integer(self, min: i64, max: i64) -> Exact<i64> {
        let (value, exact) = match self.to_decimal(38, 0) {
            Ok(value) => (value, true),
            Err(Unfit::Inexact(Some(value))) => (value, false),
            Err(_) => return Err(Unfit::Malformed),
        };
        let nearest = value.clamp(i128::from(min), i128::from(max));
        // Within i64 after the clamp.
        let stored = nearest as i64;
        if exact && nearest == value { Ok(stored) } else { Err(Unfit::Inexact(Some(stored))) }
    }
}

/// A number's text on the stack, long enough for any double.
#[derive(Default)]
struct ShortText {
    bytes: [u8; 32],
    length: usize,
}

impl ShortText {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl std::fmt::Write for ShortText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        let room = self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// Reads `-12`, `+1.50`, `.5`, `1e-7`; `None` for what is no number or has more than 38 digits.
pub(crate) fn number(text: &str) -> Option<Number> {
    let (negative, rest) = match text.as_bytes() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] | rest => (false, rest),
    };
    let end = rest.iter().position(|b| matches!(b, b'e' | b'E')).unwrap_or(rest.len());
    let (mantissa, power) = rest.split_at(end);
    let mut exponent = match power {
        [] => 0,
        [_, power @ ..] => std::str::from_utf8(power).ok()?.parse::<i32>().ok()?,
    };
    let (mut coefficient, mut digits, mut point, mut zeros) = (0_u128, 0, false, 0_u32);
    for byte in mantissa {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                if point {
                    exponent = exponent.checked_sub(1)?;
                }
                if *byte == b'0' && point {
                    // Kept back: only zeros before another digit count.
                    zeros += 1;
                    continue;
                }
                let shift = 10_u128.checked_pow(zeros + 1)?;
                coefficient =
                    coefficient.checked_mul(shift)?.checked_add(u128::from(byte - b'0'))?;
                zeros = 0;
            }
            b'.' if !point => point = true,
            _ => return None,
        }
    }
    let exponent = exponent.checked_add(zeros as i32)?;
    (digits > 0 && coefficient < 10_u128.pow(38)).then_some(Number {
        negative,
        coefficient,
        exponent: if coefficient == 0 { 0 } else { exponent },
    })
}

/// The double whose shortest text is the same number, so that nothing of the text is lost.
pub(crate) fn double(text: &str) -> Exact<f64> {
    let value: f64 = match text {
        "NaN" => return Ok(f64::NAN),
        "Infinity" | "inf" => return Ok(f64::INFINITY),
        "-Infinity" | "-inf" => return Ok(f64::NEG_INFINITY),
        _ if !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) => {
            return Err(Unfit::Malformed);
        }
        _ => text.parse().map_err(|_| Unfit::Malformed)?,
    };
    let exact = number(text).is_some_and(|said| {
        (said.coefficient < DOUBLE_KEEPS && said.exponent.abs() < 290 && said.coefficient != 0)
            || Number::from_double(value).is_some_and(|stored| same(said, stored))
    });
    // What is beyond the largest double was read as an infinity.
    if exact { Ok(value) } else { Err(Unfit::Inexact(Some(value.clamp(f64::MIN, f64::MAX)))) }
}

fn same(a: Number, b: Number) -> bool {
    if a.coefficient == 0 || b.coefficient == 0 {
        return a.coefficient == b.coefficient && a.negative == b.negative;
    }
    let (wide, narrow) = if a.exponent >= b.exponent { (a, b) } else { (b, a) };
    let shift = (wide.exponent - narrow.exponent).cast_unsigned();
    let scaled = 10_u128.checked_pow(shift).and_then(|power| wide.coefficient.checked_mul(power));
    a.negative == b.negative && scaled == Some(narrow.coefficient)
}

pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// Days since the epoch of `YYYY-MM-DD`, years 0001 to 9999.
pub(crate) fn date(text: &[u8]) -> Option<i32> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else { return None };
    let year = two(*y1, *y2)? * 100 + two(*y3, *y4)?;
    let date = NaiveDate::from_ymd_opt(
        year,
        two(*m1, *m2)?.cast_unsigned(),
        two(*d1, *d2)?.cast_unsigned(),
    )?;
    (year > 0).then(|| date.signed_duration_since(NaiveDate::default()).num_days() as i32)
}

/// Microseconds since midnight of `HH:MM[:SS[.fraction]]`; the nearest is rounded half up, within the
/// day.
pub(crate) fn time(text: &[u8]) -> Exact<i64> {
    clock_micros(text).map_err(|unfit| match unfit {
        Unfit::Inexact(Some(micros)) => Unfit::Inexact(Some(micros.min(DAY_MICROS - 1))),
        unfit => unfit,
    })
}

/// [`time`], but that the nearest may be the end of the day.
fn clock_micros(text: &[u8]) -> Exact<i64> {
    let (clock, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b"0"[..]),
    };
    let seconds = clock_seconds(clock).ok_or(Unfit::Malformed)?;
    let digits_only = fraction.iter().all(u8::is_ascii_digit);
    // A fraction belongs to seconds.
    if fraction.is_empty() || !digits_only || (clock.len() == 5 && text.len() > 5) {
        return Err(Unfit::Malformed);
    }
    let digit = |place: usize| i64::from(fraction.get(place).map_or(0, |b| b - b'0'));
    let micros = seconds * 1_000_000 + (0..6).fold(0, |sum, place| sum * 10 + digit(place));
    if fraction.iter().skip(6).all(|b| *b == b'0') {
        return Ok(micros);
    }
    Err(Unfit::Inexact(Some(micros + i64::from(fraction[6] >= b'5'))))
}

fn clock_seconds(clock: &[u8]) -> Option<i64> {
    let (hour, minute, second) = match clock {
        [h1, h2, b':', m1, m2] => (two(*h1, *h2)?, two(*m1, *m2)?, 0),
        [h1, h2, b':', m1, m2, b':', s1, s2] => (two(*h1, *h2)?, two(*m1, *m2)?, two(*s1, *s2)?),
        _ => return None,
    };
    (hour < 24 && minute < 60 && second < 60).then(|| i64::from(hour * 3600 + minute * 60 + second))
}

const DAY_MICROS: i64 = 86_400_000_000;

/// The timestamps a column holds, in microseconds since the epoch: the years 1 to 9999.
pub(crate) const TIMESTAMP_MICROS: RangeInclusive<i64> =
    -62_135_596_800_000_000..=253_402_300_799_999_999;

/// A date and time with what stands after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp {
    /// Since the epoch: UTC where there is a zone, local otherwise.
    pub(crate) micros: i64,
    pub(crate) zoned: bool,
}

/// ISO 8601 `YYYY-MM-DD(T| )HH:MM[:SS[.fraction]][Z|±HH:MM|±HHMM|±HH]`.
pub(crate) fn timestamp(text: &[u8]) -> Exact<Timestamp> {
    let Some((day, [b'T' | b't' | b' ', rest @ ..])) = text.split_at_checked(10) else {
        return Err(Unfit::Malformed);
    };
    let days = date(day).ok_or(Unfit::Malformed)?;
    let (clock, offset) = match rest.iter().position(|b| matches!(b, b'Z' | b'z' | b'+' | b'-')) {
        Some(zone) => (&rest[..zone], Some(offset_seconds(&rest[zone..]).ok_or(Unfit::Malformed)?)),
        None => (rest, None),
    };
    let (clock, exact) = match clock_micros(clock) {
        Ok(micros) => (micros, true),
        Err(Unfit::Inexact(Some(micros))) => (micros, false),
        Err(_) => return Err(Unfit::Malformed),
    };
    let said = (i64::from(days) * 86_400 - offset.unwrap_or(0)) * 1_000_000 + clock;
    // An offset may lead out of the years that texts have.
    let micros = said.clamp(*TIMESTAMP_MICROS.start(), *TIMESTAMP_MICROS.end());
    let time = Timestamp { micros, zoned: offset.is_some() };
    if exact && micros == said { Ok(time) } else { Err(Unfit::Inexact(Some(time))) }
}

fn offset_seconds(zone: &[u8]) -> Option<i64> {
    let (sign, digits) = match zone {
        [b'Z' | b'z'] => return Some(0),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match digits {
        [h1, h2] => (two(*h1, *h2)?, 0),
        [h1, h2, m1, m2] | [h1, h2, b':', m1, m2] => (two(*h1, *h2)?, two(*m1, *m2)?),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then(|| sign * i64::from(hours * 3600 + minutes * 60))
}

fn two(tens: u8, ones: u8) -> Option<i32> {
    (tens.is_ascii_digit() && ones.is_ascii_digit())
        .then(|| i32::from(tens - b'0') * 10 + i32::from(ones - b'0'))
}

/// 16 bytes from `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
pub(crate) fn uuid(text: &str) -> Option<[u8; 16]> {
    (text.len() == 36).then(|| uuid::Uuid::try_parse(text).ok())?.map(uuid::Uuid::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_digit_by_digit() {
        let cases: [(&str, Option<(u128, i32)>); 12] = [
            ("0", Some((0, 0))),
            ("12.50", Some((125, -1))),
            ("-0.001", Some((1, -3))),
            (".5", Some((5, -1))),
            ("5.", Some((5, 0))),
            ("100", Some((100, 0))),
            ("1.5e3", Some((15, 2))),
            ("1e", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("99999999999999999999999999999999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(number(text).map(|n| (n.coefficient, n.exponent)), expected, "{text}");
        }
    }

    #[test]
    fn decimals_fit_or_say_what_is_nearest() {
        let fit = |text: &str, p, s| number(text).expect("number").to_decimal(p, s);
        assert_eq!(fit("12.5", 5, 2), Ok(1250));
        assert_eq!(fit("-12.50", 4, 2), Ok(-1250));
        assert_eq!(fit("1e3", 6, 2), Ok(100_000));
        assert_eq!(fit("1.004", 5, 2), Err(Unfit::Inexact(Some(100))));
        assert_eq!(fit("-1.005", 5, 2), Err(Unfit::Inexact(Some(-101))));
        assert_eq!(fit("999.999", 5, 2), Err(Unfit::Inexact(Some(99_999))));
        assert_eq!(fit("1000", 5, 2), Err(Unfit::Inexact(Some(99_999))));
        assert_eq!(fit("1e-99", 5, 2), Err(Unfit::Inexact(Some(0))));
        let long = "12345678901234567890123456789012345678";
        assert_eq!(fit(long, 38, 0), Ok(12_345_678_901_234_567_890_123_456_789_012_345_678));
    }

    #[test]
    fn doubles_are_exact_when_their_shortest_text_says_the_same() {
        for text in ["0.1", "1e300", "-2.5", "123456789012345", "1.50", "100", "-0.0"] {
            assert!(double(text).is_ok(), "{text}");
        }
        for text in ["0.1234567890123456789", "9007199254740993", "1e400"] {
            assert!(matches!(double(text), Err(Unfit::Inexact(_))), "{text}");
        }
        assert_eq!(double("x"), Err(Unfit::Malformed));
        assert_eq!(double("-1e400"), Err(Unfit::Inexact(Some(f64::MIN))), "the nearest there is");
    }

    #[test]
    fn times_are_iso_8601() {
        let zoned = |text: &str| match timestamp(text.as_bytes()) {
            Ok(time) => Ok((time.micros, time.zoned)),
            Err(Unfit::Inexact(nearest)) => Err(nearest.map(|time| time.micros)),
            Err(Unfit::Malformed) => Err(None),
        };
        assert_eq!(zoned("1970-01-01T00:00:01Z"), Ok((1_000_000, true)));
        assert_eq!(zoned("1970-01-01 02:00:00.5+02:00"), Ok((500_000, true)));
        assert_eq!(zoned("1970-01-01 00:01"), Ok((60_000_000, false)));
        assert_eq!(zoned("1970-01-01T00:00:00.1234567"), Err(Some(123_457)), "the nearest");
        assert_eq!(zoned("1970-01-01T00:00:00.1234564999"), Err(Some(123_456)));
        assert_eq!(zoned("1969-12-31T23:59:59.9999995"), Err(Some(0)), "on the next day");
        let last_micros = Err(Unfit::Inexact(Some(DAY_MICROS - 1)));
        assert_eq!(time(b"23:59:59.9999995"), last_micros, "there is no 24:00");
        for bad in [
            "1970-01-01",
            "1970-02-30T00:00:00",
            "1970-01-01T24:00:00",
            "1970-01-01T00:00:00.",
            "1970-01-01T00:00.5",
        ] {
            assert_eq!(zoned(bad), Err(None), "{bad}");
        }
        let (first, last) = (*TIMESTAMP_MICROS.start(), *TIMESTAMP_MICROS.end());
        assert_eq!(zoned("0001-01-01T00:00:00+00:01"), Err(Some(first)), "before the year 1");
        assert_eq!(zoned("9999-12-31T23:59:59.999999-01:00"), Err(Some(last)));
        assert_eq!(date(b"0000-01-01"), None);
        assert_eq!(date(b"1969-12-31"), Some(-1));
    }
}
