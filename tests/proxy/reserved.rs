//! Owns ports of tests: a port that was found free and let go may be another test's a moment later, so it is kept.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port of the loopback address that refuses connections until somebody asks for this very port and listens on it,
/// with the address to be reused (`SO_REUSEADDR`), as servers do. Whoever asks for any port gets another one.
pub(crate) struct Reserved(Socket);

impl Reserved {
    pub(crate) fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        // It never listens, and does not stand in the way of one who does.
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address().port()
    }
}
