//! What a scrape says after real requests.

use super::stage::{Backend, Stage};

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
