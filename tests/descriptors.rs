//! A process without file descriptors left: it stays up, does not spin, and goes on when some are free.
//! Alone in its process, because it takes the limit of open files away.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "proxy/stage.rs"]
#[allow(dead_code, reason = "shared with the other tests of the proxy")]
mod stage;

use std::fs::File;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stage::{Backend, Setup, Stage};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn accepting_goes_on_when_descriptors_are_free_again() {
    let backend = Backend::new().await;
    let mut setup = Setup::default();
    setup.limits.idle = Duration::from_secs(60);
    let stage = Stage::with(setup, &[backend.address]).await;
    backend.answer_all("ok");
    let mut early = stage.connect().await;
    early.write(GET).await;
    early.read_response().await;

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

    drop(taken);
    assert_eq!(late.read_response().await.1, "ok");
    // Ten pauses a second at most, so that running out does not also take the processor.
    assert!(counted < 20.0, "{counted} tries");
}
