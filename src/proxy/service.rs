//! Owns the way of one request: find its pool, check it, hash its key, pick a backend, send it there
//! and answer, or else rescue it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;

use super::body::{Exchange, ProxyBody};
use super::client::{Client, Expiry};
use super::filter;
use super::headers;
use super::limits::MAX_TRIES;
use super::rescue::ProxyError;
use super::upstream::{Fault, Framing, Shared, Slot};
use super::view::PoolView;
use super::worker::Worker;
use crate::balance::key::RequestParts;
use crate::metrics::RetryReason;

/// Answers one request, whatever happens.
pub(super) async fn answer(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let begun = Instant::now();
    let mut response = match worker.view().pool(client.port) {
        Some(pool) => respond(pool.clone(), &client, request, begun).await,
        None => ProxyError::NoPool.response(),
    };
    if worker.is_draining() || client.is_half_closed() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn respond(
    pool: Rc<PoolView>,
    client: &Rc<Client>,
    request: Request<Incoming>,
    begun: Instant,
) -> Response<ProxyBody> {
    let mut exchange = Exchange::begin(&pool.home, client, begun);
    client.begin_request(pool.snapshot.pool.timeouts.request, begun);
    match Delivery::prepare(&pool, client, request, begun) {
        Ok(mut delivery) => match delivery.deliver().await {
            Ok(answer) => {
                exchange.answered(answer.head.status().as_u16());
                let body = ProxyBody::streamed(answer.upstream, answer.slot, exchange);
                answer.head.map(|()| body)
            }
            Err(error) => rescue(error, exchange),
        },
        Err(error) => rescue(error, exchange),
    }
}

fn rescue(error: ProxyError, mut exchange: Exchange) -> Response<ProxyBody> {
    exchange.answered(error.status().as_u16());
    exchange.home.meters.rescue(error.reason());
    error.response()
}

/// A checked request on its way to a backend.
struct Delivery<'a> {
    pool: &'a PoolView,
    client: &'a Rc<Client>,
    begun: Instant,
    key: u64,
    head: Bytes,
    body: Option<Incoming>,
    framing: Framing,
    to_head: bool,
    /// Sending it twice does no more than sending it once (RFC 9110 section 9.2.2), and it can be
    /// sent twice, because no body was used up.
    repeatable: bool,
    /// The map of the request's fields, emptied, for those of the response.
    spare: HeaderMap,
    tried: Vec<Rc<Slot>>,
}

struct Answer {
    head: Response<()>,
    upstream: Shared,
    slot: Rc<Slot>,
}

/// What to do after a failed try.
enum Next {
    /// Another backend.
    Other(RetryReason),
    /// The same backend over a new connection.
    Same(RetryReason),
    GiveUp(ProxyError),
}

