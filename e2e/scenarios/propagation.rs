//! From a pod's Ready condition to the traffic, measured end to end. A readiness gate of a pod is
//! flipped; the kubelet writes the Ready condition; the test's own watch stamps when it is told of it.
//! The end is the last answer that still came from the wrong backend on any replica, as the load
//! generator saw it: at 500 requests/s for one key that is exact to 2 ms and the time of an answer.
//! The stamp is late by the watch's delivery, which is measured on the test's own writes and added.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use guideway::demo::report::Visit;
use guideway::metrics::family;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::{Value, json};

use crate::cluster::{Seen, until};
use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::pods;
use crate::runner::Verdict;
use crate::subject::{self, Metrics};

const GATE: &str = "guideway.dev/e2e-gate";
/// The kubelet looks at a pod's gates once a second, so two pods, each in a pool of its own, share the work. A third one
/// loads a machine of two processors so much that the times double.
const LANES: u16 = 2;
/// Of each pod, each way: enough that a 99th percentile is not the one worst flip.
const FLIPS: usize = 100;
const P99_MAX: Duration = Duration::from_millis(50);
/// The pod stays in a state for so long after the stamp. What has not spread by then counts as never.
const WINDOW: Duration = Duration::from_millis(250);
/// Test and load generator stamp with one clock where the nodes are containers of one machine.
const CLOCKS_APART_MAX_US: i64 = 2_000;

/// A pod that flips, the pool of the same name that it is in, and the load on that pool.
struct Lane<'a> {
    test: &'a Test,
    name: String,
    port: u16,
}

/// Times in microseconds since the UNIX epoch, but the last, which is since the stamp.
const FLIPS_HEAD: &str = "pool,ready,asked,written,gate,stamp,spread";

/// When the test heard of one flip, microseconds since the UNIX epoch.
struct Flip {
    ready: bool,
    /// The test began to write the gate.
    asked: i64,
    /// The API server acknowledged the gate.
    written: i64,
    /// The test's watch told it that the gate was written.
    gate: i64,
    /// The test's watch told it that the Ready condition was written.
    stamp: i64,
}

/// What a lane found.
struct Found {
    /// A line of `flips.csv` for each flip.
    lines: String,
    /// Flips: to which state, and microseconds from the stamp to the last misplaced answer.
    spreads: Vec<(bool, i64)>,
    /// Microseconds from the acknowledgement of the test's own write to its watch telling of it.
    deliveries: Vec<i64>,
    /// Microseconds that the writes themselves took, which are not ours to answer for.
    writes: Vec<i64>,
}

pub(super) async fn readiness_spreads_within_50_ms(test: &Test) -> Result<Verdict> {
    test.until_earlier_scenarios_are_gone().await?;
    pods::start(test, "steady", 1).await?;
    let lane = |number| Lane { test, name: format!("flip-{number}"), port: test.port + number };
    let lanes: Vec<Lane<'_>> = (0..LANES).map(lane).collect();
    let found = futures::future::try_join_all(lanes.iter().map(Lane::run)).await?;
    let lines: String = found.iter().map(|found| found.lines.as_str()).collect();
    test.write("flips.csv", &format!("{FLIPS_HEAD}\n{lines}"))?;
    for lane in &lanes {
        lane.own_figures().await?;
    }
    let all = |of: fn(&Found) -> &Vec<i64>| Quantiles::of(found.iter().flat_map(of).copied().collect());
    let delivery = all(|found| &found.deliveries);
    test.note(format!("the API server takes for a write of a condition: {}", all(|found| &found.writes)));
    test.note(format!("from its acknowledgement to the test's own watch: {delivery}"));
    for (ready, way) in [(false, "not ready"), (true, "ready")] {
        let spreads = found.iter().flat_map(|it| &it.spreads).filter(|it| it.0 == ready).map(|it| it.1);
        judge(test, way, spreads.collect(), &delivery)?;
    }
    Ok(Verdict::Passed)
}

