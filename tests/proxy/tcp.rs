//! Connections of a port that speaks no HTTP: their bytes pass as they are, and their ends too.

use std::time::Duration;

use guideway::balance::backend::{HttpVersion, State};
use guideway::balance::pool::{Protocol, ProxyProtocol};
use guideway::proxy::Limits;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::stage::{Backend, Peer, Reserved, Setup, Stage, noise, unanswering};

const CONNECTIONS: &str = "guideway_connections{namespace=\"shop\",pool=\"web\"}";

fn setup() -> Setup {
    Setup { protocol: Protocol::Tcp, ..Setup::default() }
}

async fn stage(backend: &Backend) -> Stage {
    Stage::with(setup(), &[backend.address]).await
}

/// A client and the backend at its other end.
async fn pair(stage: &Stage, backend: &Backend) -> (Peer, Peer) {
    let client = stage.connect().await;
    (client, backend.accept().await)
}

/// Of two pairs of a client and the backend at its other end, in one the client ends first and in one the backend:
/// what was said before arrives, and the other side is still heard.
pub(super) async fn each_side_may_end_first(pairs: [(Peer, Peer); 2]) {
    let [(client, server), (other_client, other_server)] = pairs;
    for (mut first, mut other) in [(client, server), (other_server, other_client)] {
        first.write("last words").await;
        first.shutdown().await;
        assert_eq!(other.read_to_end().await, "last words");
        other.write("answer").await;
        drop(other);
        assert_eq!(first.read_to_end().await, "answer");
    }
}

fn rescued(reason: &str) -> String {
    format!("guideway_rescued_total{{namespace=\"shop\",pool=\"web\",reason=\"{reason}\"}}")
}

#[tokio::test]
async fn either_side_may_speak_first_and_what_it_says_is_nothing_to_us() {
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    let (mut client, mut server) = pair(&stage, &backend).await;
    server.write("220 welcome\r\n").await;
    assert_eq!(client.read(13).await, "220 welcome\r\n");
    client.write("GET / HTTP/9.9\r\n\r\n").await;
    assert_eq!(server.read(18).await, "GET / HTTP/9.9\r\n\r\n");
    let labels = "namespace=\"shop\",pool=\"web\"";
    stage.settles(CONNECTIONS, 1.0).await;
    stage.settles(&format!("guideway_bytes_total{{{labels},direction=\"received\"}}"), 18.0).await;
    stage.settles(&format!("guideway_bytes_total{{{labels},direction=\"sent\"}}"), 13.0).await;
    assert_eq!(stage.series(&format!("guideway_requests_total{{{labels},code_class=\"none\"}}")), 0.0);
}

#[tokio::test]
async fn the_beginning_of_http2_is_bytes_as_any_others_even_for_a_backend_that_speaks_it() {
    const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for http in [HttpVersion::Http1, HttpVersion::Http2] {
        let backend = Backend::new().await;
        let stage = Stage::with(Setup { http, ..setup() }, &[backend.address]).await;
        let (mut client, mut server) = pair(&stage, &backend).await;
        client.write(PREFACE).await;
        client.shutdown().await;
        assert_eq!(server.read_to_end().await, PREFACE, "{http:?}");
        server.write("whatever").await;
        drop(server);
        assert_eq!(client.read_to_end().await, "whatever", "{http:?}");
    }
}

#[tokio::test]
async fn each_side_may_end_by_itself_and_still_hear_the_other() {
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    each_side_may_end_first([pair(&stage, &backend).await, pair(&stage, &backend).await]).await;
    stage.settles(CONNECTIONS, 0.0).await;
}

#[tokio::test]
async fn a_question_that_ends_before_there_is_a_backend_is_not_lost() {
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    let mut client = stage.connect().await;
    client.write("question").await;
    client.shutdown().await;
    let mut server = backend.accept().await;
    assert_eq!(server.read_to_end().await, "question");
    server.write("answer").await;
    drop(server);
    assert_eq!(client.read_to_end().await, "answer");
}

