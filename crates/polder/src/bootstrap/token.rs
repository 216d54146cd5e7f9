//! What a reader needs to go on: which states of which tables, and how far it has come.
//!
//! A token opens nothing: whoever sends it needs the right to the org's rows as for a first call, and
//! can name no table of another org with it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use polder_core::{Error, ErrorCode, OrgId, Result};
use serde::{Deserialize, Serialize};

use super::key::Key;
use super::states::State;
use super::{TABLES_MAX, Wanted};

/// Changes with the order of rows: an older server's tokens must not be taken for a newer one's.
const FORMAT: u32 = 1;
const BYTES_MAX: usize = 64 << 10;

/// As far as a bootstrap has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {
    #[serde(rename = "v")]
    format: u32,
    pub(super) org: String,
    pub(super) since_us: Option<i64>,
    pub(super) entity: Option<String>,
    /// Names and snapshots, in the order in which they are sent.
    pub(super) tables: Vec<(String, i64)>,
    at: Position,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Position {
    Row(Place),
    /// Behind the document of this key; at the first without.
    Document(Option<Key>),
}

/// The next row: of which table, in which of its files, behind how many rows of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) table: usize,
    pub(super) file: usize,
    pub(super) rows: u64,
}

impl Token {
    pub(super) fn first(org: &OrgId, wanted: &Wanted, states: &[State]) -> Self {
        let at = match wanted.entity {
            Some(_) => Position::Document(None),
            None => Position::Row(Place::default()),
        };
        let tables = states.iter().map(|s| (s.table.name().to_owned(), s.snapshot.id)).collect();
        Self {
            format: FORMAT,
            org: org.to_string(),
            since_us: wanted.since_us,
            entity: wanted.entity.clone(),
            tables,
            at,
        }
    }

    /// # Errors
    /// `spec.invalid` for what no server of this version gave.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let bytes = (text.len() <= BYTES_MAX).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten();
        let token: Option<Self> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let fits = |token: &Self| {
            let shaped = token.entity.is_some() == matches!(token.at, Position::Document(_));
            token.format == FORMAT && token.tables.len() <= TABLES_MAX && shaped
        };
        token.filter(fits).ok_or_else(|| {
            Error::new(ErrorCode::SpecInvalid, "resume is no token of a bootstrap")
                .hint("send `token` of its manifest or `next` of a mark, as it was")
        })
    }

    pub(super) fn check(&self, org: &OrgId) -> Result<()> {
        if self.org == org.as_str() {
            return Ok(());
        }
        Err(Error::new(ErrorCode::SpecInvalid, "resume is a token of another org"))
    }

    pub(crate) fn text(&self) -> String {
        // Numbers and texts always become JSON.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    pub(super) fn place(&self) -> Place {
        match &self.at {
            Position::Row(place) => *place,
            Position::Document(_) => Place::default(),
        }
    }

    pub(super) fn after(&self) -> Option<&Key> {
        match &self.at {
            Position::Document(key) => key.as_ref(),
            Position::Row(_) => None,
        }
    }

    pub(super) fn move_to(&mut self, place: Place) {
        self.at = Position::Row(place);
    }

    pub(super) fn move_behind(&mut self, key: Key) {
        self.at = Position::Document(Some(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            format: FORMAT,
            org: "401".to_owned(),
            since_us: None,
            entity: None,
            tables: vec![("deal \"ö\"".to_owned(), -7)],
            at: Position::Row(Place { table: 0, file: 3, rows: 9 }),
        }
    }

    #[test]
    fn a_token_comes_back_as_it_went() {
        let mut token = token();
        assert_eq!(Token::parse(&token.text()).expect("token"), token);
        token.entity = Some("deal".to_owned());
        assert!(Token::parse(&token.text()).is_err(), "the position is of another shape");
        token.move_behind(Key::Text("a".to_owned()));
        assert_eq!(Token::parse(&token.text()).expect("token"), token);
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let of_later = Token { format: FORMAT + 1, ..token() }.text();
        let cut = &token().text()[..20];
        for text in ["", "x", "eyJ9", cut, &of_later, &"A".repeat(BYTES_MAX + 1)] {
            assert_eq!(Token::parse(text).expect_err("no token").code(), ErrorCode::SpecInvalid);
        }
        let other: OrgId = "402".parse().expect("org");
        assert!(token().check(&other).is_err());
    }
}
