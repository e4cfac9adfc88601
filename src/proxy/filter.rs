//! Owns which requests may pass: the rules of RFC 9112 about method, target and Host, and ours on names
//! that imitate framing or forwarding fields. What passes is rebuilt by `headers`, never copied.

use std::net::Ipv6Addr;

use super::headers::Scheme;
use super::http1::{Field, Pseudo, RequestHead, Role, is_imitation};
use super::limits::MAX_HOPS;
use super::rescue::ProxyError;

/// A request that may pass, as the parts that need a decision.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    /// The path on the backend, or `*` for OPTIONS.
    pub(super) path: &'a str,
    /// The query, without `?`.
    pub(super) query: Option<&'a str>,
    /// The host it is for. `None` for an HTTP/1.0 request that names none.
    pub(super) host: Option<&'a str>,
}

impl Admitted<'_> {
    /// The host without its port.
    pub(super) fn hostname(&self) -> Option<&str> {
        let host = self.host?;
        let port = host.rfind(':').filter(|at| !host[*at..].contains(']'));
        Some(port.map_or(host, |at| &host[..at]))
    }
}

/// Checks a request that came in over `scheme`; what is wrong with it otherwise.
pub(super) fn admit<'a>(head: &RequestHead<'a>, scheme: Scheme) -> Result<Admitted<'a>, ProxyError> {
    if matches!(head.method, "CONNECT" | "TRACE") {
        return Err(ProxyError::MethodNotAllowed);
    }
    let (authority, path, query) = target(head.method, head.target, scheme)?;
    let stated = check_fields(head)?;
    if let Some(pseudo) = &head.pseudo {
        let host = agreed_host(pseudo, authority, stated)?;
        return Ok(Admitted { path, query, host: Some(host) });
    }
    let host = match (authority, stated) {
        // An absolute-form target wins over Host (RFC 9112 section 3.2.2).
        (Some(authority), Some(_)) => Some(authority.as_bytes()),
        (Some(authority), None) if head.minor == 0 => Some(authority.as_bytes()),
        (None, None) if head.minor == 0 => None,
        (_, None) => return Err(ProxyError::BadRequest("the Host field is missing")),
        (None, stated) => stated,
    };
    let host = host.map(|host| checked_host(host).ok_or(BAD_HOST)).transpose()?;
    Ok(Admitted { path, query, host })
}

const BAD_HOST: ProxyError =
    ProxyError::BadRequest("the host is not a name or address with an optional port");
const OTHER_SCHEME: ProxyError = ProxyError::BadRequest("the scheme is not that of the connection");
const BAD_TARGET: ProxyError =
    ProxyError::BadRequest("the request's target is neither a path nor an absolute URI");

/// The host of a request of HTTP/2 (RFC 9113 section 8.3.1). Whatever in it could be understood in two ways by those
/// behind us is refused.
fn agreed_host<'a>(
    pseudo: &Pseudo<'a>,
    absolute: Option<&str>,
    stated: Option<&[u8]>,
) -> Result<&'a str, ProxyError> {
    if absolute.is_some() {
        return Err(BAD_TARGET);
    }
    if !pseudo.scheme_fits {
        return Err(OTHER_SCHEME);
    }
    let authority = pseudo.authority.ok_or(ProxyError::BadRequest("the authority is missing"))?;
    if stated.is_some_and(|host| !host.eq_ignore_ascii_case(authority.as_bytes())) {
        return Err(ProxyError::BadRequest("the authority and the Host field differ"));
    }
    checked_host(authority.as_bytes()).ok_or(BAD_HOST)
}

/// Checks what fields there are; the value of Host.
fn check_fields<'a>(head: &RequestHead<'a>) -> Result<Option<&'a [u8]>, ProxyError> {
    let mut host = None;
    for field in head.fields.iter() {
        match field.role {
            Role::Host if host.is_some() => {
                return Err(ProxyError::BadRequest("there is more than one Host field"));
            }
            Role::Host => host = Some(field.value),
            Role::Expect if !field.value.eq_ignore_ascii_case(b"100-continue") => {
                return Err(ProxyError::ExpectationFailed);
            }
            Role::Forwarding if hops(&field) >= MAX_HOPS => return Err(ProxyError::Loop),
            Role::Pass if is_imitation(field.name) => {
                return Err(ProxyError::BadRequest(
                    "a field imitates a framing or forwarding field with \"_\"",
                ));
            }
            _ => {}
        }
    }
    Ok(host)
}

