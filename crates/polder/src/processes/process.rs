//! One query process, as the server has it: started, asked, listened to, ended.

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use polder_core::{Error, ErrorCode, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use uuid::Uuid;

use super::frames::{self, HEAD_BYTES, Kind, Told};
use super::{Job, Part, Reply};
use crate::app::App;

/// How long a process may take until it is ready.
const START_MAX: Duration = Duration::from_mins(1);
/// How long it may take from the end of an answer until it is ready for the next.
const READY_MAX: Duration = Duration::from_secs(5);
/// How long an answer that nobody waits for may still take: to end a process costs more.
const GRACE: Duration = Duration::from_millis(100);
/// This binary, also after another has taken its place on disk.
const OWN_BINARY: &str = "/proc/self/exe";
/// What the C library is told by (glibc manual, *Memory Allocation Tunables*).
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Bytes up to which each thread's freed memory is kept, and from which on an allocation has pages of its own: as many
/// as the C library comes to at most by itself. Mostly it comes to less, and gives back what the next batch needs again.
const KEPT_BYTES: usize = 64 << 20;
const APART_BYTES: usize = 32 << 20;
/// What all threads keep of a process' memory at most: one of so many parts.
const KEPT_PART: usize = 8;

/// How processes are started.
pub(super) struct Launch {
    program: PathBuf,
    /// The server's own configuration, as it was named to it.
    file: Option<PathBuf>,
    tunables: String,
}

impl Launch {
    pub(super) fn of(app: &App) -> Result<Self> {
        let program = PathBuf::from(OWN_BINARY);
        let program = if program.exists() { Ok(program) } else { std::env::current_exe() };
        let program = program.map_err(|cause| {
            Error::new(ErrorCode::Internal, "the binary cannot be found").caused_by(cause)
        })?;
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let memory = app.config.process.limits.memory_of_query_process();
        let kept = (memory / KEPT_PART / threads).min(KEPT_BYTES);
        let tunables =
            format!("glibc.malloc.trim_threshold={kept}:glibc.malloc.mmap_threshold={APART_BYTES}");
        Ok(Self { program, file: app.file.clone(), tunables })
    }
}

/// Why a process is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Nobody waits for its query any more: hung up, cancelled, timed out.
    Cancelled,
    /// Its query failed while it ran, and may have left something behind.
    Failed,
    /// It ended by itself.
    Crashed,
    /// It was not ready for another query: it holds too much.
    Worn,
}

impl Why {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Crashed => "crashed",
            Self::Worn => "worn",
        }
    }
}

/// How an answer ended.
enum Ended {
    Well,
    Failed(ErrorCode),
    /// Nobody waits any more, and the process was not asked.
    Unasked,
    Abandoned,
    Lost,
}

/// A process. It is killed when this is dropped.
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    frames: Frames,
    /// After the process, which writes there.
    _spill: Spill,
}

/// Where its queries spill: whoever is killed leaves files behind. It is removed when this is dropped.
struct Spill(PathBuf);

