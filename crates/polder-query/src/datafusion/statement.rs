//! SQL text → one read-only statement: limits, version clauses, and what is refused outright.
//!
//! Nothing is looked up here; the names stay names. DataFusion's planner ignores several clauses
//! that change a result (`TABLESAMPLE`, table versions, `FOR UPDATE`): each is either translated
//! here or an error, never dropped.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    DataType, DescribeAlias, Expr, GroupByExpr, Ident, ObjectName, Query, SetExpr, Statement,
    TableAlias, TableFactor, TypedString, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use polder_core::{Error, ErrorCode, Result};

use super::error::syntax;
use super::version::{self, Clause};
use super::with_queries;

/// Bytes of SQL text.
pub(super) const SQL_BYTES_MAX: usize = 256 * 1024;
/// Operators in the text: each may nest one level deeper without a parenthesis (`a + a + a`), and
/// parser and planner recurse over them.
const OPERATORS_MAX: usize = 5_000;
/// Parentheses, brackets and signs that open one after the other.
const OPEN_MAX: usize = 40;
/// Levels of nested expressions. The planner's time grows with the square.
const DEPTH_MAX: usize = 600;
/// Levels of nested `CASE`: the planner's time doubles with each.
const CASE_DEPTH_MAX: usize = 12;
/// Expressions in the statement; an `IN` list of 20,000 values passes.
const EXPRESSIONS_MAX: usize = 50_000;

/// A statement that may be planned.
pub(super) struct Prepared {
    pub(super) statement: Statement,
    /// The version clauses by the table name that stands for them in `statement`.
    pub(super) versions: HashMap<String, Clause>,
}

/// Parses `sql` and refuses what is not one read-only query.
///
/// # Errors
/// `query.invalid`, or `query.limit` for text that would cost too much to plan.
pub(super) fn prepare(sql: &str) -> Result<Prepared> {
    let tokens = bounded(sql)?;
    let (tokens, clauses) = version::take(&tokens)?;
    let mut statements = Parser::new(&GenericDialect {})
        .with_tokens_with_locations(tokens)
        .parse_statements()
        .map_err(|error| match error {
            ParserError::RecursionLimitExceeded => {
                limit("the SQL text is nested too deeply", "write a simpler query")
            }
            other => syntax(&other.to_string()),
        })?;
    let (Some(mut statement), true) = (statements.pop(), statements.is_empty()) else {
        return Err(Error::new(ErrorCode::QueryInvalid, "exactly one statement is expected"));
    };
    only_queries(&statement)?;
    let mut check = Check::new(&clauses);
    if let ControlFlow::Break(error) = statement.visit(&mut check) {
        return Err(error);
    }
    with_queries::check(&statement)?;
    if let Some(name) = check.versioned.iter().find(|name| check.ctes.contains(*name)) {
        let message = format!("{name} is a WITH query and has no versions");
        return Err(Error::new(ErrorCode::QueryInvalid, message)
            .hint("put the version clause on the lake table inside it"));
    }
    if check.versioned.len() != clauses.occurrences {
        return Err(version::misplaced());
    }
    Ok(Prepared { statement, versions: clauses.by_name })
}

/// The text's tokens, if it is not too much to parse.
///
/// # Errors
/// `query.limit`; `query.invalid` for text that has no tokens.
pub(super) fn bounded(sql: &str) -> Result<Vec<TokenWithSpan>> {
    if sql.len() > SQL_BYTES_MAX {
        let message = format!("the SQL text has {} bytes", sql.len());
        return Err(limit(&message, &format!("at most {SQL_BYTES_MAX} are accepted")));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| syntax(&error.to_string()))?;
    let tokens: Vec<TokenWithSpan> =
        tokens.into_iter().filter(|t| !matches!(t.token, Token::Whitespace(_))).collect();
    if tokens.iter().filter(|t| nests(&t.token)).count() > OPERATORS_MAX {
        return Err(limit("the SQL text has too many operators", "use IN (…) or a join instead"));
    }
    // The parser gives up on these at about this depth, and not always with a word on depth.
    if tokens.chunk_by(|a, b| opens(&a.token) && opens(&b.token)).any(|run| run.len() > OPEN_MAX) {
        return Err(limit("the SQL text is nested too deeply", "write a simpler query"));
    }
    Ok(tokens)
}

