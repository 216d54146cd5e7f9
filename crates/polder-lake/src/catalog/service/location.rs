//! Which locations a namespace's tables and views may name.
//!
//! An org's namespace owns `<warehouse>/<org uuid>` and nothing else. Namespaces without an org share
//! the warehouse, less every first folder that is a uuid: those belong to orgs, present and to come.
//! A location is taken apart before it is compared, and one that different readers could understand
//! differently (dot segments, percent-encoded separators, backslashes) is refused.

use iceberg::spec::TableMetadata;
use uuid::Uuid;

use super::refusal::{Answer, Refusal, RefusalKind};

/// Table and view properties that hold locations (Iceberg's `TableProperties`, `ViewProperties`).
const PATH_PROPERTIES: [&str; 5] = [
    "write.data.path",
    "write.metadata.path",
    "write.folder-storage.path",
    "write.object-storage.path",
    "write.location-provider.path",
];

/// The place a namespace's files have to lie in.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    /// Scheme, bucket and folders of the place.
    root: Place,
    /// Whether first folders below the root that are uuids belong to somebody else.
    shared: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// `file` or `s3://bucket`.
    store: String,
    folders: Vec<String>,
}

impl Fence {
    /// Around a folder that is one owner's alone: an org's, or a table's.
    pub(crate) fn org(folder: &str) -> Answer<Self> {
        Ok(Self { root: Place::parse(folder)?, shared: false })
    }

    /// Around what the warehouse has outside the orgs.
    pub(super) fn shared(warehouse: &str) -> Answer<Self> {
        Ok(Self { root: Place::parse(warehouse)?, shared: true })
    }

    /// # Errors
    /// `Forbidden` for a location outside, or one that could be understood in two ways.
    pub(crate) fn check(&self, location: &str) -> Answer<()> {
        let place = Place::parse(location)?;
        let below = place.folders.strip_prefix(self.root.folders.as_slice());
        let inside = place.store == self.root.store
            && below
                .and_then(<[String]>::first)
                .is_some_and(|first| !(self.shared && Uuid::try_parse(first).is_ok()));
        if inside { Ok(()) } else { Err(outside(location)) }
    }

    /// The locations among properties.
    pub(super) fn check_properties<'a>(
        &self,
        properties: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Answer<()> {
        properties
            .into_iter()
            .filter(|(key, _)| PATH_PROPERTIES.contains(&key.as_str()))
            .try_for_each(|(_, location)| self.check(location))
    }

    /// Every location in a table's metadata that somebody follows: to read, to write or to delete.
    pub(super) fn check_table(&self, metadata: &TableMetadata) -> Answer<()> {
        self.check(metadata.location())?;
        self.check_properties(metadata.properties())?;
        let manifests = metadata.snapshots().map(|snapshot| snapshot.manifest_list());
        let statistics = metadata.statistics_iter().map(|file| file.statistics_path.as_str());
        let partitions =
            metadata.partition_statistics_iter().map(|file| file.statistics_path.as_str());
        let earlier = metadata.metadata_log().iter().map(|entry| entry.metadata_file.as_str());
        let mut all = manifests.chain(statistics).chain(partitions).chain(earlier);
        all.try_for_each(|location| self.check(location))
    }
}

impl Place {
    fn parse(location: &str) -> Answer<Self> {
        let (store, path) = if let Some(rest) = location.strip_prefix("s3://") {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            (format!("s3://{bucket}"), key)
        } else {
            let path = match location.strip_prefix("file:") {
                // `file:///a` and Hadoop's `file:/a`; with an authority it is another machine's.
                Some(rest) => match rest.strip_prefix("//") {
                    Some(path) => path,
                    None => rest,
                },
                None => location,
            };
            ("file".to_owned(), path.strip_prefix('/').ok_or_else(|| outside(location))?)
        };
        let path = path.strip_suffix('/').unwrap_or(path);
        let folders: Vec<String> = match path {
            "" => Vec::new(),
            path => path.split('/').map(str::to_owned).collect(),
        };
        if folders.iter().all(|folder| unambiguous(folder)) {
            Ok(Self { store, folders })
        } else {
            Err(outside(location))
        }
    }
}

/// Whether a path segment means the same to everybody.
fn unambiguous(segment: &str) -> bool {
    let lower = segment.to_ascii_lowercase();
    !matches!(segment, "" | "." | "..")
        && !["%2e", "%2f", "%5c", "%25", "%00"].iter().any(|code| lower.contains(code))
        && !segment.chars().any(|c| c.is_control() || matches!(c, '\\' | '?' | '#'))
}

