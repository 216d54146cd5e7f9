#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::get_current_timestamp;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
    RsaPublicKeyComponents,
};
use secrecy::SecretString;
use serde_json::json;
use tokio::task::JoinSet;

use super::*;
use crate::serve::Clients;

/// A key that signs nothing but the tokens of these tests (PKCS #1).
const RSA_KEY: &str = include_str!("rsa_key_of_tests.txt");

/// What the provider of a test answers.
#[derive(Default)]
struct Said {
    configuration: Value,
    keys: Vec<Value>,
    down: bool,
    calls: usize,
}

type Shared = Arc<Mutex<Said>>;

async fn configuration(State(said): State<Shared>) -> String {
    said.lock().unwrap().configuration.to_string()
}

async fn keys(State(said): State<Shared>) -> (StatusCode, String) {
    let mut said = said.lock().unwrap();
    said.calls += 1;
    let status = if said.down { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
    (status, json!({ "keys": said.keys }).to_string())
}

/// A provider on a free port, and the configuration that names it.
async fn provider(keys_of: &[&Signer], tasks: &mut JoinSet<()>) -> (Shared, OidcConfig) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let said = Shared::default();
    {
        let mut said = said.lock().unwrap();
        said.configuration = json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") });
        said.keys = keys_of.iter().map(|signer| signer.jwk()).collect();
    }
    let routes = Router::new()
        .route("/.well-known/openid-configuration", get(configuration))
        .route("/keys", get(keys))
        .with_state(Arc::clone(&said));
    tasks.spawn(async move { axum::serve(listener, routes).await.unwrap() });
    let config = json!({ "issuer": issuer, "audience": "polder" });
    (said, serde_json::from_value(config).unwrap())
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
}

/// A key of a provider.
struct Signer {
    id: &'static str,
    pair: Pair,
}

impl Signer {
    fn rsa(id: &'static str) -> Self {
        let der = STANDARD.decode(RSA_KEY.split_whitespace().collect::<String>()).unwrap();
        Self { id, pair: Pair::Rsa(RsaKeyPair::from_der(&der).unwrap()) }
    }

    fn ec(id: &'static str, how: &'static EcdsaSigningAlgorithm, curve: &'static str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(how, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(how, document.as_ref(), &random).unwrap();
        Self { id, pair: Pair::Ec(pair, curve) }
    }

    fn p256(id: &'static str) -> Self {
        Self::ec(id, &ECDSA_P256_SHA256_FIXED_SIGNING, "P-256")
    }

    fn ed(id: &'static str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self { id, pair: Pair::Ed(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap()) }
    }

    fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let id = self.id;
        match &self.pair {
            Pair::Rsa(pair) => {
                let public: RsaPublicKeyComponents<Vec<u8>> = pair.public().into();
                let (n, e) = (public.n, public.e);
                json!({ "kty": "RSA", "kid": id, "use": "sig", "n": text(&n), "e": text(&e) })
            }
            Pair::Ec(pair, curve) => {
                let (x, y) = {
                    let point = &pair.public_key().as_ref()[1..];
                    let (x, y) = point.split_at(point.len() / 2);
                    (text(x), text(y))
                };
                json!({ "kty": "EC", "kid": id, "crv": curve, "x": x, "y": y })
            }
            Pair::Ed(pair) => {
                let x = text(pair.public_key().as_ref());
                json!({ "kty": "OKP", "kid": id, "crv": "Ed25519", "x": x, "alg": "EdDSA" })
            }
        }
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let how: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(how, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Ec(pair, _) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token as providers make it.
    fn token(&self, algorithm: &str, claims: &Value) -> String {
        let header = json!({ "alg": algorithm, "kid": self.id, "typ": "at+jwt" });
        signed(&header, claims, |message| self.sign(algorithm, message))
    }
}

fn signed(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", text(header), text(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// The claims of a writer of org 401, and these others; a null takes one away.
fn claims(issuer: &str, others: &Value) -> Value {
    let mut claims = json!({
        "iss": issuer, "aud": "polder", "sub": "ada", "exp": get_current_timestamp() + 300,
        "polder_role": "writer", "polder_orgs": ["401"],
    });
    let all = claims.as_object_mut().unwrap();
    for (name, value) in others.as_object().unwrap() {
        if value.is_null() {
            all.remove(name);
        } else {
            all.insert(name.clone(), value.clone());
        }
    }
    claims
}

fn member(role: Role, orgs: &[&str]) -> Principal {
    Principal::of(role, orgs.iter().map(|org| org.parse::<OrgId>().unwrap()).collect()).unwrap()
}

#[tokio::test]
async fn a_token_makes_a_caller_by_every_algorithm_that_is_taken() {
    let mut tasks = JoinSet::new();
    let p384 = Signer::ec("p384", &ECDSA_P384_SHA384_FIXED_SIGNING, "P-384");
    let (rsa, p256, ed) = (Signer::rsa("rsa"), Signer::p256("p256"), Signer::ed("ed"));
    let (_, config) = provider(&[&rsa, &p256, &p384, &ed], &mut tasks).await;
    let (oidc, _refresher) = Oidc::open(&config).await.unwrap();
    let cases = [
        (&rsa, "RS256"),
        (&rsa, "RS384"),
        (&rsa, "RS512"),
        (&rsa, "PS256"),
        (&rsa, "PS384"),
        (&rsa, "PS512"),
        (&p256, "ES256"),
        (&p384, "ES384"),
        (&ed, "EdDSA"),
    ];
    for (signer, algorithm) in cases {
        let token = signer.token(algorithm, &claims(&config.issuer, &json!({})));
        let (who, principal) = oidc.caller(&token).await.unwrap().expect(algorithm);
        assert_eq!(who, format!("{}#ada", config.issuer));
        assert_eq!(principal, member(Role::Writer, &["401"]));
        let broken = format!("{}A", &token[..token.len() - 1]);
        let other = format!("{}B", &token[..token.len() - 1]);
        let good = [oidc.caller(&broken).await, oidc.caller(&other).await];
        assert!(good.into_iter().any(|found| found.unwrap().is_none()), "{algorithm}");
    }
}

#[tokio::test]
async fn claims_decide_who_somebody_is() {
    let mut tasks = JoinSet::new();
    let signer = Signer::p256("a");
    let (_, config) = provider(&[&signer], &mut tasks).await;
    let (oidc, _refresher) = Oidc::open(&config).await.unwrap();
    let (issuer, now) = (config.issuer.as_str(), get_current_timestamp());
    let writer = || member(Role::Writer, &["401"]);
    let good = [
        (json!({ "exp": now - 30 }), writer()),
        (json!({ "nbf": now + 30 }), writer()),
        (json!({ "aud": ["other", "polder"] }), writer()),
        (json!({ "polder_role": ["writer"] }), writer()),
        (json!({ "polder_orgs": "401 402" }), member(Role::Writer, &["401", "402"])),
        (json!({ "polder_role": "operator", "polder_orgs": null }), Principal::Operator),
        (json!({ "polder_role": "operator", "polder_orgs": [] }), Principal::Operator),
        (json!({ "polder_role": "agent" }), member(Role::Agent, &["401"])),
    ];
    for (others, expect) in good {
        let token = signer.token("ES256", &claims(issuer, &others));
        let (_, principal) = oidc.caller(&token).await.unwrap().unwrap();
        assert_eq!(principal, expect, "{others}");
    }
    let bad = [
        json!({ "exp": now - 120 }),
        json!({ "exp": null }),
        json!({ "exp": "soon" }),
        json!({ "nbf": now + 120 }),
        json!({ "nbf": "soon" }),
        json!({ "iss": "https://other.example" }),
        json!({ "iss": [issuer] }),
        json!({ "iss": format!("{issuer}/") }),
        json!({ "iss": null }),
        json!({ "aud": "other" }),
        json!({ "aud": ["other"] }),
        json!({ "aud": [] }),
        json!({ "aud": null }),
        json!({ "sub": null }),
        json!({ "sub": "" }),
        json!({ "sub": 5 }),
        json!({ "sub": "a\nb" }),
        json!({ "sub": "a".repeat(SUBJECT_BYTES_MAX + 1) }),
        json!({ "polder_role": null }),
        json!({ "polder_role": "owner" }),
        json!({ "polder_role": "Writer" }),
        json!({ "polder_role": ["writer", "reader"] }),
        json!({ "polder_role": 5 }),
        json!({ "polder_orgs": null }),
        json!({ "polder_orgs": [] }),
        json!({ "polder_orgs": 401 }),
        json!({ "polder_orgs": [401] }),
        json!({ "polder_orgs": ["401", "../402"] }),
        json!({ "polder_orgs": ["polder_management"] }),
        json!({ "polder_role": "reader", "polder_orgs": null }),
        json!({ "polder_role": "operator" }),
        json!({ "sub": "ada", "more": "a".repeat(TOKEN_BYTES_MAX) }),
    ];
    for others in bad {
        let token = signer.token("ES256", &claims(issuer, &others));
        assert_eq!(oidc.caller(&token).await.unwrap(), None, "{others}");
    }
}

#[tokio::test]
async fn tokens_that_the_issuer_did_not_sign_are_no_good() {
    let mut tasks = JoinSet::new();
    let (rsa, p256, stranger) = (Signer::rsa("rsa"), Signer::p256("p256"), Signer::p256("p256"));
    let (said, config) = provider(&[&rsa, &p256], &mut tasks).await;
    let modulus = rsa.jwk()["n"].as_str().unwrap().to_owned();
    {
        let mut said = said.lock().unwrap();
        let mut changed = |id: &str, name: &str, value: Value| {
            let mut key = rsa.jwk();
            key["kid"] = id.into();
            key[name] = value;
            said.keys.push(key);
        };
        changed("encrypts", "use", "enc".into());
        changed("only-rs256", "alg", "RS256".into());
        changed("signs-alone", "key_ops", json!(["sign"]));
        said.keys.push(json!({ "kty": "oct", "kid": "secret", "k": modulus, "alg": "HS256" }));
        said.keys.push(json!({ "kty": "RSA", "kid": "broken", "n": "!", "e": 5 }));
        said.keys.push(json!("no key at all"));
    }
    let (oidc, _refresher) = Oidc::open(&config).await.unwrap();
    let claims = claims(&config.issuer, &json!({}));
    let by_secret = |id: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &URL_SAFE_NO_PAD.decode(&modulus).unwrap());
        let header = json!({ "alg": "HS256", "kid": id });
        signed(&header, &claims, |message| hmac::sign(&key, message).as_ref().to_vec())
    };
    let headed = |header: Value, algorithm: &str| {
        signed(&header, &claims, |message| rsa.sign(algorithm, message))
    };
    let good = headed(json!({ "alg": "RS256", "kid": "only-rs256" }), "RS256");
    assert!(oidc.caller(&good).await.unwrap().is_some());
    let bad = [
        signed(&json!({ "alg": "none", "kid": "rsa" }), &claims, |_| Vec::new()),
        signed(&json!({ "alg": "RS256", "kid": "rsa" }), &claims, |_| Vec::new()),
        by_secret("rsa"),
        by_secret("secret"),
        stranger.token("ES256", &claims),
        headed(json!({ "alg": "RS256", "kid": "nobody" }), "RS256"),
        headed(json!({ "alg": "RS256" }), "RS256"),
        headed(json!({ "kid": "rsa" }), "RS256"),
        headed(json!({ "alg": "RS256", "kid": "p256" }), "RS256"),
        headed(json!({ "alg": "ES256", "kid": "rsa" }), "RS256"),
        headed(json!({ "alg": "PS256", "kid": "rsa" }), "RS256"),
        headed(json!({ "alg": "PS256", "kid": "only-rs256" }), "PS256"),
        headed(json!({ "alg": "RS256", "kid": "encrypts" }), "RS256"),
        headed(json!({ "alg": "RS256", "kid": "signs-alone" }), "RS256"),
        headed(json!({ "alg": "RS256", "kid": "rsa", "crit": ["exp"] }), "RS256"),
        // The key that a header brings along is nobody's.
        signed(&json!({ "alg": "ES256", "kid": "p256", "jwk": stranger.jwk() }), &claims, |it| {
            stranger.sign("ES256", it)
        }),
        good[..good.rfind('.').unwrap()].to_owned(),
        format!("{good}."),
        "a.b.c".to_owned(),
        "..".to_owned(),
        String::new(),
    ];
    for token in bad {
        assert_eq!(oidc.caller(&token).await.unwrap(), None, "{token}");
    }
}

