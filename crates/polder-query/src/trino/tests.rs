//! The engine against a server that plays Trino's protocol as a test wants it. `interop/` has the real one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use serde_json::{Value, json};

use super::*;

/// What the server was asked: method and path, all headers in lower case, the body.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: String,
    body: String,
}

/// A status, [`BROKEN`] or not, and a body.
type Reply = (u16, Value);

/// The connection breaks instead of an answer.
const BROKEN: u16 = 0;

struct Stub {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    /// `reply` is told the line, how many were the same before, and the server's own address.
    fn start(reply: impl Fn(&str, usize, &str) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("address"));
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (own, remembered) = (address.clone(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                let Some(question) = question(&stream) else { continue };
                let mut all = remembered.lock().expect("asked");
                let before = all.iter().filter(|asked| asked.line == question.line).count();
                let line = question.line.clone();
                all.push(question);
                drop(all);
                let (status, body) = reply(&line, before, &own);
                if status != BROKEN {
                    answer(stream, status, &body.to_string());
                }
            }
        });
        Self { address, asked }
    }

    fn lines(&self) -> Vec<String> {
        self.asked.lock().expect("asked").iter().map(|asked| asked.line.clone()).collect()
    }

    fn first(&self) -> Asked {
        self.asked.lock().expect("asked")[0].clone()
    }

    fn engine(&self) -> TrinoEngine {
        TrinoEngine::new(TrinoSettings {
            url: self.address.clone(),
            user: "polder".to_owned(),
            password: None,
            catalog: "lake".to_owned(),
        })
        .expect("engine")
    }
}

fn question(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let line = line.trim_end().strip_suffix(" HTTP/1.1")?.to_owned();
    let (mut headers, mut length) = (String::new(), 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(text) = header.strip_prefix("content-length:") {
            length = text.trim().parse().ok()?;
        }
        headers = format!("{headers}{header}\n");
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { line, headers, body: String::from_utf8(body).ok()? })
}

fn answer(mut stream: TcpStream, status: u16, body: &str) {
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // Whoever asked may be gone.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
}

/// A page that another follows, or the last one.
fn page(next: Option<String>, rest: &Value) -> Reply {
    let mut page = json!({ "id": "query_1", "stats": { "state": "RUNNING", "processedRows": 5 } });
    if let Some(next) = next {
        page["nextUri"] = json!(next);
    }
    for (key, value) in rest.as_object().expect("object") {
        page[key] = value.clone();
    }
    (200, page)
}

fn longs(values: &[i64]) -> Value {
    let rows: Vec<Vec<i64>> = values.iter().map(|value| vec![*value]).collect();
    let signature = json!({ "rawType": "bigint", "arguments": [] });
    let column = json!({ "name": "n", "type": "bigint", "typeSignature": signature });
    json!({ "columns": [column], "data": rows })
}

const POST: &str = "POST /v1/statement";

/// An answer of two pages after one without rows.
fn two_pages(line: &str, own: &str) -> Reply {
    match line {
        POST => page(Some(format!("{own}/queued/1")), &json!({})),
        "GET /queued/1" => page(Some(format!("{own}/rows/1")), &json!({})),
        "GET /rows/1" => page(Some(format!("{own}/rows/2")), &longs(&[1, 2])),
        "GET /rows/2" => page(None, &longs(&[3])),
        _ => (200, json!({})),
    }
}

fn session(rows_max: Option<u64>) -> Session {
    Session {
        principal: Principal::Operator,
        rows_max,
        memory_bytes_max: 1 << 20,
        snapshots: std::collections::BTreeMap::new(),
        pushdown: true,
    }
}

async fn ask(engine: &TrinoEngine, rows_max: Option<u64>) -> Result<Vec<i64>> {
    let answer = engine.query("SELECT n FROM t;", &session(rows_max)).await?;
    let batches: Vec<RecordBatch> = answer.batches.try_collect().await?;
    let values = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
    Ok(values.collect())
}

