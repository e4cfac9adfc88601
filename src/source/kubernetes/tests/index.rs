//! Owns the law of the join: who is a member, in what state, whoever tells first.

use std::time::Duration;

use serde_json::json;

use super::super::join::Problem;
use super::super::watch::{Change, Event, Kind};
use super::fixtures::*;
use crate::balance::backend::HttpVersion;
use crate::balance::backend::State::{NotReady, Ready, Terminating};
use crate::balance::snapshot::Shares;
use crate::source::programmer;

const LONG: Duration = Duration::from_secs(60);
const ECHO: Duration = Duration::from_millis(20);

#[test]
fn a_ready_pod_is_a_member_before_any_slice_names_it() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    assert_eq!(bench.members(), [("web-1", Ready)]);
    assert_eq!(bench.addresses(), ["10.0.0.1:8080"]);
}

/// The Service `web` with port 53 of UDP and of TCP, which lead to these targets.
fn dns(udp: &serde_json::Value, tcp: &serde_json::Value) -> serde_json::Value {
    let mut service = service("web");
    service["spec"]["ports"] = json!([
        { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": udp },
        { "name": "dns-tcp", "port": 53, "targetPort": tcp },
    ]);
    service
}

/// The pool with listeners of these protocols, and this port of its Service.
fn pool_speaking(protocols: &[&str], port: &serde_json::Value) -> serde_json::Value {
    let mut pool = pool();
    let listener = |it: &&str| json!({ "name": it.to_lowercase(), "port": 53, "protocol": it });
    pool["spec"]["listeners"] = protocols.iter().map(listener).collect();
    pool["spec"]["backends"][0]["service"]["port"] = port.clone();
    pool
}

#[test]
fn a_port_of_a_service_is_found_by_what_the_pool_s_listeners_speak() {
    let (same, named) = ([json!(5353), json!(5353)], [json!("dns"), json!("dns-tcp")]);
    let cases = [
        (&["UDP"][..], json!(53), &named, Some("10.0.0.1:1053")),
        (&["TCP"][..], json!(53), &named, Some("10.0.0.1:2053")),
        (&["UDP"][..], json!("dns"), &named, Some("10.0.0.1:1053")),
        (&["UDP"][..], json!("dns-tcp"), &named, None),
        (&["UDP", "TCP"][..], json!(53), &same, Some("10.0.0.1:5353")),
        (&["UDP", "TCP"][..], json!("dns"), &same, Some("10.0.0.1:5353")),
        // One address cannot lead to two places.
        (&["UDP", "TCP"][..], json!(53), &named, None),
        (&["HTTP"][..], json!("dns"), &same, None),
    ];
    for (protocols, port, [udp, tcp], expected) in cases {
        let mut bench = Bench::new();
        bench.service(&dns(udp, tcp));
        bench.pool(&pool_speaking(protocols, &port));
        let ports = json!([
            { "name": "dns", "containerPort": 1053, "protocol": "UDP" },
            { "name": "dns-tcp", "containerPort": 2053 },
            { "name": "http", "containerPort": 8080 },
        ]);
        bench.pod(pod("web-1").ready().set("/spec/containers/0/ports", ports));
        let problems = &bench.index.pool(&web()).unwrap().problems;
        let case = format!("{protocols:?} {port} {udp} {tcp}: {problems:?}");
        assert_eq!(problems.is_empty(), expected.is_some(), "{case}");
        if let Some(expected) = expected {
            assert_eq!(bench.addresses(), [expected], "{case}");
        }
    }
}

#[test]
fn the_port_of_tcp_says_which_http_is_spoken_whatever_else_the_pool_listens_for() {
    for (protocols, app_protocol, expected) in [
        (&["HTTP"][..], "grpc", HttpVersion::Http2),
        (&["UDP", "HTTP"][..], "kubernetes.io/h2c", HttpVersion::Http2),
        (&["UDP", "HTTP"][..], "http", HttpVersion::Http1),
    ] {
        let mut bench = Bench::new();
        let mut service = dns(&json!(5353), &json!(5353));
        service["spec"]["ports"][1]["appProtocol"] = json!(app_protocol);
        bench.service(&service);
        bench.pool(&pool_speaking(protocols, &json!(53)));
        bench.pod(pod("web-1").ready());
        assert_eq!(bench.versions(), [expected], "{protocols:?} {app_protocol}");
    }
}

#[test]
fn slices_tell_of_endpoints_of_udp_too() {
    let mut bench = Bench::new();
    bench.service(&dns(&json!(1053), &json!(1053)));
    bench.pool(&pool_speaking(&["UDP"], &json!("dns")));
    let mut told = slice("a", &[address("192.0.2.1", true)]);
    told["ports"] = json!([{ "name": "dns", "port": 1053, "protocol": "UDP" }]);
    bench.slice(&told);
    assert_eq!(bench.addresses(), ["192.0.2.1:1053"]);
}

#[test]
fn a_pod_tells_its_readiness_itself_both_ways() {
    let mut bench = Bench::new();
    bench.slice(&slice("a", &[endpoint("web-1", false)]));
    bench.pod(pod("web-1"));
    assert_eq!(bench.members(), [("web-1", NotReady)]);
    bench.pod(pod("web-1").ready());
    assert_eq!(bench.members(), [("web-1", Ready)]);
    bench.pod(pod("web-1"));
    assert_eq!(bench.members(), [("web-1", NotReady)]);
}

#[test]
fn the_echo_of_a_slice_does_not_turn_a_pods_word_back() {
    let mut bench = Bench::new();
    bench.slice(&slice("a", &[endpoint("web-1", true)]));
    bench.pass(LONG);
    bench.pod(pod("web-1").ready());
    bench.pass(LONG);
    bench.pod(pod("web-1"));
    bench.pod(pod("web-1").ready());
    bench.pass(ECHO);
    assert!(bench.slice(&slice("a", &[endpoint("web-1", false)])).is_empty());
    assert_eq!(bench.members(), [("web-1", Ready)]);
}

#[test]
fn a_slice_counts_when_the_pod_has_been_silent() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    bench.slice(&slice("a", &[endpoint("web-1", true)]));
    bench.pass(LONG);
    bench.slice(&slice("a", &[endpoint("web-1", false)]));
    assert_eq!(bench.members(), [("web-1", NotReady)]);
    bench.pass(ECHO);
    bench.pod(pod("web-1"));
    bench.pass(ECHO);
    bench.pod(pod("web-1").ready());
    assert_eq!(bench.members(), [("web-1", Ready)]);
}