#[tokio::test]
async fn who_breaks_off_is_not_taken_for_who_has_ended() {
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    let (mut client, mut server) = pair(&stage, &backend).await;
    server.write("part").await;
    assert_eq!(client.read(4).await, "part");
    server.reset();
    assert!(client.is_reset().await);

    let (mut client, mut server) = pair(&stage, &backend).await;
    client.write("part").await;
    assert_eq!(server.read(4).await, "part");
    client.reset();
    assert!(server.is_reset().await);
}

#[tokio::test]
async fn last_words_of_a_backend_that_hears_no_more_arrive() {
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    let (mut client, mut server) = pair(&stage, &backend).await;
    server.write("go away").await;
    server.reset_after_close();
    client.write("more of").await;
    client.write("the same").await;
    assert_eq!(client.read(7).await, "go away");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn much_in_both_directions_at_once_arrives_whole() {
    const SIZE: usize = 8 << 20;
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    let (client, server) = pair(&stage, &backend).await;
    let (up, down) = (noise(SIZE, 1), noise(SIZE, 2));
    let (from_server, from_client) = tokio::join!(client.exchange(up.clone()), server.exchange(down.clone()));
    assert!(from_client == up, "what the client sent");
    assert!(from_server == down, "what the backend sent");
}

#[tokio::test]
async fn little_behind_much_arrives_behind_it() {
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    let (mut client, mut server) = pair(&stage, &backend).await;
    // Much passes within the kernel, little by way of our memory; in between the receiver is behind.
    for (round, size) in [1 << 20, 10, 300_000, 1, 4 << 20, 100_000].into_iter().enumerate() {
        let (much, little) = (noise(size, round as u64), noise(round, 99));
        let send = async {
            client.write_bytes(&much).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.write_bytes(&little).await;
        };
        let receive = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            server.read_bytes(size + round).await
        };
        let ((), received) = tokio::join!(send, receive);
        assert!(received == [much, little].concat(), "round {round}");
    }
    let labels = "namespace=\"shop\",pool=\"web\"";
    let sum = f64::from((1 << 20) + 10 + 300_000 + 1 + (4 << 20) + 100_000 + 15);
    stage.settles(&format!("guideway_bytes_total{{{labels},direction=\"received\"}}"), sum).await;
}

#[tokio::test]
async fn a_side_that_takes_nothing_holds_the_other_back() {
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    let (mut client, server) = pair(&stage, &backend).await;
    let flood = async {
        loop {
            client.write_bytes(&[0; 64 * 1024]).await;
        }
    };
    // What the kernel keeps for three sockets is some megabytes; nothing of it is ours.
    assert!(timeout(Duration::from_secs(1), flood).await.is_err());
    let received =
        stage.series("guideway_bytes_total{namespace=\"shop\",pool=\"web\",direction=\"received\"}");
    assert!(received < 32e6, "{received} bytes were taken in");
    drop(server);
}

#[tokio::test]
async fn a_backend_that_cannot_be_reached_is_passed_over() {
    let backend = Backend::new().await;
    let (refusing, unanswering) = (Reserved::new(), unanswering().await);
    for other in [refusing.address(), unanswering.address()] {
        let mut setup = setup();
        setup.timeouts.connect = Duration::from_millis(200);
        let mut stage = Stage::with(setup, &[other, backend.address]).await;
        for backends in [[other, backend.address], [backend.address, other]] {
            stage.publish(&backends, State::Ready);
            let (mut client, mut server) = pair(&stage, &backend).await;
            client.write("x").await;
            assert_eq!(server.read(1).await, "x");
        }
        let retries = ["connect_refused", "connect_timeout"]
            .map(|reason| {
                format!("guideway_retries_total{{namespace=\"shop\",pool=\"web\",reason=\"{reason}\"}}")
            })
            .map(|series| stage.series(&series));
        assert_eq!(retries.iter().sum::<f64>(), 1.0, "one of the two orders begins with {other}");
    }
}

#[tokio::test]
async fn a_connection_that_finds_no_backend_is_reset_and_counted() {
    let mut stage = Stage::with(setup(), &[]).await;
    assert!(is_reset(&stage).await);
    stage.settles(&rescued("no_backend"), 1.0).await;
    let refusing = Reserved::new();
    stage.publish(&[refusing.address()], State::Ready);
    assert!(is_reset(&stage).await);
    stage.settles(&rescued("connect_failed"), 1.0).await;
}

