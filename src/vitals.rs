//! Owns the port for machines that watch us: `/metrics`, `/healthz`, `/readyz` and nothing else. It
//! is bounded, so that whoever hammers it takes nothing from the traffic, and holds file descriptors
//! back, so that it answers also when the traffic has taken all others.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::State;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{BoxError, Router};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

use crate::metrics::{self, Metrics};
use crate::readiness::Readiness;

/// Requests answered at once. A scrape of a large cluster takes milliseconds and memory; a few
/// scrapers and probes at a time is all there should be.
const CONCURRENT_REQUESTS: usize = 8;

/// Below the second after which Kubernetes gives up on a probe by default.
const ANSWER_WITHIN: Duration = Duration::from_millis(900);

/// What is shown.
#[derive(Clone, Debug)]
pub struct Vitals {
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

impl Vitals {
    /// Shows these.
    pub fn new(metrics: Arc<Metrics>, readiness: Readiness) -> Self {
        Self { metrics, readiness }
    }

    /// Binds the port.
    pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }

    /// Serves until `stop`. To be cancelled last: `/readyz` says that we drain while we do.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        let listener = Reserved::new(listener);
        axum::serve(listener, self.router()).with_graceful_shutdown(stop.cancelled_owned()).await
    }

    fn router(self) -> Router {
        let bounds = ServiceBuilder::new()
            .layer(HandleErrorLayer::new(refuse))
            .load_shed()
            .concurrency_limit(CONCURRENT_REQUESTS)
            .timeout(ANSWER_WITHIN);
        // Liveness stays outside the bounds: being busy is no reason to be restarted.
        Router::new()
            .route("/metrics", get(scrape))
            .route("/readyz", get(ready))
            .layer(bounds)
            .route("/healthz", get(|| async { "alive\n" }))
            .with_state(self)
    }
}

/// File descriptors held back: for a scraper and the probes of a kubelet, and for those that others snatch away.
const SPARES: usize = 8;

/// How long accepting pauses when even those are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections at once. Whoever comes beyond takes the place of the oldest, so that no crowd of idle ones keeps a probe
/// out, and traffic loses no more descriptors than this.
const CONNECTIONS: usize = 64;

/// How long a connection lives, whatever it does: long enough for several scrapes, short for who only sits there.
const LIFETIME: Duration = Duration::from_secs(60);

/// Files that are open for no other reason than to be closed when a connection needs their descriptor.
#[derive(Clone, Debug)]
struct Spares(Arc<Mutex<Vec<File>>>);

impl Spares {
    fn new() -> Self {
        let spares = Self(Arc::default());
        (0..SPARES).for_each(|_| spares.take_up());
        spares
    }

    /// Frees one descriptor. False when none is left.
    fn let_go(&self) -> bool {
        self.files().pop().is_some()
    }

    /// Takes a descriptor, if one is missing and to be had.
    fn take_up(&self) {
        let mut files = self.files();
        if files.len() < SPARES
            && let Ok(file) = File::open("/dev/null")
        {
            files.push(file);
        }
    }

    fn files(&self) -> MutexGuard<'_, Vec<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts also when the process has no descriptor left.
struct Reserved {
    listener: TcpListener,
    spares: Spares,
    /// The connections there are, oldest first; one that is dropped here ends.
    open: VecDeque<oneshot::Sender<Infallible>>,
}

impl Reserved {
    fn new(listener: TcpListener) -> Self {
        Self { listener, spares: Spares::new(), open: VecDeque::new() }
    }

