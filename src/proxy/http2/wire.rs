//! Owns the way between the socket of a client and HTTP/2: bytes that were read before it was known that they are
//! HTTP/2, the measure of its frames, and the end of reading when those are too many.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gauge::Gauge;
use crate::proxy::socket::{ClientSocket, Inbox};
use crate::proxy::worker::Worker;

/// What HTTP/2 reads from and writes to.
pub(super) struct Wire {
    worker: Rc<Worker>,
    socket: ClientSocket,
    inbox: Inbox,
    gauge: Rc<Gauge>,
}

impl Wire {
    pub(super) fn new(worker: Rc<Worker>, socket: ClientSocket, inbox: Inbox, gauge: Rc<Gauge>) -> Self {
        Self { worker, socket, inbox, gauge }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { worker, socket, inbox, gauge } = self.get_mut();
        if gauge.is_spent() {
            // Whoever drives the connection sees the same, and ends it.
            return Poll::Pending;
        }
        if !inbox.is_empty() {
            let taken = inbox.bytes().len().min(buffer.remaining());
            let bytes = &inbox.bytes()[..taken];
            gauge.see(bytes);
            buffer.put_slice(bytes);
            inbox.advance(taken);
            return Poll::Ready(Ok(()));
        }
        let area = &mut worker.scratch.borrow_mut().area;
        let most = area.len().min(buffer.remaining());
        let read = ready!(socket.poll_read(cx, &mut area[..most]))?;
        gauge.see(&area[..read]);
        buffer.put_slice(&area[..read]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
