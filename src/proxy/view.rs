//! Owns a worker thread's own view of the snapshot: counted without atomics, with the connections of
//! each place's backend at hand. It is made anew when another snapshot is published, pool by pool.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use super::access_log::{Entry, Recorder};
use super::entry::Entrance;
use super::filter::Admitted;
use super::limits::MAX_CANDIDATES_SEEN;
use super::tls::{Made, PortContracts};
use super::upstream::{Backends, Opening, Slot};
use crate::balance::assignment::Place;
use crate::balance::path;
use crate::balance::pool::{Group, Manner, PoolId, PortId, Protocol, Sample};
use crate::balance::routes::Routes;
use crate::balance::snapshot::{PoolSnapshot, Port, Snapshot};
use crate::balance::tls::CaBundle;
use crate::metrics::{PoolMeters, TrafficMeters};

/// What outlives snapshots: a pool's counters and connections on this thread.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) id: PoolId,
    pub(super) meters: Arc<PoolMeters>,
    pub(super) backends: Backends,
    pub(super) recorder: Rc<Recorder>,
    /// Which requests get a line in the access log, as the pool was last seen.
    logged: Cell<Option<Sample>>,
    /// The pool, as it was last seen.
    latest: RefCell<Weak<PoolView>>,
}

impl Home {
    pub(super) fn new(id: &PoolId, meters: &TrafficMeters, recorder: &Rc<Recorder>) -> Self {
        let (id, meters, recorder) = (id.clone(), meters.pool(id), recorder.clone());
        let (backends, logged, latest) = Default::default();
        Self { id, meters, backends, recorder, logged, latest }
    }

    /// The pool as it is now, for requests that cannot go on with the one that they began with.
    pub(super) fn latest(&self) -> Option<Rc<PoolView>> {
        self.latest.borrow().upgrade()
    }

    /// What is to be kept of a request for its line in the access log, if it gets one.
    #[inline]
    pub(super) fn entry(&self, of_request: impl FnOnce() -> Entry) -> Option<Box<Entry>> {
        let sample = self.logged.get()?;
        self.recorder.draws(sample).then(|| Box::new(of_request()))
    }
}

/// All pools, by port.
#[derive(Debug, Default)]
pub(super) struct View {
    snapshot: Arc<Snapshot>,
    pools: HashMap<PoolId, Rc<PoolView>>,
    /// Ascending.
    ports: Vec<(PortId, PortView)>,
}

/// What is served on one port.
#[derive(Debug)]
pub(super) struct PortView {
    routes: Routes<Rc<PoolView>>,
    heeds_paths: bool,
    protocol: Protocol,
    entrance: Entrance,
    /// The port's only pool, or where several share it nobody: for what belongs to none of them.
    home: Rc<Home>,
}

impl PortView {
    /// The pool that a request is for.
    #[inline]
    pub(super) fn route(&self, request: &Admitted<'_>) -> Option<&Rc<PoolView>> {
        if self.heeds_paths {
            return self.routes.find(request.hostname(), &path::resolved(request.path));
        }
        self.routes.find(request.hostname(), request.path)
    }

    /// Whether a request may come on a connection whose client showed a certificate by `shown`.
    #[inline]
    pub(super) fn admits(&self, request: &Admitted<'_>, shown: Option<&Arc<CaBundle>>) -> bool {
        self.entrance.tls.as_ref().is_none_or(|tls| tls.admits(request.hostname(), shown))
    }

    /// The pool of a port that speaks no HTTP, so that there is nothing to tell pools apart by.
    #[inline]
    pub(super) fn owner(&self) -> Option<&Rc<PoolView>> {
        self.routes.targets().next().filter(|_| self.protocol != Protocol::Http)
    }

    /// What is spoken on it.
    #[inline]
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// How its connections begin.
    pub(super) fn entrance(&self) -> &Entrance {
        &self.entrance
    }

    /// Where a connection counts before its first request, and a request of which nobody knows whose it is.
    pub(super) fn home(&self) -> &Rc<Home> {
        &self.home
    }
}

