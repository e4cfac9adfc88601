//! Requests over HTTP/2: what of them a backend sees, what of its answer comes back, and what is refused, whatever
//! the backend speaks.

use std::time::Duration;

use bytes::Bytes;
use guideway::balance::backend::HttpVersion;
use http::Request;

use super::stage::{Backend, Setup, Stage, ok};
use super::streams::{
    CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Http2, Http2Backend, PSEUDO, RST_STREAM,
    RawHttp2, SETTINGS, answer, block, carry, frame, get, h2c, in_front_of_http2, named, post, read, reply,
    soon, trailers,
};

#[tokio::test]
async fn a_stream_is_a_request_to_a_backend_of_http_1() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = Http2::connect(&stage).await;
    let request = get("/a?b").header("x-mine", "1").header("cookie", "a=1").header("cookie", "b=2");
    let answering = async {
        let mut upstream = backend.accept().await;
        let head = upstream.read_head().await;
        let connection = "Connection: x-secret\r\nx-secret: 1\r\nKeep-Alive: 5\r\n";
        upstream
            .write(&format!("HTTP/1.1 203 x\r\n{connection}x-yours: 2\r\nContent-Length: 2\r\n\r\nok"))
            .await;
        head
    };
    let (answer, head) = tokio::join!(client.ask(request), answering);
    let expected = "GET /a?b HTTP/1.1\r\nhost: shop\r\nx-mine: 1\r\ncookie: a=1; b=2\r\nx-forwarded-for: 127.0.0.1\r\n\
                    x-forwarded-proto: http\r\nx-forwarded-host: shop\r\nx-guideway-hops: 1\r\n\r\n";
    assert_eq!(head, expected);
    assert_eq!((answer.status, answer.body.as_str()), (203, "ok"));
    assert_eq!((answer.field("x-yours"), answer.field("content-length")), ("2", "2"));
    assert!(answer.fields.contains_key("date") && answer.fields.len() == 3, "{:?}", answer.fields);
    stage.settles("guideway_requests_total{namespace=\"shop\",pool=\"web\",code_class=\"2xx\"}", 1.0).await;
}

#[tokio::test]
async fn bodies_are_framed_for_whoever_gets_them() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = Http2::connect(&stage).await;
    for (length, framing, body) in [
        (None, "transfer-encoding: chunked", "4\r\nbody\r\n0\r\n\r\n"),
        (Some(4), "content-length: 4", "body"),
    ] {
        let mut request = post("/");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let answering = async {
            let mut upstream = backend.accept().await;
            let head = upstream.read_head().await;
            assert!(head.contains(&format!("\r\n{framing}\r\n")), "{head}");
            assert_eq!(upstream.read(body.len()).await, body);
            let chunks = "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
            upstream
                .write(&format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunks}"
                ))
                .await;
        };
        let (answer, ()) = tokio::join!(client.send(request, "body"), answering);
        assert_eq!(answer.body, "abcde");
        assert!(!answer.fields.contains_key("transfer-encoding"), "{:?}", answer.fields);
    }
}

#[tokio::test]
async fn a_backend_of_http_1_keeps_its_connection_for_the_next_stream() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = Http2::connect(&stage).await;
    let answering = async {
        let mut upstream = backend.accept().await;
        for body in ["one", "two"] {
            upstream.read_head().await;
            upstream.write(&ok(body)).await;
        }
    };
    let asking = async {
        assert_eq!(client.ask(get("/")).await.body, "one");
        assert_eq!(client.ask(get("/")).await.body, "two");
    };
    tokio::join!(asking, answering);
}

