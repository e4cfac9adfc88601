//! Pools share a port: each takes its host or its path, and who asks for what another has is told so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Request, StatusCode};
use serde_json::{Value, json};

use crate::cluster::{Answer, PodPort};
use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::runner::Verdict;
use crate::{pods, subject};

pub(super) async fn pools_share_a_port(test: &Test) -> Result<Verdict> {
    let (blue, green) = tokio::join!(pods::start(test, "blue", 1), pods::start(test, "green", 1));
    blue.and(green)?;
    subject::expose(test).await?;
    // The name by which the load generator asks for the port's Service.
    let host = format!("{}.{}.svc.cluster.local", test.namespace, subject::NAMESPACE);
    test.serve_pool(pool(test, "blue", "blue", &json!({"hostnames": [host]})), 1).await?;
    test.serve_pool(pool(test, "green", "green", &json!({"paths": ["/green"]})), 1).await?;
    the_path_decides(test).await?;
    let targets = vec![format!("http://{host}:{}/green", test.port)];
    let load = Load::start(test, "load", Plan { targets, rate: 100, keys: 20, connections: 4 }).await?;
    test.apply(pool(test, "late", "green", &json!({"hostnames": [host], "paths": ["/"]}))).await?;
    let told = test.until_condition("late", "Programmed", "False").await?;
    ensure!(
        told.reason == "PortConflict" && told.message.contains("/blue"),
        "{}: {}",
        told.reason,
        told.message
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    let blue = pods::of(test, "blue").await?;
    ensure!(
        report.backends.keys().eq(blue.keys()),
        "the host of pool blue was served by {:?}",
        report.backends.keys()
    );
    test.note(format!("{}: {}", told.reason, told.message));
    Ok(Verdict::Passed)
}

fn pool(test: &Test, name: &str, service: &str, part: &Value) -> Value {
    let backends = json!([{"name": "all", "service": {"name": service, "port": "http"}}]);
    let mut pool = pods::pool_on(name, test.port, &backends);
    for (field, value) in part.as_object().into_iter().flatten() {
        pool["spec"]["listeners"][0][field] = value.clone();
    }
    pool
}

/// Asked by address, so no host decides.
async fn the_path_decides(test: &Test) -> Result<()> {
    for replica in subject::replicas(&test.cluster).await?.keys() {
        let found = ask(test, replica, "/green/x").await?;
        let backend = found.headers.get("x-backend").context("nobody says who answered")?.to_str()?;
        ensure!(found.status.is_success() && backend.starts_with("green-"), "{} by {backend}", found.status);
        let lost = ask(test, replica, "/").await?;
        let reason = lost.headers.get("x-guideway-reason").map(|it| it.to_str()).transpose()?;
        ensure!(
            lost.status == StatusCode::NOT_FOUND && reason == Some("no_route"),
            "no pool takes this path, and yet {replica} answered {}, {reason:?}",
            lost.status
        );
    }
    Ok(())
}

async fn ask(test: &Test, replica: &str, path: &str) -> Result<Answer> {
    let port = PodPort { namespace: subject::NAMESPACE, pod: replica, port: test.port };
    test.cluster.ask(port, Request::get(path).body(String::new())?).await
}
