//! The channels of a SageMaker training job (API reference, `Channel`, `S3DataSource`): for each table a
//! manifest or a folder below one prefix, and `channels.json`, the job's `InputDataConfig`.
//!
//! The lake's own files are listed where they hold the rows as they are: on S3, without deleted rows,
//! all columns of them in the only layout that the table ever had. Otherwise the rows are written anew, in
//! the lake's order, so that the same pin gives the same files. Nothing is uploaded here.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::datatypes::SchemaRef;
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use polder_core::{Error, ErrorCode, Predicate, Result};
use polder_lake::{LakeTable, OrderedScan, ScanFile, ScanRequest};
use serde_json::{Value, json};

use super::Form;

/// Rows of one file that is written.
const SHARD_ROWS: usize = 1_000_000;
/// Of SageMaker: attributes of an augmented manifest, characters of a line, and of a channel's name.
const ATTRIBUTES_MAX: usize = 16;
const LINE_CHARS_MAX: usize = 100_000;
const CHANNEL_CHARS_MAX: usize = 64;

/// Where channels are written, and in which form.
pub(super) struct Channels {
    form: Form,
    columns: Vec<String>,
    to: PathBuf,
    /// Ends with `/`.
    prefix: String,
    names: Mutex<HashSet<String>>,
}

/// One channel that was written.
pub(super) struct Channel {
    /// An element of `InputDataConfig`.
    input: Value,
    /// What was done, for whoever asked.
    pub(super) told: Value,
}

impl Channels {
    /// # Errors
    /// `spec.invalid` for a folder that is not empty, a prefix that is none, and for an augmented
    /// manifest without columns.
    pub(super) fn new(form: Form, columns: &[String], to: &Path, prefix: &str) -> Result<Self> {
        let invalid = |message: String| Error::new(ErrorCode::SpecInvalid, message);
        let bucket = bucket(prefix).filter(|bucket| !bucket.is_empty());
        if bucket.is_none() || prefix.contains(char::is_whitespace) {
            return Err(invalid(format!("{prefix:?} is no prefix on S3"))
                .hint("write --prefix s3://bucket/path/"));
        }
        if form == Form::Augmented && !(1..=ATTRIBUTES_MAX).contains(&columns.len()) {
            let message = format!("an augmented manifest has 1 to {ATTRIBUTES_MAX} attributes");
            return Err(invalid(message).hint("name them: --columns amount,stage"));
        }
        std::fs::create_dir_all(to).map_err(|cause| unwritable(to, cause))?;
        let mut there = std::fs::read_dir(to).map_err(|cause| unwritable(to, cause))?;
        if there.next().is_some() {
            return Err(invalid(format!("{} is not empty", to.display()))
                .hint("name a new folder: everything in it is copied to the prefix"));
        }
        let prefix = format!("{}/", prefix.trim_end_matches('/'));
        let (columns, to) = (columns.to_vec(), to.to_owned());
        Ok(Self { form, columns, to, prefix, names: Mutex::default() })
    }

    /// Writes one table's channel.
    pub(super) async fn write(&self, table: &LakeTable, snapshot: i64) -> Result<Channel> {
        let name = self.name(table.name())?;
        let columns = (!self.columns.is_empty()).then(|| self.columns.clone());
        let scan = ScanRequest { snapshot: Some(snapshot), filter: Predicate::True, columns };
        let ordered = table.ordered(scan.clone()).await?;
        match self.form {
            Form::Augmented => self.augmented(&name, &ordered).await,
            Form::Prefix => {
                let (files, rows) = self.shards(&name, &ordered).await?;
                let address = format!("{}{name}/", self.prefix);
                Ok(channel(
                    &name,
                    ("S3Prefix", address),
                    json!({ "written": files.len(), "rows": rows }),
                ))
            }
            Form::Manifest => {
                let files = table.plan(scan).await?.files;
                let plain = self.columns.is_empty() && table.layouts() == 1;
                let own = files.iter().all(|file| plain && self.as_it_is(file));
                let (objects, told) = if own {
                    let listed: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
                    let rows: Option<u64> = files.iter().map(|file| file.rows).sum();
                    let told = json!({ "in_place": listed.len(), "written": 0, "rows": rows });
                    (listed, told)
                } else {
                    let (written, rows) = self.shards(&name, &ordered).await?;
                    let told = json!({ "in_place": 0, "written": written.len(), "rows": rows });
                    (written.iter().map(|file| format!("{}{file}", self.prefix)).collect(), told)
                };
                let file = format!("{name}.manifest");
                self.put(&file, &manifest(&objects)?)?;
                Ok(channel(&name, ("ManifestFile", format!("{}{file}", self.prefix)), told))
            }
        }
    }

