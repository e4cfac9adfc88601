//! The API server stops answering for a minute. Its process is stopped, not killed, so connections stay
//! open and say nothing: the kind of outage that a client notices last.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guideway::crd::pool::LoadBalancerPool;
use guideway::metrics::family;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::cluster::{Seen, until};
use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::node::{NO_WAY, Node};
use crate::runner::Verdict;
use crate::subject::Metrics;
use crate::{pods, subject};

const OUTAGE: Duration = Duration::from_secs(60);
/// From the API server's first answer to a change that both replicas follow.
const RECOVERY_MAX: Duration = Duration::from_secs(5);
/// A prime that the pool does not have before.
const OTHER_SIZE: u32 = 16_381;

pub(super) async fn traffic_outlives_the_api_server(test: &Test) -> Result<Verdict> {
    let Some(node) = Node::of_api_server(&test.cluster).await? else {
        return Ok(Verdict::NotRun(NO_WAY.to_owned()));
    };
    pods::start(test, "web", 4).await?;
    test.serve_pool(pods::pool(test, "web"), 4).await?;
    let targets = subject::targets(&test.cluster, test.port).await?;
    let load = Load::start(test, "load", Plan { targets, rate: 200, keys: 200, connections: 8 }).await?;
    let replicas: Vec<Pod> = subject::replicas(&test.cluster).await?.into_values().collect();

    let stopped = node.stop_process("kube-apiserver").await?;
    let age = watch_through(&node, &replicas).await?;
    drop(stopped);
    let (answered, recovered) = recover(test, &node, &replicas).await?;

    test.until_ready("web", 4).await?;
    load.until_every_key_is_asked_again().await?;
    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    test.note(format!("watch age at the end of {OUTAGE:?}: {age:.0} s; {}", load::shown(&report)));
    test.note(format!(
        "API server answered {:.1} s after it went on; {:.1} s later both replicas had followed a change",
        answered.as_secs_f64(),
        recovered.as_secs_f64()
    ));
    Ok(Verdict::Passed)
}

/// Waits the outage out. Every replica stays ready and says how old its knowledge is.
async fn watch_through(node: &Node, replicas: &[Pod]) -> Result<f64> {
    let started = Instant::now();
    let mut youngest = 0.0;
    while started.elapsed() < OUTAGE {
        tokio::time::sleep(Duration::from_secs(5)).await;
        youngest = f64::INFINITY;
        for replica in replicas {
            node.get(&subject::vitals_url(replica, "/readyz")?)
                .await
                .context("a replica is no longer ready")?;
            youngest = youngest_watch(node, replica).await?.min(youngest);
        }
    }
    // What was on its way when the API server stopped may still have been heard.
    let least = OUTAGE.as_secs_f64() - 5.0;
    ensure!(
        youngest >= least,
        "after {OUTAGE:?} without API server a replica claims to have heard of it {youngest:.0} s ago"
    );
    Ok(youngest)
}

/// Seconds since the API server was last heard of by any watch of a replica.
async fn youngest_watch(node: &Node, replica: &Pod) -> Result<f64> {
    let metrics = scrape(node, replica).await?;
    let ages = metrics.samples(&family::WATCH_AGE, &[]);
    ages.into_iter().map(|(_, age)| age).reduce(f64::min).context("a replica exports no age of its watches")
}

async fn scrape(node: &Node, replica: &Pod) -> Result<Metrics> {
    node.get(&subject::vitals_url(replica, "/metrics")?).await.map(Metrics::from_text)
}

/// Changes the pool as soon as the API server takes it, and waits until every replica follows. Returns
/// how long the API server took to answer, and from then on how long the replicas took.
async fn recover(test: &Test, node: &Node, replicas: &[Pod]) -> Result<(Duration, Duration)> {
    let went_on = Instant::now();
    let patch = json!({"spec": {"algorithm": {"tableSize": OTHER_SIZE}}});
    until("the API server to take a change", Duration::from_secs(30), async || {
        let pools = test.api::<LoadBalancerPool>();
        pools.patch("web", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(Seen::Done(()))
    })
    .await?;
    let answered = Instant::now();
    until("all replicas to follow a change again", RECOVERY_MAX, async || {
        for replica in replicas {
            let digest = scrape(node, replica).await?.digest(&test.namespace, "web").unwrap_or_default();
            if !digest.ends_with(&format!("/{OTHER_SIZE}")) {
                return Ok(Seen::NotYet(digest));
            }
        }
        Ok(Seen::Done(()))
    })
    .await?;
    Ok((answered - went_on, answered.elapsed()))
}
