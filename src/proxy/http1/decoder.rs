//! Owns where a body ends: by length, by chunks or by the end of the connection. Bodies are decoded
//! where they lie. Chunks are checked strictly; their extensions end here, and so do trailers that may not pass.

use std::ops::Range;

use super::{Framing, Malformed, trailers};
use crate::proxy::limits::MAX_CHUNK_OVERHEAD;

/// What is left of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Decoder {
    /// So many bytes; none means that the body is complete.
    Length(u64),
    /// Chunks (RFC 9112 section 7.1).
    Chunked(Chunked),
    /// Everything until the other side closes the connection.
    UntilClose,
}

/// What was found in some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Decoded {
    /// Where the data is now.
    pub(in crate::proxy) data: Range<usize>,
    /// How many bytes belonged to the body. Fewer than there were only if it ended before.
    pub(in crate::proxy) used: usize,
}

/// The state between two bytes of a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Chunked {
    next: Next,
    /// Bytes of extensions and trailers so far.
    overhead: usize,
    /// Lines of trailers so far; behind the end, of those that may pass.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Digits of a size, of which there were some.
    Size {
        size: u64,
        digits: u8,
    },
    /// Blanks behind a size.
    SizeBlank(u64),
    /// An extension behind a size.
    Extension(u64),
    /// The line feed behind a size.
    SizeEnd(u64),
    Data(u64),
    /// The line end behind data.
    DataCarriageReturn,
    DataLineFeed,
    /// The start of a trailer, or the end of the body.
    TrailerStart,
    TrailerName,
    Trailer,
    TrailerLineFeed,
    EndLineFeed,
    Nothing,
}

impl Decoder {
    pub(in crate::proxy) fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => {
                Self::Chunked(Chunked { next: Next::START, overhead: 0, trailers: Vec::new() })
            }
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body is complete.
    pub(in crate::proxy) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.next == Next::Nothing,
            Self::UntilClose => false,
        }
    }

    /// Once the body is complete, the lines of the fields behind it that may pass.
    pub(in crate::proxy) fn trailers(&self) -> &[u8] {
        match self {
            Self::Chunked(chunked) if chunked.next == Next::Nothing => &chunked.trailers,
            Self::Length(_) | Self::Chunked(_) | Self::UntilClose => b"",
        }
    }

    /// Takes in `bytes` and moves the data among them together.
    pub(in crate::proxy) fn decode(&mut self, bytes: &mut [u8]) -> Result<Decoded, Malformed> {
        match self {
            Self::Length(left) => {
                let used = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= used as u64;
                Ok(Decoded { data: 0..used, used })
            }
            Self::Chunked(chunked) => chunked.decode(bytes),
            Self::UntilClose => Ok(Decoded { data: 0..bytes.len(), used: bytes.len() }),
        }
    }

    /// The other side closed the connection: is the body complete?
    pub(in crate::proxy) fn end(&mut self) -> bool {
        if *self == Self::UntilClose {
            *self = Self::Length(0);
        }
        self.is_done()
    }
}

impl Chunked {
    fn decode(&mut self, bytes: &mut [u8]) -> Result<Decoded, Malformed> {
        let (mut data, mut at) = (0..0, 0);
        while at < bytes.len() && self.next != Next::Nothing {
            if let Next::Data(left) = self.next {
                let length = (bytes.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                if data.is_empty() {
                    // What comes first stays where it is, and mostly it is all there is.
                    data = at..at;
                }
                bytes.copy_within(at..at + length, data.end);
                (at, data.end) = (at + length, data.end + length);
                self.next = match left - length as u64 {
                    0 => Next::DataCarriageReturn,
                    left => Next::Data(left),
                };
            } else {
                let after = self.next.after(bytes[at])?;
                self.keep(after, bytes[at])?;
                self.next = after;
                at += 1;
            }
        }
        Ok(Decoded { data, used: at })
    }

    /// Counts a byte of framing that leads to `after`, and keeps it if it is one of a trailer.
    fn keep(&mut self, after: Next, byte: u8) -> Result<(), Malformed> {
        match after {
            Next::Extension(_) => self.overhead += 1,
            Next::TrailerName | Next::Trailer => {
                self.overhead += 1;
                self.trailers.push(byte);
            }
            Next::TrailerLineFeed => self.trailers.push(byte),
            Next::TrailerStart if self.next == Next::TrailerLineFeed => self.trailers.push(byte),
            Next::Nothing if !self.trailers.is_empty() => {
                self.trailers = trailers::admitted(&self.trailers)?;
            }
            _ => {}
        }
        if self.overhead > MAX_CHUNK_OVERHEAD { Err(Malformed) } else { Ok(()) }
    }
}

impl Next {
    const START: Self = Self::Size { size: 0, digits: 0 };

