//! The other end: a process that answers one query after the other, for the server that has started it.
//!
//! Whatever ends it ends that one query. It lives as long as its stdin is open: a server that is gone, however it went,
//! has closed it. (`PR_SET_PDEATHSIG` would hang on the thread that has started the process.)

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, FieldRef, Schema};
use futures::TryStreamExt;
use polder_core::{Description, Engine, Error, ErrorCode, Result};
use polder_query::DataFusionEngine;
use rlimit::Resource;
use tokio::io::{AsyncWriteExt, Stdout};
use tokio::sync::mpsc;

use super::frames::{self, FRAME_BYTES_MAX, Kind, Request, Told};
use crate::app::App;
use crate::{answer, exit};

/// Bytes of rows that are sent at once, as far as there is more than one row.
const PIECE_BYTES: usize = 16 << 20;

/// Answers until the server lets go of it, or it holds too much memory to go on.
pub(crate) async fn run(load: impl FnOnce() -> Result<App>, spill: PathBuf) -> Result<u8> {
    let mut requests = listen(spill.clone())?;
    let mut output = Output(tokio::io::stdout());
    let (engine, worn) = match begin(load, spill).await {
        Ok(begun) => begun,
        Err(error) => {
            output.failed(&error).await?;
            return Ok(exit::FAILED);
        }
    };
    loop {
        output.send(Kind::Ready, &[]).await?;
        let Some(request) = requests.recv().await else { return Ok(exit::OK) };
        match carry_out(&engine, &request, &mut output).await {
            Ok(()) => output.send(Kind::End, &[]).await?,
            Err(error) => output.failed(&error).await?,
        }
        if data_bytes().is_some_and(|bytes| bytes > worn) {
            return Ok(exit::OK);
        }
    }
}

/// The engine, and with how many bytes of data this process is of no more use.
async fn begin(
    load: impl FnOnce() -> Result<App>,
    spill: PathBuf,
) -> Result<(DataFusionEngine, u64)> {
    let app = load()?;
    let worn = limit_memory(&app)?;
    let engine = crate::cli::engine_in(&app, &app.lake().await?, spill)?;
    Ok((engine, worn))
}

/// From here on the system gives no more memory than the configuration says, beside what the stacks of
/// the engine's threads may take. There are no core files: rows would be in them.
fn limit_memory(app: &App) -> Result<u64> {
    let failed = |cause: io::Error| {
        Error::new(ErrorCode::Internal, "the system limits no memory").caused_by(cause)
    };
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let memory = app.config.process.limits.memory_of_query_process() as u64;
    let bytes = memory.saturating_add(polder_query::stack_bytes(threads) as u64);
    let (_, most) = Resource::DATA.get().map_err(failed)?;
    let bytes = bytes.min(most);
    Resource::DATA.set(bytes, bytes).map_err(failed)?;
    Resource::CORE.set(0, 0).map_err(failed)?;
    Ok(bytes.saturating_sub(memory / 4))
}

/// What counts for the limit, where the system says it.
fn data_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let data = status.lines().find_map(|line| line.strip_prefix("VmData:"))?;
    let kib: u64 = data.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Requests, as they come. The end of them is the end of the process, whatever it computes.
fn listen(spill: PathBuf) -> Result<mpsc::Receiver<Request>> {
    let (sender, requests) = mpsc::channel(1);
    let named = thread::Builder::new().name("polder-requests".to_owned());
    named.spawn(move || hand_over(&sender, &spill)).map_err(|cause| {
        Error::new(ErrorCode::Internal, "a thread could not be started").caused_by(cause)
    })?;
    Ok(requests)
}

fn hand_over(requests: &mpsc::Sender<Request>, spill: &Path) {
    let mut stdin = io::stdin().lock();
    while let Some(request) = next(&mut stdin) {
        if requests.blocking_send(request).is_err() {
            break;
        }
    }
    // A server that is there removes it, too. Mostly there is none.
    let _ = std::fs::remove_dir_all(spill);
    std::process::exit(i32::from(exit::OK));
}

