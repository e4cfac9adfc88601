//! Owns what listeners and backends ask of TLS: where their certificates and authorities come from, and how a pool is
//! equipped with the terms once these are there. Until then neither is served, because that would be in the clear.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::metadata;
use super::translate::{FieldError, Translated};
use crate::balance::pool::{Group, Listener, Pool};
use crate::balance::tls::{BackendTls, CaBundle, Certificate, TlsTerms, TlsVersion};
use crate::crd::pool::{self as wire, LoadBalancerPoolSpec, Protocol};
use crate::crd::tls::{self as wire_tls, CertificateFiles, ListenerTls, MinVersion, SecretRef};

/// What one listener or backend asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secured {
    /// Who asks.
    pub asker: Asker,
    /// Certificates to show, in the order of their rank. A backend has one at most.
    pub certificates: Vec<Asked<CertificateFiles>>,
    /// By whom to know the other side.
    pub authorities: Option<Asked<Arc<str>>>,
}

/// A listener or backend of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Name within the pool.
    pub name: Arc<str>,
    /// Which of the two, and what else its terms have.
    pub side: Side,
}

/// The two sides of the proxy on which TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// With clients.
    Listener {
        /// Older versions are refused.
        min_version: TlsVersion,
    },
    /// With endpoints.
    Backend {
        /// Who they must be.
        server_name: ServerName<'static>,
    },
}

/// A credential that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<F> {
    /// The field that asks.
    pub field: String,
    /// Where it comes from.
    pub source: Source<F>,
}

/// Where a credential comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source<F> {
    /// A Secret of this name.
    Secret(Arc<str>),
    /// Files.
    Files(F),
}

/// What was found of what is asked for.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order asked for.
    pub certificates: Vec<Arc<Certificate>>,
    /// Where some are asked for.
    pub authorities: Option<Arc<CaBundle>>,
}

/// What becomes of listeners and backends that lack what they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// They are not served.
    Unserved,
    /// They stay, because nobody serves a pool that is only looked at.
    LookedAt,
}

impl Secured {
    /// What the listeners and backends of a spec ask for, with their mistakes added to `errors`.
    pub(super) fn of(spec: &LoadBalancerPoolSpec, errors: &mut Vec<FieldError>) -> Vec<Self> {
        let mut all = Vec::new();
        for (index, listener) in spec.listeners.iter().enumerate() {
            all.extend(Self::listener(index, listener, errors));
        }
        for (index, backend) in spec.backends.iter().enumerate() {
            all.extend(Self::backend(index, backend, errors));
        }
        errors.extend(all.iter().flat_map(Self::unnameable));
        all
    }

    fn listener(index: usize, listener: &wire::Listener, errors: &mut Vec<FieldError>) -> Option<Self> {
        let path = format!("spec.listeners[{index}].tls");
        let mut add = |path: String, reason: &str| errors.push(FieldError::new(path, reason));
        let tls = match (listener.protocol, &listener.tls) {
            (Protocol::HTTPS | Protocol::TLS, Some(tls)) => tls,
            (Protocol::HTTPS | Protocol::TLS, None) => {
                add(path, "is missing; name a Secret with the certificate in tls.secretRefs");
                return None;
            }
            (Protocol::HTTP | Protocol::TCP | Protocol::UDP, Some(_)) => {
                add(path, "is for HTTPS and TLS; set protocol to one of them, or leave tls out");
                return None;
            }
            (Protocol::HTTP | Protocol::TCP | Protocol::UDP, None) => return None,
        };
        if tls.secret_refs.is_empty() && tls.certificate_files.is_empty() {
            add(format!("{path}.secretRefs"), "is missing; name at least one Secret with a certificate");
        }
        if tls.client_ca.is_some() && tls.client_ca_file.is_some() {
            add(format!("{path}.clientCAFile"), "stands beside clientCA; put both bundles into one");
        }
        Some(Self::of_listener(&path, &listener.name, tls))
    }

