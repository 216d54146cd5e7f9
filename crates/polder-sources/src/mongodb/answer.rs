//! What of a query's parts the server answers by itself, each as one pipeline over one collection: the first
//! documents of an order, and groups with what is counted, summed up and compared in them.
//!
//! Orders and groups are of columns that have held one kind of scalar, as in `pushed`. A document that has
//! something else there now would be hidden by what it is made into, so the pipeline shows it: it comes
//! before all others of the order, and its group is marked. Then there is no answer, and whoever reads the
//! documents instead learns of what type they are.
//!
//! Texts are compared by their bytes, as is everything in a collection without a collation. Of one that has a
//! collation no texts are compared: there are servers that take `simple` for another order than MongoDB does.

use std::collections::BTreeMap;

use bson::{Bson, DateTime, Document, doc};
use mongodb::options::AggregateOptions;
use polder_core::subplan::{Aggregate, AggregateFunction, Order, Term};
use polder_core::{
    Answer, AnswerRequest, Error, ErrorCode, Field, LakeType, Learnt, ReadRequest, Result, SubPlan,
    TableSchema,
};

use super::drain::{ANSWER_MAX, Drained, Question};
use super::rows::Rows;
use super::{MongodbSource, pushed, query};
use crate::blocking;
use crate::document::{
    self, DATE_MILLIS, Dialect, Inference, InferenceOptions, MEMBERS_MAX, Scalars, Spill,
    SpillWriter,
};

/// The names MongoDB has for the types of what is null in SQL.
const ABSENT: [&str; 2] = ["missing", "null"];
/// The member that shows documents which do not fit.
const MISFIT: &str = "x";

/// The answer; `None` if the part means something else to the server, or documents do not fit what was learnt.
pub(super) async fn answer(
    source: &MongodbSource,
    request: &AnswerRequest,
) -> Result<Option<Answer>> {
    // What a query reads of a source is all of it; rows of one org alone are not asked for here.
    if request.read.filter.is_some() || request.read.cursor.is_some() {
        return Ok(None);
    }
    let Some(learnt) = &request.learnt else { return Ok(None) };
    let Some(known) = learnt.found.downcast_ref::<Inference>() else { return Ok(None) };
    let Some(asked) = Asked::of(&request.part, &request.schema, learnt, known) else {
        return Ok(None);
    };
    let columns = match &asked.made {
        Made::Documents(columns) => columns.clone(),
        Made::Groups(_) => None,
    };
    let read = ReadRequest { from: asked.from.clone(), columns, ..request.read.clone() };
    let options = InferenceOptions::of(&read);
    if asked.has_texts && !source.compares_bytes(&read).await? {
        return Ok(None);
    }
    let Some(drained) = source.ask(&read, asked.question(), options).await? else {
        return Ok(None);
    };
    let spill = match &asked.made {
        Made::Documents(columns) => {
            let fit = known.covers(&drained.inference, columns.as_deref());
            fit.then_some(drained.spill)
        }
        Made::Groups(groups) => groups.checked(drained).await?,
    };
    Ok(spill.map(|spill| Answer {
        rows_estimated: Some(spill.rows()),
        split: document::one_split(spill, &asked.schema, Dialect::Extended, &read),
        statement: asked.statement(),
    }))
}

/// What the server is asked, and what comes of it.
struct Asked {
    from: String,
    pipeline: Vec<Document>,
    /// Whether texts are compared.
    has_texts: bool,
    /// The answer's columns as they are decoded.
    schema: TableSchema,
    made: Made,
}

enum Made {
    /// Documents of the collection; of these columns, if not of all.
    Documents(Option<Vec<String>>),
    Groups(Groups),
}

