//! Files as a source: CSV, JSON lines and Parquet, in a local folder or an S3 bucket.
//!
//! A table is the set of objects that match a glob. Objects read earlier are told by key and entity
//! tag and left out; an object that changed since is an error, as its old rows are in the table.
//! Nothing is ever written to the place the files come from.

mod csv;
mod json;
mod json_lines;
mod object;
mod parquet;
mod pattern;
mod place;
mod reject;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use polder_core::checkpoint::ObjectState;
use polder_core::spec::{FileFormat, Mode};
use polder_core::{
    BatchStream, Capabilities, Error, ErrorCode, LakeType, ReadPlan, ReadRequest, Result, Source,
    SourceTable, Split, Stage, TableSchema, digest,
};

use self::object::{Input, Object};
use self::pattern::ObjectPattern;
pub use self::place::Place;
use self::reject::BadLines;
use crate::blocking;
use crate::document::{self, Dialect};
use crate::names::{self, nearest};

/// Objects `discover` looks at.
const DISCOVER_MAX: usize = 10_000;

/// The files of one place.
pub struct FilesSource {
    name: String,
    place: Place,
    /// Below it, per org, the files of rejected lines.
    rejects: PathBuf,
}

/// What looking through the files gave.
struct Learnt {
    schema: TableSchema,
    rows: Option<u64>,
    warnings: Vec<String>,
}

impl FilesSource {
    /// Reads nothing yet. Lines that are set aside are written to `<base>/rejects/<org>/`.
    pub fn new(name: &str, place: Place, base: &Path) -> Self {
        Self { name: name.to_owned(), place, rejects: base.join("rejects") }
    }

    /// The objects to read, after those read earlier are left out.
    async fn new_objects(&self, request: &ReadRequest) -> Result<(Vec<Object>, bool)> {
        let pattern = ObjectPattern::new(&request.from, &request.org)?;
        let wanted = pattern.clone();
        let found = self
            .place
            .list(pattern.folder(), pattern.depth(), move |key| wanted.matches(key))
            .await?;
        if found.is_empty() && pattern.is_literal() {
            let message = format!("there is no file {}", pattern.as_str());
            return Err(Error::new(ErrorCode::SourceNotFound, message));
        }
        let any = !found.is_empty();
        let mut new = Vec::new();
        for object in found {
            match request.objects_read.get(&object.key) {
                None => new.push(object),
                Some(read) if read.etag == object.etag => {}
                Some(_) => {
                    let message = format!("file {} changed after it was read", object.key);
                    return Err(Error::new(ErrorCode::SourceFailed, message)
                        .detail("the rows of its earlier content are in the table")
                        .hint("run once with --full-refresh; put new rows in new files"));
                }
            }
        }
        Ok((new, any))
    }

    async fn read_plan(
        &self,
        format: FileFormat,
        inputs: Vec<Input>,
        request: &ReadRequest,
    ) -> Result<Planned> {
        let bad_lines = Arc::new(BadLines::new(
            request.format.on_bad_line,
            &self.rejects.join(request.org.as_str()),
            &self.name,
            request.progress.clone(),
        ));
        match format {
            FileFormat::Csv => {
                let format = Arc::new(csv::CsvFormat::new(request, bad_lines));
                let (learner, files) = (format.clone(), inputs.clone());
                request.progress.wait_for(format!("the types of {} CSV files", inputs.len()));
                let learnt = blocking::run(move || learner.learn(&files)).await?;
                let schema = learnt.schema.clone();
                let splits = split(inputs, request, move |inputs| {
                    blocking::stream(format.clone().read(inputs, &schema))
                });
                Ok((learnt, splits))
            }
            FileFormat::JsonLines => {
                let asked = request.clone();
                let (spill, schema, warnings) = blocking::run(move || {
                    let (spill, inference) = json_lines::parse(&inputs, &asked, &bad_lines)?;
                    let (schema, warnings) = inference.finish()?;
                    Ok((spill, schema, warnings))
                })
                .await?;
                let rows = Some(spill.rows());
                let splits = document::splits(spill, &schema, Dialect::Json, request);
                Ok((Learnt { schema, rows, warnings }, splits))
            }
            FileFormat::Parquet => {
                let format = Arc::new(parquet::ParquetFormat::new(request));
                let inputs = blocking::run(move || object::seekable(inputs)).await?;
                let (learner, files) = (format.clone(), inputs.clone());
                let learnt = blocking::run(move || learner.learn(&files)).await?;
                let schema = learnt.schema.clone();
                let splits = split(inputs, request, move |inputs| {
                    blocking::stream(format.clone().read(inputs, &schema))
                });
                Ok((learnt, splits))
            }
        }
    }
}

