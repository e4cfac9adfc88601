//! Owns what we know of one client connection while it lives: what it is doing, since when, and what
//! is to happen when that takes too long. Its worker looks at it once per tick, so a request sets and
//! clears no timer.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::limits::Limits;
use super::upstream::{Shared, Slot};
use super::view::Home;

/// What a client connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing; a request may come.
    Idle,
    /// Sending the head of a request.
    Head,
    /// Sending the body of a request.
    Upload,
    /// Waiting for the head of the response.
    Waiting,
    /// Receiving the response.
    Download,
    /// Told that we close; what it still sends is thrown away.
    Linger,
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// No request came.
    Idle,
    /// A request's head was not finished.
    Head,
    /// A body stood still.
    Stalled,
    /// No response's head came.
    Timeout,
    /// The backend left and its drain timeout is over.
    Drained,
    /// A client that had shut down its sending side did not get a response's head.
    Gone,
    /// It did not close its side after we closed ours.
    Linger,
}

/// One client connection, seen from the task that serves it and from its worker's tick.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) ip: IpAddr,
    /// The address as text, for `X-Forwarded-For`.
    pub(super) name: Box<str>,
    pub(super) port: u16,
    /// Where heads are written that go to backends.
    pub(super) heads: RefCell<BytesMut>,
    home: Rc<Home>,
    clock: Rc<Cell<Instant>>,
    phase: Cell<Phase>,
    since: Cell<Instant>,
    request_timeout: Cell<Option<Duration>>,
    request_begun: Cell<Instant>,
    half_closed: Cell<Option<Instant>>,
    /// Part of its request may still be on its way.
    unread: Cell<bool>,
    reset: Cell<bool>,
    expiry: Cell<Option<Expiry>>,
    waker: RefCell<Option<Waker>>,
    slot: RefCell<Option<Rc<Slot>>>,
    uploading: RefCell<Option<Shared>>,
}

impl Client {
    pub(super) fn new(ip: IpAddr, port: u16, home: Rc<Home>, clock: Rc<Cell<Instant>>) -> Self {
        home.meters.connections.up();
        let now = clock.get();
        Self {
            ip,
            name: ip.to_string().into(),
            port,
            heads: RefCell::default(),
            home,
            clock,
            phase: Cell::new(Phase::Idle),
            since: Cell::new(now),
            request_timeout: Cell::new(None),
            request_begun: Cell::new(now),
            half_closed: Cell::new(None),
            unread: Cell::new(false),
            reset: Cell::new(false),
            expiry: Cell::new(None),
            waker: RefCell::default(),
            slot: RefCell::default(),
            uploading: RefCell::default(),
        }
    }

