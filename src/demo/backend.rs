//! Owns the demo backend: a small HTTP/1.1 server that says who answered. `guideway demo` runs ten
//! of them and the testbed runs one in a pod; a request can order it to be slow, sick or large.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xxhash_rust::xxh3::Xxh3;

use super::orders::Orders;

/// Response header that names the backend.
pub const BACKEND_HEADER: HeaderName = HeaderName::from_static("x-backend");

/// Ordered bodies repeat this block, so that their size costs no memory.
static FILLING: [u8; 16 * 1024] = [b'x'; 16 * 1024];

/// Pause after a failed accept. Such failures (no file descriptors left) pass only when something closes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A backend that is bound and not yet serving.
#[derive(Debug)]
pub struct DemoBackend {
    listener: TcpListener,
    handle: BackendHandle,
}

/// What others may see and set of a backend, cheap to clone.
#[derive(Clone, Debug)]
pub struct BackendHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    header: HeaderValue,
    address: SocketAddr,
    ready: AtomicBool,
    active: AtomicU64,
    served: AtomicU64,
}

type Payload = Either<Full<Bytes>, Filling>;

impl DemoBackend {
    /// Binds `address`; port 0 takes any free one. `name` must be fit for a header.
    pub async fn bind(name: &str, address: SocketAddr) -> io::Result<Self> {
        let header = HeaderValue::from_str(name).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} cannot stand in a header"))
        })?;
        let listener = TcpListener::bind(address).await?;
        let shared = Shared {
            name: name.to_owned(),
            header,
            address: listener.local_addr()?,
            ready: AtomicBool::new(true),
            active: AtomicU64::new(0),
            served: AtomicU64::new(0),
        };
        Ok(Self { listener, handle: BackendHandle { shared: Arc::new(shared) } })
    }

    /// A handle that outlives `serve`.
    pub fn handle(&self) -> BackendHandle {
        self.handle.clone()
    }

    /// Serves until `stop`, then finishes the requests in flight and returns.
    pub async fn serve(self, stop: CancellationToken) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, self.handle.clone(), stop.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
        drop(self.listener);
        connections.close();
        connections.wait().await;
    }
}

impl BackendHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Requests answered, probes and control requests left out.
    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// Requests that have begun and are not answered yet.
    pub fn active(&self) -> u64 {
        self.shared.active.load(Ordering::Relaxed)
    }

    /// What `GET /ready` answers from now on.
    pub fn set_ready(&self, ready: bool) {
        self.shared.ready.store(ready, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Relaxed)
    }
}

/// A connection error is the peer's business; a demo backend has nobody to tell.
async fn serve_connection(stream: TcpStream, handle: BackendHandle, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer(&handle, request).await) });
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn answer(handle: &BackendHandle, request: Request<Incoming>) -> Response<Payload> {
    let mut response = match request.uri().path() {
        "/healthz" | "/heartbeat" => text(StatusCode::OK, ""),
        "/ready" => readiness(handle, &request),
        path => {
            let _counted = Active::count(&handle.shared);
            if path == "/home" { home(handle) } else { serve(handle, request).await }
        }
    };
    response.headers_mut().insert(BACKEND_HEADER, handle.shared.header.clone());
    response
}

/// Counts a request as active until it is dropped, be it answered or given up by the client.
struct Active<'a>(&'a Shared);

