//! Owns the connections to the backends of one worker thread: those that rest, kept for the next
//! request, and the memory of who just refused one. Nothing here is shared between threads.

mod connection;
mod shared;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limits::{MAX_IDLE_PER_BACKEND, REFUSAL_MEMORY};
use super::tls::Security;
use super::transport::Transport;
use crate::balance::backend::{Backend, BackendId, Protocol, State};
use crate::balance::snapshot::PoolSnapshot;
use crate::metrics::RetryReason;

pub(super) use connection::{Fault, Upstream};
pub(super) use shared::Berth;
use shared::{Link, Links};

/// Identity, address and protocol together: a new pod at an old address must not inherit its connections.
type Key = (BackendId, SocketAddr, Protocol);

fn key_of(backend: &Backend) -> Key {
    (backend.id.clone(), backend.address, backend.protocol)
}

/// The backends of one pool, as far as requests went to them.
#[derive(Debug, Default)]
pub(super) struct Backends {
    slots: RefCell<HashMap<Key, Rc<Slot>>>,
    /// The pool's, as last seen.
    drain_timeout: Cell<Duration>,
}

/// One backend.
#[derive(Debug)]
pub(super) struct Slot {
    backend: Arc<Backend>,
    security: RefCell<Security>,
    resting: RefCell<Vec<Resting>>,
    /// Connections of HTTP/2.
    links: Links,
    refused_at: Cell<Option<Instant>>,
    /// Since when it is on its way out, and how long its requests may go on.
    leaving: Cell<Option<(Instant, Duration)>>,
}

#[derive(Debug)]
struct Resting {
    upstream: Upstream,
    since: Instant,
}

impl Backends {
    /// The slot of `backend`, made on first use, whose connections are secured in this way from now on.
    pub(super) fn slot(&self, backend: &Arc<Backend>, security: Security) -> Rc<Slot> {
        let make = || Rc::new(Slot::new(backend.clone()));
        let slot = self.slots.borrow_mut().entry(key_of(backend)).or_insert_with(make).clone();
        slot.secure(security);
        slot
    }

    /// Follows the pool: a backend that left or terminates is marked, and who left keeps no connection.
    pub(super) fn follow(&self, pool: &PoolSnapshot, now: Instant) {
        self.drain_timeout.set(pool.pool.drain_timeout);
        let state = |member: &crate::balance::snapshot::MemberView| (key_of(&member.backend), member.state);
        let members: HashMap<Key, State> = pool.members.iter().map(state).collect();
        self.slots.borrow_mut().retain(|key, slot| {
            let state = members.get(key);
            slot.leave(
                matches!(state, None | Some(State::Terminating { .. }))
                    .then_some((now, pool.pool.drain_timeout)),
            );
            if state.is_none() {
                slot.let_go();
            }
            state.is_some() || Rc::strong_count(slot) > 1
        });
    }

    /// The pool itself is gone: so is every backend of it.
    pub(super) fn leave(&self, now: Instant) {
        for slot in self.slots.borrow().values() {
            slot.leave(Some((now, self.drain_timeout.get())));
            slot.let_go();
        }
    }

    /// Closes connections that rested for too long or that the backend closed. Whether any still rests.
    pub(super) fn tidy(&self, idle: Duration, now: Instant) -> bool {
        let mut any = false;
        for slot in self.slots.borrow().values() {
            let mut resting = slot.resting.borrow_mut();
            resting.retain_mut(|resting| {
                now.saturating_duration_since(resting.since) < idle && resting.upstream.is_open(false)
            });
            any |= !resting.is_empty() | slot.links.tidy(now);
        }
        any
    }
}

impl Slot {
    fn new(backend: Arc<Backend>) -> Self {
        Self {
            backend,
            security: RefCell::default(),
            resting: RefCell::default(),
            links: Links::default(),
            refused_at: Cell::new(None),
            leaving: Cell::new(None),
        }
    }

    /// Connections that were secured in another way are not used again.
    fn secure(&self, security: Security) {
        if !self.security.borrow().is(&security) {
            self.let_go();
            *self.security.borrow_mut() = security;
        }
    }

    /// Who it is.
    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// What it speaks.
    #[inline]
    pub(super) fn protocol(&self) -> Protocol {
        self.backend.protocol
    }

