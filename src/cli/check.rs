//! Owns `guideway check`: every error a cluster would report about files of pools, without a cluster.
//! Exit code 1 if there is any.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::say;
use crate::balance::pool::Pool;
use crate::source::file::inspection::{self, Inspection};
use crate::source::reach::Target;

/// What to check.
#[derive(Args, Debug)]
pub(super) struct Flags {
    /// Files or folders of pools; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Check for `guideway run --file`, where there are no Services
    #[arg(long)]
    standalone: bool,
}

/// Prints one line for each mistake, or for each pool without one.
pub(super) fn execute(flags: &Flags) -> anyhow::Result<ExitCode> {
    let target = if flags.standalone { Target::Standalone } else { Target::Cluster };
    let inspection = inspection::inspect(&flags.files, target)?;
    say(&report(&inspection)?)?;
    Ok(if inspection.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(inspection: &Inspection) -> Result<String, fmt::Error> {
    let mut out = String::new();
    for (place, kind) in &inspection.others {
        writeln!(out, "{place}: skipped, a {kind}")?;
    }
    for (place, translated) in &inspection.pools {
        writeln!(out, "{place}: ok, {}", summary(&translated.pool))?;
    }
    for remark in &inspection.remarks {
        writeln!(out, "{}: warning, {}: {}", remark.place, remark.field, remark.reason)?;
    }
    for problem in &inspection.problems {
        writeln!(out, "{problem}")?;
    }
    Ok(out)
}

fn summary(pool: &Pool) -> String {
    let ports: Vec<String> = pool.listeners.iter().map(|it| it.port.to_string()).collect();
    let backends: Vec<&str> = pool.groups.iter().map(|it| &*it.name).collect();
    format!("pool {} on port {} to {}", pool.id, ports.join(", "), backends.join(", "))
}
