//! The access log of a pool, as whoever collects the logs of pods sees it: a line of JSON for each request, in the log
//! of the replica that took it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guideway::demo::load::KEY_HEADER;
use http::{Method, Request};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use serde_json::{Value, json};

use crate::cluster::{PodPort, Seen, until};
use crate::fixture::Test;
use crate::runner::Verdict;
use crate::{pods, subject};

/// Bytes that the pool takes of a body.
const MAX_BODY: usize = 100;

pub(super) async fn requests_are_written_down(test: &Test) -> Result<Verdict> {
    pods::start(test, "web", 2).await?;
    let mut pool = pods::pool(test, "web");
    pool["spec"]["accessLog"] = json!({});
    pool["spec"]["maxRequestBodyBytes"] = json!(MAX_BODY);
    test.serve_pool(pool, 2).await?;
    for replica in subject::replicas(&test.cluster).await?.keys() {
        let backend = ask(test, replica, "/taken", MAX_BODY, 200).await?.context("nobody says who it is")?;
        ask(test, replica, "/refused", MAX_BODY + 1, 413).await?;
        let taken = line(test, replica, "/taken").await?;
        ensure!(
            taken["backend"] == backend.as_str() && taken["reason"].is_null() && taken["pool"] == "web",
            "not what happened: {taken}"
        );
        ensure!(
            taken["status"] == 200 && taken["method"] == "POST" && taken["protocol"] == "HTTP/1.1",
            "not what was asked: {taken}"
        );
        let carried = taken["bytes_in"].as_u64().context("no bytes_in")?;
        ensure!(carried > MAX_BODY as u64, "the body is not counted: {taken}");
        ensure!(taken["duration_ms"].is_number() && taken["time"].is_string(), "no times: {taken}");
        let refused = line(test, replica, "/refused").await?;
        ensure!(
            refused["status"] == 413 && refused["reason"] == "body_too_large" && refused["backend"].is_null(),
            "not what happened: {refused}"
        );
    }
    Ok(Verdict::Passed)
}

/// Sends a body of this length through a replica; who answered, if that was a backend.
async fn ask(test: &Test, replica: &str, path: &str, length: usize, status: u16) -> Result<Option<String>> {
    let port = PodPort { namespace: subject::NAMESPACE, pod: replica, port: test.port };
    let request = Request::builder().method(Method::POST).uri(path).header(KEY_HEADER, "key-7");
    let answer = test.cluster.ask(port, request.body("x".repeat(length))?).await?;
    ensure!(answer.status == status, "{path} was answered {}: {}", answer.status, answer.body);
    let backend = answer.headers.get("x-backend").and_then(|name| name.to_str().ok());
    Ok(backend.map(str::to_owned))
}

/// The line of a replica's log for the request of this path.
async fn line(test: &Test, replica: &str, path: &str) -> Result<Value> {
    let pods: Api<Pod> = test.cluster.api(subject::NAMESPACE);
    let recent = LogParams { since_seconds: Some(120), ..LogParams::default() };
    until(&format!("a line of {replica} for {path}"), Duration::from_secs(20), async || {
        let log = pods.logs(replica, &recent).await?;
        let of_test = |it: &Value| it["namespace"] == test.namespace.as_str() && it["path"] == path;
        let mut lines = log.lines().filter_map(|it| serde_json::from_str(it).ok()).filter(of_test);
        Ok(match (lines.next(), lines.next()) {
            (Some(line), None) => Seen::Done(line),
            (None, _) => Seen::NotYet(format!("{} lines of other things", log.lines().count())),
            (Some(_), Some(second)) => Seen::NotYet(format!("a second line: {second}")),
        })
    })
    .await
}
