//! What type the values of a CSV column have, all of them.
//!
//! A type is taken only if every value of the column can be read as it and printed back to the same
//! value: `00123` and `+1` stay text (the zero or the sign says something), a plain `1.50` becomes a
//! decimal wide enough for all, `1e5` a double if the double is the same number. Date-times with an
//! offset become UTC instants; with and without offset do not mix.

use polder_core::LakeType;

use crate::values;

const DIGITS_MAX: u32 = 38;
/// Decimal digits that every double keeps.
const DOUBLE_DIGITS: u32 = 15;

/// What was seen in one column.
#[derive(Clone, Debug, Default)]
pub(super) struct Guess {
    seen: u16,
    /// Digits before and after the point.
    digits: (u32, u32),
    /// Whether some number is not a double's shortest text.
    beyond_double: bool,
}

const BOOLEAN: u16 = 1;
const INT: u16 = 1 << 1;
const LONG: u16 = 1 << 2;
/// Whole numbers beyond 64 bits.
const HUGE: u16 = 1 << 3;
const DECIMAL: u16 = 1 << 4;
const SCIENTIFIC: u16 = 1 << 5;
const DATE: u16 = 1 << 6;
const TIMESTAMP: u16 = 1 << 7;
const TIMESTAMPTZ: u16 = 1 << 8;
const TEXT: u16 = 1 << 9;

const INTEGERS: u16 = INT | LONG;
const NUMBERS: u16 = INTEGERS | HUGE | DECIMAL;

impl Guess {
    /// Takes a value that is not null into account.
    pub(super) fn see(&mut self, text: &str) {
        if self.seen & TEXT == 0 {
            let class = self.classify(text);
            self.seen |= class;
        }
    }

    /// The column's type, starting from the one it has in the lake.
    pub(super) fn data_type(&self, known: Option<&LakeType>) -> LakeType {
        match known {
            Some(known) if self.seen == 0 || self.fits(known) => known.clone(),
            Some(LakeType::Decimal { precision, scale }) if self.only(NUMBERS) => {
                let (before, after) = self.digits;
                let before = before.max(u32::from(precision - scale));
                decimal(before, after.max(u32::from(*scale))).unwrap_or_else(|| self.own_type())
            }
            _ => self.own_type(),
        }
    }

    fn own_type(&self) -> LakeType {
        match self.seen {
            BOOLEAN => LakeType::Boolean,
            INT => LakeType::Int,
            DATE => LakeType::Date,
            TIMESTAMP => LakeType::Timestamp,
            TIMESTAMPTZ => LakeType::Timestamptz,
            seen if seen != 0 && seen & !INTEGERS == 0 => LakeType::Long,
            seen if seen != 0 && seen & !(NUMBERS | SCIENTIFIC) == 0 => {
                let plain = if seen & SCIENTIFIC == 0 {
                    decimal(self.digits.0, self.digits.1)
                } else {
                    None
                };
                match plain {
                    Some(plain) => plain,
                    None if !self.beyond_double => LakeType::Double,
                    None => LakeType::String,
                }
            }
            _ => LakeType::String,
        }
    }

    /// Whether every value seen can be stored as `known` exactly.
    fn fits(&self, known: &LakeType) -> bool {
        match known {
            LakeType::Boolean => self.only(BOOLEAN),
            LakeType::Int => self.only(INT),
            LakeType::Long => self.only(INTEGERS),
            LakeType::Double => self.only(NUMBERS | SCIENTIFIC) && !self.beyond_double,
            LakeType::Decimal { precision, scale } => {
                let (before, after) = self.digits;
                self.only(NUMBERS)
                    && before <= u32::from(precision - scale)
                    && after <= u32::from(*scale)
            }
            LakeType::Date => self.only(DATE),
            LakeType::Timestamp => self.only(TIMESTAMP),
            LakeType::Timestamptz => self.only(TIMESTAMPTZ),
            LakeType::String => true,
            _ => false,
        }
    }

    fn only(&self, classes: u16) -> bool {
        self.seen & !classes == 0
    }

    fn classify(&mut self, text: &str) -> u16 {
        let bytes = text.as_bytes();
        match bytes {
            [b'0'..=b'9' | b'-', ..] => self.number(text).or_else(|| time(bytes)).unwrap_or(TEXT),
            [b't' | b'T' | b'f' | b'F', ..] if values::boolean(text).is_some() => BOOLEAN,
            _ => TEXT,
        }
    }

