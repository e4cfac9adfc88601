//! Owns HTTP/1 as bytes: heads parsed in place into slices of the buffer they arrived in, and bodies
//! unframed and framed anew where they lie. Pure: it reads no socket and no clock.

mod decoder;
mod encoder;
mod field;
mod framing;
mod request;
mod response;
pub(in crate::proxy) mod trailers;
mod upgrade;

use std::mem::MaybeUninit;

use super::limits::MAX_HEADER_FIELDS;

pub(in crate::proxy) use decoder::Decoder;
pub(in crate::proxy) use encoder::{Encoder, TAIL_BYTES};
pub(in crate::proxy) use field::{Field, Fields, Role, is_imitation, role_of, tokens};
pub(in crate::proxy) use framing::Framing;
pub(in crate::proxy) use request::{HeadFault, Pseudo, RequestHead};
pub(in crate::proxy) use response::{Asked, ResponseFault, ResponseHead};

/// The bytes are not HTTP as we accept it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Malformed;

/// Where the parser puts the fields of a head: on the stack of whoever parses, and never cleared.
pub(in crate::proxy) type Space<'b> = [MaybeUninit<httparse::Header<'b>>; MAX_HEADER_FIELDS];

/// Space for the fields of one head.
pub(in crate::proxy) fn space<'b>() -> Space<'b> {
    [const { MaybeUninit::uninit() }; MAX_HEADER_FIELDS]
}

/// Whether a head may end behind `from`, up to which it was looked for before. To look is much cheaper
/// than to parse, so a head that comes byte by byte costs little.
pub(in crate::proxy) fn may_end(bytes: &[u8], from: usize) -> bool {
    let fresh = &bytes[from.saturating_sub(3)..];
    let mut ends =
        fresh.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| &fresh[at + 1..]);
    ends.any(|rest| rest.starts_with(b"\n") || rest.starts_with(b"\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_head_is_found_wherever_it_is_cut() {
        for head in ["GET / HTTP/1.1\r\na: b\r\n\r\n", "GET / HTTP/1.1\na: b\n\n", "GET / HTTP/1.1\r\n\n"] {
            let bytes = head.as_bytes();
            assert!((0..bytes.len()).all(|end| !may_end(&bytes[..end], 0)), "{head:?}");
            assert!((0..bytes.len()).all(|from| may_end(bytes, from)), "{head:?}");
        }
    }
}
