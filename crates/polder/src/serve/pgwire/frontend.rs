//! What clients send. Read here and not by `pgwire`, whose decoding panics on lengths that are not true and
//! replaces bytes that are no UTF-8.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};

use super::failure::{Failure, Outcome, state};

/// The codes in the place of a protocol's version.
const CANCEL: i32 = 80_877_102;
const TLS: i32 = 80_877_103;
const GSS: i32 = 80_877_104;

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    Tls,
    Gss,
    Cancel { process: i32, secret: i32 },
    Start { minor: u16, parameters: BTreeMap<String, String> },
}

/// A statement or a portal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Statement(String),
    Portal(String),
}

/// A message of a client that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Password(String),
    Query(String),
    Parse {
        name: String,
        sql: String,
        types: Vec<u32>,
    },
    Bind(Binding),
    Describe(Named),
    Execute {
        portal: String,
        rows_max: i32,
    },
    Close(Named),
    Flush,
    Sync,
    Terminate,
    /// Rows of a COPY that was refused before.
    Copy,
}

/// Values for a statement's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) portal: String,
    pub(super) statement: String,
    pub(super) formats: Vec<i16>,
    pub(super) values: Vec<Option<Bytes>>,
    pub(super) result_formats: Vec<i16>,
}

/// What is left of a message.
struct Body(Bytes);

impl Body {
    fn short() -> Failure {
        Failure::protocol("a message is shorter than it says").fatal()
    }

    fn number16(&mut self) -> Outcome<u16> {
        if self.0.len() < 2 { Err(Self::short()) } else { Ok(self.0.get_u16()) }
    }

    fn number(&mut self) -> Outcome<i32> {
        if self.0.len() < 4 { Err(Self::short()) } else { Ok(self.0.get_i32()) }
    }

    fn byte(&mut self) -> Outcome<u8> {
        if self.0.is_empty() { Err(Self::short()) } else { Ok(self.0.get_u8()) }
    }

    fn text(&mut self) -> Outcome<String> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(Self::short)?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        String::from_utf8(text.to_vec()).map_err(|_| Failure::new("22021", "a text is no UTF-8"))
    }

    fn formats(&mut self) -> Outcome<Vec<i16>> {
        let count = self.number16()?;
        (0..count).map(|_| self.number16().map(u16::cast_signed)).collect()
    }

    fn value(&mut self) -> Outcome<Option<Bytes>> {
        let Ok(length) = usize::try_from(self.number()?) else { return Ok(None) };
        if self.0.len() < length {
            return Err(Self::short());
        }
        Ok(Some(self.0.split_to(length)))
    }

    fn named(&mut self) -> Outcome<Named> {
        match self.byte()? {
            b'S' => Ok(Named::Statement(self.text()?)),
            b'P' => Ok(Named::Portal(self.text()?)),
            _ => Err(Failure::protocol("a message names neither statement nor portal")),
        }
    }

    fn binding(&mut self) -> Outcome<Binding> {
        let (portal, statement) = (self.text()?, self.text()?);
        let formats = self.formats()?;
        let count = self.number16()?;
        let values = (0..count).map(|_| self.value()).collect::<Outcome<_>>()?;
        let result_formats = self.formats()?;
        Ok(Binding { portal, statement, formats, values, result_formats })
    }
}

/// Reads the first message of a connection, without its length.
///
/// # Errors
/// For what is no PostgreSQL client of this age.
pub(super) fn opening(body: Bytes) -> Outcome<Opening> {
    let mut body = Body(body);
    let code = body.number()?;
    match code {
        TLS => return Ok(Opening::Tls),
        GSS => return Ok(Opening::Gss),
        CANCEL => {
            return Ok(Opening::Cancel { process: body.number()?, secret: body.number()? });
        }
        _ => {}
    }
    if code >> 16 != 3 {
        return Err(Failure::new(state::UNSUPPORTED, "this server speaks protocol 3").fatal());
    }
    let mut parameters = BTreeMap::new();
    loop {
        let name = body.text()?;
        if name.is_empty() {
            break;
        }
        parameters.insert(name, body.text()?);
    }
    let minor = u16::try_from(code & 0xffff).unwrap_or(u16::MAX);
    Ok(Opening::Start { minor, parameters })
}

