//! Owns what the sources count: tables, propagation, mistakes, leadership, how stale the watch is.
//! These change with the cluster, not with requests, so shared metrics of the library do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family as Series;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use super::family;
use crate::balance::pool::PoolId;

/// Table builds take microseconds to tens of milliseconds.
const BUILD_BUCKETS: [f64; 10] = [20e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 10e-3, 50e-3, 250e-3];
/// The promise is 50 ms at p99, so the buckets are closest there.
const PROPAGATION_BUCKETS: [f64; 14] =
    [1e-3, 2.5e-3, 5e-3, 10e-3, 15e-3, 20e-3, 30e-3, 40e-3, 50e-3, 75e-3, 0.1, 0.25, 1.0, 5.0];

/// The namespace of a watch; `None` is the whole cluster.
type Scope = Option<Arc<str>>;

/// What the sources count, cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlMetrics {
    table_build: Histogram,
    moved_slots: Arc<Mutex<BTreeMap<(PoolId, &'static str), u64>>>,
    propagation: Series<[(&'static str, String); 2], Histogram>,
    config_errors: Gauge,
    seat_write_failures: Counter,
    leader: Gauge,
    /// By kind of resource and namespace of each watch.
    heard: Arc<Mutex<BTreeMap<(&'static str, Scope), Instant>>>,
}

impl Default for ControlMetrics {
    fn default() -> Self {
        Self {
            table_build: Histogram::new(BUILD_BUCKETS),
            moved_slots: Arc::default(),
            propagation: Series::new_with_constructor(|| Histogram::new(PROPAGATION_BUCKETS)),
            config_errors: Gauge::default(),
            seat_write_failures: Counter::default(),
            leader: Gauge::default(),
            heard: Arc::default(),
        }
    }
}

impl ControlMetrics {
    /// A pool's table was built in `took`.
    pub fn table_built(&self, took: Duration) {
        self.table_build.observe(took.as_secs_f64());
    }

    /// `slots` of a pool's table changed their backend because of `cause`.
    pub fn slots_moved(&self, pool: &PoolId, cause: &'static str, slots: u64) {
        *locked(&self.moved_slots).entry((pool.clone(), cause)).or_default() += slots;
    }

    /// A change of a pod reached the first table `took` after it happened.
    pub fn propagated(&self, pool: &PoolId, took: Duration) {
        self.propagation.get_or_create(&labels(pool)).observe(took.as_secs_f64());
    }

    /// So many pools have a latest edit that is not in force.
    pub fn set_config_errors(&self, pools: usize) {
        self.config_errors.set(i64::try_from(pools).unwrap_or(i64::MAX));
    }

    /// So many tries to write seats to the state directory failed.
    pub fn seat_writes_failed(&self, failed: u64) {
        self.seat_write_failures.inc_by(failed);
    }

    /// Whether this replica assigns seats.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The API server was heard of just now on the watch for `resource` in `scope`. To be called when the watch begins,
    /// too: one that never gets an answer shall grow old like one that lost touch.
    pub fn watch_heard(&self, resource: &'static str, scope: Scope) {
        locked(&self.heard).insert((resource, scope), Instant::now());
    }

    /// Drops the series of a pool that is gone.
    pub fn forget(&self, pool: &PoolId) {
        self.propagation.remove(&labels(pool));
        locked(&self.moved_slots).retain(|(owner, _), _| owner != pool);
    }
}

impl Collector for ControlMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut moved = family::TABLE_MOVED_SLOTS.start(&mut encoder)?;
        for ((pool, cause), slots) in &*locked(&self.moved_slots) {
            let labels = [("namespace", &*pool.namespace), ("pool", &*pool.name), ("cause", cause)];
            ConstCounter::new(*slots).encode(moved.encode_family(&labels)?)?;
        }
        self.table_build.encode(family::TABLE_BUILD.start(&mut encoder)?)?;
        self.propagation.encode(family::PROPAGATION.start(&mut encoder)?)?;
        self.config_errors.encode(family::CONFIG_ERRORS.start(&mut encoder)?)?;
        self.seat_write_failures.encode(family::SEAT_WRITE_FAILURES.start(&mut encoder)?)?;
        self.leader.encode(family::LEADER.start(&mut encoder)?)?;
        let mut ages = family::WATCH_AGE.start(&mut encoder)?;
        // Of the watches for one kind the one that was silent longest counts: it is the one to look after.
        let mut oldest: BTreeMap<&'static str, Instant> = BTreeMap::new();
        for ((resource, _), at) in &*locked(&self.heard) {
            oldest.entry(resource).and_modify(|known| *known = (*known).min(*at)).or_insert(*at);
        }
        for (resource, at) in oldest {
            let age = ConstGauge::<f64>::new(at.elapsed().as_secs_f64());
            age.encode(ages.encode_family(&[("resource", resource)])?)?;
        }
        Ok(())
    }
}

/// No closure runs under these locks that could leave them half changed, so poison means nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn labels(pool: &PoolId) -> [(&'static str, String); 2] {
    [("namespace", pool.namespace.to_string()), ("pool", pool.name.to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    fn scrape(metrics: &ControlMetrics) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        registry.register_collector(Box::new(metrics.clone()));
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn what_a_source_counts_is_scraped() {
        let (metrics, web) = (ControlMetrics::default(), PoolId::new("shop", "web"));
        metrics.table_built(Duration::from_micros(80));
        metrics.slots_moved(&web, "leave", 12);
        metrics.propagated(&web, Duration::from_millis(45));
        metrics.set_config_errors(2);
        metrics.seat_writes_failed(1);
        metrics.set_leader(true);
        metrics.watch_heard("pods", None);
        let text = scrape(&metrics);
        for line in [
            "guideway_table_build_seconds_bucket{le=\"0.0001\"} 1",
            "guideway_table_moved_slots_total{namespace=\"shop\",pool=\"web\",cause=\"leave\"} 12",
            "guideway_propagation_seconds_bucket{le=\"0.05\",namespace=\"shop\",pool=\"web\"} 1",
            "guideway_propagation_seconds_bucket{le=\"0.04\",namespace=\"shop\",pool=\"web\"} 0",
            "guideway_config_errors 2",
            "guideway_seat_write_failures_total 1",
            "guideway_leader 1",
            "guideway_watch_age_seconds{resource=\"pods\"} 0.0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_watches_in_several_namespaces_the_oldest_news_count() {
        let metrics = ControlMetrics::default();
        metrics.watch_heard("pods", Some("silent".into()));
        tokio::time::advance(Duration::from_secs(30)).await;
        metrics.watch_heard("pods", Some("lively".into()));
        metrics.watch_heard("services", Some("lively".into()));
        let text = scrape(&metrics);
        assert!(text.contains("\nguideway_watch_age_seconds{resource=\"pods\"} 30.0\n"), "{text}");
        assert!(text.contains("\nguideway_watch_age_seconds{resource=\"services\"} 0.0\n"), "{text}");
    }

    #[test]
    fn a_pool_that_is_gone_leaves_no_series() {
        let (metrics, web) = (ControlMetrics::default(), PoolId::new("shop", "web"));
        metrics.slots_moved(&web, "leave", 12);
        metrics.propagated(&web, Duration::from_millis(45));
        metrics.forget(&web);
        assert!(!scrape(&metrics).contains("pool=\"web\""));
    }
}
