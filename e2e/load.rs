//! Owns a load generator in a pod of the scenario's namespace, steered through the API server.

use std::time::Duration;

use anyhow::{Result, ensure};
use guideway::demo::report::LoadReport;
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::cluster::{PodPort, Seen, until};
use crate::fixture::Test;
use crate::pods;

const CONTROL_PORT: u16 = 9000;

/// A load that runs until it is stopped.
pub(crate) struct Load<'a> {
    test: &'a Test,
    pod: String,
}

/// What to send.
pub(crate) struct Plan {
    pub targets: Vec<String>,
    pub rate: u32,
    pub keys: u32,
    pub connections: u32,
}

impl<'a> Load<'a> {
    /// Starts a load and waits until every key has been answered once and nothing has failed.
    pub(crate) async fn start(test: &'a Test, name: &str, plan: Plan) -> Result<Self> {
        let mut args = vec!["load".to_owned(), format!("--control=0.0.0.0:{CONTROL_PORT}")];
        args.extend(plan.targets.iter().map(|target| format!("--target={target}")));
        args.push(format!("--rate={}", plan.rate));
        args.push(format!("--keys={}", plan.keys));
        args.push(format!("--connections={}", plan.connections));
        // A measuring instrument that waits for a processor itself measures that.
        let container = json!({
            "name": "load", "image": pods::IMAGE, "imagePullPolicy": "Never", "args": args,
            "resources": {"requests": {"cpu": "200m", "memory": "16Mi"}},
        });
        test.apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [container]},
        }))
        .await?;
        let load = Self { test, pod: name.to_owned() };
        load.until_every_key_is_seen(plan.keys).await?;
        Ok(load)
    }

    async fn until_every_key_is_seen(&self, keys: u32) -> Result<()> {
        let what = format!("load {} to reach every key", self.pod);
        until(&what, Duration::from_secs(60), async || {
            let pod = self.test.api::<Pod>().get(&self.pod).await?;
            if !pods::is_ready(&pod) {
                return Ok(Seen::NotYet("its pod is not ready".to_owned()));
            }
            let report = self.report().await?;
            Ok(Seen::when(report.keys.seen == u64::from(keys), || shown(&report)))
        })
        .await?;
        let report = self.report().await?;
        ensure!(report.failed == 0, "the load fails from the beginning: {}", shown(&report));
        Ok(())
    }

    /// The report so far.
    pub(crate) async fn report(&self) -> Result<LoadReport> {
        self.ask(Method::GET, "/report").await
    }

    /// The report so far, with the backends of every key.
    pub(crate) async fn trails(&self) -> Result<LoadReport> {
        self.ask(Method::GET, "/trails").await
    }

    /// Ends the load and returns its last report.
    pub(crate) async fn stop(self) -> Result<LoadReport> {
        self.ask(Method::POST, "/stop").await
    }

    /// Lets the load run on: every key is asked for again at least once.
    pub(crate) async fn until_every_key_is_asked_again(&self) -> Result<()> {
        let before = self.report().await?;
        let enough = before.answered + before.failed + before.keys.seen;
        until("every key to be asked for again", Duration::from_secs(60), async || {
            let report = self.report().await?;
            Ok(Seen::when(report.answered + report.failed > enough, || shown(&report)))
        })
        .await
    }

    async fn ask(&self, method: Method, path: &str) -> Result<LoadReport> {
        let port = PodPort { namespace: &self.test.namespace, pod: &self.pod, port: CONTROL_PORT };
        self.test.cluster.call_json(port, method, path).await
    }
}

/// Fails unless every request was answered, in time enough to have offered the load at all.
pub(crate) fn ensure_nothing_failed(report: &LoadReport) -> Result<()> {
    ensure!(report.failed == 0, "{} of {} requests failed: {}", report.failed, total(report), shown(report));
    let second = report.answered as f64 / (report.elapsed_ms as f64 / 1000.0);
    ensure!((report.behind as f64) < second, "the load fell behind its schedule: {}", shown(report));
    Ok(())
}

/// Requests answered and failed.
pub(crate) fn total(report: &LoadReport) -> u64 {
    report.answered + report.failed
}

/// A report in a line.
pub(crate) fn shown(report: &LoadReport) -> String {
    let first = report.failures.iter().take(5);
    let failures: Vec<String> =
        first.map(|it| format!("{} ms key-{}: {}", it.at_ms, it.key, it.reason)).collect();
    format!(
        "{} answered, {} failed, {} behind, {} reopened in {} ms, p99 {} us, keys: {} seen, {} moved, at most {} changes {}",
        report.answered,
        report.failed,
        report.behind,
        report.reopened,
        report.elapsed_ms,
        report.latency.p99_us,
        report.keys.seen,
        report.keys.moved,
        report.keys.most_changes,
        failures.join(", "),
    )
}
