//! Owns the parsing of a request's head: where its parts are, how its body ends, and whether its
//! sender keeps the connection. A head that two servers could end differently is refused here.

use super::field::{Fields, Role, tokens};
use super::framing::{Codings, Framing, Lengths, Persistence};
use super::{Malformed, Space, upgrade};
use crate::proxy::limits::MAX_HEAD_BYTES;

/// A request's head, as slices of the bytes it arrived in. Whoever has one in another form, such as
/// that of HTTP/2, can hand in slices of that.
#[derive(Debug)]
pub(in crate::proxy) struct RequestHead<'a> {
    pub(in crate::proxy) method: &'a str,
    /// As written: origin-form, absolute-form or whatever the client made up.
    pub(in crate::proxy) target: &'a str,
    /// Of the version: 0 or 1.
    pub(in crate::proxy) minor: u8,
    /// What a request of HTTP/2 says beside its target and its fields.
    pub(in crate::proxy) pseudo: Option<Pseudo<'a>>,
    pub(in crate::proxy) fields: Fields<'a>,
    pub(in crate::proxy) framing: Framing,
    /// Whether a `Content-Length` was stated, zero included.
    pub(in crate::proxy) states_length: bool,
    /// Whether a `Connection` field names further fields, which end at this hop.
    pub(in crate::proxy) nominates: bool,
    /// Whether it sends its body only after `100 Continue`; the older version does not know that.
    pub(in crate::proxy) expects_continue: bool,
    /// Whether the client wants to keep the connection and we may.
    pub(in crate::proxy) keeps: bool,
    /// Whether it takes fields behind the body of the response. Who does not say so may lose its place there.
    pub(in crate::proxy) takes_trailers: bool,
    /// The protocol it wants to switch the connection to, if that is one we pass on.
    pub(in crate::proxy) upgrade: Option<&'a str>,
}

/// What HTTP/2 says in fields of its own that HTTP/1 says otherwise.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Pseudo<'a> {
    pub(in crate::proxy) authority: Option<&'a str>,
    /// Whether the scheme is that of the connection.
    pub(in crate::proxy) scheme_fits: bool,
}

/// A head after which nobody knows where the next request begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum HeadFault {
    /// Too many bytes or fields.
    TooLarge,
    /// A body in another coding than `chunked` alone.
    UnknownCoding,
    /// Not HTTP/1; the text says why.
    Malformed(&'static str),
}

impl<'a> RequestHead<'a> {
    /// The head at the start of `bytes` and its length. `None` while it is incomplete.
    pub(in crate::proxy) fn parse(
        bytes: &'a [u8],
        space: &'a mut Space<'a>,
    ) -> Result<Option<(Self, usize)>, HeadFault> {
        let window = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
        let mut parsed = httparse::Request::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_request_with_uninit_headers(&mut parsed, window, space) {
            Ok(httparse::Status::Complete(length)) => {
                let httparse::Request { method, path, version, headers } = parsed;
                let (method, target) = (method.unwrap_or_default(), path.unwrap_or_default());
                let head =
                    Self::interpret(method, target, version.unwrap_or_default(), Fields::new(headers))?;
                Ok(Some((head, length)))
            }
            Ok(httparse::Status::Partial) if window.len() < MAX_HEAD_BYTES => Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Err(HeadFault::TooLarge),
            Err(error) => Err(HeadFault::Malformed(why(error))),
        }
    }

    /// The head of a request of HTTP/2, whose frames say where it ends. Its fields are free of those that belong to a
    /// connection of HTTP/1: such a request is malformed, and its sender was told so.
    pub(in crate::proxy) fn of_stream(
        method: &'a str,
        target: &'a str,
        pseudo: Pseudo<'a>,
        fields: Fields<'a>,
        has_body: bool,
    ) -> Result<Self, HeadFault> {
        let head = Self::interpret(method, target, 1, fields)?;
        let framing = match head.framing {
            _ if !has_body => Framing::Length(0),
            Framing::Length(_) if !head.states_length => Framing::Chunked,
            // Only chunks have room behind them.
            Framing::Length(_) if head.fields.iter().any(|field| field.role == Role::Trailer) => {
                Framing::Chunked
            }
            stated => stated,
        };
        Ok(Self { pseudo: Some(pseudo), framing, upgrade: None, ..head })
    }

    fn interpret(method: &'a str, target: &'a str, minor: u8, fields: Fields<'a>) -> Result<Self, HeadFault> {
        let (mut lengths, mut codings) = (Lengths::default(), Codings::default());
        let (mut persistence, mut expects, mut upgrades) = (Persistence::default(), false, false);
        let mut takes_trailers = false;
        for field in fields.iter() {
            match field.role {
                Role::ContentLength => lengths.add(field.value)?,
                Role::TransferEncoding => codings.add(field.value),
                Role::Expect => expects = true,
                Role::Te => takes_trailers |= takes_trailers_by(field.value),
                Role::Upgrade => upgrades = true,
                Role::Connection => persistence.add(field.value),
                _ => {}
            }
        }
        let length = lengths.agreed();
        let framing = framing(&codings, length, minor)?;
        // With a body nobody could tell where the other protocol begins.
        let may_switch = upgrades && minor > 0 && framing == Framing::Length(0);
        let upgrade = may_switch.then(|| upgrade::protocol(&fields)).flatten();
        Ok(Self {
            method,
            target,
            minor,
            pseudo: None,
            fields,
            framing,
            states_length: length.is_some(),
            nominates: persistence.nominates(),
            expects_continue: expects && minor > 0,
            // With both, chunks count (RFC 9112 section 6.3), and who sent both is not trusted further.
            keeps: persistence.keeps(minor) && !(codings.any() && length.is_some()),
            takes_trailers: takes_trailers && minor > 0,
            upgrade: upgrade.filter(|protocol| upgrade::may_be_asked(protocol)),
        })
    }
}

