//! SQL over PostgreSQL where it is: the same answers as over the lake, whatever the server leaves out.

use std::sync::Arc;
use std::time::Duration;

use polder_core::{Error, ErrorCode, Principal, Source};
use polder_sources::postgres::PostgresSource;

use super::Database;
use super::asked::Asked;
use crate::project::Project;

const TABLE: &str = r#"
CREATE TYPE stage AS ENUM ('won', 'lost', 'open');
CREATE TABLE everything (
    id int PRIMARY KEY, "Big" bigint, small smallint, amount numeric(12,2), words text,
    code varchar(20), padded char(6), ok boolean, day date, at timestamp, stamp timestamptz,
    key uuid, ratio float8, doc jsonb, numbers int[], stage stage
);
INSERT INTO everything SELECT i,
    CASE WHEN i % 11 = 0 THEN NULL ELSE (i::bigint - 1500) * 1000000007 END, i % 300 - 150,
    CASE WHEN i % 7 = 0 THEN NULL ELSE (i - 1500) * 1.37 END,
    CASE i % 9 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'a' || i WHEN 3 THEN 'A' || i
        WHEN 4 THEN 'é' || i WHEN 5 THEN '漢' WHEN 6 THEN 'O''Neil \ ' || i % 40
        WHEN 7 THEN 'Zebra' ELSE 'zebra ' || i END,
    'c' || i % 50, 'p' || i % 20, CASE WHEN i % 5 = 0 THEN NULL ELSE i % 2 = 0 END,
    date '2024-01-01' + i % 700, timestamp '1969-12-31 23:59:59.5' + i * interval '7 hours 1.000001 s',
    CASE WHEN i % 13 = 0 THEN NULL
        ELSE timestamptz '2024-06-01 12:00:00+02' + i * interval '3 hours 17 minutes' END,
    md5(i::text)::uuid, CASE WHEN i % 17 = 0 THEN 'NaN' ELSE i / 3.0 END,
    CASE WHEN i % 4 = 0 THEN NULL ELSE jsonb_build_object('n', i % 10) END,
    CASE WHEN i % 6 = 0 THEN NULL ELSE ARRAY[i, NULL, i + 1] END,
    (ARRAY['won', 'lost', 'open']::stage[])[i % 3 + 1]
    FROM generate_series(1, 3000) i;
ANALYZE everything;
"#;

const SPEC: &str =
    "      - { name: everything, source: revdb, from: everything, mode: full_refresh }\n";

/// Conditions of every kind: those the server is asked, and those it must not be.
const CONDITIONS: &[&str] = &[
    "true",
    "id = 77",
    "id <> 77",
    "id BETWEEN 100 AND 200",
    "id NOT BETWEEN 100 AND 2900",
    "id IN (1, 2, 3, 5000)",
    "id NOT IN (1, 2, 3)",
    "id + 1 = 78",
    "\"Big\" > 1000000000000",
    "\"Big\" <= -1",
    "\"Big\" IS NULL",
    "NOT (\"Big\" > 0)",
    "small < -100",
    "small = 0",
    "amount > 100.5",
    "amount <= -0.01",
    "amount = 1.37",
    "amount IS NOT NULL AND amount < 10",
    "amount > 0.1 OR amount IS NULL",
    "words = 'Zebra'",
    "words <> 'Zebra'",
    "words < 'b'",
    "words >= 'Z'",
    "words > 'é'",
    "words = ''",
    "words IS NULL",
    "words LIKE 'a%'",
    "words NOT LIKE 'a%'",
    "words LIKE '%ebra'",
    "words LIKE 'O''Neil \\\\ 7%'",
    "words IN ('漢', 'Zebra', 'no')",
    "words NOT IN ('漢', 'Zebra')",
    "words = 'O''Neil \\ 7'",
    "lower(words) = 'zebra'",
    "code = 'c7'",
    "code > 'c3' AND code < 'c5'",
    "padded = 'p1    '",
    "padded LIKE 'p1%'",
    "padded < 'p2'",
    "ok",
    "NOT ok",
    "ok IS NULL",
    "ok IS NOT TRUE",
    "ok = false",
    "day = DATE '2024-05-05'",
    "day < DATE '2024-02-01'",
    "date_trunc('month', day) = TIMESTAMP '2024-03-01'",
    "at < TIMESTAMP '1970-01-01'",
    "at >= TIMESTAMP '1970-01-08 00:00:00.000007'",
    "stamp > TIMESTAMPTZ '2024-08-01T00:00:00Z'",
    "stamp BETWEEN TIMESTAMPTZ '2024-08-01T00:00:00+02:00' AND TIMESTAMPTZ '2024-08-03T00:00:00Z'",
    "stamp IS NULL OR id < 10",
    "key = 'c4ca4238-a0b9-2382-0dcc-509a6f75849b'",
    "key < '80000000-0000-0000-0000-000000000000'",
    "ratio > 10.0",
    "ratio = 1.0",
    "ratio <= 0.5",
    "doc IS NULL",
    "doc LIKE '%3%'",
    "numbers IS NULL",
    "array_has(numbers, 9)",
    "stage = 'won'",
    "stage < 'open'",
    "(id < 5 OR words = 'Zebra') AND NOT (small = 0 OR ratio > 500.0)",
    "NOT (id > 10 AND ratio > 1.0)",
    "CASE WHEN id < 10 THEN ok ELSE small > 100 END",
    "coalesce(amount, 0) = 0",
];

