//! Owns which fields of a pool fit its listeners: what is said of requests is refused where there are none, and what is
//! said of connections where there are datagrams. A field that did nothing would be taken for one that works.

use super::translate::Errors;
use crate::crd::pool::{self as wire, HashOnType, Introduction, LoadBalancerPoolSpec, Protocol, Timeouts};

/// Adds what no listener of the pool has a use for.
pub(super) fn check(spec: &LoadBalancerPoolSpec, errors: &mut Errors) {
    let speaks = |protocols: &[Protocol]| spec.listeners.iter().any(|it| protocols.contains(&it.protocol));
    let defaults = Timeouts::default();
    if !speaks(&[Protocol::HTTP, Protocol::HTTPS]) && !spec.listeners.is_empty() {
        without_requests(spec, &defaults, errors);
    }
    if !speaks(&[Protocol::HTTP, Protocol::HTTPS, Protocol::TCP, Protocol::TLS])
        && spec.timeouts.connect != defaults.connect
    {
        errors.add(
            "spec.timeouts.connect",
            "datagrams are sent without a connection that it could limit; leave it out",
        );
    }
    if speaks(&[Protocol::UDP]) {
        with_datagrams(&spec.backends, errors);
    }
}

/// What is said of requests.
fn without_requests(spec: &LoadBalancerPoolSpec, defaults: &Timeouts, errors: &mut Errors) {
    for (index, source) in spec.algorithm.hash_on.iter().enumerate() {
        if source.kind != HashOnType::ClientIP {
            let reason = format!(
                "{:?} is a part of requests, and no listener has any; leave it out, or use ClientIP",
                source.kind
            );
            errors.add(format!("spec.algorithm.hashOn[{index}]"), reason);
        }
    }
    if spec.timeouts.request != defaults.request {
        errors.add("spec.timeouts.request", "no listener has requests that it could limit; leave it out");
    }
    if spec.max_request_body_bytes > 0 {
        errors.add("spec.maxRequestBodyBytes", "no listener has requests that it could limit; leave it out");
    }
    for (index, backend) in spec.backends.iter().enumerate() {
        if backend.protocol.is_some() {
            errors.add(
                format!("spec.backends[{index}].protocol"),
                "no listener has requests that it could be for, and all else passes as it came; leave it out",
            );
        }
    }
}

/// What is said of connections.
fn with_datagrams(backends: &[wire::Backend], errors: &mut Errors) {
    for (index, backend) in backends.iter().enumerate() {
        if backend.tls.is_some() {
            errors.add(
                format!("spec.backends[{index}].tls"),
                "is for connections, and datagrams would go out in the clear; give listeners of UDP a pool without it",
            );
        }
        if backend.proxy_protocol != Introduction::Off {
            errors.add(
                format!("spec.backends[{index}].proxyProtocol"),
                "is for connections, which datagrams have none of; give listeners of UDP a pool without it",
            );
        }
    }
}