impl<'a> Active<'a> {
    fn count(shared: &'a Shared) -> Self {
        shared.active.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `GET /ready` is the readiness probe, `PUT /ready?value=false` makes it fail.
fn readiness(handle: &BackendHandle, request: &Request<Incoming>) -> Response<Payload> {
    match (request.method(), request.uri().query()) {
        (&Method::PUT, Some("value=true")) => handle.set_ready(true),
        (&Method::PUT, Some("value=false")) => handle.set_ready(false),
        (&Method::PUT, _) => return text(StatusCode::BAD_REQUEST, "write ?value=true or ?value=false\n"),
        _ if handle.is_ready() => {}
        _ => return text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
    text(StatusCode::OK, "ok\n")
}

/// The greeting that clients of the ring-of-512-slots balancer look for.
fn home(handle: &BackendHandle) -> Response<Payload> {
    handle.shared.served.fetch_add(1, Ordering::Relaxed);
    let message = format!("Hello from Server: {}", handle.name());
    json(StatusCode::OK, &serde_json::json!({"message": message, "status": "successful"}))
}

async fn serve(handle: &BackendHandle, request: Request<Incoming>) -> Response<Payload> {
    let orders = match Orders::parse(request.uri().query()) {
        Ok(orders) => orders,
        Err(reason) => return text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
    };
    let (head, body) = request.into_parts();
    let Ok((received, digest)) = measure(body).await else {
        return text(StatusCode::BAD_REQUEST, "the request's body ended early\n");
    };
    if !orders.delay.is_zero() {
        tokio::time::sleep(orders.delay).await;
    }
    handle.shared.served.fetch_add(1, Ordering::Relaxed);
    if let Some(bytes) = orders.bytes {
        return respond(orders.status, "application/octet-stream", Either::Right(Filling { left: bytes }));
    }
    let echo = serde_json::json!({
        "backend": handle.name(),
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "body": {"bytes": received, "xxh3": format!("{digest:016x}")},
    });
    json(orders.status, &echo)
}

/// Size and XXH3 of a body, so that a test can see that every byte came through.
async fn measure(mut body: Incoming) -> Result<(u64, u64), hyper::Error> {
    let mut hasher = Xxh3::new();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes += data.len() as u64;
            hasher.update(&data);
        }
    }
    Ok((bytes, hasher.digest()))
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Payload> {
    respond(status, "application/json", Either::Left(Full::from(format!("{value}\n"))))
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Payload> {
    respond(status, "text/plain", Either::Left(Full::new(text.into())))
}

fn respond(status: StatusCode, kind: &'static str, body: Payload) -> Response<Payload> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A body of a given length without its memory.
struct Filling {
    left: u64,
}

impl Body for Filling {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = self.left.min(FILLING.len() as u64);
        self.left -= length;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&FILLING[..length as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::client::conn::http1::{SendRequest, handshake};
    use std::net::Ipv4Addr;

    struct Peer {
        handle: BackendHandle,
        stop: CancellationToken,
        serving: tokio::task::JoinHandle<()>,
    }

    impl Peer {
        async fn start() -> Self {
            let backend = DemoBackend::bind("Backend-1", (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
            let (handle, stop) = (backend.handle(), CancellationToken::new());
            let serving = tokio::spawn(backend.serve(stop.clone()));
            Self { handle, stop, serving }
        }

        async fn connect(&self) -> SendRequest<Full<Bytes>> {
            let stream = TcpStream::connect(self.handle.address()).await.unwrap();
            let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender
        }

        async fn ask(&self, method: &str, target: &str, body: &'static str) -> (StatusCode, String, Bytes) {
            ask(&mut self.connect().await, method, target, body).await
        }
    }

    async fn ask(
        sender: &mut SendRequest<Full<Bytes>>,
        method: &str,
        target: &str,
        body: &'static str,
    ) -> (StatusCode, String, Bytes) {
        let request = Request::builder().method(method).uri(target).body(Full::from(body)).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let name = response.headers()[BACKEND_HEADER].to_str().unwrap().to_owned();
        (response.status(), name, response.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn every_path_is_answered_with_the_name_and_a_digest_of_the_body() {
        let peer = Peer::start().await;
        let (status, name, body) = peer.ask("POST", "/any/path?user=ada", "hello").await;
        assert_eq!((status, name.as_str()), (StatusCode::OK, "Backend-1"));
        let echo: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(echo["backend"], "Backend-1");
        assert_eq!(echo["path"], "/any/path");
        assert_eq!(echo["body"]["bytes"], 5);
        assert_eq!(echo["body"]["xxh3"], format!("{:016x}", xxhash_rust::xxh3::xxh3_64(b"hello")));
        assert_eq!(peer.handle.served(), 1);
    }

    #[tokio::test]
    async fn orders_set_the_status_and_the_size() {
        let peer = Peer::start().await;
        let (status, _, body) = peer.ask("GET", "/?bytes=40000&status=503", "").await;
        assert_eq!((status, body.len()), (StatusCode::SERVICE_UNAVAILABLE, 40_000));
        let (status, _, body) = peer.ask("GET", "/?bytes=many", "").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(body.starts_with(b"bytes:"), "{body:?}");
    }

    #[tokio::test]
    async fn readiness_follows_the_switch_and_is_no_request_served() {
        let peer = Peer::start().await;
        assert_eq!(peer.ask("GET", "/ready", "").await.0, StatusCode::OK);
        assert_eq!(peer.ask("PUT", "/ready?value=false", "").await.0, StatusCode::OK);
        assert_eq!(peer.ask("GET", "/ready", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(peer.ask("GET", "/healthz", "").await.0, StatusCode::OK);
        assert_eq!(peer.ask("PUT", "/ready?value=perhaps", "").await.0, StatusCode::BAD_REQUEST);
        assert_eq!(peer.ask("PUT", "/ready?value=true", "").await.0, StatusCode::OK);
        assert_eq!(peer.ask("GET", "/ready", "").await.0, StatusCode::OK);
        assert_eq!(peer.handle.served(), 0);
    }

    #[tokio::test]
    async fn the_older_balancers_paths_answer() {
        let peer = Peer::start().await;
        assert_eq!(peer.ask("GET", "/heartbeat", "").await.0, StatusCode::OK);
        let (_, _, body) = peer.ask("GET", "/home", "").await;
        assert!(String::from_utf8_lossy(&body).contains("Hello from Server: Backend-1"));
    }

    #[tokio::test]
    async fn a_stop_finishes_the_request_in_flight_and_closes_idle_connections() {
        let peer = Peer::start().await;
        let (mut busy, mut idle) = (peer.connect().await, peer.connect().await);
        ask(&mut idle, "GET", "/", "").await;
        let in_flight = tokio::spawn(async move { ask(&mut busy, "GET", "/?delay=100ms", "").await });
        while peer.handle.active() == 0 {
            tokio::task::yield_now().await;
        }
        peer.stop.cancel();
        assert_eq!(in_flight.await.unwrap().0, StatusCode::OK);
        peer.serving.await.unwrap();
        assert!(idle.ready().await.is_err());
        assert!(TcpStream::connect(peer.handle.address()).await.is_err());
    }
}
