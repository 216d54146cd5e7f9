//! The extended protocol: statements that are prepared, portals that give their rows in parts.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use pgwire::messages::data::{NoData, ParameterDescription, RowDescription};
use pgwire::messages::extendedquery::{
    BindComplete, CloseComplete, ParseComplete, PortalSuspended,
};
use pgwire::messages::response::EmptyQueryResponse;
use polder_query::postgres::{Value, bind, parameters, pieces};

use super::command::Command;
use super::connection::Connection;
use super::decode;
use super::encode::Encoder;
use super::failure::{Failure, Outcome, state};
use super::frontend::{Asked, Binding, Named};
use super::rows::{Rows, Sent, Watch};
use super::types::{Kind, element, oid};
use super::wire::Gone;

/// Statements and portals of one connection.
const STATEMENTS_MAX: usize = 1_000;
const PORTALS_MAX: usize = 100;

/// A statement that was prepared.
pub(super) struct Prepared {
    sql: String,
    /// `None` for a text without a statement.
    command: Option<Command>,
    /// The types that the client said; 0 where it did not.
    declared: Vec<u32>,
    /// Parameters that the statement has.
    count: usize,
}

/// A statement with its values, and how far it is.
pub(super) struct Portal {
    /// With the values in it.
    sql: String,
    command: Option<Command>,
    formats: Vec<i16>,
    state: State,
}

enum State {
    Ready,
    Running(Box<Rows>),
    Done,
}

impl Portal {
    /// Whether it holds rows that the client has not taken.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }
}

pub(super) fn no_statement(name: &str) -> Failure {
    let message = format!("prepared statement {name:?} does not exist");
    Failure::new(state::NO_STATEMENT, message)
}

pub(super) fn no_portal(name: &str) -> Failure {
    Failure::new(state::NO_PORTAL, format!("portal {name:?} does not exist"))
}

