//! Backends that speak HTTP/2, as servers of gRPC do: each call is balanced by itself, in clear text and within TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guideway::demo::load::KEY_HEADER;
use http::Request;
use serde::Deserialize;
use serde_json::{Value, json};

use super::certificates::{Authority, Leaf, NAME};
use crate::cluster::{Answer, PodPort, Seen, until};
use crate::fixture::Test;
use crate::runner::Verdict;
use crate::{pods, subject};

const CALLS_PORT: u16 = 7001;
const SECRET: &str = "calls-tls";
const CA: &str = "calls-ca";

/// What the client says of one replica.
#[derive(Deserialize)]
struct Heard {
    keys: BTreeMap<String, String>,
    schemes: BTreeSet<String>,
}

pub(super) async fn calls_are_balanced_one_by_one(test: &Test) -> Result<Verdict> {
    start_servers(test, 3, None).await?;
    test.serve_pool(pool(test, "calls", test.port), 3).await?;
    let heard = call_all(test, "http").await?;
    for replica in subject::replicas(&test.cluster).await?.keys() {
        let answer = ask(test, replica, test.port).await?;
        ensure!(answer.status.is_success(), "a client of HTTP/1 got {}: {}", answer.status, answer.body);
        let backend = answer.headers.get("x-backend").context("nobody says who it is")?;
        let known = &heard.keys["key-7"];
        ensure!(backend == known.as_str(), "key-7 is at {known}, and at {backend:?} for a client of HTTP/1");
    }
    test.note(format!("{} keys at {} pods", heard.keys.len(), 3));
    Ok(Verdict::Passed)
}

pub(super) async fn backends_are_asked_within_tls(test: &Test) -> Result<Verdict> {
    let (authority, stranger) = (Authority::new()?, Authority::new()?);
    let leaf = authority.sign()?;
    test.apply(ca_secret(&authority)).await?;
    start_servers(test, 2, Some(&leaf)).await?;
    let tls = json!({"serverName": NAME, "ca": {"name": CA}});
    let mut streams = pool(test, "calls", test.port);
    streams["spec"]["backends"][0]["tls"] = tls.clone();
    test.serve_pool(streams, 2).await?;
    let lines_port = test.port + 1;
    let mut lines = pool(test, "lines", lines_port);
    lines["spec"]["backends"][0]["tls"] = tls;
    lines["spec"]["backends"][0]["protocol"] = json!("HTTP");
    test.serve_pool(lines, 2).await?;
    call_all(test, "https").await?;
    until_answered(test, &[test.port, lines_port], 200).await?;

    test.apply(ca_secret(&stranger)).await?;
    until_answered(test, &[test.port, lines_port], 502).await?;
    test.apply(ca_secret(&authority)).await?;
    until_answered(test, &[test.port, lines_port], 200).await?;
    Ok(Verdict::Passed)
}

/// Backends that also answer calls, with a certificate to show or without.
async fn start_servers(test: &Test, replicas: usize, leaf: Option<&Leaf>) -> Result<()> {
    let [mut deployment, mut service] = pods::backends("calls", replicas);
    let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    let args = container["args"].as_array_mut().context("a backend has arguments")?;
    args.push(json!(format!("--calls={CALLS_PORT}")));
    if let Some(leaf) = leaf {
        test.apply(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": SECRET},
            "stringData": {"tls.crt": leaf.certificate, "tls.key": leaf.key},
        }))
        .await?;
        let environment = container["env"].as_array_mut().context("a backend has an environment")?;
        for (name, key) in [("CALLS_CERTIFICATE", "tls.crt"), ("CALLS_KEY", "tls.key")] {
            let of_secret = json!({"secretKeyRef": {"name": SECRET, "key": key}});
            environment.push(json!({"name": name, "valueFrom": of_secret}));
        }
    }
    service["spec"]["ports"] = json!([
        {"name": "calls", "port": 80, "targetPort": CALLS_PORT, "appProtocol": "kubernetes.io/h2c"},
    ]);
    for manifest in [deployment, service] {
        test.apply(manifest).await?;
    }
    pods::until_rolled_out(test, "calls", Duration::from_secs(60), async || Ok(())).await
}

fn pool(test: &Test, name: &str, port: u16) -> Value {
    debug_assert!((test.port..test.port + 10).contains(&port), "it is one of the scenario's ports");
    pods::pool_on(name, port, &json!([{"name": "all", "service": {"name": "calls", "port": "calls"}}]))
}

fn ca_secret(authority: &Authority) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": CA},
        "stringData": {"ca.crt": authority.pem()},
    })
}

/// Has a pod call all replicas; what they agree on.
async fn call_all(test: &Test, scheme: &str) -> Result<Heard> {
    let report = pods::ask_all_replicas(test, "calls").await?;
    let mut heard: BTreeMap<String, Heard> = serde_json::from_value(report)?;
    ensure!(heard.len() >= subject::REPLICAS, "only {} replicas were called", heard.len());
    let (target, first) = heard.pop_first().context("nobody was called")?;
    let pods: BTreeSet<String> = pods::of(test, "calls").await?.into_keys().collect();
    let backends: BTreeSet<String> = first.keys.values().cloned().collect();
    ensure!(backends == pods, "one connection to {target} reached {backends:?} of {pods:?}");
    ensure!(first.schemes == BTreeSet::from([scheme.to_owned()]), "asked for {:?}", first.schemes);
    for (other, heard) in heard {
        ensure!(heard.keys == first.keys, "{other} sends keys elsewhere than {target}");
    }
    Ok(first)
}

/// One request of HTTP/1.1 through a replica.
async fn ask(test: &Test, replica: &str, port: u16) -> Result<Answer> {
    let port = PodPort { namespace: subject::NAMESPACE, pod: replica, port };
    let request = Request::builder().uri("/").header(KEY_HEADER, "key-7").body(String::new())?;
    test.cluster.ask(port, request).await
}

/// Waits until every replica answers with this status on each of these ports.
async fn until_answered(test: &Test, ports: &[u16], status: u16) -> Result<()> {
    until(&format!("answers with {status}"), Duration::from_secs(20), async || {
        for replica in subject::replicas(&test.cluster).await?.keys() {
            for port in ports {
                let answer = ask(test, replica, *port).await?;
                if answer.status != status {
                    let said = format!("{replica} on {port}: {} {}", answer.status, answer.body.trim());
                    return Ok(Seen::NotYet(said));
                }
            }
        }
        Ok(Seen::Done(()))
    })
    .await
}
