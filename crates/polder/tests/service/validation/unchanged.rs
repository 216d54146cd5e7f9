//! Tables that have not changed since they were found verified: their rows are not digested again, and whatever
//! changes a row of them has them digested.

use polder_core::validation::{CheckName, Verdict};
use polder_pipeline::ValidationReport;

use super::damage::only;
use super::proof::{Proof, failed, spec};
use crate::service::Database;

/// Whether the verdict was taken over from an earlier validation.
fn taken_over(report: &ValidationReport) -> bool {
    let values = report.checks.iter().find(|check| check.check == CheckName::Values);
    values.is_some_and(|check| check.observed.contains("neither side changed"))
}

/// Verified by a comparison, and once more without one.
async fn proven(proof: &Proof, what: &str) {
    let report = proof.validate_and_keep().await;
    let verdict = (report.verdict, report.pending, taken_over(&report));
    assert_eq!(verdict, (Verdict::Verified, 0, false), "{what}: {:#?}", report.checks);
    let report = proof.validate_and_keep().await;
    let verdict = (report.verdict, taken_over(&report));
    assert_eq!(verdict, (Verdict::Verified, true), "{what}: {:#?}", report.checks);
}

/// Loaded when nothing else was open, so that nothing is pending.
async fn loaded(mode: &str) -> Proof {
    let proof = Proof::new(mode).await;
    proof.ingest(mode == "full_refresh").await;
    proof
}

#[tokio::test]
async fn what_changes_no_row_of_the_org_has_nothing_digested_again() {
    for mode in ["full_refresh", "append"] {
        let proof = loaded(mode).await;
        proven(&proof, mode).await;
        for nothing in [
            "UPDATE deal SET name = 'of others' WHERE id > 700",
            "DELETE FROM deal WHERE id > 800",
            "BEGIN; DELETE FROM deal; ROLLBACK",
            "SELECT count(*) FROM (SELECT * FROM deal WHERE id < 9 FOR UPDATE) locked",
            "VACUUM (FREEZE, ANALYZE) deal",
            "CREATE INDEX ON deal (name)",
            "CREATE TABLE other (id int)",
        ] {
            proof.database.sql(nothing);
            let report = proof.validate_and_keep().await;
            assert_eq!(report.verdict, Verdict::Verified, "{mode}: {nothing}");
            assert!(taken_over(&report), "{mode}: {nothing}: {:#?}", report.checks);
        }
    }
}

/// What a merged table's files have to add up to is not known.
#[tokio::test]
async fn a_merged_table_is_compared_each_time() {
    let proof = loaded("merge").await;
    for time in 0..2 {
        let report = proof.validate_and_keep().await;
        let verdict = (report.verdict, taken_over(&report));
        assert_eq!(verdict, (Verdict::Verified, false), "{time}: {:#?}", report.checks);
    }
}

#[tokio::test]
async fn what_may_change_a_row_has_all_of_them_compared() {
    let cases = [
        "UPDATE deal SET name = 'silent' WHERE id = 7",
        "UPDATE deal SET name = name WHERE id = 7",
        "DELETE FROM deal WHERE id = 7",
        "BEGIN; CREATE TEMP TABLE t AS SELECT * FROM deal WHERE id = 7; DELETE FROM deal WHERE id = 7; \
         INSERT INTO deal SELECT * FROM t; COMMIT",
        "INSERT INTO deal (id, org_id, updated_at) VALUES (5000, '1', '2020-01-01')",
        "UPDATE deal SET org_id = '1' WHERE id = 700",
        "UPDATE deal SET org_id = '2' WHERE id = 7",
        // The numbers of its versions mean other rows now.
        "VACUUM FULL deal",
        "CLUSTER deal USING deal_pkey",
        "TRUNCATE deal",
        "ALTER TYPE mood RENAME VALUE 'low' TO 'deep'",
        "ALTER TABLE deal ALTER COLUMN code TYPE char(7)",
        "ALTER TABLE deal RENAME COLUMN note TO remark",
    ];
    for change in cases {
        let proof = loaded("full_refresh").await;
        proven(&proof, change).await;
        proof.database.sql(change);
        let report = proof.validate_and_keep().await;
        assert!(!taken_over(&report), "{change}: {:#?}", report.checks);
    }
}