/// Holds a statement that was parsed elsewhere to what [`prepare`] lets through.
///
/// # Errors
/// As [`prepare`].
pub(super) fn hold(statement: &mut Statement) -> Result<()> {
    only_queries(statement)?;
    let clauses = version::Clauses::default();
    match statement.visit(&mut Check::new(&clauses)) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => with_queries::check(statement),
    }
}

/// Whether what follows the token is nested in what it begins.
fn opens(token: &Token) -> bool {
    match token {
        Token::Word(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case("NOT"),
        Token::LParen | Token::LBracket | Token::Minus | Token::Plus | Token::Tilde => true,
        _ => false,
    }
}

/// Whether the token may open a level of nesting that the parser's own limit does not see.
fn nests(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            word.quote_style.is_none()
                && [
                    "AND",
                    "OR",
                    "NOT",
                    "IS",
                    "LIKE",
                    "ILIKE",
                    "COLLATE",
                    "UNION",
                    "EXCEPT",
                    "INTERSECT",
                    "JOIN",
                    "DIV",
                    "BETWEEN",
                    "IN",
                ]
                .iter()
                .any(|operator| word.value.eq_ignore_ascii_case(operator))
        }
        Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::Comma
        | Token::Period
        | Token::LParen
        | Token::RParen
        | Token::SemiColon
        | Token::EOF => false,
        _ => true,
    }
}

fn only_queries(statement: &Statement) -> Result<()> {
    match statement {
        Statement::Query(_)
        | Statement::ShowTables { .. }
        | Statement::ShowColumns { .. }
        | Statement::ExplainTable {
            describe_alias: DescribeAlias::Describe | DescribeAlias::Desc,
            ..
        } => Ok(()),
        Statement::Explain { statement, .. } => match &**statement {
            Statement::Query(_) => Ok(()),
            _ => Err(not_a_query()),
        },
        _ => Err(not_a_query()),
    }
}

fn not_a_query() -> Error {
    Error::new(ErrorCode::QueryInvalid, "only queries can be run")
        .hint("use SELECT, EXPLAIN, SHOW TABLES or DESCRIBE; the lake is changed by `polder run`")
}

fn limit(message: &str, hint: &str) -> Error {
    Error::new(ErrorCode::QueryLimit, message).hint(hint)
}

fn refused(what: &str) -> ControlFlow<Error> {
    ControlFlow::Break(Error::new(ErrorCode::QueryInvalid, format!("{what} is not supported")))
}

/// One walk over the statement: counts, refuses, and gives versioned tables their alias.
/// Whether the planner would pass over a part of the text in silence: what the parser's dialect knows
/// and the planner never looks at.
fn ignores(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => {
            let grouping = match &select.group_by {
                GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers) => modifiers,
            };
            select.prewhere.is_some()
                || !select.connect_by.is_empty()
                || select.value_table_mode.is_some()
                || select.exclude.is_some()
                || select.select_modifiers.is_some()
                || !grouping.is_empty()
        }
        SetExpr::SetOperation { left, right, .. } => ignores(left) || ignores(right),
        _ => false,
    }
}

struct Check<'a> {
    clauses: &'a version::Clauses,
    versioned: Vec<String>,
    ctes: HashSet<String>,
    depth: usize,
    case_depth: usize,
    expressions: usize,
}

impl<'a> Check<'a> {
    fn new(clauses: &'a version::Clauses) -> Self {
        Self {
            clauses,
            versioned: Vec::new(),
            ctes: HashSet::new(),
            depth: 0,
            case_depth: 0,
            expressions: 0,
        }
    }

