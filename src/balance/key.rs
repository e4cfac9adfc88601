//! Owns the request key: which part of a request decides where it goes, and its hash.
//! The proxy hands in the parts; this module neither parses nor allocates.

use std::net::IpAddr;
use std::sync::Arc;

use super::hash;

/// Seeds keep a header's `a` and a cookie's `a` from landing together by accident of their text.
const SEED: u64 = 0x6775_6964_6577_6179;

/// One source of the key, in the order of `hashOn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The peer's IP address. Always present.
    ClientIp,
    /// A header's value, by lower-case name.
    Header(Arc<str>),
    /// A cookie's value, by name.
    Cookie(Arc<str>),
    /// A query parameter's value as written, by name.
    Query(Arc<str>),
    /// The path without the query.
    Path,
    /// The request's host without the port, lower case.
    Host,
}

/// The parts of a request a key can be made of. Borrowed, so that asking costs nothing.
pub trait RequestParts {
    /// The values of the header `name` (lower case), in order.
    fn headers(&self, name: &str) -> impl Iterator<Item = &[u8]>;
    /// The path without the query.
    fn path(&self) -> &str;
    /// The query without `?`.
    fn query(&self) -> Option<&str>;
    /// The host without the port.
    fn host(&self) -> Option<&str>;
    /// The address of the client.
    fn client_ip(&self) -> IpAddr;
}

/// The hash of the first source that the request has; without any, of the client's address. An empty value is as good as
/// none: it would bring together all those of whom nothing is known.
pub fn hash_of(sources: &[KeySource], request: &impl RequestParts) -> u64 {
    sources.iter().find_map(|source| source.hash(request)).unwrap_or_else(|| of_client(request.client_ip()))
}

impl KeySource {
    fn hash(&self, request: &impl RequestParts) -> Option<u64> {
        let bytes = |value: &[u8]| hash::stable(value, SEED);
        match self {
            Self::ClientIp => Some(of_client(request.client_ip())),
            Self::Header(name) => request.headers(name).find(|value| !value.is_empty()).map(bytes),
            Self::Cookie(name) => {
                request.headers("cookie").find_map(|header| cookie(header, name)).map(bytes)
            }
            Self::Query(name) => parameter(request.query()?, name).map(|value| bytes(value.as_bytes())),
            Self::Path => Some(bytes(request.path().as_bytes())),
            Self::Host => request.host().filter(|host| !host.is_empty()).map(host_hash),
        }
    }
}

/// The hash of a client's address, which is all that connections and flows without requests have for a key.
/// IPv4-mapped addresses hash as the IPv4 address they carry, so a dual-stack listener moves nobody.
pub fn of_client(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(v4) => hash::stable(&v4.octets(), SEED),
        IpAddr::V6(v6) => hash::stable(&v6.octets(), SEED),
    }
}

/// Hosts compare without case (RFC 9110 section 4.2.3); a buffer on the stack lowers 255 bytes at most.
fn host_hash(host: &str) -> u64 {
    let mut buffer = [0u8; 255];
    let length = host.len().min(buffer.len());
    buffer[..length].copy_from_slice(&host.as_bytes()[..length]);
    buffer[..length].make_ascii_lowercase();
    hash::stable(&buffer[..length], SEED)
}

/// The value of the first cookie `name` in a `Cookie` header that has one (RFC 6265 section 4.2.1).
fn cookie<'a>(header: &'a [u8], name: &str) -> Option<&'a [u8]> {
    header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        let value = value.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")).unwrap_or(value);
        (!value.is_empty()).then_some(value)
    })
}

/// The value of the first parameter `name` in a query that has one.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name && !value.is_empty()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request {
        headers: Vec<(&'static str, &'static str)>,
        target: &'static str,
        host: &'static str,
        ip: &'static str,
    }

    impl RequestParts for Request {
        fn headers(&self, name: &str) -> impl Iterator<Item = &[u8]> {
            self.headers.iter().filter(move |(key, _)| *key == name).map(|(_, value)| value.as_bytes())
        }
        fn path(&self) -> &str {
            self.target.split('?').next().unwrap_or_default()
        }
        fn query(&self) -> Option<&str> {
            self.target.split_once('?').map(|(_, query)| query)
        }
        fn host(&self) -> Option<&str> {
            Some(self.host)
        }
        fn client_ip(&self) -> IpAddr {
            self.ip.parse().unwrap()
        }
    }

    fn request() -> Request {
        Request {
            headers: vec![
                ("x-user", "ada"),
                ("x-empty", ""),
                ("x-late", ""),
                ("x-late", "bob"),
                ("cookie", "a=1; session=; empty=\"\""),
                ("cookie", "session=\"s7\"; session2=no; b=2"),
            ],
            target: "/cart?id=9&empty&user=&none=&user=ada",
            host: "Shop.Example.com",
            ip: "::ffff:192.0.2.7",
        }
    }

    fn check(source: KeySource, expected: Option<&[u8]>) {
        assert_eq!(source.hash(&request()), expected.map(|bytes| hash::stable(bytes, SEED)), "{source:?}");
    }

    #[test]
    fn every_source_hashes_the_part_it_names() {
        check(KeySource::Header("x-user".into()), Some(b"ada"));
        check(KeySource::Header("x-none".into()), None);
        check(KeySource::Cookie("session".into()), Some(b"s7"));
        check(KeySource::Cookie("ession".into()), None);
        check(KeySource::Query("user".into()), Some(b"ada"));
        check(KeySource::Cookie("b".into()), Some(b"2"));
        check(KeySource::Path, Some(b"/cart"));
        check(KeySource::Host, Some(b"shop.example.com"));
        check(KeySource::ClientIp, Some(&[192, 0, 2, 7]));
    }

    #[test]
    fn an_empty_value_is_none() {
        check(KeySource::Header("x-empty".into()), None);
        check(KeySource::Header("x-late".into()), Some(b"bob"));
        check(KeySource::Cookie("empty".into()), None);
        check(KeySource::Query("empty".into()), None);
        check(KeySource::Query("none".into()), None);
        let unnamed = Request { host: "", ..request() };
        assert_eq!(KeySource::Host.hash(&unnamed), None);
        assert_eq!(
            hash_of(&[KeySource::Header("x-empty".into()), KeySource::Path], &request()),
            hash::stable(b"/cart", SEED)
        );
    }

    #[test]
    fn the_first_source_present_decides() {
        let sources =
            [KeySource::Header("x-none".into()), KeySource::Header("x-user".into()), KeySource::Path];
        assert_eq!(hash_of(&sources, &request()), hash::stable(b"ada", SEED));
    }

    #[test]
    fn a_request_without_any_source_follows_its_address() {
        let sources = [KeySource::Cookie("none".into())];
        assert_eq!(hash_of(&sources, &request()), hash_of(&[KeySource::ClientIp], &request()));
    }
}
