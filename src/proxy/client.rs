//! Owns what we know of one client connection while it lives: what it is doing, since when, and what
//! is to happen when that takes too long. Its worker looks at it once per tick, so a request sets and
//! clears no timer.

use std::cell::{Cell, OnceCell, Ref, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::headers::{self, Scheme};
use super::http1::RequestHead;
use super::introduction::Introduction;
use super::limits::Limits;
pub(super) use super::phase::{Expiry, Phase};
use super::trust::{self, Hearsay, Network};
use super::upstream::Slot;
use super::view::Home;
use crate::balance::pool::PortId;
use crate::balance::tls::CaBundle;

/// One client connection, or one stream of such, seen from the task that serves it and from its worker's tick.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) port: PortId,
    /// Of a stream: the connection it came on.
    connection: Option<Rc<Client>>,
    /// Of a connection of HTTP/2: its streams, some of which may be gone.
    streams: RefCell<Vec<Weak<Client>>>,
    ip: Cell<IpAddr>,
    /// Who signed the certificate that it had to show.
    client_ca: OnceCell<Arc<CaBundle>>,
    /// Of its end of the connection, if that is known.
    own_port: Cell<Option<NonZeroU16>>,
    /// The address that it connected to, once somebody asked for it.
    target: Cell<Option<SocketAddr>>,
    /// The lines that tell backends about it.
    forwarded: RefCell<Rc<[u8]>>,
    scheme: Cell<Scheme>,
    /// Who is believed to say for whom a request is.
    trusted: Rc<[Network]>,
    /// It is one of those.
    is_trusted: Cell<bool>,
    /// The pool of its latest request, for what is counted of it.
    home: RefCell<Rc<Home>>,
    clock: Rc<Cell<Instant>>,
    phase: Cell<Phase>,
    since: Cell<Instant>,
    request_timeout: Cell<Option<Duration>>,
    request_begun: Cell<Instant>,
    deadline: Cell<Option<Instant>>,
    half_closed: Cell<Option<Instant>>,
    /// Everything was read that it sent.
    ended: Cell<bool>,
    /// Its end is to be looked for at every tick, because nothing else tells of it.
    looked_for: Cell<bool>,
    /// Part of its request may still be on its way.
    unread: Cell<bool>,
    reset: Cell<bool>,
    /// It is asked to leave, as of the last tick.
    leaving: Cell<bool>,
    expiry: Cell<Option<Expiry>>,
    waker: RefCell<Option<Waker>>,
    slot: RefCell<Option<Rc<Slot>>>,
    carried: Cell<Carried>,
}

/// Bytes that were read from a client and written to it since its latest request ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Read as well, and of the next request.
    ahead: u64,
}

impl Carried {
    /// So many, and nothing ahead.
    pub(super) fn of(received: u64, sent: u64) -> Self {
        Self { received, sent, ahead: 0 }
    }
}

impl Client {
    pub(super) fn new(
        peer: SocketAddr,
        port: PortId,
        home: Rc<Home>,
        clock: Rc<Cell<Instant>>,
        trusted: Rc<[Network]>,
    ) -> Self {
        home.meters.connections.up();
        Self::make(peer, port, home, clock, trusted, None)
    }

    /// A stream of this connection, which its worker looks at too.
    pub(super) fn stream(self: &Rc<Self>) -> Rc<Self> {
        let peer = SocketAddr::new(self.ip(), self.own_port().map_or(0, Into::into));
        let (clock, trusted) = (self.clock.clone(), self.trusted.clone());
        let mut stream = Self::make(peer, self.port, self.home(), clock, trusted, Some(self.clone()));
        stream.client_ca = self.client_ca.clone();
        stream.scheme = self.scheme.clone();
        stream.forwarded = self.forwarded.clone();
        stream.target = self.target.clone();
        let stream = Rc::new(stream);
        self.streams.borrow_mut().push(Rc::downgrade(&stream));
        stream
    }

