//! Owns one stream of a client, which is one request: it goes the way of every request, and ends without a trace
//! on its neighbours.

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request};

use super::gauge::Gauge;
use super::{grpc, head};
use crate::proxy::access_log::Entry;
use crate::proxy::account::Account;
use crate::proxy::client::{Client, Phase};
use crate::proxy::connection::{self, Order, PanicWatch};
use crate::proxy::headers;
use crate::proxy::http1::{Framing, ResponseHead};
use crate::proxy::limits::{FRAME_CREDIT_PER_ANSWER, FRAME_CREDIT_PER_PIECE};
use crate::proxy::relay::{self, Broken, ClientSide, Errand, Part, Party};
use crate::proxy::rescue::ProxyError;
use crate::proxy::service::{self, Delivery, Stop};
use crate::proxy::view::Home;
use crate::proxy::worker::Worker;

/// Answers one request, whatever happens.
pub(super) async fn serve(
    worker: Rc<Worker>,
    client: Rc<Client>,
    gauge: Rc<Gauge>,
    scheme: &'static str,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let _watch = PanicWatch(worker.clone());
    std::future::poll_fn(|cx| {
        client.wake_with(cx.waker());
        Poll::Ready(())
    })
    .await;
    let (parts, body) = request.into_parts();
    let call = Call::new(&worker, &client, scheme, &parts, !body.is_end_stream());
    let awaits_continue = parts.headers.contains_key(header::EXPECT);
    drop(parts);
    let ahead = VecDeque::new();
    let left = call.order.as_ref().map_or(u64::MAX, |order| order.pool.max_request_body());
    let stream = Stream { worker, client, gauge, body, ahead, respond, answer: None, awaits_continue, left };
    stream.answer(call).await;
}

/// What is kept of a request.
struct Call {
    begun: Instant,
    head: Vec<u8>,
    framing: Framing,
    to_head: bool,
    is_grpc: bool,
    home: Rc<Home>,
    /// For its line in the access log, if it gets one.
    entry: Option<Box<Entry>>,
    order: Result<Order, ProxyError>,
}

impl Call {
    fn new(worker: &Worker, client: &Client, scheme: &str, parts: &request::Parts, has_body: bool) -> Self {
        let begun = Instant::now();
        client.end_head(has_body, begun);
        let is_grpc = grpc::is_call(&parts.headers);
        if let Some(timeout) = grpc::timeout(&parts.headers).filter(|_| is_grpc) {
            client.end_by(begun + timeout);
        }
        if is_grpc && has_body {
            // Both sides may be silent for long between two messages.
            client.enter(Phase::Tunnel);
        }
        let (view, mut head) = (worker.view(), Vec::new());
        let mut framing = Framing::Length(0);
        let admitted = head::with_request(parts, scheme, has_body, |it| {
            framing = it.framing;
            service::admit(view.port(client.port), client, it, String::new, &mut head)
        });
        let repeatable = !has_body && service::is_idempotent(parts.method.as_str());
        let admitted = admitted.map_err(ProxyError::from).flatten();
        let order = worker.has_room().and(admitted);
        let order = order.map(|(pool, key)| Order { pool, key, repeatable });
        if let Ok(order) = &order {
            client.visit(&order.pool.home);
        }
        let home = connection::home_of(order.as_ref().ok(), &view, client);
        let entry = home.entry(|| entry(parts, order.as_ref().ok().map(|order| order.key)));
        let to_head = parts.method == Method::HEAD;
        Self { begun, head, framing, to_head, is_grpc, home, entry, order }
    }
}

fn entry(parts: &request::Parts, key: Option<u64>) -> Entry {
    let host = parts.uri.authority().map_or("", Authority::as_str);
    Entry::new("HTTP/2", parts.method.as_str(), host.as_bytes(), parts.uri.path(), key)
}

/// A client's stream.
struct Stream {
    worker: Rc<Worker>,
    client: Rc<Client>,
    gauge: Rc<Gauge>,
    body: RecvStream,
    /// What was read of it before there was a backend.
    ahead: VecDeque<Part>,
    respond: SendResponse<Bytes>,
    /// The response, once its head was sent.
    answer: Option<SendStream<Bytes>>,
    /// The client waits for `100 Continue` before it sends its body.
    awaits_continue: bool,
    /// Bytes that may still come of the body.
    left: u64,
}

