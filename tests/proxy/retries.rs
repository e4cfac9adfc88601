//! Backends that refuse, vanish or answer nothing: which of it a client notices.

use std::time::Duration;

use guideway::balance::pool::Timeouts;

use super::stage::{Backend, Reserved, Setup, Stage, ok, unanswering};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

fn retries(reason: &str) -> String {
    format!("guideway_retries_total{{namespace=\"shop\",pool=\"web\",reason=\"{reason}\"}}")
}

#[tokio::test]
async fn a_refused_connection_costs_no_request_and_is_remembered() {
    let backend = Backend::new().await;
    let dead = Reserved::new();
    let stage = Stage::new(&[dead.address(), backend.address]).await;
    backend.answer_all("alive");
    let mut client = stage.connect().await;
    for key in 0..100 {
        client
            .write(&format!("POST / HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\nContent-Length: 0\r\n\r\n"))
            .await;
        assert_eq!(client.read_response().await.1, "alive");
    }
    let refused = stage.series(&retries("connect_refused"));
    // About half of the keys belong to the dead backend; it is asked again once a second at most.
    assert!((1.0..=10.0).contains(&refused), "{refused} failed connects for 100 requests");
}

#[tokio::test]
async fn a_pool_of_refusing_backends_is_still_tried() {
    let dead = Reserved::new();
    let stage = Stage::new(&[dead.address()]).await;
    for _ in 0..2 {
        let answer = stage.exchange(GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.contains("x-guideway-reason: connect_failed\r\n"),
            "{answer}"
        );
    }
    Backend::at(dead.address()).await.answer_all("back");
    assert!(stage.exchange(GET).await.ends_with("back"));
}

#[tokio::test]
async fn a_request_is_tried_three_times_at_most() {
    let dead = [(); 5].map(|()| Reserved::new());
    let stage = Stage::new(&dead.each_ref().map(Reserved::address)).await;
    assert!(stage.exchange(GET).await.starts_with("HTTP/1.1 502 "));
    assert_eq!(stage.series(&retries("connect_refused")), 2.0);
}

#[tokio::test]
async fn a_pool_without_backends_says_when_to_come_back() {
    let stage = Stage::new(&[]).await;
    let answer = stage.exchange(GET).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    assert!(answer.contains("x-guideway-reason: no_backend\r\n"), "{answer}");
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_given_up() {
    let (silent, backend) = (unanswering().await, Backend::new().await);
    let timeouts = Timeouts { connect: Duration::from_millis(200), request: None };
    let stage =
        Stage::with(Setup { timeouts, ..Setup::default() }, &[silent.address(), backend.address]).await;
    backend.answer_all("alive");
    for key in 0..8 {
        let answer = stage.exchange(&GET.replace("\r\n\r\n", &format!("\r\nX-Key: {key}\r\n\r\n"))).await;
        assert!(answer.ends_with("alive"), "{answer}");
    }
    assert!(stage.series(&retries("connect_timeout")) >= 1.0);
}

#[tokio::test]
async fn a_kept_connection_that_died_is_replaced() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    upstream.write(&ok("one")).await;
    client.read_response().await;
    client.write("GET /again HTTP/1.1\r\nHost: a\r\n\r\n").await;
    upstream.read_head().await;
    drop(upstream);
    let mut upstream = backend.accept().await;
    assert!(upstream.read_head().await.starts_with("GET /again "));
    upstream.write(&ok("two")).await;
    assert_eq!(client.read_response().await.1, "two");
    assert_eq!(stage.series(&retries("stale")), 1.0);
}

#[tokio::test]
async fn a_connection_closed_while_it_rested_is_not_used_even_for_a_post() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    for _ in 0..3 {
        let answering = async {
            let mut upstream = backend.accept().await;
            upstream.read_head().await;
            upstream.read(2).await;
            upstream.write(&ok("taken")).await;
        };
        let (answer, ()) = tokio::join!(stage.exchange(POST), answering);
        assert!(answer.ends_with("taken"), "{answer}");
    }
}

#[tokio::test]
async fn what_may_have_had_an_effect_is_not_repeated() {
    for request in
        [POST, &POST.replace("POST", "PUT"), "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"]
    {
        let (first, second) = (Backend::new().await, Backend::new().await);
        let stage = Stage::new(&[first.address, second.address]).await;
        let dying = async {
            let mut upstream =
                tokio::select! { peer = first.accept() => peer, peer = second.accept() => peer };
            upstream.read_head().await;
        };
        let (answer, ()) = tokio::join!(stage.exchange(request), dying);
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.contains("x-guideway-reason: lost\r\n"),
            "{request:?}: {answer}"
        );
        assert_eq!(stage.series(&retries("lost")), 0.0);
    }
}

#[tokio::test]
async fn an_idempotent_request_that_got_no_answer_goes_to_another_backend() {
    let (first, second) = (Backend::new().await, Backend::new().await);
    let stage = Stage::new(&[first.address, second.address]).await;
    let dying_then_answering = async {
        let mut upstream = tokio::select! { peer = first.accept() => peer, peer = second.accept() => peer };
        upstream.read_head().await;
        drop(upstream);
        let mut upstream = tokio::select! { peer = first.accept() => peer, peer = second.accept() => peer };
        upstream.read_head().await;
        upstream.write(&ok("second")).await;
    };
    let (answer, ()) = tokio::join!(stage.exchange(GET), dying_then_answering);
    assert!(answer.ends_with("second"), "{answer}");
    assert_eq!(stage.series(&retries("lost")), 1.0);
}

#[tokio::test]
async fn an_answer_that_began_is_not_asked_for_again() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let dying = async {
        let mut upstream = backend.accept().await;
        upstream.read_head().await;
        upstream.write("HTTP/1.1 200 O").await;
    };
    let (answer, ()) = tokio::join!(stage.exchange(GET), dying);
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn backends_that_lost_a_request_are_not_said_to_have_refused_it() {
    let (losing, dead) = ([Backend::new().await, Backend::new().await], Reserved::new());
    let stage = Stage::new(&[losing[0].address, losing[1].address, dead.address()]).await;
    for backend in losing {
        tokio::spawn(async move {
            loop {
                backend.accept_any().await.try_read_head().await;
            }
        });
    }
    // Whoever refused the first one is tried last for the second.
    for _ in 0..2 {
        let answer = stage.exchange(GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.contains("\r\nx-guideway-reason: lost\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("a backend broke off before it answered\n"), "{answer}");
    }
}