impl Asked {
    /// `wanted` are the answer's columns.
    fn of(
        part: &SubPlan,
        wanted: &TableSchema,
        learnt: &Learnt,
        known: &Inference,
    ) -> Option<Self> {
        match part {
            SubPlan::First { input, order, rows } => {
                let rows_max = i64::try_from(*rows).ok().filter(|rows| *rows > 0)?;
                first(&Rows::of(input, known)?, order, rows_max, learnt)
            }
            SubPlan::Aggregate { input, keys, aggregates } => {
                let mut groups = Grouping::new(Rows::of(input, known)?, wanted);
                keys.iter().try_for_each(|key| groups.key(key))?;
                aggregates.iter().try_for_each(|aggregate| groups.aggregate(aggregate))?;
                Some(groups.asked())
            }
            _ => None,
        }
    }

    fn question(&self) -> Question {
        let mut options = AggregateOptions::default();
        options.allow_disk_use = Some(true);
        options.max_time = Some(ANSWER_MAX);
        Question::Aggregate { pipeline: self.pipeline.clone(), options: Box::new(options) }
    }

    /// In the words of the server's `aggregate`.
    fn statement(&self) -> String {
        // Keys in their order, which counts in `$sort`.
        let pipeline = serde_json::to_string(&self.pipeline);
        format!("aggregate={}", pipeline.unwrap_or_else(|error| error.to_string()))
    }
}

/// The first documents of an order: behind those that do not fit, nulls where SQL wants them.
fn first(rows: &Rows<'_>, order: &[Order], rows_max: i64, learnt: &Learnt) -> Option<Asked> {
    if order.is_empty() {
        return None;
    }
    let mut used = rows.compared.clone();
    let (mut made, mut sort) = (Document::new(), doc! { MISFIT: 1 });
    for (index, key) in order.iter().enumerate() {
        let (field, kind) = rows.scalar(&key.term)?;
        let (absent, present) = if key.nulls_first { (0, 1) } else { (1, 0) };
        let place = doc! { "$cond": [is_absent(&field.name), absent, present] };
        made.insert(format!("n{index}"), place);
        made.insert(format!("k{index}"), or_null(&field.name));
        sort.insert(format!("n{index}"), 1);
        sort.insert(format!("k{index}"), if key.descending { -1 } else { 1 });
        used.insert(field.name, kind);
    }
    // Who wants all columns wants new ones, too.
    let names = || rows.read.iter().map(|field| field.name.clone());
    let is_all = rows.read.len() == learnt.schema.fields.len();
    let columns: Option<Vec<String>> = if is_all { None } else { Some(names().collect()) };
    let document = match query::projection(columns.as_deref()) {
        None => Bson::from("$$ROOT"),
        Some(_) => Bson::Document(names().map(|name| (name.clone(), path(&name))).collect()),
    };
    made.insert("d", document);
    made.insert(MISFIT, doc! { "$cond": [misfits(&used), 0, 1] });
    let each_once = |(index, field): (usize, &Field)| {
        rows.columns.iter().take(index).all(|before| before.name != field.name)
    };
    if !rows.columns.iter().enumerate().all(each_once)
        || rows.columns.iter().any(|of| rows.is_refused(of))
    {
        return None;
    }
    let mut pipeline: Vec<Document> = rows.matching.iter().cloned().collect();
    pipeline.extend([
        doc! { "$replaceRoot": { "newRoot": made } },
        doc! { "$sort": sort },
        doc! { "$limit": rows_max },
        doc! { "$replaceRoot": { "newRoot": "$d" } },
    ]);
    Some(Asked {
        from: rows.from.to_owned(),
        pipeline,
        has_texts: used.values().any(|kind| *kind == Scalars::String),
        schema: TableSchema::new(rows.columns.clone()),
        made: Made::Documents(columns),
    })
}

/// Groups while they are said: the columns `c0`, `c1`, … of the answer.
struct Grouping<'a> {
    rows: Rows<'a>,
    wanted: &'a TableSchema,
    used: BTreeMap<String, Scalars>,
    keys: Document,
    /// Accumulators.
    values: Document,
    /// The answer's columns, of keys and accumulators.
    shown: Document,
    fields: Vec<Field>,
    groups: Groups,
}