impl Stream {
    async fn answer(mut self, mut call: Call) {
        let mut account = Account::begin(&call.home, &self.client, call.begun, call.entry.take());
        let answered = match &call.order {
            Ok(order) => self.deliver(&call, order, &mut account).await,
            Err(error) => Err(Stop::Rescue(*error)),
        };
        match answered {
            Ok(()) => {}
            Err(Stop::Rescue(error)) => self.rescue(&call, error, &mut account),
            Err(Stop::Truncated) => {
                account.truncate();
                // The end of the stream would make it look complete.
                self.respond.send_reset(Reason::INTERNAL_ERROR);
            }
            Err(Stop::Gone | Stop::Failed(_)) => self.respond.send_reset(Reason::CANCEL),
        }
    }

    async fn deliver(&mut self, call: &Call, order: &Order, account: &mut Account) -> Result<(), Stop> {
        service::check_length(call.framing, &order.pool)?;
        let worker = self.worker.clone();
        let mut delivery = Delivery::new(&order.pool, &self.client, order.key, call.begun, order.repeatable);
        let way = relay::approach(self, delivery.reach(account)).await?.map_err(Stop::Rescue)?;
        let streaming = if call.is_grpc { Phase::Tunnel } else { Phase::Download };
        let errand = Errand {
            worker: &worker,
            head: &call.head,
            framing: call.framing,
            to_head: call.to_head,
            streaming,
        };
        relay::deliver(self, &errand, &mut delivery, way, account).await
    }

    /// Gives an answer of ours. Nothing here waits for the client, whose connection takes it when it can.
    fn rescue(&mut self, call: &Call, error: ProxyError, account: &mut Account) {
        account.rescue(error);
        let mut response = Response::new(());
        let fields = response.headers_mut();
        for (name, value) in error.fields() {
            fields.insert(name, HeaderValue::from_static(value));
        }
        headers::append(fields, b"date", self.worker.date().as_bytes());
        let text = error.text();
        if call.is_grpc {
            fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            fields.insert("grpc-status", HeaderValue::from_static(grpc::code(error)));
            headers::append(fields, b"grpc-message", text.trim_end().as_bytes());
        } else {
            fields.insert(header::CONTENT_LENGTH, text.len().into());
            *response.status_mut() = error.status();
        }
        let ends = call.is_grpc || call.to_head;
        // If it fails, there is nobody left to tell.
        if let Ok(mut body) = self.respond.send_response(response, ends)
            && !ends
        {
            let _ = body.send_data(text.into(), true);
        }
        self.gauge.earn(FRAME_CREDIT_PER_ANSWER);
    }
}

impl Party for Stream {
    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Broken>> {
        if std::mem::take(&mut self.awaits_continue) && self.answer.is_none() {
            let mut interim = Response::new(());
            *interim.status_mut() = StatusCode::CONTINUE;
            self.respond.send_informational(interim).map_err(|_| Broken::Gone)?;
        }
        // A body that is broken cost the client its stream already.
        let part = match self.ahead.pop_front() {
            Some(part) => part,
            None => ready!(super::poll_ahead(&mut self.body, cx, false)).map_err(|_| Broken::Gone)?,
        };
        super::take(&mut self.body, &part);
        self.client.stream_received(part.length());
        match self.left.checked_sub(part.length() as u64) {
            Some(left) => self.left = left,
            None => return Poll::Ready(Err(Broken::TooLarge)),
        }
        Poll::Ready(Ok(part))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Broken>> {
        let Some(answer) = &mut self.answer else { return Poll::Ready(Err(Broken::Gone)) };
        super::poll_room(answer, cx, wanted)
    }

    fn put(&mut self, part: Part) -> Result<(), Broken> {
        let Some(answer) = &mut self.answer else { return Err(Broken::Gone) };
        self.gauge.earn(FRAME_CREDIT_PER_PIECE);
        self.client.stream_sent(part.length());
        super::put(answer, part)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        // The connection's own task sends it.
        Poll::Ready(Ok(()))
    }
}

impl ClientSide for Stream {
    fn watch(&self) -> &Rc<Client> {
        &self.client
    }

    fn put_head(&mut self, head: &ResponseHead<'_>, ends: bool) -> Result<(), Broken> {
        self.gauge.earn(FRAME_CREDIT_PER_ANSWER);
        let response = headers::to_stream(head, self.worker.date().as_bytes());
        self.answer = Some(self.respond.send_response(response, ends).map_err(|_| Broken::Gone)?);
        Ok(())
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.answer {
            Some(answer) => answer.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        let _ = ready!(reset);
        Poll::Ready(())
    }

    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        while self.client.awaits_end()
            && !self.awaits_continue
            && let Poll::Ready(Ok(part)) = super::poll_ahead(&mut self.body, cx, false)
        {
            if part.is_last() {
                self.client.end_upload();
            }
            self.ahead.push_back(part);
        }
    }
}
