//! Owns the load generator. In an open loop the schedule, not the last answer, says when a request is
//! due, and time counts from there: a slow server cannot slow down the clock that measures it.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::BACKEND_HEADER;
use super::report::{Answer, Latency, LoadReport, Tally};

/// Request header that carries the key.
pub const KEY_HEADER: &str = "x-user";

/// The backend's name where an answer gives none.
const UNNAMED: &str = "(no x-backend)";

/// When the next request is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So many requests per second, whatever the answers do.
    Open(NonZeroU32),
    /// Every connection sends its next request when it has its answer.
    Closed,
}

/// What to send, where, how fast and for how long.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    /// Connection `i` goes to target `i` modulo their number.
    pub targets: Vec<Target>,
    /// When requests are due.
    pub pace: Pace,
    /// Keep-alive connections.
    pub connections: NonZeroU32,
    /// Keys, sent round robin as `x-user: key-0`, `key-1` …
    pub keys: NonZeroU32,
    /// Ends after so long; without it when told to.
    pub duration: Option<Duration>,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

/// An `http://` address, taken apart once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Target {
    /// Whether a connection to it comes about.
    pub async fn accepts(&self) -> bool {
        TcpStream::connect((self.host.as_str(), self.port)).await.is_ok()
    }
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(format!("{text:?} is no target; write for example http://127.0.0.1:8080/"));
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.to_string(),
            path: path.to_owned(),
        })
    }
}

/// A run in progress, cheap to clone.
#[derive(Clone, Debug)]
pub struct Load {
    run: Arc<Run>,
}

#[derive(Debug)]
struct Run {
    plan: LoadPlan,
    started: Instant,
    started_unix: Duration,
    ended: OnceLock<Instant>,
    turns: AtomicU64,
    tally: Mutex<Tally>,
    stop: CancellationToken,
    workers: TaskTracker,
}

/// One request to be sent.
#[derive(Clone, Copy, Debug)]
struct Turn {
    number: u64,
    key: u32,
    /// Its time is counted from here.
    from: Instant,
}

impl Load {
    /// Begins the run on the current runtime. It ends with its duration or with `stop`; either way
    /// requests in flight are waited for.
    pub fn start(plan: LoadPlan, stop: CancellationToken) -> Self {
        let run = Arc::new(Run {
            started: Instant::now(),
            // A clock before 1970 is none; the report then says 0.
            started_unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            ended: OnceLock::new(),
            turns: AtomicU64::new(0),
            tally: Mutex::new(Tally::new(plan.keys.get())),
            stop,
            workers: TaskTracker::new(),
            plan,
        });
        for index in 0..run.plan.connections.get() as usize {
            let target = run.plan.targets[index % run.plan.targets.len()].clone();
            run.workers.spawn(Worker { run: run.clone(), target, connection: None }.work());
        }
        run.workers.close();
        Self { run }
    }

    /// What the run has seen so far; `trails` adds the backends of every key.
    pub fn report(&self, trails: bool) -> LoadReport {
        let running = !self.run.workers.is_empty();
        let elapsed = self.run.elapsed();
        let report = self.run.tally().report(elapsed, trails);
        let started_unix_us = self.run.started_unix.as_micros() as u64;
        LoadReport { running, started_unix_us, behind: self.run.behind(elapsed), ..report }
    }

    /// Quantiles since the last call.
    pub fn lately(&self) -> Latency {
        self.run.tally().lately()
    }

    /// Asks the run to end.
    pub fn stop(&self) {
        self.run.stop.cancel();
    }

    /// Returns when the run has ended.
    pub async fn ended(&self) {
        self.run.workers.wait().await;
        self.run.ended.get_or_init(Instant::now);
    }
}

impl Run {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn elapsed(&self) -> Duration {
        let elapsed = self.ended.get().copied().unwrap_or_else(Instant::now) - self.started;
        self.plan.duration.map_or(elapsed, |duration| elapsed.min(duration))
    }

    /// Turns that are due and nobody has taken.
    fn behind(&self, elapsed: Duration) -> u64 {
        match self.plan.pace {
            Pace::Open(rate) => {
                let due = (elapsed.as_secs_f64() * f64::from(rate.get())) as u64;
                due.saturating_sub(self.turns.load(Ordering::Relaxed))
            }
            Pace::Closed => 0,
        }
    }

    /// The next turn once it is due, or `None` when the run is over.
    async fn next_turn(&self) -> Option<Turn> {
        if self.stop.is_cancelled() {
            return None;
        }
        let number = self.turns.fetch_add(1, Ordering::Relaxed);
        let asked = Instant::now();
        let due = match self.plan.pace {
            Pace::Open(rate) => self.started + Duration::from_secs_f64(number as f64 / f64::from(rate.get())),
            Pace::Closed => asked,
        };
        if self.plan.duration.is_some_and(|duration| due >= self.started + duration) {
            return None;
        }
        if due > asked {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep_until(due) => {}
            }
        }
        // A worker that was free in time starts the clock itself, so that the timer's coarse
        // millisecond is not charged to the server; one that comes late was held up by the server.
        let from = if due > asked { Instant::now() } else { due };
        let key = (number % u64::from(self.plan.keys.get())) as u32;
        Some(Turn { number, key, from })
    }
}

