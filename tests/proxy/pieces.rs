//! Messages that arrive in pieces, together, or in both directions at once: where one ends and the next
//! begins does not depend on how the bytes are cut.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stage::{Backend, Peer, Setup, Stage, ok};

/// Sends `text` byte by byte, each in a segment of its own unless the other side is slower.
async fn drip(peer: &mut Peer, text: &str) {
    peer.stream.set_nodelay(true).unwrap();
    for byte in text.as_bytes() {
        peer.stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    let chunked = "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3;x=y\r\nabc\r\n00B\r\n0123456789a\r\n0\r\nX-Trailer: 1\r\n\r\n";
    let sized = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    drip(&mut client, &format!("{chunked}{sized}")).await;
    let mut upstream = backend.accept().await;
    assert!(upstream.read_head().await.starts_with("POST /1 "));
    let mut body = String::new();
    while !body.ends_with("0\r\nx-trailer: 1\r\n\r\n") {
        body += &upstream.read(1).await;
    }
    assert_eq!(unchunked(&body), "abc0123456789a");
    upstream.write(&ok("one")).await;
    assert_eq!(client.read_response().await.1, "one");
    assert!(upstream.read_head().await.starts_with("POST /2 "));
    assert_eq!(upstream.read(3).await, "abc");
    upstream.write(&ok("two")).await;
    assert_eq!(client.read_response().await.1, "two");
}

#[tokio::test]
async fn a_response_may_come_byte_by_byte() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    drip(
        &mut upstream,
        &format!("{interim}HTTP/1.1 200 OK\r\nX-Long:  some value \r\nContent-Length: 3\r\n\r\nabc"),
    )
    .await;
    assert_eq!(client.read_head().await, "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n");
    let (head, body) = client.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nx-long: some value\r\n") && body == "abc", "{head}{body}");
    client.write("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    upstream.read_head().await;
    drip(
        &mut upstream,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00C;x\r\n, wide world\r\n0\r\n\r\n",
    )
    .await;
    client.read_head().await;
    let mut body = String::new();
    while !body.ends_with("0\r\n\r\n") {
        body += &client.read(1).await;
    }
    assert_eq!(unchunked(&body), "hello, wide world");
}

/// The data of a chunked body without extensions.
fn unchunked(mut wire: &str) -> String {
    let mut data = String::new();
    loop {
        let (size, rest) = wire.split_once("\r\n").unwrap();
        let (piece, rest) = rest.split_at(usize::from_str_radix(size, 16).unwrap());
        data += piece;
        if piece.is_empty() {
            return data;
        }
        wire = rest.strip_prefix("\r\n").unwrap();
    }
}

#[tokio::test]
async fn requests_may_come_together_with_their_bodies() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client
        .write(
            "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
             POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndef\r\n0\r\n\r\n\
             GET /3 HTTP/1.1\r\nHost: a\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\n\r",
        )
        .await;
    let mut upstream = backend.accept().await;
    for (path, body) in [("/1", "abc"), ("/2", "3\r\ndef\r\n0\r\n\r\n"), ("/3", ""), ("/4", "")] {
        assert!(upstream.read_head().await.contains(&format!(" {path} ")));
        assert_eq!(upstream.read(body.len()).await, body);
        upstream.write(&ok(path)).await;
        assert_eq!(client.read_response().await.1, path);
        if path == "/3" {
            client.write("\n").await;
        }
    }
}

#[tokio::test]
async fn requests_behind_the_last_one_are_not_answered() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage
        .under_way(
            &backend,
            "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    upstream.write(&ok("one")).await;
    assert_eq!(client.read_response().await.1, "one");
    assert_eq!(client.read_to_end().await, "");
    assert_eq!(
        stage.series("guideway_requests_total{namespace=\"shop\",pool=\"web\",code_class=\"2xx\"}"),
        1.0
    );
}

#[tokio::test]
async fn a_whole_pipeline_is_answered_after_the_client_shut_down_its_side() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    backend.answer_all("ok");
    let mut client = stage.connect().await;
    client.write(&"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3)).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.read_to_end().await.matches("\r\n\r\nok").count(), 3);
}

