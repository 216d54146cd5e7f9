//! Who may what by PostgreSQL's protocol: every role, in its own org, in another's, in none.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::doors::{FOREIGN, NONE, server};
use super::*;
use crate::serve::Postgres;

/// The door, open until this is dropped.
struct Open {
    address: SocketAddr,
    _serving: JoinSet<()>,
}

async fn open(server: &Server) -> Open {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
    let door = Postgres::bind(any, None, &server.settings.clients).await.expect("door");
    let address = door.address().expect("address");
    let mut serving = JoinSet::new();
    serving.spawn(door.run(Arc::clone(&server.settings), CancellationToken::new()));
    Open { address, _serving: serving }
}

/// What a statement gave.
#[derive(Debug, Default)]
struct Told {
    rows: Vec<String>,
    /// SQLSTATE and message.
    error: Option<(String, String)>,
}

impl Told {
    fn state(&self) -> &str {
        self.error.as_ref().map_or("", |(state, _)| state)
    }
}

/// A client of a few lines: the drivers are in `interop/`.
struct Client(TcpStream);

impl Client {
    async fn connect(open: &Open, database: &str, password: &str) -> Result<Self, Told> {
        let mut client = Self(TcpStream::connect(open.address).await.expect("connected"));
        let start = format!("user\0ann\0database\0{database}\0\0");
        let mut message = 196_608_i32.to_be_bytes().to_vec();
        message.extend_from_slice(start.as_bytes());
        client.write(None, &message).await;
        client.write(Some(b'p'), format!("{password}\0").as_bytes()).await;
        let told = client.answer().await;
        if told.error.is_some() { Err(told) } else { Ok(client) }
    }

    async fn write(&mut self, kind: Option<u8>, body: &[u8]) {
        let mut message: Vec<u8> = kind.into_iter().collect();
        let length = i32::try_from(body.len() + 4).expect("short");
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        // A server that has ended the connection is seen by its answer.
        let _ = self.0.write_all(&message).await;
    }

    async fn query(&mut self, sql: &str) -> Told {
        self.write(Some(b'Q'), format!("{sql}\0").as_bytes()).await;
        self.answer().await
    }

    /// What comes until the server is ready for more, or has gone.
    async fn answer(&mut self) -> Told {
        let mut told = Told::default();
        while let Ok(kind) = self.0.read_u8().await {
            let length = self.0.read_i32().await.expect("length");
            let mut body = vec![0; usize::try_from(length).expect("length") - 4];
            self.0.read_exact(&mut body).await.expect("body");
            match kind {
                b'Z' => break,
                b'D' => told.rows.push(String::from_utf8_lossy(&body[6..]).into_owned()),
                b'E' => {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    let field = |code: char| {
                        let mut fields = text.split('\0');
                        let found = fields.find_map(|field| field.strip_prefix(code));
                        found.unwrap_or_default().to_owned()
                    };
                    told.error = Some((field('C'), field('M')));
                }
                _ => {}
            }
        }
        told
    }
}

#[tokio::test]
async fn every_role_in_ones_own_org_in_anothers_and_in_none() {
    let (server, keys) = server().await;
    let open = open(&server).await;
    for (role, key) in &keys {
        let is_operator = *role == Role::Operator;
        let mut client = Client::connect(&open, "lake", key).await.expect("connected");
        for sql in [
            "SELECT count(*) AS n FROM lake.org_{}.deal",
            "SELECT id FROM lake.org_1.deal UNION ALL SELECT id FROM org_{}.deal",
            "WITH d AS (SELECT * FROM lake.org_{}.deal) SELECT count(*) FROM d",
        ] {
            let place = format!("{} {sql}", role.as_str());
            let own = client.query(&sql.replace("{}", "1")).await;
            assert!(own.error.is_none(), "{place}: {own:?}");
            let foreign = client.query(&sql.replace("{}", FOREIGN)).await;
            let none = client.query(&sql.replace("{}", NONE)).await;
            assert!(none.error.is_some(), "{place}: {none:?}");
            if is_operator {
                assert!(foreign.error.is_none(), "{place}: {foreign:?}");
            } else {
                let told = format!("{foreign:?}").replace(FOREIGN, NONE);
                assert_eq!(told, format!("{none:?}"), "{place}");
            }
        }
        let sql = "SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
                   ON n.oid = c.relnamespace WHERE c.relname = 'deal' ORDER BY 1";
        let shown = client.query(sql).await;
        let foreign = format!("org_{FOREIGN}");
        let expected: &[&str] = if is_operator { &["org_1", &foreign] } else { &["org_1"] };
        assert_eq!(shown.rows, expected, "{}: {shown:?}", role.as_str());
        // An org's database is that org alone, also for the operator.
        let mut client = Client::connect(&open, "org_1", key).await.expect("connected");
        assert!(client.query("SELECT count(*) FROM deal").await.error.is_none());
        let beside = client.query(&format!("SELECT 1 FROM org_{FOREIGN}.deal")).await;
        assert_eq!(beside.state(), "3F000", "{beside:?}");
        if !is_operator {
            let refused = async |org: &str| {
                let database = format!("org_{org}");
                let told = Client::connect(&open, &database, key).await.err().expect("refused");
                assert_eq!(told.state(), "3D000", "{told:?}");
                format!("{told:?}").replace(org, "")
            };
            assert_eq!(refused(FOREIGN).await, refused(NONE).await);
        }
    }
    let log = server.log().await;
    let refusals = log.iter().filter(|entry| entry.action == "CONNECT postgres");
    assert_eq!(refusals.clone().count(), 8);
    assert!(refusals.clone().all(|entry| entry.outcome == "control.denied"));
}

