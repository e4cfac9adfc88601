//! Calls of gRPC: how their clients are told of our own errors, how long they wait, and how they end early.

use std::time::Duration;

use http::Response;

use super::stage::{Reserved, Setup, Stage};
use super::streams::{
    Answer, Http2, Http2Backend, answer, carry, get, h2c, in_front_of_http2, named, post, read, soon,
    trailers,
};

fn call() -> http::request::Builder {
    post("/pkg.Service/Method").header("content-type", "application/grpc").header("te", "trailers")
}

fn told(answer: &Answer) -> (u16, &str, &str) {
    (answer.status, answer.field("content-type"), answer.field("grpc-status"))
}

#[tokio::test]
async fn a_call_that_no_backend_answers_may_be_tried_again() {
    let dead = Reserved::new();
    for backends in [&[][..], &[dead.address()]] {
        let stage = Stage::with(h2c(), backends).await;
        let mut client = Http2::connect(&stage).await;
        let answer = client.send(call(), "x").await;
        assert_eq!(told(&answer), (200, "application/grpc", "14"), "{answer:?}");
        assert!(!answer.field("grpc-message").is_empty() && answer.body.is_empty(), "{answer:?}");
        // Others are told as ever.
        assert!(client.ask(get("/")).await.status >= 502);
    }
}

#[tokio::test]
async fn the_status_of_a_call_passes_with_all_its_fields() {
    let (stage, backend) = in_front_of_http2().await;
    let fields = [
        ("grpc-status", "5"),
        ("grpc-message", "no such"),
        ("grpc-status-details-bin", "AAA"),
        ("my-own", "1"),
    ];
    backend.answer_all(move |(request, mut respond)| async move {
        let (parts, body) = request.into_parts();
        assert!(parts.headers["te"] == "trailers" && parts.headers["content-type"] == "application/grpc");
        read(body).await.unwrap();
        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut sending = respond.send_response(response, false).unwrap();
        sending.send_data("message".into(), false).unwrap();
        sending.send_trailers(trailers(&fields)).unwrap();
    });
    let mut client = Http2::connect(&stage).await;
    let answer = client.send(call(), "x").await;
    assert_eq!((answer.body.as_str(), answer.trailers), ("message", Some(trailers(&fields))));
}

#[tokio::test]
async fn a_call_ends_when_its_client_waits_no_longer() {
    let (stage, backend) = in_front_of_http2().await;
    let mut client = Http2::connect(&stage).await;
    let (response, mut sending) = client.begin(call().header("grpc-timeout", "300m"), false).await;
    sending.send_data("x".into(), true).unwrap();
    let (connection, (_request, mut respond)) = backend.accept_asked().await;
    carry(connection);
    assert_eq!(told(&answer(response).await.unwrap()), (200, "application/grpc", "4"));
    let reset = soon(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap();
    assert_eq!(reset, h2::Reason::CANCEL, "the backend need not go on");
}

#[tokio::test]
async fn a_call_whose_answer_began_is_cut_at_its_deadline() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(|(_request, mut respond)| async move {
        let _sending = respond.send_response(Response::new(()), false).unwrap();
        std::future::pending::<()>().await;
    });
    let mut client = Http2::connect(&stage).await;
    let (response, _sending) = client.begin(call().header("grpc-timeout", "300m"), false).await;
    let error = answer(response).await.unwrap_err();
    assert!(error.is_reset() && error.is_remote(), "{error}");
}

#[tokio::test]
async fn a_call_may_be_silent_for_longer_than_a_body_may_stand_still() {
    let backend = Http2Backend::new().await;
    let mut setup = h2c();
    setup.limits.body_idle = Duration::from_millis(200);
    let stage = Stage::with(setup, &[backend.address]).await;
    backend.answer_all(|(request, mut respond)| async move {
        let (body, _) = read(request.into_body()).await.unwrap();
        let mut sending = respond.send_response(Response::new(()), false).unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        sending.send_data(body.into(), true).unwrap();
    });
    let mut client = Http2::connect(&stage).await;
    let (response, mut sending) = client.begin(call(), false).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    sending.send_data("patience".into(), true).unwrap();
    assert_eq!(answer(response).await.unwrap().body, "patience");
}

#[tokio::test]
async fn a_timeout_of_the_pool_is_a_deadline_to_a_call() {
    let backend = Http2Backend::new().await;
    let mut setup = Setup { ..h2c() };
    setup.timeouts.request = Some(Duration::from_millis(200));
    let stage = Stage::with(setup, &[backend.address]).await;
    backend.answer_all(|asked| async move {
        std::future::pending::<()>().await;
        drop(asked);
    });
    let mut client = Http2::connect(&stage).await;
    assert_eq!(told(&client.send(call(), "x").await).2, "4");
    assert_eq!(client.ask(get("/")).await.status, 504);
}

#[tokio::test]
async fn calls_pass_to_a_backend_of_another_kind_beside_it() {
    let backend = Http2Backend::new().await;
    let dead = Reserved::new();
    let stage = Stage::with(h2c(), &[backend.address, dead.address()]).await;
    backend.answer_all(named("alive"));
    let mut client = Http2::connect(&stage).await;
    for key in 0..20 {
        assert_eq!(client.send(call().header("x-key", key), "x").await.body, "alive");
    }
}
