//! Owns the backends of the scenarios: manifests of Deployments and pools, and what a pod says of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::{PodPort, Seen, until};
use crate::fixture::Test;
use crate::subject;

/// The image of backends and load generators, loaded into the nodes before the tests run.
pub(crate) const IMAGE: &str = "guideway-testbed:e2e";
/// The port demo backends serve on.
pub(crate) const BACKEND_PORT: u16 = 8080;

/// A Deployment of demo backends and a Service of the same name. A pod goes on serving for two seconds
/// after SIGTERM, as one with a preStop pause does: without it the kernel may refuse connections before
/// anybody outside can know that the pod goes.
pub(crate) fn backends(name: &str, replicas: usize) -> [Value; 2] {
    let labels = json!({"app": name});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": labels}, "spec": backend_pod_spec()},
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": BACKEND_PORT}]},
    });
    [deployment, service]
}

/// The pod of a demo backend that is ready when its `/ready` says so, asked every second.
pub(crate) fn backend_pod_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 10,
        "containers": [{
            "name": "backend",
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "args": ["backend", "--name=$(POD_NAME)", "--linger=2s"],
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [{"containerPort": BACKEND_PORT}],
            "readinessProbe": {
                "httpGet": {"path": "/ready", "port": BACKEND_PORT},
                "periodSeconds": 1,
                "failureThreshold": 1,
            },
            // Enough weight on a busy node that the wait for an answer is Guideway's and not the backend's.
            "resources": {"requests": {"cpu": "20m", "memory": "8Mi"}},
        }],
    })
}

/// A pool on the scenario's first port over the Service `name`, keyed by the load generator's header.
pub(crate) fn pool(test: &Test, name: &str) -> Value {
    pool_on(name, test.port, &json!([{"name": "all", "service": {"name": name, "port": "http"}}]))
}

/// A pool on any port over any backends.
pub(crate) fn pool_on(name: &str, port: u16, backends: &Value) -> Value {
    json!({
        "apiVersion": "guideway.dev/v1alpha1", "kind": "LoadBalancerPool",
        "metadata": {"name": name},
        "spec": {
            "listeners": [{"name": "web", "port": port, "protocol": "HTTP"}],
            "backends": backends,
            "algorithm": {"hashOn": [{"type": "Header", "name": guideway::demo::load::KEY_HEADER}]},
        },
    })
}

/// Applies backends and waits until all of them are ready.
pub(crate) async fn start(test: &Test, name: &str, replicas: usize) -> Result<()> {
    for manifest in backends(name, replicas) {
        test.apply(manifest).await?;
    }
    until_rolled_out(test, name, Duration::from_secs(60), async || Ok(())).await
}

/// Scales a Deployment that a pool of its name serves, and waits until both have followed.
pub(crate) async fn scale(test: &Test, name: &str, replicas: usize) -> Result<()> {
    let patch = json!({"spec": {"replicas": replicas}});
    test.api::<Deployment>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    until_rolled_out(test, name, Duration::from_secs(60), async || Ok(())).await?;
    test.until_ready(name, replicas).await
}

/// Waits until a Deployment has rolled out and no pod of before is left, calling `meanwhile` at every look.
pub(crate) async fn until_rolled_out(
    test: &Test,
    name: &str,
    limit: Duration,
    mut meanwhile: impl AsyncFnMut() -> Result<()>,
) -> Result<()> {
    let deployments: Api<Deployment> = test.api();
    until(&format!("Deployment {name} to be rolled out"), limit, async || {
        meanwhile().await?;
        let deployment = deployments.get(name).await?;
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1) as usize;
        let left = of(test, name).await?.len();
        let rolled = rolled_out(&deployment);
        Ok(Seen::when(rolled && left == wanted, || format!("{:?}, {left} pods", deployment.status)))
    })
    .await
}

/// Whether a Deployment's controller has seen its newest spec and every replica follows it.
pub(crate) fn rolled_out(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    deployment.status.as_ref().is_some_and(|status| {
        let all = |count: Option<i32>| count.unwrap_or(0) == wanted;
        status.observed_generation == deployment.metadata.generation
            && all(status.replicas)
            && all(status.updated_replicas)
            && all(status.available_replicas)
    })
}

/// All pods of the backends `name`, those on their way out included.
pub(crate) async fn of(test: &Test, name: &str) -> Result<BTreeMap<String, Pod>> {
    let pods = test.api::<Pod>().list(&ListParams::default().labels(&format!("app={name}"))).await?;
    Ok(pods.into_iter().map(|pod| (pod.name_any(), pod)).collect())
}

/// Whether the pod's Ready condition is true.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True")
}

/// The pod's address.
pub(crate) fn address(pod: &Pod) -> Result<String> {
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    address.with_context(|| format!("pod {} has no address", pod.name_any()))
}

/// Has a pod of the testbed ask all replicas at the scenario's port; the report that it prints.
pub(crate) async fn ask_all_replicas(test: &Test, command: &str) -> Result<Value> {
    let mut args = vec![command.to_owned()];
    for replica in subject::replicas(&test.cluster).await?.values() {
        args.push(format!("--target={}:{}", address(replica)?, test.port));
    }
    let container = json!({
        "name": "client", "image": IMAGE, "imagePullPolicy": "Never", "args": args,
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}},
    });
    test.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": command},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [container]},
    }))
    .await?;
    let phase = until("the client to end", Duration::from_secs(90), async || {
        let phase = test.api::<Pod>().get(command).await?.status.and_then(|it| it.phase).unwrap_or_default();
        Ok(if matches!(&*phase, "Succeeded" | "Failed") { Seen::Done(phase) } else { Seen::NotYet(phase) })
    })
    .await?;
    let said = test.api::<Pod>().logs(command, &LogParams::default()).await?;
    ensure!(phase == "Succeeded", "the client lost something: {said}");
    serde_json::from_str(&said).with_context(|| format!("no report: {said}"))
}

/// Tells a demo backend what its readiness probe shall find.
pub(crate) async fn set_ready(test: &Test, pod: &str, ready: bool) -> Result<()> {
    let port = PodPort { namespace: &test.namespace, pod, port: BACKEND_PORT };
    test.cluster.call(port, Method::PUT, &format!("/ready?value={ready}")).await.map(drop)
}
