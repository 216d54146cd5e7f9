//! Incremental runs against PostgreSQL.

use super::Database;

const TABLE: &str = "
CREATE TABLE deal (
    id int PRIMARY KEY,
    org_id text NOT NULL,
    amount numeric(18,2),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO deal SELECT i, CASE WHEN i % 3 = 0 THEN '2' ELSE '1' END, i * 1.25,
    timestamptz '2026-01-01' + i * interval '1 minute' FROM generate_series(1, 9000) i;
";
const SPEC: &str = "      - name: deal
        source: revdb
        from: public.deal
        filter: org_id = {org}
        mode: append
        cursor: updated_at
        key: [id]
        partition: [month(updated_at)]
";
const COUNT: &str = "SELECT count(*) FROM lake.org_1.deal";

#[test]
fn only_new_and_changed_rows_of_the_org_are_added() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(SPEC);
    let first = &project.run()[0];
    assert_eq!(first["outcome"], "full_refresh");
    assert_eq!(project.number(COUNT), 6000);
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
    database.sql(
        "INSERT INTO deal VALUES (9001, '1', 1), (9002, '2', 1);
         UPDATE deal SET amount = 0, updated_at = clock_timestamp() WHERE id IN (1, 2, 3)",
    );
    let second = &project.run()[0];
    assert_eq!((&second["outcome"], &second["rows_written"]), (&"append".into(), &3.into()));
    assert_eq!(project.number(COUNT), 6003);
    assert_eq!(project.number("SELECT count(DISTINCT id) FROM org_1.deal"), 6001);
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal WHERE org_id <> '1'"), 0);
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
}

#[test]
fn a_row_committed_late_with_an_early_cursor_is_found() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(SPEC);
    let mut late = database.session();
    late.run("BEGIN; INSERT INTO deal VALUES (10001, '1', 7, now());");
    database.sql("INSERT INTO deal VALUES (10002, '1', 8)");
    project.run();
    assert_eq!(project.number(COUNT), 6001);
    database.sql("INSERT INTO deal VALUES (10003, '1', 9)");
    project.run();
    late.run("COMMIT;");
    project.run();
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal WHERE id = 10001"), 1);
    assert_eq!(project.number(COUNT), 6003);
    assert_eq!(project.number("SELECT count(DISTINCT id) FROM org_1.deal"), 6003);
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
}

#[test]
fn a_number_committed_late_is_found() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE event (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, v int);
         INSERT INTO event (v) SELECT i FROM generate_series(1, 20000) i",
    );
    let spec = "      - { name: event, source: revdb, from: event, mode: append, cursor: id, key: [id] }\n";
    let project = database.project(spec);
    let mut late = database.session();
    late.run("BEGIN; INSERT INTO event (v) VALUES (0);");
    database.sql("INSERT INTO event (v) VALUES (0)");
    let first = &project.run()[0];
    assert_eq!(first["rows_written"], 20_001);
    assert!(first["warnings"][0].as_str().unwrap().contains("again"), "{first}");
    late.run("COMMIT;");
    let second = &project.run()[0];
    assert_eq!((&second["outcome"], &second["rows_written"]), (&"append".into(), &1.into()));
    let count = "SELECT count(DISTINCT id) FROM org_1.event";
    assert_eq!(project.number(count), 20_002);
    // While a transaction is open the same rows are read again, and only then.
    late.run("BEGIN; SELECT 1;");
    database.sql("INSERT INTO event (v) VALUES (0)");
    assert_eq!(project.run()[0]["rows_written"], 1);
    late.run("COMMIT;");
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
    assert_eq!(project.run()[0]["rows_known"], 2, "those from the mark on");
    assert_eq!(project.number("SELECT count(*) FROM org_1.event"), 20_003);
}

