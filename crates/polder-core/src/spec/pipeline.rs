//! `pipelines/*.yaml`: templates of tables and the orgs that take them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::external::{schedule_or_external, schedule_or_external_schema};
use super::{
    EngineKind, MaintenanceSpec, OrgLimits, PartitionField, RetentionSpec, ScheduleSpec, SortField,
    SqlCheck, ValidationSpec,
};
use crate::{Error, LakeType};

/// One pipeline file.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PipelineFile {
    /// Sets of tables, by name.
    pub templates: BTreeMap<String, TemplateSpec>,
    pub orgs: Vec<OrgSpec>,
}

/// A set of tables that orgs take together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateSpec {
    /// When tables run that say nothing of it themselves, nor their org.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "schedule_or_external"
    )]
    #[schemars(schema_with = "schedule_or_external_schema")]
    pub schedule: Option<ScheduleSpec>,
    /// How much of the machine each org may take that takes the template: what the org says itself holds
    /// instead, limit by limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<OrgLimits>,
    /// Tables that orgs switch on and off together, by the group's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupSpec>,
    pub tables: Vec<TableSpec>,
}

/// Tables of a template that orgs switch on and off together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// What the tables have in common, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Tables of the template. Each is in one group at most.
    pub tables: Vec<String>,
    /// Whether orgs run them that say nothing of the group.
    #[serde(default = "yes")]
    pub enabled: bool,
}

impl TemplateSpec {
    /// Whether an org that switches groups so has a group on; `None` for a group that is not there.
    pub fn has_group(&self, name: &str, switched: &BTreeMap<String, bool>) -> Option<bool> {
        let group = self.groups.get(name)?;
        Some(switched.get(name).copied().unwrap_or(group.enabled))
    }

    /// The tables as an org has them that switches groups so: those of a group that is off are switched off.
    pub fn tables_for(&self, switched: &BTreeMap<String, bool>) -> Vec<TableSpec> {
        let mut tables = self.tables.clone();
        for (name, group) in &self.groups {
            if self.has_group(name, switched) == Some(false) {
                let own = tables.iter_mut().filter(|table| group.tables.contains(&table.name));
                own.for_each(|table| table.enabled = false);
            }
        }
        tables
    }
}

/// An org and what it takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OrgSpec {
    /// 1 to 63 letters, digits, `_` or `-`. Quote ids that look like numbers: `"401"`.
    pub id: String,
    /// The org's name for people.
    #[serde(default)]
    pub name: Option<String>,
    /// The template whose tables the org gets.
    #[serde(default)]
    pub template: Option<String>,
    /// Groups of its template that the org switches on (true) or off.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, bool>,
    /// What this org has differently, by the template's table name.
    #[serde(default)]
    pub overrides: BTreeMap<String, TablePatch>,
    /// Tables of this org alone.
    #[serde(default)]
    pub tables: Vec<TableSpec>,
    /// When the org's tables run that say nothing of it themselves.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "schedule_or_external"
    )]
    #[schemars(schema_with = "schedule_or_external_schema")]
    pub schedule: Option<ScheduleSpec>,
    /// How much of the machine the org may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<OrgLimits>,
    /// False stops all of the org's runs.
    #[serde(default = "yes")]
    pub enabled: bool,
}

