//! The `guideway` command.

use std::process::ExitCode;

use clap::Parser;
use guideway::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().execute().unwrap_or_else(|error| {
        eprintln!("guideway: {error:#}");
        ExitCode::FAILURE
    })
}
