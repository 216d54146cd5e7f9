//! Which tables nest where in the document of an entity, by the table specs' `references`. Reads nothing.
//!
//! At the first level are the tables that a reference leads from to the entity, or to from it, and those that
//! refer to a third one as it does (e-mails and opportunities of one account). Below are the tables
//! that refer to one of the level above. A table is at the first level that leads to it and at no
//! other: no row comes again further down, and references that go round end there.

use std::collections::HashSet;

use polder_core::spec::TableSpec;
use polder_core::{Error, ErrorCode, Result, TableSchema};

use super::TABLES_MAX;
use super::key::Kind;

/// Levels of tables in a document, below the entity.
pub(super) const DEPTH_MAX: usize = 4;
/// The member of a nested row that has the rows which belong to it.
pub(super) const RELATED: &str = "related";

/// What is known of a table without reading it.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub(super) name: &'a str,
    pub(super) spec: Option<&'a TableSpec>,
    pub(super) columns: &'a TableSchema,
}

/// The columns by which rows of a table belong to those of the one above: equal values belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) above: String,
    pub(super) own: String,
}

/// A table at its place in the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    /// What it is called there: as the table, or `table__column` where several references lead to it.
    pub(super) name: String,
    /// The table, by its place among those the tree was made of.
    pub(super) table: usize,
    /// The branch that it is nested in, which comes before it; none for the entity itself.
    pub(super) within: Option<usize>,
    pub(super) link: Link,
}

/// All branches, level by level, and the tables that have no place, with the reason.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) branches: Vec<Branch>,
    pub(super) left_out: Vec<(usize, Error)>,
}

/// The tree of an entity, the first of the tables.
///
/// # Errors
/// `spec.invalid` for an entity that is none, for references of the first level that cannot be followed,
/// and for two tables that would have one name; `query.limit` for too many places.
pub(super) fn grow(tables: &[Shape<'_>]) -> Result<Tree> {
    let Some((entity, others)) = tables.split_first() else {
        return Err(Error::new(ErrorCode::Internal, "a document without an entity"));
    };
    key_of(entity)?;
    let mut tree = Tree::default();
    let mut open = Vec::new();
    for (at, table) in (1..).zip(others) {
        let links = nearest(entity, table)?;
        if links.is_empty() {
            open.push(at);
        }
        tree.add(at, None, links)?;
    }
    let (mut begin, mut end) = (0, tree.branches.len());
    for _ in 1..DEPTH_MAX {
        open = tree.deepen(tables, begin..end, open)?;
        (begin, end) = (end, tree.branches.len());
    }
    for at in open {
        let why =
            format!("no reference leads from it to {} within {DEPTH_MAX} tables", entity.name);
        let error = Error::new(ErrorCode::SpecInvalid, why)
            .hint("say it in its table spec: references: { opportunity_id: opportunity }");
        tree.left_out.push((at, error));
    }
    tree.left_out.sort_by_key(|(at, _)| *at);
    tree.check_names()?;
    Ok(tree)
}

impl Tree {
    fn add(
        &mut self,
        table: usize,
        within: Option<usize>,
        links: Vec<(String, Link)>,
    ) -> Result<()> {
        let branch = |(name, link)| Branch { name, table, within, link };
        self.branches.extend(links.into_iter().map(branch));
        if self.branches.len() > TABLES_MAX {
            let message = format!("a document has tables at {TABLES_MAX} places at most");
            return Err(Error::new(ErrorCode::QueryLimit, message).hint("name those needed"));
        }
        Ok(())
    }

    /// Nests tables in those of one level; gives the tables that are still without a place. One with a
    /// reference that cannot be followed is left out: a part of its rows would look like all of them.
    fn deepen(
        &mut self,
        tables: &[Shape<'_>],
        level: std::ops::Range<usize>,
        open: Vec<usize>,
    ) -> Result<Vec<usize>> {
        let mut still = Vec::new();
        for at in open {
            let found = level.clone().map(|above| {
                let links = below(&tables[self.branches[above].table], &tables[at])?;
                Ok::<_, Error>((above, links))
            });
            match found.collect::<Result<Vec<_>>>() {
                Err(error) => self.left_out.push((at, error)),
                Ok(found) if found.iter().all(|(_, links)| links.is_empty()) => still.push(at),
                Ok(found) => {
                    for (above, links) in found {
                        self.add(at, Some(above), links)?;
                    }
                }
            }
        }
        Ok(still)
    }

    fn check_names(&self) -> Result<()> {
        let mut seen = HashSet::new();
        let mut names = self.branches.iter().map(|branch| (branch.within, branch.name.as_str()));
        match names.find(|name| !seen.insert(*name)) {
            None => Ok(()),
            Some((_, name)) => {
                let message = format!("two tables would be nested as {name:?}");
                Err(Error::new(ErrorCode::SpecInvalid, message)
                    .hint("name the tables needed, in tables="))
            }
        }
    }
}

/// The one column that identifies a row.
pub(super) fn key_of<'a>(table: &Shape<'a>) -> Result<&'a str> {
    let key = table.spec.map(|spec| spec.key.as_slice()).unwrap_or_default();
    let [column] = key else {
        let message = format!("table {:?} has no key of one column in its spec", table.name);
        return Err(Error::new(ErrorCode::SpecInvalid, message).hint("say it there: key: [id]"));
    };
    kind(table, column)?;
    Ok(column)
}

