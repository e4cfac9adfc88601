//! Owns one connection to a backend: a request out, a response in, both at once where the two sides
//! want that. It is driven by the task of the client it serves, so no task or queue lies between.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::HeaderMap;
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::codec::{self, Malformed};
use super::decoder::Decoder;
use super::upload::{Framing, Upload, UploadFault};
use crate::proxy::limits::{BUFFER_BYTES, FIRST_READ_BYTES};

/// Why an exchange failed.
#[derive(Debug)]
pub(in crate::proxy) enum Fault {
    /// The client broke off or garbled its request.
    Client,
    /// The backend closed or reset the connection.
    Lost {
        /// Before any byte of a response arrived.
        unanswered: bool,
    },
    /// The backend's answer is not HTTP.
    Malformed,
}

impl From<Malformed> for Fault {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(in crate::proxy) struct Upstream {
    stream: TcpStream,
    buffer: BytesMut,
    next_read: usize,
    upload: Upload,
    /// The backend no longer takes the request; its answer may still be there to read.
    deaf: bool,
    /// The client's body broke off. Its end must not be made up, so nothing more is sent.
    garbled: bool,
    /// Whether the request asks for a head alone.
    to_head: bool,
    /// Nothing arrived since the request began.
    unanswered: bool,
    download: Decoder,
    keeps: bool,
    used: bool,
}

impl Upstream {
    /// Opens a connection.
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: BytesMut::new(),
            next_read: FIRST_READ_BYTES,
            upload: Upload::new(Bytes::new(), None, Framing::Length(0)),
            deaf: false,
            garbled: false,
            to_head: false,
            unanswered: true,
            download: Decoder::Length(0),
            keeps: true,
            used: false,
        })
    }

    /// Begins an exchange. Nothing is sent before the first poll.
    pub(in crate::proxy) fn begin(
        &mut self,
        head: Bytes,
        body: Option<Incoming>,
        framing: Framing,
        to_head: bool,
    ) {
        self.upload = Upload::new(head, body, framing);
        self.to_head = to_head;
        self.unanswered = true;
        self.keeps = false;
    }

    /// Whether this connection served a request before the one under way.
    pub(in crate::proxy) fn was_used(&self) -> bool {
        self.used
    }

    /// Whether the whole request is on its way.
    pub(in crate::proxy) fn is_uploaded(&self) -> bool {
        self.deaf || self.upload.is_complete()
    }

    /// Whether the backend holds the upload up.
    pub(in crate::proxy) fn is_upload_blocked(&self) -> bool {
        !self.deaf && self.upload.is_queued()
    }

    /// Sends what can be sent. The backend's refusal to take more is no fault: it may have answered early.
    pub(in crate::proxy) fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if self.garbled {
            return Poll::Ready(Err(Fault::Client));
        }
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        match ready!(self.upload.poll(&mut self.stream, cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(UploadFault::Client) => {
                self.garbled = true;
                Poll::Ready(Err(Fault::Client))
            }
            Err(UploadFault::Backend) => {
                self.deaf = true;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Drives the exchange up to the response's head, which fills `headers`.
    pub(in crate::proxy) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        headers: &mut HeaderMap,
    ) -> Poll<Result<Response<()>, Fault>> {
        loop {
            if let Poll::Ready(sent) = self.poll_upload(cx) {
                sent?;
            }
            if let Some(head) = codec::take_head(&mut self.buffer, self.to_head, headers)? {
                self.download = head.body;
                self.keeps = head.keeps;
                return Poll::Ready(Ok(head.response));
            }
            if ready!(self.poll_read(cx)).unwrap_or(0) == 0 {
                return Poll::Ready(Err(Fault::Lost { unanswered: self.unanswered }));
            }
            self.unanswered = false;
        }
    }

    /// Drives the exchange up to the next piece of the response's body; `None` at its end.
    pub(in crate::proxy) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            match self.download.take(&mut self.buffer) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) if self.download.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(malformed) => return Poll::Ready(Some(Err(malformed.into()))),
            }
            if let Poll::Ready(Err(fault)) = self.poll_upload(cx) {
                return Poll::Ready(Some(Err(fault)));
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) if self.download.end() => return Poll::Ready(None),
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(Fault::Lost { unanswered: false }))),
                Ok(_) => {}
            }
        }
    }

    /// What is left of the response's body, where that is known.
    pub(in crate::proxy) fn remaining(&self) -> Option<u64> {
        self.download.exact_size()
    }

    /// Whether the response is complete.
    pub(in crate::proxy) fn is_answered(&self) -> bool {
        self.download.is_done()
    }

    /// Whether both messages ended cleanly and the backend keeps the connection. Only then may another
    /// request use it: whatever is left over on it would be taken for the next one's answer.
    pub(super) fn is_reusable(&self) -> bool {
        self.keeps && self.is_answered() && !self.deaf && self.upload.is_complete() && self.buffer.is_empty()
    }

    /// Marks the end of an exchange.
    pub(super) fn rest(&mut self) {
        self.used = true;
    }

    /// Whether a connection that rested is still open and silent. `certain` asks the kernel even when
    /// nothing was reported yet, for requests that cannot be repeated.
    pub(super) fn is_open(&self, certain: bool) -> bool {
        let silent =
            |read: io::Result<usize>| read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        let reported = silent(self.stream.try_read(&mut [0]));
        reported
            && (!certain
                || silent(socket2::SockRef::from(&self.stream).peek(&mut [std::mem::MaybeUninit::uninit()])))
    }

    /// Reads more; 0 when the backend closed its side.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.buffer.reserve(self.next_read);
        let room = self.buffer.capacity() - self.buffer.len();
        let read = ready!(pin!(self.stream.read_buf(&mut self.buffer)).poll(cx))?;
        if read == room {
            self.next_read = (self.next_read * 2).min(BUFFER_BYTES);
        }
        Poll::Ready(Ok(read))
    }
}
