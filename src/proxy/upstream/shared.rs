//! Owns the connections of HTTP/2 to one backend of one worker thread: few, each shared by many requests, and
//! each driven by a task of its own. A request has a place on one, and no other notices how it ends.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Context;
use std::time::Instant;

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::uri::Scheme;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::spawn_local;

use super::pulse::{self, Heard, Signs};
use super::{Fault, Slot};
use crate::metrics::RetryReason;
use crate::proxy::limits::{
    CONNECTION_WINDOW, LINK_IDLE, LINK_SILENCE, MAX_HEAD_BYTES, MAX_LINKS, MAX_RESETS_REMEMBERED,
    MAX_STREAM_OUT, MAX_STREAMS, MAX_STREAMS_PER_LINK, STREAM_WINDOW,
};
use crate::proxy::socket;
use crate::proxy::transport::Transport;

/// The connections to one backend.
#[derive(Debug, Default)]
pub(super) struct Links {
    open: RefCell<Vec<Rc<Link>>>,
    opening: Mutex<()>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Link {
    sender: SendRequest<Bytes>,
    signs: Rc<Signs>,
    /// What it is, as URIs name it.
    scheme: Scheme,
    /// It served a request before.
    used: Cell<bool>,
    idle_since: Cell<Instant>,
}

/// A request's place on a connection.
#[derive(Debug)]
pub(in crate::proxy) struct Berth {
    pub(in crate::proxy) slot: Rc<Slot>,
    link: Rc<Link>,
    was_used: bool,
}

impl Links {
    /// A place on a connection that has room.
    pub(super) fn berth(&self, slot: &Rc<Slot>) -> Option<Berth> {
        let mut open = self.open.borrow_mut();
        open.retain(|link| link.takes_requests());
        let link = open.iter().find(|link| link.has_room())?;
        Some(Berth::new(slot.clone(), link.clone()))
    }

    /// Adds a connection, for further requests too where it `stays`; a place on it.
    pub(super) fn add(&self, slot: &Rc<Slot>, link: Link, stays: bool) -> Berth {
        let link = Rc::new(link);
        if stays {
            self.open.borrow_mut().push(link.clone());
        }
        Berth::new(slot.clone(), link)
    }

    /// The right to open a connection.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.opening.lock().await
    }

    /// Whether there may be no further connection.
    pub(super) fn are_all_taken(&self) -> bool {
        self.open.borrow().len() >= MAX_LINKS
    }

    /// Closes connections that ended or were idle for too long. Whether any is left.
    pub(super) fn tidy(&self, now: Instant) -> bool {
        let mut open = self.open.borrow_mut();
        open.retain(|link| link.takes_requests() && !link.is_idle(now));
        !open.is_empty()
    }

    /// Since when no request is under way, if none is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let open = self.open.borrow();
        let is_idle = open.iter().all(|link| link.signs.streams.get() == 0);
        is_idle.then(|| open.iter().map(|link| link.idle_since.get()).max()).flatten()
    }

    /// Forgets all connections; each ends with its last request.
    pub(super) fn let_go(&self) {
        self.open.borrow_mut().clear();
    }
}

impl Link {
    /// What TLS calls the protocol (RFC 9113 section 3.2).
    pub(super) const NAME: &[u8] = b"h2";

    /// Begins to use a connection, which from then on is driven by a task that ends with it.
    pub(super) async fn begin(transport: Transport) -> Result<Self, RetryReason> {
        guard(transport.tcp());
        let scheme = if transport.is_tls() { Scheme::HTTPS } else { Scheme::HTTP };
        let (address, signs) = (transport.tcp().peer_addr().ok(), Rc::<Signs>::default());
        let heard = Heard::new(transport, signs.clone());
        let (sender, connection) = handshake(heard).await.map_err(|_| RetryReason::ConnectFailed)?;
        spawn_local(drive(connection, signs.clone(), address));
        let (used, idle_since) = (Cell::new(false), Cell::new(Instant::now()));
        Ok(Self { sender, signs, scheme, used, idle_since })
    }

