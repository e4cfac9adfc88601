//! Owns what one worker thread knows of the backends: the connections that rest, kept for the next request, who
//! just refused one, and who is leaving. Nothing here is shared between threads.

mod connection;
mod patience;
mod pulse;
mod shared;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use super::introduction::Introduction;
use super::limits::{COMPLAIN_EVERY, MAX_IDLE_PER_BACKEND, REFUSAL_MEMORY};
use super::tls::Security;
use super::transport::Transport;
use crate::balance::backend::{Backend, BackendId, HttpVersion, State};
use crate::balance::pool::ProxyVersion;
use crate::balance::snapshot::PoolSnapshot;
use crate::metrics::RetryReason;

pub(super) use connection::{Fault, Upstream};
pub(super) use shared::Berth;
use shared::{Link, Links};

/// Identity, address and protocol together: a new pod at an old address must not inherit its connections.
type Key = (BackendId, SocketAddr, HttpVersion);

fn key_of(backend: &Backend) -> Key {
    (backend.id.clone(), backend.address, backend.http)
}

/// The backends of one pool, as far as requests went to them.
#[derive(Debug, Default)]
pub(super) struct Backends {
    slots: RefCell<HashMap<Key, Rc<Slot>>>,
    /// The pool's, as last seen.
    drain_timeout: Cell<Duration>,
}

/// How connections to a backend begin.
#[derive(Clone, Debug, Default)]
pub(super) struct Opening {
    /// The version of the PROXY protocol in which they tell for whom they are, if they do.
    pub(super) introduction: Option<ProxyVersion>,
    /// What comes next.
    pub(super) security: Security,
}

impl Opening {
    /// Whether connections that began in the other way are as good.
    fn is(&self, other: &Self) -> bool {
        self.introduction == other.introduction && self.security.is(&other.security)
    }
}

/// One backend.
#[derive(Debug)]
pub(super) struct Slot {
    backend: Arc<Backend>,
    opening: RefCell<Opening>,
    /// Counts the changes of that, so that no connection which began before one is used again after it.
    era: Cell<u32>,
    resting: RefCell<Vec<Resting>>,
    /// Connections of HTTP/2.
    links: Rc<Links>,
    /// Those that told for whom they are, which nobody else may use.
    introduced: RefCell<HashMap<Introduction, Rc<Links>>>,
    refused_at: Cell<Option<Instant>>,
    /// When it was last said that we cannot connect to anybody.
    complained: Cell<Option<Instant>>,
    /// Since when it is on its way out, and how long its requests may go on.
    leaving: Cell<Option<(Instant, Duration)>>,
    /// The pool does not know it any more.
    gone: Cell<bool>,
    /// Tells who waits for a connection that it is leaving or gone.
    moved: Notify,
    /// The pool knows that it takes nothing at the moment.
    unready: Cell<bool>,
}

#[derive(Debug)]
struct Resting {
    upstream: Upstream,
    since: Instant,
}

/// Why no connection came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreached {
    /// It is the backend's lack; what to count if another one is tried.
    Backend(RetryReason),
    /// It is ours, so that no other backend would do better and none is to blame.
    Exhausted,
}

impl From<RetryReason> for Unreached {
    fn from(reason: RetryReason) -> Self {
        Self::Backend(reason)
    }
}

/// Whether a connection could not be opened for want of a file descriptor or of memory in the kernel.
fn is_our_lack(error: &io::Error) -> bool {
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| lacks.contains(&error))
}

impl Backends {
    /// The slot of `backend`, made on first use, whose connections begin in this way from now on.
    pub(super) fn slot(&self, backend: &Arc<Backend>, opening: Opening) -> Rc<Slot> {
        let make = || Rc::new(Slot::new(backend.clone()));
        let slot = self.slots.borrow_mut().entry(key_of(backend)).or_insert_with(make).clone();
        slot.open_with(opening);
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
            slot.gone.set(state.is_none());
            slot.moved.notify_waiters();
            slot.unready.set(state == Some(&State::NotReady));
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
            slot.gone.set(true);
            slot.moved.notify_waiters();
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
            any |= !resting.is_empty() | slot.tidy_links(now);
        }
        any
    }
}

