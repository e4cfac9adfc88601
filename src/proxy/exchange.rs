//! Owns the exchange of one request for one response: sends the request on, brings the response back,
//! both at once where the two sides want that, and answers itself where no backend does.

use std::future::poll_fn;
use std::ops::Range;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;

use super::account::Account;
use super::client::{Expiry, Phase};
use super::connection::{Connection, End, Order, Request};
use super::flow::{BodyFault, Flow};
use super::headers::{self, Hop};
use super::http1::{Asked, Encoder, Framing, ResponseHead};
use super::http2;
use super::limits::{MAX_INTERIM_BYTES, READS_PER_TURN};
use super::relay::{self, Broken, Errand, PlainClient};
use super::rescue::ProxyError;
use super::scratch::{READ, Scratch};
use super::service::{self, Delivery, Failure, Reached, Stop, Way};
use super::socket::Inbox;

/// A response whose head is on its way to the client.
struct Answer {
    status: u16,
    framing: Framing,
    encoder: Encoder,
    /// Whether the client's connection stays open behind it. Only if its request is complete.
    keeps: bool,
    /// Whether the backend's connection may serve another request, once both messages ended.
    reusable: bool,
    /// When its head was there.
    at: Instant,
    /// Another protocol follows it, in both directions.
    switches: bool,
}

impl Connection {
    /// Answers `request`, whatever happens; the end, if the connection ends with it.
    pub(super) async fn answer(&mut self, mut request: Request) -> Option<End> {
        let entry = request.entry.take();
        let mut account = Account::begin(&request.home, &self.client, request.begun, entry);
        self.begin_upload(&request, encoder_to_backend(request.framing));
        self.awaits_continue = request.expects_continue;
        self.interim_left = if request.minor > 0 { MAX_INTERIM_BYTES } else { 0 };
        let answered = match &request.order {
            Ok(order) => match self.deliver(&request, order, &mut account).await {
                Err(Stop::Rescue(error)) => self.rescue(&request, error, &mut account).await,
                delivered => delivered,
            },
            Err(error) => self.rescue(&request, *error, &mut account).await,
        };
        // A connection that waits holds no memory for what may come.
        (self.upload, self.download) = (Flow::default(), Flow::default());
        self.client.read_ahead(self.inbox.bytes().len());
        match answered {
            Ok(true) => None,
            Ok(false) => Some(End::Close),
            Err(Stop::Truncated) => {
                account.truncate();
                Some(End::Drop)
            }
            Err(Stop::Gone | Stop::Rescue(_) | Stop::Failed(_)) => Some(End::Drop),
        }
    }

    /// Sends the request to one backend after the other until one answers, and brings that answer to the
    /// client. Whether the connection stays open then.
    async fn deliver(
        &mut self,
        request: &Request,
        order: &Order,
        account: &mut Account,
    ) -> Result<bool, Stop> {
        service::check_length(request.framing, &order.pool)?;
        let mut delivery =
            Delivery::new(&order.pool, &self.client, order.key, request.begun, order.repeatable);
        loop {
            let way = self.approach(delivery.reach(account)).await?.map_err(Stop::Rescue)?;
            let mut reached = match way {
                Way::Alone(reached) => reached,
                Way::Shared(_) => return self.relay(request, &mut delivery, way, account).await,
            };
            self.client.begin_exchange(&reached.slot, order.pool.snapshot.pool.timeouts.request);
            let sent = if reached.upstream.was_used() { request.begun } else { Instant::now() };
            match poll_fn(|cx| self.poll_answer(cx, request, &mut reached, account)).await {
                Ok(answer) => {
                    let took = answer.at.saturating_duration_since(sent);
                    account.answered_after(took);
                    if answer.switches {
                        self.tunnel(reached).await;
                        return Ok(false);
                    }
                    return self.stream(answer, reached, account).await;
                }
                Err(Stop::Failed(failure)) => {
                    let was_used = reached.upstream.was_used();
                    delivery.failed(reached.slot, was_used, failure, account).map_err(Stop::Rescue)?;
                }
                Err(stop) => return Err(stop),
            }
            self.upload.out.rewind();
        }
    }

    /// Goes on over `way`, which leads to a backend that speaks HTTP/2. Whether the connection stays open then.
    async fn relay(
        &mut self,
        request: &Request,
        delivery: &mut Delivery<'_>,
        way: Way,
        account: &mut Account,
    ) -> Result<bool, Stop> {
        let head = std::mem::take(self.upload.out.space());
        let worker = self.worker.clone();
        let (framing, to_head) = (request.framing, request.to_head);
        let errand = Errand { worker: &worker, head: &head, framing, to_head, streaming: Phase::Download };
        self.begin_upload(request, Encoder::Plain);
        let mut client = PlainClient::new(self, request);
        // In a box, so that an exchange without HTTP/2 does not carry its room.
        Box::pin(relay::deliver(&mut client, &errand, delivery, way, account)).await?;
        Ok(client.keeps())
    }