#[test]
fn a_pod_on_its_way_out_terminates_at_once_and_leaves_with_its_deletion() {
    let mut bench = Bench::new();
    bench.slice(&slice("a", &[endpoint("web-1", true)]));
    bench.pod(pod("web-1").ready());
    bench.pod(pod("web-1").ready().deleting());
    assert_eq!(bench.members(), [("web-1", Terminating { serving: true })]);
    bench.pod_deleted("web-1");
    assert_eq!(bench.members(), []);
}

#[test]
fn a_late_slice_does_not_bring_a_deleted_pod_back() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    bench.pod(pod("web-2").ready());
    bench.pod_deleted("web-1");
    bench.pass(LONG + LONG);
    bench.slice(&slice("a", &[endpoint("web-1", true), endpoint("web-2", true)]));
    bench.index.forget_gone(bench.now);
    bench.pass(LONG);
    bench.slice(&slice("a", &[endpoint("web-1", false), endpoint("web-2", true)]));
    assert_eq!(bench.members(), [("web-2", Ready)]);
}

#[test]
fn a_pod_of_the_same_name_is_another_pod() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    bench.pod(pod("web-1").uid("second"));
    assert_eq!(bench.members(), [("web-1", NotReady)]);
    assert_eq!(bench.facts.as_ref().unwrap().members[0].backend.id.as_str(), "second");
    bench.slice(&slice("a", &[endpoint("web-1", true)]));
    assert_eq!(bench.members(), [("web-1", NotReady)], "the slice still names the first pod");
}

#[test]
fn pods_without_address_port_or_life_are_no_members() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready().set("/status/podIPs", json!([])));
    bench.pod(pod("web-2").ready().set("/status/phase", json!("Failed")));
    bench.pod(pod("web-3").ready().label("app", "api"));
    bench.pod(pod("web-4").ready().set("/spec/containers", json!([{ "name": "web" }])));
    assert_eq!(bench.members(), []);
}