impl View {
    /// The view of `snapshot`, with what can be kept of the view before.
    pub(super) fn of(
        snapshot: &Arc<Snapshot>,
        before: &Self,
        tls: &Made,
        home: impl Fn(&PoolId) -> Rc<Home>,
    ) -> Self {
        let mut pools: HashMap<PoolId, Rc<PoolView>> = HashMap::new();
        let mut pool = |pool: &Arc<PoolSnapshot>| {
            let id = &pool.pool.id;
            let kept = before.pools.get(id).filter(|kept| Arc::ptr_eq(&kept.snapshot, pool)).cloned();
            let make = || kept.unwrap_or_else(|| PoolView::new(pool.clone(), home(id), tls));
            pools.entry(id.clone()).or_insert_with(make).clone()
        };
        let port = |(id, port): (PortId, &Port)| {
            let (routes, heeds_paths) = (port.routes.map(&mut pool), port.routes.heed_paths());
            let first = routes.targets().next()?.clone();
            let alone = routes.targets().all(|pool| Rc::ptr_eq(pool, &first));
            let home = if alone { first.home.clone() } else { home(&PoolId::nobody()) };
            let Manner { protocol, proxy_protocol, .. } = port.manner;
            let contracts = port.tls.as_ref().map(|port| Rc::new(PortContracts::new(port, protocol, tls)));
            let entrance = Entrance { proxy_protocol, tls: contracts };
            Some((id, PortView { routes, heeds_paths, protocol, entrance, home }))
        };
        let ports = snapshot.ports().filter_map(port).collect();
        Self { snapshot: snapshot.clone(), pools, ports }
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

    /// What is served on `port`.
    #[inline]
    pub(super) fn port(&self, port: PortId) -> Option<&PortView> {
        let at = self.ports.binary_search_by_key(&port, |(known, _)| *known).ok()?;
        Some(&self.ports[at].1)
    }
}

/// One pool.
#[derive(Debug)]
pub(super) struct PoolView {
    pub(super) snapshot: Arc<PoolSnapshot>,
    pub(super) home: Rc<Home>,
    /// By place, filled on first use.
    slots: RefCell<Box<[Option<Rc<Slot>>]>>,
    /// Of each group whose connections begin with anything but what is sent on them.
    openings: Vec<(Arc<str>, Opening)>,
    introduces: bool,
}

impl PoolView {
    fn new(snapshot: Arc<PoolSnapshot>, home: Rc<Home>, tls: &Made) -> Rc<Self> {
        home.logged.set(snapshot.pool.access_log);
        let slots = RefCell::new(vec![None; snapshot.places.len()].into());
        let groups = snapshot.pool.groups.iter();
        let introduces = groups.clone().any(|group| group.introduction.is_some());
        let opened = groups.filter(|group| group.tls.is_some() || group.introduction.is_some());
        let opening = |group: &Group| {
            let security = tls.security(group.tls.as_ref());
            (group.name.clone(), Opening { introduction: group.introduction, security })
        };
        let openings = opened.map(opening).collect();
        let view = Rc::new(Self { snapshot, home, slots, openings, introduces });
        *view.home.latest.borrow_mut() = Rc::downgrade(&view);
        view
    }

    /// Bytes that the body of a request may have.
    #[inline]
    pub(super) fn max_request_body(&self) -> u64 {
        self.snapshot.pool.max_request_body.map_or(u64::MAX, Into::into)
    }

    /// Whether any of its backends is told for whom a connection is.
    #[inline]
    pub(super) fn introduces(&self) -> bool {
        self.introduces
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
            let backend = self.snapshot.places[usize::from(place)].as_ref()?;
            let of_group = self.openings.iter().find(|(group, _)| *group == backend.group);
            let opening = of_group.map_or_else(Opening::default, |(_, opening)| opening.clone());
            *known = Some(self.home.backends.slot(backend, opening));
        }
        known.clone()
    }
}
