//! Runs that end in the middle: by SIGKILL, by Ctrl-C, by another run of the same table.

use std::process::Command;
use std::time::{Duration, Instant};

use super::Database;
use crate::project::Project;

const ROWS: i64 = 120_000;
const SPEC: &str = "      - name: big
        source: revdb
        from: big
        mode: append
        cursor: at
        key: [id]
        partition: [day(at)]
";
const COUNTS: &str = "SELECT count(*) AS rows, count(DISTINCT id) AS keys, CAST(sum(id) AS BIGINT) AS total \
                      FROM org_1.big";

fn database() -> Database {
    let database = Database::new();
    database.sql(&format!(
        "CREATE TABLE big (id bigint PRIMARY KEY, at timestamptz NOT NULL, pad text);
         INSERT INTO big SELECT i, timestamptz '2026-01-01' + i * interval '2 second', md5(i::text)
         FROM generate_series(1, {ROWS}) i"
    ));
    database
}

/// The table holds each source row once.
fn assert_exact(database: &Database, project: &Project) {
    let expected = database.sql("SELECT count(*), count(*), sum(id) FROM big");
    let row = &project.query(COUNTS)[0];
    let found = format!("{}|{}|{}", row["rows"], row["keys"], row["total"]);
    assert_eq!(found, expected);
}

/// Starts a run and kills it as soon as `when` says so. True if it was still alive.
fn kill_when(project: &Project, mut when: impl FnMut(Duration) -> bool) -> bool {
    let mut child = project.spawn(&["run", "--json"]);
    let started = Instant::now();
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if when(started.elapsed()) {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_run_shows_nothing_and_the_next_one_finishes_the_job() {
    let database = database();
    let project = database.project(SPEC);
    let mut kills = 0;
    for milliseconds in [5, 40, 80, 120, 160, 220, 300, 400] {
        let wait = Duration::from_millis(milliseconds);
        kills += u32::from(kill_when(&project, |elapsed| elapsed >= wait));
    }
    // While data files are written, and while the commit is.
    let data = project.lake_files(".parquet").len();
    kills += u32::from(kill_when(&project, |_| project.lake_files(".parquet").len() > data));
    assert!(kills >= 3, "the run is too fast to be killed: {kills}");
    project.run();
    assert_exact(&database, &project);
}

#[test]
fn a_run_killed_around_its_commit_leaves_the_old_or_the_new_state() {
    let database = database();
    let project = database.project(SPEC);
    project.run();
    let mut next = ROWS + 1;
    for _ in 0..6 {
        let last = next + 4_999;
        database.sql(&format!(
            "INSERT INTO big SELECT i, timestamptz '2026-01-01' + i * interval '2 second', md5(i::text)
             FROM generate_series({next}, {last}) i"
        ));
        let before = project.number("SELECT count(*) FROM org_1.big");
        let manifests = project.lake_files(".avro").len();
        kill_when(&project, |_| project.lake_files(".avro").len() > manifests);
        let after = project.number("SELECT count(*) FROM org_1.big");
        assert!([before, last].contains(&after), "{before} or {last}, not {after}");
        next = last + 1;
    }
    project.run();
    assert_exact(&database, &project);
}

#[test]
fn ctrl_c_stops_cleanly() {
    let database = database();
    let project = database.project(SPEC);
    // Holds the run until it is told to stop.
    let mut lock = database.session();
    lock.run("BEGIN; LOCK TABLE big IN ACCESS EXCLUSIVE MODE;");
    let child = project.spawn(&["run"]);
    let waits = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
                 WHERE NOT granted AND datname = current_database()";
    let began = Instant::now();
    while database.sql(waits) == "0" {
        assert!(began.elapsed() < Duration::from_mins(1), "the run does not come to the lock");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("nothing unfinished becomes visible"), "{errors}");
    drop(lock);
    project.run();
    assert_exact(&database, &project);
}

#[test]
fn runs_of_one_table_side_by_side_add_no_row_twice() {
    let database = database();
    let project = database.project(SPEC);
    project.run();
    database.sql(&format!(
        "INSERT INTO big SELECT i, timestamptz '2026-02-01' + i * interval '2 second', md5(i::text)
         FROM generate_series({}, {}) i",
        ROWS + 1,
        ROWS + 20_000,
    ));
    let children: Vec<_> = (0..4).map(|_| project.spawn(&["run", "--json"])).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_exact(&database, &project);
}
