//! A [`SubPlan`] as one SQL statement with the same meaning.
//!
//! Each part becomes a subselect whose columns are named `c0`, `c1`, …; the server's planner flattens
//! them. What a column's own type makes different from the query engine is kept out of every term: see
//! [`Kept`]. Texts are under `COLLATE "C"` from the table on. How tables are read and guarded is written
//! in `answer`.

use polder_core::subplan::{Aggregate, AggregateFunction, Arithmetic, JoinKind, Order, Term};
use polder_core::{CmpOp, LakeType, Literal, SubPlan};

use super::cursor::{days_text, micros_text};
use super::names::literal;
use super::predicate::decimal_text;
use super::times::DAY_MICROS;
use super::written::Written;

/// The most values of an `IN`.
const IN_MAX: usize = 10_000;

/// What is the same of a column here and at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Its values, and how they compare.
    Values,
    /// Which of them are null.
    Nulls,
    /// Nothing but what is sent.
    Nothing,
}

/// A column of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) kept: Kept,
    /// See [`super::columns::ColumnRead::written`].
    pub(super) written: Option<Written>,
    /// For messages.
    pub(super) type_name: String,
}

/// A statement with the columns `c0`, `c1`, ….
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) cells: Vec<Cell>,
}

/// The statement for `part`, whose tables are read by `tables`, in the order of [`SubPlan::parts`].
/// `None` for what does not have the same meaning at the server.
pub(super) fn statement(part: &SubPlan, tables: &[Statement]) -> Option<Statement> {
    written(part, &mut tables.iter())
}

fn written(part: &SubPlan, tables: &mut std::slice::Iter<'_, Statement>) -> Option<Statement> {
    match part {
        SubPlan::Table { .. } => tables.next().cloned(),
        SubPlan::Filter { input, condition } => {
            let Statement { sql, cells } = written(input, tables)?;
            let condition = Terms::of(&cells).exact(condition)?;
            let all = names(cells.len()).join(", ");
            let sql = format!("SELECT {all} FROM ({sql}) AS s WHERE {condition}");
            Some(Statement { sql, cells })
        }
        SubPlan::Project { input, terms } => {
            let types = part.columns()?;
            let Statement { sql, cells } = written(input, tables)?;
            let from = Terms::of(&cells);
            let columns = terms.iter().zip(&types).map(|(term, of)| from.column(term, of));
            let (columns, cells): (Vec<_>, Vec<_>) =
                columns.collect::<Option<Vec<_>>>()?.into_iter().unzip();
            Some(Statement { sql: select(&columns, &format!("({sql}) AS s")), cells })
        }
        SubPlan::Join { left, right, kind, condition } => {
            let (left, right) = (written(left, tables)?, written(right, tables)?);
            let first = left.cells.len();
            let name = |index: usize| match index.checked_sub(first) {
                None => format!("l.c{index}"),
                Some(index) => format!("r.c{index}"),
            };
            let cells = [left.cells, right.cells].concat();
            let condition = Terms { cells: &cells, name: &name }.exact(condition)?;
            let join = match kind {
                JoinKind::Inner => "JOIN",
                JoinKind::Left => "LEFT JOIN",
            };
            let columns: Vec<String> = (0..cells.len()).map(name).collect();
            let (left, right) = (left.sql, right.sql);
            let from = format!("({left}) AS l {join} ({right}) AS r ON {condition}");
            Some(Statement { sql: select(&columns, &from), cells })
        }
        SubPlan::Aggregate { input, keys, aggregates } => {
            let types = part.columns()?;
            let of_input = input.columns()?;
            let Statement { sql, cells } = written(input, tables)?;
            let mut grouped = Grouped { from: Terms::of(&cells), inner: Vec::new() };
            let names =
                keys.iter().map(|key| grouped.take(key)).collect::<Option<Vec<String>>>()?;
            let mut columns = names.clone();
            for aggregate in aggregates {
                columns.push(grouped.aggregate(aggregate, &of_input)?);
            }
            let inner = select(&grouped.inner, &format!("({sql}) AS s"));
            let mut sql = select(&columns, &format!("({inner}) AS s"));
            if !names.is_empty() {
                sql = format!("{sql} GROUP BY {}", names.join(", "));
            }
            Some(Statement { sql, cells: types.iter().map(computed).collect() })
        }
        SubPlan::First { input, order, rows } => {
            let Statement { sql, cells } = written(input, tables)?;
            let keys = order.iter().map(|key| self::order(key, &Terms::of(&cells)));
            let keys = keys.collect::<Option<Vec<_>>>()?;
            let by = if keys.is_empty() {
                String::new()
            } else {
                format!(" ORDER BY {}", keys.join(", "))
            };
            let all = names(cells.len()).join(", ");
            let sql = format!("SELECT {all} FROM ({sql}) AS s{by} LIMIT {rows}");
            Some(Statement { sql, cells })
        }
    }
}

