//! What `guideway check` and a file refuse is what the API server refuses, field by field.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use guideway::source::admission::Admission;
use guideway::source::reach::Target;
use http::Request;
use serde_json::{Value, json};

use crate::fixture::Test;
use crate::runner::Verdict;

/// Values that are tried in the place of a field of a good pool. Good ones are among them: a check that refuses
/// what a cluster takes is as wrong as the opposite.
fn edits() -> Vec<(&'static str, Value)> {
    let long = |length: usize| json!("x".repeat(length));
    let hash_on = |entry: Value| json!({"hashOn": [entry]});
    let mut edits = edits_of_listeners();
    edits.extend(edits_of_backends());
    edits.extend(edits_of_protocols());
    edits.extend([
        ("/metadata/name", json!("Bad_Name")),
        ("/metadata/name", json!("a..b")),
        ("/metadata/name", long(63)),
        ("/metadata/name", long(64)),
        ("/spec", Value::Null),
        ("/spec", json!([])),
        ("/spec/nope", json!(1)),
        ("/spec/algorithm", Value::Null),
        ("/spec/algorithm", json!("Maglev")),
        ("/spec/algorithm", json!({"fill": "seats"})),
        ("/spec/algorithm", json!({"hashOn": []})),
        ("/spec/algorithm", hash_on(json!({"type": "Header"}))),
        ("/spec/algorithm", hash_on(json!({"type": "Header", "name": ""}))),
        ("/spec/algorithm", hash_on(json!({"type": "Header", "name": "a/b"}))),
        ("/spec/algorithm", hash_on(json!({"type": "Query", "name": "a[]"}))),
        ("/spec/algorithm", hash_on(json!({"type": "Query", "name": "a b"}))),
        ("/spec/algorithm", hash_on(json!({"type": "Query", "name": "a&b"}))),
        ("/spec/algorithm", hash_on(json!({"type": "Query", "name": "\u{e4}"}))),
        ("/spec/algorithm", hash_on(json!({"type": "Path", "name": "x"}))),
        ("/spec/algorithm", json!({"tableSize": 2})),
        ("/spec/algorithm", json!({"tableSize": 65_535})),
        ("/spec/algorithm", json!({"tableSize": 16_777_213})),
        ("/spec/algorithm", json!({"tableSize": 16_777_259})),
        ("/spec/health", json!({"drainTimeout": "24h"})),
        ("/spec/health", json!({"drainTimeout": "24h1ms"})),
        ("/spec/health", json!({"drainTimeout": "1.5s"})),
        ("/spec/health", json!({"drainTimeout": "soon"})),
        ("/spec/health", json!({"drainTimeout": "99999h99999h99999h99999h"})),
        ("/spec/timeouts", json!({"connect": "1ms", "request": "0s"})),
        ("/spec/timeouts", json!({"connect": "0s"})),
        ("/spec/timeouts", json!({"request": 5})),
    ]);
    edits
}

fn edits_of_backends() -> Vec<(&'static str, Value)> {
    let long = |length: usize| json!("x".repeat(length));
    let service = |port: Value| json!([{"name": "a", "service": {"name": "x", "port": port}}]);
    vec![
        ("/spec/backends/0/weight", json!(0)),
        ("/spec/backends/0/weight", json!(10_001)),
        ("/spec/backends/0/weight", Value::Null),
        ("/spec/backends/0/service", json!({"name": "x", "port": 80})),
        ("/spec/backends/0/service", Value::Null),
        ("/spec/backends/0/endpoints", Value::Null),
        ("/spec/backends/0/endpoints", json!([])),
        ("/spec/backends/0/endpoints", json!([{"address": "192.0.2.1", "port": 80, "weight": 0}])),
        (
            "/spec/backends/0/endpoints",
            json!([{"address": "192.0.2.1", "port": 80}, {"address": "192.0.2.1", "port": 80}]),
        ),
        ("/spec/backends", service(json!("http"))),
        ("/spec/backends", service(json!(0))),
        ("/spec/backends", service(json!(true))),
        ("/spec/backends", service(json!(""))),
        ("/spec/backends", service(json!("Http_"))),
        ("/spec/backends", service(json!("-a"))),
        ("/spec/backends", service(json!("a-"))),
        ("/spec/backends", service(json!("8-a"))),
        ("/spec/backends", service(json!(80))),
        ("/spec/backends", service(json!("80"))),
        ("/spec/backends", service(json!("65535"))),
        ("/spec/backends", service(json!("123456"))),
        ("/spec/backends", service(long(63))),
        ("/spec/backends", service(long(64))),
        ("/spec/backends/0/name", json!("A")),
        ("/spec/backends/0/tls", json!({"serverName": "web.test", "ca": {"name": "a.b"}})),
        ("/spec/backends/0/tls", json!({"serverName": "web.test", "ca": {"name": "A"}})),
        ("/spec/backends/0/tls", json!({"serverName": "192.0.2.1", "ca": {"name": "a"}})),
        (
            "/spec/backends/0/tls",
            json!({
                "serverName": "web.test", "caFile": "a",
                "clientCertificateFile": {"certificate": "a", "key": "b"},
            }),
        ),
    ]
}

