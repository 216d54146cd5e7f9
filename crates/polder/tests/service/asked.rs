//! An engine over a lake in a folder and over sources, and its answers as text.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use polder_core::{Engine, Error, Principal, Session, Source};
use polder_lake::{CatalogSettings, Lake, LakeSettings};
use polder_query::{DataFusionEngine, DataFusionSettings};

pub(super) struct Asked(DataFusionEngine);

impl Asked {
    /// Over the lake in `folder`, with the catalog in the file `catalog` there, and the sources by name.
    pub(super) async fn new(
        folder: &Path,
        catalog: &str,
        sources: impl IntoIterator<Item = (&'static str, Arc<dyn Source>)>,
    ) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        let settings = LakeSettings {
            warehouse: file("lake"),
            catalog: CatalogSettings::Sql(format!("sqlite://{}", file(catalog)).into()),
            s3: None,
        };
        let lake = Lake::open(settings).await.expect("lake");
        let sources: BTreeMap<_, _> = sources.into_iter().collect();
        let settings = DataFusionSettings {
            memory_bytes: 512 << 20,
            threads: 2,
            spill_dir: folder.join("spill"),
        };
        let open = move |name: &str| Ok(sources.get(name).cloned());
        let engine = DataFusionEngine::with_sources(&lake, Arc::new(open), settings);
        Self(engine.expect("engine"))
    }

    /// The rows as text; sorted, unless the query says an order.
    pub(super) async fn rows(
        &self,
        sql: &str,
        principal: Principal,
        pushdown: bool,
    ) -> Result<Vec<String>, Error> {
        let session = Session {
            principal,
            rows_max: None,
            memory_bytes_max: 256 << 20,
            snapshots: BTreeMap::default(),
            pushdown,
        };
        let batches: Vec<_> = self.0.query(sql, &session).await?.batches.try_collect().await?;
        let options = FormatOptions::new().with_null("∅");
        let mut rows = Vec::new();
        for batch in &batches {
            let columns: Vec<_> = batch
                .columns()
                .iter()
                .map(|column| ArrayFormatter::try_new(column, &options).expect("formats"))
                .collect();
            for row in 0..batch.num_rows() {
                let values: Vec<_> = columns.iter().map(|c| c.value(row).to_string()).collect();
                rows.push(values.join("|"));
            }
        }
        if !sql.contains("ORDER BY") {
            rows.sort();
        }
        Ok(rows)
    }
}
