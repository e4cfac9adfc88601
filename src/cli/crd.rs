//! Owns `guideway crd`: the definitions a cluster needs before it accepts pools.

use std::io::Write;
use std::process::ExitCode;

use crate::crd::manifest;

/// Prints the definitions.
pub(super) fn execute() -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(manifest::yaml()?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
