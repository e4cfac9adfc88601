//! Owns the `LoadBalancerPool` resource as users write it. The doc comments are what `kubectl explain`
//! prints; the limits and rules are what the API server checks, so `kubectl apply` refuses what cannot work.

// The derive of `KubeSchema` repeats each type inside a function, where `pub` reaches nobody; each printer
// column is described by the same attributes.
#![allow(unreachable_pub, clippy::duplicated_attributes)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::backend::{Backend, BackendProtocol, Endpoint, Introduction, ServiceRef};
use super::duration::{self, DurationText};
pub use super::listener::{Listener, Protocol, ProxyProtocol};
pub use super::port::PortRef;
use super::status::LoadBalancerPoolStatus;

/// Spec is the traffic a pool accepts, the backends that serve it, and how each request finds its backend.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "guideway.dev",
    version = "v1alpha1",
    kind = "LoadBalancerPool",
    plural = "loadbalancerpools",
    singular = "loadbalancerpool",
    shortname = "lbp",
    category = "guideway",
    namespaced,
    status = "LoadBalancerPoolStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("the name is longer than 63 characters: shorten it, metrics and files carry it"),
    doc = "LoadBalancerPool spreads the requests of one or more ports over the backends of a pool. Requests with \
           the same key go to the same backend, also while pods roll, scale or fail.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        description = "Whether the pool serves traffic",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Endpoints",
        type_ = "string",
        description = "Endpoints that take new requests, of all endpoints",
        json_path = ".status.endpoints.summary"
    ),
    printcolumn(
        name = "Table size",
        type_ = "integer",
        description = "Slots of the lookup table",
        json_path = ".status.table.size"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Algorithm",
        type_ = "string",
        description = "How a request finds its backend",
        json_path = ".spec.algorithm.type",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        description = "Why the pool is ready or not",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(
        name = "Digest",
        type_ = "string",
        description = "Fingerprint of the table, equal on all replicas that route alike",
        json_path = ".status.table.digest",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
// What is said of requests is refused where there are none, and what is said of connections where there are only
// datagrams: a field that does nothing would be taken for one that works.
#[x_kube(validation = Rule::new("self.listeners.exists(l, l.protocol in ['HTTP', 'HTTPS']) || \
         !has(self.algorithm) || self.algorithm.hashOn.all(h, h.type == 'ClientIP')")
    .field_path(".algorithm.hashOn")
    .message("no listener has requests, and connections and datagrams have no headers, cookies, query, path or host: \
              leave hashOn out, or use ClientIP alone"))]
#[x_kube(validation = Rule::new("self.listeners.exists(l, l.protocol in ['HTTP', 'HTTPS']) || \
         !has(self.timeouts) || self.timeouts.request == '30s'")
    .field_path(".timeouts.request")
    .message("no listener has requests that it could limit: leave it out"))]
#[x_kube(validation = Rule::new("self.listeners.exists(l, l.protocol in ['HTTP', 'HTTPS']) || \
         !has(self.maxRequestBodyBytes) || self.maxRequestBodyBytes == 0")
    .field_path(".maxRequestBodyBytes")
    .message("no listener has requests that it could limit: leave it out"))]
#[x_kube(validation = Rule::new("self.listeners.exists(l, l.protocol in ['HTTP', 'HTTPS']) || \
         self.backends.all(b, !has(b.protocol))")
    .field_path(".backends")
    .message("no listener has requests that protocol could be for, and all else passes as it came: leave protocol out"))]
#[x_kube(validation = Rule::new("self.listeners.exists(l, l.protocol != 'UDP') || !has(self.timeouts) || \
         self.timeouts.connect == '1s'")
    .field_path(".timeouts.connect")
    .message("datagrams are sent without a connection that it could limit: leave it out"))]
#[x_kube(validation = Rule::new("!self.listeners.exists(l, l.protocol == 'UDP') || self.backends.all(b, !has(b.tls))")
    .field_path(".backends")
    .message("tls is for connections, and datagrams would go out in the clear: give listeners of UDP a pool without tls"))]
#[x_kube(validation = Rule::new(
        "!self.listeners.exists(l, l.protocol == 'UDP') || self.backends.all(b, b.proxyProtocol == 'Off')")
    .field_path(".backends")
    .message("proxyProtocol is for connections, which datagrams have none of: give listeners of UDP a pool without it"))]
// A size that is too large for any pool is told once, at its own field.
#[x_kube(validation = Rule::new(
        "!has(self.algorithm) || !has(self.algorithm.tableSize) || self.algorithm.tableSize > 16777213 || \
         self.algorithm.tableSize * size(self.backends) <= 16777216")
    .message("tableSize times the number of backends is above 16777216: use a smaller tableSize, or leave it out"))]
