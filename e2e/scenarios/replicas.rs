//! Replicas compute their tables on their own and must come to the same ones.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use guideway::crd::pool::LoadBalancerPool;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::fixture::Test;
use crate::runner::Verdict;
use crate::{pods, subject};

const SOON: Duration = Duration::from_secs(5);

pub(super) async fn two_replicas_agree(test: &Test) -> Result<Verdict> {
    pods::start(test, "stable", 3).await?;
    pods::start(test, "canary", 1).await?;
    test.serve_pool(pool(test, 90, 10), 4).await?;
    let mut digests = vec![subject::agreed_digest(test, "web", SOON).await?];

    let flipped: Vec<String> = pods::of(test, "stable").await?.into_keys().take(2).collect();
    for (ready, left) in [(false, [3, 2]), (true, [3, 4])] {
        for (pod, count) in flipped.iter().zip(left) {
            pods::set_ready(test, pod, ready).await?;
            test.until_ready("web", count).await?;
            digests.push(subject::agreed_digest(test, "web", SOON).await?);
        }
    }
    ensure!(digests.first() == digests.last(), "all pods are back, and the table is another: {digests:?}");

    test.apply(pool(test, 50, 50)).await?;
    digests.push(changed_digest(test, &digests).await?);
    let patch = json!({"spec": {"replicas": 3}});
    test.api::<Deployment>().patch("canary", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    test.until_ready("web", 6).await?;
    digests.push(changed_digest(test, &digests).await?);

    let pools: Api<LoadBalancerPool> = test.api();
    let table = pools.get("web").await?.status.unwrap_or_default().table.unwrap_or_default();
    let reported = format!("{}/{}", table.digest, table.size);
    ensure!(
        digests.last() == Some(&reported),
        "the status says {reported}, the replicas {:?}",
        digests.last()
    );
    let distinct: BTreeSet<_> = digests.iter().collect();
    test.note(format!(
        "{} changes, {} distinct tables, each equal on all replicas",
        digests.len(),
        distinct.len()
    ));
    Ok(Verdict::Passed)
}

/// Waits until all replicas agree on a table that is not the last one.
async fn changed_digest(test: &Test, before: &[String]) -> Result<String> {
    crate::cluster::until("another table on all replicas", SOON, async || {
        let digest = subject::agreed_digest(test, "web", SOON).await?;
        Ok(match before.last() == Some(&digest) {
            true => crate::cluster::Seen::NotYet(digest),
            false => crate::cluster::Seen::Done(digest),
        })
    })
    .await
}

fn pool(test: &Test, stable: u16, canary: u16) -> Value {
    let backends = json!([
        {"name": "stable", "service": {"name": "stable", "port": "http"}, "weight": stable},
        {"name": "canary", "service": {"name": "canary", "port": 80}, "weight": canary},
    ]);
    pods::pool_on("web", test.port, &backends)
}