/// Reads a message by its kind.
///
/// # Errors
/// For a message that is not understood; fatal where the next one could not be found.
pub(super) fn asked(kind: u8, body: Bytes) -> Outcome<Asked> {
    let mut body = Body(body);
    Ok(match kind {
        b'p' => Asked::Password(body.text()?),
        b'Q' => Asked::Query(body.text()?),
        b'P' => {
            let (name, sql) = (body.text()?, body.text()?);
            let count = body.number16()?;
            let types = (0..count).map(|_| body.number().map(i32::cast_unsigned));
            Asked::Parse { name, sql, types: types.collect::<Outcome<_>>()? }
        }
        b'B' => Asked::Bind(body.binding()?),
        b'D' => Asked::Describe(body.named()?),
        b'E' => Asked::Execute { portal: body.text()?, rows_max: body.number()? },
        b'C' => Asked::Close(body.named()?),
        b'H' => Asked::Flush,
        b'S' => Asked::Sync,
        b'X' => Asked::Terminate,
        b'c' | b'd' | b'f' => Asked::Copy,
        other => {
            let message = format!("there is no message of the kind {:?}", char::from(other));
            return Err(Failure::protocol(message).fatal());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(parts: &[&[u8]]) -> Bytes {
        Bytes::from(parts.concat())
    }

    #[test]
    fn connections_begin_in_four_ways() {
        let of = |code: i32, rest: &[u8]| opening(body(&[&code.to_be_bytes(), rest]));
        assert_eq!(of(TLS, b"").expect("tls"), Opening::Tls);
        assert_eq!(of(GSS, b"").expect("gss"), Opening::Gss);
        let cancel = of(CANCEL, &[0, 0, 0, 1, 255, 255, 255, 255]).expect("cancel");
        assert_eq!(cancel, Opening::Cancel { process: 1, secret: -1 });
        let start = of(0x0003_0002, b"user\0ann\0database\0lake\0\0").expect("start");
        let parameters = [("user", "ann"), ("database", "lake")];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(start, Opening::Start { minor: 2, parameters: parameters.into() });
        // The first line of an HTTP request.
        assert!(opening(Bytes::from_static(b"GET / HTTP/1.1\r\n")).is_err());
        for short in [&b""[..], b"\0\x03\0\0", b"\0\x03\0\0user", b"\0\x03\0\0user\0ann\0"] {
            assert!(opening(Bytes::copy_from_slice(short)).expect_err("short").fatal);
        }
    }

    #[test]
    fn lengths_that_are_not_true_are_errors() {
        let bind = body(&[b"\0s\0", &[0, 1, 0, 1], &[0, 1], &[0, 0, 0, 2], b"ab", &[0, 0]]);
        let whole = asked(b'B', bind.clone()).expect("bind");
        let expected = Binding {
            portal: String::new(),
            statement: "s".to_owned(),
            formats: vec![1],
            values: vec![Some(Bytes::from_static(b"ab"))],
            result_formats: Vec::new(),
        };
        assert_eq!(whole, Asked::Bind(expected));
        for length in 0..bind.len() {
            assert!(asked(b'B', bind.slice(..length)).is_err(), "{length}");
        }
        let huge = body(&[b"\0\0", &[0, 0], &[0, 1], &[127, 255, 255, 255]]);
        assert!(asked(b'B', huge).is_err());
        assert!(asked(b'P', body(&[b"\0SELECT 1\0", &[0, 2], &[0, 0, 0, 1]])).is_err());
        assert!(asked(b'?', Bytes::new()).expect_err("kind").fatal);
    }

    #[test]
    fn what_is_no_utf_8_is_refused() {
        let error = asked(b'Q', body(&[b"SELECT '\xff'\0"])).expect_err("no text");
        assert_eq!((error.state, error.fatal), ("22021", false));
    }
}
