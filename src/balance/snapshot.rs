//! Owns the snapshot: everything the proxy needs to route, immutable, swapped whole.
//! What is read together stands together here, so no request ever sees two truths.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::assignment::Assignment;
use super::backend::{Backend, BackendId, State};
use super::key::{self, RequestParts};
use super::pool::{Manner, Pool, PoolId, PortId};
use super::routes::{HostPattern, Match, Routes};
use super::tls::TlsTerms;

/// All pools as the proxy serves them.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up with every publish of this process; local, not part of any digest.
    pub generation: u64,
    pools: BTreeMap<PoolId, Arc<PoolSnapshot>>,
    ports: BTreeMap<PortId, Port>,
}

/// How each port is shared out among pools.
pub type Shares = BTreeMap<PortId, PortShares>;

/// How one port is shared out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortShares {
    /// How it is spoken on.
    pub manner: Manner,
    /// The terms of TLS, where it is spoken.
    pub tls: Option<PortTls>,
    /// Whose each part of it is.
    pub owners: BTreeMap<Match, PoolId>,
}

/// The terms of TLS on one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTls {
    /// By the name that a client asks for.
    pub by_host: BTreeMap<HostPattern, Arc<TlsTerms>>,
    /// For clients that ask for no name, or for one that is nobody's.
    pub default: Arc<TlsTerms>,
}

/// What is served on one port.
#[derive(Debug)]
pub struct Port {
    /// How it is spoken on.
    pub manner: Manner,
    /// The terms of TLS, where it is spoken.
    pub tls: Option<PortTls>,
    /// Which pool answers which request.
    pub routes: Routes<Arc<PoolSnapshot>>,
}

impl Snapshot {
    /// A snapshot of `pools`; `shares` says which of them answers for what.
    pub fn new(generation: u64, pools: BTreeMap<PoolId, Arc<PoolSnapshot>>, shares: &Shares) -> Self {
        let route = |(matched, id): (&Match, &PoolId)| Some((matched.clone(), pools.get(id)?.clone()));
        let port = |(id, shares): (&PortId, &PortShares)| {
            let routes: Routes<_> = shares.owners.iter().filter_map(route).collect();
            let is_served = routes.targets().next().is_some();
            is_served.then_some((*id, Port { manner: shares.manner, tls: shares.tls.clone(), routes }))
        };
        let ports = shares.iter().filter_map(port).collect();
        Self { generation, pools, ports }
    }

    /// The pool that answers on `port` for a path of a host; the host as the client names it, without its port.
    pub fn route(&self, port: PortId, host: Option<&str>, path: &str) -> Option<&Arc<PoolSnapshot>> {
        self.ports.get(&port)?.routes.find(host, path)
    }

    /// The ports to listen on, ascending, and what is served there.
    pub fn ports(&self) -> impl Iterator<Item = (PortId, &Port)> {
        self.ports.iter().map(|(id, port)| (*id, port))
    }

    /// All pools, by id.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<PoolSnapshot>> {
        self.pools.values()
    }

    /// One pool by id.
    pub fn pool(&self, id: &PoolId) -> Option<&Arc<PoolSnapshot>> {
        self.pools.get(id)
    }
}

/// One pool as the proxy serves it.
#[derive(Debug)]
pub struct PoolSnapshot {
    /// The policy.
    pub pool: Arc<Pool>,
    /// Key to place.
    pub table: Arc<Assignment>,
    /// Place to the backend that answers for it; `None` where nobody may. The table names no such place.
    pub places: Box<[Option<Arc<Backend>>]>,
    /// Every backend the source knows, seated or not, by id.
    pub members: Box<[MemberView]>,
    /// Equal on all replicas that route alike: hash over slots, occupants, size and seed.
    pub digest: u64,
}

/// A backend as the snapshot knows it, for metrics, status and draining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Who it is.
    pub backend: Arc<Backend>,
    /// What it may be given.
    pub state: State,
    /// Its seat, once it has one.
    pub seat: Option<u16>,
    /// Its weight within its group.
    pub weight: u16,
    /// Slots of the table it answers for.
    pub slots: u32,
}

impl PoolSnapshot {
    /// The hash of the request's key.
    #[inline]
    pub fn key_hash(&self, request: &impl RequestParts) -> u64 {
        key::hash_of(&self.pool.hash_on, request)
    }

    /// The backend for a key. `None` only when the pool has nobody to answer.
    #[inline]
    pub fn pick(&self, key_hash: u64) -> Option<&Arc<Backend>> {
        self.places[usize::from(self.table.pick(key_hash)?)].as_ref()
    }

    /// The backends for a key, best first, each once: the owner of its slot, then those who would inherit it.
    /// No allocation until the second one is asked for.
    pub fn candidates(&self, key_hash: u64) -> impl Iterator<Item = &Arc<Backend>> {
        self.table.candidates(key_hash).filter_map(|place| self.places[usize::from(place)].as_ref())
    }

    /// Keys that another backend has in `later`, in slots of its table, rounded.
    pub fn moved_slots(&self, later: &Self) -> u32 {
        fn ids(pool: &PoolSnapshot) -> impl Iterator<Item = Option<&BackendId>> {
            pool.places.iter().map(|place| place.as_ref().map(|backend| &backend.id))
        }
        // Numbers are compared for each slot, so not the ids themselves.
        let numbers: HashMap<Option<&BackendId>, usize> = ids(self).zip(0..).collect();
        let number = |id| numbers.get(&id).copied().unwrap_or(usize::MAX);
        let (was, is): (Vec<usize>, Vec<usize>) =
            (ids(self).map(number).collect(), ids(later).map(number).collect());
        let same = |here: u16, there: u16| was[usize::from(here)] == is[usize::from(there)];
        (self.table.moved(&later.table, same) * f64::from(later.table.size())).round() as u32
    }
}