#[tokio::test]
async fn a_client_of_http_1_is_answered_by_a_backend_of_http_2() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(|(request, mut respond)| async move {
        let (parts, body) = request.into_parts();
        let (body, _) = read(body).await.unwrap();
        let authority = parts.uri.authority().unwrap();
        if parts.method == "HEAD" {
            return reply(&mut respond, "");
        }
        let told = format!("{} {authority} {:?} {body}", parts.method, parts.headers.get("te").unwrap());
        let mut sending = respond.send_response(http::Response::new(()), false).unwrap();
        sending.send_data(told.into(), false).unwrap();
        sending.send_trailers(trailers(&[("x-behind", "1")])).unwrap();
    });
    let mut client = stage.connect().await;
    client.write("GET / HTTP/1.1\r\nHost: shop:81\r\n\r\n").await;
    let head = client.read_head().await;
    assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
    let body = "17\r\nGET shop:81 \"trailers\" \r\n0\r\n\r\n";
    assert_eq!(client.read(body.len()).await, body);
    client.write("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
    client.read_head().await;
    let body = "17\r\nPOST a \"trailers\" abcde\r\n0\r\n\r\n";
    assert_eq!(client.read(body.len()).await, body);
    let old = stage.exchange("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert!(old.ends_with("\r\n\r\nGET a \"trailers\" "), "{old}");
    let head = stage.exchange("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn a_client_of_http_1_that_waits_for_100_gets_it_from_us() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(|(request, mut respond)| async move {
        let (body, _) = read(request.into_body()).await.unwrap();
        reply(&mut respond, &body);
    });
    let mut client = stage.connect().await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    assert_eq!(client.read_head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write("abc").await;
    assert!(client.read_head().await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn both_directions_of_a_stream_flow_at_once() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(|(request, mut respond)| async move {
        let mut sending = respond.send_response(http::Response::new(()), false).unwrap();
        let mut body = request.into_body();
        while let Some(Ok(bytes)) = body.data().await {
            body.flow_control().release_capacity(bytes.len()).unwrap();
            sending.send_data(bytes, false).unwrap();
        }
        sending
            .send_trailers(trailers(&[("x-end", "yes"), ("x-forwarded-for", "no"), ("host", "no")]))
            .unwrap();
    });
    let mut client = Http2::connect(&stage).await;
    let (response, mut sending) = client.begin(post("/"), false).await;
    sending.send_data("first".into(), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "first");
    sending.send_data("second".into(), false).unwrap();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "second");
    sending.send_trailers(trailers(&[("x-mine", "1")])).unwrap();
    assert_eq!(read(body).await.unwrap(), (String::new(), Some(trailers(&[("x-end", "yes")]))));
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    for http in [HttpVersion::Http2, HttpVersion::Http1] {
        let (plain, streamed) = (Backend::new().await, Http2Backend::new().await);
        let is_h2 = http == HttpVersion::Http2;
        let address = if is_h2 { streamed.address } else { plain.address };
        let stage = Stage::with(Setup { http, ..Setup::default() }, &[address]).await;
        const SIZE: usize = 3_000_000;
        if is_h2 {
            streamed.answer_all(|(request, mut respond)| async move {
                let (body, _) = read(request.into_body()).await.unwrap();
                reply(&mut respond, &body);
            });
        } else {
            tokio::spawn(async move {
                let mut peer = plain.accept().await;
                peer.read_head().await;
                let body = peer.read(SIZE).await;
                peer.write(&ok(&body)).await;
            });
        }
        let body: String = ('a'..='z').cycle().take(SIZE).collect();
        let mut client = Http2::connect(&stage).await;
        let answer = client.send(post("/").header("content-length", SIZE), &body).await;
        assert!(answer.body == body, "{} bytes came back", answer.body.len());
    }
}

#[tokio::test]
async fn what_nobody_takes_is_not_fetched() {
    let (stage, backend) = in_front_of_http2().await;
    let mut client = Http2::connect(&stage).await;
    let (_response, mut sending) = client.begin(post("/"), false).await;
    let (connection, (_request, _respond)) = backend.accept_asked().await;
    carry(connection);
    let mut taken = 0;
    loop {
        sending.reserve_capacity(16 * 1024);
        let room = std::future::poll_fn(|cx| sending.poll_capacity(cx));
        let Ok(room) = tokio::time::timeout(Duration::from_millis(500), room).await else { break };
        let room = room.unwrap().unwrap();
        sending.send_data(Bytes::from(vec![0; room]), false).unwrap();
        taken += room;
        assert!(taken < 1_000_000, "{taken} bytes were taken for a backend that reads nothing");
    }
    // A window and the buffer of each side, and one frame between them.
    assert!((64 * 1024..=300 * 1024).contains(&taken), "{taken}");
}

/// The status that a request of these fields gets, or the code that its stream is reset with.
async fn verdict(stage: &Stage, fields: &[(&str, &str)]) -> Result<String, u32> {
    let mut client = RawHttp2::connect(stage).await;
    client.write(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields))).await;
    // After an answer the connection is of no use here, and its end makes the next frame come or none.
    client.write(&frame(GOAWAY, 0, 0, &[0; 8])).await;
    let mut buffer = Vec::new();
    soon(tokio::io::AsyncReadExt::read_to_end(&mut client.stream, &mut buffer)).await.unwrap();
    let mut rest = &buffer[..];
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        match rest[3] {
            RST_STREAM => return Err(u32::from_be_bytes(rest[9..13].try_into().unwrap())),
            HEADERS => {
                // Of the status, the static table of HPACK has the usual ones; others are spelled out.
                let known = ["200", "204", "206", "304", "400", "404", "500"];
                let first = usize::from(rest[9]);
                return Ok(match first {
                    0x88..=0x8e => known[first - 0x88].into(),
                    _ => format!("other {first:#x}"),
                });
            }
            _ => rest = &rest[9 + length..],
        }
    }
    panic!("there is neither an answer nor a reset");
}

