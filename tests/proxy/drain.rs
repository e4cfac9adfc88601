//! How the proxy ends: nobody who is connected is turned away, and nobody waits for ever.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;

use super::stage::{Backend, Peer, Setup, Stage, ok};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const LONG: Duration = Duration::from_secs(10);

fn setup(drain_idle: Duration) -> Setup {
    let mut setup = Setup { workers: 2, ..Setup::default() };
    setup.limits.drain_idle = drain_idle;
    setup
}

#[tokio::test]
async fn kept_connections_are_answered_once_more() {
    let backend = Backend::new().await;
    let stage = Stage::with(setup(LONG), &[backend.address]).await;
    backend.answer_all("ok");
    let mut client = stage.connect().await;
    client.write(GET).await;
    client.read_response().await;
    let draining = tokio::spawn(stage.proxy.drain(LONG));
    loop {
        // Newcomers are refused: the drain has begun.
        match TcpStream::connect(("127.0.0.1", stage.port)).await {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
            Err(error) => panic!("{error}"),
            Ok(_) => tokio::task::yield_now().await,
        }
    }
    client.write(GET).await;
    let (head, body) = client.read_response().await;
    assert!(head.contains("\r\nconnection: close\r\n") && body == "ok", "{head}");
    assert_eq!(client.read_to_end().await, "");
    assert_eq!(draining.await.unwrap(), 0);
}

#[tokio::test]
async fn requests_under_way_are_finished() {
    let backend = Backend::new().await;
    let stage = Stage::with(setup(Duration::ZERO), &[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, GET).await;
    let draining = tokio::spawn(stage.proxy.drain(LONG));
    tokio::time::sleep(Duration::from_millis(500)).await;
    upstream.write(&ok("late")).await;
    let (head, body) = client.read_response().await;
    assert!(head.contains("\r\nconnection: close\r\n") && body == "late", "{head}");
    assert_eq!(draining.await.unwrap(), 0);
}

#[tokio::test]
async fn idle_connections_end_after_their_grace() {
    let backend = Backend::new().await;
    let stage = Stage::with(setup(Duration::from_millis(300)), &[backend.address]).await;
    backend.answer_all("ok");
    let mut client = stage.connect().await;
    client.write(GET).await;
    client.read_response().await;
    let draining = tokio::spawn(stage.proxy.drain(LONG));
    assert_eq!(client.read_to_end().await, "");
    assert_eq!(draining.await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_left_at_the_deadline_is_cut_and_counted() {
    let backend = Backend::new().await;
    let stage = Stage::with(setup(LONG), &[backend.address]).await;
    let (mut client, _upstream) = stage.under_way(&backend, GET).await;
    assert_eq!(stage.proxy.drain(Duration::from_millis(300)).await, 1);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn nobody_who_got_a_connection_is_reset() {
    let backend = Backend::new().await;
    let stage = Stage::with(setup(LONG), &[backend.address]).await;
    backend.answer_all("ok");
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let port = stage.port;
        clients.spawn(async move {
            let mut served = 0;
            loop {
                match TcpStream::connect(("127.0.0.1", port)).await {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => return served,
                    Err(error) => panic!("{error}"),
                    Ok(stream) => {
                        let mut client = Peer::of(stream);
                        client.write(GET).await;
                        assert_eq!(client.read_response().await.1, "ok");
                        served += 1;
                    }
                }
            }
        });
    }
    stage
        .settles_above("guideway_requests_total{namespace=\"shop\",pool=\"web\",code_class=\"2xx\"}", 500.0)
        .await;
    assert_eq!(stage.proxy.drain(LONG).await, 0);
    let served: Vec<usize> = clients.join_all().await;
    assert!(served.iter().sum::<usize>() > 500, "{served:?}");
}