    /// Takes the connection that rested last, if any is still open. `certain` for requests that cannot
    /// be repeated.
    pub(super) fn take_resting(&self, certain: bool) -> Option<Upstream> {
        let mut resting = self.resting.borrow_mut();
        loop {
            let mut candidate = resting.pop()?.upstream;
            if candidate.is_open(certain) {
                return Some(candidate);
            }
        }
    }

    /// Opens a connection; what to count when that fails.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<Upstream, RetryReason> {
        self.within(timeout, async { Ok(Upstream::new(self.open(None).await?)) }).await
    }

    /// A place on a connection of HTTP/2, opened if there is none with room; what to count when that fails.
    pub(super) async fn board(self: &Rc<Self>, timeout: Duration) -> Result<Berth, RetryReason> {
        if let Some(berth) = self.links.berth(self) {
            return Ok(berth);
        }
        let asked = Instant::now();
        // Who comes while a connection is being opened waits for it, and learns with all others that it failed.
        let _turn = self.links.turn().await;
        if let Some(berth) = self.links.berth(self) {
            return Ok(berth);
        }
        if self.refused_at.get().is_some_and(|at| at >= asked) {
            return Err(RetryReason::ConnectFailed);
        }
        if self.links.are_all_taken() {
            return Err(RetryReason::Unprocessed);
        }
        let opening = async { Link::begin(self.open(Some(Link::NAME)).await?).await };
        let link = self.within(timeout, opening).await?;
        Ok(self.links.add(self, link))
    }

    /// Remembers whether a connection came about.
    async fn within<T>(
        &self,
        timeout: Duration,
        opening: impl Future<Output = Result<T, RetryReason>>,
    ) -> Result<T, RetryReason> {
        let opened = tokio::time::timeout(timeout, opening).await;
        let opened = opened.unwrap_or(Err(RetryReason::ConnectTimeout));
        self.refused_at.set(opened.is_err().then(Instant::now));
        opened
    }

    /// Opens a connection. What is spoken on it is told by its name, unless it is what everybody speaks.
    async fn open(&self, name: Option<&[u8]>) -> Result<Transport, RetryReason> {
        let security = self.security.borrow().clone();
        let stream = connection::dial(self.backend.address).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => RetryReason::ConnectRefused,
            _ => RetryReason::ConnectFailed,
        })?;
        match security {
            Security::Plain => Ok(Transport::Plain(stream)),
            Security::Impossible => Err(RetryReason::TlsFailed),
            Security::Tls(connector) => match connector.secure(stream, name).await {
                Ok(stream) => Ok(Transport::encrypted(stream)),
                Err(error) => {
                    if self.refused_at.get().is_none() {
                        let Backend { name, address, .. } = &*self.backend;
                        tracing::warn!(backend = %name, %address, %error, "the handshake of TLS with a backend failed; it is tried last for a moment");
                    }
                    Err(RetryReason::TlsFailed)
                }
            },
        }
    }

    /// Gives a connection back after a clean end. It is kept only for a backend that stays.
    pub(super) fn give_back(&self, mut upstream: Upstream, now: Instant) {
        upstream.rest();
        let mut resting = self.resting.borrow_mut();
        if self.leaving.get().is_none() && resting.len() < MAX_IDLE_PER_BACKEND {
            resting.push(Resting { upstream, since: now });
        }
    }

    /// Whether it did not accept a connection a moment ago.
    pub(super) fn just_refused(&self, now: Instant) -> bool {
        self.refused_at.get().is_some_and(|at| now.saturating_duration_since(at) < REFUSAL_MEMORY)
    }

    /// Whether a request that began at `begun` must end now because the backend left.
    pub(super) fn is_drained(&self, begun: Instant, now: Instant) -> bool {
        self.leaving
            .get()
            .is_some_and(|(since, timeout)| now.saturating_duration_since(since.max(begun)) >= timeout)
    }

    /// Keeps no connection but those with a request under way.
    fn let_go(&self) {
        self.resting.borrow_mut().clear();
        self.links.let_go();
    }

    /// The first sight of its leaving counts; a backend that comes back is as good as new.
    fn leave(&self, leaving: Option<(Instant, Duration)>) {
        let since = self.leaving.get().map(|(since, _)| since);
        self.leaving.set(leaving.map(|(now, timeout)| (since.unwrap_or(now), timeout)));
    }
}