fn takes_trailers_by(te: &[u8]) -> bool {
    tokens(te).any(|token| token.eq_ignore_ascii_case(b"trailers"))
}

fn framing(codings: &Codings, length: Option<u64>, minor: u8) -> Result<Framing, HeadFault> {
    if !codings.any() {
        return Ok(Framing::Length(length.unwrap_or(0)));
    }
    if minor == 0 {
        return Err(HeadFault::Malformed("HTTP/1.0 has no Transfer-Encoding"));
    }
    if !codings.end_chunked() {
        return Err(HeadFault::Malformed("the last transfer coding is not \"chunked\""));
    }
    if !codings.are_chunked_alone() {
        return Err(HeadFault::UnknownCoding);
    }
    Ok(Framing::Chunked)
}

impl From<Malformed> for HeadFault {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed("Content-Length is not one number")
    }
}

fn why(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "the name of a field is malformed",
        httparse::Error::HeaderValue => "the value of a field is malformed",
        httparse::Error::Version => "this is not HTTP/1.0 or HTTP/1.1",
        _ => "this is not a request in HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::super::space;
    use super::*;

    fn with<T>(wire: &str, look: impl FnOnce(Result<Option<(RequestHead<'_>, usize)>, HeadFault>) -> T) -> T {
        look(RequestHead::parse(wire.as_bytes(), &mut space()))
    }

    fn fault(fields: &str) -> HeadFault {
        with(&format!("POST / HTTP/1.1\r\n{fields}\r\n"), |head| head.expect_err(fields))
    }

    #[test]
    fn a_head_is_parsed_as_soon_as_it_is_complete() {
        let wire = "\r\nPOST /p?q HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let complete = wire.len() - 3;
        for end in 0..complete {
            with(&wire[..end], |head| assert!(head.unwrap().is_none(), "{end}"));
        }
        with(wire, |head| {
            let (head, length) = head.unwrap().unwrap();
            assert_eq!((head.method, head.target, head.minor, length), ("POST", "/p?q", 1, complete));
            assert_eq!((head.framing, head.states_length, head.keeps), (Framing::Length(3), true, true));
            assert_eq!(head.fields.get("HOST"), Some(&b"a"[..]));
        });
    }

    #[test]
    fn chunks_win_over_a_length_and_cost_the_connection() {
        for fields in [
            "Content-Length: 9\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: Chunked\r\nContent-Length: 9",
        ] {
            with(&format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n"), |head| {
                let (head, _) = head.unwrap().unwrap();
                assert_eq!((head.framing, head.keeps), (Framing::Chunked, false), "{fields}");
            });
        }
    }

    #[test]
    fn lengths_that_are_not_one_number_are_refused() {
        for lengths in [
            "x",
            "",
            "+1",
            "1, 1",
            "1\r\nContent-Length: 2",
            "1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2",
        ] {
            let fault = fault(&format!("Content-Length: {lengths}\r\n"));
            assert_eq!(fault, HeadFault::Malformed("Content-Length is not one number"), "{lengths:?}");
        }
        with("POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n", |head| {
            assert_eq!(head.unwrap().unwrap().0.framing, Framing::Length(2));
        });
    }

    #[test]
    fn only_one_chunked_is_a_transfer_coding() {
        for codings in
            ["gzip, chunked", "chunked, chunked", "chunked\r\nTransfer-Encoding: chunked", ", chunked"]
        {
            assert_eq!(
                fault(&format!("Transfer-Encoding: {codings}\r\n")),
                HeadFault::UnknownCoding,
                "{codings:?}"
            );
        }
        for codings in ["gzip", "identity", "xchunked", "chunked, gzip", "chunked,", ""] {
            let fault = fault(&format!("Transfer-Encoding: {codings}\r\n"));
            assert!(matches!(fault, HeadFault::Malformed(_)), "{codings:?}: {fault:?}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        with(old, |head| assert!(matches!(head, Err(HeadFault::Malformed(_)))));
    }

    #[test]
    fn a_head_has_a_limit_of_bytes_and_fields() {
        let fields = |count: usize| "a: b\r\n".repeat(count);
        let padded = |length: usize| format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(length - 23));
        with(&format!("GET / HTTP/1.1\r\n{}\r\n", fields(100)), |head| assert!(head.unwrap().is_some()));
        assert_eq!(fault(&fields(101)), HeadFault::TooLarge);
        with(&padded(MAX_HEAD_BYTES), |head| assert_eq!(head.unwrap().unwrap().1, MAX_HEAD_BYTES));
        with(&padded(MAX_HEAD_BYTES + 1), |head| assert_eq!(head.unwrap_err(), HeadFault::TooLarge));
    }

    #[test]
    fn what_is_not_http_1_is_refused() {
        for wire in [
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "nonsense\r\n\r\n",
            "GET / HTTP/1.1\r\na : 1\r\n\r\n",
            "GET / HTTP/1.1\r\na: 1\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\na: \0\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\na: 1\rb: 2\r\n\r\n",
        ] {
            with(wire, |head| assert!(matches!(head, Err(HeadFault::Malformed(_))), "{wire:?}"));
        }
    }
}
