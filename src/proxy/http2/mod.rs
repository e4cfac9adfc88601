//! Owns the connections of clients that speak HTTP/2: each of their streams is one request, answered by a task
//! of its own, while the connection's task carries the frames of all of them, within limits.

mod connection;
mod gauge;
mod grpc;
pub(super) mod head;
mod stream;
mod wire;

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use super::headers;
use super::relay::{Broken, Part};

pub(super) use connection::serve;
pub(super) use grpc::is_call;

/// How a client that speaks HTTP/2 without asking begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The line of it that nobody sends who does not speak HTTP/2.
const PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// What is said to somebody who does not get it right: the settings that come first, and a goodbye that blames the
/// protocol (RFC 9113 sections 3.4 and 6.8).
pub(super) const GOODBYE: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    Http2,
    /// They may become that.
    Incomplete,
    /// They were to be that, and are not.
    Broken,
    Other,
}

/// Whether a client begins with HTTP/2.
pub(super) fn beginning(bytes: &[u8]) -> Beginning {
    if bytes.starts_with(PREFACE) {
        Beginning::Http2
    } else if PREFACE.starts_with(bytes) {
        Beginning::Incomplete
    } else if bytes.starts_with(PREFACE_LINE) {
        Beginning::Broken
    } else {
        Beginning::Other
    }
}

/// The next part of what a peer sends. Its window opens again as the part is taken: no second one is before the
/// first went on. `answers_call` says that it is an answer of gRPC.
pub(super) fn poll_part(
    incoming: &mut RecvStream,
    cx: &mut Context<'_>,
    answers_call: bool,
) -> Poll<Result<Part, h2::Error>> {
    let part = ready!(poll_ahead(incoming, cx, answers_call))?;
    take(incoming, &part);
    Poll::Ready(Ok(part))
}

/// The same, but its window opens only when the part is taken. So what is read ahead takes no more memory than what is
/// not read at all.
fn poll_ahead(
    incoming: &mut RecvStream,
    cx: &mut Context<'_>,
    answers_call: bool,
) -> Poll<Result<Part, h2::Error>> {
    match ready!(incoming.poll_data(cx)) {
        Some(bytes) => {
            let bytes = bytes?;
            let last = incoming.is_end_stream();
            Poll::Ready(Ok(Part::Data { bytes, last }))
        }
        None => {
            let trailers = ready!(incoming.poll_trailers(cx))?;
            Poll::Ready(Ok(Part::End(trailers.and_then(|fields| headers::trailers(fields, answers_call)))))
        }
    }
}

fn take(incoming: &mut RecvStream, part: &Part) {
    // It fails only for more than was received.
    let _ = incoming.flow_control().release_capacity(part.length());
}

/// How many of `wanted` bytes may be sent to a peer.
pub(super) fn poll_room(
    outgoing: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    wanted: usize,
) -> Poll<Result<usize, Broken>> {
    outgoing.reserve_capacity(wanted);
    if outgoing.capacity() > 0 {
        return Poll::Ready(Ok(outgoing.capacity().min(wanted)));
    }
    match ready!(outgoing.poll_capacity(cx)) {
        Some(Ok(room)) => Poll::Ready(Ok(room.min(wanted))),
        Some(Err(_)) | None => Poll::Ready(Err(Broken::Gone)),
    }
}

/// Sends a part to a peer.
pub(super) fn put(outgoing: &mut SendStream<Bytes>, part: Part) -> Result<(), Broken> {
    let sent = match part {
        Part::Data { bytes, last } => outgoing.send_data(bytes, last),
        Part::End(Some(trailers)) => outgoing.send_trailers(trailers),
        Part::End(None) => outgoing.send_data(Bytes::new(), true),
    };
    sent.map_err(|_| Broken::Gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_preface_begins_http_2() {
        for end in 0..PREFACE.len() {
            assert_eq!(beginning(&PREFACE[..end]), Beginning::Incomplete);
        }
        assert_eq!(beginning(&[PREFACE, b"\0\0\0"].concat()), Beginning::Http2);
        for other in ["PRI * HTTP/2.0\r\n\r\nXX", "PRI * HTTP/2.0\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\nX"]
        {
            assert_eq!(beginning(other.as_bytes()), Beginning::Broken, "{other:?}");
        }
        for other in ["PRI * HTTP/2.0\n", "PRI * HTTP/1.1\r\n", "PRI / HTTP/2.0\r\n\r\n", "INVALID"] {
            assert_eq!(beginning(other.as_bytes()), Beginning::Other, "{other:?}");
        }
        assert_eq!(beginning(b"GET / HTTP/1.1\r\n\r\n"), Beginning::Other);
    }
}
