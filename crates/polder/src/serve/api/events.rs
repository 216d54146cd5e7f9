//! A run as it goes on: server-sent events, until it has ended.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::slice::from_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use polder_control::queue::{self, QueuedRun};
use polder_core::{Authorized, OrgId, Right};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::gate::Who;
use super::orgs::effective;
use super::paging::Named;
use super::problem::{Problem, Reply};
use super::runs::{Run, no_run, waiting};

/// How often the store is asked; what a run says of itself changes once a second.
const LOOK: Duration = Duration::from_millis(500);

/// One event: `event: progress` while the run waits or works, `event: ended` as the last one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunEvent {
    run: Run,
    /// Stage and counters, as the server that works on it said last; null while it waits.
    #[schema(value_type = Option<Object>)]
    progress: Option<Value>,
}

/// Somebody who watches.
struct Watch {
    api: Api,
    org: Authorized<OrgId>,
    run: Uuid,
    /// What was sent last.
    sent: String,
    over: bool,
    _place: Place,
}

/// Watchers of runs at one time, and of them those of one caller.
const WATCHERS_MAX: usize = 200;
const WATCHERS_OF_ONE_MAX: usize = 20;

/// How many watch runs, by caller.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<BTreeMap<String, usize>>);

/// A watcher's place, until it is dropped.
struct Place {
    watchers: Arc<Watchers>,
    caller: String,
}

impl Watchers {
    fn by_caller(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if the caller has not as many as one may and all together have not.
    fn take(self: &Arc<Self>, caller: String) -> Option<Place> {
        let mut by_caller = self.by_caller();
        let own = by_caller.get(&caller).copied().unwrap_or_default();
        if own >= WATCHERS_OF_ONE_MAX || by_caller.values().sum::<usize>() >= WATCHERS_MAX {
            return None;
        }
        by_caller.insert(caller.clone(), own + 1);
        Some(Place { watchers: Arc::clone(self), caller })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_caller = self.watchers.by_caller();
        match by_caller.get_mut(&self.caller) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                by_caller.remove(&self.caller);
            }
        }
    }
}

/// Watch a run: an event for each change, the last one when it has ended.
#[utoipa::path(get, path = "/v1/orgs/{org}/runs/{run}/events", tag = "runs",
    params(("org" = String, Path, description = "The org's id."),
           ("run" = String, Path, description = "The run's id.")),
    responses((status = 200, body = RunEvent, content_type = "text/event-stream")))]
pub(super) async fn watch(
    State(api): State<Api>,
    who: Who,
    Named((org, run)): Named<(String, String)>,
) -> Reply<Response> {
    let org = who.org(&org, Right::Read)?;
    effective(&api, &org).await?;
    let id = Uuid::try_parse(&run).map_err(|_| no_run(&run))?;
    queue::run(&api.store, &org, id).await?.ok_or_else(|| no_run(&run))?;
    let place = api.watchers.take(who.0.who());
    let place = place.ok_or_else(|| Problem::too_many(Duration::from_secs(5)))?;
    let watch = Watch { api, org, run: id, sent: String::new(), over: false, _place: place };
    let events = stream::unfold(watch, |watch| Box::pin(next(watch)));
    Ok(Sse::new(events)
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
        .into_response())
}

/// Waits for a change. Ends after the run has, when the server stops, and when the run can no longer
/// be read.
async fn next(mut watch: Watch) -> Option<(Result<Event, Infallible>, Watch)> {
    while !watch.over {
        let found = queue::run(&watch.api.store, &watch.org, watch.run).await;
        let Ok(Some(found)) = found else { return None };
        let Ok((data, over)) = event(&watch, &found).await else { return None };
        if data != watch.sent {
            let name = if over { "ended" } else { "progress" };
            let event = Event::default().event(name).data(&data);
            (watch.sent, watch.over) = (data, over);
            return Some((Ok(event), watch));
        }
        tokio::select! {
            () = watch.api.stop.cancelled() => return None,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    None
}

/// The event's document, and whether it is the last one.
async fn event(watch: &Watch, found: &QueuedRun) -> polder_core::Result<(String, bool)> {
    let mut run = Run::from(found);
    waiting(&watch.api.store, &watch.org, from_mut(&mut run)).await?;
    let over = run.has_ended();
    let progress = found.progress.as_deref().and_then(|text| serde_json::from_str(text).ok());
    // Texts and numbers always become JSON.
    Ok((serde_json::to_string(&RunEvent { run, progress }).unwrap_or_default(), over))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_caller_takes_every_watchers_place() {
        let watchers = Arc::new(Watchers::default());
        let take = |caller: &str| watchers.take(caller.to_owned());
        let mut places: Vec<Place> = (0..30).filter_map(|_| take("key:a")).collect();
        assert_eq!(places.len(), WATCHERS_OF_ONE_MAX);
        places.pop();
        assert!(take("key:a").is_some(), "a place that was left");
        for caller in 0..30 {
            places.extend((0..20).filter_map(|_| take(&format!("key:{caller}"))));
        }
        assert_eq!(places.len(), WATCHERS_MAX);
        places.clear();
        assert!(watchers.by_caller().is_empty(), "nothing is remembered");
    }
}
