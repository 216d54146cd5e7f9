//! What users see when something is wrong with the source or the spec.

use polder_core::{ErrorCode, Source};

use super::support::{Database, Vary, open, read, request};

#[tokio::test]
async fn errors_say_what_to_do() {
    let database = Database::new().await;
    database.run("CREATE TABLE opportunity (id int, \"stageName\" text)").await;
    let source = database.source();
    let cases = [
        (request("oportunity"), ErrorCode::SourceNotFound, "public.opportunity"),
        (request("Opportunity"), ErrorCode::SourceNotFound, "public.opportunity"),
        (request("opportunity").columns(&["stagename"]), ErrorCode::SourceNotFound, "stageName"),
        (request("opportunity").columns(&["id", "id"]), ErrorCode::SpecInvalid, ""),
        (request("opportunity").types(&[("x", "int")]), ErrorCode::SourceNotFound, "id"),
        (request("opportunity").filter("org_id = {org}"), ErrorCode::SpecInvalid, "filter"),
        (request("opportunity").filter("id ="), ErrorCode::SpecInvalid, "filter"),
        (request("opportunity").filter("id = 'abc'"), ErrorCode::SourceFailed, "filter"),
        (request("a.b.c.d"), ErrorCode::SpecInvalid, "schema.table"),
    ];
    for (request, code, hint) in cases {
        let place = format!("{:?} {:?}", request.from, request.filter);
        let error = source.plan(request).await.err().expect(&place);
        assert_eq!(error.code(), code, "{place}: {error:?}");
        assert!(error.hint_text().unwrap_or_default().contains(hint), "{place}: {error:?}");
        assert!(error.detail_text().is_some(), "{place}: {error:?}");
    }
}

#[tokio::test]
async fn values_of_the_source_stay_out_of_errors() {
    let database = Database::new().await;
    database
        .run(
            "CREATE TABLE t (v text); INSERT INTO t VALUES ('secret');
             CREATE VIEW bad AS SELECT v::int FROM t",
        )
        .await;
    let error = read(&database.source(), request("bad")).await.err().expect("not a number");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[tokio::test]
async fn permissions_are_told_apart_from_absence() {
    let database = Database::new().await;
    let role = format!("{}_guest", database.name);
    database
        .run(&format!(
            "CREATE ROLE {role} LOGIN; CREATE TABLE t (a int, b int); INSERT INTO t VALUES (1, 2);
             CREATE SCHEMA closed; CREATE TABLE closed.t (a int); GRANT SELECT ON closed.t TO {role};
             CREATE TABLE policed (a int); INSERT INTO policed VALUES (1), (2);
             ALTER TABLE policed ENABLE ROW LEVEL SECURITY;
             CREATE POLICY first ON policed USING (a = 1); GRANT SELECT ON policed TO {role}"
        ))
        .await;
    let guest = database.source_as(&role);
    for from in ["t", "closed.t"] {
        let error = guest.plan(request(from)).await.err().expect("denied");
        assert_eq!(error.code(), ErrorCode::SourceDenied, "{error:?}");
        assert!(error.hint_text().expect("hint").contains("GRANT"));
    }
    let policed = read(&guest, request("policed")).await.expect("read");
    assert_eq!(policed.sorted("a"), [1]);
    assert!(policed.warnings[0].contains("row-level security"));

    database.run(&format!("GRANT SELECT (a) ON t TO {role}")).await;
    let some = read(&guest, request("t").columns(&["a"])).await.expect("one column");
    assert_eq!(some.sorted("a"), [1]);
    let shown = guest.discover().await.expect("discover");
    let names: Vec<_> = shown.iter().map(|table| &*table.name).collect();
    assert_eq!(names, ["public.policed", "public.t"]);
    drop(guest);

    let nobody = database.source_as("polder_nobody");
    assert_eq!(nobody.check().await.expect_err("nobody").code(), ErrorCode::SourceDenied);
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_may_be_back_later() {
    let source = open("postgres://u:hunter2@127.0.0.1:1/db");
    let error = source.check().await.expect_err("nobody listens");
    assert_eq!(error.code(), ErrorCode::SourceUnavailable);
    assert!(error.retryable() && error.detail_text().expect("detail").contains("127.0.0.1:1"));
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    let source = open(&format!("postgres://u@127.0.0.1:{port}/db?connect_timeout=1"));
    let checked = tokio::time::timeout(std::time::Duration::from_mins(1), source.check()).await;
    let error = checked.expect("an end").expect_err("nobody answers");
    assert_eq!(error.code(), ErrorCode::SourceUnavailable);
    assert!(error.hint_text().expect("hint").contains("connect_timeout"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_hangs_up_is_not_said_to_lack_a_certificate() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    let hang_up = std::thread::spawn(move || drop(listener.accept()));
    let error = open(&format!("postgres://u@127.0.0.1:{port}/db")).check().await;
    let error = error.expect_err("nobody answers");
    hang_up.join().expect("accepted");
    assert_eq!(error.code(), ErrorCode::SourceUnavailable);
    assert!(error.to_string().contains("the connection was lost"), "{error:?}");
    assert!(!error.hint_text().expect("hint").contains("certificate"), "{error:?}");
}

#[tokio::test]
async fn a_server_without_tls_fails_sslmode_require() {
    let database = Database::new().await;
    let joint = if database.url.contains('?') { '&' } else { '?' };
    let tls = database.texts("SELECT current_setting('ssl')").await;
    let source = open(&format!("{}{joint}sslmode=require", database.url));
    let checked = source.check().await;
    // A server with TLS has no certificate of a public authority here either.
    let error = checked.expect_err(&format!("{tls:?}"));
    assert_eq!(error.code(), ErrorCode::SourceUnavailable);
    assert!(error.hint_text().expect("hint").contains("sslmode"));
}
