//! Owns the header of the PROXY protocol by which a connection to a backend begins, so that the backend knows for whom
//! it is (haproxy.org/download/3.2/doc/proxy-protocol.txt). Pure: addresses in, bytes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::origin::SIGNATURE;
use crate::balance::pool::ProxyVersion;

/// A client's connection, as a backend is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Introduction {
    source: SocketAddr,
    target: SocketAddr,
}

impl Introduction {
    /// Of a client at `source` that connected to `target`. What is not known is zero.
    pub(super) fn new(source: SocketAddr, target: Option<SocketAddr>) -> Self {
        let unknown = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        Self { source, target: target.unwrap_or(unknown) }
    }

    /// The header.
    pub(super) fn header(&self, version: ProxyVersion) -> Vec<u8> {
        match version {
            ProxyVersion::V1 => self.text(),
            ProxyVersion::V2 => self.binary(),
        }
    }

    /// Section 2.1.
    fn text(&self) -> Vec<u8> {
        let (from, to) = (self.source.port(), self.target.port());
        match self.addresses() {
            Addresses::V4(source, target) => format!("PROXY TCP4 {source} {target} {from} {to}\r\n"),
            Addresses::V6(source, target) => format!("PROXY TCP6 {source} {target} {from} {to}\r\n"),
        }
        .into_bytes()
    }

    /// Section 2.2.
    fn binary(&self) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.target.port().to_be_bytes()].concat();
        let (family, addresses) = match self.addresses() {
            Addresses::V4(source, target) => (TCP_OVER_IPV4, [source.octets(), target.octets()].concat()),
            Addresses::V6(source, target) => (TCP_OVER_IPV6, [source.octets(), target.octets()].concat()),
        };
        let length = (addresses.len() + ports.len()) as u16;
        let fixed = [VERSION_AND_COMMAND, family];
        [&SIGNATURE[..], &fixed, &length.to_be_bytes(), &addresses, &ports].concat()
    }

    /// Both in one family: where they differ, as behind a balancer that told of a client, in the wider one.
    fn addresses(&self) -> Addresses {
        let wide = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        match (self.source.ip(), self.target.ip()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => Addresses::V4(source, target),
            (source, target) => Addresses::V6(wide(source), wide(target)),
        }
    }
}

/// Version 2, and a connection that somebody made for another.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::origin::{Beginning, beginning};

    fn introduction(source: &str, target: &str) -> Introduction {
        Introduction::new(source.parse().unwrap(), Some(target.parse().unwrap()))
    }

    #[test]
    fn version_1_is_a_line() {
        for (source, target, line) in [
            ("192.0.2.7:56324", "198.51.100.1:443", "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"),
            ("[2001:db8::7]:1", "[2001:db8::1]:2", "PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n"),
            ("[2001:db8::7]:1", "192.0.2.1:2", "PROXY TCP6 2001:db8::7 ::ffff:192.0.2.1 1 2\r\n"),
        ] {
            let header = introduction(source, target).header(ProxyVersion::V1);
            assert_eq!(String::from_utf8(header).unwrap(), line);
        }
        let nobody_knows = Introduction::new("192.0.2.7:0".parse().unwrap(), None);
        assert_eq!(nobody_knows.header(ProxyVersion::V1), b"PROXY TCP4 192.0.2.7 0.0.0.0 0 0\r\n");
    }

    #[test]
    fn version_2_is_binary() {
        let four = introduction("192.0.2.7:258", "198.51.100.1:772").header(ProxyVersion::V2);
        let expected = [0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 1, 1, 2, 3, 4];
        assert_eq!(four, [&SIGNATURE[..], &expected].concat());
        let six = introduction("[2001:db8::7]:258", "192.0.2.1:772").header(ProxyVersion::V2);
        assert_eq!(six[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(six.len(), 52);
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_is_heard(source: SocketAddr, target: SocketAddr) {
            let heard = SocketAddr::new(source.ip().to_canonical(), source.port());
            for version in [ProxyVersion::V1, ProxyVersion::V2] {
                let header = Introduction::new(source, Some(target)).header(version);
                let told = Beginning::Header { source: Some(heard), length: header.len() };
                prop_assert_eq!(beginning(&header), told);
            }
        }
    }
}
