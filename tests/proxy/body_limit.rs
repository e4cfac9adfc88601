//! The longest body that a pool takes of a request, however it comes and wherever it goes.

use std::num::NonZeroU64;

use guideway::balance::routes::{Match, PathPrefix};

use super::stage::{Backend, Peer, Setup, Stage, ok};
use super::streams::{Http2, Http2Backend, answer, get, h2c, post, read, reply};

const LIMIT: usize = 1000;
const RESCUED: &str = "guideway_rescued_total{namespace=\"shop\",pool=\"web\",reason=\"body_too_large\"}";

fn limited(setup: Setup) -> Setup {
    Setup { max_request_body: NonZeroU64::new(LIMIT as u64), ..setup }
}

/// A request with a body of this length, stated or in chunks of 100 bytes.
fn request(length: usize, chunked: bool) -> String {
    let body = "x".repeat(length);
    if !chunked {
        return format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}");
    }
    let chunks: String = body
        .as_bytes()
        .chunks(100)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), "x".repeat(chunk.len())))
        .collect();
    format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
}

/// The bytes of a body, in chunks of whatever size.
async fn read_body(server: &mut Peer, chunked: bool) -> usize {
    let mut body = String::new();
    while if chunked { !body.ends_with("0\r\n\r\n") } else { body.len() < LIMIT } {
        body += &server.read(1).await;
    }
    body.matches('x').count()
}

/// In front of a backend of HTTP/2 that answers with the length of what it was sent.
async fn counting() -> Stage {
    let backend = Http2Backend::new().await;
    let stage = Stage::with(limited(h2c()), &[backend.address]).await;
    backend.answer_all(|(request, mut respond)| async move {
        let Ok((body, _)) = read(request.into_body()).await else { return };
        reply(&mut respond, &body.len().to_string());
    });
    stage
}

#[tokio::test]
async fn a_body_that_states_too_much_is_refused_before_it_is_sent_on() {
    let stage = Stage::with(limited(Setup::default()), &[Backend::new().await.address]).await;
    for expects in ["", "Expect: 100-continue\r\n"] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n{expects}\r\n", LIMIT + 1);
        let answer = stage.exchange(&head).await;
        assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{answer}");
        assert!(
            answer.contains("\r\nx-guideway-reason: body_too_large\r\nconnection: close\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nthe request's body is longer than is taken here\n"), "{answer}");
    }
    assert_eq!(stage.series(RESCUED), 2.0);
}

#[tokio::test]
async fn a_body_that_grows_too_long_ends_before_its_end() {
    let backend = Backend::new().await;
    let stage = Stage::with(limited(Setup::default()), &[backend.address]).await;
    let wire = request(LIMIT + 1, true);
    let (begun, rest) = wire.split_at(wire.len() / 2);
    let (mut client, mut server) = stage.under_way(&backend, begun).await;
    client.write(rest).await;
    // What follows is not taken for another request.
    client.write("GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = client.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.matches("HTTP/1.1 ").count() == 1, "{answer}");
    assert!(!server.read_to_end().await.ends_with("0\r\n\r\n"), "the backend was told that it was whole");
    // The same where all of it is there at once.
    let answer = stage.exchange(&format!("{wire}GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.matches("HTTP/1.1 ").count() == 1, "{answer}");
}

#[tokio::test]
async fn a_body_of_just_the_length_passes() {
    let backend = Backend::new().await;
    let stage = Stage::with(limited(Setup::default()), &[backend.address]).await;
    for chunked in [false, true] {
        let wire = request(LIMIT, chunked);
        let (mut client, mut server) = stage.under_way(&backend, &wire).await;
        assert_eq!(read_body(&mut server, chunked).await, LIMIT);
        server.write(&ok("taken")).await;
        assert_eq!(client.read_response().await.1, "taken");
        // The next request on the connection has all of it again.
        client.write(&wire).await;
        server.read_head().await;
        assert_eq!(read_body(&mut server, chunked).await, LIMIT);
        server.write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\ntaken").await;
        assert_eq!(client.read_response().await.1, "taken");
    }
}

#[tokio::test]
async fn a_backend_of_http_2_gets_no_more_than_the_limit_either() {
    let stage = counting().await;
    for chunked in [false, true] {
        let answer = stage.exchange(&request(LIMIT + 1, chunked)).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        let mut client = stage.connect().await;
        client.write(&request(LIMIT, chunked)).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_stream_has_as_long_a_body_as_it_may() {
    let stage = counting().await;
    let mut client = Http2::connect(&stage).await;
    for states_length in [false, true] {
        for (length, status) in [(LIMIT, 200), (LIMIT + 1, 413), (50 * LIMIT, 413)] {
            let mut request = post("/");
            if states_length {
                request = request.header("content-length", length);
            }
            let (response, mut sending) = client.begin(request, false).await;
            // Where it states too much, the stream may be gone already.
            let _ = sending.send_data("x".repeat(length).into(), true);
            let answer = answer(response).await.unwrap();
            assert_eq!(answer.status, status, "{length} {states_length}");
            if status == 413 {
                assert_eq!(answer.field("x-guideway-reason"), "body_too_large");
            }
        }
    }
    assert_eq!(stage.series(RESCUED), 4.0);
    assert_eq!(client.ask(get("/")).await.body, "0", "other streams do not notice");
    let call = post("/pkg.Service/Method").header("content-type", "application/grpc");
    assert_eq!(client.send(call, &"x".repeat(LIMIT + 1)).await.field("grpc-status"), "8");
}

#[tokio::test]
async fn without_a_limit_any_length_passes() {
    let backend = Http2Backend::new().await;
    let stage = Stage::with(h2c(), &[backend.address]).await;
    backend.answer_all(|(request, mut respond)| async move {
        let (body, _) = read(request.into_body()).await.unwrap();
        reply(&mut respond, &body.len().to_string());
    });
    let mut client = Http2::connect(&stage).await;
    assert_eq!(client.send(post("/"), &"x".repeat(2_000_000)).await.body, "2000000");
}

#[tokio::test]
async fn what_is_too_long_counts_for_its_pool_on_a_shared_port() {
    let backend = Backend::new().await;
    let mut stage = Stage::with(limited(Setup::default()), &[]).await;
    let path = |path: &str| Match { path: PathPrefix::new(path), ..Match::all() };
    stage.publish_pools(&[("one", backend.address, path("/one")), ("two", backend.address, path("/two"))]);
    for chunked in [false, true] {
        let request = request(LIMIT + 1, chunked).replace("POST / ", "POST /two ");
        assert!(stage.exchange(&request).await.starts_with("HTTP/1.1 413 "));
    }
    assert_eq!(stage.series(&RESCUED.replace("web", "two")), 2.0);
}
