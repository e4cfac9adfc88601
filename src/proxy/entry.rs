//! Owns how a connection begins, before its first request: who the client is, where a balancer before us says so,
//! and the handshake of TLS.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::admission::Ticket;
use super::client::{Client, Phase};
use super::origin::{self, Beginning};
use super::socket::{ClientSocket, Inbox};
use super::tls::{Contract, PortContracts};
use super::transport::Transport;
use super::worker::Worker;
use crate::balance::pool::ProxyProtocol;
use crate::metrics::Refusal;

/// How the connections of a port begin.
#[derive(Clone, Debug)]
pub(super) struct Entrance {
    pub(super) proxy_protocol: ProxyProtocol,
    pub(super) tls: Option<Rc<PortContracts>>,
}

/// A connection that has begun.
pub(super) struct Entered {
    pub(super) socket: ClientSocket,
    /// What the client sent already.
    pub(super) inbox: Inbox,
}

/// Brings a connection to where its first request may come. `None` is its end, which was counted unless the client
/// just went: whoever sees the connection closed finds the reason among the figures.
pub(super) async fn enter(
    worker: &Worker,
    client: &Rc<Client>,
    stream: TcpStream,
    ticket: &mut Ticket,
    entrance: Entrance,
) -> Option<Entered> {
    let entry = Entry { worker, client, stream, inbox: Inbox::default(), is_silent: true };
    let entered = entry.pass(ticket, entrance).await.ok()?;
    client.enter(Phase::Idle);
    Some(entered)
}

/// A connection as it begins.
struct Entry<'a> {
    worker: &'a Worker,
    client: &'a Rc<Client>,
    stream: TcpStream,
    inbox: Inbox,
    /// Nothing came yet. Whoever asks only whether the port is open goes again without a word.
    is_silent: bool,
}

/// The connection ends here: it is refused, and counted as such before its socket is let go, or the client went.
struct Ended;

/// Why the first message of a handshake is not taken.
enum Unheard {
    /// None came.
    Gone,
    /// It is not one, and this is what to say to it.
    Refused(Option<AcceptedAlert>),
}

