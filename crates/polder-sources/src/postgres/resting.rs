//! Sessions that have read what they were opened for, kept for a moment for whoever asks the same database next: a run
//! of many small tables would else spend most of its time with logging in.
//!
//! The transaction of one read is over before the next, and role, settings, locks and temporary tables are as after the
//! login. A session rests in no transaction and under no org's name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::link::Link;

/// How long a session rests before it is closed.
const REST: Duration = Duration::from_secs(2);
/// How long one is used in all: what the server's process knows of tables takes memory, and a role's login may be
/// taken away.
const AGE_MAX: Duration = Duration::from_mins(5);
/// Resting sessions of a source: about as many as runs begin at the same time.
const OF_SOURCE_MAX: usize = 8;

/// Whose session it is: another address, were it only another password, is another one.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) source: String,
    pub(super) url: Arc<SecretString>,
    /// `None` for the database of the address.
    pub(super) database: Option<String>,
}

impl PartialEq for Home {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
            && self.database == other.database
            && self.url.expose_secret() == other.url.expose_secret()
    }
}

/// The resting sessions of a process.
#[derive(Default)]
pub(crate) struct Resting {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Those that came last are at the end.
    links: Vec<Rested>,
    /// Closes those that have rested long enough, while there are some.
    closing: JoinSet<()>,
    /// Whether it will look again.
    watched: bool,
}

struct Rested {
    home: Home,
    since: Instant,
    link: Link,
}

impl Resting {
    /// The session that came last.
    pub(super) fn take(&self, home: &Home) -> Option<Link> {
        let mut kept = self.kept();
        let at = kept.links.iter().rposition(|rested| rested.home == *home)?;
        Some(kept.links.remove(at).link)
    }

    /// Keeps a session, or gives it back if it was used for long enough. Gives back others for which there is no
    /// room.
    pub(super) fn put(self: &Arc<Self>, home: &Home, link: Link) -> Vec<Link> {
        if link.opened.elapsed() > AGE_MAX {
            return vec![link];
        }
        let mut kept = self.kept();
        kept.links.push(Rested { home: home.clone(), since: Instant::now(), link });
        let left = kept.beyond(&home.source, OF_SOURCE_MAX);
        while kept.closing.try_join_next().is_some() {}
        // It also ends with the runtime that it was begun on.
        if !kept.watched || kept.closing.is_empty() {
            kept.watched = true;
            kept.closing.spawn_on(watch(Arc::downgrade(self)), &Handle::current());
        }
        left
    }

    /// Takes those of a source for which there is no room, the oldest ones first.
    pub(super) fn beyond(&self, source: &str, room: usize) -> Vec<Link> {
        self.kept().beyond(source, room)
    }

    /// Takes all, of whatever source.
    pub(super) fn all(&self) -> Vec<Link> {
        self.kept().links.drain(..).map(|rested| rested.link).collect()
    }

    /// Those that have rested long enough, and whether there are others.
    fn rested(&self) -> (Vec<Link>, bool) {
        let mut kept = self.kept();
        let over = kept.links.extract_if(.., |rested| rested.since.elapsed() >= REST);
        let over = over.map(|rested| rested.link).collect();
        kept.watched = !kept.links.is_empty();
        (over, kept.watched)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn watch(resting: Weak<Resting>) {
    loop {
        tokio::time::sleep(REST / 4).await;
        let Some((over, more)) = resting.upgrade().map(|resting| resting.rested()) else { return };
        for link in over {
            link.close().await;
        }
        if !more {
            return;
        }
    }
}

impl Kept {
    fn beyond(&mut self, source: &str, room: usize) -> Vec<Link> {
        let own = self.links.iter().filter(|rested| rested.home.source == source).count();
        let mut over = own.saturating_sub(room);
        let taken = self.links.extract_if(.., |rested| {
            let goes = over > 0 && rested.home.source == source;
            over -= usize::from(goes);
            goes
        });
        taken.map(|rested| rested.link).collect()
    }
}
