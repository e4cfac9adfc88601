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

/// What the client heard.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The backend's numbers of its answers.
    pub(crate) recorded: Vec<usize>,
    /// The statuses of the proxy's own.
    pub(crate) own: Vec<u16>,
}

/// Sends a payload and the marker.
pub(crate) fn send(proxy: SocketAddr, payload: &[u8]) -> Heard {
    let mut stream = TcpStream::connect(proxy).expect("the proxy accepts");
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_read_timeout(Some(QUIET)).unwrap();
    // A proxy may refuse the rest of what is long.
    let _ = stream.write_all(&[payload, MARKER].concat());
    Heard::of(&receive(&mut stream))
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

impl Heard {
    /// What there is in `bytes`. Answers of proxies state their length or end with the connection.
    fn of(mut bytes: &[u8]) -> Self {
        let mut heard = Self { recorded: numbers(bytes), own: Vec::new() };
        while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let field =
                |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            let all = bytes.len() - end - 4;
            let stated = field("content-length").map_or(all, |it| it.parse().unwrap_or(all));
            let length = if status < 200 { 0 } else { stated };
            if status >= 200 && field(RECORDED).is_none() {
                heard.own.push(status);
            }
            bytes = &bytes[(end + 4 + length).min(bytes.len())..];
        }
        heard
    }
}

/// The backend's answers say their number in the head and in the body, because some proxies speak a version of HTTP that
/// has no heads.
fn numbers(bytes: &[u8]) -> Vec<usize> {
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    let mut numbers: Vec<usize> = text.split(&format!("{RECORDED}: ")).skip(1).filter_map(digits).collect();
    numbers.dedup();
    numbers
}

#[test]
fn answers_are_told_apart() {
    let heard = b"HTTP/1.1 100 Continue\r\n\r\n\
                  HTTP/1.1 200 OK\r\nX-Recorded: 1\r\nContent-Length: 13\r\n\r\nx-recorded: 1\
                  HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\nno\
                  HTTP/1.1 200 OK\r\nX-Recorded: 2\r\nContent-Length: 0\r\n\r\n\
                  HTTP/1.1 431 Bad\r\n\r\nall of\r\n\r\nthis";
    assert_eq!(Heard::of(heard), Heard { recorded: vec![1, 2], own: vec![400, 431] });
    assert_eq!(Heard::of(b"x-recorded: 1\n"), Heard { recorded: vec![1], own: vec![] });
}
