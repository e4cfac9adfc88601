//! Owns a worker thread's own view of the snapshot: counted without atomics, with the connections of
//! each place's backend at hand. It is made anew when another snapshot is published, pool by pool.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::limits::MAX_CANDIDATES_SEEN;
use super::upstream::{Backends, Slot};
use crate::balance::assignment::Place;
use crate::balance::pool::PoolId;
use crate::balance::snapshot::{PoolSnapshot, Snapshot};
use crate::metrics::{PoolMeters, TrafficMeters};

/// What outlives snapshots: a pool's counters and connections on this thread.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) meters: Arc<PoolMeters>,
    pub(super) backends: Backends,
}

impl Home {
    pub(super) fn new(id: &PoolId, meters: &TrafficMeters) -> Self {
        Self { meters: meters.pool(id), backends: Backends::default() }
    }
}

/// All pools, by port.
#[derive(Debug, Default)]
pub(super) struct View {
    snapshot: Arc<Snapshot>,
    ports: Vec<(u16, Rc<PoolView>)>,
}

impl View {
    /// The view of `snapshot`, with what can be kept of the view before.
    pub(super) fn of(snapshot: &Arc<Snapshot>, before: &Self, home: impl Fn(&PoolId) -> Rc<Home>) -> Self {
        let pool = |port| {
            let pool = snapshot.route(port)?;
            let kept = before.pool(port).filter(|kept| Arc::ptr_eq(&kept.snapshot, pool));
            Some((
                port,
                kept.cloned().unwrap_or_else(|| Rc::new(PoolView::new(pool.clone(), home(&pool.pool.id)))),
            ))
        };
        Self { snapshot: snapshot.clone(), ports: snapshot.ports().filter_map(pool).collect() }
    }

    /// Whether it shows `snapshot`.
    #[inline]
    pub(super) fn is_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        Arc::ptr_eq(&self.snapshot, snapshot)
    }

    /// The snapshot it shows.
    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The pool that answers on `port`.
    #[inline]
    pub(super) fn pool(&self, port: u16) -> Option<&Rc<PoolView>> {
        self.ports.iter().find(|(known, _)| *known == port).map(|(_, pool)| pool)
    }
}

/// One pool.
#[derive(Debug)]
pub(super) struct PoolView {
    pub(super) snapshot: Arc<PoolSnapshot>,
    pub(super) home: Rc<Home>,
    /// By place, filled on first use.
    slots: RefCell<Box<[Option<Rc<Slot>>]>>,
}

impl PoolView {
    fn new(snapshot: Arc<PoolSnapshot>, home: Rc<Home>) -> Self {
        let slots = RefCell::new(vec![None; snapshot.places.len()].into());
        Self { snapshot, home, slots }
    }

    /// The best backend for a key that was not tried yet. Who just refused a connection comes last, so
    /// a pool is never empty because of it.
    pub(super) fn choose(&self, key: u64, tried: &[Rc<Slot>], now: Instant) -> Option<Rc<Slot>> {
        if tried.is_empty() {
            let first = self.slot(self.snapshot.table.pick(key)?)?;
            if !first.just_refused(now) {
                return Some(first);
            }
        }
        let mut refused = None;
        let candidates = self.snapshot.table.candidates(key).filter_map(|place| self.slot(place));
        for slot in candidates.take(MAX_CANDIDATES_SEEN) {
            if tried.iter().any(|tried| Rc::ptr_eq(tried, &slot)) {
                continue;
            }
            if !slot.just_refused(now) {
                return Some(slot);
            }
            refused.get_or_insert(slot);
        }
        refused
    }

    #[inline]
    fn slot(&self, place: Place) -> Option<Rc<Slot>> {
        let known = &mut self.slots.borrow_mut()[usize::from(place)];
        if known.is_none() {
            *known = Some(self.home.backends.slot(self.snapshot.places[usize::from(place)].as_ref()?));
        }
        known.clone()
    }
}