fn kind(table: &Shape<'_>, column: &str) -> Result<Kind> {
    let found = table.columns.field(column);
    found.and_then(|field| Kind::of(&field.data_type)).ok_or_else(|| {
        let message = format!(
            "column {column:?} of table {:?} is not there, or is no int, long, string or uuid",
            table.name
        );
        Error::new(ErrorCode::SpecInvalid, message).hint("entities are joined by such columns")
    })
}

/// The columns of a table that refer to another.
fn columns_to<'a>(spec: &'a TableSpec, table: &str) -> Vec<&'a str> {
    let columns = spec.references.iter().filter(|(_, named)| *named == table);
    columns.map(|(column, _)| column.as_str()).collect()
}

/// How a table belongs to the entity itself, once for each reference.
fn nearest(entity: &Shape<'_>, other: &Shape<'_>) -> Result<Vec<(String, Link)>> {
    let (Some(root), Some(spec)) = (entity.spec, other.spec) else { return Ok(Vec::new()) };
    let from_it = columns_to(spec, &root.name);
    if !from_it.is_empty() {
        return linked(entity, other, &[key_of(entity)?], &from_it);
    }
    let to_it = columns_to(root, &spec.name);
    if !to_it.is_empty() {
        return linked(entity, other, &to_it, &[key_of(other)?]);
    }
    let shared = root.references.values().find(|table| !columns_to(spec, table).is_empty());
    let Some(table) = shared else { return Ok(Vec::new()) };
    linked(entity, other, &columns_to(root, table), &columns_to(spec, table))
}

/// How a table belongs to a nested one, once for each reference from it.
fn below(above: &Shape<'_>, other: &Shape<'_>) -> Result<Vec<(String, Link)>> {
    let (Some(parent), Some(spec)) = (above.spec, other.spec) else { return Ok(Vec::new()) };
    let columns = columns_to(spec, &parent.name);
    if columns.is_empty() {
        return Ok(Vec::new());
    }
    if above.columns.field(RELATED).is_some() {
        let message = format!("{:?} has a column {RELATED:?} of its own", above.name);
        return Err(Error::new(ErrorCode::SpecInvalid, message)
            .hint("rows that belong to its rows would stand there: leave the table out"));
    }
    linked(above, other, &[key_of(above)?], &columns)
}

