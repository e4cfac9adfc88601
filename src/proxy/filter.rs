//! Owns which requests may pass: the rules of RFC 9112 that hyper leaves open, and ours on names that
//! imitate framing or forwarding fields. What passes is rebuilt by `headers`, never copied.

use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Version};

use super::rescue::ProxyError;

/// A request that may pass, as the parts that need a decision.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    /// Where it goes on the backend: origin-form, or `*` for OPTIONS.
    pub(super) target: &'a str,
    /// The host it is for. `None` for an HTTP/1.0 request that names none.
    pub(super) host: Option<&'a str>,
    /// Whether a `Connection` field names further fields to remove.
    pub(super) nominates: bool,
    /// Whether it stated a `Content-Length`, zero included.
    pub(super) has_length: bool,
}

/// What a field is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The backend's business.
    Pass,
    /// Ends at this hop, or is ours to say.
    Drop,
    Host,
    TransferEncoding,
    ContentLength,
    Connection,
    Expect,
    /// A name with `_` that some servers read as one of ours with `-`.
    Imitation,
}

/// Checks a request; what is wrong with it otherwise.
pub(super) fn admit(parts: &Parts) -> Result<Admitted<'_>, ProxyError> {
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        return Err(ProxyError::MethodNotAllowed);
    }
    let target = target(parts)?;
    let mut seen = Seen::default();
    for (name, value) in &parts.headers {
        seen.field(name, value)?;
    }
    let host = match (parts.uri.authority(), seen.host) {
        // An absolute-form target wins over Host (RFC 9112 section 3.2.2).
        (Some(authority), Some(_)) => Some(authority.as_str()),
        (Some(authority), None) if parts.version == Version::HTTP_10 => Some(authority.as_str()),
        (None, Some(host)) => Some(host.to_str().map_err(|_| BAD_HOST)?),
        (None, None) if parts.version == Version::HTTP_10 => None,
        (_, None) => return Err(ProxyError::BadRequest("the Host field is missing")),
    };
    if host.is_some_and(|host| !is_host(host.as_bytes())) {
        return Err(BAD_HOST);
    }
    Ok(Admitted { target, host, nominates: seen.nominates, has_length: seen.length })
}

const BAD_HOST: ProxyError =
    ProxyError::BadRequest("the host is not a name or address with an optional port");

/// What the field `name` is to us.
pub(super) fn role(name: &HeaderName) -> Role {
    match name.as_str() {
        "host" => Role::Host,
        "transfer-encoding" => Role::TransferEncoding,
        "content-length" => Role::ContentLength,
        "connection" => Role::Connection,
        "expect" => Role::Expect,
        "keep-alive" | "proxy-connection" | "te" | "trailer" | "upgrade" | "http2-settings" => Role::Drop,
        name if is_forwarding(name) => Role::Drop,
        name if name.contains('_') && imitates(name) => Role::Imitation,
        _ => Role::Pass,
    }
}

/// Fields in which a hop tells the next one about the client. Nobody in front of us is trusted with them.
pub(super) fn is_forwarding(name: &str) -> bool {
    name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
}

#[derive(Default)]
struct Seen<'a> {
    host: Option<&'a HeaderValue>,
    chunked: bool,
    length: bool,
    nominates: bool,
}

impl<'a> Seen<'a> {
    fn field(&mut self, name: &HeaderName, value: &'a HeaderValue) -> Result<(), ProxyError> {
        match role(name) {
            Role::Pass | Role::Drop => {}
            Role::Host if self.host.is_some() => {
                return Err(ProxyError::BadRequest("there is more than one Host field"));
            }
            Role::Host => self.host = Some(value),
            Role::TransferEncoding => {
                if self.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(ProxyError::NotImplemented);
                }
                self.chunked = true;
            }
            Role::ContentLength => self.length = true,
            Role::Connection => self.nominates |= nominates_more(value),
            Role::Expect => {
                if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
                    return Err(ProxyError::ExpectationFailed);
                }
            }
            Role::Imitation => {
                return Err(ProxyError::BadRequest(
                    "a field imitates a framing or forwarding field with \"_\"",
                ));
            }
        }
        Ok(())
    }
}

/// The path and query to ask a backend for. The scheme of an absolute form must be the one we speak.
fn target(parts: &Parts) -> Result<&str, ProxyError> {
    if parts.uri.scheme_str().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
        return Err(ProxyError::BadRequest("the request is for another scheme than http"));
    }
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let absolute_or_origin =
        target.starts_with('/') && (parts.uri.authority().is_none() || parts.uri.scheme().is_some());
    let asterisk = target == "*" && parts.method == Method::OPTIONS;
    if absolute_or_origin || asterisk {
        Ok(target)
    } else {
        Err(ProxyError::BadRequest("the request's target is neither a path nor an absolute URI"))
    }
}

/// Whether a `Connection` field names more than what every connection field says.
fn nominates_more(value: &HeaderValue) -> bool {
    tokens(value)
        .any(|token| !token.eq_ignore_ascii_case(b"close") && !token.eq_ignore_ascii_case(b"keep-alive"))
}

