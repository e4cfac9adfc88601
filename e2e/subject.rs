//! Owns the view of the Guideway under test: its pods, what they export, and a Service for a scenario's port.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guideway::metrics::{Family, family};
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::cluster::{Cluster, LABEL, PodPort, Seen, until};
use crate::fixture::Test;
use crate::pods;

/// Where `manifests/` installs Guideway, and under which name.
pub(crate) const NAMESPACE: &str = "guideway-system";
pub(crate) const DEPLOYMENT: &str = "guideway";
const SELECTOR: (&str, &str) = ("app.kubernetes.io/name", "guideway");
const METRICS_PORT: u16 = 9901;

/// Every scenario speaks of at least two replicas.
pub(crate) const REPLICAS: usize = 2;

/// Waits until the Deployment is whole: all replicas of the newest template, ready, and no other left.
pub(crate) async fn wait_until_serving(cluster: &Cluster) -> Result<()> {
    let deployments: Api<Deployment> = cluster.api(NAMESPACE);
    until("Guideway's Deployment to be whole", Duration::from_secs(120), async || {
        let deployment = deployments.get(DEPLOYMENT).await?;
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1) as usize;
        ensure!(
            wanted >= REPLICAS,
            "Deployment {DEPLOYMENT} has {wanted} replica; the scenarios need {REPLICAS}"
        );
        let rolled = pods::rolled_out(&deployment);
        let left = cluster.api::<Pod>(NAMESPACE).list(&ours()).await?.items.len();
        Ok(Seen::when(rolled && left == wanted, || format!("rolled out: {rolled}, pods: {left} of {wanted}")))
    })
    .await
}

/// The replicas that serve, by name.
pub(crate) async fn replicas(cluster: &Cluster) -> Result<BTreeMap<String, Pod>> {
    let pods = cluster.api::<Pod>(NAMESPACE).list(&ours()).await?;
    let serving =
        pods.into_iter().filter(|pod| pods::is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
    Ok(serving.map(|pod| (pod.name_any(), pod)).collect())
}

fn ours() -> ListParams {
    ListParams::default().labels(&format!("{}={}", SELECTOR.0, SELECTOR.1))
}

/// The addresses of all replicas at a port, as targets for a load generator.
pub(crate) async fn targets(cluster: &Cluster, port: u16) -> Result<Vec<String>> {
    let replicas = replicas(cluster).await?;
    ensure!(replicas.len() >= REPLICAS, "only {} replicas of Guideway are ready", replicas.len());
    replicas.values().map(|pod| Ok(format!("http://{}:{port}/", pods::address(pod)?))).collect()
}

/// Makes a Service for the scenario's port and returns its address as a target.
pub(crate) async fn expose(test: &Test) -> Result<String> {
    let (name, port) = (&test.namespace, test.port);
    let manifest = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {LABEL: name}},
        "spec": {"selector": {SELECTOR.0: SELECTOR.1}, "ports": [{"port": port, "targetPort": port}]},
    });
    test.cluster.apply(manifest).await.context("cannot make a Service for the scenario's port")?;
    let service = test.cluster.api::<Service>(NAMESPACE).get(name).await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no cluster IP")?;
    Ok(format!("http://{address}:{port}/"))
}

/// What a replica exports.
#[derive(Debug)]
pub(crate) struct Metrics(String);

impl Metrics {
    /// A scrape that came another way.
    pub(crate) fn from_text(text: String) -> Self {
        Self(text)
    }

    /// Asks a replica.
    pub(crate) async fn of(cluster: &Cluster, replica: &str) -> Result<Self> {
        let port = PodPort { namespace: NAMESPACE, pod: replica, port: METRICS_PORT };
        cluster.call(port, Method::GET, "/metrics").await.map(Self)
    }

    /// The samples of a family with all these labels: their labels as text, and the value.
    pub(crate) fn samples(&self, family: &Family, labels: &[(&str, &str)]) -> Vec<(String, f64)> {
        self.samples_of(family.name, labels)
    }

    fn samples_of(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(String, f64)> {
        let wanted: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let sample = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            let value = value.split(' ').next()?.parse().ok()?;
            wanted
                .iter()
                .all(|it| labels.split(',').any(|label| label == it))
                .then(|| (labels.to_owned(), value))
        };
        self.0.lines().filter_map(sample).collect()
    }

