//! Parts of queries that PostgreSQL answers by itself: the same rows as when its tables are read, and as
//! over a copy in memory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use futures::TryStreamExt;
use polder_core::spec::{FormatOptions as FileOptions, OnUnrepresentable};
use polder_core::{
    ConnectionLimits, Error, ErrorCode, OrgId, Predicate, Principal, ReadRequest, RunProgress,
    Source,
};
use polder_sources::memory::{MemorySource, MemoryTable};
use polder_sources::postgres::PostgresSource;
use tempfile::TempDir;

use super::Database;
use super::asked::Asked;

/// Values at which two engines differ: texts by collation, blanks, both zeros, NaN, nulls, 38 digits.
const TABLES: &str = r#"
CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE deal (
    id int PRIMARY KEY, account_id int, small smallint, "Big" bigint, amount numeric(12,2),
    rate numeric(6,4), wide numeric(38,10), words text, code varchar(20), label text COLLATE blind,
    padded char(6), ok boolean, day date, tod time, at timestamp, stamp timestamptz, key uuid,
    ratio float8, doc jsonb, numbers int[]
);
INSERT INTO deal SELECT i, CASE WHEN i % 19 = 0 THEN NULL ELSE i % 23 END, i % 30 - 15,
    CASE WHEN i % 11 = 0 THEN NULL ELSE (i::bigint - 400) * 1000000007 END,
    CASE WHEN i % 7 = 0 THEN NULL ELSE (i - 400) * 1.37 END, (i % 97 - 48) * 0.0123,
    (i - 400) * 12345678901234567.0123456789,
    CASE i % 9 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'a' || i % 40 WHEN 3 THEN 'A' || i % 40
        WHEN 4 THEN 'é' || i % 20 WHEN 5 THEN '漢' WHEN 6 THEN 'O''Neil \ ' || i % 40
        WHEN 7 THEN 'Zebra' ELSE 'zebra ' || i % 40 END,
    'c' || i % 12, CASE WHEN i % 2 = 0 THEN 'Won' ELSE 'won' END, 'p' || i % 20,
    CASE WHEN i % 5 = 0 THEN NULL ELSE i % 2 = 0 END, date '2024-01-01' + i % 90,
    time '00:00:00' + i % 50 * interval '17 minutes 0.000001 s',
    timestamp '1969-12-31 23:59:59.5' + i * interval '7 hours 1.000001 s',
    CASE WHEN i % 13 = 0 THEN NULL
        ELSE timestamptz '2024-06-01 12:00:00+02' + i % 100 * interval '3 hours 17 minutes' END,
    md5(i::text)::uuid,
    CASE WHEN i % 17 = 0 THEN 'NaN' WHEN i % 17 = 1 THEN '-0' ELSE i / 3.0 END,
    CASE WHEN i % 4 = 0 THEN NULL ELSE jsonb_build_object('n', i % 10) END,
    CASE WHEN i % 6 = 0 THEN NULL ELSE ARRAY[i, NULL, i + 1] END
    FROM generate_series(1, 800) i;
CREATE TABLE "Account" (aid int, region text, tier int);
INSERT INTO "Account" SELECT i, (ARRAY['Nord', 'nord', 'Süd', 'süd', NULL])[i % 5 + 1], i % 4
    FROM generate_series(1, 20) i;
INSERT INTO "Account" VALUES (3, 'twice', 2), (NULL, 'none', 3);
ANALYZE;
"#;