/// The members of a comma-separated field.
pub(super) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Servers that make environment variables of fields cannot tell `Content_Length` from `Content-Length`.
fn imitates(name: &str) -> bool {
    let mut dashed = [0u8; 32];
    let Some(dashed) = dashed.get_mut(..name.len()) else {
        return name.starts_with("x_forwarded") || name.starts_with("x-forwarded");
    };
    dashed.copy_from_slice(name.as_bytes());
    dashed.iter_mut().filter(|byte| **byte == b'_').for_each(|byte| *byte = b'-');
    match std::str::from_utf8(dashed) {
        Ok("host" | "transfer-encoding" | "content-length" | "connection" | "expect") => true,
        Ok("keep-alive" | "proxy-connection" | "te" | "trailer" | "upgrade" | "http2-settings") => true,
        Ok(name) => is_forwarding(name) || name.starts_with("x-guideway-"),
        Err(_) => false,
    }
}

/// `uri-host [":" port]` of RFC 9110 section 7.2, without the comma that joined fields would leave.
fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', ..] => match host.iter().position(|byte| *byte == b']') {
            Some(end) => host.split_at(end + 1),
            None => return false,
        },
        _ => host.split_at(host.iter().position(|byte| *byte == b':').unwrap_or(host.len())),
    };
    let name_fits = match name {
        [] => false,
        [b'[', inner @ .., b']'] => {
            std::str::from_utf8(inner).is_ok_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
        }
        _ => name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(byte)),
    };
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    name_fits && port_fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(method: &str, target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn refuses(method: &str, target: &str, fields: &[(&str, &str)], status: u16) {
        let parts = parts(method, target, fields);
        let refused = admit(&parts).expect_err(&format!("{method} {target} {fields:?}"));
        assert_eq!(refused.status(), status, "{method} {target} {fields:?}: {refused}");
    }

    #[test]
    fn a_host_is_needed_exactly_once() {
        refuses("GET", "/", &[], 400);
        refuses("GET", "/", &[("host", "a"), ("host", "a")], 400);
        refuses("GET", "http://a/", &[], 400);
        assert_eq!(admit(&parts("GET", "/", &[("host", "a:80")])).unwrap().host, Some("a:80"));
    }

    #[test]
    fn a_host_is_a_name_or_address_with_an_optional_port() {
        for host in
            ["a b", "a/b@c", "u@a", "a:b", "a:123456", "", ":80", "[::1", "[x]", "a,b", "a?b", "a\\b", "a#"]
        {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
        for host in
            ["a", "a-1.b_c:8080", "127.0.0.1", "[::1]:80", "[2001:db8::7]", "xn--bcher-kva.example", "a:"]
        {
            assert!(is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn an_absolute_target_wins_over_the_host_field() {
        let parts = parts("GET", "http://right.example:81/x?y", &[("host", "wrong.example")]);
        let admitted = admit(&parts).unwrap();
        assert_eq!((admitted.host, admitted.target), (Some("right.example:81"), "/x?y"));
    }

    #[test]
    fn targets_of_other_forms_are_refused() {
        let host = [("host", "a")];
        refuses("GET", "*", &host, 400);
        refuses("GET", "a:80", &host, 400);
        refuses("GET", "http://u:p@a/", &host, 400);
        refuses("GET", "ftp://a/", &host, 400);
        refuses("CONNECT", "a:80", &host, 405);
        refuses("TRACE", "/", &host, 405);
        assert_eq!(admit(&parts("OPTIONS", "*", &host)).unwrap().target, "*");
    }

    #[test]
    fn only_one_chunked_is_a_transfer_coding() {
        for coding in ["gzip, chunked", "chunked, chunked", "identity", "xchunked"] {
            refuses("POST", "/", &[("host", "a"), ("transfer-encoding", coding)], 501);
        }
        refuses(
            "POST",
            "/",
            &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            501,
        );
        assert!(admit(&parts("POST", "/", &[("host", "a"), ("transfer-encoding", "Chunked")])).is_ok());
    }

    #[test]
    fn imitations_of_framing_and_forwarding_fields_are_refused() {
        for name in [
            "content_length",
            "transfer_encoding",
            "transfer-encoding_",
            "x_forwarded_for",
            "x-forwarded_for",
            "x_forwarded_a_name_that_is_longer_than_the_buffer",
            "x_real_ip",
            "proxy_connection",
            "x_guideway_reason",
        ] {
            let refused = role(&HeaderName::from_bytes(name.as_bytes()).unwrap()) == Role::Imitation;
            assert_eq!(refused, name != "transfer-encoding_", "{name}");
        }
        assert!(admit(&parts("GET", "/", &[("host", "a"), ("my_field", "x")])).is_ok());
    }

    #[test]
    fn only_100_continue_can_be_expected() {
        refuses("POST", "/", &[("host", "a"), ("expect", "200-ok")], 417);
        assert!(admit(&parts("POST", "/", &[("host", "a"), ("expect", "100-Continue")])).is_ok());
    }
}
