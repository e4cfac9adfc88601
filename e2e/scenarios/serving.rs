//! A pool serves: every pod takes part, keys stay, bodies come through whole.

use std::time::Duration;

use anyhow::{Result, ensure};
use guideway::demo::load::KEY_HEADER;
use http::{Method, Request};

use crate::cluster::PodPort;
use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::runner::Verdict;
use crate::{pods, subject};

pub(super) async fn serves_a_pool(test: &Test) -> Result<Verdict> {
    pods::start(test, "web", 3).await?;
    test.serve_pool(pods::pool(test, "web"), 3).await?;
    let targets = subject::targets(&test.cluster, test.port).await?;
    let load = Load::start(test, "load", Plan { targets, rate: 200, keys: 100, connections: 8 }).await?;
    bodies_come_through(test).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    ensure!(report.keys.moved == 0, "keys moved while nothing happened: {}", load::shown(&report));
    let backends: Vec<&String> = report.backends.keys().collect();
    let pods = pods::of(test, "web").await?;
    ensure!(
        backends == pods.keys().collect::<Vec<_>>(),
        "served by {backends:?} in the place of all three pods"
    );
    test.note(load::shown(&report));
    Ok(Verdict::Passed)
}

/// The same key through each replica, with a body: both send it to one pod, and every byte arrives.
async fn bodies_come_through(test: &Test) -> Result<()> {
    let body = "0123456789abcdef".repeat(20_000);
    let digest = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(body.as_bytes()));
    let mut served_by = Vec::new();
    for replica in subject::replicas(&test.cluster).await?.keys() {
        let port = PodPort { namespace: subject::NAMESPACE, pod: replica, port: test.port };
        let request = Request::builder().method(Method::POST).uri("/upload").header(KEY_HEADER, "key-7");
        let answer = test.cluster.ask(port, request.body(body.clone())?).await?;
        ensure!(answer.status.is_success(), "{replica} answered {}: {}", answer.status, answer.body);
        let echo: serde_json::Value = serde_json::from_str(&answer.body)?;
        ensure!(
            echo["body"]["bytes"] == body.len() && echo["body"]["xxh3"] == digest.as_str(),
            "not the body: {echo}"
        );
        served_by.push(answer.headers.get("x-backend").cloned());
    }
    ensure!(
        served_by[0].is_some() && served_by.iter().all(|it| *it == served_by[0]),
        "one key, two pods: {served_by:?}"
    );
    Ok(())
}
