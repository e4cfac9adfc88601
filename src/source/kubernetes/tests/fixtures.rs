//! Owns objects as an API server sends them, written short.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::facts::{Key, Pod, Service, Slice};
use super::super::index::Index;
use super::super::resource::PoolResource;
use super::super::watch::{Change, Event};
use super::super::wire;
use crate::balance::backend::{HttpVersion, State};
use crate::balance::pool::PoolId;
use crate::balance::snapshot::Shares;
use crate::source::credentials::tests::Pair;
use crate::source::programmer::{self, PoolFacts};

/// A pod of `web`, with the address 10.0.0.N for the N of its name `web-N`, not ready.
pub(super) struct PodBuilder {
    object: Value,
    ready: bool,
}

pub(super) fn pod(name: &str) -> PodBuilder {
    let octet: u8 = name.rsplit('-').next().and_then(|tail| tail.parse().ok()).unwrap_or(250);
    let object = json!({
        "metadata": {
            "namespace": "shop", "name": name, "uid": format!("uid-{name}"),
            "labels": { "app": "web", "pod-template-hash": "5d9c" },
            "creationTimestamp": "2026-11-21T08:00:00Z",
            "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d9c", "uid": "rs", "controller": true }
            ]
        },
        "spec": { "containers": [{ "name": "web", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "phase": "Running", "podIPs": [{ "ip": format!("10.0.0.{octet}") }] }
    });
    PodBuilder { object, ready: false }
}

impl PodBuilder {
    pub(super) fn ready(mut self) -> Self {
        self.ready = true;
        self
    }

    pub(super) fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        self.object.pointer_mut(parent).unwrap()[field] = value;
        self
    }

    pub(super) fn uid(self, uid: &str) -> Self {
        self.set("/metadata/uid", json!(uid))
    }

    pub(super) fn label(self, name: &str, value: &str) -> Self {
        self.set(&format!("/metadata/labels/{name}"), json!(value))
    }

    pub(super) fn deleting(self) -> Self {
        self.set("/metadata/deletionTimestamp", json!("2026-11-21T09:00:00Z"))
    }

    pub(super) fn object(mut self) -> Value {
        let status = if self.ready { "True" } else { "False" };
        self.object["status"]["conditions"] = json!([{ "type": "Ready", "status": status }]);
        self.object
    }

    pub(super) fn facts(self) -> Pod {
        let object: wire::Pod = serde_json::from_value(self.object()).unwrap();
        Pod::from_object(&object).unwrap()
    }
}

/// A Service `name` on port 80 (`http`) for pods labelled `app: web`.
pub(super) fn service(name: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": name },
        "spec": {
            "selector": { "app": "web" }, "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "port": 80, "targetPort": "http" }]
        }
    })
}

pub(super) fn service_facts(object: &Value) -> Service {
    let object: core::Service = serde_json::from_value(object.clone()).unwrap();
    Service::from_object(&object).unwrap()
}

/// A slice of the Service `web` with these endpoints.
pub(super) fn slice(name: &str, endpoints: &[Value]) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": name, "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints
    })
}

pub(super) fn slice_facts(object: &Value) -> Slice {
    let object: EndpointSlice = serde_json::from_value(object.clone()).unwrap();
    Slice::from_object(&object).unwrap()
}

/// The endpoint of the pod `web-N` as its slice tells it.
pub(super) fn endpoint(name: &str, ready: bool) -> Value {
    let octet = name.rsplit('-').next().unwrap();
    json!({
        "addresses": [format!("10.0.0.{octet}")],
        "conditions": { "ready": ready, "serving": ready, "terminating": false },
        "targetRef": { "kind": "Pod", "namespace": "shop", "name": name, "uid": format!("uid-{name}") }
    })
}

/// An endpoint without a pod.
pub(super) fn address(ip: &str, ready: bool) -> Value {
    json!({ "addresses": [ip], "conditions": { "ready": ready } })
}

/// The pool `shop/web` in front of the Service `web`.
pub(super) fn pool() -> Value {
    json!({
        "apiVersion": "guideway.dev/v1alpha1",
        "kind": "LoadBalancerPool",
        "metadata": {
            "namespace": "shop", "name": "web", "uid": "uid-pool", "generation": 1, "creationTimestamp": "2026-11-21T08:00:00Z"
        },
        "spec": {
            "listeners": [{ "name": "web", "port": 8080, "protocol": "HTTP" }],
            "backends": [{ "name": "stable", "service": { "name": "web", "port": "http" } }]
        }
    })
}

/// The pool `shop/web`, which serves TLS on port 8443 too, with the certificates of these Secrets.
pub(super) fn tls_pool(secrets: &[&str]) -> Value {
    let mut pool = pool();
    let refs: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
    let listener =
        json!({ "name": "secure", "port": 8443, "protocol": "HTTPS", "tls": { "secretRefs": refs } });
    pool["spec"]["listeners"].as_array_mut().unwrap().push(listener);
    pool
}

