//! Bodies of requests: streamed as they come, framed anew, and not needed for an answer.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stage::{Backend, Stage, ok};

fn post(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

#[tokio::test]
async fn bodies_arrive_as_they_are_sent() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(&post("Content-Length: 6\r\n")).await;
    let mut upstream = backend.accept().await;
    assert!(upstream.read_head().await.contains("\r\ncontent-length: 6\r\n"));
    client.write("abc").await;
    assert_eq!(upstream.read(3).await, "abc");
    client.write("def").await;
    assert_eq!(upstream.read(3).await, "def");
    upstream.write(&ok("done")).await;
    assert_eq!(client.read_response().await.1, "done");
}

#[tokio::test]
async fn chunks_are_cut_anew_and_what_they_say_beside_data_ends_here() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    for method in ["POST", "GET"] {
        client
            .write(&format!(
                "{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n"
            ))
            .await;
        let mut upstream = backend.accept().await;
        assert!(upstream.read_head().await.contains("\r\ntransfer-encoding: chunked\r\n"));
        assert_eq!(upstream.read(8).await, "3\r\nabc\r\n");
        client.write("0\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n").await;
        assert_eq!(upstream.read(5).await, "0\r\n\r\n");
        upstream.write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(client.read_response().await.1, "ok");
        assert_eq!(upstream.read_to_end().await, "");
    }
}

#[tokio::test]
async fn a_garbled_body_is_the_clients_fault() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    for garbled in ["0x3\r\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n", "-1\r\n"] {
        let (mut client, mut upstream) =
            stage.under_way(&backend, &post("Transfer-Encoding: chunked\r\n")).await;
        client.write(garbled).await;
        assert!(client.read_head().await.starts_with("HTTP/1.1 400 "), "{garbled:?}");
        assert!(!upstream.read_to_end().await.contains("0\r\n\r\n"), "{garbled:?} was given a clean end");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_given_an_end() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(&post("Transfer-Encoding: chunked\r\n")).await;
    client.write("3\r\nabc\r\n").await;
    let mut upstream = backend.accept().await;
    upstream.read_head().await;
    drop(client);
    assert_eq!(upstream.read_to_end().await, "3\r\nabc\r\n");
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(&post("Content-Length: 2\r\nExpect: 100-continue\r\n")).await;
    assert_eq!(client.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    let mut upstream = backend.accept().await;
    assert!(!upstream.read_head().await.contains("expect"));
    client.write("ok").await;
    assert_eq!(upstream.read(2).await, "ok");
    upstream.write(&ok("done")).await;
    assert_eq!(client.read_response().await.1, "done");
}

#[tokio::test]
async fn nobody_is_told_to_continue_when_there_is_no_backend() {
    let stage = Stage::new(&[]).await;
    let mut client = stage.connect().await;
    client.write(&post("Content-Length: 2\r\nExpect: 100-continue\r\n")).await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 503 "));
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_still_sends() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    for closes in [false, true] {
        let mut client = stage.connect().await;
        client.write(&post("Content-Length: 100000000\r\n")).await;
        client.write(&"x".repeat(100_000)).await;
        let mut upstream = backend.accept().await;
        upstream.read_head().await;
        upstream.write("HTTP/1.1 413 Too Much\r\ncontent-length: 2\r\n\r\nno").await;
        if closes {
            // The rest of the request meets a reset, which must not take the answer along.
            upstream.reset_after_close();
        }
        let (head, body) = client.read_response().await;
        assert!(head.starts_with("HTTP/1.1 413 ") && body == "no", "{head}");
        // What the client sends on is read and dropped for a while, so it sees an end and no reset.
        let _ = client.stream.write_all(&[b'x'; 1000]).await;
        assert_eq!(client.read_to_end().await, "");
    }
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_gets_through() {
    const SIZE: usize = 24 << 20;
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) =
        stage.under_way(&backend, &post(&format!("Content-Length: {SIZE}\r\n"))).await;
    upstream.write(&format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")).await;
    let (mut requests, mut responses) = upstream.stream.into_split();
    let answering = tokio::spawn(async move { responses.write_all(&vec![b'r'; SIZE]).await });
    let receiving = tokio::spawn(async move { requests.read_exact(&mut vec![0; SIZE]).await });
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, client.stream.write_all(&vec![b'q'; SIZE]))
        .await
        .expect("the upload stands still")
        .unwrap();
    receiving.await.unwrap().unwrap();
    client.read_head().await;
    client.read(SIZE).await;
    answering.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_slow_reader_holds_the_backend_up_instead_of_filling_memory() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
    client.read_head().await;
    // The kernel's buffers hold some 20 MiB at most between the two; nothing reads on.
    let flood = vec![b'x'; 256 << 20];
    let flooding = tokio::time::timeout(Duration::from_secs(2), upstream.stream.write_all(&flood)).await;
    assert!(flooding.is_err(), "256 MiB went somewhere");
}
