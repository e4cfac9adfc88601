//! Owns what we know of one namespace: its Services, slices, pods and Secrets, and when each last changed.
//! A pool only ever refers to its own namespace, so everything it is joined with stands here together.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::PoolEntry;
use super::facts::{Endpoint, Key, Keyed, Pod, Service, Slice};
use super::keyring::Keyring;
use super::watch::Kind;

/// How long the UID of a deleted pod is remembered at least. A slice that still names it tells old news, however
/// late it comes; slices follow their pods within seconds, a minute leaves room for a controller under load.
const GONE_FOR: Duration = Duration::from_secs(60);

/// Facts, and when they last changed.
#[derive(Clone, Debug)]
pub(super) struct Seen<T> {
    pub(super) facts: T,
    pub(super) at: Instant,
    /// When each endpoint of a slice last changed; empty for other kinds.
    pub(super) endpoints_at: Vec<Instant>,
}

/// Objects of one kind by name.
pub(super) type Shelf<T> = HashMap<Arc<str>, Seen<T>>;

/// Everything but the pools.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    pub(super) services: Shelf<Service>,
    pub(super) slices: Shelf<Slice>,
    pub(super) pods: Shelf<Pod>,
    pub(super) keyring: Keyring,
    /// UIDs of deleted pods that a slice may still name.
    gone: HashMap<Arc<str>, Instant>,
}

impl Namespace {
    /// Puts an object in the place of an earlier one. `None` when nothing changed, else what was there before.
    pub(super) fn put<T: Object>(&mut self, object: T, at: Instant) -> Option<Option<T>> {
        let before = T::find(self, &object.key().name);
        if before.is_some_and(|before| before.facts == object) {
            return None;
        }
        let endpoints_at = object.endpoints_at(before, at);
        object.came(self);
        let name = object.key().name.clone();
        let before = T::shelf(self).remove(&name).map(|before| before.facts);
        if let Some(before) = before.as_ref().filter(|before| before.is_another(&object)) {
            before.left(self, at);
        }
        T::shelf(self).insert(name, Seen { facts: object, at, endpoints_at });
        Some(before)
    }

    /// Takes an object out that was deleted for certain.
    pub(super) fn delete<T: Object>(&mut self, name: &str, at: Instant) -> Option<T> {
        let seen = T::shelf(self).remove(name)?;
        seen.facts.left(self, at);
        Some(seen.facts)
    }

    /// The pod was deleted, whatever a slice says.
    pub(super) fn is_gone(&self, uid: &str) -> bool {
        self.gone.contains_key(uid)
    }

    /// Forgets deleted pods that no slice names any more.
    pub(super) fn forget_gone(&mut self, at: Instant) {
        let Self { gone, slices, .. } = self;
        if gone.is_empty() {
            return;
        }
        let endpoints = slices.values().flat_map(|slice| &slice.facts.endpoints);
        let named: HashSet<&str> =
            endpoints.filter_map(|it| it.pod.as_ref()).map(|pod| pod.uid.as_ref()).collect();
        gone.retain(|uid, since| at.duration_since(*since) < GONE_FOR || named.contains(uid.as_ref()));
    }
}

/// What the kinds have in common.
pub(super) trait Object: Keyed + PartialEq + Sized {
    const KIND: Kind;

    fn shelf(namespace: &mut Namespace) -> &mut Shelf<Self>;

    fn find<'a>(namespace: &'a Namespace, name: &str) -> Option<&'a Seen<Self>>;

    /// May a change of this object change the pool?
    fn concerns(&self, pool: &PoolEntry, namespace: &Namespace) -> bool;

    /// When each endpoint last changed, given what was known before.
    fn endpoints_at(&self, _before: Option<&Seen<Self>>, _at: Instant) -> Vec<Instant> {
        Vec::new()
    }

    /// Same name, but not the same object.
    fn is_another(&self, _successor: &Self) -> bool {
        false
    }

    /// The object is there.
    fn came(&self, _namespace: &mut Namespace) {}

    /// The object is gone for certain.
    fn left(&self, _namespace: &mut Namespace, _at: Instant) {}
}

impl Object for Service {
    const KIND: Kind = Kind::Services;

    fn shelf(namespace: &mut Namespace) -> &mut Shelf<Self> {
        &mut namespace.services
    }

    fn find<'a>(namespace: &'a Namespace, name: &str) -> Option<&'a Seen<Self>> {
        namespace.services.get(name)
    }

    fn concerns(&self, pool: &PoolEntry, _: &Namespace) -> bool {
        pool.names_service(&self.key.name)
    }
}

impl Object for Slice {
    const KIND: Kind = Kind::Slices;

    fn shelf(namespace: &mut Namespace) -> &mut Shelf<Self> {
        &mut namespace.slices
    }

    fn find<'a>(namespace: &'a Namespace, name: &str) -> Option<&'a Seen<Self>> {
        namespace.slices.get(name)
    }

    fn concerns(&self, pool: &PoolEntry, _: &Namespace) -> bool {
        pool.names_service(&self.service)
    }

    fn endpoints_at(&self, before: Option<&Seen<Self>>, at: Instant) -> Vec<Instant> {
        let before: HashMap<EndpointKey<'_>, (&Endpoint, Instant)> = before
            .map(|seen| seen.facts.endpoints.iter().zip(&seen.endpoints_at))
            .into_iter()
            .flatten()
            .map(|(endpoint, since)| (key_of(endpoint), (endpoint, *since)))
            .collect();
        let since = |endpoint: &Endpoint| match before.get(&key_of(endpoint)) {
            Some((known, since)) if *known == endpoint => *since,
            _ => at,
        };
        self.endpoints.iter().map(since).collect()
    }
}

type EndpointKey<'a> = (std::net::IpAddr, Option<&'a str>);

fn key_of(endpoint: &Endpoint) -> EndpointKey<'_> {
    (endpoint.address, endpoint.pod.as_ref().map(|pod| pod.uid.as_ref()))
}

impl Object for Pod {
    const KIND: Kind = Kind::Pods;

    fn shelf(namespace: &mut Namespace) -> &mut Shelf<Self> {
        &mut namespace.pods
    }

    fn find<'a>(namespace: &'a Namespace, name: &str) -> Option<&'a Seen<Self>> {
        namespace.pods.get(name)
    }

    fn concerns(&self, pool: &PoolEntry, namespace: &Namespace) -> bool {
        let selected = |service: &Arc<str>| {
            namespace.services.get(service).is_some_and(|seen| seen.facts.selector.selects(&self.labels))
        };
        pool.services().any(selected) || pool.has_pod(&self.uid)
    }

    fn is_another(&self, successor: &Self) -> bool {
        self.uid != successor.uid
    }

    fn came(&self, namespace: &mut Namespace) {
        namespace.gone.remove(&self.uid);
    }

    fn left(&self, namespace: &mut Namespace, at: Instant) {
        namespace.gone.insert(self.uid.clone(), at);
    }
}

/// `None` stands for every namespace.
pub(super) fn covers(scope: Option<&Arc<str>>, key: &Key) -> bool {
    scope.is_none_or(|namespace| *namespace == key.namespace)
}
