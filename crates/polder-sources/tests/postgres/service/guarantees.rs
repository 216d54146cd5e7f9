//! What a read says of its guarantee: who sets the cursor, who may see it, and what the rows come from.

use polder_core::Doubt::{
    self, ApplicationClock, CachedSequence, ChangesUnstamped, CoarseCursor, ForeignTable,
    HiddenTransactions, KeyNotUnique, RewrittenRows, RowSecurity, UnorderedCursor, View,
    WrittenElsewhere,
};
use polder_core::{ErrorCode, Source};
use polder_sources::postgres::PostgresSource;

use super::support::{Database, Vary, read, request};

/// What both the plan and the question before it say of a table with the key `id`.
async fn doubts(source: &PostgresSource, table: &str, cursor: &str) -> Vec<Doubt> {
    let asked = request(table).key(&["id"]).cursor(cursor, None);
    let before = sorted(source.doubts(&asked).await.expect(table));
    let planned = sorted(read(source, asked).await.expect(table).doubts);
    assert_eq!(before, planned, "{table} by {cursor}");
    planned
}

fn sorted(mut doubts: Vec<Doubt>) -> Vec<Doubt> {
    doubts.sort_unstable();
    doubts
}

#[tokio::test]
async fn what_the_catalog_shows_of_the_cursor_is_not_doubted() {
    let database = Database::new().await;
    database
        .run(
            "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN NEW.touched := now(); RETURN NEW; END $$;
             CREATE TABLE t (
                 id int PRIMARY KEY, touched timestamptz NOT NULL DEFAULT now(),
                 made timestamptz DEFAULT CURRENT_TIMESTAMP, utc timestamp DEFAULT timezone('utc', now()),
                 day date DEFAULT CURRENT_DATE, second timestamptz(0) DEFAULT now(),
                 theirs timestamptz, month timestamptz DEFAULT date_trunc('month', now()),
                 serial bigserial, always bigint GENERATED ALWAYS AS IDENTITY,
                 cached bigint GENERATED ALWAYS AS IDENTITY (CACHE 20),
                 back bigint GENERATED ALWAYS AS IDENTITY (INCREMENT -1), number int,
                 code text, u uuid DEFAULT gen_random_uuid());
             CREATE TRIGGER touch BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch()",
        )
        .await;
    let source = database.source();
    let cases: [(&str, &[Doubt]); 15] = [
        ("touched", &[]),
        ("made", &[ChangesUnstamped]),
        ("utc", &[ChangesUnstamped]),
        ("day", &[ChangesUnstamped, CoarseCursor]),
        ("second", &[ChangesUnstamped, CoarseCursor]),
        ("theirs", &[ApplicationClock, ChangesUnstamped]),
        ("month", &[ApplicationClock, ChangesUnstamped]),
        ("serial", &[ChangesUnstamped]),
        ("always", &[ChangesUnstamped]),
        ("cached", &[CachedSequence, ChangesUnstamped]),
        ("back", &[UnorderedCursor, ChangesUnstamped]),
        ("number", &[UnorderedCursor, ChangesUnstamped]),
        ("id", &[UnorderedCursor, ChangesUnstamped]),
        ("code", &[UnorderedCursor, ChangesUnstamped]),
        ("u", &[UnorderedCursor, ChangesUnstamped]),
    ];
    for (cursor, expected) in cases {
        assert_eq!(doubts(&source, "t", cursor).await, expected, "{cursor}");
    }
    assert_eq!(doubts(&source, "t", "xmin").await, [RewrittenRows]);
    let whole = read(&source, request("t")).await.expect("read");
    assert!(whole.doubts.is_empty(), "one snapshot is exact: {:?}", whole.doubts);
}

#[tokio::test]
async fn a_trigger_shows_it_only_where_it_fires_for_every_change() {
    let database = Database::new().await;
    database
        .run(
            "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN NEW.at = clock_timestamp(); RETURN NEW; END $$",
        )
        .await;
    let source = database.source();
    let unstamped = [ApplicationClock, ChangesUnstamped];
    let cases: [(&str, &[Doubt]); 7] = [
        ("BEFORE INSERT OR UPDATE ON t FOR EACH ROW", &[]),
        ("BEFORE INSERT ON t FOR EACH ROW", &[ChangesUnstamped]),
        ("BEFORE UPDATE ON t FOR EACH ROW", &[ApplicationClock]),
        (
            "BEFORE UPDATE ON t FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*)",
            &[ApplicationClock],
        ),
        ("BEFORE UPDATE ON t FOR EACH ROW WHEN (NEW.id > 7)", &unstamped),
        ("BEFORE UPDATE OF note ON t FOR EACH ROW", &unstamped),
        ("AFTER INSERT OR UPDATE ON t FOR EACH ROW", &unstamped),
    ];
    for (index, (trigger, expected)) in cases.into_iter().enumerate() {
        let table = format!("t{index}");
        let trigger = trigger.replace(" t ", &format!(" {table} "));
        database
            .run(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, note text, at timestamptz);
                 CREATE TRIGGER touch {trigger} EXECUTE FUNCTION touch()"
            ))
            .await;
        assert_eq!(doubts(&source, &table, "at").await, expected, "{trigger}");
    }
    database.run("ALTER TABLE t0 DISABLE TRIGGER touch").await;
    assert_eq!(doubts(&source, "t0", "at").await, unstamped, "a trigger that does not fire");
}

