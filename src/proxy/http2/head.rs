//! Owns the translation of heads between HTTP/2 and the form that the rest of the proxy looks at, which is that of
//! HTTP/1: so there is one set of rules for what may pass.

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version, header, request, response};
use httparse::Header;

use crate::proxy::headers;
use crate::proxy::http1::{
    Asked, Fields, HeadFault, Pseudo, RequestHead, ResponseFault, ResponseHead, Role, role_of,
};
use crate::proxy::limits::MAX_HEADER_FIELDS;
use crate::proxy::rescue::ProxyError;

/// Fields of our own that a head may have besides those of the client.
const OWN_FIELDS: usize = 8;

const NOT_CARRIED: ProxyError = ProxyError::BadRequest("the request's target cannot be said in HTTP/2");

/// Shows `look` the head of a request that came in. `scheme` is that of the connection.
pub(in crate::proxy) fn with_request<T>(
    parts: &request::Parts,
    scheme: &str,
    has_body: bool,
    look: impl FnOnce(&RequestHead<'_>) -> T,
) -> Result<T, HeadFault> {
    let cookie = joined_cookie(&parts.headers);
    let mut space = [httparse::EMPTY_HEADER; MAX_HEADER_FIELDS];
    let count = lay_out(&parts.headers, cookie.as_deref(), &mut space).ok_or(HeadFault::TooLarge)?;
    let pseudo = Pseudo {
        authority: parts.uri.authority().map(Authority::as_str),
        scheme_fits: parts.uri.scheme_str() == Some(scheme),
    };
    let target = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let fields = Fields::new(&space[..count]);
    let head = RequestHead::of_stream(parts.method.as_str(), target, pseudo, fields, has_body)?;
    Ok(look(&head))
}

/// Shows `look` the head of a response that came in.
pub(in crate::proxy) fn with_response<T>(
    parts: &response::Parts,
    asked: Asked<'_>,
    has_body: bool,
    look: impl FnOnce(&ResponseHead<'_>) -> T,
) -> Result<T, ResponseFault> {
    let mut space = [httparse::EMPTY_HEADER; MAX_HEADER_FIELDS];
    let count = lay_out(&parts.headers, None, &mut space).ok_or(ResponseFault::TooLarge)?;
    let fields = Fields::new(&space[..count]);
    let head = ResponseHead::of_stream(parts.status.as_u16(), fields, asked, has_body)?;
    Ok(look(&head))
}

/// The request to send to a backend, from its head as it is written for HTTP/1. `scheme` is that of the connection
/// to the backend: servers of HTTP/2 refuse another one.
pub(in crate::proxy) fn request_of(head: &[u8], scheme: Scheme) -> Result<Request<()>, ProxyError> {
    let mut space = [httparse::EMPTY_HEADER; MAX_HEADER_FIELDS + OWN_FIELDS];
    let mut parsed = httparse::Request::new(&mut space);
    parsed.parse(head).map_err(|_| NOT_CARRIED)?;
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let mut request = Request::new(());
    let (mut host, mut fields) = (None, HeaderMap::with_capacity(parsed.headers.len()));
    for field in parsed.headers.iter() {
        match role_of(field.name.as_bytes()) {
            Role::Host => host = Some(field.value),
            Role::Pass | Role::Date | Role::ContentLength | Role::Forwarding | Role::Trailer => {
                headers::append(&mut fields, field.name.as_bytes(), field.value);
            }
            Role::HopByHop | Role::Te | Role::Connection | Role::Upgrade => {}
            Role::TransferEncoding | Role::Expect => {}
        }
    }
    // Between us and the backend it is true whatever the client takes, and servers of gRPC want to hear it.
    headers::append(&mut fields, b"te", b"trailers");
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(scheme);
    uri.authority = Authority::from_maybe_shared(Bytes::copy_from_slice(host.unwrap_or_default())).ok();
    uri.path_and_query = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(target.as_bytes())).ok();
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| NOT_CARRIED)?;
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_| NOT_CARRIED)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = fields;
    Ok(request)
}

/// Puts fields where they are looked at; how many. `cookie` stands for all cookies.
fn lay_out<'a>(
    fields: &'a HeaderMap,
    cookie: Option<&'a [u8]>,
    space: &mut [Header<'a>; MAX_HEADER_FIELDS],
) -> Option<usize> {
    let is_joined = |name: &http::HeaderName| cookie.is_some() && *name == header::COOKIE;
    let apart = fields.iter().filter(|(name, _)| !is_joined(name));
    let joined = cookie.map(|value| Header { name: header::COOKIE.as_str(), value });
    let all =
        apart.map(|(name, value)| Header { name: name.as_str(), value: value.as_bytes() }).chain(joined);
    let mut count = 0;
    for field in all {
        *space.get_mut(count)? = field;
        count += 1;
    }
    Some(count)
}

/// HTTP/2 may carry the cookies of a request apart; everybody else wants them together (RFC 9113 section 8.2.3).
fn joined_cookie(fields: &HeaderMap) -> Option<Vec<u8>> {
    let crumbs: Vec<&[u8]> = fields.get_all(header::COOKIE).iter().map(|it| it.as_bytes()).collect();
    (crumbs.len() > 1).then(|| crumbs.join(&b"; "[..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_written_for_http_1_becomes_one_of_http_2() {
        let head = b"POST /a?b HTTP/1.1\r\nhost: shop:81\r\nx: 1\r\nx: 2\r\ntransfer-encoding: chunked\r\nx-forwarded-for: 192.0.2.7\r\n\r\n";
        let request = request_of(head, Scheme::HTTP).unwrap();
        assert_eq!(
            (request.method(), request.uri().to_string()),
            (&Method::POST, "http://shop:81/a?b".into())
        );
        let fields = request.headers().iter();
        let fields: Vec<_> = fields.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(fields, [("x", "1"), ("x", "2"), ("x-forwarded-for", "192.0.2.7"), ("te", "trailers")]);
        assert!(
            request_of(b"GET / HTTP/1.1\r\nhost: \r\n\r\n", Scheme::HTTP).is_err(),
            "it names no authority"
        );
    }

    #[test]
    fn cookies_come_together() {
        let request = Request::builder().uri("http://a/").header("cookie", "a=1").header("cookie", "b=2");
        let (parts, ()) = request.header("x", "y").body(()).unwrap().into_parts();
        let cookie =
            with_request(&parts, "http", false, |head| head.fields.get("cookie").map(<[u8]>::to_vec));
        assert_eq!(cookie, Ok(Some(b"a=1; b=2".to_vec())));
    }

    #[test]
    fn more_fields_than_are_looked_at_are_refused() {
        let mut request = Request::builder().uri("http://a/");
        for number in 0..=MAX_HEADER_FIELDS {
            request = request.header(format!("x-{number}"), "");
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        assert_eq!(with_request(&parts, "http", false, |_| ()), Err(HeadFault::TooLarge));
    }
}
