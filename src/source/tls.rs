//! Owns what listeners ask of TLS: where their certificates and authorities come from, and how a pool is equipped with
//! the terms once these are there. Until then no listener that asks for TLS may be served.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::translate::{FieldError, Translated};
use crate::balance::pool::{Listener, Pool};
use crate::balance::tls::{CaBundle, Certificate, TlsTerms, TlsVersion};
use crate::crd::pool::{self as wire, Protocol};
use crate::crd::tls::{CertificateFiles, ListenerTls, MinVersion};

/// What one listener asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secured {
    /// Which one of the pool's, from 0 in the order written.
    pub listener: usize,
    /// Secrets with a certificate each. Never empty where `files` is.
    pub secrets: Vec<Arc<str>>,
    /// Certificates in files, behind those of `secrets`.
    pub files: Vec<CertificateFiles>,
    /// Older versions are refused.
    pub min_version: TlsVersion,
    /// Where the authorities are that sign clients' certificates.
    pub client_ca: Option<ClientCaSource>,
}

/// Where authorities come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientCaSource {
    /// A Secret of this name.
    Secret(Arc<str>),
    /// A file.
    File(Arc<str>),
}

impl Secured {
    /// What `listener` asks for, if anything; with its mistakes added to `errors`.
    pub(super) fn of(index: usize, listener: &wire::Listener, errors: &mut Vec<FieldError>) -> Option<Self> {
        let path = format!("spec.listeners[{index}].tls");
        let mut add = |path: String, reason: &str| errors.push(FieldError::new(path, reason));
        let tls = match (listener.protocol, &listener.tls) {
            (Protocol::HTTPS, Some(tls)) => tls,
            (Protocol::HTTPS, None) => {
                add(path, "is missing; name a Secret with the certificate in tls.secretRefs");
                return None;
            }
            (Protocol::HTTP, Some(_)) => {
                add(path, "is for HTTPS; set protocol to HTTPS, or leave tls out");
                return None;
            }
            (Protocol::HTTP, None) => return None,
        };
        if tls.secret_refs.is_empty() && tls.certificate_files.is_empty() {
            add(format!("{path}.secretRefs"), "is missing; name at least one Secret with a certificate");
        }
        if tls.client_ca.is_some() && tls.client_ca_file.is_some() {
            add(format!("{path}.clientCAFile"), "stands beside clientCA; put both bundles into one");
        }
        Some(Self::from_wire(index, tls))
    }

    fn from_wire(listener: usize, tls: &ListenerTls) -> Self {
        let secret = tls.client_ca.as_ref().map(|it| ClientCaSource::Secret(it.name.as_str().into()));
        let file = || tls.client_ca_file.as_ref().map(|it| ClientCaSource::File(it.as_str().into()));
        Self {
            listener,
            secrets: tls.secret_refs.iter().map(|it| it.name.as_str().into()).collect(),
            files: tls.certificate_files.clone(),
            min_version: match tls.min_version {
                MinVersion::TLS12 => TlsVersion::V12,
                MinVersion::TLS13 => TlsVersion::V13,
            },
            client_ca: secret.or_else(file),
        }
    }

    /// The path of what it asks for.
    pub fn path(&self) -> String {
        format!("spec.listeners[{}].tls", self.listener)
    }

    /// Every Secret it names.
    pub fn secret_names(&self) -> impl Iterator<Item = &Arc<str>> {
        let client_ca = self.client_ca.as_ref().and_then(|source| match source {
            ClientCaSource::Secret(name) => Some(name),
            ClientCaSource::File(_) => None,
        });
        self.secrets.iter().chain(client_ca)
    }

    /// The terms that come of what was found for it. None without a certificate, or without the authorities where it
    /// asks for some: a listener that lets strangers in is worse than one that is not there.
    pub fn terms(
        &self,
        certificates: Vec<Arc<Certificate>>,
        client_ca: Option<Arc<CaBundle>>,
    ) -> Option<TlsTerms> {
        let is_whole = !certificates.is_empty() && client_ca.is_some() == self.client_ca.is_some();
        is_whole.then_some(TlsTerms { certificates, min_version: self.min_version, client_ca })
    }
}

impl Translated {
    /// The pool with the terms of each of its listeners, without those that ask for some and have none. Terms that
    /// `before` has are used again: a swap of equal ones would cost clients their sessions.
    pub fn equipped(
        &self,
        before: Option<&Arc<Pool>>,
        mut terms: impl FnMut(&Secured) -> Option<TlsTerms>,
    ) -> Arc<Pool> {
        if self.secured.is_empty() {
            return self.pool.clone();
        }
        let known = || before.iter().flat_map(|pool| &pool.listeners).filter_map(|it| it.tls.as_ref());
        let shared = |terms: TlsTerms| match known().find(|it| ***it == terms) {
            Some(known) => known.clone(),
            None => Arc::new(terms),
        };
        let mut secured: BTreeMap<usize, Option<TlsTerms>> =
            self.secured.iter().map(|it| (it.listener, terms(it))).collect();
        let listener = |(index, listener): (usize, &Listener)| match secured.remove(&index) {
            None => Some(listener.clone()),
            Some(terms) => Some(Listener { tls: Some(shared(terms?)), ..listener.clone() }),
        };
        let listeners = self.pool.listeners.iter().enumerate().filter_map(listener).collect();
        let equipped = Pool { listeners, ..Pool::clone(&self.pool) };
        match before {
            Some(before) if **before == equipped => before.clone(),
            _ => Arc::new(equipped),
        }
    }
}
