//! Owns `guideway check`: every error a cluster would report about files of pools, without a cluster.
//! Exit code 1 if there is any.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::say;
use crate::app;
use crate::balance::pool::{Pool, PortId};
use crate::settings;
use crate::source::file::inspection::{self, Inspection};
use crate::source::reach::Target;

/// What to check.
#[derive(Args, Debug)]
pub(super) struct Flags {
    /// Files or folders of pools; - is standard input, and a pipe is read to its end
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Check for `guideway run --file`, where there are no Services
    #[arg(long)]
    standalone: bool,

    /// The --metrics-address of `guideway run`, whose port no pool can have
    #[arg(long, value_name = "IP:PORT", default_value_t = settings::METRICS_ADDRESS)]
    metrics_address: SocketAddr,

    /// The --listen-address of `guideway run`, if it has one
    #[arg(long, value_name = "IP")]
    listen_address: Option<IpAddr>,
}

impl Flags {
    /// The port of `guideway run` itself.
    fn own_port(&self) -> Option<PortId> {
        app::own_port(self.metrics_address, self.listen_address)
    }
}

/// Prints one line for each mistake, or for each pool without one.
pub(super) fn execute(flags: &Flags) -> anyhow::Result<ExitCode> {
    let target = if flags.standalone { Target::Standalone } else { Target::Cluster };
    let inspection = inspection::inspect(&flags.files, target, flags.own_port())?;
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
    let ports: Vec<String> = pool.listeners.iter().map(|it| it.port_id().to_string()).collect();
    let backends: Vec<&str> = pool.groups.iter().map(|it| &*it.name).collect();
    format!("pool {} on port {} to {}", pool.id, ports.join(", "), backends.join(", "))
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

    fn flags(arguments: &str) -> Result<Flags, clap::Error> {
        Command::try_parse_from(arguments.split(' ')).map(|it| it.flags)
    }

    #[test]
    fn the_metrics_port_is_that_of_run() {
        let own = |arguments| flags(arguments).unwrap().own_port();
        assert_eq!(own("check a.yaml"), Some(PortId::Tcp(9901)));
        assert_eq!(own("check a.yaml --standalone"), Some(PortId::Tcp(9901)));
        assert_eq!(own("check a.yaml --metrics-address 127.0.0.1:9000"), Some(PortId::Tcp(9000)));
        assert_eq!(own("check a.yaml --metrics-address 127.0.0.1:9000 --listen-address 192.0.2.1"), None);
    }

    #[test]
    fn ok_is_said_of_what_is_right_beside_the_others_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pools.yaml");
        let pool = |name| {
            format!(
                "apiVersion: guideway.dev/v1alpha1\nkind: LoadBalancerPool\nmetadata: {{name: {name}}}\nspec:\n  \
                 listeners: [{{name: web, port: 80}}]\n  \
                 backends: [{{name: all, endpoints: [{{address: 192.0.2.1, port: 80}}]}}]\n"
            )
        };
        std::fs::write(&file, format!("{}---\n{}", pool("a"), pool("b"))).unwrap();
        let inspection = inspection::inspect(&[file], Target::Cluster, None).unwrap();
        let prefix = format!("{}/", folder.path().display());
        let told = report(&inspection).unwrap().replace(&prefix, "");
        assert_eq!(
            told,
            "pools.yaml:1: ok, pool default/a on port 80 to all\n\
             pools.yaml:12: spec.listeners[0].port: pool default/a at pools.yaml:1 has port 80 too; use another port, \
             or name the hosts or paths of each\n"
        );
    }
}