type Sender = SendRequest<Empty<Bytes>>;
type Outgoing = Request<Empty<Bytes>>;

/// What became of a request on one connection.
enum Attempt {
    Answered(Response<Incoming>),
    /// No byte of it was written.
    Unsent(Outgoing),
}

/// One keep-alive connection.
struct Worker {
    run: Arc<Run>,
    target: Target,
    connection: Option<Sender>,
}

impl Worker {
    async fn work(mut self) {
        let run = self.run.clone();
        while let Some(turn) = run.next_turn().await {
            let outcome = tokio::time::timeout(run.plan.timeout, self.exchange(turn.key)).await;
            let outcome = outcome
                .unwrap_or_else(|_| Err(format!("timeout: no whole answer in {:?}", run.plan.timeout)));
            let at = run.started.elapsed();
            match outcome {
                Ok(backend) => run.tally().answered(Answer {
                    turn: turn.number,
                    key: turn.key,
                    backend: &backend,
                    took: turn.from.elapsed(),
                    at,
                }),
                Err(reason) => run.tally().failed(at, turn.key, reason),
            }
        }
    }

    /// Sends a request and reads its answer. The connection is kept only after a whole answer.
    async fn exchange(&mut self, key: u32) -> Result<String, String> {
        let request = self.request(key);
        let (sender, response) = self.send(request).await?;
        let (head, body) = response.into_parts();
        drain(body).await.map_err(|error| describe("body", &error))?;
        self.connection = Some(sender);
        let backend = head.headers.get(BACKEND_HEADER).and_then(|name| name.to_str().ok()).unwrap_or(UNNAMED);
        match head.status {
            status if status.is_success() => Ok(backend.to_owned()),
            status => Err(format!("status {} from {backend}", status.as_u16())),
        }
    }

    /// The server may have closed a kept connection; then nothing was sent and the request takes a new one.
    async fn send(&mut self, mut request: Outgoing) -> Result<(Sender, Response<Incoming>), String> {
        if let Some(mut sender) = self.connection.take() {
            match attempt(&mut sender, request).await? {
                Attempt::Answered(response) => return Ok((sender, response)),
                Attempt::Unsent(unsent) => request = unsent,
            }
            self.run.tally().reopened += 1;
        }
        let mut sender = self.open().await?;
        match attempt(&mut sender, request).await? {
            Attempt::Answered(response) => Ok((sender, response)),
            Attempt::Unsent(_) => Err("connect: closed before the first request".to_owned()),
        }
    }

    async fn open(&self) -> Result<Sender, String> {
        let Target { host, port, .. } = &self.target;
        let stream =
            TcpStream::connect((host.as_str(), *port)).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| describe("connect", &error))?;
        // The exchange that uses the connection sees its error as well, so it is not reported here.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn request(&self, key: u32) -> Outgoing {
        Request::get(self.target.path.as_str())
            .header(header::HOST, self.target.authority.as_str())
            .header(KEY_HEADER, format!("key-{key}"))
            .body(Empty::new())
            .expect("path and authority come from a parsed URI, and the key is ASCII")
    }
}

async fn attempt(sender: &mut Sender, request: Outgoing) -> Result<Attempt, String> {
    if sender.ready().await.is_err() {
        return Ok(Attempt::Unsent(request));
    }
    match sender.try_send_request(request).await {
        Ok(response) => Ok(Attempt::Answered(response)),
        // hyper hands the request back only when it wrote nothing of it.
        Err(mut error) => match error.take_message() {
            Some(unsent) => Ok(Attempt::Unsent(unsent)),
            None => Err(describe("reset", &error.into_error())),
        },
    }
}

async fn drain(mut body: Incoming) -> Result<(), hyper::Error> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

