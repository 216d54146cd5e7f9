//! `mode: merge` against PostgreSQL: after a run, the lake table is the source table.

use serde_json::{Value, json};

use super::{Database, pipeline};
use crate::project::Project;

const TABLE: &str = "
CREATE TABLE deal (
    id int PRIMARY KEY,
    amount numeric(18,2),
    note text,
    deleted_at timestamptz,
    updated_at timestamptz DEFAULT clock_timestamp()
);
INSERT INTO deal SELECT i, i * 1.25, 'note ' || i, CASE WHEN i % 10 = 0 THEN now() END,
    timestamptz '2026-01-01' + i * interval '1 minute' FROM generate_series(1, 2000) i;
";
const SPEC: &str = "      - name: deal
        source: revdb
        from: public.deal
        mode: merge
        cursor: updated_at
        key: [id]
        deleted_at: deleted_at
        partition: [month(updated_at)]
";

/// The rows of the lake table are those of the source that are not marked.
fn assert_equal(database: &Database, project: &Project, columns: &str) {
    let source = database.sql(&format!(
        "SELECT coalesce(json_agg(r ORDER BY id), '[]') FROM (SELECT id, {columns} FROM deal
         WHERE deleted_at IS NULL) r"
    ));
    let expected: Vec<Value> = serde_json::from_str(&source).unwrap();
    let found = project.query(&format!("SELECT id, {columns} FROM org_1.deal ORDER BY id"));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        for (name, value) in expected.as_object().unwrap() {
            // Nulls are left out of JSON rows.
            assert_eq!(found.get(name).unwrap_or(&Value::Null), value, "{name} of {expected}");
        }
    }
}

fn counts(report: &Value) -> [u64; 3] {
    ["rows_inserted", "rows_updated", "rows_deleted"].map(|name| report[name].as_u64().unwrap())
}

#[test]
fn changed_new_and_marked_rows_are_merged() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(SPEC);
    let first = &project.run()[0];
    assert_eq!((&first["outcome"], &first["rows_written"]), (&json!("full_refresh"), &json!(1800)));
    assert_equal(&database, &project, "note");
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
    database.sql(
        "UPDATE deal SET note = 'changed', updated_at = clock_timestamp() WHERE id % 10 = 1;
         UPDATE deal SET deleted_at = now(), updated_at = clock_timestamp() WHERE id % 10 = 2;
         UPDATE deal SET deleted_at = NULL, updated_at = clock_timestamp() WHERE id % 100 = 0;
         INSERT INTO deal (id, note) SELECT i, 'new' FROM generate_series(2001, 2005) i;
         INSERT INTO deal (id, note, updated_at) VALUES (3001, 'no time', NULL)",
    );
    let planned = &project.run_with(&["--dry-run"])[0];
    assert_eq!((&planned["outcome"], &planned["dry_run"]), (&json!("merge"), &json!(true)));
    let report = &project.run()[0];
    assert_eq!((&report["outcome"], counts(report)), (&json!("merge"), [26, 200, 200]));
    assert_equal(&database, &project, "note");
    assert_eq!(project.number("SELECT count(*) FROM org_1.deal FOR VERSION AS OF 'v1'"), 1800);
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
    // A row without a cursor value is compared as a whole.
    database.sql("UPDATE deal SET note = 'changed' WHERE id = 3001");
    assert_eq!(counts(&project.run()[0]), [0, 1, 0]);
    assert_equal(&database, &project, "note");
    // Rows that went without a mark go with a reload.
    database.sql("DELETE FROM deal WHERE id = 1");
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
    project.run_with(&["--full-refresh"]);
    assert_equal(&database, &project, "note");
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
}

#[test]
fn late_commits_and_days_as_cursor_miss_no_change() {
    let database = Database::new();
    database.sql(TABLE);
    database.sql("ALTER TABLE deal ADD COLUMN day date DEFAULT current_date");
    let by_day = SPEC.replace("cursor: updated_at", "cursor: day");
    for spec in [SPEC, &by_day] {
        let project = database.project(spec);
        project.run();
        let mut late = database.session();
        late.run("BEGIN; UPDATE deal SET note = note || '!', updated_at = now() WHERE id = 7;");
        database.sql("UPDATE deal SET note = note || '?', updated_at = now() WHERE id = 8");
        project.run();
        assert_equal(&database, &project, "note");
        late.run("COMMIT;");
        assert_eq!(counts(&project.run()[0]), [0, 1, 0], "{spec}");
        assert_equal(&database, &project, "note");
        assert_eq!(project.run()[0]["outcome"], "nothing_new", "{spec}");
    }
}