/// Conditions on deals: those that are answered there, and those that must not be.
const CONDITIONS: &[&str] = &[
    "true",
    "id BETWEEN 100 AND 200",
    "id NOT IN (1, 2, 3)",
    "id + small > 300",
    "\"Big\" IS NULL OR \"Big\" > 0",
    "NOT (\"Big\" > 0)",
    "small < -10 AND id > 10",
    "amount > 100.5",
    "amount <= -0.01 OR amount IS NULL",
    "amount * rate > 1.5",
    "amount + rate <> amount",
    "rate = 0.0123",
    "wide > 0",
    "words = 'Zebra'",
    "words <> 'Zebra'",
    "words < 'b'",
    "words >= 'Z'",
    "words > 'é' OR words IS NULL",
    "words = ''",
    "words LIKE 'a_%'",
    "words NOT LIKE '%e%'",
    "words LIKE 'O''Neil \\\\ 7%'",
    "words ILIKE 'z%'",
    "words IN ('漢', 'Zebra', 'no')",
    "lower(words) = 'zebra'",
    "code > 'c2' AND code < 'c5'",
    "label = 'won'",
    "padded = 'p1    '",
    "padded IS NOT NULL AND ok",
    "ok IS NOT TRUE",
    "ok = false OR ok IS NULL",
    "day < DATE '2024-02-01'",
    "tod >= arrow_cast('05:00:00', 'Time64(µs)')",
    "at < TIMESTAMP '1970-01-08 00:00:00.000007'",
    "stamp BETWEEN TIMESTAMPTZ '2024-06-03T00:00:00+02:00' AND TIMESTAMPTZ '2024-06-05T00:00:00Z'",
    "key < '80000000-0000-0000-0000-000000000000'",
    "ratio > 10.0",
    "ratio IS NULL OR ratio = 0.0",
    "doc IS NULL",
    "numbers IS NULL",
    "CASE WHEN id < 100 THEN ok ELSE small > 5 END",
    "coalesce(amount, 0) = 0",
    "account_id IS NOT DISTINCT FROM small",
    "account_id IN (SELECT aid FROM {a} WHERE tier = 2)",
];

/// What is asked of the rows: `{d}` are deals, `{a}` accounts, `{c}` is the condition.
const SHAPES: &[&str] = &[
    "SELECT count(*), count(amount), count(doc), count(ratio), min(id), max(stamp), min(words), \
     max(label), min(tod), max(at) FROM {d} WHERE {c}",
    "SELECT small, count(*), sum(amount), avg(amount), avg(rate), min(words), max(day) FROM {d} \
     WHERE {c} GROUP BY small",
    "SELECT code, ok, sum(\"Big\"), avg(id), sum(id), max(wide), \
     sum(CASE WHEN ok THEN amount ELSE 0 END) FROM {d} WHERE {c} GROUP BY code, ok",
    "SELECT label, count(DISTINCT words), count(DISTINCT day) FROM {d} WHERE {c} GROUP BY label",
    "SELECT region, tier, count(*), sum(amount), max(words) FROM {d} JOIN {a} ON account_id = aid \
     WHERE {c} GROUP BY region, tier HAVING count(*) > 1 AND avg(id) > 50",
    "SELECT id, region, amount, doc, ratio, padded FROM {d} LEFT JOIN {a} ON account_id = aid AND \
     tier > 1 WHERE {c} ORDER BY amount DESC NULLS LAST, id, region LIMIT 25",
    "SELECT DISTINCT label, code, account_id FROM {d} WHERE {c}",
    "SELECT * FROM {d} WHERE {c} ORDER BY words NULLS FIRST, id DESC LIMIT 15 OFFSET 3",
    "SELECT d.id, e.n, e.k FROM {d} d LEFT JOIN (SELECT account_id AS k, count(*) AS n FROM {d} \
     WHERE {c} GROUP BY account_id) e ON d.account_id = e.k WHERE d.id < 100",
    "SELECT key, stamp, count(*) FILTER (WHERE ok) FROM {d} WHERE {c} GROUP BY key, stamp \
     ORDER BY key DESC LIMIT 10",
    "SELECT v.k, g.n, g.total FROM (SELECT account_id, count(*) AS n, sum(amount) AS total FROM {d} \
     WHERE {c} GROUP BY account_id) g JOIN (VALUES (1), (2), (7)) AS v(k) ON v.k = g.account_id",
    "SELECT code, n FROM (SELECT code, count(*) AS n FROM {d} WHERE {c} GROUP BY code \
     ORDER BY n DESC, code LIMIT 3) ORDER BY n, code",
];

struct Engines {
    engine: Asked,
    _folder: TempDir,
}

impl Engines {
    /// `revdb` is the database, `mem` a copy of it.
    async fn new(database: &Database) -> Self {
        let folder = TempDir::new().expect("a folder");
        let source: Arc<dyn Source> =
            Arc::new(PostgresSource::open("revdb", database.url().into()).expect("source"));
        let copy = MemorySource::new();
        copy.put("deal", read(&*source, "public.deal").await);
        copy.put("account", read(&*source, "public.Account").await);
        let copy: Arc<dyn Source> = Arc::new(copy);
        let engine =
            Asked::new(folder.path(), "catalog.db", [("revdb", source), ("mem", copy)]).await;
        Self { engine, _folder: folder }
    }

