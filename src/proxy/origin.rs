//! Owns the PROXY protocol, versions 1 and 2, by which a balancer before us tells where a connection comes from
//! (haproxy.org/download/3.2/doc/proxy-protocol.txt). Pure: bytes in, an address out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// What begins a header of version 2, and no text of any protocol.
pub(super) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1, its end included (section 2.1).
const MAX_TEXT: usize = 107;
/// Bytes of a header of version 2 before what its length counts.
const FIXED: usize = 16;
/// Most that the length of version 2 may count: addresses, and more than balancers in the field add.
const MAX_COUNTED: usize = 4096;

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Too few bytes to tell.
    Incomplete,
    /// No such header.
    Absent,
    /// A header of so many bytes; it says where the connection comes from, unless the balancer itself made it.
    Header {
        /// Of the client; port 0 where nobody knows it.
        source: Option<SocketAddr>,
        /// Of the header, in bytes.
        length: usize,
    },
    /// It begins like one and is none.
    Malformed,
}

/// What `bytes` begin with.
pub(super) fn beginning(bytes: &[u8]) -> Beginning {
    let begins = |with: &[u8]| bytes.starts_with(with) || with.starts_with(bytes);
    if begins(SIGNATURE) {
        if bytes.len() < FIXED { Beginning::Incomplete } else { binary(bytes) }
    } else if begins(b"PROXY ") {
        text(bytes)
    } else {
        Beginning::Absent
    }
}

fn text(bytes: &[u8]) -> Beginning {
    let window = &bytes[..bytes.len().min(MAX_TEXT)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if window.len() < MAX_TEXT { Beginning::Incomplete } else { Beginning::Malformed };
    };
    let length = end + 2;
    let Ok(line) = std::str::from_utf8(&window[..end]) else { return Beginning::Malformed };
    let mut words = line.split(' ').skip(1);
    let (family, rest) = (words.next(), words.collect::<Vec<_>>());
    let source = match (family, &rest[..]) {
        // Whatever follows is to be ignored.
        (Some("UNKNOWN"), _) => None,
        (Some("TCP4"), [source, target, from, to]) => {
            Some(addresses::<Ipv4Addr>(source, target).zip(ports(from, to)))
        }
        (Some("TCP6"), [source, target, from, to]) => {
            Some(addresses::<Ipv6Addr>(source, target).zip(ports(from, to)))
        }
        _ => return Beginning::Malformed,
    };
    match source {
        Some(None) => Beginning::Malformed,
        source => Beginning::Header { source: source.flatten().map(SocketAddr::from), length },
    }
}

/// The source, if both are addresses of the family.
fn addresses<A: FromStr + Into<IpAddr>>(source: &str, target: &str) -> Option<IpAddr> {
    let (source, _) = (source.parse::<A>().ok()?, target.parse::<A>().ok()?);
    Some(source.into().to_canonical())
}

/// That of the source, if both are ports.
fn ports(source: &str, target: &str) -> Option<u16> {
    let port = |word: &str| {
        let is_plain =
            word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
        word.parse::<u16>().ok().filter(|_| is_plain)
    };
    port(target).and(port(source))
}