fn org(id: &str) -> Authorized<OrgId> {
    Principal::Operator.authorize(&id.parse().expect("org")).expect("authorised")
}

#[tokio::test]
async fn all_pages_are_read_in_their_order() {
    let stub = Stub::start(|line, _, own| two_pages(line, own));
    assert_eq!(ask(&stub.engine(), None).await.expect("rows"), [1, 2, 3]);
    assert_eq!(stub.lines(), [POST, "GET /queued/1", "GET /rows/1", "GET /rows/2"]);
    let Asked { headers, body, .. } = stub.first();
    assert_eq!(body, "SELECT n FROM t");
    for header in [
        "x-trino-user: polder\n",
        "x-trino-time-zone: utc\n",
        "x-trino-client-capabilities: parametric_datetime\n",
        "x-trino-query-data-encoding: json+zstd, json\n",
    ] {
        assert!(headers.contains(header), "{headers}");
    }
}

/// A last page of three rows in three segments, of which one is in it.
fn segments(own: &str) -> Reply {
    let spooled = |path: &str| {
        json!({ "type": "spooled", "uri": format!("{own}/{path}"), "ackUri": format!("{own}/ack/{path}"),
            "headers": { "x-key": [path] }, "metadata": { "rowsCount": 1 } })
    };
    let inline = json!({ "type": "inline", "data": "W1sxXV0=", "metadata": { "rowsCount": 1 } });
    let mut answer = longs(&[]);
    answer["data"] =
        json!({ "encoding": "json+zstd", "segments": [inline, spooled("two"), spooled("three")] });
    page(None, &answer)
}

#[tokio::test]
async fn segments_are_fetched_and_acknowledged() {
    let stub = Stub::start(|line, before, own| match (line, before) {
        (POST, _) => page(Some(format!("{own}/rows/1")), &json!({})),
        ("GET /rows/1", _) => segments(own),
        ("GET /two", 0) => (503, json!({})),
        ("GET /two", _) => (200, json!([[2]])),
        ("GET /three", _) => (200, json!([[3]])),
        _ => (200, json!({})),
    });
    assert_eq!(ask(&stub.engine(), None).await.expect("rows"), [1, 2, 3]);
    let lines = stub.lines();
    let expected = [
        POST,
        "GET /rows/1",
        "GET /two",
        "GET /two",
        "GET /ack/two",
        "GET /three",
        "GET /ack/three",
    ];
    assert_eq!(lines, expected);
    for asked in &stub.asked.lock().expect("asked")[2..] {
        let key = if asked.line.ends_with("two") { "x-key: two\n" } else { "x-key: three\n" };
        assert!(asked.headers.contains(key), "{asked:?}");
    }
}

#[tokio::test]
async fn a_segment_that_cannot_be_had_is_no_end() {
    let others = [(404, json!({})), (200, json!([])), (200, json!([[2], [2]])), (200, json!({}))];
    for other in others {
        let answer = other.clone();
        let stub = Stub::start(move |line, _, own| match line {
            POST => page(Some(format!("{own}/rows/1")), &json!({})),
            "GET /rows/1" => segments(own),
            "GET /two" => answer.clone(),
            _ => (200, json!({})),
        });
        let error = ask(&stub.engine(), None).await.expect_err("a segment is missing");
        assert_eq!(error.code(), ErrorCode::QueryFailed, "{other:?}");
    }
    // What could not be spooled is missing, and the page says so.
    let stub = Stub::start(|line, _, own| match line {
        POST => page(Some(format!("{own}/rows/1")), &json!({})),
        "GET /rows/1" => {
            let (status, mut last) = segments(own);
            last["error"] =
                json!({ "message": "m", "errorName": "SPOOLING_ERROR", "errorType": "EXTERNAL" });
            (status, last)
        }
        "GET /two" => (200, json!([[2]])),
        "GET /three" => (200, json!([[3]])),
        _ => (200, json!({})),
    });
    assert!(ask(&stub.engine(), None).await.is_err());
}

