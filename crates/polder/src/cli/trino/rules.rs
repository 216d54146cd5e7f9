//! Who may do what in Trino, and how much of it at once: access rules and resource groups of all orgs.
//!
//! An org's user sees and selects the org's schema of catalog `lake` and nothing else, an operator does
//! everything, and nobody else anything. Who somebody is, is for Trino's own authentication to find out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polder_control::OrgPipeline;
use polder_core::spec::Limits;
use polder_core::{Error, ErrorCode, Result};
use serde_json::{Value, json};

/// Statements of one org, or of the operators, that wait at the same time; another one is refused.
const WAITING_MAX: u64 = 100;
/// Statements of all orgs together that Trino works on at the same time; an org's own limit is less.
const ORGS_AT_ONCE_MAX: u64 = 100;
/// Those of the operators.
const OPERATORS_AT_ONCE_MAX: u64 = 100;
/// What an org's user may send. Trino's access rules let everybody execute the procedures of every table that is
/// in a catalog they may read (`ALTER TABLE … EXECUTE`), so that the kind of statement has to keep them out.
const KINDS_OF_ORGS: [&str; 3] = ["SELECT", "EXPLAIN", "DESCRIBE"];
/// What the operators may do to tables, functions and procedures.
const TABLE_PRIVILEGES: [&str; 6] =
    ["SELECT", "INSERT", "DELETE", "UPDATE", "OWNERSHIP", "GRANT_SELECT"];
/// As Trino looks for them, from the folder that it runs in.
const ACCESS: &str = "# Written by `polder trino catalogs`.\n\
    access-control.name=file\nsecurity.config-file=etc/rules.json\nsecurity.refresh-period=60s\n";
const GROUPS: &str = "# Written by `polder trino catalogs`.\n\
    resource-groups.configuration-manager=file\n\
    resource-groups.config-file=etc/resource-groups.json\n";

/// How users of Trino are named.
pub(super) struct Names<'a> {
    pub(super) operators: &'a [String],
    /// With `{org}` for an org's id.
    pub(super) org_user: &'a str,
}

/// What an org is in Trino.
#[derive(Debug)]
struct Member {
    /// The user's name, as a pattern that it alone matches.
    user: String,
    /// Also the name of its resource group. Trino has all names of schemas in small letters.
    schema: String,
    runs: u64,
    weight: u32,
    memory: String,
}

#[derive(Debug)]
pub(super) struct Rules {
    /// The operators' names, as one pattern.
    operators: String,
    members: Vec<Member>,
}