impl<'a> Delivery<'a> {
    fn prepare(
        pool: &'a PoolView,
        client: &'a Rc<Client>,
        request: Request<Incoming>,
        begun: Instant,
    ) -> Result<Self, ProxyError> {
        let (mut parts, body) = request.into_parts();
        let admitted = filter::admit(&parts)?;
        let key = pool.snapshot.key_hash(&Keyed { parts: &parts, host: admitted.host, ip: client.ip });
        let framing = body.size_hint().exact().map_or(Framing::Chunked, Framing::Length);
        let head = headers::upstream_head(
            &mut client.heads.borrow_mut(),
            &parts,
            &admitted,
            framing,
            client.name.as_bytes(),
        );
        let body = (!body.is_end_stream()).then_some(body);
        let idempotent =
            [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(&parts.method);
        parts.headers.clear();
        Ok(Self {
            pool,
            client,
            begun,
            key,
            head,
            framing,
            to_head: parts.method == Method::HEAD,
            repeatable: idempotent && body.is_none(),
            body,
            spare: parts.headers,
            tried: Vec::new(),
        })
    }

    /// Sends it to one backend after the other until one answers or nothing more can be tried.
    async fn deliver(&mut self) -> Result<Answer, ProxyError> {
        let mut same: Option<Rc<Slot>> = None;
        let mut last_error = ProxyError::NoBackend;
        for tries_left in (0..MAX_TRIES).rev() {
            let renew = same.is_some();
            let Some(slot) = same.take().or_else(|| self.pool.choose(self.key, &self.tried, self.begun))
            else {
                return Err(last_error);
            };
            let next = match self.reach(&slot, renew).await {
                Ok(upstream) => match self.exchange(&slot, &upstream).await {
                    Ok(head) => return Ok(Answer { head, upstream, slot }),
                    Err(failure) => self.after(&failure, upstream.borrow().was_used()),
                },
                Err(reason) => Next::Other(reason),
            };
            let reason = match next {
                Next::GiveUp(error) => return Err(error),
                Next::Same(reason) => {
                    same = Some(slot);
                    reason
                }
                Next::Other(reason) => {
                    self.tried.push(slot);
                    reason
                }
            };
            last_error = match reason {
                RetryReason::Stale | RetryReason::Lost => ProxyError::Lost,
                RetryReason::ConnectRefused | RetryReason::ConnectTimeout | RetryReason::ConnectFailed => {
                    ProxyError::ConnectFailed
                }
            };
            if tries_left > 0 {
                self.pool.home.meters.retry(reason);
            }
        }
        Err(last_error)
    }

    /// A connection to the backend: one that rested, unless a new one is asked for.
    async fn reach(&self, slot: &Slot, renew: bool) -> Result<Shared, RetryReason> {
        if !renew && let Some(rested) = slot.take_resting(!self.repeatable) {
            return Ok(rested);
        }
        slot.connect(self.pool.snapshot.pool.timeouts.connect).await
    }

    /// Sends the request over `upstream` and waits for the head of the response.
    async fn exchange(&mut self, slot: &Rc<Slot>, upstream: &Shared) -> Result<Response<()>, Failure> {
        let sent = if upstream.borrow().was_used() { self.begun } else { Instant::now() };
        upstream.borrow_mut().begin(self.head.clone(), self.body.take(), self.framing, self.to_head);
        self.client.begin_exchange(slot, upstream);
        let head = poll_fn(|cx| {
            let mut upstream = upstream.borrow_mut();
            let head = upstream.poll_head(cx, &mut self.spare);
            if upstream.is_uploaded() {
                self.client.end_upload();
            }
            match (&head, self.client.expiry()) {
                (Poll::Pending, Some(expiry)) => match late(expiry, upstream.is_upload_blocked()) {
                    Some(error) => Poll::Ready(Err(Failure::Late(error))),
                    None => Poll::Pending,
                },
                _ => head.map_err(Failure::Fault),
            }
        })
        .await?;
        self.pool.home.meters.upstream_duration.observe(sent.elapsed());
        Ok(head)
    }

    fn after(&self, failure: &Failure, used: bool) -> Next {
        match failure {
            Failure::Late(error) => Next::GiveUp(*error),
            Failure::Fault(Fault::Client) => Next::GiveUp(ProxyError::BadBody),
            Failure::Fault(Fault::Malformed) => Next::GiveUp(ProxyError::BadResponse),
            Failure::Fault(Fault::Lost { unanswered }) => match (*unanswered && self.repeatable, used) {
                (true, true) => Next::Same(RetryReason::Stale),
                (true, false) => Next::Other(RetryReason::Lost),
                (false, _) => Next::GiveUp(ProxyError::Lost),
            },
        }
    }
}

enum Failure {
    Fault(Fault),
    Late(ProxyError),
}

/// What a client is told when it took too long. The ends that need no answer are not for us to give.
fn late(expiry: Expiry, upload_blocked: bool) -> Option<ProxyError> {
    match expiry {
        Expiry::Stalled if upload_blocked => Some(ProxyError::Timeout),
        Expiry::Stalled => Some(ProxyError::ClientStalled),
        Expiry::Timeout => Some(ProxyError::Timeout),
        Expiry::Drained => Some(ProxyError::Drained),
        Expiry::Idle | Expiry::Head | Expiry::Gone | Expiry::Linger => None,
    }
}

/// The parts of a request that a key can be made of.
struct Keyed<'a> {
    parts: &'a Parts,
    host: Option<&'a str>,
    ip: IpAddr,
}

impl RequestParts for Keyed<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.parts.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn path(&self) -> &str {
        self.parts.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.parts.uri.query()
    }

    fn host(&self) -> Option<&str> {
        let host = self.host?;
        let port = host.rfind(':').filter(|at| !host[*at..].contains(']'));
        Some(port.map_or(host, |at| &host[..at]))
    }

    fn client_ip(&self) -> IpAddr {
        self.ip
    }
}
