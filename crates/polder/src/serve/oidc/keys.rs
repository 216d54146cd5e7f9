//! The keys an issuer signs with (RFC 7517), of which those count that can sign a token.

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// More keys than any issuer has.
const KEYS_MAX: usize = 100;
const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the library's word")]
struct Key {
    id: String,
    /// What its kind, its curve and its own `alg` leave.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// The keys of a document that are of use; those of other kinds are passed over.
    pub(super) fn parse(document: &[u8]) -> Result<Self, &'static str> {
        let Ok(Document { keys }) = serde_json::from_slice(document) else {
            return Err("is no document of keys");
        };
        if keys.len() > KEYS_MAX {
            return Err("has too many keys");
        }
        let keys = keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
        Ok(Self(keys.filter_map(|key| usable(&key)).collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn find(&self, id: &str, algorithm: Algorithm) -> Option<&DecodingKey> {
        let suits = |key: &&Key| key.id == id && key.algorithms.contains(&algorithm);
        self.0.iter().find(suits).map(|key| &key.key)
    }
}

/// A key that a token can name and that can sign one.
fn usable(jwk: &Jwk) -> Option<Key> {
    let id = jwk.common.key_id.clone()?;
    let usage = jwk.common.public_key_use.as_ref();
    let operations = jwk.common.key_operations.as_ref();
    if usage.is_some_and(|usage| *usage != PublicKeyUse::Signature)
        || operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
    {
        return None;
    }
    let of_kind: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &RSA,
        AlgorithmParameters::EllipticCurve(of) if of.curve == EllipticCurve::P256 => {
            &[Algorithm::ES256]
        }
        AlgorithmParameters::EllipticCurve(of) if of.curve == EllipticCurve::P384 => {
            &[Algorithm::ES384]
        }
        AlgorithmParameters::OctetKeyPair(of) if of.curve == EllipticCurve::Ed25519 => {
            &[Algorithm::EdDSA]
        }
        _ => return None,
    };
    let said = jwk.common.key_algorithm;
    let suits = |algorithm: &Algorithm| said.is_none_or(|s| s == KeyAlgorithm::from(*algorithm));
    let algorithms = of_kind.iter().copied().filter(suits).collect();
    Some(Key { id, algorithms, key: DecodingKey::from_jwk(jwk).ok()? })
}