    /// Observations of a histogram, and the upper edge of the bucket in which a quantile lies.
    pub(crate) fn quantile_bound(
        &self,
        family: &Family,
        labels: &[(&str, &str)],
        quantile: f64,
    ) -> Result<(u64, f64)> {
        let name = format!("{}_bucket", family.name);
        let edge = |labels: &str| {
            let le = labels.split(',').find_map(|it| it.strip_prefix("le=\""))?;
            le.trim_end_matches('"').replace("+Inf", "inf").parse::<f64>().ok()
        };
        let samples = self.samples_of(&name, labels).into_iter();
        let mut buckets: Vec<(f64, f64)> =
            samples.filter_map(|(labels, count)| Some((edge(&labels)?, count))).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = buckets.last().with_context(|| format!("no {name} with {labels:?}"))?.1;
        let bound =
            buckets.iter().find(|(_, below)| *below >= quantile * count).map_or(f64::INFINITY, |it| it.0);
        Ok((count as u64, bound))
    }

    /// The digest and size of a pool's table.
    pub(crate) fn digest(&self, namespace: &str, pool: &str) -> Option<String> {
        let (labels, _) =
            self.samples(&family::TABLE_DIGEST, &[("namespace", namespace), ("pool", pool)]).pop()?;
        let value = |name: &str| {
            let label = labels.split(',').find_map(|it| it.strip_prefix(name))?;
            Some(label.trim_matches(['=', '"']).to_owned())
        };
        Some(format!("{}/{}", value("digest")?, value("size")?))
    }
}

/// The digests of a pool on all replicas, by replica. They are asked at once: in a rollout a table lives for a second.
pub(crate) async fn digests(test: &Test, pool: &str) -> Result<BTreeMap<String, Option<String>>> {
    let digest = async |name: String| {
        let metrics = Metrics::of(&test.cluster, &name).await?;
        anyhow::Ok((name, metrics.digest(&test.namespace, pool)))
    };
    let digests = replicas(&test.cluster).await?.into_keys().map(digest);
    Ok(futures::future::try_join_all(digests).await?.into_iter().collect())
}

/// Waits until all replicas have the same digest for a pool, and returns it.
pub(crate) async fn agreed_digest(test: &Test, pool: &str, limit: Duration) -> Result<String> {
    until(&format!("one digest of pool {pool} on all replicas"), limit, async || {
        let digests = digests(test, pool).await?;
        let distinct: BTreeSet<_> = digests.values().flatten().collect();
        let agreed =
            digests.len() >= REPLICAS && digests.values().all(Option::is_some) && distinct.len() == 1;
        Ok(match distinct.first() {
            Some(digest) if agreed => Seen::Done((*digest).clone()),
            _ => Seen::NotYet(format!("{digests:?}")),
        })
    })
    .await
}

/// Where Guideway's metrics are served on a pod.
pub(crate) fn vitals_url(pod: &Pod, path: &str) -> Result<String> {
    Ok(format!("http://{}:{METRICS_PORT}{path}", pods::address(pod)?))
}

/// Watches that replicas do not disagree for longer than a moment.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    /// Digests that all replicas had at the same time.
    pub steps: BTreeSet<String>,
    /// Longest time from a look that saw a disagreement to the end of the one that saw it over.
    pub longest_apart: Duration,
}

impl Agreement {
    /// Looks until replicas agree, or have disagreed for `limit`. Answers come a few milliseconds apart, so a difference
    /// may be a change that came in between; what counts is how long it lasts. The next look is at once, before there is
    /// another change to come in between.
    pub(crate) async fn look(&mut self, test: &Test, pool: &str, limit: Duration) -> Result<()> {
        let began = Instant::now();
        let mut were_apart = false;
        loop {
            let distinct: BTreeSet<_> = digests(test, pool).await?.into_values().flatten().collect();
            let agree = distinct.len() < 2;
            were_apart |= !agree;
            if were_apart {
                self.longest_apart = self.longest_apart.max(began.elapsed());
            }
            if agree {
                self.steps.extend(distinct);
            }
            if agree || self.longest_apart > limit {
                return Ok(());
            }
        }
    }
}
