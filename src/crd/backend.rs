//! Owns the part of the resource that says who serves a pool's traffic, as users write it. The doc comments are what
//! `kubectl explain` prints; the limits and rules are what the API server checks.

// The derive of `KubeSchema` repeats each type inside a function, where `pub` reaches nobody.
#![allow(unreachable_pub)]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::port::PortRef;
use super::rules;
use super::tls::BackendTls;

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
    /// TLS where tls is set). When it is absent, the appProtocol of the Service's port decides: kubernetes.io/h2c, h2c
    /// and grpc mean H2C, and all else HTTP. It is for requests: what listeners of TCP, TLS and UDP carry passes as it
    /// came, and a pool that has no others takes no protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    // As an option it would have the description of its type in the place of this one.
    #[schemars(with = "BackendProtocol")]
    pub protocol: Option<BackendProtocol>,

    /// Service whose endpoints serve this share. It lies in the pool's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,

    /// Endpoints lists fixed addresses that serve this share. They count as ready. All backends of a pool list at most
    /// 4096 together; for more, name a Service: one without a selector takes any addresses, from EndpointSlices.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address", "port"]))]
    pub endpoints: Option<Vec<Endpoint>>,

    /// Tls encrypts the connections to the backend's endpoints and says by whose word these are believed. Without it
    /// nothing is encrypted. An endpoint that cannot prove who it is gets no request. A pool with a listener of UDP
    /// takes none, because datagrams are no connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,

    /// ProxyProtocol says whether connections to the backend's endpoints begin with a header of the PROXY protocol,
    /// before that of TLS, and in which version: V1 is a line of text, V2 is binary. It tells the endpoint the address
    /// and port of the client, and those that the client connected to. An endpoint that does not expect the header
    /// takes it for garbage, and one that does believes whoever can connect to it. A connection with a header serves
    /// the connection of one client and no other. A pool with a listener of UDP takes Off alone.
    #[serde(default)]
    pub proxy_protocol: Introduction,
}

/// Whether connections to a backend begin with a header of the PROXY protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Introduction {
    /// They do not.
    #[default]
    Off,
    /// Of version 1.
    V1,
    /// Of version 2.
    V2,
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

fn one() -> u16 {
    1
}