#[tokio::test]
async fn requests_that_two_could_understand_differently_are_refused() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    backend.answer_all("ok");
    let with = |more: &[(&'static str, &'static str)]| [&PSEUDO[..], more].concat();
    let but = |name: &str, value: &'static str| {
        let changed = PSEUDO.map(|(known, usual)| (known, if known == name { value } else { usual }));
        changed.into_iter().filter(|(_, value)| !value.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(verdict(&stage, &PSEUDO).await, Ok("200".into()));
    assert_eq!(verdict(&stage, &with(&[("host", "SHOP")])).await, Ok("200".into()));
    assert_eq!(verdict(&stage, &with(&[("te", "trailers")])).await, Ok("200".into()));
    let refused = [
        with(&[("host", "other")]),
        with(&[("host", "shop:80")]),
        but(":authority", ""),
        but(":authority", "u@shop"),
        but(":scheme", "https"),
        but(":scheme", "ftp"),
        but(":path", "*"),
        with(&[("content_length", "1")]),
        with(&[("x_forwarded_for", "1")]),
        [&but(":authority", "")[..], &[("host", "shop")]].concat(),
    ];
    for fields in refused {
        assert_eq!(verdict(&stage, &fields).await, Ok("400".into()), "{fields:?}");
    }
    const PROTOCOL_ERROR: u32 = 1;
    let malformed = [
        with(&[("te", "gzip")]),
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "websocket")]),
        with(&[("keep-alive", "1")]),
        with(&[("content-length", "1")]),
        but(":path", ""),
        but(":path", "a"),
    ];
    for fields in malformed {
        let verdict = verdict(&stage, &fields).await;
        assert!(
            matches!(verdict, Err(PROTOCOL_ERROR)) || verdict == Ok("400".into()),
            "{fields:?}: {verdict:?}"
        );
    }
}

#[tokio::test]
async fn connect_and_trace_are_refused() {
    let stage = Stage::new(&[]).await;
    let mut client = Http2::connect(&stage).await;
    let answer = client.ask(Request::builder().method("TRACE").uri("http://shop/")).await;
    assert_eq!((answer.status, answer.field("x-guideway-reason")), (405, "method_not_allowed"));
    assert!(answer.field("allow").contains("GET"));
    let answer = client.ask(Request::builder().method("CONNECT").uri("shop:80")).await;
    assert_eq!(answer.status, 405);
}

#[tokio::test]
async fn our_own_answers_say_why() {
    let stage = Stage::new(&[]).await;
    let mut client = Http2::connect(&stage).await;
    let answer = client.ask(get("/")).await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "no backend is ready\n"));
    assert_eq!((answer.field("x-guideway-reason"), answer.field("retry-after")), ("no_backend", "1"));
    let head = client.ask(Request::head("http://shop/")).await;
    assert_eq!((head.status, head.body.as_str(), head.field("content-length")), (503, "", "20"));
    stage.settles("guideway_rescued_total{namespace=\"shop\",pool=\"web\",reason=\"no_backend\"}", 2.0).await;
}

#[tokio::test]
async fn every_stream_goes_where_its_key_leads() {
    let (first, second) = (Http2Backend::new().await, Http2Backend::new().await);
    let stage = Stage::with(h2c(), &[first.address, second.address]).await;
    first.answer_all(named("first"));
    second.answer_all(named("second"));
    let mut client = Http2::connect(&stage).await;
    let mut answers = Vec::new();
    for key in 0..40 {
        let once = client.ask(get("/").header("x-key", key)).await.body;
        assert_eq!(client.ask(get("/").header("x-key", key)).await.body, once);
        answers.push(once);
    }
    let first = answers.iter().filter(|answer| *answer == "first").count();
    assert!((8..=32).contains(&first), "{first} of 40 keys");
    assert_eq!(stage.series("guideway_connections{namespace=\"shop\",pool=\"web\"}"), 1.0);
}

#[tokio::test]
async fn only_the_first_bytes_of_a_connection_can_begin_http_2() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    backend.answer_all("ok");
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let answer = stage.exchange(&format!("GET / HTTP/1.1\r\nHost: a\r\n\r\n{preface}")).await;
    assert!(answer.contains("okHTTP/1.1 400 "), "{answer}");
    let mut slow = stage.connect().await;
    for byte in preface.bytes() {
        slow.write_bytes(&[byte]).await;
        tokio::task::yield_now().await;
    }
    slow.write_bytes(&frame(SETTINGS, 0, 0, &[])).await;
    assert_eq!(slow.read(4).await.as_bytes()[3], 4, "settings come first");
}

