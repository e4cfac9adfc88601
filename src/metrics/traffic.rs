//! Owns the counters of the traffic. A worker thread has its own set for each pool and is its only
//! writer, so counting is a load and a store, never a contended instruction; a scrape sums the sets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector as Collects;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Family, family};
use crate::balance::pool::PoolId;
use crate::handoff::Reader;

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// Counts `n` more. Only the owning thread may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down, with one writer.
#[derive(Debug, Default)]
pub struct Gauge(Meter);

impl Gauge {
    /// One more.
    #[inline]
    pub fn up(&self) {
        self.0.add(1);
    }

    /// One less.
    #[inline]
    pub fn down(&self) {
        self.0.add(u64::MAX);
    }
}

/// Upper bounds of the latency buckets in microseconds: half a millisecond is a fast answer on a
/// local network, thirty seconds the default limit of a request.
const LATENCY_BOUNDS: [u32; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// Observed durations, with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One bucket for each bound and one for what is above the last.
    buckets: [Meter; LATENCY_BOUNDS.len() + 1],
    micros: Meter,
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS.iter().position(|bound| micros <= u64::from(*bound));
        self.buckets[bucket.unwrap_or(LATENCY_BOUNDS.len())].add(1);
        self.micros.add(micros);
    }
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every label there is, by number of the variant.
            pub const LABELS: &[&'static str] = &[$($label),*];

            /// The label of this one.
            pub fn label(self) -> &'static str {
                Self::LABELS[self as usize]
            }
        }
    };
}

labels! {
    /// What went wrong with the try before.
    RetryReason {
        /// The backend's address refuses connections.
        ConnectRefused = "connect_refused",
        /// No connection within the pool's connect timeout.
        ConnectTimeout = "connect_timeout",
        /// No connection for another reason, such as no route.
        ConnectFailed = "connect_failed",
        /// The handshake of TLS with the backend failed.
        TlsFailed = "tls_failed",
        /// A kept connection turned out to be closed before anything was sent.
        Stale = "stale",
        /// The connection was lost after the request was sent and before any byte of the response.
        Lost = "lost",
        /// A backend of HTTP/2 said that it did not begin with the request, or takes no more of them at the moment.
        Unprocessed = "unprocessed",
    }
}

labels! {
    /// Why no backend's answer came: Guideway answered a request in its place, or ended a connection or flow.
    RescueReason {
        /// The request breaks a rule of HTTP or one of ours.
        BadRequest = "bad_request",
        /// CONNECT or TRACE.
        MethodNotAllowed = "method_not_allowed",
        /// A transfer coding we do not speak.
        NotImplemented = "not_implemented",
        /// An expectation other than 100-continue.
        ExpectationFailed = "expectation_failed",
        /// The head is longer or has more fields than we take.
        HeadTooLarge = "head_too_large",
        /// The request's body is longer than its pool takes.
        BodyTooLarge = "body_too_large",
        /// The client stopped sending its request.
        ClientStalled = "client_stalled",
        /// No pool answers on this port any more.
        NoPool = "no_pool",
        /// No pool of the port is for this host and path.
        NoRoute = "no_route",
        /// The host asks other certificates of clients than the name the connection was opened for.
        Misdirected = "misdirected",
        /// It passed through a Guideway too often.
        Loop = "loop",
        /// The pool has no backend that may answer.
        NoBackend = "no_backend",
        /// No connection to a backend came about.
        ConnectFailed = "connect_failed",
        /// A backend broke off before it answered, and no other one answered.
        Lost = "lost",
        /// The backend's answer is not HTTP, or its head is too large.
        BadResponse = "bad_response",
        /// There is no memory left for more requests.
        Overloaded = "overloaded",
        /// There is no file descriptor left for a connection to a backend.
        Exhausted = "exhausted",
        /// The backend did not answer in time.
        Timeout = "timeout",
        /// The backend left, or the process ends, and the time to finish is over.
        Drained = "drained",
        /// The backend broke off in the middle of a response or of a connection of TCP; the client's connection or stream
        /// was reset.
        Truncated = "truncated",
        /// Nothing moved on a connection of TCP for too long.
        Idle = "idle",
        /// The client went away before the response was complete.
        ClientGone = "client_gone",
    }
}

