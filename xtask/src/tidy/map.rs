//! ARCHITECTURE.md's map agrees with the tree, and every Rust file belongs to a crate.

use std::collections::BTreeSet;

use super::files::File;

const MAP: &str = "ARCHITECTURE.md";

pub(super) fn check(files: &[File], problems: &mut Vec<String>) {
    included(files, problems);
    let Some(map) = files.iter().find(|file| file.path == MAP) else {
        problems.push(format!("{MAP} is missing"));
        return;
    };
    let crates = crates(files);
    for name in &crates {
        if !mentions(&map.text, name) {
            problems.push(format!("{MAP}: crates/{name} is not on the map"));
        }
    }
    for folder in module_folders(files) {
        let name = folder.rsplit('/').next().unwrap_or_default();
        if !mentions(&map.text, &format!("{name}/")) {
            problems.push(format!("{MAP}: {folder}/ is not on the map"));
        }
    }
    for mention in map.text.split("crates/").skip(1) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let name: String = mention.chars().take_while(|&c| is_name(c)).collect();
        if !name.is_empty() && !crates.contains(&name) {
            problems.push(format!("{MAP}: crates/{name} is on the map, and nowhere else"));
        }
    }
}

/// Whether the text has the word, not as a part of a longer one.
fn mentions(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let ends_open = word.ends_with(is_part);
    text.match_indices(word).any(|(at, _)| {
        let after = text[at + word.len()..].chars().next();
        !text[..at].ends_with(is_part) && (!ends_open || !after.is_some_and(is_part))
    })
}

fn crates(files: &[File]) -> BTreeSet<String> {
    let manifest = |file: &File| {
        let path = file.path.strip_prefix("crates/")?.strip_suffix("/Cargo.toml")?;
        (!path.contains('/')).then(|| path.to_owned())
    };
    files.iter().filter_map(manifest).collect()
}

/// Folders below a crate's `src` that hold Rust files.
fn module_folders(files: &[File]) -> BTreeSet<String> {
    let mut folders = BTreeSet::new();
    for file in files.iter().filter(|file| file.is("rs") && file.path.starts_with("crates/")) {
        let mut folder = file.path.as_str();
        while let Some((parent, _)) = folder.rsplit_once('/') {
            if parent.ends_with("/src") || !parent.contains("/src/") {
                break;
            }
            folders.insert(parent.to_owned());
            folder = parent;
        }
    }
    folders
}

/// A file that no `mod` names compiles nowhere: it is dead, and the compiler does not say so.
fn included(files: &[File], problems: &mut Vec<String>) {
    for file in files.iter().filter(|file| file.is("rs")) {
        let Some((home, inner)) = file.path.split_once("/src/") else { continue };
        let inner = inner.trim_end_matches(".rs").trim_end_matches("/mod");
        let module = inner.rsplit('/').next().unwrap_or_default();
        let is_root = ["lib", "main", "build"].contains(&inner) || inner.starts_with("bin/");
        let declaration = format!("mod {module};");
        let home = format!("{home}/");
        let mut siblings = files.iter().filter(|other| other.path.starts_with(&home));
        if !is_root && !siblings.any(|other| other.code.contains(&declaration)) {
            problems.push(format!("{}: no `{declaration}` names this file", file.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(map: &str, more: &[(&str, &str)]) -> Vec<String> {
        let mut files = vec![
            File::new(MAP, map),
            File::new("crates/polder-x/Cargo.toml", ""),
            File::new("crates/polder-x/src/lib.rs", "mod commit;"),
            File::new("crates/polder-x/src/commit/mod.rs", ""),
        ];
        files.extend(more.iter().map(|(path, text)| File::new(path, text)));
        let mut problems = Vec::new();
        check(&files, &mut problems);
        problems
    }

    #[test]
    fn the_map_names_every_crate_and_module_folder() {
        assert!(problems("`crates/polder-x`: x\n  commit/ y", &[]).is_empty());
        assert_eq!(
            problems("crates/polder-xy/ commit/", &[]),
            [
                "ARCHITECTURE.md: crates/polder-x is not on the map",
                "ARCHITECTURE.md: crates/polder-xy is on the map, and nowhere else"
            ]
        );
        assert_eq!(
            problems("crates/polder-x recommit/", &[]),
            ["ARCHITECTURE.md: crates/polder-x/src/commit/ is not on the map"]
        );
    }

    #[test]
    fn a_file_nobody_names_is_dead() {
        assert_eq!(
            problems("crates/polder-x commit/", &[("crates/polder-x/src/old.rs", "")]),
            ["crates/polder-x/src/old.rs: no `mod old;` names this file"]
        );
    }
}