#[tokio::test]
async fn partitions_and_heirs_are_looked_through() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE parted (id int, at timestamptz DEFAULT now(), PRIMARY KEY (id))
                 PARTITION BY RANGE (id);
             CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (100);
             CREATE TABLE high PARTITION OF parted FOR VALUES FROM (100) TO (200);
             CREATE TABLE parent (id int PRIMARY KEY, at timestamptz DEFAULT now());
             CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (parent);
             CREATE TABLE stray (PRIMARY KEY (id)) INHERITS (parent);
             ALTER TABLE stray ALTER at DROP DEFAULT",
        )
        .await;
    let source = database.source();
    assert_eq!(doubts(&source, "parted", "at").await, [ChangesUnstamped]);
    assert_eq!(doubts(&source, "heir", "at").await, [ChangesUnstamped]);
    let expected = [ApplicationClock, ChangesUnstamped, KeyNotUnique];
    assert_eq!(doubts(&source, "parent", "at").await, expected, "an heir has no default");
}

#[tokio::test]
async fn views_and_others_rows_promise_less() {
    let database = Database::new().await;
    database
        .run(
            "CREATE EXTENSION IF NOT EXISTS file_fdw;
             CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
             CREATE FOREIGN TABLE f (id int, at timestamptz)
                 SERVER files OPTIONS (filename '/dev/null', format 'csv');
             CREATE TABLE t (id int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());
             CREATE TABLE twice (id int, at timestamptz NOT NULL DEFAULT now());
             CREATE VIEW v AS SELECT * FROM t;
             CREATE VIEW above AS SELECT * FROM v UNION ALL SELECT * FROM f;
             CREATE MATERIALIZED VIEW m AS SELECT * FROM t",
        )
        .await;
    let source = database.source();
    assert_eq!(doubts(&source, "twice", "at").await, [ChangesUnstamped, KeyNotUnique]);
    assert_eq!(doubts(&source, "v", "at").await, [ChangesUnstamped, View, KeyNotUnique]);
    let expected = [ChangesUnstamped, WrittenElsewhere, KeyNotUnique];
    assert_eq!(doubts(&source, "m", "at").await, expected);
    assert_eq!(doubts(&source, "m", "id").await, [ChangesUnstamped, KeyNotUnique]);
    let wholes: [(&str, &[Doubt]); 5] =
        [("t", &[]), ("v", &[]), ("m", &[]), ("f", &[ForeignTable]), ("above", &[ForeignTable])];
    for (table, expected) in wholes {
        let whole = read(&source, request(table)).await.expect(table);
        assert_eq!(whole.doubts, expected, "{table} as a whole");
        assert_eq!(source.doubts(&request(table)).await.expect(table), expected, "{table}");
    }
}

#[tokio::test]
async fn a_role_that_sees_less_promises_less() {
    let database = Database::new().await;
    let role = format!("{}_reader", database.name);
    database
        .run(&format!(
            "CREATE TABLE t (id int PRIMARY KEY, at timestamptz DEFAULT now());
             CREATE TABLE guarded (id int PRIMARY KEY, at timestamptz DEFAULT now());
             ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
             CREATE ROLE {role} LOGIN; GRANT SELECT ON t, guarded TO {role}"
        ))
        .await;
    let source = database.source_as(&role);
    let asked = || request("t").key(&["id"]).cursor("at", None);
    let before = source.doubts(&asked()).await.expect("doubts");
    assert_eq!(sorted(before), [ChangesUnstamped, HiddenTransactions], "what may happen");
    let (other, _connection) = database.session().await;
    other.batch_execute("BEGIN; SELECT 1").await.expect("begin");
    let found = read(&source, asked()).await.expect("read");
    assert_eq!(sorted(found.doubts), [ChangesUnstamped, HiddenTransactions]);
    let numbers = read(&source, request("t").key(&["id"]).cursor("id", None)).await.expect("read");
    assert!(!numbers.doubts.contains(&HiddenTransactions), "the mark of a number stays");
    let xmin = read(&source, request("t").key(&["id"]).cursor("xmin", None)).await.expect("read");
    assert_eq!(xmin.doubts, [RewrittenRows], "a snapshot has all transactions, whoever asks");
    let guarded = request("guarded").key(&["id"]).cursor("at", None);
    assert!(source.doubts(&guarded).await.expect("doubts").contains(&RowSecurity));
    database.run(&format!("GRANT pg_read_all_stats TO {role}")).await;
    assert_eq!(source.doubts(&asked()).await.expect("doubts"), [ChangesUnstamped]);
    let found = read(&source, asked()).await.expect("read");
    assert_eq!(
        found.doubts,
        [ChangesUnstamped],
        "an open transaction that is seen bounds the mark"
    );
    drop(source);
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn asking_names_what_is_not_there() {
    let database = Database::new().await;
    database.run("CREATE TABLE t (id int PRIMARY KEY)").await;
    let source = database.source();
    for asked in [request("absent"), request("t").cursor("at", None)] {
        let error = source.doubts(&asked).await.expect_err("nothing is there");
        assert_eq!(error.code(), ErrorCode::SourceNotFound);
        let error = read(&source, asked).await.err().expect("nothing is there");
        assert_eq!(error.code(), ErrorCode::SourceNotFound);
    }
}
