//! Ports that come, go, are taken by others, and come back.

use std::net::Ipv4Addr;

use guideway::balance::backend::State;
use guideway::handoff::BindState;
use socket2::{Domain, Socket, Type};

use super::stage::{Backend, Reserved, Setup, Stage};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

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
        let BindState::Failed { reason } = &stage.bindings.current()[&port] else {
            panic!("the port is shared")
        };
        assert!(reason.contains("in use by another program"), "{reason}");
        assert!(!stage.readiness.is_ready(), "nobody could be served");
        drop(other);
        stage.wait_until(|ports| ports.get(&port) == Some(&BindState::Bound)).await;
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
    assert_eq!(stage.bindings.current(), [(port, BindState::Failed { reason: reason.into() })].into());
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
        stage.wait_until(|ports| ports.get(&port) == Some(&BindState::Bound)).await;
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
