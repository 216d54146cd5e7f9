//! Keeps schedules and limits in the store as the desired state has them, a page of orgs at a time: of ten
//! thousand orgs none is put together before its turn comes, nor kept when it is over.
//!
//! A look goes over what changed after the revision that the last one led to, up to the revision of its own
//! beginning, in the order of the changes. What changes meanwhile has a later revision, and is the next
//! look's: nothing is missed, and of what is seen twice the second time finds nothing to do.

use std::collections::{BTreeMap, BTreeSet};

use polder_core::spec::{OrgLimits, ProcessConfig, ScheduleSpec, TableSpec};
use polder_core::{OrgId, Principal, Result};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{BATCH, Entry, NEVER, lock, wrong};
use crate::desired::{self, EffectiveOrg, OrgDocument, PRESENT, Templates};
use crate::queue::JobKind;
use crate::store::{Store, Transaction, commit, places};

/// Orgs that are read and written together.
const PAGE: usize = 200;

/// Brings schedules and limits into the store as the desired state has them, of orgs that changed after a
/// revision; of all where none is given, or a template changed. A schedule that is new or has changed counts
/// from now; the others go on where they are. Returns the revision it has brought them to.
///
/// # Errors
/// `control.store`. An org that cannot be read does not stop the others: it has no schedules.
pub async fn follow(store: &Store, process: &ProcessConfig, since: Option<i64>) -> Result<i64> {
    let revision = desired::revision(store).await?;
    if since == Some(revision) {
        return Ok(revision);
    }
    let mut walk = Walk::begin(store, since, revision).await?;
    while walk.step(store, process, PAGE).await? {}
    Ok(revision)
}

/// A way over the orgs that changed, page by page.
pub(super) struct Walk {
    /// The last org that was seen, under the revision that it changed in.
    seen: (i64, String),
    /// The revision it leads to.
    until: i64,
    /// Over all orgs: those of which the desired state knows nothing lose what they have.
    whole: bool,
    templates: Templates,
}

impl Walk {
    /// Begins at what changed after `since`. The revision it leads to has been read before: templates are at
    /// least as new.
    pub(super) async fn begin(store: &Store, since: Option<i64>, until: i64) -> Result<Self> {
        // A store that was brought back from a copy may be older than what was known of it.
        let since = since.filter(|since| *since <= until);
        let whole = match since {
            Some(since) => desired::template_changed(store, since).await?,
            None => true,
        };
        let first = since.filter(|_| !whole).map_or(0, |since| since + 1);
        Ok(Self {
            // No org has an empty id: this stands before all that changed in the first revision.
            seen: (first, String::new()),
            until,
            whole,
            templates: desired::templates(store).await?,
        })
    }

    /// Goes on by at most `page` orgs; false at the end.
    pub(super) async fn step(
        &mut self,
        store: &Store,
        process: &ProcessConfig,
        page: usize,
    ) -> Result<bool> {
        let (revision, id) = &self.seen;
        let place = (*revision, id.as_str());
        let principal = Principal::Operator;
        let found = desired::changed(store, &principal, place, self.until, page).await?;
        let orgs: Vec<&OrgId> = found.iter().map(|(org, _)| org).collect();
        let mut difference = Difference::of(store, &orgs).await?;
        for (org, document) in &found {
            if let Some(org) = readable(process, &self.templates, org, document) {
                difference.take(&org, &process.limits);
            }
        }
        difference.write(store).await?;
        if let Some((org, document)) = found.last() {
            self.seen = (document.revision, org.to_string());
        }
        if found.len() == page {
            return Ok(true);
        }
        if self.whole {
            forget_unknown(store).await?;
        }
        Ok(false)
    }
}

/// One org that cannot be read must not stop the others.
fn readable(
    process: &ProcessConfig,
    templates: &Templates,
    org: &OrgId,
    document: &OrgDocument,
) -> Option<EffectiveOrg> {
    if !document.is_present() {
        return None;
    }
    match desired::effective(process, templates, org, document) {
        Ok(effective) => Some(effective),
        Err(error) => {
            tracing::error!(%org, "the org's tables cannot be scheduled: {error}");
            None
        }
    }
}

