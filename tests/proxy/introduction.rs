//! Connections to backends that begin with a header of the PROXY protocol: each is one client's alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use guideway::balance::backend::{HttpVersion, State};
use guideway::balance::pool::{Protocol, ProxyProtocol, ProxyVersion};
use guideway::proxy::Limits;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::stage::{Backend, PATIENCE, Peer, Setup, Stage, ok};
use super::streams::{Accepted, Http2, answer, get, reply, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn setup(version: ProxyVersion) -> Setup {
    Setup { introduction: Some(version), ..Setup::default() }
}

/// What a backend hears of a client that is connected to the stage.
fn header(version: ProxyVersion, stage: &Stage, client: &Peer) -> Vec<u8> {
    let (from, to) = (client.stream.local_addr().unwrap().port(), stage.port);
    match version {
        ProxyVersion::V1 => format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {to}\r\n").into_bytes(),
        ProxyVersion::V2 => {
            let begin = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";
            let addresses = [127, 0, 0, 1, 127, 0, 0, 1];
            [&begin[..], &addresses, &from.to_be_bytes(), &to.to_be_bytes()].concat()
        }
    }
}

/// Sends a request, of which the backend hears on this connection.
async fn ask(client: &mut Peer, server: &mut Peer) {
    client.write(GET).await;
    answer_next(client, server).await;
}

async fn answer_next(client: &mut Peer, server: &mut Peer) {
    assert!(server.read_head().await.starts_with("GET / HTTP/1.1\r\n"), "nothing comes before it");
    server.write(&ok("")).await;
    client.read_response().await;
}

#[tokio::test]
async fn each_client_has_connections_of_its_own_that_say_so_and_are_used_again() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let backend = Backend::new().await;
        let stage = Stage::with(setup(version), &[backend.address]).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut client = stage.connect().await;
            client.write(GET).await;
            let mut server = backend.accept().await;
            let expected = header(version, &stage, &client);
            assert_eq!(server.read_bytes(expected.len()).await, expected);
            answer_next(&mut client, &mut server).await;
            held.push((client, server));
        }
        for (client, server) in &mut held {
            ask(client, server).await;
            ask(client, server).await;
        }
        // What a client leaves behind is for nobody.
        drop(held.remove(0).0);
        let mut client = stage.connect().await;
        client.write(GET).await;
        let expected = header(version, &stage, &client);
        assert_eq!(backend.accept().await.read_bytes(expected.len()).await, expected);
    }
}

#[tokio::test]
async fn a_connection_that_began_without_a_header_is_not_used_once_there_is_to_be_one() {
    let backend = Backend::new().await;
    let mut stage = Stage::new(&[backend.address]).await;
    let (mut resting, mut busy) = (stage.connect().await, stage.connect().await);
    resting.write(GET).await;
    let mut rests = backend.accept().await;
    busy.write(GET).await;
    let mut works = backend.accept().await;
    answer_next(&mut resting, &mut rests).await;
    stage.introduce(Some(ProxyVersion::V1));
    stage.publish(&[backend.address], State::Ready);
    resting.write(GET).await;
    let mut server = backend.accept().await;
    let expected = header(ProxyVersion::V1, &stage, &resting);
    assert_eq!(server.read_bytes(expected.len()).await, expected);
    answer_next(&mut resting, &mut server).await;
    // Nor is one that was under way meanwhile.
    answer_next(&mut busy, &mut works).await;
    busy.write(GET).await;
    let mut server = backend.accept().await;
    let expected = header(ProxyVersion::V1, &stage, &busy);
    assert_eq!(server.read_bytes(expected.len()).await, expected);
    // And the other way round: what was one client's never becomes another's.
    answer_next(&mut busy, &mut server).await;
    stage.introduce(None);
    stage.publish(&[backend.address], State::Ready);
    busy.write(GET).await;
    answer_next(&mut busy, &mut backend.accept().await).await;
}