/// Whether a new connection is reset, which may be before its client has begun to look.
async fn is_reset(stage: &Stage) -> bool {
    match TcpStream::connect(("127.0.0.1", stage.port)).await {
        Ok(stream) => Peer::of(stream).is_reset().await,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn a_connection_that_nobody_uses_ends() {
    let backend = Backend::new().await;
    let limits = Limits { tunnel_idle: Duration::from_millis(400), ..Limits::for_descriptors(20_000) };
    let stage = Stage::with(Setup { limits, ..setup() }, &[backend.address]).await;
    let (mut client, mut server) = pair(&stage, &backend).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.write("x").await;
        assert_eq!(client.read(1).await, "x", "it is in use");
    }
    assert!(client.is_reset().await && server.is_reset().await);
}

#[tokio::test]
async fn one_client_has_no_more_connections_than_it_may() {
    let backend = Backend::new().await;
    let limits = Limits { connections_per_client: 2, ..Limits::for_descriptors(20_000) };
    let stage = Stage::with(Setup { limits, ..setup() }, &[backend.address]).await;
    let held = [pair(&stage, &backend).await, pair(&stage, &backend).await];
    assert!(stage.connect().await.is_closed().await);
    assert_eq!(stage.series("guideway_connections_refused_total{limit=\"client\"}"), 1.0);
    drop(held);
    stage.settles(CONNECTIONS, 0.0).await;
    pair(&stage, &backend).await;
}

#[tokio::test]
async fn a_connection_outlives_its_backend_in_the_pool_by_the_drain_timeout() {
    let (backend, successor) = (Backend::new().await, Backend::new().await);
    let setup = Setup { drain_timeout: Duration::from_millis(500), ..setup() };
    let mut stage = Stage::with(setup, &[backend.address]).await;
    let (mut client, mut server) = pair(&stage, &backend).await;
    stage.publish(&[successor.address], State::Ready);
    let (mut other, mut new) = pair(&stage, &successor).await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    client.write("x").await;
    assert_eq!(server.read(1).await, "x");
    assert!(client.is_reset().await && server.is_reset().await);
    stage.settles(&rescued("drained"), 1.0).await;
    other.write("x").await;
    assert_eq!(new.read(1).await, "x");
}

#[tokio::test]
async fn a_drain_takes_nobody_new_and_waits_for_the_others_until_the_deadline() {
    let backend = Backend::new().await;
    let stage = stage(&backend).await;
    let (port, (mut client, mut server)) = (stage.port, pair(&stage, &backend).await);
    let (mut brief, _) = pair(&stage, &backend).await;
    let drain = tokio::spawn(stage.proxy.drain(Duration::from_millis(500)));
    brief.shutdown().await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    let refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    client.write("x").await;
    assert_eq!(server.read(1).await, "x");
    assert_eq!(drain.await.unwrap(), 1);
    assert!(client.is_reset().await && server.is_reset().await);
}

#[tokio::test]
async fn a_balancer_before_us_says_for_whom_a_connection_is() {
    let backend = Backend::new().await;
    let limits = Limits { connections_per_client: 1, ..Limits::for_descriptors(20_000) };
    let setup = Setup { limits, proxy_protocol: ProxyProtocol::Require, ..setup() };
    let stage = Stage::with(setup, &[backend.address]).await;
    let mut held = Vec::new();
    for client in 1..=3 {
        let mut peer = stage.connect().await;
        peer.write(&format!("PROXY TCP4 192.0.2.{client} 198.51.100.1 1 80\r\nhello")).await;
        let mut server = backend.accept().await;
        assert_eq!(server.read(5).await, "hello", "the header is for us");
        held.push((peer, server));
    }
    let mut second = stage.connect().await;
    second.write("PROXY TCP4 192.0.2.1 198.51.100.1 1 80\r\n").await;
    assert!(second.is_closed().await);
}
