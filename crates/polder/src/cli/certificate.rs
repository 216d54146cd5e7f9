//! `polder certificate`: of erasures.

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use polder_control::{certificate, churn};
use polder_core::{Error, ErrorCode, OrgId, Principal, Result};
use serde_json::json;

use crate::app::App;
use crate::{exit, output};

#[derive(Debug, Args)]
pub(crate) struct Certificate {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check that a certificate is whole, and whose it is. Needs no configuration and no network.
    Verify(Verify),
    /// Print the certificate of an org's erasure.
    Show(Show),
    /// Make a key that signs certificates.
    Keygen(Keygen),
}

#[derive(Debug, Args)]
struct Verify {
    /// The certificate; `-` for stdin.
    file: PathBuf,
    /// The public key that has to have signed it: base64, or a file of `keygen`.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Show {
    /// The org.
    #[arg(long, value_name = "ID")]
    org: OrgId,
    /// Print one JSON document. The certificate is one in any case.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Keygen {
    /// The private key's file; the public key goes into a file beside it, with `.pub`.
    #[arg(long, value_name = "FILE", default_value = "signing-key.pem")]
    out: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

impl Certificate {
    pub(crate) async fn run(&self, load: impl Fn() -> Result<App>) -> Result<u8> {
        match &self.command {
            Command::Verify(verify) => verify.run(),
            Command::Show(show) => show.run(&load()?).await,
            Command::Keygen(keygen) => keygen.run(),
        }
    }
}

impl Verify {
    fn run(&self) -> Result<u8> {
        let unreadable = |cause: std::io::Error| {
            Error::new(ErrorCode::SpecInvalid, "the certificate cannot be read")
                .detail(self.file.display().to_string())
                .caused_by(cause)
        };
        let mut text = String::new();
        if self.file.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
        } else {
            text = std::fs::read_to_string(&self.file).map_err(unreadable)?;
        }
        let key = self.key.as_ref().map(|key| std::fs::read_to_string(key).unwrap_or(key.clone()));
        let signed = certificate::verify(&text, key.as_deref())?;
        let (certificate, signature) = (&signed.certificate, &signed.signature);
        if self.json {
            output::document(&json!({
                "valid": true, "org": certificate.org, "event_id": certificate.event_id,
                "issued_at": certificate.issued_at, "public_key": signature.public_key,
                "key_checked": key.is_some(),
            }));
            return Ok(exit::OK);
        }
        output::line(&format!(
            "the certificate is whole: org {}, erased {}, {} objects ({})",
            certificate.org,
            certificate.issued_at,
            output::number(certificate.deleted.found.objects),
            output::bytes(certificate.deleted.found.bytes),
        ));
        if key.is_none() {
            output::note(&format!(
                "whoever has the private key of {} signed it: give --key to check whose that is",
                signature.public_key
            ));
        }
        Ok(exit::OK)
    }
}

impl Show {
    async fn run(&self, app: &App) -> Result<u8> {
        let org = Principal::Operator.authorize(&self.org)?;
        let found = churn::latest(&app.store().await?, &org).await?;
        let Some(document) = found.and_then(|churn| churn.certificate) else {
            let message = format!("there is no certificate of org {}", self.org);
            return Err(Error::new(ErrorCode::SpecUnknownName, message)
                .hint(format!("how far it is: polder churn --org {} --status", self.org)));
        };
        output::line(document.trim_end());
        Ok(exit::OK)
    }
}

impl Keygen {
    fn run(&self) -> Result<u8> {
        let key = certificate::write_new_key(&self.out)?;
        let mut public = self.out.clone().into_os_string();
        public.push(".pub");
        let public = PathBuf::from(public);
        std::fs::write(&public, key.public_pem()).map_err(|cause| {
            Error::new(ErrorCode::SpecInvalid, "the public key cannot be written")
                .detail(public.display().to_string())
                .caused_by(cause)
        })?;
        if self.json {
            output::document(&json!({
                "private_key_file": self.out, "public_key_file": public,
                "public_key": key.public_key(),
            }));
        } else {
            output::line(&format!("{}: the private key", self.out.display()));
            output::line(&format!("{}: the public key, {}", public.display(), key.public_key()));
            output::note("name it: [governance] signing_key = \"file:…\"");
        }
        Ok(exit::OK)
    }
}
