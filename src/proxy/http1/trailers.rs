//! Owns the fields behind a body (RFC 9110 section 6.5): which may pass, and the lines of HTTP/1 they are written in.
//! Nobody looked at them when the request was judged, and some servers take them for fields of the head.

use super::Malformed;
use super::decoder::is_token;
use super::field::{Role, role_of, tokens};
use crate::proxy::limits::MAX_HEADER_FIELDS;

/// Fields whose definitions let them stand behind a body: what is known of a body only at its end.
const KNOWN: [&str; 8] = [
    "content-digest",
    "content-md5",
    "digest",
    "etag",
    "repr-digest",
    "server-timing",
    "signature",
    "signature-input",
];

/// Whether a field of this name may pass behind a body: a known one, one of gRPC, or one of an application's own.
/// Whatever frames, routes, authenticates or tells of the client belongs into a head, and so does all that is not known.
pub(in crate::proxy) fn may_follow(name: &[u8]) -> bool {
    let starts = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|it| it.eq_ignore_ascii_case(prefix));
    let is_own = starts(b"x-") || starts(b"grpc-");
    let is_known = || KNOWN.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
    (is_own || is_known()) && role_of(name) == Role::Pass && !name.contains(&b'_')
}

/// The names in the value of a `Trailer` field that may pass.
pub(in crate::proxy) fn announced(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    tokens(value).filter(|name| may_follow(name) && name.iter().all(|byte| is_token(*byte)))
}

/// The lines of those fields that may pass, written anew. `lines` has as many fields as a head may have.
pub(super) fn admitted(lines: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::new();
    each(lines, |name, value| {
        if may_follow(name.as_bytes()) {
            put(&mut out, name.as_bytes(), value);
        }
    })?;
    Ok(out)
}

/// Shows `look` each field of some lines.
pub(in crate::proxy) fn each(lines: &[u8], mut look: impl FnMut(&str, &[u8])) -> Result<(), Malformed> {
    let mut space = [httparse::EMPTY_HEADER; MAX_HEADER_FIELDS];
    let ended = [lines, b"\r\n"].concat();
    match httparse::parse_headers(&ended, &mut space) {
        Ok(httparse::Status::Complete((length, fields))) if length == ended.len() => {
            fields.iter().for_each(|field| look(field.name, field.value));
            Ok(())
        }
        _ => Err(Malformed),
    }
}

/// Writes a line.
pub(in crate::proxy) fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let start = out.len();
    out.extend_from_slice(name);
    out[start..].make_ascii_lowercase();
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_body_at_its_end_may_follow_it() {
        for name in [
            "Content-Digest",
            "etag",
            "Grpc-Status",
            "grpc-message",
            "x-checksum",
            "X-Amz-Checksum-CRC32",
            "server-timing",
        ] {
            assert!(may_follow(name.as_bytes()), "{name}");
        }
        for name in [
            "Host",
            "Content-Length",
            "transfer-encoding",
            "Connection",
            "TE",
            "Trailer",
            "Authorization",
            "Cookie",
            "Set-Cookie",
            "Cache-Control",
            "Content-Type",
            "Location",
            "If-Match",
            "Date",
            "Forwarded",
            "X-Forwarded-For",
            "x-forwarded-anything",
            "X-Real-IP",
            "x-guideway-hops",
            "x_checksum",
            "x-forwarded_for",
            "proxy",
            "checksum",
            "x",
            "",
        ] {
            assert!(!may_follow(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn lines_are_written_anew() {
        let lines = b"X-One:1\r\nHost: b\r\nx-two:\t 2 \t\r\nX-One: 3\r\n";
        assert_eq!(admitted(lines).unwrap(), b"x-one: 1\r\nx-two: 2\r\nx-one: 3\r\n");
        assert_eq!(admitted(b""), Ok(Vec::new()));
        let many = b"x: 1\r\n".repeat(MAX_HEADER_FIELDS);
        assert!(admitted(&many).is_ok());
        assert_eq!(admitted(&[&many[..], b"x: 1\r\n"].concat()), Err(Malformed));
    }

    #[test]
    fn names_are_announced_if_they_may_pass() {
        let names: Vec<_> = announced(b"X-Sum, host,,Etag ,authorization, x-a b, x-\"c\"").collect();
        assert_eq!(names, [&b"X-Sum"[..], b"Etag"]);
    }
}
