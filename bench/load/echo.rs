//! Owns the backend of the WebSocket race: it sends every message back. Any other request is answered with 200, so
//! that the harness can see when a balancer is ready.

use std::io;
use std::net::Ipv4Addr;

use anyhow::Context;
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use crate::frame;

#[derive(Args)]
pub(crate) struct Plan {
    /// Port on 127.0.0.1; can be given several times.
    #[arg(long, required = true)]
    port: Vec<u16>,
}

impl Plan {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut servers = Vec::new();
        for port in self.port {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
            let listener = listener.with_context(|| format!("cannot listen on port {port}"))?;
            servers.push(spawn_local(serve(listener)));
        }
        for server in servers {
            server.await??;
        }
        Ok(())
    }
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        // A connection that breaks is the load generator's to report.
        spawn_local(async move { converse(stream).await.ok() });
    }
}

async fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let Some(end) = find_end(&buffer) else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        if let Some(answer) = frame::answer(&head) {
            stream.write_all(answer.as_bytes()).await?;
            return echo(stream, buffer).await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
    }
}

async fn echo(mut stream: TcpStream, mut buffer: Vec<u8>) -> io::Result<()> {
    let mut output = Vec::with_capacity(4096);
    loop {
        while let Some(frame) = frame::read(&buffer) {
            buffer.drain(..frame.end);
            frame::write(frame.opcode, &frame.payload, false, &mut output);
            if frame.opcode == frame::CLOSE {
                return stream.write_all(&output).await;
            }
        }
        stream.write_all(&output).await?;
        output.clear();
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Where the head ends, its empty line included.
pub(crate) fn find_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}
