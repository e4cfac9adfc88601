//! Owns the command line: one file a command, each of which says what it prints and when it fails.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod arguments;
mod check;
mod crd;
mod demo;
mod plan;
mod run;

/// A Kubernetes-native load balancer: controller and proxy in one process.
#[derive(Debug, Parser)]
#[command(name = "guideway", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the pools of a cluster, or of a file with --file
    Run(Box<crate::settings::Flags>),
    /// Report every error a cluster would find in files of pools, offline; exit 1 if any
    Check(check::Flags),
    /// Say which share of the keys a scaling or a rolling update would move
    Plan(plan::Flags),
    /// Print the CustomResourceDefinitions, ready for `kubectl apply -f -`
    Crd,
    /// Show it: ten backends, a pool, the proxy and live figures on loopback
    Demo(demo::Flags),
}

impl Cli {
    /// What these arguments of a process ask for. Ends the process where they make no sense, or ask for help.
    pub fn read(arguments: impl Iterator<Item = OsString>) -> Self {
        Self::parse_from(arguments::tied(&Self::command(), arguments))
    }

    /// Carries out the command.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(flags) => run::execute(*flags),
            Command::Check(flags) => check::execute(&flags),
            Command::Plan(flags) => plan::execute(&flags),
            Command::Crd => crd::execute(),
            Command::Demo(flags) => demo::execute(flags),
        }
    }
}

/// Writes to standard output. That nobody reads on, as behind `| head`, is no failure.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        said => said,
    }
}

/// Says what is wrong with the flags, all at once, before anything is started. The exit code is clap's own.
fn refuse<T: Display>(mistakes: &[T]) -> ExitCode {
    mistakes.iter().for_each(|mistake| eprintln!("guideway: {mistake}"));
    ExitCode::from(2)
}
