//! CSV files to batches: one pass over everything to learn the types, one to read.
//!
//! Columns are found by name in each file, so files may order them differently or lack some. A
//! header is needed for that; without one, columns go by position.

mod guess;
mod record;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use polder_core::{Error, ErrorCode, Field, ReadRequest, Result, TableSchema};

use self::guess::Guess;
use self::record::{Record, Records, Syntax};
use super::Learnt;
use super::object::{Input, Slice};
use super::reject::{BadLine, BadLines};
use crate::blocking::Batches;
use crate::document::{TextColumns, accepts};
use crate::keys;

const ROWS_MAX: usize = 65_536;
/// Columns of one file.
const COLUMNS_MAX: usize = 10_000;

/// What reading needs to know beside the files.
pub(super) struct CsvFormat {
    request: ReadRequest,
    bad_lines: Arc<BadLines>,
}

impl CsvFormat {
    pub(super) fn new(request: &ReadRequest, bad_lines: Arc<BadLines>) -> Self {
        Self { request: request.clone(), bad_lines }
    }

    fn policy(&self) -> polder_core::spec::OnUnrepresentable {
        self.request.on_unrepresentable
    }

    /// Whether a field's text stands for null.
    fn is_null(&self, (text, quoted): (&[u8], bool)) -> bool {
        !quoted && text == self.request.format.csv.null.as_bytes()
    }

    fn open(&self, input: &Input) -> Result<CsvFile> {
        let syntax = Syntax::new(&self.request.format.csv, &input.object.key)?;
        let slice = input.open()?;
        let records = Records::new(input.decompressed(&slice)?, syntax);
        let mut file = CsvFile {
            input: input.clone(),
            slice,
            records,
            record: Record::default(),
            names: Vec::new(),
            pending: false,
        };
        file.header(self)?;
        Ok(file)
    }

    /// Learns the schema from every value of every file.
    pub(super) fn learn(&self, inputs: &[Input]) -> Result<Learnt> {
        let mut names: Vec<String> = Vec::new();
        let mut guesses: Vec<Guess> = Vec::new();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut rows = 0;
        for input in inputs {
            let mut file = self.open(input)?;
            let mut columns = Vec::with_capacity(file.names.len());
            for name in &file.names {
                let number = *numbers.entry(name.clone()).or_insert_with(|| {
                    names.push(name.clone());
                    guesses.push(Guess::default());
                    names.len() - 1
                });
                let declared = self.request.types.get(name);
                columns.push((number, declared));
            }
            while file.next()? {
                if let Some(reason) = file.bad(self) {
                    self.bad_lines.refuse(file.bad_line(&reason))?;
                    continue;
                }
                rows += 1;
                for (position, (number, declared)) in columns.iter().enumerate() {
                    let field = file.record.field(position);
                    if declared.is_none() && !self.is_null(field) {
                        // A record is UTF-8, or it is bad.
                        guesses[*number].see(std::str::from_utf8(field.0).unwrap_or_default());
                    }
                }
            }
            file.end()?;
        }
        let schema = self.schema(names.into_iter().zip(guesses).collect())?;
        let unused = self.request.types.keys().filter(|name| schema.field(name).is_none());
        let warnings =
            unused.map(|name| format!("`types:` names column {name}, which no file has")).collect();
        Ok(Learnt { schema, rows: Some(rows), warnings })
    }

    /// The lake's columns first, then new ones as the files have them; or those asked for.
    fn schema(&self, guessed: Vec<(String, Guess)>) -> Result<TableSchema> {
        let request = &self.request;
        let known = request.known_schema.as_ref();
        let mut fields: Vec<Field> = known.map_or_else(Vec::new, |known| known.fields.clone());
        for field in &mut fields {
            *field = Field {
                text_of: field.text_of,
                ..Field::new(&field.name, field.data_type.clone())
            };
        }
        let mut numbers: HashMap<String, usize> = HashMap::new();
        for (number, field) in fields.iter().enumerate() {
            numbers.entry(field.name.clone()).or_insert(number);
        }
        for (name, guess) in guessed {
            // Each name is guessed for once.
            match numbers.get(&name) {
                Some(number) => {
                    let field = &mut fields[*number];
                    field.data_type = guess.data_type(Some(&field.data_type));
                }
                None => fields.push(Field::new(name, guess.data_type(None))),
            }
        }
        for field in &mut fields {
            if let Some(declared) = request.types.get(&field.name) {
                *field = Field::new(&field.name, declared.clone());
            }
        }
        super::select(TableSchema::new(fields), request.columns.as_deref())
    }

    /// Reads the files' rows in a schema.
    pub(super) fn read(self: Arc<Self>, inputs: Vec<Input>, schema: &TableSchema) -> CsvBatches {
        CsvBatches {
            columns: TextColumns::new(schema, self.policy()),
            numbers: schema
                .fields
                .iter()
                .enumerate()
                .map(|(number, field)| (field.name.clone(), number))
                .collect(),
            format: self,
            inputs: inputs.into(),
            file: None,
        }
    }
}

/// One file being read.
struct CsvFile {
    input: Input,
    slice: Slice,
    records: Records<Box<dyn Read + Send>>,
    record: Record,
    names: Vec<String>,
    /// The first record was read to count columns and is a row itself.
    pending: bool,
}

