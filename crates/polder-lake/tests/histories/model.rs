//! A table as a map from snapshots to rows: simple enough to be right by reading.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use polder_core::{Field, LakeType, TableSchema};
use polder_lake::{CmpOp, Literal, Predicate};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Long,
    Text,
}

/// A column; it is the same one under another name or type as long as its id is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) id: i32,
    pub(super) name: String,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Number(i64),
    Text(String),
}

/// The values that are not null, by the column's id.
pub(super) type Row = BTreeMap<i32, Value>;

/// The column of the rows' own ids, which every state has.
pub(super) const ID: i32 = 1;

/// One state of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) columns: Vec<Column>,
    pub(super) rows: BTreeMap<i64, Row>,
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) states: BTreeMap<i64, State>,
    /// The snapshots in the order in which they were made; their ids are random.
    made: Vec<i64>,
    pub(super) parents: HashMap<i64, Option<i64>>,
    pub(super) main: Option<i64>,
    pub(super) tags: BTreeMap<String, i64>,
    pub(super) version: u64,
}

impl Column {
    pub(super) fn new(id: i32, kind: Kind) -> Self {
        let name = if id == ID { "id".to_owned() } else { format!("c{id}") };
        Self { id, name, kind }
    }

    /// What the column holds in a row: made up, and often null.
    pub(super) fn value(&self, row: i64) -> Option<Value> {
        let made_up = (row * 31 + i64::from(self.id) * 7) % 23 - 5;
        match self.kind {
            _ if self.id == ID => Some(Value::Number(row)),
            _ if made_up % 4 == 0 => None,
            Kind::Text => {
                Some(Value::Text(format!("{}{made_up}", "ab".repeat((row % 9) as usize))))
            }
            Kind::Int | Kind::Long => Some(Value::Number(made_up)),
        }
    }
}

pub(super) fn table_schema(columns: &[Column]) -> TableSchema {
    let field = |column: &Column| {
        let kind = match column.kind {
            Kind::Int => LakeType::Int,
            Kind::Long => LakeType::Long,
            Kind::Text => LakeType::String,
        };
        Field::new(&column.name, kind).with_source_id(column.id)
    };
    TableSchema::new(columns.iter().map(field).collect())
}

impl State {
    pub(super) fn new(columns: Vec<Column>) -> Self {
        Self { columns, rows: BTreeMap::new() }
    }

    /// These rows more.
    pub(super) fn with(mut self, rows: impl IntoIterator<Item = i64>) -> Self {
        for row in rows {
            let values = self.columns.iter().filter_map(|c| Some((c.id, c.value(row)?)));
            let before = self.rows.insert(row, values.collect());
            assert_eq!(before, None, "ids are new");
        }
        self
    }

    pub(super) fn without(mut self, rows: &[i64]) -> Self {
        for row in rows {
            self.rows.remove(row).expect("a row that is there");
        }
        self
    }

    /// The same rows under other columns: what was in columns that go is lost.
    pub(super) fn under(mut self, columns: Vec<Column>) -> Self {
        for row in self.rows.values_mut() {
            row.retain(|id, _| columns.iter().any(|column| column.id == *id));
        }
        self.columns = columns;
        self
    }

    /// The ids of the rows that a filter wants: those of which it is true, and not null.
    pub(super) fn matching(&self, filter: &Predicate) -> Vec<i64> {
        let wanted = self.rows.iter().filter(|(_, row)| self.holds(filter, row) == Some(true));
        wanted.map(|(id, _)| *id).collect()
    }