fn binary(bytes: &[u8]) -> Beginning {
    let [version_and_command, family, high, low] = [bytes[12], bytes[13], bytes[14], bytes[15]];
    let counted = usize::from(u16::from_be_bytes([high, low]));
    if version_and_command >> 4 != 2 || counted > MAX_COUNTED {
        return Beginning::Malformed;
    }
    let length = FIXED + counted;
    let Some(rest) = bytes.get(FIXED..length) else { return Beginning::Incomplete };
    let source = match (version_and_command & 0xf, family) {
        (0, _) => None,
        (1, 0x11 | 0x12) => match rest.first_chunk::<12>() {
            Some([a, b, c, d, _, _, _, _, high, low, ..]) => {
                let port = u16::from_be_bytes([*high, *low]);
                Some(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), port))
            }
            None => return Beginning::Malformed,
        },
        (1, 0x21 | 0x22) => match rest.first_chunk::<36>() {
            Some(both) => {
                let source = both.first_chunk::<16>().expect("16 is less than 36");
                let port = u16::from_be_bytes([both[32], both[33]]);
                Some(SocketAddr::new(IpAddr::from(Ipv6Addr::from(*source)).to_canonical(), port))
            }
            None => return Beginning::Malformed,
        },
        // A local socket or nothing that we know: there is no address, and the connection is as it is.
        (1, 0x00 | 0x31 | 0x32) => None,
        _ => return Beginning::Malformed,
    };
    Beginning::Header { source, length }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(source: &str, length: usize) -> Beginning {
        Beginning::Header { source: Some(source.parse().unwrap()), length }
    }

    fn binary_header(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[version_and_command, family][..], &length, rest].concat()
    }

    #[test]
    fn version_1_is_a_line() {
        for (line, source) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n", Some("192.0.2.7:56324")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 0 65535\r\n", Some("[2001:db8::7]:0")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", Some("192.0.2.7:1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff:f...f:ffff whatever\r\n", None),
        ] {
            let wire = format!("{line}GET / HTTP/1.1\r\n");
            let source = source.map(|it| it.parse().unwrap());
            assert_eq!(
                beginning(wire.as_bytes()),
                Beginning::Header { source, length: line.len() },
                "{line}"
            );
            for end in 0..line.len() {
                assert_eq!(beginning(&wire.as_bytes()[..end]), Beginning::Incomplete, "{line:?} {end}");
            }
        }
    }

    #[test]
    fn version_2_is_counted() {
        let (four, six) = ([192, 0, 2, 7, 198, 51, 100, 1, 1, 2, 3, 4], [1; 36]);
        let with_more = [&four[..], &[4, 0, 1, 9]].concat();
        let from_six = "[101:101:101:101:101:101:101:101]:257";
        for (wire, expected) in [
            (binary_header(0x21, 0x11, &four), header("192.0.2.7:258", 28)),
            (binary_header(0x21, 0x11, &with_more), header("192.0.2.7:258", 32)),
            (binary_header(0x21, 0x21, &six), header(from_six, 52)),
            (binary_header(0x20, 0x00, &[]), Beginning::Header { source: None, length: 16 }),
            (binary_header(0x20, 0x11, &four), Beginning::Header { source: None, length: 28 }),
            (binary_header(0x21, 0x31, &[0; 216]), Beginning::Header { source: None, length: 232 }),
        ] {
            assert_eq!(beginning(&[&wire, &b"GET"[..]].concat()), expected, "{wire:?}");
            for end in 0..wire.len() {
                assert_eq!(beginning(&wire[..end]), Beginning::Incomplete, "{wire:?} {end}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_told_from_one_that_is_broken() {
        for absent in ["GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n", "PROXYING", "\r\n\r\nGET", "\x16\x03\x01"]
        {
            assert_eq!(beginning(absent.as_bytes()), Beginning::Absent, "{absent:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_TEXT));
        for broken in [
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
            "PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
            &long,
        ] {
            assert_eq!(beginning(broken.as_bytes()), Beginning::Malformed, "{broken:?}");
        }
        for broken in [
            binary_header(0x11, 0x11, &[0; 12]),
            binary_header(0x22, 0x11, &[0; 12]),
            binary_header(0x21, 0x11, &[0; 11]),
            binary_header(0x21, 0x21, &[0; 35]),
            binary_header(0x21, 0x41, &[0; 12]),
            binary_header(0x21, 0x11, &[0; MAX_COUNTED + 1]),
        ] {
            assert_eq!(beginning(&broken), Beginning::Malformed, "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_stumble_and_a_header_lies_within_them(
            start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", SIGNATURE]),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [start, &rest].concat();
            match beginning(&bytes) {
                Beginning::Header { length, .. } => prop_assert!(length <= bytes.len()),
                Beginning::Incomplete => prop_assert!(bytes.len() < FIXED + MAX_COUNTED),
                Beginning::Absent | Beginning::Malformed => {}
            }
        }
    }
}
