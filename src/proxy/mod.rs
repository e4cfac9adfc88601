//! Owns the traffic: HTTP/1.1 and HTTP/2, connections and datagrams in from clients, routed by the snapshot, out to
//! backends, and back. Each worker thread is a proxy of its own; what they share is the snapshot and the counts of
//! connections and flows.

mod access_log;
mod account;
mod admission;
mod approach;
mod client;
mod connection;
mod date;
mod entry;
mod exchange;
mod filter;
mod flow;
#[cfg(test)]
mod fuzz;
mod headers;
mod http1;
mod http2;
mod introduction;
mod limits;
mod listener;
mod memory;
mod origin;
mod overload;
mod passage;
mod phase;
mod pipes;
mod relay;
mod rescue;
mod scratch;
mod service;
mod socket;
mod tcp;
mod tls;
mod transport;
mod trust;
mod tunnel;
mod udp;
mod upstream;
mod view;
mod worker;

use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use access_log::AccessLog;
use admission::Admission;
use listener::Binder;
use tls::Made;
use worker::{Command, Worker};

use crate::handoff::{BindingsWriter, Reader};
use crate::metrics::TrafficMeters;
use crate::readiness::Latch;

pub use access_log::{AccessLogOptions, LineForm, LogTarget};
pub use limits::{Ceilings, Limits};
pub use listener::can_open;
pub use overload::{MEMORY_MIN, MemoryProbe, MemoryUse};
pub use rescue::{ProxyError, REASON_HEADER, Side};
pub use trust::{Network, NotANetwork};

/// How the proxy is to run.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// Threads that carry traffic.
    pub workers: NonZeroUsize,
    /// The address to listen on; all addresses, IPv6 and IPv4, when absent.
    pub address: Option<IpAddr>,
    /// Limits of connections and waits.
    pub limits: Limits,
    /// Where the access log goes.
    pub access_log: AccessLogOptions,
    /// Clients that are believed to say for whom a request is.
    pub trusted: Arc<[Network]>,
    /// Where it says how much memory is in use.
    pub memory: MemoryProbe,
}

impl Default for ProxyOptions {
    /// One worker for each core we may use, on all addresses.
    fn default() -> Self {
        let workers = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            workers,
            address: None,
            limits: Limits::of_this_process(),
            access_log: AccessLogOptions::default(),
            trusted: Arc::default(),
            memory: MemoryProbe::of_this_process(None),
        }
    }
}

/// A worker thread ended that should not have: a defect, after which the process must not go on as if
/// it served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread of the proxy ended unexpectedly; the log above says where it panicked")]
pub struct WorkerLost;

/// The proxy as it starts.
#[derive(Debug)]
pub struct Proxy;

impl Proxy {
    /// Starts the workers and begins to follow the snapshot. `bound` is released once the ports of the first
    /// published snapshot are bound; some may fail as long as one does not. To be called within a tokio
    /// runtime, which carries no traffic.
    pub fn start(
        options: ProxyOptions,
        reader: Reader,
        bindings: BindingsWriter,
        meters: &Arc<TrafficMeters>,
        bound: Latch,
    ) -> io::Result<ProxyHandle> {
        let access_log = AccessLog::start(options.access_log, meters.clone())?;
        let (admission, tls) = (Admission::new(&options.limits), Arc::<Made>::default());
        let (mut workers, mut ends) = (Vec::new(), JoinSet::new());
        for number in 0..options.workers.get() {
            let (reader, limits, sink) = (reader.clone(), options.limits.clone(), access_log.sink());
            let (admission, tls, meters) = (admission.clone(), tls.clone(), meters.clone());
            let trusted = options.trusted.clone();
            let (commands, ended) = spawn_worker(number, move || {
                Worker::new(reader, limits, admission, tls, &trusted, meters, sink)
            })?;
            workers.push(commands);
            ends.spawn(ended);
        }
        let (probe, meters) = (options.memory, meters.clone());
        let overload = tokio::spawn(async move { admission.pressure.follow(probe, meters).await });
        let (stop, stopped) = oneshot::channel();
        let binder = Binder {
            reader,
            address: options.address,
            workers: workers.clone(),
            bindings,
            bound: Some(bound),
        };
        let binder = tokio::spawn(binder.run(stopped));
        Ok(ProxyHandle {
            workers,
            ends,
            binder,
            overload: AbortOnDropHandle::new(overload),
            stop,
            access_log,
        })
    }
}