    fn of_listener(path: &str, name: &str, tls: &ListenerTls) -> Self {
        let secrets = (0..).zip(&tls.secret_refs);
        let secrets = secrets.map(|(at, it)| Asked::in_secret(format!("{path}.secretRefs[{at}]"), it));
        let files = (0..).zip(&tls.certificate_files);
        let files =
            files.map(|(at, it)| Asked::in_files(format!("{path}.certificateFiles[{at}]"), it.clone()));
        let min_version = match tls.min_version {
            MinVersion::TLS12 => TlsVersion::V12,
            MinVersion::TLS13 => TlsVersion::V13,
        };
        let client_ca = tls.client_ca.as_ref().map(|it| Asked::in_secret(format!("{path}.clientCA"), it));
        let client_ca_file = tls.client_ca_file.as_deref();
        let client_ca_file =
            client_ca_file.map(|it| Asked::in_files(format!("{path}.clientCAFile"), it.into()));
        Self {
            asker: Asker { name: name.into(), side: Side::Listener { min_version } },
            certificates: secrets.chain(files).collect(),
            authorities: client_ca.or(client_ca_file),
        }
    }

    fn backend(index: usize, backend: &wire::Backend, errors: &mut Vec<FieldError>) -> Option<Self> {
        let tls = backend.tls.as_ref()?;
        let path = format!("spec.backends[{index}].tls");
        let mut add = |path: String, reason: &str| errors.push(FieldError::new(path, reason));
        match (&tls.ca, &tls.ca_file) {
            (None, None) => add(
                format!("{path}.ca"),
                "is missing; name a Secret with the authorities that sign the endpoints' certificates",
            ),
            (Some(_), Some(_)) => {
                add(format!("{path}.caFile"), "stands beside ca; put both bundles into one");
            }
            _ => {}
        }
        if tls.client_certificate.is_some() && tls.client_certificate_file.is_some() {
            add(
                format!("{path}.clientCertificateFile"),
                "stands beside clientCertificate; leave one of them out",
            );
        }
        let server_name = ServerName::try_from(tls.server_name.clone());
        let Some(server_name @ ServerName::DnsName(_)) = server_name.ok() else {
            let reason = format!("`{}` is no DNS name; write one such as web.shop.svc", tls.server_name);
            add(format!("{path}.serverName"), &reason);
            return None;
        };
        Some(Self::of_backend(&path, &backend.name, server_name, tls))
    }

    fn of_backend(
        path: &str,
        name: &str,
        server_name: ServerName<'static>,
        tls: &wire_tls::BackendTls,
    ) -> Self {
        let shown = tls.client_certificate.as_ref();
        let shown = shown.map(|it| Asked::in_secret(format!("{path}.clientCertificate"), it));
        let shown_files = tls.client_certificate_file.as_ref().map(|it| {
            let (certificate, key) = (it.certificate.clone(), it.key.clone());
            let files = CertificateFiles { certificate, key, ocsp: None };
            Asked::in_files(format!("{path}.clientCertificateFile"), files)
        });
        let ca = tls.ca.as_ref().map(|it| Asked::in_secret(format!("{path}.ca"), it));
        let ca_file = tls.ca_file.as_deref().map(|it| Asked::in_files(format!("{path}.caFile"), it.into()));
        Self {
            asker: Asker { name: name.into(), side: Side::Backend { server_name } },
            certificates: shown.or(shown_files).into_iter().collect(),
            authorities: ca.or(ca_file),
        }
    }

    /// Secrets that nobody can have made. Names become parts of the paths by which Secrets are asked for.
    fn unnameable(&self) -> impl Iterator<Item = FieldError> {
        let certificates = self.certificates.iter().map(|it| (&it.field, it.secret()));
        let authorities = self.authorities.iter().map(|it| (&it.field, it.secret()));
        certificates.chain(authorities).filter_map(|(field, secret)| {
            let name = secret.filter(|name| !metadata::is_dns_name(name))?;
            let reason =
                format!("`{name}` is no name of a Secret; use a-z, 0-9 and, not at its ends, - and .");
            Some(FieldError::new(format!("{field}.name"), reason))
        })
    }

    /// Every Secret it names.
    pub fn secret_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let certificates = self.certificates.iter().filter_map(Asked::secret);
        certificates.chain(self.authorities.iter().filter_map(Asked::secret))
    }
}

impl<F> Asked<F> {
    fn in_secret(field: String, secret: &SecretRef) -> Self {
        Self { field, source: Source::Secret(secret.name.as_str().into()) }
    }

    fn in_files(field: String, files: F) -> Self {
        Self { field, source: Source::Files(files) }
    }

    /// The files, where it asks for some.
    pub(super) fn files(&self) -> Option<&F> {
        match &self.source {
            Source::Secret(_) => None,
            Source::Files(files) => Some(files),
        }
    }

