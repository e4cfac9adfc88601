//! Owns the accounting of one request: counted once, however it ends, also when the task that serves it
//! is cut off.

use std::rc::Rc;
use std::time::Instant;

use super::client::Client;
use super::rescue::ProxyError;
use super::view::Home;
use crate::metrics::RescueReason;

/// One request, from the end of its head to the end of its response.
#[derive(Debug)]
pub(super) struct Account {
    home: Rc<Home>,
    client: Rc<Client>,
    begun: Instant,
    status: u16,
    progress: Progress,
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
    pub(super) fn begin(home: &Rc<Home>, client: &Rc<Client>, begun: Instant) -> Self {
        home.meters.active_requests.up();
        let (home, client) = (home.clone(), client.clone());
        Self { home, client, begun, status: 0, progress: Progress::Waiting }
    }

    /// The head of a backend's response is there.
    pub(super) fn answer(&mut self, status: u16) {
        self.status = status;
        self.progress = Progress::Answering;
    }

    /// The backend's response broke off.
    pub(super) fn truncate(&mut self) {
        self.progress = Progress::Truncated;
    }

    /// The response is complete, since `at` if that is known without looking at the clock.
    pub(super) fn complete(&mut self, at: Option<Instant>) {
        self.progress = Progress::Complete(at);
    }

    /// We answer ourselves.
    pub(super) fn rescue(&mut self, error: ProxyError) {
        self.status = error.status().as_u16();
        self.progress = Progress::Complete(None);
        self.home.meters.rescue(error.reason());
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let meters = &self.home.meters;
        let mut ended = None;
        match self.progress {
            Progress::Waiting | Progress::Answering => meters.rescue(RescueReason::ClientGone),
            Progress::Truncated => meters.rescue(RescueReason::Truncated),
            Progress::Complete(at) => ended = at,
        }
        if matches!(self.progress, Progress::Answering | Progress::Truncated) {
            self.client.reset_on_close();
        }
        meters.active_requests.down();
        meters.request(self.status);
        let ended = ended.unwrap_or_else(Instant::now);
        meters.request_duration.observe(ended.saturating_duration_since(self.begun));
        self.client.end_request();
    }
}
