//! Owns the parsing of a response's head: strict where a mistake would let two sides disagree about
//! where a message ends (RFC 9112 section 6.3).

use super::field::{Fields, Role, tokens};
use super::framing::{Codings, Framing, Lengths, Persistence};
use super::{Malformed, Space, upgrade};
use crate::proxy::limits::MAX_HEAD_BYTES;

/// What a request was, as far as the meaning of its response depends on it.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::proxy) struct Asked<'a> {
    /// It was a HEAD.
    pub(in crate::proxy) head: bool,
    /// The protocol it asked to switch to.
    pub(in crate::proxy) upgrade: Option<&'a str>,
}

/// A response's head, as slices of the bytes it arrived in.
#[derive(Debug)]
pub(in crate::proxy) struct ResponseHead<'a> {
    pub(in crate::proxy) status: u16,
    pub(in crate::proxy) fields: Fields<'a>,
    /// How the body is framed that follows.
    pub(in crate::proxy) framing: Framing,
    /// The stated length, which is that of a body which does not follow if the request was a HEAD.
    pub(in crate::proxy) stated_length: Option<u64>,
    /// Whether a `Connection` field names further fields, which end at this hop.
    pub(in crate::proxy) nominates: bool,
    /// Whether the backend keeps the connection.
    pub(in crate::proxy) keeps: bool,
}

/// Why there is no head to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum ResponseFault {
    /// Too many bytes or fields.
    TooLarge,
    /// Not HTTP as we accept it.
    Malformed,
}

