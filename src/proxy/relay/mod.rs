//! Owns the exchange of one request for one response where a side speaks HTTP/2: parts of the two bodies pass
//! as each receiver takes them, both ways at once, whatever version either side speaks. Between two sides of
//! HTTP/1, `exchange` does the same without a copy.

mod lane;
mod plain_backend;
mod plain_client;
mod stream_backend;

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;

use super::account::Account;
use super::client::{Client, Expiry, Phase};
use super::headers;
use super::http1::{Asked, Framing, ResponseHead};
use super::service::{self, Delivery, Failure, Stop, Way};
use super::upstream::Fault;
use super::worker::Worker;

use lane::Halt;
pub(super) use lane::Lane;
use plain_backend::PlainBackend;
pub(super) use plain_client::PlainClient;
use stream_backend::StreamBackend;

/// A part of a message's body.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Data, the `last` of its message or not.
    Data { bytes: Bytes, last: bool },
    /// The end, with the fields behind the body.
    End(Option<HeaderMap>),
}

impl Part {
    /// How many bytes it has.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Data { bytes, .. } => bytes.len(),
            Self::End(_) => 0,
        }
    }

    /// Whether nothing comes behind it.
    pub(super) fn is_last(&self) -> bool {
        matches!(self, Self::End(_) | Self::Data { last: true, .. })
    }

    /// Its bytes and, if it is the last part, the lines of the fields behind it, as HTTP/1 carries it.
    fn into_plain(self) -> (Bytes, Option<Vec<u8>>) {
        match self {
            Self::Data { bytes, last } => (bytes, last.then(Vec::new)),
            Self::End(fields) => {
                (Bytes::new(), Some(fields.as_ref().map(headers::lines).unwrap_or_default()))
            }
        }
    }
}

/// Why a side sends or takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It is gone, or ended its stream.
    Gone,
    /// It broke off what it sends, and may still wait for an answer.
    Off,
    /// What it sends is not HTTP.
    Malformed,
    /// It sends more than it may.
    TooLarge,
}

/// One side of an exchange, which sends one message and takes the other.
pub(super) trait Party {
    /// The next part of what it sends. Not to be asked again after the end.
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>>;

    /// How many of the next `wanted` bytes it takes.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Broken>>;

    /// Sends a part to it, for which there was room.
    fn put(&mut self, part: Part) -> Result<(), Broken>;

    /// Ready when it has taken everything that was put.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
}

/// The side that asked.
pub(super) trait ClientSide: Party {
    /// What is known of it while it lives.
    fn watch(&self) -> &Rc<Client>;

    /// Sends the head of the response; `ends` says that nothing follows.
    fn put_head(&mut self, head: &ResponseHead<'_>, ends: bool) -> Result<(), Broken>;

    /// Ready when it went away.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Takes what is there of its message while there is nobody to send it to, in case that its end is there.
    fn read_ahead(&mut self, cx: &mut Context<'_>);
}

/// The side that answers.
pub(super) trait BackendSide: Party {
    /// Waits for the head of the response; what `accept` makes of it and of whether nothing follows.
    fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked<'_>,
        accept: impl FnOnce(&ResponseHead<'_>, bool) -> T,
    ) -> Poll<Result<T, Fault>>;
}

/// A request as it is to be sent, to whatever kind of backend.
pub(super) struct Errand<'a> {
    pub(super) worker: &'a Rc<Worker>,
    /// Its head as HTTP/1 writes it.
    pub(super) head: &'a [u8],
    /// How its body is framed where HTTP/1 is spoken.
    pub(super) framing: Framing,
    pub(super) to_head: bool,
    /// The phase of the client while the response comes.
    pub(super) streaming: Phase,
}

/// Sends the request over one way after the other, beginning with `way`, until a backend answers, and brings that
/// answer to the client.
pub(super) async fn deliver<C: ClientSide>(
    client: &mut C,
    errand: &Errand<'_>,
    delivery: &mut Delivery<'_>,
    mut way: Way,
    account: &mut Account,
) -> Result<(), Stop> {
    let mut upload = Lane::to_repeat(errand.framing == Framing::Length(0));
    loop {
        let slot = way.slot().clone();
        let timeouts = &delivery.pool().snapshot.pool.timeouts;
        client.watch().begin_exchange(&slot, timeouts.request);
        let was_used = way.was_used();
        let failure = match attempt(client, errand, way, &mut upload, account).await {
            Err(Stop::Failed(failure)) if upload.rewind() => failure,
            Err(Stop::Failed(Failure::Upstream(Fault::Unprocessed))) => {
                Failure::Upstream(Fault::Lost { unanswered: false })
            }
            Err(Stop::Failed(failure)) => failure,
            ended => return ended,
        };
        delivery.failed(slot, was_used, failure, account).map_err(Stop::Rescue)?;
        way = approach(client, delivery.reach(account)).await?.map_err(Stop::Rescue)?;
    }
}

/// Waits for `step`, a way to a backend, but not for longer than the client and its time.
pub(super) async fn approach<T>(
    client: &mut impl ClientSide,
    step: impl Future<Output = T>,
) -> Result<T, Stop> {
    let mut step = pin!(step);
    poll_fn(|cx| {
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        client.read_ahead(cx);
        if client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Stop::Gone));
        }
        let late = service::late_on_the_way(client.watch().expiry());
        late.map_or(Poll::Pending, |error| Poll::Ready(Err(Stop::Rescue(error))))
    })
    .await
}

