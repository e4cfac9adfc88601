//! Owns the law of a holder that says nothing: no ready pod waits for an election, and whatever a follower decided by
//! itself lasts only until the holder speaks.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::api_server::ApiServer;
use super::fixtures::*;
use super::replica::*;

/// A second of patience with the holder, and a little for the work.
const SILENCE: Duration = Duration::from_millis(1_100);

/// Somebody else holds the lease for the whole test.
fn held_by_other(server: &ApiServer) {
    server.put_lease(json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "guideway" },
        "spec": { "holderIdentity": "other", "leaseDurationSeconds": 3600 }
    }));
}

/// Names of the pods that own slots in the table of `shop/web`.
fn serving(replica: &Replica) -> Vec<String> {
    let snapshot = replica.reader.load();
    let members = snapshot.pool(&web()).map(|pool| &pool.members[..]).unwrap_or_default();
    members.iter().filter(|it| it.slots > 0).map(|it| it.backend.name.to_string()).collect()
}

fn digest(replica: &Replica) -> u64 {
    replica.reader.load().pool(&web()).unwrap().digest
}

async fn serves(replica: &Replica, names: &[&str]) -> Duration {
    let began = Instant::now();
    until(&format!("{names:?} own slots"), || serving(replica) == names).await;
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_follower_of_a_silent_holder_serves_after_a_second() {
    let server = shop().await;
    held_by_other(&server);
    let replica = Replica::start(&server, "a");
    let took = serves(&replica, &["web-1", "web-2"]).await;
    assert!(took <= SILENCE, "{took:?}");
    assert!(replica.readiness.is_ready());
    let other = Replica::start(&server, "b");
    serves(&other, &["web-1", "web-2"]).await;
    assert_eq!(digest(&other), digest(&replica), "they decide by the same rule");
    other.stop().await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_becomes_ready_under_a_silent_holder_serves_after_a_second() {
    let server = shop().await;
    held_by_other(&server);
    let replica = Replica::start(&server, "a");
    serves(&replica, &["web-1", "web-2"]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    put_pod(&server, pod("web-3").ready());
    let took = serves(&replica, &["web-1", "web-2", "web-3"]).await;
    assert!(took <= SILENCE, "{took:?}");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_beside_a_holder_whose_statuses_are_refused_serves_after_a_second() {
    let server = shop().await;
    server.refuse_statuses(true);
    let holder = Replica::start(&server, "holder");
    until("there is a holder", || server.lease_holder().is_some()).await;
    serves(&holder, &["web-1", "web-2"]).await;
    let follower = Replica::start(&server, "follower");
    let took = serves(&follower, &["web-1", "web-2"]).await;
    assert!(took <= SILENCE, "{took:?}");
    tokio::time::sleep(Duration::from_secs(20)).await;
    put_pod(&server, pod("web-3").ready());
    let took = serves(&follower, &["web-1", "web-2", "web-3"]).await;
    assert!(took <= SILENCE, "{took:?}");
    follower.stop().await;
    holder.stop().await;
}

/// The seats `names` in this order, as a holder writes them.
fn seats(names: &[&str]) -> Value {
    let seat = |(seat, name): (usize, &&str)| {
        json!({
            "seat": seat, "backend": "stable", "occupant": name, "uid": format!("uid-{name}"), "weight": 1
        })
    };
    names.iter().enumerate().map(seat).collect()
}

#[tokio::test(start_paused = true)]
async fn what_the_holder_says_at_last_takes_the_place_of_what_a_follower_decided() {
    let server = shop().await;
    held_by_other(&server);
    let early = Replica::start(&server, "early");
    serves(&early, &["web-1", "web-2"]).await;
    let alone = digest(&early);
    let mut told = pool();
    told["status"] = json!({ "seats": seats(&["web-2", "web-1"]) });
    server.put("loadbalancerpools", &told);
    let late = Replica::start(&server, "late");
    serves(&late, &["web-1", "web-2"]).await;
    until("both have one table", || digest(&early) == digest(&late)).await;
    assert_ne!(digest(&early), alone, "the holder's seats are other ones");
    early.stop().await;
    late.stop().await;
}

/// How many have seats, and not only stand in while nobody has.
fn seated(replica: &Replica) -> usize {
    let snapshot = replica.reader.load();
    let members = snapshot.pool(&web()).map(|pool| &pool.members[..]).unwrap_or_default();
    members.iter().filter(|it| it.seat.is_some()).count()
}

#[tokio::test(start_paused = true)]
async fn a_holder_without_seats_takes_those_that_a_follower_gave() {
    let server = shop().await;
    held_by_other(&server);
    let replica = Replica::start(&server, "a");
    serves(&replica, &["web-1", "web-2"]).await;
    until("they have seats", || seated(&replica) == 2).await;
    // The holder saw the pods in the short time before they became unready, or never did.
    for name in ["web-1", "web-2"] {
        put_pod(&server, pod(name));
    }
    server.put("endpointslices", &slice("a", &[endpoint("web-1", false), endpoint("web-2", false)]));
    serves(&replica, &[]).await;
    assert_eq!(seated(&replica), 2, "an unready pod keeps its seat");
    let mut silent = pool();
    silent["status"] = json!({ "observedGeneration": 1 });
    server.put("loadbalancerpools", &silent);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(seated(&replica), 2, "who has told of no table has said nothing of seats");
    let mut told = pool();
    told["status"] = json!({ "table": { "digest": "0", "size": 251, "bytes": 502, "seats": 0 } });
    server.put("loadbalancerpools", &told);
    until("nobody sits any more", || seated(&replica) == 0).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_tells_that_it_has_no_seats() {
    let server = shop().await;
    for name in ["web-1", "web-2"] {
        server.delete("pods", name);
    }
    server.delete("endpointslices", "a");
    let holder = Replica::start(&server, "holder");
    until("it says so", || {
        server.statuses().last().is_some_and(|(_, status)| status["table"]["seats"] == json!(0))
    })
    .await;
    holder.stop().await;
}

#[tokio::test(start_paused = true)]
async fn replicas_agree_once_the_statuses_of_the_holder_are_taken_again() {
    let server = shop().await;
    let holder = Replica::start(&server, "holder");
    serves(&holder, &["web-1", "web-2"]).await;
    server.refuse_statuses(true);
    let follower = Replica::start(&server, "follower");
    // The holder seats them as they come, the follower by age: their tables may differ.
    for (name, created) in [("web-3", "2026-11-21T08:20:00Z"), ("web-4", "2026-11-21T08:10:00Z")] {
        put_pod(&server, pod(name).set("/metadata/creationTimestamp", json!(created)).ready());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let all = ["web-1", "web-2", "web-3", "web-4"];
    serves(&holder, &all).await;
    serves(&follower, &all).await;
    server.refuse_statuses(false);
    until("both have one table", || digest(&holder) == digest(&follower)).await;
    follower.stop().await;
    holder.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_follows_from_patience_alone_is_told_in_the_log() {
    let log = Log::default();
    let _listening = log.listen();
    let server = shop().await;
    held_by_other(&server);
    let replica = Replica::start(&server, "a");
    until("they have seats", || seated(&replica) == 2).await;
    put_pod(&server, pod("web-3").ready());
    serves(&replica, &["web-1", "web-2", "web-3"]).await;
    let digest = format!("digest={:016x}", digest(&replica));
    assert!(log.lines_with(&["table published", "cause=\"seats\"", &digest]) == 1, "{}", log.text());
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_moves_nobody_is_no_news() {
    let log = Log::default();
    let _listening = log.listen();
    let server = shop().await;
    let replica = Replica::start(&server, "a");
    serves(&replica, &["web-1", "web-2"]).await;
    let told = log.lines_with(&["table published"]);
    let mut edited = pool();
    edited["metadata"]["generation"] = json!(2);
    edited["spec"]["timeouts"] = json!({ "request": "7s" });
    server.put("loadbalancerpools", &edited);
    let request = || replica.reader.load().pool(&web()).and_then(|pool| pool.pool.timeouts.request);
    until("the edit is served", || request() == Some(Duration::from_secs(7))).await;
    assert_eq!(log.lines_with(&["table published"]), told, "{}", log.text());
    put_pod(&server, pod("web-3").ready());
    serves(&replica, &["web-1", "web-2", "web-3"]).await;
    assert!(log.lines_with(&["table published"]) > told);
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_its_seat_does_not_count_as_spread() {
    let server = shop().await;
    held_by_other(&server);
    let replica = Replica::start(&server, "a");
    until("they have seats", || seated(&replica) == 2).await;
    let counted = || replica.metric("guideway_propagation_seconds_count{namespace=\"shop\",pool=\"web\"}");
    let before = counted();
    put_pod(&server, pod("web-3").ready());
    until("the pod is known", || replica.ready().contains(&"web-3".into())).await;
    assert_eq!(serving(&replica), ["web-1", "web-2"]);
    assert_eq!(counted(), before);
    serves(&replica, &["web-1", "web-2", "web-3"]).await;
    put_pod(&server, pod("web-3"));
    serves(&replica, &["web-1", "web-2"]).await;
    assert_eq!(counted(), Some(before.unwrap_or(0.0) + 1.0));
    replica.stop().await;
}