/// What groups have to be like.
#[derive(Default)]
struct Groups {
    /// What the columns hold, nulls aside.
    kinds: Vec<Scalars>,
    /// The row of no documents at all, where there are no keys.
    of_none: Option<Document>,
}

impl<'a> Grouping<'a> {
    fn new(rows: Rows<'a>, wanted: &'a TableSchema) -> Self {
        Self {
            used: rows.compared.clone(),
            rows,
            wanted,
            keys: Document::new(),
            values: Document::new(),
            shown: Document::new(),
            fields: Vec::new(),
            groups: Groups { of_none: Some(Document::new()), ..Groups::default() },
        }
    }

    /// Nulls are one key, and whole numbers of both sizes.
    fn key(&mut self, key: &Term) -> Option<()> {
        let (field, kind) = self.rows.scalar(key)?;
        let name = format!("k{}", self.fields.len());
        self.keys.insert(name.clone(), or_null(&field.name));
        self.used.insert(field.name.clone(), kind);
        self.groups.of_none = None;
        self.show(format!("$_id.{name}"), &field, kind, Bson::Null)
    }

    fn aggregate(&mut self, aggregate: &Aggregate) -> Option<()> {
        let Aggregate { function, argument, distinct: false, filter: None } = aggregate else {
            return None;
        };
        let value = format!("a{}", self.fields.len());
        let long = Scalars::Integers { int: true, long: true };
        let count = |name: &str| Field::new(name, LakeType::Long);
        let (operator, argument) = match (function, argument) {
            (AggregateFunction::Count, None) => {
                self.values.insert(value.clone(), doc! { "$sum": 1 });
                return self.show(format!("${value}"), &count(&value), long, Bson::Int64(0));
            }
            (AggregateFunction::Count, Some(argument)) => {
                // Of what type a value is does not matter.
                let field = self.rows.column(argument)?;
                if !pushed::is_plain(&field.name) || self.rows.is_refused(&field) {
                    return None;
                }
                let one = doc! { "$cond": [is_absent(&field.name), 0, 1] };
                self.values.insert(value.clone(), doc! { "$sum": one });
                return self.show(format!("${value}"), &count(&value), long, Bson::Int64(0));
            }
            (AggregateFunction::Sum, Some(argument)) => ("$sum", argument),
            (AggregateFunction::Min, Some(argument)) => ("$min", argument),
            (AggregateFunction::Max, Some(argument)) => ("$max", argument),
            _ => return None,
        };
        let (field, kind) = self.rows.scalar(argument)?;
        self.used.insert(field.name.clone(), kind);
        self.values.insert(value.clone(), doc! { operator: path(&field.name) });
        if *function != AggregateFunction::Sum {
            return self.show(format!("${value}"), &field, kind, Bson::Null);
        }
        if !matches!(kind, Scalars::Integers { .. }) {
            return None;
        }
        // The server's sum of no values is zero, and its greatest null.
        let some = format!("n{}", self.fields.len());
        self.values.insert(some.clone(), doc! { "$max": path(&field.name) });
        let is_none = doc! { "$eq": [format!("${some}"), Bson::Null] };
        let sum = doc! { "$cond": [is_none, Bson::Null, format!("${value}")] };
        self.show(sum, &field, kind, Bson::Null)
    }

    /// The next column: what it is made of, its type in the collection, and its value of no documents.
    fn show(
        &mut self,
        of: impl Into<Bson>,
        field: &Field,
        kind: Scalars,
        of_none: Bson,
    ) -> Option<()> {
        let index = self.fields.len();
        // Its documents have one member more: what does not fit.
        if index + 1 >= MEMBERS_MAX {
            return None;
        }
        let data_type = self.wanted.fields.get(index)?.data_type.clone();
        let name = answered(index);
        self.shown.insert(name.clone(), of);
        if let Some(row) = &mut self.groups.of_none {
            row.insert(name.clone(), of_none);
        }
        self.fields.push(Field { name, data_type, nullable: true, ..*field });
        self.groups.kinds.push(kind);
        Some(())
    }