labels! {
    /// The limit that a refused connection or flow met.
    Refusal {
        /// Connections of the whole process.
        Total = "total",
        /// Flows of UDP of the whole process.
        Flows = "flows",
        /// Connections or flows of one client address.
        Client = "client",
        /// Memory of the process.
        Memory = "memory",
        /// File descriptors of the process.
        Descriptors = "descriptors",
        /// No valid header of the PROXY protocol where the listener wants one.
        ProxyProtocol = "proxy_protocol",
        /// The handshake of TLS failed, was broken off or took too long.
        Handshake = "handshake",
        /// A connection of HTTP/2 was ended because it sent too many frames that carry nothing.
        Flood = "flood",
    }
}

/// The counters of one pool on one worker thread.
#[derive(Debug, Default)]
pub struct PoolMeters {
    requests: [Meter; CODE_CLASSES.len()],
    retries: [Meter; RetryReason::LABELS.len()],
    rescued: [Meter; RescueReason::LABELS.len()],
    /// Duration of requests.
    pub request_duration: Histogram,
    /// Duration of the part that the backend is responsible for.
    pub upstream_duration: Histogram,
    /// Requests that are being answered.
    pub active_requests: Gauge,
    /// Open client connections, and flows of UDP.
    pub connections: Gauge,
    /// Bytes read from clients.
    pub received: Meter,
    /// Bytes written to clients.
    pub sent: Meter,
    /// Datagrams of clients that went to a backend.
    pub datagrams_received: Meter,
    /// Datagrams of backends that went to a client.
    pub datagrams_sent: Meter,
}

const CODE_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl PoolMeters {
    /// Counts a request that was answered with `status`; zero when its client left before the end.
    #[inline]
    pub fn request(&self, status: u16) {
        let class = usize::from(status / 100);
        self.requests[if class < CODE_CLASSES.len() { class } else { 0 }].add(1);
    }

    /// Counts a further try.
    pub fn retry(&self, reason: RetryReason) {
        self.retries[reason as usize].add(1);
    }

    /// Counts a request that did not end with a backend's own answer.
    pub fn rescue(&self, reason: RescueReason) {
        self.rescued[reason as usize].add(1);
    }
}

/// The counters of all workers.
#[derive(Debug, Default)]
pub struct TrafficMeters {
    pools: Mutex<BTreeMap<PoolId, Vec<Arc<PoolMeters>>>>,
    refused: [AtomicU64; Refusal::LABELS.len()],
    panics: AtomicU64,
    access_log_dropped: AtomicU64,
    overload: AtomicU8,
}

impl TrafficMeters {
    /// A fresh set for one worker thread. Called once for each pool and worker, never for a request. Forgets the pools
    /// that no worker counts for any more: those are gone, and names come and go for as long as a process lives.
    pub fn pool(&self, id: &PoolId) -> Arc<PoolMeters> {
        let meters = Arc::new(PoolMeters::default());
        let mut pools = self.locked();
        pools.retain(|_, sets| sets.iter().any(|set| Arc::strong_count(set) > 1));
        pools.entry(id.clone()).or_default().push(meters.clone());
        meters
    }

    /// Counts a connection that was closed at once.
    pub fn refuse(&self, limit: Refusal) {
        self.refused[limit as usize].fetch_add(1, Relaxed);
    }

    /// Counts a connection that a panic ended.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// Notes how short of memory the process is.
    pub fn overload(&self, level: u8) {
        self.overload.store(level, Relaxed);
    }

    /// How short of memory the process is.
    pub fn overload_level(&self) -> u8 {
        self.overload.load(Relaxed)
    }

