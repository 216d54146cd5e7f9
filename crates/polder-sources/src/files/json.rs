//! One line of JSON (RFC 8259) to one BSON document, byte by byte.
//!
//! Written here as the usual parser turns numbers into doubles: a number of JSON has any number of
//! digits, and none may be lost. Whole numbers become int32, int64 or decimal128; others a double
//! where the double's shortest text is the same number, else decimal128; what even that does not
//! hold is carried as a BSON symbol with the number's text, which becomes text in the table.

use crate::document::Names;
use crate::values;

/// Nesting of one line.
const DEPTH_MAX: usize = 128;
/// Digits and exponents of decimal128.
const DECIMAL_DIGITS_MAX: u128 = 10_u128.pow(34);
const DECIMAL_EXPONENTS: std::ops::RangeInclusive<i32> = -6176..=6111;

/// Turns lines into documents.
#[derive(Default)]
pub(super) struct JsonParser {
    out: Vec<u8>,
    /// A member's name or a text, unescaped.
    text: Vec<u8>,
    names: Names,
    /// By member of the top level, the last line that had it.
    lines: Vec<u64>,
    line: u64,
}

/// Why a line is no document.
pub(super) type Reason = &'static str;

impl JsonParser {
    /// The line's document. The line has to be UTF-8.
    pub(super) fn document(&mut self, line: &str) -> Result<&[u8], Reason> {
        self.out.clear();
        self.line += 1;
        let mut input = Input { bytes: line.as_bytes(), position: 0 };
        input.skip_space();
        if input.peek() != Some(b'{') {
            return Err("it is not a JSON object");
        }
        self.object(&mut input, 0)?;
        input.skip_space();
        if input.position < input.bytes.len() {
            return Err("something follows the JSON object");
        }
        Ok(&self.out)
    }

    fn object(&mut self, input: &mut Input<'_>, depth: usize) -> Result<(), Reason> {
        let start = self.open(depth)?;
        input.position += 1;
        input.skip_space();
        if input.take(b'}') {
            self.close(start);
            return Ok(());
        }
        let mut next = 0;
        loop {
            input.skip_space();
            self.string(input)?;
            if self.text.contains(&0) {
                return Err("a member's name contains a NUL");
            }
            if depth == 0 {
                next = self.once(next)? + 1;
            }
            let kind = self.out.len();
            self.out.push(0);
            self.out.extend_from_slice(&self.text);
            self.out.push(0);
            input.skip_space();
            input.expect(b':')?;
            self.value(input, kind, depth)?;
            input.skip_space();
            if input.take(b'}') {
                self.close(start);
                return Ok(());
            }
            input.expect(b',')?;
        }
    }

    /// A table's row has each column once; deeper, inference sees to it.
    fn once(&mut self, hint: usize) -> Result<usize, Reason> {
        let number = self.names.find(&self.text, hint).unwrap_or_else(|| {
            self.lines.push(0);
            self.names.add(&self.text)
        });
        if self.lines[number] == self.line {
            return Err("a member appears twice");
        }
        self.lines[number] = self.line;
        Ok(number)
    }

    fn array(&mut self, input: &mut Input<'_>, depth: usize) -> Result<(), Reason> {
        let start = self.open(depth)?;
        input.position += 1;
        input.skip_space();
        if input.take(b']') {
            self.close(start);
            return Ok(());
        }
        loop {
            // Elements' names are their positions by the letter; nothing here reads them.
            let kind = self.out.len();
            self.out.extend_from_slice(&[0, 0]);
            self.value(input, kind, depth)?;
            input.skip_space();
            if input.take(b']') {
                self.close(start);
                return Ok(());
            }
            input.expect(b',')?;
        }
    }

    fn open(&mut self, depth: usize) -> Result<usize, Reason> {
        if depth > DEPTH_MAX {
            return Err("it is nested too deeply");
        }
        let start = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        Ok(start)
    }

    fn close(&mut self, start: usize) {
        self.out.push(0);
        let size = (self.out.len() - start) as u32;
        self.out[start..start + 4].copy_from_slice(&size.to_le_bytes());
    }

