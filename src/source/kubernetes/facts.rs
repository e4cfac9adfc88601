//! Owns the little that the tables need of pods, Services and EndpointSlices. Objects are shrunk to
//! these facts as they arrive, so ten thousand pods cost a few megabytes and two equal facts mean "nothing new".

use std::mem::discriminant;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::wire;
use crate::balance::backend::{HttpVersion, Lineage, State};
use crate::balance::pool::PortId;

/// The label by which an EndpointSlice names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Revision of a Deployment's pod template.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";
/// Revision of a StatefulSet's or DaemonSet's pod template.
const REVISION_HASH_LABEL: &str = "controller-revision-hash";
/// Ordinal of a StatefulSet's pod.
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Key {
    /// `None` for an object without a name, which no API server sends.
    pub(super) fn of(metadata: &ObjectMeta) -> Option<Self> {
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        Some(Self { namespace: namespace.into(), name: metadata.name.as_deref()?.into() })
    }
}

/// Something that has a place in a namespace.
pub(super) trait Keyed {
    fn key(&self) -> &Key;
}

/// The labels of an object, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels(Vec<(Arc<str>, Arc<str>)>);

impl Labels {
    fn of(map: Option<&std::collections::BTreeMap<String, String>>) -> Self {
        Self(
            map.into_iter()
                .flatten()
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect(),
        )
    }

    fn get(&self, key: &str) -> Option<&Arc<str>> {
        let found = self.0.binary_search_by(|(name, _)| name.as_ref().cmp(key)).ok()?;
        Some(&self.0[found].1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every label asked for is there. An empty selector selects nothing, as in a Service.
    pub(super) fn selects(&self, labels: &Self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub(super) fn has(self, ip: IpAddr) -> bool {
        match self {
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }
}

/// What a pod says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) key: Key,
    pub(super) uid: Arc<str>,
    pub(super) labels: Labels,
    pub(super) ips: Vec<IpAddr>,
    /// The Ready condition is `True`.
    pub(super) ready: bool,
    /// A deletion timestamp is set.
    pub(super) deleting: bool,
    /// All containers have ended for good.
    pub(super) finished: bool,
    /// Named ports of its containers, first of a name first.
    pub(super) ports: Vec<(Arc<str>, PortId)>,
    pub(super) lineage: Lineage,
}

impl Keyed for Pod {
    fn key(&self) -> &Key {
        &self.key
    }
}

impl Pod {
    pub(super) fn from_object(pod: &wire::Pod) -> Option<Self> {
        let key = Key::of(&pod.metadata)?;
        let uid = pod.metadata.uid.as_deref()?.into();
        let status = pod.status.as_ref();
        let labels = Labels::of(pod.metadata.labels.as_ref());
        let lineage = lineage(&pod.metadata, &labels, &key.name);
        let phase = status.and_then(|status| status.phase.as_deref());
        Some(Self {
            uid,
            ips: status.map(ips).unwrap_or_default(),
            ready: status.is_some_and(is_ready),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            ports: pod.spec.as_ref().map(named_ports).unwrap_or_default(),
            key,
            labels,
            lineage,
        })
    }

    /// What may be given to it.
    pub(super) fn state(&self) -> State {
        match (self.deleting, self.ready) {
            (true, serving) => State::Terminating { serving },
            (false, true) => State::Ready,
            (false, false) => State::NotReady,
        }
    }

    /// The container port that a Service's port leads to.
    pub(super) fn port(&self, service: &ServicePort) -> Option<u16> {
        let name = match &service.target {
            Target::Number(port) => return Some(*port),
            Target::Name(name) => name,
        };
        let same_kind = |port: PortId| discriminant(&port) == discriminant(&service.port);
        let named = self.ports.iter().find(|(known, port)| known == name && same_kind(*port));
        named.map(|(_, port)| port.number())
    }
}

fn ips(status: &wire::PodStatus) -> Vec<IpAddr> {
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut ips: Vec<IpAddr> =
        listed.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    let mut seen = Vec::with_capacity(ips.len());
    ips.retain(|ip| {
        !seen.contains(ip) && {
            seen.push(*ip);
            true
        }
    });
    ips
}

fn is_ready(status: &wire::PodStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.kind == "Ready" && condition.status == "True")
}

/// Sidecars (init containers that keep running) may serve too.
fn named_ports(spec: &wire::PodSpec) -> Vec<(Arc<str>, PortId)> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .flatten()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    let named = |port: &wire::ContainerPort| {
        Some((port.name.as_deref()?.into(), port_id(port.protocol.as_deref(), port.container_port)?))
    };
    ports.filter_map(named).collect()
}

/// A Deployment's pods belong to ReplicaSets named after their revision; without that suffix all revisions are one workload.
fn lineage(metadata: &ObjectMeta, labels: &Labels, name: &str) -> Lineage {
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let template = labels.get(TEMPLATE_HASH_LABEL);
    let workload = owner.map(|owner| {
        let suffix = template.map(|hash| format!("-{hash}"));
        match suffix.and_then(|suffix| owner.name.strip_suffix(&suffix)) {
            Some(deployment) if owner.kind == "ReplicaSet" => format!("Deployment/{deployment}"),
            _ => format!("{}/{}", owner.kind, owner.name),
        }
    });
    let stateful = owner.is_some_and(|owner| owner.kind == "StatefulSet");
    let ordinal = || match labels.get(POD_INDEX_LABEL) {
        Some(index) => index.parse().ok(),
        None => name.rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse().ok()),
    };
    Lineage {
        workload: workload.map(Arc::from),
        revision: template.or_else(|| labels.get(REVISION_HASH_LABEL)).cloned(),
        ordinal: stateful.then(ordinal).flatten(),
        created_ms: created_ms(metadata),
    }
}

