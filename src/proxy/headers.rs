//! Owns the heads that go out, to backends and to clients: written anew from the parsed parts of a head
//! that came in, straight into the bytes that are sent, so nothing passes that nobody looked at.

use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::filter::{self, Admitted};
use super::http1::{Encoder, Field, Framing, RequestHead, ResponseHead, Role, role_of, trailers};

/// What a request came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    /// As a URI names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The lines that tell a backend about the client at `address`.
pub(super) fn forwarded(address: std::net::IpAddr, scheme: Scheme) -> Rc<[u8]> {
    format!("\r\nx-forwarded-for: {address}\r\nx-forwarded-proto: {}", scheme.name()).into_bytes().into()
}

/// What a backend is told about where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    /// Lines about the client.
    pub(super) lines: &'a [u8],
    /// The host it asked for.
    pub(super) host: Option<&'a str>,
}

/// Writes the head to send to a backend. `authority` is that of the connection the request came in on.
pub(super) fn to_backend(
    out: &mut Vec<u8>,
    head: &RequestHead<'_>,
    admitted: &Admitted<'_>,
    told: Told<'_>,
    authority: impl FnOnce() -> String,
) {
    put(out, &[head.method, " ", admitted.path]);
    if let Some(query) = admitted.query {
        put(out, &["?", query]);
    }
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    match admitted.host {
        Some(host) => put(out, &[host]),
        // HTTP/1.0 knows no Host. The backend is asked in HTTP/1.1, which wants one, and an empty one is
        // refused by servers in the field; where the request came in stands in (RFC 9112 section 3.3).
        None => put(out, &[&authority()]),
    }
    let mut hops = 0;
    for field in head.fields.iter() {
        match field.role {
            Role::Pass | Role::Date if !(head.nominates && head.fields.nominate(field.name)) => {
                put_field(out, &field);
            }
            Role::Forwarding => hops = hops.max(filter::hops(&field)),
            Role::Trailer if head.framing == Framing::Chunked => put_announcement(out, field.value),
            _ => {}
        }
    }
    match head.framing {
        Framing::Chunked => out.extend_from_slice(b"\r\ntransfer-encoding: chunked"),
        Framing::Length(length) if head.states_length => put_length(out, length),
        Framing::Length(_) | Framing::UntilClose => {}
    }
    if let Some(protocol) = head.upgrade {
        put_upgrade(out, protocol);
    }
    out.extend_from_slice(told.lines);
    if let Some(host) = told.host {
        put(out, &["\r\nx-forwarded-host: ", host]);
    }
    match hops {
        0 => out.extend_from_slice(b"\r\nx-guideway-hops: 1"),
        more => put(out, &["\r\nx-guideway-hops: ", itoa::Buffer::new().format(more + 1)]),
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// What the head of an answer says about this hop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hop<'a> {
    /// Of the client's version: 0 or 1.
    pub(super) minor: u8,
    /// Whether the answer is to a HEAD, so that no body follows.
    pub(super) to_head: bool,
    /// Whether the connection stays open behind the answer.
    pub(super) keeps: bool,
    /// The time now, for an answer that does not say when it was made.
    pub(super) date: &'a [u8],
    /// The protocol that the answer switches to.
    pub(super) switches_to: Option<&'a str>,
}

/// Writes the head of a backend's answer for the client.
pub(super) fn to_client(out: &mut Vec<u8>, head: &ResponseHead<'_>, hop: &Hop<'_>) {
    put_status(out, hop.minor, head.status);
    let mut dated = false;
    for field in head.fields.iter().filter(|field| passes_on(head, field)) {
        dated |= field.role == Role::Date;
        put_field(out, &field);
    }
    if let Some(protocol) = hop.switches_to {
        put_upgrade(out, protocol);
        return put_end(out, None);
    }
    put_connection(out, hop);
    match (head.framing, head.status) {
        (_, 204) => {}
        _ if hop.to_head => head.stated_length.into_iter().for_each(|length| put_length(out, length)),
        (_, 304) => {}
        (Framing::Length(length), _) => put_length(out, length),
        (framing, _) => {
            if encoder(framing, hop.minor) == Encoder::Chunked {
                out.extend_from_slice(b"\r\ntransfer-encoding: chunked");
            }
        }
    }
    put_end(out, (!dated).then_some(hop.date));
}

/// Writes the head of an answer before the final one, such as 103 Early Hints, if it fits into `left` bytes (RFC 9110
/// section 15.2). What a backend says about an expectation it says to us, because we do not pass that on.
pub(super) fn interim(out: &mut Vec<u8>, head: &ResponseHead<'_>, left: &mut usize) {
    let (start, ends_here) = (out.len(), |role| !matches!(role, Role::Pass | Role::Date));
    if head.status == 100 {
        return;
    }
    put_status(out, 1, head.status);
    for field in head.fields.iter() {
        if !(ends_here(field.role) || head.nominates && head.fields.nominate(field.name)) {
            put_field(out, &field);
        }
    }
    put_end(out, None);
    match left.checked_sub(out.len() - start) {
        Some(less) => *left = less,
        None => out.truncate(start),
    }
}

/// The head of a backend's answer for a client of HTTP/2. `date` is the time now, as in a `Hop`.
pub(super) fn to_stream(head: &ResponseHead<'_>, date: &[u8]) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fields = response.headers_mut();
    for field in head.fields.iter().filter(|field| passes_on(head, field)) {
        append(fields, field.name.as_bytes(), field.value);
    }
    // The length of a body that does not follow is that of the one a GET would have got.
    if let Some(length) = head.stated_length.filter(|_| !matches!(head.status, 204 | 304)) {
        fields.insert(header::CONTENT_LENGTH, length.into());
    }
    if !fields.contains_key(header::DATE) {
        append(fields, b"date", date);
    }
    response
}

/// Those fields behind a body that may pass, if there are some. What a name means in front of a body it does not mean
/// behind it (RFC 9110 section 6.5.1). Where they answer a call of gRPC, they are its status and what an application
/// adds to that under names of its own, so only those with a meaning of ours end here.
pub(super) fn trailers(mut fields: HeaderMap, answer_call: bool) -> Option<HeaderMap> {
    let passes = |name: &[u8]| match answer_call {
        true => role_of(name) == Role::Pass,
        false => trailers::may_follow(name),
    };
    let refused = |name: &&HeaderName| !passes(name.as_str().as_bytes());
    let refused: Vec<HeaderName> = fields.keys().filter(refused).cloned().collect();
    refused.into_iter().for_each(|name| drop(fields.remove(name)));
    (!fields.is_empty()).then_some(fields)
}

/// Fields behind a body as lines of HTTP/1.
pub(super) fn lines(fields: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in fields {
        trailers::put(&mut lines, name.as_str().as_bytes(), value.as_bytes());
    }
    lines
}

/// Fields behind a body from lines of HTTP/1, if there are some.
pub(super) fn of_lines(lines: &[u8]) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    if !lines.is_empty() {
        let read = trailers::each(lines, |name, value| append(&mut fields, name.as_bytes(), value));
        debug_assert_eq!(read, Ok(()), "a decoder wrote them");
    }
    (!fields.is_empty()).then_some(fields)
}

