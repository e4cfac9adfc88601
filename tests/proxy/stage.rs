//! Owns the set-up of a test: a proxy on a port of its own, a pool to serve, and backends that the test plays.

#[path = "peer.rs"]
mod peer;
#[path = "reserved.rs"]
mod reserved;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use guideway::balance::assignment::Assignment;
use guideway::balance::backend::{Backend as Target, HttpVersion, State};
use guideway::balance::key::KeySource;
use guideway::balance::pool::{
    Fill, Group, Listener, Manner, Pool, PoolId, PortId, Protocol, ProxyProtocol, ProxyVersion,
    Readiness as PodReadiness, Sample, Timeouts,
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
    /// The terms of TLS from the next publish on.
    pub(crate) tls: Option<PortTls>,
    http: HttpVersion,
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
    pub(crate) protocol: Protocol,
    pub(crate) proxy_protocol: ProxyProtocol,
    pub(crate) tls: Option<PortTls>,
    pub(crate) backend_tls: Option<Arc<BackendTls>>,
    /// Connections to backends begin with a header of the PROXY protocol.
    pub(crate) introduction: Option<ProxyVersion>,
    /// Of the pool.
    pub(crate) max_request_body: Option<NonZeroU64>,
    /// Of the pool.
    pub(crate) logged: Option<Sample>,
    pub(crate) access_log: AccessLogOptions,
    /// Clients that are believed to say for whom a request is.
    pub(crate) trusted: Vec<Network>,
    pub(crate) memory: MemoryProbe,
    /// What backends speak.
    pub(crate) http: HttpVersion,
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
            protocol: Protocol::Http,
            proxy_protocol: ProxyProtocol::Off,
            tls: None,
            backend_tls: None,
            introduction: None,
            max_request_body: None,
            logged: None,
            access_log: AccessLogOptions::default(),
            trusted: Vec::new(),
            memory: MemoryProbe::new(|| None),
            http: HttpVersion::Http1,
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
        let port = if setup.protocol == Protocol::Udp { datagram_port() } else { setup.port.port() };
        let (publisher, reader) = handoff();
        let (writer, bindings) = bindings(setup.own_port.map(PortId::Tcp));
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
        let listener = Listener {
            name: "web".into(),
            port,
            protocol: setup.protocol,
            proxy_protocol: setup.proxy_protocol,
            tls: None,
            matches: vec![Match::all()],
        };
        let id = listener.port_id();
        let mut pool = Pool {
            timeouts: setup.timeouts,
            drain_timeout: setup.drain_timeout,
            max_request_body: setup.max_request_body,
            access_log: setup.logged,
            ..pool(listener)
        };
        pool.groups[0].tls = setup.backend_tls;
        pool.groups[0].introduction = setup.introduction;
        let (http, tls) = (setup.http, setup.tls);
        let ports = vec![setup.port];
        let mut stage = Self {
            port,
            ports,
            proxy,
            metrics,
            bindings,
            readiness,
            publisher,
            generation: 0,
            pool,
            tls,
            http,
        };
        stage.publish(backends, State::Ready);
        stage.wait_until(|ports| ports.contains_key(&id)).await;
        stage
    }

    /// Publishes a pool of these backends, all in this state.
    pub(crate) fn publish(&mut self, backends: &[SocketAddr], state: State) {
        self.publish_states(&backends.iter().map(|backend| (*backend, state)).collect::<Vec<_>>());
    }

    /// Publishes a pool of these backends, each in its state.
    pub(crate) fn publish_states(&mut self, backends: &[(SocketAddr, State)]) {
        self.generation += 1;
        let pool = Arc::new(pool_snapshot(&self.pool, self.http, backends));
        let id = self.pool.id.clone();
        let shares = self.shares(BTreeMap::from([(Match::all(), id.clone())]));
        self.publisher.publish(Snapshot::new(self.generation, BTreeMap::from([(id, pool)]), &shares));
    }

    /// Secures connections to backends in this way from the next publish on.
    pub(crate) fn secure_backends(&mut self, tls: BackendTls) {
        self.pool.groups[0].tls = Some(Arc::new(tls));
    }

    /// Begins connections to backends in this way from the next publish on.
    pub(crate) fn introduce(&mut self, version: Option<ProxyVersion>) {
        self.pool.groups[0].introduction = version;
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
            (id(name), Arc::new(pool_snapshot(&pool, self.http, &[(*backend, State::Ready)])))
        };
        let shares =
            self.shares(pools.iter().map(|(name, _, matched)| (matched.clone(), id(name))).collect());
        let pools = pools.iter().map(snapshot).collect();
        self.publisher.publish(Snapshot::new(self.generation, pools, &shares));
    }

    fn shares(&self, owners: BTreeMap<Match, PoolId>) -> Shares {
        let listener = &self.pool.listeners[0];
        let manner = Manner { encrypted: self.tls.is_some(), ..listener.manner() };
        BTreeMap::from([(listener.port_id(), PortShares { manner, tls: self.tls.clone(), owners })])
    }

    /// Publishes a snapshot without any pool.
    pub(crate) fn publish_nothing(&mut self) {
        self.generation += 1;
        self.publisher.publish(Snapshot::new(self.generation, BTreeMap::new(), &BTreeMap::new()));
    }

    /// Waits until the bound ports look right.
    pub(crate) async fn wait_until(&mut self, right: impl Fn(&BTreeMap<PortId, BindState>) -> bool) {
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

/// A port of UDP that nobody has and no other test gets. A socket that held it would keep the proxy out, so it lies
/// below those that the kernel gives to whoever asks for any.
fn datagram_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn pool(listener: Listener) -> Pool {
    Pool {
        id: PoolId::new("shop", "web"),
        created_ms: 0,
        listeners: vec![listener],
        groups: vec![Group { name: "stable".into(), weight: 1, tls: None, introduction: None }],
        table_size: None,
        fill: Fill::Seats,
        hash_on: vec![KeySource::Header("x-key".into()), KeySource::ClientIp],
        readiness: PodReadiness::Require,
        drain_timeout: PATIENCE,
        timeouts: Timeouts::default(),
        max_request_body: None,
        access_log: None,
    }
}

fn pool_snapshot(pool: &Pool, http: HttpVersion, backends: &[(SocketAddr, State)]) -> PoolSnapshot {
    let target = |(address, _): &(SocketAddr, State)| {
        let name = address.to_string();
        Arc::new(Target {
            id: name.as_str().into(),
            group: "stable".into(),
            name: name.into(),
            address: *address,
            http,
        })
    };
    let targets: Vec<_> = backends.iter().map(target).collect();
    let load = |(_, state): &(SocketAddr, State)| SeatLoad {
        nominal: 1,
        live: u64::from(*state != State::NotReady),
    };
    let table = TableBuilder::new(251, 7).build(&backends.iter().map(load).collect::<Vec<_>>());
    let member = |(seat, (backend, (_, state))): (u16, (&Arc<Target>, &(SocketAddr, State)))| MemberView {
        backend: backend.clone(),
        state: *state,
        seat: Some(seat),
        weight: 1,
        slots: 0,
    };
    PoolSnapshot {
        pool: Arc::new(pool.clone()),
        table: Arc::new(Assignment::of_one(Arc::new(table), targets.len() as u16)),
        places: targets.iter().cloned().map(Some).collect(),
        members: (0..).zip(targets.iter().zip(backends)).map(member).collect(),
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

/// Bytes without a pattern, the same for a seed.
pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(size).collect()
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
