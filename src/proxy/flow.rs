//! Owns one direction of an exchange: a body that is unframed as it comes in and framed anew as it goes
//! out, and the bytes that the receiver has not taken yet.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::http1::{Decoder, Encoder, Framing, Malformed};
use super::limits::BUFFER_BYTES;
use super::scratch::READ;

/// One direction.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) out: Outbox,
    decoder: Decoder,
    encoder: Encoder,
    /// The receiver takes fields behind the body.
    takes_trailers: bool,
    /// Bytes that may still come.
    left: u64,
}

/// Why a body is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFault {
    /// Nobody knows where it ends.
    Malformed,
    /// It is longer than it may be.
    TooLarge,
}

impl From<Malformed> for BodyFault {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

impl Default for Flow {
    fn default() -> Self {
        let (out, decoder, encoder) = (Outbox::default(), Decoder::Length(0), Encoder::Plain);
        Self { out, decoder, encoder, takes_trailers: false, left: u64::MAX }
    }
}

impl Flow {
    /// Begins a body that comes in with `framing`, for a receiver that takes fields behind it or not.
    pub(super) fn begin(&mut self, framing: Framing, encoder: Encoder, takes_trailers: bool) {
        (self.decoder, self.encoder) = (Decoder::new(framing), encoder);
        (self.takes_trailers, self.left) = (takes_trailers, u64::MAX);
    }

    /// The body that begins may have so many bytes.
    pub(super) fn limit(&mut self, bytes: u64) {
        self.left = bytes;
    }

    /// Whether the whole body came in.
    pub(super) fn is_received(&self) -> bool {
        self.decoder.is_done()
    }

    /// What finds out where the rest of it ends.
    pub(super) fn foresight(&self) -> Foresight {
        Foresight { decoder: self.decoder.clone(), seen: 0 }
    }

    /// Once the whole body came in, the lines of the fields behind it that go on.
    pub(super) fn trailers(&self) -> &[u8] {
        if self.takes_trailers { self.decoder.trailers() } else { b"" }
    }

    /// Whether the whole body came in and went out.
    pub(super) fn is_complete(&self) -> bool {
        self.is_received() && self.out.is_empty()
    }

    /// Frames what came in at `raw` anew, where it lies; where that is. `rest` sees the bytes behind the
    /// body, which are gone afterwards: its new end may take their place.
    pub(super) fn reframe(
        &mut self,
        area: &mut [u8],
        raw: Range<usize>,
        rest: impl FnOnce(&[u8]),
    ) -> Result<Range<usize>, BodyFault> {
        let decoded = self.decoder.decode(&mut area[raw.clone()])?;
        self.left = self.left.checked_sub(decoded.data.len() as u64).ok_or(BodyFault::TooLarge)?;
        rest(&area[raw.start + decoded.used..raw.end]);
        let data = raw.start + decoded.data.start..raw.start + decoded.data.end;
        let behind = self.is_received().then(|| self.trailers());
        Ok(self.encoder.frame(area, data, behind))
    }

    /// The sender closed its side: what is to go out, if that ends the body.
    pub(super) fn end(&mut self, area: &mut [u8], at: usize) -> Option<Range<usize>> {
        self.decoder.end().then(|| self.encoder.frame(area, at..at, Some(b"")))
    }
}

/// Where a body ends, found out while its bytes wait for their turn.
#[derive(Debug)]
pub(super) struct Foresight {
    decoder: Decoder,
    seen: usize,
}

impl Foresight {
    /// Whether the body ends among `bytes`, which are those of before and what came behind them. `area` takes a read.
    pub(super) fn sees_end(&mut self, bytes: &[u8], area: &mut [u8]) -> bool {
        for fresh in bytes[self.seen..].chunks(READ.len()) {
            let raw = &mut area[READ.start..READ.start + fresh.len()];
            raw.copy_from_slice(fresh);
            self.seen += fresh.len();
            if self.decoder.decode(raw).is_err() {
                return false;
            }
        }
        self.decoder.is_done()
    }
}

/// Bytes on their way out. It holds no more than one read and a head, because nothing more is read
/// before it is empty.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// The receiver holds some of what it took, as TLS does.
    held: bool,
}

impl Outbox {
    /// Whether all bytes are gone.
    pub(super) fn is_empty(&self) -> bool {
        self.is_taken() && !self.held
    }

    fn is_taken(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// How many of the next `wanted` bytes of a body `put_framed` takes, once little enough waits for the receiver.
    pub(super) fn poll_room<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        receiver: &mut W,
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() - self.sent >= BUFFER_BYTES {
            ready!(self.poll_flush(cx, receiver))?;
        }
        Poll::Ready(Ok(wanted.min(READ.len())))
    }

    /// Where to write what is to go out next.
    pub(super) fn space(&mut self) -> &mut Vec<u8> {
        if self.is_taken() {
            self.bytes.clear();
            self.sent = 0;
        }
        &mut self.bytes
    }

    /// Puts a piece of a body behind what there is, framed in `area`, which takes a read. If it is the last, `behind` has
    /// the lines of the fields behind it.
    pub(super) fn put_framed(
        &mut self,
        area: &mut [u8],
        encoder: Encoder,
        bytes: &[u8],
        behind: Option<&[u8]>,
    ) {
        let data = READ.start..READ.start + bytes.len();
        area[data.clone()].copy_from_slice(bytes);
        let framed = encoder.frame(area, data, None);
        let out = self.space();
        out.extend_from_slice(&area[framed]);
        if let Some(lines) = behind {
            encoder.put_end(out, lines);
        }
    }

