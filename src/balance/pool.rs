//! Owns `Pool`: a checked pool, whatever its source called it. Parsing ends before this type, so
//! nothing here can be out of range.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use super::key::KeySource;
use super::routes::Match;
use super::tls::{BackendTls, TlsTerms};

/// Namespace and name of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId {
    /// Kubernetes namespace; `default` where a file names none.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

impl PoolId {
    /// An id from its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// What stands in the place of a pool for a request of which nobody knows whose it is. No pool has empty names.
    pub fn nobody() -> Self {
        Self::new("", "")
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port a pool opens on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Name within the pool.
    pub name: Arc<str>,
    /// Number of the port.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// How connections to the port begin.
    pub proxy_protocol: ProxyProtocol,
    /// The terms of TLS on it; none where nothing is encrypted.
    pub tls: Option<Arc<TlsTerms>>,
    /// Which of the port's requests it takes. Never empty.
    pub matches: Vec<Match>,
}

impl Listener {
    /// The port it opens.
    pub fn port_id(&self) -> PortId {
        self.protocol.port(self.port)
    }

    /// How its port is spoken on.
    pub fn manner(&self) -> Manner {
        Manner { protocol: self.protocol, encrypted: self.tls.is_some(), proxy_protocol: self.proxy_protocol }
    }
}

/// A port as the kernel tells ports apart: one number is two ports, of TCP and of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortId {
    /// Of TCP.
    Tcp(u16),
    /// Of UDP.
    Udp(u16),
}

impl PortId {
    /// The number alone.
    pub fn number(self) -> u16 {
        match self {
            Self::Tcp(number) | Self::Udp(number) => number,
        }
    }
}

impl fmt::Display for PortId {
    /// TCP is what everybody means who says no more than a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(number) => number.fmt(f),
            Self::Udp(number) => write!(f, "{number}/UDP"),
        }
    }
}

/// How a port is spoken on. It is settled before anybody knows which pool a connection is for, so pools that share a
/// port agree on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// What is spoken, within TLS where that is.
    pub protocol: Protocol,
    /// Whether connections speak TLS.
    pub encrypted: bool,
    /// Whether a header of the PROXY protocol comes first.
    pub proxy_protocol: ProxyProtocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP: each request finds its backend.
    #[default]
    Http,
    /// Any protocol over TCP: each connection finds its backend.
    Tcp,
    /// Any protocol over UDP: each flow, the datagrams of one client's address and port, finds its backend.
    Udp,
}

impl Protocol {
    /// The port of this number on which it is spoken.
    pub fn port(self, number: u16) -> PortId {
        match self {
            Self::Http | Self::Tcp => PortId::Tcp(number),
            Self::Udp => PortId::Udp(number),
        }
    }
}

/// Whether connections begin with a header of the PROXY protocol, which says where they come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// They do not, and one is no valid request.
    #[default]
    Off,
    /// They may.
    Accept,
    /// They must.
    Require,
}

/// One entry of `spec.backends`: a named share of the pool's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name within the pool.
    pub name: Arc<str>,
    /// Share of the group relative to the other groups; zero takes no traffic.
    pub weight: u16,
    /// How connections to its backends are encrypted, if they are.
    pub tls: Option<Arc<BackendTls>>,
    /// The version of the PROXY protocol that they begin with, if they do.
    pub introduction: Option<ProxyVersion>,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// How the Maglev table is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fill {
    /// Over seats, with the least movement.
    #[default]
    Seats,
    /// The listing of the Maglev paper (NSDI'16) over the ready backends sorted by id.
    Paper,
}

/// Whether pod readiness decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Only ready backends take traffic.
    #[default]
    Require,
    /// Every backend with an address that is not terminating takes traffic.
    Ignore,
}

/// Time limits of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection to a backend.
    pub connect: Duration,
    /// From the last byte of the request to the response's head; `None` waits for ever.
    pub request: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), request: Some(Duration::from_secs(30)) }
    }
}

/// A share of requests that are chosen at random, such as those that get a line in the access log. Never none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample(NonZeroU32);

impl Sample {
    /// The share, from 0 to 1; `None` for none of them.
    pub fn of(share: f64) -> Option<Self> {
        NonZeroU32::new((share * f64::from(u32::MAX)).ceil() as u32).map(Self)
    }

    /// Whether a request is among them that drew `number`, where each number is as likely as any other.
    #[inline]
    pub fn takes(self, number: u32) -> bool {
        number <= self.0.get()
    }
}

/// A checked pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Who it is.
    pub id: PoolId,
    /// Creation time, milliseconds since the UNIX epoch: of two pools that want one port the older keeps it.
    pub created_ms: u64,
    /// Ports it serves.
    pub listeners: Vec<Listener>,
    /// Shares of the traffic, in the order written.
    pub groups: Vec<Group>,
    /// Table size, a prime; chosen from the number of seats when absent.
    pub table_size: Option<u32>,
    /// How the table is filled.
    pub fill: Fill,
    /// Which part of a request decides; the first one present. Never empty.
    pub hash_on: Vec<KeySource>,
    /// Whether readiness decides.
    pub readiness: Readiness,
    /// How long requests in flight may go on at a backend that left.
    pub drain_timeout: Duration,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Bytes that the body of a request may have; any number where it is absent.
    pub max_request_body: Option<NonZeroU64>,
    /// Which requests get a line in the access log; none where it is absent.
    pub access_log: Option<Sample>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_takes_its_share_of_all_numbers() {
        let all = Sample::of(1.0).unwrap();
        assert!(all.takes(0) && all.takes(u32::MAX));
        let half = Sample::of(0.5).unwrap();
        assert!(half.takes(u32::MAX / 2) && !half.takes(u32::MAX / 2 + 2));
        assert!(Sample::of(1e-12).unwrap().takes(0), "a share above zero is some of them");
        assert_eq!(Sample::of(0.0), None);
    }
}
