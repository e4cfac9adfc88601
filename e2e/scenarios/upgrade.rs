//! Guideway's own rolling update: replicas that go let every request finish and every client move over, and those that
//! come serve what was served, also of a pool whose latest edit is bad.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use guideway::crd::LoadBalancerPool;
use http::Request;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::PodPort;
use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::runner::Verdict;
use crate::{pods, subject};

pub(super) async fn own_rollout_loses_no_request(test: &Test) -> Result<Verdict> {
    pods::start(test, "web", 4).await?;
    test.serve_pool(pods::pool(test, "web"), 4).await?;
    test.serve_pool(typo(test, "web"), 4).await?;
    test.apply(typo(test, "wbe")).await?;
    test.until_condition("typo", "ResolvedRefs", "False").await?;
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
    the_last_good_spec_is_served(test).await?;
    test.note(format!(
        "{} replicas rolled in {:.1} s: {}",
        after.len(),
        took.as_secs_f64(),
        load::shown(&report)
    ));
    Ok(Verdict::Passed)
}

/// A pool beside the first, for one path of its port.
fn typo(test: &Test, service: &str) -> Value {
    let backends = json!([{"name": "all", "service": {"name": service, "port": "http"}}]);
    let mut pool = pods::pool_on("typo", test.port, &backends);
    pool["spec"]["listeners"][0]["paths"] = json!(["/typo"]);
    pool
}

async fn the_last_good_spec_is_served(test: &Test) -> Result<()> {
    for replica in subject::replicas(&test.cluster).await?.keys() {
        let port = PodPort { namespace: subject::NAMESPACE, pod: replica, port: test.port };
        let answer = test.cluster.ask(port, Request::get("/typo").body(String::new())?).await?;
        let status = answer.status;
        ensure!(status.is_success(), "{replica} answers {status} for a pool whose latest edit is bad");
    }
    let pool: LoadBalancerPool = test.api().get("typo").await?;
    let in_force = pool.status.and_then(|status| status.in_force).map(|it| it.generation);
    ensure!(in_force == Some(1), "status.inForce tells of generation {in_force:?}");
    Ok(())
}
