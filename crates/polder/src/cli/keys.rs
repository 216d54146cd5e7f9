//! `polder keys`: who may call the API.

use chrono::{DateTime, Duration, NaiveDate, NaiveTime, Utc};
use clap::{Args, Subcommand};
use polder_control::Store;
use polder_control::audit::{self, Event};
use polder_control::keys::{self, Key, KeyRequest};
use polder_core::{Error, ErrorCode, OrgId, Result, Role};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::app::{App, author};
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Keys {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key. It is shown this once.
    Create(Create),
    /// List all keys: what they begin with, never the keys themselves.
    List(List),
    /// End a key at once.
    Revoke(Revoke),
    /// Make another key of the same role and orgs; the old one stays good for a while.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
struct Create {
    /// What its holder is: operator, admin, writer, reader or agent.
    #[arg(long)]
    role: Role,
    /// The orgs it is for; an operator's key is for every org.
    #[arg(long, value_name = "ID")]
    org: Vec<OrgId>,
    /// When it ends: 2027-01-31, 2027-01-31T12:00:00Z, or a time from now: 90d, 12h, 30m.
    #[arg(long, value_name = "WHEN", value_parser = when)]
    expires: Option<DateTime<Utc>>,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct List {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Revoke {
    /// What the key begins with: `plk_…`.
    id: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Rotate {
    /// What the key begins with: `plk_…`.
    id: String,
    /// Until when the old key stays good, as --expires; a day when absent.
    #[arg(long, value_name = "WHEN", value_parser = when, default_value = "24h")]
    old_until: DateTime<Utc>,
    /// When the new key ends.
    #[arg(long, value_name = "WHEN", value_parser = when)]
    expires: Option<DateTime<Utc>>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Keys {
    pub(crate) async fn run(&self, app: &App) -> Result<u8> {
        let store = app.store().await?;
        match &self.command {
            Command::Create(create) => create.run(&store).await?,
            Command::List(list) => list.run(&store).await?,
            Command::Revoke(revoke) => {
                keys::revoke(&store, &revoke.id).await?;
                note(&store, "key.revoke", &revoke.id, None).await?;
                if revoke.json {
                    output::document(&json!({ "id": revoke.id, "revoked": true }));
                } else {
                    output::line(&format!("{} is good no more", revoke.id));
                }
            }
            Command::Rotate(rotate) => {
                let until = rotate.old_until.timestamp_millis();
                let expires = rotate.expires.map(|at| at.timestamp_millis());
                let (key, shown) = keys::rotate(&store, &rotate.id, until, expires).await?;
                note(&store, "key.rotate", &rotate.id, Some(format!("now {}", key.id))).await?;
                show_once(&key, &shown, rotate.json);
            }
        }
        Ok(exit::OK)
    }
}

impl Create {
    async fn run(&self, store: &Store) -> Result<()> {
        let request = KeyRequest {
            role: self.role,
            orgs: self.org.clone(),
            name: self.name.clone(),
            expires_ms: self.expires.map(|at| at.timestamp_millis()),
        };
        let (key, shown) = keys::create(store, &request).await?;
        let detail = format!("{} {}", key.role.as_str(), key.orgs.join(" "));
        note(store, "key.create", &key.id, Some(detail)).await?;
        show_once(&key, &shown, self.json);
        Ok(())
    }
}

impl List {
    async fn run(&self, store: &Store) -> Result<()> {
        let keys = keys::list(store).await?;
        if self.json {
            output::document(&keys.iter().map(describe).collect::<Vec<_>>());
            return Ok(());
        }
        let now = Utc::now().timestamp_millis();
        let rows: Vec<_> = keys.iter().map(|key| row(key, now)).collect();
        output::columns(&["key", "role", "orgs", "made", "ends", "state", "for"], &rows, &[]);
        Ok(())
    }
}

fn row(key: &Key, now: i64) -> Vec<String> {
    let state = if key.revoked_ms.is_some() {
        "revoked"
    } else if key.expires_ms.is_some_and(|end| end <= now) {
        "expired"
    } else {
        "good"
    };
    vec![
        key.id.clone(),
        key.role.as_str().to_owned(),
        key.orgs.join(" "),
        output::time(key.created_ms),
        key.expires_ms.map_or_else(|| "never".to_owned(), output::time),
        state.to_owned(),
        key.name.clone().unwrap_or_default(),
    ]
}

fn show_once(key: &Key, shown: &SecretString, json: bool) {
    if json {
        let mut document = describe(key);
        document["key"] = json!(shown.expose_secret());
        return output::document(&document);
    }
    output::line(shown.expose_secret());
    output::note("keep it: it is not shown again. Send it as `Authorization: Bearer <key>`");
}

fn describe(key: &Key) -> Value {
    json!({
        "id": key.id,
        "role": key.role,
        "orgs": key.orgs,
        "name": key.name,
        "created_at": output::rfc3339(key.created_ms),
        "expires_at": key.expires_ms.map(output::rfc3339),
        "revoked_at": key.revoked_ms.map(output::rfc3339),
    })
}

async fn note(store: &Store, action: &str, subject: &str, detail: Option<String>) -> Result<()> {
    let event = Event {
        who: author(None).who,
        action: action.to_owned(),
        subject: Some(subject.to_owned()),
        outcome: "done".to_owned(),
        detail,
        org: None,
    };
    audit::record(store, &event).await.map(drop)
}

/// A moment: RFC 3339, a day (its end, UTC), or a time from now.
fn when(text: &str) -> Result<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    if let Ok(day) = text.parse::<NaiveDate>() {
        let end = day.succ_opt().map(|next| next.and_time(NaiveTime::MIN).and_utc());
        return end.ok_or_else(|| no_time(text));
    }
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let number: i64 = number.parse().map_err(|_| no_time(text))?;
    let span = match unit {
        "d" => Duration::try_days(number),
        "h" => Duration::try_hours(number),
        "m" => Duration::try_minutes(number),
        "s" => Duration::try_seconds(number),
        _ => None,
    };
    let later = span.and_then(|span| Utc::now().checked_add_signed(span));
    later.ok_or_else(|| no_time(text))
}

fn no_time(text: &str) -> Error {
    Error::new(
        ErrorCode::SpecInvalid,
        format!("{text:?} is no time: write 2027-01-31, 2027-01-31T12:00:00Z, 90d, 12h or 30m"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let day = when("2027-01-31").expect("day");
        assert_eq!(day.to_rfc3339(), "2027-02-01T00:00:00+00:00", "the whole day");
        let time = when("2027-01-31T12:00:00+01:00").expect("time");
        assert_eq!(time.to_rfc3339(), "2027-01-31T11:00:00+00:00");
        let hours = (when("48h").expect("span") - Utc::now()).num_minutes();
        assert!((2879..=2880).contains(&hours), "{hours}");
        for bad in ["", "x", "90", "d", "9y", "2027-13-01", "99999999999999d", "é"] {
            assert!(when(bad).is_err(), "{bad}");
        }
    }
}
