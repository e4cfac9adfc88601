//! Owns the head that a backend gets to read: written anew from the parsed parts of an admitted
//! request, straight into the bytes that go out, so nothing passes that nobody looked at.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, HeaderMap, HeaderName};
use http::request::Parts;

use super::filter::{self, Admitted, Role};
use super::upstream::Framing;

/// The head to send for `client`, with the framing of the body that follows it.
pub(super) fn upstream_head(
    buffer: &mut BytesMut,
    parts: &Parts,
    admitted: &Admitted<'_>,
    framing: Framing,
    client: &[u8],
) -> Bytes {
    // HTTP/1.0 knows no Host. The backend is asked in HTTP/1.1, which wants an empty one then
    // (RFC 9110 section 7.2).
    let host = admitted.host.unwrap_or_default();
    buffer.put_slice(parts.method.as_str().as_bytes());
    buffer.put_u8(b' ');
    buffer.put_slice(admitted.target.as_bytes());
    buffer.put_slice(b" HTTP/1.1\r\nhost: ");
    buffer.put_slice(host.as_bytes());
    let nominated = Nominated::of(&parts.headers, admitted.nominates);
    for (name, value) in &parts.headers {
        if filter::role(name) == Role::Pass && !nominated.contains(name) {
            field(buffer, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    match framing {
        Framing::Chunked => field(buffer, b"transfer-encoding", b"chunked"),
        Framing::Length(length) if admitted.has_length => {
            field(buffer, b"content-length", itoa::Buffer::new().format(length).as_bytes());
        }
        Framing::Length(_) => {}
    }
    field(buffer, b"x-forwarded-for", client);
    buffer.put_slice(b"\r\nx-forwarded-proto: http");
    if !host.is_empty() {
        field(buffer, b"x-forwarded-host", host.as_bytes());
    }
    buffer.put_slice(b"\r\n\r\n");
    buffer.split().freeze()
}

fn field(buffer: &mut BytesMut, name: &[u8], value: &[u8]) {
    buffer.put_slice(b"\r\n");
    buffer.put_slice(name);
    buffer.put_slice(b": ");
    buffer.put_slice(value);
}

/// The fields that `Connection` names, which end at this hop (RFC 9110 section 7.6.1). What frames the
/// message or tells about the client is decided before, so it cannot be removed this way.
pub(super) struct Nominated<'a> {
    headers: Option<&'a HeaderMap>,
}

impl<'a> Nominated<'a> {
    pub(super) fn of(headers: &'a HeaderMap, any: bool) -> Self {
        Self { headers: any.then_some(headers) }
    }

    pub(super) fn contains(&self, name: &HeaderName) -> bool {
        let named = |headers: &HeaderMap| {
            headers
                .get_all(CONNECTION)
                .iter()
                .flat_map(filter::tokens)
                .any(|token| token.eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        self.headers.is_some_and(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn head(target: &str, fields: &[(&str, &str)], framing: Framing) -> String {
        let mut request = Request::builder().method("POST").uri(target).header("host", "shop.example:81");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let admitted = filter::admit(&parts).unwrap();
        let head = upstream_head(&mut BytesMut::new(), &parts, &admitted, framing, b"192.0.2.7");
        String::from_utf8(head.to_vec()).unwrap()
    }

    const OURS: &str = "\r\nx-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: http\r\nx-forwarded-host: shop.example:81\r\n\r\n";

    fn check(fields: &[(&str, &str)], framing: Framing, expected: &str) {
        let start = "POST /a?b HTTP/1.1\r\nhost: shop.example:81";
        assert_eq!(head("/a?b", fields, framing), format!("{start}{expected}{OURS}"), "{fields:?}");
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let hop_by_hop = [
            ("keep-alive", "5"),
            ("proxy-connection", "x"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("expect", "100-continue"),
        ];
        check(&hop_by_hop, Framing::Length(0), "");
        check(
            &[("connection", "close, X-Mine"), ("x-mine", "1"), ("x-yours", "2")],
            Framing::Length(0),
            "\r\nx-yours: 2",
        );
    }

    #[test]
    fn a_nomination_removes_neither_framing_nor_host_nor_ours() {
        let fields = [("connection", "host, content-length, x-forwarded-for"), ("content-length", "3")];
        check(&fields, Framing::Length(3), "\r\ncontent-length: 3");
    }

    #[test]
    fn what_a_client_says_about_itself_is_replaced() {
        let spoofed = [
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-client-cert", "x"),
            ("forwarded", "for=x"),
            ("x-real-ip", "10.0.0.1"),
        ];
        check(&spoofed, Framing::Length(0), "");
    }

    #[test]
    fn framing_is_written_anew() {
        check(&[("content-length", "0")], Framing::Length(0), "\r\ncontent-length: 0");
        check(&[("transfer-encoding", "chunked")], Framing::Chunked, "\r\ntransfer-encoding: chunked");
        check(&[], Framing::Length(0), "");
    }

    #[test]
    fn fields_that_repeat_stay_apart() {
        check(&[("cookie", "a"), ("cookie", "b")], Framing::Length(0), "\r\ncookie: a\r\ncookie: b");
    }
}
