//! The time and the ids that queue and scheduler go by, as a value they are given: the system's in
//! the product, a simulated one in tests.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

/// Where times and ids come from. Cheap to clone.
#[derive(Clone)]
pub struct Clock {
    now_ms: Arc<dyn Fn() -> i64 + Send + Sync>,
    id: Arc<dyn Fn() -> Uuid + Send + Sync>,
}

impl Clock {
    /// The machine's own.
    pub fn system() -> Self {
        Self {
            now_ms: Arc::new(|| chrono::Utc::now().timestamp_millis()),
            id: Arc::new(Uuid::now_v7),
        }
    }

    /// One that somebody else turns. Ids have to grow with time, as those of the system do.
    pub fn of(
        now_ms: impl Fn() -> i64 + Send + Sync + 'static,
        id: impl Fn() -> Uuid + Send + Sync + 'static,
    ) -> Self {
        Self { now_ms: Arc::new(now_ms), id: Arc::new(id) }
    }

    /// Milliseconds since the epoch.
    pub fn now_ms(&self) -> i64 {
        (self.now_ms)()
    }

    /// An id that nothing has yet.
    pub fn id(&self) -> Uuid {
        (self.id)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