    /// Writes `channels.json`, and says where it is.
    pub(super) fn finish(&self, channels: &[Channel]) -> Result<String> {
        let inputs: Vec<&Value> = channels.iter().map(|channel| &channel.input).collect();
        let path = self.put("channels.json", &json!(inputs))?;
        Ok(path.display().to_string())
    }

    /// The channel's name of a table: what SageMaker takes, and no path.
    fn name(&self, table: &str) -> Result<String> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        let name: String = table.chars().map(plain).take(CHANNEL_CHARS_MAX).collect();
        let mut names = self.names.lock().map_err(|_| Error::new(ErrorCode::Internal, "a lock"))?;
        if !names.insert(name.clone()) {
            let message = format!("two tables would become the channel {name:?}");
            return Err(Error::new(ErrorCode::SpecInvalid, message)
                .hint("export them one by one, with --table"));
        }
        Ok(name)
    }

    /// Whether a file of the lake can be read where it is.
    fn as_it_is(&self, file: &ScanFile) -> bool {
        !file.has_deletes
            && bucket(&file.path).is_some()
            && bucket(&file.path) == bucket(&self.prefix)
    }

    async fn augmented(&self, name: &str, scan: &OrderedScan) -> Result<Channel> {
        let file = format!("{name}.jsonl");
        let path = self.to.join(&file);
        let mut out =
            BufWriter::new(File::create(&path).map_err(|cause| unwritable(&path, cause))?);
        let mut rows = 0;
        for at in 0..scan.files() {
            let mut batches = scan.read(at)?;
            while let Some(batch) = batches.try_next().await? {
                for line in crate::answer::lines(&batch)?.split_inclusive(|byte| *byte == b'\n') {
                    if line.len() > LINE_CHARS_MAX {
                        let message = format!("a row has more than {LINE_CHARS_MAX} characters");
                        return Err(Error::new(ErrorCode::SpecInvalid, message)
                            .hint("name fewer columns, or use --form manifest"));
                    }
                    out.write_all(line).map_err(|cause| unwritable(&path, cause))?;
                    rows += 1;
                }
            }
        }
        out.flush().map_err(|cause| unwritable(&path, cause))?;
        let address = format!("{}{file}", self.prefix);
        let mut channel = channel(
            name,
            ("AugmentedManifestFile", address),
            json!({ "written": 1, "rows": rows }),
        );
        channel.input["DataSource"]["S3DataSource"]["AttributeNames"] = json!(self.columns);
        channel.input["ContentType"] = json!("application/jsonlines");
        channel.input["RecordWrapperType"] = json!("RecordIO");
        channel.input["InputMode"] = json!("Pipe");
        Ok(channel)
    }

    /// Writes the rows as Parquet; gives the files' places below the folder.
    async fn shards(&self, name: &str, scan: &OrderedScan) -> Result<(Vec<String>, usize)> {
        let folder = self.to.join(name);
        std::fs::create_dir(&folder).map_err(|cause| unwritable(&folder, cause))?;
        let (mut files, mut rows, mut open) = (Vec::new(), 0, None::<Shard>);
        for at in 0..scan.files() {
            let mut batches = scan.read(at)?;
            while let Some(mut batch) = batches.try_next().await? {
                while batch.num_rows() > 0 {
                    let shard = if let Some(shard) = &mut open {
                        shard
                    } else {
                        let file = format!("{name}/part-{:05}.parquet", files.len());
                        let shard = Shard::create(&self.to.join(&file), scan.schema())?;
                        files.push(file);
                        open.insert(shard)
                    };
                    let taken = batch.num_rows().min(SHARD_ROWS - shard.rows);
                    shard.write(&batch.slice(0, taken))?;
                    rows += taken;
                    batch = batch.slice(taken, batch.num_rows() - taken);
                    if shard.rows == SHARD_ROWS
                        && let Some(full) = open.take()
                    {
                        full.close()?;
                    }
                }
            }
        }
        match open {
            Some(shard) => shard.close()?,
            // A channel without any object fails: one file without rows says what there would be.
            None if files.is_empty() => {
                let file = format!("{name}/part-00000.parquet");
                Shard::create(&self.to.join(&file), scan.schema())?.close()?;
                files.push(file);
            }
            None => {}
        }
        Ok((files, rows))
    }

    fn put(&self, file: &str, document: &Value) -> Result<PathBuf> {
        let path = self.to.join(file);
        let text = serde_json::to_vec_pretty(document).unwrap_or_default();
        std::fs::write(&path, text).map_err(|cause| unwritable(&path, cause))?;
        Ok(path)
    }
}

