//! One request and its response: what is kept, what waits, and what happens when a side goes away.

use std::time::{Duration, Instant};

use guideway::balance::backend::State;

use super::stage::{Backend, Stage, ok};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const CLIENT_GONE: &str = "guideway_rescued_total{namespace=\"shop\",pool=\"web\",reason=\"client_gone\"}";

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(GET).await;
    let mut upstream = backend.accept().await;
    for body in ["one", "two", "three"] {
        upstream.read_head().await;
        upstream.write(&ok(body)).await;
        let (head, answer) = client.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("connection: close"), "{head}");
        assert_eq!(answer, body);
        client.write(GET).await;
    }
}

#[tokio::test]
async fn another_client_uses_the_same_backend_connection() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut first, mut upstream) = stage.under_way(&backend, GET).await;
    upstream.write(&ok("one")).await;
    first.read_response().await;
    let mut second = stage.connect().await;
    second.write(GET).await;
    upstream.read_head().await;
    upstream.write(&ok("two")).await;
    assert_eq!(second.read_response().await.1, "two");
}

#[tokio::test]
async fn a_backend_that_closes_after_each_response_is_reconnected() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    for _ in 0..3 {
        client.write(GET).await;
        let mut upstream = backend.accept().await;
        upstream.read_head().await;
        upstream.write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(client.read_response().await.1, "ok");
        assert_eq!(upstream.read_to_end().await, "");
    }
}

#[tokio::test]
async fn bytes_behind_a_response_cost_the_connection_and_nothing_else() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
    upstream.write(&format!("{}{}", ok("mine"), ok("poison"))).await;
    assert_eq!(client.read_response().await.1, "mine");
    client.write(GET).await;
    let mut upstream = backend.accept().await;
    upstream.read_head().await;
    upstream.write(&ok("next")).await;
    assert_eq!(client.read_response().await.1, "next");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = backend.accept().await;
    for path in ["/1", "/2"] {
        assert!(upstream.read_head().await.starts_with(&format!("GET {path} ")));
        upstream.write(&ok(path)).await;
    }
    assert_eq!(client.read_response().await.1, "/1");
    assert_eq!(client.read_response().await.1, "/2");
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request_though_it_sent_the_next_one() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    // More than is read at a time is still there when it leaves.
    for next in [1, 4000] {
        let (client, mut upstream) = stage.under_way(&backend, &GET.repeat(1 + next)).await;
        drop(client);
        let begun = Instant::now();
        assert_eq!(upstream.read_to_end().await, "", "the request goes on");
        assert!(begun.elapsed() >= Duration::from_millis(900), "it may have waited for the answer");
    }
    stage.settles(CLIENT_GONE, 2.0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    for resets in [true, false] {
        let (client, mut upstream) = stage.under_way(&backend, GET).await;
        if resets {
            client.reset();
        } else {
            drop(client);
        }
        assert_eq!(upstream.read_to_end().await, "", "the request goes on");
    }
    stage.settles(CLIENT_GONE, 2.0).await;
}

#[tokio::test]
async fn a_client_that_goes_away_in_the_response_cancels_it() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\nstart").await;
    client.read_head().await;
    client.reset();
    let flood = vec![b'x'; 1 << 20];
    let flooded =
        async { while tokio::io::AsyncWriteExt::write_all(&mut upstream.stream, &flood).await.is_ok() {} };
    tokio::time::timeout(std::time::Duration::from_secs(10), flooded).await.expect("the response goes on");
}

#[tokio::test]
async fn a_client_that_shut_down_its_side_gets_its_answer() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(GET).await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
    let mut upstream = backend.accept().await;
    upstream.read_head().await;
    upstream.write(&ok("still here")).await;
    assert!(client.read_to_end().await.ends_with("still here"));
}

#[tokio::test]
async fn a_response_that_breaks_off_never_looks_complete() {
    let truncated = [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n",
    ];
    for version in ["1.1", "1.0"] {
        for response in truncated {
            let backend = Backend::new().await;
            let stage = Stage::new(&[backend.address]).await;
            let (mut client, mut upstream) =
                stage.under_way(&backend, &format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n")).await;
            upstream.write(response).await;
            drop(upstream);
            assert!(client.is_reset().await, "{version} {response:?}");
        }
    }
}

#[tokio::test]
async fn a_reset_does_not_end_a_body_without_length() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
    upstream.write("HTTP/1.1 200 OK\r\n\r\nhalf").await;
    client.read_head().await;
    upstream.reset();
    assert!(client.is_reset().await);
}

#[tokio::test]
async fn our_own_answers_have_no_body_for_head() {
    let stage = Stage::new(&[]).await;
    let answer = stage.exchange("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_request_ends_with_the_snapshot_it_began_with() {
    let (old, new) = (Backend::new().await, Backend::new().await);
    let mut stage = Stage::new(&[old.address]).await;
    let mut client = stage.connect().await;
    client.write(GET).await;
    let mut upstream = old.accept().await;
    upstream.read_head().await;
    stage.publish(&[new.address], State::Ready);
    upstream.write(&ok("old")).await;
    assert_eq!(client.read_response().await.1, "old");
    client.write(GET).await;
    let mut upstream = new.accept().await;
    upstream.read_head().await;
    upstream.write(&ok("new")).await;
    assert_eq!(client.read_response().await.1, "new");
}

#[tokio::test]
async fn pools_change_under_load_without_a_failed_request() {
    let mut addresses = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let backend = Backend::new().await;
        addresses.push(backend.address);
        backend.answer_all(name);
    }
    let mut stage = Stage::new(&addresses).await;
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..8 {
        let mut client = stage.connect().await;
        clients.spawn(async move {
            for turn in 0..200 {
                client.write(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Key: {number}-{turn}\r\n\r\n")).await;
                let (head, _) = client.read_response().await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            }
        });
    }
    let mut turn = 0;
    while !clients.is_empty() {
        addresses.rotate_left(1);
        turn += 1;
        stage.publish(&addresses[..1 + turn % 4], State::Ready);
        tokio::select! {
            Some(ended) = clients.join_next() => ended.unwrap(),
            () = tokio::task::yield_now() => {}
        }
    }
}
