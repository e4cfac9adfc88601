//! TLS: whose certificate a client sees, what is asked of it, and that requests go the way of all others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use guideway::balance::backend::State;
use guideway::balance::pool::{Protocol, ProxyProtocol};
use guideway::balance::routes::{HostPattern, Match};
use guideway::balance::snapshot::PortTls;
use guideway::balance::tls::{Certificate, TlsTerms, TlsVersion};
use guideway::proxy::Limits;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::authority::Authority;
use super::stage::{Backend, Setup, Stage, noise};

/// How a client shakes hands.
#[derive(Debug)]
struct Client {
    roots: Arc<RootCertStore>,
    identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

impl Client {
    fn trusting(authority: &Authority) -> Self {
        Self { roots: authority.roots(), identity: None, versions: rustls::ALL_VERSIONS.to_vec() }
    }

    fn config(self) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder =
            builder.with_protocol_versions(&self.versions).unwrap().with_root_certificates(self.roots);
        Arc::new(match self.identity {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => builder.with_no_client_auth(),
        })
    }
}

/// Takes whatever certificate comes, to look at it.
#[derive(Debug)]
struct AnyServer(rustls::crypto::WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn trusting_anybody() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyServer(provider.signature_verification_algorithms));
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn terms(certificates: Vec<Arc<Certificate>>) -> TlsTerms {
    TlsTerms { certificates, min_version: TlsVersion::V12, client_ca: None }
}

fn port(terms: TlsTerms) -> PortTls {
    PortTls { by_host: BTreeMap::new(), default: Arc::new(terms) }
}

async fn stage(tls: PortTls, backends: &[SocketAddr]) -> Stage {
    Stage::with(Setup { tls: Some(tls), ..Setup::default() }, backends).await
}

async fn answering(name: &'static str) -> SocketAddr {
    let backend = Backend::new().await;
    let address = backend.address;
    backend.answer_all(name);
    address
}

async fn shake(
    config: &Arc<ClientConfig>,
    stage: &Stage,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = stage.connect().await.stream;
    TlsConnector::from(config.clone()).connect(ServerName::try_from(name.to_string()).unwrap(), stream).await
}