    fn welcome(&mut self, stream: TcpStream) -> Watcher {
        self.open.retain(|connection| !connection.is_closed());
        self.open.drain(..(self.open.len() + 1).saturating_sub(CONNECTIONS));
        let (keep, kept) = oneshot::channel();
        self.open.push_back(keep);
        let ends = Box::pin(tokio::time::sleep(LIFETIME));
        Watcher { stream, kept, ends, _spare: TakeUp(self.spares.clone()) }
    }
}

impl axum::serve::Listener for Reserved {
    type Io = Watcher;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Watcher, SocketAddr) {
        loop {
            let error = match self.listener.accept().await {
                Ok((stream, address)) => return (self.welcome(stream), address),
                Err(error) => error,
            };
            let exhausted = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
            if !(exhausted.contains(&error.raw_os_error()) && self.spares.let_go()) {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection of somebody who watches us.
struct Watcher {
    stream: TcpStream,
    kept: oneshot::Receiver<Infallible>,
    ends: Pin<Box<Sleep>>,
    /// Dropped behind the stream, whose descriptor it takes.
    _spare: TakeUp,
}

impl Watcher {
    /// An error once its time is over or its place is another's.
    fn is_over(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let over = self.ends.as_mut().poll(cx).is_ready() || Pin::new(&mut self.kept).poll(cx).is_ready();
        if over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

struct TakeUp(Spares);

impl Drop for TakeUp {
    fn drop(&mut self) {
        self.0.take_up();
    }
}

impl AsyncRead for Watcher {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_over(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watcher {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_over(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn scrape(State(vitals): State<Vitals>) -> Response {
    match vitals.metrics.scrape() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode the metrics: {error}\n"))
            .into_response(),
    }
}

async fn ready(State(vitals): State<Vitals>) -> Response {
    let missing = vitals.readiness.missing();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", "))).into_response()
}

async fn refuse(error: BoxError) -> Response {
    let text = if error.is::<tower::timeout::error::Elapsed>() {
        "too slow\n"
    } else {
        "too many requests at once\n"
    };
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::ServiceExt as _;

    fn vitals() -> (Vitals, Readiness) {
        let ((_publisher, reader), (_, bindings)) =
            (crate::handoff::handoff(), crate::handoff::bindings(None));
        let readiness = Readiness::default();
        (Vitals::new(Arc::new(Metrics::new(reader, bindings)), readiness.clone()), readiness)
    }

    async fn get(router: Router, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let text = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(text.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readyz_names_what_is_missing() {
        let (vitals, readiness) = vitals();
        let latch = readiness.latch("listeners bound");
        let router = vitals.router();
        assert_eq!(get(router.clone(), "/readyz").await, (503, "not ready: listeners bound\n".to_owned()));
        latch.release();
        assert_eq!(get(router.clone(), "/readyz").await, (200, "ready\n".to_owned()));
        readiness.drain();
        assert_eq!(get(router.clone(), "/readyz").await, (503, "not ready: draining\n".to_owned()));
        assert_eq!(get(router, "/healthz").await, (200, "alive\n".to_owned()));
    }

    #[tokio::test]
    async fn metrics_are_scraped_and_nothing_else_is_served() {
        let (vitals, _readiness) = vitals();
        let router = vitals.router();
        let (status, text) = get(router.clone(), "/metrics").await;
        assert!(status == 200 && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(get(router, "/").await.0, 404);
    }

    async fn served() -> (SocketAddr, CancellationToken) {
        let (vitals, _) = vitals();
        let listener = Vitals::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        tokio::spawn(vitals.serve(listener, stop.clone()));
        (address, stop)
    }

    /// Asks once, and waits until the connection has ended.
    async fn ask(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_crowd_of_idle_connections_keeps_nobody_out_and_the_oldest_go() {
        let (address, _stop) = served().await;
        let mut crowd = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            crowd.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(ask(&mut TcpStream::connect(address).await.unwrap()).await.ends_with("alive\n"));
        for oldest in &mut crowd[..CONNECTIONS] {
            assert_eq!(oldest.read(&mut [0]).await.unwrap_or(0), 0);
        }
        assert!(ask(&mut crowd[2 * CONNECTIONS - 1]).await.ends_with("alive\n"));
    }

    #[tokio::test]
    async fn a_connection_that_only_sits_there_ends() {
        let (address, _stop) = served().await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut TcpStream::connect(address).await.unwrap()).await.ends_with("alive\n"));
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
        // Timers end with a whole millisecond.
        assert!(begun.elapsed() <= LIFETIME + Duration::from_millis(1));
    }

    #[tokio::test]
    async fn what_is_too_much_at_once_is_refused() {
        let (text, elapsed) = ("too slow\n", Box::new(tower::timeout::error::Elapsed::new()));
        let response = refuse(elapsed).await;
        assert_eq!(response.status(), 503);
        assert_eq!(to_bytes(response.into_body(), 99).await.unwrap(), text);
        let overloaded = Box::new(tower::load_shed::error::Overloaded::new());
        assert_eq!(
            to_bytes(refuse(overloaded).await.into_body(), 99).await.unwrap(),
            "too many requests at once\n"
        );
    }
}