    fn begin_upload(&mut self, request: &Request, encoder: Encoder) {
        self.upload.begin(request.framing, encoder, true);
        if let Ok(order) = &request.order {
            self.upload.limit(order.pool.max_request_body());
        }
    }

    /// The next piece of the request's body.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Broken>> {
        let garbled = |fault| match fault {
            BodyFault::Malformed => Broken::Malformed,
            BodyFault::TooLarge => Broken::TooLarge,
        };
        let Self { worker, socket, inbox, upload, download, awaits_continue, .. } = self;
        let area = &mut worker.scratch.borrow_mut().area;
        let data = if inbox.is_empty() {
            if std::mem::take(awaits_continue) {
                download.out.send(cx, socket, CONTINUE).map_err(|_| Broken::Gone)?;
            }
            let read = ready!(socket.poll_read(cx, &mut area[READ])).map_err(|_| Broken::Gone)?;
            if read == 0 {
                return Poll::Ready(Err(Broken::Off));
            }
            upload.reframe(area, READ.start..READ.start + read, |rest| inbox.keep(rest)).map_err(garbled)?
        } else {
            reframe_kept(upload, inbox, area).map_err(garbled)?
        };
        Poll::Ready(Ok(Bytes::copy_from_slice(&area[data])))
    }

    /// Sends the request on and waits for the head of the response, which then is on its way to the
    /// client with what came of the body.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        request: &Request,
        reached: &mut Reached,
        account: &mut Account,
    ) -> Poll<Result<Answer, Stop>> {
        if let Poll::Ready(Err(stop)) = self.poll_upload(cx, reached) {
            return Poll::Ready(Err(stop));
        }
        if let Poll::Ready(answer) = self.poll_head(cx, request, reached, account) {
            return Poll::Ready(answer);
        }
        if let Poll::Ready(stop) = self.poll_gone(cx) {
            return Poll::Ready(Err(stop));
        }
        let is_blocked = !reached.is_deaf && !self.upload.out.is_empty();
        let late = self.client.expiry().and_then(|expiry| service::late(expiry, is_blocked));
        late.map_or(Poll::Pending, |error| Poll::Ready(Err(Stop::Failed(Failure::Late(error)))))
    }

    /// Sends on what comes of the request. Ready when that is all, or when the backend takes no more of
    /// it; an error when the client broke off or garbled its body.
    fn poll_upload(&mut self, cx: &mut Context<'_>, reached: &mut Reached) -> Poll<Result<(), Stop>> {
        let garbled = |fault| match fault {
            BodyFault::Malformed => Stop::Failed(Failure::BadBody),
            BodyFault::TooLarge => Stop::Failed(Failure::BodyTooLarge),
        };
        let Self { worker, client, socket, inbox, upload, download, awaits_continue, .. } = self;
        let area = &mut worker.scratch.borrow_mut().area;
        let backend = &mut reached.upstream.stream;
        for _ in 0..READS_PER_TURN {
            if reached.is_deaf {
                client.begin_waiting();
                return Poll::Ready(Ok(()));
            }
            if !upload.is_received() && !inbox.is_empty() {
                // What came with the head leaves with the head.
                let framed = reframe_kept(upload, inbox, area).map_err(garbled)?;
                upload.out.space().extend_from_slice(&area[framed]);
            }
            reached.is_deaf = ready!(upload.out.poll_flush(cx, backend)).is_err();
            if upload.is_received() && !reached.is_deaf {
                client.end_upload();
                return Poll::Ready(Ok(()));
            }
            if reached.is_deaf || !inbox.is_empty() {
                continue;
            }
            if std::mem::take(awaits_continue) {
                download.out.send(cx, socket, CONTINUE).map_err(|_| Stop::Gone)?;
            }
            let read = ready!(socket.poll_read(cx, &mut area[READ])).map_err(|_| Stop::Gone)?;
            if read == 0 {
                return Poll::Ready(Err(Stop::Failed(Failure::BrokenOff)));
            }
            let raw = READ.start..READ.start + read;
            let framed = upload.reframe(area, raw, |rest| inbox.keep(rest)).map_err(garbled)?;
            reached.is_deaf = upload.out.send(cx, backend, &area[framed]).is_err();
        }
        yield_turn(cx)
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        request: &Request,
        reached: &mut Reached,
        account: &mut Account,
    ) -> Poll<Result<Answer, Stop>> {
        let may_keep = self.may_keep(request);
        let asked = Asked { head: request.to_head, upgrade: request.upgrade.as_deref() };
        let Self { worker, client, socket, download, interim_left, .. } = self;
        let scratch = &mut *worker.scratch.borrow_mut();
        // There may be a `100 Continue` on its way; that it cannot be sent shows where we read.
        let _ = download.out.poll_flush(cx, socket);
        let Scratch { area, head: lines } = scratch;
        let accept = |head: &ResponseHead<'_>| {
            let encoder = headers::encoder(head.framing, request.minor);
            let has_end = encoder == Encoder::Chunked || matches!(head.framing, Framing::Length(_));
            let keeps = may_keep && has_end;
            let date = worker.date();
            let switches = head.switches();
            let switches_to = asked.upgrade.filter(|_| switches);
            let to_head = request.to_head;
            let hop = Hop { minor: request.minor, to_head, keeps, date: date.as_bytes(), switches_to };
            lines.clear();
            headers::to_client(lines, head, &hop);
            let (status, framing) = (head.status, head.framing);
            Answer { status, framing, encoder, keeps, reusable: head.keeps, at: Instant::now(), switches }
        };
        let interim = |head: &ResponseHead<'_>| headers::interim(download.out.space(), head, interim_left);
        let head = reached.upstream.poll_head(cx, area, asked, interim, accept);
        if head.is_pending() && !download.out.is_empty() {
            // An interim answer is for now. That it cannot be sent shows where we read.
            let _ = download.out.poll_flush(cx, socket);
        }
        let head = ready!(head);
        let (mut answer, body) = head.map_err(|fault| Stop::Failed(Failure::Upstream(fault)))?;
        account.answer(answer.status);
        client.enter_at(if answer.switches { Phase::Tunnel } else { Phase::Download }, answer.at);
        self.awaits_continue = false;
        download.begin(answer.framing, answer.encoder, request.takes_trailers);
        let framed = if answer.switches {
            body
        } else {
            let surplus = |rest: &[u8]| answer.reusable &= rest.is_empty();
            download.reframe(area, body, surplus).map_err(|_| Stop::Truncated)?
        };
        let framed = scratch.put_head(framed);
        download.out.send(cx, socket, &scratch.area[framed]).map_err(|_| Stop::Gone)?;
        if answer.switches || download.is_complete() {
            account.complete(Some(answer.at));
        }
        Poll::Ready(Ok(answer))
    }

    /// Brings the rest of a response to the client. Whether the connection stays open then.
    async fn stream(
        &mut self,
        mut answer: Answer,
        reached: Reached,
        account: &mut Account,
    ) -> Result<bool, Stop> {
        let mut reached = Some(reached);
        if !self.download.is_complete() {
            poll_fn(|cx| self.poll_stream(cx, &mut answer, &mut reached)).await?;
            account.complete(None);
        }
        if let Some(reached) = reached {
            self.release(&answer, reached);
        }
        Ok(answer.keeps)
    }

    fn poll_stream(
        &mut self,
        cx: &mut Context<'_>,
        answer: &mut Answer,
        reached: &mut Option<Reached>,
    ) -> Poll<Result<(), Stop>> {
        if let Poll::Ready(ended) = self.poll_download(cx, answer, reached) {
            return Poll::Ready(ended);
        }
        if let Some(reached) = reached
            && let Poll::Ready(Err(_)) = self.poll_upload(cx, reached)
        {
            // Broken off or garbled, it is the client that does not go on.
            return Poll::Ready(Err(Stop::Gone));
        }
        if let Poll::Ready(stop) = self.poll_gone(cx) {
            return Poll::Ready(Err(stop));
        }
        match self.client.expiry() {
            Some(Expiry::Stalled) if !self.download.out.is_empty() => Poll::Ready(Err(Stop::Gone)),
            Some(Expiry::Stalled | Expiry::Drained) => Poll::Ready(Err(Stop::Truncated)),
            _ => Poll::Pending,
        }
    }

    /// Reads from the backend only what the client takes. The backend's connection is free as soon as
    /// the response came in.
    fn poll_download(
        &mut self,
        cx: &mut Context<'_>,
        answer: &mut Answer,
        reached: &mut Option<Reached>,
    ) -> Poll<Result<(), Stop>> {
        for _ in 0..READS_PER_TURN {
            if let Some(reached) = reached.take_if(|_| self.download.is_received()) {
                self.release(answer, reached);
            }
            let Self { worker, socket, download, .. } = self;
            ready!(download.out.poll_flush(cx, socket)).map_err(|_| Stop::Gone)?;
            let Some(reached) = reached else { return Poll::Ready(Ok(())) };
            let area = &mut worker.scratch.borrow_mut().area;
            let read =
                ready!(reached.upstream.poll_read(cx, &mut area[READ])).map_err(|_| Stop::Truncated)?;
            let framed = if read == 0 {
                download.end(area, READ.start).ok_or(Stop::Truncated)?
            } else {
                let raw = READ.start..READ.start + read;
                let surplus = |rest: &[u8]| answer.reusable &= rest.is_empty();
                download.reframe(area, raw, surplus).map_err(|_| Stop::Truncated)?
            };
            download.out.send(cx, socket, &area[framed]).map_err(|_| Stop::Gone)?;
        }
        yield_turn(cx)
    }

    /// Gives a backend's connection back if both messages ended cleanly. Whatever else were left over on
    /// it would be taken for the answer to the next request.
    fn release(&self, answer: &Answer, reached: Reached) {
        if answer.reusable && !reached.is_deaf && self.upload.is_complete() {
            reached.slot.give_back(reached.upstream, self.worker.now());
        }
    }

    /// Notices that the client goes away while it is not expected to send anything.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        if self.client.expiry() == Some(Expiry::Gone) {
            return Poll::Ready(Stop::Gone);
        }
        if self.client.is_unread() || self.client.has_ended() {
            return Poll::Pending;
        }
        if !self.inbox.is_empty() {
            // Whatever comes now belongs to the next request, of which a part is enough.
            self.client.look_for_end(|| self.socket.is_read_closed());
            return Poll::Pending;
        }
        let area = &mut self.worker.scratch.borrow_mut().area;
        match ready!(self.socket.poll_read(cx, area)) {
            // It may have shut down its sending side alone and wait for the answer.
            Ok(0) => self.client.end(),
            Ok(read) => self.inbox.keep(&area[..read]),
            Err(_) => return Poll::Ready(Stop::Gone),
        }
        Poll::Pending
    }

    /// Gives an answer of ours. Whether the connection stays open then.
    async fn rescue(
        &mut self,
        request: &Request,
        error: ProxyError,
        account: &mut Account,
    ) -> Result<bool, Stop> {
        account.rescue(error);
        self.skip_kept_body();
        let keeps =
            request.keeps && !error.ends_connection() && self.upload.is_received() && self.stays_open();
        let date = self.worker.date();
        let to_head = request.to_head;
        let hop = Hop { minor: request.minor, to_head, keeps, date: date.as_bytes(), switches_to: None };
        let out = self.download.out.space();
        if request.breaks_preface {
            out.extend_from_slice(http2::GOODBYE)
        } else {
            error.answer(out, &hop)
        }
        self.client.enter(Phase::Download);
        poll_fn(|cx| match self.download.out.poll_flush(cx, &mut self.socket) {
            Poll::Pending if self.client.expiry().is_none() => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Ok(keeps)),
            Poll::Pending | Poll::Ready(Err(_)) => Poll::Ready(Err(Stop::Gone)),
        })
        .await
    }

    /// Throws away what is there of a body that goes nowhere, so that the connection can be kept if that
    /// is all of it.
    fn skip_kept_body(&mut self) {
        let area = &mut self.worker.scratch.borrow_mut().area;
        while !self.upload.is_received() && !self.inbox.is_empty() {
            if reframe_kept(&mut self.upload, &mut self.inbox, area).is_err() {
                return;
            }
        }
        if self.upload.is_received() {
            self.client.end_upload();
        }
    }

    /// Whether the client's connection may stay open behind an answer to `request` that begins now. An
    /// answer that begins before its request ended is the last one.
    pub(super) fn may_keep(&self, request: &Request) -> bool {
        request.keeps && self.upload.is_complete() && self.stays_open()
    }

    fn stays_open(&self) -> bool {
        !self.worker.asks_to_leave() && !self.client.is_leaving() && !self.client.has_ended()
    }
}

/// Answers an expectation as the body is first wanted (RFC 9110 section 10.1.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Lets others go first, and comes back.
pub(super) fn yield_turn<T>(cx: &Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

fn encoder_to_backend(framing: Framing) -> Encoder {
    if framing == Framing::Chunked { Encoder::Chunked } else { Encoder::Plain }
}

/// Takes what was read ahead of a request's body; where in `area` that is, framed anew.
fn reframe_kept(upload: &mut Flow, inbox: &mut Inbox, area: &mut [u8]) -> Result<Range<usize>, BodyFault> {
    let raw = READ.start..READ.start + inbox.bytes().len().min(READ.len());
    area[raw.clone()].copy_from_slice(&inbox.bytes()[..raw.len()]);
    let mut used = raw.len();
    let framed = upload.reframe(area, raw, |rest| used -= rest.len())?;
    inbox.advance(used);
    Ok(framed)
}
