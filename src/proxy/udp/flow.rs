//! Owns one flow: the way to the backend that its datagrams go to, and the task that brings the answers back. It stays
//! with its backend until it is silent for too long or the backend leaves, or is neither ready nor heard of.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::task::{spawn_local, yield_now};
use tokio_util::task::AbortOnDropHandle;

use super::mouth::{Ends, Mouth};
use crate::proxy::admission::Ticket;
use crate::proxy::client::Carried;
use crate::proxy::connection::PanicWatch;
use crate::proxy::limits::{READS_PER_TURN, UNREADY_FLOW_SILENCE};
use crate::proxy::passage::Passage;
use crate::proxy::scratch::READ;
use crate::proxy::upstream::Slot;
use crate::proxy::view::Home;
use crate::proxy::worker::Worker;

/// One flow.
pub(super) struct Flow {
    route: Rc<Route>,
    standing: Standing,
    /// Ends with the flow.
    _answers: AbortOnDropHandle<()>,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It went out, or was lost on the way.
    Passed,
    /// The backend takes none.
    Refused,
}

impl Flow {
    pub(super) fn begin(
        worker: &Rc<Worker>,
        mouth: &Rc<Mouth>,
        ends: Ends,
        route: Route,
        standing: Standing,
    ) -> Self {
        let route = Rc::new(route);
        let answers = route.clone().bring_answers(worker.clone(), Rc::downgrade(mouth), ends);
        Self { route, standing, _answers: AbortOnDropHandle::new(spawn_local(answers)) }
    }

    /// Whether it goes on: its pool has the port and knows its backend, which is ready or answers all the same.
    pub(super) fn is_of(&self, home: &Rc<Home>, now: Instant) -> bool {
        let Route { slot, heard, .. } = &*self.route;
        Rc::ptr_eq(&self.route.home, home)
            && !slot.is_gone()
            && (!slot.is_unready() || heard.get().is_fresh(now))
    }

    /// Whether it was silent for `idle`, or its backend left and had its time.
    pub(super) fn is_over(&self, idle: Duration, now: Instant) -> bool {
        let Route { slot, begun, account, .. } = &*self.route;
        now.saturating_duration_since(account.moved_at.get()) >= idle || slot.is_drained(*begun, now)
    }

    /// Sends a datagram to the backend.
    pub(super) fn send(&self, datagram: &[u8], now: Instant) -> Outcome {
        self.route.send(datagram, now)
    }

    /// What the next flow to another backend needs to know of this one.
    pub(super) fn give_up(mut self) -> Standing {
        self.standing.tried.push(self.route.slot.clone());
        self.standing
    }
}

/// What a flow keeps from one backend to the next.
pub(super) struct Standing {
    pub(super) account: Rc<Account>,
    /// It counts as long as this lives.
    pub(super) _ticket: Ticket,
    /// Backends that refused it.
    pub(super) tried: Vec<Rc<Slot>>,
}

/// What a flow carried, written down when nobody carries more.
pub(super) struct Account {
    pub(super) passage: Passage,
    slot: RefCell<Option<Rc<Slot>>>,
    received: Cell<u64>,
    sent: Cell<u64>,
    moved_at: Cell<Instant>,
}

impl Account {
    pub(super) fn new(passage: Passage, now: Instant) -> Rc<Self> {
        let (slot, received, sent) = Default::default();
        Rc::new(Self { passage, slot, received, sent, moved_at: Cell::new(now) })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let carried = Carried::of(self.received.get(), self.sent.get());
        // The silence that it ended with is no part of it.
        self.passage.end(self.moved_at.get(), self.slot.take().as_deref(), carried);
    }
}

/// The way to a backend and back.
pub(super) struct Route {
    slot: Rc<Slot>,
    home: Rc<Home>,
    upstream: UdpSocket,
    begun: Instant,
    account: Rc<Account>,
    heard: Cell<Heard>,
}

/// What the backend has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    /// The last answer came then.
    Answer(Instant),
    /// Nobody receives there, its machine said, and it has never answered.
    Refusal,
}

impl Heard {
    /// Whether an answer came a moment ago.
    fn is_fresh(self, now: Instant) -> bool {
        matches!(self, Self::Answer(at) if now.saturating_duration_since(at) < UNREADY_FLOW_SILENCE)
    }
}

impl Route {
    pub(super) fn new(
        slot: Rc<Slot>,
        home: Rc<Home>,
        upstream: UdpSocket,
        account: Rc<Account>,
        now: Instant,
    ) -> Self {
        home.meters.connections.up();
        account.slot.replace(Some(slot.clone()));
        Self { slot, home, upstream, begun: now, account, heard: Cell::new(Heard::Nothing) }
    }

    fn send(&self, datagram: &[u8], now: Instant) -> Outcome {
        if self.heard.get() == Heard::Refusal {
            return Outcome::Refused;
        }
        // Not by way of the runtime, which does not know a new socket for writable yet.
        let send = || SockRef::from(&self.upstream).send(datagram);
        let sent = match send() {
            Err(error) if is_refusal(&error) => {
                if self.refused(now) == Heard::Refusal {
                    return Outcome::Refused;
                }
                // It told of an earlier datagram, and this one has not been sent.
                send()
            }
            sent => sent,
        };
        if sent.is_ok() {
            self.account.moved_at.set(now);
            self.account.received.update(|received| received + datagram.len() as u64);
            self.home.meters.received.add(datagram.len() as u64);
            self.home.meters.datagrams_received.add(1);
        }
        Outcome::Passed
    }

    /// The backend's machine says that nobody receives there. A backend that has answered may only be restarting, and
    /// knows the flow.
    fn refused(&self, now: Instant) -> Heard {
        if !matches!(self.heard.get(), Heard::Answer(_)) {
            self.heard.set(Heard::Refusal);
            self.slot.refuse(now);
        }
        self.heard.get()
    }

    /// Brings back what the backend sends, as long as there is a mouth for it.
    async fn bring_answers(self: Rc<Self>, worker: Rc<Worker>, mouth: Weak<Mouth>, ends: Ends) {
        let _watch = PanicWatch(worker.clone());
        while self.upstream.readable().await.is_ok() {
            let Some(mouth) = mouth.upgrade() else { return };
            if (0..READS_PER_TURN).all(|_| self.bring_answer(&worker, &mouth, ends)) {
                drop(mouth);
                yield_now().await;
            }
        }
    }

    /// Whether there may be more.
    fn bring_answer(&self, worker: &Worker, mouth: &Mouth, ends: Ends) -> bool {
        let area = &mut worker.scratch.borrow_mut().area[READ];
        let length = match self.upstream.try_recv(area) {
            Ok(length) => length,
            Err(error) => {
                if is_refusal(&error) {
                    self.refused(worker.now());
                }
                return false;
            }
        };
        self.heard.set(Heard::Answer(worker.now()));
        self.account.moved_at.set(worker.now());
        if mouth.answer(ends, &area[..length]).is_ok() {
            self.account.sent.update(|sent| sent + length as u64);
            self.home.meters.sent.add(length as u64);
            self.home.meters.datagrams_sent.add(1);
        }
        true
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        self.home.meters.connections.down();
    }
}

/// Whether an error says that datagrams do not arrive. The kernel tells of it with the next call.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_so_long() {
        let then = Instant::now();
        let heard = Heard::Answer(then);
        assert!(heard.is_fresh(then + UNREADY_FLOW_SILENCE / 2));
        assert!(!heard.is_fresh(then + UNREADY_FLOW_SILENCE));
        assert!(!Heard::Nothing.is_fresh(then) && !Heard::Refusal.is_fresh(then));
    }
}