/// What is asked of the rows: `{t}` is the table, `{c}` the condition.
const SHAPES: &[&str] = &[
    "SELECT count(*) FROM {t} WHERE {c}",
    "SELECT * FROM {t} WHERE {c} ORDER BY id LIMIT 20",
    "SELECT small, count(*), sum(amount), min(words), max(stamp) FROM {t} WHERE {c} GROUP BY small",
    "SELECT a.id, b.words FROM {t} a JOIN {t} b ON a.id = b.small WHERE a.id < 200 AND b.id IN \
     (SELECT id FROM {t} WHERE {c})",
    "SELECT DISTINCT code, ok FROM {t} WHERE {c}",
];

struct Both {
    engine: Asked,
    _project: Project,
}

impl Both {
    async fn new(database: &Database) -> Self {
        let project = database.project(SPEC);
        let url = database.url();
        project.run();
        let source: Arc<dyn Source> =
            Arc::new(PostgresSource::open("revdb", url.into()).expect("source"));
        let engine = Asked::new(project.path(), "polder.db", [("revdb", source)]).await;
        Self { engine, _project: project }
    }

    /// The rows as text, in an order of their own.
    async fn rows(&self, sql: &str, principal: Principal) -> Result<Vec<String>, Error> {
        self.rows_with(sql, principal, true).await
    }

    async fn rows_with(
        &self,
        sql: &str,
        principal: Principal,
        pushdown: bool,
    ) -> Result<Vec<String>, Error> {
        let mut rows = self.engine.rows(sql, principal, pushdown).await?;
        rows.sort();
        Ok(rows)
    }

    async fn operator(&self, sql: &str) -> Result<Vec<String>, Error> {
        self.rows(sql, Principal::Operator).await
    }

