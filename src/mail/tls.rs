//! TLS with relays: the trusted certificate authorities, and the handshake of implicit TLS. lettre
//! implements STARTTLS.
//!
//! Implicit TLS and STARTTLS trust the machine's authorities and those of `SMTP_CA_FILE`, and
//! require TLS 1.2 or newer.

use std::io;
use std::path::Path;
use std::sync::Arc;

use lettre::transport::smtp::client::{Certificate, TlsParameters};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::ConfigError;

/// The certificates of `SMTP_CA_FILE`, in the types of lettre and of rustls.
pub(super) struct Authorities {
    lettre: Certificate,
    rustls: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// Reads `SMTP_CA_FILE`.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let pem = std::fs::read(path).map_err(|error| {
            ConfigError::new("SMTP_CA_FILE", format!("names a file that cannot be read: {error}"))
        })?;
        let none =
            || ConfigError::new("SMTP_CA_FILE", "names a file that contains no certificate in PEM form");
        let rustls =
            CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|_| none())?;
        if rustls.is_empty() {
            return Err(none());
        }
        Ok(Self { lettre: Certificate::from_pem(&pem).map_err(|_| none())?, rustls })
    }
}

/// The parameters of STARTTLS with `host`; `None` if `host` is not a name that a certificate can be
/// checked against.
pub(super) fn starttls(host: &str, authorities: Option<&Authorities>) -> Option<TlsParameters> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(authorities) = authorities {
        builder = builder.add_root_certificate(authorities.lettre.clone());
    }
    builder.build().ok()
}

/// Implicit TLS with one host: TLS begins with the connection's first octet (RFC 8314 §3.3).
pub(super) struct Implicit {
    connector: TlsConnector,
    host: ServerName<'static>,
}

impl Implicit {
    /// `None` if `host` is not a name that a certificate can be checked against.
    pub(super) fn new(host: &str, authorities: Option<&Authorities>) -> Option<Self> {
        let mut roots = RootCertStore::empty();
        // Some of the machine's certificates may be unreadable for rustls; the others are still
        // used.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for certificate in authorities.iter().flat_map(|authorities| &authorities.rustls) {
            roots.add(certificate.clone()).ok()?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(ALL_VERSIONS)
            .ok()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let host = ServerName::try_from(host.to_owned()).ok()?;
        Some(Self { connector: Arc::new(config).into(), host })
    }

    pub(super) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.host.clone(), stream).await
    }
}

/// How a conversation is encrypted.
#[expect(clippy::enum_variant_names, reason = "STARTTLS is called so")]
pub(super) enum Tls {
    Plain,
    StartTls(TlsParameters),
    Implicit(Implicit),
}
