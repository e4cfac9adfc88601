//! Owns the framing of a body on its way out. It is put around the data where that lies, so that data
//! is not copied to be framed.

use std::ops::Range;

/// Bytes that framing may add behind data: the end of a chunk and the end of a body.
pub(in crate::proxy) const TAIL_BYTES: usize = CHUNK_END.len() + BODY_END.len();

/// Bytes that framing may add before data: 16 digits and a line end.
const SIZE_BYTES: usize = 18;

const CHUNK_END: &[u8] = b"\r\n";
const BODY_END: &[u8] = b"0\r\n\r\n";

/// How a body is framed on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Encoder {
    /// Not at all: its length is stated, or the end of the connection ends it.
    Plain,
    /// Chunks.
    Chunked,
}

impl Encoder {
    /// Puts framing around `data`, the `last` of its body or not; where the two are together.
    pub(in crate::proxy) fn frame(self, area: &mut [u8], data: Range<usize>, last: bool) -> Range<usize> {
        if self == Self::Plain {
            return data;
        }
        let mut framed = data.clone();
        if !data.is_empty() {
            framed.start = put_size(area, &data);
            framed.end = put(area, framed.end, CHUNK_END);
        }
        if last {
            framed.end = put(area, framed.end, BODY_END);
        }
        framed
    }
}

/// Writes the size line of a chunk in front of it; where it starts.
fn put_size(area: &mut [u8], data: &Range<usize>) -> usize {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut line = [0; SIZE_BYTES];
    let (mut start, mut left) = (SIZE_BYTES - 2, data.len());
    line[start..].copy_from_slice(b"\r\n");
    while left > 0 {
        start -= 1;
        line[start] = DIGITS[left % 16];
        left /= 16;
    }
    let at = data.start - (SIZE_BYTES - start);
    put(area, at, &line[start..]);
    at
}

/// Writes `bytes` at `at`; where they end.
fn put(area: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    let end = at + bytes.len();
    area[at..end].copy_from_slice(bytes);
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(encoder: Encoder, data: &[u8], last: bool) -> Vec<u8> {
        let mut area = vec![b'?'; SIZE_BYTES + data.len() + TAIL_BYTES];
        area[SIZE_BYTES..SIZE_BYTES + data.len()].copy_from_slice(data);
        let framed = encoder.frame(&mut area, SIZE_BYTES..SIZE_BYTES + data.len(), last);
        area[framed].to_vec()
    }

    #[test]
    fn chunks_get_a_size_and_bodies_an_end() {
        assert_eq!(framed(Encoder::Chunked, b"abc", false), b"3\r\nabc\r\n");
        assert_eq!(framed(Encoder::Chunked, b"abc", true), b"3\r\nabc\r\n0\r\n\r\n");
        assert_eq!(framed(Encoder::Chunked, b"", true), b"0\r\n\r\n");
        assert_eq!(framed(Encoder::Chunked, b"", false), b"", "an empty chunk would end the body");
        assert_eq!(framed(Encoder::Chunked, &[b'x'; 0x1234], false)[..6], *b"1234\r\n");
        assert_eq!(framed(Encoder::Plain, b"abc", true), b"abc");
    }
}
