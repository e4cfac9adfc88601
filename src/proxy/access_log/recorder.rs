//! Owns a worker's part of the access log: which requests get a line, and the lines that were not handed on yet. It is
//! never shared and never waits.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};

use super::writer::Order;
use super::{Line, LineForm};
use crate::balance::hash;
use crate::balance::pool::Sample;
use crate::metrics::TrafficMeters;
use crate::proxy::limits::LOG_BATCH_BYTES;

/// Where recorders hand on what they have.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Sink {
    pub(super) orders: SyncSender<Order>,
    pub(super) form: LineForm,
    pub(super) meters: Arc<TrafficMeters>,
}

/// Lines on their way out.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
}

/// A worker thread's own.
#[derive(Debug)]
pub(in crate::proxy) struct Recorder {
    sink: Sink,
    batch: RefCell<Batch>,
    seed: u64,
    drawn: Cell<u64>,
}

impl Recorder {
    pub(in crate::proxy) fn new(sink: Sink) -> Self {
        let seed = RandomState::new().hash_one(0);
        Self { sink, batch: RefCell::default(), seed, drawn: Cell::new(0) }
    }

    /// Whether the next request is among `sample`.
    pub(in crate::proxy) fn draws(&self, sample: Sample) -> bool {
        self.drawn.set(self.drawn.get().wrapping_add(1));
        sample.takes(hash::mix(self.drawn.get(), self.seed) as u32)
    }

    /// Writes a line into memory, or drops it where there is no room because nobody takes what is there.
    pub(in crate::proxy) fn record(&self, line: &Line<'_>) {
        let batch = &mut *self.batch.borrow_mut();
        if batch.bytes.len() >= LOG_BATCH_BYTES {
            self.hand_on(batch);
        }
        if batch.bytes.len() >= LOG_BATCH_BYTES {
            return self.sink.meters.drop_log_lines(1);
        }
        line.write(self.sink.form, &mut batch.bytes);
        batch.lines += 1;
    }

    /// Hands on what there is, as far as somebody takes it.
    pub(in crate::proxy) fn flush(&self) {
        self.hand_on(&mut self.batch.borrow_mut());
    }

    fn hand_on(&self, batch: &mut Batch) {
        if batch.lines == 0 {
            return;
        }
        let sent = self.sink.orders.try_send(Order::Write(mem::take(batch)));
        let left = sent.map_err(|(TrySendError::Full(order) | TrySendError::Disconnected(order))| order);
        if let Err(Order::Write(kept)) = left {
            *batch = kept;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
        self.sink.meters.drop_log_lines(self.batch.borrow().lines);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::time::Duration;

    use jiff::Timestamp;

    use super::super::Entry;
    use super::*;
    use crate::balance::pool::PoolId;

    fn recorder(batches: usize) -> (Recorder, Receiver<Order>, Arc<TrafficMeters>) {
        let (orders, ordered) = sync_channel(batches);
        let meters = Arc::new(TrafficMeters::default());
        let sink = Sink { orders, form: LineForm::Text, meters: meters.clone() };
        (Recorder::new(sink), ordered, meters)
    }

    fn record(recorder: &Recorder, path: &str) {
        let line = Line {
            time: Timestamp::UNIX_EPOCH,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            client_port: None,
            pool: &PoolId::new("shop", "web"),
            entry: &Entry::new("HTTP/1.1", "GET", b"a", path, None),
            backend: None,
            status: 200,
            received: 0,
            sent: 0,
            took: Duration::ZERO,
            upstream: None,
            retries: 0,
            reason: None,
        };
        recorder.record(&line);
    }

    fn written(ordered: &Receiver<Order>) -> Vec<Batch> {
        let batch = |order| match order {
            Order::Write(batch) => Some(batch),
            Order::Reopen => None,
        };
        ordered.try_iter().filter_map(batch).collect()
    }

    #[test]
    fn lines_leave_together_and_in_order() {
        let (recorder, ordered, _) = recorder(8);
        recorder.flush();
        assert!(written(&ordered).is_empty(), "nothing is no batch");
        ["/a", "/b", "/c"].into_iter().for_each(|path| record(&recorder, path));
        assert!(written(&ordered).is_empty(), "there was no tick yet");
        recorder.flush();
        let [batch] = &written(&ordered)[..] else { panic!("one batch") };
        let text = String::from_utf8(batch.bytes.clone()).unwrap();
        let paths: Vec<&str> = text.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
        assert_eq!((batch.lines, paths), (3, vec!["a/a", "a/b", "a/c"]));
    }

    #[test]
    fn a_full_batch_leaves_before_the_tick() {
        let (recorder, ordered, _) = recorder(8);
        let path = "/".repeat(1000);
        (0..LOG_BATCH_BYTES / 1000 + 1).for_each(|_| record(&recorder, &path));
        assert_eq!(written(&ordered).len(), 1);
    }

    #[test]
    fn who_writes_too_slowly_loses_lines_and_nobody_waits() {
        let (recorder, ordered, meters) = recorder(2);
        let path = "/".repeat(1000);
        (0..1000).for_each(|_| record(&recorder, &path));
        let batches = written(&ordered);
        assert_eq!(batches.len(), 2);
        recorder.flush();
        let kept: u64 = batches.iter().chain(&written(&ordered)).map(|batch| batch.lines).sum();
        assert_eq!(kept + meters.dropped_log_lines(), 1000);
        assert!((40..60).contains(&kept), "three batches of sixteen lines, not {kept} lines");
    }

    #[test]
    fn what_is_left_in_the_end_is_handed_on_or_counted() {
        let (recorder, ordered, meters) = recorder(1);
        record(&recorder, "/");
        drop(recorder);
        assert_eq!((written(&ordered)[0].lines, meters.dropped_log_lines()), (1, 0));
        let (recorder, ordered, meters) = self::recorder(1);
        drop(ordered);
        record(&recorder, "/");
        drop(recorder);
        assert_eq!(meters.dropped_log_lines(), 1);
    }

    #[test]
    fn a_sample_is_about_its_share_of_the_requests() {
        let (recorder, ..) = recorder(1);
        let drawn = |share| {
            let sample = Sample::of(share).unwrap();
            (0..10_000).filter(|_| recorder.draws(sample)).count()
        };
        assert_eq!(drawn(1.0), 10_000);
        // Ten standard deviations, so that it fails by chance in no lifetime.
        assert!((700..1300).contains(&drawn(0.1)));
    }
}
