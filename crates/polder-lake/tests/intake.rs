//! Tables that another engine fills: made as the run's files have to be, hidden, made anew; and which of
//! the files are taken as they are. `interop/` has the engine.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array};
use iceberg::{NamespaceIdent, TableIdent};
use parquet::file::metadata::{ParquetMetaDataReader, ParquetMetaDataWriter};
use parquet::file::statistics::Statistics;
use polder_core::{ErrorCode, Imported, LakeType, SnapshotMark};
use polder_lake::{Catalog, ScanFile, SqlCatalog, StageKind, StageRequest, Store};

use crate::support::*;

const INTAKE: &str = "polder_intake_t";

async fn catalog(scratch: &Scratch) -> SqlCatalog {
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    Scratch::catalog(&settings, store).await
}

fn ident() -> TableIdent {
    TableIdent::new(NamespaceIdent::new(org("401").get().namespace()), INTAKE.to_owned())
}

fn nothing() -> Imported {
    Imported { rows: 0, mark: SnapshotMark { key: "query", value: "1".to_owned() } }
}

#[tokio::test]
async fn it_has_the_ids_of_the_tables_own_columns_and_is_seen_by_nobody() {
    let scratch = Scratch::new().await;
    let org = org("401");
    let whole =
        schema(&[("id", LakeType::Long), ("gone", LakeType::Long), ("text", LakeType::String)]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1])),
        Arc::new(Int64Array::from(vec![2])),
        Arc::new(arrow::array::StringArray::from(vec!["x"])),
    ];
    let loaded = request(StageKind::Replace, &whole);
    run(&scratch.lake, "t", loaded, &[batch(&whole, columns)]).await.expect("run");
    let append = request(StageKind::Append, &id_and_text());
    let stage = scratch.lake.stage(&org, "t", append).await.expect("stage");
    let intake = stage.open_intake().await.expect("intake");
    assert_eq!(intake.name(), INTAKE);
    let catalog = catalog(&scratch).await;
    let made = catalog.load(&ident()).await.expect("load").expect("made");
    let columns = made.metadata.current_schema().as_struct().clone();
    let ids: Vec<_> = columns.fields().iter().map(|field| (field.id, &*field.name)).collect();
    assert_eq!(ids, [(1, "id"), (3, "text")]);
    let table = scratch.lake.table(&org, "t").await.expect("load").expect("table");
    assert!(made.metadata.location().starts_with(&format!("{}/intake/", table.location())));
    assert_eq!(scratch.lake.tables(&org).await.expect("tables"), ["t"]);
    let error = scratch.lake.stage(&org, INTAKE, request(StageKind::Replace, &whole)).await;
    assert_eq!(error.expect_err("its name is taken").code(), ErrorCode::SpecInvalid);
    assert!(stage.intake_files(&intake, &nothing()).await.expect("no rows").is_empty());
    stage.close_intake(intake).await.expect("closed");
    assert!(catalog.load(&ident()).await.expect("load").is_none());
}

#[tokio::test]
async fn one_that_was_left_gives_way_and_its_run_notices() {
    let scratch = Scratch::new().await;
    let org = org("401");
    let wanted = || scratch.lake.stage(&org, "t", request(StageKind::Replace, &id_and_text()));
    let (first, second) = (wanted().await.expect("stage"), wanted().await.expect("stage"));
    let left = first.open_intake().await.expect("intake");
    let intake = second.open_intake().await.expect("in its place");
    let error = first.intake_files(&left, &nothing()).await.expect_err("another's");
    assert_eq!(error.code(), ErrorCode::LakeConflict);
    first.close_intake(left).await.expect("not its own any more");
    second.intake_files(&intake, &nothing()).await.expect("its own");
    let rows = Imported { rows: 3, ..nothing() };
    let error = second.intake_files(&intake, &rows).await.expect_err("no snapshot has them");
    assert_eq!(error.code(), ErrorCode::LakeAuditFailed);
}

/// The file with the same rows, and a footer that says something else of the first column.
fn saying(statistics: Statistics, file: &ScanFile) -> ScanFile {
    let path = file.path.strip_prefix("file://").expect("a local file");
    let found = File::open(path).expect("the file");
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&found).expect("a footer");
    let group = metadata.row_group(0).clone();
    let mut columns = group.columns().to_vec();
    let first = columns[0].clone().into_builder().set_statistics(statistics);
    columns[0] = first.build().expect("a column");
    let group = group.into_builder().set_column_metadata(columns).build().expect("a row group");
    let metadata = metadata.into_builder().set_row_groups(vec![group]).build();
    let mut bytes = std::fs::read(path).expect("its bytes");
    let (rest, tail) = bytes.split_at(bytes.len() - 8);
    let footer = u32::from_le_bytes(tail[..4].try_into().expect("four bytes"));
    bytes.truncate(rest.len() - footer as usize);
    ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().expect("another footer");
    std::fs::write(path, &bytes).expect("in its place");
    ScanFile { size_bytes: bytes.len() as u64, ..file.clone() }
}

#[tokio::test]
async fn a_file_is_taken_if_its_footer_says_what_its_rows_do() {
    let scratch = Scratch::new().await;
    let numbers = schema(&[("id", LakeType::Long), ("x", LakeType::Double)]);
    let of = |values: [f64; 3]| {
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        batch(&numbers, vec![ids, Arc::new(Float64Array::from(values.to_vec()))])
    };
    let replace = request(StageKind::Replace, &numbers);
    let stage = scratch.lake.stage(&org("401"), "t", replace.clone()).await.expect("stage");
    let whole = written(&stage, &[of([1.0, -0.5, 7.0])]).await;
    let mut seen = 0;
    let taken = stage
        .take_handed(&whole[0].as_scanned(), |rows| {
            seen += rows.num_rows();
            Ok(())
        })
        .await
        .expect("read");
    let taken = taken.expect("taken");
    assert_eq!((seen, taken.rows(), taken.location()), (3, 3, whole[0].location()));
    let other = ScanFile { rows: Some(4), ..whole[0].as_scanned() };
    let error = stage.take_handed(&other, |_| Ok(())).await.expect_err("a row is missing");
    assert_eq!(error.code(), ErrorCode::LakeAuditFailed);
    let odd = written(&stage, &[of([1.0, f64::NAN, 7.0])]).await;
    let odd = stage.take_handed(&odd[0].as_scanned(), |_| Ok(())).await.expect("read");
    assert!(odd.is_none(), "other writers keep no extremes beside a NaN");
    let statistics = |most, nulls| Statistics::int64(Some(1), Some(most), None, Some(nulls), false);
    for (most, nulls, is_right) in [(3, 0, true), (2, 0, false), (3, 1, false)] {
        let files = written(&stage, &[of([1.0, 2.0, 3.0])]).await;
        let file = saying(statistics(most, nulls), &files[0].as_scanned());
        let taken = stage.take_handed(&file, |_| Ok(())).await.expect("read");
        assert_eq!(taken.is_some(), is_right, "{most} {nulls}");
    }
    let parted = StageRequest { partition: vec!["id".parse().expect("identity")], ..replace };
    let parted = scratch.lake.stage(&org("401"), "t", parted).await.expect("stage");
    let mixed = parted.take_handed(&whole[0].as_scanned(), |_| Ok(())).await.expect("read");
    assert!(mixed.is_none(), "its rows are of three partitions");
    stage.commit(vec![taken], &checkpoint(1), summary(&whole)).await.expect("published");
    let table = table(&scratch.lake, "t").await;
    assert_eq!(ids(&table).await, [1, 2, 3]);
}