fn own_name(index: usize) -> String {
    format!("c{index}")
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(own_name).collect()
}

/// `SELECT … AS c0, … AS c1 FROM …`.
pub(super) fn select(columns: &[String], from: &str) -> String {
    let named = columns.iter().enumerate().map(|(index, sql)| format!("{sql} AS c{index}"));
    format!("SELECT {} FROM {from}", named.collect::<Vec<_>>().join(", "))
}

/// The server's name of a type that terms have.
pub(super) fn type_name(data_type: &LakeType) -> Option<&'static str> {
    Some(match data_type {
        LakeType::Boolean => "bool",
        LakeType::Int => "int4",
        LakeType::Long => "int8",
        LakeType::Double => "float8",
        LakeType::Decimal { .. } => "numeric",
        LakeType::Date => "date",
        LakeType::Time => "time",
        LakeType::Timestamp => "timestamp",
        LakeType::Timestamptz => "timestamptz",
        LakeType::String => "text",
        LakeType::Uuid => "uuid",
        LakeType::Float | LakeType::Binary | LakeType::List(_) | LakeType::Struct(_) => {
            return None;
        }
    })
}

/// What a term becomes. A double is no more compared: the core lets none be.
fn computed(data_type: &LakeType) -> Cell {
    let type_name = type_name(data_type).unwrap_or("unknown").to_owned();
    Cell { kept: Kept::Values, written: None, type_name }
}

fn order(key: &Order, terms: &Terms<'_>) -> Option<String> {
    let term = terms.exact(&key.term)?;
    let direction = if key.descending { "DESC" } else { "ASC" };
    let nulls = if key.nulls_first { "FIRST" } else { "LAST" };
    Some(format!("{term} {direction} NULLS {nulls}"))
}

/// The columns that groups and their values are made of, below the grouping.
struct Grouped<'a> {
    from: Terms<'a>,
    inner: Vec<String>,
}