    fn make(
        peer: SocketAddr,
        port: PortId,
        home: Rc<Home>,
        clock: Rc<Cell<Instant>>,
        trusted: Rc<[Network]>,
        connection: Option<Rc<Self>>,
    ) -> Self {
        let ip = peer.ip();
        let now = clock.get();
        Self {
            port,
            connection,
            streams: RefCell::default(),
            ip: Cell::new(ip),
            own_port: Cell::new(NonZeroU16::new(peer.port())),
            target: Cell::new(None),
            client_ca: OnceCell::new(),
            forwarded: RefCell::new(headers::forwarded(ip, Scheme::Http)),
            scheme: Cell::new(Scheme::Http),
            is_trusted: Cell::new(trust::is_trusted(ip, &trusted)),
            trusted,
            home: RefCell::new(home),
            clock,
            phase: Cell::new(Phase::Idle),
            since: Cell::new(now),
            request_timeout: Cell::new(None),
            request_begun: Cell::new(now),
            deadline: Cell::new(None),
            half_closed: Cell::new(None),
            ended: Cell::new(false),
            looked_for: Cell::new(false),
            unread: Cell::new(false),
            reset: Cell::new(false),
            leaving: Cell::new(false),
            expiry: Cell::new(None),
            waker: RefCell::default(),
            slot: RefCell::default(),
            carried: Cell::default(),
        }
    }

    /// Its address.
    pub(super) fn ip(&self) -> IpAddr {
        self.ip.get()
    }

    /// The port of its end of the connection. Unknown behind a balancer that told us who the client is without it.
    pub(super) fn own_port(&self) -> Option<NonZeroU16> {
        self.own_port.get()
    }

    /// A balancer before us says that it is another one. To be called before `secure`, as that comes later.
    pub(super) fn identify(&self, source: SocketAddr) {
        let ip = source.ip();
        self.ip.set(ip);
        self.own_port.set(NonZeroU16::new(source.port()));
        self.is_trusted.set(trust::is_trusted(ip, &self.trusted));
        *self.forwarded.borrow_mut() = headers::forwarded(ip, Scheme::Http);
    }

    /// It connected to this address, which is asked for once.
    pub(super) fn came_to(&self, target: impl FnOnce() -> Option<SocketAddr>) {
        if self.target.get().is_none() {
            self.target.set(target());
        }
    }

    /// What a backend is told of its connection where that begins with it. After `came_to`.
    pub(super) fn introduction(&self) -> Introduction {
        let source = SocketAddr::new(self.ip(), self.own_port().map_or(0, Into::into));
        Introduction::new(source, self.target.get())
    }

    /// It speaks TLS, and showed a certificate signed by one of `client_ca` where it was asked for one.
    pub(super) fn secure(&self, client_ca: Option<Arc<CaBundle>>) {
        self.scheme.set(Scheme::Https);
        *self.forwarded.borrow_mut() = headers::forwarded(self.ip(), Scheme::Https);
        if let Some(client_ca) = client_ca {
            self.client_ca.get_or_init(|| client_ca);
        }
    }

    /// What its connection is, as URIs name it.
    pub(super) fn scheme(&self) -> Scheme {
        self.scheme.get()
    }

    /// Who signed the certificate that it had to show.
    pub(super) fn client_ca(&self) -> Option<&Arc<CaBundle>> {
        self.client_ca.get()
    }

