//! Globs of a table spec: which objects below the root belong to the table.
//!
//! `*` and `?` stay within one path segment, `**` crosses segments, `[…]` is a class; names that
//! start with a dot match only where the pattern says the dot. The org's id is escaped before it is
//! put in, and no pattern leads out of the root.

use glob::{MatchOptions, Pattern};
use polder_core::{Error, ErrorCode, OrgId, Result};

const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// A glob with the org put in.
#[derive(Clone, Debug)]
pub(super) struct ObjectPattern {
    text: String,
    pattern: Pattern,
}

impl ObjectPattern {
    pub(super) fn new(from: &str, org: &OrgId) -> Result<Self> {
        let text = from.replace("{org}", &Pattern::escape(org.as_str()));
        let invalid = |why: &str| {
            Error::new(ErrorCode::SpecInvalid, format!("{from:?} is not a glob below the source"))
                .detail(why)
                .hint("write a relative path such as \"{org}/forecast/*.csv\"")
        };
        if text.is_empty() || text.starts_with('/') || text.contains(['\\', '\0']) {
            return Err(invalid("it has to be a relative path with forward slashes"));
        }
        if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(invalid("it has an empty, \".\" or \"..\" segment"));
        }
        let pattern = Pattern::new(&text).map_err(|error| invalid(error.msg))?;
        Ok(Self { text, pattern })
    }

    pub(super) fn matches(&self, key: &str) -> bool {
        self.pattern.matches_with(key, OPTIONS)
    }

    /// The folder everything that matches lies in, without a slash at its end; empty for the root.
    pub(super) fn folder(&self) -> &str {
        let literal = self.text.find(['*', '?', '[']).unwrap_or(self.text.len());
        self.text[..literal].rfind('/').map_or("", |slash| &self.text[..slash])
    }

    /// How many folders below [`Self::folder`] what matches may lie in; `None` for any number.
    pub(super) fn depth(&self) -> Option<usize> {
        let below = match self.folder() {
            "" => &self.text[..],
            folder => &self.text[folder.len() + 1..],
        };
        (!below.contains("**")).then(|| below.matches('/').count())
    }

    /// Whether it names one object only.
    pub(super) fn is_literal(&self) -> bool {
        !self.text.contains(['*', '?', '['])
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

/// The glob of everything in a folder whose name has this ending.
pub(super) fn all_in(folder: &str, ending: &str) -> String {
    let slash = if folder.is_empty() { "" } else { "/" };
    format!("{}{slash}*{}", Pattern::escape(folder), Pattern::escape(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(from: &str) -> Result<ObjectPattern> {
        ObjectPattern::new(from, &"401".parse().expect("org"))
    }

    #[test]
    fn stars_stay_within_a_segment() {
        let cases = [
            ("{org}/f/*.csv", "401/f/a.csv", true),
            ("{org}/f/*.csv", "402/f/a.csv", false),
            ("{org}/f/*.csv", "401/f/b/a.csv", false),
            ("{org}/**/*.csv", "401/f/b/a.csv", true),
            ("{org}/**/*.csv", "401/a.csv", true),
            ("{org}/f/*.csv", "401/f/.a.csv", false),
            ("{org}/?[ab].csv", "401/xb.csv", true),
            ("{org}*/x", "4010/x", true),
        ];
        for (from, key, expected) in cases {
            assert_eq!(pattern(from).expect(from).matches(key), expected, "{from} {key}");
        }
    }

    #[test]
    fn the_folder_is_what_all_matches_share() {
        for (from, folder, depth) in [
            ("{org}/f/*.csv", "401/f", Some(0)),
            ("{org}/f/a.csv", "401/f", Some(0)),
            ("a*.csv", "", Some(0)),
            ("{org}*/x/*.csv", "", Some(2)),
            ("x/*/a.csv", "x", Some(1)),
            ("x/**", "x", None),
            ("**/x/a.csv", "", None),
        ] {
            let pattern = pattern(from).expect(from);
            assert_eq!((pattern.folder(), pattern.depth()), (folder, depth), "{from}");
        }
    }

    #[test]
    fn a_glob_of_a_folder_matches_what_is_in_it() {
        let glob = all_in("a[1]/b", ".csv.gz");
        assert!(pattern(&glob).expect("glob").matches("a[1]/b/x.csv.gz"), "{glob}");
        assert!(pattern(&all_in("", ".csv")).expect("glob").matches("x.csv"));
    }

    #[test]
    fn no_pattern_leads_out_of_the_root() {
        for bad in ["../x", "/x", "a/../b", "a//b", "./a", "", "a\\b", "a/**b", "[a"] {
            assert_eq!(pattern(bad).expect_err(bad).code(), ErrorCode::SpecInvalid);
        }
    }
}
