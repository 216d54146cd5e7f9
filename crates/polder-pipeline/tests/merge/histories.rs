//! Random histories of a source against a map: after every run, the lake table is what the source
//! says, whatever was read again, came late, failed or was cut off on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use futures::StreamExt;
use polder_core::{CursorValue, ErrorCode, Field, LakeType, TableSchema};
use polder_pipeline::Outcome;
use polder_sources::memory::MemoryTable;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::support::Scratch;

const HISTORIES: u64 = 24;
const STEPS: usize = 14;
/// How far behind the clock a row's stamp may be when it appears.
const LAG: i64 = 6;

#[derive(Clone, Debug, PartialEq)]
struct State {
    at: i64,
    note: String,
    gone: bool,
}

/// A source: the states of its rows, and a clock.
struct Model {
    rng: StdRng,
    clock: i64,
    rows: BTreeMap<i64, State>,
    next: i64,
    /// The stamps of the rows as they were read last.
    read: BTreeMap<i64, i64>,
    /// Earlier states stay beside the last one: the key is not unique. Stamps are then unique.
    log: Option<Vec<(i64, State)>>,
}

impl Model {
    fn new(seed: u64) -> Self {
        let log = seed.is_multiple_of(3).then(Vec::new);
        let rng = StdRng::seed_from_u64(seed);
        let (rows, read) = (BTreeMap::new(), BTreeMap::new());
        Self { rng, clock: LAG, rows, next: 0, read, log }
    }

    /// A stamp that no run's mark has passed, other than the one that the row was read with.
    fn stamp(&mut self, id: i64) -> i64 {
        if self.log.is_some() {
            self.clock += 1;
            return self.clock;
        }
        self.clock += self.rng.random_range(0..2);
        loop {
            let at = self.clock - self.rng.random_range(0..LAG);
            if self.read.get(&id) != Some(&at) {
                return at;
            }
        }
    }

    fn put(&mut self, id: i64, gone: bool) {
        let at = self.stamp(id);
        let note = format!("{}", self.rng.random_range(0..1_000_000));
        let state = State { at, note, gone };
        if let Some(log) = &mut self.log {
            log.push((id, state.clone()));
        }
        self.rows.insert(id, state);
    }

    fn some_row(&mut self) -> Option<i64> {
        let ids: Vec<i64> = self.rows.keys().copied().collect();
        ids.choose(&mut self.rng).copied()
    }

    fn change(&mut self) {
        for _ in 0..self.rng.random_range(0..25) {
            match (self.rng.random_range(0..10), self.some_row()) {
                (0..4, _) | (_, None) => {
                    self.next += 1;
                    self.put(self.next, false);
                }
                (4..8, Some(id)) => self.put(id, false),
                (_, Some(id)) => self.put(id, true),
            }
        }
        // A run's mark stays behind what may still come.
        self.clock += self.rng.random_range(0..3);
    }

    /// The source as it is, in batches and an order of chance.
    fn table(&mut self) -> MemoryTable {
        self.read = self.rows.iter().map(|(id, state)| (*id, state.at)).collect();
        let mut rows: Vec<(i64, State)> = match &self.log {
            Some(log) => log.clone(),
            None => self.rows.iter().map(|(id, state)| (*id, state.clone())).collect(),
        };
        for index in (1..rows.len()).rev() {
            rows.swap(index, self.rng.random_range(0..=index));
        }
        let size = self.rng.random_range(1..40);
        let vouched = self.log.is_none() && self.rng.random_bool(0.5);
        MemoryTable {
            schema: schema(),
            batches: rows.chunks(size).map(batch).collect(),
            key: if vouched { vec!["id".to_owned()] } else { Vec::new() },
            fail_after: None,
            cursor_ceiling: Some(CursorValue::Int(self.clock - LAG)),
            doubts: Vec::new(),
            again: false,
        }
    }

    fn expected(&self) -> BTreeMap<i64, (i64, String)> {
        let living = self.rows.iter().filter(|(_, state)| !state.gone);
        living.map(|(id, state)| (*id, (state.at, state.note.clone()))).collect()
    }
}

fn schema() -> TableSchema {
    TableSchema::new(vec![
        Field::new("note", LakeType::String),
        Field::new("id", LakeType::Long),
        Field::new("at", LakeType::Long),
        Field::new("gone", LakeType::Long),
    ])
}

