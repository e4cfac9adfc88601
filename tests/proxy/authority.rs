//! Somebody who signs certificates.

use std::sync::Arc;

use guideway::balance::tls::{CaBundle, Certificate, Validity};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Nobody in these tests looks at what Guideway knows of it.
pub(crate) const ALWAYS: Validity = Validity { not_before: 0, not_after: u64::MAX };

/// Somebody who signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn sign(&self, names: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    pub(crate) fn certificate(&self, names: &[&str]) -> Arc<Certificate> {
        let (certificate, key) = self.sign(names);
        let names = names.iter().map(|name| (*name).into()).collect();
        Arc::new(Certificate { names, chain: vec![certificate], validity: ALWAYS, key, ocsp: None })
    }

    /// Itself, for whom to trust.
    pub(crate) fn bundle(&self) -> Arc<CaBundle> {
        Arc::new(CaBundle { roots: vec![self.root()] })
    }

    /// Trust in it alone.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root()).unwrap();
        Arc::new(roots)
    }
}
