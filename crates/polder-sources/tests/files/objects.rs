//! Which files are a table's: globs, orgs, what was read before, links.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use polder_core::spec::{SourceSpec, StorageConfig};
use polder_core::{Capabilities, ErrorCode, Source};
use polder_sources::files::Place;
use serde_json::json;

use super::support::{Environment, Folder, gzip};
use crate::reading::{Vary, drain, read, refused, request};

#[tokio::test]
async fn globs_choose_files_below_the_folder() {
    let folder = Folder::with(&[
        ("401/f/a.csv", "id\n1\n"),
        ("401/f/deep/b.csv", "id\n2\n"),
        ("401/f/.hidden.csv", "id\n3\n"),
        ("402/f/a.csv", "id\n4\n"),
        ("4010/f/a.csv", "id\n5\n"),
        ("401/f/[a].csv", "id\n6\n"),
        ("401/f/a.csv.bak", "id\n7\n"),
        ("401/f/naïve é.csv", "id\n8\n"),
    ]);
    let source = folder.source();
    let cases: [(&str, &[&str]); 11] = [
        ("{org}/f/*.csv", &["1", "6", "8"]),
        ("{org}/**/*.csv", &["1", "2", "6", "8"]),
        ("{org}/*/*/b.csv", &["2"]),
        ("{org}/f/?.csv", &["1"]),
        ("{org}/f/[a-b].csv", &["1"]),
        ("{org}/f/[[]a].csv", &["6"]),
        ("{org}/f/.*.csv", &["3"]),
        ("{org}/f/a.csv", &["1"]),
        ("{org}*/f/a.csv", &["1", "5"]),
        ("*/f/a.csv", &["1", "4", "5"]),
        ("{org}/f/naïve*.csv", &["8"]),
    ];
    for (from, ids) in cases {
        let found = read(&source, request(from)).await.expect(from);
        assert_eq!(found.sorted_texts("id"), ids, "{from}");
        assert_eq!(found.objects.len(), ids.len(), "{from}");
    }
    for from in ["../files/401/f/a.csv", "/etc/*.csv", "{org}/../402/f/a.csv", "", "a/**b.csv"] {
        assert_eq!(refused(&source, request(from)).await.code(), ErrorCode::SpecInvalid, "{from}");
    }
    for from in ["{org}/f/none.csv", "{org}/g/a.csv"] {
        assert_eq!(
            refused(&source, request(from)).await.code(),
            ErrorCode::SourceNotFound,
            "{from}"
        );
    }
    for from in ["{org}/f/*.parquet", "{org}/none/*.csv"] {
        let none = read(&source, request(from)).await.expect(from);
        assert_eq!((none.rows.num_rows(), none.splits), (0, 0), "{from}");
        assert!(none.warnings[0].contains("no file matches"), "{:?}", none.warnings);
    }
}

#[tokio::test]
async fn only_new_files_are_read_and_changed_ones_are_told() {
    let folder = Folder::with(&[("401/a.csv", "id\n1\n"), ("401/b.csv", "id\n2\n")]);
    let source = folder.source();
    let first = read(&source, request("{org}/*.csv")).await.expect("first");
    assert_eq!(first.shown("id"), ["1", "2"]);
    assert_eq!(first.objects.keys().collect::<Vec<_>>(), ["401/a.csv", "401/b.csv"]);
    let mut asked = request("{org}/*.csv").known(&first.schema);
    asked.objects_read.clone_from(&first.objects);
    let nothing = read(&source, asked.clone()).await.expect("nothing new");
    assert_eq!((nothing.rows.num_rows(), &nothing.schema), (0, &first.schema));
    assert_eq!((&nothing.objects, nothing.warnings.len()), (&first.objects, 0));

    folder.write("401/c.csv", "id,n\n3,x\n");
    fs::remove_file(folder.path("401/a.csv")).expect("remove");
    let second = read(&source, asked.clone()).await.expect("second");
    assert_eq!(
        (second.types().as_str(), second.shown("id")),
        ("id int, n string", vec!["3".into()])
    );
    let keys: Vec<_> = second.objects.keys().collect();
    assert_eq!(keys, ["401/a.csv", "401/b.csv", "401/c.csv"], "what was read stays known");

    folder.write("401/b.csv", "id\n2\n7\n");
    let error = refused(&source, asked).await;
    assert_eq!(error.code(), ErrorCode::SourceFailed);
    assert!(error.message().contains("401/b.csv changed"), "{error:?}");
    assert!(error.hint_text().expect("hint").contains("--full-refresh"));
    let full = read(&source, request("{org}/*.csv")).await.expect("a full refresh");
    assert_eq!(full.shown("id"), ["2", "7", "3"]);
}

