//! Owns where a response's body ends: by length, by chunks or by the end of the connection.
//! Chunks are checked strictly; their extensions and the trailers end here.

use bytes::{Buf, Bytes, BytesMut};

use super::codec::Malformed;
use crate::proxy::limits::MAX_CHUNK_OVERHEAD;

/// What is left of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decoder {
    /// So many bytes; none means that the body is complete.
    Length(u64),
    /// Chunks (RFC 9112 section 7.1).
    Chunked(Chunked),
    /// Everything until the backend closes the connection.
    UntilClose,
}

/// The state between two reads of a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunked {
    next: Next,
    /// Bytes of size lines and trailers so far.
    overhead: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    SizeLine,
    Data(u64),
    DataEnd,
    Trailer,
    Nothing,
}

impl Decoder {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunked { next: Next::SizeLine, overhead: 0 })
    }

    /// Whether the body is complete.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.next == Next::Nothing,
            Self::UntilClose => false,
        }
    }

    /// What is left, where that is known.
    pub(super) fn exact_size(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// The next piece of data in `buffer`; `None` when more must be read or the body is complete.
    /// What frames the piece is consumed with it, so a complete body is known as such at once.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        match self {
            Self::Length(left) => {
                let piece = take_up_to(buffer, *left);
                *left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
                Ok(piece)
            }
            Self::Chunked(chunked) => chunked.take(buffer),
            Self::UntilClose => Ok(take_up_to(buffer, u64::MAX)),
        }
    }

    /// The backend closed the connection: is the body complete?
    pub(super) fn end(&mut self) -> bool {
        if *self == Self::UntilClose {
            *self = Self::Length(0);
        }
        self.is_done()
    }
}

impl Chunked {
    fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
        self.advance(buffer)?;
        let Next::Data(left) = self.next else { return Ok(None) };
        let piece = take_up_to(buffer, left);
        let left = left - piece.as_ref().map_or(0, |piece| piece.len() as u64);
        self.next = if left == 0 { Next::DataEnd } else { Next::Data(left) };
        if left == 0 {
            self.advance(buffer)?;
        }
        Ok(piece)
    }

    /// Consumes framing up to data, the end or the end of the buffer.
    fn advance(&mut self, buffer: &mut BytesMut) -> Result<(), Malformed> {
        loop {
            self.next = match self.next {
                Next::Data(_) | Next::Nothing => return Ok(()),
                Next::SizeLine => match self.line(buffer)? {
                    None => return Ok(()),
                    Some(line) => match chunk_size(&line)? {
                        0 => Next::Trailer,
                        size => Next::Data(size),
                    },
                },
                Next::DataEnd if buffer.len() < 2 => return Ok(()),
                Next::DataEnd if buffer.starts_with(b"\r\n") => {
                    buffer.advance(2);
                    Next::SizeLine
                }
                Next::DataEnd => return Err(Malformed),
                Next::Trailer => match self.line(buffer)? {
                    None => return Ok(()),
                    Some(line) if line.is_empty() => Next::Nothing,
                    Some(_) => Next::Trailer,
                },
            }
        }
    }

    /// Takes one line without its end, which must be CR LF.
    fn line(&mut self, buffer: &mut BytesMut) -> Result<Option<BytesMut>, Malformed> {
        let Some(end) = buffer.iter().position(|byte| *byte == b'\n') else {
            return if buffer.len() > MAX_CHUNK_OVERHEAD { Err(Malformed) } else { Ok(None) };
        };
        self.overhead += end + 1;
        let mut line = buffer.split_to(end + 1);
        if self.overhead > MAX_CHUNK_OVERHEAD || !line.ends_with(b"\r\n") {
            return Err(Malformed);
        }
        line.truncate(end - 1);
        if line.contains(&b'\r') { Err(Malformed) } else { Ok(Some(line)) }
    }
}

fn take_up_to(buffer: &mut BytesMut, most: u64) -> Option<Bytes> {
    let length = buffer.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    (length > 0).then(|| buffer.split_to(length).freeze())
}

/// `1*HEXDIG` up to blanks, an extension or the end. Sixteen digits fill 64 bits.
fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || digits > 16 || !(rest.is_empty() || rest.starts_with(b";")) {
        return Err(Malformed);
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| Malformed)?;
    u64::from_str_radix(text, 16).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `wire` in pieces of `step` bytes; the data, and what is left over behind the body.
    fn decode(
        mut decoder: Decoder,
        wire: &[u8],
        step: usize,
    ) -> Result<(Vec<u8>, usize, Decoder), Malformed> {
        let (mut buffer, mut data) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(piece) = decoder.take(&mut buffer)? {
                data.extend_from_slice(&piece);
            }
        }
        Ok((data, buffer.len(), decoder))
    }

    #[test]
    fn chunks_decode_however_they_are_cut() {
        let wire =
            b"5\r\nhello\r\n00C;name=\"x\"\r\n, wide world\r\n1 \r\n!\r\n0\r\nx-trailer: 1\r\n\r\nNEXT";
        for step in 1..wire.len() {
            let (data, left, decoder) = decode(Decoder::chunked(), wire, step).unwrap();
            assert_eq!(
                (&data[..], left, decoder.is_done()),
                (&b"hello, wide world!"[..], 4, true),
                "step {step}"
            );
        }
    }

    #[test]
    fn a_complete_body_is_known_with_its_last_piece() {
        let (mut decoder, mut buffer) = (Decoder::chunked(), BytesMut::from(&b"2\r\nok\r\n0\r\n\r\n"[..]));
        assert_eq!(decoder.take(&mut buffer).unwrap().unwrap(), "ok");
        assert!(decoder.is_done());
    }

    #[test]
    fn garbled_chunks_are_refused() {
        for wire in [
            "\r\n",
            "x\r\n",
            "0x3\r\nabc\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n",
            "-1\r\n",
            "+1\r\n",
            " 1\r\n",
            "1 1\r\na\r\n",
            "11111111111111111\r\n",
            "3\r\r\nabc\r\n",
            "3;a\rb\r\nabc\r\n",
        ] {
            assert_eq!(
                decode(Decoder::chunked(), format!("{wire}0\r\n\r\n").as_bytes(), 1),
                Err(Malformed),
                "{wire:?}"
            );
        }
    }

    #[test]
    fn framing_without_end_is_refused() {
        let long_extension = format!("1;{}", "x".repeat(MAX_CHUNK_OVERHEAD));
        assert_eq!(decode(Decoder::chunked(), long_extension.as_bytes(), 100), Err(Malformed));
        let many_trailers = format!("0\r\n{}", "a: b\r\n".repeat(MAX_CHUNK_OVERHEAD / 6 + 1));
        assert_eq!(decode(Decoder::chunked(), many_trailers.as_bytes(), 100), Err(Malformed));
    }

    #[test]
    fn a_length_ends_where_it_says() {
        let (data, left, decoder) = decode(Decoder::Length(5), b"helloNEXT", 2).unwrap();
        assert_eq!((&data[..], left, decoder.is_done()), (&b"hello"[..], 4, true));
    }

    #[test]
    fn only_a_body_without_length_may_end_with_the_connection() {
        assert!(Decoder::UntilClose.end());
        assert!(!Decoder::Length(1).end());
        assert!(!Decoder::chunked().end());
    }
}
