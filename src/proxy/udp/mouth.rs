//! Owns the socket that the datagrams of a port come to. It learns of each which of our addresses it was sent to, so
//! that the answer comes from there: a client takes none from elsewhere.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Who sends, and to which of our addresses: what makes datagrams a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    /// As the socket has it: the address of an IPv4 client may be mapped into IPv6.
    client: SocketAddr,
    here: Option<IpAddr>,
}

impl Ends {
    /// The client's address, the same whatever the socket.
    pub(super) fn client_ip(self) -> IpAddr {
        self.client.ip().to_canonical()
    }

    /// That and its port.
    pub(super) fn client(self) -> (IpAddr, Option<u16>) {
        (self.client_ip(), Some(self.client.port()))
    }
}

/// What came with one call to the kernel: datagrams of one flow, all as long as `stride` but for the last.
pub(super) struct Came {
    pub(super) ends: Ends,
    pub(super) length: usize,
    pub(super) stride: usize,
}

/// The socket.
#[derive(Debug)]
pub(super) struct Mouth {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Mouth {
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        // That made it a socket for QUIC, which finds out how long a datagram may be. Others have theirs fragmented.
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::WANT)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, state })
    }

    /// Waits until something came.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// What came, put into `area`.
    pub(super) fn receive(&self, area: &mut [u8]) -> io::Result<Came> {
        let mut about = [RecvMeta::default()];
        let receive = || self.state.recv((&self.socket).into(), &mut [IoSliceMut::new(area)], &mut about);
        self.socket.try_io(Interest::READABLE, receive)?;
        let [RecvMeta { addr: client, len: length, stride, dst_ip: here, .. }] = about;
        Ok(Came { ends: Ends { client, here }, length, stride })
    }

    /// Sends an answer back.
    pub(super) fn answer(&self, to: Ends, datagram: &[u8]) -> io::Result<()> {
        let Ends { client: destination, here: src_ip } = to;
        let answer = Transmit { destination, ecn: None, contents: datagram, segment_size: None, src_ip };
        self.state.try_send((&self.socket).into(), &answer)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// A datagram and its answer, as a client sees them that takes answers from `to` alone.
    async fn answers_from(listens: IpAddr, to: IpAddr) {
        let mouth = Mouth::new(std::net::UdpSocket::bind((listens, 0)).unwrap());
        let Ok(mouth) = mouth else { panic!("no socket on {listens}") };
        let port = mouth.socket.local_addr().unwrap().port();
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let client = UdpSocket::bind((any, 0)).await.unwrap();
        client.connect((to, port)).await.unwrap();
        client.send(b"question").await.unwrap();
        mouth.readable().await.unwrap();
        let mut area = [0; 65_536];
        let came = mouth.receive(&mut area).unwrap();
        assert_eq!(&area[..came.length], b"question");
        assert_eq!(came.ends.client_ip().is_ipv4(), to.is_ipv4());
        mouth.answer(came.ends, b"answer").unwrap();
        let length = client.recv(&mut area).await.unwrap();
        assert_eq!(&area[..length], b"answer");
    }

    #[tokio::test]
    async fn answers_come_from_the_address_that_was_asked() {
        let (all, all_of_both) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
        let second = Ipv4Addr::new(127, 0, 0, 2).into();
        answers_from(all, second).await;
        answers_from(second, second).await;
        if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            answers_from(all_of_both, second).await;
            answers_from(all_of_both, Ipv6Addr::LOCALHOST.into()).await;
        }
    }
}
