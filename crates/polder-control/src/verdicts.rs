//! The last word on each table, for metrics: a copy of what its last validation said.
//!
//! What counts stands in the lake (`polder_management.validation_results`).

use std::collections::BTreeMap;

use polder_core::validation::Verdict;
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use sqlx::Row;

use crate::store::{Store, Transaction, failed};

/// What is known of an org's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfOrg {
    pub org: OrgId,
    /// How many tables have which last verdict.
    pub tables: BTreeMap<Verdict, u64>,
    /// When the last verdict was that is the oldest of all tables'; milliseconds since the epoch.
    pub oldest_ms: i64,
}

/// Keeps what a validation's report says of its table; nothing of a report that says nothing.
pub(crate) async fn keep(
    transaction: &mut Transaction,
    (org, table): (&OrgId, &str),
    report: &str,
    now_ms: i64,
) -> Result<()> {
    let report: serde_json::Value = serde_json::from_str(report).unwrap_or_default();
    let Some(verdict) = report["verdict"].as_str().and_then(Verdict::parse) else {
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO polder_verdicts (org, table_name, verdict, at_ms) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (org, table_name) DO UPDATE SET verdict = excluded.verdict, \
         at_ms = excluded.at_ms",
    )
    .bind(org.as_str())
    .bind(table)
    .bind(verdict.as_str())
    .bind(now_ms)
    .execute(&mut **transaction)
    .await
    .map(drop)
    .map_err(wrong)
}

/// What is known of all orgs, in their order.
///
/// # Errors
/// `control.denied` for anybody but the operator: it spans orgs.
pub async fn of_orgs(store: &Store, principal: &Principal) -> Result<Vec<OfOrg>> {
    if *principal != Principal::Operator {
        let message = "only the operator may see every org's verdicts";
        return Err(Error::new(ErrorCode::ControlDenied, message));
    }
    let sql = "SELECT org, verdict, count(*) AS tables, min(at_ms) AS oldest FROM polder_verdicts \
               GROUP BY org, verdict ORDER BY org";
    let rows = sqlx::query(sql).fetch_all(store.pool()).await.map_err(wrong)?;
    let mut found: Vec<OfOrg> = Vec::new();
    for row in &rows {
        let text = |column: &str| row.try_get::<String, _>(column).map_err(wrong);
        let number = |column: &str| row.try_get::<i64, _>(column).map_err(wrong);
        let (org, oldest_ms): (OrgId, i64) = (text("org")?.parse()?, number("oldest")?);
        let Some(verdict) = Verdict::parse(&text("verdict")?) else { continue };
        if found.last().is_none_or(|last| last.org != org) {
            found.push(OfOrg { org, tables: BTreeMap::new(), oldest_ms });
        }
        let Some(last) = found.last_mut() else { continue };
        last.tables.insert(verdict, number("tables")?.unsigned_abs());
        last.oldest_ms = last.oldest_ms.min(oldest_ms);
    }
    Ok(found)
}

fn wrong(error: sqlx::Error) -> Error {
    failed("the tables' verdicts cannot be kept", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::{self, RunState};

    #[tokio::test]
    async fn the_last_word_on_each_table_is_counted() {
        let store = Store::in_memory().await;
        let said = async |id: &str, table: &str, state: RunState, report: &str| {
            let org = Principal::Operator.authorize(&id.parse().expect("id")).expect("org");
            let kept = runs::keep_validation(&store, &org, (table, 0), (state, report), &[]);
            kept.await.expect("kept");
        };
        said("1", "a", RunState::Succeeded, r#"{"verdict": "verified"}"#).await;
        said("1", "b", RunState::Succeeded, r#"{"verdict": "failed"}"#).await;
        said("1", "a", RunState::Succeeded, r#"{"verdict": "failed"}"#).await;
        said("1", "c", RunState::Succeeded, r#"{"verdict": "stale"}"#).await;
        // One that could not be carried out says nothing.
        said("1", "c", RunState::Failed, r#"{"code": "source.unavailable"}"#).await;
        said("2", "a", RunState::Succeeded, r#"{"verdict": "verified"}"#).await;
        let found = of_orgs(&store, &Principal::Operator).await.expect("found");
        let found: Vec<_> = found.into_iter().map(|of| (of.org.to_string(), of.tables)).collect();
        let one = BTreeMap::from([(Verdict::Stale, 1), (Verdict::Failed, 2)]);
        let two = BTreeMap::from([(Verdict::Verified, 1)]);
        assert_eq!(found, [("1".to_owned(), one), ("2".to_owned(), two)]);
    }
}
