//! Connections that this process has to its sources: how many one org may have to one source, and how
//! many all of them may.
//!
//! A read waits for its first connection; further ones it takes if they are free, and else reads with
//! fewer. So nobody waits for a connection who holds one, but a query that names several tables, and that
//! gives up after a while.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use polder_core::{ConnectionLimits, Error, ErrorCode, OrgId, ReadRequest, Result, RunProgress};

use crate::postgres::Resting;
use crate::shares::{Share, Shares, told};

/// How long whoever asks a source what it has waits for a connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// The connections of a process, of all its sources.
pub struct Connections {
    of_orgs: Arc<Shares<(OrgId, String)>>,
    of_sources: Arc<Shares<String>>,
    resting: Arc<Resting>,
}

impl Connections {
    /// None are open yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            of_orgs: Shares::new(),
            of_sources: Shares::new(),
            resting: Arc::default(),
        })
    }

    /// What an org's runs have open now, by source.
    pub fn of_org(&self, org: &OrgId) -> BTreeMap<String, usize> {
        let held = self.of_orgs.held(|(of, _)| of == org);
        held.into_iter().map(|((_, source), open)| (source, open)).collect()
    }
}

/// A connection that may be open until this is dropped.
pub(crate) struct Connection {
    _of_org: Option<Share<(OrgId, String)>>,
    _of_source: Share<String>,
}

/// The way to one source.
#[derive(Clone)]
pub(crate) struct Line {
    source: String,
    /// Of the whole process.
    max: Option<u32>,
    all: Arc<Connections>,
}

impl Line {
    pub(crate) fn new(source: &str, all: &Arc<Connections>, max: Option<NonZeroU32>) -> Self {
        Self { source: source.to_owned(), max: max.map(NonZeroU32::get), all: Arc::clone(all) }
    }

    /// Waits for the connection that a read begins with.
    ///
    /// # Errors
    /// `source.unavailable` when none is free for longer than the request waits.
    pub(crate) async fn wait(&self, request: &ReadRequest) -> Result<Connection> {
        let ConnectionLimits { of_org, patience } = request.connections;
        self.within(patience, self.first(&request.org, of_org, &request.progress)).await
    }

