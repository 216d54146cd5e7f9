//! An object store that fails at one place of its choice: before or after an operation, for once or
//! for long.

use std::fmt::{self, Display};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Completing an upload of parts counts as one.
    Put,
    Part,
    Get,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 503, and nothing was done.
    Before,
    /// It was done, and the answer is lost.
    After,
    /// Half of the object is there, and the answer is lost.
    Half,
    /// 404, of an object that is there.
    Missing,
    Slow,
    /// Nothing was done, and the process dies: [`FaultyObjects::died`].
    DiesBefore,
    /// It was done, and the process dies.
    DiesAfter,
}

/// Which calls fail, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) op: Op,
    /// Calls of this kind that go well first.
    pub(crate) after: usize,
    pub(crate) times: usize,
    pub(crate) fault: Fault,
}

const SLOW: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct FaultyObjects {
    inner: Arc<dyn ObjectStore>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    plan: Mutex<Option<Plan>>,
    calls: Mutex<[usize; 4]>,
    /// The objects that the plan has met.
    met: Mutex<Vec<Path>>,
    /// Uploads of parts neither completed nor given up.
    uploads: AtomicUsize,
    death: Notify,
}

impl FaultyObjects {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// Counts anew, and fails by the plan from now on.
    pub(crate) fn plan(&self, plan: Option<Plan>) {
        *self.state.plan.lock().expect("plan") = plan;
        *self.state.calls.lock().expect("calls") = [0; 4];
        self.state.met.lock().expect("met").clear();
    }

    pub(crate) fn calls(&self, op: Op) -> usize {
        self.state.calls.lock().expect("calls")[op as usize]
    }

    pub(crate) fn met(&self) -> Vec<Path> {
        self.state.met.lock().expect("met").clone()
    }

    /// Ends when a call has met its death. It never ends itself, and has to be dropped.
    pub(crate) async fn died(&self) {
        self.state.death.notified().await;
    }

    pub(crate) fn uploads(&self) -> usize {
        self.state.uploads.load(Ordering::SeqCst)
    }
}

impl State {
    /// What is to happen to this call.
    async fn meet(&self, op: Op, path: &Path) -> Option<Fault> {
        let number = {
            let mut calls = self.calls.lock().expect("calls");
            calls[op as usize] += 1;
            calls[op as usize] - 1
        };
        let plan = self.plan.lock().expect("plan").filter(|plan| plan.op == op)?;
        if !(plan.after..plan.after.saturating_add(plan.times)).contains(&number) {
            return None;
        }
        self.met.lock().expect("met").push(path.clone());
        match plan.fault {
            Fault::Slow => {
                tokio::time::sleep(SLOW).await;
                None
            }
            Fault::DiesBefore => self.die().await,
            fault => Some(fault),
        }
    }

    async fn die<T>(&self) -> T {
        self.death.notify_one();
        std::future::pending().await
    }
}

fn failed() -> Error {
    Error::Generic { store: "faulty", source: "503".into() }
}

/// The first half of what was to be written.
fn half(payload: PutPayload) -> PutPayload {
    let whole = Bytes::from(payload);
    whole.slice(..whole.len() / 2).into()
}

impl Display for FaultyObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyObjects {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        match self.state.meet(Op::Put, path).await {
            None => self.inner.put_opts(path, payload, options).await,
            Some(Fault::After) => {
                self.inner.put_opts(path, payload, options).await.and(Err(failed()))
            }
            Some(Fault::DiesAfter) => {
                self.inner.put_opts(path, payload, options).await?;
                self.state.die().await
            }
            Some(Fault::Half) => {
                self.inner.put_opts(path, half(payload), options).await.and(Err(failed()))
            }
            Some(_) => Err(failed()),
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(path, options).await?;
        self.state.uploads.fetch_add(1, Ordering::SeqCst);
        let (path, state) = (path.clone(), Arc::clone(&self.state));
        Ok(Box::new(Upload { inner, path, state, open: true }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        match self.state.meet(Op::Get, path).await {
            None => self.inner.get_opts(path, options).await,
            Some(Fault::Missing) => {
                Err(Error::NotFound { path: path.to_string(), source: "404".into() })
            }
            Some(_) => Err(failed()),
        }
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        match self.state.meet(Op::Get, path).await {
            None => self.inner.get_ranges(path, ranges).await,
            Some(_) => Err(failed()),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (inner, state) = (Arc::clone(&self.inner), Arc::clone(&self.state));
        let removed = paths.then(move |path| {
            let (inner, state) = (Arc::clone(&inner), Arc::clone(&state));
            async move {
                let path = path?;
                match state.meet(Op::Delete, &path).await {
                    None => inner.delete(&path).await.map(|()| path),
                    Some(Fault::After) => inner.delete(&path).await.and(Err(failed())),
                    Some(Fault::DiesAfter) => {
                        inner.delete(&path).await?;
                        state.die().await
                    }
                    Some(_) => Err(failed()),
                }
            }
        });
        removed.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct Upload {
    inner: Box<dyn MultipartUpload>,
    path: Path,
    state: Arc<State>,
    open: bool,
}

impl Upload {
    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            self.state.uploads.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (path, state) = (self.path.clone(), Arc::clone(&self.state));
        let part = self.inner.put_part(data);
        Box::pin(async move {
            match state.meet(Op::Part, &path).await {
                None => part.await,
                Some(_) => Err(failed()),
            }
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        match self.state.meet(Op::Put, &self.path.clone()).await {
            Some(Fault::After) => {
                self.end();
                self.inner.complete().await.and(Err(failed()))
            }
            Some(_) => Err(failed()),
            None => {
                self.end();
                self.inner.complete().await
            }
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.end();
        self.inner.abort().await
    }
}