fn next(stdin: &mut impl Read) -> Option<Request> {
    let mut length = [0; 4];
    stdin.read_exact(&mut length).ok()?;
    let mut text = vec![0; u32::from_le_bytes(length) as usize];
    stdin.read_exact(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

async fn carry_out(engine: &dyn Engine, request: &Request, output: &mut Output) -> Result<()> {
    let session = request.session()?;
    if request.describe {
        return describe(&engine.describe(&request.sql, &session).await?, output).await;
    }
    let mut found = engine.query(&request.sql, &session).await?;
    output.send(Kind::Rows, &frames::written(&found.schema, None)?).await?;
    while let Some(batch) = found.batches.try_next().await? {
        for piece in pieces(&batch) {
            let bytes = frames::written(&piece.schema(), Some(&piece))?;
            output.send(Kind::Rows, &bytes).await?;
        }
    }
    Ok(())
}

async fn describe(said: &Description, output: &mut Output) -> Result<()> {
    let known: Vec<bool> = said.parameters.iter().map(Option::is_some).collect();
    let types = said.parameters.iter().flatten();
    let types = types.map(|of| Arc::new(Field::new("parameter", of.clone(), true)));
    let fields: Vec<FieldRef> = types.chain(said.schema.fields().iter().cloned()).collect();
    let both = Schema::new_with_metadata(fields, said.schema.metadata().clone());
    output.send(Kind::Known, &frames::json(&known)?).await?;
    output.send(Kind::Rows, &frames::written(&both, None)?).await
}

/// A batch in parts of about equally many rows, so that none is much larger than [`PIECE_BYTES`].
fn pieces(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let rows = batch.num_rows();
    let parts = answer::bytes(batch).div_ceil(PIECE_BYTES).max(1);
    let step = rows.div_ceil(parts).max(1);
    (0..rows.max(1)).step_by(step).map(move |at| batch.slice(at, step.min(rows - at)))
}

/// Frames to the server.
struct Output(Stdout);

impl Output {
    async fn failed(&mut self, error: &Error) -> Result<()> {
        self.send(Kind::Failed, &frames::json(&Told::from(error))?).await
    }

    /// # Errors
    /// `query.limit` for more than a frame has; `internal` where nobody listens any more.
    async fn send(&mut self, kind: Kind, bytes: &[u8]) -> Result<()> {
        if bytes.len() > FRAME_BYTES_MAX {
            let message =
                format!("a row of the answer has more than {} MiB", FRAME_BYTES_MAX >> 20);
            return Err(Error::new(ErrorCode::QueryLimit, message)
                .hint("name the columns that are needed, or ask for parts of large values"));
        }
        let head = frames::head(kind, bytes.len());
        self.written(&head, bytes).await.map_err(|cause| {
            Error::new(ErrorCode::Internal, "the server does not listen").caused_by(cause)
        })
    }

    async fn written(&mut self, head: &[u8], bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(head).await?;
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn a_large_batch_is_sent_in_pieces_without_a_row_twice_or_none() {
        let rows = 50_i64;
        let text = "x".repeat(1 << 20);
        let columns: [(&str, ArrayRef); 2] = [
            ("n", Arc::new(Int64Array::from_iter_values(0..rows))),
            ("t", Arc::new(StringArray::from_iter_values((0..rows).map(|_| text.as_str())))),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("batch");
        let sent: Vec<RecordBatch> = pieces(&batch).collect();
        assert!(sent.len() >= 4, "{}", sent.len());
        assert!(sent.iter().all(|piece| answer::bytes(piece) < 2 * PIECE_BYTES));
        let whole = arrow::compute::concat_batches(&batch.schema(), &sent).expect("batch");
        assert_eq!(whole, batch);
        let few = batch.slice(7, 1);
        assert_eq!(pieces(&few).collect::<Vec<_>>(), std::slice::from_ref(&few));
        let none = batch.slice(0, 0);
        assert_eq!(pieces(&none).collect::<Vec<_>>(), std::slice::from_ref(&none));
    }
}
