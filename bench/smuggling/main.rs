//! Sends the corpus of `tests/smuggling` through a proxy that runs elsewhere, in front of the recording backend, and
//! prints as JSON what became of it. `bench/proxy/smuggling` starts the peers for it and makes the table.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a tool for developers ends when something is not there"
)]
#![allow(dead_code, reason = "the tests beside the corpus use more of it")]

#[path = "../../tests/smuggling/corpus.rs"]
mod corpus;
#[path = "../../tests/smuggling/judge.rs"]
mod judge;
#[path = "../../tests/smuggling/probe.rs"]
mod probe;
#[path = "../../tests/smuggling/recorder.rs"]
mod recorder;
#[path = "../../tests/smuggling/strict.rs"]
mod strict;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use corpus::Payload;
use judge::Outcome;
use recorder::Recorder;
use serde_json::{Value, json};

/// How long a proxy may take to start.
const START: Duration = Duration::from_secs(20);
/// How long a proxy may take to send on what it has, and to notice that a connection was closed.
const SETTLE: Duration = Duration::from_millis(20);

fn main() {
    let addresses: Vec<SocketAddr> = std::env::args().skip(1).filter_map(|it| it.parse().ok()).collect();
    let [backend, proxy] = addresses[..] else {
        panic!("usage: smuggling BACKEND PROXY, both as address:port; it listens at the first");
    };
    let recorder = Recorder::start(backend);
    wait_for(proxy);
    recorder.take();
    let outcomes: Vec<_> =
        corpus::load().into_iter().map(|payload| put_through(&recorder, proxy, payload)).collect();
    println!("{}", report(&outcomes));
}

fn wait_for(proxy: SocketAddr) {
    let begun = Instant::now();
    let get = b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n";
    let serves =
        || std::net::TcpStream::connect(proxy).is_ok() && !probe::send(proxy, get).recorded.is_empty();
    while !serves() {
        assert!(begun.elapsed() < START, "nobody serves at {proxy}");
        thread::sleep(SETTLE);
    }
}

fn put_through(recorder: &Recorder, proxy: SocketAddr, payload: Payload) -> (Payload, Outcome) {
    let heard = probe::send(proxy, &payload.bytes);
    thread::sleep(SETTLE);
    let record = recorder.take();
    thread::sleep(SETTLE);
    (payload, Outcome::of(heard, record))
}

fn report(outcomes: &[(Payload, Outcome)]) -> Value {
    let named = |is: &dyn Fn(&Payload, &Outcome) -> bool| -> Vec<&str> {
        let chosen = outcomes.iter().filter(|(payload, outcome)| is(payload, outcome));
        chosen.map(|(payload, _)| payload.name.as_str()).collect()
    };
    let dirt: Vec<Value> = outcomes
        .iter()
        .filter(|(_, outcome)| !outcome.is_clean())
        .map(|(payload, outcome)| json!({"payload": payload.name, "outcome": format!("{outcome:?}")}))
        .collect();
    json!({
        "payloads": named(&|payload, _| !payload.is_compliant()).len(),
        "passed": named(&|payload, it| !payload.is_compliant() && it.passed > 0).len(),
        "refused": named(&|payload, it| !payload.is_compliant() && it.passed == 0 && !it.refused.is_empty()).len(),
        "unanswered": named(&|payload, it| !payload.is_compliant() && it.passed == 0 && it.refused.is_empty()).len(),
        "dirty": named(&|_, it| !it.dirt.is_empty()).len(),
        "leaked": named(&|_, it| !it.leaks.is_empty()).len(),
        "hidden": named(&|_, it| it.hides).len(),
        "compliant": named(&|payload, _| payload.is_compliant()).len(),
        "compliant_passed": named(&|payload, it| payload.is_compliant() && it.is_clean() && it.meets(&payload.verdict)).len(),
        "otherwise": named(&|payload, it| !it.meets(&payload.verdict)),
        "unclean": dirt,
    })
}
