//! A source table whose columns change, under each policy.

use serde_json::{Value, json};

use super::{Database, pipeline};

const TABLE: &str = "
CREATE TABLE deal (
    id int PRIMARY KEY,
    amount numeric(10,2),
    note text NOT NULL,
    fax text,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO deal SELECT i, i * 1.25, 'note ' || i, 'fax ' || i,
    timestamptz '2026-01-01' + i * interval '1 minute' FROM generate_series(1, 1000) i;
";
const CHANGES: &str = "
ALTER TABLE deal RENAME COLUMN note TO remark;
ALTER TABLE deal ALTER COLUMN id TYPE bigint;
ALTER TABLE deal ALTER COLUMN amount TYPE numeric(12,2);
ALTER TABLE deal ALTER COLUMN remark DROP NOT NULL;
ALTER TABLE deal DROP COLUMN fax;
ALTER TABLE deal ADD COLUMN stage text DEFAULT 'open';
INSERT INTO deal (id, amount, remark) VALUES (5000000000, 9999999999.99, NULL);
UPDATE deal SET remark = 'changed', updated_at = clock_timestamp() WHERE id = 1;
";

fn spec(policy: &str) -> String {
    format!(
        "      - name: deal
        source: revdb
        from: public.deal
        mode: append
        cursor: updated_at
        key: [id]
        partition: [month(updated_at)]
        {policy}
"
    )
}

/// The changes of a report, as words.
fn changes(report: &Value) -> Vec<String> {
    let changes = report["schema_changes"].as_array().expect("changes");
    let word = |change: &Value| match change.as_object().and_then(|of| of.iter().next()) {
        Some((kind, of)) => {
            let name = of.get("column").or(of.get("to")).and_then(Value::as_str);
            format!("{kind} {}", name.unwrap_or_default())
        }
        None => change.as_str().unwrap_or_default().to_owned(),
    };
    changes.iter().map(word).collect()
}

const ALL: [&str; 6] = [
    "type_changed id",
    "type_changed amount",
    "renamed remark",
    "now_nullable remark",
    "dropped fax",
    "added stage",
];

#[test]
fn a_table_that_evolves_takes_everything_in_place() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(&spec("on_schema_change: evolve"));
    project.run();
    database.sql(CHANGES);
    let planned = &project.run_with(&["--dry-run"])[0];
    assert_eq!((&planned["outcome"], &planned["dry_run"]), (&json!("append"), &json!(true)));
    assert_eq!(changes(planned), ALL);
    assert_eq!(project.number("SELECT count(note) FROM org_1.deal"), 1000, "nothing was written");
    let report = &project.run()[0];
    assert_eq!((&report["outcome"], &report["rows_written"]), (&json!("append"), &json!(2)));
    assert_eq!(changes(report), ALL);
    assert_eq!(report["version"], Value::Null, "no reload");
    let number = |sql: &str| project.number(&format!("SELECT {sql} FROM org_1.deal"));
    assert_eq!(number("count(*)"), 1002);
    assert_eq!(number("max(id)"), 5_000_000_000);
    assert_eq!(number("count(remark)"), 1001, "the history is under the new name");
    assert_eq!(number("count(fax)"), 1000, "kept for the rows that had it");
    assert_eq!(number("count(stage)"), 2, "old rows have no value of a new column");
    assert_eq!(number("count(*) FILTER (WHERE amount = 9999999999.99)"), 1);
    assert_eq!(project.number("SELECT count(note) FROM org_1.deal FOR VERSION AS OF 'v1'"), 1000);
    assert_eq!(project.run()[0]["outcome"], "nothing_new", "a kept column is no change");
    database.sql(
        "INSERT INTO deal (id, remark) VALUES (7, 'again') ON CONFLICT (id) DO UPDATE
        SET remark = excluded.remark, updated_at = clock_timestamp()",
    );
    let report = &project.run()[0];
    assert_eq!((&report["rows_written"], changes(report)), (&json!(1), Vec::new()));
}

