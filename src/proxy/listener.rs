//! Owns the sockets that clients connect or send to: one for each worker and port, opened and closed as pools
//! come and go, without disturbing a port that stays. It alone says which ports are bound.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::limits::{ACCEPT_BACKLOG, BIND_RETRY};
use super::worker::Command;
use crate::balance::pool::PortId;
use crate::handoff::{BindState, BindingsWriter, Reader};
use crate::readiness::Latch;

/// The kernel numbers interfaces upwards from 1 and never comes this far. On Linux the option is one for both families.
const NO_INTERFACE: NonZeroU32 = NonZeroU32::new(i32::MAX.unsigned_abs()).expect("above zero");

/// A socket for what clients send to a port.
#[derive(Debug)]
pub(super) enum Ear {
    /// Connections.
    Stream(std::net::TcpListener),
    /// Datagrams.
    Datagram(std::net::UdpSocket),
}

/// Keeps the listeners in step with the snapshot.
pub(super) struct Binder {
    pub(super) reader: Reader,
    /// The address to bind; all addresses when absent.
    pub(super) address: Option<IpAddr>,
    pub(super) workers: Vec<mpsc::UnboundedSender<Command>>,
    pub(super) bindings: BindingsWriter,
    /// Released when the ports of the first list are bound, but for those that fail beside others.
    pub(super) bound: Option<Latch>,
}

impl Binder {
    /// Works until `stop` resolves or nobody publishes any more; the listeners stay as they are then.
    pub(super) async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut states = BTreeMap::new();
        loop {
            let published = self.reader.load().generation > 0;
            let wanted: BTreeSet<PortId> = self.reader.load().ports().map(|(port, _)| port).collect();
            // Who moves a pool to another port finds it there before it is gone here.
            self.open_wanted(&wanted, &mut states);
            self.bindings.report(states.clone());
            self.close_unwanted(&wanted, &mut states).await;
            self.bindings.report(states.clone());
            // One port that fails is its pool's fault; where none works there is nobody to serve.
            let works = states.is_empty() || states.values().any(|state| *state == BindState::Bound);
            if published && works {
                self.bound.take().into_iter().for_each(Latch::release);
            }
            let failed = states.values().any(|state| *state != BindState::Bound);
            tokio::select! {
                _ = &mut stop => return,
                changed = self.reader.changed() => if !changed { return },
                () = sleep(BIND_RETRY), if failed => {}
            }
        }
    }

    fn open_wanted(&self, wanted: &BTreeSet<PortId>, states: &mut BTreeMap<PortId, BindState>) {
        for port in wanted {
            if states.get(port) != Some(&BindState::Bound) {
                let state = self.open(*port);
                self.log(*port, states.get(port), &state);
                states.insert(*port, state);
            }
        }
    }

    async fn close_unwanted(&self, wanted: &BTreeSet<PortId>, states: &mut BTreeMap<PortId, BindState>) {
        let unwanted: Vec<PortId> = states.keys().filter(|port| !wanted.contains(port)).copied().collect();
        for port in unwanted {
            if states.remove(&port) == Some(BindState::Bound) {
                self.close(port).await;
                tracing::info!(%port, "closed a port that no pool asks for any more");
            }
        }
    }

    fn open(&self, port: PortId) -> BindState {
        if self.bindings.own_port() == Some(port) {
            let reason = format!(
                "port {port} is Guideway's own metrics port; choose another port or another --metrics-address"
            );
            return BindState::Failed { reason: reason.into() };
        }
        match ears(self.address, port, self.workers.len()) {
            Ok(ears) => {
                for (worker, ear) in self.workers.iter().zip(ears) {
                    // A worker that is gone ends the process elsewhere.
                    let _ = worker.send(Command::Listen(port, ear));
                }
                BindState::Bound
            }
            Err(error) => BindState::Failed { reason: reason(port, &error).into() },
        }
    }

    async fn close(&self, port: PortId) {
        let closing = self.workers.iter().map(|worker| {
            let (done, closed) = oneshot::channel();
            // A worker that is gone has no listener either.
            let _ = worker.send(Command::Close(port, done));
            closed
        });
        for closed in closing.collect::<Vec<_>>() {
            let _ = closed.await;
        }
    }

    fn log(&self, port: PortId, before: Option<&BindState>, state: &BindState) {
        match state {
            BindState::Bound => tracing::info!(%port, "listening"),
            BindState::Failed { reason } if before != Some(state) => {
                tracing::warn!(%port, %reason, "cannot listen")
            }
            BindState::Failed { .. } => {}
        }
    }
}