    /// The Secret, where it asks for one.
    pub(super) fn secret(&self) -> Option<&Arc<str>> {
        match &self.source {
            Source::Secret(name) => Some(name),
            Source::Files(_) => None,
        }
    }
}

impl Asker {
    /// Whether `pool`, once equipped, serves it.
    pub fn is_served(&self, pool: &Pool) -> bool {
        match self.side {
            Side::Listener { .. } => pool.listeners.iter().any(|it| it.name == self.name),
            Side::Backend { .. } => pool.groups.iter().any(|it| it.name == self.name && it.tls.is_some()),
        }
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Side::Listener { .. } => write!(f, "listener {}", self.name),
            Side::Backend { .. } => write!(f, "backend {}", self.name),
        }
    }
}

impl Translated {
    /// The pool with the terms of TLS that come of what `find` finds. A listener that lacks something is left out; a
    /// backend that does keeps its seats and takes no requests. Terms that `before` has are used again: a swap of equal
    /// ones would cost clients their sessions and endpoints their connections.
    pub fn equipped(
        &self,
        before: Option<&Arc<Pool>>,
        lacking: Lacking,
        mut find: impl FnMut(&Secured) -> Found,
    ) -> Arc<Pool> {
        if self.secured.is_empty() {
            return self.pool.clone();
        }
        let mut pool = Pool::clone(&self.pool);
        for secured in &self.secured {
            let found = find(secured);
            match &secured.asker.side {
                Side::Listener { min_version } => {
                    let known = before.iter().flat_map(|it| &it.listeners).filter_map(|it| it.tls.as_ref());
                    let terms = secured.listener_terms(*min_version, found, lacking);
                    secured.asker.equip_listener(&mut pool.listeners, terms.map(|it| reused(it, known)));
                }
                Side::Backend { server_name } => {
                    let known = before.iter().flat_map(|it| &it.groups).filter_map(|it| it.tls.as_ref());
                    let terms = secured.backend_terms(server_name, found);
                    secured.asker.equip_group(&mut pool.groups, terms.map(|it| reused(it, known)), lacking);
                }
            }
        }
        match before {
            Some(before) if **before == pool => before.clone(),
            _ => Arc::new(pool),
        }
    }
}

impl Secured {
    /// None without a certificate, or without the authorities where it asks for some: a listener that lets strangers
    /// in is worse than one that is not there.
    fn listener_terms(&self, min_version: TlsVersion, found: Found, lacking: Lacking) -> Option<TlsTerms> {
        let is_whole =
            !found.certificates.is_empty() && found.authorities.is_some() == self.authorities.is_some();
        let Found { certificates, authorities: client_ca } = found;
        let terms = TlsTerms { certificates, min_version, client_ca };
        (is_whole || lacking == Lacking::LookedAt).then_some(terms)
    }

    /// None where anything is lacking: an endpoint would be a stranger to us, or we to it.
    fn backend_terms(&self, server_name: &ServerName<'static>, mut found: Found) -> Option<BackendTls> {
        let is_whole = found.certificates.len() == self.certificates.len();
        let (server_name, ca) = (server_name.clone(), found.authorities?);
        is_whole.then(|| BackendTls { server_name, ca, identity: found.certificates.pop() })
    }
}

impl Asker {
    fn equip_listener(&self, listeners: &mut Vec<Listener>, terms: Option<Arc<TlsTerms>>) {
        match terms {
            None => listeners.retain(|it| it.name != self.name),
            terms => {
                let own = listeners.iter_mut().filter(|it| it.name == self.name);
                own.for_each(|it| it.tls.clone_from(&terms));
            }
        }
    }

    fn equip_group(&self, groups: &mut [Group], terms: Option<Arc<BackendTls>>, lacking: Lacking) {
        for group in groups.iter_mut().filter(|it| it.name == self.name) {
            if terms.is_none() && lacking == Lacking::Unserved {
                group.weight = 0;
            }
            group.tls.clone_from(&terms);
        }
    }
}

/// `fresh`, or what is `known` already and equal to it.
fn reused<'a, T: PartialEq + 'a>(fresh: T, mut known: impl Iterator<Item = &'a Arc<T>>) -> Arc<T> {
    known.find(|it| ***it == fresh).cloned().unwrap_or_else(|| Arc::new(fresh))
}
