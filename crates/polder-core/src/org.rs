//! Who may do what for which org, as values that one function returns and another demands.
//!
//! There is no authentication here: a [`Principal`] is made by whoever checked the credentials (the
//! CLI's operator, later the server's API keys and tokens).

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorCode, Result};

/// The namespace of the management tables, and the id of whom they belong to.
const MANAGEMENT: &str = "polder_management";

/// The id of an org (a customer): 1–63 ASCII letters, digits, `_` or `-`, starting with a letter or
/// digit. The narrow alphabet keeps it safe as an identifier; it still never becomes a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrgId(String);

impl OrgId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whom the management tables belong to: Polder itself. No text parses to it.
    pub fn management() -> Self {
        Self(MANAGEMENT.to_owned())
    }

    pub fn is_management(&self) -> bool {
        self.0 == MANAGEMENT
    }

    /// The org's Iceberg namespace (database): `org_<id>`; `polder_management` for Polder's own.
    pub fn namespace(&self) -> String {
        if self.is_management() { self.0.clone() } else { format!("org_{}", self.0) }
    }

    /// The org of a namespace made by [`Self::namespace`], if it is one.
    pub fn from_namespace(namespace: &str) -> Option<Self> {
        if namespace == MANAGEMENT {
            return Some(Self::management());
        }
        namespace.strip_prefix("org_")?.parse().ok()
    }
}

impl FromStr for OrgId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = text.as_bytes();
        let first_ok = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
        let rest_ok = bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if text == MANAGEMENT {
            return Err(Error::new(
                ErrorCode::SpecInvalid,
                format!("{text:?} is Polder's own name"),
            )
            .hint("choose another id for the org"));
        }
        if first_ok && rest_ok && bytes.len() <= 63 {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::new(ErrorCode::SpecInvalid, format!("{text:?} is not an org id"))
            .hint("use 1 to 63 letters, digits, '_' or '-', starting with a letter or a digit"))
    }
}

impl fmt::Display for OrgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OrgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrgId({})", self.0)
    }
}

/// On whose behalf something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Principal {
    /// The person or process that runs the binary with its configuration: every org.
    Operator,
    /// Somebody who belongs to one org.
    Org(OrgId),
}

impl Principal {
    /// The proof that this principal may touch `org`, demanded by the lake's and the store's calls.
    ///
    /// # Errors
    /// `control.denied` when the principal belongs to another org.
    pub fn authorize(&self, org: &OrgId) -> Result<Authorized<OrgId>> {
        match self {
            Self::Operator => Ok(Authorized(org.clone())),
            Self::Org(own) if own == org => Ok(Authorized(org.clone())),
            Self::Org(_) => {
                Err(Error::new(ErrorCode::ControlDenied, "this principal may not act for that org"))
            }
        }
    }
}

/// A value somebody was found entitled to. Only [`Principal::authorize`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Authorized<T>(T);

impl<T> Authorized<T> {
    pub fn get(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn org_ids_are_narrow() {
        for good in ["401", "acme", "a-b_c", "0"] {
            assert_eq!(good.parse::<OrgId>().expect(good).as_str(), good);
        }
        for bad in ["", "_a", "-a", "a b", "a/b", "..", "a'b", "é", &"x".repeat(64)] {
            let error = bad.parse::<OrgId>().expect_err(bad);
            assert_eq!(error.code(), ErrorCode::SpecInvalid);
        }
    }

    #[test]
    fn the_management_tables_belong_to_nobody_else() {
        let own = OrgId::management();
        assert_eq!(own.namespace(), "polder_management");
        assert_eq!(OrgId::from_namespace(&own.namespace()), Some(own.clone()));
        assert!("polder_management".parse::<OrgId>().is_err());
        assert_eq!(OrgId::from_namespace("org_polder_management"), None);
        let org: OrgId = "1".parse().expect("id");
        assert!(Principal::Org(org).authorize(&own).is_err());
        assert!(Principal::Operator.authorize(&own).is_ok());
    }

    #[test]
    fn a_principal_of_one_org_gets_no_other() {
        let (own, other): (OrgId, OrgId) = ("1".parse().expect("id"), "2".parse().expect("id"));
        let principal = Principal::Org(own.clone());
        assert_eq!(principal.authorize(&own).expect("own").get(), &own);
        let error = principal.authorize(&other).expect_err("other org");
        assert_eq!(error.code(), ErrorCode::ControlDenied);
        assert!(Principal::Operator.authorize(&other).is_ok());
    }
}
