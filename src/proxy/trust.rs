//! Owns what is believed of clients that stand before us for others: who may say for whom a request is, and who that
//! is. Everybody else's word is replaced by what we see ourselves (`headers`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::filter;
use super::headers::Scheme;
use super::http1::{RequestHead, tokens};

/// A range of addresses, such as `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

/// Why a text is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no range of addresses; {hint}")]
pub struct NotANetwork {
    text: String,
    hint: String,
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let wrong = |hint: &str| NotANetwork { text: text.into(), hint: hint.into() };
        let usual = "write one such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7";
        let (address, prefix) = text.split_once('/').map_or((text, None), |(it, prefix)| (it, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| wrong(usual))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), |prefix| {
            prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(|| wrong(usual))
        })?;
        let network = Self { address, prefix };
        if network.first() != number(address) {
            let first = number_address(network.first(), address.is_ipv4());
            return Err(wrong(&format!("it begins at {first}, so write {first}/{prefix}")));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// Whether `address` lies in it.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let same_family = address.is_ipv4() == self.address.is_ipv4();
        same_family && number(address) & self.mask() == self.first()
    }

    fn first(&self) -> u128 {
        number(self.address) & self.mask()
    }

    fn mask(&self) -> u128 {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        // A prefix of zero leaves nothing of any mask.
        u128::MAX.checked_shl(bits - self.prefix).unwrap_or(0)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn number_address(number: u128, is_v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if is_v4 => IpAddr::V4(number.into()),
        _ => IpAddr::V6(number.into()),
    }
}

/// What a trusted client says about a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hearsay<'a> {
    /// For whom the request is: the last address in the chain that is not trusted itself.
    pub(super) ip: IpAddr,
    /// The lines that tell a backend so.
    pub(super) lines: Vec<u8>,
    /// The host it was for, if that is another than the request's.
    pub(super) host: Option<&'a str>,
}

impl<'a> Hearsay<'a> {
    /// What the client at `peer`, who is trusted, says in `head`, which came in on `scheme`.
    pub(super) fn of(head: &RequestHead<'a>, peer: IpAddr, scheme: Scheme, trusted: &[Network]) -> Self {
        let mut lines = b"\r\nx-forwarded-for: ".to_vec();
        let mut chain = Vec::new();
        for value in values(head, "x-forwarded-for") {
            for hop in tokens(value).filter(|hop| !hop.is_empty()) {
                lines.extend_from_slice(hop);
                lines.extend_from_slice(b", ");
                chain.push(hop);
            }
        }
        let is_scheme = |said: &&[u8]| [&b"http"[..], b"https"].contains(said);
        let scheme = only(head, "x-forwarded-proto").filter(is_scheme).unwrap_or(scheme.name().as_bytes());
        lines.extend_from_slice(format!("{peer}\r\nx-forwarded-proto: ").as_bytes());
        lines.extend_from_slice(scheme);
        let host = only(head, "x-forwarded-host").and_then(filter::checked_host);
        Self { ip: origin(&chain, peer, trusted), lines, host }
    }
}

/// Follows the chain back from `peer` for as long as its hops are trusted. What is no address ends it: nobody knows
/// who wrote what stands before.
fn origin(chain: &[&[u8]], peer: IpAddr, trusted: &[Network]) -> IpAddr {
    let mut ip = peer;
    for hop in chain.iter().rev() {
        if !is_trusted(ip, trusted) {
            break;
        }
        let Some(before) = address(hop) else { break };
        ip = before;
    }
    ip
}

/// Whether `ip` is one of those that are believed.
pub(super) fn is_trusted(ip: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(ip))
}

/// An address, with or without a port, which some balancers add.
pub(super) fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let with_port = || text.parse::<SocketAddr>().ok().map(|it| it.ip());
    Some(text.parse::<IpAddr>().ok().or_else(with_port)?.to_canonical())
}