impl Grouped<'_> {
    /// The name of a term's column.
    fn take(&mut self, term: &Term) -> Option<String> {
        self.inner.push(self.from.exact(term)?);
        Some(own_name(self.inner.len() - 1))
    }

    fn aggregate(&mut self, aggregate: &Aggregate, columns: &[LakeType]) -> Option<String> {
        let filter = match &aggregate.filter {
            None => String::new(),
            Some(filter) => format!(" FILTER (WHERE {})", self.take(filter)?),
        };
        let Some(argument) = &aggregate.argument else {
            return Some(format!("pg_catalog.count(*){filter}"));
        };
        let call = |function: &str, of: &str| format!("pg_catalog.{function}({of}){filter}");
        Some(match (aggregate.function, argument) {
            (AggregateFunction::Count, _) if aggregate.distinct => {
                call("count", &format!("DISTINCT {}", self.take(argument)?))
            }
            (AggregateFunction::Count, _) => {
                let is_null = self.from.exact(&Term::IsNull(Box::new(argument.clone())))?;
                self.inner.push(format!("CASE WHEN {is_null} THEN NULL ELSE 0 END"));
                call("count", &own_name(self.inner.len() - 1))
            }
            // The server adds up integers in a wider type, faster those of 32 bits.
            (AggregateFunction::Sum, Term::Widened(narrow, LakeType::Long))
                if narrow.data_type(columns) == Some(LakeType::Int) =>
            {
                let of = self.take(narrow)?;
                format!("({}::pg_catalog.int8)", call("sum", &of))
            }
            (AggregateFunction::Sum, _) => {
                let of = self.take(argument)?;
                let sum = call("sum", &of);
                match argument.data_type(columns)? {
                    LakeType::Long => format!("({sum}::pg_catalog.int8)"),
                    _ => sum,
                }
            }
            (AggregateFunction::Min, _) => call("min", &self.take(argument)?),
            (AggregateFunction::Max, _) => call("max", &self.take(argument)?),
            (AggregateFunction::Average, _) => {
                let of = self.take(argument)?;
                let (sum, count) = (call("sum", &of), call("count", &of));
                match argument.data_type(columns)? {
                    LakeType::Int => format!(
                        "({sum}::pg_catalog.float8 / nullif({count}, 0)::pg_catalog.float8)"
                    ),
                    LakeType::Decimal { scale, .. } => {
                        let places = usize::from(scale) + 4;
                        let zeros = "0".repeat(places);
                        // Whole numbers: the server's own quotient is rounded.
                        format!(
                            "(pg_catalog.div({sum} * '1{zeros}'::pg_catalog.numeric, \
                             nullif({count}, 0)::pg_catalog.numeric) * \
                             '0.{}1'::pg_catalog.numeric)",
                            "0".repeat(places - 1)
                        )
                    }
                    _ => return None,
                }
            }
        })
    }
}

/// Terms over the columns of one statement.
struct Terms<'a> {
    cells: &'a [Cell],
    name: &'a dyn Fn(usize) -> String,
}

impl<'a> Terms<'a> {
    fn of(cells: &'a [Cell]) -> Self {
        Self { cells, name: &own_name }
    }

    /// A column that is passed on as it is, whatever it holds, or a term.
    fn column(&self, term: &Term, data_type: &LakeType) -> Option<(String, Cell)> {
        match term {
            Term::Column(index) => Some(((self.name)(*index), self.cells.get(*index)?.clone())),
            term => Some((self.exact(term)?, computed(data_type))),
        }
    }

    /// The term in SQL, in parentheses where it is not one word.
    fn exact(&self, term: &Term) -> Option<String> {
        Some(match term {
            Term::Column(index) => {
                let kept = self.cells.get(*index)?.kept;
                return (kept == Kept::Values).then(|| (self.name)(*index));
            }
            Term::Constant(value) => return constant(value),
            Term::Null(data_type) => format!("(NULL::pg_catalog.{})", type_name(data_type)?),
            Term::Compare { op, left, right } => self.pair(left, sign(*op), right)?,
            Term::Distinct(left, right) => self.pair(left, "IS DISTINCT FROM", right)?,
            Term::And(left, right) => self.pair(left, "AND", right)?,
            Term::Or(left, right) => self.pair(left, "OR", right)?,
            Term::Not(term) => format!("(NOT {})", self.exact(term)?),
            Term::IsNull(term) => match &**term {
                Term::Column(index) if self.cells.get(*index)?.kept == Kept::Nulls => {
                    format!("({} IS NULL)", (self.name)(*index))
                }
                term => format!("({} IS NULL)", self.exact(term)?),
            },
            Term::Is(term, value) => {
                let value = if *value { "TRUE" } else { "FALSE" };
                format!("({} IS {value})", self.exact(term)?)
            }
            Term::In { term, values } if values.len() <= IN_MAX => {
                let values = values.iter().map(constant).collect::<Option<Vec<_>>>()?;
                format!("({} IN ({}))", self.exact(term)?, values.join(", "))
            }
            Term::In { .. } => return None,
            Term::Like { term, pattern } => {
                let pattern = constant(&Literal::String(pattern.clone()))?;
                format!("({} LIKE {pattern})", self.exact(term)?)
            }
            Term::Case { whens, otherwise } => {
                let mut sql = "(CASE".to_owned();
                for (when, then) in whens {
                    sql = format!("{sql} WHEN {} THEN {}", self.exact(when)?, self.exact(then)?);
                }
                if let Some(otherwise) = otherwise {
                    sql = format!("{sql} ELSE {}", self.exact(otherwise)?);
                }
                format!("{sql} END)")
            }
            Term::Arithmetic { op, left, right } => {
                let sign = match op {
                    Arithmetic::Add => "+",
                    Arithmetic::Subtract => "-",
                    Arithmetic::Multiply => "*",
                };
                self.pair(left, sign, right)?
            }
            Term::Widened(term, to) => {
                format!("({}::pg_catalog.{})", self.exact(term)?, type_name(to)?)
            }
        })
    }