pub struct LoadBalancerPoolSpec {
    /// Listeners are the ports the pool opens on every Guideway replica. Pools may share a port: the host of a
    /// request decides, then its path. The pool that has a host and path of a port
    /// keeps it, of two that come at once the older one; the other says so in its conditions, and an edit that asks
    /// for it leaves the earlier spec in force. A port without requests, of protocol TCP or UDP, belongs to one pool.
    /// The same number may be opened once for UDP and once for the other protocols.
    #[schemars(length(min = 1, max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new(
        "self.all(l, self.exists_one(m, m.port == l.port && (m.protocol == 'UDP') == (l.protocol == 'UDP')))")
        .message("every listener needs a port of its own: give each of them another port, or name the hosts and \
                  paths of both in one"))]
    pub listeners: Vec<Listener>,

    /// Backends share the pool's traffic in proportion to their weights. Each of them names a Service or
    /// lists endpoints.
    #[schemars(length(min = 1, max = 32))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.exists(b, b.weight > 0)")
        .message("no backend has a weight above 0, so no request could be served: give at least one a weight"))]
    #[x_kube(validation = Rule::new(
        "self.all(b, !has(b.service) || self.exists_one(c, has(c.service) && c.service.name == b.service.name))")
        .message("a Service may be named by one backend only: join those backends into one"))]
    #[x_kube(validation = Rule::new(
        "self.map(b, has(b.endpoints) ? size(b.endpoints) : 0).sum() <= 4096")
        .message("the backends list more than 4096 endpoints together: name a Service in place of a list (one without \
                  a selector and with EndpointSlices of your own where there are no pods), or make several pools"))]
    pub backends: Vec<Backend>,

    /// Algorithm decides which backend serves a request.
    #[serde(default)]
    pub algorithm: Algorithm,

    /// Health decides which endpoints may take new requests.
    #[serde(default)]
    pub health: Health,

    /// Timeouts limit how long a request may wait.
    #[serde(default)]
    pub timeouts: Timeouts,

    /// MaxRequestBodyBytes is how many bytes the body of a request may have; what frames it does not count. A request
    /// with a longer one is answered with 413, before it is sent on where it states its length, and its connection or
    /// stream ends. 0, the default, sets no limit.
    #[serde(default)]
    pub max_request_body_bytes: u64,

    /// AccessLog asks for a line in the access log for requests of the pool, and for connections and flows of its TCP,
    /// TLS and UDP listeners as they end. Without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

/// How a request finds its backend.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Algorithm {
    /// Type of the algorithm. Maglev looks the request's key up in a table, so that equal keys meet the same
    /// backend on every replica, and few keys move when backends come and go.
    #[serde(rename = "type", default)]
    pub kind: AlgorithmType,

    /// TableSize is the number of slots in the lookup table, a prime from 251 to 16777213; 65537 is a good one
    /// up to 600 endpoints. More slots spread the load more evenly. Each backend has a table of this size, and one more
    /// shares out the requests among them; a slot takes 2 bytes, and 6 to 10 more for what the next table starts
    /// from, which pools with the same size and number of endpoints share. All backends of a pool have 16777216 slots
    /// at most. When it is absent, a prime of at least 100 slots for each endpoint is chosen: 65537 up to 655 endpoints, 131071 up to 1310, and
    /// so on. A table of another size moves nearly all keys, so name a size if the pool may grow over such a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 251, max = 16_777_213))]
    #[x_kube(validation = Rule::new(PRIME)
        .message("tableSize is not a prime: use one such as 1021, 65537, 131071, 262147, 524309 or 1048583, \
                  or leave it out"))]
    pub table_size: Option<u32>,

    /// Fill is how the table is filled. Seats gives every endpoint a seat that its successor inherits: joins and
    /// failures move the least number of keys, and a rolling update with maxUnavailable 0 moves each key
    /// once at most. Paper is the listing of the Maglev paper over the ready endpoints, for comparison with other implementations.
    #[serde(default)]
    pub fill: Fill,

    /// HashOn lists what a request's key is made of; the first entry that the request has decides, and an empty value
    /// counts as none. A request with none of them is keyed by its client's address, and so are the connections and flows of TCP, TLS and UDP
    /// listeners; a pool that has no others takes ClientIP alone.
    #[serde(default = "client_ip")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub hash_on: Vec<HashOn>,
}

/// Trial division by 2, 3 and every 6k-1, 6k+1 up to 4201; the next prime's square is above the largest size. Its
/// cost is 1,400 divisions at most, far below the API server's limit.
const PRIME: &str = "self % 2 != 0 && self % 3 != 0 && \
    [0, 1, 2, 3, 4, 5, 6].all(a, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].all(b, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9].all(c, \
    (self % (600 * a + 60 * b + 6 * c + 5) != 0 || self == 600 * a + 60 * b + 6 * c + 5) && \
    (self % (600 * a + 60 * b + 6 * c + 7) != 0 || self == 600 * a + 60 * b + 6 * c + 7))))";