    /// Whether the backend takes requests here: neither has it said goodbye, nor is the connection lost.
    fn takes_requests(&self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        !matches!(self.sender.clone().poll_ready(&mut cx), std::task::Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        self.signs.streams.get() < self.sender.current_max_send_streams().min(MAX_STREAMS_PER_LINK)
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.signs.streams.get() == 0 && now.saturating_duration_since(self.idle_since.get()) >= LINK_IDLE
    }
}

/// Lets the kernel notice a host that vanished.
fn guard(stream: &TcpStream) {
    socket::probe(stream);
    // Without it the kernel's own patience counts, which is only longer.
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(LINK_SILENCE));
}

/// Carries frames until the connection has ended or nobody is at its other end. How it ended is seen by each of its
/// streams.
async fn drive(
    mut connection: Connection<Heard<Transport>, Bytes>,
    signs: Rc<Signs>,
    address: Option<SocketAddr>,
) {
    let pings = connection.ping_pong().expect("nobody else asked for it");
    tokio::select! {
        biased;
        _ = connection => {}
        () = pulse::lost(&signs, pings) => {
            let requests = signs.streams.get();
            tracing::warn!(?address, requests, "a backend sends nothing, not even an answer to a ping; what it was asked is lost");
        }
    }
}

async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(
    transport: T,
) -> Result<(SendRequest<Bytes>, Connection<T, Bytes>), h2::Error> {
    h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(MAX_STREAMS as usize)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_send_buffer_size(MAX_STREAM_OUT)
        .max_concurrent_reset_streams(MAX_RESETS_REMEMBERED)
        // Data of streams that clients cancelled counts as the backend's mistake otherwise, and after a thousand of
        // those the whole connection would end. A backend is trusted that far.
        .max_local_error_reset_streams(None)
        .handshake(transport)
        .await
}

impl Berth {
    fn new(slot: Rc<Slot>, link: Rc<Link>) -> Self {
        link.signs.streams.update(|streams| streams + 1);
        let was_used = link.used.replace(true);
        Self { slot, link, was_used }
    }

    /// Part of the answer came.
    pub(in crate::proxy) fn answer(&self) {
        self.link.signs.answer();
    }

    /// Whether the connection served a request before.
    pub(in crate::proxy) fn was_used(&self) -> bool {
        self.was_used
    }

    /// The scheme of URIs that lead along here.
    pub(in crate::proxy) fn scheme(&self) -> Scheme {
        self.link.scheme.clone()
    }

    /// Sends the head of a request; `ends` says that no body follows.
    pub(in crate::proxy) fn send(
        &self,
        request: http::Request<()>,
        ends: bool,
    ) -> Result<(ResponseFuture, h2::SendStream<Bytes>), Fault> {
        // Nothing was sent, so the backend knows nothing of it.
        self.link.sender.clone().send_request(request, ends).map_err(|_| Fault::Unprocessed)
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        self.link.signs.streams.update(|streams| streams - 1);
        self.link.idle_since.set(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;
    use crate::balance::backend::Backend;

    /// A connection to a backend that takes whatever comes, and the task that ends with it.
    async fn connected() -> (Link, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let served = spawn_local(async {
            let mut connection = h2::server::handshake(far.unwrap().0).await.unwrap();
            while let Some(Ok(_)) = connection.accept().await {}
        });
        (Link::begin(Transport::Plain(near.unwrap())).await.unwrap(), served)
    }

    #[tokio::test]
    async fn a_connection_that_nobody_uses_is_closed_after_a_while() {
        let backend = Backend {
            id: "b".into(),
            group: "stable".into(),
            name: "b".into(),
            address: "127.0.0.1:1".parse().unwrap(),
            http: crate::balance::backend::HttpVersion::Http2,
        };
        let slot = Rc::new(Slot::new(Arc::new(backend)));
        let links = Links::default();
        let test = async {
            let (link, served) = connected().await;
            let berth = links.add(&slot, link, true);
            assert!(links.tidy(Instant::now() + LINK_IDLE * 2), "it is in use");
            drop(berth);
            let now = Instant::now();
            assert!(links.tidy(now + LINK_IDLE - Duration::from_secs(1)));
            assert!(!links.tidy(now + LINK_IDLE));
            served.await.unwrap();
        };
        LocalSet::new().run_until(test).await;
    }

    #[tokio::test]
    async fn the_kernel_gives_a_host_up_that_does_not_acknowledge() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        guard(&stream);
        assert_eq!(SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(LINK_SILENCE));
    }
}
