//! Owns one HTTP/1.1 connection of a client: a request at a time, and an answer read to the end of its body.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::wire::Wire;

/// Different values of `x-user`, so that a balancer that hashes spreads the requests.
const USERS: usize = 1000;

/// Fields in an answer's head. The servers measured send a handful.
const MAX_FIELDS: usize = 32;

/// Why a request failed, in words that are counted.
pub(crate) type Reason = String;

pub(crate) struct Client {
    wire: Box<dyn Wire>,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn new(wire: Box<dyn Wire>) -> Self {
        Self { wire, buffer: Vec::with_capacity(2048) }
    }

    /// Sends one request and reads its answer. Ok says whether the connection may be used again.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<bool, Reason> {
        send(&mut *self.wire, request).await?;
        self.buffer.clear();
        let head = loop {
            self.read("the answer").await?;
            if let Some(head) = Head::parse(&self.buffer)? {
                break head;
            }
        };
        while self.buffer.len() < head.end + head.body {
            self.read("the end of the answer").await?;
        }
        if head.status == 200 { Ok(head.keep_alive) } else { Err(format!("status {}", head.status)) }
    }

    pub(crate) fn into_wire(self) -> Box<dyn Wire> {
        self.wire
    }

    async fn read(&mut self, awaited: &str) -> Result<(), Reason> {
        match self.wire.read_buf(&mut self.buffer).await {
            Ok(0) => Err(format!("closed before {awaited}")),
            Ok(_) => Ok(()),
            Err(error) => Err(broken(awaited, &error)),
        }
    }
}

/// The request of one user for `path`.
pub(crate) fn request(path: &str, user: usize) -> Vec<u8> {
    let user = user % USERS;
    format!("GET {path} HTTP/1.1\r\nHost: bench.example\r\nx-user: user{user}\r\n\r\n").into_bytes()
}

/// Sends all of it. TLS may keep bytes back until it is told to let go of them.
pub(crate) async fn send(wire: &mut dyn Wire, bytes: &[u8]) -> Result<(), Reason> {
    let sent = async {
        wire.write_all(bytes).await?;
        wire.flush().await
    };
    sent.await.map_err(|error| broken("sending", &error))
}

/// Text of a failed connection, short enough to be counted by.
pub(crate) fn broken(awaited: &str, error: &io::Error) -> Reason {
    format!("{} before {awaited}", error.kind())
}

struct Head {
    status: u16,
    end: usize,
    body: usize,
    keep_alive: bool,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Option<Self>, Reason> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let end = match response.parse(bytes) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(format!("answer is no HTTP/1.1: {error}")),
        };
        let field = |name: &str| {
            let found = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            found.and_then(|field| std::str::from_utf8(field.value).ok())
        };
        let body = field("content-length").and_then(|length| length.parse().ok());
        Ok(Some(Self {
            status: response.code.unwrap_or_default(),
            end,
            body: body.ok_or("answer without content-length")?,
            keep_alive: !field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    async fn answer(text: &'static str) -> Result<bool, Reason> {
        let (near, mut far) = duplex(4096);
        far.write_all(text.as_bytes()).await.unwrap();
        far.shutdown().await.unwrap();
        Client::new(Box::new(near)).exchange(&request("/", 1)).await
    }

    #[tokio::test]
    async fn an_answer_counts_only_with_its_whole_body() {
        assert_eq!(answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await, Ok(true));
        let cut = answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok").await;
        assert_eq!(cut, Err("closed before the end of the answer".to_owned()));
    }

    #[tokio::test]
    async fn other_statuses_are_failures() {
        let busy = answer("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(busy, Err("status 503".to_owned()));
    }

    #[tokio::test]
    async fn a_connection_that_closes_is_not_used_again() {
        let last = answer("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(last, Ok(false));
    }
}
