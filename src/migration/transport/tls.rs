//! TLS 1.3 with a certificate from each end.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use thiserror::Error;

use super::link::Link;

/// The paths of the certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// This end's certificate and the intermediates up to the CA (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// The CA that must have issued the other end's certificate (PEM).
    pub ca: PathBuf,
}

/// Why TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be used.
    #[error("cannot use {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The certificate and its key, or the CA, cannot be used.
    #[error("cannot use the certificate {}: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The destination's host is not a valid certificate name.
    #[error("{0:?} is not a valid certificate name")]
    Name(String),
    /// rustls refused to start the protocol.
    #[error("cannot start TLS")]
    Begin(#[source] rustls::Error),
}

struct Loaded {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl TlsFiles {
    fn load(&self) -> Result<Loaded, TlsError> {
        let certificates = |path: &PathBuf| {
            let failed = |why: String| TlsError::File {
                path: path.clone(),
                why,
            };
            let all = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| failed(e.to_string()))?;
            if all.is_empty() {
                return Err(failed("the file contains no certificate".to_owned()));
            }
            Ok(all)
        };
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| TlsError::File {
            path: self.key.clone(),
            why: e.to_string(),
        })?;
        let mut roots = RootCertStore::empty();
        for ca in certificates(&self.ca)? {
            roots.add(ca).map_err(|e| TlsError::Certificate {
                path: self.ca.clone(),
                why: e.to_string(),
            })?;
        }
        Ok(Loaded {
            chain,
            key,
            roots: Arc::new(roots),
        })
    }

    /// The source's side: the destination must have a certificate for `host`.
    pub(super) fn client(&self, host: &str) -> Result<TlsClient, TlsError> {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))?;
        let loaded = self.load()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Begin)?
            .with_root_certificates(loaded.roots)
            .with_client_auth_cert(loaded.chain, loaded.key)
            .map_err(|e| self.certificate(&e))?;
        Ok(TlsClient {
            config: Arc::new(config),
            name,
        })
    }

    /// The destination's side: the source must have a certificate of the CA.
    pub(super) fn server(&self) -> Result<TlsServer, TlsError> {
        let loaded = self.load()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(loaded.roots, Arc::clone(&provider))
                .build()
                .map_err(|e| TlsError::Certificate {
                    path: self.ca.clone(),
                    why: e.to_string(),
                })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Begin)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(loaded.chain, loaded.key)
            .map_err(|e| self.certificate(&e))?;
        // No session is resumed, so tickets would only delay the frames that the source reads.
        config.send_tls13_tickets = 0;
        Ok(TlsServer {
            config: Arc::new(config),
        })
    }

    fn certificate(&self, e: &rustls::Error) -> TlsError {
        TlsError::Certificate {
            path: self.cert.clone(),
            why: e.to_string(),
        }
    }
}

/// Starts connections as the source.
#[derive(Clone, Debug)]
pub(super) struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsClient {
    pub(super) fn over(&self, link: Link) -> Result<StreamOwned<ClientConnection, Link>, TlsError> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(TlsError::Begin)?;
        Ok(StreamOwned::new(connection, link))
    }
}

/// Starts connections as the destination.
#[derive(Clone, Debug)]
pub(super) struct TlsServer {
    config: Arc<ServerConfig>,
}

impl TlsServer {
    pub(super) fn over(&self, link: Link) -> Result<StreamOwned<ServerConnection, Link>, TlsError> {
        let connection =
            ServerConnection::new(Arc::clone(&self.config)).map_err(TlsError::Begin)?;
        Ok(StreamOwned::new(connection, link))
    }
}
