//! Owns the task of one client connection: HTTP spoken by hyper, ended by us when something takes too
//! long, and accounted for however it ends.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use http::Request;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::client::{Client, ClientStream, Expiry, Phase};
use super::limits::{BUFFER_BYTES, MAX_HEAD_BYTES};
use super::service;
use super::worker::Worker;
use crate::metrics::RescueReason;

/// HTTP/1.1 as we speak it to clients. Waits are bounded by `Client`, not by hyper's timers: those
/// cannot tell an idle connection from a head that does not come to an end.
pub(super) fn protocol() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.header_read_timeout(None).max_header_size(MAX_HEAD_BYTES).max_buf_size(BUFFER_BYTES);
    http
}

/// Serves one client until its connection ends.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, client: Rc<Client>) {
    let _watch = PanicWatch(&worker);
    let respond = service_fn(|request: Request<Incoming>| {
        // Here and not in the future, which hyper polls only after it read on.
        client.end_head(!request.body().is_end_stream());
        let (worker, client) = (worker.clone(), client.clone());
        async move { Ok::<_, Infallible>(service::answer(worker, client, request).await) }
    });
    let io = TokioIo::new(ClientStream::new(stream, client.clone()));
    let mut http = pin!(worker.protocol.serve_connection(io, respond));
    let ended = poll_fn(|cx| {
        client.wake_with(cx.waker());
        if let Poll::Ready(ended) = http.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        client.pump_upload(cx);
        expire(&client, http.as_mut(), cx)
    });
    if let Err(error) = ended.await {
        client.failed(&error);
    }
}

/// Ends the connection if something took too long that no answer can be given for.
fn expire<S>(
    client: &Client,
    mut http: Pin<&mut http1::Connection<TokioIo<ClientStream>, S>>,
    cx: &mut Context<'_>,
) -> Poll<hyper::Result<()>>
where
    S: hyper::service::HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::ResBody: 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match (client.expiry(), client.phase()) {
        (Some(Expiry::Idle), Phase::Idle) => {
            http.as_mut().graceful_shutdown();
            http.poll(cx)
        }
        (Some(Expiry::Stalled | Expiry::Drained), Phase::Download) => {
            client.reset_on_close();
            Poll::Ready(Ok(()))
        }
        (Some(Expiry::Head | Expiry::Gone | Expiry::Linger), _) => Poll::Ready(Ok(())),
        (None | Some(_), _) => Poll::Pending,
    }
}

impl Client {
    /// Counts what hyper refused before we saw it.
    fn failed(&self, error: &hyper::Error) {
        let meters = &self.home().meters;
        if error.is_parse_too_large() {
            meters.request(431);
            meters.rescue(RescueReason::HeadTooLarge);
        } else if error.is_parse() {
            meters.request(400);
            meters.rescue(RescueReason::BadRequest);
        }
    }
}

/// The runtime keeps a panic to the task it happened in; this makes it visible.
struct PanicWatch<'a>(&'a Worker);

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.meters.panicked();
        }
    }
}
