//! One connection after its beginning: messages in, answers out, and what the client has put aside.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema};
use pgwire::messages::data::RowDescription;
use pgwire::messages::response::{
    CommandComplete, EmptyQueryResponse, ReadyForQuery, TransactionStatus,
};
use pgwire::messages::startup::ParameterStatus;
use polder_query::postgres::{Listed, pieces};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Door;
use super::cancel::Place;
use super::command::Command;
use super::extended::{Portal, Prepared};
use super::failure::{Failure, Outcome, state};
use super::frontend::Asked;
use super::rows::{Sent, Watch};
use super::settings::Settings;
use super::startup::Visitor;
use super::wire::Gone;

/// How long a client may leave rows where they are: they hold memory that others wait for.
const ROWS_IDLE_MAX: Duration = Duration::from_mins(5);
/// How long a connection may be without use.
const IDLE_MAX: Duration = Duration::from_hours(24);

/// A connection.
pub(super) struct Connection<'a> {
    pub(super) door: &'a Door,
    pub(super) visitor: Visitor,
    pub(super) place: &'a Place,
    pub(super) status: TransactionStatus,
    pub(super) statements: HashMap<String, Arc<Prepared>>,
    pub(super) portals: HashMap<String, Portal>,
    /// The tables that `pg_catalog` shows, and when they were listed.
    pub(super) listed: Option<(Instant, Arc<Vec<Listed>>)>,
    /// After an error, what comes before the next Sync is passed over.
    skipping: bool,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Message,
    End,
}

/// What came of a command that is no query.
struct Done {
    tag: String,
    /// The rows of SHOW, by the names of its columns.
    shown: Option<(Vec<&'static str>, Vec<Vec<String>>)>,
}

impl Done {
    fn tag(tag: &str) -> Self {
        Self { tag: tag.to_owned(), shown: None }
    }
}

impl<'a> Connection<'a> {
    pub(super) fn new(door: &'a Door, visitor: Visitor, place: &'a Place) -> Self {
        Self {
            door,
            visitor,
            place,
            status: TransactionStatus::Idle,
            statements: HashMap::new(),
            portals: HashMap::new(),
            listed: None,
            skipping: false,
        }
    }

