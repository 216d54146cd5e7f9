//! What every catalog has to keep, whoever's it is: one suite, run over the embedded catalog (here on
//! `SQLite`, in `service` on PostgreSQL) and over external ones.
//!
//! [`metadata`] speaks to the catalog itself, [`runs`] to the lake over it. Each call works in orgs of
//! its own, so that servers which others use too can be tested.

mod metadata;
mod runs;

use std::sync::Arc;

use polder_core::{Authorized, OrgId};
use polder_lake::{Catalog, Lake, SqlCatalog, Store};
use uuid::Uuid;

use crate::support::*;

/// What a catalog is known not to offer. Everything else is tested.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Table names are of lower-case letters, digits and `_` only.
    pub(crate) plain_names: bool,
    /// Of several that create one table or namespace at the same moment, each is told that it did.
    pub(crate) creators_race: bool,
}

/// Runs the suite. `catalog` is the one that `lake` works with, or another connection to it.
pub(crate) async fn keeps_its_word(lake: &Lake, catalog: Arc<dyn Catalog>) {
    keeps_its_word_within(lake, catalog, Limits::default()).await;
}

pub(crate) async fn keeps_its_word_within(lake: &Lake, catalog: Arc<dyn Catalog>, limits: Limits) {
    metadata::namespaces_are_kept(&*catalog).await;
    if !limits.creators_race {
        metadata::of_two_that_make_a_namespace_one_wins(&catalog).await;
    }
    let bench = metadata::Bench::new(lake, catalog).await;
    bench.a_table_is_made_as_it_was_sent().await;
    bench.a_forgotten_name_is_free().await;
    bench.stale_requirements_are_refused().await;
    bench.shapes_change_and_come_back().await;
    bench.properties_branches_and_tags_change().await;
    bench.snapshots_go_and_take_no_name_with_them().await;
    bench.of_writers_that_race_one_wins().await;
    if !limits.creators_race {
        bench.of_creators_that_race_one_wins().await;
    }
    runs::a_table_lives(lake).await;
    runs::columns_and_partitions_change(lake).await;
    runs::versions_come_and_go(lake).await;
    runs::concurrent_runs_all_get_in_once(lake).await;
    runs::orgs_see_their_own(lake).await;
    runs::names_are_kept(lake, limits).await;
}

/// An org that nobody else has.
pub(crate) fn new_org() -> Authorized<OrgId> {
    org(&format!("c{}", Uuid::new_v4().simple()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_catalog_on_sqlite_keeps_its_word() {
    let scratch = Scratch::new().await;
    let settings = Scratch::settings(&scratch.folder);
    let store = Store::open(&settings).expect("store");
    let catalog: SqlCatalog = Scratch::catalog(&settings, store).await;
    keeps_its_word(&scratch.lake, Arc::new(catalog)).await;
}
