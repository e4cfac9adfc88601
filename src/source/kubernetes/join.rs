//! Owns the join of a pool's groups with Services, slices and pods: who its members are and in what state.
//! A slice is an echo of its pods, some 20 ms late; so a pod speaks for itself, and its slice speaks when the
//! pod has been silent. Pure: the same facts give the same members in the same order.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::absence::Absence;
use super::facts::{Endpoint, Pod, Service, ServicePort, Slice};
use super::keyring::SecretProblem;
use super::namespace::{Namespace, Seen};
use crate::balance::backend::{Backend, BackendId, HttpVersion, Lineage, Member, State, Weight};
use crate::balance::pool::{PortId, Protocol};
use crate::source::translate::{BackendSource, PortRef, Translated};

/// A slice that changes within this time after its pod is taken for the pod's echo and must not turn its state back.
const ECHO: Duration = Duration::from_secs(5);

/// Stands between a pod's UID and the group where a second group selects the same pod. Not part of any UID, address or
/// group name, nor of the short form of the seats in the status.
const GROUP_MARK: char = '~';

/// The pod's UID, or the address and port, within a backend's id.
pub(super) fn bare_id(id: &BackendId) -> &str {
    id.as_str().split(GROUP_MARK).next().unwrap_or_default()
}

/// Why a reference leads nowhere, or not where it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    ServiceNotFound { group: Arc<str>, service: Arc<str> },
    PortNotFound { group: Arc<str>, service: Arc<str>, port: PortRef, kind: &'static str, known: String },
    ExternalName { group: Arc<str>, service: Arc<str> },
    Secret(SecretProblem),
}

impl Problem {
    /// Whether something is missing by it, so that an earlier spec without it is the better one.
    pub(super) fn is_felt(&self) -> bool {
        !matches!(self, Self::Secret(problem) if problem.kept)
    }

    /// Whether it is only that we have not looked yet.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self, Self::Secret(problem) if problem.is_pending())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceNotFound { group, service } => {
                write!(
                    f,
                    "backend {group}: there is no Service {service} in this namespace; create it or correct the name"
                )
            }
            Self::PortNotFound { group, service, port: PortRef::Number(port), kind, known } => {
                write!(f, "backend {group}: Service {service} has no {kind} {port}; it has {known}")
            }
            Self::PortNotFound { group, service, port: PortRef::Name(name), kind, known } => {
                let advice = if name.bytes().all(|byte| byte.is_ascii_digit()) {
                    "; a name stands in quotes, a number stands without"
                } else {
                    ""
                };
                write!(
                    f,
                    "backend {group}: Service {service} has no {kind} named {name}; it has {known}{advice}"
                )
            }
            Self::ExternalName { group, service } => write!(
                f,
                "backend {group}: Service {service} is an ExternalName and has no endpoints; list its addresses under endpoints"
            ),
            Self::Secret(problem) => problem.fmt(f),
        }
    }
}

/// The members of a pool, by id, what could not be resolved, and what could and leads to no member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) members: Vec<Member>,
    pub(super) problems: Vec<Problem>,
    pub(super) absences: Vec<Absence>,
}

/// Joins the groups of `wanted` with what `namespace` knows. `before` are the earlier members, by id, whose backends are used again where nothing changed.
pub(super) fn join(wanted: &Translated, namespace: &Namespace, before: &[Member]) -> Joined {
    let mut joined = Joined::default();
    let mut taken = HashSet::new();
    let protocols: Vec<Protocol> = wanted.pool.listeners.iter().map(|listener| listener.protocol).collect();
    for source in &wanted.backends {
        match source {
            BackendSource::Endpoints { members, .. } => {
                joined.members.extend(members.iter().cloned().map(|member| unique(member, &mut taken)));
            }
            BackendSource::Service { group, service, port, http } => {
                match resolve(namespace, group, service, port, &protocols) {
                    Ok((service, port)) => {
                        let found = Candidates::of(service, port, namespace).settle();
                        if found.is_empty() {
                            let absence = Absence::of(group, &service.facts, port, namespace);
                            joined.absences.push(absence);
                        }
                        let http = http.unwrap_or(port.http);
                        let into_member = |it: Candidate| it.into_member(group, http, before);
                        let members = found.into_iter().map(into_member);
                        joined.members.extend(members.map(|member| unique(member, &mut taken)));
                    }
                    Err(problem) => joined.problems.push(problem),
                }
            }
        }
    }
    joined.members.sort_by(|a, b| a.backend.id.cmp(&b.backend.id));
    joined
}