/// The algorithms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AlgorithmType {
    /// Maglev hashing.
    #[default]
    Maglev,
}

/// How the table is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Fill {
    /// Over seats that successors inherit.
    #[default]
    Seats,
    /// As the Maglev paper lists it.
    Paper,
}

/// A part of a request.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type in ['Header', 'Cookie', 'Query'] == has(self.name)")
    .message("Header, Cookie and Query need a name; ClientIP, Path and Host take none"))]
#[x_kube(validation = Rule::new(
        "!has(self.name) || self.type == 'Query' || self.name.matches('^[-!#$%&*+.^_`|~0-9A-Za-z]+$')")
    .field_path(".name")
    .message("the name of a header or cookie consists of letters, digits and -!#$%&*+.^_`|~"))]
#[x_kube(validation = Rule::new(
        "!has(self.name) || self.type != 'Query' || (self.name.matches('^[!-~]+$') && !self.name.matches('[&=#]'))")
    .field_path(".name")
    .message("this is no name of a query parameter: write it as it stands in URLs, without spaces, &, = and #"))]
pub struct HashOn {
    /// Type is the part of the request. ClientIP is the address of the connection's other end, Header a header's
    /// value, Cookie a cookie's value, Query the value of a query parameter as it stands in the URL, Path the path
    /// without the query, Host the host without the port.
    #[serde(rename = "type")]
    pub kind: HashOnType,

    /// Name of the header, cookie or query parameter. Header names compare without case.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub name: Option<String>,
}

/// The parts of a request that a key can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HashOnType {
    /// The client's address.
    ClientIP,
    /// A header.
    Header,
    /// A cookie.
    Cookie,
    /// A query parameter.
    Query,
    /// The path without the query.
    Path,
    /// The host without the port.
    Host,
}

/// Which endpoints may take new requests.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// Readiness says whether pod readiness decides. With Require only ready endpoints take new requests. With
    /// Ignore every endpoint that is not terminating does. While a pool has none of them, its terminating endpoints
    /// that still serve do.
    #[serde(default)]
    pub readiness: Readiness,

    /// DrainTimeout is how long requests in flight and connections of TCP listeners may go on at an endpoint that left
    /// the pool, up to 24h. 0s ends them at once. A flow of UDP goes on at one that terminates. With its next datagram
    /// it leaves one that is gone, or that is not ready and has not answered for 5 seconds.
    #[serde(default = "drain_timeout")]
    #[x_kube(validation = duration::limit("duration(self) <= duration('24h')", "drainTimeout is at most 24h"))]
    pub drain_timeout: DurationText,
}

/// Whether pod readiness decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Readiness {
    /// Only ready endpoints take new requests.
    #[default]
    Require,
    /// Every endpoint that is not terminating does.
    Ignore,
}

/// How long a request may wait.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Connect is how long opening a connection to an endpoint may take before the next one is tried, 1ms to 5m.
    #[serde(default = "connect_timeout")]
    #[x_kube(validation = duration::limit(
        "duration(self) >= duration('1ms') && duration(self) <= duration('5m')", "connect is 1ms to 5m"))]
    pub connect: DurationText,

    /// Request is how long the head of an HTTP response may take from the last byte of its request on, all tries at
    /// endpoints and their connections included, up to 24h. 0s sets no limit.
    #[serde(default = "request_timeout")]
    #[x_kube(validation = duration::limit(
        "duration(self) <= duration('24h')", "request is at most 24h; 0s sets no limit"))]
    pub request: DurationText,
}

/// Which requests, connections and flows get a line in the access log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessLog {
    /// Sample is the share of them that get a line, 0 to 1: 1 is all of them, 0.01 one of a hundred, chosen at random.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample: f64,
}

impl Default for Algorithm {
    fn default() -> Self {
        Self { kind: AlgorithmType::default(), table_size: None, fill: Fill::default(), hash_on: client_ip() }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self { readiness: Readiness::default(), drain_timeout: drain_timeout() }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: connect_timeout(), request: request_timeout() }
    }
}

fn all() -> f64 {
    1.0
}

fn client_ip() -> Vec<HashOn> {
    vec![HashOn { kind: HashOnType::ClientIP, name: None }]
}

fn drain_timeout() -> DurationText {
    "60s".into()
}

fn connect_timeout() -> DurationText {
    "1s".into()
}

fn request_timeout() -> DurationText {
    "30s".into()
}