#[test]
fn a_pod_that_loses_the_label_leaves_before_its_slice_says_so() {
    let mut bench = Bench::new();
    bench.slice(&slice("a", &[endpoint("web-1", true)]));
    bench.pod(pod("web-1").ready());
    bench.pass(LONG);
    bench.pod(pod("web-1").ready().label("app", "debug"));
    assert_eq!(bench.members(), []);
}

#[test]
fn an_endpoint_in_two_slices_is_one_member_and_the_later_word_counts() {
    let mut bench = Bench::new();
    bench.slice(&slice("a", &[endpoint("web-1", false)]));
    bench.pass(ECHO);
    bench.slice(&slice("b", &[endpoint("web-1", true)]));
    assert_eq!(bench.members(), [("web-1", Ready)]);
}

#[test]
fn addresses_without_a_pod_follow_their_slice() {
    let mut bench = Bench::new();
    let by_hand = slice("by-hand", &[address("192.0.2.1", true), address("192.0.2.2", false)]);
    bench.slice(&by_hand);
    assert_eq!(bench.members(), [("192.0.2.1:8080", Ready), ("192.0.2.2:8080", NotReady)]);
    bench.slice(&slice("by-hand", &[address("192.0.2.2", true)]));
    assert_eq!(bench.members(), [("192.0.2.2:8080", Ready)]);
}

#[test]
fn a_service_that_publishes_unready_addresses_follows_slices_alone() {
    let mut bench = Bench::new();
    let mut object = service("web");
    object["spec"]["publishNotReadyAddresses"] = json!(true);
    bench.service(&object);
    bench.pod(pod("web-1"));
    assert_eq!(bench.members(), []);
    bench.slice(&slice("a", &[endpoint("web-1", true)]));
    assert_eq!(bench.members(), [("web-1", Ready)]);
}

#[test]
fn a_dual_stack_service_gives_one_address_of_its_first_family() {
    let mut bench = Bench::new();
    let both = json!([{ "ip": "10.0.0.1" }, { "ip": "2001:db8::1" }]);
    bench.pod(pod("web-1").ready().set("/status/podIPs", both));
    assert_eq!(bench.addresses(), ["10.0.0.1:8080"]);
    let mut object = service("web");
    object["spec"]["ipFamilies"] = json!(["IPv6", "IPv4"]);
    bench.service(&object);
    assert_eq!(bench.addresses(), ["[2001:db8::1]:8080"]);
}

#[test]
fn lineage_names_the_deployment_its_revision_and_the_ordinal() {
    let facts = pod("web-1").facts();
    assert_eq!(facts.lineage.workload.as_deref(), Some("Deployment/web"));
    assert_eq!(facts.lineage.revision.as_deref(), Some("5d9c"));
    assert_eq!(facts.lineage.ordinal, None);
    let owner = json!([{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "s", "controller": true }]);
    let labels = json!({ "app": "web", "controller-revision-hash": "web-77" });
    let facts = pod("web-3").set("/metadata/ownerReferences", owner).set("/metadata/labels", labels).facts();
    assert_eq!(facts.lineage.workload.as_deref(), Some("StatefulSet/web"));
    assert_eq!(facts.lineage.revision.as_deref(), Some("web-77"));
    assert_eq!(facts.lineage.ordinal, Some(3));
}

#[test]
fn events_that_change_nothing_cost_nothing() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    assert!(bench.pod(pod("web-1").ready().set("/status/message", json!("heartbeat"))).is_empty());
    assert_eq!(bench.index.waiting_since(), None);
    bench.pod(pod("api-1").label("app", "api"));
    assert_eq!(bench.index.waiting_since(), None);
}

#[test]
fn a_burst_is_one_change_and_its_first_event_is_the_cause() {
    let mut bench = Bench::new();
    let began = bench.now;
    for number in 1..=50 {
        bench
            .index
            .apply(Event::Pods(Change::Applied(pod(&format!("web-{number}")).ready().facts())), bench.now);
        bench.pass(Duration::from_millis(1));
    }
    let drained = bench.index.drain(&Shares::new(), bench.now);
    assert_eq!(drained.len(), 1);
    assert_eq!((drained[0].dirt.cause, drained[0].dirt.since), (Kind::Pods, began));
    assert_eq!(drained[0].changes.len(), 1);
}