    fn asked(self) -> Asked {
        let Self { rows, used, keys, values, mut shown, fields, groups, .. } = self;
        let key = if keys.is_empty() { Bson::Null } else { Bson::Document(keys) };
        let mut group = doc! { "_id": key };
        group.extend(values);
        if !used.is_empty() {
            let misfit = doc! { "$cond": [misfits(&used), true, Bson::Null] };
            group.insert(MISFIT, doc! { "$max": misfit });
            shown.insert(MISFIT, format!("${MISFIT}"));
        }
        let mut pipeline: Vec<Document> = rows.matching.into_iter().collect();
        pipeline.extend([doc! { "$group": group }, doc! { "$replaceRoot": { "newRoot": shown } }]);
        Asked {
            from: rows.from.to_owned(),
            pipeline,
            has_texts: used.values().any(|kind| *kind == Scalars::String),
            schema: TableSchema::new(fields),
            made: Made::Groups(groups),
        }
    }
}

impl Groups {
    /// The groups, if all documents fit and every sum is a whole number: one that leaves 64 bits becomes a
    /// double (MongoDB's manual, `$sum`, "Result Data Type").
    async fn checked(&self, drained: Drained) -> Result<Option<Spill>> {
        let Drained { spill, inference: found, .. } = drained;
        let mut kinds = self.kinds.iter().enumerate();
        let fit = found.holds_only(MISFIT, None)
            && kinds.all(|(index, kind)| found.holds_only(&answered(index), Some(*kind)));
        if !fit {
            return Ok(None);
        }
        let Some(row) = self.of_none.as_ref().filter(|_| spill.rows() == 0) else {
            return Ok(Some(spill));
        };
        let row = row.to_vec().map_err(|error| {
            Error::new(ErrorCode::Internal, "a row cannot be written").caused_by(error)
        })?;
        let spilled = blocking::run(move || {
            let mut spill = SpillWriter::new()?;
            spill.push(&row)?;
            spill.finish()
        });
        spilled.await.map(Some)
    }
}

fn answered(index: usize) -> String {
    format!("c{index}")
}

/// The column's value, for columns that a path can name.
fn path(column: &str) -> Bson {
    Bson::String(format!("${column}"))
}

fn or_null(column: &str) -> Document {
    doc! { "$ifNull": [path(column), Bson::Null] }
}

fn type_of(column: &str) -> Document {
    doc! { "$type": path(column) }
}

fn is_absent(column: &str) -> Document {
    doc! { "$in": [type_of(column), ABSENT.to_vec()] }
}

