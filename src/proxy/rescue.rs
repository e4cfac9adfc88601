//! Owns what a client is told when no backend's own answer reaches it: one closed list of errors,
//! each with whose side it is on, its status and the label it is counted under.

use http::StatusCode;

use super::headers::{self, Hop};
use super::http1::HeadFault;
use super::limits::{MAX_HEAD_BYTES, MAX_HEADER_FIELDS};
use crate::metrics::RescueReason;

/// The header that says why Guideway answered itself; its value is the `reason` of `guideway_rescued_total`.
pub const REASON_HEADER: &str = "x-guideway-reason";

/// Methods named to a client that used CONNECT or TRACE (RFC 9110 section 15.5.6 asks for a list).
const ALLOWED_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's request or behaviour.
    Client,
    /// The backend's.
    Upstream,
    /// Ours, or that of the configuration.
    Guideway,
}

/// Why a request did not get a backend's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The request breaks a rule; the text says which.
    #[error("{0}")]
    BadRequest(&'static str),
    /// The request's head is longer or has more fields than we take.
    #[error("the request's head has more bytes or fields than are taken here")]
    HeadTooLarge,
    /// CONNECT or TRACE.
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    /// A transfer coding other than one `chunked`.
    #[error("only the transfer coding \"chunked\" is understood")]
    NotImplemented,
    /// `Expect` with something else than `100-continue`.
    #[error("only \"100-continue\" can be expected")]
    ExpectationFailed,
    /// The client stopped in the middle of its request.
    #[error("the request did not arrive in time")]
    ClientStalled,
    /// The client garbled its request's body.
    #[error("the request's body is broken")]
    BadBody,
    /// The request's body is longer than its pool takes.
    #[error("the request's body is longer than is taken here")]
    BodyTooLarge,
    /// The client closed its side in the middle of its request. It may still listen; hardly any does.
    #[error("the request broke off")]
    BrokenOff,
    /// No pool answers on the port any more.
    #[error("no pool answers on this port")]
    NoPool,
    /// Pools answer on the port, but none for this host and path.
    #[error("nothing is served here for this host and path")]
    NoRoute,
    /// The host asks other certificates of clients than the name that the connection was opened for.
    #[error("this host wants a connection of its own")]
    Misdirected,
    /// The request passed through a Guideway too often.
    #[error("the request goes in circles: a pool's backend leads back here")]
    Loop,
    /// There is no memory left for more requests.
    #[error("there is no memory left for more requests")]
    Overloaded,
    /// There is no file descriptor left for a connection to a backend, or no memory of the kernel's.
    #[error("there is no file descriptor left for a connection to a backend")]
    Exhausted,
    /// The pool has no backend that may answer.
    #[error("no backend is ready")]
    NoBackend,
    /// No candidate could be connected to.
    #[error("no connection to a backend came about")]
    ConnectFailed,
    /// A backend broke off before it answered, and no other one answered.
    #[error("a backend broke off before it answered")]
    Lost,
    /// The backend's answer is not valid HTTP.
    #[error("the backend's answer is not valid HTTP")]
    BadResponse,
    /// The head of the backend's answer is longer or has more fields than we take.
    #[error(
        "the head of the backend's answer has more than the {MAX_HEAD_BYTES} bytes or {MAX_HEADER_FIELDS} fields that \
         are taken here"
    )]
    ResponseTooLarge,
    /// The backend did not answer within the pool's request timeout.
    #[error("the backend did not answer in time")]
    Timeout,
    /// The backend left the pool and its drain timeout is over.
    #[error("the backend left before it answered")]
    Drained,
}