/// A link for each pair of columns, under a name that says which where there are several.
fn linked(
    above: &Shape<'_>,
    other: &Shape<'_>,
    theirs: &[&str],
    own: &[&str],
) -> Result<Vec<(String, Link)>> {
    let mut links = Vec::new();
    for own_column in own {
        for their_column in theirs {
            if kind(above, their_column)? != kind(other, own_column)? {
                let message = format!(
                    "column {own_column:?} of {:?} and {their_column:?} of {:?} are of different types",
                    other.name, above.name
                );
                return Err(Error::new(ErrorCode::SpecInvalid, message)
                    .hint("declare one of them with `types`, or take the reference out"));
            }
            let mut name = other.name.to_owned();
            for (column, several) in [(own_column, own.len() > 1), (their_column, theirs.len() > 1)]
            {
                if several {
                    name = format!("{name}__{column}");
                }
            }
            let (above, own) = ((*their_column).to_owned(), (*own_column).to_owned());
            links.push((name, Link { above, own }));
        }
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use polder_core::{Field, LakeType};
    use serde_json::{Value, json};

    use super::*;

    /// A table with a key `id`, these references, and a column of type long for each.
    fn table(name: &str, references: &Value) -> (TableSpec, TableSchema) {
        let spec = json!({
            "name": name, "source": "files", "from": "x", "key": ["id"], "references": references,
        });
        let spec: TableSpec = serde_json::from_value(spec).expect("spec");
        let columns = std::iter::once("id").chain(spec.references.keys().map(String::as_str));
        let fields = columns.map(|column| Field::new(column, LakeType::Long)).collect();
        (spec, TableSchema::new(fields))
    }

    fn grown(tables: &[(TableSpec, TableSchema)]) -> Result<Tree> {
        let mut shapes = Vec::new();
        for (spec, columns) in tables {
            shapes.push(Shape { name: &spec.name, spec: Some(spec), columns });
        }
        grow(&shapes)
    }

    /// Where each branch is, with the columns that join it; and the tables that have no place.
    fn places(tables: &[(TableSpec, TableSchema)]) -> (Vec<String>, Vec<String>) {
        let tree = grown(tables).expect("tree");
        let path = |branch: &Branch| {
            let mut names = vec![branch.name.clone()];
            let mut within = branch.within;
            while let Some(at) = within {
                names.push(tree.branches[at].name.clone());
                within = tree.branches[at].within;
            }
            names.reverse();
            format!("{} {}={}", names.join("/"), branch.link.own, branch.link.above)
        };
        let paths = tree.branches.iter().map(path).collect();
        let left_out = tree.left_out.iter().map(|(at, _)| tables[*at].0.name.clone()).collect();
        (paths, left_out)
    }

    #[test]
    fn tables_nest_below_those_they_refer_to() {
        let tables = [
            table("opportunity", &json!({ "account_id": "account" })),
            table("word", &json!({ "segment_id": "segment" })),
            table("account", &json!({})),
            table("email", &json!({ "account_id": "account" })),
            table("segment", &json!({ "call_id": "call" })),
            table("call", &json!({ "opportunity_id": "opportunity" })),
            table("letter", &json!({ "word_id": "word" })),
            table("dot", &json!({ "letter_id": "letter" })),
            table("note", &json!({})),
            table("comment", &json!({ "call_id": "call", "email_id": "email" })),
        ];
        let (paths, left_out) = places(&tables);
        let expect = [
            "account id=account_id",
            "email account_id=account_id",
            "call opportunity_id=id",
            "call/segment call_id=id",
            "email/comment email_id=id",
            "call/comment call_id=id",
            "call/segment/word segment_id=id",
            "call/segment/word/letter word_id=id",
        ];
        assert_eq!(paths, expect);
        assert_eq!(left_out, ["dot", "note"], "too deep, and not at all");
    }

    #[test]
    fn a_table_is_at_the_nearest_level_alone_and_circles_end() {
        let tables = [
            table("opportunity", &json!({ "parent_id": "opportunity" })),
            table("call", &json!({ "opportunity_id": "opportunity", "before_id": "call" })),
            table("segment", &json!({ "call_id": "call", "opportunity_id": "opportunity" })),
            table("a", &json!({ "call_id": "call", "b_id": "b" })),
            table("b", &json!({ "a_id": "a" })),
        ];
        let (paths, left_out) = places(&tables);
        let expect = [
            "call opportunity_id=id",
            "segment opportunity_id=id",
            "call/a call_id=id",
            "call/a/b a_id=id",
        ];
        assert_eq!(paths, expect);
        assert!(left_out.is_empty());
    }

    #[test]
    fn each_of_several_references_has_a_place_and_a_name() {
        let tables = [
            table("deal", &json!({ "buyer_id": "account", "seller_id": "account" })),
            table("account", &json!({})),
            table("email", &json!({ "account_id": "account" })),
            table("merge", &json!({ "from_id": "deal", "into_id": "deal" })),
            table("reason", &json!({ "merge_id": "merge" })),
            table("visit", &json!({ "host_id": "account", "guest_id": "account" })),
        ];
        let (paths, left_out) = places(&tables);
        let expect = [
            "account__buyer_id id=buyer_id",
            "account__seller_id id=seller_id",
            "email__buyer_id account_id=buyer_id",
            "email__seller_id account_id=seller_id",
            "merge__from_id from_id=id",
            "merge__into_id into_id=id",
            "visit__guest_id__buyer_id guest_id=buyer_id",
            "visit__guest_id__seller_id guest_id=seller_id",
            "visit__host_id__buyer_id host_id=buyer_id",
            "visit__host_id__seller_id host_id=seller_id",
            "merge__from_id/reason merge_id=id",
            "merge__into_id/reason merge_id=id",
        ];
        assert_eq!(paths, expect);
        assert!(left_out.is_empty());
        let mut tables = tables.to_vec();
        tables.push(table("merge__into_id", &json!({ "deal_id": "deal" })));
        let error = grown(&tables).expect_err("one name for two");
        assert!(error.message().contains("merge__into_id"), "{error}");
    }

    #[test]
    fn references_that_cannot_be_followed_leave_a_deeper_table_out() {
        let mut tables = vec![
            table("deal", &json!({})),
            table("call", &json!({ "deal_id": "deal" })),
            table("mail", &json!({ "deal_id": "deal" })),
            table("segment", &json!({ "call_id": "call", "mail_id": "mail" })),
        ];
        let (paths, _) = places(&tables);
        assert_eq!(paths.len(), 4, "{paths:?}");
        let mut changed = tables.clone();
        changed[2].0.key.clear();
        let (paths, left_out) = places(&changed);
        assert_eq!((paths.len(), left_out), (2, vec!["segment".to_owned()]), "no key to refer to");
        let mut changed = tables.clone();
        changed[3].1.fields[1].data_type = LakeType::String;
        assert_eq!(places(&changed).1, ["segment"], "another type");
        tables[1].1.fields.push(Field::new(RELATED, LakeType::String));
        assert_eq!(places(&tables).1, ["segment"], "no place in the row");
        tables[1].1.fields[1].data_type = LakeType::String;
        let error = grown(&tables).expect_err("an error, as nearer to the entity");
        assert_eq!(error.code(), ErrorCode::SpecInvalid);
    }
}
