//! Fields behind a body: those that may pass do so whatever either side speaks, and the others end here.

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::stage::{Backend, Peer, Stage};
use super::streams::{Answer, Asked, Http2, answer, get, in_front_of_http2, post, read, reply, trailers};

/// Behind a request, of which `x-sum` and `etag` may pass.
const SENT: [(&str, &str); 5] = [
    ("x-sum", "1"),
    ("x-forwarded-for", "192.0.2.1"),
    ("etag", "\"e\""),
    ("authorization", "x"),
    ("my", "1"),
];
const PASSED: [(&str, &str); 2] = [("x-sum", "1"), ("etag", "\"e\"")];

const ANNOUNCED: &str = "x-sum, x-forwarded-for, etag";

/// A chunked body of an `a` with these fields behind it.
fn chunks(fields: &[(&str, &str)]) -> String {
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("1\r\na\r\n0\r\n{lines}\r\n")
}

fn plain_request() -> String {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n";
    format!("{head}Trailer: {ANNOUNCED}\r\n\r\n{}", chunks(&SENT))
}

async fn send_stream(client: &mut Http2, request: http::request::Builder) -> Answer {
    let (response, mut sending) = client.begin(request.header("trailer", ANNOUNCED), false).await;
    sending.send_data("a".into(), false).unwrap();
    sending.send_trailers(trailers(&SENT)).unwrap();
    answer(response).await.unwrap()
}

/// What a backend of HTTP/1 gets, which then answers.
async fn heard(backend: &Backend) -> (String, String) {
    let mut peer = backend.accept().await;
    let head = peer.read_head().await;
    let body = peer.read(chunks(&PASSED).len()).await;
    peer.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    (head, body)
}

fn check_plain((head, body): &(String, String)) {
    assert!(head.contains("\r\ntrailer: x-sum, etag\r\n"), "{head}");
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    assert_eq!(*body, chunks(&PASSED));
}

/// Answers with what it heard.
async fn tell((request, mut respond): Asked) {
    let (parts, body) = request.into_parts();
    let announced = parts.headers.get("trailer").map(|it| it.to_str().unwrap().to_string());
    let (body, trailers) = read(body).await.unwrap();
    let trailers = trailers.unwrap_or_default();
    let fields: Vec<_> =
        trailers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    reply(&mut respond, &format!("{body} {announced:?} {fields:?}"));
}

fn told() -> String {
    format!("a {:?} {PASSED:?}", Some("x-sum, etag"))
}

#[tokio::test]
async fn those_behind_a_request_of_http_1_reach_a_backend_of_http_1() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let request = plain_request();
    let (answer, heard) = tokio::join!(stage.exchange(&request), self::heard(&backend));
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    check_plain(&heard);
}

#[tokio::test]
async fn those_behind_a_request_of_http_1_reach_a_backend_of_http_2() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(tell);
    let answer = stage.exchange(&plain_request()).await;
    assert!(answer.contains(&told()), "{answer}");
}

#[tokio::test]
async fn those_behind_a_stream_reach_a_backend_of_http_1() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = Http2::connect(&stage).await;
    // Where a length is stated too, it gives way to chunks.
    for request in [post("/"), post("/").header("content-length", "1")] {
        let (answer, heard) = tokio::join!(send_stream(&mut client, request), self::heard(&backend));
        assert_eq!(answer.body, "ok");
        check_plain(&heard);
        assert!(!heard.0.contains("content-length"), "{}", heard.0);
    }
}

#[tokio::test]
async fn those_behind_a_stream_reach_a_backend_of_http_2() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(tell);
    let mut client = Http2::connect(&stage).await;
    assert_eq!(send_stream(&mut client, post("/")).await.body, told());
}

#[tokio::test]
async fn a_request_with_none_that_may_pass_ends_as_one_without_any() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(tell);
    let mut client = Http2::connect(&stage).await;
    let (response, mut sending) = client.begin(post("/"), false).await;
    sending.send_data("a".into(), false).unwrap();
    sending.send_trailers(trailers(&[("host", "b")])).unwrap();
    assert_eq!(answer(response).await.unwrap().body, "a None []");
    // A body may have nothing but what is behind it.
    let (response, mut sending) = client.begin(post("/"), false).await;
    sending.send_trailers(trailers(&[("x-sum", "0")])).unwrap();
    assert_eq!(answer(response).await.unwrap().body, " None [(\"x-sum\", \"0\")]");
}

#[tokio::test]
async fn they_pass_however_the_request_is_cut() {
    let wire = plain_request();
    let head = wire.find("\r\n\r\n").unwrap() + 4;
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    for cut in head..wire.len() {
        let sending = async {
            let mut client = stage.connect().await;
            client.stream.set_nodelay(true).unwrap();
            client.write(&wire[..cut]).await;
            tokio::task::yield_now().await;
            client.write(&wire[cut..]).await;
            client.read_to_end().await
        };
        let (answer, heard) = tokio::join!(sending, self::heard(&backend));
        assert!(answer.ends_with("ok"), "{answer}");
        check_plain(&heard);
    }
}

/// Behind an answer that is none of gRPC.
const ANSWERED: [(&str, &str); 3] = [("x-sum", "1"), ("set-cookie", "a=b"), ("server-timing", "db;dur=1")];
const RETURNED: [(&str, &str); 2] = [("x-sum", "1"), ("server-timing", "db;dur=1")];

async fn answer_with_trailers((_request, mut respond): Asked) {
    let mut sending = respond.send_response(Response::new(()), false).unwrap();
    sending.send_data(Bytes::from_static(b"a"), false).unwrap();
    sending.send_trailers(trailers(&ANSWERED)).unwrap();
}

fn answer_all_with_chunks(backend: Backend) {
    tokio::spawn(async move {
        loop {
            let mut peer: Peer = backend.accept_any().await;
            tokio::spawn(async move {
                while peer.try_read_head().await.is_some() {
                    let chunks = chunks(&ANSWERED);
                    peer.write(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"))
                        .await;
                }
            });
        }
    });
}

/// In front of a backend of HTTP/2 and of one of HTTP/1, which answer alike.
async fn in_front_of_each() -> [Stage; 2] {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(answer_with_trailers);
    let plain = Backend::new().await;
    let beside = Stage::new(&[plain.address]).await;
    answer_all_with_chunks(plain);
    [stage, beside]
}

#[tokio::test]
async fn those_behind_an_answer_reach_clients_of_http_1_that_take_them() {
    for stage in in_front_of_each().await {
        for (te, behind) in [("", &[][..]), ("TE: deflate\r\n", &[]), ("TE: gzip, trailers\r\n", &RETURNED)] {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{te}Connection: close\r\n\r\n");
            let answer = stage.exchange(&request).await;
            assert!(answer.ends_with(&format!("\r\n\r\n{}", chunks(behind))), "{te} {answer}");
        }
        let old = stage.exchange("GET / HTTP/1.0\r\nHost: a\r\nTE: trailers\r\n\r\n").await;
        assert!(old.ends_with("\r\n\r\na"), "{old}");
    }
}

#[tokio::test]
async fn those_behind_an_answer_reach_clients_of_http_2() {
    for stage in in_front_of_each().await {
        let answer = Http2::connect(&stage).await.ask(get("/")).await;
        let expected: HeaderMap = trailers(&RETURNED);
        assert_eq!((answer.body.as_str(), answer.trailers), ("a", Some(expected)));
    }
}
