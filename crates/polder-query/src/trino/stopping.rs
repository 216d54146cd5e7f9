//! Ending the statements that still name an org's tables, through Trino's own `system.runtime`.

use super::statement::{quoted, text};

/// How the look itself begins.
const LOOK: &str = "SELECT query_id FROM system.runtime.queries";

/// The ids of the statements under way that name the namespace as statements of ours do, the look aside.
pub(super) fn under_way(lake: &str, namespace: &str) -> String {
    let place = [lake, namespace].map(quoted).join(".");
    format!(
        "{LOOK} WHERE state NOT IN ('FINISHED', 'FAILED') AND strpos(query, {}) > 0 \
         AND NOT starts_with(query, {})",
        text(&format!("{place}.")),
        text(LOOK),
    )
}

pub(super) fn kill(id: &str) -> String {
    let message = text("the org leaves");
    format!("CALL system.runtime.kill_query(query_id => {}, message => {message})", text(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_orgs_statements_are_looked_for() {
        assert_eq!(
            under_way("lake", "org_401"),
            "SELECT query_id FROM system.runtime.queries WHERE state NOT IN ('FINISHED', 'FAILED') \
             AND strpos(query, '\"lake\".\"org_401\".') > 0 \
             AND NOT starts_with(query, 'SELECT query_id FROM system.runtime.queries')"
        );
        assert!(kill("20261128_'x").contains("'20261128_''x'"));
    }
}