    /// The rows as text; sorted, unless the query says an order.
    async fn rows(&self, sql: &str, pushdown: bool) -> Result<Vec<String>, Error> {
        self.engine.rows(sql, Principal::Operator, pushdown).await
    }

    async fn plan(&self, sql: &str, pushdown: bool) -> String {
        let plan = self.rows(&format!("EXPLAIN {}", in_revdb(sql, "")), pushdown).await;
        plan.expect(sql).join("\n")
    }
}

/// A table as it is read.
pub(super) async fn read(source: &dyn Source, from: &str) -> MemoryTable {
    let request = ReadRequest {
        org: OrgId::management(),
        from: from.to_owned(),
        filter: None,
        predicate: Predicate::True,
        columns: None,
        cursor: None,
        key: Vec::new(),
        objects_read: BTreeMap::new(),
        known_schema: None,
        snapshot_read: None,
        types: BTreeMap::new(),
        on_unrepresentable: OnUnrepresentable::Error,
        format: FileOptions::default(),
        splits_max: NonZeroUsize::MIN,
        batch_bytes: 64 << 10,
        connections: ConnectionLimits::default(),
        progress: Arc::new(RunProgress::default()),
    };
    let plan = source.plan(request).await.expect("plan");
    let mut batches = Vec::new();
    for split in plan.splits {
        let read: Vec<_> = split.read().try_collect().await.expect("rows");
        batches.extend(read.into_iter().map(|batch| batch.records));
    }
    MemoryTable { schema: plan.schema, batches, ..MemoryTable::default() }
}

fn in_revdb(shape: &str, condition: &str) -> String {
    shape
        .replace("{c}", condition)
        .replace("{d}", "revdb.public.deal")
        .replace("{a}", "revdb.public.\"Account\"")
}

