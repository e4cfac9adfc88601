//! HTTP/2 within TLS, on either side of the proxy: who agrees to it, and the scheme that each side is told.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use guideway::balance::snapshot::PortTls;
use guideway::balance::tls::{BackendTls, TlsTerms, TlsVersion};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::Authority;
use super::stage::{Backend, Setup, Stage};
use super::streams::{Http2, get, h2c, in_front_of_http2, post, read, reply};

const NAME: &str = "backend.test";
const RETRIES: &str = "guideway_retries_total{namespace=\"shop\",pool=\"web\",reason=\"tls_failed\"}";

/// A backend within TLS that speaks these protocols, and tells what it was asked; how many connections there were.
async fn backend(authority: &Authority, protocols: &[&[u8]]) -> (SocketAddr, Arc<AtomicUsize>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let (certificate, key) = authority.sign(&[NAME]);
    let mut config = builder.unwrap().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let Ok(stream) = acceptor.accept(listener.accept().await.unwrap().0).await else { continue };
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let (parts, body) = request.into_parts();
                        let (body, _) = read(body).await.unwrap();
                        reply(&mut respond, &format!("{} {body}", parts.uri));
                    });
                }
            });
        }
    });
    (address, connections)
}

/// In front of `backends`, which speak HTTP/2 within TLS.
async fn stage(authority: &Authority, backends: &[SocketAddr]) -> Stage {
    let server_name = ServerName::try_from(NAME).unwrap();
    let terms = BackendTls { server_name, ca: authority.bundle(), identity: None };
    Stage::with(Setup { backend_tls: Some(Arc::new(terms)), ..h2c() }, backends).await
}

#[tokio::test]
async fn a_backend_that_agrees_on_http_2_gets_requests_of_every_kind_on_one_connection() {
    let authority = Authority::new();
    let (address, connections) = backend(&authority, &[b"h2"]).await;
    let stage = stage(&authority, &[address]).await;
    let mut client = Http2::connect(&stage).await;
    assert_eq!(client.ask(get("/a?b")).await.body, "https://shop/a?b ");
    let body: String = ('a'..='z').cycle().take(500_000).collect();
    assert_eq!(client.send(post("/"), &body).await.body, format!("https://shop/ {body}"));
    let answer = stage.exchange("GET /old HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("\r\nhttps://a/old \r\n"), "{answer}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_backend_that_does_not_agree_on_http_2_gets_no_request() {
    let authority = Authority::new();
    for protocols in [&[][..], &[&b"http/1.1"[..]]] {
        let (silent, _) = backend(&authority, protocols).await;
        let stage = stage(&authority, &[silent]).await;
        let answer = Http2::connect(&stage).await.ask(get("/")).await;
        assert_eq!((answer.status, answer.field("x-guideway-reason")), (502, "connect_failed"));
        let (other, _) = backend(&authority, &[b"http/1.1", b"h2"]).await;
        let stage = self::stage(&authority, &[silent, other]).await;
        let mut client = Http2::connect(&stage).await;
        for key in 0..8 {
            assert_eq!(client.ask(get("/").header("x-key", key)).await.body, "https://shop/ ");
        }
        assert!(stage.series(RETRIES) > 0.0);
    }
}

#[tokio::test]
async fn a_backend_without_tls_is_asked_for_http() {
    let (stage, backend) = in_front_of_http2().await;
    backend.answer_all(|(request, mut respond)| async move {
        reply(&mut respond, &request.uri().to_string());
    });
    assert_eq!(Http2::connect(&stage).await.ask(get("/a")).await.body, "http://shop/a");
}

/// A client of a listener that speaks TLS, for one of these protocols.
async fn client(
    authority: &Authority,
    stage: &Stage,
    protocols: &[&[u8]],
) -> TlsStream<tokio::net::TcpStream> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder.unwrap().with_root_certificates(authority.roots()).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
    let name = ServerName::try_from("shop.test").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stage.connect().await.stream).await.unwrap()
}

async fn listening(authority: &Authority, backends: &[SocketAddr]) -> Stage {
    let certificates = vec![authority.certificate(&["shop.test"])];
    let terms = TlsTerms { certificates, min_version: TlsVersion::V12, client_ca: None };
    let tls = PortTls { by_host: BTreeMap::new(), default: Arc::new(terms) };
    Stage::with(Setup { tls: Some(tls), ..Setup::default() }, backends).await
}

#[tokio::test]
async fn an_absolute_target_names_the_scheme_of_the_listener() {
    let (authority, backend) = (Authority::new(), Backend::new().await);
    let stage = listening(&authority, &[backend.address]).await;
    let answering = tokio::spawn(async move {
        let mut peer = backend.accept().await;
        let head = peer.read_head().await;
        peer.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        head
    });
    for (target, status) in
        [("http://shop.test/p", 400), ("ftp://shop.test/p", 400), ("https://shop.test/p", 200)]
    {
        let mut client = client(&authority, &stage, &[]).await;
        let request = format!("GET {target} HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {answer}");
    }
    let head = answering.await.unwrap();
    assert!(head.starts_with("GET /p HTTP/1.1\r\nhost: shop.test\r\n"), "{head}");
    assert!(head.contains("\r\nx-forwarded-proto: https\r\nx-forwarded-host: shop.test\r\n"), "{head}");
}

#[tokio::test]
async fn a_stream_names_the_scheme_of_its_connection() {
    let (authority, backend) = (Authority::new(), Backend::new().await);
    let stage = listening(&authority, &[backend.address]).await;
    backend.answer_all("ok");
    let stream = client(&authority, &stage, &[b"h2"]).await;
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let mut client = Http2 { sender };
    assert_eq!(client.ask(get("/")).await.status, 400);
    assert_eq!(client.ask(http::Request::get("https://shop/")).await.body, "ok");
}
