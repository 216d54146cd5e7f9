//! Configurations, good and bad: every bad one names its place and the way out.

use std::fmt::Write as _;

use polder_core::spec::{EngineKind, Mode, PartitionField, SourceSpec, TableSpec};

use super::*;

const PROCESS: &str = r#"
[lake]
warehouse = "./lake"
catalog = "sqlite://./polder.db"
[store]
url = "sqlite://./polder.db"
[sources.revdb]
type = "postgres"
url = "env:REVDB_URL"
[sources.conversations]
type = "mongodb"
url = "env:CONVERSATIONS_URL"
database = "conversations"
[sources.files]
type = "files"
url = "s3://exports"
"#;

const PIPELINE: &str = r#"
templates:
  crm:
    tables:
      - name: opportunity
        source: revdb
        from: public.opportunity
        filter: org_id = {org}
        mode: append
        cursor: updated_at
        key: [id]
        partition: [month(created_at)]
      - { name: email, source: conversations, from: emails, filter: { org: "{org}" }, mode: append, cursor: sent_at, key: [_id] }
      - { name: forecast_upload, source: files, from: "{org}/forecast/*.csv", mode: append }
orgs:
  - { id: "401", name: Acme, template: crm }
"#;

fn load(process: &str, pipeline: &str) -> Result<Config> {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join(PROCESS_FILE);
    std::fs::write(&file, process).expect("write");
    std::fs::create_dir(folder.path().join(PIPELINE_FOLDER)).expect("folder");
    std::fs::write(folder.path().join("pipelines/crm.yaml"), pipeline).expect("write");
    Config::load(Some(&file)).map_err(|error| {
        let strip = |text: &str| text.replace(&format!("{}/", folder.path().display()), "");
        let mut stripped = Error::new(error.code(), strip(error.message()));
        if let Some(detail) = error.detail_text() {
            stripped = stripped.detail(strip(detail));
        }
        match error.hint_text() {
            Some(hint) => stripped.hint(hint),
            None => stripped,
        }
    })
}

/// The first table of the first org.
fn first(config: &Config) -> TableSpec {
    config.pipelines().expect("pipelines").remove(0).tables.remove(0)
}

fn complaint(process: &str, pipeline: &str) -> String {
    let error = load(process, pipeline).expect_err("bad configuration");
    let mut text = format!("{}: {}", error.code(), error);
    for part in [error.detail_text(), error.hint_text()].into_iter().flatten() {
        write!(text, "\n{part}").expect("text");
    }
    text
}

#[test]
fn the_contract_s_shapes_are_read() {
    let config = load(PROCESS, PIPELINE).expect("good");
    let pipelines = config.pipelines().expect("pipelines");
    let [pipeline] = pipelines.as_slice() else { panic!("one org") };
    assert_eq!(pipeline.org.as_str(), "401");
    let names: Vec<_> = pipeline.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["opportunity", "email", "forecast_upload"]);
    let opportunity = &pipeline.tables[0];
    assert_eq!(opportunity.mode, Mode::Append);
    let month: PartitionField = "month(created_at)".parse().expect("field");
    assert_eq!(opportunity.partition, [month]);
    assert!(
        config.address("./lake").ends_with("/lake") && !config.address("./lake").contains("/./")
    );
    assert_eq!(config.address("s3://a/b"), "s3://a/b");
}

#[test]
fn overrides_replace_and_disable() {
    let pipeline = PIPELINE.replace(
        "template: crm }",
        "template: crm, overrides: { email: { enabled: false }, opportunity: { key: [a, b] } } }",
    );
    let config = load(PROCESS, &pipeline).expect("good");
    let tables = config.pipelines().expect("pipelines").remove(0).tables;
    assert_eq!(tables.len(), 2);
    assert_eq!(tables[0].key, ["a", "b"]);
}