/// Sends `request`, and reads until the end of the connection, which must not look cut off.
async fn exchange(mut stream: TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_request_over_tls_goes_the_way_of_all_requests() {
    let authority = Authority::new();
    let backend = Backend::new().await;
    let stage = stage(port(terms(vec![authority.certificate(&["shop.test"])])), &[backend.address]).await;
    let client = shake(&Client::trusting(&authority).config(), &stage, "shop.test").await.unwrap();
    let answer = tokio::spawn(async { exchange(client, &get("shop.test")).await });
    let mut peer = backend.accept().await;
    let head = peer.read_head().await;
    assert!(head.contains("\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: https\r\n"), "{head}");
    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    assert!(answer.await.unwrap().ends_with("\r\n\r\nhi"));
}

#[tokio::test]
async fn a_port_that_speaks_no_http_ends_tls_and_carries_what_is_within() {
    const SIZE: usize = 4 << 20;
    let authority = Authority::new();
    let tls = Some(port(terms(vec![authority.certificate(&["shop.test"])])));
    let backend = Backend::new().await;
    let stage =
        Stage::with(Setup { protocol: Protocol::Tcp, tls, ..Setup::default() }, &[backend.address]).await;
    let mut config = Client::trusting(&authority).config();
    Arc::get_mut(&mut config).unwrap().alpn_protocols = vec![b"h2".to_vec(), b"mqtt".to_vec()];
    let client = shake(&config, &stage, "shop.test").await.unwrap();
    assert_eq!(client.get_ref().1.alpn_protocol(), None, "that is between the client and the backend");
    let server = backend.accept().await;
    let (up, down) = (noise(SIZE, 1), noise(SIZE, 2));
    let (mut reading, mut writing) = tokio::io::split(client);
    let mut from_server = Vec::new();
    let send = async {
        writing.write_all(&up).await.unwrap();
        writing.shutdown().await.unwrap();
    };
    let (_, received, from_client) =
        tokio::join!(send, reading.read_to_end(&mut from_server), server.exchange(down.clone()));
    received.expect("it ends in order");
    assert!(from_client == up, "what the client sent");
    assert!(from_server == down, "what the backend sent");
}

#[tokio::test]
async fn the_name_a_client_asks_for_decides_the_certificate() {
    let authority = Authority::new();
    let (first, wild) = (authority.certificate(&["first.test"]), authority.certificate(&["*.wild.test"]));
    let other = authority.certificate(&["other.test"]);
    let (first_der, wild_der, other_der) =
        (first.chain[0].clone(), wild.chain[0].clone(), other.chain[0].clone());
    let by_host = BTreeMap::from([(HostPattern::new("other.test"), Arc::new(terms(vec![other])))]);
    let tls = PortTls { by_host, default: Arc::new(terms(vec![first, wild])) };
    let stage = stage(tls, &[answering("web").await]).await;
    let config = trusting_anybody();
    for (name, expected) in [
        ("first.test", &first_der),
        ("a.wild.test", &wild_der),
        ("b.a.wild.test", &first_der),
        ("other.test", &other_der),
        ("unknown.test", &first_der),
        ("127.0.0.1", &first_der),
    ] {
        let client = shake(&config, &stage, name).await.unwrap();
        assert_eq!(client.get_ref().1.peer_certificates().unwrap()[0], *expected, "{name}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_newcomers_and_cuts_nobody_off() {
    let authority = Authority::new();
    let backend = answering("web").await;
    let mut stage = stage(port(terms(vec![authority.certificate(&["shop.test"])])), &[backend]).await;
    let config = Client::trusting(&authority).config();
    let before = shake(&config, &stage, "shop.test").await.unwrap();
    let renewed = authority.certificate(&["shop.test"]);
    stage.tls = Some(port(terms(vec![renewed.clone()])));
    stage.publish(&[backend], State::Ready);
    let after = shake(&config, &stage, "shop.test").await.unwrap();
    assert_eq!(after.get_ref().1.peer_certificates().unwrap()[0], renewed.chain[0]);
    for client in [before, after] {
        assert!(exchange(client, &get("shop.test")).await.ends_with("\r\n\r\nweb"));
    }
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_the_ca_come_in() {
    let (authority, members, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let client_ca = Some(members.bundle());
    let asking = TlsTerms { client_ca, ..terms(vec![authority.certificate(&["shop.test"])]) };
    let stage = stage(port(asking), &[answering("web").await]).await;
    let attempt = async |identity| {
        let config = Client { identity, ..Client::trusting(&authority) }.config();
        let mut client = shake(&config, &stage, "shop.test").await?;
        client.write_all(get("shop.test").as_bytes()).await?;
        let mut answer = String::new();
        let read = client.read_to_string(&mut answer).await;
        // The library says why as soon as it knows; when the connection has ended, it is counted.
        let _ = client.get_mut().0.read_to_end(&mut Vec::new()).await;
        read.map(|_| answer)
    };
    assert!(attempt(Some(members.sign(&["ada"]))).await.unwrap().ends_with("\r\n\r\nweb"));
    attempt(None).await.unwrap_err();
    attempt(Some(strangers.sign(&["eve"]))).await.unwrap_err();
    assert_eq!(stage.series("guideway_connections_refused_total{limit=\"handshake\"}"), 2.0);
}

#[tokio::test]
async fn a_connection_opened_for_one_name_does_not_reach_what_asks_certificates_under_another() {
    let (authority, members) = (Authority::new(), Authority::new());
    let certificate = authority.certificate(&["open.test", "closed.test"]);
    let client_ca = Some(members.bundle());
    let asking = Arc::new(TlsTerms { client_ca, ..terms(vec![certificate.clone()]) });
    let open = Arc::new(terms(vec![certificate]));
    let by_host = BTreeMap::from([
        (HostPattern::new("open.test"), open.clone()),
        (HostPattern::new("closed.test"), asking),
    ]);
    let mut stage = stage(PortTls { by_host, default: open }, &[]).await;
    let named = |host| Match { host: HostPattern::new(host), ..Match::all() };
    stage.publish_pools(&[
        ("open", answering("open").await, named("open.test")),
        ("closed", answering("closed").await, named("closed.test")),
    ]);
    let config = Client::trusting(&authority).config();
    let client = async || shake(&config, &stage, "open.test").await.unwrap();
    assert!(exchange(client().await, &get("open.test")).await.ends_with("\r\n\r\nopen"));
    let answer = exchange(client().await, &get("closed.test")).await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    assert!(answer.contains("\r\nx-guideway-reason: misdirected\r\n"), "{answer}");
    let identified =
        Client { identity: Some(members.sign(&["ada"])), ..Client::trusting(&authority) }.config();
    let client = shake(&identified, &stage, "closed.test").await.unwrap();
    assert!(exchange(client, &get("closed.test")).await.ends_with("\r\n\r\nclosed"));
}

#[tokio::test]
async fn old_versions_are_refused_as_the_terms_say() {
    let authority = Authority::new();
    let modern =
        TlsTerms { min_version: TlsVersion::V13, ..terms(vec![authority.certificate(&["shop.test"])]) };
    let backend = answering("web").await;
    let mut stage = stage(port(modern), &[backend]).await;
    let config = Client { versions: vec![&rustls::version::TLS12], ..Client::trusting(&authority) }.config();
    shake(&config, &stage, "shop.test").await.unwrap_err();
    stage.tls = Some(port(terms(vec![authority.certificate(&["shop.test"])])));
    stage.publish(&[backend], State::Ready);
    let client = shake(&config, &stage, "shop.test").await.unwrap();
    assert!(exchange(client, &get("shop.test")).await.ends_with("\r\n\r\nweb"));
}

#[tokio::test]
async fn a_session_is_resumed_on_whatever_worker() {
    let authority = Authority::new();
    let tls = Some(port(terms(vec![authority.certificate(&["shop.test"])])));
    let stage = Stage::with(Setup { tls, workers: 3, ..Setup::default() }, &[answering("web").await]).await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = Client { versions: vec![version], ..Client::trusting(&authority) }.config();
        let first = shake(&config, &stage, "shop.test").await.unwrap();
        assert!(exchange(first, &get("shop.test")).await.ends_with("web"));
        // Every one brings a ticket for the next.
        for _ in 0..12 {
            let next = shake(&config, &stage, "shop.test").await.unwrap();
            assert_eq!(next.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
            assert!(exchange(next, &get("shop.test")).await.ends_with("web"));
        }
    }
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_or_is_none_is_ended_and_counted() {
    let authority = Authority::new();
    let setup = Setup {
        tls: Some(port(terms(vec![authority.certificate(&["shop.test"])]))),
        limits: Limits { handshake: Duration::from_millis(200), ..Limits::for_descriptors(20_000) },
        ..Setup::default()
    };
    let stage = Stage::with(setup, &[]).await;
    let refused = "guideway_connections_refused_total{limit=\"handshake\"}";
    // Somebody who only asks whether the port is open.
    drop(stage.connect().await);
    let mut silent = stage.connect().await;
    assert!(silent.is_closed().await);
    assert_eq!(stage.series(refused), 1.0);
    // The start of a record, of which nothing more comes.
    let mut slow = stage.connect().await;
    slow.write_bytes(&[0x16, 3, 1, 2, 0, 1]).await;
    assert!(slow.is_closed().await);
    assert_eq!(stage.series(refused), 2.0);
    let mut plain = stage.connect().await;
    plain.write(&get("shop.test")).await;
    assert!(plain.is_closed().await);
    assert_eq!(stage.series(refused), 3.0);
}

#[tokio::test]
async fn a_header_of_the_proxy_protocol_comes_before_the_handshake() {
    let authority = Authority::new();
    let backend = Backend::new().await;
    let setup = Setup {
        tls: Some(port(terms(vec![authority.certificate(&["shop.test"])]))),
        proxy_protocol: ProxyProtocol::Require,
        ..Setup::default()
    };
    let stage = Stage::with(setup, &[backend.address]).await;
    let mut stream = stage.connect().await.stream;
    stream.write_all(b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2\r\n").await.unwrap();
    let name = ServerName::try_from("shop.test").unwrap();
    let mut client =
        TlsConnector::from(Client::trusting(&authority).config()).connect(name, stream).await.unwrap();
    client.write_all(get("shop.test").as_bytes()).await.unwrap();
    let head = backend.accept().await.read_head().await;
    assert!(head.contains("\r\nx-forwarded-for: 192.0.2.9\r\nx-forwarded-proto: https\r\n"), "{head}");
}

#[tokio::test]
async fn large_bodies_pass_whole_at_the_pace_of_a_slow_reader() {
    let authority = Authority::new();
    let backend = Backend::new().await;
    let stage = stage(port(terms(vec![authority.certificate(&["shop.test"])])), &[backend.address]).await;
    let client = shake(&Client::trusting(&authority).config(), &stage, "shop.test").await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(client);
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let head = format!("POST / HTTP/1.1\r\nhost: shop.test\r\ncontent-length: {}\r\n\r\n", body.len());
    let sent = body.clone();
    let send = tokio::spawn(async move {
        writing.write_all(head.as_bytes()).await.unwrap();
        writing.write_all(&sent).await.unwrap();
        writing.flush().await.unwrap();
        writing
    });
    let mut peer = backend.accept().await;
    peer.read_head().await;
    let echoed = peer.read_bytes(body.len()).await;
    assert_eq!(echoed, body);
    let _writing = send.await.unwrap();
    let answer = tokio::spawn(async move {
        peer.write(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", echoed.len())).await;
        peer.write_bytes(&echoed).await;
        peer
    });
    // Nothing is read until everything that may be on its way is.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut received = Vec::new();
    let mut piece = [0; 70_000];
    while !received.ends_with(&body[body.len() - 1000..]) || received.len() < body.len() {
        let read = reading.read(&mut piece).await.unwrap();
        assert_ne!(read, 0, "the connection ended after {}", received.len());
        received.extend_from_slice(&piece[..read]);
    }
    assert!(received.ends_with(&body));
    answer.await.unwrap();
}
