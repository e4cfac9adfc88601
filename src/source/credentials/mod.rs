//! Owns the way from PEM to what Guideway shows and trusts: a certificate is served only with the key that belongs to
//! it. No message repeats a byte of its input, for it may be a key.

pub(crate) mod ocsp;
mod secret;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::balance::tls::{CaBundle, Certificate, Validity};

pub use secret::SecretCredentials;

/// Longest chain. Public ones have up to 4 certificates, and every handshake carries all of them.
const CHAIN_MAX: usize = 16;
/// Most authorities in one bundle, a few times the number that browsers trust. A listener sends the names
/// of all of them in every handshake.
const AUTHORITIES_MAX: usize = 512;

/// What is wrong with a part of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which part.
    pub part: Part,
    /// What, and what to do about it.
    pub reason: Reason,
}

/// The parts that credentials are given in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The certificate and those that lead to its root.
    Chain,
    /// The private key.
    Key,
    /// The OCSP response.
    Ocsp,
    /// Certificates of authorities.
    Authorities,
}

/// What can be wrong, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Not there.
    #[error("is missing; add it")]
    Missing,
    /// There, with nothing in it.
    #[error("is empty; put its content in")]
    Empty,
    /// Not even an envelope.
    #[error("holds no certificate in PEM; it begins with -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// An envelope that is broken.
    #[error("is damaged PEM; copy it anew, with every BEGIN and END line")]
    DamagedPem,
    /// An envelope of something else.
    #[error("certificate {number} of it cannot be used: {error}; have it issued anew")]
    BadCertificate {
        /// From 1, in the order written.
        number: usize,
        /// What the library says.
        error: webpki::Error,
    },
    /// More than anybody needs.
    #[error("holds {count} certificates; write at most {most}")]
    TooManyCertificates {
        /// Found.
        count: usize,
        /// Allowed.
        most: usize,
    },
    /// Nothing that is a key.
    #[error("holds no private key in PEM; it begins with -----BEGIN PRIVATE KEY-----")]
    NoKey,
    /// A key under a passphrase.
    #[error("is encrypted, and nobody is there to be asked for the passphrase; decrypt it (openssl pkey)")]
    EncryptedKey,
    /// A key of a kind that cannot sign here.
    #[error("cannot be used; make an ECDSA P-256 or P-384, Ed25519 or RSA key of 2048 to 8192 bits")]
    UnsupportedKey,
    /// A key of another certificate.
    #[error("does not belong to the certificate; replace both together")]
    ForeignKey,
    /// The key of a certificate further down.
    #[error("begins with another certificate than the key's, which is number {number}; put that one first")]
    ChainOrder {
        /// From 1, in the order written.
        number: usize,
    },
    /// Nothing that is a response.
    #[error("is no OCSP response in DER; fetch it anew, or leave it out")]
    NoOcspResponse,
    /// A response on another certificate.
    #[error(
        "is an OCSP response on another certificate, or by another issuer; fetch it anew, or leave it out"
    )]
    ForeignOcsp,
    /// A response that says nothing about the certificate.
    #[error("is an OCSP response of status {status}, which is a refusal; fetch it anew, or leave it out")]
    OcspRefusal {
        /// RFC 6960 section 4.2.1.
        status: u8,
    },
    /// A file that cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(Arc<str>),
}

/// A certificate that may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The certificate.
    pub certificate: Arc<Certificate>,
    /// Why it is shown without the issuer's word that lay beside it. Clients ask for themselves then, or do without.
    pub unstapled: Option<Fault>,
}

/// A certificate with its key, from PEM, and the issuer's word on it, from DER; or all that is wrong with the first two.
pub fn certificate(chain: &[u8], key: &[u8], ocsp: Option<&[u8]>) -> Result<Checked, Vec<Fault>> {
    let mut faults = Vec::new();
    let chain = told(Part::Chain, read_chain(chain), &mut faults);
    let key = told(Part::Key, read_key(key), &mut faults);
    let (Some(chain), Some(key)) = (chain, key) else { return Err(faults) };
    let ocsp = ocsp.map(|der| ocsp::response(der, &chain)).transpose();
    let ocsp = told(Part::Ocsp, ocsp, &mut faults).flatten();
    Ok(Checked { certificate: together(chain, key, ocsp)?, unstapled: faults.pop() })
}

/// The authorities in `pem`, at least one.
pub fn authorities(pem: &[u8]) -> Result<CaBundle, Vec<Fault>> {
    let roots = certificates(pem, AUTHORITIES_MAX, |_, der| anchor_from_trusted_cert(der).map(drop));
    roots.map(|roots| CaBundle { roots }).map_err(|reason| vec![Fault { part: Part::Authorities, reason }])
}