#[test]
fn a_table_that_evolves_goes_on_merging() {
    let database = Database::new();
    database.sql(TABLE);
    let evolve = format!("{SPEC}        on_schema_change: evolve\n");
    let project = database.project(&evolve);
    project.run();
    database.sql(
        "ALTER TABLE deal ALTER COLUMN id TYPE bigint;
         ALTER TABLE deal RENAME COLUMN note TO remark;
         ALTER TABLE deal RENAME COLUMN updated_at TO seen_at;
         ALTER TABLE deal ADD COLUMN stage text;
         UPDATE deal SET stage = 'won', seen_at = clock_timestamp() WHERE id IN (3, 4);
         UPDATE deal SET deleted_at = now(), seen_at = clock_timestamp() WHERE id = 5;
         INSERT INTO deal (id, remark, stage, seen_at) VALUES (5000000000, 'long', 'open', now())",
    );
    // The cursor has another name: another table spec, and a reload.
    let renamed = evolve.replace("updated_at", "seen_at");
    project.write("pipelines/test.yaml", &pipeline(&renamed));
    assert_eq!(project.run()[0]["version"], "v2");
    assert_equal(&database, &project, "remark, stage");
    database.sql(
        "ALTER TABLE deal RENAME COLUMN remark TO note; ALTER TABLE deal ADD COLUMN size int;
         UPDATE deal SET size = 1, seen_at = clock_timestamp() WHERE id IN (3, 6)",
    );
    let report = &project.run()[0];
    assert_eq!((counts(report), &report["version"]), ([0, 2, 0], &Value::Null), "in place");
    assert_equal(&database, &project, "note, stage, size");
    database.sql("UPDATE deal SET size = 2, seen_at = clock_timestamp() WHERE id IN (3, 7)");
    assert_eq!(counts(&project.run()[0]), [0, 2, 0]);
    assert_equal(&database, &project, "note, stage, size");
}

#[test]
fn a_changed_schema_reloads_under_the_default_policy() {
    let database = Database::new();
    database.sql(TABLE);
    let project = database.project(SPEC);
    project.run();
    database.sql("ALTER TABLE deal ADD COLUMN stage text DEFAULT 'open'");
    let report = &project.run()[0];
    assert_eq!((&report["outcome"], &report["version"]), (&json!("full_refresh"), &json!("v2")));
    assert_equal(&database, &project, "note, stage");
    let frozen = format!("{SPEC}        on_schema_change: freeze\n");
    project.write("pipelines/test.yaml", &pipeline(&frozen));
    database.sql("ALTER TABLE deal DROP COLUMN stage");
    assert!(project.fails(&["run"], 1).contains("dropped stage"));
}

#[test]
fn runs_that_are_killed_or_run_side_by_side_merge_each_change_once() {
    let database = Database::new();
    database.sql(TABLE);
    database.sql(
        "INSERT INTO deal SELECT i, 1, md5(i::text), NULL, timestamptz '2026-01-01' + i * interval '1 second'
         FROM generate_series(10001, 60000) i",
    );
    let project = database.project(SPEC);
    project.run();
    for round in 0..5 {
        database.sql(&format!(
            "UPDATE deal SET note = note || '{round}', updated_at = clock_timestamp() WHERE id % 7 = {round};
             UPDATE deal SET deleted_at = now(), updated_at = clock_timestamp() WHERE id % 97 = {round}"
        ));
        let manifests = project.lake_files(".avro").len();
        let mut child = project.spawn(&["run", "--json"]);
        while child.try_wait().unwrap().is_none() {
            if project.lake_files(".avro").len() > manifests {
                child.kill().unwrap();
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.wait().unwrap();
        if round == 2 {
            let children: Vec<_> = (0..3).map(|_| project.spawn(&["run", "--json"])).collect();
            for child in children {
                assert!(child.wait_with_output().unwrap().status.success());
            }
        } else if round % 2 == 1 {
            project.run();
        }
    }
    project.run();
    let sums =
        "count(*) AS n, count(DISTINCT id) AS keys, sum(length(note)) AS letters, sum(id) AS ids";
    let source = database.sql(&format!(
        "SELECT row_to_json(r) FROM (SELECT {sums} FROM deal WHERE deleted_at IS NULL) r"
    ));
    let found = project.query(&format!("SELECT {sums} FROM org_1.deal"));
    assert_eq!(found, [serde_json::from_str::<Value>(&source).unwrap()]);
    assert_eq!(project.run()[0]["outcome"], "nothing_new");
}

#[test]
fn a_key_without_a_value_stops_the_run() {
    let database = Database::new();
    database.sql("CREATE TABLE deal (id int, updated_at timestamptz); INSERT INTO deal VALUES (1, now()), (NULL, now())");
    let spec = "      - { name: deal, source: revdb, from: deal, mode: merge, cursor: updated_at, key: [id] }\n";
    let project = database.project(spec);
    let errors = project.fails(&["run"], 1);
    assert!(errors.contains("no value in the key column \"id\""), "{errors}");
    assert!(project.ok(&["tables", "--json"]).contains("[]"), "nothing is stored");
}

#[test]
fn a_merge_is_suggested_where_rows_change() {
    let database = Database::new();
    database.sql(TABLE);
    database.sql("CREATE TABLE event (id bigint PRIMARY KEY, created_at timestamptz NOT NULL)");
    let append =
        SPEC.replace("mode: merge", "mode: append").replace("        deleted_at: deleted_at\n", "");
    let project = database.project(&append);
    let offered = project.ok(&["discover", "revdb", "--json"]);
    let offered: Value = serde_json::from_str(&offered).unwrap();
    let modes: Vec<&Value> = offered.as_array().unwrap().iter().map(|t| &t["mode"]).collect();
    assert_eq!(modes, ["merge", "append"]);
    assert!(
        project.ok(&["discover", "revdb"]).contains("suggested: mode: merge, cursor: updated_at")
    );
    assert!(project.ok(&["check"]).contains("mode: merge keeps the last"));
    project.write("pipelines/test.yaml", &pipeline(SPEC));
    assert!(!project.ok(&["check"]).contains("suggestion"));
}