fn resolve<'a>(
    namespace: &'a Namespace,
    group: &Arc<str>,
    service: &Arc<str>,
    port: &PortRef,
    protocols: &[Protocol],
) -> Result<(&'a Seen<Service>, &'a ServicePort), Problem> {
    let (group, name) = (group.clone(), service.clone());
    let Some(found) = namespace.services.get(service) else {
        return Err(Problem::ServiceNotFound { group, service: name });
    };
    if found.facts.external_name {
        return Err(Problem::ExternalName { group, service: name });
    }
    let resolved = service_port(&found.facts.ports, port, protocols);
    resolved.map(|port| (found, port)).ok_or_else(|| Problem::PortNotFound {
        group,
        service: name,
        port: port.clone(),
        kind: kind_of(protocols),
        known: port_list(&found.facts),
    })
}

/// The port of a Service for all of a pool's listeners. Where they are of TCP and of UDP, it has the same number for
/// both, and both lead to the same place in a pod.
fn service_port<'a>(
    ports: &'a [ServicePort],
    port: &PortRef,
    protocols: &[Protocol],
) -> Option<&'a ServicePort> {
    let (number, named) = match port {
        PortRef::Number(number) => (*number, None),
        PortRef::Name(name) => {
            let named = ports.iter().find(|known| known.name == *name)?.port;
            (named.number(), Some(named))
        }
    };
    // That of TCP comes first, which is the one that may say of itself what its pods speak.
    let wanted: BTreeSet<PortId> = protocols.iter().map(|protocol| protocol.port(number)).collect();
    if named.is_some_and(|named| !wanted.contains(&named)) {
        return None;
    }
    let mut found = wanted.iter().map(|wanted| ports.iter().find(|known| known.port == *wanted));
    let first = found.next()??;
    found.all(|other| other.is_some_and(|other| other.target == first.target)).then_some(first)
}

fn kind_of(protocols: &[Protocol]) -> &'static str {
    let is_udp = |protocol: &Protocol| matches!(protocol.port(0), PortId::Udp(_));
    match (protocols.iter().all(is_udp), protocols.iter().any(is_udp)) {
        (true, _) => "UDP port",
        (false, false) => "TCP port",
        (false, true) => "pair of TCP and UDP ports with one target",
    }
}

fn port_list(service: &Service) -> String {
    let one = |port: &ServicePort| match port.name.as_ref() {
        "" => port.port.to_string(),
        name => format!("{} ({name})", port.port),
    };
    let all: Vec<String> = service.ports.iter().map(one).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}

/// Two groups may select the same pod; its id within the pool stays unique.
fn unique(mut member: Member, taken: &mut HashSet<BackendId>) -> Member {
    if !taken.insert(member.backend.id.clone()) {
        let mut backend = Backend::clone(&member.backend);
        backend.id = BackendId(format!("{}{GROUP_MARK}{}", backend.id, backend.group).into());
        taken.insert(backend.id.clone());
        member.backend = Arc::new(backend);
    }
    member
}

/// What slices and pods say of one port of one Service.
struct Candidates<'a> {
    service: &'a Seen<Service>,
    port: &'a ServicePort,
    namespace: &'a Namespace,
    /// By pod UID, or by address where there is no pod.
    heard: HashMap<Arc<str>, Heard<'a>>,
}

/// What the slices say of one endpoint.
struct Heard<'a> {
    endpoint: &'a Endpoint,
    address: SocketAddr,
    at: Instant,
    slice: &'a Slice,
}

/// An endpoint with the verdict on it.
struct Candidate {
    id: Arc<str>,
    name: Arc<str>,
    address: SocketAddr,
    state: State,
    lineage: Lineage,
}

