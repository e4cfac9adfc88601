//! Owns the task of one client connection: one request after the other, each read, answered and
//! accounted for, until one side wants to end.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::access_log::Entry;
use super::admission::Ticket;
use super::client::{Client, Expiry, Phase};
use super::entry::{self, Entered, Entrance};
use super::flow::Flow;
use super::http1::{self, Framing, HeadFault, RequestHead};
use super::http2::{self, Beginning};
use super::limits::HEAD_GROWTH_BYTES;
use super::rescue::ProxyError;
use super::service;
use super::socket::{ClientSocket, Inbox};
use super::view::{Home, PoolView, View};
use super::worker::Worker;
use crate::balance::pool::Protocol;

/// One connection of a client.
pub(super) struct Connection {
    pub(super) worker: Rc<Worker>,
    pub(super) client: Rc<Client>,
    pub(super) socket: ClientSocket,
    pub(super) inbox: Inbox,
    /// The request on its way to a backend, and the response on its way to the client.
    pub(super) upload: Flow,
    pub(super) download: Flow,
    /// The client waits for `100 Continue` before it sends its body.
    pub(super) awaits_continue: bool,
    /// Bytes of interim answers that may still be passed on before the final one.
    pub(super) interim_left: usize,
    /// Nothing came yet, so the client may still turn out to speak HTTP/2.
    is_fresh: bool,
}

/// What is kept of a request when its head was read.
pub(super) struct Request {
    pub(super) begun: Instant,
    /// Of the version: 0 or 1.
    pub(super) minor: u8,
    /// It was to be the beginning of HTTP/2, and its sender understands nothing else.
    pub(super) breaks_preface: bool,
    /// Whether it is a HEAD.
    pub(super) to_head: bool,
    /// The protocol that the client asks to switch to.
    pub(super) upgrade: Option<Box<str>>,
    /// Whether the client keeps the connection.
    pub(super) keeps: bool,
    pub(super) expects_continue: bool,
    /// Whether the client takes fields behind the response's body.
    pub(super) takes_trailers: bool,
    pub(super) framing: Framing,
    pub(super) home: Rc<Home>,
    /// For its line in the access log, if it gets one.
    pub(super) entry: Option<Box<Entry>>,
    pub(super) order: Result<Order, ProxyError>,
}

/// Where a checked request is to go. Its head is written already.
pub(super) struct Order {
    pub(super) pool: Rc<PoolView>,
    pub(super) key: u64,
    /// It may be sent twice.
    pub(super) repeatable: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// In order, after our last answer.
    Close,
    /// At once: nobody waits for anything.
    Drop,
    /// Not at all: the client speaks HTTP/2 on it.
    Switch,
}

/// Serves one client until its connection ends. It counts as long as `ticket` lives.
pub(super) async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    client: Rc<Client>,
    mut ticket: Ticket,
    protocol: Protocol,
    entrance: Entrance,
) {
    let _watch = PanicWatch(worker.clone());
    poll_fn(|cx| {
        client.wake_with(cx.waker());
        Poll::Ready(())
    })
    .await;
    let entered = entry::enter(&worker, &client, stream, &mut ticket, entrance).await;
    let Some(Entered { socket, inbox }) = entered else { return };
    let mut connection = Connection {
        worker,
        client,
        socket,
        inbox,
        upload: Flow::default(),
        download: Flow::default(),
        awaits_continue: false,
        interim_left: 0,
        is_fresh: true,
    };
    if protocol != Protocol::Http {
        return connection.carry().await;
    }
    if connection.socket.agreed_on_http2() {
        return Box::pin(http2::serve(connection)).await;
    }
    let end = loop {
        match poll_fn(|cx| connection.poll_request(cx)).await {
            Ok(request) => {
                if let Some(end) = connection.answer(request).await {
                    break end;
                }
            }
            Err(end) => break end,
        }
    };
    match end {
        End::Close => poll_fn(|cx| connection.poll_close(cx)).await,
        End::Drop => {}
        // In a box, so that a connection of HTTP/1 does not carry its room.
        End::Switch => Box::pin(http2::serve(connection)).await,
    }
}