impl Connection<'_> {
    /// One message of the extended protocol.
    pub(super) async fn extended(&mut self, asked: Asked) -> Result<Outcome<()>, Gone> {
        Ok(match asked {
            Asked::Parse { name, sql, types } => self.parse(name, &sql, types),
            Asked::Bind(binding) => self.bind(binding).await,
            Asked::Describe(Named::Statement(name)) => self.describe_statement(&name).await,
            Asked::Describe(Named::Portal(name)) => self.describe_portal(&name).await,
            Asked::Execute { portal, rows_max } => return self.execute(&portal, rows_max).await,
            Asked::Close(named) => {
                match named {
                    Named::Statement(name) => drop(self.statements.remove(&name)),
                    Named::Portal(name) => drop(self.portals.remove(&name)),
                }
                self.visitor.wire.put(&CloseComplete::new());
                Ok(())
            }
            Asked::Flush => {
                self.visitor.wire.flush().await?;
                Ok(())
            }
            // Rows of a COPY that was refused.
            Asked::Copy => Ok(()),
            Asked::Password(_) | Asked::Query(_) | Asked::Sync | Asked::Terminate => {
                Err(Failure::protocol("this message is not expected here"))
            }
        })
    }

    fn parse(&mut self, name: String, sql: &str, declared: Vec<u32>) -> Outcome<()> {
        let mut pieces = pieces(sql)?;
        if pieces.len() > 1 {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(Failure::new("42601", message));
        }
        let piece = pieces.pop();
        let command = piece.as_ref().map(Command::of);
        if let Some(command) = &command {
            self.allowed(command)?;
        }
        if !name.is_empty() && self.statements.contains_key(&name) {
            let message = format!("prepared statement {name:?} already exists");
            return Err(Failure::new("42P05", message));
        }
        if self.statements.len() >= STATEMENTS_MAX {
            let message = format!("a connection has {STATEMENTS_MAX} prepared statements at most");
            return Err(Failure::new("54000", message));
        }
        let sql = piece.map(|piece| piece.sql).unwrap_or_default();
        let count = parameters(&sql)?;
        self.statements.insert(name, Arc::new(Prepared { sql, command, declared, count }));
        self.visitor.wire.put(&ParseComplete::new());
        Ok(())
    }

    async fn bind(&mut self, binding: Binding) -> Outcome<()> {
        let found = self.statements.get(&binding.statement).cloned();
        let prepared = found.ok_or_else(|| no_statement(&binding.statement))?;
        if let Some(command) = &prepared.command {
            self.allowed(command)?;
        }
        if !binding.portal.is_empty() && self.portals.contains_key(&binding.portal) {
            let message = format!("portal {:?} already exists", binding.portal);
            return Err(Failure::new("42P03", message));
        }
        if self.portals.len() >= PORTALS_MAX {
            let message = format!("a connection has {PORTALS_MAX} portals at most");
            return Err(Failure::new("54000", message));
        }
        if binding.values.len() != prepared.count {
            let (given, count) = (binding.values.len(), prepared.count);
            let message = format!("{given} parameters were given, and the statement has {count}");
            return Err(Failure::protocol(message));
        }
        let watch = self.watch();
        let types = self.types(&prepared, &watch).await?;
        let values = values(&types, &binding)?;
        let sql = bind(&prepared.sql, &values)?;
        let (command, formats) = (prepared.command.clone(), binding.result_formats);
        let portal = Portal { sql, command, formats, state: State::Ready };
        self.portals.insert(binding.portal, portal);
        self.visitor.wire.put(&BindComplete::new());
        Ok(())
    }

    /// The types of a statement's parameters: the client's word, or else what the statement says. 0 where
    /// nobody says it.
    async fn types(&mut self, prepared: &Prepared, watch: &Watch) -> Outcome<Vec<u32>> {
        let declared = |at: usize| prepared.declared.get(at).copied().unwrap_or_default();
        let types: Vec<u32> = (0..prepared.count).map(declared).collect();
        let is_known = types.iter().all(|of| *of != 0);
        if is_known || prepared.command != Some(Command::Query) {
            return Ok(types);
        }
        let nulls = vec![Value::Null(None); prepared.count];
        if self.door.catalog.concerns(&bind(&prepared.sql, &nulls)?) {
            return Ok(types);
        }
        let said = self.description(&prepared.sql, watch).await?.parameters;
        let said = said.iter().map(|said| said.as_ref().map_or(0, |said| Kind::of(said).oid));
        Ok(types.iter().zip(said).map(|(of, said)| if *of == 0 { said } else { *of }).collect())
    }

    /// The columns that a query gives for parameters of these types.
    async fn columns(
        &mut self,
        prepared: &Prepared,
        types: &[u32],
        watch: &Watch,
    ) -> Outcome<SchemaRef> {
        let nulls: Vec<_> = types.iter().map(|of| Value::Null(data_type(*of))).collect();
        let bound = bind(&prepared.sql, &nulls)?;
        if self.door.catalog.concerns(&bound) {
            return Ok(self.open(&bound, watch).await?.schema);
        }
        Ok(self.description(&bound, watch).await?.schema)
    }

    async fn describe_statement(&mut self, name: &str) -> Outcome<()> {
        let prepared = self.statements.get(name).cloned().ok_or_else(|| no_statement(name))?;
        let Some(command) = prepared.command.as_ref() else {
            self.visitor.wire.put(&ParameterDescription::new(Vec::new()));
            self.visitor.wire.put(&NoData::new());
            return Ok(());
        };
        self.allowed(command)?;
        if *command != Command::Query {
            let columns = Self::columns_of(command)?;
            self.visitor.wire.put(&ParameterDescription::new(vec![oid::TEXT; prepared.count]));
            self.put_columns(columns);
            return Ok(());
        }
        let watch = self.watch();
        let mut types = self.types(&prepared, &watch).await?;
        let schema = self.columns(&prepared, &types, &watch).await?;
        for of in types.iter_mut().filter(|of| **of == 0) {
            *of = oid::TEXT;
        }
        let columns = RowDescription::new(Encoder::new(&schema, &[])?.described());
        self.visitor.wire.put(&ParameterDescription::new(types));
        self.put_columns(Some(columns));
        Ok(())
    }

    fn put_columns(&mut self, columns: Option<RowDescription>) {
        match columns.filter(|columns| !columns.fields.is_empty()) {
            Some(columns) => self.visitor.wire.put(&columns),
            None => self.visitor.wire.put(&NoData::new()),
        }
    }

    async fn describe_portal(&mut self, name: &str) -> Outcome<()> {
        let watch = self.watch();
        let mut portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        let columns = match &portal.command {
            Some(command) if *command != Command::Query => Self::columns_of(command),
            Some(_) => match self.run(&mut portal, &watch).await {
                Ok(()) => Ok(match &portal.state {
                    State::Running(rows) => Some(rows.described()),
                    State::Ready | State::Done => None,
                }),
                Err(failure) => Err(failure),
            },
            None => Ok(None),
        };
        self.portals.insert(name.to_owned(), portal);
        self.put_columns(columns?);
        Ok(())
    }

    /// Starts a portal's query, unless it was before.
    async fn run(&mut self, portal: &mut Portal, watch: &Watch) -> Outcome<()> {
        if matches!(portal.state, State::Ready) {
            if let Some(command) = &portal.command {
                self.allowed(command)?;
            }
            let rows = self.start(&portal.sql, &portal.formats, watch).await?;
            portal.state = State::Running(Box::new(rows));
        }
        Ok(())
    }

    async fn execute(&mut self, name: &str, rows_max: i32) -> Result<Outcome<()>, Gone> {
        let watch = self.watch();
        let Some(mut portal) = self.portals.remove(name) else { return Ok(Err(no_portal(name))) };
        let done = self.executed(&mut portal, rows_max, &watch).await?;
        // A command may have closed all portals, this one too.
        let stays = portal.command == Some(Command::Query);
        if stays && done.is_ok() {
            self.portals.insert(name.to_owned(), portal);
        }
        Ok(done)
    }

    async fn executed(
        &mut self,
        portal: &mut Portal,
        rows_max: i32,
        watch: &Watch,
    ) -> Result<Outcome<()>, Gone> {
        match &portal.command {
            None => {
                self.visitor.wire.put(&EmptyQueryResponse::new());
                return Ok(Ok(()));
            }
            Some(Command::Query) => {}
            Some(command) => {
                let command = command.clone();
                let allowed = self.allowed(&command);
                return Ok(allowed.and_then(|()| self.commanded(&command, false)));
            }
        }
        if let Err(failure) = self.run(portal, watch).await {
            return Ok(Err(failure));
        }
        let State::Running(rows) = &mut portal.state else {
            self.complete("SELECT 0");
            return Ok(Ok(()));
        };
        let most = u64::try_from(rows_max).ok().filter(|most| *most > 0);
        match rows.send(&mut self.visitor.wire, most, watch).await? {
            Ok(Sent::All(count)) => {
                portal.state = State::Done;
                self.complete(&format!("SELECT {count}"));
            }
            Ok(Sent::More) => self.visitor.wire.put(&PortalSuspended::new()),
            Err(failure) => return Ok(Err(failure)),
        }
        Ok(Ok(()))
    }
}

