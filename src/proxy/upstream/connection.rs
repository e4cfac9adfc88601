//! Owns one connection to a backend: what it reads, and the heads among it. It is driven by the task of
//! the client it serves, so no task or queue lies between.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::proxy::http1::{self, Asked, ResponseFault, ResponseHead};
use crate::proxy::introduction::Introduction;
use crate::proxy::limits::MAX_HEAD_BYTES;
use crate::proxy::scratch::READ;
use crate::proxy::transport::Transport;

/// Why there is no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Fault {
    /// The backend closed or reset the connection.
    Lost {
        /// Before any byte of a response arrived.
        unanswered: bool,
    },
    /// The backend did not begin with the request, and said so.
    Unprocessed,
    /// What the backend answered cannot be read.
    Response(ResponseFault),
}

impl From<ResponseFault> for Fault {
    fn from(fault: ResponseFault) -> Self {
        Self::Response(fault)
    }
}

/// Opens a connection.
pub(super) async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection to a backend.
#[derive(Debug)]
pub(in crate::proxy) struct Upstream {
    pub(in crate::proxy) stream: Transport,
    /// The start of a head whose end did not come yet.
    kept: Vec<u8>,
    /// Nothing arrived since the request began.
    unanswered: bool,
    used: bool,
    /// The one of its backend in which it was opened.
    era: u32,
    /// What it began with. In a box, so that a connection without one does not carry its room.
    introduction: Option<Box<Introduction>>,
}

impl Upstream {
    /// A connection that was opened.
    pub(super) fn new(stream: Transport, era: u32, introduction: Option<Introduction>) -> Self {
        let introduction = introduction.map(Box::new);
        Self { stream, kept: Vec::new(), unanswered: true, used: false, era, introduction }
    }

    /// The one of its backend in which it was opened.
    pub(super) fn era(&self) -> u32 {
        self.era
    }

    /// For which client it is, if it is for one alone.
    pub(super) fn introduction(&self) -> Option<&Introduction> {
        self.introduction.as_deref()
    }

    /// Whether this connection served a request before the one under way.
    pub(in crate::proxy) fn was_used(&self) -> bool {
        self.used
    }

    /// Marks the end of an exchange.
    pub(super) fn rest(&mut self) {
        self.used = true;
        self.unanswered = true;
    }

    /// Whether a connection that rested is still open and silent. `certain` asks the kernel even when
    /// nothing was reported yet, for requests that cannot be repeated.
    pub(super) fn is_open(&mut self, certain: bool) -> bool {
        let silent =
            |read: io::Result<usize>| read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.stream.is_silent()
            && (!certain || silent(SockRef::from(self.stream.tcp()).peek(&mut [MaybeUninit::uninit()])))
    }

    /// Reads up to the end of the final response's head. What `accept` makes of the head, and where in
    /// `area` the bytes are that came behind it. `interim` sees the heads before it.
    pub(in crate::proxy) fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        area: &mut [u8],
        asked: Asked<'_>,
        mut interim: impl FnMut(&ResponseHead<'_>),
        accept: impl FnOnce(&ResponseHead<'_>) -> T,
    ) -> Poll<Result<(T, Range<usize>), Fault>> {
        loop {
            let before = self.kept.len();
            let free = READ.start + before..READ.end;
            let read = ready!(self.poll_read(cx, &mut area[free.clone()])).unwrap_or(0);
            if read == 0 {
                return Poll::Ready(Err(Fault::Lost { unanswered: self.unanswered }));
            }
            self.unanswered = false;
            area[READ.start..free.start].copy_from_slice(&self.kept);
            self.kept.clear();
            let mut bytes = READ.start..free.start + read;
            if before == 0 || http1::may_end(&area[bytes.clone()], before) {
                while !bytes.is_empty() {
                    let mut space = http1::space();
                    let head = ResponseHead::parse(&area[bytes.clone()], &mut space, asked)?;
                    let Some((head, length)) = head else { break };
                    bytes.start += length;
                    if !head.is_interim() {
                        return Poll::Ready(Ok((accept(&head), bytes)));
                    }
                    interim(&head);
                }
            }
            if bytes.len() >= MAX_HEAD_BYTES {
                return Poll::Ready(Err(ResponseFault::TooLarge.into()));
            }
            self.kept.extend_from_slice(&area[bytes]);
        }
    }

    /// Reads some bytes; 0 when the backend closed its side.
    pub(in crate::proxy) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}
