//! Owns the wall between the wire and the domain: a `LoadBalancerPool` becomes a checked `Pool` and the
//! places its backends come from. Every mistake is reported with its path and what to do about it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;

use super::backends::backends;
use super::fitness;
use super::listening;
use super::metadata;
use super::tls::Secured;
use crate::balance::backend::{HttpVersion, Member};
use crate::balance::key::KeySource;
use crate::balance::pool::{self, Fill, Group, Pool, PoolId, ProxyVersion, Readiness, Sample};
use crate::balance::table::prime;
use crate::crd::duration::DurationText;
use crate::crd::pool::{self as wire, HashOnType, LoadBalancerPool, LoadBalancerPoolSpec};

/// A pool that makes sense, and where its backends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The checked policy. Nothing in it has terms of TLS yet: `equipped` gives those that ask for some theirs.
    pub pool: Arc<Pool>,
    /// One entry for each of `spec.backends`, in the order written.
    pub backends: Vec<BackendSource>,
    /// What those of the listeners and backends ask for that speak TLS.
    pub secured: Vec<Secured>,
}

/// Where the backends of a group come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendSource {
    /// The endpoints of a Service in the pool's namespace.
    Service {
        /// Name of the entry of `spec.backends`.
        group: Arc<str>,
        /// Name of the Service.
        service: Arc<str>,
        /// Port of the Service.
        port: PortRef,
        /// What its endpoints speak; what the Service's port says when absent.
        http: Option<HttpVersion>,
    },
    /// Fixed addresses, always ready.
    Endpoints {
        /// Name of the entry of `spec.backends`.
        group: Arc<str>,
        /// The addresses.
        members: Vec<Member>,
    },
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By name.
    Name(Arc<str>),
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A mistake in a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldError {
    /// Where, such as `spec.listeners[0].port`.
    pub path: String,
    /// What is wrong and what to do about it.
    pub reason: String,
}

impl FieldError {
    /// A mistake at `path`.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// The pool a resource describes, or every mistake in it.
pub fn pool(resource: &LoadBalancerPool) -> Result<Translated, Vec<FieldError>> {
    let mut errors = Errors::default();
    let spec = &resource.spec;
    fitness::check(spec, &mut errors);
    let translated = Translated {
        pool: Arc::new(Pool {
            id: id(resource),
            created_ms: created_ms(resource),
            listeners: listening::listeners(spec, &mut errors),
            groups: groups(spec, &mut errors),
            table_size: table_size(spec, &mut errors),
            fill: fill(spec.algorithm.fill),
            hash_on: hash_on(spec, &mut errors),
            readiness: readiness(spec.health.readiness),
            drain_timeout: drain_timeout(spec, &mut errors),
            timeouts: timeouts(spec, &mut errors),
            max_request_body: NonZeroU64::new(spec.max_request_body_bytes),
            access_log: access_log(spec, &mut errors),
        }),
        backends: backends(spec, &mut errors),
        secured: Secured::of(spec, &mut errors.list),
    };
    if errors.list.is_empty() { Ok(translated) } else { Err(errors.list) }
}

/// Namespace and name of a resource.
pub fn id(resource: &LoadBalancerPool) -> PoolId {
    PoolId::new(resource.namespace().as_deref().unwrap_or("default"), &resource.name_any())
}

/// Every mistake in a resource, in the order found.
#[derive(Default)]
pub(super) struct Errors {
    list: Vec<FieldError>,
}

impl Errors {
    pub(super) fn add(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        self.list.push(FieldError::new(path, reason));
    }
}

fn created_ms(resource: &LoadBalancerPool) -> u64 {
    let created = resource.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
    u64::try_from(created).unwrap_or(0)
}

/// Adds a mistake where a list has the name already.
pub(super) fn unique_name<'a>(
    seen: &mut BTreeMap<&'a str, String>,
    path: &str,
    name: &'a str,
    errors: &mut Errors,
) {
    if name.is_empty() {
        errors.add(format!("{path}.name"), "is empty; give it a name that is unique within the pool");
    } else if let Some(first) = seen.insert(name, path.to_string()) {
        errors.add(format!("{path}.name"), format!("{first} is named `{name}` already; use another name"));
    } else if !metadata::is_name(name) {
        let reason = format!("`{name}` is no name; use at most 63 of a-z, 0-9 and, not at its ends, -");
        errors.add(format!("{path}.name"), reason);
    }
}

/// Endpoints that all backends of a pool may list. While an edit cannot be served, the object holds the spec, the
/// earlier one that is in force and the seats, and etcd takes no object above 1.5 MiB; 6,144 still fit. A number in a
/// rule of the definition too.
const MAX_LISTED_ENDPOINTS: usize = 4096;

