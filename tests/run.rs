//! `guideway run` as a service manager starts it: flags, signals, and what it leaves in the access log.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "proxy/reserved.rs"]
mod reserved;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use reserved::Reserved;

/// Nothing in a test takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process that serves a pool of one backend, which refuses. It ends also when the test fails.
struct Run {
    child: Child,
    port: u16,
    metrics: u16,
    _reserved: [Reserved; 3],
}

impl Run {
    fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::with_pool(folder, "", arguments)
    }

    /// A process whose pool has these further fields.
    fn with_pool(folder: &Path, further: &str, arguments: &[&str]) -> Self {
        let reserved = [(); 3].map(|()| Reserved::new());
        let [port, metrics, dead] = reserved.each_ref().map(Reserved::port);
        let mut pool = String::from("apiVersion: guideway.dev/v1alpha1\nkind: LoadBalancerPool\n");
        write!(
            pool,
            "metadata: {{name: web, namespace: shop}}\nspec:\n  accessLog: {{}}\n  \
             listeners: [{{name: web, port: {port}}}]\n  \
             backends: [{{name: dead, endpoints: [{{address: 127.0.0.1, port: {dead}}}]}}]\n{further}"
        )
        .unwrap();
        let file = folder.join("pool.yaml");
        std::fs::write(&file, pool).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_guideway"));
        command.args(["run", "--listen-address=127.0.0.1", "--workers=1", "--file"]).arg(file);
        command.arg(format!("--metrics-address=127.0.0.1:{metrics}")).args(arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, port, metrics, _reserved: reserved }
    }

    /// Waits until it serves.
    fn once_ready(self) -> Self {
        wait("readiness", || get(self.metrics, "/readyz").is_some_and(|answer| answer.contains(" 200 ")));
        self
    }

    fn request(&self, path: &str) {
        let answer = get(self.port, path).unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// What it logged until its end.
    fn said(&mut self) -> String {
        std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap()
    }

    fn terminate(&mut self) -> ExitStatus {
        self.signal("-TERM");
        self.child.wait().unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn wait(what: &str, right: impl Fn() -> bool) {
    let begun = Instant::now();
    while !right() {
        assert!(begun.elapsed() < PATIENCE, "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn paths(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let path = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["path"].to_string();
    text.lines().map(path).collect()
}

#[test]
fn lines_go_to_standard_output_and_no_signal_but_the_last_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(folder.path(), &[]).once_ready();
    let mut lines = BufReader::new(run.child.stdout.take().unwrap()).lines().map(Result::unwrap);
    run.request("/first");
    let first = lines.next().unwrap();
    assert!(first.contains(" shop/web \"GET a/first HTTP/1.1\" 502 "), "{first}");
    run.signal("-HUP");
    run.request("/second");
    assert!(run.terminate().success());
    let second: Vec<String> = lines.collect();
    assert!(second.len() == 1 && second[0].contains("\"GET a/second HTTP/1.1\""), "{second:?}");
    assert!(run.said().contains("nothing to open anew"));
}

#[test]
fn quit_ends_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(folder.path(), &["--drain-delay=0s"]).once_ready();
    run.signal("-QUIT");
    assert!(run.child.wait().unwrap().success());
    let said = run.said();
    assert!(said.contains("finishing requests") && said.contains("left"), "{said}");
}

#[test]
fn without_a_cluster_the_process_says_that_it_assigns_seats() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::start(folder.path(), &[]).once_ready();
    let scrape = get(run.metrics, "/metrics").unwrap();
    assert!(scrape.contains("\nguideway_leader 1\n"), "{scrape}");
}

#[test]
fn a_hangup_opens_a_file_anew_that_was_moved_away() {
    let folder = tempfile::tempdir().unwrap();
    let (log, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let flag = format!("--access-log={}", log.display());
    let mut run = Run::start(folder.path(), &[&flag, "--access-log-format=json"]).once_ready();
    run.request("/first");
    wait("the first line", || paths(&log).len() == 1);
    std::fs::rename(&log, &moved).unwrap();
    run.signal("-HUP");
    wait("the new file", || log.exists());
    run.request("/second");
    assert!(run.terminate().success());
    assert_eq!((paths(&moved), paths(&log)), (vec!["\"/first\"".into()], vec!["\"/second\"".into()]));
}

#[test]
fn a_log_that_cannot_be_written_is_said_before_anything_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::start(folder.path(), &["--access-log=/nowhere/access.log"]);
    assert_eq!(run.child.wait().unwrap().code(), Some(1));
    let said = run.said();
    assert!(said.contains("the access log /nowhere/access.log cannot be opened"), "{said}");
}

#[test]
fn the_least_memory_that_may_be_set_is_enough_to_serve() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::start(folder.path(), &["--memory-limit=64Mi"]).once_ready();
    run.request("/");
    assert!(get(run.metrics, "/metrics").unwrap().contains("\nguideway_overload_level 0\n"));
}

#[test]
fn a_process_without_memory_for_requests_serves_none_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    // A table that takes more than all that the process may hold.
    let run = Run::with_pool(folder.path(), "  algorithm: {tableSize: 8388593}\n", &["--memory-limit=64Mi"])
        .once_ready();
    let shows = |level: &str| {
        get(run.metrics, "/metrics")
            .is_some_and(|it| it.contains(&format!("\nguideway_overload_level {level}\n")))
    };
    wait("the level", || shows("3"));
    assert_eq!(get(run.port, "/").unwrap_or_default(), "", "new connections are closed");
    let refused = "guideway_connections_refused_total{limit=\"memory\"} 1";
    assert!(get(run.metrics, "/metrics").unwrap().contains(refused));
}

#[test]
fn mistakes_in_flags_are_told_at_once_also_where_values_begin_with_a_hyphen_or_are_missing() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guideway"));
    command.args([
        "run",
        "--drain-timeout",
        "-1s",
        "--log-level",
        "bogus",
        "--drain-delay",
        "--workers",
        "0",
    ]);
    let ended = command.output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    let said = String::from_utf8(ended.stderr).unwrap();
    let flags: Vec<&str> = said.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(flags, ["--drain-delay", "--workers", "--drain-timeout", "--log-level"], "{said}");
    assert!(said.contains("`-1s` is no duration") && said.contains("its value is missing"), "{said}");
}
