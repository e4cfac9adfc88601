//! Owns `guideway demo`: ten backends, a pool, the proxy and live figures, all on loopback and in this
//! process. Nothing is left behind when it ends.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::{self, App, Options, Source};
use crate::balance::pool::PortId;
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

/// What the demo is to show. A value that makes no sense is kept as the reason why, so that it does not hide the next.
#[derive(Args, Debug)]
pub(super) struct Flags {
    /// Send traffic: keep-alive connections, with keys in the header x-user
    #[arg(long)]
    load: bool,

    /// Requests per second of the load
    #[arg(long, value_name = "N", default_value = "2000", requires = "load", value_parser = kept(number))]
    rate: Read<NonZeroU32>,

    /// Connections of the load
    #[arg(long, value_name = "N", default_value = "50", requires = "load", value_parser = kept(number))]
    connections: Read<NonZeroU32>,

    /// Keys of the load; their moves are counted without load as well [default: 1000, fewer where --rate does not send
    /// so many between two switches]
    #[arg(long, value_name = "N", value_parser = kept(number))]
    keys: Option<Read<NonZeroU32>>,

    /// Switch a backend off, at the next beat on again, and so on, at this beat; 1s at least, 0s never
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = kept(parse_duration))]
    switch: Read<Duration>,

    /// End after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = kept(parse_duration))]
    length: Option<Read<Duration>>,

    /// Port of the proxy on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value = "8080", value_parser = kept(port))]
    port: Read<u16>,

    /// First of the ten ports of the backends on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value = "8081", value_parser = kept(port))]
    backend_port: Read<u16>,

    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9901", value_parser = kept(address))]
    metrics_address: Read<SocketAddr>,
}

/// A value, or why there is none.
type Read<T> = Result<T, String>;

/// Has clap keep what `read` says, good or bad.
fn kept<T: 'static>(read: fn(&str) -> Read<T>) -> impl Fn(&str) -> Result<Read<T>, Infallible> + Clone {
    move |text| Ok(read(text))
}

fn number(text: &str) -> Read<NonZeroU32> {
    text.parse().map_err(|_| format!("`{text}` is no number above 0; write one such as 100"))
}

fn port(text: &str) -> Read<u16> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("`{text}` is no port; use 1 to 65535"))
}

fn address(text: &str) -> Read<SocketAddr> {
    text.parse().map_err(|_| format!("`{text}` is no address; write IP:PORT, such as 127.0.0.1:9901"))
}

/// Checked flags.
#[derive(Clone, Copy, Debug)]
struct Plan {
    load: bool,
    rate: NonZeroU32,
    connections: NonZeroU32,
    /// The keys to follow.
    keys: NonZeroU32,
    /// Absent where no backend is switched.
    beat: Option<Duration>,
    length: Option<Duration>,
    port: u16,
    backend_port: u16,
    metrics_address: SocketAddr,
}

impl Flags {
    /// What is to be done, or every mistake in it.
    fn check(self) -> Result<Plan, Vec<String>> {
        let mut mistakes = Vec::new();
        let (rate, connections) =
            (take("rate", self.rate, &mut mistakes), take("connections", self.connections, &mut mistakes));
        let keys = self.keys.map(|it| take("keys", it, &mut mistakes));
        let switch = take("switch", self.switch, &mut mistakes);
        let length = self.length.map(|it| take("for", it, &mut mistakes));
        let (port, backend_port) =
            (take("port", self.port, &mut mistakes), take("backend-port", self.backend_port, &mut mistakes));
        let metrics_address = take("metrics-address", self.metrics_address, &mut mistakes);
        mistakes.extend(clashes(port, backend_port, metrics_address));
        let rate_of_load = self.load.then_some(rate);
        let keys = followed(keys, switch, rate_of_load).unwrap_or_else(|mistake| {
            mistakes.push(mistake);
            None
        });
        let plan = || {
            Some(Plan {
                load: self.load,
                rate: rate?,
                connections: connections?,
                keys: keys?,
                beat: switch.filter(|it| !it.is_zero()),
                length: length.flatten(),
                port: port?,
                backend_port: backend_port?,
                metrics_address: metrics_address?,
            })
        };
        plan().filter(|_| mistakes.is_empty()).ok_or(mistakes)
    }
}