#[tokio::test]
async fn who_begins_http_2_and_goes_on_otherwise_is_told_in_http_2() {
    const PROTOCOL_ERROR: u32 = 1;
    let stage = Stage::new(&[]).await;
    for broken in [
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        "PRI * HTTP/2.0\r\nHost: a\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\x01",
    ] {
        let mut client = RawHttp2 { stream: stage.connect().await.stream };
        client.write(broken.as_bytes()).await;
        let (settings, rest) = (client.next(SETTINGS).await, client.goodbye().await);
        assert_eq!((settings, rest), (Some((0, 0, vec![])), Some(PROTOCOL_ERROR)), "{broken:?}");
        let mut more = Vec::new();
        soon(tokio::io::AsyncReadExt::read_to_end(&mut client.stream, &mut more)).await.unwrap();
        assert_eq!(more, b"", "{broken:?}");
    }
    stage.settles("guideway_requests_total{namespace=\"shop\",pool=\"web\",code_class=\"4xx\"}", 3.0).await;
}

fn short() -> Setup {
    let mut setup = Setup::default();
    setup.limits.idle = Duration::from_millis(300);
    setup.limits.head = Duration::from_millis(300);
    setup.limits.body_idle = Duration::from_millis(300);
    setup
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_sent_away() {
    let stage = Stage::with(short(), &[]).await;
    let mut silent = RawHttp2::connect(&stage).await;
    assert_eq!(silent.goodbye().await, Some(0));
    let mut half = stage.connect().await;
    half.write("PRI * HTTP/2.0\r\n\r\nSM").await;
    assert!(half.is_closed().await);
}

#[tokio::test]
async fn a_head_that_does_not_end_ends_the_connection() {
    let mut setup = short();
    setup.limits.idle = Duration::from_secs(60);
    let stage = Stage::with(setup, &[]).await;
    let mut slow = RawHttp2::connect(&stage).await;
    slow.write(&frame(HEADERS, END_STREAM, 1, &block(&PSEUDO))).await;
    slow.write(&frame(CONTINUATION, 0, 1, &block(&[("x", "1")]))).await;
    const ENHANCE_YOUR_CALM: u32 = 11;
    assert_eq!(slow.goodbye().await, Some(ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn a_body_that_stands_still_ends_its_stream_alone() {
    let backend = Backend::new().await;
    let stage = Stage::with(short(), &[backend.address]).await;
    let mut client = Http2::connect(&stage).await;
    let (response, mut sending) = client.begin(post("/"), false).await;
    sending.send_data("some".into(), false).unwrap();
    let mut waiting = backend.accept().await;
    waiting.read_head().await;
    let answer = answer(response).await.unwrap();
    backend.answer_all("ok");
    assert_eq!((answer.status, answer.field("x-guideway-reason")), (408, "client_stalled"));
    assert_eq!(client.ask(get("/")).await.body, "ok");
}

#[tokio::test]
async fn more_streams_than_are_allowed_are_refused() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(|asked| async move {
        std::future::pending::<()>().await;
        drop(asked);
    });
    let mut client = RawHttp2::connect(&stage).await;
    for number in 0..101_u32 {
        client.write(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &block(&PSEUDO))).await;
    }
    const REFUSED_STREAM: u32 = 7;
    let (stream, _, code) = client.next(RST_STREAM).await.unwrap();
    assert_eq!((stream, u32::from_be_bytes(code[..].try_into().unwrap())), (201, REFUSED_STREAM));
}

#[tokio::test]
async fn a_drain_says_goodbye_and_finishes_what_is_under_way() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = Http2::connect(&stage).await;
    let (response, _) = client.begin(get("/"), true).await;
    let mut upstream = backend.accept().await;
    upstream.read_head().await;
    let mut idle = RawHttp2::connect(&stage).await;
    idle.next(4).await.unwrap();
    let draining = tokio::spawn(stage.proxy.drain(Duration::from_secs(10)));
    assert_eq!(idle.goodbye().await, Some(0));
    drop(idle);
    // The client heard of it too, and begins nothing new.
    let refused = async {
        while client.sender.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(refused).await;
    upstream.write(&ok("late")).await;
    assert_eq!(answer(response).await.unwrap().body, "late");
    assert_eq!(draining.await.unwrap(), 0);
}