    /// How a query was run: the line of the scan of the source's table.
    async fn scanned(&self, sql: &str, pushdown: bool) -> String {
        let sql = format!("EXPLAIN ANALYZE {sql}");
        let plan =
            self.rows_with(&sql, Principal::Operator, pushdown).await.expect(&sql).join("\n");
        let mut scans = plan.lines().filter(|line| line.contains("SourceScan: revdb"));
        match (scans.next(), scans.next()) {
            (Some(scan), None) => scan.to_owned(),
            _ => panic!("{sql}: {plan}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_answers_as_its_copy_in_the_lake_does() {
    let database = Database::new();
    database.sql(TABLE);
    let both = Both::new(&database).await;
    let mut compared = 0;
    for condition in CONDITIONS {
        for shape in SHAPES {
            let of = |table: &str| shape.replace("{t}", table).replace("{c}", condition);
            let source = both.operator(&of("revdb.public.everything")).await;
            let lake = both.operator(&of("lake.org_1.everything")).await;
            match (source, lake) {
                (Ok(source), Ok(lake)) => assert_eq!(source, lake, "{}", of("t")),
                (source, lake) => panic!("{}: {source:?} {lake:?}", of("t")),
            }
            compared += 1;
        }
    }
    assert!(compared >= 300, "{compared}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_can_leave_out_is_never_read() {
    let database = Database::new();
    database.sql(TABLE);
    let both = Both::new(&database).await;
    // A row that cannot be read tells whether it was.
    database
        .sql("INSERT INTO everything (id, amount, words, ratio) VALUES (9000, 'NaN', 'odd', -5)");
    let counted = async |condition: &str| {
        let sql = format!("SELECT count(amount) FROM revdb.public.everything WHERE {condition}");
        both.operator(&sql).await
    };
    for left_out in ["id < 100", "words = 'Zebra'", "words < 'b'", "day > DATE '2024-02-01'", "ok"]
    {
        counted(left_out).await.expect(left_out);
    }
    let error = counted("ratio > 0.0").await.expect_err("floats are compared here");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable, "{error}");
    // Columns that nobody asks for are not read either.
    let sql = "SELECT count(*), max(words) FROM revdb.public.everything";
    assert_eq!(both.operator(sql).await.expect("no amount"), ["3001|漢"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_and_lake_join_and_only_the_operator_has_sources() {
    let database = Database::new();
    database.sql(TABLE);
    let both = Both::new(&database).await;
    database.sql("DELETE FROM everything WHERE id % 2 = 0");
    let sql = "SELECT count(*) FROM lake.org_1.everything l LEFT JOIN revdb.public.everything s \
               ON l.id = s.id WHERE s.id IS NULL";
    assert_eq!(both.operator(sql).await.expect("join"), ["1500"]);
    let plan = both.operator(&format!("EXPLAIN {sql}")).await.expect("plan").join("\n");
    assert!(plan.contains("SourceScan: revdb.public.everything, columns=[id]"), "{plan}");
    let org = Principal::Org("1".parse().expect("id"));
    for sql in [
        "SELECT * FROM revdb.public.everything",
        "SELECT count(*) FROM everything WHERE id IN (SELECT id FROM revdb.public.everything)",
    ] {
        let error = both.rows(sql, org.clone()).await.expect_err(sql);
        assert_eq!(error.code(), ErrorCode::QueryInvalid, "{error}");
        assert!(!error.to_string().contains("public"), "{error}");
    }
    let missing = both.operator("SELECT * FROM revdb.public.everythin").await.expect_err("name");
    assert_eq!(missing.code(), ErrorCode::SourceNotFound);
    let missing =
        both.operator("SELECT nope FROM revdb.public.everything").await.expect_err("name");
    assert_eq!(missing.code(), ErrorCode::QueryInvalid);
    let versions = "SELECT * FROM revdb.public.everything FOR VERSION AS OF 'v1'";
    assert_eq!(
        both.operator(versions).await.expect_err("one state").code(),
        ErrorCode::QueryInvalid
    );
    // Nothing that was planned, finished or refused holds a transaction of the source open.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                AND application_name LIKE 'polder%'";
    for _ in 0..600 {
        if database.sql(open) == "0" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} sessions stay open", database.sql(open));
}

/// Joins few rows of the lake with the source's table, which has many more: the condition, and what the
/// source is asked besides.
const KEYS: &[(&str, &str)] = &[
    ("l.id = s.id", "keys=[\"id\" IN ("),
    ("l.\"Big\" = s.\"Big\"", "keys=[\"Big\" IN ("),
    ("l.small = s.small", "keys=[\"small\" IN ((0))]"),
    ("l.amount = s.amount", "keys=[\"amount\" IN ("),
    ("l.words = s.words", "keys=[\"words\" IN ("),
    ("l.code = s.code", "keys=[\"code\" IN ("),
    ("l.day = s.day", "keys=[\"day\" IN ("),
    ("l.at = s.at", "keys=[\"at\" IN ("),
    ("l.stamp = s.stamp", "keys=[\"stamp\" IN ("),
    ("l.key = s.key", "keys=[\"key\" IN ("),
    // Of two columns, a range of each.
    ("l.id = s.id AND l.small = s.small", "\"id\" >= (150)"),
    // PostgreSQL compares these otherwise.
    ("l.ratio = s.ratio", "keys=[]"),
    ("l.padded = s.padded", "keys=[]"),
    ("l.stage = s.stage", "keys=[]"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_few_rows_reach_the_source_s_scan() {
    let database = Database::new();
    database.sql(TABLE);
    let both = Both::new(&database).await;
    // As many rows that find no partner, and that a key of the lake's rows must not ask for.
    database
        .sql("INSERT INTO everything (id) SELECT generate_series(3001, 60000); ANALYZE everything");
    let few = "(SELECT * FROM lake.org_1.everything WHERE small = 0)";
    for (condition, keys) in KEYS {
        let joined = |table: &str| {
            format!("SELECT l.id, s.id, s.words FROM {few} l JOIN {table} s ON {condition}")
        };
        let sql = joined("revdb.public.everything");
        let found = both.operator(&sql).await.expect(&sql);
        assert!(!found.is_empty(), "{sql}");
        let unpushed = both.rows_with(&sql, Principal::Operator, false).await.expect(&sql);
        assert_eq!(found, unpushed, "{sql}");
        assert_eq!(found, both.operator(&joined("lake.org_1.everything")).await.expect("lake"));
        let scan = both.scanned(&sql, true).await;
        assert!(scan.contains(keys), "{condition}: {scan}");
        assert!(!both.scanned(&sql, false).await.contains("keys="), "{condition}");
    }
    let sql = format!("SELECT s.words FROM {few} l JOIN revdb.public.everything s ON l.id = s.id");
    let read = |scan: &str| scan.contains("output_rows=10,") || scan.contains("output_rows=10]");
    let scan = both.scanned(&sql, true).await;
    assert!(read(&scan), "{scan}");
    let scan = both.scanned(&sql, false).await;
    assert!(!read(&scan), "{scan}");
    // Where nulls find each other, a list of keys would leave them out.
    let nulls = |table: &str| {
        format!(
            "SELECT l.id, count(*) FROM {few} l JOIN {table} s \
             ON l.\"Big\" IS NOT DISTINCT FROM s.\"Big\" GROUP BY l.id"
        )
    };
    let sql = nulls("revdb.public.everything");
    let found = both.operator(&sql).await.expect(&sql);
    assert!(found.contains(&"1650|57272".to_owned()), "{found:?}");
    assert_eq!(found, both.rows_with(&sql, Principal::Operator, false).await.expect(&sql));
    assert!(!both.scanned(&sql, true).await.contains("keys="), "{sql}");
    // A row that finds no partner stays in an outer join.
    let outer = format!(
        "SELECT count(*), count(l.id) FROM revdb.public.everything s LEFT JOIN {few} l \
         ON l.id = s.id"
    );
    assert_eq!(both.operator(&outer).await.expect("outer"), ["60000|10"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_source_s_few_rows_reach_the_lake_s_scan() {
    let database = Database::new();
    database.sql(TABLE);
    let both = Both::new(&database).await;
    database.sql("CREATE TABLE few AS SELECT id FROM everything WHERE id IN (7, 77); ANALYZE few");
    let sql = "SELECT l.words FROM revdb.public.few f JOIN lake.org_1.everything l ON l.id = f.id";
    assert_eq!(both.operator(sql).await.expect("rows").len(), 2);
    let plan = both.operator(&format!("EXPLAIN {sql}")).await.expect("plan").join("\n");
    let lake = plan.lines().find(|line| line.contains("DataSourceExec")).expect("the lake's scan");
    assert!(lake.contains("DynamicFilter"), "{plan}");
}
