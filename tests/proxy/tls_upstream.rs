//! TLS to backends: whom they must be, what they are shown, and what happens when they are not who they should be.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use guideway::balance::backend::State;
use guideway::balance::pool::ProxyVersion;
use guideway::balance::tls::{BackendTls, Certificate};
use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authority::{ALWAYS, Authority};
use super::stage::{Backend, Setup, Stage};

const NAME: &str = "backend.test";

/// A backend that speaks TLS.
struct Secured {
    address: SocketAddr,
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Secured {
    /// With a certificate of `authority` for `NAME`; where `members` are named, they alone may connect.
    async fn new(authority: &Authority, members: Option<&Authority>) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = match members {
            None => builder.unwrap().with_no_client_auth(),
            Some(members) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(members.roots(), provider);
                builder.unwrap().with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let (certificate, key) = authority.sign(&[NAME]);
        let config = builder.with_single_cert(vec![certificate], key).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener, acceptor: Arc::new(config).into() }
    }

    async fn accept(&self) -> std::io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(self.listener.accept().await.unwrap().0).await
    }

    /// Answers everybody who shakes hands, with how many connections there were.
    fn answer_all(self) -> SocketAddr {
        let address = self.address;
        tokio::spawn(async move {
            for number in 1.. {
                let Ok(mut stream) = self.accept().await else { continue };
                tokio::spawn(async move {
                    while read_head(&mut stream).await.is_some() {
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        address
    }
}

async fn read_head(stream: &mut TlsStream<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn trusting(authority: &Authority) -> BackendTls {
    BackendTls { server_name: ServerName::try_from(NAME).unwrap(), ca: authority.bundle(), identity: None }
}

async fn stage(tls: BackendTls, backends: &[SocketAddr]) -> Stage {
    Stage::with(Setup { backend_tls: Some(Arc::new(tls)), ..Setup::default() }, backends).await
}

const GET: &str = "GET / HTTP/1.1\r\nhost: shop.test\r\nx-key: a\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_backend_is_asked_over_tls_and_its_connection_is_kept() {
    let authority = Authority::new();
    let stage = stage(trusting(&authority), &[Secured::new(&authority, None).await.answer_all()]).await;
    for _ in 0..3 {
        let answer = stage.exchange(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n1"), "{answer}");
    }
}

#[tokio::test]
async fn a_backend_that_is_not_who_it_should_be_gets_no_request() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let backend = Secured::new(&stranger, None).await;
    let stage = stage(trusting(&authority), &[backend.address]).await;
    let (answer, heard) = tokio::join!(stage.exchange(GET), backend.accept());
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.contains("\r\nx-guideway-reason: connect_failed\r\n"), "{answer}");
    assert!(heard.is_err());
    let other =
        BackendTls { server_name: ServerName::try_from("other.test").unwrap(), ..trusting(&authority) };
    let backend = Secured::new(&authority, None).await;
    let stage = self::stage(other, &[backend.address]).await;
    let (answer, heard) = tokio::join!(stage.exchange(GET), backend.accept());
    assert!(answer.starts_with("HTTP/1.1 502 ") && heard.is_err(), "{answer}");
    let failed = "guideway_retries_total{namespace=\"shop\",pool=\"web\",reason=\"tls_failed\"}";
    stage.settles_above(failed, 0.0).await;
}

#[tokio::test]
async fn a_header_of_the_proxy_protocol_comes_before_the_handshake() {
    let authority = Authority::new();
    let backend = Secured::new(&authority, None).await;
    let setup = Setup {
        backend_tls: Some(Arc::new(trusting(&authority))),
        introduction: Some(ProxyVersion::V1),
        ..Setup::default()
    };
    let stage = Stage::with(setup, &[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(GET).await;
    let (mut stream, _) = backend.listener.accept().await.unwrap();
    let from = client.stream.local_addr().unwrap().port();
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {from} {}\r\n", stage.port);
    let mut header = vec![0; expected.len()];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(String::from_utf8(header).unwrap(), expected);
    let mut stream = backend.acceptor.accept(stream).await.unwrap();
    assert!(read_head(&mut stream).await.unwrap().starts_with("GET / HTTP/1.1\r\n"));
}

#[tokio::test]
async fn where_one_backend_speaks_no_tls_another_answers() {
    let authority = Authority::new();
    let plain = Backend::new().await;
    let address = plain.address;
    plain.answer_all("plain");
    let secured = Secured::new(&authority, None).await.answer_all();
    let stage = stage(trusting(&authority), &[address, secured]).await;
    for key in 0..8 {
        let answer = stage.exchange(&GET.replace("x-key: a", &format!("x-key: {key}"))).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n1"), "{answer}");
    }
}

#[tokio::test]
async fn a_backend_that_asks_for_a_certificate_is_shown_it() {
    let (authority, members) = (Authority::new(), Authority::new());
    let backend = Secured::new(&authority, Some(&members)).await.answer_all();
    let (certificate, key) = members.sign(&["guideway"]);
    let identity =
        Certificate { names: Vec::new(), chain: vec![certificate], validity: ALWAYS, key, ocsp: None };
    let identified = BackendTls { identity: Some(Arc::new(identity)), ..trusting(&authority) };
    assert!(stage(identified, &[backend]).await.exchange(GET).await.starts_with("HTTP/1.1 200 "));
    assert!(stage(trusting(&authority), &[backend]).await.exchange(GET).await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn connections_secured_on_earlier_terms_are_not_used_again() {
    let authority = Authority::new();
    let backend = Secured::new(&authority, None).await.answer_all();
    let mut stage = stage(trusting(&authority), &[backend]).await;
    assert!(stage.exchange(GET).await.ends_with("\r\n\r\n1"));
    stage.secure_backends(trusting(&authority));
    stage.publish(&[backend], State::Ready);
    assert!(stage.exchange(GET).await.ends_with("\r\n\r\n2"));
}

#[tokio::test]
async fn large_bodies_pass_whole_in_both_directions() {
    let authority = Authority::new();
    let backend = Secured::new(&authority, None).await;
    let stage = stage(trusting(&authority), &[backend.address]).await;
    let body: Vec<u8> = (0..2_000_000_u32).map(|at| (at % 251) as u8).collect();
    let mut client = stage.connect().await;
    client
        .write(&format!("POST / HTTP/1.1\r\nhost: shop.test\r\ncontent-length: {}\r\n\r\n", body.len()))
        .await;
    let echo = async {
        let mut stream = backend.accept().await.unwrap();
        read_head(&mut stream).await.unwrap();
        let mut received = vec![0; body.len()];
        stream.read_exact(&mut received).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", received.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&received).await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let (_stream, ()) = tokio::join!(echo, async {
        client.write_bytes(&body).await;
        client.read_head().await;
        assert_eq!(client.read_bytes(body.len()).await, body);
    });
}
