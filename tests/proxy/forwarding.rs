//! What a client that stands before us for others may say about them, and how often a request may come back.

use std::collections::BTreeSet;

use super::stage::{Backend, Setup, Stage, ok};

fn trusting(ranges: &[&str]) -> Setup {
    Setup { trusted: ranges.iter().map(|range| range.parse().unwrap()).collect(), ..Setup::default() }
}

const SAID: &str = "X-Forwarded-For: 203.0.113.9, 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
                    X-Forwarded-Host: shop.example\r\nX-Forwarded-Prefix: /x\r\nForwarded: for=203.0.113.9\r\n";

#[tokio::test]
async fn only_a_trusted_client_is_believed() {
    let believed = "x-forwarded-for: 203.0.113.9, 192.0.2.7, 127.0.0.1\r\nx-forwarded-proto: https\r\n\
                    x-forwarded-host: shop.example\r\n";
    let seen = "x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: a\r\n";
    for (ranges, expected) in [
        (&["127.0.0.0/8"][..], believed),
        (&["10.0.0.0/8", "127.0.0.1"], believed),
        (&["10.0.0.0/8", "::/0"], seen),
        (&[], seen),
    ] {
        let backend = Backend::new().await;
        let stage = Stage::with(trusting(ranges), &[backend.address]).await;
        let mut client = stage.connect().await;
        client.write(&format!("GET / HTTP/1.1\r\nHost: a\r\n{SAID}\r\n")).await;
        let head = backend.accept().await.read_head().await;
        let expected = format!("GET / HTTP/1.1\r\nhost: a\r\n{expected}x-guideway-hops: 1\r\n\r\n");
        assert_eq!(head, expected, "{ranges:?}");
    }
}

/// The names of the backends that requests for thirty clients go to, none of which connects itself.
async fn backends_of_thirty_clients(ranges: &[&str]) -> BTreeSet<String> {
    let (one, two) = (Backend::new().await, Backend::new().await);
    let stage = Stage::with(trusting(ranges), &[one.address, two.address]).await;
    one.answer_all("one");
    two.answer_all("two");
    let mut client = stage.connect().await;
    let mut names = BTreeSet::new();
    for number in 0..30 {
        let mut of_client = BTreeSet::new();
        for proxy in ["", ", 127.0.0.9"] {
            let chain = format!("198.51.100.{number}{proxy}");
            client.write(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {chain}\r\n\r\n")).await;
            of_client.insert(client.read_response().await.1);
        }
        assert_eq!(of_client.len(), 1, "one client has one backend");
        names.extend(of_client);
    }
    names
}

#[tokio::test]
async fn the_key_is_the_client_behind_trusted_proxies() {
    assert_eq!(backends_of_thirty_clients(&["127.0.0.0/8"]).await.len(), 2);
    assert_eq!(backends_of_thirty_clients(&[]).await.len(), 1, "its own address is the key");
}

#[tokio::test]
async fn a_request_that_comes_back_again_and_again_is_refused() {
    let setup = Setup::default();
    let itself = setup.port.address();
    let stage = Stage::with(setup, &[itself]).await;
    let answer = stage.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 508 Loop Detected\r\n"), "{answer}");
    let labels = "namespace=\"shop\",pool=\"web\"";
    stage.settles(&format!("guideway_rescued_total{{{labels},reason=\"loop\"}}"), 1.0).await;
    stage.settles(&format!("guideway_requests_total{{{labels},code_class=\"5xx\"}}"), 11.0).await;
}

#[tokio::test]
async fn a_request_that_came_through_others_is_answered() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write("GET / HTTP/1.1\r\nHost: a\r\nX-Guideway-Hops: 2\r\n\r\n").await;
    let mut upstream = backend.accept().await;
    assert!(upstream.read_head().await.ends_with("\r\nx-guideway-hops: 3\r\n\r\n"));
    upstream.write(&ok("ok")).await;
    assert_eq!(client.read_response().await.1, "ok");
}