/// Adds a field. One that the parser of HTTP/1 let through fits, but for bytes that HTTP/2 does not carry.
pub(super) fn append(fields: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
        fields.append(name, value);
    }
}

/// Whether a field of a backend's answer goes on as it is.
fn passes_on(head: &ResponseHead<'_>, field: &Field<'_>) -> bool {
    match field.role {
        Role::HopByHop | Role::Te | Role::Trailer | Role::Connection | Role::Upgrade => false,
        Role::ContentLength | Role::TransferEncoding => false,
        Role::Pass | Role::Date | Role::Host | Role::Expect | Role::Forwarding => {
            !(head.nominates && head.fields.nominate(field.name))
        }
    }
}

/// Writes a whole answer of ours, with a text and with `fields` of its own.
pub(super) fn own_answer(
    out: &mut Vec<u8>,
    status: StatusCode,
    fields: &[(&str, &str)],
    text: &str,
    hop: &Hop<'_>,
) {
    put_status(out, hop.minor, status.as_u16());
    for (name, value) in fields {
        put(out, &["\r\n", name, ": ", value]);
    }
    put_connection(out, hop);
    put_length(out, text.len() as u64);
    put_end(out, Some(hop.date));
    if !hop.to_head {
        out.extend_from_slice(text.as_bytes());
    }
}

