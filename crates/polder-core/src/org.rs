//! Who may do what for which org, as values that one function returns and another demands.
//!
//! There is no authentication here: a [`Principal`] is made by whoever checked the credentials (the
//! CLI's operator, later the server's API keys and tokens).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

/// What somebody is to the orgs they belong to; the operator belongs to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything: orgs, templates, sources, keys.
    Operator,
    /// What a writer may, and how the org is named.
    Admin,
    /// Tables of the org's pipeline, runs, rollbacks.
    Writer,
    /// Looks, changes nothing.
    Reader,
    /// A program that looks on its own account: as a reader.
    Agent,
}

impl Role {
    /// All roles, the mightiest first.
    pub const ALL: [Self; 5] =
        [Self::Operator, Self::Admin, Self::Writer, Self::Reader, Self::Agent];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Agent => "agent",
        }
    }

    /// Whether somebody of this role has the right, in an org of theirs.
    pub const fn has(self, right: Right) -> bool {
        match right {
            Right::Read => true,
            Right::Write => matches!(self, Self::Operator | Self::Admin | Self::Writer),
            Right::Administer => matches!(self, Self::Operator | Self::Admin),
            Right::Operate => matches!(self, Self::Operator),
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            Error::new(ErrorCode::SpecInvalid, format!("{text:?} is not a role"))
                .hint("use operator, admin, writer, reader or agent")
        })
    }
}

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// To see an org and what is in it.
    Read,
    /// To change its tables and run them.
    Write,
    /// To change the org itself.
    Administer,
    /// To make orgs, and to say whose rows are whose.
    Operate,
}

/// On whose behalf something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Principal {
    /// The person or process that runs the binary with its configuration: every org.
    Operator,
    /// Somebody who belongs to one org, and reads and writes its tables.
    Org(OrgId),
    /// Somebody who belongs to some orgs, in a role other than the operator's.
    Member { role: Role, orgs: Vec<OrgId> },
}

impl Principal {
    /// Who holds a key or a token of this role for these orgs.
    ///
    /// # Errors
    /// `spec.invalid` for an operator of some orgs, and for another role of none.
    pub fn of(role: Role, orgs: Vec<OrgId>) -> Result<Self> {
        let invalid = |message: String| Err(Error::new(ErrorCode::SpecInvalid, message));
        match (role, orgs.is_empty()) {
            (Role::Operator, true) => Ok(Self::Operator),
            (Role::Operator, false) => invalid("an operator is for every org".to_owned()),
            (role, true) => invalid(format!("the role {} needs an org", role.as_str())),
            (role, false) => Ok(Self::Member { role, orgs }),
        }
    }

    /// The proof that this principal may see `org`, demanded by the lake's and the store's calls.
    ///
    /// # Errors
    /// `control.denied` when the principal belongs to another org.
    pub fn authorize(&self, org: &OrgId) -> Result<Authorized<OrgId>> {
        self.authorize_to(Right::Read, org)
    }

    /// As [`Self::authorize`], for what needs a right.
    ///
    /// # Errors
    /// `control.denied`, also when the principal's role lacks the right.
    pub fn authorize_to(&self, right: Right, org: &OrgId) -> Result<Authorized<OrgId>> {
        let own = match self {
            Self::Operator => true,
            Self::Org(own) => own == org,
            Self::Member { orgs, .. } => orgs.contains(org),
        };
        if !own {
            let message = "this principal may not act for that org";
            return Err(Error::new(ErrorCode::ControlDenied, message));
        }
        if !self.role().has(right) {
            let message = format!("a {} may not do this", self.role().as_str());
            return Err(Error::new(ErrorCode::ControlDenied, message)
                .hint("ask the operator for a key of another role"));
        }
        Ok(Authorized(org.clone()))
    }

    /// What the principal is to its orgs.
    pub fn role(&self) -> Role {
        match self {
            Self::Operator => Role::Operator,
            Self::Org(_) => Role::Writer,
            Self::Member { role, .. } => *role,
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
    fn an_operator_is_for_all_orgs_and_others_are_for_some() {
        let orgs = vec!["1".parse::<OrgId>().expect("id")];
        for role in Role::ALL {
            let (nowhere, somewhere) =
                (Principal::of(role, Vec::new()), Principal::of(role, orgs.clone()));
            assert_eq!(nowhere.is_ok(), role == Role::Operator);
            assert_eq!(somewhere.is_ok(), role != Role::Operator);
            assert_eq!(nowhere.or(somewhere).expect("principal").role(), role);
        }
    }

    #[test]
    fn a_principal_somewhere_org_gets_no_other() {
        let (own, other): (OrgId, OrgId) = ("1".parse().expect("id"), "2".parse().expect("id"));
        let principal = Principal::Org(own.clone());
        assert_eq!(principal.authorize(&own).expect("own").get(), &own);
        let error = principal.authorize(&other).expect_err("other org");
        assert_eq!(error.code(), ErrorCode::ControlDenied);
        assert!(Principal::Operator.authorize(&other).is_ok());
    }

    #[test]
    fn a_role_has_its_rights_in_its_orgs_alone() {
        let (own, other): (OrgId, OrgId) = ("1".parse().expect("id"), "2".parse().expect("id"));
        let rights = [Right::Read, Right::Write, Right::Administer, Right::Operate];
        let cases = [
            (Role::Admin, [true, true, true, false]),
            (Role::Writer, [true, true, false, false]),
            (Role::Reader, [true, false, false, false]),
            (Role::Agent, [true, false, false, false]),
        ];
        for (role, expect) in cases {
            let principal = Principal::Member { role, orgs: vec![own.clone()] };
            assert_eq!(rights.map(|right| principal.authorize_to(right, &own).is_ok()), expect);
            assert!(rights.iter().all(|right| principal.authorize_to(*right, &other).is_err()));
        }
        assert!(
            rights.iter().all(|right| Principal::Operator.authorize_to(*right, &other).is_ok())
        );
    }
}
