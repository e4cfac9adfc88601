//! Owns one worker thread: its runtime, its listeners, its connections and flows on both sides. It shares no
//! lock and no connection with the other workers; the kernel spreads newcomers over their listeners.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, timeout};

use super::access_log::{Recorder, Sink};
use super::admission::Admission;
use super::client::Client;
use super::connection;
use super::date::Date;
use super::limits::{
    ACCEPT_PAUSE, COMPLAIN_EVERY, CROWDED_FLOW_IDLE, LISTENER_LINGER, Limits, OVERLOAD_IDLE, TICK,
};
use super::listener::{self, Ear};
use super::overload::Level;
use super::pipes::Pipes;
use super::rescue::ProxyError;
use super::scratch::Scratch;
use super::tls::Made;
use super::trust::Network;
use super::udp::DatagramPort;
use super::view::{Home, View};
use crate::balance::pool::{PoolId, PortId};
use crate::balance::snapshot::Snapshot;
use crate::handoff::Reader;
use crate::metrics::{Refusal, TrafficMeters};

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Accept or receive on this port.
    Listen(PortId, Ear),
    /// Stop accepting or receiving on this port; the answer comes when nobody waits to be accepted any more.
    Close(PortId, oneshot::Sender<()>),
    /// Answer what is under way, take nothing new and end; the answer is how many connections were cut.
    Drain(Duration, oneshot::Sender<usize>),
}

/// One worker thread's own.
pub(super) struct Worker {
    pub(super) meters: Arc<TrafficMeters>,
    /// Borrowed for a step and never across an await.
    pub(super) scratch: RefCell<Scratch>,
    pub(super) pipes: Pipes,
    recorder: Rc<Recorder>,
    reader: Reader,
    limits: Limits,
    /// The same while memory runs out.
    tight_limits: Limits,
    pub(super) admission: Arc<Admission>,
    /// How short of memory the process is, as of the last tick.
    level: Cell<Level>,
    tls: Arc<Made>,
    /// Who is believed to say for whom a request is.
    trusted: Rc<[Network]>,
    view: RefCell<Rc<View>>,
    homes: RefCell<HashMap<PoolId, Rc<Home>>>,
    clients: RefCell<Vec<Weak<Client>>>,
    datagram_ports: RefCell<HashMap<PortId, Rc<DatagramPort>>>,
    clock: Rc<Cell<Instant>>,
    /// As answers state it, and since when.
    date: Cell<(Date, Instant)>,
    /// Ports that clients are on and no pool any more, and since when.
    deserted: RefCell<BTreeMap<PortId, Instant>>,
    /// The generation that clients' ports and backends' connections were last compared with.
    followed: Cell<Option<u64>>,
    draining: Cell<Option<Instant>>,
    /// When it last said that nobody can be served.
    complained: Cell<Option<Instant>>,
    /// There is something to look after again.
    busy: Notify,
}

/// The loops that listen, and what stops each. A loop whose stop is dropped is told that the process drains.
#[derive(Default)]
struct Ears {
    stops: HashMap<PortId, oneshot::Sender<oneshot::Sender<()>>>,
    accepting: JoinSet<()>,
    receiving: JoinSet<()>,
}

impl Worker {
    pub(super) fn new(
        reader: Reader,
        limits: Limits,
        admission: Arc<Admission>,
        tls: Arc<Made>,
        trusted: &[Network],
        meters: Arc<TrafficMeters>,
        sink: Sink,
    ) -> Self {
        let tight_limits = Limits {
            idle: limits.idle.min(OVERLOAD_IDLE),
            flow_idle: limits.flow_idle.min(OVERLOAD_IDLE),
            ..limits.clone()
        };
        Self {
            meters,
            scratch: RefCell::default(),
            pipes: Pipes::default(),
            recorder: Rc::new(Recorder::new(sink)),
            reader,
            limits,
            tight_limits,
            admission,
            level: Cell::default(),
            tls,
            trusted: trusted.into(),
            view: RefCell::default(),
            homes: RefCell::default(),
            clients: RefCell::default(),
            datagram_ports: RefCell::default(),
            clock: Rc::new(Cell::new(Instant::now())),
            date: Cell::new((Date::now(), Instant::now())),
            deserted: RefCell::default(),
            followed: Cell::new(None),
            draining: Cell::new(None),
            complained: Cell::new(None),
            busy: Notify::new(),
        }
    }

