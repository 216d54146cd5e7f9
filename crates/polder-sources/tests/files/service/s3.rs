//! Files in a bucket: listing, fetching, what was read before.

use polder_core::spec::S3Config;
use polder_core::{ErrorCode, SecretRef, Source};

use super::super::conformance::{csv, deals, suite};
use super::super::support::{gzip, zstd};
use super::support::{BUCKET, Prefix, settings};
use crate::reading::{Vary, drain, read, refused, request};

#[tokio::test]
async fn the_suite_of_all_sources_passes() {
    let prefix = Prefix::new();
    prefix.write_all(deals("csv.gz", |ids| gzip(csv(ids)))).await;
    suite(&prefix.source(), "csv.gz").await;
}

#[tokio::test]
async fn every_page_of_a_listing_is_read() {
    let prefix = Prefix::new();
    let file = |n: usize| (format!("401/up/{n:05}.csv"), format!("id\n{n}\n"));
    prefix.write_all((0..2_100).map(file)).await;
    let source = prefix.source();
    let found = read(&source, request("{org}/up/*.csv").splits(4)).await.expect("read");
    assert_eq!((found.rows.num_rows(), found.objects.len(), found.splits), (2_100, 2_100, 4));
    let mut ids: Vec<usize> =
        found.shown("id").iter().map(|id| id.parse().expect("number")).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..2_100));
    let found = read(&source, request("{org}/up/0209?.csv")).await.expect("the last page alone");
    assert_eq!(found.sorted_texts("id"), (2_090..2_100).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn keys_stay_below_the_prefix_and_the_org() {
    let prefix = Prefix::new();
    for (key, id) in [
        ("401/up/a.csv", 1),
        ("401/up/deep/b.csv", 2),
        ("402/up/a.csv", 3),
        ("4010/up/a.csv", 4),
        ("401/up/a b+é%20=#&'()~.csv", 5),
    ] {
        prefix.write(key, format!("id\n{id}\n")).await;
    }
    let neighbour = prefix.open(&format!("s3://{BUCKET}/{}/401", prefix.path), &settings());
    let source = prefix.source();
    for (from, ids) in [
        ("{org}/up/*.csv", vec!["1", "5"]),
        ("{org}/**/*.csv", vec!["1", "2", "5"]),
        ("*/up/a.csv", vec!["1", "3", "4"]),
        ("{org}/up/a b+é%20=#&'()~.csv", vec!["5"]),
        ("{org}/none/*.csv", vec![]),
    ] {
        let found = read(&source, request(from)).await.expect(from);
        let read = if found.rows.num_rows() == 0 { Vec::new() } else { found.sorted_texts("id") };
        assert_eq!(read, ids, "{from}");
    }
    let found = read(&neighbour, request("up/*.csv")).await.expect("a longer prefix");
    assert_eq!(found.sorted_texts("id"), ["1", "5"]);
    assert_eq!(found.objects.keys().next().expect("a key"), "up/a b+é%20=#&'()~.csv");
    let error = refused(&source, request("{org}/up/c.csv")).await;
    assert_eq!(error.code(), ErrorCode::SourceNotFound);
    let names: Vec<_> =
        source.discover().await.expect("discover").into_iter().map(|table| table.name).collect();
    assert_eq!(names, ["401/up/*.csv", "401/up/deep/*.csv", "4010/up/*.csv", "402/up/*.csv"]);
    assert!(source.check().await.expect("check").contains(BUCKET));
}

#[tokio::test]
async fn only_new_objects_are_read_and_changed_ones_are_told() {
    let prefix = Prefix::new();
    prefix.write("401/a.csv", "id\n1\n").await;
    let source = prefix.source();
    let first = read(&source, request("{org}/*.csv")).await.expect("first");
    let mut asked = request("{org}/*.csv").known(&first.schema);
    asked.objects_read.clone_from(&first.objects);
    // The same content again has the same entity tag.
    prefix.write("401/a.csv", "id\n1\n").await;
    prefix.write("401/b.csv", "id\n2\n").await;
    let second = read(&source, asked.clone()).await.expect("second");
    assert_eq!((second.shown("id"), second.objects.len()), (vec!["2".to_owned()], 2));
    asked.objects_read.clone_from(&second.objects);
    let nothing = read(&source, asked.clone()).await.expect("nothing");
    assert_eq!((nothing.rows.num_rows(), &nothing.objects), (0, &second.objects));
    prefix.write("401/a.csv", "id\n7\n").await;
    let error = refused(&source, asked).await;
    assert_eq!(error.code(), ErrorCode::SourceFailed);
    assert!(error.message().contains("401/a.csv changed"), "{error:?}");
}

#[tokio::test]
async fn a_plan_keeps_objects_as_they_were_and_large_ones_whole() {
    let prefix = Prefix::new();
    // More than two parts of a fetch.
    let row = |n: u32| format!("{n},{:0>100}\n", n * 7);
    let rows = (0..400_000).map(row).collect::<Vec<_>>().concat();
    let large = format!("id,text\n{rows}");
    assert!(large.len() > 40 << 20);
    prefix.write("401/a.csv", large).await;
    prefix.write("401/b.csv", "").await;
    prefix.write("401/c.csv", zstd("text,id\nx,-1\n")).await;
    let source = prefix.source();
    let plan = source.plan(request("{org}/*.csv").splits(2)).await.expect("plan");
    prefix.write("401/a.csv", "id\n1\n").await;
    let found = drain(plan).await.expect("read");
    assert_eq!((found.rows.num_rows(), found.types().as_str()), (400_001, "id int, text string"));
    let sum: i64 = found.shown("id").iter().map(|id| id.parse::<i64>().expect("number")).sum();
    assert_eq!(sum, 399_999 * 400_000 / 2 - 1);
    assert!(found.shown("text").iter().any(|text| *text == format!("{:0>100}", 399_999 * 7)));
}

#[tokio::test]
async fn a_bucket_that_is_not_there_or_not_ours_is_told() {
    let prefix = Prefix::new();
    let gone = prefix.open("s3://polder-no-such-bucket/x", &settings());
    let mut wrong = settings();
    // The name of the user is not their secret.
    wrong.secret_key = Some(SecretRef::Env("S3_ACCESS_KEY".to_owned()));
    let denied = prefix.open(&format!("s3://{BUCKET}"), &wrong);
    for (source, code) in [(gone, ErrorCode::SourceNotFound), (denied, ErrorCode::SourceDenied)] {
        let error = source.check().await.expect_err("no access");
        assert_eq!(error.code(), code, "{error:?}");
        let error = refused(&source, request("*.csv")).await;
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.message().contains("bucket"), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_may_be_back_later() {
    let prefix = Prefix::new();
    let nowhere = S3Config { endpoint: Some("http://127.0.0.1:1".to_owned()), ..settings() };
    let source = prefix.open(&format!("s3://{BUCKET}"), &nowhere);
    let error = source.check().await.expect_err("nobody listens");
    assert_eq!(error.code(), ErrorCode::SourceUnavailable);
    assert!(error.retryable() && error.hint_text().expect("hint").contains("endpoint"));
}
