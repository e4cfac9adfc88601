//! Owns what a proxy knows of gRPC: which requests are calls, how long their clients wait, and how they are told
//! that no backend answers. They look at a status of their own, not at that of HTTP.

use std::time::Duration;

use http::{HeaderMap, header};

use crate::proxy::rescue::ProxyError;

/// Codes of gRPC that we answer with.
const DEADLINE_EXCEEDED: &str = "4";
const RESOURCE_EXHAUSTED: &str = "8";
const UNIMPLEMENTED: &str = "12";
const INTERNAL: &str = "13";
const UNAVAILABLE: &str = "14";

/// Whether a request with these fields is a call of gRPC, or a response the answer to one. Its kin for browsers is not:
/// that is plain HTTP.
pub(in crate::proxy) fn is_call(fields: &HeaderMap) -> bool {
    let Some(kind) = fields.get(header::CONTENT_TYPE) else { return false };
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// How long the client of a call waits.
pub(super) fn timeout(fields: &HeaderMap) -> Option<Duration> {
    let text = fields.get("grpc-timeout")?.as_bytes();
    let (unit, digits) = text.split_last()?;
    let fits = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let value: u64 = std::str::from_utf8(digits).ok().filter(|_| fits)?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

/// The code of an error. Clients take UNAVAILABLE for a call that may be tried again.
pub(super) fn code(error: ProxyError) -> &'static str {
    match error {
        ProxyError::Timeout | ProxyError::ClientStalled => DEADLINE_EXCEEDED,
        ProxyError::HeadTooLarge | ProxyError::BodyTooLarge | ProxyError::ResponseTooLarge => {
            RESOURCE_EXHAUSTED
        }
        ProxyError::NoRoute | ProxyError::MethodNotAllowed | ProxyError::NotImplemented => UNIMPLEMENTED,
        ProxyError::BadRequest(_)
        | ProxyError::BadBody
        | ProxyError::BrokenOff
        | ProxyError::ExpectationFailed
        | ProxyError::Loop
        | ProxyError::BadResponse => INTERNAL,
        ProxyError::NoPool
        | ProxyError::NoBackend
        | ProxyError::Overloaded
        | ProxyError::Exhausted
        | ProxyError::ConnectFailed
        | ProxyError::Lost
        | ProxyError::Misdirected
        | ProxyError::Drained => UNAVAILABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn calls_are_known_by_their_content_type() {
        for (kind, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_call(&fields("content-type", kind)), is, "{kind}");
        }
    }

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("2M", Some(Duration::from_secs(120))),
            ("100000000S", None),
            ("S", None),
            ("-1S", None),
            ("1s", None),
            ("1", None),
        ] {
            assert_eq!(timeout(&fields("grpc-timeout", text)), expected, "{text}");
        }
    }
}