/// One lake table and where its rows come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// The lake table's name.
    pub name: String,
    /// The source, by its name in `polder.toml`.
    pub source: String,
    /// The source table. PostgreSQL: `schema.table` or `database.schema.table`; MongoDB: a
    /// collection; files: a glob. `{org}` stands for the org's id.
    pub from: String,
    /// Which rows are the org's. PostgreSQL: an SQL condition in which `{org}` is a bound value;
    /// MongoDB: a filter document with `"{org}"` as a string value.
    #[serde(default)]
    pub filter: Option<Filter>,
    #[serde(default)]
    pub mode: Mode,
    /// The column by which new and changed rows are found (`mode: append`, `mode: merge`); `xmin`: the
    /// transaction that wrote a row, for PostgreSQL tables without such a column.
    #[serde(default)]
    pub cursor: Option<String>,
    /// The columns that identify a row. PostgreSQL: the primary key unless said otherwise.
    #[serde(default)]
    pub key: Vec<String>,
    /// The column that marks a row as deleted by any value but null: such rows are removed from the
    /// lake table (`mode: merge`).
    #[serde(default)]
    pub deleted_at: Option<String>,
    /// What the table holds, for people and agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What columns hold, by column, for people and agents.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub docs: BTreeMap<String, String>,
    /// Columns that name a row of another table of the org by its key: `opportunity_id: opportunity`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub references: BTreeMap<String, String>,
    /// The column that says when what a row tells of happened; histories are ordered by it. The
    /// cursor when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_time: Option<String>,
    /// The lake table's partitions, whatever the source has.
    #[serde(default)]
    pub partition: Vec<PartitionField>,
    /// The order of rows in files that `polder maintain optimize` writes, most significant column
    /// first: `[created_at, id desc nulls last]`. The table's own order when absent; `[]` ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<Vec<SortField>>,
    /// The columns to read; all when absent.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// Types declared instead of discovered or inferred, by column: `amount: decimal(18, 2)`.
    #[serde(default)]
    pub types: BTreeMap<String, DeclaredType>,
    /// What to do with a value the column's type cannot hold exactly.
    #[serde(default)]
    pub on_unrepresentable: OnUnrepresentable,
    /// What to do when the source's schema changed.
    #[serde(default)]
    pub on_schema_change: OnSchemaChange,
    /// What becomes of a column the source has dropped, under `on_schema_change: evolve`.
    #[serde(default)]
    pub on_dropped_column: OnDroppedColumn,
    /// How files are read.
    #[serde(default)]
    pub format: FormatOptions,
    /// How long rows are kept; for ever when absent.
    #[serde(default)]
    pub retention: Option<RetentionSpec>,
    /// How the table is kept between runs.
    #[serde(default)]
    pub maintenance: MaintenanceSpec,
    /// Who carries out `optimize`, and runs if `[trino] ingest` says so; as `[trino] default` says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineKind>,
    /// When `polder serve` runs the table; as its org or template says when absent.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "schedule_or_external"
    )]
    #[schemars(schema_with = "schedule_or_external_schema")]
    pub schedule: Option<ScheduleSpec>,
    /// How the table is held to its source, and what follows when it is wrong.
    #[serde(default)]
    pub validation: ValidationSpec,
    /// Questions about the org's tables that have to have the right answers.
    #[serde(default)]
    pub checks: Vec<SqlCheck>,
    /// False leaves the table out of runs.
    #[serde(default = "yes")]
    pub enabled: bool,
}

impl TableSpec {
    /// The parts that decide which rows and columns are read: a run after a change of one reloads the
    /// table, whose checkpoint remembers them.
    pub fn reads(&self) -> Value {
        let mut reads = json!({
            "source": self.source, "from": self.from, "filter": self.filter, "cursor": self.cursor,
            "columns": self.columns, "types": self.types, "format": self.format,
            "on_unrepresentable": self.on_unrepresentable,
        });
        if self.mode == Mode::Merge {
            // A table that holds one row for each key is another one than a table of all states.
            reads["merge"] = json!({ "key": self.key, "deleted_at": self.deleted_at });
        }
        reads
    }
}

/// What an org has differently from its template's table: fields that are present replace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TablePatch {
    pub source: Option<String>,
    pub from: Option<String>,
    pub filter: Option<Filter>,
    pub mode: Option<Mode>,
    pub cursor: Option<String>,
    pub key: Option<Vec<String>>,
    pub deleted_at: Option<String>,
    pub description: Option<String>,
    pub docs: Option<BTreeMap<String, String>>,
    pub references: Option<BTreeMap<String, String>>,
    pub event_time: Option<String>,
    pub partition: Option<Vec<PartitionField>>,
    pub sort: Option<Vec<SortField>>,
    pub columns: Option<Vec<String>>,
    pub types: Option<BTreeMap<String, DeclaredType>>,
    pub on_unrepresentable: Option<OnUnrepresentable>,
    pub on_schema_change: Option<OnSchemaChange>,
    pub on_dropped_column: Option<OnDroppedColumn>,
    pub format: Option<FormatOptions>,
    pub retention: Option<RetentionSpec>,
    pub maintenance: Option<MaintenanceSpec>,
    pub engine: Option<EngineKind>,
    #[serde(deserialize_with = "schedule_or_external")]
    #[schemars(schema_with = "schedule_or_external_schema")]
    pub schedule: Option<ScheduleSpec>,
    pub validation: Option<ValidationSpec>,
    pub checks: Option<Vec<SqlCheck>>,
    pub enabled: Option<bool>,
}

impl TablePatch {
    /// The template's table with this org's fields put over it.
    pub fn apply(&self, table: &TableSpec) -> TableSpec {
        let patch = self.clone();
        let table = table.clone();
        TableSpec {
            name: table.name,
            source: patch.source.unwrap_or(table.source),
            from: patch.from.unwrap_or(table.from),
            filter: patch.filter.or(table.filter),
            mode: patch.mode.unwrap_or(table.mode),
            cursor: patch.cursor.or(table.cursor),
            key: patch.key.unwrap_or(table.key),
            deleted_at: patch.deleted_at.or(table.deleted_at),
            description: patch.description.or(table.description),
            docs: patch.docs.unwrap_or(table.docs),
            references: patch.references.unwrap_or(table.references),
            event_time: patch.event_time.or(table.event_time),
            partition: patch.partition.unwrap_or(table.partition),
            sort: patch.sort.or(table.sort),
            columns: patch.columns.or(table.columns),
            types: patch.types.unwrap_or(table.types),
            on_unrepresentable: patch.on_unrepresentable.unwrap_or(table.on_unrepresentable),
            on_schema_change: patch.on_schema_change.unwrap_or(table.on_schema_change),
            on_dropped_column: patch.on_dropped_column.unwrap_or(table.on_dropped_column),
            format: patch.format.unwrap_or(table.format),
            retention: patch.retention.or(table.retention),
            maintenance: patch.maintenance.unwrap_or(table.maintenance),
            engine: patch.engine.or(table.engine),
            schedule: patch.schedule.or(table.schedule),
            validation: patch.validation.unwrap_or(table.validation),
            checks: patch.checks.unwrap_or(table.checks),
            enabled: patch.enabled.unwrap_or(table.enabled),
        }
    }
}