    /// The pool it connected to, for what is counted of it.
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    /// Begins a phase; whatever took too long before no longer matters.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.clock.get());
        self.expiry.set(None);
    }

    /// What it is doing.
    pub(super) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// A request's head is complete.
    pub(super) fn end_head(&self, has_body: bool) {
        self.request_timeout.set(None);
        self.unread.set(has_body);
        self.enter(if has_body { Phase::Upload } else { Phase::Waiting });
    }

    /// The request is looked at from `now` on; `timeout` is the time for the head of its response.
    pub(super) fn begin_request(&self, timeout: Option<Duration>, now: Instant) {
        self.request_timeout.set(timeout);
        self.request_begun.set(now);
    }

    /// The request goes to `slot` over `upstream`, which is remembered while it still takes the body.
    pub(super) fn begin_exchange(&self, slot: &Rc<Slot>, upstream: &Shared) {
        *self.slot.borrow_mut() = Some(slot.clone());
        if self.phase.get() == Phase::Upload {
            *self.uploading.borrow_mut() = Some(upstream.clone());
        }
    }

    /// The request's body is complete.
    pub(super) fn end_upload(&self) {
        if self.unread.replace(false) {
            self.uploading.borrow_mut().take();
            if self.phase.get() == Phase::Upload {
                self.enter(Phase::Waiting);
            }
        }
    }

    /// The exchange is over, one way or the other.
    pub(super) fn end_request(&self) {
        self.slot.borrow_mut().take();
        self.uploading.borrow_mut().take();
        self.enter(Phase::Idle);
    }

    /// Sends on what arrived of a request's body even when nobody asks for more of the response.
    pub(super) fn pump_upload(&self, cx: &mut Context<'_>) {
        let uploading = self.uploading.borrow().clone();
        if let Some(uploading) = uploading {
            // A fault is found again, and then handled, where the response is driven.
            let _ = uploading.borrow_mut().poll_upload(cx);
            if uploading.borrow().is_uploaded() {
                self.end_upload();
            }
        }
    }

    /// A body moved.
    pub(super) fn progressed(&self) {
        self.since.set(self.clock.get());
    }

    /// Whether it has shut down its sending side.
    pub(super) fn is_half_closed(&self) -> bool {
        self.half_closed.get().is_some()
    }

    /// Makes the end of the connection a reset, so that a response cut short does not look complete.
    pub(super) fn reset_on_close(&self) {
        self.reset.set(true);
    }

    /// What took too long, if anything did.
    pub(super) fn expiry(&self) -> Option<Expiry> {
        self.expiry.get()
    }

    /// Remembers whom to wake.
    pub(super) fn wake_with(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// Finds out whether anything takes too long, and wakes the connection's task if so.
    pub(super) fn tick(&self, now: Instant, limits: &Limits, draining: Option<Instant>) {
        if let Some(expiry) = self.find_expiry(now, limits, draining) {
            self.expiry.set(Some(expiry));
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    fn find_expiry(&self, now: Instant, limits: &Limits, draining: Option<Instant>) -> Option<Expiry> {
        let since = self.since.get();
        let over = |from: Instant, limit: Duration| now.saturating_duration_since(from) >= limit;
        let drained = || {
            let slot = self.slot.borrow();
            slot.as_ref()
                .is_some_and(|slot| slot.is_drained(self.request_begun.get(), now))
                .then_some(Expiry::Drained)
        };
        let expired = |expired: bool, expiry| expired.then_some(expiry);
        match self.phase.get() {
            Phase::Idle => {
                let drained = draining.is_some_and(|begun| over(begun.max(since), limits.drain_idle));
                expired(self.is_half_closed() || drained || over(since, limits.idle), Expiry::Idle)
            }
            Phase::Head => expired(over(since, limits.head), Expiry::Head),
            Phase::Upload | Phase::Download => {
                expired(over(since, limits.body_idle), Expiry::Stalled).or_else(drained)
            }
            Phase::Waiting => {
                let gone = self.half_closed.get().is_some_and(|at| over(at, limits.half_close));
                let late = self.request_timeout.get().is_some_and(|limit| over(since, limit));
                expired(gone, Expiry::Gone).or(expired(late, Expiry::Timeout)).or_else(drained)
            }
            Phase::Linger => expired(over(since, limits.linger), Expiry::Linger),
        }
    }

    fn received(&self, bytes: usize) {
        self.home.meters.received.add(bytes as u64);
        match self.phase.get() {
            Phase::Idle => {
                self.unread.set(true);
                self.enter(Phase::Head);
            }
            Phase::Upload | Phase::Download => self.since.set(self.clock.get()),
            Phase::Head | Phase::Waiting | Phase::Linger => {}
        }
    }

    fn sent(&self, bytes: usize) {
        self.home.meters.sent.add(bytes as u64);
        if matches!(self.phase.get(), Phase::Download | Phase::Idle) {
            self.since.set(self.clock.get());
        }
    }

    /// The client shut down its sending side. After a whole request that is no reason to drop it: it may
    /// be waiting for the answer. Whether to keep that from the HTTP machinery.
    fn conceals_end(&self) -> bool {
        let conceals = !self.unread.get() && matches!(self.phase.get(), Phase::Waiting | Phase::Download);
        if conceals && self.half_closed.get().is_none() {
            self.half_closed.set(Some(self.clock.get()));
        }
        conceals
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.home.meters.connections.down();
    }
}

/// The socket of a client, which reports to its `Client` what happens on it.
#[derive(Debug)]
pub(super) struct ClientStream {
    stream: TcpStream,
    client: Rc<Client>,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, client: Rc<Client>) -> Self {
        Self { stream, client }
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if self.client.reset.get() {
            // Should this fail, the socket is closed in order, which the length of the body gives away.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        match buffer.filled().len() - before {
            0 if buffer.remaining() > 0 && self.client.conceals_end() => return Poll::Pending,
            bytes => self.client.received(bytes),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.client.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, parts))?;
        self.client.sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Shuts down our side. If part of a request may still be on its way, reads on for a while: closing
    /// a socket with unread bytes resets it, and the reset can overtake our last answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.client.phase.get() != Phase::Linger {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            if !self.client.unread.get() {
                return Poll::Ready(Ok(()));
            }
            self.client.enter(Phase::Linger);
        }
        let mut space = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // It closed its side too, or is gone.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
