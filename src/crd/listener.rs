//! Owns the part of the resource that says what a pool listens on, as users write it. The doc comments are what
//! `kubectl explain` prints; the limits and rules are what the API server checks.

// The derive of `KubeSchema` repeats each type inside a function, where `pub` reaches nobody.
#![allow(unreachable_pub)]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;
use super::tls::ListenerTls;

/// A port the pool opens.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(self.protocol in ['HTTPS', 'TLS']) || has(self.tls)")
    .message("HTTPS and TLS need tls: name a Secret with the certificate in tls.secretRefs"))]
#[x_kube(validation = Rule::new("self.protocol in ['HTTPS', 'TLS'] || !has(self.tls)")
    .message("tls is for HTTPS and TLS: set protocol to one of them, or leave tls out"))]
#[x_kube(validation = Rule::new(
        "self.protocol in ['HTTP', 'HTTPS'] || ((!has(self.hostnames) || self.hostnames.size() == 0) && \
         (!has(self.paths) || self.paths.size() == 0))")
    .message("hostnames and paths are parts of HTTP requests: leave them out, or use protocol HTTP or HTTPS"))]
#[x_kube(validation = Rule::new("self.protocol != 'UDP' || self.proxyProtocol == 'Off'")
    .field_path(".proxyProtocol")
    .message("the PROXY protocol is for connections, which UDP has none of: leave proxyProtocol out"))]
pub struct Listener {
    /// Name of the listener, unique within the pool.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub name: String,

    /// Port is the port that is opened, 1 to 65535: of UDP for protocol UDP, of TCP for the others.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,

    /// Protocol spoken on the port. With HTTP, which is HTTP/1.1 or HTTP/2 without TLS, and with HTTPS, which is the
    /// same within TLS, each request finds its backend. With TCP each connection does, and its bytes pass as they
    /// are, as do those within TLS; with UDP each flow, the datagrams from one address and port of a client, until it
    /// was silent for a minute. Connections and flows have no parts that a key can be made of but the client's address.
    #[serde(default)]
    pub protocol: Protocol,

    /// Tls says which certificates the port shows and what it asks of its clients, where the protocol is HTTPS or TLS.
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
    /// HTTP/1.1 or HTTP/2 without TLS.
    #[default]
    HTTP,
    /// The same within TLS.
    HTTPS,
    /// Connections of any protocol.
    TCP,
    /// Connections of any protocol within TLS.
    TLS,
    /// Datagrams of any protocol.
    UDP,
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
