//! Tables, views and columns of every shape; whose rows are read; what `discover` shows.

use arrow::array::AsArray;
use futures::TryStreamExt;
use polder_core::spec::{Mode, OnUnrepresentable};
use polder_core::{Batch, Capabilities, Source};

use super::support::{Database, Vary, open, read, request, with_database};

#[tokio::test]
async fn tables_of_every_shape_are_read() {
    let database = Database::new().await;
    database
        .run(
            r#"CREATE SCHEMA "Größe.1";
               CREATE TABLE "Größe.1"."so ""so""" ("ID" int, "naïve col" text, "a.b" int);
               INSERT INTO "Größe.1"."so ""so""" VALUES (1, 'x', 2);
               CREATE TABLE dropped (a int NOT NULL, gone text, b text);
               INSERT INTO dropped VALUES (1, 'g', 'b');
               ALTER TABLE dropped DROP COLUMN gone;
               ALTER TABLE dropped ADD COLUMN c int DEFAULT 7;
               CREATE TABLE generated (a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
               INSERT INTO generated (a) VALUES (21);
               CREATE TABLE nothing (a int);
               CREATE TABLE no_columns ();
               INSERT INTO no_columns DEFAULT VALUES; INSERT INTO no_columns DEFAULT VALUES;
               CREATE VIEW seen AS SELECT a, b || '!' AS b FROM dropped;
               CREATE MATERIALIZED VIEW kept AS SELECT a FROM dropped;
               CREATE TABLE heir (extra int) INHERITS (dropped);
               INSERT INTO heir VALUES (2, 'h', 8, 9);"#,
        )
        .await;
    let source = database.source();
    let odd = read(&source, request(r#""Größe.1"."so ""so""""#)).await.expect("quoted names");
    assert_eq!(odd.texts("naïve col"), [Some("x".to_owned())]);
    assert_eq!(odd.texts("a.b"), [Some("2".to_owned())]);

    let dropped = read(&source, request("dropped")).await.expect("dropped column");
    let numbers: Vec<_> = dropped.schema.fields.iter().map(|field| field.source_id).collect();
    assert_eq!(numbers, [Some(1), Some(3), Some(4)]);
    assert_eq!(dropped.sorted("c"), [7, 8], "heirs' rows are the table's");
    assert!(dropped.schema.fields[0].nullable, "an heir may allow nulls");

    let generated = read(&source, request("public.generated")).await.expect("generated column");
    assert_eq!(generated.sorted("twice"), [42]);
    assert_eq!(read(&source, request("nothing")).await.expect("empty").rows.num_rows(), 0);
    assert_eq!(read(&source, request("no_columns")).await.expect("no columns").rows.num_rows(), 2);
    assert_eq!(read(&source, request("seen")).await.expect("view").texts("b").len(), 2);
    assert_eq!(read(&source, request("kept")).await.expect("kept").sorted("a"), [1]);

    let some = read(&source, request("heir").columns(&["c", "a"])).await.expect("projection");
    let names: Vec<_> = some.schema.fields.iter().map(|field| &*field.name).collect();
    assert_eq!(names, ["c", "a"]);
    assert!(!some.schema.fields[1].nullable, "NOT NULL is kept");
}

#[tokio::test]
async fn only_the_orgs_rows_are_read() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE t (org_id int, org text, v int);
             INSERT INTO t VALUES (401, '401', 1), (402, '402', 2), (401, '401', 3);
             CREATE SCHEMA org_401; CREATE TABLE org_401.t (v int); INSERT INTO org_401.t VALUES (4);
             CREATE SCHEMA org_402; CREATE TABLE org_402.t (v int); INSERT INTO org_402.t VALUES (5)",
        )
        .await;
    let source = database.source();
    for filter in ["org_id = {org}", "org={org}", "org || '-x' = ({org} || '-x') and v < 10"] {
        let found = read(&source, request("t").filter(filter)).await.expect(filter);
        assert_eq!(found.sorted("v"), [1, 3], "{filter}");
    }
    let own = read(&source, request("org_{org}.t")).await.expect("schema per org");
    assert_eq!(own.sorted("v"), [4]);
    for filter in ["org_id = {org}) or (1=1", "org_id = {org} or 1=1 --", "org = '{org}'"] {
        let error = source.plan(request("t").filter(filter)).await.err().expect(filter);
        assert_eq!(error.code(), polder_core::ErrorCode::SpecInvalid);
    }
}

#[tokio::test]
async fn a_database_per_org_is_reached_by_its_own_name_only() {
    let database = Database::new().await;
    let long = format!("{}_{}", database.name, "x".repeat(63))[..63].to_owned();
    let own = Database::named(&long).await;
    own.run("CREATE TABLE t (v int); INSERT INTO t VALUES (1)").await;
    let source = database.source();
    let found = read(&source, request(&format!("{long}.public.t"))).await.expect("other database");
    assert_eq!(found.sorted("v"), [1]);
    // A server before version 17 cuts this name, and would connect to `long`.
    let error = source.plan(request(&format!("{long}{{org}}.public.t"))).await.err();
    assert_eq!(error.expect("no such").code(), polder_core::ErrorCode::SourceNotFound);
    let error = source.plan(request("nowhere_{org}.public.t")).await.err().expect("no such");
    assert_eq!(error.code(), polder_core::ErrorCode::SourceNotFound);
    let error = open(&with_database(&database.url, "nowhere")).check().await.expect_err("no such");
    assert_eq!(error.code(), polder_core::ErrorCode::SourceNotFound);
}

#[tokio::test]
async fn discover_shows_what_can_be_read() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE deal (
                 id bigint GENERATED ALWAYS AS IDENTITY, part int, name text NOT NULL,
                 created_at timestamptz NOT NULL, updated_on date, updated_at timestamptz NOT NULL,
                 PRIMARY KEY (part, id));
             INSERT INTO deal (part, name, created_at, updated_at)
                 SELECT 1, 'n', now(), now() FROM generate_series(1, 10);
             ANALYZE deal;
             CREATE TABLE log (at timestamptz) PARTITION BY RANGE (at);
             CREATE TABLE log_all PARTITION OF log DEFAULT;
             CREATE VIEW v AS SELECT 1 AS one;
             CREATE SCHEMA other; CREATE TABLE other.\"T.x\" (id serial PRIMARY KEY)",
        )
        .await;
    let source = database.source();
    assert_eq!(
        source.capabilities(),
        Capabilities { cursor: true, objects: false, complete_schema: true }
    );
    assert!(source.check().await.expect("check").starts_with("PostgreSQL "));
    let tables = source.discover().await.expect("discover");
    let shown: Vec<_> = tables.iter().map(|table| (&*table.name, table.kind)).collect();
    let expected = [
        (r#"other."T.x""#, "table"),
        ("public.deal", "table"),
        ("public.log", "partitioned table"),
        ("public.v", "view"),
    ];
    assert_eq!(shown, expected);
    let deal = &tables[1];
    assert_eq!(deal.key, ["part", "id"]);
    assert_eq!(deal.cursors, ["updated_at", "updated_on", "created_at", "id", "xmin"]);
    assert_eq!(deal.rows_estimated, Some(10));
    assert!(!deal.schema.field("name").expect("name").nullable);
    assert_eq!(tables[0].cursors, ["id", "xmin"]);
    assert!(tables[2].cursors.is_empty() && tables[3].cursors.is_empty(), "neither has a key");
    let modes: Vec<Mode> = tables.iter().map(|table| table.mode).collect();
    assert_eq!(modes, [Mode::Append, Mode::Merge, Mode::FullRefresh, Mode::FullRefresh]);
    read(&source, request(&tables[0].name)).await.expect("the name works as `from`");
}

