//! Owns a Pod as the API server sends it, as far as we read it. The generated type knows each of its several
//! hundred fields: that costs a megabyte of program, and time for every pod of a cluster.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "core::Pod")]
pub(super) struct Pod {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Option<PodSpec>,
    pub(super) status: Option<PodStatus>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) containers: Option<Vec<Container>>,
    pub(super) init_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container {
    pub(super) ports: Option<Vec<ContainerPort>>,
    pub(super) restart_policy: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerPort {
    pub(super) name: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) container_port: i32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    pub(super) conditions: Option<Vec<PodCondition>>,
    // The default of the format would be `podIp`.
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Option<Vec<PodIp>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodCondition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct PodIp {
    pub(super) ip: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What we read of a pod is what the generated type reads of it.
    #[test]
    fn our_pod_reads_what_the_generated_one_reads() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": "web-0", "uid": "u", "labels": { "app": "web" } },
            "spec": {
                "nodeName": "worker",
                "containers": [{ "name": "web", "image": "web", "ports": [
                    { "name": "http", "containerPort": 8080, "protocol": "TCP" }, { "containerPort": 9 }
                ] }, { "name": "bare" }],
                "initContainers": [{ "name": "side", "restartPolicy": "Always", "ports": [{ "containerPort": 1 }] }],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }],
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T09:00:00Z" }],
            },
        });
        for pod in [pod, bare(json!({})), bare(Value::Null)] {
            let generated: core::Pod = serde_json::from_value(pod.clone()).unwrap();
            let ours: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(ours.metadata, generated.metadata);
            assert_eq!(containers(&ours), generated_containers(&generated));
            let status = generated.status.unwrap_or_default();
            let our_status = ours.status;
            let told = our_status.as_ref();
            assert_eq!(told.and_then(|status| status.phase.clone()), status.phase);
            assert_eq!(told.and_then(|status| status.pod_ip.clone()), status.pod_ip);
            let ips = told.and_then(|status| status.pod_ips.as_ref());
            let ips: Vec<_> = ips.into_iter().flatten().map(|ip| ip.ip.clone()).collect();
            assert_eq!(ips, status.pod_ips.into_iter().flatten().map(|ip| ip.ip).collect::<Vec<_>>());
            let conditions = told.and_then(|status| status.conditions.as_ref());
            let conditions: Vec<_> = conditions
                .into_iter()
                .flatten()
                .map(|condition| (condition.kind.clone(), condition.status.clone()))
                .collect();
            let generated = status.conditions.into_iter().flatten();
            assert_eq!(conditions, generated.map(|known| (known.type_, known.status)).collect::<Vec<_>>());
        }
    }

    fn bare(part: Value) -> Value {
        json!({ "metadata": { "name": "bare" }, "spec": part, "status": part })
    }

    type Named = (Option<String>, Vec<(Option<String>, Option<String>, i32)>);

    fn containers(pod: &Pod) -> Vec<Named> {
        let spec = pod.spec.iter();
        let all = spec.flat_map(|spec| spec.containers.iter().chain(&spec.init_containers).flatten());
        let port = |port: &ContainerPort| (port.name.clone(), port.protocol.clone(), port.container_port);
        all.map(|one| (one.restart_policy.clone(), one.ports.iter().flatten().map(port).collect())).collect()
    }

    fn generated_containers(pod: &core::Pod) -> Vec<Named> {
        let spec = pod.spec.iter();
        let all = spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let port =
            |port: &core::ContainerPort| (port.name.clone(), port.protocol.clone(), port.container_port);
        all.map(|one| (one.restart_policy.clone(), one.ports.iter().flatten().map(port).collect())).collect()
    }
}