#[test]
fn a_checkpoint_that_was_held_moves_without_new_rows() {
    let database = Database::new();
    database.sql("CREATE TABLE event AS SELECT i AS id FROM generate_series(1, 20000) i");
    let spec = "      - { name: event, source: revdb, from: event, mode: append, cursor: id }\n";
    let project = database.project(spec);
    let mut open = database.session();
    open.run("BEGIN; SELECT 1;");
    project.run();
    open.run("COMMIT;");
    let again = &project.run()[0];
    assert_eq!((&again["outcome"], &again["rows_known"]), (&"nothing_new".into(), &20_000.into()));
    assert_eq!(project.run()[0]["rows_known"], 1);
    assert_eq!(project.number("SELECT count(*) FROM org_1.event"), 20_000);
}

#[test]
fn a_row_that_changes_within_a_day_is_found_by_its_date() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE task (id int PRIMARY KEY, v int, day date, second timestamptz(0));
         INSERT INTO task VALUES (1, 1, '2026-01-01', '2026-01-01')",
    );
    let spec = |cursor: &str| {
        format!(
            "      - {{ name: by_{cursor}, source: revdb, from: task, mode: append, \
             cursor: {cursor}, key: [id] }}\n"
        )
    };
    let project = database.project(&(spec("day") + &spec("second")));
    project.run();
    database.sql("UPDATE task SET v = 2");
    for report in project.run() {
        assert_eq!(report["rows_written"], 1, "{report}");
    }
    for report in project.run() {
        assert_eq!(report["outcome"], "nothing_new", "{report}");
    }
    assert_eq!(project.number("SELECT sum(v) FROM org_1.by_day"), 3);
}

#[test]
fn rows_without_a_cursor_value_come_once() {
    let database = Database::new();
    database.sql(TABLE);
    database.sql("ALTER TABLE deal ALTER updated_at DROP NOT NULL");
    database.sql("INSERT INTO deal VALUES (9998, '1', 1, NULL)");
    let project = database.project(SPEC);
    project.run();
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
    database.sql("INSERT INTO deal VALUES (9999, '1', 1, NULL)");
    assert_eq!(project.run()[0]["rows_written"], 1);
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
    assert_eq!(project.number(COUNT), 6002);
}

#[test]
fn an_infinite_cursor_is_clamped_once_and_never_null() {
    let database = Database::new();
    database.sql(TABLE);
    database.sql("INSERT INTO deal VALUES (9999, '1', 1, 'infinity'), (9998, '1', 1, '-infinity')");
    let null = database.project(&format!("{SPEC}        on_unrepresentable: \"null\"\n"));
    null.fails(&["run"], 1);
    let clamp = database.project(&format!("{SPEC}        on_unrepresentable: clamp\n"));
    clamp.run();
    assert_eq!(clamp.run()[0]["outcome"], "nothing_new");
    assert_eq!(clamp.number(COUNT), 6002);
}

#[test]
fn a_new_column_reloads_as_a_new_version_and_the_old_one_stays_readable() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(SPEC);
    project.run();
    database.sql(
        "ALTER TABLE deal ADD COLUMN stage text DEFAULT 'open'; DELETE FROM deal WHERE id = 1",
    );
    let report = &project.run()[0];
    assert_eq!(report["outcome"], "full_refresh");
    assert_eq!(report["version"], "v2");
    assert_eq!(report["schema_changes"][0]["added"]["column"], "stage");
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal WHERE stage = 'open'"), 5999);
    assert_eq!(project.number(&format!("{COUNT} FOR VERSION AS OF 'v1'")), 6000);
}

#[test]
fn a_frozen_table_refuses_a_changed_schema_and_stays_as_it_was() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(&format!("{SPEC}        on_schema_change: freeze\n"));
    project.run();
    database.sql("ALTER TABLE deal RENAME COLUMN amount TO value");
    let errors = project.fails(&["run"], 1);
    assert!(errors.contains("renamed amount to value"), "{errors}");
    assert_eq!(project.number("SELECT count(amount) FROM org_1.deal"), 6000);
}

