//! Owns the way of one request, whatever protocol it came in: find its pool, check it, hash its key,
//! write it for a backend, and pick backends until one answers or nothing more can be tried.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use super::account::Account;
use super::client::{Client, Expiry};
use super::filter::{self, Admitted};
use super::headers::{self, Told};
use super::http1::{Framing, RequestHead, ResponseFault};
use super::introduction::Introduction;
use super::limits::MAX_TRIES;
use super::passage::Passage;
use super::rescue::ProxyError;
use super::upstream::{Berth, Fault, Slot, Unreached, Upstream};
use super::view::{PoolView, PortView};
use crate::balance::backend::HttpVersion;
use crate::balance::key::RequestParts;
use crate::balance::pool::Protocol;
use crate::metrics::RetryReason;

/// Checks a request, finds its pool and writes its head for the backend; the pool and the key. `authority` is that
/// of the connection it came in on.
pub(super) fn admit(
    port: Option<&PortView>,
    client: &Client,
    head: &RequestHead<'_>,
    authority: impl FnOnce() -> String,
    out: &mut Vec<u8>,
) -> Result<(Rc<PoolView>, u64), ProxyError> {
    let port = port.filter(|port| port.protocol() == Protocol::Http).ok_or(ProxyError::NoPool)?;
    let admitted = filter::admit(head, client.scheme())?;
    if !port.admits(&admitted, client.client_ca()) {
        return Err(ProxyError::Misdirected);
    }
    let pool = port.route(&admitted).ok_or(ProxyError::NoRoute)?;
    let (own, hearsay) = (client.forwarded(), client.hearsay(head));
    let (ip, told) = match &hearsay {
        None => (client.ip(), Told { lines: &own, host: admitted.host }),
        Some(said) => (said.ip, Told { lines: &said.lines, host: said.host.or(admitted.host) }),
    };
    headers::to_backend(out, head, &admitted, told, authority);
    let key = pool.snapshot.key_hash(&Keyed { head, admitted: &admitted, ip });
    Ok((pool.clone(), key))
}

/// Refuses a body that states a longer length than its pool takes. Once it is known whose request it is, so that it
/// counts there.
pub(super) fn check_length(framing: Framing, pool: &PoolView) -> Result<(), Stop> {
    match framing {
        Framing::Length(length) if length > pool.max_request_body() => {
            Err(Stop::Rescue(ProxyError::BodyTooLarge))
        }
        Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Ok(()),
    }
}

/// Whether sending it twice does no more than sending it once (RFC 9110 section 9.2.2).
pub(super) fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
}

/// A checked request or a connection on its way to a backend.
pub(super) struct Delivery<'a> {
    pool: &'a PoolView,
    /// What became of the pool since the request began, where that matters.
    latest: Option<Rc<PoolView>>,
    key: u64,
    begun: Instant,
    /// It may be sent twice: it is idempotent, and has no body that would be used up.
    repeatable: bool,
    tried: Vec<Rc<Slot>>,
    /// What backends are told that want to know for whom it is.
    introduction: Option<Introduction>,
    /// To be tried again over a new connection.
    same: Option<Rc<Slot>>,
    tries_left: usize,
    /// A backend took it and gave no answer.
    was_lost: bool,
    last_error: ProxyError,
}

/// A way to a backend that was picked.
pub(super) enum Way {
    /// A connection of HTTP/1, for this request alone.
    Alone(Reached),
    /// A place on a connection of HTTP/2.
    Shared(Berth),
}

/// A connection of HTTP/1 to a backend that was picked.
pub(super) struct Reached {
    pub(super) slot: Rc<Slot>,
    pub(super) upstream: Upstream,
    /// It takes no more of the request. Its answer may still be there to read.
    pub(super) is_deaf: bool,
}

impl Way {
    /// The backend it leads to.
    pub(super) fn slot(&self) -> &Rc<Slot> {
        match self {
            Self::Alone(reached) => &reached.slot,
            Self::Shared(berth) => &berth.slot,
        }
    }

    /// Whether the connection served a request before.
    pub(super) fn was_used(&self) -> bool {
        match self {
            Self::Alone(reached) => reached.upstream.was_used(),
            Self::Shared(berth) => berth.was_used(),
        }
    }
}

impl Reached {
    fn new(slot: Rc<Slot>, upstream: Upstream) -> Self {
        Self { slot, upstream, is_deaf: false }
    }
}

/// Why there is no complete response.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// None began with this backend; there may be others.
    Failed(Failure),
    /// None began, and we give one.
    Rescue(ProxyError),
    /// The client is not there any more, does not take it, or broke its request off while it came.
    Gone,
    /// The backend's broke off, or did not go on in time.
    Truncated,
}

