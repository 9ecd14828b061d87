//! Both ends show each other a certificate (TLS 1.3).

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

/// Where the certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// This end's certificate, and those between it and the CA (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// The CA that the other end's certificate must come from (PEM).
    pub ca: PathBuf,
}

/// Why there can be no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot use {}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The certificate and the key, or the CA.
    #[error("cannot use the certificate {}: {why}", path.display())]
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The other end cannot be named in a certificate.
    #[error("{0:?} is no name that a certificate can hold")]
    Name(String),
    /// The protocol could not be begun.
    #[error("cannot begin TLS")]
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
                return Err(failed("there is no certificate in it".to_owned()));
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
    pub(super) fn client(&self, host: &str) -> Result<Client, TlsError> {
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
        Ok(Client {
            config: Arc::new(config),
            name,
        })
    }

    /// The destination's side: the source must have a certificate of the CA.
    pub(super) fn server(&self) -> Result<Server, TlsError> {
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
        // Nobody comes back, and what the source reads is frames only.
        config.send_tls13_tickets = 0;
        Ok(Server {
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

/// Begins connections as the source.
#[derive(Clone, Debug)]
pub(super) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    pub(super) fn over(&self, link: Link) -> Result<StreamOwned<ClientConnection, Link>, TlsError> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(TlsError::Begin)?;
        Ok(StreamOwned::new(connection, link))
    }
}

/// Begins connections as the destination.
#[derive(Clone, Debug)]
pub(super) struct Server {
    config: Arc<ServerConfig>,
}

impl Server {
    pub(super) fn over(&self, link: Link) -> Result<StreamOwned<ServerConnection, Link>, TlsError> {
        let connection =
            ServerConnection::new(Arc::clone(&self.config)).map_err(TlsError::Begin)?;
        Ok(StreamOwned::new(connection, link))
    }
}
