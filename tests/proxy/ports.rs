//! Ports that come, go, are taken by others, and come back.

use std::net::Ipv4Addr;
use std::time::Duration;

use guideway::balance::backend::State;
use guideway::balance::pool::PortId;
use guideway::balance::routes::{HostPattern, Match, PathPrefix};
use guideway::handoff::BindState;
use socket2::{Domain, Socket, Type};

use super::stage::{Backend, Reserved, Setup, Stage, ok};
use super::streams::{Http2, RawHttp2, get, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const KEPT: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Another program that listens on `port`, willing to share it or not.
fn occupy(port: u16, shares: bool) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(shares).unwrap();
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket.listen(1).unwrap();
    socket
}

#[tokio::test]
async fn a_port_of_another_program_is_left_alone_until_it_is_free() {
    for shares in [false, true] {
        let setup = Setup::default();
        let port = setup.port.port();
        let other = occupy(port, shares);
        let backend = Backend::new().await;
        let mut stage = Stage::with(setup, &[backend.address]).await;
        backend.answer_all("ok");
        let BindState::Failed { reason } = &stage.bindings.current()[&PortId::Tcp(port)] else {
            panic!("the port is shared")
        };
        assert!(reason.contains("in use by another program"), "{reason}");
        assert!(!stage.readiness.is_ready(), "nobody could be served");
        drop(other);
        stage.wait_until(|ports| ports.get(&PortId::Tcp(port)) == Some(&BindState::Bound)).await;
        stage.becomes_ready().await;
        assert!(stage.exchange(GET).await.ends_with("ok"));
    }
}

#[tokio::test]
async fn the_port_of_the_process_itself_is_not_taken_for_another_program_s() {
    let setup = Setup::default();
    let port = setup.port.port();
    let stage = Stage::with(Setup { own_port: Some(port), ..setup }, &[]).await;
    let reason = format!(
        "port {port} is Guideway's own metrics port; choose another port or another --metrics-address"
    );
    assert_eq!(
        stage.bindings.current(),
        [(PortId::Tcp(port), BindState::Failed { reason: reason.into() })].into()
    );
}

#[tokio::test]
async fn a_port_that_no_pool_asks_for_is_closed_and_opened_again() {
    let backend = Backend::new().await;
    let mut stage = Stage::with(Setup { workers: 2, ..Setup::default() }, &[backend.address]).await;
    let address = backend.address;
    backend.answer_all("ok");
    for _ in 0..3 {
        assert!(stage.exchange(GET).await.ends_with("ok"));
        stage.publish_nothing();
        stage.wait_until(|ports| ports.is_empty()).await;
        let refused = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, stage.port)).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        stage.publish(&[address], State::Ready);
        let port = stage.port;
        stage.wait_until(|ports| ports.get(&PortId::Tcp(port)) == Some(&BindState::Bound)).await;
    }
}

#[tokio::test]
async fn a_pool_that_moves_to_another_port_is_always_found_at_one_of_them() {
    let backend = Backend::new().await;
    let mut stage = Stage::with(Setup { workers: 2, ..Setup::default() }, &[backend.address]).await;
    let address = backend.address;
    backend.answer_all("ok");
    for _ in 0..3 {
        let old = (Ipv4Addr::LOCALHOST, stage.port);
        stage.move_to(Reserved::new());
        stage.publish(&[address], State::Ready);
        while tokio::net::TcpStream::connect(old).await.is_ok() {}
        assert!(stage.exchange(GET).await.ends_with("ok"), "the new port is open when the old one is not");
    }
}

#[tokio::test]
async fn readiness_waits_until_every_port_was_tried() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    stage.becomes_ready().await;
}

#[tokio::test]
async fn who_asks_on_a_port_that_no_pool_has_any_more_is_told_once_and_sent_away() {
    let backend = Backend::new().await;
    let mut stage = Stage::new(&[backend.address]).await;
    let address = backend.address;
    backend.answer_all("ok");
    let (mut client, mut streams) = (stage.connect().await, Http2::connect(&stage).await);
    client.write(KEPT).await;
    assert_eq!(client.read_response().await.1, "ok");
    assert_eq!(streams.ask(get("/")).await.body, "ok");
    stage.move_to(Reserved::new());
    stage.publish(&[address], State::Ready);
    client.write(KEPT).await;
    let (head, _) = client.read_response().await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.contains("\r\nx-guideway-reason: no_pool\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    assert_eq!(client.read_to_end().await, "");
    let answer = streams.ask(get("/")).await;
    assert_eq!((answer.status, answer.field("x-guideway-reason")), (503, "no_pool"));
    let goodbye = async {
        while streams.sender.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(goodbye).await;
    assert!(stage.exchange(GET).await.ends_with("ok"));
}

#[tokio::test]
async fn who_is_idle_on_a_port_that_no_pool_has_any_more_is_sent_away() {
    let mut setup = Setup::default();
    setup.limits.drain_idle = Duration::from_millis(300);
    let backend = Backend::new().await;
    let mut stage = Stage::with(setup, &[backend.address]).await;
    let (mut idle, mut streams) = (stage.connect().await, RawHttp2::connect(&stage).await);
    streams.next(4).await.unwrap();
    let (mut client, mut upstream) = stage.under_way(&backend, KEPT).await;
    stage.move_to(Reserved::new());
    stage.publish(&[backend.address], State::Ready);
    assert_eq!(idle.read_to_end().await, "");
    assert_eq!(streams.goodbye().await, Some(0));
    // What was begun is finished.
    upstream.write(&ok("late")).await;
    let (head, body) = client.read_response().await;
    assert!(head.contains("\r\nconnection: close\r\n") && body == "late", "{head}");
    assert_eq!(client.read_to_end().await, "");
}

#[tokio::test]
async fn connections_stay_on_a_port_that_some_pool_has_or_has_again() {
    let mut setup = Setup::default();
    setup.limits.drain_idle = Duration::from_secs(1);
    let (backend, shop) = (Backend::new().await, Backend::new().await);
    let mut stage = Stage::with(setup, &[backend.address]).await;
    let addresses = [backend.address, shop.address];
    backend.answer_all("ok");
    shop.answer_all("shop");
    let mut client = stage.connect().await;
    let route = |path: &str| Match { host: HostPattern::Any, path: PathPrefix::new(path) };
    stage.publish_pools(&[("cart", addresses[0], route("/cart")), ("shop", addresses[1], route("/shop"))]);
    for _ in 0..2 {
        stage.publish_pools(&[("shop", addresses[1], route("/shop"))]);
        client.write(&KEPT.replace("/ ", "/cart ")).await;
        let (head, _) = client.read_response().await;
        assert!(head.starts_with("HTTP/1.1 404 ") && !head.contains("connection: close"), "{head}");
        client.write(&KEPT.replace("/ ", "/shop ")).await;
        assert_eq!(client.read_response().await.1, "shop");
        // Gone for less than an idle connection is left, and there again.
        let port = stage.port;
        stage.publish_nothing();
        stage.wait_until(|ports| ports.is_empty()).await;
        stage.publish(&[addresses[0]], State::Ready);
        stage.wait_until(|ports| ports.get(&PortId::Tcp(port)) == Some(&BindState::Bound)).await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        client.write(KEPT).await;
        let (head, body) = client.read_response().await;
        assert!(!head.contains("connection: close") && body == "ok", "{head}");
    }
}
