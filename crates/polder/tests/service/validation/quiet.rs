//! Right tables, validated while the source is written: nothing may be said of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use polder_core::validation::Verdict;

use super::proof::{Proof, failed};

/// Validations of each mode; `POLDER_VALIDATIONS` asks for more.
fn rounds() -> usize {
    std::env::var("POLDER_VALIDATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

/// Ids of each writer: it gives them again and again, so that the table stays small however long it is written.
const IDS: u32 = 400;

/// Writes to the table from several sessions until it is told to stop; every change moves the cursor, as
/// a cursor asks for.
fn writers(proof: &Proof, deletes: bool, stop: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<u32>> {
    let writer = |number: u32| {
        let mut session = proof.database.session();
        let stop = Arc::clone(stop);
        thread::spawn(move || {
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                turns += 1;
                let id = 10_000 + turns % IDS * 10 + number;
                let old = (turns * 7 + number) % 600 + 1;
                session.run(&format!(
                    "BEGIN; INSERT INTO deal (id, org_id, name, updated_at) VALUES ({id}, '1', 'new', now())
                     ON CONFLICT (id) DO UPDATE SET name = 'new', updated_at = now();"
                ));
                session.run(&format!(
                    "SAVEPOINT a; UPDATE deal SET name = left(name, 20) || {turns}, amount = amount + 1, \
                     updated_at = clock_timestamp() WHERE id IN ({old}, {id} - 30); RELEASE a;"
                ));
                if deletes {
                    session.run(&format!("DELETE FROM deal WHERE id = {id} - 50;"));
                }
                let end = if turns % 5 == 0 { "ROLLBACK;" } else { "COMMIT;" };
                session.run(end);
            }
            turns
        })
    };
    (0..3).map(writer).collect()
}

async fn quiet(mode: &str, deletes: bool) {
    let proof = Proof::new(mode).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers = writers(&proof, deletes, &stop);
    let mut pending = 0;
    let mut alarms = Vec::new();
    for round in 0..rounds() {
        if round % 3 == 0 {
            proof.ingest(false).await;
        }
        let report = proof.validate().await;
        pending += report.pending;
        if report.verdict != Verdict::Verified {
            alarms.push(format!("{round}: {:?} {:#?}", failed(&report), report.checks));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let turns: u32 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
    assert!(alarms.is_empty(), "{} alarms: {}", alarms.len(), alarms[0]);
    assert!(turns > 20 && pending > 0, "{turns} turns of writing, {pending} rows pending");
    // And when everything is over nothing is pending.
    proof.ingest(false).await;
    let report = proof.validate().await;
    assert_eq!((report.verdict, report.pending), (Verdict::Verified, 0), "{:#?}", report.checks);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_table_that_is_written_meanwhile_gives_no_alarm() {
    quiet("append", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_table_that_is_written_meanwhile_gives_no_alarm() {
    quiet("merge", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_table_that_is_written_meanwhile_gives_no_alarm() {
    quiet("full_refresh", true).await;
}