    /// `-?(0|[1-9][0-9]*)(.[0-9]+)?([eE][+-]?[0-9]+)?`, and not minus zero.
    fn number(&mut self, text: &str) -> Option<u16> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (mantissa, power) = match digits.find(['e', 'E']) {
            Some(at) => (&digits[..at], Some(&digits[at + 1..])),
            None => (digits, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (mantissa, None),
        };
        let digital = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digital(whole) || (whole.len() > 1 && whole.starts_with('0')) {
            return None;
        }
        if fraction.is_some_and(|fraction| !digital(fraction)) {
            return None;
        }
        if let Some(power) = power {
            let power = power.strip_prefix(['+', '-']).unwrap_or(power);
            if !digital(power) {
                return None;
            }
        }
        let negative_zero =
            text.starts_with('-') && mantissa.bytes().all(|b| matches!(b, b'0' | b'.'));
        if negative_zero {
            return None;
        }
        let before = if whole == "0" { 0 } else { whole.len() as u32 };
        let after = fraction.map_or(0, |fraction| fraction.len() as u32);
        self.digits = (self.digits.0.max(before), self.digits.1.max(after));
        if power.is_some() || before + after > DOUBLE_DIGITS {
            self.beyond_double |= values::double(text).is_err();
        }
        Some(match (power, fraction) {
            (Some(_), _) => SCIENTIFIC,
            (None, Some(_)) => DECIMAL,
            (None, None) => match text.parse::<i64>() {
                Ok(value) if i32::try_from(value).is_ok() => INT,
                Ok(_) => LONG,
                Err(_) => HUGE,
            },
        })
    }
}

fn time(bytes: &[u8]) -> Option<u16> {
    if bytes.len() == 10 {
        return values::date(bytes).map(|_| DATE);
    }
    let time = values::timestamp(bytes).ok()?;
    Some(if time.zoned { TIMESTAMPTZ } else { TIMESTAMP })
}

fn decimal(before: u32, after: u32) -> Option<LakeType> {
    let precision = (before + after).max(1);
    (precision <= DIGITS_MAX)
        .then_some(LakeType::Decimal { precision: precision as u8, scale: after as u8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[&str], known: Option<&LakeType>, expected: &str) {
        let mut guess = Guess::default();
        for value in values {
            guess.see(value);
        }
        assert_eq!(guess.data_type(known).to_string(), expected, "{values:?}");
    }

    #[test]
    fn a_column_has_the_narrowest_type_that_holds_every_value() {
        check(&["1", "-2"], None, "int");
        check(&["1", "3000000000"], None, "long");
        check(&["1", "99999999999999999999"], None, "decimal(20, 0)");
        check(&["1.50", "100"], None, "decimal(5, 2)");
        check(&["0.5"], None, "decimal(1, 1)");
        check(&["1e5", "2.5"], None, "double");
        check(&["1e5", "0.1234567890123456789"], None, "string");
        check(&["true", "FALSE"], None, "boolean");
        check(&["2024-02-29"], None, "date");
        check(&["2024-02-30"], None, "string");
        check(&["2024-01-01 10:00:00"], None, "timestamp");
        check(&["2024-01-01T10:00:00Z", "2024-01-01T10:00:00.123456+02:00"], None, "timestamptz");
        check(&[], None, "string");
    }

    #[test]
    fn what_a_number_or_time_would_forget_stays_text() {
        for value in ["00123", "+1", "-0", "-0.0", ".5", "5.", "1,5", " 1", "NaN", "0x10", "1_000"]
        {
            check(&[value], None, "string");
        }
        check(&["2024-01-01T10:00:00.1234567"], None, "string");
        check(&["2024-01-01", "2024-01-01T10:00:00"], None, "string");
        check(&["2024-01-01T10:00:00", "2024-01-01T10:00:00Z"], None, "string");
        check(&["1", "true"], None, "string");
        check(&["1".repeat(39).as_str()], None, "string");
    }

    #[test]
    fn a_known_type_is_kept_where_the_values_fit() {
        let decimal = |precision, scale| Some(LakeType::Decimal { precision, scale });
        check(&["1"], Some(&LakeType::Long), "long");
        check(&["1"], Some(&LakeType::String), "string");
        check(&["1", "2.5"], Some(&LakeType::Double), "double");
        check(&["3"], decimal(10, 2).as_ref(), "decimal(10, 2)");
        check(&["3.125"], decimal(10, 2).as_ref(), "decimal(11, 3)");
        check(&["x"], Some(&LakeType::Int), "string");
        check(&["3000000000"], Some(&LakeType::Int), "long");
        check(&[], Some(&LakeType::Date), "date");
    }
}
