//! Words and habits that must not land, each with what to use instead.

use std::env;
use std::path::Path;

use super::files::File;

/// One word for one thing, in code and prose alike (lower case; found anywhere in a line).
const WORDS: [(&str, &str); 4] = [
    ("tenant", "say org"),
    ("dataset", "say table, lake table or source table"),
    ("connector instance", "say source"),
    ("datasync", "say pipeline or run"),
];

/// Habits in Rust code, outside comments and literals.
const RUST: [(&str, &str); 5] = [
    ("#[ignore", "a test that cannot run is a failure"),
    ("#[allow(", "use #[expect(…, reason = …)]"),
    ("#![allow(", "use #![expect(…, reason = …)]"),
    ("todo!(", "finish it, or leave it out"),
    ("unimplemented!(", "finish it, or leave it out"),
];

/// Habits in Python tests.
const PYTHON: [(&str, &str); 3] = [
    ("pytest.mark.skip", "a test that cannot run is a failure"),
    ("pytest.skip(", "a test that cannot run is a failure"),
    ("pytest.importorskip", "a test that cannot run is a failure"),
];

const EXTENSIONS: [&str; 8] = ["rs", "md", "toml", "yaml", "yml", "py", "sql", "sh"];

/// This file has to name what it forbids.
const SELF: &str = "xtask/src/tidy/words.rs";

/// Has a class of `OpenLineage` by its name.
const OF_OTHERS: &str = "python/airflow-provider-polder/src/polder_airflow/lineage.py";

pub(super) fn check(files: &[File], machine_paths: &[String], problems: &mut Vec<String>) {
    for file in files.iter().filter(|file| file.path != SELF) {
        let worded = EXTENSIONS.iter().any(|extension| file.is(extension));
        if worded && file.path != OF_OTHERS {
            find(&file.path, &file.text.to_lowercase(), &WORDS, problems);
        }
        if file.is("rs") {
            find(&file.path, &file.code, &RUST, problems);
        }
        if file.is("py") {
            find(&file.path, &file.text, &PYTHON, problems);
        }
        for path in machine_paths {
            find(&file.path, &file.text, &[(path, "a path of one machine")], problems);
        }
    }
}

/// The beginnings of paths that exist on nobody else's machine.
pub(super) fn machine_paths(root: &Path) -> Vec<String> {
    let home = env::var("HOME").unwrap_or_default();
    let own = [root.display().to_string(), home];
    let own = own.iter().map(|path| path.trim_end_matches('/')).filter(|path| path.len() > 1);
    let own = own.map(|path| format!("{path}/"));
    own.chain(["/home/".to_owned(), "/Users/".to_owned()]).collect()
}

fn find(path: &str, text: &str, forbidden: &[(&str, &str)], problems: &mut Vec<String>) {
    for (word, instead) in forbidden {
        for (at, _) in text.match_indices(word) {
            let line = text[..at].matches('\n').count() + 1;
            problems.push(format!("{path}:{line}: `{word}`: {instead}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str, expect: &[&str]) {
        let mut problems = Vec::new();
        check(&[File::new(path, text)], &["/srv/me/".to_owned()], &mut problems);
        assert_eq!(problems, expect);
    }

    #[test]
    fn words_are_found_in_code_and_prose() {
        check_one("a.md", "one\nMulti-Tenant", &["a.md:2: `tenant`: say org"]);
        check_one(
            "a.rs",
            "struct DataSet;",
            &["a.rs:1: `dataset`: say table, lake table or source table"],
        );
        check_one("a.svg", "tenant", &[]);
    }

    #[test]
    fn habits_are_found_in_code_alone() {
        check_one("a.rs", "// todo!()\nlet s = \"#[ignore]\";", &[]);
        check_one("a.rs", "#[allow(x)]", &["a.rs:1: `#[allow(`: use #[expect(…, reason = …)]"]);
    }

    #[test]
    fn machine_paths_are_found_in_every_file() {
        check_one("Makefile", "x: /srv/me/y", &["Makefile:1: `/srv/me/`: a path of one machine"]);
    }
}
