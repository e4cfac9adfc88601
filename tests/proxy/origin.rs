//! Connections that a balancer before us opens for somebody: the PROXY protocol says for whom.

use std::time::Duration;

use guideway::balance::pool::ProxyProtocol;
use guideway::proxy::Limits;

use super::stage::{Backend, Setup, Stage, ok};

const LINE: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 80\r\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const REFUSED: &str = "guideway_connections_refused_total{limit=\"proxy_protocol\"}";

async fn stage(proxy_protocol: ProxyProtocol, backend: &Backend) -> Stage {
    Stage::with(Setup { proxy_protocol, ..Setup::default() }, &[backend.address]).await
}

/// Sends `bytes` and two requests; what the backend is told about the client, each time.
async fn told(stage: &Stage, backend: &Backend, bytes: &[u8]) -> [String; 2] {
    let mut client = stage.connect().await;
    client.write_bytes(&[bytes, GET.as_bytes()].concat()).await;
    let mut server = backend.accept().await;
    let first = server.read_head().await;
    server.write(&ok("")).await;
    client.read_response().await;
    client.write(GET).await;
    let second = server.read_head().await;
    server.write(&ok("")).await;
    client.read_response().await;
    [first, second].map(|head| {
        let line = head.lines().find_map(|line| line.strip_prefix("x-forwarded-for: "));
        line.unwrap_or_default().to_owned()
    })
}

#[tokio::test]
async fn the_header_names_the_client_of_every_request() {
    let backend = Backend::new().await;
    let binary =
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[192, 0, 2, 7, 198, 51, 100, 1, 1, 2, 3, 4]].concat();
    for wanted in [ProxyProtocol::Accept, ProxyProtocol::Require] {
        let stage = stage(wanted, &backend).await;
        for header in [LINE.as_bytes(), &binary] {
            assert_eq!(told(&stage, &backend, header).await, ["192.0.2.7", "192.0.2.7"]);
        }
        // A connection of the balancer itself.
        assert_eq!(told(&stage, &backend, b"PROXY UNKNOWN\r\n").await, ["127.0.0.1", "127.0.0.1"]);
    }
}

#[tokio::test]
async fn a_header_may_come_in_pieces() {
    let backend = Backend::new().await;
    let stage = stage(ProxyProtocol::Require, &backend).await;
    let mut client = stage.connect().await;
    for piece in [&LINE[..3], &LINE[3..20], &LINE[20..], GET] {
        client.write(piece).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let head = backend.accept().await.read_head().await;
    assert!(head.contains("\r\nx-forwarded-for: 192.0.2.7\r\n"), "{head}");
}

#[tokio::test]
async fn without_a_header_a_connection_is_taken_only_where_that_is_allowed() {
    let backend = Backend::new().await;
    let accepting = stage(ProxyProtocol::Accept, &backend).await;
    assert_eq!(told(&accepting, &backend, b"").await, ["127.0.0.1", "127.0.0.1"]);
    let requiring = stage(ProxyProtocol::Require, &backend).await;
    for bytes in [GET, "PROXY TCP4 nonsense\r\n"] {
        let mut client = requiring.connect().await;
        client.write(bytes).await;
        assert!(client.is_closed().await);
    }
    assert_eq!(requiring.series(REFUSED), 2.0);
    // Where it is off, it is a request that makes no sense.
    let off = stage(ProxyProtocol::Off, &backend).await;
    let answer = off.exchange(&format!("{LINE}{GET}")).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_header_that_does_not_come_ends_the_wait() {
    let backend = Backend::new().await;
    let limits = Limits { head: Duration::from_millis(300), ..Limits::for_descriptors(20_000) };
    let setup = Setup { limits, proxy_protocol: ProxyProtocol::Require, ..Setup::default() };
    let stage = Stage::with(setup, &[backend.address]).await;
    for bytes in ["", "PROXY TCP4 "] {
        let mut client = stage.connect().await;
        client.write(bytes).await;
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn the_limit_of_connections_counts_the_clients_behind_the_balancer() {
    let backend = Backend::new().await;
    let limits = Limits { connections_per_client: 2, ..Limits::for_descriptors(20_000) };
    let setup = Setup { limits, proxy_protocol: ProxyProtocol::Require, ..Setup::default() };
    let stage = Stage::with(setup, &[backend.address]).await;
    let mut held = Vec::new();
    for client in 1..=3 {
        for _ in 0..2 {
            let (mut peer, mut server) = stage
                .under_way(&backend, &format!("PROXY TCP4 192.0.2.{client} 198.51.100.1 1 80\r\n{GET}"))
                .await;
            server.write(&ok("")).await;
            peer.read_response().await;
            held.push(peer);
        }
    }
    let mut third = stage.connect().await;
    third.write(&format!("PROXY TCP4 192.0.2.1 198.51.100.1 1 80\r\n{GET}")).await;
    assert!(third.is_closed().await);
    assert_eq!(stage.series("guideway_connections_refused_total{limit=\"client\"}"), 1.0);
}