impl<'a> Candidates<'a> {
    fn of(service: &'a Seen<Service>, port: &'a ServicePort, namespace: &'a Namespace) -> Self {
        let mut candidates = Self { service, port, namespace, heard: HashMap::new() };
        let facts = &service.facts;
        for seen in namespace.slices.values() {
            let slice = &seen.facts;
            if slice.service != facts.key.name || slice.family != facts.family {
                continue;
            }
            let Some((_, number)) = slice.ports.iter().find(|(name, _)| *name == port.name) else { continue };
            for (endpoint, at) in slice.endpoints.iter().zip(&seen.endpoints_at) {
                let address = SocketAddr::new(endpoint.address, *number);
                candidates.hear(Heard { endpoint, address, at: *at, slice });
            }
        }
        candidates
    }

    /// An endpoint may stand in two slices while it moves from one to the other: the latest word counts.
    fn hear(&mut self, heard: Heard<'a>) {
        let id = match &heard.endpoint.pod {
            Some(pod) => pod.uid.clone(),
            None => heard.address.to_string().into(),
        };
        let rank =
            |heard: &Heard<'a>| (heard.at, goodness(heard.endpoint.state), heard.slice.key.name.clone());
        match self.heard.get(&id) {
            Some(known) if rank(known) >= rank(&heard) => {}
            _ => drop(self.heard.insert(id, heard)),
        }
    }

    fn settle(mut self) -> Vec<Candidate> {
        let facts = &self.service.facts;
        let mut settled = Vec::new();
        if !facts.publish_not_ready && !facts.selector.is_empty() {
            for pod in self.namespace.pods.values() {
                let heard = self.heard.remove(&pod.facts.uid);
                settled.extend(self.verdict(pod, heard));
            }
        }
        let alone = std::mem::take(&mut self.heard);
        settled.extend(alone.into_iter().filter_map(|(id, heard)| self.follow_slice(id, heard)));
        settled
    }

    /// The pod's own word, unless the slice changed well after the pod last did: then it is the pod's watch that is late.
    fn verdict(&self, pod: &Seen<Pod>, heard: Option<Heard<'a>>) -> Option<Candidate> {
        let told_at = pod.at.max(self.service.at);
        match heard {
            Some(heard) if heard.at > told_at + ECHO => self.follow_slice(pod.facts.uid.clone(), heard),
            _ => self.follow_pod(&pod.facts),
        }
    }

    /// What the EndpointSlice controller will say of the pod: an address, the selector's labels, not finished, the port.
    fn follow_pod(&self, pod: &Pod) -> Option<Candidate> {
        let facts = &self.service.facts;
        if pod.finished || !facts.selector.selects(&pod.labels) {
            return None;
        }
        let ip = pod.ips.iter().find(|ip| facts.family.has(**ip))?;
        Some(Candidate {
            id: pod.uid.clone(),
            name: pod.key.name.clone(),
            address: SocketAddr::new(*ip, pod.port(self.port)?),
            state: pod.state(),
            lineage: pod.lineage.clone(),
        })
    }

    fn follow_slice(&self, id: Arc<str>, heard: Heard<'a>) -> Option<Candidate> {
        if heard.endpoint.pod.is_some() && self.namespace.is_gone(&id) {
            return None;
        }
        let name = match &heard.endpoint.pod {
            Some(pod) => pod.name.clone(),
            None => id.clone(),
        };
        let pod = self.namespace.pods.get(&name).filter(|pod| pod.facts.uid == id);
        let lineage = pod.map(|pod| pod.facts.lineage.clone()).unwrap_or_default();
        Some(Candidate { id, name, address: heard.address, state: heard.endpoint.state, lineage })
    }
}

fn goodness(state: State) -> u8 {
    match state {
        State::Ready => 3,
        State::Terminating { serving: true } => 2,
        State::NotReady => 1,
        State::Terminating { serving: false } => 0,
    }
}

impl Candidate {
    fn into_member(self, group: &Arc<str>, http: HttpVersion, before: &[Member]) -> Member {
        let (id, group) = (BackendId(self.id), group.clone());
        let fresh = Backend { id, group, name: self.name, address: self.address, http };
        let known = before.binary_search_by(|member| member.backend.id.cmp(&fresh.id)).ok();
        let backend = match known.map(|at| &before[at].backend) {
            Some(known) if **known == fresh => known.clone(),
            _ => Arc::new(fresh),
        };
        Member { backend, weight: Weight::ONE, state: self.state, lineage: self.lineage }
    }
}
