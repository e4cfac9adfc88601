//! Owns why a Service that is there has no endpoints: what is missing between it, its slices and its pods. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::facts::{Pod, Service, ServicePort, Slice, Target};
use super::namespace::Namespace;
use crate::balance::pool::PortId;

/// Names of ports told in one message; who has more of them finds the rest in the slice.
const PORTS_TOLD: usize = 20;

/// A Service without endpoints, and the first thing that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Absence {
    group: Arc<str>,
    service: Arc<str>,
    cause: Cause,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// It has no selector, so somebody has to write its slices, and there is none.
    NoSlice,
    /// None of its slices is of its family of addresses.
    OtherFamily(&'static str),
    /// None of those has the port. `known` are the names that they have.
    PortNotInSlices { port: Arc<str>, known: String },
    /// Those list no endpoints.
    EmptySlices,
    /// Its selector fits no pod.
    NoPod,
    /// It fits pods that have ended only.
    PodsEnded,
    /// It fits pods that have no address yet only.
    PodsWithoutAddress,
    /// No container of those pods has a port of this name.
    NoContainerPort { port: PortId, target: Arc<str> },
    /// The pods are there; the slices that speak for them have not followed.
    NotListed,
}

impl Absence {
    /// Why `port` of `service`, which `group` names, leads nowhere.
    pub(super) fn of(group: &Arc<str>, service: &Service, port: &ServicePort, namespace: &Namespace) -> Self {
        let cause = match service.selector.is_empty() {
            true => of_slices(service, port, namespace),
            false => of_pods(service, port, namespace),
        };
        Self { group: group.clone(), service: service.key.name.clone(), cause }
    }
}

fn of_slices(service: &Service, port: &ServicePort, namespace: &Namespace) -> Cause {
    let all = namespace.slices.values().map(|seen| &seen.facts);
    let all: Vec<&Slice> = all.filter(|slice| slice.service == service.key.name).collect();
    let fitting = || all.iter().filter(|slice| slice.family == service.family);
    let ports = || fitting().flat_map(|slice| &slice.ports).map(|(name, _)| name);
    if all.is_empty() {
        Cause::NoSlice
    } else if fitting().next().is_none() {
        Cause::OtherFamily(service.family.name())
    } else if !ports().any(|name| *name == port.name) {
        Cause::PortNotInSlices { port: port.name.clone(), known: list(&ports().collect()) }
    } else {
        Cause::EmptySlices
    }
}

fn of_pods(service: &Service, port: &ServicePort, namespace: &Namespace) -> Cause {
    let pods = namespace.pods.values().map(|seen| &seen.facts);
    let selected: Vec<&Pod> = pods.filter(|pod| service.selector.selects(&pod.labels)).collect();
    let alive = || selected.iter().filter(|pod| !pod.finished);
    let addressed = || alive().filter(|pod| pod.ips.iter().any(|ip| service.family.has(*ip)));
    if selected.is_empty() {
        Cause::NoPod
    } else if alive().next().is_none() {
        Cause::PodsEnded
    } else if addressed().next().is_none() {
        Cause::PodsWithoutAddress
    } else {
        match &port.target {
            Target::Name(target) if !addressed().any(|pod| pod.port(port).is_some()) => {
                Cause::NoContainerPort { port: port.port, target: target.clone() }
            }
            _ => Cause::NotListed,
        }
    }
}

fn list(names: &BTreeSet<&Arc<str>>) -> String {
    let told: Vec<String> = names.iter().take(PORTS_TOLD).map(|name| quoted(name)).collect();
    match names.len().saturating_sub(PORTS_TOLD) {
        0 if told.is_empty() => "none".into(),
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

fn quoted(name: &str) -> String {
    if name.is_empty() { "one without a name".into() } else { format!("`{name}`") }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, service, cause } = self;
        write!(f, "backend {group}: ")?;
        match cause {
            Cause::NoSlice => write!(
                f,
                "Service {service} has no selector, and no EndpointSlice has the label kubernetes.io/service-name: \
                 {service}; give it a selector, or write such an EndpointSlice"
            ),
            Cause::OtherFamily(family) => write!(
                f,
                "Service {service} has no selector, and none of its EndpointSlices holds addresses of {family}, its \
                 first family; write one that does"
            ),
            Cause::PortNotInSlices { port, known } => write!(
                f,
                "Service {service} has no selector, and its EndpointSlices lack the port {}: they have {known}; name \
                 the port there as in the Service",
                quoted(port)
            ),
            Cause::EmptySlices => write!(
                f,
                "Service {service} has no selector, and its EndpointSlices list no endpoints; write addresses into them"
            ),
            Cause::NoPod => write!(
                f,
                "no pod has the labels that the selector of Service {service} asks for; start such pods, or make \
                 selector and labels agree"
            ),
            Cause::PodsEnded => {
                write!(f, "all pods that Service {service} selects have ended; start some that go on")
            }
            Cause::PodsWithoutAddress => write!(
                f,
                "no pod that Service {service} selects has an address yet; if that lasts, kubectl describe says why"
            ),
            Cause::NoContainerPort { port, target } => write!(
                f,
                "no container of the pods that Service {service} selects has a port named {target}, the targetPort \
                 of its port {port}; name it so, or write its number as targetPort"
            ),
            Cause::NotListed => write!(
                f,
                "the EndpointSlices of Service {service} do not list its pods yet; if that lasts, look at \
                 kube-controller-manager"
            ),
        }
    }
}