fn values<'a>(head: &RequestHead<'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    head.fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// The value of a field that may not repeat. Of several, nobody knows which one is meant.
fn only<'a>(head: &RequestHead<'a>, name: &str) -> Option<&'a [u8]> {
    let mut values = values(head, name);
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::http1;
    use super::*;

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_range_has_an_address_and_a_prefix() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.128/25", "192.0.2.200", "192.0.2.127"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "::2"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
        ] {
            let network: Network = text.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{text} {outside}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_what_would_be() {
        let usual = "write one such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7";
        for (text, hint) in [
            ("", usual),
            ("localhost", usual),
            ("10.0.0.0/33", usual),
            ("10.0.0.0/-1", usual),
            ("10.0.0.0/", usual),
            ("10.0.0.0/8/8", usual),
            ("10.1.0.0/8", "it begins at 10.0.0.0, so write 10.0.0.0/8"),
            ("2001:db8::1/32", "it begins at 2001:db8::, so write 2001:db8::/32"),
        ] {
            let refused = text.parse::<Network>().unwrap_err().to_string();
            assert_eq!(refused, format!("`{text}` is no range of addresses; {hint}"));
        }
    }

    /// Who a request from 10.0.0.1 is for, and what a backend is told.
    fn hear(fields: &str, look: impl FnOnce(Hearsay<'_>)) {
        let wire = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let mut space = http1::space();
        let (head, _) = RequestHead::parse(wire.as_bytes(), &mut space).unwrap().unwrap();
        let trusted = networks(&["10.0.0.0/8", "2001:db8::/32"]);
        look(Hearsay::of(&head, [10, 0, 0, 1].into(), Scheme::Http, &trusted));
    }

    #[test]
    fn a_request_is_for_the_last_address_that_is_not_trusted() {
        for (chain, client) in [
            ("", "10.0.0.1"),
            ("X-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7"),
            ("X-Forwarded-For: 203.0.113.9, 192.0.2.7\r\n", "192.0.2.7"),
            ("X-Forwarded-For: 203.0.113.9, 192.0.2.7, 10.0.0.2\r\n", "192.0.2.7"),
            ("X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 192.0.2.7,, 10.2.3.4 ,\r\n", "192.0.2.7"),
            ("X-Forwarded-For: 10.9.9.9, 10.0.0.2\r\n", "10.9.9.9"),
            ("X-Forwarded-For: 192.0.2.7, unknown, 10.0.0.2\r\n", "10.0.0.2"),
            ("X-Forwarded-For: unknown\r\n", "10.0.0.1"),
            ("X-Forwarded-For: 192.0.2.7:4711\r\n", "192.0.2.7"),
            ("X-Forwarded-For: [2001:db9::7]:4711\r\n", "2001:db9::7"),
            ("X-Forwarded-For: 2001:db9::7, 2001:db8::1\r\n", "2001:db9::7"),
            ("X-Forwarded-For: ::ffff:192.0.2.7\r\n", "192.0.2.7"),
        ] {
            hear(chain, |said| assert_eq!(said.ip, client.parse::<IpAddr>().unwrap(), "{chain:?}"));
        }
    }

    #[test]
    fn a_backend_is_told_the_whole_chain() {
        for (fields, lines, host) in [
            ("", "10.0.0.1\r\nx-forwarded-proto: http", None),
            (
                "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n",
                "192.0.2.7, 10.0.0.1\r\nx-forwarded-proto: https",
                Some("shop.example"),
            ),
            (
                "X-Forwarded-For: a\r\nX-Forwarded-For: b\r\nX-Forwarded-Proto: gopher\r\n",
                "a, b, 10.0.0.1\r\nx-forwarded-proto: http",
                None,
            ),
            (
                "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a b\r\n",
                "10.0.0.1\r\nx-forwarded-proto: http",
                None,
            ),
        ] {
            hear(fields, |said| {
                let expected = format!("\r\nx-forwarded-for: {lines}");
                assert_eq!(
                    (String::from_utf8(said.lines).unwrap(), said.host),
                    (expected, host),
                    "{fields:?}"
                );
            });
        }
    }
}
