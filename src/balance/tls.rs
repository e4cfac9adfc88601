//! Owns the terms on which TLS is spoken, as bytes that were checked: nothing here parses, signs or trusts, so
//! a snapshot can carry and compare them.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// What a port shows its clients and asks of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsTerms {
    /// In the order written, never empty. The first one answers where none has the name that a client asks for.
    pub certificates: Vec<Arc<Certificate>>,
    /// Older versions are refused.
    pub min_version: TlsVersion,
    /// Who must have signed a client's certificate; clients need none where this is absent.
    pub client_ca: Option<Arc<CaBundle>>,
}

impl TlsTerms {
    /// Whether both ask the same of clients, whatever they show them.
    pub fn asks_like(&self, other: &Self) -> bool {
        self.min_version == other.min_version && self.client_ca == other.client_ca
    }
}

/// The versions of TLS that are spoken at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246), with forward secrecy and authenticated encryption only.
    #[default]
    V12,
    /// TLS 1.3 (RFC 8446).
    V13,
}

/// A certificate and its key, which belong together.
#[derive(PartialEq, Eq)]
pub struct Certificate {
    /// The DNS names it is for, in lower case; `*.` in front of one stands for a single label. Empty where it names
    /// addresses only.
    pub names: Vec<Box<str>>,
    /// The certificate itself, then those that lead to its root.
    pub chain: Vec<CertificateDer<'static>>,
    /// When the first one is valid.
    pub validity: Validity,
    /// The private key of the first one.
    pub key: PrivateKeyDer<'static>,
    /// The issuer's word that it is not revoked (RFC 6960), to be shown along with it.
    pub ocsp: Option<Vec<u8>>,
}

impl fmt::Debug for Certificate {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

/// When a certificate is valid, in seconds since the UNIX epoch, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: u64,
    /// Last second.
    pub not_after: u64,
}

/// How connections to backends are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// The name that backends are asked for, and that their certificates must be for.
    pub server_name: ServerName<'static>,
    /// Who must have signed them.
    pub ca: Arc<CaBundle>,
    /// What to show backends that ask for a certificate.
    pub identity: Option<Arc<Certificate>>,
}

/// Certificates of which one must have signed what somebody shows. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaBundle {
    /// Each as a whole certificate.
    pub roots: Vec<CertificateDer<'static>>,
}
