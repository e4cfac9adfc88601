//! Owns every metric family: its name, help text and labels stand here once, because dashboards and
//! alerts are written against them. Traffic is counted in plain per-thread counters and summed when
//! somebody scrapes, so a request pays for a few uncontended stores.

mod control;
mod pools;
mod traffic;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::handoff::{BindingsReader, Reader};

pub use control::ControlMetrics;
pub use traffic::{Gauge, Histogram, Meter, PoolMeters, Refusal, RescueReason, RetryReason, TrafficMeters};

/// The content type of a scrape.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A family as it is exported.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The exported name, with the `_total` or `_info` that its kind asks for.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Its kind.
    pub kind: Kind,
}

/// The kinds of families in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
    /// Labels that say something; the value is always 1.
    Info,
}

/// The families, each with its one definition.
pub mod family {
    use super::{Family, Kind};

    macro_rules! families {
        ($($constant:ident = $kind:ident $name:literal $help:literal;)*) => {
            $(#[doc = $help] pub const $constant: Family = Family { name: concat!("guideway_", $name), help: $help, kind: Kind::$kind };)*
            /// Every family there is, in the order of a scrape.
            pub const ALL: &[Family] = &[$($constant),*];
        };
    }

    families! {
        BUILD_INFO = Info "build_info" "The version of this Guideway";
        REQUESTS = Counter "requests_total" "Requests by class of the status code; none: the client left before the end; 5xx also: the answer broke off after its head";
        REQUEST_DURATION = Histogram "request_duration_seconds" "From the end of the request's head to the end of the response";
        UPSTREAM_DURATION = Histogram "upstream_duration_seconds" "From sending a request to a backend to the end of the response's head";
        ACTIVE_REQUESTS = Gauge "active_requests" "Requests that are being answered";
        CONNECTIONS = Gauge "connections" "Open client connections, and flows of UDP";
        CONNECTIONS_REFUSED = Counter "connections_refused_total" "Client connections closed at once and flows of UDP not begun, by the limit they met";
        CONNECTION_PANICS = Counter "connection_panics_total" "Client connections lost to a defect in Guideway";
        OVERLOAD_LEVEL = Gauge "overload_level" "How short of memory the process is: 0 not at all; 1 idle clients are sent away sooner, 2 and all are asked to leave, 3 and requests are refused";
        ACCESS_LOG_DROPPED = Counter "access_log_dropped_total" "Lines of the access log that were not written, because the disk or whoever reads them was behind";
        BYTES = Counter "bytes_total" "Bytes exchanged with clients, by direction";
        DATAGRAMS = Counter "datagrams_total" "Datagrams of UDP exchanged with clients, by direction";
        RETRIES = Counter "retries_total" "Further tries at a backend, by what went wrong with the one before";
        RESCUED = Counter "rescued_total" "Requests that Guideway answered or aborted in the place of a backend, and connections and flows that did not end in order, by reason";
        BACKEND_READY = Gauge "backend_ready" "1 for a backend that takes new requests, else 0";
        BACKEND_WEIGHT = Gauge "backend_weight" "A backend's weight within its group; 0 where the group takes no traffic";
        TABLE_DIGEST = Info "table_digest_info" "The digest and size of the table in use; equal on replicas that route alike";
        TABLE_SLOTS = Gauge "table_slots" "Slots of the table that a backend answers for";
        TABLE_MOVED_SLOTS = Counter "table_moved_slots_total" "Slots that changed their backend, by cause";
        TABLE_BUILD = Histogram "table_build_seconds" "Time to build the table of one pool";
        PROPAGATION = Histogram "propagation_seconds" "From a pod's change of readiness to the first table with or without it";
        CERTIFICATE_NOT_AFTER = Gauge "certificate_not_after_seconds" "When the first of the certificates of a listener or backend expires, in seconds since the UNIX epoch";
        LISTENER_BOUND = Gauge "listener_bound" "1 for a listener whose port is open, 0 for one whose port could not be opened so far";
        SEAT_WRITE_FAILURES = Counter "seat_write_failures_total" "Tries to write seats to the state directory that failed";
        CONFIG_ERRORS = Gauge "config_errors" "Pools that are not served as their latest edit asks, because it is wrong or asks for what is taken";
        LEADER = Gauge "leader" "1 where seats are assigned: on the replica that holds the Lease, and always without Kubernetes; else 0";
        WATCH_AGE = Gauge "watch_age_seconds" "Time since the API server was last heard of, by kind of resource; of several watches the longest";
    }
}

/// Everything that can be scraped.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    traffic: Arc<TrafficMeters>,
    control: ControlMetrics,
}

impl Metrics {
    /// The families of a process that serves what `reader` shows on the ports that `bindings` tells of.
    pub fn new(reader: Reader, bindings: BindingsReader) -> Self {
        let (traffic, control) = (Arc::new(TrafficMeters::default()), ControlMetrics::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(BuildInfo));
        registry.register_collector(Box::new(traffic::Collector::new(traffic.clone(), reader.clone())));
        registry.register_collector(Box::new(pools::Collector::new(reader, bindings)));
        registry.register_collector(Box::new(control.clone()));
        Self { registry, traffic, control }
    }

    /// Where the workers count.
    pub fn traffic(&self) -> &Arc<TrafficMeters> {
        &self.traffic
    }

    /// Where the sources count.
    pub fn control(&self) -> ControlMetrics {
        self.control.clone()
    }

    /// All families in the OpenMetrics text format.
    pub fn scrape(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Family {
    /// Starts the family in a scrape. The encoder adds the suffix of the kind itself.
    fn start<'a>(&self, encoder: &'a mut DescriptorEncoder<'_>) -> Result<MetricEncoder<'a>, fmt::Error> {
        let (suffix, metric_type) = match self.kind {
            Kind::Counter => ("_total", MetricType::Counter),
            Kind::Gauge => ("", MetricType::Gauge),
            Kind::Histogram => ("", MetricType::Histogram),
            Kind::Info => ("_info", MetricType::Info),
        };
        let name = self.name.strip_suffix(suffix).unwrap_or(self.name);
        encoder.encode_descriptor(name, self.help, None, metric_type)
    }
}

#[derive(Debug)]
struct BuildInfo;

impl Collector for BuildInfo {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        family::BUILD_INFO.start(&mut encoder)?.encode_info(&labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_named_once_and_carries_the_suffix_of_its_kind() {
        let mut names: Vec<_> = family::ALL.iter().map(|family| family.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), family::ALL.len());
        for family in family::ALL {
            assert_eq!(family.name.ends_with("_total"), family.kind == Kind::Counter, "{}", family.name);
            assert_eq!(family.name.ends_with("_info"), family.kind == Kind::Info, "{}", family.name);
        }
    }

    #[test]
    fn an_idle_process_scrapes_as_openmetrics() {
        let ((_publisher, reader), (_, bindings)) =
            (crate::handoff::handoff(), crate::handoff::bindings(None));
        let text = Metrics::new(reader, bindings).scrape().unwrap();
        assert!(text.contains("guideway_build_info{version=\""), "{text}");
        assert!(text.contains("\nguideway_leader 0\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        for family in family::ALL {
            let described = family.name.trim_end_matches("_total").trim_end_matches("_info");
            assert!(text.contains(&format!("# TYPE {described} ")), "{described} is not described:\n{text}");
        }
    }
}
