//! Owns the sending of one request: its head, then its body piece by piece as the client sends it,
//! with no more of it in memory than the piece under way.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::io::AsyncWrite;

/// How the body of a request is framed towards a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Framing {
    /// So many bytes, possibly none.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Who stopped an upload.
#[derive(Debug)]
pub(super) enum UploadFault {
    /// The client broke off or garbled its body.
    Client,
    /// The backend does not take it.
    Backend,
}

/// A request on its way out.
#[derive(Debug)]
pub(super) struct Upload {
    head: Bytes,
    /// Size line of the chunk under way; empty where the body has a length.
    size: Bytes,
    piece: Bytes,
    end: &'static [u8],
    framing: Framing,
    body: Option<Incoming>,
}

impl Upload {
    /// Sends `head` and, if there is one, `body`.
    pub(super) fn new(head: Bytes, body: Option<Incoming>, framing: Framing) -> Self {
        Self { head, size: Bytes::new(), piece: Bytes::new(), end: b"", framing, body }
    }

    /// Whether everything is written.
    pub(super) fn is_complete(&self) -> bool {
        self.body.is_none() && !self.is_queued()
    }

    /// Whether the backend is what it waits for.
    pub(super) fn is_queued(&self) -> bool {
        !(self.head.is_empty() && self.size.is_empty() && self.piece.is_empty() && self.end.is_empty())
    }

    /// Sends as much as client and backend allow; ready when everything is written.
    pub(super) fn poll<W: AsyncWrite + Unpin>(
        &mut self,
        backend: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadFault>> {
        loop {
            if self.piece.is_empty() && self.size.is_empty() && self.end.is_empty() {
                // Asked before the head is written, so that head and first piece leave together.
                self.pull(cx)?;
            }
            if !self.is_queued() {
                return if self.body.is_none() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            ready!(self.write(backend, cx)).map_err(|_| UploadFault::Backend)?;
        }
    }

    fn pull(&mut self, cx: &mut Context<'_>) -> Result<(), UploadFault> {
        let Some(body) = &mut self.body else { return Ok(()) };
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { return Ok(()) };
        match frame.transpose().map_err(|_| UploadFault::Client)? {
            Some(frame) => {
                // Trailers end at this hop.
                self.piece = frame.into_data().unwrap_or_default();
                let ended = body.is_end_stream() && self.framing != Framing::Chunked;
                if self.framing == Framing::Chunked && !self.piece.is_empty() {
                    self.size = Bytes::from(format!("{:x}\r\n", self.piece.len()));
                    self.end = b"\r\n";
                }
                if ended {
                    self.body = None;
                }
            }
            None => {
                self.body = None;
                if self.framing == Framing::Chunked {
                    self.end = b"0\r\n\r\n";
                }
            }
        }
        Ok(())
    }

    fn write<W: AsyncWrite + Unpin>(
        &mut self,
        backend: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.is_queued() {
            let written = if self.piece.is_empty() && self.end.is_empty() {
                ready!(Pin::new(&mut *backend).poll_write(cx, &self.head))?
            } else {
                let parts = [&*self.head, &*self.size, &*self.piece, self.end].map(IoSlice::new);
                ready!(Pin::new(&mut *backend).poll_write_vectored(cx, &parts))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        for part in [&mut self.head, &mut self.size, &mut self.piece] {
            let here = written.min(part.len());
            part.advance(here);
            written -= here;
        }
        self.end = &self.end[written.min(self.end.len())..];
    }
}
