//! Owns `guideway demo`: ten backends, a pool, the proxy and live figures, all on loopback and in this
//! process. Nothing is left behind when it ends.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Options, Source};
use crate::demo::backend::BackendHandle;
use crate::demo::load::{LoadPlan, Pace};
use crate::demo::orders::parse_duration;
use crate::demo::show::{BEAT_MIN, Cast, RunningLoad, Show};
use crate::demo::stage::Stage;
use crate::demo::switchboard::Switchboard;
use crate::proxy::{AccessLogOptions, Ceilings};
use crate::settings::{Log, LogFormat};
use crate::source::file;
use crate::telemetry;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const BACKENDS: u16 = 10;
/// Enough that a tenth of them is a figure to look at.
const KEYS: NonZeroU32 = NonZeroU32::new(1000).expect("above zero");
/// Threads of the control plane and the figures.
const CONTROL_THREADS: usize = 2;
/// From start to ready takes a few milliseconds; after this something is wrong.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Requests of a demo are short.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// A request of the load that takes longer has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What the demo is to show.
#[derive(Args, Debug)]
pub(super) struct Flags {
    /// Send traffic: keep-alive connections, with keys in the header x-user
    #[arg(long)]
    load: bool,

    /// Requests per second of the load
    #[arg(long, value_name = "N", default_value = "2000", requires = "load")]
    rate: NonZeroU32,

    /// Connections of the load
    #[arg(long, value_name = "N", default_value = "50", requires = "load")]
    connections: NonZeroU32,

    /// Keys of the load; their moves are counted without load as well [default: 1000, fewer where --rate does not send
    /// so many between two switches]
    #[arg(long, value_name = "N")]
    keys: Option<NonZeroU32>,

    /// Switch a backend off, at the next beat on again, and so on, at this beat; 1s at least, 0s never
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    switch: Duration,

    /// End after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    length: Option<Duration>,

    /// Port of the proxy on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,

    /// First of the ten ports of the backends on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    backend_port: u16,

    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9901")]
    metrics_address: SocketAddr,
}