impl Spill {
    /// Made by the process once a query spills.
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("polder-query-{}", Uuid::new_v4())))
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        // Mostly there is none.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Process {
    /// Starts one, and waits until it is ready.
    ///
    /// # Errors
    /// What it says itself; `query.failed` where it says nothing.
    pub(super) async fn start(launch: &Launch) -> Result<Self> {
        let failed = || Error::new(ErrorCode::QueryFailed, "a query process does not start");
        let mut command = Command::new(&launch.program);
        if let Some(file) = &launch.file {
            command.arg("--config").arg(file);
        }
        let spill = Spill::new();
        command.arg0("polder").arg("query-process").arg(&spill.0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if std::env::var_os(TUNABLES).is_none() {
            command.env(TUNABLES, &launch.tunables);
        }
        let mut child = command.spawn().map_err(|cause| failed().caused_by(cause))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed());
        };
        let mut process = Self { child, stdin, frames: Frames::new(stdout), _spill: spill };
        match timeout(START_MAX, process.frames.next()).await {
            Ok(Ok(Some((Kind::Ready, _)))) => Ok(process),
            Ok(Ok(Some((Kind::Failed, bytes)))) => {
                process.end().await;
                Err(told(&bytes))
            }
            _ => {
                let status = process.end().await;
                Err(failed().detail(said(status)))
            }
        }
    }

    /// Ends it, and waits until it has.
    pub(super) async fn end(&mut self) -> Option<ExitStatus> {
        // One that has ended cannot be killed.
        let _ = self.child.start_kill();
        self.child.wait().await.ok()
    }

    /// Comes back when it has ended by itself.
    pub(super) async fn gone(&mut self) {
        // It says nothing that it was not asked.
        let _ = self.frames.next().await;
    }

    /// Has a job done; why it cannot have another, if so.
    pub(super) async fn answer(&mut self, job: Job) -> Option<Why> {
        let Job { request, reply } = job;
        // Whoever was to get it may have gone while it waited.
        if reply.send(Ok(Part::Taken)).await.is_err() {
            return None;
        }
        let ended = self.carry_out(&request, &reply).await;
        // Others wait for no more than this.
        drop(reply);
        match ended {
            Ended::Failed(ErrorCode::QueryLimit | ErrorCode::QueryFailed | ErrorCode::Internal) => {
                Some(Why::Failed)
            }
            Ended::Well | Ended::Failed(_) => self.readied(READY_MAX, Why::Worn).await,
            Ended::Unasked => None,
            Ended::Abandoned => self.readied(GRACE, Why::Cancelled).await,
            Ended::Lost => Some(Why::Crashed),
        }
    }

    async fn carry_out(&mut self, request: &[u8], reply: &Reply) -> Ended {
        let mut asked = false;
        loop {
            // No faster than the parts are taken.
            let Ok(place) = reply.reserve().await else {
                return if asked { Ended::Abandoned } else { Ended::Unasked };
            };
            if !asked && self.ask(request).await.is_err() {
                place.send(Err(self.lost().await));
                return Ended::Lost;
            }
            asked = true;
            let frame = tokio::select! {
                frame = self.frames.next() => frame,
                () = reply.closed() => return Ended::Abandoned,
            };
            let part = match frame {
                Ok(Some((Kind::Rows, bytes))) => rows(&bytes),
                Ok(Some((Kind::Known, bytes))) => known(&bytes),
                Ok(Some((Kind::End, _))) => {
                    place.send(Ok(Part::End));
                    return Ended::Well;
                }
                Ok(Some((Kind::Failed, bytes))) => Err(told(&bytes)),
                Ok(Some((Kind::Ready, _)) | None) | Err(_) => {
                    place.send(Err(self.lost().await));
                    return Ended::Lost;
                }
            };
            let failed = part.as_ref().err().map(Error::code);
            place.send(part);
            if let Some(code) = failed {
                return Ended::Failed(code);
            }
        }
    }

    async fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        let length = u32::try_from(request.len()).map_err(io::Error::other)?;
        self.stdin.write_all(&length.to_le_bytes()).await?;
        self.stdin.write_all(request).await?;
        self.stdin.flush().await
    }

    /// What became of a query whose process is gone.
    async fn lost(&mut self) -> Error {
        let status = self.end().await;
        let message =
            "the query ended its process: it needed too much memory, or it is nested too deeply";
        Error::new(ErrorCode::QueryLimit, message).detail(said(status)).hint(
            "ask for less (filter, aggregate), or write a simpler query; [limits] \
             query_process_memory_mb says how much memory there is",
        )
    }

    /// Passes over what is left of an answer; `otherwise` where it is not ready for the next in time.
    async fn readied(&mut self, within: Duration, otherwise: Why) -> Option<Why> {
        let rest = async {
            loop {
                match self.frames.next().await {
                    Ok(Some((Kind::Ready, _))) => return true,
                    Ok(Some((Kind::Rows | Kind::Known | Kind::End, _))) => {}
                    Ok(Some((Kind::Failed, _)) | None) | Err(_) => return false,
                }
            }
        };
        let is_ready = timeout(within, rest).await.unwrap_or(false);
        (!is_ready).then_some(otherwise)
    }
}

fn said(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "nobody knows how it ended".to_owned(), |status| status.to_string())
}

fn told(bytes: &[u8]) -> Error {
    match serde_json::from_slice::<Told>(bytes) {
        Ok(told) => told.into_error(),
        Err(cause) => frames::broken("no error").caused_by(cause),
    }
}

fn known(bytes: &[u8]) -> Result<Part> {
    let known = serde_json::from_slice(bytes);
    known.map(Part::Known).map_err(|cause| frames::broken("no parameters").caused_by(cause))
}

fn rows(bytes: &[u8]) -> Result<Part> {
    let (schema, batch) = frames::read(bytes)?;
    Ok(batch.map_or(Part::Schema(schema), Part::Batch))
}

/// What a process says, frame by frame.
struct Frames {
    from: ChildStdout,
    /// What has come of the next frame.
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    body: Vec<u8>,
}

impl Frames {
    fn new(from: ChildStdout) -> Self {
        Self { from, head: [0; HEAD_BYTES], head_bytes: 0, body: Vec::new() }
    }

    /// The next one; `None` at the end. May be dropped and called again.
    async fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        while self.head_bytes < HEAD_BYTES {
            match self.from.read(&mut self.head[self.head_bytes..]).await? {
                0 => return Ok(None),
                bytes => self.head_bytes += bytes,
            }
        }
        let Some((kind, length)) = frames::of_head(self.head) else {
            return Err(io::Error::other("it is no frame"));
        };
        self.body.reserve_exact(length - self.body.len());
        while self.body.len() < length {
            let rest = (length - self.body.len()) as u64;
            if (&mut self.from).take(rest).read_buf(&mut self.body).await? == 0 {
                return Ok(None);
            }
        }
        self.head_bytes = 0;
        Ok(Some((kind, std::mem::take(&mut self.body))))
    }
}