#[tokio::test]
async fn a_file_that_changes_between_plan_and_read_is_told() {
    for (name, content, more) in
        [("a.csv", "id\n1\n".to_owned(), "id\n1\n2\n"), ("a.csv", "id\n1\n".to_owned(), "id\n9\n")]
    {
        let folder = Folder::new();
        folder.write(name, content);
        let source = folder.source();
        let plan = source.plan(request(name)).await.expect("plan");
        folder.write(name, more);
        let error = drain(plan).await.err().expect("changed");
        assert_eq!(error.code(), ErrorCode::SourceFailed);
        assert!(error.message().contains("changed while it was read"), "{error:?}");
        let plan = source.plan(request(name)).await.expect("plan");
        fs::remove_file(folder.path(name)).expect("remove");
        let error = drain(plan).await.err().expect("gone");
        assert_eq!(error.code(), ErrorCode::SourceNotFound);
    }
}

#[tokio::test]
async fn links_lead_nowhere_outside() {
    let folder = Folder::with(&[("401/a.csv", "id\n1\n"), ("402/b.csv", "id\n2\n")]);
    let outside = tempfile::tempdir().expect("folder");
    fs::write(outside.path().join("x.csv"), "id\n3\n").expect("file");
    symlink(outside.path(), folder.path("401/away")).expect("link");
    symlink(folder.path("401/a.csv"), folder.path("401/same.csv")).expect("link");
    let source = folder.source();
    let found = read(&source, request("{org}/**/*.csv")).await.expect("links to folders are left");
    assert_eq!(found.shown("id"), ["1", "1"], "a link within the folder is a file");
    for from in ["{org}/away/*.csv", "{org}/away/x.csv"] {
        assert_eq!(refused(&source, request(from)).await.code(), ErrorCode::SourceDenied, "{from}");
    }
    symlink(outside.path().join("x.csv"), folder.path("401/x.csv")).expect("link");
    let error = refused(&source, request("{org}/*.csv")).await;
    assert_eq!(error.code(), ErrorCode::SourceDenied);
    fs::remove_file(folder.path("401/x.csv")).expect("remove");
    symlink(folder.path("nowhere"), folder.path("401/y.csv")).expect("link");
    assert_eq!(refused(&source, request("{org}/*.csv")).await.code(), ErrorCode::SourceNotFound);
}

#[tokio::test]
async fn folders_that_cannot_hold_a_match_are_not_entered() {
    let folder = Folder::with(&[("a.csv", "id\n1\n"), ("sub/b.csv", "id\n2\n")]);
    let name = std::ffi::OsStr::from_bytes(b"\xff.csv");
    fs::write(folder.path("sub").join(name), "id\n3\n").expect("a name that is not UTF-8");
    let source = folder.source();
    assert_eq!(read(&source, request("*.csv")).await.expect("read").shown("id"), ["1"]);
    for from in ["*/*.csv", "**/*.csv", "sub/b.csv"] {
        let error = refused(&source, request(from)).await;
        assert_eq!(error.code(), ErrorCode::SourceMalformed, "{from}: {error:?}");
    }
    let deep = "d/".repeat(70);
    folder.write(&format!("deep/{deep}a.csv"), "id\n4\n");
    let error = refused(&source, request("deep/**/*.csv")).await;
    assert_eq!(error.code(), ErrorCode::SourceFailed, "nothing is left out in silence: {error:?}");
    let own = read(&source, request(&format!("deep/{deep}*.csv"))).await.expect("read");
    assert_eq!(own.shown("id"), ["4"]);
}

#[tokio::test]
async fn specs_that_cannot_work_are_refused() {
    let folder = Folder::with(&[("a.csv", "id\n1\n"), ("a.parquet", ""), ("a.xlsx", "")]);
    let source = folder.source();
    let cases = [
        (request("a.*v").filter("id = 1"), "from"),
        (request("a.*v").matching(json!({ "id": 1 })), "from"),
        (request("a.*v").cursor("id", None), "from"),
        (request("a.[cp]*"), "table of each format"),
        (request("a.x*"), "format:"),
    ];
    for (asked, hint) in cases {
        let place = asked.from.clone();
        let error = refused(&source, asked).await;
        assert_eq!(error.code(), ErrorCode::SpecInvalid, "{place}: {error:?}");
        assert!(error.hint_text().expect("hint").contains(hint), "{place}: {error:?}");
    }
}

