//! Owns what a request may ask of a demo backend in its query: `delay=50ms`, `bytes=1024`, `status=503`.
//! Other parameters belong to the caller and are ignored.

use std::time::Duration;

use http::StatusCode;

use crate::crd::duration::DurationText;

/// More than any test needs, and little enough that a typing error does not run for hours.
const MAX_BYTES: u64 = 1 << 30;
/// Longer than every request timeout a pool may reasonably set.
const MAX_DELAY: Duration = Duration::from_secs(600);

/// How the backend shall answer one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// Wait so long before the response's head.
    pub delay: Duration,
    /// Send a body of so many bytes in the place of the usual one.
    pub bytes: Option<u64>,
    /// Answer with this status.
    pub status: StatusCode,
}

impl Default for Orders {
    fn default() -> Self {
        Self { delay: Duration::ZERO, bytes: None, status: StatusCode::OK }
    }
}

impl Orders {
    /// Reads the orders from a query. The error says which parameter is wrong and what would be right.
    pub fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut orders = Self::default();
        for pair in query.unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "delay" => orders.delay = parse_delay(value)?,
                "bytes" => orders.bytes = Some(parse_bytes(value)?),
                "status" => orders.status = parse_status(value)?,
                _ => {}
            }
        }
        Ok(orders)
    }
}

/// Reads a duration such as `50ms`, `10s` or `1m30s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    DurationText::from(text)
        .parse()
        .ok_or_else(|| format!("{text:?} is no duration; write for example 50ms, 10s or 1m30s"))
}

fn parse_delay(value: &str) -> Result<Duration, String> {
    match parse_duration(value).map_err(|reason| format!("delay: {reason}"))? {
        delay if delay > MAX_DELAY => Err(format!("delay: {value} is too long; at most {MAX_DELAY:?}")),
        delay => Ok(delay),
    }
}

fn parse_bytes(value: &str) -> Result<u64, String> {
    match value.parse() {
        Ok(bytes) if bytes <= MAX_BYTES => Ok(bytes),
        _ => Err(format!("bytes: {value:?} is not a number from 0 to {MAX_BYTES}")),
    }
}

/// Only final statuses: an informational one would leave the client waiting for the answer.
fn parse_status(value: &str) -> Result<StatusCode, String> {
    match value.parse::<u16>().map(StatusCode::from_u16) {
        Ok(Ok(status)) if (200..600).contains(&status.as_u16()) => Ok(status),
        _ => Err(format!("status: {value:?} is not a status from 200 to 599")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_without_orders_asks_for_the_usual_answer() {
        assert_eq!(Orders::parse(None), Ok(Orders::default()));
        assert_eq!(Orders::parse(Some("user=ada&x")), Ok(Orders::default()));
    }

    #[test]
    fn every_order_is_read() {
        let orders = Orders::parse(Some("delay=50ms&x=1&bytes=1024&status=503")).unwrap();
        assert_eq!(orders.delay, Duration::from_millis(50));
        assert_eq!(orders.bytes, Some(1024));
        assert_eq!(orders.status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn a_wrong_order_is_refused_with_its_name() {
        for (query, name) in [
            ("delay=soon", "delay"),
            ("delay=-1s", "delay"),
            ("delay=1h", "delay"),
            ("bytes=-1", "bytes"),
            ("bytes=2000000000", "bytes"),
            ("status=100", "status"),
            ("status=abc", "status"),
        ] {
            let reason = Orders::parse(Some(query)).unwrap_err();
            assert!(reason.starts_with(name), "{query}: {reason}");
        }
    }
}
