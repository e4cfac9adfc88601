//! What a backend gets to see of a request, and what a client gets to see of a response.

use super::stage::{Backend, Stage, ok};

/// Sends `request`, answers it, and returns what the backend saw, up to the end of the head.
async fn seen_by_backend(request: &str) -> String {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(request).await;
    let mut upstream = backend.accept().await;
    let head = upstream.read_head().await;
    upstream.write(&ok("")).await;
    assert!(client.read_head().await.starts_with("HTTP/1."), "{request:?}");
    head
}

const FORWARDED: &str = "x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: a\r\nx-guideway-hops: 1\r\n\r\n";

#[tokio::test]
async fn requests_are_rebuilt() {
    let table = [
        ("GET /p?q HTTP/1.1\r\nHost: a\r\n\r\n", "GET /p?q HTTP/1.1\r\nhost: a\r\n"),
        ("GET http://a/p HTTP/1.1\r\nHost: b\r\n\r\n", "GET /p HTTP/1.1\r\nhost: a\r\n"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nhost: a\r\n"),
        ("GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nhost: a\r\n"),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\n"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-gone\r\nX-Gone: 1\r\nX-Stays: 2\r\nTE: trailers\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nx-stays: 2\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\nForwarded: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n",
        ),
    ];
    for (request, expected) in table {
        assert_eq!(seen_by_backend(request).await, format!("{expected}{FORWARDED}"), "{request:?}");
    }
}

#[tokio::test]
async fn a_request_without_a_host_is_for_the_address_it_came_in_on() {
    let table = [
        ("GET /p HTTP/1.0\r\n\r\n", "{here}", ""),
        ("GET /p HTTP/1.0\r\nX-Forwarded-Host: evil\r\n\r\n", "{here}", ""),
        ("GET http://a/p HTTP/1.0\r\n\r\n", "a", "x-forwarded-host: a\r\n"),
    ];
    for (request, host, forwarded_host) in table {
        let backend = Backend::new().await;
        let stage = Stage::new(&[backend.address]).await;
        let mut client = stage.connect().await;
        client.write(request).await;
        let head = backend.accept().await.read_head().await;
        let host = host.replace("{here}", &format!("127.0.0.1:{}", stage.port));
        let expected = format!(
            "GET /p HTTP/1.1\r\nhost: {host}\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\n\
             {forwarded_host}x-guideway-hops: 1\r\n\r\n"
        );
        assert_eq!(head, expected, "{request:?}");
    }
}

#[tokio::test]
async fn requests_that_could_be_read_in_two_ways_are_refused() {
    let stage = Stage::new(&[]).await;
    let many_fields: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let long_field = format!("x: {}\r\n", "y".repeat(33 * 1024));
    let table: &[(&str, u16)] = &[
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b@c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", 501),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            501,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 405),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n", 417),
        (&format!("GET / HTTP/1.1\r\nHost: a\r\n{many_fields}\r\n"), 431),
        (&format!("GET / HTTP/1.1\r\nHost: a\r\n{long_field}\r\n"), 431),
        (&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(33 * 1024)), 431),
    ];
    for (request, status) in table {
        let mut client = stage.connect().await;
        client.write(request).await;
        let head = client.read_head().await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} "))
                || head.starts_with(&format!("HTTP/1.0 {status} ")),
            "{request:?}: {head}"
        );
    }
}