impl Entry<'_> {
    async fn pass(mut self, ticket: &mut Ticket, entrance: Entrance) -> Result<Entered, Ended> {
        if entrance.proxy_protocol != ProxyProtocol::Off {
            self.meet(entrance.proxy_protocol, ticket).await?;
        }
        let client = self.client.clone();
        let (transport, inbox) = match entrance.tls {
            None => (Transport::Plain(self.stream), self.inbox),
            Some(contracts) => (Transport::encrypted(self.secure(&contracts).await?), Inbox::default()),
        };
        Ok(Entered { socket: ClientSocket::new(transport, client), inbox })
    }

    /// Learns from a header of the PROXY protocol who the client is.
    async fn meet(&mut self, wanted: ProxyProtocol, ticket: &mut Ticket) -> Result<(), Ended> {
        self.client.enter(Phase::Head);
        if let Some(source) = poll_fn(|cx| self.poll_beginning(cx, wanted)).await? {
            ticket.transfer(source.ip()).map_err(|limit| refuse(self.worker, limit))?;
            self.client.identify(source);
        }
        Ok(())
    }

    fn poll_beginning(
        &mut self,
        cx: &mut Context<'_>,
        wanted: ProxyProtocol,
    ) -> Poll<Result<Option<SocketAddr>, Ended>> {
        loop {
            match origin::beginning(self.inbox.bytes()) {
                Beginning::Incomplete => {}
                Beginning::Absent if wanted == ProxyProtocol::Accept => return Poll::Ready(Ok(None)),
                Beginning::Header { source, length } => {
                    self.inbox.advance(length);
                    return Poll::Ready(Ok(source));
                }
                Beginning::Absent | Beginning::Malformed => {
                    return Poll::Ready(Err(refuse(self.worker, Refusal::ProxyProtocol)));
                }
            }
            ready!(self.poll_more(cx))?;
        }
    }

    /// Reads more of what comes first, unless the client closed its side, is gone or takes too long.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let area = &mut self.worker.scratch.borrow_mut().area;
        let mut buffer = ReadBuf::new(area);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                self.client.received(buffer.filled().len());
                self.inbox.keep(buffer.filled());
                self.is_silent = false;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(_) => Poll::Ready(Err(Ended)),
            Poll::Pending if self.client.expiry().is_some() => Poll::Ready(Err(Ended)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Shakes hands, on the terms of the name that the client asks for.
    async fn secure(mut self, contracts: &PortContracts) -> Result<TlsStream<TcpStream>, Ended> {
        self.client.enter(Phase::Handshake);
        let mut acceptor = Acceptor::default();
        match poll_fn(|cx| self.poll_greeting(cx, &mut acceptor)).await {
            Ok(accepted) => {
                let contract = contracts.find(accepted.client_hello().server_name());
                let contract = contract.ok_or_else(|| refuse(self.worker, Refusal::Handshake))?;
                self.agree(accepted, contract).await
            }
            Err(Unheard::Gone) if self.is_silent && self.client.expiry().is_none() => Err(Ended),
            Err(Unheard::Gone) => Err(refuse(self.worker, Refusal::Handshake)),
            Err(Unheard::Refused(alert)) => {
                let ended = refuse(self.worker, Refusal::Handshake);
                self.part(alert).await;
                Err(ended)
            }
        }
    }

    /// Says why, which is a courtesy: who does not take it is refused all the same.
    async fn part(&mut self, alert: Option<AcceptedAlert>) {
        let mut parting = Vec::new();
        if alert.is_some_and(|mut alert| alert.write_all(&mut parting).is_ok()) {
            let _ = poll_fn(|cx| Pin::new(&mut self.stream).poll_write(cx, &parting)).await;
        }
    }

    /// Reads the client's first message of the handshake.
    fn poll_greeting(
        &mut self,
        cx: &mut Context<'_>,
        acceptor: &mut Acceptor,
    ) -> Poll<Result<Accepted, Unheard>> {
        loop {
            while !self.inbox.is_empty() {
                // It takes a part at a time, and refuses a message that is too long.
                let Ok(taken @ 1..) = acceptor.read_tls(&mut self.inbox.bytes()) else {
                    return Poll::Ready(Err(Unheard::Refused(None)));
                };
                self.inbox.advance(taken);
                match acceptor.accept() {
                    Ok(None) => {}
                    Ok(Some(accepted)) if self.inbox.is_empty() => return Poll::Ready(Ok(accepted)),
                    // Nobody sends more before it has heard us.
                    Ok(Some(_)) => return Poll::Ready(Err(Unheard::Refused(None))),
                    Err((_, alert)) => return Poll::Ready(Err(Unheard::Refused(Some(alert)))),
                }
            }
            if ready!(self.poll_more(cx)).is_err() {
                return Poll::Ready(Err(Unheard::Gone));
            }
        }
    }

    async fn agree(
        self,
        accepted: Accepted,
        contract: &Arc<Contract>,
    ) -> Result<TlsStream<TcpStream>, Ended> {
        let Self { worker, client, stream, .. } = self;
        let handshake = StartHandshake::from_parts(accepted, stream).into_stream(contract.config());
        // One that fails hands its socket back, so that it outlives the count.
        let mut handshake = pin!(handshake.into_fallible());
        let stream = poll_fn(|cx| match handshake.as_mut().poll(cx) {
            Poll::Pending if client.expiry().is_some() => {
                Poll::Ready(Err(refuse(worker, Refusal::Handshake)))
            }
            shaken => shaken.map_err(|_socket| refuse(worker, Refusal::Handshake)),
        });
        let stream = stream.await?;
        client.secure(contract.client_ca().cloned());
        Ok(stream)
    }
}

fn refuse(worker: &Worker, refusal: Refusal) -> Ended {
    worker.meters.refuse(refusal);
    Ended
}
