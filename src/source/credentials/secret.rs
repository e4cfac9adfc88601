//! Owns what a Secret may hold for a listener or backend: the keys by which certificates and authorities stand in it,
//! as other products have them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::ByteString;

use super::{Checked, Fault, Part, Reason, authorities, certificate};
use crate::balance::tls::CaBundle;

impl Part {
    /// The key of a Secret under which the part stands. Those of `kubernetes.io/tls` are the type's, `ca.crt` is what
    /// cert-manager writes.
    pub fn secret_key(self) -> &'static str {
        match self {
            Self::Chain => "tls.crt",
            Self::Key => "tls.key",
            Self::Ocsp => "tls.ocsp-staple",
            Self::Authorities => "ca.crt",
        }
    }
}

/// What a Secret holds, or what is wrong with it, for each use that can be made of it.
#[derive(Clone, PartialEq)]
pub struct SecretCredentials {
    /// To show to others.
    pub certificate: Result<Checked, Vec<Fault>>,
    /// To know others by.
    pub authorities: Result<Arc<CaBundle>, Vec<Fault>>,
}

impl SecretCredentials {
    /// Reads the `data` of a Secret.
    pub fn read(data: &BTreeMap<String, ByteString>) -> Self {
        let find = |part: Part| data.get(part.secret_key()).map(|it| &*it.0);
        let missing = |part| Fault { part, reason: Reason::Missing };
        let certificate = match (find(Part::Chain), find(Part::Key)) {
            (Some(chain), Some(key)) => certificate(chain, key, find(Part::Ocsp)),
            (chain, key) => {
                let absent = [(Part::Chain, chain), (Part::Key, key)];
                Err(absent
                    .into_iter()
                    .filter(|(_, it)| it.is_none())
                    .map(|(part, _)| missing(part))
                    .collect())
            }
        };
        let authorities = match find(Part::Authorities) {
            Some(pem) => authorities(pem).map(Arc::new),
            None => Err(vec![missing(Part::Authorities)]),
        };
        Self { certificate, authorities }
    }
}

impl fmt::Debug for SecretCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (certificate, authorities) = (self.certificate.is_ok(), self.authorities.is_ok());
        f.debug_struct("SecretCredentials")
            .field("certificate", &certificate)
            .field("authorities", &authorities)
            .finish()
    }
}