    /// Counts lines of the access log that are not written.
    pub fn drop_log_lines(&self, lines: u64) {
        self.access_log_dropped.fetch_add(lines, Relaxed);
    }

    /// Lines of the access log that were not written.
    pub fn dropped_log_lines(&self) -> u64 {
        self.access_log_dropped.load(Relaxed)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<PoolId, Vec<Arc<PoolMeters>>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sums the sets of the pools that are in the snapshot, and of what belongs to no pool; one that is gone keeps no
/// series.
#[derive(Debug)]
pub(super) struct Collector {
    meters: Arc<TrafficMeters>,
    reader: Reader,
}

impl Collector {
    pub(super) fn new(meters: Arc<TrafficMeters>, reader: Reader) -> Self {
        Self { meters, reader }
    }
}

impl Collects for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.reader.load();
        let sets = |id: &PoolId| self.meters.locked().get(id).cloned();
        let nobody = PoolId::nobody();
        let of_nobody = sets(&nobody).map(|sets| Sum { id: nobody, sets });
        let of = |id: &PoolId| Sum { id: id.clone(), sets: sets(id).unwrap_or_default() };
        let pools = snapshot.pools().map(|pool| of(&pool.pool.id));
        let pools: Vec<Sum> = of_nobody.into_iter().chain(pools).collect();
        let encoder = &mut encoder;
        counters(encoder, family::REQUESTS, &pools, "code_class", &CODE_CLASSES, |set, at| {
            set.requests[at].get()
        })?;
        histograms(encoder, family::REQUEST_DURATION, &pools, |set| &set.request_duration)?;
        histograms(encoder, family::UPSTREAM_DURATION, &pools, |set| &set.upstream_duration)?;
        gauges(encoder, family::ACTIVE_REQUESTS, &pools, |set| &set.active_requests)?;
        gauges(encoder, family::CONNECTIONS, &pools, |set| &set.connections)?;
        process_counters(encoder, &self.meters)?;
        counters(encoder, family::BYTES, &pools, "direction", &["received", "sent"], |set, at| {
            [&set.received, &set.sent][at].get()
        })?;
        counters(encoder, family::DATAGRAMS, &pools, "direction", &["received", "sent"], |set, at| {
            [&set.datagrams_received, &set.datagrams_sent][at].get()
        })?;
        counters(encoder, family::RETRIES, &pools, "reason", RetryReason::LABELS, |set, at| {
            set.retries[at].get()
        })?;
        counters(encoder, family::RESCUED, &pools, "reason", RescueReason::LABELS, |set, at| {
            set.rescued[at].get()
        })
    }
}

struct Sum {
    id: PoolId,
    sets: Vec<Arc<PoolMeters>>,
}

impl Sum {
    fn of(&self, meter: impl Fn(&PoolMeters) -> u64) -> u64 {
        self.sets.iter().fold(0, |sum, set| sum.wrapping_add(meter(set)))
    }

