//! The `guideway` command.

use std::io::{self, Write};
use std::process::ExitCode;

use guideway::cli::Cli;

/// Faster than the system's allocator for the many short-lived buffers of a proxy, most of all with musl.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One crypto library for everything that speaks TLS. It fails only if one was chosen before.
    let _chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Cli::read(std::env::args_os()).execute().unwrap_or_else(|error| {
        // If nobody listens there either, nobody can be told.
        let _ = writeln!(io::stderr(), "guideway: {error:#}");
        ExitCode::FAILURE
    })
}
