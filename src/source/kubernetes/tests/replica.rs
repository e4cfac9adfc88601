//! Owns a whole replica of Guideway, as far as this source goes, and the little shop that it serves.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;

use super::super::{Error, Options, Paces, Source};
use super::api_server::ApiServer;
use super::fixtures::*;
use crate::handoff::{Reader, bindings, handoff};
use crate::metrics::ControlMetrics;
use crate::readiness::Readiness;
use crate::source::Outlets;
use crate::source::programmer::Programmer;

/// For what has no promise of its own.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

/// One replica.
pub(super) struct Replica {
    pub(super) reader: Reader,
    pub(super) readiness: Readiness,
    metrics: ControlMetrics,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Replica {
    pub(super) fn start(server: &ApiServer, identity: &str) -> Self {
        let (publisher, reader) = handoff();
        let (_, bindings) = bindings(None);
        let (metrics, readiness, stop) =
            (ControlMetrics::default(), Readiness::default(), CancellationToken::new());
        let source = Source {
            client: server.client(),
            options: Options {
                namespaces: vec![],
                lease_namespace: "guideway-system".into(),
                identity: identity.into(),
            },
            paces: Paces::default(),
            outlets: Outlets {
                programmer: Programmer::new(publisher, metrics.clone()),
                bindings,
                readiness: readiness.latch("first full picture"),
                metrics: metrics.clone(),
            },
        };
        let running = tokio::spawn(source.run(stop.clone()));
        Self { reader, readiness, metrics, stop, running }
    }

    /// Names of the members of `shop/web` that are ready.
    pub(super) fn ready(&self) -> Vec<String> {
        use crate::balance::backend::State;
        let snapshot = self.reader.load();
        let members = snapshot.pool(&web()).map(|pool| &pool.members[..]).unwrap_or_default();
        let ready = members.iter().filter(|member| member.state == State::Ready);
        ready.map(|member| member.backend.name.to_string()).collect()
    }

    /// Waits until exactly these are ready, and returns how long that took.
    pub(super) async fn becomes(&mut self, names: &[&str]) -> Duration {
        let began = Instant::now();
        let reached = timeout(PATIENCE, async {
            while self.ready() != names {
                assert!(self.reader.changed().await);
            }
        });
        assert!(reached.await.is_ok(), "{:?} instead of {names:?}", self.ready());
        began.elapsed()
    }

    /// The value of the series `name`, labels and all; `None` where there is no such series.
    pub(super) fn metric(&self, name: &str) -> Option<f64> {
        let (mut registry, mut text) = (Registry::default(), String::new());
        registry.register_collector(Box::new(self.metrics.clone()));
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value)
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.running).await.unwrap().unwrap().unwrap();
    }
}

pub(super) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let reached = timeout(PATIENCE, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(reached.await.is_ok(), "{what}");
}

pub(super) fn put_pod(server: &ApiServer, pod: PodBuilder) {
    server.put("pods", &pod.object());
}

/// A server with the pool, the Service and the ready pods `web-1` and `web-2`.
pub(super) async fn shop() -> ApiServer {
    let server = ApiServer::start();
    server.put("loadbalancerpools", &pool());
    server.put("services", &service("web"));
    for name in ["web-1", "web-2"] {
        put_pod(&server, pod(name).ready());
    }
    server.put("endpointslices", &slice("a", &[endpoint("web-1", true), endpoint("web-2", true)]));
    server
}

/// What was logged by this thread, on which everything of a test runs.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Listens as long as what it returns lives. The second subscriber hears nothing: with a single one alive, a line
    /// that a thread without any is the first to reach counts as unheard everywhere.
    pub(super) fn listen(&self) -> (DefaultGuard, Dispatch) {
        let log = self.clone();
        let format = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone());
        let guard = tracing::subscriber::set_default(format.finish());
        (guard, Dispatch::new(tracing_subscriber::registry()))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Lines in which all of these words stand.
    pub(super) fn lines_with(&self, words: &[&str]) -> usize {
        self.text().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