/// hyper names the kind of an error and leaves the system's reason to its source.
fn describe(phase: &str, error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{phase}: {error}: {source}"),
        None => format!("{phase}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::backend::DemoBackend;
    use std::net::{Ipv4Addr, SocketAddr};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket};

    async fn backend(name: &str) -> SocketAddr {
        let backend = DemoBackend::bind(name, (Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = backend.handle().address();
        tokio::spawn(backend.serve(CancellationToken::new()));
        address
    }

    /// A server whose answer to each request is what `behave` does with the connection.
    async fn server<F>(behave: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> SocketAddr
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                tokio::spawn(behave(listener.accept().await.unwrap().0));
            }
        });
        address
    }

    /// Returns after the blank line, or where the client goes away.
    async fn read_head(stream: &mut TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
    }

    fn plan(targets: &[SocketAddr], path: &str, pace: Pace) -> LoadPlan {
        let target = |address| format!("http://{address}{path}").parse().unwrap();
        LoadPlan {
            targets: targets.iter().map(target).collect(),
            pace,
            connections: NonZeroU32::MIN,
            keys: NonZeroU32::new(10).unwrap(),
            duration: Some(Duration::from_millis(200)),
            timeout: Duration::from_secs(5),
        }
    }

    fn open(rate: u32) -> Pace {
        Pace::Open(NonZeroU32::new(rate).unwrap())
    }

    async fn run(plan: LoadPlan) -> LoadReport {
        let load = Load::start(plan, CancellationToken::new());
        load.ended().await;
        load.report(true)
    }

    #[tokio::test]
    async fn an_open_loop_sends_what_the_schedule_says_and_every_key_stays() {
        let report = run(plan(&[backend("a").await], "/", open(500))).await;
        assert_eq!((report.answered, report.failed, report.behind), (100, 0, 0), "{report:?}");
        assert_eq!((report.keys.seen, report.keys.moved), (10, 0));
        assert_eq!(report.backends["a"], 100);
        assert!(!report.running);
    }

    #[tokio::test]
    async fn keys_that_alternate_between_two_targets_are_seen_to_move() {
        let targets = [backend("a").await, backend("b").await];
        let plan = LoadPlan {
            connections: NonZeroU32::new(2).unwrap(),
            keys: NonZeroU32::MIN,
            ..plan(&targets, "/", Pace::Closed)
        };
        let report = run(plan).await;
        assert_eq!(report.keys.moved, 1);
        assert!(report.keys.most_changes > 1, "{report:?}");
    }

    #[tokio::test]
    async fn a_slow_answer_charges_the_requests_that_wait_behind_it() {
        let report = run(plan(&[backend("a").await], "/?delay=50ms", open(100))).await;
        // Twenty are due in 200 ms and one connection answers one in 50 ms: the last begins after 950 ms.
        assert_eq!(report.answered, 20);
        assert!(report.latency.max_us >= 800_000, "{:?}", report.latency);
    }

    #[tokio::test]
    async fn a_stop_finishes_the_request_in_flight() {
        let target = backend("a").await;
        let plan = LoadPlan { duration: None, ..plan(&[target], "/?delay=50ms", Pace::Closed) };
        let load = Load::start(plan, CancellationToken::new());
        tokio::time::sleep(Duration::from_millis(20)).await;
        load.stop();
        load.ended().await;
        assert_eq!((load.report(false).answered, load.report(false).failed), (1, 0));
    }

    #[tokio::test]
    async fn a_connection_closed_between_two_requests_is_opened_again() {
        let closing = |mut stream: TcpStream| async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        };
        let report = run(plan(&[server(closing).await], "/", open(25))).await;
        assert_eq!((report.answered, report.failed, report.reopened), (5, 0, 4), "{report:?}");
    }

    #[tokio::test]
    async fn a_connection_closed_in_the_place_of_an_answer_is_a_failure() {
        let silent = |mut stream: TcpStream| async move { read_head(&mut stream).await };
        let report = run(plan(&[server(silent).await], "/", open(25))).await;
        assert_eq!((report.answered, report.failed), (0, 5));
        assert!(report.failures[0].reason.starts_with("reset:"), "{:?}", report.failures[0]);
    }

    #[tokio::test]
    async fn a_body_cut_short_is_a_failure() {
        let cutting = |mut stream: TcpStream| async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort").await.unwrap();
        };
        let report = run(plan(&[server(cutting).await], "/", open(25))).await;
        assert_eq!((report.answered, report.failed), (0, 5));
        assert!(report.failures[0].reason.starts_with("body:"), "{:?}", report.failures[0]);
    }

    #[tokio::test]
    async fn refusals_timeouts_and_error_statuses_are_failures_with_their_reason() {
        // Nobody else gets its port, and it never listens.
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let refused = closed.local_addr().unwrap();
        let target = backend("a").await;
        let impatient = |plan| LoadPlan { timeout: Duration::from_millis(30), ..plan };
        for (plan, reason) in [
            (plan(&[refused], "/", open(10)), "connect:"),
            (plan(&[target], "/?status=503", open(10)), "status 503 from a"),
            (impatient(plan(&[target], "/?delay=10s", open(10))), "timeout:"),
        ] {
            let report = run(plan).await;
            assert_eq!((report.answered, report.failed), (0, 2), "{report:?}");
            assert!(report.failures[0].reason.starts_with(reason), "{:?}", report.failures[0]);
        }
    }

    #[test]
    fn a_target_is_taken_apart_or_refused() {
        let target: Target = "http://[::1]:8080/a?b=c".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("::1", 8080, "/a?b=c"));
        assert_eq!("http://web".parse::<Target>().unwrap().port, 80);
        assert!("https://web".parse::<Target>().unwrap_err().contains("http://"));
        assert!("web:8080".parse::<Target>().is_err());
    }
}
