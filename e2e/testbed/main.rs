//! `guideway-testbed`: what the end-to-end tests put into pods: a demo backend that obeys the test,
//! and a load generator that is asked for its report through the API server's pod proxy.

mod answers;
mod calls;
mod carry;
mod control;
mod echo;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser};
use guideway::demo::backend::DemoBackend;
use guideway::demo::handshakes::{Handshakes, Watched};
use guideway::demo::load::{Load, LoadPlan, Pace, Target};
use guideway::demo::orders::parse_duration;
use rustls::pki_types::ServerName;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
#[command(about = "Backends and load for Guideway's end-to-end tests", version)]
enum Testbed {
    /// A demo backend.
    Backend(BackendArgs),
    /// A load generator; prints its report as JSON. Exit 1 when a request failed.
    Load(LoadArgs),
    /// A watch on the certificates that some addresses show.
    Handshakes(HandshakesArgs),
    /// A client that calls as those of gRPC do; prints as JSON who answered. Exit 1 when a call failed.
    Calls(CallsArgs),
    /// A client of backends that echo; prints as JSON who answered. Exit 1 when anything was lost.
    Carry(CarryArgs),
}

#[derive(Args)]
struct BackendArgs {
    /// Port to serve on, all addresses.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Name it answers with.
    #[arg(long, env = "HOSTNAME")]
    name: String,
    /// Begins with a failing `GET /ready`.
    #[arg(long)]
    unready: bool,
    /// Goes on serving for so long after SIGTERM, as an application with a preStop pause does.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    linger: Duration,
    /// Also gives back what it gets on the TCP and the UDP port of this number, behind a line with its name.
    #[arg(long)]
    echo: Option<u16>,
    /// Also answers calls as servers of gRPC do, on the TCP port of this number.
    #[arg(long)]
    calls: Option<u16>,
    #[command(flatten)]
    identity: answers::Identity,
}

#[derive(Args)]
struct CallsArgs {
    /// Where to connect to.
    #[arg(long = "target", required = true)]
    targets: Vec<SocketAddr>,
}

#[derive(Args)]
struct CarryArgs {
    /// Where to connect and send to.
    #[arg(long = "target", required = true)]
    targets: Vec<SocketAddr>,
}

#[derive(Args)]
struct LoadArgs {
    /// Where to send; given more than once, the connections are spread over the targets.
    #[arg(long = "target", required = true)]
    targets: Vec<Target>,
    /// Requests per second; without it every connection sends as fast as it is answered.
    #[arg(long)]
    rate: Option<NonZeroU32>,
    /// Keys, sent round robin as `x-user: key-I`.
    #[arg(long, default_value = "1000")]
    keys: NonZeroU32,
    /// Keep-alive connections.
    #[arg(long, default_value = "16")]
    connections: NonZeroU32,
    /// Ends after so long; without it at SIGTERM, SIGINT or `POST /stop`.
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// A request that takes longer has failed.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    timeout: Duration,
    /// Serves `GET /report`, `GET /trails` and `POST /stop` here, and stays until SIGTERM.
    #[arg(long)]
    control: Option<SocketAddr>,
}

#[derive(Args)]
struct HandshakesArgs {
    /// Where to connect to.
    #[arg(long = "target", required = true)]
    targets: Vec<SocketAddr>,
    /// Name to ask for.
    #[arg(long, value_parser = server_name)]
    name: ServerName<'static>,
    /// Certificates of the authorities to trust, as PEM.
    #[arg(long, env = "ROOTS")]
    roots: String,
    /// Pause between two requests to a target.
    #[arg(long, default_value = "20ms", value_parser = parse_duration)]
    pause: Duration,
    /// Serves `GET /sightings` here, until SIGTERM.
    #[arg(long)]
    control: SocketAddr,
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|error| error.to_string())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    match Testbed::parse() {
        Testbed::Backend(args) => backend(args).await,
        Testbed::Load(args) => load(args).await,
        Testbed::Handshakes(args) => handshakes(args).await,
        Testbed::Calls(args) => calls(args).await,
        Testbed::Carry(args) => carry(args).await,
    }
}

async fn backend(args: BackendArgs) -> anyhow::Result<ExitCode> {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), args.port);
    let backend =
        DemoBackend::bind(&args.name, address).await.with_context(|| format!("cannot serve on {address}"))?;
    let (handle, stop) = (backend.handle(), CancellationToken::new());
    handle.set_ready(!args.unready);
    println!("{} serves on {}", handle.name(), handle.address());
    if let Some(port) = args.echo {
        echo::start(&args.name, port).await?;
    }
    if let Some(port) = args.calls {
        answers::start(&args.name, port, &args.identity).await?;
    }
    let terminated = terminated()?;
    let serving = tokio::spawn(backend.serve(stop.clone()));
    terminated.cancelled().await;
    handle.set_ready(false);
    tokio::time::sleep(args.linger).await;
    stop.cancel();
    serving.await.context("the backend ended badly")?;
    Ok(ExitCode::SUCCESS)
}

async fn load(args: LoadArgs) -> anyhow::Result<ExitCode> {
    let terminated = terminated()?;
    until_reachable(&args.targets).await;
    let plan = LoadPlan {
        targets: args.targets,
        pace: args.rate.map_or(Pace::Closed, Pace::Open),
        connections: args.connections,
        keys: args.keys,
        duration: args.duration,
        timeout: args.timeout,
    };
    let load = Load::start(plan, terminated.child_token());
    if let Some(address) = args.control {
        control::serve(address, load.clone(), terminated.clone()).await?;
    }
    load.ended().await;
    let report = load.report(false);
    println!("{}", serde_json::to_string(&report)?);
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits until connections to every target come about: kube-proxy may know a new Service later than we do, and what
/// it refuses meanwhile is no failure of what is tested. A target that stays out of reach shows in the report.
async fn until_reachable(targets: &[Target]) {
    const PATIENCE: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_millis(50);
    let all = async {
        for target in targets {
            while !target.accepts().await {
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, all).await;
}

async fn handshakes(args: HandshakesArgs) -> anyhow::Result<ExitCode> {
    let terminated = terminated()?;
    let HandshakesArgs { targets: addresses, name, roots, pause, control } = args;
    let watched = Watched { addresses, name, roots, pause, timeout: Duration::from_secs(5) };
    let watch = Handshakes::start(watched, &terminated).context("--roots")?;
    control::serve_sightings(control, watch, terminated).await?;
    Ok(ExitCode::SUCCESS)
}

async fn calls(args: CallsArgs) -> anyhow::Result<ExitCode> {
    println!("{}", calls::answers(&args.targets).await?);
    Ok(ExitCode::SUCCESS)
}

async fn carry(args: CarryArgs) -> anyhow::Result<ExitCode> {
    println!("{}", carry::answers(&args.targets).await?);
    Ok(ExitCode::SUCCESS)
}

/// Cancelled at the first SIGTERM or SIGINT. A process that is PID 1 of its pod has no default for them.
fn terminated() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        cancelled.cancel();
    });
    Ok(token)
}