    /// Makes everything since it was last empty go out once more.
    pub(super) fn rewind(&mut self) {
        (self.sent, self.held) = (0, false);
    }

    /// Sends what there is.
    pub(super) fn poll_flush<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        receiver: &mut W,
    ) -> Poll<io::Result<()>> {
        while !self.is_taken() {
            self.sent += ready!(poll_some(cx, receiver, &self.bytes[self.sent..]))?;
            self.held = true;
        }
        self.poll_held(cx, receiver)
    }

    /// Makes the receiver let go of what it holds.
    fn poll_held<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        receiver: &mut W,
    ) -> Poll<io::Result<()>> {
        if self.held {
            ready!(Pin::new(receiver).poll_flush(cx))?;
            self.held = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends `bytes` behind what there is, and keeps what the receiver does not take at once.
    pub(super) fn send<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        receiver: &mut W,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while self.is_taken() && !bytes.is_empty() {
            match poll_some(cx, receiver, bytes) {
                Poll::Ready(written) => bytes = &bytes[written?..],
                Poll::Pending => break,
            }
            self.held = true;
        }
        if !bytes.is_empty() {
            self.space().extend_from_slice(bytes);
        }
        match self.poll_held(cx, receiver) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

fn poll_some<W: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    receiver: &mut W,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(receiver).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_framed_anew_where_it_lies() {
        let mut flow = Flow::default();
        flow.begin(Framing::Chunked, Encoder::Chunked, true);
        let wire = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\na: b\r\n\r\nNEXT";
        let mut area = vec![0; 32 + wire.len() + 32];
        area[32..32 + wire.len()].copy_from_slice(wire);
        let framed = flow.reframe(&mut area, 32..32 + wire.len(), |rest| assert_eq!(rest, b"NEXT")).unwrap();
        assert_eq!(&area[framed], b"5\r\nabcde\r\n0\r\n\r\n");
        assert!(flow.is_received());
    }

    #[test]
    fn fields_behind_a_body_go_to_who_takes_them() {
        for (takes, end) in [(true, "0\r\nx-sum: 1\r\n\r\n"), (false, "0\r\n\r\n")] {
            let mut flow = Flow::default();
            flow.begin(Framing::Chunked, Encoder::Chunked, takes);
            let wire = b"1\r\na\r\n0\r\nX-Sum: 1\r\nHost: b\r\n\r\n";
            let mut area = vec![0; 32 + wire.len() + 32];
            area[32..32 + wire.len()].copy_from_slice(wire);
            let framed = flow.reframe(&mut area, 32..32 + wire.len(), |_| ()).unwrap();
            assert_eq!(area[framed], *format!("1\r\na\r\n{end}").as_bytes());
        }
    }

    #[test]
    fn a_body_has_as_many_bytes_as_it_may() {
        for (limit, fits) in [(5, true), (4, false), (0, false)] {
            let mut flow = Flow::default();
            flow.begin(Framing::Chunked, Encoder::Chunked, true);
            flow.limit(limit);
            let mut ended = Ok(());
            for piece in [&b"3;ext=1\r\nabc\r\n"[..], b"2\r\nde\r\n0\r\nx-sum: 1\r\n\r\n"] {
                let mut area = vec![0; 32 + piece.len() + 32];
                area[32..32 + piece.len()].copy_from_slice(piece);
                ended = ended.and(flow.reframe(&mut area, 32..32 + piece.len(), |_| ()).map(drop));
            }
            assert_eq!(ended, if fits { Ok(()) } else { Err(BodyFault::TooLarge) }, "{limit}");
        }
    }

    #[test]
    fn what_follows_a_body_is_not_lost_to_its_new_end() {
        let wire = b"3\r\nabc\r\n0\r\n\r\nNEXT";
        for cut in 1..wire.len() {
            let mut flow = Flow::default();
            flow.begin(Framing::Chunked, Encoder::Chunked, true);
            let mut after = Vec::new();
            for piece in [&wire[..cut], &wire[cut..]] {
                let mut area = vec![0; 32 + wire.len() + 32];
                area[32..32 + piece.len()].copy_from_slice(piece);
                flow.reframe(&mut area, 32..32 + piece.len(), |rest| after.extend_from_slice(rest)).unwrap();
            }
            assert_eq!(after, b"NEXT", "cut at {cut}");
        }
    }

    #[test]
    fn what_a_receiver_does_not_take_is_kept_in_order() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut near, far) = tokio::io::duplex(4);
        let mut out = Outbox::default();
        out.send(&mut cx, &mut near, b"abcdef").unwrap();
        out.send(&mut cx, &mut near, b"gh").unwrap();
        assert!(out.poll_flush(&mut cx, &mut near).is_pending() && !out.is_empty());
        drop(far);
        assert!(matches!(out.poll_flush(&mut cx, &mut near), Poll::Ready(Err(_))));
        out.rewind();
        assert_eq!(out.bytes, b"efgh");
    }
}
