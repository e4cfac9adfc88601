//! What cannot work is refused when it is applied; what only the cluster knows shows in conditions.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use guideway::crd::conditions::{ACCEPTED, READY, RESOLVED_REFS, reasons};
use serde_json::{Value, json};

use crate::fixture::Test;
use crate::load::{self, Load, Plan};
use crate::runner::Verdict;
use crate::{pods, subject};

/// A change that spoils a good pool, and what the API server has to say about it.
struct Spoiled {
    pointer: &'static str,
    value: Value,
    field: &'static str,
    reason: &'static str,
}

pub(super) async fn bad_pools_are_refused(test: &Test) -> Result<Verdict> {
    let spoiled: Vec<Spoiled> = spoiled().into_iter().chain(misspelled()).collect();
    let count = spoiled.len();
    for case in spoiled {
        let message = refusal(test, &case).await?;
        for part in [case.field, case.reason] {
            ensure!(
                message.contains(part),
                "{} = {}: {part:?} is not in: {message}",
                case.pointer,
                case.value
            );
        }
    }
    test.apply(good_pool(test)).await?;
    test.note(format!(
        "{count} bad pools refused, each with its field and the reason; the good one is accepted"
    ));
    Ok(Verdict::Passed)
}

fn spoiled() -> Vec<Spoiled> {
    let spoiled = |pointer, value, field, reason| Spoiled { pointer, value, field, reason };
    vec![
        spoiled("/spec/listeners/0/port", json!(70_000), "spec.listeners[0].port", "65535"),
        spoiled("/spec/listeners", json!([]), "spec.listeners", "at least 1"),
        spoiled("/spec/listeners/0/protocol", json!("HTTPS"), "spec.listeners[0]", "HTTPS and TLS need tls"),
        spoiled(
            "/spec/listeners/0/tls",
            json!({"clientCA": {"name": "clients"}}),
            "spec.listeners[0].tls",
            "no certificate to show",
        ),
        spoiled("/spec/algorithm/tableSize", json!(65_536), "spec.algorithm.tableSize", "not a prime"),
        spoiled("/spec/algorithm/type", json!("Magic"), "spec.algorithm.type", "Unsupported value"),
        spoiled(
            "/spec/algorithm/hashOn",
            json!([{"type": "Header"}]),
            "spec.algorithm.hashOn[0]",
            "need a name",
        ),
        spoiled("/spec/backends/0/weight", json!(0), "spec.backends", "weight above 0"),
        spoiled(
            "/spec/backends/0/endpoints",
            json!([{"address": "192.0.2.1", "port": 80}]),
            "spec.backends[0]",
            "exactly one of service and endpoints",
        ),
        spoiled(
            "/spec/backends/0/tls",
            json!({"serverName": "web.test"}),
            "spec.backends[0].tls",
            "exactly one of ca and caFile",
        ),
        spoiled(
            "/spec/timeouts/connect",
            json!("1.5s"),
            "spec.timeouts.connect",
            "this is no duration: write",
        ),
        spoiled("/spec/timeouts/connect", json!("0s"), "spec.timeouts.connect", "connect is 1ms to 5m"),
        spoiled("/spec/listeners/0/name", json!("Web"), "spec.listeners[0].name", "use only a-z, 0-9"),
    ]
}