fn groups(spec: &LoadBalancerPoolSpec, errors: &mut Errors) -> Vec<Group> {
    if spec.backends.is_empty() {
        errors.add("spec.backends", "is empty; name at least one Service or list of endpoints");
    } else if spec.backends.iter().all(|backend| backend.weight == 0) {
        errors.add("spec.backends", "no backend has a weight above 0; give at least one a weight");
    }
    let listed = spec.backends.iter().flat_map(|backend| &backend.endpoints).map(Vec::len).sum::<usize>();
    if listed > MAX_LISTED_ENDPOINTS {
        let reason = format!(
            "lists {listed} endpoints, more than {MAX_LISTED_ENDPOINTS}; name a Service in place of a list, or make \
             several pools"
        );
        errors.add("spec.backends", reason);
    }
    let mut names = BTreeMap::new();
    for (index, backend) in spec.backends.iter().enumerate() {
        unique_name(&mut names, &format!("spec.backends[{index}]"), &backend.name, errors);
    }
    let checked = |it: &wire::Backend| Group {
        name: it.name.as_str().into(),
        weight: it.weight,
        tls: None,
        introduction: introduction(it.proxy_protocol),
    };
    spec.backends.iter().map(checked).collect()
}

fn introduction(wanted: wire::Introduction) -> Option<ProxyVersion> {
    match wanted {
        wire::Introduction::Off => None,
        wire::Introduction::V1 => Some(ProxyVersion::V1),
        wire::Introduction::V2 => Some(ProxyVersion::V2),
    }
}

/// Below this a table could not share out its slots among the endpoints of even a small pool.
const MIN_SIZE: u32 = 251;

fn table_size(spec: &LoadBalancerPoolSpec, errors: &mut Errors) -> Option<u32> {
    let size = spec.algorithm.table_size?;
    if !(MIN_SIZE..=prime::MAX_SIZE).contains(&size) || !prime::is_prime(size) {
        let reason = format!(
            "{size} is no prime from {MIN_SIZE} to {}; use one such as 65537, or leave it out",
            prime::MAX_SIZE
        );
        errors.add("spec.algorithm.tableSize", reason);
    }
    let slots = (size as usize).saturating_mul(spec.backends.len());
    if slots > prime::MAX_POOL_SLOTS as usize {
        let (backends, most) = (spec.backends.len(), prime::MAX_POOL_SLOTS);
        let reason = format!(
            "{size} slots for each of {backends} backends are {slots}, more than {most}; use a smaller size, or leave it out"
        );
        errors.add("spec.algorithm.tableSize", reason);
    }
    Some(size)
}

fn fill(fill: wire::Fill) -> Fill {
    match fill {
        wire::Fill::Seats => Fill::Seats,
        wire::Fill::Paper => Fill::Paper,
    }
}

fn readiness(readiness: wire::Readiness) -> Readiness {
    match readiness {
        wire::Readiness::Require => Readiness::Require,
        wire::Readiness::Ignore => Readiness::Ignore,
    }
}

fn hash_on(spec: &LoadBalancerPoolSpec, errors: &mut Errors) -> Vec<KeySource> {
    if spec.algorithm.hash_on.is_empty() {
        errors.add("spec.algorithm.hashOn", "is empty; leave it out to key requests by the client's address");
    }
    let entries = spec.algorithm.hash_on.iter().enumerate();
    entries.filter_map(|(index, entry)| key_source(index, entry, errors)).collect()
}

fn key_source(index: usize, entry: &wire::HashOn, errors: &mut Errors) -> Option<KeySource> {
    let path = format!("spec.algorithm.hashOn[{index}]");
    let mut named = |check: fn(&str) -> bool| {
        let name = entry.name.as_deref().filter(|name| check(name));
        if name.is_none() {
            let what =
                entry.name.as_deref().map_or("is missing".into(), |name| format!("`{name}` is not one"));
            errors.add(format!("{path}.name"), format!("{what}; write the name of a {}", lower(entry.kind)));
        }
        name
    };
    let source = match entry.kind {
        HashOnType::Header => KeySource::Header(named(is_token)?.to_ascii_lowercase().into()),
        HashOnType::Cookie => KeySource::Cookie(named(is_token)?.into()),
        HashOnType::Query => KeySource::Query(named(is_query_name)?.into()),
        HashOnType::ClientIP => KeySource::ClientIp,
        HashOnType::Path => KeySource::Path,
        HashOnType::Host => KeySource::Host,
    };
    let takes_name = matches!(source, KeySource::Header(_) | KeySource::Cookie(_) | KeySource::Query(_));
    if !takes_name && entry.name.is_some() {
        errors.add(format!("{path}.name"), format!("{:?} takes no name; leave it out", entry.kind));
    }
    Some(source)
}

