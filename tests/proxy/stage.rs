//! Owns the set-up of a test: a proxy on a port of its own, a pool to serve, and backends that the test plays.

#[path = "peer.rs"]
mod peer;
#[path = "reserved.rs"]
mod reserved;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use guideway::balance::assignment::Assignment;
use guideway::balance::backend::{Backend as Target, Protocol, State};
use guideway::balance::key::KeySource;
use guideway::balance::pool::{
    Fill, Group, Listener, Manner, Pool, PoolId, ProxyProtocol, Readiness as PodReadiness, Sample, Timeouts,
};
use guideway::balance::routes::Match;
use guideway::balance::snapshot::{MemberView, PoolSnapshot, PortShares, PortTls, Shares, Snapshot};
use guideway::balance::table::{SeatLoad, TableBuilder};
use guideway::balance::tls::BackendTls;
use guideway::handoff::{BindState, BindingsReader, Publisher, bindings, handoff};
use guideway::metrics::Metrics;
use guideway::proxy::{AccessLogOptions, Limits, MemoryProbe, Network, Proxy, ProxyHandle, ProxyOptions};
use guideway::readiness::Readiness;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

pub(crate) use peer::Peer;
pub(crate) use reserved::Reserved;

/// Nothing in a test takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A running proxy with one pool.
pub(crate) struct Stage {
    pub(crate) port: u16,
    /// This one and those it was at before.
    ports: Vec<Reserved>,
    pub(crate) proxy: ProxyHandle,
    pub(crate) metrics: Metrics,
    pub(crate) bindings: BindingsReader,
    pub(crate) readiness: Readiness,
    publisher: Publisher,
    generation: u64,
    pool: Pool,
    proxy_protocol: ProxyProtocol,
    /// The terms of TLS from the next publish on.
    pub(crate) tls: Option<PortTls>,
    protocol: Protocol,
}

/// What a test may want to differ.
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) drain_timeout: Duration,
    pub(crate) workers: usize,
    pub(crate) port: Reserved,
    /// The port of the process itself.
    pub(crate) own_port: Option<u16>,
    pub(crate) proxy_protocol: ProxyProtocol,
    pub(crate) tls: Option<PortTls>,
    pub(crate) backend_tls: Option<Arc<BackendTls>>,
    /// Of the pool.
    pub(crate) logged: Option<Sample>,
    pub(crate) access_log: AccessLogOptions,
    /// Clients that are believed to say for whom a request is.
    pub(crate) trusted: Vec<Network>,
    pub(crate) memory: MemoryProbe,
    /// What backends speak.
    pub(crate) protocol: Protocol,
}

impl Default for Setup {
    fn default() -> Self {
        let timeouts = Timeouts { connect: Duration::from_secs(1), request: Some(PATIENCE) };
        Self {
            limits: Limits::for_descriptors(20_000),
            timeouts,
            drain_timeout: PATIENCE,
            workers: 1,
            port: Reserved::new(),
            own_port: None,
            proxy_protocol: ProxyProtocol::Off,
            tls: None,
            backend_tls: None,
            logged: None,
            access_log: AccessLogOptions::default(),
            trusted: Vec::new(),
            memory: MemoryProbe::new(|| None),
            protocol: Protocol::Http1,
        }
    }
}

impl Stage {
    /// A proxy in front of `backends`, as it comes.
    pub(crate) async fn new(backends: &[SocketAddr]) -> Self {
        Self::with(Setup::default(), backends).await
    }