#[test]
fn policies_are_read_with_their_defaults_and_bounds() {
    let with = |policy: &str| {
        PIPELINE.replace("key: [id]\n        partition", &format!("{policy}\n        partition"))
    };
    let good = with("retention: { column: created_at, keep: 6 months }");
    let table = first(&load(PROCESS, &good).expect("good"));
    let retention = table.retention.expect("retention");
    assert_eq!(
        (retention.keep.to_string(), retention.within.to_string()),
        ("6 months".into(), "1 month".into())
    );
    assert_eq!((table.maintenance.target_file_mb, table.maintenance.keep_versions), (128, 2));
    assert_eq!((table.sort, table.maintenance.sort_files), (None, false));
    let sorted = with("sort: [created_at, id desc]\n        maintenance: { sort_files: true }");
    let table =
        load(PROCESS, &sorted).expect("good").pipelines().expect("good").remove(0).tables.remove(0);
    let printed: Vec<_> = table.sort.expect("sort").iter().map(ToString::to_string).collect();
    assert_eq!(printed, ["created_at", "id desc"]);
    assert!(table.maintenance.sort_files);
    let cases = [
        ("retention: { column: created_at, keep: soon }", "90 days"),
        ("maintenance: { target_file_mb: 4 }", "16 to 512"),
        ("maintenance: { keep_snapshots: 0 }", "1 or more"),
        ("maintenance: { keep_version: 3 }", "did you mean `keep_versions`?"),
        (
            "columns: [updated_at, created_at]\n        retention: { column: at, keep: 1 year }",
            "leaves out",
        ),
        ("sort: [month(created_at)]", "desc nulls last"),
        ("sort: [id, id desc]", "the most significant first"),
        ("columns: [updated_at, created_at]\n        sort: [id]", "leaves out"),
    ];
    for (policy, hint) in cases {
        let text = complaint(PROCESS, &with(policy));
        assert!(text.contains(hint), "{policy}: {text}");
    }
}

#[test]
fn a_table_s_engine_has_to_be_there() {
    let with =
        |policy: &str| PIPELINE.replace("key: [id]", &format!("key: [id]\n        {policy}"));
    let text = complaint(PROCESS, &with("engine: trino"));
    assert!(text.contains("has no [trino]") && text.contains("pipelines/crm.yaml:"), "{text}");
    let trino = |more: &str| format!("{PROCESS}[trino]\nurl = \"http://trino:8080\"\n{more}");
    let engine = |process: &str, policy: &str| {
        let config = load(process, &with(policy)).expect("good");
        config.process.engine(first(&config).engine)
    };
    let (own, by_default) = (trino(""), trino("default = true\n"));
    assert_eq!(engine(&own, "engine: trino"), EngineKind::Trino);
    assert_eq!(engine(&own, "engine: embedded"), EngineKind::Embedded);
    assert_eq!(engine(&own, "enabled: true"), EngineKind::Embedded);
    assert_eq!(engine(&by_default, "enabled: true"), EngineKind::Trino);
    assert_eq!(engine(&by_default, "engine: embedded"), EngineKind::Embedded);
    let ingests = |process: &str| {
        let config = load(process, &with("engine: trino")).expect("good");
        config.process.trino.is_some_and(|trino| trino.ingest)
    };
    assert!(!ingests(&own) && !ingests(&by_default) && ingests(&trino("ingest = true\n")));
    let patched = "template: crm, overrides: { opportunity: { engine: trino } } }";
    let pipeline = PIPELINE.replace("template: crm }", patched);
    assert!(complaint(PROCESS, &pipeline).contains("has no [trino]"));
    assert_eq!(first(&load(&own, &pipeline).expect("good")).engine, Some(EngineKind::Trino));
}

#[test]
fn an_org_and_a_table_of_it_stand_once() {
    let org = "  - { id: \"401\", name: Acme, template: crm }\n";
    // The one that is switched off counts too: of the two, the files would have meant one.
    let off = org.replace("template: crm", "enabled: false");
    for twice in [format!("{org}{org}"), format!("{off}{org}"), format!("{off}{off}")] {
        let text = complaint(PROCESS, &PIPELINE.replace(org, &twice));
        assert!(text.contains("org \"401\" stands twice"), "{text}");
    }
    let own = "template: crm, tables: [{ name: email, source: revdb, from: public.email }] }";
    let text = complaint(PROCESS, &PIPELINE.replace("template: crm }", own));
    assert!(text.contains("table \"email\" stands twice"), "{text}");
}

#[test]
fn an_empty_pipeline_file_is_no_pipeline() {
    let config = load(PROCESS, "# nothing yet\n").expect("good");
    assert!(config.pipelines().expect("pipelines").is_empty());
}

#[test]
fn misspelt_keys_name_their_place_and_the_right_word() {
    let text = complaint(PROCESS, &PIPELINE.replace("cursor: updated_at", "cursr: updated_at"));
    assert!(text.contains("unknown field `cursr`"), "{text}");
    assert!(text.contains("pipelines/crm.yaml:10:9"), "{text}");
    assert!(text.contains("10 |         cursr: updated_at"), "{text}");
    assert!(text.contains("did you mean `cursor`?"), "{text}");
    let text = complaint(&PROCESS.replace("warehouse", "warehose"), PIPELINE);
    assert!(text.contains("polder.toml:3:1"), "{text}");
    assert!(text.contains("did you mean `warehouse`?"), "{text}");
}