fn in_memory(shape: &str, condition: &str) -> String {
    shape.replace("{c}", condition).replace("{d}", "mem.deal").replace("{a}", "mem.account")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushed_down_scanned_and_copied_answer_the_same() {
    let database = Database::new();
    database.sql(TABLES);
    let engines = Engines::new(&database).await;
    let mut compared = 0;
    for condition in CONDITIONS {
        for shape in SHAPES {
            let (there, here) = (in_revdb(shape, condition), in_memory(shape, condition));
            let copied = engines.rows(&here, true).await.expect(&here);
            let pushed = engines.rows(&there, true).await.expect(&there);
            let scanned = engines.rows(&there, false).await.expect(&there);
            assert_eq!(pushed, copied, "{there}");
            assert_eq!(scanned, copied, "{there}");
            compared += 1;
        }
    }
    assert!(compared >= 300, "{compared}");
}

/// What is in the plan of a query, and what is not.
const PLANS: &[(&str, &[&str], &[&str])] = &[
    (
        "SELECT code, count(*), sum(amount) FROM {d} WHERE words > 'b' GROUP BY code",
        &["SourceAnswer: revdb, sql=SELECT", "GROUP BY", "COLLATE \"C\""],
        &["SourceScan", "AggregateExec"],
    ),
    (
        "SELECT region, sum(amount) FROM {d} JOIN {a} ON account_id = aid GROUP BY region",
        &["SourceAnswer: revdb, sql=SELECT", " JOIN "],
        &["SourceScan", "HashJoinExec"],
    ),
    ("SELECT * FROM {d} ORDER BY id DESC LIMIT 3", &["LIMIT 3", "SortExec"], &["SourceScan"]),
    ("SELECT id, doc FROM {d} LIMIT 3", &["SourceAnswer", "LIMIT 3"], &["SourceScan"]),
    // What would not mean the same, and what a scan does as well.
    ("SELECT count(*) FROM {d} WHERE ratio > 1.0", &["SourceScan"], &["SourceAnswer"]),
    ("SELECT sum(ratio) FROM {d}", &["SourceScan"], &["SourceAnswer"]),
    ("SELECT max(padded) FROM {d}", &["SourceScan"], &["SourceAnswer"]),
    ("SELECT sum(\"Big\" + 1) FROM {d}", &["SourceScan"], &["SourceAnswer"]),
    ("SELECT id FROM {d} WHERE id > 7", &["SourceScan"], &["SourceAnswer"]),
    ("SELECT * FROM {d} d, {a} a WHERE d.id < a.aid", &["SourceScan"], &["SourceAnswer"]),
    // Of a join with other tables, its own side.
    (
        "SELECT * FROM (SELECT code, count(*) AS n FROM {d} GROUP BY code) g \
         JOIN mem.deal m ON m.code = g.code",
        &["SourceAnswer: revdb", "SourceScan: mem.deal"],
        &["SourceScan: revdb"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_shows_what_runs_where() {
    let database = Database::new();
    database.sql(TABLES);
    let engines = Engines::new(&database).await;
    for (sql, with, without) in PLANS {
        let plan = engines.plan(sql, true).await;
        for text in *with {
            assert!(plan.contains(text), "{sql}: no {text} in\n{plan}");
        }
        for text in *without {
            assert!(!plan.contains(text), "{sql}: {text} in\n{plan}");
        }
        let scanned = engines.plan(sql, false).await;
        assert!(scanned.contains("SourceScan"), "{scanned}");
        assert!(!scanned.contains("SourceAnswer"), "{scanned}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_the_lake_has_not_is_no_part_of_an_answer() {
    let database = Database::new();
    database.sql(TABLES);
    let engines = Engines::new(&database).await;
    database.sql(
        "INSERT INTO deal (id, amount, day, tod, words) \
         VALUES (9001, 'NaN', 'infinity', '24:00', 'odd'); \
         INSERT INTO deal (id, \"Big\", words) VALUES (9002, 9223372036854775807, 'big'), \
         (9003, 9223372036854775807, 'big')",
    );
    for value in ["sum(amount)", "count(amount)", "max(day)", "min(day)", "count(tod)"] {
        let sql = in_revdb("SELECT {c} FROM {d} WHERE id > 500", value);
        for pushdown in [true, false] {
            let error = engines.rows(&sql, pushdown).await.expect_err(&sql);
            assert_eq!(error.code(), ErrorCode::SourceUnrepresentable, "{sql}: {error}");
        }
        // What the server leaves out is not looked at.
        for condition in ["id < 900", "words = 'Zebra'"] {
            let sql = in_revdb("SELECT count(*), {c} FROM {d}", value) + " WHERE " + condition;
            let pushed = engines.rows(&sql, true).await.expect(&sql);
            assert_eq!(pushed, engines.rows(&sql, false).await.expect(&sql), "{sql}");
        }
    }
    let sum = in_revdb("SELECT sum(\"Big\") FROM {d} WHERE {c}", "words = 'big'");
    let error = engines.rows(&sum, true).await.expect_err("2⁶⁴ − 2");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_the_server_refuses_is_read() {
    let database = Database::new();
    database.sql(TABLES);
    let engines = Engines::new(&database).await;
    // Foreign tables promise nothing about their values: they are read.
    database.sql(
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; \
         CREATE FOREIGN TABLE outside (id int) SERVER files OPTIONS (program 'seq 3'); \
         CREATE VIEW won AS SELECT id, amount, label FROM deal WHERE ok",
    );
    let foreign = "SELECT count(*) FROM revdb.public.outside";
    assert_eq!(engines.rows(foreign, true).await.expect("read"), ["3"]);
    assert!(engines.plan(foreign, true).await.contains("SourceScan"));
    let view = "SELECT label, count(*), sum(amount) FROM revdb.public.won GROUP BY label";
    assert!(engines.plan(view, true).await.contains("SourceAnswer"));
    let pushed = engines.rows(view, true).await.expect("view");
    assert_eq!(pushed, engines.rows(view, false).await.expect("view"));
    // The same part twice is two answers.
    let part = "(SELECT label, count(*) AS n FROM revdb.public.won GROUP BY label)";
    let twice = &format!(
        "SELECT a.label, a.n, b.label, b.n FROM {part} a FULL JOIN {part} b \
         ON a.label = b.label AND a.n = b.n"
    );
    let plan = engines.plan(twice, true).await;
    assert_eq!(plan.matches("SourceAnswer").count(), 2, "{plan}");
    let pushed = engines.rows(twice, true).await.expect("twice");
    assert_eq!(pushed, engines.rows(twice, false).await.expect("twice"));
}