fn take<T>(flag: &str, value: Read<T>, mistakes: &mut Vec<String>) -> Option<T> {
    value.map_err(|reason| mistakes.push(format!("--{flag}: {reason}"))).ok()
}

/// What is wrong with the ports beside each other. What could not be read is wrong already.
fn clashes(port: Option<u16>, first: Option<u16>, metrics: Option<SocketAddr>) -> Vec<String> {
    let mut mistakes = Vec::new();
    let last = first.and_then(|first| {
        let last = first.checked_add(BACKENDS - 1);
        if last.is_none() {
            let most = u16::MAX - (BACKENDS - 1);
            mistakes.push(format!(
                "--backend-port: {BACKENDS} backends do not fit from {first} on; use 1 to {most}"
            ));
        }
        last
    });
    let of_backends = first.zip(last).map(|(first, last)| first..=last);
    let metrics = metrics.and_then(|it| app::own_port(it, Some(LOOPBACK))).map(PortId::number);
    for (flag, own) in [("port", port), ("metrics-address", metrics)] {
        let taken = own.zip(of_backends.as_ref()).filter(|(own, taken)| taken.contains(own));
        if let Some((own, taken)) = taken {
            let (first, last) = (taken.start(), taken.end());
            mistakes.push(format!(
                "--{flag}: {own} is among the backends' ports {first} to {last}; use another port"
            ));
        }
    }
    if let Some(own) = metrics.filter(|_| metrics == port) {
        mistakes.push(format!("--metrics-address: {own} is the proxy's port; use another port"));
    }
    mistakes
}

/// The keys to follow; none where something that decides them could not be read. Between two switches each must have
/// been answered, or the count of those that moved is wrong. `rate` is absent without load.
fn followed(
    keys: Option<Option<NonZeroU32>>,
    switch: Option<Duration>,
    rate: Option<Option<NonZeroU32>>,
) -> Result<Option<NonZeroU32>, String> {
    let Some(switch) = switch else { return Ok(None) };
    if !switch.is_zero() && switch < BEAT_MIN {
        return Err(format!(
            "--switch: {switch:?} is too short; use {BEAT_MIN:?} or more, or 0s, which never switches"
        ));
    }
    let Some(rate) = rate.filter(|_| !switch.is_zero()) else { return Ok(keys.unwrap_or(Some(KEYS))) };
    let Some(rate) = rate else { return Ok(None) };
    let most = Show::keys_followed(switch, rate);
    let help = "use a higher --rate or a longer --switch";
    let most = NonZeroU32::new(most).ok_or_else(|| {
        format!("--rate: at {rate} and a beat of {switch:?} no key can be followed; {help}")
    })?;
    let Some(keys) = keys.unwrap_or(Some(KEYS.min(most))) else { return Ok(None) };
    if keys > most {
        return Err(format!(
            "--keys: {keys} are too many with --rate {rate} and a beat of {switch:?}: {most} keys can be followed; use \
             fewer, or {help}"
        ));
    }
    Ok(Some(keys))
}

