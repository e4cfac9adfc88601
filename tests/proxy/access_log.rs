//! What the access log says of requests, however they end, and that nobody waits for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use guideway::balance::backend::State;
use guideway::balance::pool::{Protocol, Sample};
use guideway::handoff::{bindings, handoff};
use guideway::metrics::Metrics;
use guideway::proxy::{AccessLogOptions, Limits, LineForm, LogTarget, Proxy, ProxyOptions};
use guideway::readiness::Readiness;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpStream, UdpSocket};

use super::stage::{Backend, Reserved, Setup, Stage, ok};

const GET: &str = "GET /cart?token=secret HTTP/1.1\r\nHost: a\r\n\r\n";
const CLOSE: &str = "GET /cart HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const LONG: Duration = Duration::from_secs(10);
const DROPPED: &str = "guideway_access_log_dropped_total";

/// A stage whose pool has an access log in a file of its own.
struct Logged {
    stage: Stage,
    path: PathBuf,
    /// Lines that were asked for one by one.
    read: usize,
    _folder: TempDir,
}

impl Logged {
    async fn new(form: LineForm, backends: &[&Backend]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let stage = stage(form, &path, backends).await;
        Self { stage, path, read: 0, _folder: folder }
    }

    async fn json(backends: &[&Backend]) -> Self {
        Self::new(LineForm::Json, backends).await
    }

    /// Of a port that speaks no HTTP.
    async fn of(setup: Setup, backends: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let access_log = AccessLogOptions { target: LogTarget::File(path.clone()), form: LineForm::Json };
        let setup = Setup { logged: Sample::of(1.0), access_log, ..setup };
        Self { stage: Stage::with(setup, backends).await, path, read: 0, _folder: folder }
    }

    /// The line behind those that were asked for before.
    async fn next_line(&mut self) -> Value {
        self.read += 1;
        let text = comes(&self.path, self.read).await;
        let line = text.lines().nth(self.read - 1).unwrap();
        settled(serde_json::from_str(line).unwrap())
    }

    /// The first lines of the log, once there are so many, without what differs from run to run.
    async fn lines(&self, count: usize) -> Vec<Value> {
        let text = comes(&self.path, count).await;
        text.lines().map(|line| settled(serde_json::from_str(line).unwrap())).collect()
    }
}

async fn stage(form: LineForm, path: &Path, backends: &[&Backend]) -> Stage {
    let access_log = AccessLogOptions { target: LogTarget::File(path.into()), form };
    let setup = Setup { logged: Sample::of(1.0), access_log, ..Setup::default() };
    Stage::with(setup, &backends.iter().map(|it| it.address).collect::<Vec<_>>()).await
}