    /// A proxy in front of `backends`.
    pub(crate) async fn with(setup: Setup, backends: &[SocketAddr]) -> Self {
        let port = setup.port.port();
        let (publisher, reader) = handoff();
        let (writer, bindings) = bindings(setup.own_port);
        let metrics = Metrics::new(reader.clone(), bindings.clone());
        let readiness = Readiness::default();
        let options = ProxyOptions {
            workers: NonZeroUsize::new(setup.workers).unwrap(),
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            limits: setup.limits,
            access_log: setup.access_log,
            trusted: setup.trusted.into(),
            memory: setup.memory,
        };
        let bound = readiness.latch("listeners bound");
        let proxy = Proxy::start(options, reader, writer, metrics.traffic(), bound).unwrap();
        let mut pool = Pool {
            timeouts: setup.timeouts,
            drain_timeout: setup.drain_timeout,
            access_log: setup.logged,
            ..pool(port)
        };
        pool.groups[0].tls = setup.backend_tls;
        let (proxy_protocol, protocol, tls) = (setup.proxy_protocol, setup.protocol, setup.tls);
        let mut stage = Self {
            port,
            ports: vec![setup.port],
            proxy,
            metrics,
            bindings,
            readiness,
            publisher,
            generation: 0,
            pool,
            proxy_protocol,
            tls,
            protocol,
        };
        stage.publish(backends, State::Ready);
        stage.wait_until(|ports| ports.contains_key(&port)).await;
        stage
    }

    /// Publishes a pool of these backends, all in this state.
    pub(crate) fn publish(&mut self, backends: &[SocketAddr], state: State) {
        self.generation += 1;
        let pool = Arc::new(pool_snapshot(&self.pool, self.protocol, backends, state));
        let id = self.pool.id.clone();
        let shares = self.shares(BTreeMap::from([(Match::all(), id.clone())]));
        self.publisher.publish(Snapshot::new(self.generation, BTreeMap::from([(id, pool)]), &shares));
    }

    /// Secures connections to backends in this way from the next publish on.
    pub(crate) fn secure_backends(&mut self, tls: BackendTls) {
        self.pool.groups[0].tls = Some(Arc::new(tls));
    }

    /// Moves the pool to another port, from the next publish on.
    pub(crate) fn move_to(&mut self, port: Reserved) {
        self.port = port.port();
        self.pool.listeners[0].port = self.port;
        self.ports.push(port);
    }

    /// Publishes a pool of each of these names, with one backend and its part of the port.
    pub(crate) fn publish_pools(&mut self, pools: &[(&str, SocketAddr, Match)]) {
        self.generation += 1;
        let id = |name: &str| PoolId::new("shop", name);
        let snapshot = |(name, backend, _): &(&str, SocketAddr, Match)| {
            let pool = Pool { id: id(name), ..self.pool.clone() };
            (id(name), Arc::new(pool_snapshot(&pool, self.protocol, &[*backend], State::Ready)))
        };
        let shares =
            self.shares(pools.iter().map(|(name, _, matched)| (matched.clone(), id(name))).collect());
        let pools = pools.iter().map(snapshot).collect();
        self.publisher.publish(Snapshot::new(self.generation, pools, &shares));
    }

    fn shares(&self, owners: BTreeMap<Match, PoolId>) -> Shares {
        let manner = Manner { encrypted: self.tls.is_some(), proxy_protocol: self.proxy_protocol };
        BTreeMap::from([(self.port, PortShares { manner, tls: self.tls.clone(), owners })])
    }

    /// Publishes a snapshot without any pool.
    pub(crate) fn publish_nothing(&mut self) {
        self.generation += 1;
        self.publisher.publish(Snapshot::new(self.generation, BTreeMap::new(), &BTreeMap::new()));
    }

    /// Waits until the bound ports look right.
    pub(crate) async fn wait_until(&mut self, right: impl Fn(&BTreeMap<u16, BindState>) -> bool) {
        let wait = async {
            while !right(&self.bindings.current()) {
                assert!(self.bindings.changed().await, "the proxy is gone");
            }
        };
        timeout(PATIENCE, wait).await.expect("the ports do not come to look right");
    }

    /// Connects as a client.
    pub(crate) async fn connect(&self) -> Peer {
        Peer::of(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.unwrap())
    }

    /// Sends `request` on a connection of its own and returns everything up to the end of the connection.
    pub(crate) async fn exchange(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.write(request).await;
        client.read_to_end().await
    }

    /// Sends `request` to `backend`, which has its head: the client's and the backend's end of what is under way.
    pub(crate) async fn under_way(&self, backend: &Backend, request: &str) -> (Peer, Peer) {
        let mut client = self.connect().await;
        client.write(request).await;
        let mut server = backend.accept().await;
        server.read_head().await;
        (client, server)
    }

    /// Waits until a series has this value.
    pub(crate) async fn settles(&self, series: &str, value: f64) {
        self.comes_to(series, |current| current == value).await;
    }

