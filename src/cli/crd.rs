//! Owns `guideway crd`: the definitions a cluster needs before it accepts pools.

use std::process::ExitCode;

use super::say;
use crate::crd::manifest;

/// Prints the definitions.
pub(super) fn execute() -> anyhow::Result<ExitCode> {
    say(&manifest::yaml()?)?;
    Ok(ExitCode::SUCCESS)
}
