//! Owns the law of losing and finding the API server: no fault empties a table, and what was missed is
//! caught up with soon after it is over.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::super::watch::Pace;
use super::api_server::{ApiServer, Fault, Right};
use super::fixtures::*;
use super::replica::*;
use crate::balance::pool::PortId;
use crate::source::credentials::tests::pair;

/// The promise: so soon after a fault is over the news are in use.
const RECOVERY: Duration = Duration::from_secs(5);
const BOTH: &[&str] = &["web-1", "web-2"];
const ALL: &[&str] = &["web-1", "web-2", "web-3"];

#[tokio::test(start_paused = true)]
async fn a_cluster_becomes_a_table_and_changes_follow() {
    let server = shop().await;
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    put_pod(&server, pod("web-3").ready());
    replica.becomes(ALL).await;
    server.delete("pods", "web-1");
    replica.becomes(&["web-2", "web-3"]).await;
    put_pod(&server, pod("web-2"));
    replica.becomes(&["web-3"]).await;
    assert!(replica.readiness.is_ready());
    replica.stop().await;
}

/// A server whose watch on pods just met `fault`, and which has news since.
async fn meets(fault: Fault) -> (ApiServer, Replica) {
    let server = shop().await;
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    let before = asked(&server);
    server.fault("pods", Some(fault));
    until("the fault is met", || asked(&server) > before).await;
    put_pod(&server, pod("web-3").ready());
    (server, replica)
}

fn asked(server: &ApiServer) -> usize {
    server.asked("watch", "pods") + server.asked("list", "pods")
}

/// Lists still work, so the news come while the fault lasts.
async fn catches_up_during(fault: Fault) {
    let (server, mut replica) = meets(fault).await;
    let took = replica.becomes(ALL).await;
    assert!(took <= RECOVERY, "caught up after {took:?} of {fault:?}");
    asks_with_patience(&server, fault).await;
    replica.stop().await;
}

/// Nothing works; the news come soon after the fault is over.
async fn catches_up_after(fault: Fault, limit: Duration) {
    let (server, mut replica) = meets(fault).await;
    asks_with_patience(&server, fault).await;
    assert_eq!(replica.ready(), BOTH);
    server.fault("pods", None);
    let took = replica.becomes(ALL).await;
    assert!(took <= limit, "caught up {took:?} after {fault:?}");
    replica.stop().await;
}

async fn asks_with_patience(server: &ApiServer, fault: Fault) {
    let before = asked(server);
    tokio::time::sleep(RECOVERY).await;
    let requests = asked(server) - before;
    assert!(requests <= 20, "{requests} requests within {RECOVERY:?} of {fault:?}");
}

#[tokio::test(start_paused = true)]
async fn a_version_too_old_ends_in_a_new_list() {
    catches_up_during(Fault::RefuseWatch(410)).await;
    catches_up_during(Fault::GoneEvent).await;
}