/// Vacuumed, the place of a deleted row takes the next one: the same row, by another transaction.
#[tokio::test]
async fn a_row_in_the_place_of_another_is_another() {
    let proof = loaded("full_refresh").await;
    proven(&proof, "before").await;
    proof.database.sql("CREATE TABLE kept AS SELECT * FROM deal WHERE id = 600");
    proof.database.sql("DELETE FROM deal WHERE id = 600");
    proof.database.sql("VACUUM deal");
    proof.database.sql("INSERT INTO deal SELECT * FROM kept");
    let report = proof.validate_and_keep().await;
    assert!(!taken_over(&report), "{:#?}", report.checks);
}

#[tokio::test]
async fn damage_of_the_lake_is_found_in_an_unchanged_table() {
    let proof = loaded("full_refresh").await;
    proven(&proof, "before").await;
    let file = proof.data_files().await.remove(0);
    let right = std::fs::read(&file).unwrap();
    std::fs::write(&file, &right[..right.len() / 2]).unwrap();
    let report = proof.validate_and_keep().await;
    assert_eq!(failed(&report), ["files".to_owned()].into(), "{:#?}", report.checks);
    std::fs::write(&file, right).unwrap();
    proven(&proof, "put right").await;
    // Another state of the table, in which a row is lost.
    let rows = proof.rows().await;
    proof.replace(&[only(&rows, |id| id != 7)]).await;
    let report = proof.validate_and_keep().await;
    assert_eq!(failed(&report), ["missing_keys".to_owned()].into(), "{:#?}", report.checks);
}

/// Which rows a filter lets pass may depend on others: it is these rows that are named, not the table.
#[tokio::test]
async fn a_filter_that_lets_other_rows_pass_has_them_compared() {
    let database = Database::new();
    database.sql(super::proof::TABLE);
    database.sql("CREATE TABLE chosen AS SELECT id FROM deal WHERE id <= 300");
    let mut spec = spec("full_refresh");
    spec["filter"] = "org_id = {org} AND id IN (SELECT c.id FROM public.chosen c)".into();
    let proof = Proof::of(database, &spec).await;
    proof.ingest(true).await;
    proven(&proof, "before").await;
    proof.database.sql("UPDATE chosen SET id = 301 WHERE id = 7");
    let report = proof.validate_and_keep().await;
    assert!(!taken_over(&report), "{:#?}", report.checks);
}

#[tokio::test]
async fn partitions_have_a_name_of_their_rows_and_views_have_none() {
    let database = Database::new();
    database.sql(
        "CREATE TABLE deal (id int, org_id text, name text, updated_at timestamptz NOT NULL) PARTITION BY RANGE (id);
         CREATE TABLE deal_a PARTITION OF deal FOR VALUES FROM (0) TO (300);
         CREATE TABLE deal_b PARTITION OF deal FOR VALUES FROM (300) TO (9000);
         INSERT INTO deal SELECT i, '1', 'n' || i, timestamptz '2026-01-01' + i * interval '1 hour'
             FROM generate_series(1, 600) i;
         CREATE VIEW seen AS SELECT * FROM deal",
    );
    let mut of_view = spec("append");
    of_view["from"] = "public.seen".into();
    let proof = Proof::of(database, &spec("full_refresh")).await;
    proof.ingest(true).await;
    proven(&proof, "partitions").await;
    proof.database.sql("UPDATE deal SET id = id + 1000 WHERE id = 7");
    let report = proof.validate_and_keep().await;
    assert!(!taken_over(&report), "{:#?}", report.checks);
    let mut proof = proof;
    proof.spec = serde_json::from_value(of_view).unwrap();
    proof.ingest(true).await;
    for _ in 0..2 {
        let report = proof.validate_and_keep().await;
        assert!(!taken_over(&report), "a view: {:#?}", report.checks);
    }
}
