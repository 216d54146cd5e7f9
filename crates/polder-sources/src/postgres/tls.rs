//! How a connection is encrypted, and how [`super::tap`] gets hold of it.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use polder_core::{Error, ErrorCode, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::either::Either;

use super::tap;

type Secure = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
type Handshake = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
type Tap = tap::Tap<Socket, Secure>;
/// Our end of a session's connection.
pub(super) type Handle = tap::Handle<Socket, Secure>;
/// The content of a COPY over a session's connection.
pub(super) type CopyBytes = tap::CopyBytes<Socket, Secure>;

/// `SSLRequest` (PostgreSQL manual, *Message Formats*): its length and a code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Makes connections for the driver and keeps our end of the last one.
#[derive(Clone)]
pub(super) struct Connector {
    tls: MakeRustlsConnect,
    /// What to ask the server for; `None` where the driver does that itself.
    ask: Option<SslMode>,
    made: Arc<Mutex<Option<Handle>>>,
}

impl Connector {
    /// For servers at the addresses in `config`, whose `sslmode` it takes over.
    ///
    /// The driver hands a socket only to what encrypts, after it has asked the server whether it can;
    /// it is told that there is nothing to ask, and that is done here. Over Unix sockets, and to
    /// addresses without a host's name, the driver encrypts nothing: those connections it keeps.
    ///
    /// # Errors
    /// `spec.invalid` for a file of certificates that cannot be read.
    pub(super) fn new(config: &mut Config, root_file: Option<&str>) -> Result<Self> {
        let mode = config.get_ssl_mode();
        let tls = MakeRustlsConnect::new(settings(mode, root_file)?);
        let hosts = config.get_hosts();
        let named = !hosts.is_empty() && hosts.iter().all(|host| matches!(host, Host::Tcp(_)));
        let ask =
            (named && config.get_ssl_negotiation() == SslNegotiation::Postgres).then_some(mode);
        if ask.is_some() {
            config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        }
        Ok(Self { tls, ask, made: Arc::default() })
    }

    /// One for a connection of its own.
    pub(super) fn anew(&self) -> Self {
        Self { made: Arc::default(), ..self.clone() }
    }

    /// The mode to ask the server with; `None` where the driver asks.
    pub(super) fn asks_for(&self) -> Option<SslMode> {
        self.ask
    }

    /// Our end of the connection that was made, once.
    pub(super) fn handle(&self) -> Option<Handle> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Tap;
    type TlsConnect = Connect;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Connect> {
        let handshake =
            <MakeRustlsConnect as MakeTlsConnect<Socket>>::make_tls_connect(&mut self.tls, host);
        Ok(Connect {
            handshake: handshake.map_err(io::Error::other)?,
            ask: self.ask,
            made: Arc::clone(&self.made),
        })
    }
}

/// One connection to be made.
pub(super) struct Connect {
    handshake: Handshake,
    ask: Option<SslMode>,
    made: Arc<Mutex<Option<Handle>>>,
}

impl TlsConnect<Socket> for Connect {
    type Stream = Tap;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Tap>> + Send>>;

    fn connect(self, mut socket: Socket) -> Self::Future {
        Box::pin(async move {
            let wire = if encrypts(self.ask, &mut socket).await? {
                Either::Right(self.handshake.connect(socket).await?)
            } else {
                Either::Left(socket)
            };
            let (tap, handle) = tap::tap(wire);
            *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
            Ok(tap)
        })
    }
}

/// Whether the connection is to be encrypted, which the server may have to be asked for.
async fn encrypts(ask: Option<SslMode>, socket: &mut Socket) -> io::Result<bool> {
    let required = match ask {
        None => return Ok(true),
        Some(SslMode::Disable) => return Ok(false),
        Some(mode) => mode == SslMode::Require,
    };
    socket.write_all(&SSL_REQUEST).await?;
    // Nothing is read beyond the answer: what follows must be part of the handshake.
    match socket.read_u8().await? {
        b'S' => Ok(true),
        _ if required => Err(io::Error::other("server does not support TLS")),
        _ => Ok(false),
    }
}

fn settings(mode: SslMode, root_file: Option<&str>) -> Result<ClientConfig> {
    let failed = |error: String| {
        Error::new(ErrorCode::SpecInvalid, "TLS cannot be set up").detail(error).hint(
            "sslrootcert has to name a file with certificates in PEM form that can be read here",
        )
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?;
    if mode != SslMode::Require && root_file.is_none() {
        let verifier = Arc::new(AnyCertificate(provider));
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        return Ok(builder.with_no_client_auth());
    }
    let mut roots = RootCertStore::empty();
    match root_file {
        Some(file) => {
            let certificates = CertificateDer::pem_file_iter(Path::new(file))
                .map_err(|error| failed(format!("{file}: {error}")))?;
            for certificate in certificates {
                let certificate =
                    certificate.map_err(|error| failed(format!("{file}: {error}")))?;
                roots.add(certificate).map_err(|error| failed(format!("{file}: {error}")))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    Ok(builder.with_webpki_verifier(verifier).with_no_client_auth())
}

/// `sslmode=prefer`: encryption with whoever answers. A server that is not whom it says could as
/// well say that it has no TLS, so checking its certificate would protect nobody.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