    /// Reads a value; its type goes to `kind` in the output.
    fn value(&mut self, input: &mut Input<'_>, kind: usize, depth: usize) -> Result<(), Reason> {
        input.skip_space();
        self.out[kind] = match input.peek() {
            Some(b'{') => {
                self.object(input, depth + 1)?;
                0x03
            }
            Some(b'[') => {
                self.array(input, depth + 1)?;
                0x04
            }
            Some(b'"') => {
                self.string(input)?;
                let size = self.text.len() as u32 + 1;
                self.out.extend_from_slice(&size.to_le_bytes());
                self.out.extend_from_slice(&self.text);
                self.out.push(0);
                0x02
            }
            Some(b't') => {
                input.word(b"true")?;
                self.out.push(1);
                0x08
            }
            Some(b'f') => {
                input.word(b"false")?;
                self.out.push(0);
                0x08
            }
            Some(b'n') => {
                input.word(b"null")?;
                0x0A
            }
            _ => self.number(input.number()?),
        };
        Ok(())
    }

    /// Writes a number's value and returns its BSON type.
    fn number(&mut self, number: JsonNumber<'_>) -> u8 {
        let text = number.text;
        if number.whole && text != "-0" {
            if let Ok(value) = text.parse::<i64>() {
                if let Ok(value) = i32::try_from(value) {
                    self.out.extend_from_slice(&value.to_le_bytes());
                    return 0x10;
                }
                self.out.extend_from_slice(&value.to_le_bytes());
                return 0x12;
            }
        } else if let Ok(value) = values::double(text) {
            self.out.extend_from_slice(&value.to_le_bytes());
            return 0x01;
        }
        if let Some(number) = values::number(text) {
            let fits = number.coefficient < DECIMAL_DIGITS_MAX
                && DECIMAL_EXPONENTS.contains(&number.exponent);
            if fits {
                // BID: sign, 14 bits of exponent, 113 bits of coefficient.
                let exponent = (number.exponent + 6176).cast_unsigned();
                let bits = u128::from(number.negative) << 127
                    | u128::from(exponent) << 113
                    | number.coefficient;
                self.out.extend_from_slice(&bits.to_le_bytes());
                return 0x13;
            }
        }
        let size = text.len() as u32 + 1;
        self.out.extend_from_slice(&size.to_le_bytes());
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(0);
        0x0E
    }

    /// Reads a JSON string into `text`.
    fn string(&mut self, input: &mut Input<'_>) -> Result<(), Reason> {
        self.text.clear();
        input.expect(b'"')?;
        loop {
            let rest = &input.bytes[input.position..];
            let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20));
            let plain = plain.ok_or("a text is not closed")?;
            self.text.extend_from_slice(&rest[..plain]);
            input.position += plain + 1;
            match rest[plain] {
                b'"' => return Ok(()),
                b'\\' => self.escape(input)?,
                _ => return Err("a text contains a control character"),
            }
        }
    }

    fn escape(&mut self, input: &mut Input<'_>) -> Result<(), Reason> {
        let byte = input.peek().ok_or("a text is not closed")?;
        input.position += 1;
        self.text.push(match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let character = input.unicode()?;
                let mut utf8 = [0; 4];
                self.text.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
                return Ok(());
            }
            _ => return Err("a text has an unknown escape"),
        });
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct JsonNumber<'a> {
    text: &'a str,
    /// Without fraction and exponent.
    whole: bool,
}