    fn pair(&self, left: &Term, sign: &str, right: &Term) -> Option<String> {
        Some(format!("({} {sign} {})", self.exact(left)?, self.exact(right)?))
    }
}

fn sign(op: CmpOp) -> &'static str {
    match op {
        CmpOp::Eq => "=",
        CmpOp::NotEq => "<>",
        CmpOp::Lt => "<",
        CmpOp::LtEq => "<=",
        CmpOp::Gt => ">",
        CmpOp::GtEq => ">=",
    }
}

/// A constant of exactly its type; `None` for one that the server does not have.
fn constant(value: &Literal) -> Option<String> {
    let (text, of) = match value {
        Literal::Boolean(value) => return Some(value.to_string()),
        Literal::Int(value) => (value.to_string(), "int4"),
        Literal::Long(value) => (value.to_string(), "int8"),
        Literal::Decimal { unscaled, scale, .. } => (decimal_text(*unscaled, *scale), "numeric"),
        Literal::Date(days) => (days_text(*days)?, "date"),
        Literal::Time(micros) => (time_text(*micros)?, "time"),
        Literal::Timestamp(micros) => (micros_text(*micros)?, "timestamp"),
        Literal::Timestamptz(micros) => (format!("{}+00", micros_text(*micros)?), "timestamptz"),
        Literal::Uuid(value) => (value.to_string(), "uuid"),
        Literal::String(text) if !text.contains('\0') => {
            return Some(format!("({}::pg_catalog.text COLLATE \"C\")", literal(text)));
        }
        Literal::String(_) | Literal::Float(_) | Literal::Double(_) | Literal::Binary(_) => {
            return None;
        }
    };
    Some(format!("'{text}'::pg_catalog.{of}"))
}

fn time_text(micros: i64) -> Option<String> {
    let micros = (0..DAY_MICROS).contains(&micros).then_some(micros)?;
    let (seconds, part) = (micros / 1_000_000, micros % 1_000_000);
    Some(format!("{:02}:{:02}:{:02}.{part:06}", seconds / 3600, seconds / 60 % 60, seconds % 60))
}

#[cfg(test)]
mod tests {
    use polder_core::{Field, Predicate};

    use super::*;

    const T: &str = "SELECT a AS c0, b AS c1, f AS c2 FROM t";

    fn table() -> SubPlan {
        let amount = LakeType::Decimal { precision: 12, scale: 2 };
        let columns = [("a", LakeType::Int), ("b", amount), ("f", LakeType::Double)];
        SubPlan::Table {
            from: "public.t".to_owned(),
            columns: columns.into_iter().map(|(name, of)| Field::new(name, of)).collect(),
            predicate: Predicate::True,
        }
    }

    fn read() -> Statement {
        let cell = |kept| Cell { kept, written: None, type_name: String::new() };
        let cells = vec![cell(Kept::Values), cell(Kept::Values), cell(Kept::Nulls)];
        Statement { sql: T.to_owned(), cells }
    }

    fn sql(part: &SubPlan) -> Option<String> {
        statement(part, &[read(), read()]).map(|statement| statement.sql)
    }

    fn column(index: usize) -> Term {
        Term::Column(index)
    }

    fn of(function: AggregateFunction, index: usize) -> Aggregate {
        let argument = Some(Term::Column(index));
        Aggregate { function, argument, distinct: false, filter: None }
    }