#[tokio::test]
async fn a_key_that_is_no_good_is_refused_also_in_the_middle() {
    let (server, keys) = server().await;
    let open = open(&server).await;
    for bad in ["", "plk_0_0", "x y", "\u{e9}"] {
        let told = Client::connect(&open, "lake", bad).await.err().expect("refused");
        assert_eq!(told.state(), "28P01", "{bad:?} {told:?}");
    }
    let log = server.log().await;
    let strangers = log.iter().filter(|entry| entry.outcome == "control.unauthenticated");
    assert_eq!(strangers.count(), 4);
    let of = |role: Role| &keys.iter().find(|(one, _)| *one == role).expect("key").1;
    let reader = of(Role::Reader);
    let mut client = Client::connect(&open, "lake", reader).await.expect("connected");
    assert_eq!(client.query("SELECT 1").await.rows, ["1"]);
    let shown: Vec<&str> = reader.splitn(3, '_').take(2).collect();
    let path = format!("/v1/keys/{}", shown.join("_"));
    let revoked = server.call(of(Role::Operator), "DELETE", &path, Value::Null).await;
    assert!(revoked.status.is_success(), "{}", revoked.body);
    let told = client.query("SELECT 1").await;
    assert_eq!((told.state(), told.rows.len()), ("28000", 0), "{told:?}");
    assert_eq!(client.query("SELECT 1").await.rows.len(), 0, "the connection has ended");
}

#[tokio::test]
async fn nothing_writes_and_an_agent_has_its_caps() {
    let (server, keys) = server().await;
    let open = open(&server).await;
    for (role, key) in &keys {
        let mut client = Client::connect(&open, "org_1", key).await.expect("connected");
        for sql in [
            "INSERT INTO deal VALUES (1)",
            "DELETE FROM deal",
            "CREATE TABLE x (a int)",
            "COPY deal TO '/tmp/deal'",
            "EXPLAIN ANALYZE COPY deal TO '/tmp/deal'",
            "EXPLAIN ANALYZE INSERT INTO deal VALUES (1)",
            "DROP TABLE deal",
        ] {
            let told = client.query(sql).await;
            assert_eq!(told.state(), "25006", "{} {sql}: {told:?}", role.as_str());
        }
        let many = client.query("SELECT * FROM generate_series(1, 20000)").await;
        if *role == Role::Agent {
            assert_eq!(many.state(), "54000", "{:?}", many.error);
        } else {
            assert_eq!((many.rows.len(), many.state()), (20_000, ""));
        }
    }
}

#[tokio::test]
async fn transactions_and_settings_are_a_connections_own() {
    let (server, keys) = server().await;
    let open = open(&server).await;
    let key = &keys[0].1;
    let mut one = Client::connect(&open, "org_1", key).await.expect("connected");
    let mut other = Client::connect(&open, "org_1", key).await.expect("connected");
    let set =
        one.query("BEGIN; SET statement_timeout = '7s'; COMMIT; SHOW statement_timeout").await;
    assert_eq!((set.rows, set.error), (vec!["7s".to_owned()], None));
    assert_eq!(other.query("SHOW statement_timeout").await.rows, ["0"]);
    assert_eq!(one.query("BEGIN; SELECT x FROM deal").await.state(), "42703");
    assert_eq!(one.query("SELECT 1").await.state(), "25P02");
    let back = one.query("ROLLBACK; SELECT 1").await;
    assert_eq!((back.rows, back.error), (vec!["1".to_owned()], None));
    one.query("SET statement_timeout = 50").await;
    let late = one.query("SELECT count(*) FROM generate_series(1, 1000000000000)").await;
    assert_eq!(late.state(), "57014", "{late:?}");
    let again = one.query("RESET statement_timeout; SELECT 2").await;
    assert_eq!((again.rows, again.error), (vec!["2".to_owned()], None));
}