struct Input<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.position += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), Reason> {
        self.take(byte).then_some(()).ok_or("it is not valid JSON")
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Reason> {
        let found = self.bytes[self.position..].starts_with(word);
        self.position += word.len();
        found.then_some(()).ok_or("it is not valid JSON")
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.position += 1;
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.position;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.position += 1;
        }
        self.position - start
    }

    /// The grammar of RFC 8259, section 6.
    fn number(&mut self) -> Result<JsonNumber<'a>, Reason> {
        const INVALID: Reason = "it is not valid JSON";
        let start = self.position;
        self.take(b'-');
        let zero = self.peek() == Some(b'0');
        let digits = self.digits();
        if digits == 0 || (zero && digits > 1) {
            return Err(INVALID);
        }
        let mut whole = true;
        if self.take(b'.') {
            whole = false;
            if self.digits() == 0 {
                return Err(INVALID);
            }
        }
        if self.take(b'e') || self.take(b'E') {
            whole = false;
            if !self.take(b'+') {
                self.take(b'-');
            }
            if self.digits() == 0 {
                return Err(INVALID);
            }
        }
        let text = std::str::from_utf8(&self.bytes[start..self.position]).map_err(|_| INVALID)?;
        Ok(JsonNumber { text, whole })
    }

    /// The character of `\uXXXX`, and of the second half where it takes two.
    fn unicode(&mut self) -> Result<char, Reason> {
        const INVALID: Reason = "a text has an escape that is no character";
        let first = self.hex()?;
        if !(0xD800..0xE000).contains(&first) {
            return char::from_u32(first).ok_or(INVALID);
        }
        if first >= 0xDC00 || !self.take(b'\\') || !self.take(b'u') {
            return Err(INVALID);
        }
        let second = self.hex()?;
        if !(0xDC00..0xE000).contains(&second) {
            return Err(INVALID);
        }
        char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00)).ok_or(INVALID)
    }

    fn hex(&mut self) -> Result<u32, Reason> {
        let digits = self.bytes.get(self.position..self.position + 4);
        self.position += 4;
        digits
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or("a text has an escape that is no character")
    }
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};

    use super::*;

    fn parse(line: &str) -> Result<Document, String> {
        let mut parser = JsonParser::default();
        let bytes = parser.document(line).map_err(ToOwned::to_owned)?;
        let raw = bson::RawDocument::from_bytes(bytes).map_err(|error| error.to_string())?;
        Document::try_from(raw).map_err(|error| error.to_string())
    }

    #[test]
    fn values_keep_every_digit() {
        let decimal = |text: &str| text.parse::<bson::Decimal128>().expect("decimal");
        let symbol = |text: &str| bson::Bson::Symbol(text.to_owned());
        let long = "1".repeat(40);
        let cases = [
            (r#"{"a": 1, "b": -3000000000}"#, doc! { "a": 1_i32, "b": -3_000_000_000_i64 }),
            (r#"{"a": 1.5, "b": 1e3}"#, doc! { "a": 1.5, "b": 1000.0 }),
            (r#"{"a": 18446744073709551615}"#, doc! { "a": decimal("18446744073709551615") }),
            (r#"{"a": 0.1234567890123456789}"#, doc! { "a": decimal("0.1234567890123456789") }),
            (&format!("{{\"a\": {long}}}"), doc! { "a": symbol(&long) }),
            (r#"{"a": -0}"#, doc! { "a": -0.0 }),
            (
                r#"{"a": [1, null, {"b": true}], "c": {}}"#,
                doc! { "a": [1, null, { "b": true }], "c": {} },
            ),
            (r#" {"é\u00e9\ud83d\ude00\n": "\"\\\/"} "#, doc! { "éé😀\n": "\"\\/" }),
            ("{}", doc! {}),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line).expect(line), expected, "{line}");
        }
    }

    #[test]
    fn broken_lines_say_why() {
        let cases = [
            ("[1]", "it is not a JSON object"),
            (r#"{"a": 1} x"#, "something follows the JSON object"),
            (r#"{"a": 1, "a": 2}"#, "a member appears twice"),
            (r#"{"a": 01}"#, "it is not valid JSON"),
            (r#"{"a": tru}"#, "it is not valid JSON"),
            (r#"{"a": 1.}"#, "it is not valid JSON"),
            (r#"{"a" 1}"#, "it is not valid JSON"),
            (r#"{"a": "x"#, "a text is not closed"),
            (r#"{"a": "\ud800"}"#, "a text has an escape that is no character"),
            (r#"{"a\u0000": 1}"#, "a member's name contains a NUL"),
            (r#"{"a": "\x"}"#, "a text has an unknown escape"),
            (r#"{"a": 1,}"#, "it is not valid JSON"),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line).expect_err(line), expected, "{line}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        assert_eq!(parse(&deep).expect_err("deep"), "it is nested too deeply");
    }
}
