//! Commits to several tables, all or none of which happen, in one database transaction.

use std::collections::HashSet;

use polder_core::Principal;

use super::IcebergCatalog;
use super::commit::Change;
use super::documents::TransactionRequest;
use super::refusal::{Answer, Refusal, show};

/// Tables in one transaction.
const TABLES_MAX: usize = 1000;
use crate::catalog::sql::EntryKind;

impl IcebergCatalog {
    /// # Errors
    /// As for [`Self::commit_table`], for the first table in the way; then none is changed.
    pub async fn commit_transaction(
        &self,
        principal: &Principal,
        request: TransactionRequest,
    ) -> Answer<()> {
        if request.table_changes.is_empty() || request.table_changes.len() > TABLES_MAX {
            return Err(Refusal::invalid(format!(
                "Invalid transaction: it needs 1 to {TABLES_MAX} table changes"
            )));
        }
        let mut seen = HashSet::new();
        let mut changes = Vec::with_capacity(request.table_changes.len());
        for mut change in request.table_changes {
            let Some(identifier) = change.identifier.take() else {
                return Err(Refusal::invalid("Invalid table change: it has no identifier"));
            };
            let (namespace, name) = (&identifier.namespace, &identifier.name);
            let ident = Self::ident(principal, namespace, name, EntryKind::Table)?;
            if !seen.insert(ident.clone()) {
                let message = format!("Invalid transaction: {} is in it twice", show(&ident));
                return Err(Refusal::invalid(message));
            }
            changes.push(Change::parse(principal, ident, change)?);
        }
        self.commit_all(&changes).await.map(drop)
    }
}
