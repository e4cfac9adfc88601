//! A process without a file descriptor left for a connection to a backend: it says that this is its own lack, blames no
//! backend for it, and goes on when there is one. Alone in its process, because it takes the limit of open files away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "proxy/stage.rs"]
#[allow(dead_code, reason = "shared with the other tests of the proxy")]
mod stage;
#[path = "proxy/streams.rs"]
#[allow(dead_code, reason = "shared with the other tests of the proxy")]
mod streams;

use std::fs::File;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stage::{Backend, Peer, Setup, Stage};
use streams::{Http2, get, h2c};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nx-key: a\r\n\r\n";

/// A backend that answers `name` and keeps no connection, so that each request needs a new one.
async fn forgetful(name: &'static str) -> std::net::SocketAddr {
    let backend = Backend::new().await;
    let address = backend.address;
    tokio::spawn(async move {
        loop {
            let mut peer = backend.accept_any().await;
            if peer.try_read_head().await.is_some() {
                let length = name.len();
                let head =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
                peer.write(&format!("{head}{name}")).await;
            }
        }
    });
    address
}

async fn ask(client: &mut Peer) -> (String, String) {
    client.write(GET).await;
    client.read_response().await
}

#[tokio::test]
async fn a_lack_of_descriptors_is_no_backends_fault() {
    let backends = [forgetful("one").await, forgetful("two").await];
    let stage = Stage::with(Setup::default(), &backends).await;
    let shared = Stage::with(h2c(), &backends).await;
    let mut client = stage.connect().await;
    let (_, served_by) = ask(&mut client).await;
    let mut streams = Http2::connect(&shared).await;
    // It is refused by us, so there is no connection to a backend yet.
    assert_eq!(streams.ask(http::Request::builder().method("TRACE").uri("http://a/")).await.status, 405);

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: limit.maximum }).unwrap();
    let taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    for _ in 0..3 {
        let (head, body) = ask(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains("\r\nx-guideway-reason: exhausted\r\nretry-after: 1\r\n"), "{head}");
        assert_eq!(body, "there is no file descriptor left for a connection to a backend\n");
    }
    let refused = streams.ask(get("/")).await;
    assert_eq!((refused.status, refused.field("x-guideway-reason")), (503, "exhausted"));
    drop(taken);

    // A backend that refused a connection a moment ago would be passed over.
    assert_eq!(ask(&mut client).await.1, served_by);
    let rescued = "guideway_rescued_total{namespace=\"shop\",pool=\"web\",reason=\"exhausted\"}";
    assert_eq!((stage.series(rescued), shared.series(rescued)), (3.0, 1.0));
    for reason in ["connect_failed", "connect_refused", "connect_timeout"] {
        let retries =
            format!("guideway_retries_total{{namespace=\"shop\",pool=\"web\",reason=\"{reason}\"}}");
        assert_eq!((stage.series(&retries), shared.series(&retries)), (0.0, 0.0), "{reason}");
    }
}
