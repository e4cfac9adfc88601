//! Owns the accounting of one request: counted once, and written down once where its pool has an access log, however
//! it ends, also when the task that serves it is cut off.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::StatusCode;
use jiff::Timestamp;

use super::access_log::{Entry, Line};
use super::client::{Carried, Client};
use super::rescue::ProxyError;
use super::upstream::Slot;
use super::view::Home;
use crate::metrics::{RescueReason, RetryReason};

/// One request, from the end of its head to the end of its response.
#[derive(Debug)]
pub(super) struct Account {
    home: Rc<Home>,
    client: Rc<Client>,
    begun: Instant,
    status: u16,
    progress: Progress,
    upstream: Option<Duration>,
    retries: u32,
    /// Why it did not end with a backend's own answer, as far as that is known before the end.
    reason: Option<RescueReason>,
    entry: Option<Box<Entry>>,
}

/// How far the response came.
#[derive(Clone, Copy, Debug)]
enum Progress {
    /// There is none.
    Waiting,
    /// Part of a backend's response may be on its way.
    Answering,
    /// A backend's response broke off.
    Truncated,
    /// It is complete, at this time if that is known already.
    Complete(Option<Instant>),
}

impl Account {
    /// `entry` is there if the request gets a line in the access log.
    pub(super) fn begin(
        home: &Rc<Home>,
        client: &Rc<Client>,
        begun: Instant,
        entry: Option<Box<Entry>>,
    ) -> Self {
        home.meters.active_requests.up();
        let (home, client) = (home.clone(), client.clone());
        let progress = Progress::Waiting;
        Self { home, client, begun, status: 0, progress, upstream: None, retries: 0, reason: None, entry }
    }

    /// Whose it is.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// It is tried once more.
    pub(super) fn retry(&mut self, reason: RetryReason) {
        self.retries += 1;
        self.home.meters.retry(reason);
    }

    /// The head of a backend's response is there.
    pub(super) fn answer(&mut self, status: u16) {
        self.status = status;
        self.progress = Progress::Answering;
    }

    /// The head of the response came so long after the request was sent.
    pub(super) fn answered_after(&mut self, took: Duration) {
        self.upstream = Some(took);
        self.home.meters.upstream_duration.observe(took);
    }

    /// The backend's response broke off, or did not go on in time.
    pub(super) fn truncate(&mut self) {
        self.progress = Progress::Truncated;
    }

    /// The response is complete, since `at` if that is known without looking at the clock.
    pub(super) fn complete(&mut self, at: Option<Instant>) {
        self.progress = Progress::Complete(at);
    }

    /// We answer ourselves.
    pub(super) fn rescue(&mut self, error: ProxyError) {
        // Whoever broke its request off does not count as answered, though we say why.
        self.status = if error == ProxyError::BrokenOff { 0 } else { error.status().as_u16() };
        self.progress = Progress::Complete(None);
        self.rescued(error.reason());
    }

    fn rescued(&mut self, reason: RescueReason) {
        self.reason = Some(reason);
        self.home.meters.rescue(reason);
    }

    fn log(&self, entry: &Entry, ended: Instant, backend: Option<&Slot>, carried: Carried) {
        // Another protocol goes on for as long as it is spoken.
        let switched = self.status == StatusCode::SWITCHING_PROTOCOLS.as_u16();
        let ended = if switched { Instant::now() } else { ended };
        self.home.recorder.record(&Line {
            time: Timestamp::now(),
            client: entry.on_behalf_of.unwrap_or(self.client.ip()),
            client_port: self.client.own_port().filter(|_| entry.on_behalf_of.is_none()).map(Into::into),
            pool: &self.home.id,
            entry,
            backend: backend.map(Slot::backend),
            status: self.status,
            received: carried.received,
            sent: carried.sent,
            took: ended.saturating_duration_since(self.begun),
            upstream: self.upstream,
            retries: self.retries,
            reason: self.reason,
        });
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // What a status promised and nobody got is no success: a client that left is nobody's error, and a backend
        // that broke off is one of the server's.
        let (counted, ended) = match self.progress {
            Progress::Waiting | Progress::Answering => {
                self.rescued(RescueReason::ClientGone);
                (0, None)
            }
            Progress::Truncated => {
                self.rescued(RescueReason::Truncated);
                (StatusCode::BAD_GATEWAY.as_u16(), None)
            }
            Progress::Complete(at) => (self.status, at),
        };
        if matches!(self.progress, Progress::Answering | Progress::Truncated) {
            self.client.reset_on_close();
        }
        let meters = &self.home.meters;
        meters.active_requests.down();
        meters.request(counted);
        let ended = ended.unwrap_or_else(Instant::now);
        meters.request_duration.observe(ended.saturating_duration_since(self.begun));
        let (slot, carried) = self.client.end_request();
        if let Some(entry) = self.entry.take() {
            self.log(&entry, ended, slot.as_deref(), carried);
        }
    }
}
