//! Owns `guideway run`: serves pools from a cluster or a file until it is told to leave, in order on SIGTERM, SIGINT
//! and SIGQUIT. On SIGHUP it opens the file of the access log anew.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::app::{App, Options, Source};
use crate::settings::{self, Flags, Settings};
use crate::source::file;
use crate::telemetry;

/// Threads of the control plane. Two, so that a scrape is answered while tables are built.
const CONTROL_THREADS: usize = 2;

/// Runs until told to stop. Exit code 2 for settings that cannot be used, 1 when a part failed.
pub(super) fn execute(flags: Flags) -> anyhow::Result<ExitCode> {
    let settings = match Settings::check(flags) {
        Ok(settings) => settings,
        Err(mistakes) => return Ok(super::refuse(&mistakes)),
    };
    telemetry::start(&settings.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("guideway-control")
        .enable_all()
        .build()?;
    let done = runtime.block_on(serve(settings));
    // A disk that does not answer may keep a task for ever.
    runtime.shutdown_background();
    done.map(|()| ExitCode::SUCCESS)
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (mut quit, mut hangup) = (signal(SignalKind::quit())?, signal(SignalKind::hangup())?);
    let mut app = tokio::select! {
        app = App::start(options(settings)) => app?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        _ = quit.recv() => return Ok(()),
    };
    loop {
        tokio::select! {
            failure = app.failed() => return Err(failure),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = quit.recv() => break,
            _ = hangup.recv() => app.reopen_access_log(),
        }
    }
    tokio::select! {
        drained = app.drain() => drained,
        // Whoever asks twice does not want to wait.
        _ = interrupt.recv() => Ok(()),
    }
}

fn options(settings: Settings) -> Options {
    let source = match settings.source {
        settings::Source::File { path, state_dir } => Source::File(file::Options { path, state_dir }),
        settings::Source::Cluster { kubeconfig, namespace, identity, watch } => {
            Source::Cluster { kubeconfig, namespace, identity, watch }
        }
    };
    Options {
        source,
        workers: settings.workers,
        address: settings.listen_address,
        trusted_proxies: settings.trusted_proxies,
        metrics_address: settings.metrics_address,
        access_log: settings.access_log,
        ceilings: settings.ceilings,
        drain_delay: settings.drain_delay,
        drain_timeout: settings.drain_timeout,
    }
}
