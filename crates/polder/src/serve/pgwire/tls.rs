//! The certificate of this door. One that cannot be used ends the server's start: nobody is served in
//! the clear instead.

use std::path::Path;
use std::sync::Arc;

use polder_core::{Error, ErrorCode, Result};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};
use tokio_rustls::TlsAcceptor;

/// Takes connections by TLS with this certificate.
///
/// # Errors
/// `spec.invalid` for a file or a key that is none, and for two that do not belong together.
pub(super) fn acceptor(certificate: &Path, key: &SecretString) -> Result<TlsAcceptor> {
    let invalid = |message: String| {
        Error::new(ErrorCode::SpecInvalid, format!("[server.postgres_tls] {message}"))
    };
    let place = certificate.display();
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain: Vec<CertificateDer<'static>> = chain.map_err(|cause| {
        invalid(format!("certificate: {place} cannot be read")).caused_by(cause)
    })?;
    if chain.is_empty() {
        return Err(invalid(format!("certificate: {place} has no certificate in PEM")));
    }
    // The cause might quote the key.
    let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes())
        .map_err(|_| invalid("key: it is no private key in PEM".to_owned()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|cause| {
            invalid("certificate and key do not belong together".to_owned()).caused_by(cause)
        })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("server.pem");
        let key = SecretString::from("no key");
        let refused = |file: &Path| acceptor(file, &key).err().expect("refused");
        assert!(refused(&file).message().contains("cannot be read"));
        std::fs::write(&file, "no certificate").expect("written");
        assert!(refused(&file).message().contains("has no certificate"));
    }
}
