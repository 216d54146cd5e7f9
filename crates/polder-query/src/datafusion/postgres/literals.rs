//! Parameters: which a statement has, and their values as literals of its text.
//!
//! A value never becomes SQL: texts are quoted here, and everything else is written from numbers, or
//! as a quoted text under a cast. Whether a text is a date is the cast's to say.

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::tokenizer::Token;
use polder_core::digest::hex;
use polder_core::{Error, ErrorCode, Result};

use super::split::{Places, tokens};

/// Parameters of a statement.
const PARAMETERS_MAX: usize = 5_000;
/// Digits of the widest decimal.
const DIGITS: usize = 38;
const DIGITS_MAX: usize = 76;

/// A value for a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a type, if one is known.
    Null(Option<DataType>),
    Boolean(bool),
    Integer(i64),
    /// Digits with a sign and a point, exactly.
    Decimal(String),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// `2026-01-02`.
    Date(String),
    /// `03:04:05.123456`.
    Time(String),
    /// `2026-01-02 03:04:05.123456`.
    Timestamp(String),
    /// The same with an offset from UTC.
    Timestamptz(String),
    List(Vec<Value>),
}

/// The number of a statement's parameters: the highest `$n` it has.
///
/// # Errors
/// `query.invalid` for another name after `$`, `query.limit` for too many.
pub fn parameters(sql: &str) -> Result<usize> {
    let mut most = 0;
    for token in tokens(sql)? {
        if let Token::Placeholder(name) = &token.token {
            most = most.max(number(name)?);
        }
    }
    Ok(most)
}

/// The statement with values in the places of its parameters.
///
/// # Errors
/// `query.invalid` for a parameter without a value, and for a value that no literal can have.
pub fn bind(sql: &str, values: &[Value]) -> Result<String> {
    let mut bound = String::with_capacity(sql.len());
    let (mut places, mut copied) = (Places::new(sql), 0);
    for token in tokens(sql)? {
        let Token::Placeholder(name) = &token.token else { continue };
        let value = values.get(number(name)? - 1).ok_or_else(|| {
            Error::new(ErrorCode::QueryInvalid, format!("there is no value for {name}"))
        })?;
        let at = places.byte(token.span.start);
        bound.push_str(&sql[copied..at]);
        bound.push_str(&literal(value)?);
        copied = at + name.len();
    }
    bound.push_str(&sql[copied..]);
    Ok(bound)
}

/// The number in `$1`, from one.
fn number(name: &str) -> Result<usize> {
    match name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok()) {
        Some(number @ 1..=PARAMETERS_MAX) => Ok(number),
        Some(1..) => Err(Error::new(
            ErrorCode::QueryLimit,
            format!("a statement has {PARAMETERS_MAX} parameters at most"),
        )),
        _ => Err(Error::new(ErrorCode::QueryInvalid, format!("{name} is no parameter"))
            .hint("parameters are $1, $2, …")),
    }
}

fn literal(value: &Value) -> Result<String> {
    Ok(match value {
        Value::Null(Some(known)) if !known.is_nested() && *known != DataType::Null => {
            cast("NULL", &known.to_string())
        }
        Value::Null(_) => "NULL".to_owned(),
        Value::Boolean(value) => value.to_string(),
        Value::Integer(value @ 0..) => value.to_string(),
        Value::Integer(value) => cast(&quoted(&value.to_string())?, "Int64"),
        Value::Decimal(text) => cast(&quoted(text)?, &decimal(text)?),
        Value::Double(value) => cast(&quoted(&value.to_string())?, "Float64"),
        Value::Text(text) => quoted(text)?,
        Value::Bytes(bytes) => format!("X'{}'", hex(bytes)),
        Value::Date(text) => cast(&quoted(text)?, "Date32"),
        Value::Time(text) => cast(&quoted(text)?, "Time64(Microsecond)"),
        Value::Timestamp(text) => cast(&quoted(text)?, "Timestamp(Microsecond, None)"),
        Value::Timestamptz(text) => {
            cast(&quoted(text)?, "Timestamp(Microsecond, Some(\"+00:00\"))")
        }
        Value::List(values) => {
            let values: Vec<_> = values.iter().map(literal).collect::<Result<_>>()?;
            format!("make_array({})", values.join(", "))
        }
    })
}