/// The values that a client binds, by the types they are of.
fn values(types: &[u32], binding: &Binding) -> Outcome<Vec<Value>> {
    let formats = &binding.formats;
    if formats.len() > 1 && formats.len() != binding.values.len() {
        return Err(Failure::protocol("there are formats for another number of parameters"));
    }
    if formats.iter().any(|format| !(0..=1).contains(format)) {
        return Err(Failure::protocol("a format is neither text nor binary"));
    }
    let is_binary = |at: usize| match formats.as_slice() {
        [] => false,
        [one] => *one == 1,
        all => all[at] == 1,
    };
    let values = types.iter().zip(&binding.values).enumerate();
    let values = values.map(|(at, (of, bytes))| match bytes {
        Some(bytes) => decode::value(*of, is_binary(at), bytes),
        None => Ok(Value::Null(data_type(*of))),
    });
    values.collect()
}

/// The type of a null: what a value of the parameter is bound as.
fn data_type(of: u32) -> Option<DataType> {
    Some(match of {
        oid::BOOL => DataType::Boolean,
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => DataType::Int64,
        oid::FLOAT4 | oid::FLOAT8 => DataType::Float64,
        oid::NUMERIC => DataType::Decimal128(38, 10),
        oid::BYTEA => DataType::Binary,
        oid::DATE => DataType::Date32,
        oid::TIME => DataType::Time64(TimeUnit::Microsecond),
        oid::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        oid::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        0 => return None,
        _ if element(of).is_some() => return None,
        _ => DataType::Utf8,
    })
}