/// How many times a request passed through a Guideway, if `field` says so. What says something else was not written by
/// one, and does not count.
pub(super) fn hops(field: &Field<'_>) -> u8 {
    let is_ours = field.name.eq_ignore_ascii_case(HOPS_HEADER);
    let said = is_ours.then(|| std::str::from_utf8(field.value).ok()?.parse().ok()).flatten();
    said.unwrap_or(0)
}

/// Counts how many times a request passed through a Guideway: whether through this one, no name would tell, as
/// replicas are alike.
const HOPS_HEADER: &str = "x-guideway-hops";

/// The authority of an absolute form, the path and the query.
fn target<'a>(
    method: &str,
    target: &'a str,
    scheme: Scheme,
) -> Result<(Option<&'a str>, &'a str, Option<&'a str>), ProxyError> {
    if !target.bytes().all(may_be_in_target) {
        return Err(BAD_TARGET);
    }
    let (authority, rest) = match target {
        _ if target.starts_with('/') => (None, target),
        "*" if method == "OPTIONS" => return Ok((None, "*", None)),
        _ => absolute(target, scheme)?,
    };
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let path = match (path, query) {
        // The way to ask for `*` in absolute form (RFC 9112 section 3.2.4).
        ("", None) if method == "OPTIONS" => "*",
        ("", _) => "/",
        (path, _) => path,
    };
    Ok((authority, path, query))
}