/// The file, once it has so many lines.
async fn comes(path: &Path, lines: usize) -> String {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.lines().count() >= lines && text.ends_with('\n') {
            return text;
        }
        assert!(begun.elapsed() < LONG, "{lines} lines do not come, only {text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Checks what differs from run to run, and takes it away.
fn settled(mut line: Value) -> Value {
    let may_be_brief = line["protocol"] == "UDP";
    let fields = line.as_object_mut().unwrap();
    let mut take = |name: &str| fields.remove(name).unwrap();
    assert!(take("time").as_str().unwrap().ends_with('Z'));
    assert!(take("client_port").is_u64());
    let (took, upstream) = (take("duration_ms").as_f64().unwrap(), take("upstream_ms"));
    // A flow may be over with its first datagram.
    assert!(
        (took > 0.0 || may_be_brief) && upstream.as_f64().is_none_or(|upstream| upstream <= took),
        "{upstream} of {took}"
    );
    let key = take("key");
    assert!(key.as_str().is_none_or(|key| u64::from_str_radix(key, 16).is_ok() && key.len() == 16));
    line["measured"] = json!([!upstream.is_null(), !key.is_null()]);
    line
}

/// What the line of a request says that `backend` answered, but for these fields.
fn answered(backend: &Backend, but: Value) -> Value {
    let address = backend.address.to_string();
    let mut line = json!({
        "client": "127.0.0.1", "namespace": "shop", "pool": "web",
        "method": "GET", "host": "a", "path": "/cart", "protocol": "HTTP/1.1",
        "status": 200, "bytes_in": GET.len(), "bytes_out": 0,
        "backend": address, "backend_id": address, "backend_address": address,
        "retries": 0, "reason": null, "measured": [true, true],
    });
    for (name, value) in but.as_object().unwrap() {
        line[name] = value.clone();
    }
    line
}

/// The same of a request that no backend saw.
fn unanswered(but: Value) -> Value {
    let mut line = json!({
        "client": "127.0.0.1", "namespace": "shop", "pool": "web",
        "method": "GET", "host": "a", "path": "/cart", "protocol": "HTTP/1.1",
        "status": 400, "bytes_in": GET.len(), "bytes_out": 0,
        "backend": null, "backend_id": null, "backend_address": null,
        "retries": 0, "reason": "bad_request", "measured": [false, false],
    });
    for (name, value) in but.as_object().unwrap() {
        line[name] = value.clone();
    }
    line
}

#[tokio::test]
async fn an_answered_request_has_a_line_with_its_own_bytes() {
    let backend = Backend::new().await;
    let log = Logged::json(&[&backend]).await;
    let mut client = log.stage.connect().await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    // The second one and a part of the third come before the first one is answered.
    let (third, rest) = GET.split_at(10);
    client.write(&format!("{GET}{post}{third}")).await;
    let mut server = backend.accept().await;
    let mut sent = Vec::new();
    for body in ["one", "two"] {
        server.read_head().await;
        if body == "two" {
            server.read("3\r\nabc\r\n0\r\n\r\n".len()).await;
        }
        server.write(&ok(body)).await;
        let (head, body) = client.read_response().await;
        sent.push(head.len() + body.len());
    }
    client.write(rest).await;
    server.read_head().await;
    server.write(&ok("three")).await;
    let (head, body) = client.read_response().await;
    let expected = [
        answered(&backend, json!({"bytes_out": sent[0]})),
        answered(
            &backend,
            json!({"method": "POST", "path": "/", "bytes_in": post.len(), "bytes_out": sent[1]}),
        ),
        answered(&backend, json!({"bytes_out": head.len() + body.len()})),
    ];
    assert_eq!(log.lines(3).await, expected);
}

#[tokio::test]
async fn a_line_of_text_can_be_read_by_people() {
    let backend = Backend::new().await;
    let log = Logged::new(LineForm::Text, &[&backend]).await;
    let address = backend.address;
    backend.answer_all("ok");
    let twice = "GET /\"x\" HTTP/1.0\r\nHost: \"b\r\nHost: a\r\n\r\n";
    let (asked, answered) = (twice.len(), log.stage.exchange(twice).await.len());
    let line = comes(&log.path, 1).await;
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    assert!(words[0].ends_with('Z') && words[1].starts_with("127.0.0.1:") && words[9].starts_with("took="));
    assert_eq!(
        [&words[2..9], &words[10..]].concat().join(" "),
        format!(
            "shop/web \"GET \\\"b/\\\"x\\\" HTTP/1.0\" 400 in={asked} out={answered} backend=- upstream=- retries=0 \
             reason=bad_request key=-"
        )
    );
    log.stage.exchange(CLOSE).await;
    let second = comes(&log.path, 2).await.lines().nth(1).unwrap().to_owned();
    assert!(second.contains(&format!(" \"GET a/cart HTTP/1.1\" 200 in={} out=", CLOSE.len())), "{second}");
    assert!(second.contains(&format!(" backend={address}@{address} upstream=")), "{second}");
}

#[tokio::test]
async fn a_request_that_was_tried_again_says_so() {
    let backend = Backend::new().await;
    let log = Logged::json(&[&backend]).await;
    let mut client = log.stage.connect().await;
    let mut sent = Vec::new();
    client.write(GET).await;
    let mut server = backend.accept().await;
    server.read_head().await;
    server.write(&ok("")).await;
    sent.push(client.read_response().await.0.len());
    client.write(GET).await;
    server.read_head().await;
    drop(server);
    let mut server = backend.accept().await;
    server.read_head().await;
    server.write(&ok("")).await;
    sent.push(client.read_response().await.0.len());
    let expected = [
        answered(&backend, json!({"bytes_out": sent[0]})),
        answered(&backend, json!({"bytes_out": sent[1], "retries": 1})),
    ];
    assert_eq!(log.lines(2).await, expected);
}

#[tokio::test]
async fn an_answer_of_ours_says_why() {
    let log = Logged::json(&[]).await;
    let (no_backend, no_host) = (CLOSE, "GET /cart HTTP/1.0\r\n\r\n");
    let mut expected = Vec::new();
    for (request, but) in [
        (no_backend, json!({"status": 503, "reason": "no_backend", "measured": [false, true]})),
        (
            no_host,
            json!({"host": null, "protocol": "HTTP/1.0", "status": 503, "reason": "no_backend",
                         "measured": [false, true]}),
        ),
        ("GET /cart HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", json!({})),
        ("nonsense\r\n\r\n", json!({"method": null, "host": null, "path": null, "protocol": null})),
    ] {
        let mut client = log.stage.connect().await;
        client.write(request).await;
        client.shutdown().await;
        let answer = client.read_to_end().await;
        let mut line = unanswered(but);
        line["bytes_in"] = request.len().into();
        line["bytes_out"] = answer.len().into();
        expected.push(line);
        assert_eq!(log.lines(expected.len()).await, expected);
    }
}

#[tokio::test]
async fn a_client_that_went_away_has_a_line_too() {
    let backend = Backend::new().await;
    let log = Logged::json(&[&backend]).await;
    let (client, _server) = log.stage.under_way(&backend, GET).await;
    client.reset();
    let gone = json!({"status": null, "reason": "client_gone", "measured": [false, true]});
    assert_eq!(log.lines(1).await, [answered(&backend, gone)]);
}

#[tokio::test]
async fn a_response_that_broke_off_has_a_line_too() {
    let backend = Backend::new().await;
    let log = Logged::json(&[&backend]).await;
    let (mut client, mut server) = log.stage.under_way(&backend, GET).await;
    server.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    let head = client.read_head().await;
    assert_eq!(client.read(4).await, "half");
    drop(server);
    let truncated = json!({"bytes_out": head.len() + 4, "reason": "truncated"});
    assert_eq!(log.lines(1).await, [answered(&backend, truncated)]);
}

#[tokio::test]
async fn a_switched_connection_has_a_line_when_it_ends() {
    let backend = Backend::new().await;
    let log = Logged::json(&[&backend]).await;
    let mut client = log.stage.connect().await;
    let request = "GET /cart HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    client.write(request).await;
    let mut server = backend.accept().await;
    server.read_head().await;
    server
        .write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        .await;
    let head = client.read_head().await;
    client.write("ping").await;
    server.read(4).await;
    server.write("pong!").await;
    client.read(5).await;
    assert_eq!(log.path.metadata().unwrap().len(), 0, "it goes on");
    drop((client, server));
    let switched = json!({"status": 101, "bytes_in": request.len() + 4, "bytes_out": head.len() + 5});
    assert_eq!(log.lines(1).await, [answered(&backend, switched)]);
}

#[tokio::test]
async fn the_same_key_has_the_same_hash() {
    let log = Logged::json(&[]).await;
    for key in ["ada", "bob", "ada"] {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\nConnection: close\r\n\r\n");
        log.stage.exchange(&request).await;
    }
    let text = comes(&log.path, 3).await;
    let keys: Vec<Value> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].take()).collect();
    assert!(keys[0] == keys[2] && keys[0] != keys[1], "{keys:?}");
}

