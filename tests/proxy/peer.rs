//! Owns one end of a connection as a test plays it: raw bytes, and waits for events instead of sleeping.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// One end of a connection.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
    /// Read, but not asked for yet.
    kept: Vec<u8>,
}

impl Peer {
    pub(crate) fn of(stream: TcpStream) -> Self {
        Self { stream, kept: Vec::new() }
    }

    pub(crate) async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    pub(crate) async fn write_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Reads up to and including the empty line that ends a head.
    pub(crate) async fn read_head(&mut self) -> String {
        timeout(PATIENCE, self.try_read_head()).await.expect("no head comes").expect("the connection ended")
    }

    /// Like `read_head`; `None` when the connection ends before.
    pub(crate) async fn try_read_head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.kept.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = self.kept.split_off(at + 4);
                return String::from_utf8(std::mem::replace(&mut self.kept, rest)).ok();
            }
            if self.stream.read_buf(&mut self.kept).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Reads exactly so many bytes.
    pub(crate) async fn read(&mut self, length: usize) -> String {
        String::from_utf8(self.read_bytes(length).await).unwrap()
    }

    /// Reads exactly so many bytes, whatever they are.
    pub(crate) async fn read_bytes(&mut self, length: usize) -> Vec<u8> {
        let read = async {
            while self.kept.len() < length {
                assert_ne!(self.stream.read_buf(&mut self.kept).await.unwrap(), 0, "the connection ended");
            }
        };
        timeout(PATIENCE, read).await.expect("the bytes do not come");
        let rest = self.kept.split_off(length);
        std::mem::replace(&mut self.kept, rest)
    }

    /// Reads one response with a `Content-Length`: its head and its body.
    pub(crate) async fn read_response(&mut self) -> (String, String) {
        let head = self.read_head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        let body = self.read(length).await;
        (head, body)
    }

    /// Reads until the other side closes. A reset is a failure.
    pub(crate) async fn read_to_end(&mut self) -> String {
        let end = timeout(PATIENCE, self.stream.read_to_end(&mut self.kept))
            .await
            .expect("the connection stays open");
        end.expect("the connection was reset");
        String::from_utf8(std::mem::take(&mut self.kept)).unwrap()
    }

    /// Whether the other side ends the connection with a reset; what it sent before is dropped.
    pub(crate) async fn is_reset(&mut self) -> bool {
        let end = timeout(PATIENCE, self.stream.read_to_end(&mut self.kept))
            .await
            .expect("the connection stays open");
        end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    }

    /// Whether the other side ends the connection, in whatever way.
    pub(crate) async fn is_closed(&mut self) -> bool {
        timeout(PATIENCE, self.stream.read_to_end(&mut self.kept)).await.is_ok()
    }

    /// Shuts down its sending side.
    pub(crate) async fn shutdown(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Sends `bytes` and shuts down its sending side, and reads meanwhile until the other side does.
    pub(crate) async fn exchange(self, bytes: Vec<u8>) -> Vec<u8> {
        let (mut reading, mut writing) = self.stream.into_split();
        let send = async {
            writing.write_all(&bytes).await.unwrap();
            writing.shutdown().await.unwrap();
        };
        let mut received = self.kept;
        let both = async { tokio::join!(send, reading.read_to_end(&mut received)) };
        timeout(PATIENCE, both).await.expect("the bytes do not come").1.expect("the connection was reset");
        received
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Closes in order, after which whatever still arrives is answered with a reset.
    pub(crate) fn reset_after_close(self) {
        self.stream.into_std().unwrap().shutdown(std::net::Shutdown::Write).unwrap();
    }
}
