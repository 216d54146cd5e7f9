//! Addresses: which are safe to show a secret to, and the paths of the specification below one.

use std::net::IpAddr;

use iceberg::{NamespaceIdent, TableIdent};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use polder_core::{Error, ErrorCode, Result};
use reqwest::Url;

/// Everything but RFC 3986's unreserved characters is encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Between the levels of a namespace, unless the server says otherwise.
const SEPARATOR: &str = "%1F";

/// The address that a setting holds.
///
/// # Errors
/// `spec.invalid` for what is no plain `http(s)` address, and for plain `http` to another machine if
/// the address is to see a secret.
pub(super) fn parse(setting: &str, text: &str, secret: bool) -> Result<Url> {
    let invalid = |what: &str| Error::new(ErrorCode::SpecInvalid, format!("{setting}: {what}"));
    // Not repeated: somebody may have written a password into it.
    let url = Url::parse(text).map_err(|cause| {
        invalid("this is not an address").hint("write https://host/path").caused_by(cause)
    })?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(invalid("this is not an http(s) address").hint("write https://host/path"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("an address holds no user and password")
            .hint("name them by [catalog.rest] credential, as `id:secret`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("an address has nothing after its path").detail(text.to_owned()));
    }
    if secret && url.scheme() == "http" && !is_loopback(&url) {
        return Err(invalid("plain http would show the credential to the network")
            .detail(url.to_string())
            .hint("use https://"));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// An address below another.
///
/// # Errors
/// `spec.invalid` if the two make no address.
pub(super) fn below(base: &Url, path: &str) -> Result<Url> {
    let text = format!("{}/{path}", base.as_str().trim_end_matches('/'));
    Url::parse(&text).map_err(|cause| {
        Error::new(ErrorCode::SpecInvalid, "the catalog's address cannot be used")
            .detail(text)
            .caused_by(cause)
    })
}

/// Where a catalog's namespaces and tables are.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    base: Url,
    /// As the server gave it; it may be several segments.
    prefix: Option<String>,
    separator: String,
}

impl Paths {
    pub(super) fn new(base: Url, prefix: Option<String>, separator: Option<String>) -> Self {
        let prefix = prefix.map(|text| text.trim_matches('/').to_owned());
        let separator = separator.filter(|text| !text.is_empty());
        Self {
            base,
            prefix: prefix.filter(|text| !text.is_empty()),
            separator: separator.unwrap_or_else(|| SEPARATOR.to_owned()),
        }
    }

    pub(super) fn namespaces(&self) -> Result<Url> {
        self.path("namespaces")
    }

    pub(super) fn namespace(&self, namespace: &NamespaceIdent) -> Result<Url> {
        self.path(&format!("namespaces/{}", self.levels(namespace)?))
    }

    pub(super) fn properties(&self, namespace: &NamespaceIdent) -> Result<Url> {
        self.path(&format!("namespaces/{}/properties", self.levels(namespace)?))
    }

    pub(super) fn tables(&self, namespace: &NamespaceIdent) -> Result<Url> {
        self.path(&format!("namespaces/{}/tables", self.levels(namespace)?))
    }

    pub(super) fn table(&self, ident: &TableIdent) -> Result<Url> {
        let (namespace, name) = (self.levels(&ident.namespace)?, segment(&ident.name)?);
        self.path(&format!("namespaces/{namespace}/tables/{name}"))
    }

    pub(super) fn views(&self, namespace: &NamespaceIdent) -> Result<Url> {
        self.path(&format!("namespaces/{}/views", self.levels(namespace)?))
    }

    pub(super) fn view(&self, ident: &TableIdent) -> Result<Url> {
        let (namespace, name) = (self.levels(&ident.namespace)?, segment(&ident.name)?);
        self.path(&format!("namespaces/{namespace}/views/{name}"))
    }

    /// The listing of the namespaces directly below one.
    pub(super) fn children(&self, namespace: &NamespaceIdent) -> Result<Url> {
        let mut url = self.namespaces()?;
        let parent = self.levels(namespace)?;
        url.set_query(Some(&format!("parent={parent}")));
        Ok(url)
    }

    pub(super) fn credentials(&self, ident: &TableIdent) -> Result<Url> {
        let (namespace, name) = (self.levels(&ident.namespace)?, segment(&ident.name)?);
        self.path(&format!("namespaces/{namespace}/tables/{name}/credentials"))
    }

    fn levels(&self, namespace: &NamespaceIdent) -> Result<String> {
        let levels: &[String] = namespace;
        let encoded: Result<Vec<String>> = levels.iter().map(|level| segment(level)).collect();
        Ok(encoded?.join(&self.separator))
    }

    fn path(&self, rest: &str) -> Result<Url> {
        match &self.prefix {
            Some(prefix) => below(&self.base, &format!("v1/{prefix}/{rest}")),
            None => below(&self.base, &format!("v1/{rest}")),
        }
    }
}

/// A name as one segment of a path.
fn segment(name: &str) -> Result<String> {
    // However they are encoded, clients and proxies take these for directions.
    if matches!(name, "" | "." | "..") {
        let message = format!("{name:?} cannot be a name in an external REST catalog");
        return Err(Error::new(ErrorCode::SpecInvalid, message).hint("choose another name"));
    }
    Ok(utf8_percent_encode(name, ENCODED).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(prefix: Option<&str>, separator: Option<&str>) -> Paths {
        let base = Url::parse("https://host/catalog/").expect("address");
        Paths::new(base, prefix.map(str::to_owned), separator.map(str::to_owned))
    }

    fn ident(levels: &[&str], name: &str) -> TableIdent {
        let namespace = NamespaceIdent::from_strs(levels).expect("namespace");
        TableIdent::new(namespace, name.to_owned())
    }

    #[test]
    fn every_name_is_one_segment() {
        let table = |name: &str| paths(None, None).table(&ident(&["a"], name)).map(String::from);
        let at = "https://host/catalog/v1/namespaces/a/tables/";
        let cases = [
            ("t", "t"),
            ("a b", "a%20b"),
            ("é/\\", "%C3%A9%2F%5C"),
            ("../x", "..%2Fx"),
            ("%2e%2e", "%252e%252e"),
            ("a?b#c+d", "a%3Fb%23c%2Bd"),
            ("a\"b'", "a%22b%27"),
        ];
        for (name, encoded) in cases {
            assert_eq!(table(name).expect(name), format!("{at}{encoded}"));
        }
        for name in ["", ".", ".."] {
            assert_eq!(table(name).expect_err(name).code(), ErrorCode::SpecInvalid);
        }
    }

    #[test]
    fn prefix_and_separator_are_the_servers() {
        let two = ident(&["a", "b.c"], "t");
        let path = paths(Some("/w/x/"), Some(".")).table(&two).expect("path");
        assert_eq!(path.path(), "/catalog/v1/w/x/namespaces/a.b.c/tables/t");
        let path = paths(Some(""), None).tables(&two.namespace).expect("path");
        assert_eq!(path.path(), "/catalog/v1/namespaces/a%1Fb.c/tables");
    }

    #[test]
    fn secrets_go_to_safe_addresses_only() {
        let open = |text: &str| parse("[lake] catalog", text, true);
        for good in
            ["https://host/a", "http://127.0.0.1:8181", "http://[::1]:1/", "http://localhost"]
        {
            open(good).expect(good);
        }
        for bad in
            ["http://host/a", "http://10.0.0.1/", "http://localhost.evil.example/", "ftp://h"]
        {
            assert_eq!(open(bad).expect_err(bad).code(), ErrorCode::SpecInvalid);
        }
        parse("[lake] catalog", "http://host/a", false).expect("nothing to hide");
        let error = open("https://me:hunter2@host/").expect_err("password");
        assert!(!format!("{error:?}").contains("hunter2"));
        let error = open("https://me:hunter2@host:port/").expect_err("port");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}