fn lower(kind: HashOnType) -> &'static str {
    match kind {
        HashOnType::Header => "header",
        HashOnType::Cookie => "cookie",
        _ => "query parameter",
    }
}

/// A token of RFC 9110 section 5.6.2: what the names of headers and cookies are made of.
fn is_token(name: &str) -> bool {
    http::HeaderName::from_bytes(name.as_bytes()).is_ok()
}

/// Printable, and not one of the characters that end a parameter's name.
fn is_query_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"&=#".contains(&byte))
}

fn drain_timeout(spec: &LoadBalancerPoolSpec, errors: &mut Errors) -> Duration {
    duration("spec.health.drainTimeout", &spec.health.drain_timeout, DAY, errors)
}

fn timeouts(spec: &LoadBalancerPoolSpec, errors: &mut Errors) -> pool::Timeouts {
    let connect = duration("spec.timeouts.connect", &spec.timeouts.connect, Duration::from_secs(300), errors);
    if connect.is_zero() && spec.timeouts.connect.parse().is_some() {
        errors.add("spec.timeouts.connect", "no connection opens in 0s; use 1ms to 5m");
    }
    let request = duration("spec.timeouts.request", &spec.timeouts.request, DAY, errors);
    pool::Timeouts { connect, request: (!request.is_zero()).then_some(request) }
}

