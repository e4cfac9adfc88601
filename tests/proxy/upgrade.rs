//! Connections that switch to another protocol: only when both sides want it, only to the one that was asked for,
//! and not a byte before the backend agreed.

use std::time::Duration;

use guideway::balance::backend::State;
use guideway::proxy::Limits;
use tokio::time::timeout;

use super::stage::{Backend, Peer, Setup, Stage, noise, ok};
use super::tcp::each_side_may_end_first;

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A client and a backend that have switched.
async fn switched(stage: &Stage, backend: &Backend) -> (Peer, Peer) {
    let (mut client, mut server) = stage.under_way(backend, HANDSHAKE).await;
    server.write(SWITCH).await;
    client.read_head().await;
    (client, server)
}

#[tokio::test]
async fn the_wish_and_the_consent_pass_and_then_every_byte() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(HANDSHAKE).await;
    let mut server = backend.accept().await;
    let head = server.read_head().await;
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"] {
        assert!(head.lines().any(|it| it == line), "{line} is missing in {head}");
    }
    // The first bytes of the other protocol may come with the consent.
    server.write(&format!("{SWITCH}hello")).await;
    let head = client.read_head().await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    for line in
        ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
    {
        assert!(head.lines().any(|it| it == line), "{line} is missing in {head}");
    }
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    assert_eq!(client.read(5).await, "hello");
    client.write("GET / HTTP/1.1\r\nHost: not a request\r\n\r\n").await;
    assert_eq!(server.read(39).await, "GET / HTTP/1.1\r\nHost: not a request\r\n\r\n");
    server.write("HTTP/1.1 999 not an answer").await;
    assert_eq!(client.read(26).await, "HTTP/1.1 999 not an answer");
}

#[tokio::test]
async fn nothing_passes_before_the_backend_agreed() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (_client, mut server) = stage.under_way(&backend, &format!("{HANDSHAKE}early")).await;
    let early = timeout(Duration::from_millis(200), server.read(1)).await;
    assert!(early.is_err(), "the backend was sent {early:?} before it agreed");
    server.write(SWITCH).await;
    assert_eq!(server.read(5).await, "early");
}

#[tokio::test]
async fn a_backend_that_does_not_switch_answers_as_always() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    // What came behind the wish is the next request then.
    client.write(&format!("{HANDSHAKE}GET /next HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    let mut server = backend.accept().await;
    server.read_head().await;
    server.write(&ok("no")).await;
    assert_eq!(client.read_response().await.1, "no");
    let next = server.read_head().await;
    assert!(next.starts_with("GET /next "), "{next}");
    server.write(&ok("next")).await;
    assert_eq!(client.read_response().await.1, "next");
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_refused() {
    let other = HANDSHAKE.replace("websocket\r\n", "spdy/3.1\r\n");
    let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for request in [plain, &other] {
        let backend = Backend::new().await;
        let stage = Stage::new(&[backend.address]).await;
        let (mut client, mut server) = stage.under_way(&backend, request).await;
        server.write(&format!("{SWITCH}hidden")).await;
        let (head, _) = client.read_response().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{request:?}: {head}");
        assert!(server.is_closed().await);
    }
}

#[tokio::test]
async fn other_versions_of_http_and_wishes_with_a_body_are_not_passed_on() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let wishes = [
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: HTTP/2.0\r\nConnection: Upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: TLS/1.2\r\nConnection: Upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket, h2c\r\nConnection: Upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade, keep-alive\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nx",
    ];
    let mut client = stage.connect().await;
    client.write(wishes[0]).await;
    let mut server = backend.accept().await;
    for next in wishes.into_iter().skip(1).map(Some).chain([None]) {
        let head = server.read_head().await.to_ascii_lowercase();
        assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
        if head.starts_with("post") {
            server.read(1).await;
        }
        server.write(&ok("")).await;
        client.read_response().await;
        if let Some(next) = next {
            client.write(next).await;
        }
    }
}

#[tokio::test]
async fn either_side_may_end_first_and_still_hear_the_other() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    each_side_may_end_first([switched(&stage, &backend).await, switched(&stage, &backend).await]).await;
    stage.settles("guideway_connections{namespace=\"shop\",pool=\"web\"}", 0.0).await;
}

#[tokio::test]
async fn much_in_both_directions_at_once_arrives_whole() {
    const SIZE: usize = 8 << 20;
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (client, server) = switched(&stage, &backend).await;
    let (up, down) = (noise(SIZE, 1), noise(SIZE, 2));
    let (from_server, from_client) = tokio::join!(client.exchange(up.clone()), server.exchange(down.clone()));
    assert!(from_client == up, "what the client sent");
    assert!(from_server == down, "what the backend sent");
}

#[tokio::test]
async fn a_connection_that_nobody_uses_ends() {
    let backend = Backend::new().await;
    let limits = Limits { tunnel_idle: Duration::from_millis(400), ..Limits::for_descriptors(20_000) };
    let stage = Stage::with(Setup { limits, ..Setup::default() }, &[backend.address]).await;
    let (mut client, mut server) = switched(&stage, &backend).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.write("x").await;
        assert_eq!(client.read(1).await, "x", "it is in use");
    }
    assert!(client.is_closed().await && server.is_closed().await);
}

#[tokio::test]
async fn a_connection_outlives_its_backend_in_the_pool_by_the_drain_timeout() {
    let backend = Backend::new().await;
    let setup = Setup { drain_timeout: Duration::from_millis(500), ..Setup::default() };
    let mut stage = Stage::with(setup, &[backend.address]).await;
    let (mut client, mut server) = switched(&stage, &backend).await;
    stage.publish(&[], State::Ready);
    tokio::time::sleep(Duration::from_millis(250)).await;
    client.write("x").await;
    assert_eq!(server.read(1).await, "x");
    assert!(client.is_closed().await && server.is_closed().await);
}

#[tokio::test]
async fn a_drain_waits_for_it_until_the_deadline() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut server) = switched(&stage, &backend).await;
    let drain = tokio::spawn(stage.proxy.drain(Duration::from_millis(500)));
    tokio::time::sleep(Duration::from_millis(250)).await;
    client.write("x").await;
    assert_eq!(server.read(1).await, "x");
    assert_eq!(drain.await.unwrap(), 1);
    assert!(client.is_reset().await && server.is_reset().await);
}
