//! Who keeps states by name, and who keeps a table's metadata small.

use polder_core::ErrorCode;
use polder_lake::MetadataRequest;

use super::workers::{Worker, ids_at};
use super::{METADATA_LOG_MAX, RETENTION};

/// What the names of pins begin with.
pub(super) const PIN: &str = "pin-";
/// Longer than a reader of a state has any use for its metadata file.
const METADATA_MS_MIN: i64 = 20_000;
/// Looks at what is pinned; together longer than what is not pinned stays.
const LOOKS: u64 = 4;

impl Worker {
    /// Pins states, and finds their rows as long as they are pinned, whatever happens to the table.
    pub(super) async fn pin(mut self) {
        let mut number = 0;
        while self.goes_on() {
            self.pause(300).await;
            number += 1;
            let name = format!("{PIN}{number}");
            let snapshot = self.now().await.current_snapshot().expect("current").id;
            let pinned = self.lake().pin(&self.world.org, &self.world.table, &name, snapshot).await;
            match pinned {
                Ok(_) => self.look_at(&name, snapshot).await,
                // It was rolled back and expired before it had its name.
                Err(error) if error.code() == ErrorCode::LakeNotFound => continue,
                Err(error) => assert!(error.retryable(), "{error:?}"),
            }
            // Also one whose answer was lost.
            let released = self.lake().release_pin(&self.world.org, &self.world.table, &name).await;
            if let Err(error) = released {
                assert!(error.retryable(), "{error:?}");
            }
        }
    }

    async fn look_at(&mut self, name: &str, snapshot: i64) {
        for _ in 0..LOOKS {
            let now = self.now().await;
            assert_eq!(now.resolve(name).expect("pinned"), snapshot);
            let found = ids_at(&now, Some(snapshot)).await.expect("a pinned state is kept");
            let wanted: Vec<i64> = self.world.ledger.rows(snapshot).iter().copied().collect();
            assert_eq!(found, wanted, "a pinned state has the rows of its commits");
            if !self.goes_on() {
                return;
            }
            self.pause(RETENTION.history_ms as u64 / 2).await;
        }
    }

    /// Old metadata goes, and manifests are merged.
    pub(super) async fn tidy_metadata(mut self) {
        let request = MetadataRequest {
            files: METADATA_LOG_MAX,
            older_than_ms: METADATA_MS_MIN,
            dry_run: false,
        };
        while self.goes_on() {
            self.pause(400).await;
            let now = self.now().await;
            let done =
                self.lake().tidy_metadata(&self.world.org, &self.world.table, &request).await;
            if let Err(error) = done {
                // The state's manifests may be gone with it.
                assert!(error.retryable() || !self.is_current(&now).await, "{error:?}");
            }
        }
    }
}
