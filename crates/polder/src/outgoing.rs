//! What is called outside at a word of `polder.toml`: alerts, and the collector of traces.
//!
//! Whom operators name is called, and nobody else: redirects are not followed, no proxy is asked, and an
//! address of this machine or of a private network is called only where the setting says `private`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use polder_core::{Error, ErrorCode, Result};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};

/// Calls addresses of [`checked`] with the same `private`; each call may take so long.
pub(crate) fn client(private: bool, call_max: Duration) -> Result<Client> {
    let mut client = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .timeout(call_max)
        .user_agent(concat!("polder/", env!("CARGO_PKG_VERSION")));
    if !private {
        client = client.dns_resolver(Arc::new(PublicOnly));
    }
    client.build().map_err(|cause| {
        Error::new(ErrorCode::Internal, "nobody outside can be called").caused_by(cause)
    })
}

/// An address that may be called.
///
/// # Errors
/// `spec.invalid`, without the address: it may hold a secret.
pub(crate) fn checked(text: &str, private: bool) -> Result<Url> {
    let invalid = |what: &str| {
        Error::new(ErrorCode::SpecInvalid, format!("url {what}"))
            .hint("write https://host/path of a public host; private = true allows any other")
    };
    let url: Url = text.parse().map_err(|_| invalid("is no address"))?;
    let host = url.host_str().ok_or_else(|| invalid("names no host"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("has a user or a password: put a secret into the path"));
    }
    match url.scheme() {
        "https" => {}
        "http" if private => {}
        _ => return Err(invalid("is no https:// address")),
    }
    let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    if literal.is_some_and(|address| !private && !is_public(address)) {
        return Err(invalid("is of this machine or of a private network"));
    }
    Ok(url)
}

/// Names that lead to public addresses alone. The connection goes to the addresses that were looked at.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(public_addresses(name))
    }
}

async fn public_addresses(name: Name) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
    let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
    let public: Vec<SocketAddr> = found.filter(|found| is_public(found.ip())).collect();
    if public.is_empty() {
        return Err("the name leads to no public address".into());
    }
    Ok(Box::new(public.into_iter()))
}

/// Whether an address is one of the public internet (IANA's special-purpose registries).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = matches!(a, 0 | 10 | 127 | 224..)
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && (b == 168 || (b == 0 && matches!(c, 0 | 2)) || (b == 88 && c == 99)))
        || (a == 198 && (matches!(b, 18 | 19) || (b == 51 && c == 100)))
        || (a == 203 && b == 0 && c == 113);
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        // IPv4 in other clothes: mapped, translated, 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            inner(high, low)
        }
        [0x2002, high, low, ..] => inner(high, low),
        // Of the rest only what is handed out as global, without documentation and Teredo.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_alone_are_called() {
        for public in ["8.8.8.8", "172.32.0.1", "192.0.1.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(public.parse().expect("address")), "{public}");
        }
        for other in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
        ] {
            assert!(!is_public(other.parse().expect("address")), "{other}");
        }
    }

    #[test]
    fn addresses_that_may_not_be_called_are_refused_before_anything_is() {
        for good in ["https://hooks.example.com/x", "https://8.8.8.8/x"] {
            assert!(checked(good, false).is_ok(), "{good}");
        }
        for bad in [
            "http://hooks.example.com/x",
            "https://127.0.0.1/x",
            "https://[::1]/x",
            "https://10.0.0.1",
            "https://u:hunter2@example.com/",
            "ftp://example.com/",
            "nonsense",
            "https://2130706433/x",
            "https://[::ffff:169.254.169.254]/x",
        ] {
            let error = checked(bad, false).expect_err("refused");
            assert_eq!(error.code(), ErrorCode::SpecInvalid, "{bad}");
            assert!(!format!("{error:?}").contains("hunter2"));
        }
        assert!(checked("http://127.0.0.1:9/x", true).is_ok());
    }

    #[tokio::test]
    async fn a_name_that_leads_home_is_not_called() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let url = format!("http://localhost:{}/", listener.local_addr().expect("address").port());
        let minute = Duration::from_mins(1);
        let refused = client(false, minute).expect("client").post(&url).send().await;
        assert!(refused.expect_err("not called").is_connect());
        // Called it would be, and wait for an answer.
        let second = Duration::from_secs(1);
        let called = client(true, second).expect("client").post(&url).send().await;
        assert!(called.expect_err("no answer").is_timeout());
    }
}