/// Both worst cases together bound the time since the write: they need not meet in one flip.
fn judge(test: &Test, way: &str, spread: Vec<i64>, delivery: &Quantiles) -> Result<()> {
    let count = spread.len();
    let figures = Quantiles::of(spread);
    test.note(format!("{way}: {count} flips, from the stamp to the last misplaced answer: {figures}"));
    let p99 = Duration::from_micros((figures.p99 + delivery.p99).unsigned_abs());
    test.note(format!("{way}: p99 since the write, with the p99 of its delivery to the stamp: {p99:.1?}"));
    ensure!(p99 <= P99_MAX, "{way}: p99 is above {P99_MAX:?}: {p99:.1?}");
    Ok(())
}

impl Lane<'_> {
    async fn run(&self) -> Result<Found> {
        self.start_gated_pod().await?;
        self.test.serve_pool(self.pool(), 2).await?;
        let targets = subject::targets(&self.test.cluster, self.port).await?;
        let plan = Plan { targets, rate: 500, keys: 1, connections: 8 };
        let load = Load::start(self.test, &format!("load-{}", self.name), plan).await?;
        ensure_one_clock(&load).await?;
        let heard = self.watch();
        let mut flips = Vec::new();
        for number in 0..2 * FLIPS {
            flips.push(self.flip(&heard, number % 2 == 1).await?);
        }
        let report = load.stop().await?;
        load::ensure_nothing_failed(&report)?;
        let visits = report.keys.trails.get("key-0").context("the one key has a trail")?;
        let spread = |(number, flip): (usize, &Flip)| {
            Ok((flip.ready, self.spread(flip, flips.get(number + 1), visits, report.started_unix_us)?))
        };
        let spreads = flips.iter().enumerate().map(spread).collect::<Result<Vec<_>>>()?;
        let line = |(Flip { ready, asked, written, gate, stamp }, (_, spread)): (&Flip, &(bool, i64))| {
            format!("{},{ready},{asked},{written},{gate},{stamp},{spread}\n", self.name)
        };
        let lines = flips.iter().zip(&spreads).map(line).collect();
        let deliveries = flips.iter().map(|flip| (flip.gate - flip.written).max(0)).collect();
        let writes = flips.iter().map(|flip| flip.written - flip.asked).collect();
        Ok(Found { lines, spreads, deliveries, writes })
    }

    /// Nearly the whole pool is the one pod, so the one key is on it whenever it is ready.
    fn pool(&self) -> Value {
        let backends = json!([
            {"name": "flip", "service": {"name": self.name, "port": "http"}, "weight": 10_000},
            {"name": "steady", "service": {"name": "steady", "port": "http"}, "weight": 1},
        ]);
        pods::pool_on(&self.name, self.port, &backends)
    }

    async fn start_gated_pod(&self) -> Result<()> {
        let [_, service] = pods::backends(&self.name, 1);
        self.test.apply(service).await?;
        let mut spec = pods::backend_pod_spec();
        spec["readinessGates"] = json!([{"conditionType": GATE}]);
        let metadata = json!({"name": self.name, "labels": {"app": self.name}});
        self.test
            .apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
            .await?;
        self.write_gate(true).await?;
        until("the gated pod to be ready", Duration::from_secs(30), async || {
            let pod = self.test.api::<Pod>().get(&self.name).await?;
            Ok(Seen::when(pods::is_ready(&pod), || format!("{:?}", pod.status)))
        })
        .await
    }

    async fn write_gate(&self, ready: bool) -> Result<()> {
        let status = if ready { "True" } else { "False" };
        let patch = json!({"status": {"conditions": [{"type": GATE, "status": status}]}});
        let patch = Patch::Strategic(&patch);
        self.test.api::<Pod>().patch_status(&self.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    fn watch(&self) -> Heard {
        let heard = Heard::default();
        let (api, log): (Api<Pod>, _) = (self.test.api(), heard.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        tokio::task::spawn_local(async move {
            let mut events = std::pin::pin!(watcher(api, config));
            while let Some(event) = events.next().await {
                if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event {
                    log.borrow_mut().push((now_us(), holds(&pod, GATE), pods::is_ready(&pod)));
                }
            }
        });
        heard
    }

    /// Writes the gate, waits for the Ready condition that follows, and leaves the state for the window.
    async fn flip(&self, heard: &Heard, ready: bool) -> Result<Flip> {
        heard.borrow_mut().clear();
        let asked = now_us();
        self.write_gate(ready).await?;
        let written = now_us();
        let first = |wanted: fn(&(i64, bool, bool)) -> bool| {
            heard.borrow().iter().find(|it| wanted(it) == ready).map(|it| it.0)
        };
        let stamp = loop {
            if let Some(stamp) = first(|it| it.2) {
                break stamp;
            }
            ensure!(now_us() - asked < 15_000_000, "the kubelet has not written Ready={ready} in 15 s");
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let gate = first(|it| it.1).context("Ready followed a gate that the watch did not tell of")?;
        tokio::time::sleep(WINDOW).await;
        Ok(Flip { ready, asked, written, gate, stamp })
    }

    /// Microseconds from the stamp to the last answer from the wrong backend. 0 when the traffic was
    /// right before the test heard of the flip.
    fn spread(&self, flip: &Flip, next: Option<&Flip>, visits: &[Visit], started: u64) -> Result<i64> {
        let until = next.map_or(flip.stamp + WINDOW.as_micros() as i64, |next| next.asked);
        let at = |visit: &Visit| started as i64 + visit.at_us as i64;
        let last = visits.iter().rfind(|visit| at(visit) < until).context("the key has been nowhere")?;
        let right = (last.backend == self.name) == flip.ready;
        ensure!(right, "{WINDOW:?} after Ready={} requests still went to {}", flip.ready, last.backend);
        Ok((at(last) - flip.stamp).max(0))
    }

    /// What the replicas say of themselves: an upper bound of the 99th percentile, from their histograms.
    async fn own_figures(&self) -> Result<()> {
        let Lane { test, name, .. } = self;
        for replica in subject::replicas(&test.cluster).await?.keys() {
            let metrics = Metrics::of(&test.cluster, replica).await?;
            let labels = [("namespace", test.namespace.as_str()), ("pool", name.as_str())];
            let (count, bound) = metrics.quantile_bound(&family::PROPAGATION, &labels, 0.99)?;
            ensure!(count >= 2 * FLIPS as u64, "{replica} counts {count} changes of {}", 2 * FLIPS);
            let family = family::PROPAGATION.name;
            test.note(format!("{replica}, pool {name}: {family} p99 at most {bound} s over {count} changes"));
        }
        Ok(())
    }
}

/// What the watch has told: when, and the gate and Ready condition as they were then.
type Heard = Rc<RefCell<Vec<(i64, bool, bool)>>>;

fn holds(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|it| it.type_ == kind && it.status == "True")
}

async fn ensure_one_clock(load: &Load<'_>) -> Result<()> {
    let (before, report, after) = (now_us(), load.report().await?, now_us());
    let theirs = (report.started_unix_us + report.elapsed_ms * 1000) as i64;
    let fits = before - CLOCKS_APART_MAX_US <= theirs && theirs <= after + CLOCKS_APART_MAX_US;
    ensure!(
        fits,
        "the load generator's clock says {theirs} us between {before} and {after} of the test's; run the test on the nodes' machine"
    );
    Ok(())
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64
}

struct Quantiles {
    p50: i64,
    p99: i64,
    max: i64,
}

impl Quantiles {
    fn of(mut values: Vec<i64>) -> Self {
        values.sort_unstable();
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |us: i64| us as f64 / 1000.0;
        write!(f, "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms(self.p50), ms(self.p99), ms(self.max))
    }
}
