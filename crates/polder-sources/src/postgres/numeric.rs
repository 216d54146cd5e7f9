//! PostgreSQL's binary `numeric` into a decimal's unscaled integer, or into its text; exactly.
//!
//! The form (`numeric_send` in PostgreSQL's `numeric.c`), all 16-bit big endian: number of digits,
//! weight of the first digit, sign, display scale, then the digits in base 10000.

use super::decode::{Flaw, Refusal};

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const PLUS_INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;
/// Decimal digits in one base-10000 digit.
const GROUP: i32 = 4;
const UNKNOWN_SIGN: &str = "a numeric with an unknown sign";

/// The value times `10^scale`, if it has at most `precision` digits then.
///
/// Otherwise the flaw carries the nearest value that has (half away from zero); none for `NaN`.
pub(super) fn decimal(raw: &[u8], precision: u8, scale: u8) -> Result<i128, Flaw<i128>> {
    let number = Number::parse(raw).map_err(Flaw::Malformed)?;
    let largest = power(u32::from(precision)).map_or(i128::MAX, |limit| limit - 1);
    match number.sign {
        NAN => return Err(Flaw::Unrepresentable { reason: "is NaN", nearest: None }),
        PLUS_INFINITY => return Err(infinite(largest)),
        MINUS_INFINITY => return Err(infinite(-largest)),
        0 | NEGATIVE => {}
        _ => return Err(Flaw::Malformed(UNKNOWN_SIGN)),
    }
    let signed = |value: i128| if number.sign == NEGATIVE { -value } else { value };
    if let Some(value) = number.scaled_small(i32::from(scale)).filter(|value| *value <= largest) {
        return Ok(signed(value));
    }
    match number.scaled(i32::from(scale)) {
        Some((value, Rest::None)) if value <= largest => Ok(signed(value)),
        Some((value, Rest::Dropped { round_up })) if value <= largest => {
            let nearest = (value + i128::from(round_up)).min(largest);
            Err(Flaw::Unrepresentable {
                reason: "has more digits after the point than the column's scale",
                nearest: Some(signed(nearest)),
            })
        }
        _ => Err(Flaw::Unrepresentable {
            reason: "has more digits before the point than the column's precision leaves",
            nearest: Some(signed(largest)),
        }),
    }
}

/// Adds the value as PostgreSQL prints it (`numeric_out`): as many digits after the point as its
/// display scale says, no exponent.
pub(super) fn text(raw: &[u8], text: &mut Vec<u8>) -> Result<(), Refusal> {
    let number = Number::parse(raw).map_err(Refusal::Malformed)?;
    match number.sign {
        NAN => text.extend_from_slice(b"NaN"),
        PLUS_INFINITY => text.extend_from_slice(b"Infinity"),
        MINUS_INFINITY => text.extend_from_slice(b"-Infinity"),
        0 | NEGATIVE => {
            if number.sign == NEGATIVE {
                text.push(b'-');
            }
            number.write(text);
        }
        _ => return Err(Refusal::Malformed(UNKNOWN_SIGN)),
    }
    Ok(())
}

fn infinite(nearest: i128) -> Flaw<i128> {
    Flaw::Unrepresentable { reason: "is infinite", nearest: Some(nearest) }
}

fn power(exponent: u32) -> Option<i128> {
    10_i128.checked_pow(exponent)
}

/// What stands after the last digit of the scale.
enum Rest {
    None,
    Dropped { round_up: bool },
}

struct Number<'a> {
    weight: i32,
    sign: u16,
    /// Decimal digits to print after the point; the value has no more.
    display_scale: u16,
    /// Pairs of bytes.
    digits: &'a [[u8; 2]],
}

