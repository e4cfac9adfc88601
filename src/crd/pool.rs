//! Owns the `LoadBalancerPool` resource as users write it. The doc comments are what `kubectl explain`
//! prints; the limits and rules are what the API server checks, so `kubectl apply` refuses what cannot work.

// The derive of `KubeSchema` repeats each type inside a function, where `pub` reaches nobody; each printer
// column is described by the same attributes.
#![allow(unreachable_pub, clippy::duplicated_attributes)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::{self, DurationText};
pub use super::port::PortRef;
use super::rules;
use super::status::LoadBalancerPoolStatus;
use super::tls::{BackendTls, ListenerTls};

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
// A size that is too large for any pool is told once, at its own field.
#[x_kube(validation = Rule::new(
        "!has(self.algorithm) || !has(self.algorithm.tableSize) || self.algorithm.tableSize > 16777213 || \
         self.algorithm.tableSize * size(self.backends) <= 16777216")
    .message("tableSize times the number of backends is above 16777216: use a smaller tableSize, or leave it out"))]
pub struct LoadBalancerPoolSpec {
    /// Listeners are the ports the pool opens on every Guideway replica. Pools may share a port: the host of a
    /// request decides, then its path. The pool that has a host and path of a port
    /// keeps it, of two that come at once the older one; the other says so in its conditions, and an edit that asks
    /// for it leaves the earlier spec in force.
    #[schemars(length(min = 1, max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(validation = Rule::new("self.all(l, self.exists_one(m, m.port == l.port))")
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

    /// AccessLog asks for a line in the access log for requests of the pool. Without it there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

/// A port the pool opens.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.protocol != 'HTTPS' || has(self.tls)")
    .message("HTTPS needs tls: name a Secret with the certificate in tls.secretRefs"))]
#[x_kube(validation = Rule::new("self.protocol == 'HTTPS' || !has(self.tls)")
    .message("tls is for HTTPS: set protocol to HTTPS, or leave tls out"))]
pub struct Listener {
    /// Name of the listener, unique within the pool.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub name: String,

    /// Port is the TCP port that is opened, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,

    /// Protocol spoken on the port. HTTP is HTTP/1.1 without TLS, HTTPS is HTTP within TLS.
    #[serde(default)]
    pub protocol: Protocol,

    /// Tls says which certificates the port shows and what it asks of its clients, where the protocol is HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,

    /// ProxyProtocol says whether connections begin with a header of the PROXY protocol, version 1 or 2, in which a
    /// balancer before Guideway tells who the client is. Off takes none; Accept takes connections with and without,
    /// so that whoever can connect can claim any address; Require takes none without. It is the same for all pools
    /// that share the port.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,

    /// Hostnames are the hosts whose requests the pool takes on this port: a name, or *. and a name for all names
    /// below it. All hosts, where there are none. The most specific one decides among pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    #[schemars(inner(length(min = 1, max = 253)), transform = rules::hostnames)]
    pub hostnames: Vec<String>,

    /// Paths are the prefixes of the paths whose requests the pool takes, by whole segments: /api is for /api and
    /// /api/x and not for /apis. All paths, where there are none. The longest one decides among pools.
    /// A letter, a digit, -, ., _ and ~ are the same encoded, here as in requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    #[schemars(inner(length(min = 1, max = 1024)), transform = rules::paths)]
    pub paths: Vec<String>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// HTTP/1.1 without TLS.
    #[default]
    HTTP,
    /// HTTP within TLS.
    HTTPS,
}

/// Whether connections begin with a header of the PROXY protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProxyProtocol {
    /// They do not.
    #[default]
    Off,
    /// They may.
    Accept,
    /// They must.
    Require,
}

/// A named share of the pool's traffic.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.service) != has(self.endpoints)")
    .message("set exactly one of service and endpoints"))]
pub struct Backend {
    /// Name of the backend, unique within the pool. Metrics and status carry it.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub name: String,

    /// Weight of the backend relative to the pool's other backends, 0 to 10000. A backend takes its weight
    /// divided by the sum of all weights, however many endpoints it has. 0 takes no traffic.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10000))]
    pub weight: u16,

    /// Protocol that the endpoints speak, HTTP (HTTP/1.1) or H2C (HTTP/2 from the first byte on, as gRPC has it; within
    /// TLS where tls is set). When it is absent, the appProtocol of the Service's port decides: kubernetes.io/h2c, h2c and grpc mean H2C, and all else HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<BackendProtocol>,

    /// Service whose endpoints serve this share. It lies in the pool's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,

    /// Endpoints lists fixed addresses that serve this share. They count as ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address", "port"]))]
    pub endpoints: Option<Vec<Endpoint>>,

    /// Tls encrypts the connections to the backend's endpoints and says by whose word these are believed. Without it
    /// nothing is encrypted. An endpoint that cannot prove who it is gets no request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
}

/// What a backend's endpoints speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackendProtocol {
    /// HTTP/1.1.
    HTTP,
    /// HTTP/2, from the first byte on.
    H2C,
}

/// A Service and one of its ports.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Name of a Service in the pool's namespace. Its cluster IP is not used: requests go to the pods.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub name: String,

    /// Port of the Service, by number or by name.
    pub port: PortRef,
}

/// A fixed address that serves requests.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address is an IPv4 or IPv6 address in its canonical form, such as 192.0.2.10 or 2001:db8::10. In a cluster
    /// it is neither loopback nor link-local: that would be Guideway's own pod or node.
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new(
            "isIP(self) && (ip(self).isGlobalUnicast() || ip(self).isLoopback() || ip(self).isLinkLocalUnicast())")
        .message("address is no IP address of a host: write one such as 192.0.2.10 or 2001:db8::10, not a host name"))]
    #[x_kube(validation = Rule::new("!isIP(self) || ip.isCanonical(self)")
        .message("address is not in its canonical form: write it in small letters and as short as it gets, such as 2001:db8::10"))]
    #[x_kube(validation = rules::in_a_cluster(
        "!isIP(self) || !(ip(self).isLoopback() || ip(self).isLinkLocalUnicast())", None,
        "this address means Guideway's own pod or node: in a cluster write one that is the same from everywhere"))]
    pub address: String,

    /// Port the endpoint listens on, 1 to 65535.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,

    /// Weight of the endpoint relative to the backend's other endpoints, 1 to 10000.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10000))]
    pub weight: u16,
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

    /// HashOn lists what a request's key is made of; the first entry that the request has decides. A request with
    /// none of them is keyed by its client's address.
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

    /// DrainTimeout is how long requests in flight may go on at an endpoint that left the pool, up to 24h. 0s ends
    /// them at once.
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

    /// Request is how long the head of a response may take from the last byte of its request on, all tries at
    /// endpoints included, up to 24h. 0s sets no limit.
    #[serde(default = "request_timeout")]
    #[x_kube(validation = duration::limit(
        "duration(self) <= duration('24h')", "request is at most 24h; 0s sets no limit"))]
    pub request: DurationText,
}

/// Which requests get a line in the access log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessLog {
    /// Sample is the share of the requests that get a line, 0 to 1: 1 is all of them, 0.01 one of a hundred, chosen
    /// at random.
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

fn one() -> u16 {
    1
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