/// One Parquet file on its way.
struct Shard {
    writer: ArrowWriter<File>,
    path: PathBuf,
    rows: usize,
}

impl Shard {
    fn create(path: &Path, schema: &SchemaRef) -> Result<Self> {
        let file = File::create(path).map_err(|cause| unwritable(path, cause))?;
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties));
        let writer = writer.map_err(|cause| no_parquet(path, cause))?;
        Ok(Self { writer, path: path.to_owned(), rows: 0 })
    }

    fn write(&mut self, batch: &arrow::array::RecordBatch) -> Result<()> {
        self.rows += batch.num_rows();
        self.writer.write(batch).map_err(|cause| no_parquet(&self.path, cause))
    }

    fn close(self) -> Result<()> {
        self.writer.close().map(drop).map_err(|cause| no_parquet(&self.path, cause))
    }
}

/// The bucket of an address on S3.
fn bucket(address: &str) -> Option<&str> {
    let rest = address.strip_prefix("s3://")?;
    Some(rest.split('/').next().unwrap_or(rest))
}

/// SageMaker's manifest: what all addresses begin with, then the rest of each. All are in one bucket.
fn manifest(objects: &[String]) -> Result<Value> {
    let prefix = objects.first().and_then(|first| bucket(first));
    let prefix = prefix.map(|bucket| format!("s3://{bucket}/")).unwrap_or_default();
    let mut lines = vec![json!({ "prefix": prefix })];
    for object in objects {
        let rest =
            object.strip_prefix(&prefix).filter(|rest| !rest.is_empty()).ok_or_else(|| {
                Error::new(ErrorCode::Internal, "a manifest's objects are in several buckets")
            })?;
        lines.push(json!(rest));
    }
    Ok(Value::Array(lines))
}

fn channel(name: &str, (kind, address): (&str, String), mut told: Value) -> Channel {
    told["channel"] = json!(name);
    told["s3_uri"] = json!(address);
    let input = json!({
        "ChannelName": name,
        "DataSource": {
            "S3DataSource": {
                "S3DataType": kind,
                "S3Uri": address,
                "S3DataDistributionType": "FullyReplicated",
            },
        },
        "ContentType": "application/x-parquet",
        "CompressionType": "None",
        "RecordWrapperType": "None",
    });
    Channel { input, told }
}

fn unwritable(path: &Path, cause: std::io::Error) -> Error {
    let message = format!("cannot write {}", path.display());
    Error::new(ErrorCode::SpecInvalid, message).hint("name another folder").caused_by(cause)
}

fn no_parquet(path: &Path, cause: ParquetError) -> Error {
    Error::new(ErrorCode::QueryFailed, "the rows cannot be written as Parquet")
        .detail(path.display().to_string())
        .caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_the_prefix_once() {
        let objects = ["s3://b/a/1.parquet", "s3://b/c d/2.parquet"].map(str::to_owned);
        let expected = json!([{ "prefix": "s3://b/" }, "a/1.parquet", "c d/2.parquet"]);
        assert_eq!(manifest(&objects).expect("manifest"), expected);
        let elsewhere = ["s3://b/1", "s3://c/2"].map(str::to_owned);
        assert!(manifest(&elsewhere).is_err());
    }

    #[test]
    fn names_are_what_sagemaker_takes() {
        let folder = tempfile::tempdir().expect("folder");
        let to = folder.path().join("new");
        let channels = Channels::new(Form::Prefix, &[], &to, "s3://b/x").expect("channels");
        assert_eq!(channels.name("../org_2/ü").expect("name"), "---org_2--");
        assert!(channels.name("../org_2/ä").is_err(), "the same name");
        assert!(channels.name(&"n".repeat(300)).expect("name").len() <= CHANNEL_CHARS_MAX);
        for bad in ["", "s3://", "b/x", "file:///x", "s3://b/ x"] {
            assert!(Channels::new(Form::Prefix, &[], &to, bad).is_err(), "{bad}");
        }
        std::fs::write(to.join("there"), "").expect("file");
        assert!(Channels::new(Form::Prefix, &[], &to, "s3://b/x").is_err());
        let none = Channels::new(Form::Augmented, &[], &folder.path().join("o"), "s3://b/x");
        assert!(none.is_err());
    }
}
