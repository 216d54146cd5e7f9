//! Functions whose result is as large as an argument says.

use std::time::{Duration, Instant};

use polder_core::{ErrorCode, Principal, Session};

use super::lake::{TestLake, session};

const MIB: usize = 1024 * 1024;

/// Asked for with constants, and with `n` = 1000000000, 2 and `s` = 'a' as columns.
const LARGE: &[&str] = &[
    "generate_series(1, 1000000000)",
    "generate_series(1000000000)",
    "generate_series(1, n)",
    "generate_series(-9223372036854775808, 9223372036854775807)",
    "range(9223372036854775807, -9223372036854775808, -1)",
    "range(1000000000)",
    "range(0, n, 2)",
    "range(DATE '2000-01-01', arrow_cast(90000000::int, 'Date32'), INTERVAL '1' DAY)",
    "generate_series(DATE '2020-01-31', DATE '2020-01-01', INTERVAL '1 month -30 days')",
    "range(TIMESTAMP '2020-01-01', TIMESTAMP '2021-01-01', INTERVAL '1 microsecond')",
    "generate_series(TIMESTAMP '2020-01-01', TIMESTAMP '2021-01-01', INTERVAL '1 day -24 hours')",
    "repeat('a', 1000000000)",
    "repeat('a', 9223372036854775807)",
    "repeat(s, n)",
    "repeat('a', n)",
    "lpad('a', 1000000000)",
    "lpad(s, n, 'xy')",
    "rpad('a', 1000000000, 'é')",
    "rpad(s, n)",
    "array_repeat(1, 1000000000)",
    "array_repeat('a', n)",
    "list_repeat([1, 2], 9223372036854775807)",
    "array_repeat(repeat('a', 1000), 1000000)",
    "array_resize([1, 2], 1000000000)",
    "array_resize([1, 2], n, 0)",
    "list_resize(['a'], 1000000, repeat('a', 1000))",
    "replace(repeat('a', 100000), 'a', repeat('b', 100000))",
    "length(repeat('a', 1000000000))",
];

const SMALL: &[(&str, &str)] = &[
    ("generate_series(1, 3)", "[1, 2, 3]"),
    ("range(1, k + 2)", "[1, 2, 3]"),
    ("range(5, 1, -2)", "[5, 3]"),
    ("range(5, 1)", "[]"),
    (
        "generate_series(9223372036854775806, 9223372036854775807)",
        "[9223372036854775806, 9223372036854775807]",
    ),
    ("array_length(generate_series(1, 1000000))", "1000000"),
    (
        "array_length(generate_series(DATE '2000-01-01', DATE '2030-01-01', INTERVAL '1' DAY))",
        "10959",
    ),
    (
        "array_length(range(TIMESTAMP '2020-01-01', TIMESTAMP '2020-01-02', INTERVAL '1' HOUR))",
        "24",
    ),
    ("generate_series(1, nullif(k, 2))", ""),
    ("repeat('ab', 3)", "ababab"),
    ("repeat(s, k)", "aa"),
    ("repeat(s, -9223372036854775808)", ""),
    ("repeat(s, nullif(k, 2))", ""),
    ("length(repeat('a', 10000000))", "10000000"),
    ("lpad(s, 3, 'xy')", "xya"),
    ("lpad(s, -1)", ""),
    ("rpad('a', k, 'é')", "aé"),
    ("array_repeat(s, k)", "[a, a]"),
    ("array_repeat(1, 0)", "[]"),
    ("array_resize([1], 2, k)", "[1, 2]"),
    ("array_resize([1, 2, 3], 1)", "[1]"),
    ("replace(s, 'a', 'bc')", "bc"),
];

fn query(expression: &str) -> String {
    format!(
        "SELECT {expression} FROM (SELECT value + 999999999 AS n, value + 1 AS k, \
         concat('', chr(96 + value)) AS s FROM generate_series(1, 1))"
    )
}

#[tokio::test]
async fn results_that_are_too_large_are_not_made() {
    let test = TestLake::new().await;
    for expression in LARGE {
        let start = Instant::now();
        let error = test.text(&query(expression)).await.expect_err(expression);
        assert_eq!(error.code(), ErrorCode::QueryLimit, "{expression}: {error}");
        assert!(error.message().contains("may make"), "{expression}: {error}");
        assert!(error.hint_text().is_some(), "{expression}");
        assert!(start.elapsed() < Duration::from_secs(5), "{expression}: {:?}", start.elapsed());
    }
    let alone = test.text("SELECT generate_series(1, 1000000000)").await.expect_err("too large");
    assert_eq!(alone.code(), ErrorCode::QueryLimit, "{alone}");
    let argument = "SELECT * FROM generate_series(1, length(repeat('a', 1000000000)))";
    let error = test.text(argument).await.expect_err("too large");
    assert!(matches!(error.code(), ErrorCode::QueryLimit | ErrorCode::QueryInvalid), "{error}");
}

#[tokio::test]
async fn smaller_results_are_as_ever() {
    let test = TestLake::new().await;
    for (expression, expected) in SMALL {
        let answer = test.text(&query(expression)).await.expect(expression);
        assert_eq!(&answer, expected, "{expression}");
    }
    // As rows they are made one batch after the other.
    let rows = "SELECT count(*), max(value) FROM generate_series(1, 10000000)";
    assert_eq!(test.text(rows).await.expect("rows"), "10000000|10000000");
    let unnested = "SELECT sum(v) FROM (SELECT unnest(range(0, 1000)) AS v)";
    assert_eq!(test.text(unnested).await.expect("rows"), "499500");
    // What is not called is not refused.
    let other = "SELECT CASE WHEN 1 = 2 THEN repeat('a', 1000000000) ELSE 'b' END";
    assert_eq!(test.text(other).await.expect("the other branch"), "b");
}

#[tokio::test]
async fn many_calls_share_what_one_may_make() {
    let test = TestLake::new().await;
    let lengths = |calls: usize| {
        let call = "length(repeat('a', 10000000))";
        format!("SELECT {}", vec![call; calls].join(" + "))
    };
    assert_eq!(test.text(&lengths(1)).await.expect("one"), "10000000");
    let error = test.text(&lengths(100)).await.expect_err("a hundred");
    assert_eq!(error.code(), ErrorCode::QueryLimit, "{error}");
    // A session with less memory may make less.
    let small = Session { memory_bytes_max: 8 * MIB, ..session(Principal::Operator) };
    let error = test.text_for(&lengths(1), &small).await.expect_err("too large");
    assert_eq!(error.code(), ErrorCode::QueryLimit, "{error}");
}