async fn attempt<C: ClientSide>(
    client: &mut C,
    errand: &Errand<'_>,
    way: Way,
    upload: &mut Lane,
    account: &mut Account,
) -> Result<(), Stop> {
    match way {
        Way::Alone(reached) => {
            let mut backend = PlainBackend::new(errand, reached);
            Exchange { client, backend: &mut backend, upload, errand, account }.run().await?;
            backend.release(errand.worker.now());
        }
        Way::Shared(berth) => {
            let failed = |fault| Stop::Failed(Failure::Upstream(fault));
            let mut backend = StreamBackend::send(berth, errand)?.map_err(failed)?;
            Exchange { client, backend: &mut backend, upload, errand, account }.run().await?;
        }
    }
    Ok(())
}

/// An exchange with one backend.
struct Exchange<'a, C, B> {
    client: &'a mut C,
    backend: &'a mut B,
    upload: &'a mut Lane,
    errand: &'a Errand<'a>,
    account: &'a mut Account,
}

/// The head of a response, as far as it matters when it is on its way.
struct Answer {
    ends: bool,
    at: Instant,
}

impl<C: ClientSide, B: BackendSide> Exchange<'_, C, B> {
    async fn run(mut self) -> Result<(), Stop> {
        let sent = Instant::now();
        let answer = poll_fn(|cx| self.poll_answer(cx)).await?;
        let took = answer.at.saturating_duration_since(sent);
        self.account.answered_after(took);
        let mut download = Lane::once(answer.ends);
        poll_fn(|cx| self.poll_stream(cx, &mut download)).await?;
        self.account.complete(None);
        Ok(())
    }

    /// Sends the request on and waits for the head of the response, which then is on its way to the client.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Stop>> {
        if self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Stop::Gone));
        }
        let watch = self.client.watch().clone();
        match self.upload.poll(cx, self.client, self.backend, &watch) {
            Poll::Ready(Ok(())) => watch.end_upload(),
            // Its answer may be there to read.
            Poll::Ready(Err(Halt::Receiver)) => watch.begin_waiting(),
            Poll::Ready(Err(Halt::Sender(Broken::Gone))) => return Poll::Ready(Err(Stop::Gone)),
            Poll::Ready(Err(Halt::Sender(Broken::Malformed))) => {
                return Poll::Ready(Err(Stop::Failed(Failure::BadBody)));
            }
            Poll::Ready(Err(Halt::Sender(Broken::TooLarge))) => {
                return Poll::Ready(Err(Stop::Failed(Failure::BodyTooLarge)));
            }
            Poll::Ready(Err(Halt::Sender(Broken::Off))) => {
                return Poll::Ready(Err(Stop::Failed(Failure::BrokenOff)));
            }
            Poll::Pending => {}
        }
        let asked = Asked { head: self.errand.to_head, upgrade: None };
        let client = &mut *self.client;
        let accept = |head: &ResponseHead<'_>, ends: bool| {
            let at = Instant::now();
            (head.status, client.put_head(head, ends).map(|()| Answer { ends, at }))
        };
        if let Poll::Ready(head) = self.backend.poll_head(cx, asked, accept) {
            let (status, answer) = head.map_err(|fault| Stop::Failed(Failure::Upstream(fault)))?;
            self.account.answer(status);
            self.upload.keep_nothing();
            let answer = answer.map_err(|_| Stop::Gone)?;
            watch.enter_at(self.errand.streaming, answer.at);
            return Poll::Ready(Ok(answer));
        }
        let late = watch.expiry().and_then(|expiry| service::late(expiry, self.upload.is_blocked()));
        late.map_or(Poll::Pending, |error| Poll::Ready(Err(Stop::Failed(Failure::Late(error)))))
    }

    /// Brings the rest of the response to the client, and of the request to the backend.
    fn poll_stream(&mut self, cx: &mut Context<'_>, download: &mut Lane) -> Poll<Result<(), Stop>> {
        let watch = self.client.watch().clone();
        match download.poll(cx, self.backend, self.client, &watch) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(Halt::Receiver)) => return Poll::Ready(Err(Stop::Gone)),
            Poll::Ready(Err(Halt::Sender(_))) => return Poll::Ready(Err(Stop::Truncated)),
            Poll::Pending => {}
        }
        match self.upload.poll(cx, self.client, self.backend, &watch) {
            // Broken off or garbled, it is the client that does not go on.
            Poll::Ready(Err(Halt::Sender(_))) => return Poll::Ready(Err(Stop::Gone)),
            // A backend may answer without having read everything.
            Poll::Ready(Ok(()) | Err(Halt::Receiver)) | Poll::Pending => {}
        }
        if self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Stop::Gone));
        }
        match watch.expiry() {
            Some(Expiry::Stalled) if download.is_blocked() => Poll::Ready(Err(Stop::Gone)),
            Some(Expiry::Stalled | Expiry::Drained | Expiry::Deadline) => Poll::Ready(Err(Stop::Truncated)),
            _ => Poll::Pending,
        }
    }
}
