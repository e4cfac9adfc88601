//! Owns the one door between the sources and the traffic: one `Publisher`, many `Reader`s, one swap
//! of one whole snapshot. A request that began with the old snapshot ends with it.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

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
