//! Requests on their way to backends that neither take nor refuse a connection: how long they wait, and for whom.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use guideway::balance::backend::{HttpVersion, State};
use guideway::balance::pool::{Protocol, Timeouts};
use guideway::balance::tls::BackendTls;
use rustls::pki_types::ServerName;

use super::authority::Authority;
use super::stage::{Backend, PATIENCE, Setup, Stage, Unanswering, ok, unanswering};
use super::streams::{Http2, Http2Backend, answer, get, named, post};

const SHORT: Duration = Duration::from_millis(300);
const ACTIVE: &str = "guideway_active_requests{namespace=\"shop\",pool=\"web\"}";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A setup in which a connection may take longer than a request.
fn impatient(http: HttpVersion) -> Setup {
    Setup { timeouts: Timeouts { connect: PATIENCE, request: Some(SHORT) }, http, ..Setup::default() }
}

/// A setup in which only a connection may take long, and not very long at a backend that left.
fn draining(http: HttpVersion) -> Setup {
    let timeouts = Timeouts { connect: PATIENCE, request: None };
    Setup { timeouts, drain_timeout: SHORT, http, ..Setup::default() }
}

const VERSIONS: [HttpVersion; 2] = [HttpVersion::Http1, HttpVersion::Http2];

async fn silent_ones() -> ([Unanswering; 3], [SocketAddr; 3]) {
    let silent = [unanswering().await, unanswering().await, unanswering().await];
    let addresses = silent.each_ref().map(Unanswering::address);
    (silent, addresses)
}

/// Ends after `SHORT`, and not much later.
async fn ends_in_time<T>(end: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let end = end.await;
    assert!((SHORT..SHORT * 8).contains(&begun.elapsed()), "it ended after {:?}", begun.elapsed());
    end
}

#[tokio::test]
async fn a_request_waits_for_a_connection_only_as_long_as_for_its_answer() {
    let (_silent, addresses) = silent_ones().await;
    for http in VERSIONS {
        let stage = Stage::with(impatient(http), &addresses).await;
        for (head, body) in [
            (GET, ""),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", ""),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na", "bc"),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na", "bc\r\n0\r\n\r\n"),
        ] {
            let mut client = stage.connect().await;
            let asking = async {
                client.write(head).await;
                stage.settles(ACTIVE, 1.0).await;
                client.write(body).await;
                client.read_response().await.0
            };
            let head = ends_in_time(asking).await;
            assert!(head.starts_with("HTTP/1.1 504 "), "{http:?} {head}");
            assert!(!head.contains("connection: close"), "{http:?} {head}");
        }
    }
}

#[tokio::test]
async fn a_stream_waits_for_a_connection_only_as_long_as_for_its_answer() {
    let (_silent, addresses) = silent_ones().await;
    for http in VERSIONS {
        let stage = Stage::with(impatient(http), &addresses).await;
        let mut clients = [Http2::connect(&stage).await, Http2::connect(&stage).await];
        let [first, second] = &mut clients;
        // Where a connection is for many, the second one waits for the first.
        let both = ends_in_time(async { tokio::join!(first.ask(get("/")), second.ask(get("/"))) }).await;
        assert_eq!((both.0.status, both.1.status), (504, 504), "{http:?}");
        assert_eq!(ends_in_time(first.send(post("/"), "abc")).await.status, 504, "{http:?}");
    }
}

