//! Owns the socket of a client: it tells its `Client` what moves on it, and keeps what was read ahead
//! of its time, such as the start of a head or the next request.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::client::Client;
use super::headers::Scheme;
use super::http1;
use super::limits::{MAX_HEAD_BYTES, PROBE_AFTER, PROBE_EVERY, PROBES};
use super::transport::Transport;

/// The socket of a client.
#[derive(Debug)]
pub(super) struct ClientSocket {
    stream: Transport,
    client: Rc<Client>,
}

impl ClientSocket {
    pub(super) fn new(stream: Transport, client: Rc<Client>) -> Self {
        Self { stream, client }
    }

    /// The connection itself.
    pub(super) fn tcp(&self) -> &TcpStream {
        self.stream.tcp()
    }

    /// Whether its bytes are on the wire as we have them.
    pub(super) fn is_plain(&self) -> bool {
        !self.stream.is_tls()
    }

    /// Whether its end is to be told in a way that nobody else can (RFC 8446 section 6.1).
    pub(super) fn says_goodbye(&self) -> bool {
        self.stream.is_tls()
    }

    /// Whether the handshake said that HTTP/2 follows.
    pub(super) fn agreed_on_http2(&self) -> bool {
        self.stream.protocol() == Some(b"h2")
    }

    /// The scheme of URIs that lead here.
    pub(super) fn scheme(&self) -> Scheme {
        if self.stream.is_tls() { Scheme::Https } else { Scheme::Http }
    }

    /// The address and port the client connected to, as a URI names them. Asked of the kernel, which few
    /// connections are worth.
    pub(super) fn authority(&self) -> String {
        // Should the kernel not know, an unnamed host is the truth (RFC 9110 section 7.2).
        self.local_address().map_or_else(String::new, |it| it.to_string())
    }

    /// The address and port the client connected to, if the kernel knows.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        let here = self.tcp().local_addr().ok()?;
        Some(SocketAddr::new(here.ip().to_canonical(), here.port()))
    }

    /// Whether the client shut down its side, though what it sent before was not read yet.
    pub(super) fn is_read_closed(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = pin!(self.tcp().ready(Interest::READABLE)).poll(&mut cx);
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Reads some bytes; 0 when the client shut down its side.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        let read = buffer.filled().len();
        self.client.received(read);
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.client.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.client.sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        if self.client.is_reset_on_close() {
            reset_on_close(self.tcp());
        }
    }
}

/// Makes the end of a connection a reset.
pub(super) fn reset_on_close(stream: &TcpStream) {
    // Should this fail, it is closed in order, which only a length that does not come out gives away.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Lets the kernel ask a silent peer whether it is still there, and end the connection when it is not.
pub(super) fn probe(stream: &TcpStream) {
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
    // A peer that cannot be asked is found out by the limit of idle time, later.
    let _ = SockRef::from(stream).set_tcp_keepalive(&probes);
}

/// Bytes of a client that were read and not used yet: one read and an incomplete head at most, because
/// nothing more is read while there is that much to use.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    kept: BytesMut,
    /// How many of them were searched for the end of a head.
    searched: usize,
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Keeps bytes behind those that are there.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
    }

    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.kept
    }

    /// Takes the first bytes away. With the last of them, the memory is given back.
    pub(super) fn advance(&mut self, used: usize) {
        self.kept.advance(used);
        self.searched = 0;
        if self.kept.is_empty() {
            self.kept = BytesMut::new();
        }
    }

    /// Whether it is worth looking for a head at its start: there may be a whole one, or too much of one.
    pub(super) fn may_hold_head(&mut self) -> bool {
        let searched = std::mem::replace(&mut self.searched, self.kept.len());
        http1::may_end(&self.kept, searched) || self.kept.len() >= MAX_HEAD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_looked_for_only_when_its_end_may_have_come() {
        let mut inbox = Inbox::default();
        let mut looked = Vec::new();
        for byte in b"GET / HTTP/1.1\r\na: b\r\n\r\n" {
            inbox.keep(&[*byte]);
            if inbox.may_hold_head() {
                looked.push(inbox.bytes().len());
            }
        }
        assert_eq!(looked, [24]);
        inbox.keep(b"GET");
        inbox.advance(24);
        assert_eq!(inbox.bytes(), b"GET");
        assert!(!inbox.may_hold_head());
        inbox.keep(&[b'x'; MAX_HEAD_BYTES]);
        assert!(inbox.may_hold_head());
    }
}
