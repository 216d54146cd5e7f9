//! Listings in pages. A token is the last item of the page before, so that items which come and go
//! in between make nothing appear twice or be left out.

use polder_lake::service::{Answer, Page, Refusal};
use serde::Deserialize;

/// Items in a page when the client does not say how many.
const PAGE_ITEMS: usize = 1000;

/// The query parameters of every listing.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Paging {
    page_token: Option<String>,
    page_size: Option<String>,
}

impl Paging {
    /// The page of ordered `items` that is asked for; all of them unless pages are.
    pub(super) fn page(&self, items: Vec<String>) -> Answer<Page<String>> {
        let size = match &self.page_size {
            Some(text) => text
                .parse()
                .ok()
                .filter(|size| *size > 0)
                .ok_or_else(|| Refusal::invalid(format!("Invalid page size: {text}")))?,
            None if self.page_token.is_none() => usize::MAX,
            None => PAGE_ITEMS,
        };
        let after = self.page_token.as_deref().unwrap_or_default();
        let mut rest = items.into_iter().filter(|item| item.as_str() > after).peekable();
        let page: Vec<String> = rest.by_ref().take(size).collect();
        let next = rest.peek().and_then(|_| page.last().cloned());
        Ok(Page { items: page, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(token: Option<&str>, size: Option<&str>, items: &[&str], next: Option<&str>) {
        let paging =
            Paging { page_token: token.map(str::to_owned), page_size: size.map(str::to_owned) };
        let all = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        let page = paging.page(all).expect("page");
        assert_eq!(
            (page.items.iter().map(String::as_str).collect::<Vec<_>>(), page.next.as_deref()),
            (items.to_vec(), next)
        );
    }

    #[test]
    fn pages_follow_each_other() {
        check(None, None, &["a", "b", "c", "d", "e"], None);
        check(Some(""), Some("2"), &["a", "b"], Some("b"));
        check(Some("b"), Some("2"), &["c", "d"], Some("d"));
        check(Some("d"), Some("2"), &["e"], None);
        check(Some("bb"), Some("9"), &["c", "d", "e"], None);
        check(Some("e"), Some("2"), &[], None);
        check(Some(""), None, &["a", "b", "c", "d", "e"], None);
        for bad in ["0", "-1", "x", ""] {
            let paging = Paging { page_token: None, page_size: Some(bad.to_owned()) };
            assert!(paging.page(Vec::new()).is_err(), "{bad}");
        }
    }
}