fn cast(value: &str, to: &str) -> String {
    format!("arrow_cast({value}, '{}')", to.replace('\'', "''"))
}

fn quoted(text: &str) -> Result<String> {
    if text.contains('\0') {
        return Err(Error::new(ErrorCode::QueryInvalid, "a text has a zero byte"));
    }
    Ok(format!("'{}'", text.replace('\'', "''")))
}

/// The type that has just the digits of a number.
fn decimal(text: &str) -> Result<String> {
    let digits = text.trim_start_matches(['-', '+']);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if digits.len() < text.len().saturating_sub(1)
        || whole.len() + part.len() == 0
        || !is_number(whole)
        || !is_number(part)
    {
        return Err(Error::new(ErrorCode::QueryInvalid, "a parameter is no number")
            .hint("NaN and infinity are values of double precision alone"));
    }
    let whole = whole.trim_start_matches('0').len();
    let (precision, scale) = ((whole + part.len()).max(1), part.len());
    if precision > DIGITS_MAX {
        let message = format!("a number has more than {DIGITS_MAX} digits");
        return Err(Error::new(ErrorCode::QueryInvalid, message));
    }
    let bits = if precision > DIGITS { 256 } else { 128 };
    Ok(format!("Decimal{bits}({precision}, {scale})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Value {
        Value::Text(value.to_owned())
    }

    #[test]
    fn values_take_the_places_of_parameters_alone() {
        let values = [text("o'x; -- $2"), Value::Integer(7)];
        let cases = [
            ("SELECT $1, $2", "SELECT 'o''x; -- $2', 7"),
            ("SELECT 'é$1', \"$2\"\n, $2+1 -- $1", "SELECT 'é$1', \"$2\"\n, 7+1 -- $1"),
            ("SELECT /* $1 */ '''$1', $1", "SELECT /* $1 */ '''$1', 'o''x; -- $2'"),
        ];
        for (sql, expected) in cases {
            assert_eq!(bind(sql, &values).expect(sql), expected);
        }
        assert_eq!(parameters("SELECT $2, '$9', $2").expect("two"), 2);
        for bad in ["SELECT $3", "SELECT $0", "SELECT $x", "SELECT $", "SELECT $5001"] {
            assert!(bind(bad, &values).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_backslash_ends_no_quote() {
        let bound = bind("SELECT $1, 1", &[text("\\' OR 1=1 --")]).expect("bound");
        let tokens: Vec<_> = tokens(&bound).expect("tokens").into_iter().map(|t| t.token).collect();
        let literal = Token::SingleQuotedString("\\' OR 1=1 --".to_owned());
        assert!(tokens.contains(&literal), "{bound}");
        assert!(bind("SELECT $1", &[text("a\0b")]).is_err());
    }

    #[test]
    fn literals_keep_every_digit() {
        let cases = [
            (Value::Integer(i64::MIN), "arrow_cast('-9223372036854775808', 'Int64')"),
            (Value::Decimal("-0.50".into()), "arrow_cast('-0.50', 'Decimal128(2, 2)')"),
            (Value::Decimal("12".into()), "arrow_cast('12', 'Decimal128(2, 0)')"),
            (Value::Decimal("0".into()), "arrow_cast('0', 'Decimal128(1, 0)')"),
            (Value::Bytes(vec![0, 255]), "X'00ff'"),
            (Value::Null(Some(DataType::Int64)), "arrow_cast(NULL, 'Int64')"),
            (Value::Null(None), "NULL"),
            (Value::List(vec![Value::Integer(1), Value::Null(None)]), "make_array(1, NULL)"),
        ];
        for (value, expected) in cases {
            assert_eq!(bind("$1", std::slice::from_ref(&value)).expect(expected), expected);
        }
        let wide = Value::Decimal("9".repeat(39));
        assert!(bind("$1", &[wide]).expect("wide").ends_with("'Decimal256(39, 0)')"));
        for bad in ["", "-", ".", "1e5", "NaN", "--1", "1.2.3", &"9".repeat(77)] {
            assert!(bind("$1", &[Value::Decimal(bad.to_owned())]).is_err(), "{bad}");
        }
    }
}