impl Slot {
    fn new(backend: Arc<Backend>) -> Self {
        Self {
            backend,
            opening: RefCell::default(),
            era: Cell::new(0),
            resting: RefCell::default(),
            links: Rc::default(),
            introduced: RefCell::default(),
            refused_at: Cell::new(None),
            complained: Cell::new(None),
            leaving: Cell::new(None),
            gone: Cell::new(false),
            moved: Notify::new(),
            unready: Cell::new(false),
        }
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddr {
        self.backend.address
    }

    /// Connections that began in another way are not used again.
    fn open_with(&self, opening: Opening) {
        if !self.opening.borrow().is(&opening) {
            self.let_go();
            self.era.update(|era| era.wrapping_add(1));
            *self.opening.borrow_mut() = opening;
        }
    }

    /// Who it is.
    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// What requests are written in for it.
    #[inline]
    pub(super) fn http(&self) -> HttpVersion {
        self.backend.http
    }

    /// Takes the connection that rested last, if any is still open: of those that began with this introduction, where
    /// there is one. `certain` for requests that cannot be repeated.
    pub(super) fn take_resting(&self, certain: bool, whose: Option<&Introduction>) -> Option<Upstream> {
        let mut resting = self.resting.borrow_mut();
        loop {
            let last = match whose {
                None => {
                    let last = resting.len().checked_sub(1);
                    last.filter(|at| resting[*at].upstream.introduction().is_none())
                }
                Some(_) => resting.iter().rposition(|it| it.upstream.introduction() == whose),
            };
            let mut candidate = resting.remove(last?).upstream;
            if candidate.is_open(certain) {
                return Some(candidate);
            }
        }
    }

    /// Whether its connections tell for whom they are.
    #[inline]
    pub(super) fn wants_introduction(&self) -> bool {
        self.opening.borrow().introduction.is_some()
    }

    /// Opens a connection, for `whose` client and a request that began at `begun`; or whose lack it is that there is none.
    pub(super) async fn connect(
        &self,
        timeout: Duration,
        begun: Instant,
        whose: Option<&Introduction>,
    ) -> Result<Upstream, Unreached> {
        let era = self.era.get();
        let opening = async { Ok(Upstream::new(self.open(None, whose).await?, era, whose.copied())) };
        self.unless_lost(begun, self.within(timeout, opening)).await
    }

    /// A place on a connection of HTTP/2 that has room.
    pub(super) fn berth(self: &Rc<Self>, whose: Option<&Introduction>) -> Option<Berth> {
        self.links(whose).berth(self)
    }

    /// The same on a new connection, unless another one has room by then; or whose lack it is that there is none.
    pub(super) async fn board(
        self: &Rc<Self>,
        timeout: Duration,
        begun: Instant,
        whose: Option<&Introduction>,
    ) -> Result<Berth, Unreached> {
        self.unless_lost(begun, self.queue(timeout, whose)).await
    }

    /// Who comes while a connection is being opened waits for it, and learns with all others that it failed.
    async fn queue(
        self: &Rc<Self>,
        timeout: Duration,
        whose: Option<&Introduction>,
    ) -> Result<Berth, Unreached> {
        let links = self.links(whose);
        let asked = Instant::now();
        let _turn = links.turn().await;
        if let Some(berth) = links.berth(self) {
            return Ok(berth);
        }
        if self.refused_at.get().is_some_and(|at| at >= asked) {
            return Err(RetryReason::ConnectFailed.into());
        }
        if links.are_all_taken() {
            return Err(RetryReason::Unprocessed.into());
        }
        let era = self.era.get();
        let opening = async { Ok(Link::begin(self.open(Some(Link::NAME), whose).await?).await?) };
        let link = self.within(timeout, opening).await?;
        // Who leaves gets its last requests over connections that nobody else finds.
        let stays = self.leaving.get().is_none() && self.era.get() == era;
        Ok(links.add(self, link, stays))
    }

    /// The connections of HTTP/2 that may serve this client.
    fn links(&self, whose: Option<&Introduction>) -> Rc<Links> {
        let Some(whose) = whose else { return self.links.clone() };
        let introduced = &mut *self.introduced.borrow_mut();
        if let Some(links) = introduced.get(whose) {
            return links.clone();
        }
        // Clients that went left theirs behind, which nobody else can use.
        let idle = introduced.iter().filter_map(|(whose, links)| Some((links.idle_since()?, *whose)));
        if let (Some((_, oldest)), MAX_IDLE_PER_BACKEND..) =
            (idle.clone().min_by_key(|(since, _)| *since), idle.count())
        {
            introduced.remove(&oldest);
        }
        introduced.entry(*whose).or_default().clone()
    }

    /// Closes connections of HTTP/2 that ended or were idle for too long. Whether any is left.
    fn tidy_links(&self, now: Instant) -> bool {
        let mut introduced = self.introduced.borrow_mut();
        introduced.retain(|_, links| links.tidy(now) || Rc::strong_count(links) > 1);
        self.links.tidy(now) | !introduced.is_empty()
    }

    /// Opens a connection, for `whose` client. What is spoken on it is told by its name, unless it is what everybody
    /// speaks.
    async fn open(&self, name: Option<&[u8]>, whose: Option<&Introduction>) -> Result<Transport, Unreached> {
        let Opening { introduction, security } = self.opening.borrow().clone();
        let mut stream =
            connection::dial(self.backend.address).await.map_err(|error| self.unreached(&error))?;
        if let Some((version, whose)) = introduction.zip(whose) {
            let told = stream.write_all(&whose.header(version)).await;
            told.map_err(|_| RetryReason::ConnectFailed)?;
        }
        match security {
            Security::Plain => Ok(Transport::Plain(stream)),
            Security::Impossible => Err(RetryReason::TlsFailed.into()),
            Security::Tls(connector) => match connector.secure(stream, name).await {
                Ok(stream) => Ok(Transport::encrypted(stream)),
                Err(error) => {
                    if self.refused_at.get().is_none() {
                        let Backend { name, address, .. } = &*self.backend;
                        tracing::warn!(backend = %name, %address, %error, "the handshake of TLS with a backend failed; it is tried last for a moment");
                    }
                    Err(RetryReason::TlsFailed.into())
                }
            },
        }
    }

    /// Whose lack it is that no connection came about.
    fn unreached(&self, error: &io::Error) -> Unreached {
        if is_our_lack(error) {
            self.complain(error);
            return Unreached::Exhausted;
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => RetryReason::ConnectRefused.into(),
            _ => RetryReason::ConnectFailed.into(),
        }
    }

    fn complain(&self, error: &io::Error) {
        let now = Instant::now();
        if self.complained.get().is_none_or(|at| now.saturating_duration_since(at) >= COMPLAIN_EVERY) {
            self.complained.set(Some(now));
            let Backend { name, address, .. } = &*self.backend;
            tracing::warn!(backend = %name, %address, %error, "cannot open a connection to any backend; raise the limit of open files if it is the reason, or lower that of clients' connections");
        }
    }

    /// Remembers that it takes nothing at the moment.
    pub(super) fn refuse(&self, now: Instant) {
        self.refused_at.set(Some(now));
    }

    /// Gives a connection back after a clean end. It is kept only for a backend that stays.
    pub(super) fn give_back(&self, mut upstream: Upstream, now: Instant) {
        upstream.rest();
        let mut resting = self.resting.borrow_mut();
        if self.leaving.get().is_some() || upstream.era() != self.era.get() {
            return;
        }
        if resting.len() >= MAX_IDLE_PER_BACKEND {
            if upstream.introduction().is_none() {
                return;
            }
            // The oldest is the first that its client left behind.
            resting.remove(0);
        }
        resting.push(Resting { upstream, since: now });
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

    /// Whether its requests are to find another.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.get().is_some()
    }

    /// Whether its pool does not know it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Whether its pool knows that it takes nothing at the moment.
    pub(super) fn is_unready(&self) -> bool {
        self.unready.get()
    }

    /// Keeps no connection but those with a request under way.
    fn let_go(&self) {
        self.resting.borrow_mut().clear();
        self.links.let_go();
        self.introduced.borrow_mut().clear();
    }

    /// The first sight of its leaving counts; a backend that comes back is as good as new.
    fn leave(&self, leaving: Option<(Instant, Duration)>) {
        let since = self.leaving.get().map(|(since, _)| since);
        self.leaving.set(leaving.map(|(now, timeout)| (since.unwrap_or(now), timeout)));
    }
}
