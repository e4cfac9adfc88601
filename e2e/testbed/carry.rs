//! Owns a client of echoing backends: connections and datagrams to each target, and who answered them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Nothing takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than the kernel keeps on the way, so that each side waits for the other.
const BYTES: usize = 8 << 20;
/// Connections, and datagrams of one flow, to each target.
const ROUNDS: usize = 10;

/// Who answered over TCP and over UDP, by target. An error where anything was lost or changed.
pub(crate) async fn answers(targets: &[SocketAddr]) -> anyhow::Result<Value> {
    let (mut tcp, mut udp) = (BTreeMap::new(), BTreeMap::new());
    for target in targets {
        let mut names = BTreeSet::new();
        for _ in 0..ROUNDS {
            let connected = timeout(PATIENCE, connection(*target)).await;
            names.insert(connected.with_context(|| format!("no end of a connection to {target}"))??);
        }
        tcp.insert(target.to_string(), names);
        udp.insert(target.to_string(), flow(*target).await?);
    }
    Ok(json!({"tcp": tcp, "udp": udp}))
}

/// Who greets; it gives back what it gets, and ends when we do.
async fn connection(target: SocketAddr) -> anyhow::Result<String> {
    let stream = TcpStream::connect(target).await.with_context(|| format!("cannot connect to {target}"))?;
    let (mut incoming, mut outgoing) = stream.into_split();
    let sent: Vec<u8> = (0..BYTES).map(|at| ((at * at) >> 7) as u8).collect();
    let mut received = Vec::new();
    let send = async {
        outgoing.write_all(&sent).await?;
        outgoing.shutdown().await
    };
    let (sending, receiving) = tokio::join!(send, incoming.read_to_end(&mut received));
    sending.and(receiving.map(drop)).with_context(|| format!("a connection to {target} broke off"))?;
    let (name, echo) = named(&received)?;
    ensure!(echo == sent, "{name} behind {target} gave back other bytes: {} of {BYTES}", echo.len());
    Ok(name)
}

/// Who answers the datagrams of one flow.
async fn flow(target: SocketAddr) -> anyhow::Result<BTreeSet<String>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(target).await?;
    let mut names = BTreeSet::new();
    let mut space = vec![0; 65_536];
    for round in 0..ROUNDS {
        let sent = vec![round as u8; round * 140];
        socket.send(&sent).await?;
        let answer = timeout(PATIENCE, socket.recv(&mut space)).await;
        let length = answer.with_context(|| format!("{target} does not answer datagram {round}"))??;
        let (name, echo) = named(&space[..length])?;
        ensure!(echo == sent, "{name} behind {target} gave back another datagram {round}");
        names.insert(name);
    }
    Ok(names)
}

/// A name, and what is behind its line.
fn named(bytes: &[u8]) -> anyhow::Result<(String, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n').context("nobody says who it is")?;
    Ok((String::from_utf8(bytes[..end].into())?, &bytes[end + 1..]))
}