    /// Answers until the client leaves, or the server stops.
    pub(super) async fn serve(mut self, stop: &CancellationToken) -> Result<(), Gone> {
        self.ready().await?;
        loop {
            let holds_rows = self.portals.values().any(Portal::is_running);
            let idle = if holds_rows { ROWS_IDLE_MAX } else { IDLE_MAX };
            let asked = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let message = "terminating connection: the server stops";
                    return self.end(Failure::new(state::SHUTDOWN, message)).await;
                }
                asked = tokio::time::timeout(idle, self.visitor.wire.asked()) => asked,
            };
            let Ok(asked) = asked else {
                let message = "terminating connection: it was idle for too long";
                return self.end(Failure::new(state::IDLE, message)).await;
            };
            match Box::pin(self.answer(asked?)).await? {
                Next::Message => {}
                Next::End => return Ok(()),
            }
        }
    }

    async fn end(mut self, failure: Failure) -> Result<(), Gone> {
        self.visitor.wire.fail(&failure.fatal());
        self.visitor.wire.flush().await
    }

    async fn answer(&mut self, asked: Outcome<Asked>) -> Result<Next, Gone> {
        match asked {
            Ok(Asked::Terminate) => Ok(Next::End),
            Ok(Asked::Sync) => {
                self.skipping = false;
                if self.status == TransactionStatus::Idle {
                    self.portals.clear();
                }
                self.ready().await?;
                Ok(Next::Message)
            }
            Ok(_) if self.skipping => Ok(Next::Message),
            Ok(Asked::Query(sql)) => {
                let done = self.simple(&sql).await?;
                let next = self.noted(done).await?;
                if next == Next::Message {
                    self.ready().await?;
                }
                Ok(next)
            }
            Ok(asked) => {
                let done = self.extended(asked).await?;
                self.skipping = done.is_err();
                self.noted(done).await
            }
            Err(failure) => {
                self.skipping = true;
                self.noted(Err(failure)).await
            }
        }
    }

    /// Tells of a failure, after which a transaction is of no use.
    async fn noted(&mut self, done: Outcome<()>) -> Result<Next, Gone> {
        let Err(failure) = done else { return Ok(Next::Message) };
        self.visitor.wire.fail(&failure);
        if failure.fatal {
            self.visitor.wire.flush().await?;
            return Ok(Next::End);
        }
        if self.status == TransactionStatus::Transaction {
            self.status = TransactionStatus::Error;
        }
        Ok(Next::Message)
    }

    async fn ready(&mut self) -> Result<(), Gone> {
        self.visitor.wire.put(&ReadyForQuery::new(self.status));
        self.visitor.wire.flush().await
    }

    /// A text of any number of statements, which end with the first that fails.
    async fn simple(&mut self, sql: &str) -> Result<Outcome<()>, Gone> {
        self.portals.remove("");
        self.statements.remove("");
        let pieces = match pieces(sql) {
            Ok(pieces) => pieces,
            Err(error) => return Ok(Err(error.into())),
        };
        if pieces.is_empty() {
            self.visitor.wire.put(&EmptyQueryResponse::new());
        }
        for piece in pieces {
            let command = Command::of(&piece);
            let done = match self.allowed(&command) {
                Ok(()) if command == Command::Query => self.queried(&piece.sql).await?,
                Ok(()) => self.commanded(&command, true),
                Err(failure) => Err(failure),
            };
            if done.is_err() {
                return Ok(done);
            }
        }
        Ok(Ok(()))
    }

    async fn queried(&mut self, sql: &str) -> Result<Outcome<()>, Gone> {
        let watch = self.watch();
        let mut rows = match self.start(sql, &[], &watch).await {
            Ok(rows) => rows,
            Err(failure) => return Ok(Err(failure)),
        };
        self.visitor.wire.put(&rows.described());
        match rows.send(&mut self.visitor.wire, None, &watch).await? {
            Ok(Sent::All(count)) => self.complete(&format!("SELECT {count}")),
            Ok(Sent::More) => {}
            Err(failure) => return Ok(Err(failure)),
        }
        Ok(Ok(()))
    }

    pub(super) fn complete(&mut self, tag: &str) {
        self.visitor.wire.put(&CommandComplete::new(tag.to_owned()));
    }

    /// A statement begins now.
    pub(super) fn watch(&self) -> Watch {
        let timeout = self.visitor.settings.timeout();
        let deadline = timeout.map(|after| (Instant::now() + after, after));
        Watch { cancel: self.place.begin(), deadline }
    }

    /// Whether a command may be carried out in the state that the transaction is in.
    pub(super) fn allowed(&self, command: &Command) -> Outcome<()> {
        let ends = matches!(command, Command::Commit | Command::Rollback | Command::Restore);
        if self.status == TransactionStatus::Error && !ends {
            let message = "current transaction is aborted, commands ignored until end of \
                           transaction block";
            return Err(Failure::new(state::IN_FAILED, message));
        }
        Ok(())
    }

    /// Carries out what is no query, and sends what came of it.
    pub(super) fn commanded(&mut self, command: &Command, described: bool) -> Outcome<()> {
        let Done { tag, shown } = self.carry_out(command)?;
        if let Some((names, rows)) = shown {
            if described {
                self.visitor.wire.put(&shown_columns(&names)?);
            }
            for row in rows {
                self.visitor.wire.put(&super::text_row(&row));
            }
        }
        self.complete(&tag);
        Ok(())
    }

    /// What SHOW will give, if it is that.
    pub(super) fn columns_of(command: &Command) -> Outcome<Option<RowDescription>> {
        Ok(match command {
            Command::Show(Some(name)) => Some(shown_columns(&[Settings::title(name)?])?),
            Command::Show(None) => Some(shown_columns(&["name", "setting"])?),
            _ => None,
        })
    }

    fn carry_out(&mut self, command: &Command) -> Outcome<Done> {
        let settings = &mut self.visitor.settings;
        match command {
            Command::Query => return Err(Failure::protocol("a query is no command")),
            Command::Begin(tag) => {
                if self.status == TransactionStatus::Transaction {
                    let message = "there is already a transaction in progress";
                    self.visitor.wire.warn("25001", message);
                }
                settings.open();
                self.status = TransactionStatus::Transaction;
                return Ok(Done::tag(tag));
            }
            Command::Commit | Command::Rollback => return Ok(self.ended(command)),
            Command::Restore => {
                if self.status == TransactionStatus::Error {
                    self.status = TransactionStatus::Transaction;
                }
                return Ok(Done::tag("ROLLBACK"));
            }
            Command::Set { name, value, local } => return self.set(name, value, *local),
            Command::Reset(name) => {
                settings.reset(name.as_deref())?;
                return Ok(Done::tag("RESET"));
            }
            Command::Show(Some(name)) => {
                let shown = (vec![Settings::title(name)?], vec![vec![settings.show(name)?]]);
                return Ok(Done { tag: "SHOW".to_owned(), shown: Some(shown) });
            }
            Command::Show(None) => {
                let all = settings.all().into_iter();
                let rows = all.map(|(name, value)| vec![name.to_owned(), value]).collect();
                let shown = Some((vec!["name", "setting"], rows));
                return Ok(Done { tag: "SHOW".to_owned(), shown });
            }
            Command::Discard => {
                settings.reset(None)?;
                self.statements.clear();
                self.portals.clear();
            }
            Command::Deallocate(Some(name)) => {
                self.statements.remove(name).ok_or_else(|| super::extended::no_statement(name))?;
            }
            Command::Deallocate(None) => self.statements.clear(),
            Command::Close(Some(name)) => {
                self.portals.remove(name).ok_or_else(|| super::extended::no_portal(name))?;
            }
            Command::Close(None) => self.portals.clear(),
            Command::Nothing(_) => {}
            Command::Write(verb) => return Err(Failure::read_only(verb)),
            Command::Unsupported(what) => {
                let message = format!("{what} is not supported");
                return Err(Failure::new(state::UNSUPPORTED, message));
            }
        }
        Ok(Done::tag(match command {
            Command::Discard => "DISCARD ALL",
            Command::Deallocate(Some(_)) => "DEALLOCATE",
            Command::Deallocate(None) => "DEALLOCATE ALL",
            Command::Close(_) => "CLOSE CURSOR",
            Command::Nothing(tag) => tag,
            _ => "SET",
        }))
    }

    fn set(&mut self, name: &str, value: &[String], local: bool) -> Outcome<Done> {
        let Visitor { settings, wire, .. } = &mut self.visitor;
        settings.set(name, value, local)?;
        if Settings::is_told(name) {
            let (title, now) = (Settings::title(name)?.to_owned(), settings.show(name)?);
            wire.put(&ParameterStatus::new(title, now));
        }
        Ok(Done::tag("SET"))
    }

    /// A transaction ends. What failed in it was not carried out, whatever the client says.
    fn ended(&mut self, command: &Command) -> Done {
        let kept = *command == Command::Commit && self.status != TransactionStatus::Error;
        if self.status == TransactionStatus::Idle {
            self.visitor.wire.warn("25P01", "there is no transaction in progress");
        }
        self.visitor.settings.close(kept);
        self.status = TransactionStatus::Idle;
        self.portals.clear();
        Done::tag(if kept { "COMMIT" } else { "ROLLBACK" })
    }
}

/// Columns of text.
fn shown_columns(names: &[&str]) -> Outcome<RowDescription> {
    let fields = names.iter().map(|name| Field::new(*name, DataType::Utf8, false));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    Ok(RowDescription::new(super::encode::Encoder::new(&schema, &[])?.described()))
}