/// What a cluster refuses in its own words where a pattern would have refused it without any, and what only a process of
/// its own has a use for.
fn misspelled() -> Vec<Spoiled> {
    let spoiled = |pointer, value, field, reason| Spoiled { pointer, value, field, reason };
    let host = |host: &str| {
        let field = "spec.listeners[0].hostnames[0]";
        spoiled(
            "/spec/listeners/0/hostnames",
            json!([host]),
            field,
            "this is no host: write a name in lower case",
        )
    };
    let path = |path: &str, reason| {
        spoiled("/spec/listeners/0/paths", json!([path]), "spec.listeners[0].paths[0]", reason)
    };
    let address = |address: &str| {
        let backends = json!([{"name": "a", "endpoints": [{"address": address, "port": 80}]}]);
        let field = "spec.backends[0].endpoints[0].address";
        spoiled("/spec/backends", backends, field, "means Guideway's own pod or node")
    };
    vec![
        host("Shop.example.com"),
        host("*"),
        host("a:80"),
        path("api", "does not begin with /"),
        path("/a?b", "leave the query out"),
        path("/a/%2e%2e/b", "has a segment . or .."),
        address("127.0.0.1"),
        address("::1"),
        spoiled(
            "/spec/backends/0/service/port",
            json!("80"),
            "spec.backends[0].service.port",
            "write the number without them",
        ),
        spoiled(
            "/spec/backends/0/tls",
            json!({"serverName": "web.test", "caFile": "ca.crt"}),
            "spec.backends[0].tls.caFile",
            "for use without Kubernetes",
        ),
        spoiled(
            "/spec/listeners/0",
            json!({
                "name": "web", "port": 80, "protocol": "HTTPS",
                "tls": {"certificateFiles": [{"certificate": "a", "key": "b"}]},
            }),
            "spec.listeners[0].tls.certificateFiles",
            "for use without Kubernetes",
        ),
    ]
}

fn good_pool(test: &Test) -> Value {
    let mut pool = pods::pool(test, "web");
    pool["metadata"]["namespace"] = json!(test.namespace);
    pool["spec"]["timeouts"] = json!({"connect": "1s"});
    pool["spec"]["algorithm"]["type"] = json!("Maglev");
    pool
}

async fn refusal(test: &Test, case: &Spoiled) -> Result<String> {
    let mut pool = good_pool(test);
    let (parent, field) = case.pointer.rsplit_once('/').unwrap_or_default();
    let Some(parent) = pool.pointer_mut(parent) else { bail!("no {parent} in {pool}") };
    match (parent, field.parse::<usize>()) {
        (Value::Array(items), Ok(at)) => items[at] = case.value.clone(),
        (parent, _) => parent[field] = case.value.clone(),
    }
    match test.cluster.apply(pool).await {
        Err(kube::Error::Api(status)) if status.code == 422 => Ok(status.message.clone()),
        Err(error) => bail!("{} = {}: refused in another way: {error}", case.pointer, case.value),
        Ok(_) => bail!("{} = {} was accepted", case.pointer, case.value),
    }
}

pub(super) async fn a_bad_reference_disturbs_nobody(test: &Test) -> Result<Verdict> {
    pods::start(test, "web", 3).await?;
    test.serve_pool(pods::pool(test, "web"), 3).await?;
    let targets = subject::targets(&test.cluster, test.port).await?;
    let load = Load::start(test, "load", Plan { targets, rate: 200, keys: 100, connections: 8 }).await?;
    let digest = subject::agreed_digest(test, "web", Duration::from_secs(5)).await?;

    let lost = json!([{"name": "all", "service": {"name": "nowhere", "port": 80}}]);
    test.apply(pods::pool_on("lost", test.port + 1, &lost)).await?;
    let condition = test.until_condition("lost", RESOLVED_REFS, "False").await?;
    ensure!(
        condition.reason == reasons::SERVICE_NOT_FOUND,
        "reason {}: {}",
        condition.reason,
        condition.message
    );
    ensure!(
        condition.message.contains("nowhere"),
        "the message does not name the Service: {}",
        condition.message
    );
    test.until_condition("lost", ACCEPTED, "True").await?;
    test.until_condition("lost", READY, "False").await?;

    let nameless = json!([{"name": "all", "service": {"name": "web", "port": "grpc"}}]);
    test.apply(pods::pool_on("portless", test.port + 2, &nameless)).await?;
    let condition = test.until_condition("portless", RESOLVED_REFS, "False").await?;
    ensure!(
        condition.reason == reasons::PORT_NOT_FOUND,
        "reason {}: {}",
        condition.reason,
        condition.message
    );

    load.until_every_key_is_asked_again().await?;
    let digest_after = subject::agreed_digest(test, "web", Duration::from_secs(5)).await?;
    ensure!(digest == digest_after, "the good pool's table changed: {digest}, {digest_after}");
    let report = load.stop().await?;
    load::ensure_nothing_failed(&report)?;
    ensure!(report.keys.moved == 0, "the good pool's keys moved: {}", load::shown(&report));
    test.note(format!("{}: {}", condition.reason, condition.message));
    Ok(Verdict::Passed)
}
