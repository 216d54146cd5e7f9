//! The erasure of an org's part of the lake, step by step. Whoever calls keeps what each step gives,
//! and goes on from there: also another process, after the first one was killed.
//!
//! Whether and when an org goes is the control plane's decision. The org is fenced before the first
//! step; every step refuses an org that is not.

mod record;

use chrono::Utc;
use polder_core::erasure::SWEEPS_MAX;
use polder_core::{
    Authorized, Erasure, ErasureStep, Error, ErrorCode, OrgId, Remains, Result, Verification,
};
use polder_lake::Lake;

pub use record::record_erasure;

/// Does the next step of an erasure. Doing it twice does no harm.
///
/// # Errors
/// `control.denied` for an org that is not fenced; `lake.held` under a legal hold; `lake.conflict` if
/// something of the org keeps appearing; `lake.*` when catalog or store fail. The same step may be
/// tried again.
pub async fn erase_step(
    lake: &Lake,
    org: &Authorized<OrgId>,
    mut erasure: Erasure,
) -> Result<Erasure> {
    match erasure.step {
        ErasureStep::Look => {
            let entries = lake.org_entries(org).await?;
            erasure.folder = lake.org_folder(org).await?;
            erasure.catalog_entries += entries.count;
            erasure.remains.extend(entries.elsewhere);
            erasure.step = ErasureStep::Catalog;
        }
        ErasureStep::Catalog => {
            lake.clear_catalog(org).await?;
            erasure.step = ErasureStep::List;
        }
        ErasureStep::List => list(lake, org, &mut erasure).await?,
        ErasureStep::Remove => remove(lake, org, &mut erasure).await?,
        ErasureStep::Forget => {
            for (table, rows) in lake.forget(org).await? {
                match erasure.management_rows.iter_mut().find(|(name, _)| *name == table) {
                    Some((_, count)) => *count += rows,
                    None => erasure.management_rows.push((table, rows)),
                }
            }
            erasure.step = ErasureStep::Verify;
        }
        ErasureStep::Verify => verify(lake, org, &mut erasure).await?,
        ErasureStep::Done => {}
    }
    Ok(erasure)
}

/// Counts what is in the folder, before any of it is removed.
async fn list(lake: &Lake, org: &Authorized<OrgId>, erasure: &mut Erasure) -> Result<()> {
    let inventory = lake.org_files(org).await?.inventory();
    erasure.step = if inventory.is_empty() { ErasureStep::Forget } else { ErasureStep::Remove };
    match &erasure.found {
        None => erasure.found = Some(inventory),
        Some(_) if inventory.is_empty() => {}
        Some(_) => erasure.sweeps.push(inventory),
    }
    check_bound(erasure)
}

async fn remove(lake: &Lake, org: &Authorized<OrgId>, erasure: &mut Erasure) -> Result<()> {
    let mut files = lake.org_files(org).await?;
    let inventory = files.inventory();
    let listed = erasure.sweeps.last().or(erasure.found.as_ref());
    if !inventory.is_empty() && listed.is_none_or(|listed| listed.sha256 != inventory.sha256) {
        // Something came, or an earlier try has removed a part: written down before it goes.
        erasure.sweeps.push(inventory);
        return check_bound(erasure);
    }
    let kept = lake.remove_org_files(org, &files).await?;
    erasure.remains.retain(|remains| !is_kept_object(remains));
    erasure.remains.extend(kept);
    erasure.step = ErasureStep::Forget;
    Ok(())
}

/// Lists everything anew. What is found goes as everything before it.
async fn verify(lake: &Lake, org: &Authorized<OrgId>, erasure: &mut Erasure) -> Result<()> {
    erasure.rounds += 1;
    check_bound(erasure)?;
    let mut files = lake.org_files(org).await?;
    let found = files.inventory();
    let kept = erasure.remains.iter().filter(|remains| is_kept_object(remains)).count() as u64;
    let entries = lake.org_entries(org).await?.count;
    let rows = lake.management_rows(org).await?;
    erasure.step = if entries > 0 {
        ErasureStep::Look
    } else if found.objects + found.delete_markers + found.uploads > kept {
        ErasureStep::List
    } else if rows > 0 {
        ErasureStep::Forget
    } else {
        erasure.verification = Some(Verification {
            at_ms: Utc::now().timestamp_millis(),
            versions_listed: files.versions_listed,
            objects: found.objects,
            catalog_entries: entries,
            management_rows: rows,
            airflow_dags: None,
        });
        ErasureStep::Done
    };
    Ok(())
}

/// Objects that the store refused to remove, as the lake names them.
fn is_kept_object(remains: &Remains) -> bool {
    remains.what.starts_with("object ")
}

fn check_bound(erasure: &Erasure) -> Result<()> {
    if erasure.sweeps.len() <= SWEEPS_MAX && erasure.rounds <= SWEEPS_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorCode::LakeConflict, "something of the org keeps appearing in the lake")
        .hint("find the process that still writes below the org's folder, and stop it"))
}