#[test]
fn names_that_mean_nothing_are_found() {
    let cases = [
        ("source: revdb", "source: revbd", "spec.invalid", "6:17", "did you mean \"revdb\"?"),
        (
            "template: crm }",
            "template: crmm }",
            "spec.unknown_name",
            "16:40",
            "did you mean \"crm\"?",
        ),
        ("month(created_at)", "week(created_at)", "spec.invalid", "12:21", "month(c)"),
        ("        cursor: updated_at\n", "", "spec.invalid", "9:15", "cursor: updated_at"),
        ("id: \"401\"", "id: \"4 1\"", "spec.invalid", "16:12", "letters, digits"),
        ("filter: org_id = {org}", "filter: { org: \"{org}\" }", "spec.invalid", "8:9", "SQL"),
    ];
    for (good, bad, code, place, hint) in cases {
        let text = complaint(PROCESS, &PIPELINE.replace(good, bad));
        assert!(text.starts_with(code), "{bad}: {text}");
        assert!(text.contains(place), "{bad}: {text}");
        assert!(text.contains(hint), "{bad}: {text}");
    }
}

#[test]
fn a_merge_needs_a_key_and_a_cursor() {
    let merge = PIPELINE.replacen("mode: append", "mode: merge", 1);
    let config = load(PROCESS, &merge).expect("good");
    let table = first(&config);
    assert_eq!((table.mode, table.deleted_at.as_deref()), (Mode::Merge, None));
    let marked = merge.replace("key: [id]", "key: [id]\n        deleted_at: gone");
    let config = load(PROCESS, &marked).expect("good");
    assert_eq!(first(&config).deleted_at.as_deref(), Some("gone"));
    let cases = [
        (merge.replace("        key: [id]\n", ""), "merges but has no key", "9:15", "key: [id]"),
        (
            merge.replace("        cursor: updated_at\n", ""),
            "merges but has no cursor",
            "9:15",
            "cursor: updated_at",
        ),
        (
            marked.replace("mode: merge", "mode: append"),
            "only a merge goes by",
            "12:9",
            "mode: merge",
        ),
        (marked.replace("gone", "id"), "as key and as deleted_at", "11:15", "never is"),
        (
            marked.replace(
                "key: [id]\n",
                "key: [id]\n        columns: [id, updated_at, created_at]\n",
            ),
            "column \"gone\", which `columns` leaves out",
            "13:21",
            "add \"gone\"",
        ),
        (
            PIPELINE.replace("forecast/*.csv\", mode: append", "forecast/*.csv\", mode: merge"),
            "merges files",
            "14:85",
            "mode: append",
        ),
    ];
    for (pipeline, message, place, hint) in cases {
        let text = complaint(PROCESS, &pipeline);
        assert!(text.starts_with("spec.invalid"), "{text}");
        for part in [message, &format!("pipelines/crm.yaml:{place}"), hint] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn limits_under_which_nothing_runs_are_refused() {
    let with = |limits: &str| {
        PIPELINE.replace("template: crm }", &format!("template: crm, limits: {{ {limits} }} }}"))
    };
    let good = load(PROCESS, &with("memory_mb: 64, connections: 2")).expect("good");
    let pipelines = good.pipelines().expect("good");
    let limits = &pipelines[0].limits;
    assert_eq!((limits.memory_mb, limits.connections), (Some(64), Some(2)));
    let cases = [
        ("memory_mb: 15", "memory_mb is 16 or more"),
        ("connections: 0", "1 or more"),
        ("conections: 2", "did you mean `connections`?"),
    ];
    for (bad, hint) in cases {
        let text = complaint(PROCESS, &with(bad));
        assert!(text.starts_with("spec.invalid") && text.contains(hint), "{bad}: {text}");
        assert!(text.contains("pipelines/crm.yaml:16:"), "{bad}: {text}");
    }
    let of_template = |limits: &str, own: &str| {
        format!(
            "templates:\n  crm:\n    limits: {{ {limits} }}\n    tables: []\n\
             orgs:\n  - {{ id: \"1\", template: crm, limits: {{ {own} }} }}\n"
        )
    };
    let text = complaint(PROCESS, &of_template("runs: 0", "runs: 1"));
    assert!(text.starts_with("spec.invalid") && text.contains("template crm"), "{text}");
    assert!(text.contains("pipelines/crm.yaml:3:"), "{text}");
    let good = load(PROCESS, &of_template("runs: 3, connections: 4", "runs: 1")).expect("good");
    let pipelines = good.pipelines().expect("good");
    let limits = &pipelines[0].limits;
    assert_eq!((limits.runs, limits.connections, limits.memory_mb), (Some(1), Some(4), None));
    let at_most =
        |text: &str| PROCESS.replace("\"env:REVDB_URL\"", &format!("\"env:REVDB_URL\"\n{text}"));
    let config = load(&at_most("max_connections = 8"), PIPELINE).expect("good");
    let SourceSpec::Postgres(source) = &config.process.sources["revdb"] else { panic!("postgres") };
    assert_eq!(source.max_connections.map(std::num::NonZeroU32::get), Some(8));
    let text = complaint(&at_most("max_connections = 0"), PIPELINE);
    assert!(text.contains("polder.toml") && text.contains("nonzero"), "{text}");
    // Files have no connections that could be counted.
    let files = format!("{PROCESS}max_connections = 8\n");
    assert!(complaint(&files, PIPELINE).contains("unknown field `max_connections`"));
}

#[test]
fn half_an_account_is_refused() {
    for table in ["[storage.s3]\npath_style = true", "[catalog.glue]\ncatalog_id = \"1\""] {
        for named in ["access_key", "secret_key"] {
            let account = format!("{table}\n{named} = \"env:KEY\"\n");
            let text = complaint(&(PROCESS.to_owned() + &account), PIPELINE);
            assert!(text.contains(&format!("has {named} but no ")), "{text}");
            assert!(text.contains("polder.toml:19:1"), "{text}");
            assert!(text.contains("name both, or neither"), "{text}");
        }
    }
}

#[test]
fn what_is_said_of_a_rest_catalog_has_to_be_of_use() {
    let external = PROCESS.replace("sqlite://./polder.db\"\n[store]", "https://host/c\"\n[store]");
    let rest = |process: &str, settings: &str| format!("{process}[catalog.rest]\n{settings}\n");
    let good = "warehouse = \"w\"\ncredential = \"env:CREDENTIAL\"\nscope = \"s\"";
    let config = load(&rest(&external, good), PIPELINE).expect("good");
    assert_eq!(config.process.lake.catalog, "https://host/c");
    assert_eq!(config.process.catalog.rest.expect("rest").warehouse.as_deref(), Some("w"));
    let cases = [
        (PROCESS, good, "[lake] catalog is the embedded", "polder.toml:4:1"),
        (&external, "credential = \"env:A\"\ntoken = \"env:B\"", "both", "polder.toml:19:1"),
        (&external, "scope = \"s\"", "has scope but no credential", "polder.toml:18:1"),
        (&external, "token = \"env:B\"\nscope = \"s\"", "but no credential", "polder.toml:19:1"),
        (&external, "tokn = \"env:B\"", "did you mean `token`?", "polder.toml:18:1"),
    ];
    for (process, settings, message, place) in cases {
        let text = complaint(&rest(process, settings), PIPELINE);
        assert!(text.starts_with("spec.invalid") && text.contains(message), "{text}");
        assert!(text.contains(place), "{text}");
    }
}

#[test]
fn a_pasted_secret_is_refused_and_not_repeated() {
    let text = complaint(&PROCESS.replace("env:REVDB_URL", "postgres://u:hunter2@h/d"), PIPELINE);
    assert!(text.contains("a secret has to be a reference"), "{text}");
    assert!(text.contains("env:NAME"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn groups_are_of_the_template_and_orgs_switch_those() {
    let with = |group: &str, org: &str| {
        let groups = format!("  crm:\n    groups: {{ sales: {group} }}\n    tables:");
        let pipeline = PIPELINE.replacen("  crm:\n    tables:", &groups, 1);
        pipeline.replacen("template: crm }", &format!("template: crm, groups: {org} }}"), 1)
    };
    let off = "{ tables: [opportunity], enabled: false }";
    let config = load(PROCESS, &with(off, "{}")).expect("good");
    assert_eq!(first(&config).name, "email");
    let config = load(PROCESS, &with(off, "{ sales: true }")).expect("good");
    assert_eq!(first(&config).name, "opportunity");
    let said = complaint(PROCESS, &with(off, "{ sale: true }"));
    assert!(said.starts_with("spec.unknown_name: org 401 switches group \"sale\""), "{said}");
    assert!(said.contains("pipelines/crm.yaml:") && said.contains("sales"), "{said}");
    let said = complaint(PROCESS, &with("{ tables: [opportunit] }", "{}"));
    assert!(said.contains("pipelines/crm.yaml:4:") && said.contains("opportunity"), "{said}");
    let said = complaint(PROCESS, &with("{ tables: [email, email] }", "{}"));
    assert!(said.contains("is in two groups, or twice in one"), "{said}");
}
