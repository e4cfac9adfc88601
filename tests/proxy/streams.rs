//! Owns the peers of a test that speak HTTP/2: a client and a backend by the book, and raw frames for what nobody
//! by the book would send.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::stage::{PATIENCE, Setup, Stage};
use guideway::balance::backend::HttpVersion;

/// What a test waits for, but not for ever.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it does not come")
}

/// A setup whose backends speak HTTP/2.
pub(crate) fn h2c() -> Setup {
    Setup { http: HttpVersion::Http2, ..Setup::default() }
}

/// A proxy in front of a backend that speaks HTTP/2.
pub(crate) async fn in_front_of_http2() -> (Stage, Http2Backend) {
    let backend = Http2Backend::new().await;
    (Stage::with(h2c(), &[backend.address]).await, backend)
}

/// A client.
#[derive(Clone)]
pub(crate) struct Http2 {
    pub(crate) sender: SendRequest<Bytes>,
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: HeaderMap,
    pub(crate) body: String,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A request for this path.
pub(crate) fn get(path: &str) -> http::request::Builder {
    Request::get(format!("http://shop{path}"))
}

/// A request with a body to come.
pub(crate) fn post(path: &str) -> http::request::Builder {
    Request::post(format!("http://shop{path}"))
}

impl Http2 {
    pub(crate) async fn connect(stage: &Stage) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, stage.port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { sender }
    }

    /// Sends a request without a body and waits for the whole response.
    pub(crate) async fn ask(&mut self, request: http::request::Builder) -> Answer {
        let (response, _) = self.begin(request, true).await;
        answer(response).await.unwrap()
    }

    /// Sends a request with a body and waits for the whole response.
    pub(crate) async fn send(&mut self, request: http::request::Builder, body: &str) -> Answer {
        let (response, mut sending) = self.begin(request, false).await;
        sending.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
        answer(response).await.unwrap()
    }

    /// Sends the head of a request.
    pub(crate) async fn begin(
        &mut self,
        request: http::request::Builder,
        ends: bool,
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let request = request.version(http::Version::HTTP_2).body(()).unwrap();
        self.sender = soon(self.sender.clone().ready()).await.unwrap();
        self.sender.send_request(request, ends).unwrap()
    }
}

/// Reads a whole response.
pub(crate) async fn answer(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    let (parts, body) = soon(response).await?.into_parts();
    let (body, trailers) = read(body).await?;
    Ok(Answer { status: parts.status.as_u16(), fields: parts.headers, body, trailers })
}

/// Reads a whole body and what is behind it.
pub(crate) async fn read(mut body: RecvStream) -> Result<(String, Option<HeaderMap>), h2::Error> {
    let mut text = Vec::new();
    while let Some(bytes) = soon(body.data()).await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len()).unwrap();
        text.extend_from_slice(&bytes);
    }
    let trailers = soon(body.trailers()).await?;
    Ok((String::from_utf8(text).unwrap(), trailers))
}

/// A request as a backend gets it.
pub(crate) type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// A backend.
pub(crate) struct Http2Backend {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    settings: h2::server::Builder,
}

/// A connection to a backend that a test drives itself.
pub(crate) type Accepted = h2::server::Connection<TcpStream, Bytes>;

impl Http2Backend {
    pub(crate) async fn new() -> Self {
        Self::with(h2::server::Builder::new()).await
    }

    pub(crate) async fn with(settings: h2::server::Builder) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener, settings }
    }

    /// The next connection of the proxy.
    pub(crate) async fn accept(&self) -> Accepted {
        let (stream, _) = soon(self.listener.accept()).await.unwrap();
        soon(self.settings.handshake(stream)).await.unwrap()
    }

    /// The next connection of the proxy, and the first request on it.
    pub(crate) async fn accept_asked(&self) -> (Accepted, Asked) {
        let mut connection = self.accept().await;
        let asked = soon(connection.accept()).await.unwrap().unwrap();
        (connection, asked)
    }

    /// Has every request answered by `handler`; how many connections there were.
    pub(crate) fn answer_all<F>(
        self,
        handler: impl Fn(Asked) -> F + Clone + Send + 'static,
    ) -> Arc<AtomicUsize>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = self.listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                let (handshake, handler) = (self.settings.handshake(stream), handler.clone());
                tokio::spawn(async move {
                    let Ok(mut connection) = handshake.await else { return };
                    while let Some(Ok(asked)) = connection.accept().await {
                        tokio::spawn(handler(asked));
                    }
                });
            }
        });
        connections
    }
}

/// Lets a connection carry what is under way on it.
pub(crate) fn carry(mut connection: Accepted) {
    tokio::spawn(async move { while connection.accept().await.is_some() {} });
}

/// Answers with this body.
pub(crate) fn reply(respond: &mut SendResponse<Bytes>, body: &str) {
    let mut sending = respond.send_response(Response::new(()), body.is_empty()).unwrap();
    if !body.is_empty() {
        sending.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
    }
}

/// Answers everybody with this name.
pub(crate) fn named(name: &'static str) -> impl Fn(Asked) -> std::future::Ready<()> + Clone + Send {
    move |(_, mut respond)| {
        reply(&mut respond, name);
        std::future::ready(())
    }
}

/// Fields behind a body.
pub(crate) fn trailers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as HPACK writes them when it remembers nothing.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "longer texts have longer lengths");
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// What a plain request says first.
pub(crate) const PSEUDO: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "shop")];

/// A client that sends frames as it likes.
pub(crate) struct RawHttp2 {
    pub(crate) stream: TcpStream,
}

impl RawHttp2 {
    /// Connects, and says what must be said first.
    pub(crate) async fn connect(stage: &Stage) -> Self {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, stage.port)).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self { stream }
    }

    pub(crate) async fn write(&mut self, frames: &[u8]) {
        self.stream.write_all(frames).await.unwrap();
    }

    /// The next frame of this kind: its stream, its flags and what it carries. `None` when the connection ends before.
    pub(crate) async fn next(&mut self, wanted: u8) -> Option<(u32, u8, Vec<u8>)> {
        soon(async {
            loop {
                let mut head = [0; 9];
                self.stream.read_exact(&mut head).await.ok()?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; length as usize];
                self.stream.read_exact(&mut payload).await.ok()?;
                if head[3] == wanted {
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    return Some((stream, head[4], payload));
                }
            }
        })
        .await
    }

    /// Why the other side ends the connection.
    pub(crate) async fn goodbye(&mut self) -> Option<u32> {
        let (_, _, payload) = self.next(GOAWAY).await?;
        Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))
    }
}
