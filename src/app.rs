//! Owns the composition: builds the parts, starts them, watches them, and drains them in order.
//! Nothing else knows all rooms.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::balance::pool::PortId;
use crate::handoff::{self, Reader};
use crate::metrics::Metrics;
use crate::proxy::{self, AccessLogOptions, Ceilings, Limits, MemoryProbe, Proxy, ProxyHandle, ProxyOptions};
use crate::readiness::Readiness;
use crate::source::file::PortProbe;
use crate::source::programmer::Programmer;
use crate::source::{Outlets, file, kubernetes};
use crate::vitals::Vitals;

/// What a process is to be.
#[derive(Debug)]
pub struct Options {
    /// Where pools come from.
    pub source: Source,
    /// Threads that carry traffic.
    pub workers: NonZeroUsize,
    /// Address the listeners bind; all addresses when absent.
    pub address: Option<IpAddr>,
    /// Clients that are believed to say for whom a request is.
    pub trusted_proxies: Vec<proxy::Network>,
    /// Where metrics and health are served.
    pub metrics_address: SocketAddr,
    /// Where the access log goes.
    pub access_log: AccessLogOptions,
    /// Ceilings in the place of those that the process finds for itself.
    pub ceilings: Ceilings,
    /// On leaving, time to go on accepting while clients and Services learn of it.
    pub drain_delay: Duration,
    /// After that, the longest wait for requests in flight.
    pub drain_timeout: Duration,
}

/// Where pools come from.
#[derive(Debug)]
pub enum Source {
    /// A file or folder.
    File(file::Options),
    /// A cluster.
    Cluster {
        /// How to reach it; the usual ways when absent.
        kubeconfig: Option<PathBuf>,
        /// Namespace of the Lease; that of the service account or context when absent.
        namespace: Option<String>,
        /// Name of this replica; the host's name when absent.
        identity: Option<String>,
        /// Namespaces to watch; all when empty.
        watch: Vec<String>,
    },
}

/// What the source of pools has to end in at least: it lets go of the lease, or writes the last seats. A disk that
/// does not answer is left behind.
const SOURCE_END: Duration = Duration::from_secs(5);

/// A running process.
#[derive(Debug)]
pub struct App {
    readiness: Readiness,
    reader: Reader,
    metrics: Arc<Metrics>,
    metrics_address: SocketAddr,
    proxy: ProxyHandle,
    source: JoinHandle<anyhow::Result<()>>,
    vitals: JoinHandle<std::io::Result<()>>,
    end_vitals: CancellationToken,
    stop: CancellationToken,
    drain_delay: Duration,
    drain_timeout: Duration,
}

impl App {
    /// Builds and starts everything. Fails when the metrics port is taken or the cluster's
    /// configuration cannot be read; an API server that is away is waited for.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let listener = Vitals::bind(options.metrics_address)
            .await
            .with_context(|| format!("metrics address {} (--metrics-address)", options.metrics_address))?;
        let metrics_address = listener.local_addr().context("metrics address")?;
        let (publisher, reader) = handoff::handoff();
        let (bindings, bound) = handoff::bindings(own_port(metrics_address, options.address));
        let metrics = Arc::new(Metrics::new(reader.clone(), bound.clone()));
        let readiness = Readiness::default();
        let (ports, pools) = (readiness.latch("listeners"), readiness.latch("pools"));
        let stop = CancellationToken::new();
        let source = {
            let address = options.address;
            let probe = PortProbe::new(move |port| proxy::can_open(address, port));
            let outlets = Outlets {
                programmer: Programmer::new(publisher, metrics.control()),
                bindings: bound,
                readiness: pools,
                metrics: metrics.control(),
            };
            start_source(options.source, outlets, probe, stop.clone()).await?
        };
        let proxy = ProxyOptions {
            workers: options.workers,
            address: options.address,
            limits: limits(&options.ceilings),
            memory: MemoryProbe::of_this_process(options.ceilings.memory.map(Into::into)),
            access_log: options.access_log,
            trusted: options.trusted_proxies.into(),
        };
        let proxy = Proxy::start(proxy, reader.clone(), bindings, metrics.traffic(), ports)
            .context("the proxy cannot start")?;
        let vitals = Vitals::new(metrics.clone(), readiness.clone());
        let end_vitals = CancellationToken::new();
        let vitals = tokio::spawn(vitals.serve(listener, end_vitals.clone()));
        let (drain_delay, drain_timeout) = (options.drain_delay, options.drain_timeout);
        tracing::info!(workers = options.workers, metrics = %metrics_address, "started");
        Ok(Self {
            readiness,
            reader,
            metrics,
            metrics_address,
            proxy,
            source,
            vitals,
            end_vitals,
            stop,
            drain_delay,
            drain_timeout,
        })
    }

    /// The snapshot in use.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Everything that can be scraped.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Whether traffic may be sent here.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Where metrics and health are served, with the port that was chosen for port 0.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_address
    }

    /// Returns only when a part ended that should run for ever, and says which.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            lost = self.proxy.failed() => lost.into(),
            ended = &mut self.source => what_ended("source of pools", ended),
            ended = &mut self.vitals => what_ended("metrics port", ended.map(|it| it.map_err(Into::into))),
        }
    }

    /// Opens the file of the access log anew, because somebody moved it away.
    pub fn reopen_access_log(&self) {
        self.proxy.reopen_access_log();
    }

    /// Leaves in order: unready, wait until others know, stop accepting, drain, let go of the lease.
    /// Metrics and health answer to the last.
    pub async fn drain(self) -> anyhow::Result<()> {
        self.readiness.drain();
        tracing::info!(delay = ?self.drain_delay, "leaving: unready, still accepting");
        tokio::time::sleep(self.drain_delay).await;
        tracing::info!(timeout = ?self.drain_timeout, "leaving: no new connections, finishing requests");
        let end = Instant::now() + self.drain_timeout;
        let cut = self.proxy.drain(self.drain_timeout).await;
        if cut > 0 {
            tracing::warn!(connections = cut, "leaving: connections cut at the drain timeout");
        }
        self.stop.cancel();
        match timeout_at(end.max(Instant::now() + SOURCE_END), self.source).await {
            Ok(ended) => ended.context("the source of pools died")??,
            Err(_) => tracing::error!("leaving: the source of pools does not end; leaving without it"),
        }
        self.end_vitals.cancel();
        self.vitals.await.context("the metrics port died")?.context("the metrics port")?;
        tracing::info!("left");
        Ok(())
    }
}