#[tokio::test]
async fn a_pool_without_an_access_log_has_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let access_log = AccessLogOptions { target: LogTarget::File(path.clone()), form: LineForm::Text };
    let stage = Stage::with(Setup { access_log, ..Setup::default() }, &[]).await;
    stage.exchange(CLOSE).await;
    stage.exchange("nonsense\r\n\r\n").await;
    stage.proxy.drain(LONG).await;
    assert_eq!(std::fs::read_to_string(path).unwrap(), "");
}

#[tokio::test]
async fn the_last_lines_are_written_before_the_end() {
    let backend = Backend::new().await;
    let log = Logged::json(&[&backend]).await;
    let (_client, _server) = log.stage.under_way(&backend, GET).await;
    // Cut at the deadline.
    assert_eq!(log.stage.proxy.drain(Duration::ZERO).await, 1);
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&log.path).unwrap()).unwrap();
    assert_eq!((&line["reason"], &line["status"]), (&json!("client_gone"), &Value::Null));
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_opened_anew() {
    let log = Logged::json(&[]).await;
    log.stage.exchange(CLOSE).await;
    log.lines(1).await;
    let moved = log.path.with_extension("1");
    std::fs::rename(&log.path, &moved).unwrap();
    log.stage.exchange(CLOSE).await;
    comes(&moved, 2).await;
    log.stage.proxy.reopen_access_log();
    log.stage.exchange(CLOSE).await;
    assert_eq!(log.lines(1).await.len(), 1);
    assert_eq!(comes(&moved, 2).await.lines().count(), 2);
}

