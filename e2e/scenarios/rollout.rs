//! A rolling update of the backends: a successor inherits the keys of the pod it stands in for.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::runner::Verdict;
use crate::{pods, subject};

const PODS: usize = 10;
/// Pods that were there before: their seats are holes when the rollout begins, and stay so.
const PODS_BEFORE: usize = 12;
/// What is longer ago does not count as part of a rollout, however coarse the clocks are.
const HOLES_AGE: Duration = Duration::from_secs(7);
const KEYS: u32 = 1000;
/// Replicas take a change in within milliseconds of each other, but a look takes its time beside other scenarios.
const DISAGREEMENT_MAX: Duration = Duration::from_secs(2);

pub(super) async fn rollout_keeps_keys(test: &Test) -> Result<Verdict> {
    pods::start(test, "web", PODS_BEFORE).await?;
    test.serve_pool(pods::pool(test, "web"), PODS_BEFORE).await?;
    pods::scale(test, "web", PODS).await?;
    tokio::time::sleep(HOLES_AGE).await;
    let targets = subject::targets(&test.cluster, test.port).await?;
    let load = Load::start(test, "load", Plan { targets, rate: 500, keys: KEYS, connections: 16 }).await?;
    let before: BTreeSet<String> = pods::of(test, "web").await?.into_keys().collect();

    restart(test, "web").await?;
    let mut agreement = subject::Agreement::default();
    let started = std::time::Instant::now();
    let look = async || agreement.look(test, "web", DISAGREEMENT_MAX).await;
    pods::until_rolled_out(test, "web", Duration::from_secs(180), look).await?;
    let took = started.elapsed();
    test.until_ready("web", PODS).await?;
    load.until_every_key_is_asked_again().await?;

    let after: BTreeSet<String> = pods::of(test, "web").await?.into_keys().collect();
    ensure!(before.is_disjoint(&after), "the rollout left old pods: {before:?}, {after:?}");
    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    ensure!(report.keys.most_changes <= 1, "a key moved more than once: {}", twice(&report));
    ensure!(
        report.keys.moved == u64::from(KEYS),
        "every pod was replaced, so every key moves once: {}",
        load::shown(&report)
    );
    ensure!(
        agreement.longest_apart <= DISAGREEMENT_MAX,
        "replicas disagreed for {:?}",
        agreement.longest_apart
    );
    test.note(format!("rolled {PODS} pods in {:.1} s: {}", took.as_secs_f64(), load::shown(&report)));
    test.note(format!(
        "{} tables seen equal on all replicas, none apart for longer than {:?}",
        agreement.steps.len(),
        agreement.longest_apart
    ));
    Ok(Verdict::Passed)
}

/// What `kubectl rollout restart` does.
async fn restart(test: &Test, name: &str) -> Result<()> {
    let patch =
        json!({"spec": {"template": {"metadata": {"annotations": {"guideway.dev/e2e-restart": "1"}}}}});
    test.api::<Deployment>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// The trails of up to three keys that moved more than once.
fn twice(report: &guideway::demo::report::LoadReport) -> String {
    let trails = report.keys.trails.iter().filter(|(_, visits)| visits.len() > 2).take(3);
    let trail = |visits: &Vec<guideway::demo::report::Visit>| {
        visits
            .iter()
            .map(|it| format!("{} at {} ms", it.backend, it.at_us / 1000))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let shown: Vec<String> = trails.map(|(key, visits)| format!("{key}: {}", trail(visits))).collect();
    format!("{}; {}", load::shown(report), shown.join("; "))
}