/// Keeps new connections out of a listener that is about to close, and lets those in whose handshake is under way:
/// ties it to an interface that there is not. A segment that opens a connection then finds nobody and is refused, as
/// on a closed port; the handshakes under way have found their listener already. A filter of segments would do the
/// same, but newer kernels let none but privileged processes put one on a TCP socket; this needs Linux 5.7.
pub(super) fn keep_newcomers_out<'a>(listener: impl Into<SockRef<'a>>) -> io::Result<()> {
    listener.into().bind_device_by_index_v4(Some(NO_INTERFACE))
}

/// Whether `port` of `address` could be opened now, or why not and what to do about it. Of all addresses when absent.
pub fn can_open(address: Option<IpAddr>, port: PortId) -> Result<(), String> {
    let opened = ear(address, port, false);
    opened.map(drop).map_err(|error| reason(port, &error))
}

fn socket_address(address: Option<IpAddr>, port: u16) -> SocketAddr {
    match address {
        Some(address) => SocketAddr::new(address, port),
        None if has_ipv6() => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        None => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
    }
}

/// One socket for each worker, or none at all.
fn ears(address: Option<IpAddr>, port: PortId, workers: usize) -> io::Result<Vec<Ear>> {
    // Sharing a port among our own workers would also share it with any other program of the same
    // user that does the same. So the port is tried for ourselves alone first.
    drop(ear(address, port, false)?);
    (0..workers).map(|_| ear(address, port, true)).collect()
}

fn ear(address: Option<IpAddr>, port: PortId, shared: bool) -> io::Result<Ear> {
    let at = socket_address(address, port.number());
    match port {
        PortId::Tcp(_) => listening(at, shared).map(Ear::Stream),
        PortId::Udp(_) => receiving(at, shared).map(Ear::Datagram),
    }
}

fn listening(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    // Connections of a process that ended may linger on the port; they do not own it.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Connections inherit it, which saves a call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    Ok(socket.into())
}

fn receiving(address: SocketAddr, shared: bool) -> io::Result<std::net::UdpSocket> {
    // Of UDP, an address that may be used again is one that can be taken away from whoever has it.
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

fn has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))
        .and_then(|socket| socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0).into()))
        .is_ok()
}

fn reason(port: PortId, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("port {port} is in use by another program; stop it or choose another port")
        }
        io::ErrorKind::PermissionDenied => format!(
            "port {port} may not be opened without privileges; choose one above 1023 or grant CAP_NET_BIND_SERVICE"
        ),
        io::ErrorKind::AddrNotAvailable => format!("the bind address is not one of this machine's: {error}"),
        _ => format!("port {port} cannot be opened: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::*;

    /// Runs `part` on a thread that may do nothing special, as in a container.
    fn without_privileges<T: Send>(part: impl FnOnce() -> T + Send) -> T {
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        thread::scope(|scope| {
            let ran = scope.spawn(|| {
                set_capabilities(None, none).unwrap();
                part()
            });
            ran.join().unwrap()
        })
    }

    #[test]
    fn a_closing_listener_refuses_newcomers_and_keeps_who_is_in_its_queue() {
        let families: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for address in families.into_iter().filter(|address| address.is_ipv4() || has_ipv6()) {
            let listener: TcpListener = listening(SocketAddr::new(address, 0), true).unwrap();
            let at = listener.local_addr().unwrap();
            let mut early = TcpStream::connect(at).unwrap();
            without_privileges(|| keep_newcomers_out(&listener)).unwrap();
            assert_eq!(TcpStream::connect(at).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            let (mut accepted, _) = listener.accept().unwrap();
            drop(listener);
            early.write_all(b"still there").unwrap();
            drop(early);
            accepted.set_nonblocking(false).unwrap();
            let mut heard = String::new();
            accepted.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "still there");
        }
    }
}