    fn labels(&self) -> [(&'static str, &str); 2] {
        [("namespace", &self.id.namespace), ("pool", &self.id.name)]
    }
}

/// One series for each pool and each of `labels`. The series that are zero are there too, so that a
/// rate over them is zero and not absent.
fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    family: Family,
    pools: &[Sum],
    key: &'static str,
    labels: &[&'static str],
    meter: impl Fn(&PoolMeters, usize) -> u64,
) -> fmt::Result {
    let mut series = family.start(encoder)?;
    for pool in pools {
        for (at, label) in labels.iter().enumerate() {
            let [namespace, name] = pool.labels();
            let count = ConstCounter::new(pool.of(|set| meter(set, at)));
            count.encode(series.encode_family(&[namespace, name, (key, *label)])?)?;
        }
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    family: Family,
    pools: &[Sum],
    gauge: impl Fn(&PoolMeters) -> &Gauge,
) -> fmt::Result {
    let mut series = family.start(encoder)?;
    for pool in pools {
        // Two's complement: sets that count down on one side of a wrap still sum up right.
        let value = pool.of(|set| gauge(set).0.get()).cast_signed();
        ConstGauge::<i64>::new(value).encode(series.encode_family(&pool.labels())?)?;
    }
    Ok(())
}

fn histograms(
    encoder: &mut DescriptorEncoder<'_>,
    family: Family,
    pools: &[Sum],
    histogram: impl Fn(&PoolMeters) -> &Histogram,
) -> fmt::Result {
    let mut series = family.start(encoder)?;
    for pool in pools {
        let bounds = LATENCY_BOUNDS.iter().map(|micros| f64::from(*micros) / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds
            .enumerate()
            .map(|(at, bound)| (bound, pool.of(|set| histogram(set).buckets[at].get())))
            .collect();
        let seconds = pool.of(|set| histogram(set).micros.get()) as f64 / 1e6;
        let count = buckets.iter().map(|(_, count)| count).sum();
        let labels = pool.labels();
        let mut metric = series.encode_family(&labels)?;
        metric.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)?;
    }
    Ok(())
}

fn process_counters(encoder: &mut DescriptorEncoder<'_>, meters: &TrafficMeters) -> fmt::Result {
    let mut refused = family::CONNECTIONS_REFUSED.start(encoder)?;
    for (at, label) in Refusal::LABELS.iter().enumerate() {
        let count = ConstCounter::new(meters.refused[at].load(Relaxed));
        count.encode(refused.encode_family(&[("limit", *label)])?)?;
    }
    let panics = ConstCounter::new(meters.panics.load(Relaxed));
    panics.encode(family::CONNECTION_PANICS.start(encoder)?)?;
    let overload = ConstGauge::<i64>::new(meters.overload_level().into());
    overload.encode(family::OVERLOAD_LEVEL.start(encoder)?)?;
    let dropped = ConstCounter::new(meters.dropped_log_lines());
    dropped.encode(family::ACCESS_LOG_DROPPED.start(encoder)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        let observed = [500, 501, 30_000_000, 30_000_001];
        observed.into_iter().for_each(|micros| histogram.observe(Duration::from_micros(micros)));
        let counts: Vec<u64> = histogram.buckets.iter().map(Meter::get).collect();
        assert_eq!(counts, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(histogram.micros.get(), observed.into_iter().sum::<u64>());
    }

    #[test]
    fn a_gauge_sums_up_over_threads_that_go_below_zero() {
        let sum = Sum { id: PoolId::new("shop", "web"), sets: vec![Arc::default(), Arc::default()] };
        sum.sets[0].connections.up();
        sum.sets[0].connections.up();
        sum.sets[1].connections.down();
        assert_eq!(sum.of(|set| set.connections.0.get()), 1);
    }

    #[test]
    fn a_pool_that_nobody_counts_for_any_more_takes_no_memory() {
        let (meters, pool) = (TrafficMeters::default(), |name| PoolId::new("shop", name));
        let (gone, left) =
            ([meters.pool(&pool("gone")), meters.pool(&pool("gone"))], meters.pool(&pool("web")));
        let known = || meters.locked().keys().map(|id| id.name.to_string()).collect::<Vec<_>>();
        drop(meters.pool(&pool("brief")));
        assert_eq!(known(), ["brief", "gone", "web"]);
        let [one, other] = gone;
        drop(one);
        let _web = meters.pool(&pool("web"));
        assert_eq!(known(), ["gone", "web"], "one worker still counts");
        drop(other);
        let _next = meters.pool(&pool("next"));
        assert_eq!(known(), ["next", "web"]);
        assert_eq!(meters.locked()[&pool("web")].len(), 2);
        drop(left);
    }

    #[test]
    fn every_status_has_a_class() {
        let meters = PoolMeters::default();
        [0, 99, 200, 204, 301, 404, 503, 999].into_iter().for_each(|status| meters.request(status));
        assert_eq!(meters.requests.each_ref().map(Meter::get), [3, 0, 2, 1, 1, 1]);
    }
}
