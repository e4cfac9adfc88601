//! Owns the client side of TLS: how connections to backends are encrypted, whom they trust and what they show.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Made;
use crate::balance::tls::BackendTls;

/// How connections to a backend are secured.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) enum Security {
    /// Not at all.
    #[default]
    Plain,
    /// By TLS.
    Tls(Arc<Connector>),
    /// By TLS that the library does not take, so that there are none.
    Impossible,
}

impl Security {
    /// Whether connections that were opened under the other are as good.
    pub(in crate::proxy) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) | (Self::Impossible, Self::Impossible) => true,
            (Self::Tls(one), Self::Tls(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// Terms, ready to be used.
pub(in crate::proxy) struct Connector {
    terms: Arc<BackendTls>,
    library: TlsConnector,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.terms.fmt(f)
    }
}

impl Connector {
    /// Shakes hands over a connection, for the protocol of this name. Who does not agree to it (RFC 7301) may take what
    /// follows for something else.
    pub(in crate::proxy) async fn secure(
        &self,
        stream: TcpStream,
        protocol: Option<&[u8]>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let protocols = protocol.into_iter().map(Vec::from).collect();
        let connecting = self.library.with_alpn(protocols).connect(self.terms.server_name.clone(), stream);
        let stream = connecting.await?;
        if protocol.is_some() && stream.get_ref().1.alpn_protocol() != protocol {
            return Err(io::Error::other("it does not agree to speak HTTP/2 (ALPN h2)"));
        }
        Ok(stream)
    }
}

impl Made {
    /// What `terms` make of connections.
    pub(in crate::proxy) fn security(&self, terms: Option<&Arc<BackendTls>>) -> Security {
        let Some(terms) = terms else { return Security::Plain };
        let make = || match client_config(terms) {
            Ok(config) => Some(Connector { terms: terms.clone(), library: Arc::new(config).into() }),
            Err(error) => {
                tracing::error!(?terms, %error, "cannot speak TLS with backends on these terms; they get no request");
                None
            }
        };
        let same = |connector: &Connector| Arc::ptr_eq(&connector.terms, terms);
        self.connectors.find(same, make).map_or(Security::Impossible, Security::Tls)
    }
}

fn client_config(terms: &BackendTls) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in &terms.ca.roots {
        roots.add(root.clone())?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_webpki_verifier(verifier);
    match &terms.identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()),
        None => Ok(builder.with_no_client_auth()),
    }
}