impl<'a> Number<'a> {
    fn parse(raw: &'a [u8]) -> Result<Self, &'static str> {
        let (pairs, odd) = raw.as_chunks::<2>();
        let [count, weight, sign, display_scale, digits @ ..] = pairs else {
            return Err("a numeric of fewer than 8 bytes");
        };
        if !odd.is_empty() || digits.len() != usize::from(u16::from_be_bytes(*count)) {
            return Err("a numeric of another length than it says");
        }
        Ok(Self {
            weight: i32::from(i16::from_be_bytes(*weight)),
            sign: u16::from_be_bytes(*sign),
            display_scale: u16::from_be_bytes(*display_scale),
            digits,
        })
    }

    /// The base-10000 digit of a weight; 0 where none is sent.
    fn digit(&self, weight: i32) -> u16 {
        usize::try_from(self.weight - weight)
            .ok()
            .and_then(|index| self.digits.get(index))
            .map_or(0, |digit| u16::from_be_bytes(*digit))
    }

    /// The digits, the sign aside.
    fn write(&self, text: &mut Vec<u8>) {
        write_number(self.digit(self.weight.max(0)), text);
        for weight in (0..self.weight).rev() {
            text.extend_from_slice(&group(self.digit(weight)));
        }
        if self.display_scale == 0 {
            return;
        }
        text.push(b'.');
        let end = text.len() + usize::from(self.display_scale);
        for weight in (i32::MIN..0).rev() {
            if text.len() >= end {
                break;
            }
            text.extend_from_slice(&group(self.digit(weight)));
        }
        text.truncate(end);
    }

    /// [`Self::scaled`] for the common case: at most 16 digits, none dropped.
    #[inline]
    fn scaled_small(&self, scale: i32) -> Option<i128> {
        if self.digits.len() > 4 {
            return None;
        }
        let value = self
            .digits
            .iter()
            .fold(0_u64, |value, digit| value * 10_000 + u64::from(u16::from_be_bytes(*digit)));
        let shift = (self.weight + 1) * GROUP - self.digits.len() as i32 * GROUP + scale;
        if shift >= 0 {
            return power(shift as u32)?.checked_mul(i128::from(value));
        }
        let divisor = 10_u64.checked_pow(shift.unsigned_abs())?;
        value.is_multiple_of(divisor).then(|| i128::from(value / divisor))
    }

    /// The digits up to the scale as an integer and what is beyond them; `None` if the integer is
    /// beyond 128 bits.
    fn scaled(&self, scale: i32) -> Option<(i128, Rest)> {
        let mut value = 0_i128;
        let mut rest = Rest::None;
        // How often the last digit taken stands for ten times itself.
        let mut trailing = 0;
        for (index, digit) in self.digits.iter().enumerate() {
            let digit = i128::from(u16::from_be_bytes(*digit));
            let exponent = (self.weight - index as i32) * GROUP + scale;
            if exponent >= 0 {
                value = value.checked_mul(10_000)?.checked_add(digit)?;
                trailing = exponent;
                continue;
            }
            trailing = 0;
            let (kept, dropped, half) = match exponent {
                -3..0 => {
                    let divisor = power(exponent.unsigned_abs())?;
                    value = value.checked_mul(power((GROUP + exponent) as u32)?)?;
                    (digit / divisor, digit % divisor, divisor / 2)
                }
                -4 => (0, digit, 5_000),
                _ => (0, digit, i128::MAX),
            };
            value = value.checked_add(kept)?;
            if dropped > 0 && matches!(rest, Rest::None) {
                rest = Rest::Dropped { round_up: dropped >= half };
            }
        }
        Some((value.checked_mul(power(trailing as u32)?)?, rest))
    }
}

/// The four decimal digits of a base-10000 digit.
#[inline]
fn group(digit: u16) -> [u8; 4] {
    [digit / 1000, digit / 100 % 10, digit / 10 % 10, digit % 10].map(|digit| b'0' + digit as u8)
}

/// Adds a number below 10000 without leading zeros.
#[inline]
pub(super) fn write_number(number: u16, text: &mut Vec<u8>) {
    let digits = group(number);
    let zeros = digits.iter().take(3).take_while(|digit| **digit == b'0').count();
    text.extend_from_slice(&digits[zeros..]);
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The binary form of a plain decimal notation, by way of its text: the model.
    pub(crate) fn encode(text: &str) -> Vec<u8> {
        let (sign, text) = text.strip_prefix('-').map_or((0, text), |rest| (NEGATIVE, rest));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
        let padded = format!("{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
        let mut weight = (whole.len() / 4) as i16 - 1;
        let all = format!("{whole}{padded}");
        let mut digits: Vec<u16> = (0..all.len() / 4)
            .map(|group| all[group * 4..group * 4 + 4].parse().expect("digits"))
            .collect();
        while digits.first() == Some(&0) {
            digits.remove(0);
            weight -= 1;
        }
        while digits.last() == Some(&0) {
            digits.pop();
        }
        let weight = if digits.is_empty() { 0 } else { weight };
        let header = [digits.len() as u16, weight as u16, sign, fraction.len() as u16];
        header.into_iter().chain(digits).flat_map(u16::to_be_bytes).collect()
    }

    fn special(sign: u16) -> Vec<u8> {
        [0, 0, sign, 0].into_iter().flat_map(u16::to_be_bytes).collect()
    }

    fn nearest(result: Result<i128, Flaw<i128>>) -> Option<i128> {
        match result {
            Err(Flaw::Unrepresentable { nearest, .. }) => nearest,
            other => panic!("{other:?} should be unrepresentable"),
        }
    }

    #[test]
    fn values_are_exact() {
        let cases = [
            ("0", 1, 0, 0),
            ("0.00", 18, 2, 0),
            ("-12345.67", 18, 2, -1_234_567),
            ("12345.67", 18, 4, 123_456_700),
            ("0.0001", 10, 4, 1),
            ("0.00000001", 38, 8, 1),
            ("100000000", 18, 0, 100_000_000),
            ("10000000000000000000000000000000000000", 38, 0, 10_i128.pow(37)),
            ("99999999999999999999999999999999999999", 38, 0, 10_i128.pow(38) - 1),
            ("-0.99999999999999999999999999999999999999", 38, 38, -(10_i128.pow(38) - 1)),
            ("9999999999999999999999999999999999999.9", 38, 1, 10_i128.pow(38) - 1),
            ("9999999999999999999999999999999999.9999", 38, 4, 10_i128.pow(38) - 1),
        ];
        for (text, precision, scale, expected) in cases {
            assert_eq!(decimal(&encode(text), precision, scale).expect(text), expected, "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_says_the_nearest_value() {
        let cases = [
            ("100", 2, 0, 99),
            ("-100", 2, 0, -99),
            ("0.15", 3, 1, 2),
            ("-0.15", 3, 1, -2),
            ("0.14", 3, 1, 1),
            ("0.00004", 5, 4, 0),
            ("0.00005", 5, 4, 1),
            ("0.000000005", 5, 4, 0),
            ("9.99", 2, 1, 99),
            ("1234567890123456789.5", 38, 0, 1_234_567_890_123_456_790),
            (&"9".repeat(200), 38, 0, 10_i128.pow(38) - 1),
        ];
        for (text, precision, scale, expected) in cases {
            let result = decimal(&encode(text), precision, scale);
            assert_eq!(nearest(result), Some(expected), "{text}");
        }
        assert_eq!(nearest(decimal(&special(NAN), 5, 2)), None);
        assert_eq!(nearest(decimal(&special(PLUS_INFINITY), 5, 2)), Some(99_999));
        assert_eq!(nearest(decimal(&special(MINUS_INFINITY), 5, 2)), Some(-99_999));
    }

    fn printed(raw: &[u8]) -> Result<String, Refusal> {
        let mut printed = Vec::new();
        text(raw, &mut printed)?;
        Ok(String::from_utf8(printed).expect("UTF-8"))
    }

    #[test]
    fn the_display_scale_is_kept() {
        for text in ["0", "0.00", "1.10", "-1.5", "10000", "0.00000001", "123456789.000010000"] {
            assert_eq!(printed(&encode(text)).expect(text), text);
        }
        for (sign, text) in
            [(NAN, "NaN"), (PLUS_INFINITY, "Infinity"), (MINUS_INFINITY, "-Infinity")]
        {
            assert_eq!(printed(&special(sign)).expect(text), text);
        }
    }

    #[test]
    fn broken_forms_are_refused() {
        for raw in [&[][..], &[0; 7], &[0; 9], &[0, 1, 0, 0, 0, 0, 0, 0], &special(0x1234)] {
            assert!(matches!(decimal(raw, 5, 2), Err(Flaw::Malformed(_))), "{raw:?}");
            assert!(matches!(printed(raw), Err(Refusal::Malformed(_))), "{raw:?}");
        }
    }

    proptest! {
        #[test]
        fn every_decimal_is_what_its_text_says(
            unscaled in -(10_i128.pow(38) - 1)..10_i128.pow(38),
            digits in 1_u32..=38,
            scale in 0_usize..=38,
        ) {
            let unscaled = unscaled % 10_i128.pow(digits);
            let number = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
            let (whole, fraction) = number.split_at(number.len() - scale);
            let sign = if unscaled < 0 { "-" } else { "" };
            let text = format!("{sign}{whole}.{fraction}");
            prop_assert_eq!(decimal(&encode(&text), 38, scale as u8).expect("fits"), unscaled);
            if scale > 0 {
                prop_assert_eq!(printed(&encode(&text)).expect("text"), text);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            raw in prop::collection::vec(any::<u8>(), 0..40),
            precision in 1_u8..=38,
            scale in 0_u8..=38,
        ) {
            decimal(&raw, precision, scale.min(precision)).ok();
        }
    }
}