#[tokio::test(start_paused = true)]
async fn a_version_from_the_future_ends_in_a_new_list() {
    catches_up_during(Fault::RefuseWatch(504)).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_loses_its_later_pages_is_not_believed() {
    let server = shop().await;
    // More than a page, and all of them before the pods of the pool.
    for number in 0..600 {
        put_pod(&server, pod(&format!("other-{number:03}")).label("app", "other"));
    }
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    assert_eq!(server.asked("list", "pods"), 2, "two pages");
    server.fault("pods", Some(Fault::Compacted));
    put_pod(&server, pod("web-3").ready());
    tokio::time::sleep(3 * RECOVERY).await;
    assert!(server.asked("list", "pods") > 3, "it was tried again");
    assert_eq!(replica.ready(), BOTH);
    server.fault("pods", None);
    let took = replica.becomes(ALL).await;
    assert!(took <= RECOVERY, "{took:?}");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_read_ends_in_a_new_list() {
    let server = shop().await;
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    server.babble("pods");
    put_pod(&server, pod("web-3").ready());
    let took = replica.becomes(ALL).await;
    assert!(took <= RECOVERY, "{took:?}");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_or_refusing_server_is_asked_again_with_patience() {
    for code in [429, 500, 503, 403] {
        catches_up_after(Fault::Refuse(code), RECOVERY).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_every_watch_is_not_hammered() {
    catches_up_after(Fault::CloseAtOnce, RECOVERY).await;
}

#[tokio::test(start_paused = true)]
async fn a_half_open_connection_is_noticed() {
    let pace = Pace::default();
    catches_up_after(Fault::Silence, pace.silence + RECOVERY).await;
    catches_up_after(Fault::NoAnswer, pace.answer + RECOVERY).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_off_for_a_while_is_current_soon_although_its_connections_stay_silent() {
    // Shorter ones may pass between two calls for the lease; TCP makes up for those as fast.
    for tenths in (40..300).step_by(13) {
        let server = shop().await;
        let mut replica = Replica::start(&server, "a");
        replica.becomes(BOTH).await;
        tokio::time::sleep(Duration::from_millis(tenths * 7 % 2000)).await;
        server.cut_off();
        put_pod(&server, pod("web-3").ready());
        tokio::time::sleep(Duration::from_millis(tenths * 100)).await;
        assert_eq!(replica.ready(), BOTH);
        let lists = server.asked("list", "pods");
        server.reconnect();
        let took = replica.becomes(ALL).await;
        assert!(took <= RECOVERY, "{took:?} after {tenths} tenths of a second");
        assert_eq!(server.asked("list", "pods"), lists, "it watches on from where it was");
        replica.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_costs_no_table_and_its_return_brings_the_news() {
    let log = Log::default();
    let _listening = log.listen();
    let server = shop().await;
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    until("ready", || replica.readiness.is_ready()).await;
    server.down();
    put_pod(&server, pod("web-3").ready());
    tokio::time::sleep(2 * RECOVERY).await;
    assert_eq!(replica.ready(), BOTH);
    assert!(replica.readiness.is_ready());
    server.up();
    let took = replica.becomes(ALL).await;
    assert!(took <= RECOVERY, "{took:?}");
    let returned = || log.lines_with(&["in touch with the API server again", "kind=\"pods\"", "away_ms=1"]);
    until("the log says so", || returned() == 1).await;
    assert_eq!(log.lines_with(&["lost touch with the API server", "kind=\"pods\""]), 1);
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_starts_without_a_server_waits_unready() {
    let server = shop().await;
    server.down();
    let mut replica = Replica::start(&server, "a");
    tokio::time::sleep(RECOVERY).await;
    assert_eq!(replica.readiness.missing(), ["first full picture"]);
    let age = replica.metric("guideway_watch_age_seconds{resource=\"pods\"}");
    assert_eq!(age, Some(RECOVERY.as_secs_f64()), "silence from the start counts");
    server.up();
    replica.becomes(BOTH).await;
    until("ready", || replica.readiness.is_ready()).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restored_server_that_lists_nothing_at_first_empties_no_table() {
    let server = shop().await;
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    server.down();
    for kind in ["loadbalancerpools", "services", "endpointslices", "pods"] {
        server.fault(kind, Some(Fault::EmptyList));
    }
    server.up();
    until("every kind was listed again", || {
        ["loadbalancerpools", "services", "endpointslices", "pods"]
            .iter()
            .all(|kind| server.asked("watch", kind) > 1)
    })
    .await;
    assert_eq!(replica.ready(), BOTH);
    for kind in ["loadbalancerpools", "services", "endpointslices", "pods"] {
        server.fault(kind, None);
    }
    put_pod(&server, pod("web-3").ready());
    let began = Instant::now();
    while began.elapsed() < 3 * super::super::guard::SECOND_OPINION {
        assert!(replica.ready().len() >= 2, "{:?}", replica.ready());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    replica.becomes(ALL).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_cannot_be_read_spoils_no_other() {
    let server = shop().await;
    let mut broken = pool();
    broken["metadata"]["name"] = json!("broken");
    broken["spec"] = json!({ "listeners": "none" });
    server.put("loadbalancerpools", &broken);
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    until("its status says so", || {
        let statuses = server.statuses();
        let told = statuses.iter().filter(|(name, _)| name == "broken").map(|(_, status)| status.to_string());
        told.into_iter().any(|status| status.contains("Invalid") && status.contains("spec.listeners"))
    })
    .await;
    replica.stop().await;
}

/// The last status of a pool says that this value of a newer definition is unknown here.
fn refuses_ring_hash(server: &ApiServer, name: &str, generation: i64, more: &str) -> bool {
    let statuses = server.statuses();
    let Some((_, status)) = statuses.iter().rfind(|(pool, _)| pool == name) else { return false };
    let accepted = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Accepted");
    let accepted = accepted.unwrap();
    let says = |words: &str| accepted["message"].as_str().unwrap().contains(words);
    accepted["status"] == "False"
        && accepted["observedGeneration"] == generation
        && says("spec.algorithm.type: `RingHash` is not supported; use Maglev")
        && says("or upgrade Guideway")
        && says(more)
}

#[tokio::test(start_paused = true)]
async fn a_listed_pool_with_a_value_of_a_newer_definition_is_its_own_matter() {
    let server = shop().await;
    let mut newer = pool();
    newer["metadata"]["name"] = json!("newer");
    newer["spec"]["listeners"][0]["port"] = json!(8081);
    newer["spec"]["algorithm"] = json!({ "type": "RingHash" });
    server.put("loadbalancerpools", &newer);
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    until("its status says so", || refuses_ring_hash(&server, "newer", 1, "")).await;
    assert_eq!(replica.metric("guideway_config_errors"), Some(1.0));
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_field_of_a_newer_definition_is_not_left_aside_in_silence() {
    let server = shop().await;
    let mut newer = pool();
    newer["spec"]["access"] = json!({ "deny": ["192.0.2.0/24"] });
    server.put("loadbalancerpools", &newer);
    let replica = Replica::start(&server, "a");
    let told = |(name, status): &(String, serde_json::Value)| {
        let message = status["conditions"][0]["message"].as_str().unwrap_or_default();
        name == "web" && message.contains("spec.access") && message.contains("upgrade Guideway")
    };
    until("its status says so", || server.statuses().iter().any(told)).await;
    assert!(replica.reader.load().route(PortId::Tcp(8080), None, "/").is_none());
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_of_a_newer_definition_leaves_the_last_good_table_and_the_watch_alone() {
    let server = shop().await;
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    let mut newer = pool();
    newer["metadata"]["generation"] = json!(2);
    newer["spec"]["algorithm"] = json!({ "type": "RingHash" });
    server.put("loadbalancerpools", &newer);
    until("its status says so", || refuses_ring_hash(&server, "web", 2, "last good spec stays")).await;
    assert_eq!(replica.metric("guideway_config_errors"), Some(1.0));
    let mut other = pool();
    other["metadata"]["name"] = json!("other");
    other["spec"]["listeners"][0]["port"] = json!(8081);
    server.put("loadbalancerpools", &other);
    put_pod(&server, pod("web-3").ready());
    replica.becomes(ALL).await;
    until("the other pool serves", || replica.reader.load().route(PortId::Tcp(8081), None, "/").is_some())
        .await;
    assert!(replica.reader.load().route(PortId::Tcp(8080), None, "/").is_some());
    assert_eq!(server.asked("watch", "loadbalancerpools"), 1, "the watch went on");
    newer["metadata"]["generation"] = json!(3);
    newer["spec"]["algorithm"] = json!({ "type": "Maglev" });
    server.put("loadbalancerpools", &newer);
    until("it is counted no more", || replica.metric("guideway_config_errors") == Some(0.0)).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_replica_writes_status_and_another_takes_over_with_its_seats() {
    let server = shop().await;
    let mut first = Replica::start(&server, "first");
    until("the first holds the lease", || server.lease_holder().as_deref() == Some("first")).await;
    let mut second = Replica::start(&server, "second");
    first.becomes(BOTH).await;
    second.becomes(BOTH).await;
    until("the status has the seats", || {
        server
            .statuses()
            .last()
            .is_some_and(|(_, status)| status["seats"].as_array().is_some_and(|it| it.len() == 2))
    })
    .await;
    let digest = |replica: &Replica| replica.reader.load().pool(&web()).unwrap().digest;
    until("both agree", || digest(&first) == digest(&second)).await;
    let before = server.statuses().last().unwrap().1["seats"].clone();
    first.stop().await;
    until("the second holds the lease", || server.lease_holder().as_deref() == Some("second")).await;
    put_pod(&server, pod("web-3").ready());
    second.becomes(ALL).await;
    until("the second writes", || {
        server
            .statuses()
            .last()
            .is_some_and(|(_, status)| status["seats"].as_array().is_some_and(|it| it.len() == 3))
    })
    .await;
    let after = server.statuses().last().unwrap().1["seats"].clone();
    assert_eq!(after.as_array().unwrap()[..2], before.as_array().unwrap()[..]);
    server.delete("pods", "web-1");
    server.delete("endpointslices", "a");
    until("the seat that was left is told", || {
        server.statuses().last().is_some_and(|(_, status)| status["seats"].to_string().contains("vacated"))
    })
    .await;
    assert_eq!(server.statuses_refused_for(), Vec::<String>::new());
    second.stop().await;
    assert_eq!(server.lease_holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_only_reports_is_written_at_most_twice_a_second_and_never_twice() {
    let server = shop().await;
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    until("the first status", || !server.statuses().is_empty()).await;
    let (before, began) = (server.statuses().len(), Instant::now());
    for flip in 0..240 {
        let pod = if flip % 2 == 0 { pod("web-1") } else { pod("web-1").ready() };
        put_pod(&server, pod);
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    let (written, seconds) = (server.statuses().len() - before, began.elapsed().as_secs_f64());
    assert!(written >= 4 && (written as f64) <= seconds * 2.0 + 1.0, "{written} in {seconds} s");
    replica.becomes(BOTH).await;
    until("the last word stands", || {
        server.statuses().last().is_some_and(|(_, status)| status["endpoints"]["summary"] == json!("2/2"))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let settled = server.statuses().len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(server.statuses().len(), settled);
    replica.stop().await;
}

/// All rights that a replica uses from its start to its end, as holder of the lease.
pub(super) async fn rights_used_in_a_life() -> BTreeSet<Right> {
    let server = shop().await;
    server.put("loadbalancerpools", &tls_pool(&["shop-tls"]));
    server.put("secrets", &tls_secret("shop-tls", &pair(&["shop.test"])));
    let mut replica = Replica::start(&server, "a");
    replica.becomes(BOTH).await;
    until("the first status", || !server.statuses().is_empty()).await;
    replica.stop().await;
    assert_eq!(server.lease_holder(), None, "it let go of the lease");
    server.rights_used()
}
