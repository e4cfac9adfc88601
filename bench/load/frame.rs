//! Owns the frames of WebSocket (RFC 6455, section 5) as far as an echo needs them, and the two heads of the opening
//! handshake. The key is always the one of the RFC's example, whose answer is known without SHA-1.

/// Payloads of this many bytes and more would need the longer form of a length.
pub(crate) const MAX_PAYLOAD: usize = 65_535;

/// Opcode of a connection's end.
pub(crate) const CLOSE: u8 = 8;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a client sends first.
pub(crate) fn opening(user: usize) -> String {
    format!(
        "GET /echo HTTP/1.1\r\nHost: bench.example\r\nx-user: user{user}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// What the backend answers; None when the request does not ask for a WebSocket with the key above.
pub(crate) fn answer(head: &str) -> Option<String> {
    let asks = head.to_ascii_lowercase().contains("upgrade: websocket") && head.contains(KEY);
    asks.then(|| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        )
    })
}

/// Whether the answer's head opens the WebSocket.
pub(crate) fn is_open(head: &str) -> bool {
    head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT)
}

/// Appends a frame; a client's are masked.
pub(crate) fn write(opcode: u8, payload: &[u8], masked: bool, into: &mut Vec<u8>) {
    let mask_bit = if masked { MASKED } else { 0 };
    into.push(FINAL | opcode);
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => into.push(mask_bit | short),
        _ => {
            into.push(mask_bit | 126);
            into.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
    }
    if !masked {
        into.extend_from_slice(payload);
        return;
    }
    into.extend_from_slice(&MASK);
    into.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// A frame at the start of `bytes`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
    /// Bytes the frame took.
    pub(crate) end: usize,
}

/// Reads the first frame; None while it is incomplete or when it is longer than this echo takes.
pub(crate) fn read(bytes: &[u8]) -> Option<Frame> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (length, mut at) = match second & !MASKED {
        126 => (usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        127 => return None,
        short => (usize::from(short), 2),
    };
    let mask = if second & MASKED == 0 {
        None
    } else {
        at += 4;
        Some(bytes.get(at - 4..at)?)
    };
    let mut payload = bytes.get(at..at + length)?.to_vec();
    if let Some(mask) = mask {
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
    Some(Frame { opcode: first & 0x0f, payload, end: at + length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_written() {
        for (length, masked) in [(0, true), (125, false), (126, true), (MAX_PAYLOAD, true)] {
            let payload: Vec<u8> = (0..length).map(|it| it as u8).collect();
            let mut bytes = Vec::new();
            write(2, &payload, masked, &mut bytes);
            assert_eq!(read(&bytes[..bytes.len() - 1]), None);
            assert_eq!(read(&bytes), Some(Frame { opcode: 2, payload, end: bytes.len() }));
        }
    }

    #[test]
    fn the_handshake_fits_itself() {
        let answer = answer(&opening(1)).expect("it asks for a WebSocket");
        assert!(is_open(&answer));
        assert!(super::answer("GET / HTTP/1.1\r\n\r\n").is_none());
    }
}
