//! How much one answer to an agent holds at most, by whichever door it asks: `/mcp` and `polder mcp`, and queries of
//! the API. What others may have is said where it is answered. A bootstrap of the API is for the program around an
//! agent, which says its own budgets.

use std::time::Duration;

use polder_core::{Error, ErrorCode, Role};

/// The most of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caps {
    /// Rows if nothing is said, and whatever is said.
    pub(crate) rows: usize,
    pub(crate) rows_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) time_max: Duration,
}

impl Caps {
    pub(crate) const AGENT: Self = Self {
        rows: 1_000,
        rows_max: 10_000,
        bytes_max: 1 << 20,
        time_max: Duration::from_secs(30),
    };

    /// Those of somebody's role; `None` where it has none of its own.
    pub(crate) fn of(role: Role) -> Option<Self> {
        match role {
            Role::Agent => Some(Self::AGENT),
            Role::Operator | Role::Admin | Role::Writer | Role::Reader => None,
        }
    }

    /// How many rows are meant.
    ///
    /// # Errors
    /// `spec.invalid` for none, and for more than there may be.
    pub(crate) fn rows(&self, said: Option<u64>) -> polder_core::Result<usize> {
        let Some(said) = said else { return Ok(self.rows) };
        let rows = usize::try_from(said).ok().filter(|rows| (1..=self.rows_max).contains(rows));
        rows.ok_or_else(|| {
            let message = format!("rows_max is {said}, and not from 1 to {}", self.rows_max);
            Error::new(ErrorCode::SpecInvalid, message)
                .hint("aggregate in SQL, or read in parts with ORDER BY and WHERE")
        })
    }

    pub(crate) fn too_long(&self) -> Error {
        let message = format!("the query took longer than {} s", self.time_max.as_secs());
        Error::new(ErrorCode::QueryLimit, message).hint("ask for less: filter or aggregate")
    }

    pub(crate) fn too_large(&self) -> Error {
        let message = format!("an answer to an agent has {} bytes at most", self.bytes_max);
        Error::new(ErrorCode::QueryLimit, message).hint("ask for less: filter or aggregate")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_alone_have_caps_and_nobody_talks_them_away() {
        for role in Role::ALL {
            assert_eq!(Caps::of(role).is_some(), role == Role::Agent, "{role:?}");
        }
        let caps = Caps::AGENT;
        assert_eq!(
            (caps.rows(None).ok(), caps.rows(Some(10_000)).ok()),
            (Some(1_000), Some(10_000))
        );
        for bad in [0, 10_001, u64::MAX] {
            assert_eq!(caps.rows(Some(bad)).expect_err("too many").code(), ErrorCode::SpecInvalid);
        }
    }
}