#[test]
fn a_missing_service_or_port_is_told_and_leaves_other_groups_alone() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    let mut second = pool();
    second["metadata"]["name"] = json!("second");
    second["spec"]["backends"] = json!([
        { "name": "stable", "service": { "name": "web", "port": 80 } },
        { "name": "canary", "service": { "name": "canary", "port": 80 } },
        { "name": "typo", "service": { "name": "api", "port": "htpt" } }
    ]);
    bench.service(&service("api"));
    let changes = bench.pool(&second);
    let [programmer::Change::Set(facts), programmer::Change::Tenure(..)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(facts.members.len(), 1);
    let id = crate::balance::pool::PoolId::new("shop", "second");
    let problems: Vec<String> =
        bench.index.pool(&id).unwrap().problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2);
    assert!(problems[0].contains("no Service canary"), "{problems:?}");
    assert!(problems[1].contains("no TCP port named htpt; it has 80 (http)"), "{problems:?}");
}

#[test]
fn a_bad_edit_leaves_the_last_good_spec_in_force() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    let mut bad = pool();
    bad["metadata"]["generation"] = json!(2);
    bad["spec"]["listeners"][0]["port"] = json!(0);
    assert!(bench.pool(&bad).is_empty());
    assert!(bench.index.pool(&web()).unwrap().earlier().is_some());
    bench.pod(pod("web-2").ready());
    assert_eq!(bench.members(), [("web-1", Ready), ("web-2", Ready)]);
    let mut typo = pool();
    typo["metadata"]["generation"] = json!(3);
    typo["spec"]["backends"][0]["service"]["name"] = json!("wbe");
    assert!(bench.pool(&typo).is_empty());
    assert!(matches!(bench.index.pool(&web()).unwrap().problems[..], [Problem::ServiceNotFound { .. }]));
    bench.pod_deleted("web-2");
    assert_eq!(bench.members(), [("web-1", Ready)]);
}

#[test]
fn a_spec_that_waits_for_its_service_comes_into_force_with_it() {
    let mut bench = Bench::new();
    bench.pod(pod("web-1").ready());
    let mut next = pool();
    next["spec"]["backends"][0]["service"]["name"] = json!("next");
    next["spec"]["listeners"][0]["port"] = json!(8081);
    bench.pool(&next);
    assert_eq!(bench.facts.as_ref().unwrap().pool.listeners[0].port, 8080);
    bench.service(&service("next"));
    assert_eq!(bench.facts.as_ref().unwrap().pool.listeners[0].port, 8081);
    assert!(bench.index.pool(&web()).unwrap().problems.is_empty());
}

#[test]
fn a_pod_in_two_groups_has_two_ids() {
    let mut bench = Bench::new();
    let mut both = pool();
    both["spec"]["backends"] = json!([
        { "name": "stable", "service": { "name": "web", "port": 80 } },
        { "name": "canary", "service": { "name": "all", "port": 80 } }
    ]);
    bench.service(&service("all"));
    bench.pool(&both);
    bench.pod(pod("web-1").ready());
    let ids: Vec<&str> =
        bench.facts.as_ref().unwrap().members.iter().map(|it| it.backend.id.as_str()).collect();
    assert_eq!(ids, ["uid-web-1", "uid-web-1~canary"]);
    bench.pod(pod("web-1"));
    assert_eq!(bench.members(), [("web-1", NotReady), ("web-1", NotReady)]);
}

#[test]
fn a_deleted_pool_is_removed() {
    let mut bench = Bench::new();
    let changes = bench.tell(Event::Pools(Change::Deleted(key("web"))));
    assert_eq!(changes, [programmer::Change::Remove(web())]);
}

