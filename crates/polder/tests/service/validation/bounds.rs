//! What a validation may take of its source.

use std::time::{Duration, Instant};

use polder_core::ErrorCode;
use polder_core::validation::Verdict;
use serde_json::json;

use super::proof::{Proof, spec};
use crate::service::Database;

/// A view whose rows take their time: a millisecond each.
const SLOW: &str = "
CREATE TABLE deal AS SELECT i AS id, 'deal ' || i AS name,
    timestamptz '2026-01-01' + i * interval '1 minute' AS updated_at
    FROM generate_series(1, 800) i;
CREATE VIEW slow AS SELECT deal.*, pg_sleep(0.001)::text AS nap FROM deal;
";

#[tokio::test]
async fn a_statement_that_takes_too_long_is_ended_at_the_server() {
    let database = Database::new();
    database.sql(SLOW);
    let table = json!({
        "name": "slow", "source": "revdb", "from": "public.slow", "mode": "append",
        "cursor": "updated_at", "key": ["id"],
    });
    let mut proof = Proof::of(database, &table).await;
    proof.spec.validation.statement_timeout = Some(Duration::from_millis(200));
    let begun = Instant::now();
    let error = proof.try_validate().await.expect_err("too long");
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
    assert_eq!(error.code(), ErrorCode::SourceFailed, "{error}");
    assert!(error.hint_text().unwrap().contains("statement_timeout"), "{error:?}");
    proof.spec.validation.statement_timeout = Some(Duration::ZERO);
    let report = proof.validate().await;
    assert_eq!(report.verdict, Verdict::Verified, "{:#?}", report.checks);
    assert!(report.pending <= 1, "{} rows were not compared", report.pending);
}

/// Even so few rows are read by several processes.
const PARALLEL: &str = "
DO $$ DECLARE setting text; BEGIN
    FOREACH setting IN ARRAY
        ARRAY['parallel_setup_cost', 'parallel_tuple_cost', 'min_parallel_table_scan_size'] LOOP
        EXECUTE format('ALTER DATABASE %I SET %I = 0', current_database(), setting);
    END LOOP;
END $$;
ALTER TABLE deal SET (parallel_workers = 4);
";

/// However many processes of the server work on it, the words are the same.
#[tokio::test]
async fn several_processes_of_the_server_find_the_same() {
    let database = Database::new();
    database.sql(&format!("{} {PARALLEL}", super::proof::TABLE));
    let plan = database.sql("EXPLAIN SELECT md5(name) FROM deal");
    assert!(plan.contains("Workers Planned"), "{plan}");
    let mut proof = Proof::of(database, &spec("full_refresh")).await;
    for parallel in [1, 4] {
        proof.spec.validation.max_parallel = std::num::NonZeroUsize::new(parallel);
        let report = proof.validate().await;
        assert_eq!(report.verdict, Verdict::Verified, "{parallel}: {:#?}", report.checks);
        assert!(report.pending <= 1, "{} rows were not compared", report.pending);
    }
}