    fn table(&mut self, name: &ObjectName, alias: &mut Option<TableAlias>) {
        let Some(last) = name.0.last().and_then(|part| part.as_ident()) else { return };
        let Some(clause) = self.clauses.by_name.get(&last.value) else { return };
        if last.quote_style.is_none() {
            return;
        }
        // A name of several parts is a lake table; a bare one might be a WITH query's.
        let whole = if name.0.len() == 1 { clause.table.clone() } else { name.to_string() };
        self.versioned.push(whole);
        alias.get_or_insert_with(|| TableAlias {
            explicit: true,
            name: Ident::with_quote('"', &clause.table),
            columns: Vec::new(),
        });
    }
}

impl VisitorMut for Check<'_> {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        if !query.locks.is_empty() {
            return refused("FOR UPDATE or FOR SHARE");
        }
        if query.for_clause.is_some() || query.settings.is_some() || query.format_clause.is_some() {
            return refused("FOR XML, FOR JSON, SETTINGS or FORMAT");
        }
        if ignores(&query.body) {
            return refused("PREWHERE, CONNECT BY, AS STRUCT, or WITH after GROUP BY");
        }
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.ctes.insert(version::normal(&cte.alias.name));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<Error> {
        let names: Vec<String> =
            relation.0.iter().filter_map(|p| p.as_ident()).map(version::normal).collect();
        if names.ends_with(&["information_schema".to_owned(), "df_settings".to_owned()]) {
            return refused("reading the engine's settings");
        }
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Error> {
        let TableFactor::Table {
            name,
            alias,
            args,
            with_hints,
            version,
            with_ordinality,
            partitions,
            json_path,
            sample,
            index_hints,
        } = factor
        else {
            return ControlFlow::Continue(());
        };
        if version.is_some() {
            return ControlFlow::Break(version::misplaced());
        }
        let ignored_by_the_planner = !with_hints.is_empty()
            || *with_ordinality
            || !partitions.is_empty()
            || json_path.is_some()
            || !index_hints.is_empty();
        if sample.is_some() {
            return refused("TABLESAMPLE");
        }
        if ignored_by_the_planner {
            return refused("this clause after a table's name");
        }
        if args.is_none() {
            self.table(name, alias);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        self.depth += 1;
        self.expressions += 1;
        if matches!(expr, Expr::Case { .. }) {
            self.case_depth += 1;
        }
        if let Expr::TypedString(TypedString { data_type, .. }) | Expr::Cast { data_type, .. } =
            expr
            && let DataType::Timestamp(precision @ None, _) = data_type
        {
            // As in PostgreSQL and the lake; the planner's own nanoseconds end in 2262.
            *precision = Some(6);
        }
        if self.depth > DEPTH_MAX {
            let message = "an expression is nested too deeply";
            return ControlFlow::Break(limit(message, "use IN (…), a CASE less, or a join"));
        }
        if self.case_depth > CASE_DEPTH_MAX {
            let message = "CASE is nested too deeply";
            return ControlFlow::Break(limit(message, "write one CASE with more WHENs, or a join"));
        }
        if self.expressions > EXPRESSIONS_MAX {
            let message = "the query has too many expressions";
            return ControlFlow::Break(limit(message, "join with a table of the values instead"));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        self.depth -= 1;
        if matches!(expr, Expr::Case { .. }) {
            self.case_depth -= 1;
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(sql: &str) -> Result<String> {
        prepare(sql).map(|prepared| prepared.statement.to_string())
    }

    #[test]
    fn version_clauses_become_names() {
        let cases = [
            (
                "SELECT * FROM lake.org_1.Opp FOR VERSION AS OF 12",
                "SELECT * FROM lake.org_1.\"opp FOR VERSION AS OF 12\" AS \"opp\"",
            ),
            (
                "select o.a from \"Opp\" /* x */ for version\nas of 'v1' AS o -- y",
                "SELECT o.a FROM \"Opp FOR VERSION AS OF v1\" AS o",
            ),
            (
                "SELECT 1 FROM t FOR TIMESTAMP AS OF TIMESTAMP '2026-01-02 03:04:05.6+01:00' x",
                "SELECT 1 FROM \"t FOR TIMESTAMP AS OF 2026-01-02 02:04:05.600\" AS x",
            ),
            (
                "SELECT 1 FROM t FOR SYSTEM_TIME AS OF DATE '2026-01-02', t FOR VERSION AS OF 'v1' u",
                "SELECT 1 FROM \"t FOR TIMESTAMP AS OF 2026-01-02 00:00:00.000\" AS \"t\", \
                 \"t FOR VERSION AS OF v1\" AS u",
            ),
            (
                "SELECT (SELECT max(a) FROM t FOR VERSION AS OF 1) FROM (SELECT * FROM t) s \
                 WHERE EXISTS (SELECT 1 FROM x.t FOR VERSION AS OF 'v1' z WHERE z.a = s.a)",
                "SELECT (SELECT max(a) FROM \"t FOR VERSION AS OF 1\" AS \"t\") FROM (SELECT * \
                 FROM t) s WHERE EXISTS (SELECT 1 FROM x.\"t FOR VERSION AS OF v1\" AS z WHERE \
                 z.a = s.a)",
            ),
            (
                "WITH c AS (SELECT * FROM t FOR VERSION AS OF 1) SELECT * FROM c JOIN t USING (a)",
                "WITH c AS (SELECT * FROM \"t FOR VERSION AS OF 1\" AS \"t\") SELECT * FROM c \
                 JOIN t USING(a)",
            ),
            (
                "SELECT 'FROM t FOR VERSION AS OF 1', \"t FOR VERSION AS OF 1\" FROM t FOR VERSION AS OF 1",
                "SELECT 'FROM t FOR VERSION AS OF 1', \"t FOR VERSION AS OF 1\" FROM \
                 \"t FOR VERSION AS OF 1'\" AS \"t\"",
            ),
        ];
        for (sql, expected) in cases {
            // An alias is the same with and without its AS.
            let plain = |text: &str| text.replace(" AS ", " ");
            assert_eq!(plain(&prepared(sql).expect(sql)), plain(expected), "{sql}");
        }
    }

    #[test]
    fn a_version_clause_is_never_ignored() {
        let cases = [
            "SELECT 1 FROM (SELECT 1) FOR VERSION AS OF 1",
            "SELECT 1 FROM (SELECT 1) s FOR VERSION AS OF 1",
            "SELECT 1 FROM t AS x FOR VERSION AS OF 1",
            "SELECT 1 FROM t x FOR VERSION AS OF 1",
            "SELECT a FOR VERSION AS OF 1 FROM t",
            "SELECT 1 FOR VERSION AS OF 1",
            "SELECT 1 FROM t WHERE a FOR VERSION AS OF 1",
            "SELECT 1 FROM generate_series(1, 2) FOR VERSION AS OF 1",
            "WITH t AS (SELECT 1) SELECT * FROM t FOR VERSION AS OF 1",
            "WITH \"T\" AS (SELECT 1) SELECT * FROM \"T\" FOR VERSION AS OF 'v1' x",
            "SELECT 1 FROM t FOR VERSION AS OF",
            "SELECT 1 FROM t FOR VERSION AS OF v1",
            "SELECT 1 FROM t FOR VERSION AS OF 1 + 1",
            "SELECT 1 FROM t FOR VERSION AS OF -1",
            "SELECT 1 FROM t FOR VERSION AS OF $1",
            "SELECT 1 FROM t FOR TIMESTAMP AS OF now()",
            "SELECT 1 FROM t FOR TIMESTAMP AS OF TIMESTAMP '2026-01-01' - INTERVAL '1 day'",
            "SELECT 1 FROM t FOR TIMESTAMP AS OF TIMESTAMP 'yesterday'",
            "SELECT 1 FROM t FOR TIMESTAMP AS OF '2026-01-01' AT TIME ZONE 'UTC'",
            "SELECT 1 FROM t FOR VERSION AS OF 1 FOR VERSION AS OF 2",
            "SELECT 1 FROM t VERSION AS OF 1",
            "SELECT 1 FROM t TIMESTAMP AS OF '2026-01-01'",
            "SELECT 1 FROM t AT (TIMESTAMP => '2026-01-01')",
            "SELECT 1 FROM t FOR VERSION BETWEEN 1 AND 2",
            "DESCRIBE t FOR VERSION AS OF 1",
        ];
        for sql in cases {
            let error = prepared(sql).expect_err(sql);
            assert_eq!(error.code(), ErrorCode::QueryInvalid, "{sql}");
        }
    }

    #[test]
    fn only_queries_pass() {
        let refused = [
            "",
            ";",
            "SELECT 1; SELECT 2",
            "SELECT",
            "CREATE TABLE a AS SELECT 1",
            "DROP TABLE t",
            "INSERT INTO t SELECT 1",
            "UPDATE t SET a = 1",
            "DELETE FROM t",
            "TRUNCATE t",
            "COPY t TO '/tmp/x'",
            "COPY (SELECT 1) TO '/tmp/x.parquet'",
            "EXPLAIN ANALYZE COPY t TO '/tmp/x'",
            "EXPLAIN INSERT INTO t SELECT 1",
            "EXPLAIN EXPLAIN SELECT 1",
            "SET a = 1",
            "RESET a",
            "SHOW ALL",
            "SHOW a",
            "SHOW FUNCTIONS",
            "SELECT * FROM information_schema.df_settings",
            "SELECT * FROM lake.Information_Schema.\"df_settings\"",
            "PREPARE p AS SELECT 1",
            "EXECUTE p",
            "BEGIN",
            "COMMIT",
            "USE x",
            "KILL 1",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "CREATE FUNCTION f() RETURNS INT RETURN 1",
            "CALL f()",
            "GRANT SELECT ON t TO u",
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM t TABLESAMPLE BERNOULLI (10)",
            "SELECT * FROM t WITH (NOLOCK)",
            "MERGE INTO t USING s ON a = b WHEN MATCHED THEN DELETE",
        ];
        for sql in refused {
            assert_eq!(prepared(sql).expect_err(sql).code(), ErrorCode::QueryInvalid, "{sql}");
        }
        for sql in [
            "SELECT 1;",
            "(SELECT 1) UNION ALL VALUES (2)",
            "EXPLAIN ANALYZE SELECT 1",
            "SHOW TABLES",
            "DESCRIBE t",
            "FROM t",
        ] {
            prepared(sql).expect(sql);
        }
    }

    #[test]
    fn what_would_cost_too_much_is_refused() {
        let chain = |n: usize, op: &str| format!("SELECT {}", vec!["x"; n].join(op));
        let cases = [
            format!("SELECT '{}'", "x".repeat(SQL_BYTES_MAX)),
            chain(601, " + "),
            chain(100_000, "+"),
            chain(20_000, " OR "),
            chain(2_000, "||"),
            format!("SELECT {}x", "- ".repeat(3_000)),
            format!("SELECT {}x", "NOT ".repeat(3_000)),
            format!("SELECT x{}", "::int".repeat(3_000)),
            format!("SELECT x{}", "[1]".repeat(3_000)),
            format!("SELECT {}1{}", "CASE WHEN x THEN ".repeat(13), " END".repeat(13)),
            format!("SELECT 1 {}", "UNION SELECT 1 ".repeat(10_000)),
        ];
        for sql in cases {
            let shown: String = sql.chars().take(40).collect();
            assert_eq!(prepared(&sql).expect_err(&shown).code(), ErrorCode::QueryLimit, "{shown}");
        }
        let deep = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
        assert_eq!(prepared(&deep).expect_err("deep").code(), ErrorCode::QueryLimit);
        let values: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
        prepared(&format!("SELECT x IN ({})", values.join(","))).expect("a long IN list");
        prepared(&chain(600, " OR ")).expect("600 alternatives");
    }
}
