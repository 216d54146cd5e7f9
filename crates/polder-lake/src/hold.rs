//! Legal holds: marks in an org's namespace that keep the org, or one of its tables, from being
//! removed. Whatever removes anything asks [`check`] first.

use std::collections::BTreeMap;

use iceberg::TableIdent;
use polder_core::erasure::REASON_CHARS_MAX;
use polder_core::{Authorized, Error, ErrorCode, Hold, OrgId, Result};

use crate::catalog::{Catalog, FENCED, fenced};
use crate::lake::{Lake, ident};

/// The namespace property of a hold on the whole org; of one on a table, a dot and the name follow.
const HOLD: &str = "polder.hold";

impl Lake {
    /// Holds an org, or one of its tables. A hold that is there already stays as it is.
    ///
    /// # Errors
    /// `lake.not_found` for an org or table that the lake does not have; `lake.fenced` for an org that
    /// is being erased; `spec.invalid` for a reason that is empty or too long.
    pub async fn hold(&self, org: &Authorized<OrgId>, hold: &Hold) -> Result<()> {
        let length = hold.reason.chars().count();
        if !(1..=REASON_CHARS_MAX).contains(&length) {
            let message = format!("a hold's reason has 1 to {REASON_CHARS_MAX} characters");
            return Err(Error::new(ErrorCode::SpecInvalid, message));
        }
        let (namespace, key) = (org.get().namespace(), key(hold.table.as_deref()));
        if self.catalog().namespace(&namespace).await?.is_none() {
            let message = format!("the lake has no org {}", org.get());
            return Err(Error::new(ErrorCode::LakeNotFound, message));
        }
        if let Some(table) = &hold.table
            && self.state(&ident(org.get(), table)).await?.is_none()
        {
            let message = format!("org {} has no table {table}", org.get());
            return Err(Error::new(ErrorCode::LakeNotFound, message));
        }
        let value = serde_json::to_string(hold).map_err(|cause| {
            Error::new(ErrorCode::Internal, "a hold cannot be written").caused_by(cause)
        })?;
        let property = BTreeMap::from([(key.clone(), value)]);
        self.catalog().ensure_namespace(&namespace, &property).await?;
        // Of a fence and a hold that are set at the same time, each sees the other or one does.
        let found = self.catalog().namespace(&namespace).await?.unwrap_or_default();
        if found.contains_key(FENCED) {
            self.catalog().change_namespace(&namespace, &BTreeMap::new(), &[key]).await?;
            return Err(fenced(org.get()));
        }
        Ok(())
    }

    /// Ends a hold; false if there was none.
    pub async fn release_hold(&self, org: &Authorized<OrgId>, table: Option<&str>) -> Result<bool> {
        let (namespace, key) = (org.get().namespace(), key(table));
        let found = self.catalog().namespace(&namespace).await?.unwrap_or_default();
        if !found.contains_key(&key) {
            return Ok(false);
        }
        self.catalog().change_namespace(&namespace, &BTreeMap::new(), &[key]).await?;
        Ok(true)
    }

    /// The org's holds: on itself first, then on tables by name.
    pub async fn holds(&self, org: &Authorized<OrgId>) -> Result<Vec<Hold>> {
        all(self.catalog(), org.get()).await
    }

    /// Asked by whatever is about to remove something of a table, or of the org (`None`): `what`
    /// names it in the refusal.
    ///
    /// # Errors
    /// `lake.held`, if the org or the table is held; for a whole org, if any of its tables is.
    pub async fn check_hold(
        &self,
        org: &Authorized<OrgId>,
        table: Option<&str>,
        what: &str,
    ) -> Result<()> {
        check(self.catalog(), org.get(), table, what).await
    }
}

/// See [`Lake::check_hold`].
pub(crate) async fn check(
    catalog: &dyn Catalog,
    org: &OrgId,
    table: Option<&str>,
    what: &str,
) -> Result<()> {
    let holds = all(catalog, org).await?;
    let forbids = |hold: &&Hold| match (&hold.table, table) {
        (None, _) | (Some(_), None) => true,
        (Some(held), Some(table)) => held == table,
    };
    match holds.iter().find(forbids) {
        Some(hold) => Err(hold.refusal(org, what)),
        None => Ok(()),
    }
}

/// The same for a table by its identifier; nothing holds what belongs to no org.
pub(crate) async fn check_table(
    catalog: &dyn Catalog,
    ident: &TableIdent,
    what: &str,
) -> Result<()> {
    let [outer, below @ ..] = &ident.namespace[..] else { return Ok(()) };
    let Some(org) = OrgId::from_namespace(outer) else { return Ok(()) };
    let mut path = below.to_vec();
    path.push(ident.name.clone());
    check(catalog, &org, Some(&path.join(".")), what).await
}

async fn all(catalog: &dyn Catalog, org: &OrgId) -> Result<Vec<Hold>> {
    let found = catalog.namespace(&org.namespace()).await?.unwrap_or_default();
    let marks = found.iter().filter(|(key, _)| {
        key.strip_prefix(HOLD).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    // A mark that cannot be understood holds all the same.
    Ok(marks
        .map(|(key, value)| serde_json::from_str(value).unwrap_or_else(|_| unread(key)))
        .collect())
}

fn unread(key: &str) -> Hold {
    Hold {
        table: key.strip_prefix(HOLD).and_then(|rest| rest.strip_prefix('.')).map(str::to_owned),
        reason: "its mark cannot be read".to_owned(),
        set_by: "unknown".to_owned(),
        set_ms: 0,
    }
}

fn key(table: Option<&str>) -> String {
    table.map_or_else(|| HOLD.to_owned(), |table| format!("{HOLD}.{table}"))
}