type Planned = (Learnt, Vec<Box<dyn Split>>);

#[async_trait]
impl Source for FilesSource {
    fn capabilities(&self) -> Capabilities {
        Capabilities { cursor: false, objects: true, complete_schema: false }
    }

    async fn check(&self) -> Result<String> {
        self.place.check().await
    }

    async fn discover(&self) -> Result<Vec<SourceTable>> {
        let objects = self.place.list("", None, |key| ending(key).is_some()).await?;
        let mut globs: BTreeMap<String, &'static str> = BTreeMap::new();
        for object in objects.iter().take(DISCOVER_MAX) {
            let (folder, file) = object.key.rsplit_once('/').unwrap_or(("", &object.key));
            let Some((_, extension)) = ending(file).filter(|_| !file.starts_with('.')) else {
                continue;
            };
            globs.insert(pattern::all_in(folder, extension), "files");
        }
        let tables = globs.into_iter().map(|(name, kind)| SourceTable {
            name,
            kind,
            schema: TableSchema::default(),
            key: Vec::new(),
            cursors: Vec::new(),
            mode: Mode::Append,
            rows_estimated: None,
        });
        Ok(tables.collect())
    }

    /// The name is the glob: `files."401/forecast/*.csv"`.
    fn named_in_sql(&self, schema: Option<&str>, table: &str) -> Option<String> {
        (schema.is_none() && !table.contains("{org}")).then(|| table.to_owned())
    }

    async fn plan(&self, request: ReadRequest) -> Result<ReadPlan> {
        let unfit = |what: &str| {
            Err(Error::new(ErrorCode::SpecInvalid, format!("tables of files have no {what}"))
                .hint("files are told by their names: put the org into `from`"))
        };
        if request.filter.is_some() {
            return unfit("filter");
        }
        if request.cursor.is_some() {
            return unfit("cursor");
        }
        names::each_once(request.columns.as_deref())?;
        request.progress.enter(Stage::Inferring);
        let (new, any) = self.new_objects(&request).await?;
        let mut objects = request.objects_read.clone();
        objects.extend(
            new.iter().map(|new| (new.key.clone(), ObjectState { etag: new.etag.clone() })),
        );
        let snapshot = Some(named(new.len(), &objects));
        if new.is_empty() {
            let known = request.known_schema.clone().unwrap_or_default();
            let none = format!("no file matches {}", request.from);
            return Ok(ReadPlan {
                schema: select(known, request.columns.as_deref()).unwrap_or_default(),
                snapshot,
                splits: Vec::new(),
                rows_estimated: Some(0),
                cursor_ceiling: None,
                cursor_floor: None,
                key_is_unique: false,
                objects,
                doubts: Vec::new(),
                warnings: if any { Vec::new() } else { vec![none] },
            });
        }
        let format = format(&new, &request)?;
        let inputs = self.place.fetch(new).await?;
        let (learnt, splits) = self.read_plan(format, inputs, &request).await?;
        request.progress.estimate(learnt.rows.unwrap_or(0));
        Ok(ReadPlan {
            schema: learnt.schema,
            snapshot,
            splits,
            rows_estimated: learnt.rows,
            cursor_ceiling: None,
            cursor_floor: None,
            key_is_unique: false,
            objects,
            // Each file is read once, as it was listed: an etag that moves is an error.
            doubts: Vec::new(),
            warnings: learnt.warnings,
        })
    }
}

/// A state's name: another one as soon as an object came, went or changed.
fn named(new: usize, objects: &BTreeMap<String, ObjectState>) -> String {
    let mut text = Vec::new();
    for (key, object) in objects {
        text.extend(format!("{}:{key}{}:{}", key.len(), object.etag.len(), object.etag).bytes());
    }
    format!("{new} new files of {}, state {:016x}", objects.len(), digest::word(&text))
}

/// The format all files of the table have.
fn format(objects: &[Object], request: &ReadRequest) -> Result<FileFormat> {
    let format = match request.format.format {
        Some(format) => format,
        None => format_of_names(objects)?,
    };
    let binary = request.types.iter().find(|(_, declared)| **declared == LakeType::Binary);
    match binary {
        Some((name, _)) if format != FileFormat::Parquet => {
            let message = format!("column {name} cannot be declared binary: its files hold text");
            Err(Error::new(ErrorCode::SpecInvalid, message).hint("declare it as string"))
        }
        _ => Ok(format),
    }
}