impl Rules {
    /// # Errors
    /// `spec.invalid` for names of users that would mix people up, and for two orgs that are one schema in Trino.
    pub(super) fn of<'a>(
        orgs: impl Iterator<Item = &'a OrgPipeline>,
        names: &Names<'_>,
        limits: &Limits,
    ) -> Result<Self> {
        check_names(names)?;
        let mut members: BTreeMap<String, Member> = BTreeMap::new();
        for pipeline in orgs {
            let org = &pipeline.org;
            let user = names.org_user.replace("{org}", org.as_str());
            if names.operators.contains(&user) {
                let message = format!("user {user:?} would be an operator and org {org}");
                return Err(Error::new(ErrorCode::SpecInvalid, message)
                    .hint("name operators as no org's user: --operator, --org-user"));
            }
            let schema = org.namespace().to_ascii_lowercase();
            let own = &pipeline.limits;
            let member = Member {
                user: literal(&user),
                schema: schema.clone(),
                runs: own.runs.map_or(limits.runs_of_org() as u64, u64::from),
                weight: own.weight.unwrap_or(1),
                memory: own.memory_mb.map_or("100%".to_owned(), |mb| format!("{mb}MB")),
            };
            if members.insert(schema.clone(), member).is_some() {
                let message = format!("two orgs are schema {schema:?} in Trino");
                return Err(Error::new(ErrorCode::SpecInvalid, message).hint(
                    "Trino has all names in small letters: give orgs ids that differ there",
                ));
            }
        }
        let operators: Vec<String> = names.operators.iter().map(|name| literal(name)).collect();
        Ok(Self { operators: operators.join("|"), members: members.into_values().collect() })
    }

    /// The files, and what stands in them.
    ///
    /// # Errors
    /// `internal` if the rules cannot be written as JSON.
    pub(super) fn files(&self, etc: &Path) -> Result<Vec<(PathBuf, String)>> {
        let failed = |cause: serde_json::Error| {
            Error::new(ErrorCode::Internal, "Trino's rules cannot be written as JSON")
                .caused_by(cause)
        };
        let text = |document: &Value| serde_json::to_string_pretty(document).map_err(failed);
        Ok(vec![
            (etc.join("access-control.properties"), ACCESS.to_owned()),
            (etc.join("rules.json"), text(&self.access())?),
            (etc.join("resource-groups.properties"), GROUPS.to_owned()),
            (etc.join("resource-groups.json"), text(&self.groups())?),
        ])
    }

    /// Rules of Trino's file-based access control: the first that matches is the one that holds. Each part is
    /// written, as a part that is absent allows everything.
    fn access(&self) -> Value {
        let operators = &self.operators;
        let mut catalogs = vec![json!({ "user": operators, "allow": "owner" })];
        let mut tables = vec![json!({ "user": operators, "privileges": TABLE_PRIVILEGES })];
        let mut queries = vec![json!({ "user": operators, "allow": ["execute", "view", "kill"] })];
        for Member { user, schema, .. } in &self.members {
            catalogs.push(json!({ "user": user, "catalog": "lake", "allow": "read-only" }));
            let schema = literal(schema);
            tables.push(json!({
                "user": user, "catalog": "lake", "schema": schema, "privileges": ["SELECT"],
            }));
            queries.push(json!({ "user": user, "allow": ["execute"] }));
        }
        catalogs.push(json!({ "allow": "none" }));
        tables.push(json!({ "privileges": [] }));
        queries.push(json!({ "allow": [] }));
        let settings = json!([{ "user": operators, "allow": true }, { "allow": false }]);
        json!({
            "catalogs": catalogs,
            "schemas": [{ "user": operators, "owner": true }, { "owner": false }],
            "tables": tables,
            "queries": queries,
            "functions": [
                { "user": operators, "privileges": ["EXECUTE", "GRANT_EXECUTE", "OWNERSHIP"] },
            ],
            "procedures": [{ "user": operators, "privileges": ["EXECUTE", "GRANT_EXECUTE"] }],
            "system_information": [{ "user": operators, "allow": ["read", "write"] }],
            "system_session_properties": settings,
            "catalog_session_properties": settings,
            "impersonation": [],
        })
    }

    /// Groups of Trino's file-based manager: a statement that no selector takes is refused.
    fn groups(&self) -> Value {
        let groups = self.members.iter().map(|member| {
            json!({
                "name": member.schema,
                "hardConcurrencyLimit": member.runs,
                "maxQueued": WAITING_MAX,
                "softMemoryLimit": member.memory,
                "schedulingWeight": member.weight,
            })
        });
        let groups: Vec<Value> = groups.collect();
        let mut roots = vec![json!({
            "name": "operators",
            "hardConcurrencyLimit": OPERATORS_AT_ONCE_MAX,
            "maxQueued": WAITING_MAX,
            "softMemoryLimit": "100%",
        })];
        // A group without any below would take statements itself.
        if !groups.is_empty() {
            roots.push(json!({
                "name": "orgs",
                "hardConcurrencyLimit": ORGS_AT_ONCE_MAX,
                "maxQueued": WAITING_MAX * groups.len() as u64,
                "softMemoryLimit": "100%",
                "schedulingPolicy": "weighted_fair",
                "subGroups": groups,
            }));
        }
        let mut selectors = vec![json!({ "user": self.operators, "group": "operators" })];
        for Member { user, schema, .. } in &self.members {
            let group = format!("orgs.{schema}");
            selectors.extend(
                KINDS_OF_ORGS
                    .map(|kind| json!({ "user": user, "queryType": kind, "group": group })),
            );
        }
        json!({ "rootGroups": roots, "selectors": selectors })
    }
}

fn check_names(names: &Names<'_>) -> Result<()> {
    let invalid = |message: String| Error::new(ErrorCode::SpecInvalid, message);
    if names.operators.is_empty() {
        return Err(invalid("no operator is named, and nobody could look after Trino".to_owned())
            .hint("name one: --operator USER"));
    }
    for name in names.operators.iter().map(String::as_str).chain([names.org_user]) {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(invalid(format!("{name:?} names no user of Trino"))
                .hint("use one character at least, and no control characters"));
        }
    }
    // All orgs would be one user.
    if !names.org_user.contains("{org}") {
        return Err(invalid(format!("--org-user {:?} is no org's own", names.org_user))
            .hint("write {org} where the org's id is to stand: \"org_{org}\""));
    }
    Ok(())
}

