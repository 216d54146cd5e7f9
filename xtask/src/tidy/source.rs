//! Just enough of Rust's lexical rules to find code among comments and literals, and functions in
//! code. It understands rustfmt'd sources, not every program the compiler accepts.

/// The text with comments and the insides of string and character literals replaced by spaces;
/// lines stay where they are.
pub(super) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = skipped(bytes, at);
        if end > at {
            blank(&mut out[at..end]);
            at = end;
        } else if is_word(bytes[at]) {
            // A whole word at once: its letters are no prefix of a literal.
            at = word_end(bytes, at);
        } else {
            at += 1;
        }
    }
    // Only whole characters were replaced, by ASCII; anything else would be a bug worth seeing.
    String::from_utf8_lossy(&out).into_owned()
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

/// The end of the comment or literal that starts at `at`; `at` itself if there is none.
fn skipped(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return at + block_comment(rest);
    }
    if rest[0] == b'\'' {
        return at + character(rest);
    }
    // The longest prefix of a string literal is two letters: b, c, r, br, cr.
    let prefix = rest.iter().take(2).take_while(|byte| matches!(byte, b'b' | b'c' | b'r')).count();
    let raw = prefix > 0 && rest[prefix - 1] == b'r';
    let hashes = if raw { count(&rest[prefix..], b'#') } else { 0 };
    if rest.get(prefix + hashes) != Some(&b'"') {
        let byte_character = rest.starts_with(b"b'");
        return if byte_character { at + 1 + character(&rest[1..]) } else { at };
    }
    let open = prefix + hashes + 1;
    at + open + if raw { raw_string(&rest[open..], hashes) } else { string(&rest[open..]) }
}

fn count(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().take_while(|&&byte| byte == wanted).count()
}

fn block_comment(bytes: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length up to and with the closing quote of a string whose opening quote is behind us.
fn string(bytes: &[u8]) -> usize {
    let mut at = 0;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn raw_string(bytes: &[u8], hashes: usize) -> usize {
    let closes = |at: &usize| bytes[*at] == b'"' && count(&bytes[at + 1..], b'#') >= hashes;
    let end = (0..bytes.len()).find(closes);
    end.map_or(bytes.len(), |at| at + 1 + hashes)
}

/// The length of a character literal; 0 when the quote starts a lifetime.
fn character(bytes: &[u8]) -> usize {
    if bytes.get(1) == Some(&b'\\') {
        let end = (3..bytes.len()).find(|&at| bytes[at] == b'\'');
        return end.map_or(bytes.len(), |at| at + 1);
    }
    // One character of up to four bytes, then the closing quote: `'a'`, not `'a`.
    let first = bytes.get(1).copied().unwrap_or(b'\'');
    let width = match first {
        0..0x80 => 1,
        0x80..0xE0 => 2,
        0xE0..0xF0 => 3,
        _ => 4,
    };
    if bytes.get(1 + width) == Some(&b'\'') { width + 2 } else { 0 }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn word_end(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].iter().take_while(|&&byte| is_word(byte)).count()
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// The line of its `fn`, from 1.
    pub(super) line: usize,
    /// Lines from `fn` to the closing brace, both counted.
    pub(super) lines: usize,
}

/// The functions in masked code, nested ones too.
pub(super) fn functions(code: &str) -> Vec<Function> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        if !is_word(bytes[at]) {
            line += usize::from(bytes[at] == b'\n');
            at += 1;
            continue;
        }
        let end = word_end(bytes, at);
        let name_at = end + count(&bytes[end..], b' ');
        let name_end = word_end(bytes, name_at);
        // `fn(` without a name is a type.
        if &bytes[at..end] == b"fn"
            && name_end > name_at
            && let Some(close) = body_end(bytes, name_end)
        {
            let lines = code[at..=close].lines().count();
            found.push(Function { name: code[name_at..name_end].to_owned(), line, lines });
        }
        at = end;
    }
    found
}

/// The position of the brace that closes the body; `None` for a declaration without one.
fn body_end(bytes: &[u8], from: usize) -> Option<usize> {
    let (mut nested, mut braces) = (0_usize, 0_usize);
    for (at, &byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => nested += 1,
            b')' | b']' => nested = nested.saturating_sub(1),
            b';' if nested == 0 && braces == 0 => return None,
            b'{' => braces += 1,
            b'}' if braces <= 1 => return Some(at),
            b'}' => braces -= 1,
            _ => {}
        }
    }
    None
}

/// Lines before the test module that ends the file.
pub(super) fn lines_without_tests(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    let is_tail = |at: &usize| {
        let mut after = lines[at + 1..].iter().skip_while(|line| line.starts_with("#["));
        lines[*at] == "#[cfg(test)]"
            && after.next().is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    };
    (0..lines.len()).find(is_tail).unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(text: &str, expect: &str) {
        assert_eq!(mask(text), expect, "{text}");
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        masks("a // b\nc", "a     \nc");
        masks("a /* b /* c */ d */ e", "a                   e");
        masks(r#"f("x\"{", 1)"#, "f(      , 1)");
        masks("f(r#\"a\"b\"#, 2)", "f(        , 2)");
        masks(r#"f(br"\", b"x")"#, "f(     ,     )");
        masks("r#type { c\"x\" }", "r#type {      }");
        masks("let s = \"a\n{\";", "let s =   \n  ;");
        masks("number\"", "number ");
    }

    #[test]
    fn characters_are_blanked_and_lifetimes_are_not() {
        masks("m('{', b'}', 'é')", "m(   ,     ,     )");
        masks(r"m('\'', '\\', '\u{7b}')", "m(    ,     ,         )");
        masks("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
        masks("'outer: loop { break 'outer; }", "'outer: loop { break 'outer; }");
    }

    #[test]
    fn non_ascii_text_keeps_the_rest_in_place() {
        assert_eq!(mask("é(\"ü\") é").trim_end(), "é(    ) é");
        assert_eq!(mask("// naïve 漢字\nx").lines().nth(1), Some("x"));
    }

    #[test]
    fn functions_are_measured_from_fn_to_the_closing_brace() {
        let text = "\
            trait T {\n    fn declared(&self) -> [u8; 4];\n    fn given(&self) {}\n}\n\
            pub(crate) async fn long<F: Fn(u8)>(\n    f: fn(u8) -> u8,\n) -> [u8; 4]\nwhere\n    F: Sized,\n{\n\
            \x20   fn inner() {\n        let brace = \"}\"; // }\n    }\n    [0; 4]\n}\n";
        let found = functions(&mask(text));
        let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect();
        assert_eq!(found, [("given", 3, 1), ("long", 5, 11), ("inner", 11, 3)]);
    }

    #[test]
    fn only_a_test_module_at_the_end_is_free() {
        let check = |text: &str, expect: usize| assert_eq!(lines_without_tests(text), expect);
        check("a\nb\n#[cfg(test)]\nmod tests {\n}\n", 2);
        check("a\n#[cfg(test)]\n#[expect(x)]\nmod tests {\n}\n", 1);
        check("a\n#[cfg(test)]\nmod tests;\nb\n", 4);
        check("a\n#[cfg(test)]\nuse x;\n", 3);
    }
}