/// Why an exchange with one backend did not lead to a response.
#[derive(Clone, Copy, Debug)]
pub(super) enum Failure {
    /// The client garbled its request's body.
    BadBody,
    /// The client's request has a longer body than its pool takes.
    BodyTooLarge,
    /// The client closed its side in the middle of it.
    BrokenOff,
    /// The backend.
    Upstream(Fault),
    /// The client waited or made wait for too long.
    Late(ProxyError),
}

impl<'a> Delivery<'a> {
    /// Of what `client` sent, by `key`.
    pub(super) fn new(
        pool: &'a PoolView,
        client: &Client,
        key: u64,
        begun: Instant,
        repeatable: bool,
    ) -> Self {
        Self {
            pool,
            latest: None,
            key,
            begun,
            repeatable,
            introduction: pool.introduces().then(|| client.introduction()),
            tried: Vec::new(),
            same: None,
            tries_left: MAX_TRIES,
            was_lost: false,
            last_error: ProxyError::NoBackend,
        }
    }

    /// The pool of the request.
    #[inline]
    pub(super) fn pool(&self) -> &PoolView {
        self.latest.as_deref().unwrap_or(self.pool)
    }

    /// A way for a request to the best backend that was not tried: over a connection that rested, unless a new one is
    /// needed.
    pub(super) async fn reach(&mut self, account: &mut Account) -> Result<Way, ProxyError> {
        loop {
            let renews = self.same.is_some();
            let slot = self.next()?;
            if let Some(way) = self.ready_way(&slot, renews) {
                return Ok(way);
            }
            account.client().begin_reaching(self.pool().snapshot.pool.timeouts.request);
            // In a box, so that what goes over connections that rested does not carry its room.
            let opened = Box::pin(self.open(&slot)).await;
            account.client().end_reaching();
            // Who took it may have acted on it. What came of the next one must not hide that.
            let error = |error| if self.was_lost { ProxyError::Lost } else { error };
            match opened {
                Ok(way) => return Ok(way),
                Err(Unreached::Exhausted) => return Err(error(ProxyError::Exhausted)),
                Err(Unreached::Backend(reason)) => {
                    self.retry(reason, error(ProxyError::ConnectFailed), account)?;
                }
            }
            self.pass_over(slot);
        }
    }

    /// A way over a connection that is open.
    #[inline]
    fn ready_way(&self, slot: &Rc<Slot>, renews: bool) -> Option<Way> {
        let whose = self.whose(slot);
        match slot.http() {
            HttpVersion::Http1 if renews => None,
            HttpVersion::Http1 => {
                let upstream = slot.take_resting(!self.repeatable, whose)?;
                Some(Way::Alone(Reached::new(slot.clone(), upstream)))
            }
            HttpVersion::Http2 => slot.berth(whose).map(Way::Shared),
        }
    }

    /// A way over a connection that is opened for it.
    async fn open(&self, slot: &Rc<Slot>) -> Result<Way, Unreached> {
        let (timeout, whose) = (self.pool().snapshot.pool.timeouts.connect, self.whose(slot));
        match slot.http() {
            HttpVersion::Http1 => {
                let upstream = slot.connect(timeout, self.begun, whose).await?;
                Ok(Way::Alone(Reached::new(slot.clone(), upstream)))
            }
            HttpVersion::Http2 => slot.board(timeout, self.begun, whose).await.map(Way::Shared),
        }
    }

    /// There is no way to `slot`. Nothing was sent to it, so if it left meanwhile, those are looked at that the pool has
    /// by now.
    fn pass_over(&mut self, slot: Rc<Slot>) {
        if slot.is_leaving() {
            let latest = self.pool.home.latest();
            // Backends that want to know for whom it is cannot be told by who did not find out when it began.
            self.latest = latest.filter(|pool| self.introduction.is_some() || !pool.introduces());
        }
        self.tried.push(slot);
    }

    /// A connection of its own to the best backend that was not tried, for whatever bytes come, so that it matters
    /// nothing which version of HTTP the backend would speak.
    pub(super) async fn connect(&mut self, passage: &Passage) -> Result<Reached, ProxyError> {
        loop {
            let slot = self.next()?;
            let timeout = self.pool().snapshot.pool.timeouts.connect;
            match Box::pin(slot.connect(timeout, self.begun, self.whose(&slot))).await {
                Ok(upstream) => return Ok(Reached::new(slot, upstream)),
                Err(Unreached::Exhausted) => return Err(ProxyError::Exhausted),
                Err(Unreached::Backend(reason)) => {
                    self.may_retry(ProxyError::ConnectFailed)?;
                    passage.retry(reason);
                }
            }
            self.pass_over(slot);
        }
    }