#[test]
fn a_dropped_column_goes_where_it_is_to_go() {
    let database = Database::new();
    database.sql(TABLE);
    let policy = "on_schema_change: evolve\n        on_dropped_column: drop";
    let project = database.project(&spec(policy));
    project.run();
    database.sql(CHANGES);
    assert_eq!(changes(&project.run()[0]), ALL);
    project.fails(&["query", "SELECT fax FROM org_1.deal"], 1);
    let old = "SELECT count(fax) FROM org_1.deal FOR VERSION AS OF 'v1'";
    assert_eq!(project.number(old), 1000);
    // Another column of that name is another column.
    database.sql("ALTER TABLE deal ADD COLUMN fax int; UPDATE deal SET fax = id, updated_at = clock_timestamp() WHERE id = 2");
    assert_eq!(changes(&project.run()[0]), ["added fax"]);
    assert_eq!(project.number("SELECT sum(fax) FROM org_1.deal"), 2);
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 1003);
}

#[test]
fn a_key_and_a_cursor_may_be_renamed_without_a_row_twice() {
    let database = Database::new();
    database.sql(TABLE);
    let before = spec("on_schema_change: evolve");
    let project = database.project(&before);
    project.run();
    database.sql(
        "ALTER TABLE deal RENAME COLUMN id TO deal_id; ALTER TABLE deal ALTER COLUMN deal_id TYPE bigint;
         INSERT INTO deal (deal_id, note) VALUES (2000, 'new')",
    );
    let after = before.replace("key: [id]", "key: [deal_id]");
    project.write("pipelines/test.yaml", &pipeline(&after));
    let report = &project.run()[0];
    assert_eq!((&report["outcome"], &report["rows_written"]), (&json!("append"), &json!(1)));
    assert_eq!(project.number("SELECT count(DISTINCT deal_id) FROM org_1.deal"), 1001);
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 1001);
}

#[test]
fn a_key_that_the_source_has_dropped_stops_the_run() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(&spec("on_schema_change: evolve"));
    project.run();
    database
        .sql("ALTER TABLE deal DROP COLUMN id; INSERT INTO deal (note) VALUES ('new'), ('new')");
    let errors = project.fails(&["run"], 2);
    assert!(errors.contains("the source table has no column \"id\""), "{errors}");
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal"), 1000);
}

#[test]
fn what_cannot_be_taken_in_place_is_a_new_version() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(&spec("on_schema_change: evolve"));
    project.run();
    database.sql("ALTER TABLE deal ALTER COLUMN fax TYPE int USING substr(fax, 5)::int");
    let planned = &project.run_with(&["--dry-run"])[0];
    assert_eq!(planned["reason"], "the source's schema changed");
    let report = &project.run()[0];
    assert_eq!((&report["outcome"], &report["version"]), (&json!("full_refresh"), &json!("v2")));
    assert_eq!(changes(report), ["type_changed fax"]);
    assert_eq!(project.number("SELECT sum(fax) FROM org_1.deal"), 500_500);
}

#[test]
fn a_frozen_table_says_every_difference_whatever_its_mode() {
    let database = Database::new();
    database.sql(TABLE);
    let append = spec("on_schema_change: freeze");
    let full = append.replace("mode: append", "mode: full_refresh");
    for spec in [append, full] {
        let project = database.project(&spec);
        project.run();
        database.sql(
            "ALTER TABLE deal RENAME COLUMN note TO remark; ALTER TABLE deal ADD COLUMN x int",
        );
        for args in [&["run", "--dry-run"][..], &["run"]] {
            let errors = project.fails(args, 1);
            assert!(errors.contains("renamed note to remark, added x int"), "{errors}");
        }
        assert_eq!(project.number("SELECT count(note) FROM org_1.deal"), 1000);
        let report = &project.run_with(&["--full-refresh"])[0];
        assert_eq!(changes(report), ["renamed remark", "added x"], "asked for, it is taken");
        assert_eq!(project.number("SELECT count(remark) FROM org_1.deal"), 1000);
        database
            .sql("ALTER TABLE deal RENAME COLUMN remark TO note; ALTER TABLE deal DROP COLUMN x");
    }
}
