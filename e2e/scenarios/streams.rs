//! A pool of ports that speak no HTTP: bytes and datagrams come through whole, and those of one client go to one pod.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::fixture::Test;
use crate::runner::Verdict;
use crate::{pods, subject};

const ECHO_PORT: u16 = 7000;

pub(super) async fn bytes_and_datagrams_come_through(test: &Test) -> Result<Verdict> {
    start_echoes(test, 3).await?;
    test.serve_pool(pool(test), 3).await?;
    let answers = pods::ask_all_replicas(test, "carry").await?;
    let servers = servers(&answers)?;
    ensure!(servers.len() == 1, "one client, and not one backend on both ports of all replicas: {answers}");
    let pods = pods::of(test, "echo").await?;
    ensure!(servers.iter().all(|it| pods.contains_key(it)), "answered by {servers:?}, who is no pod");
    refused(test).await?;
    test.note(format!("answered by {servers:?}"));
    Ok(Verdict::Passed)
}

/// Backends that also echo, on one number of TCP and of UDP.
async fn start_echoes(test: &Test, replicas: usize) -> Result<()> {
    let [mut deployment, mut service] = pods::backends("echo", replicas);
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    container["args"]
        .as_array_mut()
        .context("a backend has arguments")?
        .push(json!(format!("--echo={ECHO_PORT}")));
    let port = |name: &str, protocol: &str| json!({"name": name, "port": ECHO_PORT, "protocol": protocol});
    service["spec"]["ports"] = json!([port("echo", "TCP"), port("echo-udp", "UDP")]);
    for manifest in [deployment, service] {
        test.apply(manifest).await?;
    }
    pods::until_rolled_out(test, "echo", Duration::from_secs(60), async || Ok(())).await
}

fn pool(test: &Test) -> Value {
    let backends = json!([{"name": "all", "service": {"name": "echo", "port": ECHO_PORT}}]);
    let mut pool = pods::pool_on("echo", test.port, &backends);
    pool["spec"]["listeners"] = json!([
        {"name": "tcp", "port": test.port, "protocol": "TCP"},
        {"name": "udp", "port": test.port, "protocol": "UDP"},
    ]);
    pool["spec"].as_object_mut().expect("a spec is an object").remove("algorithm");
    pool
}

/// All who answered, over whatever and by way of whomever.
fn servers(answers: &Value) -> Result<BTreeSet<String>> {
    let mut servers = BTreeSet::new();
    for protocol in ["tcp", "udp"] {
        let targets = answers[protocol].as_object().context("no answers")?;
        ensure!(targets.len() >= subject::REPLICAS, "not all replicas were asked: {answers}");
        for names in targets.values() {
            servers
                .extend(names.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
        }
    }
    Ok(servers)
}

/// The API server refuses what such ports have no use for.
async fn refused(test: &Test) -> Result<()> {
    for (field, value) in [("protocol", json!("H2C")), ("proxyProtocol", json!("V2"))] {
        let mut pool = pool(test);
        pool["metadata"]["name"] = json!("refused");
        pool["spec"]["backends"][0][field] = value;
        let told = test.apply(pool).await.err().with_context(|| format!("a pool was taken with {field}"))?;
        ensure!(format!("{told:#}").contains("spec.backends"), "{field}: {told:#}");
    }
    Ok(())
}