#[tokio::test]
async fn nobody_waits_for_a_log_that_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Open on both sides, so that the other one can be opened, and never read.
    let _reader = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let stage = stage(LineForm::Text, &path, &[]).await;
    let mut client = stage.connect().await;
    // A byte of it is three in the log, so that two thousand lines are more than waits to be written.
    let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "\u{e4}".repeat(500));
    for _ in 0..2_000 {
        client.write(&request).await;
        let (head, _) = client.read_response().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    }
    assert!(stage.series(DROPPED) > 0.0);
    drop(client);
    let begun = Instant::now();
    stage.proxy.drain(LONG).await;
    assert!(begun.elapsed() < LONG, "it waited for {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_is_found_at_the_start() {
    let access_log =
        AccessLogOptions { target: LogTarget::File("/nowhere/access.log".into()), form: LineForm::Text };
    let ((_publisher, reader), (writer, bindings)) = (handoff(), bindings(None));
    let (metrics, latch) =
        (Metrics::new(reader.clone(), bindings), Readiness::default().latch("listeners bound"));
    let options = ProxyOptions { access_log, ..ProxyOptions::default() };
    let error = Proxy::start(options, reader, writer, metrics.traffic(), latch).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the access log /nowhere/access.log cannot be opened: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn the_client_is_the_one_for_whom_a_trusted_proxy_asks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let access_log = AccessLogOptions { target: LogTarget::File(path.clone()), form: LineForm::Json };
    let trusted = vec!["127.0.0.0/8".parse().unwrap()];
    let setup = Setup { logged: Sample::of(1.0), access_log, trusted, ..Setup::default() };
    let stage = Stage::with(setup, &[]).await;
    stage
        .exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n")
        .await;
    let line: Value = serde_json::from_str(&comes(&path, 1).await).unwrap();
    assert_eq!((&line["client"], &line["client_port"]), (&json!("192.0.2.7"), &Value::Null));
}

/// What the line of a connection or flow says, but for these fields.
fn carried(protocol: &str, backend: Option<SocketAddr>, but: Value) -> Value {
    let address = backend.map(|it| it.to_string());
    let mut line = json!({
        "client": "127.0.0.1", "namespace": "shop", "pool": "web",
        "method": null, "host": null, "path": null, "protocol": protocol,
        "status": null, "bytes_in": 0, "bytes_out": 0,
        "backend": address, "backend_id": address, "backend_address": address,
        "retries": 0, "reason": null, "measured": [false, true],
    });
    for (name, value) in but.as_object().unwrap() {
        line[name] = value.clone();
    }
    line
}

