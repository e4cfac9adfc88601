//! Owns the part of a demo backend that speaks no HTTP: it says its name and gives back what it gets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Longest datagram there is.
const DATAGRAM: usize = 65_536;

/// Serves on the TCP and the UDP port of this number, until the process ends.
pub(crate) async fn start(name: &str, port: u16) -> anyhow::Result<()> {
    let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot serve on {address}"))?;
    let socket = UdpSocket::bind(address).await.with_context(|| format!("cannot serve on {address}/UDP"))?;
    let name: Arc<str> = name.into();
    let greeting = name.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, greeting.clone()));
        }
    });
    tokio::spawn(async move {
        let mut space = vec![0; DATAGRAM];
        while let Ok((length, from)) = socket.recv_from(&mut space).await {
            let answer = [name.as_bytes(), b"\n", &space[..length]].concat();
            // Who asks sees that no answer comes.
            let _ = socket.send_to(&answer, from).await;
        }
    });
    Ok(())
}

/// A line with the name, and then whatever comes.
async fn converse(mut stream: TcpStream, name: Arc<str>) {
    let (mut incoming, mut outgoing) = stream.split();
    if outgoing.write_all(format!("{name}\n").as_bytes()).await.is_ok()
        && tokio::io::copy(&mut incoming, &mut outgoing).await.is_ok()
    {
        // The client is gone where this fails.
        let _ = outgoing.shutdown().await;
    }
}