impl From<Malformed> for ResponseFault {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

impl<'a> ResponseHead<'a> {
    /// The head at the start of `bytes` and its length. `None` while it is incomplete.
    pub(in crate::proxy) fn parse(
        bytes: &'a [u8],
        space: &'a mut Space<'a>,
        asked: Asked<'_>,
    ) -> Result<Option<(Self, usize)>, ResponseFault> {
        let window = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, window, space) {
            Ok(httparse::Status::Complete(length)) => {
                let httparse::Response { version, code, headers, .. } = parsed;
                let line = (code.unwrap_or_default(), version.unwrap_or_default());
                Ok(Some((Self::interpret(line, Fields::new(headers), asked)?, length)))
            }
            Ok(httparse::Status::Partial) if window.len() < MAX_HEAD_BYTES => Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                Err(ResponseFault::TooLarge)
            }
            Err(_) => Err(ResponseFault::Malformed),
        }
    }

    /// The head of a response of HTTP/2, whose frames say where it ends.
    pub(in crate::proxy) fn of_stream(
        status: u16,
        fields: Fields<'a>,
        asked: Asked<'_>,
        has_body: bool,
    ) -> Result<Self, Malformed> {
        let head = Self::interpret((status, 1), fields, Asked { upgrade: None, ..asked })?;
        let framing = match head.framing {
            _ if !has_body => Framing::Length(0),
            Framing::UntilClose => Framing::Chunked,
            stated => stated,
        };
        Ok(Self { framing, keeps: true, ..head })
    }

    /// Whether another head follows (RFC 9110 section 15.2).
    pub(in crate::proxy) fn is_interim(&self) -> bool {
        self.status < 200 && !self.switches()
    }

    /// Whether another protocol follows, as the request asked.
    pub(in crate::proxy) fn switches(&self) -> bool {
        self.status == 101
    }

    fn interpret(
        (status, minor): (u16, u8),
        fields: Fields<'a>,
        asked: Asked<'_>,
    ) -> Result<Self, Malformed> {
        let agrees =
            |wanted: &str| upgrade::protocol(&fields).is_some_and(|it| it.eq_ignore_ascii_case(wanted));
        // A switch that nobody asked for would hide what follows, and below 100 there is nothing.
        if status < 100 || status == 101 && !asked.upgrade.is_some_and(agrees) {
            return Err(Malformed);
        }
        let (mut lengths, mut codings) = (Lengths::default(), Codings::default());
        let mut persistence = Persistence::default();
        for field in fields.iter() {
            match field.role {
                Role::ContentLength => tokens(field.value).try_for_each(|value| lengths.add(value))?,
                Role::TransferEncoding => codings.add(field.value),
                Role::Connection => persistence.add(field.value),
                _ => {}
            }
        }
        let stated_length = lengths.agreed();
        // With another coding under `chunked` the client would get bytes it cannot read.
        if codings.any() && (!codings.are_chunked_alone() || minor == 0 || stated_length.is_some()) {
            return Err(Malformed);
        }
        let framing = match (codings.any(), stated_length) {
            _ if asked.head || status < 200 || matches!(status, 204 | 304) => Framing::Length(0),
            (true, _) => Framing::Chunked,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        };
        Ok(Self {
            status,
            fields,
            framing,
            stated_length,
            nominates: persistence.nominates(),
            keeps: persistence.keeps(minor) && framing != Framing::UntilClose && status != 101,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::space;
    use super::*;

    fn with<T>(
        wire: &str,
        look: impl FnOnce(Result<Option<(ResponseHead<'_>, usize)>, ResponseFault>) -> T,
    ) -> T {
        look(ResponseHead::parse(wire.as_bytes(), &mut space(), Asked::default()))
    }

    #[test]
    fn a_head_is_parsed_as_soon_as_it_is_complete() {
        let wire = "HTTP/1.1 404 No\r\nA: 1\r\nContent-Length: 3\r\n\r\nabc";
        let complete = wire.len() - 3;
        for end in 0..complete {
            with(&wire[..end], |head| assert!(head.unwrap().is_none(), "{end}"));
        }
        with(wire, |head| {
            let (head, length) = head.unwrap().unwrap();
            assert_eq!(
                (head.status, head.framing, head.keeps, length),
                (404, Framing::Length(3), true, complete)
            );
        });
    }

    #[test]
    fn a_body_follows_unless_status_or_request_say_otherwise() {
        for (status, to_head, fields, framing) in [
            (200, false, "Content-Length: 3, 3", Framing::Length(3)),
            (200, false, "Transfer-Encoding: chunked", Framing::Chunked),
            (200, false, "A: 1", Framing::UntilClose),
            (200, true, "Content-Length: 3", Framing::Length(0)),
            (204, false, "A: 1", Framing::Length(0)),
            (304, false, "Content-Length: 3", Framing::Length(0)),
            (103, false, "A: 1", Framing::Length(0)),
        ] {
            let wire = format!("HTTP/1.1 {status} x\r\n{fields}\r\n\r\n");
            let mut space = space();
            let (head, _) =
                ResponseHead::parse(wire.as_bytes(), &mut space, Asked { head: to_head, upgrade: None })
                    .unwrap()
                    .unwrap();
            assert_eq!((head.framing, head.is_interim()), (framing, status < 200), "{wire:?}");
            assert_eq!(head.keeps, framing != Framing::UntilClose, "only its end ends the body: {wire:?}");
        }
    }

    #[test]
    fn only_the_switch_that_was_asked_for_is_one() {
        for (upgrade, fields, switches) in [
            (Some("websocket"), "Upgrade: WebSocket\r\nConnection: Upgrade", true),
            (Some("websocket"), "Upgrade: spdy/3.1\r\nConnection: Upgrade", false),
            (Some("websocket"), "Upgrade: websocket, spdy/3.1\r\nConnection: Upgrade", false),
            (Some("websocket"), "Upgrade: websocket", false),
            (Some("websocket"), "Connection: Upgrade", false),
            (None, "Upgrade: websocket\r\nConnection: Upgrade", false),
        ] {
            let wire = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\n");
            let mut space = space();
            let head = ResponseHead::parse(wire.as_bytes(), &mut space, Asked { head: false, upgrade });
            assert_eq!(head.is_ok(), switches, "{upgrade:?} {fields:?}");
            if let Ok(Some((head, _))) = head {
                assert!(head.switches() && !head.is_interim() && !head.keeps);
            }
        }
    }

    #[test]
    fn a_head_that_two_sides_could_read_differently_is_refused() {
        for wire in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 099 What\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
        ] {
            with(wire, |head| assert_eq!(head.unwrap_err(), ResponseFault::Malformed, "{wire:?}"));
        }
    }

    #[test]
    fn a_head_that_is_too_large_is_called_that() {
        for fields in ["a: b\r\n".repeat(101), format!("a: {}\r\n", "b".repeat(MAX_HEAD_BYTES))] {
            let wire = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            with(&wire, |head| assert_eq!(head.unwrap_err(), ResponseFault::TooLarge));
        }
    }
}
