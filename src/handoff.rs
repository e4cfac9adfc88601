//! Owns the one door between the sources and the traffic: one `Publisher`, many `Reader`s, one swap
//! of one whole snapshot. A request that began with the old snapshot ends with it.
//! What the traffic side has to say in return, which ports are bound, comes back over `bindings`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::balance::pool::PortId;
use crate::balance::snapshot::Snapshot;

/// A connected pair that starts with an empty snapshot.
pub fn handoff() -> (Publisher, Reader) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (announce, announced) = watch::channel(0);
    (Publisher { current: current.clone(), announce }, Reader { current, announced })
}

/// The writing end. Not `Clone`: there is one writer.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    announce: watch::Sender<u64>,
}

impl Publisher {
    /// Puts `snapshot` in the place of the current one and tells the readers.
    pub fn publish(&self, snapshot: Snapshot) {
        let generation = snapshot.generation;
        self.current.store(Arc::new(snapshot));
        self.announce.send_replace(generation);
    }
}

/// The reading end, cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    announced: watch::Receiver<u64>,
}

impl Reader {
    /// The current snapshot, without a lock. Do not hold the guard across an await: take what is needed.
    #[inline]
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Returns once a snapshot was published since the last call. `false` when the publisher is gone.
    pub async fn changed(&mut self) -> bool {
        self.announced.changed().await.is_ok()
    }
}

/// A connected pair that starts with no port. `own_port` is one that the process needs itself: no pool can have it.
pub fn bindings(own_port: Option<PortId>) -> (BindingsWriter, BindingsReader) {
    let (writer, reader) = watch::channel(BTreeMap::new());
    (BindingsWriter { ports: writer, own_port }, BindingsReader { ports: reader, own_port })
}

/// What became of a port that a pool asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindState {
    /// Every worker serves it.
    Bound,
    /// Nobody serves it; it is tried again.
    Failed {
        /// Why, and what to do about it.
        reason: Arc<str>,
    },
}

/// The proxy's end: it alone knows which ports are bound.
#[derive(Debug)]
pub struct BindingsWriter {
    ports: watch::Sender<BTreeMap<PortId, BindState>>,
    own_port: Option<PortId>,
}

impl BindingsWriter {
    /// Replaces the whole picture; readers wake only when it differs from the one before.
    pub fn report(&self, ports: BTreeMap<PortId, BindState>) {
        self.ports.send_if_modified(|current| {
            let differs = *current != ports;
            *current = ports;
            differs
        });
    }

    /// The port that no pool can have, because the process serves its metrics there.
    pub fn own_port(&self) -> Option<PortId> {
        self.own_port
    }
}

/// The sources' end, cheap to clone.
#[derive(Clone, Debug)]
pub struct BindingsReader {
    ports: watch::Receiver<BTreeMap<PortId, BindState>>,
    own_port: Option<PortId>,
}

impl BindingsReader {
    /// The port that no pool can have, because the process serves its metrics there.
    pub fn own_port(&self) -> Option<PortId> {
        self.own_port
    }

    /// The state of every port that a pool asks for; a port that is missing was not tried yet.
    pub fn current(&self) -> BTreeMap<PortId, BindState> {
        self.ports.borrow().clone()
    }

    /// Returns once a port changed its state since the last call. `false` when the proxy is gone.
    pub async fn changed(&mut self) -> bool {
        self.ports.changed().await.is_ok()
    }
}