#[tokio::test]
async fn bytes_that_are_not_http_1_get_an_answer_that_says_so() {
    let stage = Stage::new(&[]).await;
    for bytes in [
        "INVALID CONNECTION PREFACE\r\n\r\n",
        "PRI * HTTP/2.0\n\nSM\n\n",
        "\u{16}\u{3}\u{1}\0\u{5}",
        "GET / HTTP/1.1\r\nx\r\n\r\n",
    ] {
        let answer = stage.exchange(bytes).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{bytes:?}: {answer}");
        assert!(answer.contains("\r\nx-guideway-reason: bad_request\r\nconnection: close\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_request_with_chunks_and_a_length_ends_its_connection() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client
        .write(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
             GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    let mut upstream = backend.accept().await;
    let head = upstream.read_head().await;
    assert!(!head.contains("content-length"), "{head}");
    assert_eq!(upstream.read(5).await, "0\r\n\r\n");
    upstream.write(&ok("done")).await;
    assert!(client.read_response().await.0.contains("\r\nconnection: close\r\n"));
    assert_eq!(client.read_to_end().await, "");
}

#[tokio::test]
async fn an_old_client_keeps_its_connection_if_it_asks_to() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    let request = "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
    client.write(request).await;
    let mut upstream = backend.accept().await;
    for _ in 0..2 {
        upstream.read_head().await;
        upstream.write(&ok("ok")).await;
        let (head, body) = client.read_response().await;
        assert!(head.starts_with("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n") && body == "ok", "{head}");
        client.write(request).await;
    }
    // It knows no chunks, so only the end of the connection can end this body.
    upstream.read_head().await;
    upstream.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
    let answer = client.read_to_end().await;
    assert!(
        answer.starts_with("HTTP/1.0 200 OK\r\ndate: ") && answer.ends_with(" GMT\r\n\r\nok"),
        "{answer}"
    );
}

/// Answers a request with `response`, then closes; what the client gets until its connection ends.
async fn seen_by_client(request: &str, response: &str) -> String {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, request).await;
    upstream.write(response).await;
    drop(upstream);
    client.read_to_end().await
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn responses_are_framed_anew() {
    let date = "date: Sat, 21 Nov 2026 08:00:00 GMT\r\n";
    let table = [
        (
            GET,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\n{d}connection: close\r\ncontent-length: 2\r\n\r\nok",
        ),
        (
            GET,
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
            "HTTP/1.1 200 OK\r\n{d}connection: close\r\ncontent-length: 2\r\n\r\nok",
        ),
        (
            GET,
            "HTTP/1.0 200 OK\r\n\r\nok",
            "HTTP/1.1 200 OK\r\n{d}connection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        (
            GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n2;x=y\r\nok\r\n0\r\nx: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\n{d}connection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        (
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n{d}\r\nok",
        ),
        (
            HEAD,
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 200 OK\r\n{d}connection: close\r\ncontent-length: 9\r\n\r\n",
        ),
        (GET, "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n{d}connection: close\r\n\r\n"),
        (
            GET,
            "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\n{d}etag: x\r\nconnection: close\r\n\r\n",
        ),
        (
            GET,
            "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 Fine\r\nConnection: x-gone, close\r\nX-Gone: 1\r\nKeep-Alive: 5\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n{d}connection: close\r\ncontent-length: 0\r\n\r\n",
        ),
    ];
    for (request, response, expected) in table {
        let dated = response.replacen("\r\n", &format!("\r\n{date}"), 1);
        let dated = if response.contains("103") {
            response.replacen("Fine\r\n", &format!("Fine\r\n{date}"), 1)
        } else {
            dated
        };
        assert_eq!(seen_by_client(request, &dated).await, expected.replace("{d}", date), "{response:?}");
    }
}

#[tokio::test]
async fn responses_that_are_not_http_become_502() {
    for response in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
    ] {
        let answer = seen_by_client(GET, response).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{response:?}: {answer}");
        assert!(answer.contains("x-guideway-reason: bad_response\r\n"), "{response:?}: {answer}");
        assert!(answer.ends_with("the backend's answer is not valid HTTP\n"), "{response:?}: {answer}");
    }
}

#[tokio::test]
async fn responses_with_too_large_a_head_become_502_and_say_so() {
    for fields in [format!("X: {}\r\n", "y".repeat(33 * 1024)), "X: y\r\n".repeat(101)] {
        let answer = seen_by_client(GET, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("x-guideway-reason: bad_response\r\n"), "{answer}");
        assert!(
            answer.ends_with("more than the 32768 bytes or 100 fields that are taken here\n"),
            "{answer}"
        );
    }
}
