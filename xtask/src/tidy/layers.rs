//! The arrows between crates, and who may name which library, read from the manifests.
//!
//! Arrows go down only: polder → {control, pipeline, query, sources} → lake → core. Pipeline and
//! control do not know each other. Development dependencies may join crates of one row (a test of
//! the pipeline wants a source), and may use a driver to prepare a server.

use toml::Table;

use super::files::File;

/// Each crate and the crates of ours it may use.
const ARROWS: [(&str, &[&str]); 8] = [
    ("polder-core", &[]),
    ("polder-lake", &["polder-core"]),
    ("polder-sources", &["polder-core", "polder-lake"]),
    ("polder-query", &["polder-core", "polder-lake"]),
    ("polder-pipeline", &["polder-core", "polder-lake"]),
    ("polder-control", &["polder-core", "polder-lake"]),
    (
        "polder",
        &[
            "polder-core",
            "polder-lake",
            "polder-sources",
            "polder-query",
            "polder-pipeline",
            "polder-control",
        ],
    ),
    ("xtask", &[]),
];

/// Pairs that never meet, not even in tests.
const STRANGERS: [(&str, &str); 2] =
    [("polder-pipeline", "polder-control"), ("polder-control", "polder-pipeline")];

/// Libraries (by the beginning of their name) that one crate alone may name.
const OWNED: [(&str, &str); 9] = [
    ("iceberg", "polder-lake"),
    ("datafusion", "polder-query"),
    ("tokio-postgres", "polder-sources"),
    ("mongodb", "polder-sources"),
    ("clap", "polder"),
    ("axum", "polder"),
    ("hyper", "polder"),
    ("tower", "polder"),
    ("indicatif", "polder"),
];

/// What the crate of words and pure rules does without.
const NOT_IN_CORE: [&str; 5] = ["tokio", "object_store", "opendal", "reqwest", "sqlx"];

pub(super) fn check(files: &[File], problems: &mut Vec<String>) {
    for file in files {
        let inner = file.path.strip_suffix("/Cargo.toml");
        if inner.is_some_and(|folder| folder.starts_with("crates/") || folder == "xtask") {
            match file.text.parse::<Table>() {
                Ok(manifest) => check_manifest(&file.path, &manifest, problems),
                Err(error) => problems.push(format!("{}: {}", file.path, error.message())),
            }
        }
    }
}

fn check_manifest(path: &str, manifest: &Table, problems: &mut Vec<String>) {
    let name = manifest.get("package").and_then(|package| package.get("name")?.as_str());
    let name = name.unwrap_or_default();
    if !path.ends_with(&format!("{name}/Cargo.toml")) {
        problems.push(format!("{path}: the folder is not named as the crate `{name}`"));
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(own, _)| *own == name) else {
        problems.push(format!("{path}: `{name}` has no place in the layers (tidy/layers.rs)"));
        return;
    };
    for table in ["dependencies", "build-dependencies"] {
        for dependency in names(manifest, table) {
            if let Some(reason) = breach(name, allowed, &dependency) {
                problems.push(format!("{path}: {name} → {dependency}: {reason}"));
            }
        }
    }
    for dependency in names(manifest, "dev-dependencies") {
        if STRANGERS.contains(&(name, dependency.as_str())) {
            problems.push(format!("{path}: {name} → {dependency}: they do not know each other"));
        }
    }
}

fn names(manifest: &Table, table: &str) -> Vec<String> {
    let direct = manifest.get(table).and_then(|value| value.as_table());
    let targets = manifest.get("target").and_then(|value| value.as_table());
    let per_target = targets.into_iter().flat_map(|targets| targets.values());
    let per_target = per_target.filter_map(|target| target.get(table)?.as_table());
    direct.into_iter().chain(per_target).flat_map(|table| table.keys().cloned()).collect()
}

fn breach(name: &str, allowed: &[&str], dependency: &str) -> Option<String> {
    if ARROWS.iter().any(|(own, _)| *own == dependency) && !allowed.contains(&dependency) {
        return Some("arrows go down only".to_owned());
    }
    let owner = OWNED.iter().find(|(library, owner)| {
        let rest = dependency.strip_prefix(library);
        *owner != name && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    });
    if let Some((_, owner)) = owner {
        return Some(format!("only {owner} names it"));
    }
    let impure = name == "polder-core" && NOT_IN_CORE.contains(&dependency);
    impure.then(|| "core has no I/O and no runtime".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(name: &str, dependencies: &str, expect: &[&str]) {
        let text = format!("[package]\nname = \"{name}\"\n{dependencies}");
        let mut problems = Vec::new();
        check(&[File::new(&format!("crates/{name}/Cargo.toml"), &text)], &mut problems);
        let prefix = format!("crates/{name}/Cargo.toml: ");
        let found: Vec<_> = problems.iter().map(|problem| problem.replace(&prefix, "")).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn arrows_go_down() {
        check_one("polder-lake", "[dependencies]\npolder-core.workspace = true", &[]);
        check_one(
            "polder-lake",
            "[dependencies]\npolder-query.workspace = true",
            &["polder-lake → polder-query: arrows go down only"],
        );
        check_one(
            "polder-control",
            "[dev-dependencies]\npolder-pipeline.workspace = true",
            &["polder-control → polder-pipeline: they do not know each other"],
        );
        check_one("polder-pipeline", "[dev-dependencies]\npolder-sources.workspace = true", &[]);
    }

    #[test]
    fn libraries_have_one_owner() {
        check_one("polder-lake", "[dependencies]\niceberg = \"0\"", &[]);
        check_one(
            "polder-query",
            "[target.'cfg(unix)'.dependencies]\niceberg-catalog-glue = \"0\"",
            &["polder-query → iceberg-catalog-glue: only polder-lake names it"],
        );
        check_one(
            "polder-core",
            "[dependencies]\ntokio = \"1\"",
            &["polder-core → tokio: core has no I/O and no runtime"],
        );
        check_one("polder", "[dev-dependencies]\ntokio-postgres = \"0\"", &[]);
    }

    #[test]
    fn a_crate_needs_a_place() {
        check_one("other", "", &["`other` has no place in the layers (tidy/layers.rs)"]);
    }
}