    /// Follows commands until it is drained or nobody is left to command.
    pub(super) async fn run(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        // Both run in this future, so that a panic in either ends the thread, which is watched.
        tokio::select! {
            () = self.clone().follow_commands(&mut commands) => {}
            never = self.look_after() => match never {},
        }
    }

    async fn follow_commands(self: Rc<Self>, commands: &mut mpsc::UnboundedReceiver<Command>) {
        let mut ears = Ears::default();
        loop {
            let command = tokio::select! {
                command = commands.recv() => command,
                Some(ended) = ears.accepting.join_next() => {
                    ended.expect("an accept loop neither panics nor is it aborted");
                    continue;
                }
                Some(ended) = ears.receiving.join_next() => {
                    ended.expect("a receive loop neither panics nor is it aborted");
                    continue;
                }
            };
            match command {
                None => return,
                Some(Command::Listen(port, ear)) => {
                    // Its socket is closed with it, so the kernel gives newcomers to the other workers.
                    if let Err(error) = self.clone().listen(&mut ears, port, ear) {
                        tracing::error!(%port, %error, "a worker cannot listen; it is idle on this port")
                    }
                }
                Some(Command::Close(port, done)) => {
                    if let Some(stop) = ears.stops.remove(&port) {
                        // A loop that is gone has nothing to stop, and `done` tells by being dropped.
                        let _ = stop.send(done);
                    }
                }
                Some(Command::Drain(deadline, done)) => {
                    let cut = self.drain(ears, deadline).await;
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(cut);
                    return;
                }
            }
        }
    }

    fn listen(self: Rc<Self>, ears: &mut Ears, port: PortId, ear: Ear) -> io::Result<()> {
        let (stop, stopped) = oneshot::channel();
        match ear {
            Ear::Stream(listener) => {
                let listener = TcpListener::from_std(listener)?;
                ears.accepting.spawn_local(self.accept(port, listener, stopped));
            }
            Ear::Datagram(socket) => {
                let datagram_port = Rc::new(DatagramPort::new(port, socket)?);
                self.datagram_ports.borrow_mut().insert(port, datagram_port);
                ears.receiving.spawn_local(self.receive(port, stopped));
            }
        }
        ears.stops.insert(port, stop);
        Ok(())
    }

    /// Receives on one port until it is told to stop. While the process drains it goes on: what comes then comes from
    /// clients that know of nobody else.
    async fn receive(self: Rc<Self>, port: PortId, stop: oneshot::Receiver<oneshot::Sender<()>>) {
        let Some(datagram_port) = self.datagram_ports.borrow().get(&port).cloned() else { return };
        let received = datagram_port.receive(&self);
        let done = tokio::select! {
            biased;
            Ok(done) = stop => done,
            never = received => match never {},
        };
        // The socket goes with its last owner, and with it the flows.
        self.datagram_ports.borrow_mut().remove(&port);
        drop(datagram_port);
        self.wake_tick();
        // The binder may be gone, then nobody waits for the port.
        let _ = done.send(());
    }