fn format_of_names(objects: &[Object]) -> Result<FileFormat> {
    let mut found: Option<(FileFormat, &str)> = None;
    for object in objects {
        let Some((format, _)) = ending(&object.key) else {
            let message = format!("the name of file {} does not tell its format", object.key);
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("set `format: { type: csv }`, `json_lines` or `parquet`"));
        };
        match found {
            Some((first, key)) if first != format => {
                let message = format!("files {key} and {} have different formats", object.key);
                return Err(
                    Error::new(ErrorCode::SpecInvalid, message).hint("make a table of each format")
                );
            }
            _ => found = Some((format, &object.key)),
        }
    }
    found
        .map(|(format, _)| format)
        .ok_or_else(|| Error::new(ErrorCode::Internal, "a table of no files has no format"))
}

/// The format a name's ending tells, before an ending of compression, and those endings.
fn ending(key: &str) -> Option<(FileFormat, &str)> {
    let lower = key.to_ascii_lowercase();
    let compressed = [".gz", ".gzip", ".zst", ".zstd"];
    let plain = compressed.iter().find_map(|ending| lower.strip_suffix(ending)).unwrap_or(&lower);
    let (stem, extension) = plain.rsplit_once('.')?;
    let format = match extension {
        "csv" | "tsv" | "txt" => FileFormat::Csv,
        "jsonl" | "ndjson" => FileFormat::JsonLines,
        "parquet" | "pq" => FileFormat::Parquet,
        _ => return None,
    };
    Some((format, &key[stem.len()..]))
}

/// The columns asked for, in that order.
fn select(schema: TableSchema, columns: Option<&[String]>) -> Result<TableSchema> {
    let Some(columns) = columns else { return Ok(schema) };
    let fields = columns.iter().map(|name| {
        schema.field(name).cloned().ok_or_else(|| {
            let message = format!("no file has the column {name}");
            let error = Error::new(ErrorCode::SourceNotFound, message);
            match nearest(name, schema.fields.iter().map(|field| field.name.as_str())) {
                Some(names) => error.hint(format!("there is {names}")),
                None => error,
            }
        })
    });
    Ok(TableSchema::new(fields.collect::<Result<_>>()?))
}

/// Some files of a plan.
struct FileSplit<F> {
    inputs: Vec<Input>,
    open: F,
}

/// Spreads the files over at most as many splits as the request allows, largest first.
fn split<F>(mut inputs: Vec<Input>, request: &ReadRequest, open: F) -> Vec<Box<dyn Split>>
where
    F: Fn(Vec<Input>) -> BatchStream + Clone + Send + 'static,
{
    let count = request.splits_max.get().min(inputs.len());
    inputs.sort_by_key(|input| std::cmp::Reverse(input.object.size));
    let mut groups: Vec<(u64, Vec<Input>)> = vec![(0, Vec::new()); count];
    for input in inputs {
        if let Some((size, group)) = groups.iter_mut().min_by_key(|(size, _)| *size) {
            *size += input.object.size.max(1);
            group.push(input);
        }
    }
    let split = |(_, mut inputs): (u64, Vec<Input>)| {
        inputs.sort_by(|a, b| a.object.key.cmp(&b.object.key));
        Box::new(FileSplit { inputs, open: open.clone() }) as Box<dyn Split>
    };
    groups.into_iter().map(split).collect()
}

impl<F: Fn(Vec<Input>) -> BatchStream + Send> Split for FileSplit<F> {
    fn describe(&self) -> String {
        match &self.inputs[..] {
            [only] => only.object.key.clone(),
            inputs => format!("{} files", inputs.len()),
        }
    }

    fn read(self: Box<Self>) -> BatchStream {
        (self.open)(self.inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_s_ending_tells_the_format() {
        for (key, expected) in [
            ("a/b.csv", Some((FileFormat::Csv, ".csv"))),
            ("b.2024.CSV.GZ", Some((FileFormat::Csv, ".CSV.GZ"))),
            ("b.jsonl.zst", Some((FileFormat::JsonLines, ".jsonl.zst"))),
            ("b.parquet", Some((FileFormat::Parquet, ".parquet"))),
            ("b.gz", None),
            ("b", None),
            ("b.xlsx", None),
        ] {
            assert_eq!(ending(key), expected, "{key}");
        }
    }
}