#[tokio::test]
async fn a_connection_of_tcp_has_a_line_when_it_ends_that_says_how() {
    let backend = Backend::new().await;
    let limits = Limits { tunnel_idle: Duration::from_millis(600), ..Limits::for_descriptors(20_000) };
    let setup = Setup { protocol: Protocol::Tcp, limits, ..Setup::default() };
    let mut log = Logged::of(setup, &[backend.address]).await;
    let at = Some(backend.address);
    for (end, reason) in [
        ("in order", Value::Null),
        ("by the client", json!("client_gone")),
        ("by the backend", json!("truncated")),
        ("by nobody", json!("idle")),
    ] {
        let mut client = log.stage.connect().await;
        let mut server = backend.accept().await;
        client.write("question").await;
        assert_eq!(server.read(8).await, "question");
        server.write("yes").await;
        assert_eq!(client.read(3).await, "yes");
        match end {
            "in order" => {
                client.shutdown().await;
                server.shutdown().await;
                assert!(client.is_closed().await);
            }
            "by the client" => client.reset(),
            "by the backend" => server.reset(),
            _ => assert!(client.is_reset().await),
        }
        let line = carried("TCP", at, json!({"bytes_in": 8, "bytes_out": 3, "reason": reason}));
        assert_eq!(log.next_line().await, line, "it ended {end}");
    }
    // It may be reset before it is known to be there.
    let port = log.stage.port;
    let connect = async || TcpStream::connect(("127.0.0.1", port)).await.ok();
    let refusing = Reserved::new();
    log.stage.publish(&[refusing.address()], State::Ready);
    let _client = connect().await;
    assert_eq!(
        log.next_line().await,
        carried("TCP", None, json!({"reason": "connect_failed", "retries": 1}))
    );
    log.stage.publish(&[], State::Ready);
    let _client = connect().await;
    assert_eq!(log.next_line().await, carried("TCP", None, json!({"reason": "no_backend"})));
}

#[tokio::test]
async fn a_connection_that_is_cut_at_the_end_of_the_process_has_a_line() {
    let backend = Backend::new().await;
    let setup = Setup { protocol: Protocol::Tcp, ..Setup::default() };
    let log = Logged::of(setup, &[backend.address]).await;
    let mut client = log.stage.connect().await;
    let mut server = backend.accept().await;
    client.write("x").await;
    server.read(1).await;
    assert_eq!(log.stage.proxy.drain(Duration::from_millis(100)).await, 1);
    let text = comes(&log.path, 1).await;
    let line = settled(serde_json::from_str(text.trim_end()).unwrap());
    let expected = json!({"bytes_in": 1, "reason": "drained"});
    assert_eq!(line, carried("TCP", Some(backend.address), expected));
}

#[tokio::test]
async fn a_flow_has_a_line_when_it_is_forgotten() {
    let backend = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = backend.local_addr().unwrap();
    let limits = Limits { flow_idle: Duration::from_millis(300), ..Limits::for_descriptors(20_000) };
    let setup = Setup { protocol: Protocol::Udp, limits, ..Setup::default() };
    let mut log = Logged::of(setup, &[at]).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", log.stage.port)).await.unwrap();
    let mut space = [0; 16];
    for question in ["four", "three"] {
        client.send(question.as_bytes()).await.unwrap();
        let (_, flow) = backend.recv_from(&mut space).await.unwrap();
        backend.send_to(b"ok", flow).await.unwrap();
        client.recv(&mut space).await.unwrap();
    }
    assert_eq!(log.next_line().await, carried("UDP", Some(at), json!({"bytes_in": 9, "bytes_out": 4})));
    log.stage.publish(&[], State::Ready);
    client.send(b"x").await.unwrap();
    assert_eq!(log.next_line().await, carried("UDP", None, json!({"reason": "no_backend"})));
}