fn edits_of_listeners() -> Vec<(&'static str, Value)> {
    let long = |length: usize| json!("x".repeat(length));
    vec![
        ("/spec/listeners", json!([])),
        ("/spec/listeners", json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}])),
        ("/spec/listeners", json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}])),
        ("/spec/listeners/0/port", json!("8080")),
        ("/spec/listeners/0/port", json!(80.5)),
        ("/spec/listeners/0/port", json!(-1)),
        ("/spec/listeners/0/port", json!(70_000)),
        ("/spec/listeners/0/name", json!("")),
        ("/spec/listeners/0/name", long(64)),
        ("/spec/listeners/0/name", json!("a_b")),
        (
            "/spec/listeners",
            json!([{
                "name": "a", "port": 80, "protocol": "HTTPS",
                "tls": {"certificateFiles": [{"certificate": "a", "key": "b"}], "clientCAFile": "c"},
            }]),
        ),
        (
            "/spec/listeners",
            json!([{"name": "a", "port": 80, "protocol": "HTTPS", "tls": {"secretRefs": [{"name": "a/b"}]}}]),
        ),
        ("/spec/listeners/0/hostnames", json!(["shop.example.com", "*.example.com", "a"])),
        ("/spec/listeners/0/hostnames", json!(["a.test", "a.test"])),
        ("/spec/listeners/0/hostnames", json!(["Shop.example.com"])),
        ("/spec/listeners/0/hostnames", json!(["*.*.test"])),
        ("/spec/listeners/0/hostnames", json!(["*"])),
        ("/spec/listeners/0/hostnames", json!(["a:80", "A"])),
        ("/spec/listeners/0/hostnames", json!(["-a.test"])),
        ("/spec/listeners/0/hostnames", json!([""])),
        ("/spec/listeners/0/hostnames", json!(["x".repeat(254)])),
        ("/spec/listeners/0/paths", json!(["/", "/api/", "/a.b/.c/..d/...", "//%20"])),
        ("/spec/listeners/0/paths", json!(["/api", "/api"])),
        ("/spec/listeners/0/paths", json!(["api"])),
        ("/spec/listeners/0/paths", json!(["/a?b"])),
        ("/spec/listeners/0/paths", json!(["/a/./b"])),
        ("/spec/listeners/0/paths", json!(["/a/.."])),
        ("/spec/listeners/0/paths", json!(["/a/%2e%2E/b"])),
        ("/spec/listeners/0/paths", json!(["/a/.%2e"])),
        ("/spec/listeners/0/paths", json!(["/a'b/%2e%2e%2e/%2ea"])),
        ("/spec/listeners/0/paths", json!(["/\u{e4}"])),
        ("/spec/listeners/0/paths", json!([])),
        ("/spec/listeners/0/proxyProtocol", json!("Require")),
        ("/spec/listeners/0/proxyProtocol", json!("require")),
        ("/spec/listeners/0/proxyProtocol", json!(true)),
        ("/spec/listeners/0/protocol", Value::Null),
        ("/spec/listeners/0/protocol", json!("http")),
    ]
}

