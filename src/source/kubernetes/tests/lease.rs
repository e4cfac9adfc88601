//! Owns the law of the Lease: one holder, by nobody's clock but our own.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::super::lease::{Candidate, Pace};
use super::super::touch::Pulse;
use super::api_server::{ApiServer, Fault};
use super::replica::Log;

const PATIENCE: Duration = Duration::from_secs(60);

fn candidate(
    server: &ApiServer,
    identity: &str,
) -> (watch::Receiver<bool>, CancellationToken, JoinHandle<()>) {
    let (told, holds) = watch::channel(false);
    let stop = CancellationToken::new();
    let (pulse, _) = Pulse::new();
    let candidate = Candidate::new(server.client(), "guideway-system", identity, Pace::default(), pulse);
    (holds, stop.clone(), tokio::spawn(candidate.run(told, stop)))
}

/// How long after its last word a holder is replaced: the lease's duration from when others last saw it change, at
/// most one look later, less the time since that last word.
fn takeover() -> std::ops::RangeInclusive<Duration> {
    let pace = Pace::default();
    pace.duration - pace.look..=pace.duration + pace.look
}

async fn becomes(holds: &mut watch::Receiver<bool>, wanted: bool) {
    timeout(PATIENCE, holds.wait_for(|holds| *holds == wanted)).await.unwrap().unwrap();
}

fn held_by_other(renewed: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "guideway" },
        "spec": { "holderIdentity": "other", "leaseDurationSeconds": 8, "renewTime": renewed, "leaseTransitions": 4 }
    })
}

#[tokio::test(start_paused = true)]
async fn a_free_lease_is_taken_renewed_and_let_go() {
    let server = ApiServer::start();
    let (mut holds, stop, running) = candidate(&server, "a");
    becomes(&mut holds, true).await;
    tokio::time::sleep(20 * Pace::default().duration).await;
    assert!(!holds.has_changed().unwrap(), "it was lost in between");
    stop.cancel();
    running.await.unwrap();
    assert_eq!(server.lease_holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_holder_with_a_clock_an_hour_slow_keeps_its_lease_until_it_falls_silent() {
    let server = ApiServer::start();
    server.put_lease(held_by_other("2020-01-01T00:00:00.000000Z"));
    let (mut holds, stop, running) = candidate(&server, "a");
    for beat in 0..30 {
        server.put_lease(held_by_other(&format!("2020-01-01T00:00:{beat:02}.000000Z")));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!*holds.borrow(), "taken from a holder that renews");
    }
    let silent = Instant::now();
    becomes(&mut holds, true).await;
    assert!(takeover().contains(&silent.elapsed()), "{:?}", silent.elapsed());
    assert_eq!(server.lease().unwrap()["spec"]["leaseTransitions"], json!(5));
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_gives_up_before_others_may_take_over() {
    let server = ApiServer::start();
    let (mut holds, stop, running) = candidate(&server, "a");
    becomes(&mut holds, true).await;
    server.down();
    let alone = Instant::now();
    becomes(&mut holds, false).await;
    assert!(alone.elapsed() < Pace::default().duration, "{:?}", alone.elapsed());
    server.up();
    becomes(&mut holds, true).await;
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_many_candidates_one_holds_and_a_dead_one_is_replaced() {
    let server = ApiServer::start();
    let mut candidates: Vec<_> = ["a", "b", "c"].iter().map(|name| candidate(&server, name)).collect();
    let holders = |candidates: &[(watch::Receiver<bool>, _, _)]| {
        candidates
            .iter()
            .filter(|(holds, _, _): &&(_, CancellationToken, JoinHandle<()>)| *holds.borrow())
            .count()
    };
    timeout(PATIENCE, async {
        while holders(&candidates) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    tokio::time::sleep(10 * Pace::default().look).await;
    assert_eq!(holders(&candidates), 1);
    let at = candidates.iter().position(|(holds, _, _)| *holds.borrow()).unwrap();
    let (_, _, dead) = candidates.remove(at);
    dead.abort();
    let died = Instant::now();
    timeout(PATIENCE, async {
        while holders(&candidates) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(takeover().contains(&died.elapsed()), "{:?}", died.elapsed());
    for (_, stop, running) in candidates {
        stop.cancel();
        running.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_never_answered_is_given_up_and_told_of_once() {
    let log = Log::default();
    let _listening = log.listen();
    let server = ApiServer::start();
    let (mut holds, stop, running) = candidate(&server, "a");
    becomes(&mut holds, true).await;
    server.fault("leases", Some(Fault::NoAnswer));
    let began = Instant::now();
    becomes(&mut holds, false).await;
    let pace = Pace::default();
    assert!(began.elapsed() <= pace.give_up + pace.look / 10, "{:?}", began.elapsed());
    let told = || log.lines_with(&["WARN", "cannot read or renew the lease", "no answer within 2s"]);
    assert_eq!(told(), 1, "{}", log.text());
    server.fault("leases", None);
    becomes(&mut holds, true).await;
    assert_eq!(told(), 1, "{}", log.text());
    stop.cancel();
    running.await.unwrap();
}