    /// The lines that tell backends about it.
    pub(super) fn forwarded(&self) -> Ref<'_, [u8]> {
        Ref::map(self.forwarded.borrow(), |lines| &**lines)
    }

    /// What it says about for whom a request is, if it is trusted.
    pub(super) fn hearsay<'a>(&self, head: &RequestHead<'a>) -> Option<Hearsay<'a>> {
        let hear = || Hearsay::of(head, self.ip(), self.scheme.get(), &self.trusted);
        self.is_trusted.get().then(hear)
    }

    /// The pool it counts for.
    pub(super) fn home(&self) -> Rc<Home> {
        self.home.borrow().clone()
    }

    /// It has a request for a pool, and counts for that from now on.
    pub(super) fn visit(&self, home: &Rc<Home>) {
        let before = &mut *self.home.borrow_mut();
        if Rc::ptr_eq(before, home) {
            return;
        }
        let before = std::mem::replace(before, home.clone());
        match &self.connection {
            Some(connection) => connection.visit(home),
            None => {
                home.meters.connections.up();
                before.meters.connections.down();
            }
        }
    }

    /// Begins a phase; whatever took too long before no longer matters.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.clock.get());
        self.expiry.set(None);
    }

    /// Begins a phase `now`. Whoever knows the time tells the worker, whose clock is a tick old otherwise.
    pub(super) fn enter_at(&self, phase: Phase, now: Instant) {
        self.clock.set(now);
        self.enter(phase);
    }

    /// What it is doing.
    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// A request's head begins, which is complete at once in most cases.
    pub(super) fn begin_head(&self) {
        if self.phase.get() == Phase::Idle {
            self.unread.set(true);
            self.enter(Phase::Head);
        }
    }

    /// A request's head is complete since `now`; whether a body follows.
    pub(super) fn end_head(&self, has_body: bool, now: Instant) {
        self.request_timeout.set(None);
        self.request_begun.set(now);
        self.unread.set(has_body);
        self.enter_at(if has_body { Phase::Upload } else { Phase::Waiting }, now);
    }

    /// The request goes to `slot`; `timeout` is the time for the head of its response.
    pub(super) fn begin_exchange(&self, slot: &Rc<Slot>, timeout: Option<Duration>) {
        self.request_timeout.set(timeout);
        *self.slot.borrow_mut() = Some(slot.clone());
    }

    /// The request waits for a way to a backend; `timeout` is the time for the head of its response.
    pub(super) fn begin_reaching(&self, timeout: Option<Duration>) {
        self.request_timeout.set(timeout);
    }

    /// It waits no longer. A body that stood still meanwhile did so because nobody read it, and whoever was tried before
    /// matters no more.
    pub(super) fn end_reaching(&self) {
        self.expiry.set(None);
        self.progressed();
    }

    /// Whether the end of its request makes the time begin for the response.
    pub(super) fn awaits_end(&self) -> bool {
        self.unread.get() && self.request_timeout.get().is_some()
    }

    /// The client waits for its answer until then and no longer.
    pub(super) fn end_by(&self, deadline: Instant) {
        self.deadline.set(Some(deadline));
    }

    /// The request's body is complete.
    pub(super) fn end_upload(&self) {
        if self.unread.replace(false) {
            self.begin_waiting();
        }
    }

    /// Nothing more of the request is sent on, so it is the response that is waited for.
    pub(super) fn begin_waiting(&self) {
        if matches!(self.phase.get(), Phase::Upload | Phase::Tunnel) {
            // A timeout may be as short as a tick.
            self.enter_at(Phase::Waiting, Instant::now());
        }
    }

    /// The exchange is over, one way or the other: whom it was with, if it came to that, and what it carried.
    pub(super) fn end_request(&self) -> (Option<Rc<Slot>>, Carried) {
        self.enter(Phase::Idle);
        let carried = self.carried.get();
        self.carried.set(Carried { received: carried.ahead, ..Carried::default() });
        (self.slot.borrow_mut().take(), carried)
    }

    /// So many of the bytes read come behind the request that is about to end.
    pub(super) fn read_ahead(&self, bytes: usize) {
        let ahead = bytes as u64;
        self.carried.update(|it| Carried { received: it.received.saturating_sub(ahead), ahead, ..it });
    }

    /// Bytes arrived from it.
    pub(super) fn received(&self, bytes: usize) {
        self.home.borrow().meters.received.add(bytes as u64);
        self.carried.update(|it| Carried { received: it.received + bytes as u64, ..it });
        self.progressed();
    }

    /// Part of a body moved on.
    pub(super) fn progressed(&self) {
        if matches!(self.phase.get(), Phase::Upload | Phase::Download | Phase::Tunnel) {
            self.since.set(self.clock.get());
        }
    }

    /// Bytes went to it.
    pub(super) fn sent(&self, bytes: usize) {
        self.home.borrow().meters.sent.add(bytes as u64);
        self.carried.update(|it| Carried { sent: it.sent + bytes as u64, ..it });
        if matches!(self.phase.get(), Phase::Download | Phase::Tunnel) {
            self.since.set(self.clock.get());
        }
    }

    /// Bytes of a body arrived on its stream. As such they were counted on the connection.
    pub(super) fn stream_received(&self, bytes: usize) {
        self.carried.update(|it| Carried { received: it.received + bytes as u64, ..it });
    }

    /// Bytes of a body went out on its stream.
    pub(super) fn stream_sent(&self, bytes: usize) {
        self.carried.update(|it| Carried { sent: it.sent + bytes as u64, ..it });
    }

    /// It shut down its sending side, and what it sent before may still be there to read.
    pub(super) fn half_close(&self) {
        if self.half_closed.get().is_none() {
            self.half_closed.set(Some(self.clock.get()));
        }
    }

    /// It shut down its sending side, and everything was read.
    pub(super) fn end(&self) {
        self.half_close();
        self.ended.set(true);
    }

    /// Whether it shut down its sending side and everything was read.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Whether it has shut down its sending side, if `is_closed` says so at the moment; otherwise it is asked again with
    /// the next tick.
    pub(super) fn look_for_end(&self, is_closed: impl FnOnce() -> bool) {
        if self.half_closed.get().is_some() {
            return;
        }
        if is_closed() {
            self.half_close();
        } else {
            self.looked_for.set(true);
        }
    }

    /// Whether part of its request may still be on its way.
    pub(super) fn is_unread(&self) -> bool {
        self.unread.get()
    }

    /// Makes the end of the connection a reset, so that a response cut short does not look complete.
    pub(super) fn reset_on_close(&self) {
        self.reset.set(true);
    }

    /// Whether the connection is to end with a reset.
    pub(super) fn is_reset_on_close(&self) -> bool {
        self.reset.get()
    }

    /// Whether it is asked to leave.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// What took too long, if anything did.
    pub(super) fn expiry(&self) -> Option<Expiry> {
        self.expiry.get()
    }

    /// Remembers whom to wake.
    pub(super) fn wake_with(&self, waker: &Waker) {
        *self.waker.borrow_mut() = Some(waker.clone());
    }

    /// Finds out whether anything takes too long, and wakes the connection's task if so. Since `leaving`, if ever, the
    /// client is asked to leave.
    pub(super) fn tick(&self, now: Instant, limits: &Limits, leaving: Option<Instant>) {
        self.leaving.set(leaving.is_some());
        self.tick_streams(now, limits, leaving);
        let expiry = self.find_expiry(now, limits, leaving);
        if expiry.is_some() {
            self.expiry.set(expiry);
        }
        // A connection of HTTP/2 says goodbye as soon as it can, not with its next answer.
        let is_leaving = leaving.is_some() && matches!(self.phase.get(), Phase::Resting | Phase::Carrying);
        if (expiry.is_some() || is_leaving || self.looked_for.take())
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    fn tick_streams(&self, now: Instant, limits: &Limits, leaving: Option<Instant>) {
        let mut streams = self.streams.borrow_mut();
        streams.retain(|stream| {
            let stream = stream.upgrade();
            stream.iter().for_each(|stream| stream.tick(now, limits, leaving));
            stream.is_some()
        });
        if streams.is_empty() && self.phase.get() == Phase::Carrying {
            self.enter(Phase::Resting);
        }
    }

    fn find_expiry(&self, now: Instant, limits: &Limits, leaving: Option<Instant>) -> Option<Expiry> {
        let since = self.since.get();
        let over = |from: Instant, limit: Duration| now.saturating_duration_since(from) >= limit;
        let drained = || {
            let slot = self.slot.borrow();
            slot.as_ref()
                .is_some_and(|slot| slot.is_drained(self.request_begun.get(), now))
                .then_some(Expiry::Drained)
        };
        let expired = |expired: bool, expiry| expired.then_some(expiry);
        let is_late = self.deadline.get().is_some_and(|deadline| now >= deadline);
        match self.phase.get() {
            Phase::Handshake => expired(over(since, limits.handshake), Expiry::Handshake),
            Phase::Upload | Phase::Waiting | Phase::Download | Phase::Tunnel if is_late => {
                Some(Expiry::Deadline)
            }
            Phase::Carrying => None,
            Phase::Idle | Phase::Resting => {
                let left = leaving.is_some_and(|begun| over(begun.max(since), limits.drain_idle));
                expired(left || over(since, limits.idle), Expiry::Idle)
            }
            Phase::Head => expired(over(since, limits.head), Expiry::Head),
            Phase::Upload | Phase::Download => {
                expired(over(since, limits.body_idle), Expiry::Stalled).or_else(drained)
            }
            Phase::Tunnel => expired(over(since, limits.tunnel_idle), Expiry::Stalled).or_else(drained),
            Phase::Waiting => {
                let gone = self.half_closed.get().is_some_and(|at| over(at.max(since), limits.half_close));
                let late = self.request_timeout.get().is_some_and(|limit| over(since, limit));
                expired(gone, Expiry::Gone).or(expired(late, Expiry::Timeout)).or_else(drained)
            }
            Phase::Linger => expired(over(since, limits.linger), Expiry::Linger),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.connection.is_none() {
            self.home.borrow().meters.connections.down();
        }
    }
}