#[tokio::test]
async fn a_key_is_unique_where_an_index_of_all_its_rows_says_so() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE deal (id int PRIMARY KEY, part int, name text, other text, half int);
             CREATE UNIQUE INDEX ON deal (name, part);
             CREATE UNIQUE INDEX ON deal (half) WHERE half > 0;
             CREATE UNIQUE INDEX ON deal (lower(other));
             CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
             CREATE TABLE log (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (10);
             CREATE TABLE log_2 PARTITION OF log DEFAULT;
             CREATE VIEW v AS SELECT * FROM deal",
        )
        .await;
    let source = database.source();
    let unique = async |from: &str, key: &[&str], clamp: bool| {
        let mut request = request(from);
        request.key = key.iter().map(|name| (*name).to_owned()).collect();
        if clamp {
            request.on_unrepresentable = OnUnrepresentable::Clamp;
        }
        source.plan(request).await.expect("plan").key_is_unique
    };
    for (from, key, expected) in [
        ("deal", &["id"][..], true),
        ("deal", &["part", "id"], true),
        ("deal", &["part", "name"], true),
        ("deal", &["name"], false),
        ("deal", &["half"], false),
        ("deal", &["other"], false),
        ("deal", &[], false),
        ("parent", &["id"], false),
        ("child", &["id"], false),
        ("log", &["id"], true),
        ("v", &["id"], false),
    ] {
        assert_eq!(unique(from, key, false).await, expected, "{from} {key:?}");
    }
    assert!(!unique("deal", &["id"], true).await, "two values may be clamped to one");
}