/// Runs until its time is over or it is told to stop. Exit code 2 for flags that cannot be used.
pub(super) fn execute(flags: Flags) -> anyhow::Result<ExitCode> {
    let plan = match flags.check() {
        Ok(plan) => plan,
        Err(mistakes) => return Ok(super::refuse(&mistakes)),
    };
    // The page belongs to the figures; only what goes wrong may break into it.
    telemetry::start(&Log { format: LogFormat::Text, levels: "warn".parse()? })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("guideway-control")
        .enable_all()
        .build()?;
    let done = runtime.block_on(perform(plan));
    // A disk that does not answer may keep a task for ever.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

async fn perform(plan: Plan) -> anyhow::Result<()> {
    let stop = told_to_stop(plan.length)?;
    let stage = Stage::open().context("cannot start the demo's thread")?;
    let backends = backends(&stage, plan.backend_port).await?;
    ensure_free(plan.port).await?;
    let board = Switchboard::create(plan.port, backends.iter().map(BackendHandle::address))
        .context("cannot write the demo's pool into the folder for temporary files")?;
    let mut app = start(&board, &plan).await?;

    let url = format!("http://127.0.0.1:{}", plan.port);
    let load = plan.load.then(|| load(&stage, &plan, &url)).transpose()?;
    let metrics_url = format!("http://{}/metrics", app.metrics_address());
    let cast = Cast { board, backends, reader: app.reader().clone(), load, beat: plan.beat };
    let mut show = Show::new(cast, plan.keys.get(), url, metrics_url);
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

async fn start(board: &Switchboard, plan: &Plan) -> anyhow::Result<App> {
    let mut app = App::start(Options {
        trusted_proxies: Vec::new(),
        source: Source::File(file::Options { path: board.file(), state_dir: None }),
        workers: std::thread::available_parallelism()?,
        address: Some(LOOPBACK),
        metrics_address: plan.metrics_address,
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

fn load(stage: &Stage, plan: &Plan, url: &str) -> anyhow::Result<RunningLoad> {
    let Plan { rate, connections, keys, .. } = *plan;
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    fn plan(arguments: &str) -> Result<Plan, String> {
        let arguments = arguments.split_whitespace();
        let flags = Command::try_parse_from(std::iter::once("demo").chain(arguments)).unwrap().flags;
        flags.check().map_err(|mistakes| mistakes.join("\n"))
    }

    fn check_refused(arguments: &str, expected: &str) {
        assert_eq!(plan(arguments).unwrap_err(), expected, "{arguments}");
    }

    #[test]
    fn without_flags_a_thousand_keys_are_followed_every_ten_seconds() {
        let plan = plan("").unwrap();
        assert_eq!((plan.port, plan.backend_port, plan.metrics_address.port()), (8080, 8081, 9901));
        assert_eq!(
            (plan.keys, plan.beat, plan.length, plan.load),
            (KEYS, Some(Duration::from_secs(10)), None, false)
        );
    }

    #[test]
    fn fewer_keys_are_followed_by_a_slow_load_and_any_number_where_nothing_switches() {
        let keys = |arguments| plan(arguments).unwrap().keys.get();
        assert_eq!(keys("--load --rate=200 --switch=1s"), 30);
        assert_eq!(keys("--load --rate=1 --switch=0s"), 1000);
        assert_eq!(keys("--switch=1s --keys=7000"), 7000);
        assert_eq!(plan("--switch=0s").unwrap().beat, None);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        check_refused(
            "--port 0 --backend-port 65530 --switch 10ms --load --rate 0 --metrics-address 9901 --for soon",
            "--rate: `0` is no number above 0; write one such as 100\n\
             --for: \"soon\" is no duration; write for example 50ms, 10s or 1m30s\n\
             --port: `0` is no port; use 1 to 65535\n\
             --metrics-address: `9901` is no address; write IP:PORT, such as 127.0.0.1:9901\n\
             --backend-port: 10 backends do not fit from 65530 on; use 1 to 65526\n\
             --switch: 10ms is too short; use 1s or more, or 0s, which never switches",
        );
        check_refused(
            "--load --connections=many --keys=1000 --rate=200 --switch=1s",
            "--connections: `many` is no number above 0; write one such as 100\n\
             --keys: 1000 are too many with --rate 200 and a beat of 1s: 30 keys can be followed; use fewer, or use a \
             higher --rate or a longer --switch",
        );
    }

    #[test]
    fn everyone_has_a_port_of_their_own() {
        let backends = "is among the backends' ports 8081 to 8090; use another port";
        check_refused("--port=8090", &format!("--port: 8090 {backends}"));
        check_refused("--metrics-address=[::]:8081", &format!("--metrics-address: 8081 {backends}"));
        check_refused(
            "--metrics-address=127.0.0.1:8080",
            "--metrics-address: 8080 is the proxy's port; use another port",
        );
        assert!(plan("--metrics-address=127.0.0.2:8080").is_ok(), "another address");
        assert!(plan("--backend-port=65526").is_ok() && plan("--backend-port=65527").is_err());
    }
}
