//! A corpus of requests that servers read in different ways, sent through the proxy to a backend that reads strictly:
//! nothing dirty gets there, nothing that the client does not know of, and each payload is judged as it should be.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod corpus;
mod judge;
mod probe;
mod recorder;
mod strict;

#[path = "../proxy/stage.rs"]
#[allow(dead_code, reason = "another test's stage, of which this one needs little")]
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use corpus::Payload;
use judge::Outcome;
use recorder::Recorder;
use stage::Stage;

/// Sends one payload through a proxy of its own, so that all that is said of it is about it.
fn outcome(runtime: &tokio::runtime::Runtime, recorder: &Recorder, payload: &Payload) -> Outcome {
    let stage = runtime.block_on(Stage::new(&[recorder.address]));
    let heard = probe::send(SocketAddr::from((Ipv4Addr::LOCALHOST, stage.port)), &payload.bytes);
    runtime.block_on(stage.proxy.drain(Duration::ZERO));
    Outcome::of(heard, recorder.take())
}

#[test]
fn nothing_dirty_or_hidden_gets_through_and_every_verdict_is_met() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let recorder = Recorder::start((Ipv4Addr::LOCALHOST, 0).into());
    let mut wrong = Vec::new();
    for payload in corpus::load() {
        let outcome = outcome(&runtime, &recorder, &payload);
        if !(outcome.is_clean() && outcome.meets(&payload.verdict)) {
            wrong.push(format!("{}: expected {:?}, got {outcome:?}", payload.name, payload.verdict));
        }
    }
    assert!(wrong.is_empty(), "{} payloads:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_corpus_is_as_large_as_it_is_said_to_be() {
    let payloads = corpus::load();
    let (compliant, others): (Vec<_>, Vec<_>) = payloads.iter().partition(|payload| payload.is_compliant());
    assert!(compliant.len() >= 30 && others.len() >= 300, "{} and {}", compliant.len(), others.len());
    assert!(compliant.iter().all(|payload| payload.verdict.passed > 0 && payload.verdict.refused.is_empty()));
    let families: BTreeSet<_> = others.iter().map(|payload| payload.family()).collect();
    assert!(families.len() >= 15, "{families:?}");
    let mut known = BTreeMap::new();
    for payload in &payloads {
        assert_eq!(known.insert(&payload.bytes, &payload.name), None, "{} is the same", payload.name);
    }
}