impl ProxyError {
    /// Whose side it is on.
    pub fn side(self) -> Side {
        match self {
            Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::MethodNotAllowed
            | Self::NotImplemented
            | Self::ExpectationFailed
            | Self::ClientStalled
            | Self::BadBody
            | Self::BodyTooLarge
            | Self::BrokenOff
            | Self::NoRoute
            | Self::Misdirected => Side::Client,
            Self::ConnectFailed
            | Self::Lost
            | Self::BadResponse
            | Self::ResponseTooLarge
            | Self::Timeout
            | Self::Drained => Side::Upstream,
            Self::NoPool | Self::Loop | Self::NoBackend | Self::Overloaded | Self::Exhausted => {
                Side::Guideway
            }
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn retryable(self) -> bool {
        match self {
            Self::NoPool
            | Self::NoBackend
            | Self::Overloaded
            | Self::Exhausted
            | Self::ConnectFailed
            | Self::Lost
            | Self::Timeout
            | Self::Drained => true,
            Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::MethodNotAllowed
            | Self::NotImplemented
            | Self::ExpectationFailed
            | Self::ClientStalled
            | Self::BadBody
            | Self::BodyTooLarge
            | Self::BrokenOff
            | Self::NoRoute
            | Self::Misdirected
            | Self::Loop
            | Self::BadResponse
            | Self::ResponseTooLarge => false,
        }
    }

    /// Whether nothing more is taken from the client. Who is before us may have read such a request otherwise, and take
    /// the answer to what follows it for that of another client. Nor is what is left of a long body read. Nor is there ever more than this answer on a port that
    /// is closed, while a new connection leads to whoever is there now.
    pub(super) fn ends_connection(self) -> bool {
        matches!(
            self,
            Self::BadRequest(_) | Self::BadBody | Self::BodyTooLarge | Self::BrokenOff | Self::NoPool
        )
    }

    /// The status a client sees.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::BadBody | Self::BrokenOff => StatusCode::BAD_REQUEST,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::ClientStalled => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::NoPool | Self::NoBackend | Self::Overloaded | Self::Exhausted => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::ConnectFailed | Self::Lost | Self::BadResponse | Self::ResponseTooLarge => {
                StatusCode::BAD_GATEWAY
            }
            Self::Timeout | Self::Drained => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The label it is counted under.
    pub fn reason(self) -> RescueReason {
        match self {
            Self::BadRequest(_) | Self::BadBody => RescueReason::BadRequest,
            Self::HeadTooLarge => RescueReason::HeadTooLarge,
            Self::BodyTooLarge => RescueReason::BodyTooLarge,
            Self::MethodNotAllowed => RescueReason::MethodNotAllowed,
            Self::NotImplemented => RescueReason::NotImplemented,
            Self::ExpectationFailed => RescueReason::ExpectationFailed,
            Self::ClientStalled => RescueReason::ClientStalled,
            Self::BrokenOff => RescueReason::ClientGone,
            Self::NoPool => RescueReason::NoPool,
            Self::NoRoute => RescueReason::NoRoute,
            Self::Misdirected => RescueReason::Misdirected,
            Self::Loop => RescueReason::Loop,
            Self::NoBackend => RescueReason::NoBackend,
            Self::Overloaded => RescueReason::Overloaded,
            Self::Exhausted => RescueReason::Exhausted,
            Self::ConnectFailed => RescueReason::ConnectFailed,
            Self::Lost => RescueReason::Lost,
            Self::BadResponse | Self::ResponseTooLarge => RescueReason::BadResponse,
            Self::Timeout => RescueReason::Timeout,
            Self::Drained => RescueReason::Drained,
        }
    }

    /// Writes the answer in the place of the backend's.
    pub(super) fn answer(self, out: &mut Vec<u8>, hop: &Hop<'_>) {
        headers::own_answer(out, self.status(), &self.fields(), &self.text(), hop);
    }

    /// The body of the answer.
    pub(super) fn text(self) -> String {
        format!("{self}\n")
    }

    /// What its head says beside its status.
    pub(super) fn fields(self) -> Vec<(&'static str, &'static str)> {
        let mut fields =
            vec![("content-type", "text/plain; charset=utf-8"), (REASON_HEADER, self.reason().label())];
        if self == Self::MethodNotAllowed {
            fields.push(("allow", ALLOWED_METHODS));
        }
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            fields.push(("retry-after", "1"));
        }
        fields
    }
}

impl From<HeadFault> for ProxyError {
    fn from(fault: HeadFault) -> Self {
        match fault {
            HeadFault::TooLarge => Self::HeadTooLarge,
            HeadFault::UnknownCoding => Self::NotImplemented,
            HeadFault::Malformed(why) => Self::BadRequest(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_why_it_is_ours_and_when_to_come_back() {
        for (to_head, text) in [(false, "no backend is ready\n"), (true, "")] {
            let mut out = Vec::new();
            ProxyError::NoBackend
                .answer(&mut out, &Hop { minor: 1, to_head, keeps: true, date: b"now", switches_to: None });
            let expected = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
                            x-guideway-reason: no_backend\r\nretry-after: 1\r\ncontent-length: 20\r\ndate: now\r\n\r\n";
            assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}{text}"));
        }
    }

    #[test]
    fn only_the_clients_faults_have_a_status_below_500() {
        for error in [
            ProxyError::BadRequest("x"),
            ProxyError::HeadTooLarge,
            ProxyError::ClientStalled,
            ProxyError::BadBody,
            ProxyError::BodyTooLarge,
        ] {
            assert_eq!((error.side(), error.status().is_client_error()), (Side::Client, true));
        }
        for error in [ProxyError::Lost, ProxyError::NoBackend, ProxyError::Timeout, ProxyError::BadResponse] {
            assert!(error.side() != Side::Client && error.status().is_server_error());
        }
    }
}