#[tokio::test]
async fn a_client_that_a_balancer_told_of_is_introduced_as_it_was_told() {
    let backend = Backend::new().await;
    let proxy_protocol = ProxyProtocol::Require;
    let line = "PROXY TCP4 192.0.2.7 198.51.100.1 56324 80\r\n";
    let setup = Setup { protocol: Protocol::Tcp, proxy_protocol, ..setup(ProxyVersion::V1) };
    let stage = Stage::with(setup, &[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(&format!("{line}hello")).await;
    let expected = format!("PROXY TCP4 192.0.2.7 127.0.0.1 56324 {}\r\nhello", stage.port);
    assert_eq!(backend.accept().await.read(expected.len()).await, expected);
}

#[tokio::test]
async fn a_connection_of_tcp_begins_with_the_header_also_where_the_backend_speaks_first() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let backend = Backend::new().await;
        let setup = Setup { protocol: Protocol::Tcp, ..setup(version) };
        let stage = Stage::with(setup, &[backend.address]).await;
        let mut client = stage.connect().await;
        let mut server = backend.accept().await;
        let expected = header(version, &stage, &client);
        assert_eq!(server.read_bytes(expected.len()).await, expected);
        server.write("220 welcome\r\n").await;
        assert_eq!(client.read(13).await, "220 welcome\r\n");
        client.write("hello").await;
        assert_eq!(server.read(5).await, "hello");
    }
}

/// The next connection to a backend that speaks HTTP/2: whose it is, and the connection behind the header.
async fn introduced(listener: &TcpListener) -> (SocketAddr, Accepted) {
    let (mut stream, _) = soon(listener.accept()).await.unwrap();
    let mut header = [0; 28];
    soon(stream.read_exact(&mut header)).await.unwrap();
    assert_eq!(header[..20], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01");
    let port = u16::from_be_bytes([header[24], header[25]]);
    (([127, 0, 0, 1], port).into(), soon(h2::server::handshake(stream)).await.unwrap())
}

#[tokio::test]
async fn requests_of_one_client_share_a_connection_of_http2_and_those_of_two_do_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let setup = Setup { http: HttpVersion::Http2, ..setup(ProxyVersion::V2) };
    let stage = Stage::with(setup, &[address]).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let mut client = Http2::connect(&stage).await;
        let (first, _) = client.begin(get("/"), true).await;
        let (from, mut connection) = introduced(&listener).await;
        let (second, _) = client.begin(get("/"), true).await;
        for _ in 0..2 {
            let (_, mut respond) = soon(connection.accept()).await.unwrap().unwrap();
            reply(&mut respond, "ok");
        }
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        assert_eq!(answer(first).await.unwrap().body, "ok");
        assert_eq!(answer(second).await.unwrap().body, "ok");
        assert!(!seen.contains(&from), "{from} is another client");
        seen.push(from);
    }
}

#[tokio::test]
async fn what_clients_leave_behind_is_bounded() {
    for http in [HttpVersion::Http1, HttpVersion::Http2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Long enough that nothing is closed for its age.
        let limits = Limits { upstream_idle: PATIENCE, ..Limits::for_descriptors(20_000) };
        let setup = Setup { http, limits, ..setup(ProxyVersion::V2) };
        let stage = Stage::with(setup, &[address]).await;
        let open = Arc::new(AtomicUsize::new(0));
        tokio::spawn(serve_all(listener, http, open.clone()));
        for _ in 0..80 {
            let answer = stage.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        let settles = async {
            while open.load(Ordering::SeqCst) > 64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(settles).await;
        assert!(open.load(Ordering::SeqCst) >= 60, "they are kept: {http:?}");
    }
}

/// A backend that counts its open connections.
async fn serve_all(listener: TcpListener, http: HttpVersion, open: Arc<AtomicUsize>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let open = open.clone();
        tokio::spawn(async move {
            open.fetch_add(1, Ordering::SeqCst);
            stream.read_exact(&mut [0; 28]).await.unwrap();
            if http == HttpVersion::Http2 {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    reply(&mut respond, "ok");
                }
            } else {
                let mut peer = Peer::of(stream);
                while peer.try_read_head().await.is_some() {
                    peer.write(&ok("ok")).await;
                }
            }
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}