/// Brings schedules and limits of these orgs into the store.
#[cfg(test)]
pub(crate) async fn bring(store: &Store, orgs: &[EffectiveOrg]) -> Result<()> {
    let ids: Vec<&OrgId> = orgs.iter().map(|org| &org.org).collect();
    let mut difference = Difference::of(store, &ids).await?;
    for org in orgs {
        difference.take(org, &polder_core::spec::Limits::default());
    }
    let mut transaction = store.begin().await?;
    difference.put(&mut transaction).await?;
    commit(transaction).await
}

/// Schedules as the store has them: source and spec by org, table and kind.
type Schedules = BTreeMap<(OrgId, String, &'static str), (String, String)>;

/// An org's weight, and the most it may have: runs at a time, rows and bytes of a day, runs in one server.
type Limits = (i64, [Option<i64>; 4]);

/// What of some orgs is not in the store as the desired state has it.
struct Difference {
    now_ms: i64,
    /// What is there and was not asked for yet: it goes.
    there: Schedules,
    limits: BTreeMap<OrgId, Limits>,
    /// The revision that an org was read in.
    revisions: BTreeMap<OrgId, i64>,
    changed: Vec<Entry>,
    limits_changed: Vec<(OrgId, Limits)>,
    /// Tables of which something was said, and that are not there any more: it goes.
    judged: BTreeSet<(OrgId, String)>,
}

impl Difference {
    /// What is there of these orgs, of which nothing is wanted yet.
    async fn of(store: &Store, orgs: &[&OrgId]) -> Result<Self> {
        Ok(Self {
            now_ms: store.now_ms(),
            there: schedules(store, orgs).await?,
            limits: limits(store, orgs).await?,
            revisions: BTreeMap::new(),
            changed: Vec::new(),
            limits_changed: Vec::new(),
            judged: judged(store, orgs).await?,
        })
    }

    /// This is wanted of the org, in servers of such limits.
    fn take(&mut self, org: &EffectiveOrg, server: &polder_core::spec::Limits) {
        self.revisions.insert(org.org.clone(), org.revision);
        for table in org.tables.iter().filter(|table| org.enabled && table.spec.enabled) {
            self.judged.remove(&(org.org.clone(), table.spec.name.clone()));
            let Some(schedule) = &table.spec.schedule else { continue };
            self.table(&org.org, &table.spec, schedule);
        }
        let OrgLimits { runs, weight, rows_per_day, bytes_per_day, .. } = &org.limits;
        let most = |said: u64| i64::try_from(said).unwrap_or(i64::MAX);
        let of_day = [*rows_per_day, bytes_per_day.map(|bytes| bytes.0)];
        let [rows, bytes] = of_day.map(|said| said.map(most));
        let here = org.limits.runs_in_process(server).map(|runs| most(runs as u64));
        let wanted = (i64::from(weight.unwrap_or(1)), [runs.map(i64::from), rows, bytes, here]);
        if self.limits.get(&org.org).copied().unwrap_or((1, [None; 4])) != wanted {
            self.limits_changed.push((org.org.clone(), wanted));
        }
    }

    fn table(&mut self, org: &OrgId, table: &TableSpec, schedule: &ScheduleSpec) {
        // Made of texts.
        let spec = serde_json::to_string(schedule).unwrap_or_default();
        let validate = schedule.validate_at.is_some().then_some(JobKind::Validate);
        let maintain = schedule.maintain.is_some().then_some(JobKind::Maintain);
        for kind in [JobKind::Ingest].into_iter().chain(validate).chain(maintain) {
            let source = match kind {
                JobKind::Maintain => String::new(),
                JobKind::Ingest | JobKind::Validate => table.source.clone(),
            };
            let there = self.there.remove(&(org.clone(), table.name.clone(), kind.as_str()));
            if there.is_some_and(|(known, text)| known == source && text == spec) {
                continue;
            }
            let next = super::next_of(schedule, kind, org, self.now_ms);
            self.changed.push(Entry {
                org: org.clone(),
                table: table.name.clone(),
                kind,
                source,
                spec: spec.clone(),
                next_ms: next.unwrap_or(NEVER),
            });
        }
    }

    /// Makes it none, of orgs that are still as they were read: others have changed, and are the next look's, or
    /// were erased, and nothing of them comes back.
    async fn write(mut self, store: &Store) -> Result<()> {
        let nothing_goes = self.there.is_empty() && self.judged.is_empty();
        if nothing_goes && self.changed.is_empty() && self.limits_changed.is_empty() {
            return Ok(());
        }
        let mut transaction = store.begin().await?;
        let mut orgs: BTreeSet<&OrgId> = self.changed.iter().map(|entry| &entry.org).collect();
        orgs.extend(self.limits_changed.iter().map(|(org, _)| org));
        orgs.extend(self.there.keys().map(|(org, ..)| org));
        orgs.extend(self.judged.iter().map(|(org, _)| org));
        let now = held(&mut transaction, &orgs).await?;
        let revisions = &self.revisions;
        let stays = |org: &OrgId| now.get(org).is_some_and(|now| revisions.get(org) == Some(now));
        self.changed.retain(|entry| stays(&entry.org));
        self.limits_changed.retain(|(org, _)| stays(org));
        // Of an org that was not read there is nothing to compare: its schedules go.
        self.there.retain(|(org, ..), _| stays(org) || !revisions.contains_key(org));
        self.judged.retain(|(org, _)| stays(org) || !revisions.contains_key(org));
        self.put(&mut transaction).await?;
        commit(transaction).await
    }

    async fn put(self, transaction: &mut Transaction) -> Result<()> {
        lock(transaction).await?;
        for rows in self.changed.chunks(BATCH) {
            write(transaction, rows).await?;
        }
        for (org, table, kind) in self.there.keys() {
            let sql =
                "DELETE FROM polder_schedules WHERE org = $1 AND table_name = $2 AND kind = $3";
            let gone = sqlx::query(sql).bind(org.as_str()).bind(table).bind(*kind);
            gone.execute(&mut **transaction).await.map_err(wrong)?;
        }
        for (org, table) in &self.judged {
            let sql = "DELETE FROM polder_verdicts WHERE org = $1 AND table_name = $2";
            let gone = sqlx::query(sql).bind(org.as_str()).bind(table);
            gone.execute(&mut **transaction).await.map_err(wrong)?;
        }
        for (org, limits) in &self.limits_changed {
            limit(transaction, org, *limits).await?;
        }
        Ok(())
    }
}

/// The revisions of these orgs, which nobody changes or forgets before the transaction ends. One row after the
/// other, in the order in which plans write them: one statement for all would hold them in an order of its own.
async fn held(
    transaction: &mut Transaction,
    orgs: &BTreeSet<&OrgId>,
) -> Result<BTreeMap<OrgId, i64>> {
    let sql = "UPDATE polder_desired SET revision = revision WHERE kind = 'org' AND id = $1 \
               RETURNING revision";
    let mut revisions = BTreeMap::new();
    for org in orgs {
        let row = sqlx::query(sql).bind(org.as_str()).fetch_optional(&mut **transaction).await;
        if let Some(row) = row.map_err(wrong)? {
            revisions.insert((*org).clone(), row.try_get("revision").map_err(wrong)?);
        }
    }
    Ok(revisions)
}

async fn schedules(store: &Store, orgs: &[&OrgId]) -> Result<Schedules> {
    let columns = "org, table_name, kind, source, spec";
    let mut schedules = Schedules::new();
    for row in of_orgs(store, ("polder_schedules", columns), orgs).await? {
        let text = |column: &str| row.try_get::<String, _>(column).map_err(wrong);
        let kind = JobKind::parse(&text("kind")?)?.as_str();
        let key = (text("org")?.parse::<OrgId>()?, text("table_name")?, kind);
        schedules.insert(key, (text("source")?, text("spec")?));
    }
    Ok(schedules)
}

async fn limits(store: &Store, orgs: &[&OrgId]) -> Result<BTreeMap<OrgId, Limits>> {
    let columns = "org, weight, runs_max, rows_max, bytes_max, here_max";
    let mut limits = BTreeMap::new();
    for row in of_orgs(store, ("polder_turns", columns), orgs).await? {
        let org: String = row.try_get("org").map_err(wrong)?;
        let weight: i64 = row.try_get("weight").map_err(wrong)?;
        let most = |column: &str| row.try_get::<Option<i64>, _>(column).map_err(wrong);
        let most = [most("runs_max")?, most("rows_max")?, most("bytes_max")?, most("here_max")?];
        limits.insert(org.parse::<OrgId>()?, (weight, most));
    }
    Ok(limits)
}

async fn judged(store: &Store, orgs: &[&OrgId]) -> Result<BTreeSet<(OrgId, String)>> {
    let rows = of_orgs(store, ("polder_verdicts", "org, table_name"), orgs).await?;
    let one = |row: &AnyRow| -> Result<(OrgId, String)> {
        let org: String = row.try_get("org").map_err(wrong)?;
        Ok((org.parse()?, row.try_get("table_name").map_err(wrong)?))
    };
    rows.iter().map(one).collect()
}

/// The rows of these orgs in a table of the store with a column `org`.
async fn of_orgs(
    store: &Store,
    (table, columns): (&str, &str),
    orgs: &[&OrgId],
) -> Result<Vec<AnyRow>> {
    if orgs.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT {columns} FROM {table} WHERE org IN ({})", places(orgs.len()));
    let mut query = sqlx::query(&sql);
    for org in orgs {
        query = query.bind(org.as_str());
    }
    query.fetch_all(store.pool()).await.map_err(wrong)
}

/// One statement for many rows: ten thousand orgs are brought in within seconds.
async fn write(transaction: &mut Transaction, rows: &[Entry]) -> Result<()> {
    let values: Vec<String> = (0..rows.len())
        .map(|row| {
            let place = |column: usize| format!("${}", row * 6 + column + 1);
            format!("({})", (0..6).map(place).collect::<Vec<_>>().join(", "))
        })
        .collect();
    let sql = format!(
        "INSERT INTO polder_schedules (org, table_name, kind, source, spec, next_ms) VALUES {} \
         ON CONFLICT (org, table_name, kind) DO UPDATE SET source = excluded.source, \
         spec = excluded.spec, next_ms = excluded.next_ms \
         WHERE polder_schedules.spec <> excluded.spec OR polder_schedules.source <> excluded.source",
        values.join(", ")
    );
    let mut query = sqlx::query(&sql);
    for row in rows {
        query = query.bind(row.org.as_str()).bind(&row.table).bind(row.kind.as_str());
        query = query.bind(&row.source).bind(&row.spec).bind(row.next_ms);
    }
    query.execute(&mut **transaction).await.map(drop).map_err(wrong)
}

async fn limit(transaction: &mut Transaction, org: &OrgId, limits: Limits) -> Result<()> {
    let (weight, [runs, rows, bytes, here]) = limits;
    sqlx::query(
        "INSERT INTO polder_turns (org, turn, weight, runs_max, rows_max, bytes_max, here_max) \
         VALUES ($1, 0, $2, $3, $4, $5, $6) ON CONFLICT (org) DO UPDATE SET \
         weight = excluded.weight, runs_max = excluded.runs_max, rows_max = excluded.rows_max, \
         bytes_max = excluded.bytes_max, here_max = excluded.here_max",
    )
    .bind(org.as_str())
    .bind(weight)
    .bind(runs)
    .bind(rows)
    .bind(bytes)
    .bind(here)
    .execute(&mut **transaction)
    .await
    .map(drop)
    .map_err(wrong)
}

/// Takes away schedules of orgs that the desired state has nothing of, not even that they are gone.
async fn forget_unknown(store: &Store) -> Result<()> {
    let known = |org: &str| {
        format!("(SELECT 1 FROM polder_desired WHERE kind = 'org' AND id = {org} AND {PRESENT})")
    };
    let look = format!(
        "SELECT org FROM (SELECT DISTINCT org FROM polder_schedules) AS there \
         WHERE NOT EXISTS {} ORDER BY org LIMIT $1",
        known("there.org")
    );
    let forget = format!(
        "DELETE FROM polder_schedules WHERE org = $1 AND NOT EXISTS {}",
        known("polder_schedules.org")
    );
    loop {
        let rows = sqlx::query(&look).bind(PAGE as i64).fetch_all(store.pool()).await;
        let rows = rows.map_err(wrong)?;
        let mut transaction = store.begin().await?;
        lock(&mut transaction).await?;
        for row in &rows {
            let org: String = row.try_get("org").map_err(wrong)?;
            let gone = sqlx::query(&forget).bind(org).execute(&mut *transaction).await;
            gone.map_err(wrong)?;
        }
        commit(transaction).await?;
        if rows.len() < PAGE {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An org without tables.
    fn read_at(id: &OrgId, revision: i64) -> EffectiveOrg {
        EffectiveOrg {
            org: id.clone(),
            revision,
            name: None,
            template: None,
            groups: std::collections::BTreeMap::new(),
            limits: OrgLimits { runs: Some(1), ..OrgLimits::default() },
            schedule: None,
            enabled: true,
            tables: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_schedule_that_is_newer_than_what_was_read_stays() {
        let store = Store::in_memory().await;
        let id: OrgId = "1".parse().expect("id");
        for (now, left) in [(8, 1), (7, 0)] {
            let statements = [
                "DELETE FROM polder_desired".to_owned(),
                format!(
                    "INSERT INTO polder_desired (kind, id, revision) VALUES ('org', '1', {now})"
                ),
                "DELETE FROM polder_schedules".to_owned(),
                "INSERT INTO polder_schedules (org, table_name, kind, source, spec, next_ms) \
                 VALUES ('1', 't', 'ingest', 'revdb', '{}', 1)"
                    .to_owned(),
            ];
            for sql in &statements {
                sqlx::query(sql).execute(store.pool()).await.expect("done");
            }
            let mut difference = Difference::of(&store, &[&id]).await.expect("read");
            difference.take(&read_at(&id, 7), &polder_core::spec::Limits::default());
            difference.write(&store).await.expect("looked");
            assert_eq!(schedules(&store, &[&id]).await.expect("read").len(), left, "{now}");
        }
    }

    #[tokio::test]
    async fn nothing_comes_back_of_an_org_that_was_forgotten_or_changed_meanwhile() {
        let store = Store::in_memory().await;
        let id: OrgId = "1".parse().expect("id");
        let org = read_at(&id, 7);
        // Of the revision that the store has meanwhile, whether the limits are written.
        for (now, written) in [(None, false), (Some(8), false), (Some(7), true)] {
            let mut difference = Difference::of(&store, &[&id]).await.expect("read");
            difference.take(&org, &polder_core::spec::Limits::default());
            sqlx::query("DELETE FROM polder_desired").execute(store.pool()).await.expect("gone");
            if let Some(revision) = now {
                let sql = "INSERT INTO polder_desired (kind, id, revision) VALUES ('org', '1', $1)";
                let put = sqlx::query(sql).bind(i64::from(revision)).execute(store.pool()).await;
                put.expect("there");
            }
            difference.write(&store).await.expect("looked");
            let found = limits(&store, &[&id]).await.expect("read");
            assert_eq!(found.contains_key(&id), written, "{now:?}");
        }
    }
}