    /// What comes after `byte`, which is framing.
    fn after(self, byte: u8) -> Result<Self, Malformed> {
        Ok(match (self, byte) {
            (Self::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < 16 => {
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (Self::Size { size, digits: 1.. } | Self::SizeBlank(size), b' ' | b'\t') => Self::SizeBlank(size),
            (Self::Size { size, digits: 1.. } | Self::SizeBlank(size), b';') => Self::Extension(size),
            (Self::Size { size, digits: 1.. } | Self::SizeBlank(size) | Self::Extension(size), b'\r') => {
                Self::SizeEnd(size)
            }
            (Self::Extension(_) | Self::Trailer, byte) if may_be_in_text(byte) => self,
            (Self::SizeEnd(0), b'\n') => Self::TrailerStart,
            (Self::SizeEnd(size), b'\n') => Self::Data(size),
            (Self::DataCarriageReturn, b'\r') => Self::DataLineFeed,
            (Self::DataLineFeed, b'\n') => Self::START,
            (Self::TrailerStart, b'\r') => Self::EndLineFeed,
            (Self::Trailer, b'\r') => Self::TrailerLineFeed,
            (Self::TrailerStart | Self::TrailerName, byte) if is_token(byte) => Self::TrailerName,
            (Self::TrailerName, b':') => Self::Trailer,
            (Self::TrailerLineFeed, b'\n') => Self::TrailerStart,
            (Self::EndLineFeed, b'\n') => Self::Nothing,
            _ => return Err(Malformed),
        })
    }
}

/// What an extension or the value of a trailer consists of. A control byte in it is a line end to some.
fn may_be_in_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// What the name of a trailer consists of (RFC 9110 section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in pieces of `step` bytes; the data, and how much is left over behind the body.
    fn decode(framing: Framing, wire: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let (mut decoder, mut data, mut left) = (Decoder::new(framing), Vec::new(), 0);
        for piece in wire.chunks(step) {
            let mut piece = piece.to_vec();
            let decoded = decoder.decode(&mut piece)?;
            data.extend_from_slice(&piece[decoded.data]);
            left += piece.len() - decoded.used;
        }
        Ok((data, left, decoder.is_done()))
    }

    #[test]
    fn chunks_decode_however_they_are_cut() {
        let wire =
            b"5\r\nhello\r\n00C;name=\"x\"\r\n, wide world\r\n1 \r\n!\r\n0\r\nx-trailer: 1\r\n\r\nNEXT";
        for step in 1..=wire.len() {
            let decoded = decode(Framing::Chunked, wire, step).unwrap();
            assert_eq!(decoded, (b"hello, wide world!".to_vec(), 4, true), "step {step}");
        }
    }

    proptest! {
        #[test]
        fn what_chunks_say_does_not_depend_on_how_they_are_cut(
            wire in "([0-3]|a|;|x|\r\n|\r|\n| |[012]\r\n|1\r\nx\r\n|2\r\n\r\n\r\n|0\r\n\r\n){0,12}",
            step in 1_usize..8,
        ) {
            let whole = decode(Framing::Chunked, wire.as_bytes(), wire.len().max(1));
            prop_assert_eq!(decode(Framing::Chunked, wire.as_bytes(), step), whole);
        }
    }

    #[test]
    fn trailers_that_may_pass_are_kept_however_they_are_cut() {
        let wire = b"1\r\na\r\n0\r\nX-Sum: 1\r\nhost: b\r\nEtag:\"x\"\r\n\r\nNEXT";
        for step in 1..=wire.len() {
            let mut decoder = Decoder::new(Framing::Chunked);
            for piece in wire.chunks(step) {
                assert!(decoder.is_done() || decoder.trailers().is_empty());
                decoder.decode(&mut piece.to_vec()).unwrap();
            }
            assert_eq!(decoder.trailers(), b"x-sum: 1\r\netag: \"x\"\r\n", "step {step}");
        }
    }

    #[test]
    fn garbled_chunks_are_refused() {
        for wire in [
            "\r\n",
            "x\r\n",
            ";x\r\n",
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
            "3;a\nabc\r\n",
            "0\r\na: b\n\r\n",
            "0\r\na: \rb\r\n",
            "0\r\n\n",
            "3;a\0b\r\nabc\r\n",
            "0\r\na\r\n\r\n",
            "0\r\n: b\r\n\r\n",
            "0\r\na : b\r\n\r\n",
            "0\r\na: b\r\n c\r\n\r\n",
            "0\r\na: \0\r\n\r\n",
        ] {
            let wire = format!("{wire}0\r\n\r\n");
            for step in [1, wire.len()] {
                assert_eq!(decode(Framing::Chunked, wire.as_bytes(), step), Err(Malformed), "{wire:?}");
            }
        }
    }

    #[test]
    fn sizes_fill_64_bits_and_no_more() {
        let mut decoder = Decoder::new(Framing::Chunked);
        decoder.decode(&mut b"ffffFFFFffffFFFF\r\n".to_vec()).unwrap();
        let Decoder::Chunked(chunked) = decoder else { unreachable!("it was made for chunks") };
        assert_eq!(chunked.next, Next::Data(u64::MAX));
    }

    #[test]
    fn framing_without_end_is_refused() {
        let long_extension = format!("1;{}", "x".repeat(MAX_CHUNK_OVERHEAD + 1));
        assert_eq!(decode(Framing::Chunked, long_extension.as_bytes(), 100), Err(Malformed));
        let many_extensions = "1;x\r\na\r\n".repeat(MAX_CHUNK_OVERHEAD);
        assert_eq!(decode(Framing::Chunked, many_extensions.as_bytes(), 100), Err(Malformed));
        let many_trailers = format!("0\r\n{}", "a: b\r\n".repeat(MAX_CHUNK_OVERHEAD));
        assert_eq!(decode(Framing::Chunked, many_trailers.as_bytes(), 100), Err(Malformed));
    }

    #[test]
    fn a_stream_may_have_any_number_of_chunks() {
        let wire = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(MAX_CHUNK_OVERHEAD));
        let (data, left, done) = decode(Framing::Chunked, wire.as_bytes(), 1000).unwrap();
        assert_eq!((data.len(), left, done), (MAX_CHUNK_OVERHEAD, 0, true));
    }

    #[test]
    fn a_length_ends_where_it_says() {
        assert_eq!(decode(Framing::Length(5), b"helloNEXT", 2).unwrap(), (b"hello".to_vec(), 4, true));
    }

    #[test]
    fn only_a_body_without_length_may_end_with_the_connection() {
        assert!(Decoder::new(Framing::UntilClose).end());
        assert!(!Decoder::new(Framing::Length(1)).end());
        assert!(!Decoder::new(Framing::Chunked).end());
    }
}
