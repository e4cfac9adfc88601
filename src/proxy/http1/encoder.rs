//! Owns the framing of a body on its way out. It is put around the data where that lies, so that data
//! is not copied to be framed.

use std::ops::Range;

use crate::proxy::limits::{MAX_CHUNK_OVERHEAD, MAX_HEADER_FIELDS};

/// Bytes that framing may add behind data: the end of a chunk and of a body, and the lines of what a decoder keeps of
/// the fields between. Each has a line end and a blank that are not counted as overhead.
pub(in crate::proxy) const TAIL_BYTES: usize =
    CHUNK_END.len() + LAST_CHUNK.len() + MAX_CHUNK_OVERHEAD + 3 * MAX_HEADER_FIELDS + BODY_END.len();

/// Bytes that framing may add before data: 16 digits and a line end.
const SIZE_BYTES: usize = 18;

const CHUNK_END: &[u8] = b"\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n";
const BODY_END: &[u8] = b"\r\n";

/// How a body is framed on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Encoder {
    /// Not at all: its length is stated, or the end of the connection ends it.
    Plain,
    /// Chunks.
    Chunked,
}

impl Encoder {
    /// Puts framing around `data`; where the two are together. If it is the last of its body, `behind` has the lines of
    /// the fields behind that.
    pub(in crate::proxy) fn frame(
        self,
        area: &mut [u8],
        data: Range<usize>,
        behind: Option<&[u8]>,
    ) -> Range<usize> {
        if self == Self::Plain {
            return data;
        }
        let mut framed = data.clone();
        if !data.is_empty() {
            framed.start = put_size(area, &data);
            framed.end = put(area, framed.end, CHUNK_END);
        }
        for part in behind.into_iter().flat_map(|lines| [LAST_CHUNK, lines, BODY_END]) {
            framed.end = put(area, framed.end, part);
        }
        framed
    }

    /// Writes the end of a body with the lines of the fields behind it, of which there may be any number.
    pub(in crate::proxy) fn put_end(self, out: &mut Vec<u8>, behind: &[u8]) {
        if self == Self::Chunked {
            [LAST_CHUNK, behind, BODY_END].iter().for_each(|part| out.extend_from_slice(part));
        }
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
    use super::super::{Decoder, Framing};
    use super::*;

    fn framed(encoder: Encoder, data: &[u8], behind: Option<&[u8]>) -> Vec<u8> {
        let mut area = vec![b'?'; SIZE_BYTES + data.len() + TAIL_BYTES];
        area[SIZE_BYTES..SIZE_BYTES + data.len()].copy_from_slice(data);
        let framed = encoder.frame(&mut area, SIZE_BYTES..SIZE_BYTES + data.len(), behind);
        area[framed].to_vec()
    }

    #[test]
    fn chunks_get_a_size_and_bodies_an_end() {
        assert_eq!(framed(Encoder::Chunked, b"abc", None), b"3\r\nabc\r\n");
        assert_eq!(framed(Encoder::Chunked, b"abc", Some(b"")), b"3\r\nabc\r\n0\r\n\r\n");
        assert_eq!(framed(Encoder::Chunked, b"", Some(b"")), b"0\r\n\r\n");
        assert_eq!(framed(Encoder::Chunked, b"", None), b"", "an empty chunk would end the body");
        assert_eq!(framed(Encoder::Chunked, &[b'x'; 0x1234], None)[..6], *b"1234\r\n");
        assert_eq!(framed(Encoder::Chunked, b"abc", Some(b"x: 1\r\n")), b"3\r\nabc\r\n0\r\nx: 1\r\n\r\n");
        assert_eq!(framed(Encoder::Plain, b"abc", Some(b"")), b"abc");
    }

    #[test]
    fn there_is_room_for_all_that_a_decoder_keeps() {
        let longest = "x".repeat(MAX_CHUNK_OVERHEAD - 4 * (MAX_HEADER_FIELDS - 1) - 4);
        let fields = format!("{}x-y:{longest}\r\n", "x-y:\r\n".repeat(MAX_HEADER_FIELDS - 1));
        let mut decoder = Decoder::new(Framing::Chunked);
        decoder.decode(format!("0\r\n{fields}\r\n").as_bytes().to_vec().as_mut_slice()).unwrap();
        assert!(decoder.trailers().len() > MAX_CHUNK_OVERHEAD);
        framed(Encoder::Chunked, b"abc", Some(decoder.trailers()));
    }
}
