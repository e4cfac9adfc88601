//! Owns commands inside a node, for what no API offers: stopping the API server, killing a process.
//! `GUIDEWAY_E2E_NODE_EXEC` holds the words before the node's name, for example `docker exec`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeResource;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::cluster::Cluster;

/// Without an answer for so long, the way into the node is broken.
const LIMIT: Duration = Duration::from_secs(20);

/// The way into one node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    words: Vec<String>,
}

/// Why a scenario is not run where there is no way into a node.
pub(crate) const NO_WAY: &str = "GUIDEWAY_E2E_NODE_EXEC is not set, so no command can be run in a node";

impl Node {
    /// The way into the node `name`; `None` without `GUIDEWAY_E2E_NODE_EXEC`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let prefix = std::env::var("GUIDEWAY_E2E_NODE_EXEC").ok().filter(|it| !it.trim().is_empty())?;
        let words = prefix.split_whitespace().chain([name]).map(str::to_owned).collect();
        Some(Self { words })
    }

    /// The way into the node that runs the API server.
    pub(crate) async fn of_api_server(cluster: &Cluster) -> Result<Option<Self>> {
        let nodes: Api<NodeResource> = Api::all(cluster.client.clone());
        let selector = ListParams::default().labels("node-role.kubernetes.io/control-plane");
        let node = nodes.list(&selector).await?.items.into_iter().next().context("no control-plane node")?;
        Ok(Self::named(&node.name_any()))
    }

    /// Runs a shell command and returns what it prints.
    pub(crate) async fn shell(&self, script: &str) -> Result<String> {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).args(["sh", "-c", script]);
        let output = tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(move || command.output())).await;
        let output = output.with_context(|| format!("{script}: no end in {LIMIT:?}"))???;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{script}: {} {}", output.status, errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks for a URL from inside the node, which reaches pods also when the API server does not answer.
    pub(crate) async fn get(&self, url: &str) -> Result<String> {
        self.shell(&format!("curl --silent --show-error --fail --max-time 5 '{url}'")).await
    }

    /// Stops a process by name until the guard is dropped.
    pub(crate) async fn stop_process(&self, name: &str) -> Result<Stopped> {
        let pid = self.shell(&format!("pidof {name}")).await?.trim().to_owned();
        ensure!(pid.parse::<u32>().is_ok(), "{name} is not one process: {pid:?}");
        let stopped = Stopped { node: self.clone(), pid };
        self.shell(&format!("kill -STOP {}", stopped.pid)).await?;
        Ok(stopped)
    }
}

/// A stopped process. It goes on at the latest when this is dropped, so that a scenario that fails does
/// not leave a cluster without its API server.
pub(crate) struct Stopped {
    node: Node,
    pid: String,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let mut command = Command::new(&self.node.words[0]);
        command.args(&self.node.words[1..]).args(["kill", "-CONT", &self.pid]);
        match command.status() {
            Ok(status) if status.success() => {}
            outcome => eprintln!("could not let process {} go on: {outcome:?}", self.pid),
        }
    }
}