fn limits(ceilings: &Ceilings) -> Limits {
    let found = Limits::of_this_process();
    let (most, limits) = (found.connections, found.under(ceilings));
    if limits.connections > most {
        let wanted = limits.connections;
        tracing::warn!(
            "--max-connections {wanted}: open files are enough for {most}; raise their limit, or backends may be out \
             of reach"
        );
    }
    limits
}

fn what_ended(part: &str, ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("the {part} ended by itself"),
        Ok(Err(error)) => error,
        Err(error) => anyhow::Error::new(error).context(format!("the {part} died")),
    }
}

/// The port of the metrics, where it is in the way of listeners on `address`.
pub(crate) fn own_port(metrics: SocketAddr, address: Option<IpAddr>) -> Option<PortId> {
    // What is bound to all IPv6 addresses takes IPv4 as well.
    let covers = |a: IpAddr, b: IpAddr| a == b || (a.is_unspecified() && (a.is_ipv6() || b.is_ipv4()));
    let meets = |listeners| covers(listeners, metrics.ip()) || covers(metrics.ip(), listeners);
    address.is_none_or(meets).then_some(PortId::Tcp(metrics.port()))
}

async fn start_source(
    source: Source,
    outlets: Outlets,
    probe: PortProbe,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    Ok(match source {
        Source::File(options) => {
            tokio::spawn(async move { Ok(file::run(options, outlets, probe, stop).await?) })
        }
        Source::Cluster { kubeconfig, namespace, identity, watch } => {
            let config = cluster_config(kubeconfig).await?;
            let options = kubernetes::Options {
                namespaces: watch,
                lease_namespace: namespace.unwrap_or_else(|| config.default_namespace.clone()),
                identity: identity.map_or_else(host_name, Ok)?,
            };
            let client = kubernetes::connect(config).context("the cluster's configuration cannot be used")?;
            tokio::spawn(async move { Ok(kubernetes::run(client, options, outlets, stop).await?) })
        }
    })
}

async fn cluster_config(kubeconfig: Option<PathBuf>) -> anyhow::Result<kube::Config> {
    let Some(path) = kubeconfig else {
        return kube::Config::infer().await.context(
            "no cluster found: run in a pod, set KUBECONFIG or --kubeconfig, or serve a file with --file",
        );
    };
    let config = kube::config::Kubeconfig::read_from(&path)
        .with_context(|| format!("--kubeconfig {}", path.display()))?;
    let options = kube::config::KubeConfigOptions::default();
    kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .with_context(|| format!("--kubeconfig {}", path.display()))
}

/// The host's name, which in a pod is the pod's name.
fn host_name() -> anyhow::Result<String> {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").context("the host's name; set --identity")?;
    match name.trim() {
        "" => bail!("the host has no name; set --identity"),
        name => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_ours_where_listeners_could_not_be_beside_the_metrics() {
        for (metrics, listeners, is_ours) in [
            ("0.0.0.0", None, true),
            ("127.0.0.1", None, true),
            ("127.0.0.1", Some("127.0.0.1"), true),
            ("127.0.0.1", Some("0.0.0.0"), true),
            ("127.0.0.1", Some("::"), true),
            ("::", Some("127.0.0.1"), true),
            ("0.0.0.0", Some("192.0.2.1"), true),
            ("0.0.0.0", Some("::1"), false),
            ("127.0.0.1", Some("192.0.2.1"), false),
            ("::1", Some("0.0.0.0"), false),
        ] {
            let metrics = SocketAddr::new(metrics.parse().unwrap(), 9901);
            let listeners = listeners.map(|it| it.parse().unwrap());
            assert_eq!(
                own_port(metrics, listeners),
                is_ours.then_some(PortId::Tcp(9901)),
                "{metrics} {listeners:?}"
            );
        }
    }
}