/// The pool `shop/web`, which speaks TLS with the pods of its Service, and in the clear with one address beside them.
pub(super) fn tls_backend_pool() -> Value {
    let mut pool = pool();
    pool["spec"]["backends"][0]["tls"] = json!({ "serverName": "web.test", "ca": { "name": "backend-ca" }, "clientCertificate": { "name": "client" } });
    let plain = json!({ "name": "plain", "endpoints": [{ "address": "192.0.2.1", "port": 80 }] });
    pool["spec"]["backends"].as_array_mut().unwrap().push(plain);
    pool
}

/// A Secret with these keys.
pub(super) fn secret(name: &str, data: &[(&str, &str)]) -> Value {
    let data: BTreeMap<&str, ByteString> =
        data.iter().map(|(key, text)| (*key, ByteString(text.as_bytes().into()))).collect();
    json!({ "metadata": { "namespace": "shop", "name": name }, "data": data })
}

/// A Secret with a certificate.
pub(super) fn tls_secret(name: &str, pair: &Pair) -> Value {
    secret(name, &[("tls.crt", &pair.chain), ("tls.key", &pair.key)])
}

pub(super) fn pool_resource(object: &Value) -> PoolResource {
    let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    PoolResource::from_object(&object).unwrap()
}

pub(super) fn key(name: &str) -> Key {
    Key { namespace: "shop".into(), name: name.into() }
}

pub(super) fn web() -> PoolId {
    PoolId::new("shop", "web")
}

/// An index, a clock of its own, and the facts of `shop/web` as last handed out.
pub(super) struct Bench {
    pub(super) index: Index,
    pub(super) now: Instant,
    pub(super) facts: Option<PoolFacts>,
}

impl Bench {
    /// Knows the Service and the pool, and nothing else.
    pub(super) fn new() -> Self {
        let mut bench = Self { index: Index::default(), now: Instant::now(), facts: None };
        bench.service(&service("web"));
        bench.tell(Event::Pools(Change::Applied(pool_resource(&pool()))));
        bench
    }

    /// Tells one event now and drains. Returns the changes of `shop/web`.
    pub(super) fn tell(&mut self, event: Event) -> Vec<programmer::Change> {
        self.index.apply(event, self.now);
        let drained = self.index.drain(&Shares::new(), self.now);
        let changes: Vec<_> = drained.into_iter().flat_map(|pool| pool.changes).collect();
        for change in &changes {
            match change {
                programmer::Change::Set(facts) if facts.pool.id == web() => self.facts = Some(facts.clone()),
                programmer::Change::Remove(id) if *id == web() => self.facts = None,
                _ => {}
            }
        }
        changes
    }

    pub(super) fn service(&mut self, object: &Value) -> Vec<programmer::Change> {
        self.tell(Event::Services(Change::Applied(service_facts(object))))
    }

    pub(super) fn pod(&mut self, pod: PodBuilder) -> Vec<programmer::Change> {
        self.tell(Event::Pods(Change::Applied(pod.facts())))
    }

    pub(super) fn pod_deleted(&mut self, name: &str) -> Vec<programmer::Change> {
        self.tell(Event::Pods(Change::Deleted(key(name))))
    }

    pub(super) fn slice(&mut self, object: &Value) -> Vec<programmer::Change> {
        self.tell(Event::Slices(Change::Applied(slice_facts(object))))
    }

    pub(super) fn pods_relisted(&mut self, pods: Vec<PodBuilder>) -> Vec<programmer::Change> {
        let objects = pods.into_iter().map(PodBuilder::facts).collect();
        self.tell(Event::Pods(Change::Relisted { scope: None, objects }))
    }

    pub(super) fn slices_relisted(&mut self, slices: &[Value]) -> Vec<programmer::Change> {
        let objects = slices.iter().map(slice_facts).collect();
        self.tell(Event::Slices(Change::Relisted { scope: None, objects }))
    }

    pub(super) fn pool(&mut self, object: &Value) -> Vec<programmer::Change> {
        self.tell(Event::Pools(Change::Applied(pool_resource(object))))
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Name and state of every member of `shop/web`.
    pub(super) fn members(&self) -> Vec<(&str, State)> {
        let members = self.facts.iter().flat_map(|facts| &facts.members);
        members.map(|member| (member.backend.name.as_ref(), member.state)).collect()
    }

    /// Address of every member of `shop/web`.
    pub(super) fn addresses(&self) -> Vec<String> {
        let members = self.facts.iter().flat_map(|facts| &facts.members);
        members.map(|member| member.backend.address.to_string()).collect()
    }

    /// What every member of `shop/web` speaks.
    pub(super) fn versions(&self) -> Vec<HttpVersion> {
        let members = self.facts.iter().flat_map(|facts| &facts.members);
        members.map(|member| member.backend.http).collect()
    }
}
