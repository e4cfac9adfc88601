//! Several pools on one port: the host decides, then the path.

use guideway::balance::routes::{HostPattern, Match, PathPrefix};

use super::stage::{Backend, Stage};

fn matched(host: &str, path: &str) -> Match {
    let host = if host == "*" { HostPattern::Any } else { HostPattern::new(host) };
    Match { host, path: PathPrefix::new(path) }
}

/// A port that the pools `api`, `shop` and `rest` share, each with a backend that says the pool's name.
async fn shared() -> Stage {
    let backends = [Backend::new().await, Backend::new().await, Backend::new().await];
    let addresses = [backends[0].address, backends[1].address, backends[2].address];
    for (backend, name) in backends.into_iter().zip(["api", "shop", "rest"]) {
        backend.answer_all(name);
    }
    let mut stage = Stage::new(&[]).await;
    stage.publish_pools(&[
        ("api", addresses[0], matched("*.example.com", "/api")),
        ("shop", addresses[1], matched("shop.example.com", "/")),
        ("rest", addresses[2], matched("*", "/static")),
    ]);
    stage
}

#[tokio::test]
async fn the_host_decides_and_then_the_path() {
    let stage = shared().await;
    let cases = [
        ("shop.example.com", "/", "shop"),
        ("SHOP.example.com:8080", "/api", "shop"),
        ("a.example.com", "/api/x?y", "api"),
        ("a.example.com", "/static", "rest"),
        ("192.0.2.1", "/static/", "rest"),
        // What a backend would make of it decides, not how it is written.
        ("a.example.com", "/static/../api/x", "api"),
        ("a.example.com", "/x/.%2E/./api", "api"),
        ("a.example.com", "/%61p%69/x", "api"),
    ];
    for (host, path, pool) in cases {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = stage.exchange(&request).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{pool}")), "{host}{path}: {answer}");
    }
}

#[tokio::test]
async fn what_no_pool_is_for_is_not_found_and_says_so() {
    let stage = shared().await;
    for (host, path) in [
        ("a.example.com", "/apis"),
        ("a.example.com", "/api/.."),
        ("a.example.com", "/%61pis"),
        ("b.example.org", "/"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = stage.exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{host}{path}: {answer}");
        assert!(answer.contains("\r\nx-guideway-reason: no_route\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn one_connection_serves_several_pools_and_counts_for_the_last() {
    let stage = shared().await;
    let count = |pool| format!("guideway_connections{{namespace=\"shop\",pool=\"{pool}\"}}");
    let mut client = stage.connect().await;
    for (host, path, pool) in
        [("shop.example.com", "/", "shop"), ("x.example.com", "/api", "api"), ("x", "/static", "rest")]
    {
        client.write(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(client.read_response().await.1, pool);
        for other in ["shop", "api", "rest"] {
            stage.settles(&count(other), f64::from(u8::from(other == pool))).await;
        }
    }
}

#[tokio::test]
async fn a_request_that_is_nobody_s_counts_for_nobody() {
    let stage = shared().await;
    let count = |pool: &str| format!("guideway_requests_total{{{pool},code_class=\"4xx\"}}");
    let refused = [
        "TRACE / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: nowhere\r\nConnection: close\r\n\r\n",
        "no request\r\n\r\n",
    ];
    for request in refused {
        let answer = stage.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    stage.settles(&count("namespace=\"\",pool=\"\""), 3.0).await;
    for pool in ["api", "shop", "rest"] {
        assert_eq!(stage.series(&count(&format!("namespace=\"shop\",pool=\"{pool}\""))), 0.0);
    }
}
