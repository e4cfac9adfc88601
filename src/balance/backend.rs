//! Owns what we know of one backend: its identity, address, weight and state.
//! Everything here is already checked; wire formats stop at `source/`.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

/// Stable identity of a backend within its pool: the pod's UID, or `address:port` outside Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub Arc<str>);

impl BackendId {
    /// The identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for BackendId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Relative share of traffic, 1 to 65,535. A weight of zero is "no member", so it has no value here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight(pub NonZeroU16);

impl Weight {
    /// The weight of a backend that states none.
    pub const ONE: Self = Self(NonZeroU16::MIN);

    /// `None` for zero.
    pub fn new(weight: u16) -> Option<Self> {
        NonZeroU16::new(weight).map(Self)
    }

    /// The weight as a number, at least 1.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

/// One replica of a service, where it listens and what people call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Stable identity within the pool.
    pub id: BackendId,
    /// Name of the entry of `spec.backends` it belongs to.
    pub group: Arc<str>,
    /// What people call it: the pod's name, or `address:port`.
    pub name: Arc<str>,
    /// Where it accepts connections.
    pub address: SocketAddr,
    /// What requests are written in for it. Whatever else it is sent passes as it came.
    pub http: HttpVersion,
}

/// The version of HTTP that a backend speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HttpVersion {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, from the first byte on.
    Http2,
}

/// What a backend may be given at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes new requests.
    Ready,
    /// Known, takes nothing; keeps its seat.
    NotReady,
    /// On its way out. `serving` says that it still answers, so it may be used when nothing else is left.
    Terminating {
        /// Still answers requests.
        serving: bool,
    },
}

/// Where a backend comes from, for inheriting seats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The workload it belongs to, equal for all pods of a Deployment or StatefulSet across revisions.
    pub workload: Option<Arc<str>>,
    /// Revision of its pod template (`pod-template-hash`, `controller-revision-hash`).
    pub revision: Option<Arc<str>>,
    /// Ordinal within a StatefulSet.
    pub ordinal: Option<u32>,
    /// Creation time, milliseconds since the UNIX epoch; zero where there is none.
    pub created_ms: u64,
}

/// A backend as a source reports it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is.
    pub backend: Arc<Backend>,
    /// Its weight within its group.
    pub weight: Weight,
    /// What it may be given.
    pub state: State,
    /// Where it comes from.
    pub lineage: Lineage,
}
