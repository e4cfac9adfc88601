//! Owns the part of a demo backend that speaks HTTP/2, as servers of gRPC do: it says its name and gives back what it
//! gets, with a status behind it. Within TLS it also speaks HTTP/1.1 with those who want that.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Says who answered.
pub(crate) const BACKEND: HeaderName = HeaderName::from_static("x-backend");
/// Says for which scheme it was asked.
pub(crate) const SCHEME: HeaderName = HeaderName::from_static("x-scheme");
/// Comes behind a request, and goes back behind its answer.
pub(crate) const SUM: HeaderName = HeaderName::from_static("x-sum");

/// What it shows.
#[derive(Args)]
pub(crate) struct Identity {
    /// Certificate to show, as PEM; without it there is no TLS.
    #[arg(long, env = "CALLS_CERTIFICATE", requires = "key")]
    certificate: Option<String>,
    /// Its key, as PEM.
    #[arg(long, env = "CALLS_KEY")]
    key: Option<String>,
}

impl Identity {
    fn acceptor(&self) -> anyhow::Result<Option<TlsAcceptor>> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else { return Ok(None) };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("--key")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config =
            builder.with_no_client_auth().with_single_cert(chain.context("--certificate")?, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config).into()))
    }
}

/// Serves until the process ends.
pub(crate) async fn start(name: &str, port: u16, identity: &Identity) -> anyhow::Result<()> {
    let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot serve on {address}"))?;
    let (name, acceptor) = (HeaderValue::from_str(name)?, identity.acceptor()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, acceptor.clone(), name.clone()));
        }
    });
    Ok(())
}

/// What breaks off is the client's business.
async fn converse(stream: TcpStream, acceptor: Option<TlsAcceptor>, name: HeaderValue) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else { return streams(stream, name).await };
    let Ok(stream) = acceptor.accept(stream).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        streams(stream, name).await;
    } else {
        let _ = lines(stream, &name).await;
    }
}

async fn streams(stream: impl AsyncRead + AsyncWrite + Unpin, name: HeaderValue) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer(request, respond, name.clone()));
    }
}

/// Gives back what comes as it comes.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: HeaderValue,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let mut response = Response::new(());
    let fields = response.headers_mut();
    fields.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(BACKEND, name);
    let scheme = parts.uri.scheme_str().and_then(|scheme| HeaderValue::from_str(scheme).ok());
    fields.extend(scheme.map(|scheme| (SCHEME, scheme)));
    let mut sending = respond.send_response(response, false)?;
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        sending.send_data(bytes, false)?;
    }
    let mut trailers = HeaderMap::new();
    let sum = body.trailers().await?.and_then(|fields| fields.get(SUM).cloned());
    trailers.extend(sum.map(|sum| (SUM, sum)));
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    sending.send_trailers(trailers)
}

/// Answers requests of HTTP/1.1 that have no body.
async fn lines(mut stream: impl AsyncRead + AsyncWrite + Unpin, name: &HeaderValue) -> std::io::Result<()> {
    let name = name.to_str().unwrap_or_default();
    let answer = format!("HTTP/1.1 200 OK\r\n{BACKEND}: {name}\r\ncontent-length: 0\r\n\r\n");
    let mut head = Vec::new();
    loop {
        head.push(stream.read_u8().await?);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}
