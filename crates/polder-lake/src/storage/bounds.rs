//! How far a table's metadata leads.
//!
//! Whoever may commit to a table can name any file of the store in its manifests, and the keys that the
//! lake reads with open all of them. A folder right below the warehouse whose name is a uuid is one
//! org's: what a table there names is looked for in that folder alone, and what a table elsewhere names
//! in no org's. That a table's own location is its org's is the catalog's to see to. Paths are compared
//! as the object store has them, so that nobody can understand them in another way than it does.

use object_store::path::Path;
use polder_core::{Error, ErrorCode};
use uuid::Uuid;

/// Which paths may be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bounds {
    /// Those below an org's folder.
    Org(Path),
    /// Those that lie in no org's folder below the warehouse.
    Elsewhere { warehouse: Path },
}

impl Bounds {
    /// Of a table at `location`; `None` if that is no path of the store.
    pub(super) fn of(warehouse: Path, location: Option<&Path>) -> Self {
        match location.and_then(|location| org_folder(&warehouse, location)) {
            Some(folder) => Self::Org(folder),
            None => Self::Elsewhere { warehouse },
        }
    }

    pub(super) fn admit(&self, path: &Path) -> bool {
        match self {
            Self::Org(folder) => path.prefix_matches(folder),
            Self::Elsewhere { warehouse } => org_folder(warehouse, path).is_none(),
        }
    }
}

/// The org's folder that a path lies in.
fn org_folder(warehouse: &Path, path: &Path) -> Option<Path> {
    let first = path.prefix_match(warehouse)?.next()?;
    Uuid::try_parse(first.as_ref()).ok()?;
    Some(warehouse.clone().join(first))
}

/// The error of what follows a location out of bounds.
pub(super) fn out_of_bounds(location: &str) -> Error {
    let message = "a table's metadata names a file outside its org's storage";
    Error::new(ErrorCode::LakeCorrupt, message).detail(location).hint(
        "nothing of it was read; find out who wrote that metadata, and roll the table back to a \
         state before it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORG: &str = "0b8f3f4e-5a3e-4f0e-8b1a-2f1d9a7f6c11";
    const OTHER: &str = "b2b9ff0a-31a6-4a3f-a94e-7f2f1f0f8c22";

    fn path(text: &str) -> Path {
        Path::parse(text).expect(text)
    }

    fn check(warehouse: &str, location: &str, file: &str, admitted: bool) {
        let bounds = Bounds::of(path(warehouse), Some(&path(location)));
        assert_eq!(bounds.admit(&path(file)), admitted, "{location} names {file}");
    }

    #[test]
    fn a_table_leads_into_its_own_orgs_folder_or_into_nobodys() {
        for warehouse in ["a/lake", "lake", ""] {
            let at = |rest: &str| format!("{warehouse}/{rest}").trim_start_matches('/').to_owned();
            let (own, free) = (at(&format!("{ORG}/t")), at("shared/t"));
            for (location, file, admitted) in [
                (&own, format!("{ORG}/t/data/x=a%2Fb/1.parquet"), true),
                (&own, format!("{ORG}/another/1.parquet"), true),
                (&own, format!("{OTHER}/t/1.parquet"), false),
                (&own, format!("{ORG}x/1.parquet"), false),
                (&own, "shared/t/1.parquet".to_owned(), false),
                (&own, "audit-log/head.json".to_owned(), false),
                (&free, format!("{ORG}/t/1.parquet"), false),
                (&free, "shared/t/1.parquet".to_owned(), true),
                (&free, "imported/1.parquet".to_owned(), true),
            ] {
                check(warehouse, location, &at(&file), admitted);
            }
        }
        // A table that another system put beside the warehouse.
        check("lake", "other/t", "other/t/1.parquet", true);
        check("lake", "other/t", &format!("lake/{ORG}/t/1.parquet"), false);
        check("lake", "other/t", &format!("other/{ORG}/1.parquet"), true);
        let nowhere = Bounds::of(path("lake"), None);
        assert!(!nowhere.admit(&path(&format!("lake/{ORG}/t/1.parquet"))));
    }
}
