//! Decimals in the binary form of PostgreSQL's `numeric`: digits to the base 10,000.

use std::fmt::Write;

use bytes::{Buf, BufMut, BytesMut};

const NEGATIVE: u16 = 0x4000;
/// Digits that a number on the wire may claim: no number of ours has more.
const GROUPS_MAX: usize = 64;

/// Writes a number that is given by its decimal digits.
pub(super) fn put(text: &str, out: &mut BytesMut) {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let mut padded = "0".repeat((4 - whole.len() % 4) % 4);
    padded.push_str(whole);
    let wholes = padded.len() / 4;
    padded.push_str(part);
    padded.push_str(&"0".repeat((4 - part.len() % 4) % 4));
    let groups: Vec<i16> = padded
        .as_bytes()
        .chunks(4)
        .map(|four| four.iter().fold(0, |sum, digit| sum * 10 + i16::from(digit - b'0')))
        .collect();
    let leading = groups.iter().take_while(|group| **group == 0).count();
    let trailing = groups[leading..].iter().rev().take_while(|group| **group == 0).count();
    let kept = &groups[leading..groups.len() - trailing];
    // A number of ours has less than a hundred digits: these fit.
    out.put_i16(kept.len() as i16);
    out.put_i16(if kept.is_empty() { 0 } else { wholes as i16 - 1 - leading as i16 });
    out.put_u16(if negative && !kept.is_empty() { NEGATIVE } else { 0 });
    out.put_u16(part.len() as u16);
    for group in kept {
        out.put_i16(*group);
    }
}

/// The decimal digits of a number; `None` for one that is malformed, no number, or too long.
pub(super) fn read(mut bytes: &[u8]) -> Option<String> {
    if bytes.len() < 8 {
        return None;
    }
    let (count, weight) = (bytes.get_u16() as usize, i32::from(bytes.get_i16()));
    let (sign, scale) = (bytes.get_u16(), bytes.get_u16() as usize);
    let places = i32::try_from(GROUPS_MAX).ok()?;
    let fits = count <= GROUPS_MAX && weight.abs() <= places && scale <= 4 * GROUPS_MAX;
    if !fits || bytes.len() != 2 * count || !matches!(sign, 0 | NEGATIVE) {
        return None;
    }
    let groups: Vec<u16> = (0..count).map(|_| bytes.get_u16()).collect();
    if groups.iter().any(|group| *group > 9_999) {
        return None;
    }
    let group = |at: i32| usize::try_from(at).ok().and_then(|at| groups.get(at)).unwrap_or(&0);
    // Texts take all that is written.
    let mut whole = String::new();
    for at in 0..=weight {
        let _ = write!(whole, "{:04}", group(at));
    }
    let mut part = String::new();
    let mut at = weight + 1;
    // Digits before the first group are zeros.
    for _ in 0..scale.div_ceil(4) {
        let _ = write!(part, "{:04}", group(at));
        at += 1;
    }
    // What stands beyond the scale would be cut off.
    let beyond = usize::try_from(at).unwrap_or_default();
    if groups.iter().skip(beyond).any(|group| *group != 0)
        || part.get(scale..)?.contains(|c: char| c != '0')
    {
        return None;
    }
    part.truncate(scale);
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if sign == NEGATIVE { "-" } else { "" };
    let point = if part.is_empty() { "" } else { "." };
    Some(format!("{sign}{whole}{point}{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Vec<i16> {
        let mut out = BytesMut::new();
        put(text, &mut out);
        out.chunks(2).map(|two| i16::from_be_bytes([two[0], two[1]])).collect()
    }

    #[test]
    fn numbers_are_written_as_postgresql_does() {
        // As `numeric_send` gives them.
        let cases: [(&str, &[i16]); 9] = [
            ("0", &[0, 0, 0, 0]),
            ("0.00", &[0, 0, 0, 2]),
            ("1", &[1, 0, 0, 0, 1]),
            ("-1", &[1, 0, 0x4000, 0, 1]),
            ("10000", &[1, 1, 0, 0, 1]),
            ("12345.678", &[3, 1, 0, 3, 1, 2345, 6780]),
            ("0.0001", &[1, -1, 0, 4, 1]),
            ("0.00001", &[1, -2, 0, 5, 1000]),
            ("100000000.50", &[4, 2, 0, 2, 1, 0, 0, 5000]),
        ];
        for (text, expected) in cases {
            assert_eq!(written(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_come_back_with_every_digit() {
        let wide = "-98765432109876543210987654321098765.432";
        for text in ["0", "0.00", "1", "-1.50", "10000", "12345.678", "0.00001", "9999.9999", wide]
        {
            let mut out = BytesMut::new();
            put(text, &mut out);
            assert_eq!(read(&out).as_deref(), Some(text));
        }
        for bad in [&[0_u8; 7][..], &[0, 1, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0xC0, 0, 0, 0]] {
            assert_eq!(read(bad), None);
        }
    }
}
