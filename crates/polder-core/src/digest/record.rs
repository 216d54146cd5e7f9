//! The bytes in which a PostgreSQL server sends a record, and its hash of texts: what words are made of.

use super::hex_pair;

/// Types by their numbers (`pg_type.dat`); what is sent as text is of type `text`.
pub(super) mod oid {
    pub(crate) const BOOL: u32 = 16;
    pub(crate) const BYTEA: u32 = 17;
    pub(crate) const INT8: u32 = 20;
    pub(crate) const INT4: u32 = 23;
    pub(crate) const TEXT: u32 = 25;
    pub(crate) const FLOAT4: u32 = 700;
    pub(crate) const FLOAT8: u32 = 701;
    pub(crate) const DATE: u32 = 1082;
    pub(crate) const TIME: u32 = 1083;
    pub(crate) const TIMESTAMP: u32 = 1114;
    pub(crate) const TIMESTAMPTZ: u32 = 1184;
    pub(crate) const NUMERIC: u32 = 1700;
    pub(crate) const UUID: u32 = 2950;
}

/// Adds a column as `record_send` in PostgreSQL's `rowtypes.c` does: its type, the length of its value in
/// bytes, −1 for null, and the value, which `value` adds.
pub(super) fn column(oid: u32, null: bool, value: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    out.extend_from_slice(&oid.to_be_bytes());
    if null {
        return out.extend_from_slice(&(-1_i32).to_be_bytes());
    }
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    value(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Adds a decimal as `numeric_send` in PostgreSQL's `numeric.c` does: the number of digits to the base
/// 10,000, the weight of the first one, the sign, the decimals to be shown, and the digits, without
/// zeros at either end.
pub(super) fn numeric(unscaled: i128, scale: u8, out: &mut Vec<u8>) {
    const BASE: u128 = 10_000;
    const NEGATIVE: u16 = 0x4000;
    // The last digit holds four decimals, of which some may be missing.
    let decimals = usize::from(scale).div_ceil(4);
    let missing = (decimals * 4 - usize::from(scale)) as u32;
    let (mut digits, mut left) = ([0_u16; 12], unscaled.unsigned_abs());
    let mut count = 0;
    if missing > 0 && left > 0 {
        let below = 10_u128.pow(4 - missing);
        digits[0] = ((left % below) * 10_u128.pow(missing)) as u16;
        left /= below;
        count = 1;
    }
    while left > 0 {
        digits[count] = (left % BASE) as u16;
        left /= BASE;
        count += 1;
    }
    let mut digits = &digits[..count];
    let weight = count as i16 - 1 - decimals as i16;
    while let [0, rest @ ..] = digits {
        digits = rest;
    }
    let weight = if digits.is_empty() { 0 } else { weight };
    let sign = if unscaled < 0 { NEGATIVE } else { 0 };
    let head = [digits.len() as u16, weight as u16, sign, scale.into()];
    let parts = head.iter().chain(digits.iter().rev());
    out.extend(parts.flat_map(|part| part.to_be_bytes()));
}

/// `hash_bytes_extended` in PostgreSQL's `hashfn.c` (Bob Jenkins' lookup3) of the bytes in hexadecimal
/// digits, with the seed 0, as a server with little-endian numbers computes it.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let start = 0x9e37_79b9_u32.wrapping_add(bytes.len() as u32 * 2).wrapping_add(3_923_095);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut blocks = bytes.chunks_exact(6);
    for block in &mut blocks {
        a = a.wrapping_add(four(block[0], block[1]));
        b = b.wrapping_add(four(block[2], block[3]));
        c = c.wrapping_add(four(block[4], block[5]));
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
    }
    let rest = blocks.remainder();
    let two = |at: usize| rest.get(at).map_or(0, |byte| u32::from(hex_pair(*byte)));
    a = a.wrapping_add(two(0) | two(1) << 16);
    b = b.wrapping_add(two(2) | two(3) << 16);
    // The lowest byte of the last one is the length's.
    c = c.wrapping_add(two(4) << 8);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    u64::from(b) << 32 | u64::from(c)
}

/// Two bytes as four hexadecimal digits, the first one lowest.
fn four(one: u8, other: u8) -> u32 {
    u32::from(hex_pair(one)) | u32::from(hex_pair(other)) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(unscaled: i128, scale: u8) -> String {
        let mut out = Vec::new();
        numeric(unscaled, scale, &mut out);
        super::super::hex(&out)
    }

    /// What PostgreSQL 15.18 prints for `encode(numeric_send(…), 'hex')`.
    #[test]
    fn decimals_are_sent_as_the_server_sends_them() {
        assert_eq!(sent(150, 2), "000200000000000200011388");
        assert_eq!(sent(0, 2), "0000000000000002");
        assert_eq!(sent(-123_456_789_000, 4), "000300014000000404d2162e2328");
        assert_eq!(sent(10_000, 0), "00010001000000000001");
        assert_eq!(sent(5, 5), "0001fffe000000051388");
        assert_eq!(sent(1, 0), "00010000000000000001");
        let most = 10_i128.pow(38) - 1;
        let nines = "270f".repeat(9);
        assert_eq!(sent(most, 0), format!("000a0009000000000063{nines}"));
        assert_eq!(sent(-most, 38), format!("000affff40000026{nines}26ac"));
    }

    /// What PostgreSQL 15.18 prints for `hashtextextended(encode(…, 'hex') COLLATE "C", 0)`.
    #[test]
    fn words_are_the_servers() {
        let word = |bytes: &[u8]| hash(bytes) as i64;
        assert_eq!(word(b"abc"), -8_769_420_190_854_735_653);
        assert_eq!(word(b""), -6_939_563_903_564_495_251);
        let digits: Vec<u8> =
            vec![0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89];
        assert_eq!(word(&digits), 1_847_133_920_234_170_120);
    }
}
