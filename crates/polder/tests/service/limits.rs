//! An org never has more connections to a source than its limit, whatever runs at the same time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Database, pipeline};
use crate::http::Served;
use crate::project::Project;

const SERVER: &str = "
[server]
auth = \"none\"
[limits]
runs = 4
runs_per_org = 4
splits = 3
[sources.revdb]
type = \"postgres\"
url = \"env:REVDB_URL\"
";
/// Three splits are worth it for the first; each of the others holds its connection for some seconds.
const ROWS: &str = "
CREATE TABLE big AS SELECT i AS id, repeat('x', 1000) AS pad FROM generate_series(1, 30000) i;
ANALYZE big;
CREATE VIEW slow_a AS SELECT i AS id, pg_sleep(0.005)::text AS nap FROM generate_series(1, 1000) i;
CREATE VIEW slow_b AS SELECT * FROM slow_a;
CREATE VIEW slow_c AS SELECT * FROM slow_a;
";
const TABLES: [&str; 4] = ["big", "slow_a", "slow_b", "slow_c"];
const OPEN: &str = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 'polder/1'";

fn set_up() -> (Database, Project) {
    let database = Database::new();
    database.sql(ROWS);
    let table = |name| format!("      - {{ name: {name}, source: revdb, from: {name} }}\n");
    let tables = TABLES.map(table).concat();
    let project = Project::new(SERVER, &pipeline(&tables)).with_env("REVDB_URL", &database.url());
    (database, project)
}

/// The most connections that were open in three looks after one another: the server takes a moment to
/// note that one has ended.
fn most_open(database: &Database, over: &AtomicBool) -> usize {
    let (mut looks, mut most) = (Vec::<BTreeSet<String>>::new(), 0);
    let began = Instant::now();
    while !over.load(Ordering::SeqCst) && began.elapsed() < Duration::from_mins(3) {
        looks.push(database.sql(OPEN).split_whitespace().map(str::to_owned).collect());
        if let [.., one, two, three] = &looks[..] {
            let stayed = three.iter().filter(|pid| one.contains(*pid) && two.contains(*pid));
            most = most.max(stayed.count());
        }
    }
    most
}

/// What a run of all tables was seen to do.
struct Seen {
    /// Connections at the same time.
    most: usize,
    /// What the usage said of the moment when there were at least so many as expected.
    now: Value,
    /// The events of each run.
    events: Vec<String>,
}

fn run_all(served: &Served, database: &Database, expected: u64) -> Seen {
    let body = json!({ "tables": TABLES }).to_string();
    let asked = served.call("", "POST", "/v1/orgs/1/runs", &body);
    assert_eq!(asked.status, 202, "{}", asked.body);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let open = scope.spawn(|| most_open(database, &over));
        let runs = asked.body["runs"].as_array().unwrap();
        let watch = |run: &Value| {
            let place = format!("/v1/orgs/1/runs/{}/events", run["id"].as_str().unwrap());
            scope.spawn(move || served.call("", "GET", &place, "").text)
        };
        let watching: Vec<_> = runs.iter().map(watch).collect();
        let mut now = Value::Null;
        for _ in 0..1_200 {
            now = served.call("", "GET", "/v1/orgs/1/usage", "").body["now"].clone();
            if now["connections"]["revdb"].as_u64().unwrap_or(0) >= expected {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let events = watching.into_iter().map(|watched| watched.join().unwrap()).collect();
        over.store(true, Ordering::SeqCst);
        let ended = served.wait("", asked.header("location"));
        assert_eq!(ended["status"], "succeeded", "{ended}");
        Seen { most: open.join().unwrap(), now, events }
    })
}

#[test]
fn an_org_has_no_more_connections_than_its_limit_and_its_runs_say_what_they_wait_for() {
    let (database, project) = set_up();
    let served = Served::start(&project);
    // As it is without: what is looked for can be seen.
    let free = run_all(&served, &database, 3);
    assert!(free.most > 2, "{} connections", free.most);
    assert_eq!(free.now["connections_max"], Value::Null, "{}", free.now);
    assert!(free.now["connections"]["revdb"].as_u64().unwrap() > 2, "{}", free.now);

    let limits = r#"{"limits":{"connections":2,"memory_mb":64}}"#;
    assert_eq!(served.call("", "PATCH", "/v1/orgs/1", limits).status, 200);
    let held = run_all(&served, &database, 2);
    assert_eq!(held.most, 2, "the limit is had, and not more");
    assert_eq!(held.now["connections"], json!({ "revdb": 2 }), "{}", held.now);
    let limits = (&held.now["connections_max"], &held.now["memory_mb_max"]);
    assert_eq!(limits, (&json!(2), &json!(64)), "{}", held.now);
    let memory = held.now["memory_mb"].as_u64().unwrap();
    assert!((1..=64).contains(&memory), "{}", held.now);
    let told = "\"waiting_for\":\"a connection to revdb: the org has all of its 2\"";
    assert!(held.events.iter().any(|events| events.contains(told)), "{:?}", held.events);

    // Connections close in the background.
    let began = Instant::now();
    loop {
        let after = served.call("", "GET", "/v1/orgs/1/usage", "").body["now"].clone();
        if (&after["memory_mb"], &after["connections"]) == (&json!(0), &json!({})) {
            break;
        }
        assert!(began.elapsed() < Duration::from_mins(1), "{after}");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(served.stop(), Some(0));
    for (name, rows) in TABLES.into_iter().zip([30_000, 1_000, 1_000, 1_000]) {
        assert_eq!(
            project.number(&format!("SELECT count(*) FROM lake.org_1.{name}")),
            rows,
            "{name}"
        );
    }
}