    #[test]
    fn parts_become_subselects() {
        let text = Box::new(Term::Constant(Literal::Int(-5)));
        let condition = Term::Compare { op: CmpOp::Gt, left: column(0).into(), right: text };
        let filter = SubPlan::Filter { input: table().into(), condition };
        let filtered =
            format!("SELECT c0, c1, c2 FROM ({T}) AS s WHERE (c0 > '-5'::pg_catalog.int4)");
        assert_eq!(sql(&filter), Some(filtered));
        let order = vec![Order { term: Term::Column(1), descending: true, nulls_first: false }];
        let first = SubPlan::First { input: table().into(), order, rows: 7 };
        let expected =
            format!("SELECT c0, c1, c2 FROM ({T}) AS s ORDER BY c1 DESC NULLS LAST LIMIT 7");
        assert_eq!(sql(&first), Some(expected));
        let condition =
            Term::Compare { op: CmpOp::Eq, left: column(0).into(), right: column(3).into() };
        let (left, right) = (table().into(), table().into());
        let join = SubPlan::Join { left, right, kind: JoinKind::Left, condition };
        let expected = format!(
            "SELECT l.c0 AS c0, l.c1 AS c1, l.c2 AS c2, r.c0 AS c3, r.c1 AS c4, r.c2 AS c5 \
             FROM ({T}) AS l LEFT JOIN ({T}) AS r ON (l.c0 = r.c0)"
        );
        assert_eq!(sql(&join), Some(expected));
    }

    #[test]
    fn averages_are_cut_off_and_groups_are_named() {
        use AggregateFunction::{Average, Count};
        let aggregates = vec![of(Average, 1), of(Count, 2)];
        let part =
            SubPlan::Aggregate { input: table().into(), keys: vec![Term::Column(0)], aggregates };
        let expected = format!(
            "SELECT c0 AS c0, (pg_catalog.div(pg_catalog.sum(c1) * '1000000'::pg_catalog.numeric, \
             nullif(pg_catalog.count(c1), 0)::pg_catalog.numeric) * \
             '0.000001'::pg_catalog.numeric) AS c1, pg_catalog.count(c2) AS c2 FROM \
             (SELECT c0 AS c0, c1 AS c1, CASE WHEN (c2 IS NULL) THEN NULL ELSE 0 END AS c2 \
             FROM ({T}) AS s) AS s GROUP BY c0"
        );
        assert_eq!(sql(&part), Some(expected));
    }

    #[test]
    fn a_column_that_compares_differently_is_only_passed_on() {
        let passed = SubPlan::Project { input: table().into(), terms: vec![Term::Column(2)] };
        assert_eq!(sql(&passed), Some(format!("SELECT c2 AS c0 FROM ({T}) AS s")));
        let is = Term::Compare { op: CmpOp::Eq, left: column(2).into(), right: column(2).into() };
        assert_eq!(sql(&SubPlan::Filter { input: table().into(), condition: is }), None);
        let grouped = SubPlan::Aggregate {
            input: table().into(),
            keys: vec![Term::Column(2)],
            aggregates: Vec::new(),
        };
        assert_eq!(sql(&grouped), None);
    }

    #[test]
    fn constants_are_of_their_types_and_leave_no_quotes() {
        let cases = [
            (
                Literal::String("O'Neil \\".to_owned()),
                Some(r#"(E'O''Neil \\'::pg_catalog.text COLLATE "C")"#),
            ),
            (Literal::String("\0".to_owned()), None),
            (Literal::Time(3_661_000_007), Some("'01:01:01.000007'::pg_catalog.time")),
            (Literal::Time(DAY_MICROS), None),
            (
                Literal::Decimal { unscaled: -5, precision: 3, scale: 2 },
                Some("'-0.05'::pg_catalog.numeric"),
            ),
            (
                Literal::Timestamptz(0),
                Some("'1970-01-01 00:00:00.000000+00'::pg_catalog.timestamptz"),
            ),
            (Literal::Date(i32::MAX), None),
            (Literal::Double(1.0), None),
        ];
        for (value, expected) in cases {
            assert_eq!(constant(&value).as_deref(), expected, "{value:?}");
        }
    }
}
