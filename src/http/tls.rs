//! TLS of the admin API: its certificate, and the identities in client certificates.
//!
//! The public API does not use TLS itself: a proxy in front of it terminates TLS.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode as _, Reader as _, SliceReader, Tag, Tagged as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ALL_VERSIONS, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;

use super::stream::ClientStream;
use crate::config::{AdminSettings, ConfigError};
use crate::metrics::Metrics;

/// The attribute `commonName` of a subject (X.520).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// The identity in a client certificate that an authority of `ADMIN_CLIENT_CA` has signed:
/// `spiffe://…`, or `CN=` and the common name. An extension of every request on a connection with
/// such a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity(pub Arc<str>);

/// The TLS settings of a listener. They are read again while the service runs, because certificates
/// may live for an hour only.
pub struct Tls {
    settings: AdminSettings,
    acceptor: RwLock<TlsAcceptor>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files of the settings; `None` without `ADMIN_TLS_CERT`.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable.
    pub fn read(settings: &AdminSettings) -> Result<Option<Self>, ConfigError> {
        let (Some(certificate), Some(key)) = (&settings.admin_tls_cert, &settings.admin_tls_key) else {
            return Ok(None);
        };
        let acceptor = RwLock::new(acceptor(certificate, key, settings.admin_client_ca.as_deref())?);
        Ok(Some(Self { settings: settings.clone(), acceptor }))
    }

    /// Reads the files again. If that fails, the certificates that were read before stay in use,
    /// and a metric and a log line report the failure.
    pub fn reread(&self, metrics: &Metrics) {
        let read = self.replace();
        metrics.admin_certificate_unreadable.set(i64::from(read.is_err()));
        if let Err(why) = read {
            tracing::error!(%why, "the certificate of the admin API cannot be read again; the one before stays in use");
        }
    }

    fn replace(&self) -> Result<(), ConfigError> {
        if let Some(read) = Self::read(&self.settings)? {
            let read = read.acceptor.into_inner().unwrap_or_else(PoisonError::into_inner);
            *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = read;
        }
        Ok(())
    }

    /// The handshake with a client. `None` if it fails, for example because another authority has
    /// signed the client's certificate.
    pub(super) async fn accept(
        &self,
        stream: ClientStream,
    ) -> Option<(TlsStream<ClientStream>, Option<PeerIdentity>)> {
        let acceptor = self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone();
        let stream = acceptor.accept(stream).await.ok()?;
        let presented = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = presented.and_then(identity);
        Some((stream, identity))
    }
}

fn acceptor(certificate: &Path, key: &Path, clients: Option<&Path>) -> Result<TlsAcceptor, ConfigError> {
    let (certificates, key_pem) =
        (certificates("ADMIN_TLS_CERT", certificate)?, read_file("ADMIN_TLS_KEY", key)?);
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
        ConfigError::new("ADMIN_TLS_KEY", "names a file that contains no private key in PEM form")
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |_| ConfigError::new("ADMIN_TLS_CERT", "and ADMIN_TLS_KEY are no certificate and its key");
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(ALL_VERSIONS)
        .map_err(unusable)?;
    let builder = if let Some(clients) = clients {
        let no_authority =
            || ConfigError::new("ADMIN_CLIENT_CA", "names a file with a certificate that is no authority");
        let mut roots = RootCertStore::empty();
        for authority in self::certificates("ADMIN_CLIENT_CA", clients)? {
            roots.add(authority).map_err(|_| no_authority())?;
        }
        // A client certificate is optional, because other operators send a token.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|_| no_authority())?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

fn read_file(variable: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path)
        .map_err(|error| ConfigError::new(variable, format!("names a file that cannot be read: {error}")))
}

fn certificates(variable: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let pem = read_file(variable, path)?;
    let read = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    read.ok()
        .filter(|read| !read.is_empty())
        .ok_or_else(|| ConfigError::new(variable, "names a file that contains no certificate in PEM form"))
}

/// The identity in a certificate: its SPIFFE ID, if that is its only URI, as in an X.509-SVID; its
/// common name, if it has no URI and exactly one common name.
fn identity(certificate: &CertificateDer<'_>) -> Option<PeerIdentity> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let uris: Vec<_> = certificate.valid_uri_names().collect();
    let identity = match uris[..] {
        [] => format!("CN={}", common_name(certificate.subject())?),
        [uri] if uri.starts_with("spiffe://") => uri.to_owned(),
        _ => return None,
    };
    Some(PeerIdentity(identity.into()))
}

/// The common name of a subject, if it has exactly one, as text. `subject` is DER without the outer
/// tag and length.
fn common_name(subject: &[u8]) -> Option<String> {
    let mut found = None;
    let mut names = SliceReader::new(subject).ok()?;
    while !names.is_finished() {
        let mut attributes = SliceReader::new(AnyRef::decode(&mut names).ok()?.value()).ok()?;
        while !attributes.is_finished() {
            let mut attribute = SliceReader::new(AnyRef::decode(&mut attributes).ok()?.value()).ok()?;
            let kind = ObjectIdentifier::decode(&mut attribute).ok()?;
            let value = AnyRef::decode(&mut attribute).ok()?;
            if kind == COMMON_NAME {
                let is_text = matches!(value.tag(), Tag::Utf8String | Tag::PrintableString);
                let text = std::str::from_utf8(value.value()).ok().filter(|_| is_text)?;
                if found.replace(text.to_owned()).is_some() {
                    return None;
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u8, tag: u8, text: &str) -> Vec<u8> {
        let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
        let value = [&[6, 3, 0x55, 4, kind, tag, length(text.as_bytes())], text.as_bytes()].concat();
        let sequence = [&[0x30, length(&value)], &value[..]].concat();
        [&[0x31, length(&sequence)], &sequence[..]].concat()
    }

    #[test]
    fn a_subject_has_one_common_name_as_text() {
        const UTF8: u8 = 0x0c;
        const PRINTABLE: u8 = 0x13;
        let (alice, unit) = (attribute(3, UTF8, "Ánh"), attribute(11, UTF8, "desk"));
        assert_eq!(common_name(&alice).as_deref(), Some("Ánh"));
        assert_eq!(
            common_name(&[&unit[..], &attribute(3, PRINTABLE, "bob")].concat()).as_deref(),
            Some("bob")
        );
        let two = [&alice[..], &attribute(3, UTF8, "bob")].concat();
        for none in [&[][..], &unit, &two, &alice[..alice.len() - 1], &attribute(3, 0x1e, "bmp")] {
            assert_eq!(common_name(none), None, "{none:?}");
        }
    }
}