fn access_log(spec: &LoadBalancerPoolSpec, errors: &mut Errors) -> Option<Sample> {
    let sample = spec.access_log.as_ref()?.sample;
    if !(0.0..=1.0).contains(&sample) {
        let reason = format!("{sample} is no share; use 0 to 1, such as 0.01 for one request of a hundred");
        errors.add("spec.accessLog.sample", reason);
    }
    Sample::of(sample)
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn duration(path: &str, text: &DurationText, most: Duration, errors: &mut Errors) -> Duration {
    match text.parse() {
        Some(duration) if duration <= most => return duration,
        Some(_) => errors.add(path, format!("{} is too long; use at most {}s", text.0, most.as_secs())),
        None => errors.add(
            path,
            format!("`{}` is no duration; write whole numbers with h, m, s or ms, such as 1m30s", text.0),
        ),
    }
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use serde_json::{Value, json};

    use super::*;
    use crate::balance::pool::{Listener, Protocol, ProxyProtocol};
    use crate::balance::routes::Match;
    use crate::balance::tls::{BackendTls, CaBundle, Certificate, TlsVersion};
    use crate::source::credentials::tests::{authority, pair};
    use crate::source::credentials::{authorities, certificate};
    use crate::source::tls::{Asker, Found, Lacking, Side};

    fn resource(spec: Value) -> LoadBalancerPool {
        let metadata =
            json!({"name": "web", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:01Z"});
        serde_json::from_value(json!({
            "apiVersion": "guideway.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": metadata, "spec": spec,
        }))
        .unwrap()
    }

    fn good() -> Value {
        json!({
            "listeners": [{"name": "web", "port": 8080}],
            "backends": [
                {"name": "stable", "service": {"name": "web", "port": "http"}, "weight": 90},
                {"name": "outside", "endpoints": [{"address": "192.0.2.10", "port": 80, "weight": 2}]},
            ],
        })
    }

    /// The mistakes of the good spec with `value` in the place of the field at `pointer`.
    fn check(pointer: &str, value: Value, expected: &[(&str, &str)]) {
        let mut spec = good();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let parent = spec.pointer_mut(parent).unwrap();
        match parent {
            Value::Object(map) => drop(map.insert(field.into(), value)),
            other => other[field.parse::<usize>().unwrap()] = value,
        }
        let errors = pool(&resource(spec)).err().unwrap_or_default();
        let found: Vec<(&str, &str)> =
            errors.iter().map(|error| (error.path.as_str(), error.reason.as_str())).collect();
        assert_eq!(found, expected, "{pointer}");
    }

    #[test]
    fn a_good_pool_is_translated_with_its_defaults() {
        let translated = pool(&resource(good())).unwrap();
        let it = &translated.pool;
        assert_eq!(it.id.to_string(), "shop/web");
        assert_eq!(it.created_ms, 1_767_225_601_000);
        let (name, proxy_protocol) = ("web".into(), ProxyProtocol::Off);
        assert_eq!(
            it.listeners,
            [Listener {
                name,
                port: 8080,
                protocol: Protocol::Http,
                proxy_protocol,
                tls: None,
                matches: vec![Match::all()]
            }]
        );
        assert_eq!(it.groups[0], Group { name: "stable".into(), weight: 90, tls: None, introduction: None });
        assert_eq!(it.groups[1], Group { name: "outside".into(), weight: 1, tls: None, introduction: None });
        assert_eq!((it.table_size, it.fill, it.readiness), (None, Fill::Seats, Readiness::Require));
        assert_eq!(it.hash_on, [KeySource::ClientIp]);
        assert_eq!(it.drain_timeout, Duration::from_secs(60));
        assert_eq!(it.timeouts, pool::Timeouts::default());
        assert_eq!((it.max_request_body, it.access_log), (None, None));
        let service = BackendSource::Service {
            group: "stable".into(),
            service: "web".into(),
            port: PortRef::Name("http".into()),
            http: None,
        };
        assert_eq!(translated.backends[0], service);
        let BackendSource::Endpoints { members, .. } = &translated.backends[1] else { panic!("endpoints") };
        assert_eq!(members[0].backend.id.as_str(), "192.0.2.10:80");
        assert_eq!((members[0].weight.get(), members[0].backend.http), (2, HttpVersion::Http1));
    }

    #[test]
    fn a_backend_speaks_what_its_entry_says() {
        let mut spec = good();
        spec["backends"][0]["protocol"] = json!("HTTP");
        spec["backends"][1]["protocol"] = json!("H2C");
        let translated = pool(&resource(spec)).unwrap();
        let BackendSource::Service { http, .. } = &translated.backends[0] else { panic!("service") };
        assert_eq!(*http, Some(HttpVersion::Http1));
        let BackendSource::Endpoints { members, .. } = &translated.backends[1] else { panic!("endpoints") };
        assert!(members.iter().all(|member| member.backend.http == HttpVersion::Http2));
    }

    #[test]
    fn the_definition_admits_the_table_sizes_that_can_be_built() {
        let schema = crate::crd::manifest::schema().unwrap();
        let size = &schema["properties"]["spec"]["properties"]["algorithm"]["properties"]["tableSize"];
        assert_eq!((&size["minimum"], &size["maximum"]), (&json!(MIN_SIZE), &json!(prime::MAX_SIZE)));
        let validator = kube::core::cel::Validator::new();
        let squares = [4091 * 4091, 4093 * 4093, 2399 * 2411, 251 * 65_537];
        for number in (251..500).chain(squares).chain([65_535, 65_537, 1_048_583, prime::MAX_SIZE]) {
            let admitted = validator.validate(size, &json!(number), None).is_ok();
            assert_eq!(admitted, prime::is_prime(number), "{number}");
        }
    }

    #[test]
    fn all_tables_of_a_pool_together_have_a_limit() {
        let validator = kube::core::cel::Validator::new();
        let schema = crate::crd::manifest::schema().unwrap();
        let check = |size: u32, backends: usize, is_right: bool| {
            let mut spec = good();
            spec["algorithm"] = json!({"tableSize": size});
            let backend = |it| json!({"name": format!("b{it}"), "endpoints": [{"address": "192.0.2.1", "port": 80 + it}]});
            spec["backends"] = (0..backends).map(backend).collect();
            assert_eq!(pool(&resource(spec.clone())).is_ok(), is_right, "{size} x {backends}");
            for backend in spec["backends"].as_array_mut().unwrap() {
                backend["weight"] = json!(1);
            }
            let spec = json!({"metadata": {"name": "a"}, "spec": spec});
            let admitted = validator.validate(&schema, &spec, None);
            assert_eq!(admitted.is_ok(), is_right, "{size} x {backends}: {admitted:?}");
        };
        check(prime::MAX_SIZE, 1, true);
        check(prime::MAX_SIZE, 2, false);
        check(524_287, 32, true);
        check(524_309, 32, false);
    }

    #[test]
    fn a_listener_is_for_each_of_its_hosts_with_each_of_its_paths() {
        let mut spec = good();
        spec["listeners"] =
            json!([{"name": "a", "port": 80, "hostnames": ["a.b", "*.b"], "paths": ["/x/", "/x", "/y"]}]);
        let it = pool(&resource(spec)).unwrap().pool;
        let told: Vec<String> = it.listeners[0].matches.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["host *.b path /x", "host *.b path /y", "host a.b path /x", "host a.b path /y"]);
        assert_eq!((it.listeners.len(), it.listeners[0].port), (1, 80));
    }

    #[test]
    fn header_names_are_lowered_and_a_request_timeout_of_zero_is_none() {
        let mut spec = good();
        spec["algorithm"] =
            json!({"hashOn": [{"type": "Header", "name": "X-User"}, {"type": "Cookie", "name": "SID"}]});
        spec["timeouts"] = json!({"request": "0s"});
        let it = pool(&resource(spec)).unwrap().pool;
        assert_eq!(it.hash_on, [KeySource::Header("x-user".into()), KeySource::Cookie("SID".into())]);
        assert_eq!(it.timeouts.request, None);
    }

    #[test]
    fn what_is_said_of_requests_or_connections_fits_a_listener_that_has_some() {
        check(
            "/listeners",
            json!([
                {"name": "a", "port": 53, "protocol": "UDP", "proxyProtocol": "Accept"},
                {"name": "b", "port": 53, "protocol": "TCP", "hostnames": ["a.b"]},
                {"name": "c", "port": 53},
            ]),
            &[
                (
                    "spec.listeners[0].proxyProtocol",
                    "UDP has no connections that could begin with it; leave it out",
                ),
                (
                    "spec.listeners[1].hostnames",
                    "TCP has no requests to tell apart; leave it out, or use HTTP or HTTPS",
                ),
                ("spec.listeners[2].port", "spec.listeners[1] has port 53 already; use another one"),
            ],
        );
    }

    #[test]
    fn what_no_listener_has_a_use_for_is_refused() {
        let mut spec = good();
        spec["listeners"][0]["protocol"] = json!("UDP");
        spec["timeouts"] = json!({"connect": "2s", "request": "0s"});
        spec["algorithm"] = json!({"hashOn": [{"type": "ClientIP"}, {"type": "Host"}]});
        spec["maxRequestBodyBytes"] = json!(1);
        spec["backends"][0]["protocol"] = json!("HTTP");
        spec["backends"][1]["tls"] = json!({"serverName": "web.test", "ca": {"name": "a"}});
        spec["backends"][1]["proxyProtocol"] = json!("V1");
        let told = |spec: &Value| {
            let errors = pool(&resource(spec.clone())).err().unwrap_or_default();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let of_requests = [
            "spec.algorithm.hashOn[1]: Host is a part of requests, and no listener has any; leave it out, or use ClientIP",
            "spec.timeouts.request: no listener has requests that it could limit; leave it out",
            "spec.maxRequestBodyBytes: no listener has requests that it could limit; leave it out",
            "spec.backends[0].protocol: no listener has requests that it could be for, and all else passes as it came; \
             leave it out",
        ];
        let of_connections = [
            "spec.timeouts.connect: datagrams are sent without a connection that it could limit; leave it out",
        ];
        let in_the_clear = [
            "spec.backends[1].tls: is for connections, and datagrams would go out in the clear; give listeners of UDP a \
             pool without it",
            "spec.backends[1].proxyProtocol: is for connections, which datagrams have none of; give listeners of UDP a \
             pool without it",
        ];
        assert_eq!(told(&spec), [&of_requests[..], &of_connections, &in_the_clear].concat());
        spec["listeners"][0]["protocol"] = json!("TCP");
        assert_eq!(told(&spec), of_requests);
        let also = json!({"name": "also", "port": 53, "protocol": "UDP"});
        spec["listeners"].as_array_mut().unwrap().push(also);
        assert_eq!(told(&spec), [&of_requests[..], &in_the_clear].concat());
        spec["listeners"][0]["protocol"] = json!("HTTP");
        assert_eq!(told(&spec), in_the_clear);
        spec["listeners"].as_array_mut().unwrap().pop();
        assert!(told(&spec).is_empty());
    }

    #[test]
    fn every_mistake_names_its_field_and_the_way_out() {
        check(
            "/listeners",
            json!([]),
            &[("spec.listeners", "is empty; name at least one port to listen on")],
        );
        check(
            "/listeners",
            json!([{"name": "a", "port": 80}, {"name": "a", "port": 80}, {"name": "", "port": 0}]),
            &[
                ("spec.listeners[1].name", "spec.listeners[0] is named `a` already; use another name"),
                ("spec.listeners[1].port", "spec.listeners[0] has port 80 already; use another one"),
                ("spec.listeners[2].name", "is empty; give it a name that is unique within the pool"),
                ("spec.listeners[2].port", "0 is not a port; use 1 to 65535"),
            ],
        );
        check(
            "/listeners",
            json!([{"name": "a", "port": 80, "hostnames": ["Shop"], "paths": ["api", "/a?b", "/x/%2E./y"]}]),
            &[
                (
                    "spec.listeners[0].hostnames[0]",
                    "`Shop` is no hostname; write a name in lower case, or `*.` and a name",
                ),
                ("spec.listeners[0].paths[0]", "`api` does not begin with `/`; write the whole path"),
                (
                    "spec.listeners[0].paths[1]",
                    "`/a?b` has characters that no path has; write them as %XX, without a query",
                ),
                (
                    "spec.listeners[0].paths[2]",
                    "`/x/%2E./y` has a segment `.` or `..`, which requests are rid of; write the path without it",
                ),
            ],
        );
        check(
            "/algorithm",
            json!({"tableSize": 65535}),
            &[(
                "spec.algorithm.tableSize",
                "65535 is no prime from 251 to 16777213; use one such as 65537, or leave it out",
            )],
        );
        check(
            "/algorithm",
            json!({"hashOn": [{"type": "Header"}, {"type": "Cookie", "name": "a;b"}, {"type": "Path", "name": "x"}]}),
            &[
                ("spec.algorithm.hashOn[0].name", "is missing; write the name of a header"),
                ("spec.algorithm.hashOn[1].name", "`a;b` is not one; write the name of a cookie"),
                ("spec.algorithm.hashOn[2].name", "Path takes no name; leave it out"),
            ],
        );
        check(
            "/timeouts",
            json!({"connect": "0s", "request": "5"}),
            &[
                ("spec.timeouts.connect", "no connection opens in 0s; use 1ms to 5m"),
                (
                    "spec.timeouts.request",
                    "`5` is no duration; write whole numbers with h, m, s or ms, such as 1m30s",
                ),
            ],
        );
        check(
            "/health",
            json!({"drainTimeout": "25h"}),
            &[("spec.health.drainTimeout", "25h is too long; use at most 86400s")],
        );
    }

    #[test]
    fn names_are_those_that_kubernetes_takes() {
        check(
            "/listeners",
            json!([{"name": "Web", "port": 80}]),
            &[(
                "spec.listeners[0].name",
                "`Web` is no name; use at most 63 of a-z, 0-9 and, not at its ends, -",
            )],
        );
        let service = json!({"name": "../web", "port": "80_"});
        let tls = json!({
            "serverName": "web.test", "ca": {"name": "../ca"}, "clientCertificate": {"name": "A"},
        });
        let of_secrets = "is no name of a Secret; use a-z, 0-9 and, not at its ends, - and .";
        check(
            "/backends/0",
            json!({"name": "a~b", "service": service, "tls": tls}),
            &[
                (
                    "spec.backends[0].name",
                    "`a~b` is no name; use at most 63 of a-z, 0-9 and, not at its ends, -",
                ),
                (
                    "spec.backends[0].service.name",
                    "`../web` is no name of a Service; use a-z, 0-9 and, not at its ends, -",
                ),
                (
                    "spec.backends[0].service.port",
                    "`80_` is not a port; use 1 to 65535 or the name of a port of the Service",
                ),
                ("spec.backends[0].tls.clientCertificate.name", &format!("`A` {of_secrets}")),
                ("spec.backends[0].tls.ca.name", &format!("`../ca` {of_secrets}")),
            ],
        );
    }

    #[test]
    fn tls_is_for_https_and_https_needs_it() {
        let check_listener = |more: Value, expected: &[(&str, &str)]| {
            let mut listener = json!({"name": "a", "port": 80});
            listener.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            check("/listeners", json!([listener]), expected);
        };
        let tls = |more: Value| json!({"protocol": "HTTPS", "tls": more});
        check_listener(tls(json!({"secretRefs": [{"name": "a"}], "clientCA": {"name": "b"}})), &[]);
        check_listener(tls(json!({"certificateFiles": [{"certificate": "a", "key": "b"}]})), &[]);
        check_listener(
            json!({"protocol": "HTTPS"}),
            &[("spec.listeners[0].tls", "is missing; name a Secret with the certificate in tls.secretRefs")],
        );
        check_listener(
            json!({"tls": {"secretRefs": [{"name": "a"}]}}),
            &[(
                "spec.listeners[0].tls",
                "is for HTTPS and TLS; set protocol to one of them, or leave tls out",
            )],
        );
        check_listener(
            tls(json!({"clientCA": {"name": "b"}, "clientCAFile": "b"})),
            &[
                (
                    "spec.listeners[0].tls.secretRefs",
                    "is missing; name at least one Secret with a certificate",
                ),
                ("spec.listeners[0].tls.clientCAFile", "stands beside clientCA; put both bundles into one"),
            ],
        );
    }

    #[test]
    fn bodies_have_a_limit_if_the_pool_sets_one() {
        for (bytes, limit) in [(0, None), (1, NonZeroU64::new(1)), (1_u64 << 40, NonZeroU64::new(1 << 40))] {
            let mut spec = good();
            spec["maxRequestBodyBytes"] = json!(bytes);
            assert_eq!(pool(&resource(spec)).unwrap().pool.max_request_body, limit);
        }
    }

    #[test]
    fn an_access_log_is_of_all_requests_or_of_a_share_of_them() {
        for (written, sample) in [
            (json!({}), Sample::of(1.0)),
            (json!({"sample": 1}), Sample::of(1.0)),
            (json!({"sample": 0.25}), Sample::of(0.25)),
            (json!({"sample": 0}), None),
        ] {
            let mut spec = good();
            spec["accessLog"] = written;
            assert_eq!(pool(&resource(spec.clone())).unwrap().pool.access_log, sample, "{spec}");
        }
        check(
            "/accessLog",
            json!({"sample": 1.5}),
            &[(
                "spec.accessLog.sample",
                "1.5 is no share; use 0 to 1, such as 0.01 for one request of a hundred",
            )],
        );
    }

    #[test]
    fn what_a_listener_asks_of_tls_is_kept_until_its_credentials_are_there() {
        let mut spec = good();
        let tls = json!({"secretRefs": [{"name": "a"}, {"name": "b"}], "minVersion": "TLS13", "clientCA": {"name": "c"}});
        let secure = json!({"name": "tls", "port": 8443, "protocol": "HTTPS", "tls": tls});
        spec["listeners"].as_array_mut().unwrap().push(secure);
        let it = pool(&resource(spec)).unwrap();
        let side = Side::Listener { min_version: TlsVersion::V13 };
        assert_eq!(it.secured[0].asker, Asker { name: "tls".into(), side });
        let names: Vec<&str> = it.secured[0].secret_names().map(|name| &**name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let ports = |pool: &Pool| pool.listeners.iter().map(|it| it.port).collect::<Vec<_>>();
        assert_eq!(ports(&it.pool), [8080, 8443]);
        let unserved = it.equipped(None, Lacking::Unserved, |_| Found::default());
        assert_eq!(ports(&unserved), [8080], "never in the clear");
        let looked_at = it.equipped(None, Lacking::LookedAt, |_| Found::default());
        assert_eq!(ports(&looked_at), [8080, 8443]);
    }

    #[test]
    fn a_backend_that_lacks_what_it_asks_of_tls_takes_no_requests() {
        let mut spec = good();
        spec["backends"][0]["tls"] = json!({
            "serverName": "web.shop.svc", "ca": {"name": "a"}, "clientCertificate": {"name": "b"},
        });
        let it = pool(&resource(spec)).unwrap();
        let names: Vec<&str> = it.secured[0].secret_names().map(|name| &**name).collect();
        assert_eq!(names, ["b", "a"]);
        let pair = pair(&["client.test"]);
        let identity = certificate(pair.chain.as_bytes(), pair.key.as_bytes(), None).unwrap().certificate;
        let ca = Arc::new(authorities(authority("a").as_bytes()).unwrap());
        let equipped = |lacking, certificates: &[&Arc<Certificate>], ca: Option<&Arc<CaBundle>>| {
            let certificates = certificates.iter().copied().cloned().collect();
            let found = Found { certificates, authorities: ca.cloned() };
            let mut found = Some(found);
            it.equipped(None, lacking, |_| found.take().unwrap()).groups.clone()
        };
        for groups in [
            equipped(Lacking::Unserved, &[], None),
            equipped(Lacking::Unserved, &[&identity], None),
            equipped(Lacking::Unserved, &[], Some(&ca)),
        ] {
            assert_eq!(groups[0], Group { name: "stable".into(), weight: 0, tls: None, introduction: None });
            assert_eq!(groups[1], it.pool.groups[1], "it alone");
        }
        assert_eq!(equipped(Lacking::LookedAt, &[], None), it.pool.groups);
        let whole = equipped(Lacking::Unserved, &[&identity], Some(&ca));
        let server_name = ServerName::try_from("web.shop.svc").unwrap();
        let tls = Some(Arc::new(BackendTls { server_name, ca, identity: Some(identity) }));
        assert_eq!(whole[0], Group { name: "stable".into(), weight: 90, tls, introduction: None });
    }

    #[test]
    fn equal_terms_are_used_again() {
        let mut spec = good();
        spec["backends"][0]["tls"] = json!({"serverName": "web.shop.svc", "ca": {"name": "a"}});
        let it = pool(&resource(spec.clone())).unwrap();
        let pem = authority("a");
        let found = |_: &Secured| Found {
            authorities: Some(Arc::new(authorities(pem.as_bytes()).unwrap())),
            ..Found::default()
        };
        let first = it.equipped(None, Lacking::Unserved, found);
        assert!(Arc::ptr_eq(&first, &it.equipped(Some(&first), Lacking::Unserved, found)));
        spec["backends"][0]["weight"] = json!(5);
        let second = pool(&resource(spec)).unwrap().equipped(Some(&first), Lacking::Unserved, found);
        let tls = |pool: &Pool| pool.groups[0].tls.clone().unwrap();
        assert!(Arc::ptr_eq(&tls(&first), &tls(&second)), "connections stay in use");
    }

    #[test]
    fn tls_of_a_backend_names_authorities_and_a_dns_name() {
        let check_tls = |tls: Value, expected: &[(&str, &str)]| {
            let service = json!({"name": "web", "port": "https"});
            check("/backends/0", json!({"name": "stable", "service": service, "tls": tls}), expected);
        };
        check_tls(json!({"serverName": "web.shop.svc", "ca": {"name": "a"}}), &[]);
        check_tls(json!({"serverName": "web.shop.svc", "caFile": "a"}), &[]);
        let missing = "is missing; name a Secret with the authorities that sign the endpoints' certificates";
        for name in ["192.0.2.1", "2001:db8::1", "*.test", ""] {
            let told = format!("`{name}` is no DNS name; write one such as web.shop.svc");
            check_tls(
                json!({"serverName": name}),
                &[("spec.backends[0].tls.ca", missing), ("spec.backends[0].tls.serverName", &told)],
            );
        }
        let files = json!({"certificate": "a", "key": "b"});
        check_tls(
            json!({
                "serverName": "web.test", "ca": {"name": "a"}, "caFile": "a",
                "clientCertificate": {"name": "b"}, "clientCertificateFile": files,
            }),
            &[
                ("spec.backends[0].tls.caFile", "stands beside ca; put both bundles into one"),
                (
                    "spec.backends[0].tls.clientCertificateFile",
                    "stands beside clientCertificate; leave one of them out",
                ),
            ],
        );
    }

    #[test]
    fn a_backend_has_exactly_one_source_and_stands_there_once() {
        check(
            "/backends/0",
            json!({"name": "stable"}),
            &[("spec.backends[0]", "has neither service nor endpoints; set exactly one of them")],
        );
        check(
            "/backends/0",
            json!({"name": "stable", "endpoints": [
                {"address": "192.0.2.10", "port": 80}, {"address": "db.example.net", "port": 80},
                {"address": "0.0.0.0", "port": 0}, {"address": "2001:DB8::0:1", "port": 80},
            ]}),
            &[
                (
                    "spec.backends[0].endpoints[1].address",
                    "`db.example.net` is no IP address of a host; write one such as 192.0.2.10, not a host name",
                ),
                (
                    "spec.backends[0].endpoints[2].address",
                    "`0.0.0.0` is no IP address of a host; write one such as 192.0.2.10, not a host name",
                ),
                ("spec.backends[0].endpoints[2].port", "0 is not a port; use 1 to 65535"),
                (
                    "spec.backends[0].endpoints[3].address",
                    "`2001:DB8::0:1` is not in its canonical form; write 2001:db8::1",
                ),
                (
                    "spec.backends[1].endpoints[0]",
                    "spec.backends[0].endpoints[0] is 192.0.2.10:80 already; list each address and port once",
                ),
            ],
        );
        check(
            "/backends/1",
            json!({"name": "canary", "service": {"name": "web", "port": 0}}),
            &[
                (
                    "spec.backends[1].service.name",
                    "spec.backends[0] names Service web already; join the two into one",
                ),
                (
                    "spec.backends[1].service.port",
                    "0 is not a port; use 1 to 65535 or the name of a port of the Service",
                ),
            ],
        );
        let backend = |name: usize, count: usize| {
            let endpoint =
                |at| json!({"address": format!("10.{name}.{}.{}", at / 250, at % 250 + 1), "port": 80});
            json!({"name": format!("b{name}"), "endpoints": (0..count).map(endpoint).collect::<Vec<_>>()})
        };
        check("/backends", json!([backend(0, 1024), backend(1, 3072)]), &[]);
        check(
            "/backends",
            json!([backend(0, 1024), backend(1, 3073)]),
            &[(
                "spec.backends",
                "lists 4097 endpoints, more than 4096; name a Service in place of a list, or make several pools",
            )],
        );
        check(
            "/backends",
            json!([{"name": "a", "weight": 0, "service": {"name": "web", "port": 80}}]),
            &[("spec.backends", "no backend has a weight above 0; give at least one a weight")],
        );
    }
}
