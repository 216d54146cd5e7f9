//! Several processes on one store in PostgreSQL, killed at any moment: no run is lost, none is had twice.

use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Database;
use crate::http::Served;
use crate::project::Project;

const TABLES: [&str; 4] = ["a", "b", "c", "d"];
const ROWS: i64 = 60_000;
const ROUNDS: i64 = 3;
/// Where no kill has hit a run, as on a machine where processes are slow to start, there are more.
const ROUNDS_MAX: i64 = 9;

/// `polder worker`, until it is dropped.
struct Worker(Child);

impl Worker {
    fn start(project: &Project) -> Self {
        let mut command = project.command(&["worker"]);
        command.stderr(std::process::Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn insert(database: &Database, round: i64) {
    for table in TABLES {
        let (from, to) = (round * ROWS + 1, (round + 1) * ROWS);
        database.sql(&format!(
            "INSERT INTO {table} SELECT i, timestamptz '2026-01-01' + i * interval '2 second', \
             md5(i::text) FROM generate_series({from}, {to}) i"
        ));
    }
}

fn set_up() -> (Database, Database, Project) {
    let (database, store) = (Database::new(), Database::new());
    let mut tables = Vec::new();
    for table in TABLES {
        database.sql(&format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, at timestamptz NOT NULL, pad text)"
        ));
        tables.push(format!(
            "      - {{ name: {table}, source: revdb, from: {table}, mode: append, cursor: at, \
             key: [id], schedule: {{ cron: \"0 0 1 1 *\" }} }}\n"
        ));
    }
    let project = database.project(&tables.concat()).with_env("STORE_URL", &store.url());
    let file = project.path().join("polder.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("url = \"sqlite://./polder.db\"", "url = \"env:STORE_URL\"");
    std::fs::write(&file, text).unwrap();
    (database, store, project)
}

/// Waits until no run is open.
fn settle(store: &Database) {
    let began = Instant::now();
    let open = "SELECT count(*) FROM polder_queue WHERE state IN ('queued', 'running')";
    while store.sql(open) != "0" {
        let state = "SELECT table_name, state, failures, deaths, owner FROM polder_queue";
        assert!(began.elapsed() < Duration::from_mins(5), "{}", store.sql(state));
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn processes_killed_at_any_moment_lose_no_run_and_have_none_twice() {
    let (database, store, project) = set_up();
    insert(&database, 0);
    let mut served = Served::start(&project);
    let mut workers = [Worker::start(&project), Worker::start(&project)];
    let ask = |served: &Served| {
        let body = json!({ "tables": TABLES }).to_string();
        let asked = served.call("", "POST", "/v1/orgs/1/runs", &body);
        assert_eq!(asked.status, 202, "{}", asked.body);
    };
    let deaths = || store.sql("SELECT coalesce(sum(deaths), 0) FROM polder_queue");
    let mut rounds = 0;
    while rounds < ROUNDS || rounds < ROUNDS_MAX && deaths() == "0" {
        let round = rounds;
        rounds += 1;
        ask(&served);
        for worker in &mut workers {
            std::thread::sleep(Duration::from_millis(120 + 90 * round as u64));
            worker.kill();
            *worker = Worker::start(&project);
        }
        if round == 1 {
            served.kill();
            served = Served::start(&project);
        }
        settle(&store);
        insert(&database, round + 1);
    }
    ask(&served);
    settle(&store);
    assert_ne!(deaths(), "0", "no kill hit a run");
    let asked = (rounds + 1) * TABLES.len() as i64;
    let states = "SELECT state, count(*), count(DISTINCT run_id) FROM polder_queue GROUP BY state";
    assert_eq!(store.sql(states), format!("succeeded|{asked}|{asked}"));
    for table in TABLES {
        let expected = database.sql(&format!("SELECT count(*), count(*), sum(id) FROM {table}"));
        let counts = format!(
            "SELECT count(*) AS rows, count(DISTINCT id) AS keys, CAST(sum(id) AS BIGINT) AS total \
             FROM org_1.{table}"
        );
        let row: &Value = &project.query(&counts)[0];
        assert_eq!(format!("{}|{}|{}", row["rows"], row["keys"], row["total"]), expected);
    }
}

#[test]
fn of_several_schedulers_one_queues_what_is_due() {
    let (database, store, project) = set_up();
    insert(&database, 0);
    let served = Served::start(&project);
    let _workers = [Worker::start(&project), Worker::start(&project)];
    let began = Instant::now();
    while store.sql("SELECT count(*) FROM polder_schedules") != "4" {
        assert!(began.elapsed() < Duration::from_mins(1), "nothing is scheduled");
        std::thread::sleep(Duration::from_millis(100));
    }
    // A year passes, twice.
    for time in 1..=2_i64 {
        store.sql("UPDATE polder_schedules SET next_ms = 1000");
        let fired = "SELECT count(*) FROM polder_queue WHERE asked_by = 'schedule'";
        let began = Instant::now();
        while store.sql(fired) != (4 * time).to_string() {
            assert!(began.elapsed() < Duration::from_mins(1), "{}", store.sql(fired));
            std::thread::sleep(Duration::from_millis(100));
        }
        settle(&store);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(store.sql(fired), (4 * time).to_string(), "each once");
    }
    let succeeded = "SELECT count(*) FROM polder_queue WHERE state = 'succeeded'";
    assert_eq!(store.sql(succeeded), "8");
    let told = "SELECT count(DISTINCT run_id) FROM polder_run_logs WHERE message = ";
    assert_eq!(store.sql(&format!("{told} 'the run succeeded'")), "8", "each in its own log");
    assert_eq!(project.number("SELECT count(*) FROM org_1.a"), ROWS);
    let next = served.call("", "GET", "/v1/orgs/1/tables/a", "").body;
    assert!(next["next_run_at"].as_str().unwrap().contains("-01-01T00:00"), "{next}");
}

/// More orgs than the scheduler reads at once, with ids that PostgreSQL's collations order in other ways
/// than by their bytes.
#[test]
fn schedules_follow_many_orgs_that_come_change_and_go() {
    let (_database, store, project) = set_up();
    let ids: Vec<String> =
        (0..450).map(|number| format!("{}{number}", ["a", "B", "c-", "D_"][number % 4])).collect();
    let apply = |cron: &str, ids: &[String]| {
        let orgs: Vec<String> =
            ids.iter().map(|id| format!("  - {{ id: \"{id}\", template: t }}\n")).collect();
        let text = format!(
            "templates:\n  t:\n    schedule: {{ cron: \"{cron}\" }}\n    tables:\n      \
             - {{ name: a, source: revdb, from: a }}\norgs:\n{}",
            orgs.concat()
        );
        project.write("pipelines/test.yaml", &text);
        let plan: Value = serde_json::from_str(&project.ok(&["plan", "--json"])).unwrap();
        project.ok(&["apply", "--yes", "--plan", plan["hash"].as_str().unwrap()]);
    };
    let wait = |cron: &str, orgs: usize| {
        let sql = format!(
            "SELECT count(DISTINCT org), count(*), count(*) FILTER (WHERE spec LIKE '%{cron}%') \
             FROM polder_schedules"
        );
        let began = Instant::now();
        while store.sql(&sql) != format!("{orgs}|{orgs}|{orgs}") {
            assert!(began.elapsed() < Duration::from_mins(3), "{}", store.sql(&sql));
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    apply("0 0 1 1 *", &ids);
    let _worker = Worker::start(&project);
    wait("0 0 1 1 *", 450);
    apply("0 0 1 1 *", &ids[..200]);
    wait("0 0 1 1 *", 200);
    apply("0 0 2 2 *", &ids);
    wait("0 0 2 2 *", 450);
}

#[test]
fn a_worker_shows_what_it_counts_to_operators() {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;

    let (_database, _store, project) = set_up();
    let made: Value =
        serde_json::from_str(&project.ok(&["keys", "create", "--role", "operator", "--json"]))
            .unwrap();
    let mut child = project.spawn(&["worker", "--metrics", "127.0.0.1:0"]);
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let _worker = Worker(child);
    let address = loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended");
        if let Some(rest) = line.trim().strip_prefix("metrics: http://") {
            break rest.strip_suffix("/metrics").unwrap().to_owned();
        }
    };
    let ask = |key: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        let head = format!("Host: {address}\r\nAuthorization: Bearer {key}\r\nConnection: close");
        write!(stream, "GET /metrics HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let page = ask(made["key"].as_str().unwrap());
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("polder_runs_total"), "{page}");
    assert!(ask("plk_0_0").starts_with("HTTP/1.1 401"));
    // All workers of a host read one setting: the others work without the page.
    let file = project.path().join("polder.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let setting = format!("{text}\n[server]\nworker_metrics = \"{address}\"\n");
    std::fs::write(&file, setting).unwrap();
    let mut second = project.spawn(&["worker"]);
    let mut lines = BufReader::new(second.stderr.take().unwrap());
    let _second = Worker(second);
    loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended");
        if line.contains("this worker answers no /metrics") {
            break;
        }
    }
    let refused = project.fails(&["worker", "--metrics", &address], 2);
    assert!(refused.contains("cannot listen on"), "{refused}");
}