/// Runs until its time is over or it is told to stop.
pub(super) fn execute(flags: Flags) -> anyhow::Result<ExitCode> {
    // The page belongs to the figures; only what goes wrong may break into it.
    telemetry::start(&Log { format: LogFormat::Text, levels: "warn".parse()? })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("guideway-control")
        .enable_all()
        .build()?;
    let done = runtime.block_on(perform(flags));
    // A disk that does not answer may keep a task for ever.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

async fn perform(flags: Flags) -> anyhow::Result<()> {
    let keys = keys(&flags)?;
    let stop = told_to_stop(flags.length)?;
    let stage = Stage::open().context("cannot start the demo's thread")?;
    let backends = backends(&stage, flags.backend_port).await?;
    ensure_free(flags.port).await?;
    let board = Switchboard::create(flags.port, backends.iter().map(BackendHandle::address))
        .context("cannot write the demo's pool into the folder for temporary files")?;
    let mut app = start(&board, &flags).await?;

    let url = format!("http://127.0.0.1:{}", flags.port);
    let load = flags.load.then(|| load(&stage, &flags, keys, &url)).transpose()?;
    let metrics_url = format!("http://{}/metrics", app.metrics_address());
    let beat = (!flags.switch.is_zero()).then_some(flags.switch);
    let cast = Cast { board, backends, reader: app.reader().clone(), load, beat };
    let mut show = Show::new(cast, keys.get(), url, metrics_url);
    tokio::select! {
        shown = show.run(&stop) => shown.context("cannot write to standard output")?,
        failure = app.failed() => return Err(failure),
    }
    let summary = show.end_load().await;
    app.drain().await?;
    drop(show);
    stage.close().await.context("the demo's backends ended badly")?;
    summary.into_iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// The keys to follow. Between two switches each must have been answered, or the count of those that moved is wrong.
fn keys(flags: &Flags) -> anyhow::Result<NonZeroU32> {
    let Flags { load, rate, keys, switch, .. } = *flags;
    if switch.is_zero() {
        return Ok(keys.unwrap_or(KEYS));
    }
    ensure!(switch >= BEAT_MIN, "--switch {switch:?}: the shortest beat is {BEAT_MIN:?}; 0s never switches");
    if !load {
        return Ok(keys.unwrap_or(KEYS));
    }
    let most = Show::keys_followed(switch, rate);
    let help = "use a higher --rate or a longer --switch";
    let most = NonZeroU32::new(most)
        .with_context(|| format!("--rate {rate}: at a beat of {switch:?} no key can be followed; {help}"))?;
    let keys = keys.unwrap_or(KEYS.min(most));
    ensure!(
        keys <= most,
        "--keys {keys}: with --rate {rate} and a beat of {switch:?}, {most} keys can be followed; use fewer, or {help}"
    );
    Ok(keys)
}

/// Cancelled when the time is over, or at the first SIGINT or SIGTERM.
fn told_to_stop(length: Option<Duration>) -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        let over = async {
            match length {
                Some(length) => tokio::time::sleep(length).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { () = over => {}, _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        told.cancel();
    });
    Ok(stop)
}

async fn backends(stage: &Stage, first_port: u16) -> anyhow::Result<Vec<BackendHandle>> {
    ensure!(
        first_port <= u16::MAX - BACKENDS,
        "--backend-port {first_port}: there are no {BACKENDS} ports from there on"
    );
    let mut backends = Vec::new();
    for number in 0..BACKENDS {
        let address = SocketAddr::new(LOOPBACK, first_port + number);
        let backend = stage.backend(&format!("Backend-{}", number + 1), address).await;
        backends.push(backend.with_context(|| {
            format!("{address} is not free for a backend; choose other ports with --backend-port")
        })?);
    }
    Ok(backends)
}

/// The proxy shares its ports with other processes of the same user, as a restart needs; a demo must
/// not share one with a Guideway that is already there.
async fn ensure_free(port: u16) -> anyhow::Result<()> {
    let address = SocketAddr::new(LOOPBACK, port);
    let free = tokio::net::TcpListener::bind(address).await;
    free.map(drop)
        .with_context(|| format!("{address} is not free for the proxy; choose another port with --port"))
}

async fn start(board: &Switchboard, flags: &Flags) -> anyhow::Result<App> {
    let mut app = App::start(Options {
        trusted_proxies: Vec::new(),
        source: Source::File(file::Options { path: board.file(), state_dir: None }),
        workers: std::thread::available_parallelism()?,
        address: Some(LOOPBACK),
        metrics_address: flags.metrics_address,
        access_log: AccessLogOptions::default(),
        ceilings: Ceilings::default(),
        drain_delay: Duration::ZERO,
        drain_timeout: DRAIN_TIMEOUT,
    })
    .await?;
    let readiness = app.readiness().clone();
    let ready = async {
        while !readiness.is_ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = ready => Ok(app),
        failure = app.failed() => Err(failure),
        () = tokio::time::sleep(START_LIMIT) => bail!("not ready after {START_LIMIT:?}: {:?} is missing", readiness.missing()),
    }
}

fn load(stage: &Stage, flags: &Flags, keys: NonZeroU32, url: &str) -> anyhow::Result<RunningLoad> {
    let Flags { rate, connections, .. } = *flags;
    let plan = LoadPlan {
        targets: vec![url.parse().map_err(anyhow::Error::msg)?],
        pace: Pace::Open(rate),
        connections,
        keys,
        duration: None,
        timeout: REQUEST_TIMEOUT,
    };
    let round = Duration::from_secs_f64(f64::from(keys.get()) / f64::from(rate.get()));
    Ok(RunningLoad { load: stage.load(plan), connections: connections.get(), round })
}