fn told<T>(part: Part, result: Result<T, Reason>, faults: &mut Vec<Fault>) -> Option<T> {
    result.map_err(|reason| faults.push(Fault { part, reason })).ok()
}

/// Of the certificates behind the first it is enough that they are some: clients read old ones that we would not.
fn read_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Reason> {
    certificates(pem, CHAIN_MAX, |number, der| match number {
        1 => EndEntityCert::try_from(der).map(drop),
        _ => anchor_from_trusted_cert(der).map(drop),
    })
}

/// All certificates in `pem`, if `check` finds nothing wrong with any.
fn certificates(
    pem: &[u8],
    most: usize,
    check: impl Fn(usize, &CertificateDer<'static>) -> Result<(), webpki::Error>,
) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|_| Reason::DamagedPem)?;
    match all.len() {
        0 if pem.is_empty() => return Err(Reason::Empty),
        0 => return Err(Reason::NoCertificate),
        count if count > most => return Err(Reason::TooManyCertificates { count, most }),
        _ => {}
    }
    for (number, der) in (1..).zip(&all) {
        check(number, der).map_err(|error| Reason::BadCertificate { number, error })?;
    }
    Ok(all)
}

fn read_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, Reason> {
    // In both of the forms that exist.
    let is_encrypted = pem.windows(b"ENCRYPTED".len()).any(|word| word == b"ENCRYPTED");
    match PrivateKeyDer::pem_slice_iter(pem).next() {
        Some(Ok(key)) => Ok(key),
        _ if is_encrypted => Err(Reason::EncryptedKey),
        Some(Err(_)) => Err(Reason::DamagedPem),
        None if pem.is_empty() => Err(Reason::Empty),
        None => Err(Reason::NoKey),
    }
}

/// The parts as one, if the key is that of the first certificate.
fn together(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ocsp: Option<Vec<u8>>,
) -> Result<Arc<Certificate>, Vec<Fault>> {
    let fault = |part, reason| vec![Fault { part, reason }];
    let public = any_supported_type(&key).ok().and_then(|it| it.public_key().map(|it| it.into_owned()));
    let public = public.ok_or_else(|| fault(Part::Key, Reason::UnsupportedKey))?;
    let has_key = |der| EndEntityCert::try_from(der).is_ok_and(|it| it.subject_public_key_info() == public);
    match chain.iter().position(has_key) {
        Some(0) => {}
        Some(index) => return Err(fault(Part::Chain, Reason::ChainOrder { number: index + 1 })),
        None => return Err(fault(Part::Key, Reason::ForeignKey)),
    }
    let unusable = |error| fault(Part::Chain, Reason::BadCertificate { number: 1, error });
    let (names, validity) = {
        let leaf = EndEntityCert::try_from(&chain[0]).map_err(unusable)?;
        let names = leaf.valid_dns_names().map(|name| name.to_ascii_lowercase().into_boxed_str()).collect();
        (names, Validity::of(&leaf).map_err(unusable)?)
    };
    Ok(Arc::new(Certificate { names, chain, validity, key, ocsp }))
}

impl Validity {
    /// The library keeps the dates to itself, but says at the end of time when the certificate expired, and at its
    /// beginning when it will be valid.
    fn of(leaf: &EndEntityCert<'_>) -> Result<Self, webpki::Error> {
        let told_at = |seconds| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            leaf.verify_for_usage(&[], &[], &[], time, KeyUsage::server_auth(), None, None).err()
        };
        let not_after = match told_at(u64::MAX) {
            Some(webpki::Error::CertExpired { not_after, .. }) => not_after.as_secs(),
            Some(error) => return Err(error),
            None => u64::MAX,
        };
        let not_before = match told_at(0) {
            Some(webpki::Error::CertNotValidYet { not_before, .. }) => not_before.as_secs(),
            _ => 0,
        };
        Ok(Self { not_before, not_after })
    }

    /// What others will say of the certificate at `now`, in seconds since the UNIX epoch, if they will not take it.
    pub fn remark(self, now: u64) -> Option<String> {
        match now {
            _ if now > self.not_after => Some(format!("expired at {}; renew it", date(self.not_after))),
            _ if now < self.not_before => {
                Some(format!("is not valid before {}; check the clocks", date(self.not_before)))
            }
            _ => None,
        }
    }
}

fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|it| Timestamp::from_second(it).ok());
    time.unwrap_or(Timestamp::MAX).to_string()
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part.secret_key(), self.reason)
    }
}