/// The authority of an absolute form, and what follows it. Its scheme must be that of the connection: what is asked for
/// under the other one is another resource (RFC 9110 section 4.2.2).
fn absolute(target: &str, scheme: Scheme) -> Result<(Option<&str>, &str), ProxyError> {
    let (stated, rest) = target.split_once("://").ok_or(BAD_TARGET)?;
    if !stated.eq_ignore_ascii_case(scheme.name()) {
        return Err(OTHER_SCHEME);
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Ok((Some(authority), rest))
}

/// What a target consists of, and what clients in the field put into it besides (braces, quotes, bytes of
/// UTF-8). A fragment is not for us (RFC 9110 section 4.2.5).
fn may_be_in_target(byte: u8) -> bool {
    !matches!(byte, 0..=b' ' | b'#' | b'<' | b'>' | b'`' | 0x7f)
}

/// `uri-host [":" port]` of RFC 9110 section 7.2, without the comma that joined fields would leave and without
/// encoded bytes, which would be another host to us than to a backend that decodes them.
pub(super) fn checked_host(host: &[u8]) -> Option<&str> {
    let host = std::str::from_utf8(host).ok()?;
    let (name, port) = match host.strip_prefix('[') {
        Some(bracketed) => {
            let (address, port) = bracketed.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (None, port)
        }
        None => {
            let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
            (Some(name), port)
        }
    };
    let name_fits = name.is_none_or(|name| !name.is_empty() && name.bytes().all(may_be_in_name));
    let port_fits = match port.as_bytes() {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    (name_fits && port_fits).then_some(host)
}

fn may_be_in_name(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9')
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&')
        || matches!(byte, b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'=')
}

#[cfg(test)]
mod tests {
    use super::super::http1;
    use super::*;

    type Parts = (Option<String>, String, Option<String>);

    /// What is admitted of a request, as host, path and query.
    fn admitted(line: &str, fields: &str) -> Result<Parts, ProxyError> {
        let wire = format!("{line}\r\n{fields}\r\n");
        let mut space = http1::space();
        let (head, _) = RequestHead::parse(wire.as_bytes(), &mut space).unwrap().unwrap();
        let Admitted { path, query, host } = admit(&head, Scheme::Http)?;
        Ok((host.map(Into::into), path.into(), query.map(Into::into)))
    }

    fn refuses(line: &str, fields: &str, status: u16) {
        let refused = admitted(line, fields).expect_err(&format!("{line} {fields:?}"));
        assert_eq!(refused.status(), status, "{line} {fields:?}: {refused}");
    }

    fn admits(line: &str, host: Option<&str>, path: &str, query: Option<&str>) {
        let expected = (host.map(Into::into), path.into(), query.map(Into::into));
        assert_eq!(admitted(line, "Host: a:80\r\n"), Ok(expected), "{line}");
    }

    #[test]
    fn a_host_is_needed_exactly_once() {
        refuses("GET / HTTP/1.1", "", 400);
        refuses("GET / HTTP/1.1", "Host: a\r\nhost: a\r\n", 400);
        refuses("GET / HTTP/1.0", "Host: a\r\nhost: a\r\n", 400);
        refuses("GET http://a/ HTTP/1.1", "", 400);
        assert_eq!(admitted("GET / HTTP/1.0", ""), Ok((None, "/".into(), None)));
        assert_eq!(admitted("GET http://a/ HTTP/1.0", ""), Ok((Some("a".into()), "/".into(), None)));
        admits("GET / HTTP/1.1", Some("a:80"), "/", None);
    }

    #[test]
    fn a_host_is_a_name_or_address_with_an_optional_port() {
        for host in [
            "a b", "a/b@c", "u@a", "a:b", "a:123456", "", ":80", "[::1", "[x]", "[::1]x", "a,b", "a?b",
            "a\\b", "a#", "a%2eb", "\u{e4}",
        ] {
            assert_eq!(checked_host(host.as_bytes()), None, "{host}");
        }
        for host in
            ["a", "a-1.b_c:8080", "127.0.0.1", "[::1]:80", "[2001:db8::7]", "xn--bcher-kva.example", "a:"]
        {
            assert_eq!(checked_host(host.as_bytes()), Some(host));
        }
    }

    #[test]
    fn an_absolute_target_wins_over_the_host_field() {
        admits("GET http://right.example:81/x?y HTTP/1.1", Some("right.example:81"), "/x", Some("y"));
        admits("GET HTTP://right.example HTTP/1.1", Some("right.example"), "/", None);
        admits("GET http://right.example?y=/ HTTP/1.1", Some("right.example"), "/", Some("y=/"));
    }

    #[test]
    fn targets_are_paths_with_or_without_a_query() {
        admits("GET /a/b%20c?d=http://e&f HTTP/1.1", Some("a:80"), "/a/b%20c", Some("d=http://e&f"));
        admits("GET //a? HTTP/1.1", Some("a:80"), "//a", Some(""));
        admits("GET /{\"\u{e4}\"} HTTP/1.1", Some("a:80"), "/{\"\u{e4}\"}", None);
        admits("OPTIONS * HTTP/1.1", Some("a:80"), "*", None);
        admits("OPTIONS http://b HTTP/1.1", Some("b"), "*", None);
        admits("OPTIONS http://b/ HTTP/1.1", Some("b"), "/", None);
    }

    #[test]
    fn targets_of_other_forms_are_refused() {
        for target in
            ["*", "a:80", "a", "http://u:p@a/", "http:///x", "ftp://a/", "https://a/", "/a#b", "/<a>", "/`"]
        {
            refuses(&format!("GET {target} HTTP/1.1"), "Host: a\r\n", 400);
        }
        refuses("CONNECT a:80 HTTP/1.1", "Host: a\r\n", 405);
        refuses("TRACE / HTTP/1.1", "Host: a\r\n", 405);
    }

    #[test]
    fn an_absolute_target_has_the_scheme_of_its_connection() {
        for (target, over, fits) in [
            ("http://a/p", Scheme::Http, true),
            ("https://a/p", Scheme::Https, true),
            ("HTTPS://a/p", Scheme::Https, true),
            ("https://a/p", Scheme::Http, false),
            ("http://a/p", Scheme::Https, false),
            ("wss://a/p", Scheme::Https, false),
        ] {
            let wire = format!("GET {target} HTTP/1.1\r\nHost: b\r\n\r\n");
            let mut space = http1::space();
            let (head, _) = RequestHead::parse(wire.as_bytes(), &mut space).unwrap().unwrap();
            let admitted = admit(&head, over).map(|it| (it.host, it.path));
            let expected = if fits { Ok((Some("a"), "/p")) } else { Err(OTHER_SCHEME) };
            assert_eq!(admitted, expected, "{target} over {over:?}");
        }
    }

    #[test]
    fn imitations_of_framing_and_forwarding_fields_are_refused() {
        refuses("GET / HTTP/1.1", "Host: a\r\nContent_Length: 1\r\n", 400);
        refuses("GET / HTTP/1.1", "Host: a\r\nX-Forwarded_For: 1\r\n", 400);
        assert!(admitted("GET / HTTP/1.1", "Host: a\r\nMy_Field: x\r\n").is_ok());
    }

    #[test]
    fn a_request_that_goes_in_circles_is_refused() {
        refuses("GET / HTTP/1.1", "Host: a\r\nX-Guideway-Hops: 10\r\n", 508);
        assert!(admitted("GET / HTTP/1.1", "Host: a\r\nX-Guideway-Hops: 9\r\n").is_ok());
    }

    #[test]
    fn only_100_continue_can_be_expected() {
        refuses("POST / HTTP/1.1", "Host: a\r\nExpect: 200-ok\r\n", 417);
        assert!(admitted("POST / HTTP/1.1", "Host: a\r\nExpect: 100-Continue\r\n").is_ok());
    }
}
