//! Owns the datagrams of one port on one worker thread. Each goes to the backend of its flow, and the backend's answers
//! go back from the address that the client sent to. What the network does not take at once is lost, as on any way of
//! UDP: nobody's datagrams wait for another's.

mod flow;
mod mouth;

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::task::yield_now;
use tokio::time::sleep;

use flow::{Account, Flow, Outcome, Route, Standing};
use mouth::{Ends, Mouth};

use super::limits::{ACCEPT_PAUSE, MAX_TRIES, READS_PER_TURN};
use super::passage::Passage;
use super::rescue::ProxyError;
use super::scratch::READ;
use super::view::PoolView;
use super::worker::Worker;
use crate::balance::key;
use crate::balance::pool::PortId;
use crate::metrics::{Refusal, RetryReason};

/// One port.
pub(super) struct DatagramPort {
    port: PortId,
    mouth: Rc<Mouth>,
    flows: RefCell<HashMap<Ends, Flow>>,
}

/// Why a datagram finds no backend.
enum Lost {
    /// Of the pool.
    Unserved(ProxyError, Rc<Account>),
    /// Of ours. There is no flow, and nothing to write down.
    Refused(Refusal),
}

impl DatagramPort {
    pub(super) fn new(port: PortId, socket: std::net::UdpSocket) -> io::Result<Self> {
        Ok(Self { port, mouth: Rc::new(Mouth::new(socket)?), flows: RefCell::default() })
    }

    /// How many flows there are.
    pub(super) fn flows(&self) -> usize {
        self.flows.borrow().len()
    }

    /// Forgets the flows that were silent for too long, or whose backend left and had its time. Whether there were any:
    /// the last ones leave lines of the access log behind.
    pub(super) fn tidy(&self, idle: Duration, now: Instant) -> bool {
        let mut flows = self.flows.borrow_mut();
        let any = !flows.is_empty();
        flows.retain(|_, flow| !flow.is_over(idle, now));
        any
    }

    /// Receives for as long as it is asked to.
    pub(super) async fn receive(&self, worker: &Rc<Worker>) -> Infallible {
        loop {
            let received = match self.mouth.readable().await {
                Ok(()) => (0..READS_PER_TURN).try_for_each(|_| self.receive_some(worker)),
                Err(error) => Err(error),
            };
            match received {
                Ok(()) => yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(port = %self.port, %error, "cannot receive datagrams");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Takes what one call to the kernel gives: one datagram, or several of one flow.
    fn receive_some(&self, worker: &Rc<Worker>) -> io::Result<()> {
        let area = &mut worker.scratch.borrow_mut().area[READ];
        let came = self.mouth.receive(area)?;
        let (bytes, now) = (&area[..came.length], Instant::now());
        if bytes.is_empty() {
            self.deliver(worker, came.ends, bytes, now);
        }
        bytes.chunks(came.stride.max(1)).for_each(|it| self.deliver(worker, came.ends, it, now));
        Ok(())
    }

    /// Sends a datagram to the backend of its flow. Where that refuses and has never answered, the next candidate gets
    /// it.
    fn deliver(&self, worker: &Rc<Worker>, ends: Ends, datagram: &[u8], now: Instant) {
        // The port is about to be closed where it is nobody's.
        let Some(pool) = worker.view().port(self.port).and_then(|port| port.owner().cloned()) else { return };
        let mut flows = self.flows.borrow_mut();
        if let Some(flow) = flows.get(&ends)
            && flow.is_of(&pool.home, now)
            && flow.send(datagram, now) == Outcome::Passed
        {
            return;
        }
        let mut refused = flows.remove(&ends).filter(|flow| flow.is_of(&pool.home, now));
        loop {
            match self.next(worker, &pool, ends, refused.take(), now) {
                Ok(next) if next.send(datagram, now) == Outcome::Passed => {
                    flows.insert(ends, next);
                    return;
                }
                Ok(next) => refused = Some(next),
                Err(Lost::Unserved(error, account)) => {
                    worker.wake_tick();
                    return account.passage.fail(error.reason());
                }
                Err(Lost::Refused(refusal)) => return worker.meters.refuse(refusal),
            }
        }
    }

    /// A flow to the best backend, or to the next one after a backend that refused.
    fn next(
        &self,
        worker: &Rc<Worker>,
        pool: &PoolView,
        ends: Ends,
        refused: Option<Flow>,
        now: Instant,
    ) -> Result<Flow, Lost> {
        let key = key::of_client(ends.client_ip());
        let mut standing = match refused {
            Some(refused) => {
                let standing = refused.give_up();
                standing.account.passage.retry(RetryReason::ConnectRefused);
                standing
            }
            None => {
                let _ticket = worker.admission.enter_flow(ends.client_ip()).map_err(Lost::Refused)?;
                let passage = Passage::begin(&pool.home, ends.client(), "UDP", key, now);
                Standing { account: Account::new(passage, now), _ticket, tried: Vec::new() }
            }
        };
        while standing.tried.len() < MAX_TRIES {
            let Some(slot) = pool.choose(key, &standing.tried, now) else { break };
            let upstream = match open(slot.address().ip()) {
                Ok(upstream) => upstream,
                Err(error) => {
                    worker.meters.refuse(Refusal::Descriptors);
                    worker.complain(self.port, "open a socket for a flow", &error);
                    return Err(Lost::Unserved(ProxyError::ConnectFailed, standing.account));
                }
            };
            if upstream.connect(slot.address()).is_ok()
                && let Ok(upstream) = UdpSocket::from_std(upstream)
            {
                worker.wake_tick();
                let route = Route::new(slot, pool.home.clone(), upstream, standing.account.clone(), now);
                return Ok(Flow::begin(worker, &self.mouth, ends, route, standing));
            }
            slot.refuse(now);
            standing.account.passage.retry(RetryReason::ConnectFailed);
            standing.tried.push(slot);
        }
        let error = if standing.tried.is_empty() { ProxyError::NoBackend } else { ProxyError::ConnectFailed };
        Err(Lost::Unserved(error, standing.account))
    }
}

/// A socket towards a backend.
fn open(backend: IpAddr) -> io::Result<std::net::UdpSocket> {
    let here: IpAddr = match backend {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind(SocketAddr::new(here, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