impl Connection {
    /// Reads up to the end of a request's head.
    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request, End>> {
        let Self { worker, client, socket, inbox, upload, is_fresh, .. } = self;
        let out = upload.out.space();
        if !inbox.is_empty() {
            // The client was faster than we: it sent this behind the request before.
            client.begin_head();
        }
        loop {
            if inbox.may_hold_head()
                && let Some((request, used)) =
                    Request::parse(worker, client, socket, inbox.bytes(), out, *is_fresh)
            {
                if request.is_ok() {
                    inbox.advance(used);
                }
                *is_fresh = false;
                return Poll::Ready(request);
            }
            let mut scratch = worker.scratch.borrow_mut();
            let bytes = match socket.poll_read(cx, &mut scratch.area) {
                Poll::Ready(Ok(read @ 1..)) => &scratch.area[..read],
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(End::Drop)),
                Poll::Pending => return expired(client),
            };
            client.begin_head();
            if inbox.is_empty()
                && let Some((request, used)) = Request::parse(worker, client, socket, bytes, out, *is_fresh)
            {
                inbox.keep(&bytes[used..]);
                *is_fresh = false;
                return Poll::Ready(request);
            }
            inbox.keep(bytes);
        }
    }

    /// Shuts down our side. If the client may still be sending, reads on for a while: closing a socket
    /// with unread bytes resets it, and the reset can overtake our last answer.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.client.phase() != Phase::Linger {
            let is_read = !self.client.is_unread() && self.inbox.is_empty();
            if is_read && !self.socket.says_goodbye() {
                // The end of the socket says the same.
                return Poll::Ready(());
            }
            self.client.enter(Phase::Linger);
            let told = Pin::new(&mut self.socket).poll_shutdown(cx);
            if is_read || matches!(told, Poll::Ready(Err(_))) {
                return Poll::Ready(());
            }
        }
        let mut scratch = self.worker.scratch.borrow_mut();
        loop {
            match self.socket.poll_read(cx, &mut scratch.area) {
                Poll::Ready(Ok(1..)) => {}
                // It closed its side too, or is gone.
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Pending if self.client.expiry() == Some(Expiry::Linger) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Ends the wait for a request if it takes too long. There is nobody to give an answer to.
fn expired<T>(client: &Client) -> Poll<Result<T, End>> {
    match client.expiry() {
        Some(Expiry::Idle | Expiry::Head) => Poll::Ready(Err(End::Drop)),
        _ => Poll::Pending,
    }
}

impl Request {
    /// The request at the start of `bytes` and how many of them are its head; `None` while that is
    /// incomplete. What is to go to a backend is written to `out`. Where `is_fresh`, they may begin HTTP/2.
    fn parse(
        worker: &Worker,
        client: &Client,
        socket: &ClientSocket,
        bytes: &[u8],
        out: &mut Vec<u8>,
        is_fresh: bool,
    ) -> Option<(Result<Self, End>, usize)> {
        let mut space = http1::space();
        match RequestHead::parse(bytes, &mut space) {
            Ok(None) => None,
            Ok(Some((head, length))) => {
                out.reserve(length + HEAD_GROWTH_BYTES);
                Some((Ok(Self::new(worker, client, socket, &head, out)), length))
            }
            Err(_) if is_fresh && http2::beginning(bytes) == Beginning::Incomplete => None,
            Err(_) if is_fresh && http2::beginning(bytes) == Beginning::Http2 => Some((Err(End::Switch), 0)),
            Err(_) if is_fresh && http2::beginning(bytes) == Beginning::Broken => {
                let refused = Self::refused(worker, client, BROKEN_PREFACE);
                Some((Ok(Self { breaks_preface: true, ..refused }), bytes.len()))
            }
            Err(fault) => Some((Ok(Self::refused(worker, client, fault)), bytes.len())),
        }
    }

    fn new(
        worker: &Worker,
        client: &Client,
        socket: &ClientSocket,
        head: &RequestHead<'_>,
        out: &mut Vec<u8>,
    ) -> Self {
        let begun = Instant::now();
        let has_body = head.framing != Framing::Length(0);
        client.end_head(has_body, begun);
        let view = worker.view();
        let repeatable = !has_body && service::is_idempotent(head.method);
        let admit = |()| service::admit(view.port(client.port), client, head, || socket.authority(), out);
        let admitted = worker.has_room().and_then(admit);
        let order = admitted.map(|(pool, key)| Order { pool, key, repeatable });
        if let Ok(order) = &order {
            client.visit(&order.pool.home);
            if order.pool.introduces() {
                client.came_to(|| socket.local_address());
            }
        }
        let home = home_of(order.as_ref().ok(), &view, client);
        let entry = home.entry(|| entry(client, head, order.as_ref().ok().map(|order| order.key)));
        Self {
            begun,
            minor: head.minor,
            breaks_preface: false,
            to_head: head.method == "HEAD",
            upgrade: head.upgrade.map(Into::into),
            keeps: head.keeps,
            expects_continue: head.expects_continue,
            takes_trailers: head.takes_trailers,
            framing: head.framing,
            home,
            entry,
            order,
        }
    }

    /// Bytes of which nobody knows where they end, so they end the connection.
    fn refused(worker: &Worker, client: &Client, fault: HeadFault) -> Self {
        let begun = Instant::now();
        client.end_head(true, begun);
        let home = home_of(None, &worker.view(), client);
        Self {
            begun,
            minor: 1,
            breaks_preface: false,
            to_head: false,
            upgrade: None,
            keeps: false,
            expects_continue: false,
            takes_trailers: false,
            framing: Framing::UntilClose,
            entry: home.entry(Entry::unreadable),
            home,
            order: Err(fault.into()),
        }
    }
}

const BROKEN_PREFACE: HeadFault = HeadFault::Malformed("the preface of HTTP/2 is broken");

fn entry(client: &Client, head: &RequestHead<'_>, key: Option<u64>) -> Entry {
    let protocol = if head.minor == 0 { "HTTP/1.0" } else { "HTTP/1.1" };
    let host = head.fields.get("host").unwrap_or_default();
    let mut entry = Entry::new(protocol, head.method, host, head.target, key);
    entry.on_behalf_of = client.hearsay(head).map(|said| said.ip);
    entry
}

/// Where a request counts: at its pool, or where it was refused before anybody knew that, at the port.
pub(super) fn home_of(order: Option<&Order>, view: &View, client: &Client) -> Rc<Home> {
    let of_port = || view.port(client.port).map(|port| port.home().clone());
    order.map(|order| order.pool.home.clone()).or_else(of_port).unwrap_or_else(|| client.home())
}

/// The runtime keeps a panic to the task it happened in; this makes it visible.
pub(super) struct PanicWatch(pub(super) Rc<Worker>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.meters.panicked();
        }
    }
}
