//! Answers before the final one: which of them a client gets, and how much of them.

use super::stage::{Backend, Stage, ok};

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
const PASSED_ON: &str = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n";

/// A client whose request is with a backend.
async fn asked(backend: &Backend, stage: &Stage, version: &str) -> (super::stage::Peer, super::stage::Peer) {
    stage.under_way(backend, &format!("GET / {version}\r\nHost: a\r\n\r\n")).await
}

#[tokio::test]
async fn early_hints_arrive_before_the_answer_is_there() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = asked(&backend, &stage, "HTTP/1.1").await;
    for _ in 0..2 {
        upstream.write(HINTS).await;
        assert_eq!(client.read_head().await, PASSED_ON);
    }
    upstream.write(&format!("{HINTS}{}", ok("done"))).await;
    assert_eq!(client.read_head().await, PASSED_ON);
    let (head, body) = client.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && body == "done", "{head}");
}

#[tokio::test]
async fn what_is_between_two_hops_ends_here_in_an_interim_answer_too() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = asked(&backend, &stage, "HTTP/1.1").await;
    let interim = "HTTP/1.1 102 Processing\r\nConnection: x-gone\r\nX-Gone: 1\r\nKeep-Alive: 5\r\nContent-Length: 3\r\n\
                   X-Stays: 1\r\n\r\n";
    upstream.write(interim).await;
    assert_eq!(client.read_head().await, "HTTP/1.1 102 Processing\r\nx-stays: 1\r\n\r\n");
}

#[tokio::test]
async fn an_older_client_gets_none_and_nobody_gets_a_backends_100() {
    for (version, interim) in [("HTTP/1.0", HINTS), ("HTTP/1.1", "HTTP/1.1 100 Continue\r\n\r\n")] {
        let backend = Backend::new().await;
        let stage = Stage::new(&[backend.address]).await;
        let (mut client, mut upstream) = asked(&backend, &stage, version).await;
        upstream.write(&format!("{interim}{}", ok("done"))).await;
        assert!(client.read_head().await.starts_with(&format!("{version} 200 OK\r\n")));
    }
}

/// The proxy keeps for a client no more than 16 KiB of them.
#[tokio::test]
async fn only_so_many_bytes_of_interim_answers_are_passed_on() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = asked(&backend, &stage, "HTTP/1.1").await;
    let sent = 2 * 16 * 1024 / PASSED_ON.len();
    upstream.write(&format!("{}{}", HINTS.repeat(sent), ok("done"))).await;
    let mut received = 0;
    loop {
        let head = client.read_head().await;
        if head.starts_with("HTTP/1.1 200 ") {
            break;
        }
        assert_eq!(head, PASSED_ON);
        received += head.len();
    }
    assert_eq!(received, 16 * 1024 / PASSED_ON.len() * PASSED_ON.len());
    // The next request begins anew.
    assert_eq!(client.read(4).await, "done");
    client.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    upstream.read_head().await;
    upstream.write(HINTS).await;
    assert_eq!(client.read_head().await, PASSED_ON);
}
