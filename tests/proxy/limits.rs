//! Every limit that a client or a backend can run into, and how it ends.

use std::time::{Duration, Instant};

use guideway::balance::backend::State;
use guideway::balance::pool::Timeouts;
use guideway::proxy::Limits;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::stage::{Backend, PATIENCE, Setup, Stage, ok};

const SHORT: Duration = Duration::from_millis(300);
/// How often the proxy looks at times.
const TICK: Duration = Duration::from_millis(100);
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn limits(change: impl FnOnce(&mut Limits)) -> Setup {
    let mut setup = Setup::default();
    change(&mut setup.limits);
    setup
}

/// Ends within a tick or so of `SHORT`, which says that it is this limit and no other that ended it. What starts the
/// time belongs to `end`: the proxy may know of it long before the test goes on.
async fn ends_in_time<T>(end: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let end = end.await;
    assert!((SHORT..SHORT * 10).contains(&begun.elapsed()), "it ended after {:?}", begun.elapsed());
    end
}

#[tokio::test]
async fn an_idle_client_is_sent_away() {
    let backend = Backend::new().await;
    let stage = Stage::with(limits(|limits| limits.idle = SHORT), &[backend.address]).await;
    backend.answer_all("ok");
    // The proxy may have accepted it before we are told that we are connected.
    let fresh = async { stage.connect().await.read_to_end().await };
    assert_eq!(ends_in_time(fresh).await, "");
    let mut used = stage.connect().await;
    let used = async {
        used.write(GET).await;
        used.read_response().await;
        used.read_to_end().await
    };
    assert_eq!(ends_in_time(used).await, "");
}

#[tokio::test]
async fn a_head_that_does_not_end_is_given_up() {
    let stage = Stage::with(limits(|limits| limits.head = SHORT), &[]).await;
    let dripping = async {
        let mut client = stage.connect().await;
        client.write("GET / HTTP/1.1\r\nHost").await;
        for _ in 0..20 {
            tokio::time::sleep(SHORT / 10).await;
            let _ = client.stream.write_all(b"x").await;
        }
        client.is_closed().await
    };
    assert!(ends_in_time(dripping).await);
}

#[tokio::test]
async fn a_request_body_that_stands_still_is_answered_408() {
    let backend = Backend::new().await;
    let stage = Stage::with(limits(|limits| limits.body_idle = SHORT), &[backend.address]).await;
    let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf";
    let stalling = async {
        let (mut client, upstream) = stage.under_way(&backend, request).await;
        (client.read_head().await, upstream)
    };
    let (head, mut upstream) = ends_in_time(stalling).await;
    assert!(
        head.starts_with("HTTP/1.1 408 ") && head.contains("x-guideway-reason: client_stalled\r\n"),
        "{head}"
    );
    assert_eq!(upstream.read_to_end().await, "half");
}