/// Creation time, milliseconds since the UNIX epoch; zero where there is none.
pub(super) fn created_ms(metadata: &ObjectMeta) -> u64 {
    let created = metadata.creation_timestamp.as_ref().map(|time| time.0.as_millisecond());
    created.and_then(|ms| u64::try_from(ms).ok()).unwrap_or_default()
}

/// Kubernetes takes a missing protocol for TCP. What is neither that nor UDP is not for us.
fn port_id(protocol: Option<&str>, number: i32) -> Option<PortId> {
    let number = u16::try_from(number).ok()?;
    match protocol {
        None | Some("TCP") => Some(PortId::Tcp(number)),
        Some("UDP") => Some(PortId::Udp(number)),
        Some(_) => None,
    }
}

/// Where a Service's port leads to in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Number(u16),
    Name(Arc<str>),
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort {
    /// Empty for the only port of a Service, which needs no name.
    pub(super) name: Arc<str>,
    pub(super) port: PortId,
    pub(super) target: Target,
    /// What its `appProtocol` says of its pods.
    pub(super) http: HttpVersion,
}

/// What a Service says about where its pods are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) key: Key,
    /// Empty where slices are kept by hand.
    pub(super) selector: Labels,
    pub(super) ports: Vec<ServicePort>,
    pub(super) family: Family,
    pub(super) publish_not_ready: bool,
    /// An ExternalName has no endpoints of its own.
    pub(super) external_name: bool,
}

impl Keyed for Service {
    fn key(&self) -> &Key {
        &self.key
    }
}

impl Service {
    pub(super) fn from_object(service: &core::Service) -> Option<Self> {
        let spec = service.spec.clone().unwrap_or_default();
        let families = spec.ip_families.as_deref().unwrap_or_default();
        Some(Self {
            key: Key::of(&service.metadata)?,
            selector: Labels::of(spec.selector.as_ref()),
            ports: spec.ports.iter().flatten().filter_map(service_port).collect(),
            family: if families.first().is_some_and(|family| family == "IPv6") {
                Family::V6
            } else {
                Family::V4
            },
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
        })
    }
}

fn service_port(port: &core::ServicePort) -> Option<ServicePort> {
    let id = port_id(port.protocol.as_deref(), port.port)?;
    let target = match &port.target_port {
        Some(IntOrString::String(name)) => Target::Name(name.as_str().into()),
        Some(IntOrString::Int(0)) | None => Target::Number(id.number()),
        Some(IntOrString::Int(target)) => Target::Number(u16::try_from(*target).ok()?),
    };
    Some(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        port: id,
        target,
        http: http_version(port.app_protocol.as_deref()),
    })
}

/// The name of KEP-3726, and those that were in use before it.
fn http_version(app_protocol: Option<&str>) -> HttpVersion {
    match app_protocol {
        Some("kubernetes.io/h2c" | "h2c" | "grpc") => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    }
}

/// One EndpointSlice of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) key: Key,
    /// Name of the Service; slices without one concern nobody here.
    pub(super) service: Arc<str>,
    pub(super) family: Family,
    /// TCP ports by name; an unnamed port has the empty name.
    pub(super) ports: Vec<(Arc<str>, u16)>,
    pub(super) endpoints: Vec<Endpoint>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    pub(super) state: State,
    pub(super) pod: Option<PodRef>,
}

/// The pod behind an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodRef {
    pub(super) uid: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Keyed for Slice {
    fn key(&self) -> &Key {
        &self.key
    }
}

impl Slice {
    /// `None` for slices that belong to no Service or hold names in place of addresses.
    pub(super) fn from_object(slice: &discovery::EndpointSlice) -> Option<Self> {
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return None,
        };
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let id = port_id(port.protocol.as_deref(), port.port?)?;
            Some((port.name.as_deref().unwrap_or_default().into(), id.number()))
        });
        Some(Self {
            key: Key::of(&slice.metadata)?,
            service: slice.metadata.labels.as_ref()?.get(SERVICE_LABEL)?.as_str().into(),
            family,
            ports: ports.collect(),
            endpoints: slice.endpoints.iter().filter_map(endpoint).collect(),
        })
    }
}

/// The addresses of one endpoint are interchangeable by definition, so the first one stands for it.
fn endpoint(endpoint: &discovery::Endpoint) -> Option<Endpoint> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let state = match (ready, conditions.terminating.unwrap_or(false)) {
        (true, _) => State::Ready,
        (false, true) => State::Terminating { serving: conditions.serving.unwrap_or(true) },
        (false, false) => State::NotReady,
    };
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = pod.and_then(|target| {
        Some(PodRef { uid: target.uid.as_deref()?.into(), name: target.name.as_deref()?.into() })
    });
    Some(Endpoint { address: endpoint.addresses.first()?.parse().ok()?, state, pod })
}