/// Whether any of the columns has a value that it did not have: of another type, or a date outside the years
/// 1 to 9999.
fn misfits(used: &BTreeMap<String, Scalars>) -> Document {
    let mut any = Vec::with_capacity(used.len());
    for (column, kind) in used {
        let fitting = [&ABSENT[..], pushed::types(*kind)].concat();
        any.push(doc! { "$not": [{ "$in": [type_of(column), fitting] }] });
        if *kind == Scalars::Date {
            let date = |millis: &i64| DateTime::from_millis(*millis);
            let (least, greatest) = (date(DATE_MILLIS.start()), date(DATE_MILLIS.end()));
            let is_date = doc! { "$eq": [type_of(column), "date"] };
            let before = doc! { "$lt": [path(column), least] };
            let after = doc! { "$gt": [path(column), greatest] };
            any.push(doc! { "$and": [is_date, { "$or": [before, after] }] });
        }
    }
    doc! { "$or": any }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use polder_core::{CmpOp, Literal, Predicate};

    use super::*;

    fn known() -> Inference {
        seen(&doc! { "n": 1_i32, "s": "x", "at": DateTime::from_millis(0), "f": 0.5, "a.b": 1_i32 })
    }

    fn seen(document: &Document) -> Inference {
        let mut inference = Inference::new(InferenceOptions::default());
        inference.see(&document.to_vec().expect("bytes")).expect("a document");
        inference
    }

    fn table() -> SubPlan {
        let columns = vec![
            Field::new("n", LakeType::Int),
            Field::new("s", LakeType::String),
            Field::new("at", LakeType::Timestamptz),
            Field::new("f", LakeType::Double),
            Field::new("a.b", LakeType::Int),
        ];
        SubPlan::Table { from: "t".to_owned(), columns, predicate: Predicate::True }
    }

    fn where_n_is_one() -> SubPlan {
        let (left, right) = (Term::Column(0).into(), Term::Constant(Literal::Int(1)).into());
        let condition = Term::Compare { op: CmpOp::Eq, left, right };
        SubPlan::Filter { input: Box::new(table()), condition }
    }

    fn asked(part: &SubPlan) -> Option<Asked> {
        asked_of(&known(), part)
    }

    fn asked_of(known: &Inference, part: &SubPlan) -> Option<Asked> {
        let (schema, _) = known.finish().expect("a schema");
        let columns = part.columns().expect("exact").into_iter().enumerate();
        let columns = columns.map(|(index, of)| Field::new(answered(index), of)).collect();
        let learnt = Learnt { schema, rows: 1, paths: 5, found: Arc::new(()) };
        Asked::of(part, &TableSchema::new(columns), &learnt, known)
    }

    fn sorted(input: SubPlan, column: usize) -> SubPlan {
        let order = vec![Order { term: Term::Column(column), descending: true, nulls_first: true }];
        SubPlan::First { input: Box::new(input), order, rows: 3 }
    }

    fn grouped(input: SubPlan, keys: &[usize], aggregates: Vec<Aggregate>) -> SubPlan {
        let keys = keys.iter().map(|index| Term::Column(*index)).collect();
        SubPlan::Aggregate { input: Box::new(input), keys, aggregates }
    }

    fn of(function: AggregateFunction, argument: Option<Term>) -> Aggregate {
        Aggregate { function, argument, distinct: false, filter: None }
    }

    fn other_than(column: &str, types: &[&str]) -> Document {
        let fitting = [&["missing", "null"][..], types].concat();
        doc! { "$not": [{ "$in": [{ "$type": format!("${column}") }, fitting] }] }
    }

    #[test]
    fn the_first_come_after_those_that_do_not_fit() {
        let asked = asked(&sorted(where_n_is_one(), 1)).expect("said");
        let [matching, made, sort, limit, last] = asked.pipeline.as_slice() else {
            panic!("{:?}", asked.pipeline)
        };
        assert!(matching.contains_key("$match"));
        let made = made.get_document("$replaceRoot").expect("a stage");
        let made = made.get_document("newRoot").expect("a document");
        let misfit = doc! { "$or": [other_than("n", &["int"]), other_than("s", &["string"])] };
        assert_eq!(made.get("x"), Some(&Bson::from(doc! { "$cond": [misfit, 0, 1] })));
        assert_eq!(made.get("d"), Some(&Bson::from("$$ROOT")));
        assert_eq!(*sort, doc! { "$sort": { "x": 1, "n0": 1, "k0": -1 } });
        assert_eq!(*limit, doc! { "$limit": 3_i64 });
        assert_eq!(*last, doc! { "$replaceRoot": { "newRoot": "$d" } });
        assert!(asked.has_texts);
        assert!(asked.statement().contains(r#"{"$sort":{"x":1,"n0":1,"k0":-1}}"#));
    }

    #[test]
    fn groups_are_marked_and_nulls_are_one_key() {
        let wide = Term::Widened(Box::new(Term::Column(0)), LakeType::Long);
        let aggregates = vec![
            of(AggregateFunction::Count, None),
            of(AggregateFunction::Sum, Some(wide)),
            of(AggregateFunction::Max, Some(Term::Column(2))),
        ];
        let asked = asked(&grouped(table(), &[1], aggregates)).expect("said");
        let [group, shown] = asked.pipeline.as_slice() else { panic!("{:?}", asked.pipeline) };
        let group = group.get_document("$group").expect("a stage");
        let key = doc! { "k0": { "$ifNull": ["$s", Bson::Null] } };
        assert_eq!(group.get_document("_id").expect("keys"), &key);
        assert_eq!(group.get_document("a1").expect("rows"), &doc! { "$sum": 1 });
        assert_eq!(group.get_document("a2").expect("sum"), &doc! { "$sum": "$n" });
        assert_eq!(group.get_document("a3").expect("greatest"), &doc! { "$max": "$at" });
        let marks = group.get_document("x").expect("marks").to_string();
        let (before, after) = (r#""$lt": ["$at", DateTime("#, r#""$gt": ["$at", DateTime("#);
        for text in ["\"$n\"", "\"$s\"", "\"$at\"", before, after] {
            assert!(marks.contains(text), "no {text} in {marks}");
        }
        let shown = shown.get_document("$replaceRoot").expect("a stage");
        let shown = shown.get_document("newRoot").expect("a document");
        let names: Vec<&str> = shown.keys().map(String::as_str).collect();
        assert_eq!(names, ["c0", "c1", "c2", "c3", "x"]);
        let types: Vec<_> = asked.schema.fields.iter().map(|field| &field.data_type).collect();
        let long = &LakeType::Long;
        assert_eq!(types, [&LakeType::String, long, long, &LakeType::Timestamptz]);
    }

    /// Reading one ends the query.
    #[test]
    fn columns_with_dates_that_no_timestamp_is_are_not_asked_for() {
        let far = seen(&doc! { "n": 1_i32, "s": "x", "at": DateTime::MAX, "f": 0.5, "a.b": 1_i32 });
        let count = |column| of(AggregateFunction::Count, Some(Term::Column(column)));
        for (known, is_asked) in [(known(), true), (far, false)] {
            let counted = asked_of(&known, &grouped(table(), &[0], vec![count(2)]));
            let first = asked_of(&known, &sorted(table(), 0));
            assert_eq!((counted.is_some(), first.is_some()), (is_asked, is_asked));
            assert!(asked_of(&known, &grouped(table(), &[0], vec![count(1)])).is_some());
        }
    }

    #[test]
    fn what_the_server_takes_for_something_else_is_not_asked() {
        let rows = || of(AggregateFunction::Count, None);
        let negative = Term::Not(Box::new(Term::IsNull(Box::new(Term::Column(3)))));
        let filtered = SubPlan::Filter { input: Box::new(table()), condition: negative };
        assert!(asked(&grouped(filtered, &[0], vec![rows()])).is_some());
        let count = |column| of(AggregateFunction::Count, Some(Term::Column(column)));
        assert!(asked(&grouped(table(), &[], vec![count(3)])).is_some());
        let least = of(AggregateFunction::Min, Some(Term::Column(4)));
        let distinct = Aggregate { distinct: true, ..count(0) };
        let average = of(AggregateFunction::Average, Some(Term::Column(0)));
        for aggregate in [count(4), least, distinct, average] {
            assert!(asked(&grouped(table(), &[0], vec![aggregate])).is_none());
        }
        assert!(asked(&grouped(table(), &[4], vec![rows()])).is_none());
        assert!(asked(&sorted(table(), 4)).is_none());
        assert!(asked(&sorted(sorted(table(), 0), 0)).is_none());
        let none = SubPlan::First { input: Box::new(table()), order: Vec::new(), rows: 3 };
        assert!(asked(&none).is_none());
    }
}
