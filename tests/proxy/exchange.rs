//! One request and its response: connections that are kept, bodies that stream, sides that go away.

use super::stage::{Backend, Stage, ok};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let backend = Backend::new().await;
    let stage = Stage::new(&[backend.address]).await;
    let mut client = stage.connect().await;
    client.write(GET).await;
    let mut upstream = backend.accept().await;
    for body in ["one", "two", "three"] {
        upstream.read_head().await;
        upstream.write(&ok(body)).await;
        let (head, answer) = client.read_response().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && !head.contains("connection: close"), "{head}");
        assert_eq!(answer, body);
        client.write(GET).await;
    }
}