    /// What this backend is told of who it is for.
    #[inline]
    fn whose(&self, slot: &Slot) -> Option<&Introduction> {
        self.introduction.as_ref().filter(|_| slot.wants_introduction())
    }

    /// The backend to try now.
    fn next(&mut self) -> Result<Rc<Slot>, ProxyError> {
        let same = self.same.take();
        let choose = || self.pool().choose(self.key, &self.tried, self.begun);
        let slot = same.or_else(choose).ok_or(self.last_error)?;
        self.tries_left -= 1;
        Ok(slot)
    }

    /// What to tell the client after a failure at `slot`, unless another try is in order. `was_used` says whether the
    /// connection to it had served a request before.
    pub(super) fn failed(
        &mut self,
        slot: Rc<Slot>,
        was_used: bool,
        failure: Failure,
        account: &mut Account,
    ) -> Result<(), ProxyError> {
        match failure {
            Failure::Late(error) => Err(error),
            Failure::BadBody => Err(ProxyError::BadBody),
            Failure::BodyTooLarge => Err(ProxyError::BodyTooLarge),
            Failure::BrokenOff => Err(ProxyError::BrokenOff),
            Failure::Upstream(Fault::Response(ResponseFault::Malformed)) => Err(ProxyError::BadResponse),
            Failure::Upstream(Fault::Response(ResponseFault::TooLarge)) => Err(ProxyError::ResponseTooLarge),
            Failure::Upstream(Fault::Lost { unanswered }) if !(unanswered && self.repeatable) => {
                Err(ProxyError::Lost)
            }
            // It did nothing, so nothing is done twice (RFC 9113 section 8.7); another connection may do.
            Failure::Upstream(Fault::Unprocessed) => {
                self.same = Some(slot);
                self.was_lost = true;
                self.retry(RetryReason::Unprocessed, ProxyError::Lost, account)
            }
            // It was closed while it rested, most likely.
            Failure::Upstream(Fault::Lost { .. }) if was_used => {
                self.same = Some(slot);
                self.retry(RetryReason::Stale, ProxyError::Lost, account)
            }
            Failure::Upstream(Fault::Lost { .. }) => {
                self.tried.push(slot);
                self.was_lost = true;
                self.retry(RetryReason::Lost, ProxyError::Lost, account)
            }
        }
    }

    /// Counts a further try, if one is left; the error of the last one otherwise.
    fn retry(
        &mut self,
        reason: RetryReason,
        error: ProxyError,
        account: &mut Account,
    ) -> Result<(), ProxyError> {
        self.may_retry(error)?;
        account.retry(reason);
        Ok(())
    }

    /// Remembers the error of the last try, and gives it back where no further one is left.
    fn may_retry(&mut self, error: ProxyError) -> Result<(), ProxyError> {
        self.last_error = error;
        if self.tries_left == 0 { Err(error) } else { Ok(()) }
    }
}

/// What a client is told when it took too long. The ends that need no answer are not for us to give.
pub(super) fn late(expiry: Expiry, upload_blocked: bool) -> Option<ProxyError> {
    match expiry {
        Expiry::Stalled if upload_blocked => Some(ProxyError::Timeout),
        Expiry::Stalled => Some(ProxyError::ClientStalled),
        Expiry::Timeout | Expiry::Deadline => Some(ProxyError::Timeout),
        Expiry::Drained => Some(ProxyError::Drained),
        Expiry::Handshake | Expiry::Idle | Expiry::Head | Expiry::Gone | Expiry::Linger => None,
    }
}

/// What a client is told that waited too long for a way to a backend. That its body stands still is not its doing then.
pub(super) fn late_on_the_way(expiry: Option<Expiry>) -> Option<ProxyError> {
    matches!(expiry, Some(Expiry::Timeout | Expiry::Deadline)).then_some(ProxyError::Timeout)
}

/// The parts of a request that a key can be made of.
struct Keyed<'a> {
    head: &'a RequestHead<'a>,
    admitted: &'a Admitted<'a>,
    ip: IpAddr,
}

impl RequestParts for Keyed<'_> {
    fn headers(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.head.fields.all(name)
    }

    fn path(&self) -> &str {
        self.admitted.path
    }

    fn query(&self) -> Option<&str> {
        self.admitted.query
    }

    fn host(&self) -> Option<&str> {
        self.admitted.hostname()
    }

    fn client_ip(&self) -> IpAddr {
        self.ip
    }
}
