//! Owns the body a client receives: a short text of ours, or a backend's, streamed piece by piece.
//! With its end, clean or not, the exchange is accounted for and the connection goes back or away.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::client::{Client, Phase};
use super::upstream::{Shared, Slot};
use super::view::Home;
use crate::metrics::RescueReason;

/// The accounting of one request, from the end of its head to the end of its response.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) home: Rc<Home>,
    pub(super) client: Rc<Client>,
    pub(super) begun: Instant,
    status: u16,
}

impl Exchange {
    pub(super) fn begin(home: &Rc<Home>, client: &Rc<Client>, begun: Instant) -> Self {
        home.meters.active_requests.up();
        Self { home: home.clone(), client: client.clone(), begun, status: 0 }
    }

    /// The response's head is known.
    pub(super) fn answered(&mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let meters = &self.home.meters;
        meters.active_requests.down();
        meters.request(self.status);
        if self.status == 0 {
            meters.rescue(RescueReason::ClientGone);
        }
        meters.request_duration.observe(self.begun.elapsed());
        self.client.end_request();
    }
}

/// The response broke off on the backend's side.
#[derive(Debug, thiserror::Error)]
#[error("the backend's response broke off")]
pub(super) struct Truncated;

/// A response's body.
#[derive(Debug)]
pub(super) enum ProxyBody {
    /// A text of ours.
    Text(Option<Bytes>),
    /// A backend's.
    Streamed(Option<Download>),
}

/// A backend's response under way.
#[derive(Debug)]
pub(super) struct Download {
    upstream: Shared,
    slot: Rc<Slot>,
    exchange: Exchange,
    broken: bool,
}

impl ProxyBody {
    pub(super) fn text(text: Bytes) -> Self {
        Self::Text(Some(text))
    }

    /// The body that follows the head which `upstream` just received.
    pub(super) fn streamed(upstream: Shared, slot: Rc<Slot>, exchange: Exchange) -> Self {
        exchange.client.enter(Phase::Download);
        let complete = upstream.borrow().is_answered();
        let download = Download { upstream, slot, exchange, broken: false };
        if complete {
            download.finish();
            return Self::Streamed(None);
        }
        Self::Streamed(Some(download))
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = Truncated;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Streamed(None) => Poll::Ready(None),
            Self::Streamed(body) => {
                let Some(download) = body else { return Poll::Ready(None) };
                let piece = ready!(download.poll(cx));
                if download.is_complete()
                    && let Some(download) = body.take()
                {
                    download.finish();
                }
                Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_none(),
            Self::Streamed(download) => download.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = match self {
            Self::Text(text) => Some(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Streamed(None) => Some(0),
            Self::Streamed(Some(download)) => download.upstream.borrow().remaining(),
        };
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Truncated>>> {
        let mut upstream = self.upstream.borrow_mut();
        let piece = ready!(upstream.poll_body(cx));
        if upstream.is_uploaded() {
            self.exchange.client.end_upload();
        }
        self.exchange.client.progressed();
        Poll::Ready(piece.map(|piece| {
            piece.map_err(|_| {
                self.broken = true;
                Truncated
            })
        }))
    }

    fn is_complete(&self) -> bool {
        self.upstream.borrow().is_answered()
    }

    /// The response is complete: the connection may serve another request.
    fn finish(self) {
        self.slot.give_back(self.upstream.clone(), Instant::now());
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if !self.is_complete() {
            let reason = if self.broken { RescueReason::Truncated } else { RescueReason::ClientGone };
            self.exchange.home.meters.rescue(reason);
            self.exchange.client.reset_on_close();
        }
    }
}