fn batch(rows: &[(i64, State)]) -> RecordBatch {
    let notes = StringArray::from_iter_values(rows.iter().map(|(_, state)| &state.note));
    let ids = Int64Array::from_iter_values(rows.iter().map(|(id, _)| *id));
    let ats = Int64Array::from_iter_values(rows.iter().map(|(_, state)| state.at));
    let gone: Int64Array = rows.iter().map(|(_, state)| state.gone.then_some(1)).collect();
    let columns: Vec<Arc<dyn Array>> =
        vec![Arc::new(notes), Arc::new(ids), Arc::new(ats), Arc::new(gone)];
    RecordBatch::try_new(schema().to_arrow(), columns).expect("batch")
}

/// The lake table by key; a key twice is a failure.
async fn stored(scratch: &Scratch) -> BTreeMap<i64, (i64, String)> {
    let rows = scratch.rows().await;
    let long =
        |name: &str| rows.column_by_name(name).expect("column").as_primitive::<Int64Type>().clone();
    let (ids, ats) = (long("id"), long("at"));
    let notes = rows.column_by_name("note").expect("note").as_string::<i32>().clone();
    let mut found = BTreeMap::new();
    for row in 0..rows.num_rows() {
        let state = (ats.value(row), notes.value(row).to_owned());
        assert!(found.insert(ids.value(row), state).is_none(), "key {} twice", ids.value(row));
    }
    found
}

async fn history(seed: u64) -> u64 {
    let mut model = Model::new(seed);
    let partition = ["", "bucket(3, id)", "truncate(10, at)"][seed as usize % 3];
    let partition: Vec<&str> =
        Some(partition).into_iter().filter(|text| !text.is_empty()).collect();
    let mut scratch = Scratch::new(json!({
        "mode": "merge", "key": ["id"], "cursor": "at", "deleted_at": "gone", "partition": partition,
    }))
    .await;
    if seed.is_multiple_of(4) {
        scratch.memory_bytes = 48 << 10;
    }
    model.put(0, false);
    let mut merges = 0;
    let fails_at = model.rng.random_range(0..STEPS);
    for step in 0..STEPS {
        model.change();
        let at = format!("history {seed}, step {step}");
        let table = model.table();
        match model.rng.random_range(0..4) {
            // The source goes away in the middle, and stays away for some time.
            _ if step == fails_at => {
                let before = match step {
                    0 => None,
                    _ => Some(stored(&scratch).await),
                };
                let fail_after = Some(model.rng.random_range(0..2));
                scratch.put(MemoryTable { fail_after, ..table.clone() });
                if let Err(error) = scratch.ingest(&scratch.request()).await {
                    assert_eq!(error.code(), ErrorCode::SourceUnavailable, "{at}: {error}");
                    if let Some(before) = before {
                        assert_eq!(stored(&scratch).await, before, "{at}: nothing is visible");
                    }
                }
            }
            // The run is cut off anywhere; the next one has its id, or another.
            0 => {
                scratch.put(table.clone());
                let mut request = scratch.request();
                let patience = Duration::from_micros(model.rng.random_range(0..40_000));
                let _ = tokio::time::timeout(patience, scratch.ingest(&request)).await;
                if model.rng.random_bool(0.5) {
                    request.progress = Arc::default();
                    scratch.ingest(&request).await.expect("the run, once more");
                    assert_eq!(stored(&scratch).await, model.expected(), "{at}: once more");
                }
            }
            _ => {}
        }
        scratch.put(table);
        let report = scratch.run().await;
        merges += u64::from(report.outcome == Outcome::Merge);
        assert_eq!(stored(&scratch).await, model.expected(), "{at}");
        let snapshot = scratch.table().await.current_snapshot().expect("snapshot");
        assert_eq!(snapshot.rows, Some(model.expected().len() as u64), "{at}: rows counted");
        let again = scratch.run().await;
        assert_eq!(again.outcome, Outcome::NothingNew, "{at}: {again:?}");
        let after = scratch.table().await.current_snapshot().expect("snapshot");
        assert_eq!(after, snapshot, "{at}: an overlap costs nothing");
    }
    merges
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_table_is_the_source_after_every_run() {
    // Several at once, as failed runs wait.
    let histories = futures::stream::iter((0..HISTORIES).map(|seed| Box::pin(history(seed))));
    let merges: u64 = histories.buffer_unordered(6).collect::<Vec<_>>().await.iter().sum();
    assert!(merges > HISTORIES * 6, "only {merges} merges");
}