#[tokio::test]
async fn a_refused_request_that_is_there_as_a_whole_keeps_its_connection() {
    let stage = Stage::new(&[]).await;
    let mut client = stage.connect().await;
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        client.write(request).await;
        let (head, _) = client.read_response().await;
        assert!(!head.contains("connection: close"), "{request:?}: {head}");
    }
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc").await;
    assert!(client.read_response().await.0.contains("\r\nconnection: close\r\n"));
}

#[tokio::test]
async fn a_request_that_others_may_read_otherwise_ends_its_connection() {
    let stage = Stage::new(&[]).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 30\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let answer = stage.exchange(request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("\r\nconnection: close\r\n"),
            "{answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_is_there_already_needs_no_invitation() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    for version in ["1.1", "1.0"] {
        client
            .write(&format!(
                "POST / HTTP/{version}\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nok"
            ))
            .await;
        let mut upstream = backend.accept().await;
        upstream.read_head().await;
        upstream.read(2).await;
        upstream.write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\ndone").await;
        let (head, _) = client.read_response().await;
        assert!(head.starts_with(&format!("HTTP/{version} 200 OK\r\n")), "{head}");
    }
}

#[tokio::test]
async fn an_answer_that_begins_before_its_request_ended_is_the_last_one() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) =
        stage.under_way(&backend, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await;
    upstream.write("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nAB").await;
    assert!(client.read_head().await.contains("\r\nconnection: close\r\n"));
    // Both go on: the rest of the request as well as that of the response.
    client.write("cd").await;
    assert_eq!(upstream.read(4).await, "abcd");
    upstream.write("CD").await;
    assert_eq!(client.read_to_end().await, "ABCD");
}

#[tokio::test]
async fn an_early_answer_overtakes_a_request_that_never_pauses() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (client, upstream) =
        stage.under_way(&backend, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000000\r\n\r\n").await;
    let (mut requests, mut responses) = upstream.stream.into_split();
    let (answers, mut sending) = client.stream.into_split();
    let taking = tokio::spawn(async move {
        let mut space = vec![0; 1 << 20];
        while requests.read(&mut space).await.is_ok_and(|read| read > 0) {}
    });
    let flooding = tokio::spawn(async move { while sending.write_all(&[b'x'; 1 << 16]).await.is_ok() {} });
    responses.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly").await.unwrap();
    let mut answer = [0; 15];
    let reading = async {
        let mut answers = answers;
        answers.read_exact(&mut answer).await.unwrap();
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), reading)
        .await
        .expect("the answer does not come");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    flooding.abort();
    taking.abort();
}

#[tokio::test]
async fn both_bodies_stream_at_once_and_arrive_as_they_were_sent() {
    const SIZE: usize = 8 << 20;
    let pattern =
        |seed: usize| -> Vec<u8> { (0..SIZE).map(|at| ((at / 7 + at * seed) % 251) as u8).collect() };
    let backend = Backend::new().await;
    let stage = Stage::with(Setup::default(), &[backend.address]).await;
    let (mut client, mut upstream) = stage
        .under_way(&backend, &format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n"))
        .await;
    upstream.write(&format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")).await;
    client.read_head().await;
    let (mut from_proxy, mut to_proxy) = upstream.stream.into_split();
    let (mut answer, mut request) = client.stream.into_split();
    let (mut received, mut answered) = (vec![0; SIZE], vec![0; SIZE]);
    let (sent, response) = (pattern(3), pattern(5));
    let upload = async {
        let (sending, receiving) =
            tokio::join!(request.write_all(&sent), from_proxy.read_exact(&mut received));
        sending.unwrap();
        receiving.unwrap();
    };
    let download = async {
        let (all_but_one, last) = response.split_at(SIZE - 1);
        let (sending, receiving, ()) = tokio::join!(
            to_proxy.write_all(all_but_one),
            answer.read_exact(&mut answered[..SIZE - 1]),
            upload
        );
        sending.unwrap();
        receiving.unwrap();
        // Its end is the end of the exchange, so it comes last.
        to_proxy.write_all(last).await.unwrap();
        answer.read_exact(&mut answered[SIZE - 1..]).await.unwrap();
    };
    download.await;
    assert!(received == sent, "the request's body differs");
    assert!(answered == response, "the response's body differs");
}
