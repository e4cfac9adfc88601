//! What clients notice when memory runs out, step by step, and when there is enough again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use guideway::proxy::{MemoryProbe, MemoryUse};

use super::stage::{Backend, Peer, Setup, Stage, ok};
use super::streams::{
    END_HEADERS, END_STREAM, HEADERS, Http2, PSEUDO, RawHttp2, answer, block, frame, get, soon,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const LEVEL: &str = "guideway_overload_level";
/// How often the proxy looks at times and at the level.
const TICK: Duration = Duration::from_millis(100);

/// Percent of a process's memory that are in use, as a test says.
#[derive(Clone, Default)]
struct Memory(Arc<AtomicU64>);

impl Memory {
    fn probe(&self) -> MemoryProbe {
        let used = self.0.clone();
        MemoryProbe::new(move || Some(MemoryUse { used: used.load(Relaxed), limit: 100 }))
    }

    /// Waits until every worker knows.
    async fn set(&self, stage: &Stage, percent: u64, level: f64) {
        self.0.store(percent, Relaxed);
        stage.settles(LEVEL, level).await;
        tokio::time::sleep(TICK * 3).await;
    }
}

async fn stage(backend: &Backend) -> (Stage, Memory) {
    let memory = Memory::default();
    let setup = Setup { memory: memory.probe(), ..Setup::default() };
    (Stage::with(setup, &[backend.address]).await, memory)
}

/// A client whose first request was answered.
async fn served(stage: &Stage) -> Peer {
    let mut client = stage.connect().await;
    client.write(GET).await;
    assert_eq!(client.read_response().await.1, "ok");
    client
}

#[tokio::test]
async fn idle_clients_are_sent_away_sooner_and_others_stay() {
    let backend = Backend::new().await;
    let (stage, memory) = stage(&backend).await;
    backend.answer_all("ok");
    let (mut idle, mut busy) = (served(&stage).await, served(&stage).await);
    memory.set(&stage, 85, 1.0).await;
    let begun = Instant::now();
    let mut answered = 0;
    let busy = async {
        loop {
            busy.write(GET).await;
            let (head, _) = busy.read_response().await;
            assert!(!head.contains("connection: close"), "{head}");
            answered += 1;
            tokio::time::sleep(TICK).await;
        }
    };
    tokio::select! {
        rest = idle.read_to_end() => assert_eq!(rest, ""),
        () = busy => {}
    }
    assert!(begun.elapsed() > Duration::from_secs(3), "it was idle for a moment only");
    assert!(answered > 10);
}

#[tokio::test]
async fn clients_are_asked_to_leave_with_their_next_answer() {
    let backend = Backend::new().await;
    let (stage, memory) = stage(&backend).await;
    backend.answer_all("ok");
    let mut client = served(&stage).await;
    memory.set(&stage, 92, 2.0).await;
    client.write(GET).await;
    let (head, body) = client.read_response().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("connection: close\r\n"), "{head}");
    assert_eq!((body.as_str(), client.read_to_end().await.as_str()), ("ok", ""));
    let mut newcomer = stage.connect().await;
    newcomer.write(GET).await;
    assert_eq!(newcomer.read_response().await.1, "ok", "newcomers are served");
}

#[tokio::test]
async fn requests_are_refused_and_newcomers_sent_away_until_there_is_memory_again() {
    let backend = Backend::new().await;
    let (stage, memory) = stage(&backend).await;
    let (mut waiting, mut server) = stage.under_way(&backend, GET).await;
    backend.answer_all("ok");
    let mut client = served(&stage).await;
    memory.set(&stage, 95, 3.0).await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx").await;
    let answer = client.read_to_end().await;
    for part in
        ["HTTP/1.1 503 ", "x-guideway-reason: overloaded\r\n", "retry-after: 1\r\n", "connection: close\r\n"]
    {
        assert!(answer.contains(part), "{part} is missing in {answer}");
    }
    assert!(stage.connect().await.is_closed().await);
    let rescued = "guideway_rescued_total{namespace=\"shop\",pool=\"web\",reason=\"overloaded\"}";
    assert_eq!(stage.series(rescued), 1.0);
    assert_eq!(stage.series("guideway_connections_refused_total{limit=\"memory\"}"), 1.0);
    server.write(&ok("what was begun is finished")).await;
    assert_eq!(waiting.read_response().await.1, "what was begun is finished");
    drop(server);
    memory.set(&stage, 92, 3.0).await;
    assert!(stage.connect().await.is_closed().await, "it has to fall further");
    memory.set(&stage, 50, 0.0).await;
    let mut client = served(&stage).await;
    client.write(GET).await;
    assert!(!client.read_response().await.0.contains("connection: close"));
}

/// A client of HTTP/2 whose first request was answered.
async fn streaming(stage: &Stage) -> Http2 {
    let mut client = Http2::connect(stage).await;
    assert_eq!(client.ask(get("/")).await.body, "ok");
    client
}

/// Waits until a client of HTTP/2 heard that it is to leave.
async fn is_told_to_leave(client: &Http2) {
    let told = async {
        while client.sender.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(told).await;
}

#[tokio::test]
async fn clients_of_http_2_are_asked_to_leave_at_once_and_finish_what_they_began() {
    let backend = Backend::new().await;
    let (stage, memory) = stage(&backend).await;
    let mut busy = Http2::connect(&stage).await;
    let (response, _) = busy.begin(get("/"), true).await;
    let mut server = backend.accept().await;
    server.read_head().await;
    backend.answer_all("ok");
    let idle = streaming(&stage).await;
    let mut silent = RawHttp2::connect(&stage).await;
    memory.set(&stage, 92, 2.0).await;
    let begun = Instant::now();
    is_told_to_leave(&idle).await;
    is_told_to_leave(&busy).await;
    assert_eq!(silent.goodbye().await, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "that is before an idle client would be sent away");
    server.write(&ok("what was begun is finished")).await;
    assert_eq!(answer(response).await.unwrap().body, "what was begun is finished");
}

#[tokio::test]
async fn streams_are_refused_while_there_is_no_memory() {
    let backend = Backend::new().await;
    let (stage, memory) = stage(&backend).await;
    let request = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&PSEUDO));
    let mut client = RawHttp2::connect(&stage).await;
    client.write(&request(1)).await;
    let mut server = backend.accept().await;
    server.read_head().await;
    backend.answer_all("ok");
    memory.set(&stage, 95, 3.0).await;
    assert_eq!(client.goodbye().await, Some(0));
    // Where the goodbye is still on its way, a client begins one more.
    client.write(&request(3)).await;
    assert_eq!(client.next(HEADERS).await.unwrap().0, 3);
    let rescued = "guideway_rescued_total{namespace=\"shop\",pool=\"web\",reason=\"overloaded\"}";
    stage.settles(rescued, 1.0).await;
    assert!(stage.connect().await.is_closed().await, "newcomers are sent away, whatever they would speak");
    server.write(&ok("begun before")).await;
    assert_eq!(client.next(HEADERS).await.unwrap().0, 1);
    drop(server);
    memory.set(&stage, 50, 0.0).await;
    assert_eq!(Http2::connect(&stage).await.ask(get("/")).await.body, "ok");
}
