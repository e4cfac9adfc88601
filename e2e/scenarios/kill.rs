//! Backends that die without a word: the request that met the dying one is carried by another.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DeleteParams;

use crate::cluster::{Seen, until};
use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::node::{NO_WAY, Node};
use crate::runner::Verdict;
use crate::{pods, subject};

const KILLS: usize = 20;
const BACKENDS: usize = 4;

pub(super) async fn a_killed_backend_costs_no_request(test: &Test) -> Result<Verdict> {
    if Node::named("any").is_none() {
        return Ok(Verdict::NotRun(NO_WAY.to_owned()));
    }
    pods::start(test, "web", BACKENDS).await?;
    test.serve_pool(pods::pool(test, "web"), BACKENDS).await?;
    let targets = subject::targets(&test.cluster, test.port).await?;
    let load = Load::start(test, "load", Plan { targets, rate: 800, keys: 1000, connections: 32 }).await?;
    for _ in 0..KILLS {
        let (_, victim) = pods::of(test, "web").await?.pop_first().context("there are four pods")?;
        kill(&victim).await?;
        until_noticed(test, &victim).await?;
        // Deleted, it is replaced at once; its container would be restarted later and later.
        let at_once = DeleteParams::default().grace_period(0);
        test.api::<Pod>().delete(&victim.name_any(), &at_once).await?;
        until_replaced(test, &victim).await?;
    }
    test.until_ready("web", BACKENDS).await?;
    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    ensure!(report.backends.len() == BACKENDS + KILLS, "served by {:?}", report.backends);
    test.note(format!("{KILLS} kills: {}", load::shown(&report)));
    Ok(Verdict::Passed)
}

/// Until the kubelet tells the cluster of it, nobody but the proxies knows that the backend is dead.
async fn until_noticed(test: &Test, victim: &Pod) -> Result<()> {
    let name = victim.name_any();
    until(&format!("the kubelet to notice that {name} is dead"), Duration::from_secs(20), async || {
        let pod = test.api::<Pod>().get(&name).await?;
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        let restarted = statuses.into_iter().flatten().any(|it| it.restart_count > 0);
        Ok(Seen::when(restarted || !pods::is_ready(&pod), || format!("{:?}", pod.status)))
    })
    .await
}

/// Until four pods are ready and the victim is none of them. The Deployment's own status lags behind.
async fn until_replaced(test: &Test, victim: &Pod) -> Result<()> {
    until("a new pod in the place of the dead one", Duration::from_secs(30), async || {
        let all = pods::of(test, "web").await?;
        let ready = all.values().filter(|pod| pods::is_ready(pod)).count();
        let gone = all.values().all(|pod| pod.uid() != victim.uid());
        let said = || format!("{ready} of {} pods ready, the dead one gone: {gone}", all.len());
        Ok(Seen::when(gone && all.len() == BACKENDS && ready == BACKENDS, said))
    })
    .await
}

/// SIGKILL for the pod's one process, which carries the pod's name in its environment.
async fn kill(pod: &Pod) -> Result<()> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).context("the pod is on no node")?;
    let node = Node::named(&node).context(NO_WAY)?;
    let name = pod.name_any();
    let script = format!(
        "for process in /proc/[0-9]*; do \
           tr '\\0' '\\n' 2>/dev/null <$process/environ | grep -qx POD_NAME={name} || continue; \
           kill -KILL ${{process#/proc/}} && echo killed; \
         done"
    );
    let killed = node.shell(&format!("{{ {script}; }} 2>/dev/null; true")).await?;
    ensure!(killed.trim() == "killed", "pod {name} has not exactly one process: {killed:?}");
    Ok(())
}