#[tokio::test]
async fn a_backend_that_takes_no_more_of_a_body_is_the_backends_fault() {
    let backend = Backend::new().await;
    let stage = Stage::with(limits(|limits| limits.body_idle = SHORT), &[backend.address]).await;
    // Made before the request: it takes longer than a client may stand still.
    let flood = vec![b'x'; 64 << 20];
    let (mut client, _upstream) =
        stage.under_way(&backend, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n").await;
    let (mut reading, mut writing) = client.stream.split();
    let mut head = [0; 12];
    tokio::select! {
        Ok(()) = writing.write_all(&flood) => panic!("64 MiB went somewhere"),
        read = tokio::io::AsyncReadExt::read_exact(&mut reading, &mut head) => { read.unwrap(); }
    }
    assert_eq!(&head, b"HTTP/1.1 504");
}

#[tokio::test]
async fn a_response_that_stands_still_is_cut() {
    let backend = Backend::new().await;
    let stage = Stage::with(limits(|limits| limits.body_idle = SHORT), &[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
    let stalling = async {
        upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
        client.read_head().await;
        client.is_reset().await
    };
    assert!(ends_in_time(stalling).await);
}

#[tokio::test]
async fn a_response_that_moves_is_not_cut() {
    let backend = Backend::new().await;
    let stage = Stage::with(limits(|limits| limits.body_idle = SHORT), &[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n").await;
    for _ in 0..12 {
        tokio::time::sleep(SHORT / 4).await;
        upstream.write("x").await;
    }
    assert_eq!(client.read_response().await.1, "xxxxxxxxxxxx");
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_a_504() {
    let backend = Backend::new().await;
    let timeouts = Timeouts { request: Some(SHORT), ..Timeouts::default() };
    let stage = Stage::with(Setup { timeouts, ..Setup::default() }, &[backend.address]).await;
    let waiting = async {
        let (mut client, upstream) = stage.under_way(&backend, GET).await;
        (client.read_head().await, upstream)
    };
    let (head, mut upstream) = ends_in_time(waiting).await;
    assert!(head.starts_with("HTTP/1.1 504 ") && head.contains("x-guideway-reason: timeout\r\n"), "{head}");
    assert_eq!(upstream.read_to_end().await, "", "the backend is not told");
}

#[tokio::test]
async fn the_time_for_an_answer_runs_from_the_end_of_the_request() {
    let backend = Backend::new().await;
    let timeouts = Timeouts { request: Some(SHORT), ..Timeouts::default() };
    let stage = Stage::with(Setup { timeouts, ..Setup::default() }, &[backend.address]).await;
    let (mut client, mut upstream) =
        stage.under_way(&backend, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n").await;
    for _ in 0..8 {
        tokio::time::sleep(SHORT / 4).await;
        client.write("x").await;
    }
    upstream.read(8).await;
    upstream.write(&ok("took its time")).await;
    assert_eq!(client.read_response().await.1, "took its time");
}

/// Times are looked at once per tick, which is longer than this timeout.
#[tokio::test]
async fn an_answer_within_a_short_timeout_is_never_given_up() {
    let backend = Backend::new().await;
    let timeouts = Timeouts { request: Some(TICK / 2), ..Timeouts::default() };
    let stage = Stage::with(Setup { timeouts, ..Setup::default() }, &[backend.address]).await;
    let answering = async {
        let mut in_time = 0;
        while in_time < 20 {
            let begun = Instant::now();
            let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
            tokio::time::sleep(TICK / 10).await;
            upstream.write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 7\r\n\r\nin time").await;
            // On a busy machine an answer may be late in truth.
            if begun.elapsed() < TICK / 2 {
                assert_eq!(client.read_response().await.1, "in time");
                in_time += 1;
            }
        }
    };
    timeout(PATIENCE, answering).await.expect("no answer of this test is in time");
}

#[tokio::test]
async fn a_client_that_shut_down_its_side_waits_only_so_long() {
    let backend = Backend::new().await;
    let stage = Stage::with(limits(|limits| limits.half_close = SHORT), &[backend.address]).await;
    let mut client = stage.connect().await;
    let leaving = async {
        client.write(GET).await;
        client.shutdown().await;
        let mut upstream = backend.accept().await;
        upstream.read_head().await;
        upstream.read_to_end().await
    };
    assert_eq!(ends_in_time(leaving).await, "");
}

#[tokio::test]
async fn connections_above_the_limits_are_closed_at_once() {
    for (setup, limit) in [
        (limits(|limits| limits.connections = 2), "total"),
        (limits(|limits| limits.connections_per_client = 2), "client"),
    ] {
        let backend = Backend::new().await;
        let stage = Stage::with(setup, &[backend.address]).await;
        backend.answer_all("ok");
        let (mut first, mut second) = (stage.connect().await, stage.connect().await);
        for client in [&mut first, &mut second] {
            client.write(GET).await;
            client.read_response().await;
        }
        let mut third = stage.connect().await;
        assert!(third.is_closed().await, "{limit}");
        assert_eq!(stage.series(&format!("guideway_connections_refused_total{{limit=\"{limit}\"}}")), 1.0);
        drop(first);
        stage.settles("guideway_connections{namespace=\"shop\",pool=\"web\"}", 1.0).await;
        let mut fourth = stage.connect().await;
        fourth.write(GET).await;
        assert_eq!(fourth.read_response().await.1, "ok", "{limit}");
    }
}

#[tokio::test]
async fn an_unused_backend_connection_is_closed() {
    let backend = Backend::new().await;
    let stage = Stage::with(limits(|limits| limits.upstream_idle = SHORT), &[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
    let resting = async {
        upstream.write(&ok("ok")).await;
        client.read_response().await;
        upstream.read_to_end().await
    };
    assert_eq!(ends_in_time(resting).await, "");
}

#[tokio::test]
async fn a_backend_that_left_keeps_no_unused_connection() {
    let backend = Backend::new().await;
    let mut stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
    upstream.write(&ok("ok")).await;
    client.read_response().await;
    stage.publish(&[], State::Ready);
    assert_eq!(upstream.read_to_end().await, "");
}

#[tokio::test]
async fn requests_to_a_backend_that_left_end_with_its_drain_timeout() {
    for state in [None, Some(State::Terminating { serving: true })] {
        let backend = Backend::new().await;
        let mut stage =
            Stage::with(Setup { drain_timeout: SHORT, ..Setup::default() }, &[backend.address]).await;
        let (mut waiting, _unanswered) = stage.under_way(&backend, GET).await;
        let (mut receiving, mut answered) = stage.under_way(&backend, GET).await;
        answered.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
        receiving.read_head().await;
        let leaving = async {
            match state {
                Some(state) => stage.publish(&[backend.address], state),
                None => stage.publish(&[], State::Ready),
            }
            tokio::join!(waiting.read_head(), receiving.is_reset())
        };
        let (head, reset) = ends_in_time(leaving).await;
        assert!(
            head.starts_with("HTTP/1.1 504 ") && head.contains("x-guideway-reason: drained\r\n"),
            "{head}"
        );
        assert!(reset);
    }
}
