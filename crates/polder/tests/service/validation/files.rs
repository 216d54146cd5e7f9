//! Files, partitions, names and columns that were damaged where they are stored.

use std::fs;
use std::path::{Path, PathBuf};

use arrow::datatypes::TimestampMicrosecondType;
use polder_core::validation::{CheckName, Verdict};
use polder_pipeline::ValidationReport;

use super::damage::{numbers, only, texts};
use super::proof::{Proof, failed};

fn set(names: &[&str]) -> std::collections::BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn of(report: &ValidationReport, name: CheckName) -> &polder_core::validation::Check {
    report.checks.iter().find(|check| check.check == name).unwrap()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Files below a folder whose names end so.
fn below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// What was done to a file, in words and in deed.
type Case = (&'static str, fn(&Path));

#[tokio::test]
async fn files_that_cannot_be_read_are_named() {
    let mut proof = Proof::new("full_refresh").await;
    let cases: [Case; 4] = [
        ("a data file is deleted", |path| fs::remove_file(path).unwrap()),
        ("a data file is cut short", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("a byte of a page's header is another one", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[4] ^= 0xff;
            fs::write(path, bytes).unwrap();
        }),
        ("a data file is empty", |path| fs::write(path, b"").unwrap()),
    ];
    for (what, damage) in cases {
        let file = proof.data_files().await.remove(0);
        damage(&file);
        let report = proof.validate().await;
        assert_eq!(failed(&report), set(&["files"]), "{what}: {:#?}", report.checks);
        let named = of(&report, CheckName::Files).samples.join("; ");
        assert!(named.contains(&name(&file)), "{what}: {named}");
        proof.load().await;
        proof.reopen().await;
        assert_eq!(proof.validate().await.verdict, Verdict::Verified, "{what}");
    }
}

/// Every byte of the first pages, one after the other: what the reader takes for good is found by the
/// rows.
#[tokio::test]
async fn a_flipped_byte_never_passes() {
    let proof = Proof::new("full_refresh").await;
    let file = proof.data_files().await.remove(0);
    let (right, rows) = (fs::read(&file).unwrap(), proof.rows().await);
    let mut found = 0;
    // Of pages only: the footer begins after the last.
    let footer = u32::from_le_bytes(right[right.len() - 8..right.len() - 4].try_into().unwrap());
    let pages = right.len() - 8 - footer as usize;
    for step in 0..24 {
        let at = 4 + step * (pages - 8) / 24;
        let mut bytes = right.clone();
        bytes[at] ^= 0x10;
        fs::write(&file, bytes).unwrap();
        let report = proof.validate().await;
        if report.verdict == Verdict::Verified {
            // A bit of an index or of statistics is read by nobody here.
            assert_eq!(proof.rows().await, rows, "byte {at}: {:#?}", report.checks);
        } else {
            found += 1;
        }
    }
    assert!(found > 12, "{found} of 24");
}

#[tokio::test]
async fn a_manifest_that_is_gone_is_found() {
    let mut proof = Proof::new("full_refresh").await;
    let table = proof.table().await;
    let folder = PathBuf::from(table.location().replacen("file://", "", 1));
    for manifest in below(&folder, "-m0.avro") {
        fs::remove_file(manifest).unwrap();
    }
    proof.reopen().await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), set(&["files"]), "{:#?}", report.checks);
}

/// Other rows under the name of a data file: it has the length and the rows that metadata says, but of
/// another month.
#[tokio::test]
async fn rows_in_the_partition_of_others_are_found() {
    let proof = Proof::new("full_refresh").await;
    let rows = proof.rows().await;
    let file = proof.data_files().await.remove(0);
    let length = fs::metadata(&file).unwrap().len() as usize;
    let first = only(&rows, |id| id < 700);
    let month = 31 * 24 * 3_600_000_000_i64;
    let shifted =
        numbers::<TimestampMicrosecondType>(&first, "updated_at", |_| true, |v| Some(v + month));
    // Of one month each, so that each file of the rewrite can take the first one's place; short ones.
    let short = ["name", "note", "doc"]
        .iter()
        .fold(shifted, |rows, column| texts(&rows, column, |_| true, |_| Some(String::new())));
    let other = Proof::new("full_refresh").await;
    other.replace(&[short]).await;
    let mut of_other = fs::read(other.data_files().await.remove(0)).unwrap();
    assert!(of_other.len() < length, "{} of {length}", of_other.len());
    // Between the pages and the footer there is room for anything.
    let footer = u32::from_le_bytes(of_other[of_other.len() - 8..][..4].try_into().unwrap());
    let at = of_other.len() - 8 - footer as usize;
    let pad = length - of_other.len();
    of_other.splice(at..at, std::iter::repeat_n(0, pad));
    fs::write(&file, of_other).unwrap();
    let report = proof.validate().await;
    let found = of(&report, CheckName::Partitions);
    assert_eq!(found.verdict, Verdict::Failed, "{:#?}", report.checks);
    assert_eq!(found.samples, [name(&file)]);
}

/// Alters the text of the table's present metadata file.
async fn edit(proof: &mut Proof, alter: impl Fn(String) -> String) {
    let table = proof.table().await;
    let file = table.metadata_location().replacen("file://", "", 1);
    fs::write(&file, alter(fs::read_to_string(&file).unwrap())).unwrap();
    proof.reopen().await;
}

#[tokio::test]
async fn a_tag_on_another_snapshot_is_found() {
    let mut proof = Proof::new("full_refresh").await;
    proof.database.sql("UPDATE deal SET name = 'second' WHERE id = 7");
    proof.load().await;
    let versions = proof.table().await.versions();
    let [first, second] =
        [versions[0].snapshot.id, versions[1].snapshot.id].map(|id| id.to_string());
    let tags = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    edit(&mut proof, |text| {
        let mut metadata = tags(&text);
        assert_eq!(metadata["refs"]["v1"]["snapshot-id"].to_string(), first);
        metadata["refs"]["v1"]["snapshot-id"] = second.parse::<i64>().unwrap().into();
        metadata.to_string()
    })
    .await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), set(&["tags"]), "{:#?}", report.checks);
    assert!(of(&report, CheckName::Tags).samples[0].contains("v1"));
}

#[tokio::test]
async fn columns_that_nobody_published_are_found() {
    let mut proof = Proof::new("full_refresh").await;
    edit(&mut proof, |text| text.replace(r#""name":"note""#, r#""name":"notes""#)).await;
    let report = proof.validate().await;
    assert_eq!(failed(&report), set(&["schema"]), "{:#?}", report.checks);
    assert!(of(&report, CheckName::Schema).samples.contains(&"lost note string".to_owned()));
}

#[tokio::test]
async fn a_column_that_the_source_has_got_makes_the_table_stale() {
    let proof = Proof::new("full_refresh").await;
    proof.database.sql("ALTER TABLE deal ADD COLUMN late text DEFAULT 'x'");
    let report = proof.validate().await;
    assert_eq!(report.verdict, Verdict::Stale, "{:#?}", report.checks);
    assert_eq!(of(&report, CheckName::Schema).samples, ["added late string"]);
    assert_eq!(of(&report, CheckName::Values).verdict, Verdict::Verified);
    proof.load().await;
    assert_eq!(proof.validate().await.verdict, Verdict::Verified);
}