    /// Accepts on one port until it is told to stop or nobody can tell it any more.
    async fn accept(
        self: Rc<Self>,
        port: PortId,
        listener: TcpListener,
        stop: oneshot::Receiver<oneshot::Sender<()>>,
    ) {
        let mut stop = pin!(stop);
        let done = loop {
            tokio::select! {
                biased;
                done = &mut stop => break done,
                accepted = listener.accept() => self.welcome(port, accepted).await,
            }
        };
        // Those who are connected must not be reset: newcomers are kept out first, then the queue is emptied.
        if let Err(error) = listener::keep_newcomers_out(&listener) {
            tracing::warn!(%port, %error, "cannot keep newcomers out of a port that closes; some may be reset; it takes Linux 5.7 or newer");
        }
        let mut linger = pin!(sleep(LISTENER_LINGER));
        loop {
            tokio::select! {
                biased;
                accepted = listener.accept() => self.welcome(port, accepted).await,
                () = &mut linger => break,
            }
        }
        drop(listener);
        if let Ok(done) = done {
            // The binder may be gone, then nobody waits for the port.
            let _ = done.send(());
        }
    }

    async fn welcome(self: &Rc<Self>, port: PortId, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, peer)) => {
                self.admit(port, stream, SocketAddr::new(peer.ip().to_canonical(), peer.port()))
            }
            // The client gave up before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                self.meters.refuse(Refusal::Descriptors);
                self.complain(port, "accept a connection", &error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Says why nobody can be served, but not each time.
    pub(super) fn complain(&self, port: PortId, task: &str, error: &io::Error) {
        let now = Instant::now();
        if self.complained.get().is_none_or(|at| now.saturating_duration_since(at) >= COMPLAIN_EVERY) {
            self.complained.set(Some(now));
            tracing::warn!(%port, %error, "cannot {task}; raise the limit of open files if it is the reason");
        }
    }

    fn admit(self: &Rc<Self>, port: PortId, stream: TcpStream, peer: SocketAddr) {
        let ticket = match self.admission.enter(peer.ip()) {
            Ok(ticket) => ticket,
            Err(limit) => return self.meters.refuse(limit),
        };
        let view = self.view();
        let Some(served) = view.port(port) else { return };
        let (home, entrance) = (served.home().clone(), served.entrance().clone());
        let protocol = served.protocol();
        self.set_clock(Instant::now());
        self.level.set(self.admission.pressure.level());
        let client = Rc::new(Client::new(peer, port, home, self.clock.clone(), self.trusted.clone()));
        self.clients.borrow_mut().push(Rc::downgrade(&client));
        self.wake_tick();
        let worker = self.clone();
        spawn_local(async move {
            connection::serve(worker, stream, client, ticket, protocol, entrance).await;
        });
    }

    /// Lets what is under way finish; how many connections and flows had to be cut.
    async fn drain(&self, ears: Ears, deadline: Duration) -> usize {
        self.draining.set(Some(Instant::now()));
        let Ears { stops, mut accepting, receiving: _receiving } = ears;
        drop(stops);
        let finish = async {
            while accepting.join_next().await.is_some() {}
            while self.open_clients() > 0 {
                sleep(TICK).await;
            }
        };
        // What is left over at the deadline is counted below.
        let _ = timeout(deadline, finish).await;
        self.open_clients()
    }

    fn open_clients(&self) -> usize {
        let connections = self.clients.borrow().iter().filter(|client| client.strong_count() > 0).count();
        connections + self.datagram_ports.borrow().values().map(|port| port.flows()).sum::<usize>()
    }

    /// There is something to look after at every tick.
    pub(super) fn wake_tick(&self) {
        self.busy.notify_one();
    }

    /// Looks after all connections once per tick, as long as there are any.
    async fn look_after(&self) -> Infallible {
        loop {
            sleep(TICK).await;
            if !self.tick(Instant::now()) {
                self.busy.notified().await;
            }
        }
    }

    /// Whether there is anything left to look after.
    fn tick(&self, now: Instant) -> bool {
        self.set_clock(now);
        self.recorder.flush();
        self.level.set(self.admission.pressure.level());
        let limits = if self.level.get() > Level::Calm { &self.tight_limits } else { &self.limits };
        self.follow_snapshot(now);
        let (draining, deserted) = (self.draining.get(), self.deserted.borrow());
        // How long an idle client may stay while memory runs out, the tight limits say.
        let short = (self.level.get() >= Level::Leaving).then_some(now);
        let leaving = |client: &Client| draining.or_else(|| deserted.get(&client.port).copied()).or(short);
        self.clients.borrow_mut().retain(|client| {
            let client = client.upgrade();
            client.iter().for_each(|client| client.tick(now, limits, leaving(client)));
            client.is_some()
        });
        let flow_idle = self.flow_idle(limits);
        let flowing =
            self.datagram_ports.borrow().values().fold(false, |any, port| port.tidy(flow_idle, now) | any);
        let resting = self
            .homes
            .borrow()
            .values()
            .fold(false, |any, home| home.backends.tidy(self.limits.upstream_idle, now) | any);
        resting || flowing || !self.clients.borrow().is_empty()
    }

    /// How long a flow of UDP may be silent at the moment.
    fn flow_idle(&self, limits: &Limits) -> Duration {
        let crowded = self.admission.is_crowded_with_flows().then_some(CROWDED_FLOW_IDLE);
        let draining = self.draining.get().map(|_| limits.drain_idle);
        crowded.into_iter().chain(draining).fold(limits.flow_idle, Duration::min)
    }

    /// Finds out which ports and backends left since the last time.
    fn follow_snapshot(&self, now: Instant) {
        let view = self.view();
        let snapshot = view.snapshot();
        if self.followed.replace(Some(snapshot.generation)) == Some(snapshot.generation) {
            return;
        }
        self.follow_ports(&view, now);
        self.follow_backends(snapshot, now);
    }

    /// Clients on a port that no pool has any more are asked to leave: there is nothing for them as long as they stay.
    fn follow_ports(&self, view: &View, now: Instant) {
        let deserted = &mut *self.deserted.borrow_mut();
        deserted.retain(|port, _| view.port(*port).is_none());
        for client in self.clients.borrow().iter().filter_map(Weak::upgrade) {
            if view.port(client.port).is_none() {
                deserted.entry(client.port).or_insert(now);
            }
        }
    }

    fn follow_backends(&self, snapshot: &Snapshot, now: Instant) {
        self.homes.borrow_mut().retain(|id, home| match snapshot.pool(id) {
            Some(pool) => {
                home.backends.follow(pool, now);
                true
            }
            None => {
                home.backends.leave(now);
                Rc::strong_count(home) > 1
            }
        });
    }

    /// The current view, made anew if another snapshot was published since.
    #[inline]
    pub(super) fn view(&self) -> Rc<View> {
        let snapshot = self.reader.load();
        let known = self.view.borrow().clone();
        if known.is_of(&snapshot) {
            return known;
        }
        let fresh = Rc::new(View::of(&snapshot, &known, &self.tls, |id| self.home(id)));
        *self.view.borrow_mut() = fresh.clone();
        fresh
    }

    /// The time at the last tick, which is exact enough for most and costs nothing.
    pub(super) fn now(&self) -> Instant {
        self.clock.get()
    }

    /// The time as an answer states it.
    pub(super) fn date(&self) -> Date {
        self.date.get().0
    }

    fn set_clock(&self, now: Instant) {
        self.clock.set(now);
        let (_, since) = self.date.get();
        if now.saturating_duration_since(since) >= TICK {
            self.date.set((Date::now(), now));
        }
    }

    /// Whether clients are asked to leave, because we do or because memory runs out.
    pub(super) fn asks_to_leave(&self) -> bool {
        self.draining.get().is_some() || self.level.get() >= Level::Leaving
    }

    /// Whether there is memory for one more request.
    pub(super) fn has_room(&self) -> Result<(), ProxyError> {
        if self.level.get() < Level::Shedding { Ok(()) } else { Err(ProxyError::Overloaded) }
    }

    fn home(&self, id: &PoolId) -> Rc<Home> {
        let make = || Rc::new(Home::new(id, &self.meters, &self.recorder));
        self.homes.borrow_mut().entry(id.clone()).or_insert_with(make).clone()
    }
}