    /// SQL's three values.
    fn holds(&self, filter: &Predicate, row: &Row) -> Option<bool> {
        let value = |name: &str| {
            let column = self.columns.iter().find(|column| column.name == name).expect("column");
            row.get(&column.id)
        };
        match filter {
            Predicate::True => Some(true),
            Predicate::And(a, b) => match (self.holds(a, row), self.holds(b, row)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Predicate::Or(a, b) => match (self.holds(a, row), self.holds(b, row)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Predicate::Not(inner) => self.holds(inner, row).map(|holds| !holds),
            Predicate::IsNull(name) => Some(value(name).is_none()),
            Predicate::IsNotNull(name) => Some(value(name).is_some()),
            Predicate::Cmp { column, op, value: wanted } => {
                let order = value(column)?.cmp(&literal(wanted));
                Some(match op {
                    CmpOp::Eq => order.is_eq(),
                    CmpOp::NotEq => order.is_ne(),
                    CmpOp::Lt => order.is_lt(),
                    CmpOp::LtEq => order.is_le(),
                    CmpOp::Gt => order.is_gt(),
                    CmpOp::GtEq => order.is_ge(),
                })
            }
            Predicate::In { column, values } => {
                let own = value(column)?;
                Some(values.iter().any(|wanted| literal(wanted) == *own))
            }
            Predicate::StartsWith { column, prefix } => match value(column)? {
                Value::Text(text) => Some(text.starts_with(prefix)),
                Value::Number(_) => panic!("a prefix of a number"),
            },
        }
    }
}

fn literal(literal: &Literal) -> Value {
    match literal {
        Literal::Int(number) => Value::Number(i64::from(*number)),
        Literal::Long(number) => Value::Number(*number),
        Literal::String(text) => Value::Text(text.clone()),
        other => panic!("{other:?} is not in the model"),
    }
}

impl Model {
    /// The present state.
    pub(super) fn now(&self) -> State {
        match self.main {
            Some(main) => self.states[&main].clone(),
            None => State::new(vec![Column::new(ID, Kind::Long)]),
        }
    }

    pub(super) fn commit(&mut self, snapshot: i64, state: State) {
        self.parents.insert(snapshot, self.main);
        self.made.push(snapshot);
        assert!(self.states.insert(snapshot, state).is_none(), "a snapshot of its own");
        self.main = Some(snapshot);
    }

    /// The snapshots that are kept, oldest first.
    pub(super) fn kept(&self) -> Vec<i64> {
        self.made.iter().copied().filter(|id| self.states.contains_key(id)).collect()
    }

    pub(super) fn tag_version(&mut self) -> String {
        self.version += 1;
        let name = format!("v{}", self.version);
        self.tags.insert(name.clone(), self.main.expect("a state"));
        name
    }

    /// `main` and its ancestors, as far as they are kept.
    fn lineage(&self) -> Vec<i64> {
        let parent = |id: &i64| self.parents[id].filter(|id| self.states.contains_key(id));
        std::iter::successors(self.main, parent).collect()
    }

    pub(super) fn roll_back(&mut self, to: i64, kept_as: &str) {
        let from = self.main.replace(to).expect("a state");
        if let Some(named) = self.tags.get(kept_as) {
            assert_eq!(*named, from, "{kept_as} is the state before");
            return;
        }
        let own = |name: &str| name.starts_with("before-rollback-");
        let named = self.tags.iter().any(|(name, snapshot)| own(name) && *snapshot == from);
        assert!(!named && own(kept_as), "{kept_as}");
        self.tags.insert(kept_as.to_owned(), from);
    }

    /// Nothing is kept for its age. Returns the names that went.
    pub(super) fn expire(&mut self, versions: usize, history: usize) -> Vec<String> {
        let number = |name: &str| name.strip_prefix('v').and_then(|n| n.parse::<u64>().ok());
        let mut numbers: Vec<u64> = self.tags.keys().filter_map(|name| number(name)).collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let mut kept: BTreeSet<u64> = numbers.iter().take(versions).copied().collect();
        let tag = |number: &u64| self.tags[&format!("v{number}")];
        let lineage = self.lineage();
        let current =
            lineage.iter().find_map(|id| numbers.iter().find(|number| tag(number) == *id));
        kept.extend(current);
        let goes = |name: &String| {
            let of_others = name.starts_with("tag-") || name.starts_with("pin-");
            !of_others && number(name).is_none_or(|number| !kept.contains(&number))
        };
        let names: Vec<String> = self.tags.keys().filter(|name| goes(name)).cloned().collect();
        self.tags.retain(|name, _| !names.contains(name));
        let mut needed: BTreeSet<i64> = self.tags.values().copied().collect();
        needed.extend(lineage.into_iter().take(history.max(1)));
        self.states.retain(|id, _| needed.contains(id));
        names
    }
}
