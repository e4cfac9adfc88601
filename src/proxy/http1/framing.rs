//! Owns what the fields of a head say about the end of its message and of its connection, for
//! requests and responses alike (RFC 9112 sections 6.3 and 9.3).

use super::Malformed;
use super::field::tokens;

/// How the body of a message is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Framing {
    /// So many bytes, possibly none.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Everything until the connection ends; responses only.
    UntilClose,
}

/// All `Content-Length` fields of a head.
#[derive(Default)]
pub(super) struct Lengths {
    agreed: Option<u64>,
}

impl Lengths {
    /// Adds a field. Lengths may repeat when they agree.
    pub(super) fn add(&mut self, value: &[u8]) -> Result<(), Malformed> {
        let length = number(value).ok_or(Malformed)?;
        if self.agreed.is_some_and(|before| before != length) {
            return Err(Malformed);
        }
        self.agreed = Some(length);
        Ok(())
    }

    pub(super) fn agreed(&self) -> Option<u64> {
        self.agreed
    }
}

/// All `Transfer-Encoding` fields of a head.
#[derive(Default)]
pub(super) struct Codings {
    count: usize,
    ends_chunked: bool,
}

impl Codings {
    pub(super) fn add(&mut self, value: &[u8]) {
        for coding in tokens(value) {
            self.count += 1;
            self.ends_chunked = coding.eq_ignore_ascii_case(b"chunked");
        }
    }

    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        self.count > 0
    }

    /// Whether the last one is `chunked`, without which nobody knows where a request ends.
    pub(super) fn end_chunked(&self) -> bool {
        self.ends_chunked
    }

    /// Whether there is nothing but one `chunked`. We undo that alone.
    pub(super) fn are_chunked_alone(&self) -> bool {
        self.count == 1 && self.ends_chunked
    }
}

/// All `Connection` fields of a head.
#[derive(Default)]
pub(super) struct Persistence {
    close: bool,
    keep_alive: bool,
    others: bool,
}

impl Persistence {
    pub(super) fn add(&mut self, value: &[u8]) {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else {
                self.others |= !token.is_empty();
            }
        }
    }

    /// Whether a sender of HTTP/1.`minor` keeps the connection.
    pub(super) fn keeps(&self, minor: u8) -> bool {
        !self.close && (minor == 1 || self.keep_alive)
    }

    /// Whether further fields are named, which end at this hop.
    pub(super) fn nominates(&self) -> bool {
        self.others
    }
}

/// A decimal number without sign or space.
fn number(text: &[u8]) -> Option<u64> {
    let add = |number: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    if text.is_empty() { None } else { text.iter().try_fold(0, add) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_and_nothing_else() {
        for (text, expected) in [
            ("0", Some(0)),
            ("007", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1 ", None),
            ("0x1", None),
        ] {
            assert_eq!(number(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_connection_is_kept_by_its_version_and_what_is_said() {
        for (minor, fields, keeps) in [
            (1, &[][..], true),
            (1, &["Close"], false),
            (1, &["keep-alive", "x, close"], false),
            (0, &[], false),
            (0, &["Keep-Alive"], true),
            (0, &["keep-alive, close"], false),
        ] {
            let mut persistence = Persistence::default();
            fields.iter().for_each(|field| persistence.add(field.as_bytes()));
            assert_eq!(persistence.keeps(minor), keeps, "1.{minor} {fields:?}");
            assert_eq!(persistence.nominates(), fields.contains(&"x, close"), "{fields:?}");
        }
    }
}
