//! Owns what an entry of `spec.backends` says: where its endpoints come from and what they speak, each Service and
//! address once.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::metadata;
use super::translate::{BackendSource, Errors, PortRef};
use crate::balance::backend::{self, BackendId, HttpVersion, Lineage, Member, State, Weight};
use crate::crd::pool::{self as wire, LoadBalancerPoolSpec};

/// The entries of a pool.
pub(super) fn backends(spec: &LoadBalancerPoolSpec, errors: &mut Errors) -> Vec<BackendSource> {
    let mut seen = Seen::default();
    let entries = spec.backends.iter().enumerate();
    entries.filter_map(|(index, entry)| backend_source(index, entry, &mut seen, errors)).collect()
}

/// Backends are told apart by Service and by address within a pool, so each may stand there once.
#[derive(Default)]
struct Seen<'a> {
    services: HashMap<&'a str, String>,
    addresses: HashMap<SocketAddr, String>,
}

fn backend_source<'a>(
    index: usize,
    entry: &'a wire::Backend,
    seen: &mut Seen<'a>,
    errors: &mut Errors,
) -> Option<BackendSource> {
    let path = format!("spec.backends[{index}]");
    let group: Arc<str> = entry.name.as_str().into();
    let http = entry.protocol.map(http_version);
    match (&entry.service, &entry.endpoints) {
        (Some(service), None) => {
            if let Some(first) = seen.services.insert(&service.name, path.clone()) {
                let reason = format!("{first} names Service {} already; join the two into one", service.name);
                errors.add(format!("{path}.service.name"), reason);
            }
            if !metadata::is_name(&service.name) {
                let reason = format!(
                    "`{}` is no name of a Service; use a-z, 0-9 and, not at its ends, -",
                    service.name
                );
                errors.add(format!("{path}.service.name"), reason);
            }
            let port = port_ref(&path, &service.port, errors)?;
            Some(BackendSource::Service { group, service: service.name.as_str().into(), port, http })
        }
        (None, Some(endpoints)) => {
            if endpoints.is_empty() {
                errors.add(format!("{path}.endpoints"), "is empty; list at least one address and port");
            }
            let entries = endpoints.iter().enumerate().filter_map(|(position, endpoint)| {
                let path = format!("{path}.endpoints[{position}]");
                member(&path, &group, http.unwrap_or_default(), endpoint, seen, errors)
            });
            let members = entries.collect();
            Some(BackendSource::Endpoints { group, members })
        }
        (Some(_), Some(_)) => {
            errors.add(path, "has both service and endpoints; set exactly one of them");
            None
        }
        (None, None) => {
            errors.add(path, "has neither service nor endpoints; set exactly one of them");
            None
        }
    }
}

fn http_version(wanted: wire::BackendProtocol) -> HttpVersion {
    match wanted {
        wire::BackendProtocol::HTTP => HttpVersion::Http1,
        wire::BackendProtocol::H2C => HttpVersion::Http2,
    }
}

fn port_ref(path: &str, port: &wire::PortRef, errors: &mut Errors) -> Option<PortRef> {
    let checked = match port {
        wire::PortRef::Number(number) => {
            u16::try_from(*number).ok().filter(|it| *it > 0).map(PortRef::Number)
        }
        wire::PortRef::Name(name) => metadata::is_name(name).then(|| PortRef::Name(name.as_str().into())),
    };
    if checked.is_none() {
        let written = match port {
            wire::PortRef::Number(number) => number.to_string(),
            wire::PortRef::Name(name) => format!("`{name}`"),
        };
        let reason = format!("{written} is not a port; use 1 to 65535 or the name of a port of the Service");
        errors.add(format!("{path}.service.port"), reason);
    }
    checked
}

fn member(
    path: &str,
    group: &Arc<str>,
    http: HttpVersion,
    endpoint: &wire::Endpoint,
    seen: &mut Seen<'_>,
    errors: &mut Errors,
) -> Option<Member> {
    let ip = endpoint.address.parse::<IpAddr>().ok().filter(|ip| is_reachable(*ip));
    if ip.is_none() {
        let reason = format!(
            "`{}` is no IP address of a host; write one such as 192.0.2.10, not a host name",
            endpoint.address
        );
        errors.add(format!("{path}.address"), reason);
    }
    if endpoint.port == 0 {
        errors.add(format!("{path}.port"), "0 is not a port; use 1 to 65535");
    }
    let weight = Weight::new(endpoint.weight);
    if weight.is_none() {
        errors.add(format!("{path}.weight"), "0 is no weight; use 1 to 10000, or remove the endpoint");
    }
    let address = SocketAddr::new(ip?, endpoint.port);
    if address.ip().to_string() != endpoint.address {
        errors.add(
            format!("{path}.address"),
            format!("`{}` is not in its canonical form; write {}", endpoint.address, address.ip()),
        );
    }
    if let Some(first) = seen.addresses.insert(address, path.to_string()) {
        errors.add(path, format!("{first} is {address} already; list each address and port once"));
    }
    let name: Arc<str> = address.to_string().into();
    let (id, group) = (BackendId(name.clone()), group.clone());
    let backend = backend::Backend { id, group, name, address, http };
    Some(Member {
        backend: Arc::new(backend),
        weight: weight?,
        state: State::Ready,
        lineage: Lineage::default(),
    })
}

fn is_reachable(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}
