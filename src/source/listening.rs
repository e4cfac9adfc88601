//! Owns the wall between the wire and the domain for the ports of a pool: what is spoken there, how connections begin,
//! and which of the requests the pool takes.

use std::collections::{BTreeMap, BTreeSet};

use super::translate::{Errors, unique_name};
use crate::balance::pool::{Listener, Protocol, ProxyProtocol};
use crate::balance::routes::{HostPattern, Match, PathPrefix};
use crate::crd::pool::{self as wire, LoadBalancerPoolSpec};

/// The ports that a pool listens on.
pub(super) fn listeners(spec: &LoadBalancerPoolSpec, errors: &mut Errors) -> Vec<Listener> {
    if spec.listeners.is_empty() {
        errors.add("spec.listeners", "is empty; name at least one port to listen on");
    }
    let (mut names, mut ports) = (BTreeMap::new(), BTreeMap::new());
    for (index, listener) in spec.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{index}]");
        unique_name(&mut names, &path, &listener.name, errors);
        if listener.port == 0 {
            errors.add(format!("{path}.port"), "0 is not a port; use 1 to 65535");
        } else if let Some(first) =
            ports.insert(protocol(listener.protocol).port(listener.port), path.clone())
        {
            errors.add(
                format!("{path}.port"),
                format!("{first} has port {} already; use another one", listener.port),
            );
        }
        unfit_fields(&path, listener, errors);
    }
    let listener = |(index, it): (usize, &wire::Listener)| Listener {
        name: it.name.as_str().into(),
        port: it.port,
        protocol: protocol(it.protocol),
        proxy_protocol: proxy_protocol(it.proxy_protocol),
        tls: None,
        matches: matches(&format!("spec.listeners[{index}]"), it, errors),
    };
    spec.listeners.iter().enumerate().map(listener).collect()
}

/// What a listener says of requests or connections, where its protocol has none.
fn unfit_fields(path: &str, listener: &wire::Listener, errors: &mut Errors) {
    let name = listener.protocol;
    for (field, is_empty) in
        [("hostnames", listener.hostnames.is_empty()), ("paths", listener.paths.is_empty())]
    {
        if protocol(name) != Protocol::Http && !is_empty {
            let reason =
                format!("{name:?} has no requests to tell apart; leave it out, or use HTTP or HTTPS");
            errors.add(format!("{path}.{field}"), reason);
        }
    }
    if protocol(name) == Protocol::Udp && listener.proxy_protocol != wire::ProxyProtocol::Off {
        errors.add(
            format!("{path}.proxyProtocol"),
            "UDP has no connections that could begin with it; leave it out",
        );
    }
}

/// What is spoken, within TLS where the listener asks for that.
fn protocol(wanted: wire::Protocol) -> Protocol {
    match wanted {
        wire::Protocol::HTTP | wire::Protocol::HTTPS => Protocol::Http,
        wire::Protocol::TCP | wire::Protocol::TLS => Protocol::Tcp,
        wire::Protocol::UDP => Protocol::Udp,
    }
}

fn proxy_protocol(wanted: wire::ProxyProtocol) -> ProxyProtocol {
    match wanted {
        wire::ProxyProtocol::Off => ProxyProtocol::Off,
        wire::ProxyProtocol::Accept => ProxyProtocol::Accept,
        wire::ProxyProtocol::Require => ProxyProtocol::Require,
    }
}

/// What a listener is for: each of its hosts with each of its paths.
fn matches(at: &str, listener: &wire::Listener, errors: &mut Errors) -> Vec<Match> {
    for (index, host) in listener.hostnames.iter().enumerate() {
        if !is_hostname(host) {
            let reason = format!("`{host}` is no hostname; write a name in lower case, or `*.` and a name");
            errors.add(format!("{at}.hostnames[{index}]"), reason);
        }
    }
    for (index, path) in listener.paths.iter().enumerate() {
        if let Some(fault) = path_fault(path) {
            errors.add(format!("{at}.paths[{index}]"), format!("`{path}` {fault}"));
        }
    }
    let hosts = if listener.hostnames.is_empty() {
        vec![HostPattern::Any]
    } else {
        listener.hostnames.iter().map(|host| HostPattern::new(host)).collect()
    };
    let paths = if listener.paths.is_empty() {
        vec![PathPrefix::all()]
    } else {
        listener.paths.iter().map(|path| PathPrefix::new(path)).collect()
    };
    let of_host =
        |host: HostPattern| paths.iter().map(move |path| Match { host: host.clone(), path: path.clone() });
    let all: BTreeSet<Match> = hosts.into_iter().flat_map(of_host).collect();
    all.into_iter().collect()
}

/// A name of DNS in lower case (RFC 1123 section 2.1), with or without `*.` in front.
fn is_hostname(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(fits) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.len() <= 253 && name.split('.').all(is_label)
}

/// What keeps a prefix from ever matching as its writer means it.
fn path_fault(path: &str) -> Option<&'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/".contains(&byte);
    match path {
        _ if !path.starts_with('/') => Some("does not begin with `/`; write the whole path"),
        _ if path.len() > 1024 => Some("is longer than 1024 bytes; shorten it"),
        _ if !path.bytes().all(fits) => {
            Some("has characters that no path has; write them as %XX, without a query")
        }
        _ if path
            .split('/')
            .any(|it| matches!(&*it.to_ascii_lowercase().replace("%2e", "."), "." | "..")) =>
        {
            Some("has a segment `.` or `..`, which requests are rid of; write the path without it")
        }
        _ => None,
    }
}
