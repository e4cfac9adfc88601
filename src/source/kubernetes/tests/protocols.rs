//! Owns the law of what a member speaks: as its pool says, or else as the port of its Service does.

use serde_json::json;

use super::fixtures::*;
use crate::balance::backend::HttpVersion;

/// What the only member speaks.
fn spoken(bench: &Bench) -> HttpVersion {
    let members = &bench.facts.as_ref().unwrap().members;
    assert_eq!(members.len(), 1);
    members[0].backend.http
}

fn speaking(app_protocol: &serde_json::Value) -> serde_json::Value {
    let mut service = service("web");
    service["spec"]["ports"][0]["appProtocol"] = app_protocol.clone();
    service
}

#[test]
fn the_app_protocol_of_a_port_says_what_its_pods_speak() {
    for (app_protocol, expected) in [
        (json!(null), HttpVersion::Http1),
        (json!("http"), HttpVersion::Http1),
        (json!("https"), HttpVersion::Http1),
        (json!("kubernetes.io/ws"), HttpVersion::Http1),
        (json!("H2C"), HttpVersion::Http1),
        (json!("kubernetes.io/h2c"), HttpVersion::Http2),
        (json!("h2c"), HttpVersion::Http2),
        (json!("grpc"), HttpVersion::Http2),
    ] {
        let mut bench = Bench::new();
        bench.service(&speaking(&app_protocol));
        bench.pod(pod("web-1").ready());
        assert_eq!(spoken(&bench), expected, "{app_protocol}");
    }
}

#[test]
fn a_pool_that_says_what_is_spoken_is_believed_before_its_service() {
    for (protocol, expected) in [("HTTP", HttpVersion::Http1), ("H2C", HttpVersion::Http2)] {
        for app_protocol in [json!(null), json!("grpc")] {
            let mut bench = Bench::new();
            let mut pool = pool();
            pool["spec"]["backends"][0]["protocol"] = json!(protocol);
            bench.pool(&pool);
            bench.service(&speaking(&app_protocol));
            bench.pod(pod("web-1").ready());
            assert_eq!(spoken(&bench), expected, "{protocol} {app_protocol}");
        }
    }
}

#[test]
fn an_edit_of_the_app_protocol_reaches_pods_that_are_there() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    assert_eq!(spoken(&bench), HttpVersion::Http1);
    for (app_protocol, expected) in [("h2c", HttpVersion::Http2), ("http", HttpVersion::Http1)] {
        bench.service(&speaking(&json!(app_protocol)));
        assert_eq!(spoken(&bench), expected);
    }
}