fn outside(location: &str) -> Refusal {
    Refusal::new(
        RefusalKind::Forbidden,
        format!("Location is outside of the namespace's own storage: {location}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORG: &str = "0b8f3f4e-5a3e-4f0e-8b1a-2f1d9a7f6c11";
    const OTHER: &str = "b2b9ff0a-31a6-4a3f-a94e-7f2f1f0f8c22";

    fn check(fence: &Fence, location: &str, allowed: bool) {
        assert_eq!(fence.check(location).is_ok(), allowed, "{location}");
    }

    #[test]
    fn an_org_stays_in_its_own_folder() {
        let fence = Fence::org(&format!("file:///lake/{ORG}")).expect("fence");
        for good in ["t", "t/metadata/00000-x.metadata.json", "t/a b", "t/é", "t/x=1%20/y"] {
            check(&fence, &format!("file:///lake/{ORG}/{good}"), true);
            check(&fence, &format!("file:/lake/{ORG}/{good}"), true);
            check(&fence, &format!("/lake/{ORG}/{good}"), true);
        }
        for bad in [
            "",
            "lake",
            "file:///lake",
            "file:///",
            "s3://lake/x",
            "gs://lake/x",
            "file://host/lake/x",
        ] {
            check(&fence, bad, false);
        }
        for bad in [
            format!("file:///lake/{OTHER}/t"),
            format!("file:///lake/{ORG}"),
            format!("file:///lake/{ORG}/"),
            format!("file:///lake/{ORG}x/t"),
            format!("file:///lake/{ORG}/../{OTHER}/t"),
            format!("file:///lake/{ORG}/t/../../{OTHER}"),
            format!("file:///lake/{ORG}/%2e%2e/{OTHER}/t"),
            format!("file:///lake/{ORG}/%2E%2E%2F{OTHER}/t"),
            format!("file:///lake/{ORG}/%252e%252e/{OTHER}/t"),
            format!("file:///lake/{ORG}/..\\{OTHER}/t"),
            format!("file:///lake/{ORG}/./t"),
            format!("file:///lake/{ORG}//t"),
            format!("file:////lake/{ORG}/t"),
            format!("file:lake/{ORG}/t"),
            format!("FILE:///lake/{ORG}/t"),
            format!("file://lake/{ORG}/t"),
            format!("hdfs://lake/{ORG}/t"),
            format!("file:///lake/{ORG}/t?x=1"),
            format!("file:///lake/{ORG}/t#x"),
            format!("file:///lake/{ORG}/t\0"),
        ] {
            check(&fence, &bad, false);
        }
    }

    #[test]
    fn a_bucket_is_part_of_the_place() {
        let fence = Fence::org(&format!("s3://bucket/lake/{ORG}")).expect("fence");
        check(&fence, &format!("s3://bucket/lake/{ORG}/t"), true);
        for bad in ["s3://other", "s3://bucket2", "s3a://bucket", "s3://bucket@other", "s3://"] {
            check(&fence, &format!("{bad}/lake/{ORG}/t"), false);
        }
        check(&fence, &format!("s3://bucket/lake/{ORG}/../{OTHER}/t"), false);
        check(&fence, &format!("/bucket/lake/{ORG}/t"), false);
    }

    #[test]
    fn shared_storage_is_what_no_org_can_own() {
        let fence = Fence::shared("file:///lake").expect("fence");
        for (location, allowed) in [
            ("file:/lake/ns/t", true),
            ("file:///lake/shared/t", true),
            ("file:///lake", false),
            ("file:///lake2/t", false),
            ("file:///etc/t", false),
        ] {
            check(&fence, location, allowed);
        }
        for text in [ORG.to_owned(), ORG.to_uppercase(), ORG.replace('-', "")] {
            check(&fence, &format!("file:///lake/{text}/t"), false);
        }
    }

    #[test]
    fn properties_that_hold_locations_are_looked_at() {
        let fence = Fence::shared("file:///lake").expect("fence");
        let of = |key: &str, value: &str| {
            let properties = std::collections::HashMap::from([(key.to_owned(), value.to_owned())]);
            fence.check_properties(&properties).is_ok()
        };
        for key in PATH_PROPERTIES {
            assert!(of(key, "file:///lake/x/y"));
            assert!(!of(key, "s3://other/x"));
            assert!(!of(key, "file:///lake/x/../../etc"));
        }
        assert!(of("comment", "s3://other/x"));
    }
}