impl CsvFile {
    /// Reads the header, or makes names for a file without one.
    fn header(&mut self, format: &CsvFormat) -> Result<()> {
        while self.read()? {
            if !self.record.is_blank() {
                return self.name_columns(format);
            }
        }
        // A file without a line that says something has no columns and no rows.
        Ok(())
    }

    fn name_columns(&mut self, format: &CsvFormat) -> Result<()> {
        let header = format.request.format.csv.header;
        self.pending = !header;
        if let Some(reason) = self.record.bad {
            return Err(self.bad_header(reason));
        }
        if self.record.len() > COLUMNS_MAX {
            return Err(self.bad_header(&format!("it has more than {COLUMNS_MAX} columns")));
        }
        let name = |number: usize| {
            let (text, _) = self.record.field(number);
            if header && !text.is_empty() {
                String::from_utf8_lossy(text).into_owned()
            } else {
                format!("column_{}", number + 1)
            }
        };
        self.names = (0..self.record.len()).map(name).collect();
        let mut seen = HashSet::new();
        if let Some(twice) = self.names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(self.bad_header(&format!("the header names column {twice} twice")));
        }
        Ok(())
    }

    fn bad_header(&self, reason: &str) -> Error {
        let message = format!("file {} line {}: {reason}", self.input.object.key, self.record.line);
        Error::new(ErrorCode::SourceMalformed, message)
            .hint("correct the first line, or check `format: { csv: … }`")
    }

    /// Moves to the next row; false after the last one.
    fn next(&mut self) -> Result<bool> {
        if std::mem::take(&mut self.pending) {
            return Ok(true);
        }
        while self.read()? {
            // In a file of one column, an empty line is a row.
            if !self.record.is_blank() || self.names.len() == 1 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn read(&mut self) -> Result<bool> {
        self.records.read(&mut self.record).map_err(|error| self.input.failed(error))
    }

    /// What is wrong with the present record, if something is.
    fn bad(&self, format: &CsvFormat) -> Option<String> {
        if let Some(reason) = self.record.bad {
            return Some(reason.to_owned());
        }
        let (found, wanted) = (self.record.len(), self.names.len());
        if found != wanted {
            return Some(format!("it has {found} fields instead of {wanted}"));
        }
        if format.request.types.is_empty() {
            return None;
        }
        self.names.iter().enumerate().find_map(|(number, name)| {
            let declared = format.request.types.get(name)?;
            let field = self.record.field(number);
            if format.is_null(field) {
                return None;
            }
            let refusal = accepts(declared, field.0, format.policy()).err()?;
            Some(refusal.reason(name, declared))
        })
    }

    fn bad_line<'a>(&'a self, reason: &'a str) -> BadLine<'a> {
        let (file, raw) = (self.input.object.key.as_str(), self.records.raw());
        BadLine { file, line: self.record.line, reason, raw }
    }

    /// After the last row: the file has to be the one that was listed still.
    fn end(&self) -> Result<()> {
        self.input.unchanged(&self.slice)
    }
}

/// The rows of some files.
pub(super) struct CsvBatches {
    format: Arc<CsvFormat>,
    inputs: VecDeque<Input>,
    file: Option<(CsvFile, Vec<Option<usize>>)>,
    numbers: HashMap<String, usize>,
    columns: TextColumns,
}

impl Batches for CsvBatches {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let progress = self.format.request.progress.clone();
        let mut bytes = 0;
        while bytes < self.format.request.batch_bytes && self.columns.rows() < ROWS_MAX {
            if self.file.is_none() {
                let Some(input) = self.inputs.pop_front() else { break };
                let file = self.format.open(&input)?;
                let numbers = file.names.iter().map(|name| self.numbers.get(name).copied());
                let numbers = numbers.collect();
                self.file = Some((file, numbers));
            }
            let Some((file, numbers)) = &mut self.file else { break };
            if !file.next()? {
                file.end()?;
                progress.add_read(0, file.input.object.size);
                self.file = None;
                continue;
            }
            if let Some(reason) = file.bad(&self.format) {
                self.format.bad_lines.reject(file.bad_line(&reason))?;
                continue;
            }
            bytes += row(&self.format, file, numbers, &mut self.columns)?;
        }
        if self.columns.rows() == 0 {
            return Ok(None);
        }
        progress.add_read(self.columns.rows() as u64, 0);
        self.columns.finish(&progress).map(Some)
    }
}

/// Stores the present record as a row; returns about how many bytes it takes.
fn row(
    format: &CsvFormat,
    file: &CsvFile,
    numbers: &[Option<usize>],
    columns: &mut TextColumns,
) -> Result<usize> {
    let mut bytes = 0;
    for (position, number) in numbers.iter().enumerate() {
        let field = file.record.field(position);
        bytes += field.0.len() + 8;
        let Some(number) = number.filter(|_| !format.is_null(field)) else { continue };
        if let ControlFlow::Break(_) = columns.set(number, field.0)? {
            // Types are inferred from every value: the file is not the one they came from.
            return Err(super::object::changed(&file.input.object.key));
        }
    }
    for column in columns.end_row() {
        if let Some(key) = key(format, file) {
            format.request.progress.add_altered_key(&column, key);
        }
    }
    Ok(bytes)
}

/// The present record's name, of its key's fields.
fn key(format: &CsvFormat, file: &CsvFile) -> Option<String> {
    let value = |column: &String| {
        let number = file.names.iter().position(|name| name == column)?;
        String::from_utf8(file.record.field(number).0.to_vec()).ok()
    };
    keys::name(format.request.key.iter().map(|column| (&**column, value(column))))
}