/// Asks until the answer is as expected.
async fn until(
    oidc: &Oidc,
    token: &str,
    expect: impl Fn(&Result<Option<(String, Principal)>>) -> bool,
) {
    let all = timeout(Duration::from_mins(1), async {
        while !expect(&oidc.caller(token).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    all.await.expect("in time");
}

#[tokio::test]
async fn keys_rotate_and_old_ones_stay_while_the_issuer_is_away() {
    let mut tasks = JoinSet::new();
    let (first, second, third) = (Signer::p256("1"), Signer::p256("2"), Signer::p256("3"));
    let (said, config) = provider(&[&first], &mut tasks).await;
    let pause = Duration::from_millis(200);
    let (oidc, refresher) = Oidc::with(&config, pause, KEPT).await.unwrap();
    tasks.spawn(refresher.run());
    let token = |signer: &Signer| signer.token("ES256", &claims(&config.issuer, &json!({})));
    assert!(oidc.caller(&token(&first)).await.unwrap().is_some());

    said.lock().unwrap().keys = vec![first.jwk(), second.jwk()];
    until(&oidc, &token(&second), |found| matches!(found, Ok(Some(_)))).await;
    assert!(oidc.caller(&token(&first)).await.unwrap().is_some());

    // However many come with keys that nobody knows, the issuer is called once in a while.
    let (before, began) = (said.lock().unwrap().calls, Instant::now());
    for _ in 0..50 {
        assert!(oidc.caller(&token(&third)).await.unwrap().is_none());
    }
    let more = said.lock().unwrap().calls - before;
    let turns = began.elapsed().as_millis() / pause.as_millis() + 2;
    assert!(more as u128 <= turns, "{more} calls in {turns} turns");

    said.lock().unwrap().down = true;
    until(
        &oidc,
        &token(&third),
        |found| matches!(found, Err(error) if error.code() == ErrorCode::ControlIssuer),
    )
    .await;
    assert!(oidc.caller(&token(&second)).await.unwrap().is_some());

    {
        let mut said = said.lock().unwrap();
        said.down = false;
        said.keys = vec![third.jwk()];
    }
    until(&oidc, &token(&third), |found| matches!(found, Ok(Some(_)))).await;
    assert!(oidc.caller(&token(&second)).await.unwrap().is_none(), "it was withdrawn");
}

#[test]
fn keys_that_could_not_be_read_again_for_long_are_taken_no_more() {
    let keys =
        || KeySet::parse(json!({ "keys": [Signer::p256("a").jwk()] }).to_string().as_bytes());
    let known = |kept: Duration| {
        let fetched = Fetched { keys: keys().unwrap(), age: Duration::ZERO };
        Known::new(fetched, kept).find("a", Algorithm::ES256)
    };
    assert!(known(KEPT).is_some());
    assert!(known(Duration::ZERO).is_none());
}

#[tokio::test]
async fn an_issuer_that_is_none_is_said_so() {
    let mut tasks = JoinSet::new();
    let signer = Signer::p256("a");
    let (said, config) = provider(&[&signer], &mut tasks).await;
    let issuer = config.issuer.clone();
    let cases = [
        (json!({ "issuer": format!("{issuer}/"), "jwks_uri": issuer }), ErrorCode::SpecInvalid),
        (json!({ "issuer": issuer, "jwks_uri": "http://id.example/k" }), ErrorCode::SpecInvalid),
        (json!({ "issuer": issuer, "jwks_uri": "keys" }), ErrorCode::SpecInvalid),
    ];
    let silent = [
        json!({ "issuer": issuer }),
        json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/no") }),
        json!("x".repeat(1024 * 1024)),
    ];
    let right = said.lock().unwrap().configuration.clone();
    for (configuration, expect) in cases {
        said.lock().unwrap().configuration = configuration;
        assert_eq!(Oidc::open(&config).await.unwrap_err().code(), expect);
    }
    let token = signer.token("ES256", &claims(&issuer, &json!({})));
    for configuration in silent {
        said.lock().unwrap().configuration = configuration;
        let (oidc, _refresher) = Oidc::open(&config).await.unwrap();
        assert_eq!(oidc.caller(&token).await.unwrap_err().code(), ErrorCode::ControlIssuer);
    }
    said.lock().unwrap().configuration = right;
}

#[tokio::test]
async fn an_issuer_that_is_away_or_has_no_keys_is_asked_until_it_has() {
    let mut tasks = JoinSet::new();
    let signer = Signer::p256("a");
    let (said, config) = provider(&[&signer], &mut tasks).await;
    let token = signer.token("ES256", &claims(&config.issuer, &json!({})));
    said.lock().unwrap().down = true;
    let (oidc, refresher) = Oidc::with(&config, Duration::from_millis(100), KEPT).await.unwrap();
    tasks.spawn(refresher.run());
    let away = oidc.caller(&token).await.unwrap_err();
    assert_eq!(away.code(), ErrorCode::ControlIssuer);
    said.lock().unwrap().down = false;
    until(&oidc, &token, |found| matches!(found, Ok(Some(_)))).await;
    // No keys are no answer: those that were known stay.
    said.lock().unwrap().keys.clear();
    let stranger = Signer::p256("b").token("ES256", &claims(&config.issuer, &json!({})));
    until(&oidc, &stranger, Result::is_err).await;
    assert!(oidc.caller(&token).await.unwrap().is_some());
}

#[tokio::test]
async fn tokens_are_taken_beside_those_of_clients() {
    let mut tasks = JoinSet::new();
    let signer = Signer::p256("a");
    let (_, config) = provider(&[&signer], &mut tasks).await;
    let (oidc, _refresher) = Oidc::open(&config).await.unwrap();
    let mut clients = Clients::default();
    clients.take_tokens(oidc);
    assert!(clients.required());
    let secret = "0123456789abcdef";
    clients.add("trino", &SecretString::from(secret), None).unwrap();
    let who = async |token: &str| {
        let mut headers = HeaderMap::new();
        if !token.is_empty() {
            headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        clients.who(&headers).await.unwrap().map(|caller| caller.who())
    };
    let token = signer.token("ES256", &claims(&config.issuer, &json!({})));
    assert_eq!(who(&token).await, Some(format!("oidc:{}#ada", config.issuer)));
    let own = clients.token("trino", secret).unwrap();
    assert_eq!(who(&own).await.as_deref(), Some("client:trino"));
    for bad in ["", "x", "plk_a_b", "polder1.1.2.3", &token[1..]] {
        assert_eq!(who(bad).await, None, "{bad}");
    }
}