    /// Waits until a series is above this value.
    pub(crate) async fn settles_above(&self, series: &str, value: f64) {
        self.comes_to(series, |current| current > value).await;
    }

    async fn comes_to(&self, series: &str, right: impl Fn(f64) -> bool) {
        let wait = async {
            while !right(self.series(series)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(PATIENCE, wait).await.is_err() {
            panic!("{series} stays at {}", self.series(series));
        }
    }

    /// Waits until the proxy says that traffic may come.
    pub(crate) async fn becomes_ready(&self) {
        let wait = async {
            while !self.readiness.is_ready() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("it does not become ready");
    }

    /// The value of one series of a scrape.
    pub(crate) fn series(&self, series: &str) -> f64 {
        let text = self.metrics.scrape().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is missing in\n{text}")).parse().unwrap()
    }
}

fn pool(port: u16) -> Pool {
    Pool {
        id: PoolId::new("shop", "web"),
        created_ms: 0,
        listeners: vec![Listener {
            name: "web".into(),
            port,
            proxy_protocol: ProxyProtocol::Off,
            tls: None,
            matches: vec![Match::all()],
        }],
        groups: vec![Group { name: "stable".into(), weight: 1, tls: None }],
        table_size: None,
        fill: Fill::Seats,
        hash_on: vec![KeySource::Header("x-key".into()), KeySource::ClientIp],
        readiness: PodReadiness::Require,
        drain_timeout: PATIENCE,
        timeouts: Timeouts::default(),
        access_log: None,
    }
}

fn pool_snapshot(pool: &Pool, protocol: Protocol, backends: &[SocketAddr], state: State) -> PoolSnapshot {
    let target = |address: &SocketAddr| {
        let name = address.to_string();
        Arc::new(Target {
            id: name.as_str().into(),
            group: "stable".into(),
            name: name.into(),
            address: *address,
            protocol,
        })
    };
    let targets: Vec<_> = backends.iter().map(target).collect();
    let load = SeatLoad { nominal: 1, live: u64::from(state != State::NotReady) };
    let table = TableBuilder::new(251, 7).build(&vec![load; targets.len()]);
    let member = |(seat, backend): (u16, &Arc<Target>)| MemberView {
        backend: backend.clone(),
        state,
        seat: Some(seat),
        weight: 1,
        slots: 0,
    };
    PoolSnapshot {
        pool: Arc::new(pool.clone()),
        table: Arc::new(Assignment::of_one(Arc::new(table), targets.len() as u16)),
        places: targets.iter().cloned().map(Some).collect(),
        members: (0..).zip(&targets).map(member).collect(),
        digest: 0,
    }
}

/// A backend that a test plays itself.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
}

impl Backend {
    pub(crate) async fn new() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    pub(crate) async fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    /// The next connection of the proxy.
    pub(crate) async fn accept(&self) -> Peer {
        timeout(PATIENCE, self.accept_any()).await.expect("nobody connects")
    }

    /// Answers every request without a body with `200` and the text `name`, for as long as the test runs.
    pub(crate) fn answer_all(self, name: &'static str) {
        tokio::spawn(async move {
            loop {
                let mut peer = self.accept_any().await;
                tokio::spawn(async move {
                    while peer.try_read_head().await.is_some() {
                        peer.write(&ok(name)).await;
                    }
                });
            }
        });
    }

    pub(crate) async fn accept_any(&self) -> Peer {
        Peer::of(self.listener.accept().await.unwrap().0)
    }
}

/// A `200` response with this body.
pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A listener whose queue is full: a connection to it neither comes about nor is refused.
pub(crate) struct Unanswering {
    listener: std::net::TcpListener,
    _waiting: Vec<TcpStream>,
}

pub(crate) async fn unanswering() -> Unanswering {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let listener = std::net::TcpListener::from(socket);
    let mut waiting = Vec::new();
    while let Ok(stream) =
        timeout(Duration::from_millis(100), TcpStream::connect(listener.local_addr().unwrap())).await
    {
        waiting.push(stream.unwrap());
    }
    Unanswering { listener, _waiting: waiting }
}

impl Unanswering {
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}