#[tokio::test]
async fn what_is_lost_on_the_way_is_asked_for_again() {
    let stub = Stub::start(|line, before, own| match (line, before) {
        (POST, 0) => (503, json!({})),
        ("GET /queued/1", 0) => (502, json!({})),
        ("GET /rows/1", 0 | 1) => (BROKEN, Value::Null),
        _ => two_pages(line, own),
    });
    assert_eq!(ask(&stub.engine(), None).await.expect("rows"), [1, 2, 3]);
    assert_eq!(stub.lines().iter().filter(|line| *line == "GET /rows/1").count(), 3);
}

#[tokio::test]
async fn an_error_between_pages_is_no_end() {
    let stub = Stub::start(|line, _, own| match line {
        "GET /rows/2" => page(
            None,
            &json!({ "error": { "message": "m", "errorName": "EXCEEDED_TIME_LIMIT",
                "errorType": "INSUFFICIENT_RESOURCES" } }),
        ),
        _ => two_pages(line, own),
    });
    let error = ask(&stub.engine(), None).await.expect_err("the error");
    assert_eq!(error.code(), ErrorCode::QueryLimit);
    let refused = Stub::start(|line, _, own| match line {
        "GET /rows/2" => (500, json!({})),
        _ => two_pages(line, own),
    });
    let error = ask(&refused.engine(), None).await.expect_err("the status");
    assert_eq!(error.code(), ErrorCode::QueryFailed);
}