/// A pattern that this text alone matches, as Trino has all of it match. A backslash before anything but a letter
/// or digit takes any meaning from it (`java.util.regex.Pattern`).
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_alphanumeric() && c != '_' {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use polder_core::spec::OrgLimits;

    use super::*;

    fn org(id: &str, limits: OrgLimits) -> OrgPipeline {
        OrgPipeline { org: id.parse().expect("id"), name: None, limits, tables: Vec::new() }
    }

    fn rules(orgs: &[OrgPipeline], operators: &[&str], org_user: &str) -> Result<Rules> {
        let operators: Vec<String> = operators.iter().map(ToString::to_string).collect();
        let limits = Limits { runs: 4, ..Limits::default() };
        Rules::of(orgs.iter(), &Names { operators: &operators, org_user }, &limits)
    }

    #[test]
    fn an_org_has_its_own_schema_and_nobody_else_anything() {
        let orgs = [org("401", OrgLimits::default()), org("A-b", OrgLimits::default())];
        let rules = rules(&orgs, &["ops", "a.b@c"], "{org}@polder").expect("rules");
        let access = rules.access();
        let operators = r"ops|a\.b\@c";
        assert_eq!(access["catalogs"][0], json!({ "user": operators, "allow": "owner" }));
        let catalogs = access["catalogs"].as_array().expect("list");
        assert_eq!(catalogs.last(), Some(&json!({ "allow": "none" })));
        let own = |user: &str, schema: &str| {
            json!({
                "user": user, "catalog": "lake", "schema": schema, "privileges": ["SELECT"],
            })
        };
        let tables = json!([
            { "user": operators, "privileges": TABLE_PRIVILEGES },
            own(r"401\@polder", "org_401"),
            own(r"A\-b\@polder", r"org_a\-b"),
            { "privileges": [] },
        ]);
        assert_eq!(access["tables"], tables);
        // What is absent would be allowed to all.
        for part in [
            "schemas",
            "queries",
            "functions",
            "procedures",
            "system_information",
            "impersonation",
            "system_session_properties",
            "catalog_session_properties",
        ] {
            assert!(access[part].is_array(), "{part}");
        }
    }

    #[test]
    fn an_orgs_limits_are_its_groups() {
        let said = OrgLimits {
            runs: Some(2),
            weight: Some(3),
            memory_mb: Some(512),
            ..OrgLimits::default()
        };
        let orgs = [org("401", said), org("402", OrgLimits::default())];
        let groups = rules(&orgs, &["ops"], "org_{org}").expect("rules").groups();
        let group = |name: &str, runs: u32, memory: &str, weight: u32| {
            json!({
                "name": name, "hardConcurrencyLimit": runs, "maxQueued": 100,
                "softMemoryLimit": memory, "schedulingWeight": weight,
            })
        };
        let own = json!([group("org_401", 2, "512MB", 3), group("org_402", 3, "100%", 1)]);
        assert_eq!(groups["rootGroups"][1]["subGroups"], own);
        let selectors = groups["selectors"].as_array().expect("list");
        assert_eq!(selectors.len(), 1 + 2 * KINDS_OF_ORGS.len());
        assert_eq!(selectors[0], json!({ "user": "ops", "group": "operators" }));
        for selector in &selectors[1..] {
            let kind = selector["queryType"].as_str().expect("an org's statements are of a kind");
            assert!(KINDS_OF_ORGS.contains(&kind), "{kind}");
            let user = selector["user"].as_str().expect("user");
            assert_eq!(selector["group"], format!("orgs.{user}"));
        }
        let nobody = rules(&[], &["ops"], "org_{org}").expect("rules").groups();
        assert_eq!(nobody["rootGroups"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn names_that_mix_people_up_are_refused() {
        let one = [org("401", OrgLimits::default())];
        let two = [org("a", OrgLimits::default()), org("A", OrgLimits::default())];
        let cases: [(&[OrgPipeline], &[&str], &str, &str); 6] = [
            (&one, &[], "org_{org}", "no operator"),
            (&one, &["ops", "org_401"], "org_{org}", "an operator and org 401"),
            (&one, &["ops"], "client", "no org's own"),
            (&one, &["ops"], "", "names no user"),
            (&one, &["a\nb"], "org_{org}", "names no user"),
            (&two, &["ops"], "org_{org}", "two orgs are schema \"org_a\""),
        ];
        for (orgs, operators, org_user, expected) in cases {
            let error = rules(orgs, operators, org_user).expect_err(expected);
            assert_eq!(error.code(), ErrorCode::SpecInvalid);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_literal_has_no_meaning_of_its_own() {
        assert_eq!(literal("org_401"), "org_401");
        assert_eq!(literal(r".*|\Qa(b)-[c]{2}$"), r"\.\*\|\\Qa\(b\)\-\[c\]\{2\}\$");
    }
}
