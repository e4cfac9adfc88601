//! Owns the backend's side of an exchange over HTTP/1 with a client that speaks HTTP/2.

use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;

use super::{BackendSide, Broken, Errand, Part, Party};
use crate::proxy::flow::Outbox;
use crate::proxy::headers;
use crate::proxy::http1::{Asked, Decoder, Encoder, Framing, ResponseHead};
use crate::proxy::scratch::READ;
use crate::proxy::service::Reached;
use crate::proxy::upstream::Fault;
use crate::proxy::worker::Worker;

/// A backend that speaks HTTP/1.
pub(super) struct PlainBackend<'a> {
    worker: &'a Worker,
    reached: Reached,
    out: Outbox,
    encoder: Encoder,
    /// The request was put to its end.
    is_asked: bool,
    decoder: Decoder,
    /// Of the response's body, what came with its head.
    kept: Vec<u8>,
    /// Whether the connection may serve another request, once both messages ended.
    reusable: bool,
}

impl<'a> PlainBackend<'a> {
    pub(super) fn new(errand: &Errand<'a>, reached: Reached) -> Self {
        let mut out = Outbox::default();
        out.space().extend_from_slice(errand.head);
        let encoder = if errand.framing == Framing::Chunked { Encoder::Chunked } else { Encoder::Plain };
        let is_asked = errand.framing == Framing::Length(0);
        let (decoder, kept) = (Decoder::Length(0), Vec::new());
        Self { worker: errand.worker, reached, out, encoder, is_asked, decoder, kept, reusable: false }
    }

    /// Gives the connection back if both messages ended cleanly.
    pub(super) fn release(self, now: Instant) {
        if self.reusable && self.is_asked && self.out.is_empty() && self.decoder.is_done() {
            self.reached.slot.give_back(self.reached.upstream, now);
        }
    }

    /// Takes what lies in the area of the worker behind the start of `READ`: data, if there is some.
    fn take(&mut self, area: &mut [u8], length: usize) -> Result<Bytes, Broken> {
        let raw = &mut area[READ.start..READ.start + length];
        let decoded = self.decoder.decode(raw).map_err(|_| Broken::Malformed)?;
        // What follows the response would be taken for the answer to the next request.
        self.reusable &= decoded.used == length;
        Ok(Bytes::copy_from_slice(&raw[decoded.data]))
    }
}

impl Party for PlainBackend<'_> {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        let worker = self.worker;
        let area = &mut worker.scratch.borrow_mut().area;
        loop {
            if self.decoder.is_done() {
                return Poll::Ready(Ok(Part::End(headers::of_lines(self.decoder.trailers()))));
            }
            let length = if self.kept.is_empty() {
                let read = self.reached.upstream.poll_read(cx, &mut area[READ]);
                ready!(read).map_err(|_| Broken::Gone)?
            } else {
                let kept = std::mem::take(&mut self.kept);
                area[READ.start..READ.start + kept.len()].copy_from_slice(&kept);
                kept.len()
            };
            if length == 0 {
                let ended = self.decoder.end();
                return Poll::Ready(if ended { Ok(Part::End(None)) } else { Err(Broken::Gone) });
            }
            let bytes = self.take(area, length)?;
            if !bytes.is_empty() {
                let last = self.decoder.is_done() && self.decoder.trailers().is_empty();
                return Poll::Ready(Ok(Part::Data { bytes, last }));
            }
        }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Broken>> {
        let receiver = &mut self.reached.upstream.stream;
        self.out.poll_room(cx, receiver, wanted).map_err(|_| Broken::Gone)
    }

    fn put(&mut self, part: Part) -> Result<(), Broken> {
        let (bytes, behind) = part.into_plain();
        let area = &mut self.worker.scratch.borrow_mut().area;
        self.out.put_framed(area, self.encoder, &bytes, behind.as_deref());
        self.is_asked |= behind.is_some();
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.out.poll_flush(cx, &mut self.reached.upstream.stream).map_err(|_| Broken::Gone)
    }
}

impl BackendSide for PlainBackend<'_> {
    fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked<'_>,
        accept: impl FnOnce(&ResponseHead<'_>, bool) -> T,
    ) -> Poll<Result<T, Fault>> {
        let area = &mut self.worker.scratch.borrow_mut().area;
        let (decoder, reusable) = (&mut self.decoder, &mut self.reusable);
        let accept = |head: &ResponseHead<'_>| {
            *decoder = Decoder::new(head.framing);
            *reusable = head.keeps;
            accept(head, decoder.is_done())
        };
        let (accepted, body) = ready!(self.reached.upstream.poll_head(cx, area, asked, |_| {}, accept))?;
        self.reusable &= body.is_empty() || !self.decoder.is_done();
        self.kept = area[body].to_vec();
        Poll::Ready(Ok(accepted))
    }
}