#[tokio::test]
async fn a_query_that_nobody_reads_is_cancelled() {
    let stub = Stub::start(|line, _, own| match line {
        // There is always another page.
        "GET /rows/1" | "GET /rows/2" => page(Some(format!("{own}/rows/2")), &longs(&[1])),
        _ => two_pages(line, own),
    });
    let engine = stub.engine();
    let answer = engine.query("SELECT n FROM t", &session(None)).await.expect("begun");
    drop(answer);
    engine.settle().await;
    let begun = Instant::now();
    while !stub.lines().iter().any(|line| line.starts_with("DELETE /rows/")) {
        assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", stub.lines());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let engine = stub.engine();
    assert_eq!(ask(&engine, Some(3)).await.expect_err("too many").code(), ErrorCode::QueryLimit);
}

#[tokio::test]
async fn nobody_but_the_operator_and_nothing_but_queries() {
    let stub = Stub::start(|_, _, _| (BROKEN, Value::Null));
    let engine = stub.engine();
    let own = Session { principal: Principal::Org(org("401").get().clone()), ..session(None) };
    let denied = engine.query("SELECT 1", &own).await.err().expect("denied");
    assert_eq!(denied.code(), ErrorCode::ControlDenied);
    let refused = engine.query("DROP TABLE t", &session(None)).await.err().expect("refused");
    assert_eq!(refused.code(), ErrorCode::QueryInvalid);
    assert!(stub.lines().is_empty(), "Trino heard of neither");
}

#[tokio::test]
async fn a_password_s_pages_are_fetched_where_it_was_sent() {
    let stub = Stub::start(|_, _, _| page(Some("http://127.0.0.1:9/x".to_owned()), &json!({})));
    let error = ask(&stub.engine(), None).await.expect_err("elsewhere");
    assert_eq!(error.code(), ErrorCode::QueryFailed);
    assert!(error.hint_text().is_some_and(|hint| hint.contains("process-forwarded")));
}

#[tokio::test]
async fn optimize_names_the_table_and_the_snapshot() {
    let stub = Stub::start(|line, _, own| match line {
        POST => page(Some(format!("{own}/queued/1")), &json!({ "stats": { "queued": true } })),
        _ => page(None, &json!({ "stats": { "processedRows": 70, "processedBytes": 700 } })),
    });
    let progress = RunProgress::default();
    let mark =
        stub.engine().optimize(&org("401"), "deal \"x\"", 64, &progress).await.expect("mark");
    assert_eq!(mark, SnapshotMark { key: "trino_query_id", value: "query_1".to_owned() });
    let Asked { headers, body, .. } = stub.first();
    assert_eq!(
        body,
        "ALTER TABLE \"lake\".\"org_401\".\"deal \"\"x\"\"\" EXECUTE optimize(file_size_threshold => '64MB')",
    );
    assert!(headers.contains("x-trino-session: lake.target_max_file_size=64mb\n"), "{headers}");
    let told = progress.snapshot();
    assert_eq!((told.rows_read, told.bytes_read, told.waiting_for), (70, 700, None));
    let refused = stub.engine().optimize(&org("A"), "deal", 64, &progress).await;
    assert_eq!(refused.expect_err("an upper-case name").code(), ErrorCode::SpecInvalid);
}

/// An import of one column, `id`, for an org.
async fn import(stub: &Stub, org: &Authorized<OrgId>, table: &str) -> Result<Imported> {
    let field = polder_core::Field::new("id", polder_core::LakeType::Long);
    let columns = [polder_core::Carried { field, json: false }];
    let import = Import {
        org,
        source: "revdb",
        statement: "SELECT 1 AS c1",
        columns: &columns,
        table,
        file_mb: 128,
    };
    stub.engine().import(import, &RunProgress::default()).await
}

#[tokio::test]
async fn an_import_says_how_many_rows_and_by_which_query() {
    let stub = Stub::start(|line, _, own| match line {
        POST => page(Some(format!("{own}/queued/1")), &json!({ "stats": { "queued": true } })),
        "GET /queued/1" => page(Some(format!("{own}/rows/1")), &longs(&[7])),
        _ => page(None, &json!({})),
    });
    let imported = import(&stub, &org("401"), "polder_intake_deal").await.expect("imported");
    let mark = SnapshotMark { key: "trino_query_id", value: "query_1".to_owned() };
    assert_eq!(imported, Imported { rows: 7, mark });
    let Asked { headers, body, .. } = stub.first();
    let into =
        "INSERT INTO \"lake\".\"org_401\".\"polder_intake_deal\" (\"id\") SELECT \"c1\" FROM ";
    assert_eq!(body, format!("{into}TABLE(\"revdb\".system.query(query => 'SELECT 1 AS c1'))"));
    assert!(headers.contains("lake.target_max_file_size=128mb"), "{headers}");
    let refused = import(&stub, &org("401"), "Deal").await.expect_err("an upper-case name");
    assert_eq!(refused.code(), ErrorCode::SpecInvalid);
}

#[tokio::test]
async fn an_import_that_the_source_refuses_names_the_column() {
    let refusing = |message: &'static str| {
        Stub::start(move |_, _, _| {
            let error =
                json!({ "message": message, "errorName": "JDBC_ERROR", "errorType": "EXTERNAL" });
            page(None, &json!({ "error": error }))
        })
    };
    let stub = refusing("ERROR: invalid input syntax for type date: \"polder-refused-1\"");
    let error = import(&stub, &org("401"), "t").await.expect_err("a value");
    assert_eq!(error.code(), ErrorCode::SourceUnrepresentable);
    assert!(error.message().contains("\"id\""), "{error}");
    let stub = refusing("ERROR: invalid input syntax for type boolean: \"polder-refused-0\"");
    let error = import(&stub, &org("401"), "t").await.expect_err("another database");
    assert_eq!(error.code(), ErrorCode::SourceFailed);
    let stub = refusing("ERROR: invalid input syntax for type date: \"Ann Smith\"");
    let error = import(&stub, &org("401"), "t").await.expect_err("anything else");
    assert_eq!(error.code(), ErrorCode::QueryFailed);
    assert!(!format!("{error:?}").contains("Ann"), "{error:?}");
    let silent = Stub::start(|_, _, _| page(None, &json!({})));
    assert!(import(&silent, &org("401"), "t").await.is_err(), "no number of rows");
}
