//! Owns the server side of TLS: which terms a client gets by the name it asks for, and what the library makes of them.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{ConfigBuilder, RootCertStore, WantsVerifier, server::WantsServerCert};

use super::Made;
use crate::balance::pool::Protocol;
use crate::balance::routes::{HostPattern, Match, Routes};
use crate::balance::snapshot::PortTls;
use crate::balance::tls::{CaBundle, Certificate, TlsTerms, TlsVersion};

/// The versions of HTTP that are spoken behind TLS, in the order we prefer (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Terms, ready to be used.
pub(in crate::proxy) struct Contract {
    terms: Arc<TlsTerms>,
    protocol: Protocol,
    config: Arc<ServerConfig>,
}

impl fmt::Debug for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.terms.fmt(f)
    }
}

impl Contract {
    /// What the library needs for a handshake.
    pub(in crate::proxy) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Who must have signed the certificates of clients.
    pub(in crate::proxy) fn client_ca(&self) -> Option<&Arc<CaBundle>> {
        self.terms.client_ca.as_ref()
    }
}

impl Made {
    /// The contract on `terms`, within which `protocol` is spoken; `None`, with a line in the log, if the library does
    /// not take them.
    fn contract(&self, terms: &Arc<TlsTerms>, protocol: Protocol) -> Option<Arc<Contract>> {
        let make = || match server_config(terms, protocol) {
            Ok(config) => Some(Contract { terms: terms.clone(), protocol, config: Arc::new(config) }),
            Err(error) => {
                tracing::error!(?terms, %error, "cannot speak TLS on these terms; clients that ask for them are refused");
                None
            }
        };
        let is = |it: &Contract| Arc::ptr_eq(&it.terms, terms) && it.protocol == protocol;
        self.contracts.find(is, make)
    }
}

/// The contracts of one port, by the name that a client asks for.
#[derive(Debug)]
pub(in crate::proxy) struct PortContracts {
    by_name: Routes<Arc<Contract>>,
    default: Option<Arc<Contract>>,
    asks_clients: bool,
}

impl PortContracts {
    pub(in crate::proxy) fn new(port: &PortTls, protocol: Protocol, made: &Made) -> Self {
        let contract = |(host, terms): (&HostPattern, &Arc<TlsTerms>)| {
            Some((Match { host: host.clone(), ..Match::all() }, made.contract(terms, protocol)?))
        };
        let asks = |terms: &Arc<TlsTerms>| terms.client_ca.is_some();
        Self {
            by_name: port.by_host.iter().filter_map(contract).collect(),
            default: made.contract(&port.default, protocol),
            asks_clients: port.by_host.values().any(asks) || asks(&port.default),
        }
    }

    /// The contract for clients that ask for `name`. Who asks for none, or for one that nobody has, gets the oldest.
    pub(in crate::proxy) fn find(&self, name: Option<&str>) -> Option<&Arc<Contract>> {
        self.by_name.find(name, "/").or(self.default.as_ref())
    }

    /// Whether a request for `host` may come on a connection whose client showed a certificate by `shown`. A client
    /// that asked for one name in the handshake must not reach what asks other certificates under another.
    pub(in crate::proxy) fn admits(&self, host: Option<&str>, shown: Option<&Arc<CaBundle>>) -> bool {
        !self.asks_clients || self.find(host).is_some_and(|contract| contract.client_ca() == shown)
    }
}

fn server_config(terms: &TlsTerms, protocol: Protocol) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions: &[_] = match terms.min_version {
        TlsVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V13 => &[&rustls::version::TLS13],
    };
    let certificates = Certificates::new(&terms.certificates, &provider)?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = with_clients(builder, terms.client_ca.as_deref(), provider)?;
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    if protocol == Protocol::Http {
        // Elsewhere it is between the client and the backend what they speak, and no name is refused.
        config.alpn_protocols = ALPN.map(Vec::from).into();
    }
    // Tickets resume on every worker and need no memory here. Each contract has keys of its own: a ticket of one
    // must not open another that asks for certificates.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(config)
}

fn with_clients(
    builder: ConfigBuilder<ServerConfig, WantsVerifier>,
    ca: Option<&CaBundle>,
    provider: Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, rustls::Error> {
    let Some(ca) = ca else { return Ok(builder.with_no_client_auth()) };
    let mut roots = RootCertStore::empty();
    for root in &ca.roots {
        roots.add(root.clone())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(builder.with_client_cert_verifier(verifier))
}

/// The certificates of one contract.
#[derive(Debug)]
struct Certificates(Vec<(Vec<Box<str>>, Arc<CertifiedKey>)>);

impl Certificates {
    fn new(certificates: &[Arc<Certificate>], provider: &CryptoProvider) -> Result<Self, rustls::Error> {
        let certified = |certificate: &Arc<Certificate>| {
            let chain: Vec<CertificateDer<'static>> = certificate.chain.clone();
            let mut key = CertifiedKey::from_der(chain, certificate.key.clone_key(), provider)?;
            key.ocsp = certificate.ocsp.clone();
            Ok((certificate.names.clone(), Arc::new(key)))
        };
        Ok(Self(certificates.iter().map(certified).collect::<Result<_, rustls::Error>>()?))
    }

    /// The certificate for `name` whose key `fits` the client; for want of the name the first one that fits, and for
    /// want of that the first.
    fn choose(&self, name: Option<&str>, fits: impl Fn(&CertifiedKey) -> bool) -> Option<&Arc<CertifiedKey>> {
        let named =
            |names: &[Box<str>]| name.is_some_and(|name| names.iter().any(|known| is_for(known, name)));
        let fitting = || self.0.iter().filter(|(_, key)| fits(key));
        let chosen = fitting().find(|(names, _)| named(names)).or_else(|| fitting().next());
        chosen.or_else(|| self.0.first()).map(|(_, key)| key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |key: &CertifiedKey| key.key.choose_scheme(hello.signature_schemes()).is_some();
        self.choose(hello.server_name(), fits).cloned()
    }
}

/// Whether a certificate's name is that of a host: the same, or `*.` for its first label (RFC 9525 section 6.3).
fn is_for(known: &str, host: &str) -> bool {
    match known.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => known.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_http_is_agreed_on_only_where_http_is_spoken() {
        let terms = TlsTerms { certificates: Vec::new(), min_version: TlsVersion::V12, client_ca: None };
        let (made, terms) = (Made::default(), Arc::new(terms));
        let contracts = [Protocol::Http, Protocol::Tcp].map(|it| made.contract(&terms, it).unwrap());
        let [http, tcp] = contracts.each_ref().map(|it| it.config().alpn_protocols.clone());
        assert_eq!(http, ALPN);
        assert!(tcp.is_empty());
        assert!(Arc::ptr_eq(&contracts[0], &made.contract(&terms, Protocol::Http).unwrap()));
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        assert!(is_for("*.example.com", "shop.example.com"));
        assert!(is_for("shop.example.com", "Shop.Example.com"));
        for other in ["example.com", "a.shop.example.com", "shop.example.org", ""] {
            assert!(!is_for("*.example.com", other), "{other}");
        }
    }
}