/// How a body with this framing goes to a client of HTTP/1.`minor`. The older one knows no chunks; the
/// end of the connection ends the body then.
pub(super) fn encoder(framing: Framing, minor: u8) -> Encoder {
    match framing {
        Framing::Length(_) => Encoder::Plain,
        Framing::Chunked | Framing::UntilClose if minor == 0 => Encoder::Plain,
        Framing::Chunked | Framing::UntilClose => Encoder::Chunked,
    }
}

fn put_status(out: &mut Vec<u8>, minor: u8, status: u16) {
    out.extend_from_slice(if minor == 0 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    match StatusCode::from_u16(status) {
        Ok(StatusCode::OK) => out.extend_from_slice(b"200 OK"),
        // The text may be empty, the space before it may not (RFC 9112 section 4).
        Ok(known) => put(out, &[known.as_str(), " ", known.canonical_reason().unwrap_or_default()]),
        Err(_) => out.extend_from_slice(b"500 "),
    }
}

/// Says whether the connection stays open where the version alone does not.
fn put_connection(out: &mut Vec<u8>, hop: &Hop<'_>) {
    match (hop.minor, hop.keeps) {
        (0, true) => out.extend_from_slice(b"\r\nconnection: keep-alive"),
        (1.., false) => out.extend_from_slice(b"\r\nconnection: close"),
        (0, false) | (1.., true) => {}
    }
}

fn put_upgrade(out: &mut Vec<u8>, protocol: &str) {
    put(out, &["\r\nconnection: upgrade\r\nupgrade: ", protocol]);
}

/// Says which fields come behind the body. Some servers drop those that nobody told them of.
fn put_announcement(out: &mut Vec<u8>, value: &[u8]) {
    let mut before: &[u8] = b"\r\ntrailer: ";
    for name in trailers::announced(value) {
        out.extend_from_slice(before);
        out.extend_from_slice(name);
        before = b", ";
    }
}

fn put_length(out: &mut Vec<u8>, length: u64) {
    put(out, &["\r\ncontent-length: ", itoa::Buffer::new().format(length)]);
}

fn put_end(out: &mut Vec<u8>, date: Option<&[u8]>) {
    if let Some(date) = date {
        out.extend_from_slice(b"\r\ndate: ");
        out.extend_from_slice(date);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

fn put_field(out: &mut Vec<u8>, field: &Field<'_>) {
    out.extend_from_slice(b"\r\n");
    let name = out.len();
    out.extend_from_slice(field.name.as_bytes());
    out[name..].make_ascii_lowercase();
    out.extend_from_slice(b": ");
    out.extend_from_slice(field.value);
}

fn put(out: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::http1::{self, Asked};
    use super::super::limits::{HEAD_GROWTH_BYTES, MAX_HEADER_FIELDS};
    use super::*;

    fn backend_sees(fields: &str) -> String {
        let wire = format!("POST /a?b HTTP/1.1\r\nHost: shop.example:81\r\n{fields}\r\n");
        let mut space = http1::space();
        let (head, _) = RequestHead::parse(wire.as_bytes(), &mut space).unwrap().unwrap();
        let mut out = Vec::new();
        let lines = forwarded([192, 0, 2, 7].into(), Scheme::Http);
        let told = Told { lines: &lines, host: Some("shop.example:81") };
        to_backend(&mut out, &head, &filter::admit(&head, Scheme::Http).unwrap(), told, || unreachable!());
        String::from_utf8(out).unwrap()
    }

    const OURS: &str = "\r\nx-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: http\r\nx-forwarded-host: shop.example:81\r\n\
                        x-guideway-hops: 1\r\n\r\n";

    fn check(fields: &str, expected: &str) {
        let start = "POST /a?b HTTP/1.1\r\nhost: shop.example:81";
        assert_eq!(backend_sees(fields), format!("{start}{expected}{OURS}"), "{fields:?}");
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        check(
            "Keep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\nTrailer: x\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: x\r\nExpect: 100-continue\r\n",
            "",
        );
        check("Connection: close, X-Mine\r\nX-Mine: 1\r\nX-Yours: 2\r\n", "\r\nx-yours: 2");
    }

    #[test]
    fn a_nomination_removes_neither_framing_nor_host_nor_ours() {
        check(
            "Connection: host, content-length, x-forwarded-for\r\nContent-Length: 3\r\n",
            "\r\ncontent-length: 3",
        );
    }

    #[test]
    fn what_a_client_says_about_itself_is_replaced() {
        check(
            "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-Client-Cert: x\r\nForwarded: for=x\r\nX-Real-IP: 10.0.0.1\r\n",
            "",
        );
    }

    #[test]
    fn passing_through_is_counted() {
        for (said, counted) in [("1", 2), ("9", 10), ("x", 1), ("300", 1), ("3\r\nX-Guideway-Hops: 7", 8)] {
            let head = backend_sees(&format!("X-Guideway-Hops: {said}\r\n"));
            assert!(head.ends_with(&format!(":81\r\nx-guideway-hops: {counted}\r\n\r\n")), "{said}: {head}");
        }
    }

    #[test]
    fn framing_is_written_anew() {
        check("Content-Length: 0\r\n", "\r\ncontent-length: 0");
        check("Content-Length: 007\r\nContent-Length: 7\r\n", "\r\ncontent-length: 7");
        check("Content-Length: 7\r\nTransfer-Encoding: Chunked\r\n", "\r\ntransfer-encoding: chunked");
        check("", "");
    }

    #[test]
    fn fields_behind_a_body_are_announced_if_they_pass() {
        let chunks = "Transfer-Encoding: chunked\r\n";
        let announced = "\r\ntrailer: X-Sum, etag\r\ntransfer-encoding: chunked";
        check(&format!("Trailer: X-Sum, host, etag\r\n{chunks}"), announced);
        check(&format!("Trailer: Authorization\r\n{chunks}"), "\r\ntransfer-encoding: chunked");
    }

    #[test]
    fn fields_behind_a_body_become_lines_and_lines_fields() {
        let named = |names: &[&'static str]| {
            names.iter().map(|name| (name.parse().unwrap(), HeaderValue::from_static("1"))).collect()
        };
        let fields: HeaderMap = named(&["x-sum", "host", "my-own", "grpc-status", "authorization"]);
        let passed = trailers(fields.clone(), false).unwrap();
        assert_eq!(lines(&passed), b"x-sum: 1\r\ngrpc-status: 1\r\n");
        assert_eq!(of_lines(&lines(&passed)), Some(passed));
        assert_eq!(trailers(fields, true), Some(named(&["x-sum", "my-own", "grpc-status", "authorization"])));
        assert_eq!((trailers(named(&["host"]), false), of_lines(b"")), (None, None));
    }

    #[test]
    fn fields_that_repeat_stay_apart() {
        check("Cookie: a\r\nCookie:b \r\n", "\r\ncookie: a\r\ncookie: b");
    }

    fn client_sees(wire: &str, hop: Hop<'_>) -> String {
        let mut space = http1::space();
        let (head, _) =
            ResponseHead::parse(wire.as_bytes(), &mut space, Asked { head: hop.to_head, upgrade: Some("x") })
                .unwrap()
                .unwrap();
        let mut out = Vec::new();
        to_client(&mut out, &head, &hop);
        String::from_utf8(out).unwrap()
    }

    const HOP: Hop<'_> = Hop { minor: 1, to_head: false, keeps: true, date: b"now", switches_to: None };

    #[test]
    fn an_answer_says_what_becomes_of_the_connection() {
        for (minor, keeps, said) in [
            (1, true, ""),
            (1, false, "connection: close\r\n"),
            (0, true, "connection: keep-alive\r\n"),
            (0, false, ""),
        ] {
            let wire = "HTTP/1.1 200 Fine\r\nDate: then\r\nConnection: upgrade, x\r\nX: 1\r\nContent-Length: 2\r\n\r\n";
            let head = client_sees(wire, Hop { minor, keeps, ..HOP });
            assert_eq!(
                head,
                format!("HTTP/1.{minor} 200 OK\r\ndate: then\r\n{said}content-length: 2\r\n\r\n")
            );
        }
    }

    #[test]
    fn an_answer_without_a_date_gets_one() {
        let head = client_sees("HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n", HOP);
        assert_eq!(head, "HTTP/1.1 299 \r\ncontent-length: 0\r\ndate: now\r\n\r\n");
    }

    #[test]
    fn a_length_is_stated_where_it_may_be() {
        for (status, to_head, expected) in [
            (200, true, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ndate: now\r\n\r\n"),
            (204, true, "HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n"),
            (204, false, "HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n"),
            (304, false, "HTTP/1.1 304 Not Modified\r\ndate: now\r\n\r\n"),
        ] {
            let wire = format!("HTTP/1.1 {status} x\r\nContent-Length: 9\r\n\r\n");
            assert_eq!(client_sees(&wire, Hop { to_head, ..HOP }), expected);
        }
    }

    /// Lines of a head that may mean something to somebody, in any order.
    const LINES: &str = "((Host|host|HOST)(: | :|:)(a|b:1|a b|)|(Content-Length|content_length): ?(0|1|1, 1|x)\
                         |Transfer-Encoding: ?(chunked|gzip|gzip, chunked|chunked )|(TE|Trailer|Upgrade|X|x): ?[ -~\t]{0,3}\
                         |Connection: ?(close|host|x, te|keep-alive|content-length)|X-Forwarded-(For|x): 1| x|x|X: \r|Date: x)\r?\n";

    proptest! {
        #[test]
        fn what_a_backend_gets_is_one_request_with_one_end(
            line in "(GET|POST|get) (/|/a[?]b=c|http://h/x|[*]|a|/ /) HTTP/1[.][01]\r?\n",
            fields in vec(LINES, 0..6),
        ) {
            let wire = format!("{line}Host: a\r\n{}\r\n", fields.concat());
            let mut space = http1::space();
            let Ok(Some((head, _))) = RequestHead::parse(wire.as_bytes(), &mut space) else { return Ok(()) };
            let Ok(admitted) = filter::admit(&head, Scheme::Http) else { return Ok(()) };
            let mut out = Vec::new();
            let lines = forwarded([192, 0, 2, 7].into(), Scheme::Http);
            let told = Told { lines: &lines, host: admitted.host };
            to_backend(&mut out, &head, &admitted, told, || "[2001:db8::1]:80".into());
            let mut space = http1::space();
            let (written, length) = RequestHead::parse(&out, &mut space).unwrap().unwrap();
            prop_assert_eq!(length, out.len());
            prop_assert_eq!(written.framing, head.framing);
            let count = |role| written.fields.iter().filter(|field| field.role == role).count();
            prop_assert_eq!(count(Role::Host), 1);
            prop_assert_eq!((count(Role::Connection), count(Role::HopByHop), count(Role::Te)), (0, 0, 0));
            let said = count(Role::ContentLength) + count(Role::TransferEncoding);
            prop_assert!(said <= 1, "{}", String::from_utf8_lossy(&out));
            prop_assert_eq!(written.fields.get("x-forwarded-for"), Some(&b"192.0.2.7"[..]));
        }

        #[test]
        fn what_a_client_gets_is_one_response_with_one_end(
            line in "HTTP/1[.][01] (200|204|304|404|999)( |)\r?\n",
            fields in vec(LINES, 0..6),
            to_head in any::<bool>(),
            minor in 0_u8..2,
        ) {
            let wire = format!("{line}{}\r\n", fields.concat());
            let mut space = http1::space();
            let Ok(Some((head, _))) = ResponseHead::parse(wire.as_bytes(), &mut space, Asked { head: to_head, upgrade: None }) else {
                return Ok(());
            };
            let out = client_sees(&wire, Hop { minor, to_head, keeps: false, ..HOP });
            let mut space = http1::space();
            let (written, length) = ResponseHead::parse(out.as_bytes(), &mut space, Asked { head: to_head, upgrade: None }).unwrap().unwrap();
            prop_assert_eq!((written.status, length), (head.status, out.len()));
            prop_assert_eq!(encoder(written.framing, minor), encoder(head.framing, minor));
            prop_assert!(matches!(head.framing, Framing::Length(_)) <= (written.framing == head.framing));
            let count = |role| written.fields.iter().filter(|field| field.role == role).count();
            prop_assert!(count(Role::ContentLength) + count(Role::TransferEncoding) <= 1, "{}", out);
            prop_assert!(count(Role::Date) >= 1);
        }
    }

    #[test]
    fn a_head_grows_by_no_more_than_the_room_in_front_of_it() {
        for framing in ["", "Content-Length:1\n"] {
            let fields = "a:\n".repeat(MAX_HEADER_FIELDS - 1);
            let wire = format!("HTTP/1.1 511\n{fields}{framing}\n");
            for (minor, keeps) in [(0, true), (1, false)] {
                let head = client_sees(&wire, Hop { minor, keeps, date: &[b'x'; 29], ..HOP });
                // Besides, there is the size of a first chunk.
                assert!(head.len() + 18 <= wire.len() + HEAD_GROWTH_BYTES, "{} {}", head.len(), wire.len());
            }
        }
    }
}