fn yes() -> bool {
    true
}

/// How a run brings the lake table up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Replace the whole content in one commit.
    #[default]
    FullRefresh,
    /// Add the rows since the checkpoint.
    Append,
    /// Keep one row for each key: rows since the checkpoint replace those the table has.
    Merge,
}

/// What to do with a value its column's type cannot hold exactly: ±infinity and years beyond the
/// type's range, `NaN` in a decimal, a number with more digits than declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnrepresentable {
    /// Stop the run; what is stored stays as it was.
    #[default]
    Error,
    /// Store null, and count it.
    Null,
    /// Store the nearest value the type has (null for `NaN`), and count it.
    Clamp,
    /// Read such columns as text: every column whose source type has such values becomes a string.
    Text,
}

/// What a changed source schema does to the lake table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnSchemaChange {
    /// Reload everything under one new version: old rows have values for a new column too.
    #[default]
    Refresh,
    /// Change the columns in place, without reloading, where old rows can be read under the new ones:
    /// added, renamed, widened, nullable, dropped (see `on_dropped_column`). Anything else reloads.
    Evolve,
    /// Fail with the difference.
    Freeze,
}

/// What becomes of a column that the source has dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDroppedColumn {
    /// The table keeps it: old rows have their values, new ones null.
    #[default]
    Keep,
    /// It goes from the table; earlier snapshots have it still.
    Drop,
}

/// Which rows of the source table are the org's.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// An SQL condition.
    Sql(String),
    /// A filter document (MongoDB extended JSON).
    Document(serde_json::Map<String, serde_json::Value>),
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Sql(text) => serializer.serialize_str(text),
            Self::Document(document) => document.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FilterVisitor;
        impl<'de> Visitor<'de> for FilterVisitor {
            type Value = Filter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an SQL condition (text) or a filter document (a map)")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Filter, E> {
                Ok(Filter::Sql(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Filter, A::Error> {
                Deserialize::deserialize(MapAccessDeserializer::new(map)).map(Filter::Document)
            }
        }
        deserializer.deserialize_any(FilterVisitor)
    }
}

impl JsonSchema for Filter {
    fn schema_name() -> Cow<'static, str> {
        "Filter".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "PostgreSQL: an SQL condition. MongoDB: a filter document.",
            "oneOf": [{ "type": "string" }, { "type": "object" }]
        })
    }
}

/// A scalar column type in Iceberg's notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredType(pub LakeType);

impl FromStr for DeclaredType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(Self)
    }
}

impl Serialize for DeclaredType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DeclaredType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_text(deserializer)
    }
}

impl JsonSchema for DeclaredType {
    fn schema_name() -> Cow<'static, str> {
        "DeclaredType".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "boolean, int, long, float, double, decimal(p, s), date, time, timestamp, timestamptz, string, uuid or binary.",
            "examples": ["decimal(18, 2)", "timestamptz", "string"]
        })
    }
}

/// Reads a value from its text form, keeping the hint of its error.
pub(super) fn parse_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = Error>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error: Error| {
        serde::de::Error::custom(format!("{error}; {}", error.hint_text().unwrap_or_default()))
    })
}

/// The format of a set of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    Parquet,
    Csv,
    /// One JSON object a line.
    JsonLines,
}

/// What to do with a line that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadLine {
    /// Stop the run, naming file and line.
    #[default]
    Error,
    /// Set the line aside in a reject file, and count it.
    Reject,
}

/// How files are read. Compression (gzip, zstd) is recognised by the file's first bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FormatOptions {
    /// By the name's ending (`.csv`, `.jsonl`, `.ndjson`, `.parquet`, before `.gz`/`.zst`) when
    /// absent.
    #[serde(rename = "type")]
    pub format: Option<FileFormat>,
    pub csv: CsvOptions,
    pub on_bad_line: OnBadLine,
}

/// How CSV is read (RFC 4180 with these differences).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CsvOptions {
    /// One ASCII character; when absent, a tab in files named `.tsv` and a comma in others.
    pub delimiter: Option<char>,
    /// One ASCII character.
    pub quote: char,
    /// Whether the first line names the columns; otherwise they are `column_1`, `column_2`, ….
    pub header: bool,
    /// The unquoted text that means null.
    pub null: String,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self { delimiter: None, quote: '"', header: true, null: String::new() }
    }
}