#[tokio::test]
async fn nulls_may_come_from_foreign_partitions() {
    let database = Database::new().await;
    database
        .run(
            "CREATE FOREIGN DATA WRAPPER nobody; CREATE SERVER far FOREIGN DATA WRAPPER nobody;
             CREATE TABLE sale (region text NOT NULL, v int NOT NULL) PARTITION BY LIST (region);
             CREATE TABLE sale_eu PARTITION OF sale FOR VALUES IN ('eu');
             CREATE TABLE own (v int NOT NULL) PARTITION BY LIST (v);
             CREATE FOREIGN TABLE sale_us PARTITION OF sale FOR VALUES IN ('us') SERVER far",
        )
        .await;
    let tables = database.source().discover().await.expect("discover");
    let nullable = |name: &str| {
        let table = tables.iter().find(|table| table.name == name).expect(name);
        table.schema.field("v").expect("v").nullable
    };
    assert!(nullable("public.sale"), "nobody enforces NOT NULL there");
    assert!(!nullable("public.own"));
}

#[tokio::test]
async fn values_larger_than_a_batch_are_read() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE t (id int, v text);
             INSERT INTO t SELECT n, repeat('x', CASE n WHEN 5 THEN 30000000 ELSE 10000 END)
             FROM generate_series(1, 1000) n",
        )
        .await;
    let mut request = request("t");
    request.batch_bytes = 100_000;
    let progress = request.progress.clone();
    let found = read(&database.source(), request).await.expect("read");
    assert_eq!(found.rows.num_rows(), 1000);
    let counted = progress.snapshot();
    assert_eq!(counted.rows_read, 1000);
    assert!(counted.bytes_read > 39_000_000, "{}", counted.bytes_read);
}

/// Ten bytes on the wire, 131,072 as text.
#[tokio::test]
async fn texts_far_longer_than_their_fields_make_small_batches_too() {
    let database = Database::new().await;
    database
        .run("CREATE TABLE t AS SELECT 1e131071::numeric AS v FROM generate_series(1, 600)")
        .await;
    let source = database.source();
    let mut request = request("t");
    request.batch_bytes = 1 << 20;
    let plan = source.plan(request).await.expect("plan");
    let (mut rows, mut largest) = (0, 0);
    for split in plan.splits {
        let batches: Vec<_> = split.read().try_collect().await.expect("read");
        for Batch { records } in batches {
            rows += records.num_rows();
            largest = largest.max(records.get_array_memory_size());
            let texts = records.column(0).as_string::<i32>();
            assert!(texts.iter().all(|text| text.is_some_and(|text| text.len() == 131_072)));
        }
    }
    assert_eq!(rows, 600);
    // Rows are decoded 64 at a time.
    assert!(largest < 30 << 20, "{largest} bytes in a batch");
}