#[test]
fn rows_without_a_key_are_counted_not_merged() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE event (kind text, at timestamp(0));
         INSERT INTO event VALUES ('a', '2026-01-01'), ('a', '2026-01-01'), ('b', '2026-01-02'), ('b', '2026-01-02')",
    );
    let spec = "      - { name: event, source: revdb, from: event, mode: append, cursor: at }\n";
    let project = database.project(spec);
    project.run();
    assert_eq!(project.number("SELECT count(*) FROM org_1.event"), 4);
    database.sql("INSERT INTO event VALUES ('b', '2026-01-02')");
    assert_eq!(project.run()[0]["rows_written"], 1);
    assert_eq!(project.number("SELECT count(*) FROM org_1.event"), 5);
}

#[test]
fn init_lists_the_tables_of_the_database_at_hand_and_run_loads_them() {
    let database = Database::new();
    database.sql(TABLE);
    database.sql("CREATE TABLE \"Odd Name\" (a int); INSERT INTO \"Odd Name\" VALUES (1)");
    // Rows of a table that says when they came to be are kept for half a year.
    database.sql("CREATE TABLE visit (id int, created_at timestamptz)");
    database.sql("INSERT INTO visit VALUES (1, now()), (2, now() - interval '1 year'), (3, null)");
    let project = database.project("      []\n");
    project.ok(&["init", "fresh"]);
    let pipeline =
        std::fs::read_to_string(project.path().join("fresh/pipelines/crm.yaml")).unwrap();
    let kept = "retention: { column: created_at, keep: 6 months }";
    assert_eq!(pipeline.matches(kept).count(), 1, "{pipeline}");
    let config = ["--config", "fresh/polder.toml"];
    project.ok(&[&config[..], &["run"]].concat());
    let sql =
        "SELECT (SELECT count(*) FROM org_1.deal) + (SELECT count(*) FROM org_1.\"Odd Name\") AS n";
    let rows = project.ok(&[&config[..], &["query", sql, "--format", "csv"]].concat());
    assert_eq!(rows, "n\n9001\n");
    let sql = "SELECT id FROM org_1.visit ORDER BY id";
    let rows = project.ok(&[&config[..], &["query", sql, "--format", "csv"]].concat());
    assert_eq!(rows, "id\n1\n3\n");
}

#[test]
fn runs_and_checks_say_what_is_guaranteed_and_why() {
    let database = Database::new();
    database.sql(TABLE);
    database.sql("CREATE TABLE event (id int, at timestamptz)");
    let event = "      - { name: event, source: revdb, from: event, mode: append, cursor: at }\n";
    let project = database.project(&format!("{SPEC}{event}"));
    let said = project.ok(&["check"]);
    assert!(said.contains("1/event: guarantee: best_effort; application_clock: "), "{said}");
    assert!(said.contains("; no_key: "), "{said}");
    assert!(!said.contains("1/deal: guarantee"), "{said}");
    let said: serde_json::Value = serde_json::from_str(&project.ok(&["check", "--json"])).unwrap();
    let found: Vec<_> =
        said.as_array().unwrap().iter().filter(|found| found["guarantee"].is_string()).collect();
    assert_eq!(found.len(), 1, "{said}");
    assert_eq!(
        (&found[0]["what"], &found[0]["guarantee"]),
        (&"1/event".into(), &"best_effort".into())
    );
    assert_eq!(found[0]["guarantee_reasons"][0]["word"], "application_clock");
    let runs = project.run();
    assert_eq!((&runs[0]["table"], &runs[0]["guarantee"]), (&"deal".into(), &"exact".into()));
    assert_eq!(
        (&runs[1]["table"], &runs[1]["guarantee"]),
        (&"event".into(), &"best_effort".into())
    );
    assert_eq!(runs[1]["guarantee_reasons"][1]["word"], "no_key");
}
