//! Values that the lake keeps as text and PostgreSQL sends as something else: written here as its
//! cast to text writes them.
//!
//! A cast in the query would do too, but then the server projects every row and makes each text
//! twice over; such columns are in nearly every table.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::decode::Refusal;
use super::numeric;

/// The binary form a text is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// `jsonb_send` in PostgreSQL's `jsonb.c`: a version, then the text.
    Jsonb,
    /// `numeric_send` in `numeric.c`.
    Numeric,
    /// `inet` and `cidr`, `network_send` in `network.c`: family, bits of the mask, whether it is a
    /// `cidr`, number of bytes, the bytes.
    Network,
}

impl Written {
    /// Adds the value's text to `text`.
    pub(super) fn write(self, raw: &[u8], text: &mut Vec<u8>) -> Result<(), Refusal> {
        match self {
            Self::Jsonb => jsonb(raw, text),
            Self::Numeric => numeric::text(raw, text),
            Self::Network => network(raw, text),
        }
    }
}

fn jsonb(raw: &[u8], text: &mut Vec<u8>) -> Result<(), Refusal> {
    match raw {
        [1, json @ ..] => {
            text.extend_from_slice(json);
            Ok(())
        }
        _ => Err(Refusal::Malformed("jsonb of an unknown version")),
    }
}

/// The cast's form (`network_show` in PostgreSQL's `network.c`), which always has the mask.
fn network(raw: &[u8], text: &mut Vec<u8>) -> Result<(), Refusal> {
    /// `PGSQL_AF_INET` and `PGSQL_AF_INET6` in `inet.h`: 2, whatever the platform calls it, and 3.
    const V4: u8 = 2;
    const V6: u8 = 3;
    let unknown = Err(Refusal::Malformed("a network address of an unknown form"));
    let [family, bits, _is_cidr, length, address @ ..] = raw else { return unknown };
    match (*family, *bits, *length) {
        (V4, 0..=32, 4) => {
            let Ok(octets) = <[u8; 4]>::try_from(address) else { return unknown };
            for (index, octet) in octets.into_iter().enumerate() {
                if index > 0 {
                    text.push(b'.');
                }
                numeric::write_number(octet.into(), text);
            }
        }
        (V6, 0..=128, 16) => {
            let Ok(octets) = <[u8; 16]>::try_from(address) else { return unknown };
            text.extend_from_slice(v6(Ipv6Addr::from(octets)).as_bytes());
        }
        _ => return unknown,
    }
    text.push(b'/');
    numeric::write_number((*bits).into(), text);
    Ok(())
}

/// `inet_net_ntop_ipv6` in PostgreSQL's `inet_net_ntop.c`: as everywhere, but that an address of six
/// zero words ends in an IPv4 address.
fn v6(address: Ipv6Addr) -> String {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
            format!("::{}", Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(form: Written, raw: &[u8]) -> Result<String, Refusal> {
        let mut text = Vec::new();
        form.write(raw, &mut text)?;
        Ok(String::from_utf8(text).expect("UTF-8"))
    }

    #[test]
    fn unknown_forms_are_refused() {
        let cases = [
            (Written::Jsonb, &b""[..]),
            (Written::Jsonb, b"\x02{}"),
            (Written::Network, b""),
            (Written::Network, &[2, 33, 0, 4, 1, 2, 3, 4]),
            (Written::Network, &[2, 32, 0, 4, 1, 2, 3]),
            (Written::Network, &[3, 32, 0, 4, 1, 2, 3, 4]),
            (Written::Network, &[4, 32, 0, 4, 1, 2, 3, 4]),
        ];
        for (form, raw) in cases {
            assert!(matches!(written(form, raw), Err(Refusal::Malformed(_))), "{form:?} {raw:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(raw in prop::collection::vec(any::<u8>(), 0..40)) {
            for form in [Written::Jsonb, Written::Numeric, Written::Network] {
                form.write(&raw, &mut Vec::new()).ok();
            }
        }
    }
}
