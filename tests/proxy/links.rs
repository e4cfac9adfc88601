//! Connections of HTTP/2 to backends, which many requests share: what becomes of one request is no other's business,
//! and a backend that says goodbye loses none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;

use super::stage::Stage;
use super::streams::{
    Http2, Http2Backend, answer, carry, get, h2c, in_front_of_http2, named, post, read, reply, soon,
};

fn retries(reason: &str) -> String {
    format!("guideway_retries_total{{namespace=\"shop\",pool=\"web\",reason=\"{reason}\"}}")
}

#[tokio::test]
async fn requests_of_many_clients_share_a_connection() {
    let (stage, backend) = in_front_of_http2().await;
    let connections = backend.answer_all(named("ok"));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = Http2::connect(&stage).await;
        asking.spawn(async move {
            for _ in 0..20 {
                assert_eq!(client.ask(get("/")).await.body, "ok");
            }
        });
    }
    for _ in 0..20 {
        let answer = stage.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.contains("\r\nok\r\n"), "{answer}");
    }
    asking.join_all().await;
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_full_connection_gets_a_second_one_beside_it() {
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(1);
    let backend = Http2Backend::with(settings).await;
    let stage = Stage::with(h2c(), &[backend.address]).await;
    let under_way = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = under_way.clone();
    let connections = backend.answer_all(move |(request, mut respond)| {
        let gate = gate.clone();
        async move {
            if request.uri().path() == "/slow" {
                gate.acquire().await.unwrap().forget();
            }
            reply(&mut respond, "ok");
        }
    });
    let mut client = Http2::connect(&stage).await;
    assert_eq!(client.ask(get("/")).await.body, "ok");
    let (slow, _) = client.begin(get("/slow"), true).await;
    let (slower, _) = client.begin(get("/slow"), true).await;
    while connections.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    under_way.add_permits(2);
    assert_eq!(answer(slow).await.unwrap().body, "ok");
    assert_eq!(answer(slower).await.unwrap().body, "ok");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_backend_gets_no_more_connections_than_it_may() {
    const MAX_LINKS: usize = 16;
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(1);
    let backend = Http2Backend::with(settings).await;
    let stage = Stage::with(h2c(), &[backend.address]).await;
    // Behind the head of an answer the proxy knows how many streams there may be.
    let connections = backend.answer_all(|(_request, mut respond)| async move {
        let _sending = respond.send_response(Response::new(()), false).unwrap();
        std::future::pending::<()>().await;
    });
    let mut client = Http2::connect(&stage).await;
    let mut under_way = Vec::new();
    for _ in 0..MAX_LINKS {
        let (response, _) = client.begin(get("/"), true).await;
        under_way.push(soon(response).await.unwrap());
    }
    let refused = client.ask(get("/")).await;
    assert_eq!((refused.status, refused.field("x-guideway-reason")), (502, "connect_failed"));
    assert_eq!(connections.load(Ordering::SeqCst), MAX_LINKS);
    assert_eq!(stage.series(&retries("unprocessed")), 1.0);
    // A place that is given up is taken by the next one.
    under_way.pop();
    let (response, _) = client.begin(get("/"), true).await;
    assert_eq!(soon(response).await.unwrap().status(), 200);
    assert_eq!(connections.load(Ordering::SeqCst), MAX_LINKS);
}

#[tokio::test]
async fn a_client_that_cancels_ends_the_backends_stream_alone() {
    let (stage, backend) = in_front_of_http2().await;
    let mut client = Http2::connect(&stage).await;
    let (staying, _) = client.begin(get("/stays"), true).await;
    let (mut connection, (_, mut stays)) = backend.accept_asked().await;
    let (response, mut sending) = client.begin(post("/goes"), false).await;
    let (_request, mut goes) = soon(connection.accept()).await.unwrap().unwrap();
    carry(connection);
    sending.send_reset(h2::Reason::CANCEL);
    drop(response);
    assert_eq!(soon(std::future::poll_fn(|cx| goes.poll_reset(cx))).await.unwrap(), h2::Reason::CANCEL);
    reply(&mut stays, "whole");
    assert_eq!(answer(staying).await.unwrap().body, "whole");
}

#[tokio::test]
async fn a_backend_that_breaks_off_ends_the_clients_stream_alone() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(|(request, mut respond)| async move {
        match request.uri().path() {
            "/breaks" => {
                let mut sending = respond.send_response(Response::new(()), false).unwrap();
                sending.send_data("half".into(), false).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                sending.send_reset(h2::Reason::INTERNAL_ERROR);
            }
            "/refuses" => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            _ => reply(&mut respond, "ok"),
        }
    });
    let mut client = Http2::connect(&stage).await;
    let (breaking, _) = client.begin(get("/breaks"), true).await;
    let error = answer(breaking).await.unwrap_err();
    assert!(error.is_reset() && error.is_remote(), "{error}");
    let refused = client.ask(get("/refuses")).await;
    assert_eq!((refused.status, refused.field("x-guideway-reason")), (502, "lost"));
    assert_eq!(client.ask(get("/")).await.body, "ok");
    // A client of HTTP/1 sees a connection that ends before the body does.
    let mut old = stage.connect().await;
    old.write("GET /breaks HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(old.is_reset().await);
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_with_its_body() {
    let (stage, backend) = in_front_of_http2().await;
    let refusals = Arc::new(AtomicUsize::new(0));
    backend.answer_all(move |(request, mut respond)| {
        let refusals = refusals.clone();
        async move {
            let mut body = request.into_body();
            // So much of the body is there that it was sent, not kept.
            body.data().await.unwrap().unwrap();
            if refusals.fetch_add(1, Ordering::SeqCst) < 2 {
                return respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
            let (rest, _) = read(body).await.unwrap();
            reply(&mut respond, if rest.is_empty() { "whole" } else { "more" });
        }
    });
    let mut client = Http2::connect(&stage).await;
    assert_eq!(client.send(post("/"), "a body of its own").await.body, "whole");
    assert_eq!(stage.series(&retries("unprocessed")), 2.0);
}

#[tokio::test]
async fn a_backend_that_says_goodbye_loses_no_request() {
    let (stage, backend) = in_front_of_http2().await;
    let mut client = Http2::connect(&stage).await;
    let (first, _) = client.begin(get("/"), true).await;
    let (mut old, (_, mut respond)) = backend.accept_asked().await;
    old.graceful_shutdown();
    let ending = tokio::spawn(async move { while let Some(Ok(_)) = old.accept().await {} });
    let asking = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.send(post("/"), "x").await
    };
    let answering = async {
        let (fresh, (_, mut respond)) = backend.accept_asked().await;
        reply(&mut respond, "fresh");
        carry(fresh);
    };
    let (answered, ()) = tokio::join!(asking, answering);
    assert_eq!(answered.body, "fresh");
    reply(&mut respond, "still here");
    assert_eq!(answer(first).await.unwrap().body, "still here");
    soon(ending).await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_costs_idempotent_requests_nothing() {
    let (stage, backend) = in_front_of_http2().await;
    let mut client = Http2::connect(&stage).await;
    let (first, _) = client.begin(get("/"), true).await;
    let (mut connection, (_, mut respond)) = backend.accept_asked().await;
    reply(&mut respond, "one");
    let driving = tokio::spawn(async move {
        let _second = connection.accept().await;
    });
    assert_eq!(answer(first).await.unwrap().body, "one");
    let (second, _) = client.begin(get("/"), true).await;
    soon(driving).await.unwrap();
    backend.answer_all(named("two"));
    assert_eq!(answer(second).await.unwrap().body, "two");
    assert_eq!(stage.series(&retries("stale")), 1.0);
}

#[tokio::test]
async fn ten_thousand_cancelled_streams_harm_no_other() {
    const CANCELS: usize = 10_000;
    let (stage, backend) = in_front_of_http2().await;
    let connections = backend.answer_all(|(request, mut respond)| async move {
        let mut sending = respond.send_response(Response::new(()), false).unwrap();
        if request.uri().path() == "/long" {
            let mut body = request.into_body();
            let begun = body.data().await.unwrap().unwrap();
            sending.send_data(begun, false).unwrap();
            let ended = body.data().await.unwrap().unwrap();
            return sending.send_data(ended, true).unwrap();
        }
        // Data is still on its way when the stream is cancelled.
        for _ in 0..8 {
            if sending.send_data(vec![0; 1024].into(), false).is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let _ = std::future::poll_fn(|cx| sending.poll_reset(cx)).await;
    });
    let mut patient = Http2::connect(&stage).await;
    let (long, mut sending) = patient.begin(post("/long"), false).await;
    sending.send_data("begun".into(), false).unwrap();
    let mut cancelled = 0;
    while cancelled < CANCELS {
        // No client may cancel so many on one connection; the backend's sees them all.
        let mut client = Http2::connect(&stage).await;
        for _ in 0..250 {
            let (response, mut sending) = client.begin(get("/"), true).await;
            let body = soon(response).await.unwrap().into_body();
            sending.send_reset(h2::Reason::CANCEL);
            drop(body);
            cancelled += 1;
        }
    }
    sending.send_data(" and ended".into(), true).unwrap();
    assert_eq!(answer(long).await.unwrap().body, "begun and ended");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}
