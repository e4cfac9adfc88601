//! Owns the accounting of one connection or flow that has no requests: counted while it lives, and written down once
//! where its pool has an access log, however it ends.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use jiff::Timestamp;

use super::access_log::{Entry, Line};
use super::client::Carried;
use super::upstream::Slot;
use super::view::Home;
use crate::metrics::{RescueReason, RetryReason};

/// One connection or flow.
#[derive(Debug)]
pub(super) struct Passage {
    home: Rc<Home>,
    client: IpAddr,
    client_port: Option<u16>,
    begun: Instant,
    retries: Cell<u32>,
    /// Why it did not end in order, as far as that is known before the end.
    reason: Cell<Option<RescueReason>>,
    entry: Option<Box<Entry>>,
}

impl Passage {
    /// Of `client`, by `key`, over `protocol`.
    pub(super) fn begin(
        home: &Rc<Home>,
        (client, client_port): (IpAddr, Option<u16>),
        protocol: &'static str,
        key: u64,
        begun: Instant,
    ) -> Self {
        let entry = home.entry(|| Entry::without_request(protocol, key));
        let (retries, reason) = Default::default();
        Self { home: home.clone(), client, client_port, begun, retries, reason, entry }
    }

    /// It is tried once more.
    pub(super) fn retry(&self, reason: RetryReason) {
        self.retries.update(|retries| retries + 1);
        self.home.meters.retry(reason);
    }

    /// It ends otherwise than in order.
    pub(super) fn fail(&self, reason: RescueReason) {
        self.reason.set(Some(reason));
        self.home.meters.rescue(reason);
    }

    /// It ended at `ended`, after it carried so much between its client and `backend`.
    pub(super) fn end(&self, ended: Instant, backend: Option<&Slot>, carried: Carried) {
        let Some(entry) = &self.entry else { return };
        self.home.recorder.record(&Line {
            time: Timestamp::now(),
            client: self.client,
            client_port: self.client_port,
            pool: &self.home.id,
            entry,
            backend: backend.map(Slot::backend),
            status: 0,
            received: carried.received,
            sent: carried.sent,
            took: ended.saturating_duration_since(self.begun),
            upstream: None,
            retries: self.retries.get(),
            reason: self.reason.get(),
        });
    }
}