/// Fields of requests and connections, beside listeners that have none and beside such that have some.
fn edits_of_protocols() -> Vec<(&'static str, Value)> {
    let tls = json!({"serverName": "web.test", "ca": {"name": "a"}});
    let mut edits = Vec::new();
    for protocols in [&["TCP"][..], &["UDP"], &["TCP", "UDP"], &["UDP", "HTTP"]] {
        let listener = |(index, protocol): (usize, &&str)| json!({"name": format!("l{index}"), "port": 80 + index, "protocol": protocol});
        let listeners: Vec<Value> = protocols.iter().enumerate().map(listener).collect();
        for (field, value) in [
            ("timeouts", json!({"connect": "2s"})),
            ("timeouts", json!({"request": "2s"})),
            ("algorithm", json!({"hashOn": [{"type": "ClientIP"}, {"type": "Host"}]})),
            ("protocol", json!("HTTP")),
            ("tls", tls.clone()),
            ("proxyProtocol", json!("V2")),
            ("proxyProtocol", json!("Accept")),
        ] {
            let mut backend = json!({"name": "a", "endpoints": [{"address": "192.0.2.1", "port": 80}]});
            let mut spec = json!({"listeners": listeners});
            let of_spec = ["timeouts", "algorithm"].contains(&field);
            (if of_spec { &mut spec } else { &mut backend })[field] = value;
            spec["backends"] = json!([backend]);
            edits.push(("/spec", spec));
        }
    }
    edits
}

/// Addresses that are tried for an endpoint, likewise.
const ADDRESSES: [&str; 17] = [
    "010.0.0.1",
    "2001:DB8::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "2001:db8:0::1",
    "2001:db8::1",
    "240.0.0.1",
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "::ffff:127.0.0.1",
    "169.254.169.254",
    "fe80::1",
    "db.example.net",
];

pub(super) async fn files_are_checked_as_in_a_cluster(test: &Test) -> Result<Verdict> {
    let admission = Admission::new()?;
    let (mut taken, mut refused) = (0, 0);
    let endpoints = ADDRESSES.map(|it| ("/spec/backends/0/endpoints", json!([{"address": it, "port": 80}])));
    for (pointer, value) in edits().into_iter().chain(endpoints) {
        let pool = edited(test, pointer, value.clone())?;
        let theirs = refused_fields(test, &pool).await?;
        let ours = admission.admit(pool, Target::Cluster).err().unwrap_or_default();
        let ours: BTreeSet<String> = ours.into_iter().map(|error| error.path).collect();
        ensure!(
            ours.is_empty() == theirs.is_empty() && theirs.is_subset(&ours),
            "{pointer} = {value}: refused offline are {ours:?}, by the API server {theirs:?}"
        );
        *(if theirs.is_empty() { &mut taken } else { &mut refused }) += 1;
    }
    test.note(format!("{refused} pools refused for the same fields, {taken} taken, by both"));
    Ok(Verdict::Passed)
}

fn edited(test: &Test, pointer: &str, value: Value) -> Result<Value> {
    let mut pool = json!({
        "apiVersion": "guideway.dev/v1alpha1",
        "kind": "LoadBalancerPool",
        "metadata": {"name": "web", "namespace": test.namespace},
        "spec": {
            "listeners": [{"name": "web", "port": test.port}],
            "backends": [{"name": "a", "endpoints": [{"address": "192.0.2.1", "port": 80}]}],
        },
    });
    let (parent, field) = pointer.rsplit_once('/').unwrap_or_default();
    let Some(parent) = pool.pointer_mut(parent) else { bail!("no {parent} in {pool}") };
    parent[field] = value;
    Ok(pool)
}

/// The fields a dry run is refused for; none when it is accepted. As kubectl does, it asks for strict decoding.
async fn refused_fields(test: &Test, pool: &Value) -> Result<BTreeSet<String>> {
    let path = format!(
        "/apis/guideway.dev/v1alpha1/namespaces/{}/loadbalancerpools?dryRun=All&fieldValidation=Strict",
        test.namespace
    );
    let request =
        Request::post(path).header("content-type", "application/json").body(pool.to_string().into())?;
    match test.cluster.client.request::<Value>(request).await {
        Ok(_) => Ok(BTreeSet::new()),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            let fields = causes.map(|cause| cause.field.clone()).filter(|field| field != "<nil>");
            // Strict decoding names no cause; what it says is: unknown field "spec.nope".
            let unknown = status.message.split('"').find(|word| word.starts_with("spec."));
            let fields: BTreeSet<String> = fields.chain(unknown.map(Into::into)).collect();
            Ok(if fields.is_empty() { BTreeSet::from([WHOLE.into()]) } else { fields })
        }
        Err(error) => Err(error.into()),
    }
}

/// The rule about the name's length is one of the whole object to the API server.
const WHOLE: &str = "metadata.name";
