//! Owns the client's side of a probe: it sends a payload and, behind it, a request of another client as a proxy in
//! front would, and reads all answers up to the end of the connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::recorder::RECORDED;

/// Who gets the answer to this knows whether a payload left something behind, or was not at its end.
const MARKER: &[u8] = b"GET /marker HTTP/1.1\r\nHost: marker\r\nConnection: close\r\n\r\n";
/// The marker as a backend sees it.
pub(crate) const MARKER_TARGET: &str = "GET /marker";

/// Silence after which the proxy is taken to wait for more. It is told then that nothing more comes.
const QUIET: Duration = Duration::from_millis(500);
/// Silence after which a proxy is given up that was told so.
const PATIENCE: Duration = Duration::from_secs(3);

/// One final answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The backend's number, if it is the backend's.
    pub(crate) recorded: Option<usize>,
}

/// All answers to a payload and the marker.
pub(crate) fn send(proxy: SocketAddr, payload: &[u8]) -> Vec<Answer> {
    let mut stream = TcpStream::connect(proxy).expect("the proxy accepts");
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_read_timeout(Some(QUIET)).unwrap();
    // A proxy may refuse the rest of what is long.
    let _ = stream.write_all(&[payload, MARKER].concat());
    answers(&receive(&mut stream))
}

fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let (mut received, mut area, mut told) = (Vec::new(), vec![0; 64 * 1024], false);
    loop {
        match stream.read(&mut area) {
            Ok(0) => return received,
            Ok(read) => received.extend_from_slice(&area[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) && !told => {
                told = true;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // It may be closed by now.
                let _ = stream.shutdown(Shutdown::Write);
            }
            Err(_) => return received,
        }
    }
}

/// The final answers among `bytes`. Those of proxies state their length or end with the connection.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let is_final = status >= 200;
        let all = bytes.len() - end - 4;
        let length =
            if is_final { field("content-length").map_or(Some(all), |it| it.parse().ok()) } else { Some(0) };
        if is_final {
            answers.push(Answer { status, recorded: field(RECORDED).and_then(|number| number.parse().ok()) });
        }
        bytes = &bytes[(end + 4 + length.unwrap_or(all)).min(bytes.len())..];
    }
    answers
}

#[test]
fn answers_are_told_apart() {
    let heard = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-Recorded: 1\r\nContent-Length: 0\r\n\r\n\
                  HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nnoHTTP/1.1 431 Bad\r\n\r\nall of\r\n\r\nthis";
    let own = |status| Answer { status, recorded: None };
    assert_eq!(answers(heard), [Answer { status: 200, recorded: Some(1) }, own(400), own(431)]);
}
