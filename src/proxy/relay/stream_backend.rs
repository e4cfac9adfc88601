//! Owns the backend's side of an exchange over HTTP/2: one stream of a connection that others use too. Whatever
//! becomes of it, dropping it ends the stream and nothing else.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

use super::{BackendSide, Broken, Errand, Part, Party};
use crate::proxy::http1::{Asked, Framing, ResponseFault, ResponseHead};
use crate::proxy::http2::{self, head};
use crate::proxy::service::Stop;
use crate::proxy::upstream::{Berth, Fault};

/// A backend that speaks HTTP/2.
pub(super) struct StreamBackend {
    response: ResponseFuture,
    outgoing: SendStream<Bytes>,
    incoming: Option<RecvStream>,
    /// It answers as gRPC does.
    is_call: bool,
    /// Its place on the connection, which others may take when this is dropped.
    berth: Berth,
}

impl StreamBackend {
    /// Sends the head of the request. The outer error is the client's fault, the inner one the connection's.
    pub(super) fn send(berth: Berth, errand: &Errand<'_>) -> Result<Result<Self, Fault>, Stop> {
        let request = head::request_of(errand.head, berth.scheme()).map_err(Stop::Rescue)?;
        let sent = berth.send(request, errand.framing == Framing::Length(0));
        Ok(sent.map(|(response, outgoing)| Self {
            response,
            outgoing,
            incoming: None,
            is_call: false,
            berth,
        }))
    }
}

impl Party for StreamBackend {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(Err(Broken::Gone)) };
        let part = ready!(http2::poll_part(incoming, cx, self.is_call)).map_err(|_| Broken::Gone)?;
        self.berth.answer();
        Poll::Ready(Ok(part))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Broken>> {
        http2::poll_room(&mut self.outgoing, cx, wanted)
    }

    fn put(&mut self, part: Part) -> Result<(), Broken> {
        http2::put(&mut self.outgoing, part)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        // The connection's own task sends it.
        Poll::Ready(Ok(()))
    }
}

impl BackendSide for StreamBackend {
    fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked<'_>,
        accept: impl FnOnce(&ResponseHead<'_>, bool) -> T,
    ) -> Poll<Result<T, Fault>> {
        let response = ready!(Pin::new(&mut self.response).poll(cx)).map_err(|error| fault_of(&error))?;
        self.berth.answer();
        let (parts, incoming) = response.into_parts();
        let ends = incoming.is_end_stream();
        self.incoming = Some(incoming);
        self.is_call = http2::is_call(&parts.headers);
        let accepted = head::with_response(&parts, asked, !ends, |head| accept(head, ends));
        Poll::Ready(accepted.map_err(Fault::from))
    }
}

/// What an error before the head of a response means.
fn fault_of(error: &h2::Error) -> Fault {
    let is_refusal = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    // To a stream, a goodbye is an error only if the stream lies behind what the backend will process.
    if error.is_remote() && (is_refusal || error.is_go_away()) {
        Fault::Unprocessed
    } else if error.is_reset() && error.is_library() {
        Fault::Response(ResponseFault::Malformed)
    } else {
        Fault::Lost { unanswered: !error.is_reset() }
    }
}
