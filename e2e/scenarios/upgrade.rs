//! Guideway's own rolling update: replicas that go let every request finish and every client move over.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::runner::Verdict;
use crate::{pods, subject};

pub(super) async fn own_rollout_loses_no_request(test: &Test) -> Result<Verdict> {
    pods::start(test, "web", 4).await?;
    test.serve_pool(pods::pool(test, "web"), 4).await?;
    let service = subject::expose(test).await?;
    let plan = Plan { targets: vec![service], rate: 500, keys: 1000, connections: 32 };
    let load = Load::start(test, "load", plan).await?;
    let before: BTreeSet<String> = subject::replicas(&test.cluster).await?.into_keys().collect();

    let deployments: Api<Deployment> = test.cluster.api(subject::NAMESPACE);
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"guideway.dev/e2e-restart": test.namespace}}}}});
    deployments.patch(subject::DEPLOYMENT, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let started = std::time::Instant::now();
    subject::wait_until_serving(&test.cluster).await?;
    let took = started.elapsed();
    test.until_ready("web", 4).await?;
    load.until_every_key_is_asked_again().await?;

    let after: BTreeSet<String> = subject::replicas(&test.cluster).await?.into_keys().collect();
    ensure!(before.is_disjoint(&after), "the rollout left old replicas: {before:?}, {after:?}");
    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    ensure!(report.keys.moved == 0, "keys moved although no backend changed: {}", load::shown(&report));
    test.note(format!(
        "{} replicas rolled in {:.1} s: {}",
        after.len(),
        took.as_secs_f64(),
        load::shown(&report)
    ));
    Ok(Verdict::Passed)
}
