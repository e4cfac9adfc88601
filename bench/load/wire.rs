//! Owns connections to what is measured: plain or TLS, on loopback, from several addresses where one has too few
//! ports or is not allowed to open enough.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use futures::{StreamExt, stream};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// Connections that are being opened at a time. More would overflow the accept queue of a busy server, and the
/// kernel's second SYN comes a second later.
const OPENING_AT_ONCE: usize = 128;

/// A connection of either kind.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

/// Where to connect, as the command line says it.
#[derive(Args)]
pub(crate) struct TargetArgs {
    /// Port on 127.0.0.1.
    #[arg(long)]
    port: u16,
    /// Connect with TLS and trust this certificate.
    #[arg(long, value_name = "PEM")]
    trust: Option<PathBuf>,
    /// Loopback addresses to connect from: 127.0.0.1 and those after it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=200))]
    sources: u8,
}

/// Where to connect.
pub(crate) struct Target {
    address: SocketAddr,
    sources: u8,
    tls: Option<TlsConnector>,
}

impl Target {
    pub(crate) fn new(args: &TargetArgs) -> anyhow::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
        let tls = args.trust.as_ref().map(connector).transpose()?;
        Ok(Self { address, sources: args.sources, tls })
    }

    /// Opens connection number `index`; the number decides the address it comes from.
    pub(crate) async fn connect(&self, index: usize) -> io::Result<Box<dyn Wire>> {
        let stream = self.connect_tcp(index, None).await?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::IpAddress(self.address.ip().into());
        Ok(Box::new(tls.connect(name, stream).await?))
    }

    /// The same without TLS; `receive_buffer` bounds what the kernel takes in for a client that does not read.
    pub(crate) async fn connect_tcp(
        &self,
        index: usize,
        receive_buffer: Option<u32>,
    ) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if self.sources > 1 {
            let last = 1 + (index % usize::from(self.sources)) as u8;
            socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)))?;
        }
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Calls `open` for the numbers below `count`, a bounded number at a time; the results come in any order.
pub(crate) async fn open_each<T, F: Future<Output = T>>(count: usize, open: impl Fn(usize) -> F) -> Vec<T> {
    stream::iter(0..count).map(open).buffer_unordered(OPENING_AT_ONCE).collect().await
}

fn connector(trust: &PathBuf) -> anyhow::Result<TlsConnector> {
    let wrong = || format!("{} holds no certificate to trust", trust.display());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trust).with_context(wrong)?).with_context(wrong)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
