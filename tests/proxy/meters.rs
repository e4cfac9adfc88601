//! What a scrape says after real requests.

use super::stage::{Backend, Stage};
use super::streams::{Http2, answer, get, soon};

#[tokio::test]
async fn requests_are_counted_by_what_became_of_them() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    backend.answer_all("12345");
    let mut client = stage.connect().await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut received = 0;
    for _ in 0..3 {
        client.write(request).await;
        let (head, body) = client.read_response().await;
        received += head.len() + body.len();
    }
    client.write("GET / HTTP/1.1\r\n\r\n").await;
    let (head, body) = client.read_response().await;
    received += head.len() + body.len();
    let labels = "namespace=\"shop\",pool=\"web\"";
    for (series, value) in [
        (format!("guideway_requests_total{{{labels},code_class=\"4xx\"}}"), 1.0),
        (format!("guideway_requests_total{{{labels},code_class=\"2xx\"}}"), 3.0),
        (format!("guideway_request_duration_seconds_count{{{labels}}}"), 4.0),
        (format!("guideway_request_duration_seconds_bucket{{le=\"+Inf\",{labels}}}"), 4.0),
        (format!("guideway_upstream_duration_seconds_count{{{labels}}}"), 3.0),
        (format!("guideway_active_requests{{{labels}}}"), 0.0),
        (format!("guideway_connections{{{labels}}}"), 0.0),
        (format!("guideway_rescued_total{{{labels},reason=\"bad_request\"}}"), 1.0),
        (format!("guideway_bytes_total{{{labels},direction=\"received\"}}"), (request.len() * 3 + 18) as f64),
        (format!("guideway_bytes_total{{{labels},direction=\"sent\"}}"), received as f64),
    ] {
        stage.settles(&series, value).await;
    }
}

#[tokio::test]
async fn what_is_not_http_is_counted_too() {
    let stage = Stage::new(&[]).await;
    stage.exchange("nonsense\r\n\r\n").await;
    stage.settles("guideway_requests_total{namespace=\"shop\",pool=\"web\",code_class=\"4xx\"}", 1.0).await;
    stage
        .settles("guideway_rescued_total{namespace=\"shop\",pool=\"web\",reason=\"bad_request\"}", 1.0)
        .await;
}

#[tokio::test]
async fn an_upload_that_is_broken_off_counts_as_aborted_and_not_as_refused() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let framings = ["Content-Length: 9\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf"];
    for (framing, resets) in framings.into_iter().flat_map(|framing| [(framing, false), (framing, true)]) {
        let (mut client, mut upstream) =
            stage.under_way(&backend, &format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}")).await;
        if resets {
            client.reset();
        } else {
            client.shutdown().await;
            let answer = client.read_to_end().await;
            assert!(
                answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("the request broke off\n"),
                "{answer}"
            );
        }
        assert!(upstream.read_to_end().await.contains("half"));
    }
    let labels = "namespace=\"shop\",pool=\"web\"";
    for (series, value) in [
        (format!("guideway_requests_total{{{labels},code_class=\"none\"}}"), 4.0),
        (format!("guideway_rescued_total{{{labels},reason=\"client_gone\"}}"), 4.0),
        (format!("guideway_requests_total{{{labels},code_class=\"4xx\"}}"), 0.0),
    ] {
        stage.settles(&series, value).await;
    }
}

#[tokio::test]
async fn an_upload_that_is_garbled_is_refused() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, _upstream) =
        stage.under_way(&backend, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.write("nonsense\r\n").await;
    let (head, body) = client.read_response().await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert_eq!(body, "the request's body is broken\n");
}

/// The head of an answer whose body is longer than what comes of it.
const BEGUN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf";

async fn counts(stage: &Stage, expected: [(&str, &str, f64); 4]) {
    for (family, label, value) in expected {
        stage.settles(&format!("{family}{{namespace=\"shop\",pool=\"web\",{label}}}"), value).await;
    }
}

#[tokio::test]
async fn an_answer_that_broke_off_counts_as_an_error_and_not_as_a_success() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    upstream.write(BEGUN).await;
    drop(upstream);
    assert!(client.is_reset().await);
    let mut client = Http2::connect(&stage).await;
    let breaking = async {
        let mut upstream = backend.accept().await;
        upstream.read_head().await;
        upstream.write(BEGUN).await;
    };
    let (response, _sending) = client.begin(get("/"), true).await;
    let (broken, ()) = tokio::join!(soon(answer(response)), breaking);
    assert_eq!(broken.unwrap_err().reason(), Some(h2::Reason::INTERNAL_ERROR));
    let expected = [
        ("guideway_requests_total", "code_class=\"5xx\"", 2.0),
        ("guideway_requests_total", "code_class=\"2xx\"", 0.0),
        ("guideway_requests_total", "code_class=\"none\"", 0.0),
        ("guideway_rescued_total", "reason=\"truncated\"", 2.0),
    ];
    counts(&stage, expected).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_download_is_neither_a_success_nor_an_error() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let (mut client, mut upstream) = stage.under_way(&backend, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    upstream.write(BEGUN).await;
    client.read_head().await;
    client.reset();
    // One that garbles its request meanwhile is no better.
    let garbled = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (mut client, mut upstream) = stage.under_way(&backend, garbled).await;
    upstream.write(BEGUN).await;
    client.read_head().await;
    client.write("nonsense\r\n").await;
    assert!(client.is_closed().await);
    let mut client = Http2::connect(&stage).await;
    let answering = async {
        let mut upstream = backend.accept().await;
        upstream.read_head().await;
        upstream.write(BEGUN).await;
        upstream
    };
    let (response, sending) = client.begin(get("/"), true).await;
    let (begun, _upstream) = tokio::join!(soon(response), answering);
    // Whoever drops both sides of a stream resets it.
    drop((begun.unwrap(), sending));
    let expected = [
        ("guideway_requests_total", "code_class=\"none\"", 3.0),
        ("guideway_requests_total", "code_class=\"2xx\"", 0.0),
        ("guideway_requests_total", "code_class=\"5xx\"", 0.0),
        ("guideway_rescued_total", "reason=\"client_gone\"", 3.0),
    ];
    counts(&stage, expected).await;
}
