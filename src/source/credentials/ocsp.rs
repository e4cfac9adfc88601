//! Owns the look at an OCSP response (RFC 6960) before it is stapled: whether it is one, and a successful one. Its
//! signature is for clients to check.

use super::Reason;

const SEQUENCE: u8 = 0x30;
const ENUMERATED: u8 = 0x0a;
/// The constructed, context-specific tag of `responseBytes`.
const RESPONSE_BYTES: u8 = 0xa0;
const SUCCESSFUL: u8 = 0;

/// The response as it is to be stapled.
pub(super) fn response(der: &[u8]) -> Result<Vec<u8>, Reason> {
    if der.is_empty() {
        return Err(Reason::Empty);
    }
    let status = status(der).ok_or(Reason::NoOcspResponse)?;
    if status == SUCCESSFUL { Ok(der.to_vec()) } else { Err(Reason::OcspRefusal { status }) }
}

/// The status that the response begins with. A successful one has more to say behind it, any other has not.
fn status(der: &[u8]) -> Option<u8> {
    let (response, rest) = value(der, SEQUENCE)?;
    let (status, body) = value(response, ENUMERATED)?;
    let &[status] = status else { return None };
    let is_whole = rest.is_empty()
        && match status {
            SUCCESSFUL => value(body, RESPONSE_BYTES).is_some_and(|(_, rest)| rest.is_empty()),
            _ => true,
        };
    is_whole.then_some(status)
}

/// The content of the element that `der` begins with, where it has this tag, and what follows it.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // Long forms with up to four bytes of length: four gigabytes are more than any file here holds.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length).filter(|_| found == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Successful, with a body of these bytes.
    fn good(body: &[u8]) -> Vec<u8> {
        let body_len = u8::try_from(body.len()).unwrap();
        let mut der = vec![SEQUENCE, 5 + body_len, ENUMERATED, 1, SUCCESSFUL, RESPONSE_BYTES, body_len];
        der.extend(body);
        der
    }

    #[test]
    fn a_successful_response_is_stapled_as_it_is() {
        assert_eq!(response(&good(b"signed")).unwrap(), good(b"signed"));
        let long = [0x30, 0x82, 0, 8, 0x0a, 1, 0, 0xa0, 0x81, 2, b'o', b'k'];
        assert_eq!(response(&long).unwrap(), long);
    }

    #[test]
    fn what_is_no_response_is_refused() {
        assert_eq!(response(b""), Err(Reason::Empty));
        let longer = [good(b"signed"), vec![0]].concat();
        let shorter = &good(b"signed")[..9];
        let without_body: &[u8] = &[SEQUENCE, 3, ENUMERATED, 1, SUCCESSFUL];
        let endless: &[u8] = &[SEQUENCE, 0x80, ENUMERATED, 1, SUCCESSFUL, 0, 0];
        let huge: &[u8] = &[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff, 0];
        for der in [&longer[..], shorter, without_body, endless, huge, b"-----BEGIN", &[SEQUENCE]] {
            assert_eq!(response(der), Err(Reason::NoOcspResponse), "{der:?}");
        }
        let try_later = [SEQUENCE, 3, ENUMERATED, 1, 3];
        assert_eq!(response(&try_later), Err(Reason::OcspRefusal { status: 3 }));
    }
}
