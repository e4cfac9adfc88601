//! Owns what is known of the Secrets that pools name: the last good credentials of each and what is wrong with the
//! latest. A certificate that was good once stays in use until a better one comes, whatever becomes of its Secret.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use super::facts::Key;
use crate::balance::pool::Pool;
use crate::balance::tls::{CaBundle, Certificate, Validity};
use crate::source::credentials::{Checked, Fault, SecretCredentials};
use crate::source::tls::{Asked, Asker, Found, Lacking, Secured};
use crate::source::translate::Translated;

/// What a look at a Secret came to.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) key: Key,
    pub(super) found: Result<SecretCredentials, Miss>,
}

/// Why a look found nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    NotFound,
    /// We may not look; with the API server's words.
    Forbidden(Arc<str>),
    /// The API server could not answer; with what came in its place.
    Unreadable(Arc<str>),
}

/// The Secrets of one namespace.
#[derive(Debug, Default)]
pub(super) struct Keyring {
    secrets: HashMap<Arc<str>, Known>,
}

/// One Secret, for each of its uses.
#[derive(Debug, Default)]
struct Known {
    certificate: Slot<Arc<Certificate>>,
    authorities: Slot<Arc<CaBundle>>,
}

#[derive(Debug)]
struct Slot<T> {
    /// The last one that was good.
    good: Option<T>,
    /// What is wrong with the latest.
    trouble: Option<Trouble>,
}

/// What is wrong with the latest state of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody has looked yet.
    Unseen,
    Missed(Miss),
    Faulty(Vec<Fault>),
    /// Its certificate is shown without the OCSP response that lies beside it.
    Unstapled(Box<Fault>),
}

/// A Secret that a listener or backend names and that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SecretProblem {
    pub(super) asker: Asker,
    pub(super) secret: Arc<str>,
    pub(super) trouble: Trouble,
    /// It is in use all the same, or an earlier state of it.
    pub(super) kept: bool,
}

/// A certificate in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) asker: Asker,
    pub(super) secret: Arc<str>,
    pub(super) validity: Validity,
}

/// A pool with its terms of TLS.
#[derive(Debug)]
pub(super) struct Equipped {
    pub(super) pool: Arc<Pool>,
    pub(super) problems: Vec<SecretProblem>,
    pub(super) shown: Vec<Shown>,
}

impl Keyring {
    /// Takes in what a look came to.
    pub(super) fn take(&mut self, name: &Arc<str>, found: Result<SecretCredentials, Miss>) {
        let known = self.secrets.entry(name.clone()).or_default();
        let (certificate, authorities) = match found {
            Ok(SecretCredentials { certificate, authorities }) => {
                (certificate.map_err(Trouble::Faulty), authorities.map_err(Trouble::Faulty))
            }
            Err(miss) => (Err(Trouble::Missed(miss.clone())), Err(Trouble::Missed(miss))),
        };
        let with_remark =
            |it: Checked| (it.certificate, it.unstapled.map(|fault| Trouble::Unstapled(Box::new(fault))));
        known.certificate.take(certificate.map(with_remark));
        known.authorities.take(authorities.map(|it| (it, None)));
    }

    /// Forgets the Secrets that are not among `named`.
    pub(super) fn retain(&mut self, named: &BTreeSet<&Arc<str>>) {
        self.secrets.retain(|name, _| named.contains(name));
    }

    /// The pool with its terms of TLS, as far as there are credentials for them. `before` is the pool as it was, whose
    /// terms are used again where they are equal.
    pub(super) fn equip(&self, spec: &Translated, before: Option<&Arc<Pool>>) -> Equipped {
        let (mut problems, mut shown) = (Vec::new(), Vec::new());
        let find = |secured: &Secured| self.find(secured, &mut problems, &mut shown);
        let pool = spec.equipped(before, Lacking::Unserved, find);
        Equipped { pool, problems, shown }
    }

    /// What is known of what is asked for. Files are refused in a cluster.
    fn find(&self, secured: &Secured, problems: &mut Vec<SecretProblem>, shown: &mut Vec<Shown>) -> Found {
        let mut found = Found::default();
        for secret in secured.certificates.iter().filter_map(Asked::secret) {
            let slot = self.secrets.get(secret).map_or(&Slot::UNSEEN, |known| &known.certificate);
            problems.extend(slot.problem(&secured.asker, secret));
            if let Some(good) = &slot.good {
                let (asker, secret) = (secured.asker.clone(), secret.clone());
                shown.push(Shown { asker, secret, validity: good.validity });
                found.certificates.push(good.clone());
            }
        }
        if let Some(secret) = secured.authorities.as_ref().and_then(Asked::secret) {
            let slot = self.secrets.get(secret).map_or(&Slot::UNSEEN, |known| &known.authorities);
            problems.extend(slot.problem(&secured.asker, secret));
            found.authorities.clone_from(&slot.good);
        }
        found
    }
}

impl<T> Slot<T> {
    const UNSEEN: Self = Self { good: None, trouble: Some(Trouble::Unseen) };

    fn take(&mut self, latest: Result<(T, Option<Trouble>), Trouble>) {
        match latest {
            Ok((good, trouble)) => *self = Self { good: Some(good), trouble },
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    fn problem(&self, asker: &Asker, secret: &Arc<str>) -> Option<SecretProblem> {
        let (trouble, kept) = (self.trouble.clone()?, self.good.is_some());
        Some(SecretProblem { asker: asker.clone(), secret: secret.clone(), trouble, kept })
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self::UNSEEN
    }
}

impl SecretProblem {
    pub(super) fn is_pending(&self) -> bool {
        self.trouble == Trouble::Unseen
    }
}

impl fmt::Display for SecretProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asker, secret, trouble, kept } = self;
        write!(f, "{asker}: ")?;
        match trouble {
            Trouble::Unseen => write!(f, "Secret {secret} is being read")?,
            Trouble::Missed(Miss::NotFound) => {
                write!(f, "there is no Secret {secret} in this namespace; create it or correct the name")?;
            }
            Trouble::Missed(Miss::Forbidden(words)) => {
                write!(
                    f,
                    "Guideway may not read Secret {secret}: {words}; let its ServiceAccount get secrets here"
                )?;
            }
            Trouble::Missed(Miss::Unreadable(words)) => {
                write!(f, "Secret {secret} cannot be read: {words}; Guideway goes on trying")?;
            }
            Trouble::Faulty(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                write!(f, "Secret {secret} cannot be used: {}", faults.join(", and "))?;
            }
            Trouble::Unstapled(fault) => {
                return write!(
                    f,
                    "the certificate of Secret {secret} is shown without its OCSP response: {fault}"
                );
            }
        }
        if *kept { f.write_str(" (the last good state of it is in use)") } else { Ok(()) }
    }
}
