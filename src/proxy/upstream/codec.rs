//! Owns the parsing of a response's head: strict where a mistake would let two sides disagree about
//! where a message ends (RFC 9112 section 6.3), and without the fields that end at this hop.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::decoder::Decoder;
use crate::proxy::limits::{MAX_HEAD_BYTES, MAX_HEADER_FIELDS};

/// The answer is not HTTP as we accept it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Malformed;

/// A response whose body follows.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) body: Decoder,
    /// Whether the backend keeps the connection.
    pub(super) keeps: bool,
}

/// Takes the head of the final response off `buffer`, past interim ones. `None` while it is incomplete.
///
/// `headers` is an empty map to fill, so that one map can serve request after request.
pub(super) fn take_head(
    buffer: &mut BytesMut,
    to_head: bool,
    headers: &mut HeaderMap,
) -> Result<Option<Head>, Malformed> {
    while !buffer.is_empty() {
        let mut fields = [Field::default(); MAX_HEADER_FIELDS];
        let Some(line) = parse(buffer, &mut fields)? else {
            return if buffer.len() >= MAX_HEAD_BYTES { Err(Malformed) } else { Ok(None) };
        };
        if line.length > MAX_HEAD_BYTES {
            return Err(Malformed);
        }
        let bytes = buffer.split_to(line.length).freeze();
        match line.status.as_u16() {
            // We never ask to switch protocols.
            101 => return Err(Malformed),
            100..=199 => {}
            _ => return interpret(&bytes, &line, &fields[..line.fields], to_head, headers).map(Some),
        }
    }
    Ok(None)
}

/// Where a field stands in the head.
#[derive(Clone, Copy, Default)]
struct Field {
    name: (u16, u16),
    value: (u16, u16),
}

struct StatusLine {
    length: usize,
    status: StatusCode,
    /// Of the version: 0 or 1.
    minor: u8,
    fields: usize,
}

fn parse(buffer: &[u8], fields: &mut [Field; MAX_HEADER_FIELDS]) -> Result<Option<StatusLine>, Malformed> {
    let mut space = [const { MaybeUninit::uninit() }; MAX_HEADER_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    // A head of more than 32 KiB is refused whatever it says, so every position fits 16 bits.
    let window = &buffer[..buffer.len().min(MAX_HEAD_BYTES)];
    match config.parse_response_with_uninit_headers(&mut parsed, window, &mut space) {
        Ok(httparse::Status::Complete(length)) => {
            let span = |part: &[u8]| {
                let start = part.as_ptr().addr() - window.as_ptr().addr();
                (start as u16, (start + part.len()) as u16)
            };
            for (field, header) in fields.iter_mut().zip(&*parsed.headers) {
                *field = Field { name: span(header.name.as_bytes()), value: span(header.value) };
            }
            let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed)?;
            Ok(Some(StatusLine {
                length,
                status,
                minor: parsed.version.unwrap_or(0),
                fields: parsed.headers.len(),
            }))
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Malformed),
    }
}

fn interpret(
    bytes: &Bytes,
    line: &StatusLine,
    fields: &[Field],
    to_head: bool,
    headers: &mut HeaderMap,
) -> Result<Head, Malformed> {
    let part = |(start, end): (u16, u16)| &bytes[usize::from(start)..usize::from(end)];
    let mut framing = Framing::default();
    let mut persistence = Persistence::default();
    for field in fields {
        match role(part(field.name)) {
            Role::Connection => persistence.connection(part(field.value)),
            Role::ContentLength => framing.length(part(field.value))?,
            Role::TransferEncoding => framing.coding(part(field.value))?,
            Role::Drop | Role::Pass => {}
        }
    }
    for field in fields {
        let name = part(field.name);
        if role(name) == Role::Pass && !(persistence.nominates && nominated(bytes, fields, name)) {
            let value = bytes.slice(usize::from(field.value.0)..usize::from(field.value.1));
            let name = HeaderName::from_bytes(name).map_err(|_| Malformed)?;
            headers.append(name, HeaderValue::from_maybe_shared(value).map_err(|_| Malformed)?);
        }
    }
    let body = framing.body(line, to_head)?;
    if let (true, Some(length)) = (to_head, framing.length) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let keeps = !persistence.closes && (line.minor == 1 || persistence.keeps) && body != Decoder::UntilClose;
    let mut response = Response::new(());
    *response.status_mut() = line.status;
    *response.headers_mut() = std::mem::take(headers);
    Ok(Head { response, body, keeps })
}

#[derive(PartialEq, Eq)]
enum Role {
    Pass,
    Drop,
    Connection,
    ContentLength,
    TransferEncoding,
}

fn role(name: &[u8]) -> Role {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match name.len() {
        2 if is("te") => Role::Drop,
        7 if is("trailer") || is("upgrade") => Role::Drop,
        10 if is("connection") => Role::Connection,
        10 if is("keep-alive") => Role::Drop,
        14 if is("content-length") => Role::ContentLength,
        16 if is("proxy-connection") => Role::Drop,
        17 if is("transfer-encoding") => Role::TransferEncoding,
        _ => Role::Pass,
    }
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether a `Connection` field names `name`.
fn nominated(bytes: &[u8], fields: &[Field], name: &[u8]) -> bool {
    let part = |(start, end): (u16, u16)| &bytes[usize::from(start)..usize::from(end)];
    let connections = fields.iter().filter(|field| role(part(field.name)) == Role::Connection);
    connections.flat_map(|field| tokens(part(field.value))).any(|token| token.eq_ignore_ascii_case(name))
}

#[derive(Default)]
struct Persistence {
    closes: bool,
    keeps: bool,
    nominates: bool,
}

impl Persistence {
    fn connection(&mut self, value: &[u8]) {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.closes = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keeps = true;
            } else {
                self.nominates = true;
            }
        }
    }
}

#[derive(Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    /// Lengths may repeat, in one field or several, when they agree.
    fn length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        for token in tokens(value) {
            let length = digits(token).ok_or(Malformed)?;
            if self.length.is_some_and(|before| before != length) {
                return Err(Malformed);
            }
            self.length = Some(length);
        }
        Ok(())
    }

    /// We undo `chunked` alone; with another coding under it the client would get bytes it cannot read.
    fn coding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        for token in tokens(value) {
            if self.chunked || !token.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed);
            }
            self.chunked = true;
        }
        Ok(())
    }

    fn body(&self, line: &StatusLine, to_head: bool) -> Result<Decoder, Malformed> {
        if self.chunked && (line.minor == 0 || self.length.is_some()) {
            return Err(Malformed);
        }
        if to_head || matches!(line.status.as_u16(), 204 | 304) {
            return Ok(Decoder::Length(0));
        }
        Ok(match (self.chunked, self.length) {
            (true, _) => Decoder::chunked(),
            (false, Some(length)) => Decoder::Length(length),
            (false, None) => Decoder::UntilClose,
        })
    }
}

/// A decimal number without sign or space.
fn digits(text: &[u8]) -> Option<u64> {
    let all_digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if all_digits { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}