#[test]
fn seats_in_the_status_are_adopted_before_the_first_facts_and_once() {
    use programmer::Change;
    let mut bench = Bench { index: super::super::index::Index::default(), ..Bench::new() };
    let mut seated = pool();
    seated["status"] = json!({ "seats": [
        { "seat": 0, "backend": "stable", "occupant": "web-1", "uid": "uid-web-1", "weight": 1 },
        { "seat": 1, "backend": "stable", "occupant": "web-2", "uid": "uid-web-2", "weight": 1, "vacated": "2026-11-21T09:00:00.250000Z" }
    ]});
    let changes = bench.pool(&seated);
    let [Change::Adopt(id, roster), Change::Set(_), Change::Tenure(..)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!((id, roster.seats.len()), (&web(), 2));
    assert_eq!(roster.seats[1].vacated_ms, Some(1_795_251_600_250));
    assert!(bench.pool(&seated).is_empty());
    assert_eq!(super::super::resource::seats_of(roster).len(), 2);
}

mod relists {
    use super::*;
    use crate::source::kubernetes::guard::SECOND_OPINION;

    fn pods(numbers: std::ops::RangeInclusive<u8>) -> Vec<PodBuilder> {
        numbers.map(|number| pod(&format!("web-{number}")).ready()).collect()
    }

    fn full_slice() -> serde_json::Value {
        let endpoints: Vec<_> = (1..=4).map(|number| endpoint(&format!("web-{number}"), true)).collect();
        slice("a", &endpoints)
    }

    #[test]
    fn a_list_is_one_change_and_drops_what_it_lacks() {
        let mut bench = Bench::new();
        assert_eq!(bench.pods_relisted(pods(1..=4)).len(), 1);
        assert_eq!(bench.pods_relisted(pods(2..=4)).len(), 1);
        assert_eq!(bench.members(), [("web-2", Ready), ("web-3", Ready), ("web-4", Ready)]);
        assert_eq!(bench.index.doubted().next(), None);
    }

    #[test]
    fn an_empty_list_of_pods_drops_nobody_whom_a_slice_names() {
        let mut bench = Bench::new();
        bench.slice(&full_slice());
        bench.pods_relisted(pods(1..=4));
        bench.pods_relisted(vec![]);
        bench.pass(LONG);
        bench.pods_relisted(vec![]);
        assert_eq!(bench.members().len(), 4);
    }

    #[test]
    fn empty_lists_of_both_kinds_are_believed_the_second_time_and_not_before() {
        let mut bench = Bench::new();
        bench.slice(&full_slice());
        bench.pods_relisted(pods(1..=4));
        bench.pods_relisted(vec![]);
        bench.slices_relisted(&[]);
        assert_eq!(bench.members().len(), 4);
        assert_eq!(bench.index.doubted().collect::<Vec<_>>(), [(Kind::Slices, None)]);
        bench.pass(SECOND_OPINION / 2);
        bench.slices_relisted(&[]);
        assert_eq!(bench.members().len(), 4, "too soon to be a second witness");
        bench.pass(SECOND_OPINION / 2);
        bench.slices_relisted(&[]);
        assert_eq!(bench.members(), []);
        assert_eq!(bench.index.doubted().next(), None);
    }

    #[test]
    fn a_full_second_list_ends_the_doubt() {
        let mut bench = Bench::new();
        bench.pods_relisted(pods(1..=4));
        bench.pods_relisted(vec![]);
        assert_eq!(bench.members().len(), 4);
        bench.pass(SECOND_OPINION);
        bench.pods_relisted(pods(1..=4));
        assert_eq!(bench.index.doubted().next(), None);
        assert_eq!(bench.members().len(), 4);
    }

    #[test]
    fn a_kept_pod_still_leaves_when_it_is_deleted() {
        let mut bench = Bench::new();
        bench.pods_relisted(pods(1..=2));
        bench.pods_relisted(vec![]);
        bench.pod_deleted("web-1");
        assert_eq!(bench.members(), [("web-2", Ready)]);
    }

    #[test]
    fn an_empty_list_of_pools_or_services_is_not_believed_at_once() {
        let mut bench = Bench::new();
        bench.pods_relisted(pods(1..=4));
        bench.tell(Event::Services(Change::Relisted { scope: None, objects: vec![] }));
        bench.tell(Event::Pools(Change::Relisted { scope: None, objects: vec![] }));
        assert_eq!(bench.members().len(), 4);
        bench.pass(SECOND_OPINION);
        let changes = bench.tell(Event::Pools(Change::Relisted { scope: None, objects: vec![] }));
        assert_eq!(changes, [programmer::Change::Remove(web())]);
    }

    #[test]
    fn a_list_of_one_namespace_says_nothing_of_another() {
        let mut bench = Bench::new();
        bench.pods_relisted(pods(1..=4));
        bench.tell(Event::Pods(Change::Relisted { scope: Some("other".into()), objects: vec![] }));
        assert_eq!(bench.members().len(), 4);
        assert_eq!(bench.index.doubted().next(), None);
    }
}