#[tokio::test]
async fn the_deadline_of_a_call_counts_while_a_connection_is_opened() {
    let (_silent, addresses) = silent_ones().await;
    for http in VERSIONS {
        let timeouts = Timeouts { connect: PATIENCE, request: None };
        let stage = Stage::with(Setup { timeouts, http, ..Setup::default() }, &addresses).await;
        let mut client = Http2::connect(&stage).await;
        let call = post("/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "300m");
        // A part of its messages is enough: the time is the client's own.
        let (response, _sending) = client.begin(call, false).await;
        let answer = ends_in_time(answer(response)).await.unwrap();
        assert_eq!(answer.field("grpc-status"), "4", "{http:?}");
    }
}

#[tokio::test]
async fn a_handshake_of_tls_with_a_backend_takes_of_the_same_time() {
    let authority = Authority::new();
    let server_name = ServerName::try_from("backend.test").unwrap();
    let tls = BackendTls { server_name, ca: authority.bundle(), identity: None };
    for http in VERSIONS {
        let backend = Backend::new().await;
        let setup = Setup { backend_tls: Some(tls.clone().into()), ..impatient(http) };
        let stage = Stage::with(setup, &[backend.address]).await;
        let answer = async {
            let mut client = stage.connect().await;
            client.write(GET).await;
            client.read_response().await.0
        };
        let answer = ends_in_time(answer).await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_comes_slowly_is_not_held_against_a_request_without_a_backend() {
    let (silent, backend) = (unanswering().await, Backend::new().await);
    let mut setup = impatient(HttpVersion::Http1);
    setup.limits.body_idle = SHORT;
    let mut stage = Stage::with(setup, &[silent.address()]).await;
    let mut client = stage.connect().await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf ").await;
    stage.settles(ACTIVE, 1.0).await;
    tokio::time::sleep(SHORT * 2).await;
    stage.publish(&[backend.address], State::Ready);
    let mut upstream = backend.accept().await;
    upstream.read_head().await;
    assert_eq!(upstream.read(5).await, "half ");
    client.write("more").await;
    assert_eq!(upstream.read(4).await, "more");
    upstream.write(&ok("both")).await;
    assert_eq!(client.read_response().await.1, "both");
}

#[tokio::test]
async fn a_request_goes_on_to_who_replaces_a_backend_that_left_before_it_was_reached() {
    let silent = unanswering().await;
    for http in VERSIONS {
        let mut stage = Stage::with(draining(http), &[silent.address()]).await;
        let (mut plain, mut streams) = (stage.connect().await, Http2::connect(&stage).await);
        plain.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
        let (response, mut sending) = streams.begin(post("/"), false).await;
        sending.send_data("abc".into(), true).unwrap();
        stage.settles(ACTIVE, 2.0).await;
        let replaced = Instant::now();
        match http {
            HttpVersion::Http1 => {
                let backend = Backend::new().await;
                stage.publish(&[backend.address], State::Ready);
                for _ in 0..2 {
                    let mut upstream = backend.accept().await;
                    upstream.read_head().await;
                    tokio::spawn(async move {
                        upstream.write(&ok("new")).await;
                        upstream.read_to_end().await
                    });
                }
            }
            HttpVersion::Http2 => {
                let backend = Http2Backend::new().await;
                stage.publish(&[backend.address], State::Ready);
                backend.answer_all(named("new"));
            }
        }
        assert!(plain.read_head().await.starts_with("HTTP/1.1 200 "));
        assert_eq!(answer(response).await.unwrap().body, "new");
        assert!(replaced.elapsed() < PATIENCE / 2, "{:?}", replaced.elapsed());
    }
}

#[tokio::test]
async fn a_connection_of_tcp_goes_on_to_who_replaces_a_backend_that_left() {
    let (silent, backend) = (unanswering().await, Backend::new().await);
    let setup = Setup { protocol: Protocol::Tcp, ..draining(HttpVersion::Http1) };
    let mut stage = Stage::with(setup, &[silent.address()]).await;
    let mut client = stage.connect().await;
    client.write("hello").await;
    stage.settles("guideway_connections{namespace=\"shop\",pool=\"web\"}", 1.0).await;
    stage.publish(&[backend.address], State::Ready);
    assert_eq!(backend.accept().await.read(5).await, "hello");
}

#[tokio::test]
async fn nobody_waits_for_a_backend_on_its_way_out_beyond_the_drain_timeout() {
    let silent = unanswering().await;
    for http in VERSIONS {
        let mut stage = Stage::with(draining(http), &[silent.address()]).await;
        let mut client = stage.connect().await;
        client.write(GET).await;
        stage.settles(ACTIVE, 1.0).await;
        stage.publish(&[silent.address()], State::Terminating { serving: true });
        let answer = ends_in_time(client.read_response()).await.0;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
}

#[tokio::test]
async fn a_backend_that_requests_waited_for_in_vain_is_tried_last() {
    let (silent, backend) = (unanswering().await, Backend::new().await);
    let mut setup = impatient(HttpVersion::Http1);
    setup.timeouts.request = Some(SHORT * 2);
    let stage = Stage::with(setup, &[silent.address(), backend.address]).await;
    backend.answer_all("alive");
    let mut failed = 0;
    for key in 0..8 {
        let mut client = stage.connect().await;
        client.write(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\n\r\n")).await;
        failed += u32::from(client.read_response().await.0.starts_with("HTTP/1.1 504 "));
    }
    assert_eq!(failed, 1, "about half of the keys belong to it");
}
