//! A process without file descriptors left: it stays up, does not spin, can be watched, and goes on when some are free.
//! Alone in its process, because it takes the limit of open files away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "proxy/stage.rs"]
#[allow(dead_code, reason = "shared with the other tests of the proxy")]
mod stage;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use guideway::handoff::{bindings, handoff};
use guideway::metrics::Metrics;
use guideway::vitals::Vitals;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use stage::{Backend, Peer, Setup, Stage};
use tokio_util::sync::CancellationToken;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Asks for `/healthz` over this socket, which has its descriptor already, and leaves the connection open.
async fn watch(socket: Socket, vitals: SocketAddr) -> Peer {
    socket.connect(&vitals.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut watcher = Peer::of(tokio::net::TcpStream::from_std(socket.into()).unwrap());
    watcher.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(watcher.read_response().await.1, "alive\n");
    watcher
}

#[tokio::test]
async fn accepting_goes_on_when_descriptors_are_free_again() {
    let backend = Backend::new().await;
    let mut setup = Setup::default();
    // Nothing is to become free by itself.
    (setup.limits.idle, setup.limits.upstream_idle) = (Duration::from_secs(60), Duration::from_secs(60));
    let stage = Stage::with(setup, &[backend.address]).await;
    backend.answer_all("ok");
    let mut early = stage.connect().await;
    early.write(GET).await;
    early.read_response().await;

    let watcher = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let vitals = Vitals::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let vitals_at = vitals.local_addr().unwrap();
    let shown = Vitals::new(Metrics::new(handoff().1, bindings(None).1).into(), stage.readiness.clone());
    tokio::spawn(shown.serve(vitals, CancellationToken::new()));
    // It has taken its spare descriptors when it answers.
    let _first = watch(Socket::new(Domain::IPV4, Type::STREAM, None).unwrap(), vitals_at).await;

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: limit.maximum }).unwrap();
    // The client's own end takes the last descriptor, so the proxy has none for its end.
    let mut taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.pop();
    let mut late = stage.connect().await;
    late.write(GET).await;
    let refused = "guideway_connections_refused_total{limit=\"descriptors\"}";
    stage.settles_above(refused, 2.0).await;
    let counted = stage.series(refused);
    early.write(GET).await;
    assert_eq!(early.read_response().await.1, "ok");

    let _second = watch(watcher, vitals_at).await;

    drop(taken);
    assert_eq!(late.read_response().await.1, "ok");
    // Ten pauses a second at most, so that running out does not also take the processor.
    assert!(counted < 20.0, "{counted} tries");
}