/// The proxy as it runs. Dropping it ends the workers without draining.
#[derive(Debug)]
pub struct ProxyHandle {
    workers: Vec<mpsc::UnboundedSender<Command>>,
    ends: JoinSet<Result<(), oneshot::error::RecvError>>,
    binder: tokio::task::JoinHandle<()>,
    overload: AbortOnDropHandle<()>,
    stop: oneshot::Sender<()>,
    access_log: AccessLog,
}

impl ProxyHandle {
    /// Returns only if a worker thread is lost, or a task that looks after all of them.
    pub async fn failed(&mut self) -> WorkerLost {
        tokio::select! {
            _ = self.ends.join_next() => WorkerLost,
            // It ends by itself only when nobody publishes any more, which is no failure of ours.
            Err(_) = &mut self.binder => WorkerLost,
            _ = &mut self.overload => WorkerLost,
        }
    }

    /// Opens the file of the access log anew, because somebody moved it away.
    pub fn reopen_access_log(&self) {
        self.access_log.reopen();
    }

    /// Stops accepting, answers what is under way with `Connection: close` and ends the workers, within
    /// `deadline`. How many client connections had to be cut.
    pub async fn drain(mut self, deadline: Duration) -> usize {
        // The binder may have ended, then it opens no port either.
        let _ = self.stop.send(());
        let _ = (&mut self.binder).await;
        let draining = self.workers.iter().map(|worker| {
            let (done, cut) = oneshot::channel();
            // A worker that is gone has nothing to drain.
            let _ = worker.send(Command::Drain(deadline, done));
            cut
        });
        let mut total = 0;
        for cut in draining.collect::<Vec<_>>() {
            total += cut.await.unwrap_or(0);
        }
        while self.ends.join_next().await.is_some() {}
        self.access_log.finish().await;
        total
    }
}

type Ended = oneshot::Receiver<()>;

/// A thread with a runtime of its own. The receiver resolves when the thread has ended, however it did.
fn spawn_worker(
    number: usize,
    worker: impl FnOnce() -> Worker + Send + 'static,
) -> io::Result<(mpsc::UnboundedSender<Command>, Ended)> {
    let runtime = Builder::new_current_thread();
    let (commands, received) = mpsc::unbounded_channel();
    let (ending, ended) = oneshot::channel();
    thread::Builder::new().name(format!("guideway-worker-{number}")).spawn(move || {
        // Dropped last, also when the thread unwinds.
        let _ending = ending;
        run_worker(runtime, received, worker);
    })?;
    Ok((commands, ended))
}

fn run_worker(
    mut runtime: Builder,
    commands: mpsc::UnboundedReceiver<Command>,
    worker: impl FnOnce() -> Worker,
) {
    match runtime.enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime.block_on(Rc::new(worker()).run(commands)),
        Err(error) => tracing::error!(%error, "a worker thread cannot start; raise the limit of open files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_dies_is_a_failure() {
        let (commands, ended) = spawn_worker(0, || unreachable!("it dies as it starts")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let binder = tokio::spawn(async move {
            // Runs until it is stopped, as the real one does.
            let _ = stopped.await;
        });
        let mut ends = JoinSet::new();
        ends.spawn(ended);
        let access_log = AccessLog::start(AccessLogOptions::default(), Arc::default()).unwrap();
        let overload = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
        let workers = vec![commands];
        let mut handle = ProxyHandle { workers, ends, binder, overload, stop, access_log };
        assert_eq!(handle.failed().await, WorkerLost);
        assert_eq!(handle.drain(Duration::ZERO).await, 0);
    }
}
