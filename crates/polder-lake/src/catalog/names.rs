//! Namespaces as the catalog's database holds them: levels joined by dots, as Iceberg's own catalogs
//! write them. A dot or percent sign inside a level is percent-encoded, so that every name is one.

use iceberg::NamespaceIdent;

pub(crate) fn namespace_text(namespace: &NamespaceIdent) -> String {
    let levels: &[String] = namespace;
    let encoded: Vec<String> =
        levels.iter().map(|level| level.replace('%', "%25").replace('.', "%2E")).collect();
    encoded.join(".")
}

/// The levels of [`namespace_text`].
pub(crate) fn namespace_levels(text: &str) -> Vec<String> {
    text.split('.').map(|level| level.replace("%2E", ".").replace("%25", "%")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back_as_it_was() {
        for levels in [vec!["a"], vec!["a", "b"], vec!["a.b"], vec!["a%2Eb", "%"], vec!["a.", ".b"]]
        {
            let ident = NamespaceIdent::from_strs(levels.clone()).expect("namespace");
            assert_eq!(namespace_levels(&namespace_text(&ident)), levels);
        }
        let org = NamespaceIdent::new("org_401".to_owned());
        assert_eq!(namespace_text(&org), "org_401");
    }
}