    /// Waits for the connection of one who asks what there is.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub(crate) async fn wait_to_ask(&self) -> Result<Connection> {
        let taking = async {
            let key = self.source.clone();
            let of_source = self.all.of_sources.take(key, 1, self.max).await;
            Connection { _of_org: None, _of_source: of_source }
        };
        self.within(Some(PATIENCE), taking).await
    }

    /// A further connection for a read that has one, if it is free. A query leaves it to the other tables
    /// that it may name, where there is a limit.
    pub(crate) fn another(&self, request: &ReadRequest) -> Option<Connection> {
        let ConnectionLimits { of_org, patience } = request.connections;
        if patience.is_some() && self.max.is_some() {
            return None;
        }
        let key = (request.org.clone(), self.source.clone());
        let of_org = self.all.of_orgs.take_free(key, 1, of_org)?;
        let of_source = self.all.of_sources.take_free(self.source.clone(), 1, self.max)?;
        Some(Connection { _of_org: Some(of_org), _of_source: of_source })
    }

    /// PostgreSQL's sessions that are open and serve nobody.
    pub(crate) fn resting(&self) -> &Arc<Resting> {
        &self.all.resting
    }

    /// How many connections to the source may be open beside those that serve somebody; `None` where there is no limit.
    pub(crate) fn room(&self) -> Option<usize> {
        let held = self.all.of_sources.held(|source| *source == self.source);
        let held: usize = held.into_iter().map(|(_, held)| held).sum();
        self.max.map(|max| (max as usize).saturating_sub(held))
    }

    /// Always the org's part first, then the source's.
    async fn first(&self, org: &OrgId, max: Option<u32>, progress: &RunProgress) -> Connection {
        let source = &self.source;
        let taking = self.all.of_orgs.take((org.clone(), source.clone()), 1, max);
        let of_org = told(taking, progress, || {
            format!("a connection to {source}: the org has all of its {}", max.unwrap_or_default())
        })
        .await;
        let taking = self.all.of_sources.take(source.clone(), 1, self.max);
        let of_source = told(taking, progress, || {
            let max = self.max.unwrap_or_default();
            format!("a connection to {source}: all {max} of this process are in use")
        })
        .await;
        Connection { _of_org: Some(of_org), _of_source: of_source }
    }

    async fn within(
        &self,
        patience: Option<Duration>,
        taking: impl Future<Output = Connection>,
    ) -> Result<Connection> {
        let Some(patience) = patience else { return Ok(taking.await) };
        tokio::time::timeout(patience, taking).await.map_err(|_| {
            let (source, seconds) = (&self.source, patience.as_secs());
            let message = format!("no connection to source {source} was free within {seconds} s");
            Error::new(ErrorCode::SourceUnavailable, message).hint(format!(
                "try again later, or raise max_connections of [sources.{source}]; a query needs one \
                 for each table of the source that it names"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use futures::FutureExt;
    use polder_core::Predicate;
    use polder_core::spec::{FormatOptions, OnUnrepresentable};
    use tokio::task::{JoinSet, yield_now};

    use super::*;

    fn read(org: &str, of_org: Option<u32>) -> ReadRequest {
        ReadRequest {
            org: org.parse().expect("id"),
            from: "t".to_owned(),
            filter: None,
            predicate: Predicate::True,
            columns: None,
            cursor: None,
            snapshot_read: None,
            key: Vec::new(),
            objects_read: BTreeMap::new(),
            known_schema: None,
            types: BTreeMap::new(),
            on_unrepresentable: OnUnrepresentable::Error,
            format: FormatOptions::default(),
            splits_max: NonZeroUsize::MIN,
            batch_bytes: 1,
            connections: ConnectionLimits { of_org, patience: None },
            progress: Arc::default(),
        }
    }

    fn line(all: &Arc<Connections>, max: u32) -> Line {
        Line::new("revdb", all, NonZeroU32::new(max))
    }

    #[tokio::test]
    async fn an_org_has_its_own_and_all_together_those_of_the_process() {
        let all = Connections::new();
        let line = line(&all, 3);
        let (one, two) = (read("1", Some(2)), read("2", None));
        let first = line.wait(&one).await.expect("first");
        let second = line.another(&one).expect("second");
        assert!(line.another(&one).is_none(), "an org has two");
        let other = line.wait(&two).await.expect("another org's");
        assert!(line.another(&two).is_none(), "the process has three");
        assert_eq!(all.of_org(&one.org), BTreeMap::from([("revdb".to_owned(), 2)]));
        assert!(line.wait(&one).now_or_never().is_none());
        assert!(line.wait(&two).now_or_never().is_none());
        let elsewhere = Line::new("conversations", &all, None);
        assert!(elsewhere.wait(&one).now_or_never().is_some(), "sources are apart");
        drop((first, second));
        assert!(line.wait(&one).now_or_never().is_some());
        drop(other);
        assert!(all.of_org(&one.org).is_empty() && all.of_org(&two.org).is_empty());
    }

    #[tokio::test]
    async fn what_is_waited_for_is_told() {
        let all = Connections::new();
        let line = line(&all, 1);
        let (held, waits) = (read("1", Some(1)), read("1", Some(1)));
        let first = line.wait(&held).await.expect("first");
        let mut tasks = JoinSet::new();
        let (own, progress) = (line.clone(), Arc::clone(&waits.progress));
        tasks.spawn(async move { own.wait(&waits).await.map(drop) });
        for _ in 0..20 {
            yield_now().await;
        }
        let told = progress.snapshot().waiting_for.expect("it waits");
        assert_eq!(told, "a connection to revdb: the org has all of its 1");
        let other = read("2", None);
        assert!(line.wait(&other).now_or_never().is_none());
        let told = other.progress.snapshot().waiting_for.expect("it waits");
        assert_eq!(told, "a connection to revdb: all 1 of this process are in use");
        drop(first);
        tasks.join_all().await.into_iter().for_each(|ended| ended.expect("taken"));
        assert_eq!(progress.snapshot().waiting_for, None);
    }

    #[tokio::test]
    async fn a_query_gives_up_and_leaves_connections_for_its_other_tables() {
        let all = Connections::new();
        let line = line(&all, 2);
        let patience = Some(Duration::from_millis(20));
        let mut query = read("1", None);
        query.connections.patience = patience;
        let _first = line.wait(&query).await.expect("the first table");
        assert!(line.another(&query).is_none());
        let _second = line.wait(&query).await.expect("the second table");
        let error = line.wait(&query).await.err().expect("a third");
        assert_eq!(error.code(), ErrorCode::SourceUnavailable);
        assert!(error.hint_text().expect("hint").contains("[sources.revdb]"), "{error}");
        let unlimited = Line::new("revdb", &Connections::new(), None);
        assert!(unlimited.another(&query).is_some());
    }

    /// Runs that need memory of their org and connections to two limits: none waits for ever.
    #[tokio::test(flavor = "multi_thread")]
    async fn runs_that_need_memory_and_connections_all_end() {
        let (all, memory) = (Connections::new(), Shares::<OrgId>::new());
        let mut tasks = JoinSet::new();
        for number in 0..200_u32 {
            let line = line(&all, 3);
            let memory = Arc::clone(&memory);
            tasks.spawn(async move {
                let request = read(if number % 2 == 0 { "1" } else { "2" }, Some(2));
                let _memory = memory.take(request.org.clone(), number % 3 + 1, Some(4)).await;
                let first = line.wait(&request).await.expect("a connection");
                let second = line.another(&request);
                yield_now().await;
                drop(first);
                yield_now().await;
                drop(second);
                // Another read of the same run.
                drop(line.wait(&request).await.expect("a connection"));
            });
        }
        let all_ended = tokio::time::timeout(Duration::from_mins(1), tasks.join_all()).await;
        assert_eq!(all_ended.expect("none waits for ever").len(), 200);
        assert!(memory.held(|_| true).is_empty());
        assert!(all.of_sources.held(|_| true).is_empty() && all.of_orgs.held(|_| true).is_empty());
    }
}