#[tokio::test]
async fn discover_shows_what_can_be_read() {
    let folder = Folder::with(&[
        ("401/up/2024.01.csv", "id\n1\n"),
        ("401/up/2024.02.csv", "id\n2\n"),
        ("401/up/.c.csv", "id\n3\n"),
        ("a[1]/d.jsonl", "{\"id\": 5}"),
        ("readme.md", "no table"),
        ("e.csv", "id\n6\n"),
    ]);
    folder.write("401/up/b.v2.csv.gz", gzip("id\n4\n"));
    let source = folder.source();
    let capabilities = Capabilities { cursor: false, objects: true, complete_schema: false };
    assert_eq!(source.capabilities(), capabilities);
    assert!(source.check().await.expect("check").starts_with("folder "));
    let tables = source.discover().await.expect("discover");
    let names: Vec<_> = tables.iter().map(|table| (table.name.as_str(), table.kind)).collect();
    let expected = ["*.csv", "401/up/*.csv", "401/up/*.csv.gz", "a[[]1[]]/*.jsonl"]
        .map(|name| (name, "files"));
    assert_eq!(names, expected);
    let ids: [&[&str]; 4] = [&["6"], &["1", "2"], &["4"], &["5"]];
    for (table, ids) in tables.iter().zip(ids) {
        let found = read(&source, request(&table.name)).await.expect("the name works as `from`");
        assert_eq!(found.shown("id"), ids, "{}", table.name);
    }
}

#[tokio::test]
async fn splits_share_the_files_by_size() {
    let folder = Folder::new();
    for (name, rows) in [("a", 1), ("b", 500), ("c", 10), ("d", 400), ("e", 2)] {
        let rows = (0..rows).map(|n| format!("{name}{n}\n")).collect::<Vec<_>>().concat();
        folder.write(&format!("{name}.csv"), format!("id\n{rows}"));
    }
    let source = folder.source();
    let plan = source.plan(request("*.csv").splits(2)).await.expect("plan");
    let told: Vec<_> = plan.splits.iter().map(|split| split.describe()).collect();
    assert_eq!(told, ["b.csv", "4 files"]);
    assert_eq!(drain(plan).await.expect("read").rows.num_rows(), 913);
    let plan = source.plan(request("*.csv").splits(9)).await.expect("plan");
    assert_eq!(plan.splits.len(), 5);
}

/// A source as the configuration opens it.
fn configured(spec: &SourceSpec) -> polder_core::Result<std::sync::Arc<dyn Source>> {
    let means = polder_sources::Means {
        storage: &StorageConfig::default(),
        secrets: &Environment,
        base: std::path::Path::new("/nowhere"),
        connections: &polder_sources::Connections::new(),
    };
    polder_sources::open("up", spec, means)
}

#[tokio::test]
async fn places_are_told_by_their_address() {
    let folder = Folder::with(&[("a.csv", "id\n1\n")]);
    let root = folder.path("");
    let here = std::path::Path::new("/nowhere");
    let open = |url: &str| Place::open(url, &StorageConfig::default(), &Environment, here);
    for url in ["ftp://h/x", "", "s3://exports"] {
        assert_eq!(open(url).expect_err(url).code(), ErrorCode::SpecInvalid, "{url}");
    }
    for url in [root.display().to_string(), format!("file://{}", root.display())] {
        let spec = json!({ "type": "files", "url": url });
        let spec: SourceSpec = serde_json::from_value(spec).expect("spec");
        let source = configured(&spec);
        let found = read(&*source.expect("opened"), request("a.csv")).await.expect("read");
        assert_eq!(found.shown("id"), ["1"], "{url}");
    }
    let spec: SourceSpec =
        serde_json::from_value(json!({ "type": "files", "url": "gone" })).expect("spec");
    let source = configured(&spec).expect("opened");
    let error = source.check().await.expect_err("no folder");
    assert_eq!(error.code(), ErrorCode::SourceNotFound);
    let error = refused(&*source, request("a.csv")).await;
    assert_eq!(error.code(), ErrorCode::SourceNotFound);
}
