//! Owns the law of the status: which condition says what, and that time moves only with a change.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::super::keyring::Look;
use super::super::status::View;
use super::super::watch::Event;
use super::fixtures::*;
use crate::balance::pool::PortId;
use crate::crd::LoadBalancerPoolStatus;
use crate::handoff::{BindState, handoff};
use crate::metrics::ControlMetrics;
use crate::source::credentials::SecretCredentials;
use crate::source::credentials::tests::expired;
use crate::source::programmer::{Authority, Change, Programmer, Report};

/// A pool with its programmer and ports, and the status it makes.
struct Told {
    bench: Bench,
    programmer: Programmer,
    report: Option<Report>,
    ports: BTreeMap<PortId, BindState>,
}

impl Told {
    fn new() -> Self {
        let programmer = Programmer::new(handoff().0, ControlMetrics::default());
        let ports = BTreeMap::from([(PortId::Tcp(8080), BindState::Bound)]);
        let mut told = Self { bench: Bench::new(), programmer, report: None, ports };
        let facts = told.bench.facts.clone().unwrap();
        told.program(vec![Change::Set(facts)]);
        told
    }

    fn program(&mut self, changes: Vec<Change>) {
        let reports = self.programmer.apply(changes, Authority::Holder, 1_000);
        self.report = reports.into_iter().rfind(|report| report.id == web()).or(self.report.take());
    }

    fn pod(&mut self, pod: PodBuilder) {
        let changes = self.bench.pod(pod);
        self.program(changes);
    }

    fn slice(&mut self, object: &Value) {
        let changes = self.bench.slice(object);
        self.program(changes);
    }

    fn service(&mut self, object: &Value) {
        let changes = self.bench.service(object);
        self.program(changes);
    }

    fn pool(&mut self, object: &Value) {
        let changes = self.bench.pool(object);
        self.program(changes);
    }

    fn status_after(&self, before: &LoadBalancerPoolStatus, second: i64) -> LoadBalancerPoolStatus {
        let id = web();
        let serving = self.programmer.snapshot(&id).map(|snapshot| &*snapshot.pool);
        let pool = self.bench.index.pool(&id).unwrap();
        let view = View { pool, report: self.report.as_ref(), serving, ports: &self.ports };
        view.status(before, &Time(jiff::Timestamp::from_second(second).unwrap()))
    }

    fn status(&self) -> LoadBalancerPoolStatus {
        self.status_after(&LoadBalancerPoolStatus::default(), 10)
    }

    /// Checks status, reason and a part of the message of one condition.
    fn check(&self, kind: &str, status: &str, reason: &str, part: &str) {
        let conditions = self.status().conditions;
        let found = condition(&conditions, kind);
        assert_eq!((found.status.as_str(), found.reason.as_str()), (status, reason), "{found:?}");
        assert!(found.message.contains(part), "{found:?}");
    }
}

fn condition<'a>(conditions: &'a [Condition], kind: &str) -> &'a Condition {
    conditions.iter().find(|it| it.type_ == kind).unwrap()
}

#[test]
fn a_pool_that_serves_holds_all_conditions_of_its_generation() {
    let mut told = Told::new();
    told.pod(pod("web-1").ready());
    told.pod(pod("web-2"));
    let status = told.status();
    assert_eq!(status.observed_generation, Some(1));
    let all: Vec<_> = status
        .conditions
        .iter()
        .map(|it| (it.type_.as_str(), it.status.as_str(), it.observed_generation))
        .collect();
    let holds = |kind| (kind, "True", Some(1));
    assert_eq!(all, [holds("Accepted"), holds("ResolvedRefs"), holds("Programmed"), holds("Ready")]);
    assert_eq!(status.endpoints.as_ref().unwrap().summary, "1/2");
    assert_eq!(status.table.as_ref().unwrap().digest.len(), 16);
    assert_eq!(status.seats[0].occupant.as_deref(), Some("web-1"));
}

#[test]
fn a_pool_without_ready_endpoints_says_what_to_look_at() {
    let mut told = Told::new();
    told.pod(pod("web-1"));
    let message = "None of 1 endpoints is ready; check the pods' readiness probes.";
    told.check("Ready", "False", "NoReadyEndpoints", message);
}

#[test]
fn a_selector_that_leads_nowhere_is_told_by_what_the_pods_lack() {
    let mut told = Told::new();
    let mut check = |pod: Option<PodBuilder>, cause: &str| {
        pod.into_iter().for_each(|pod| told.pod(pod));
        let message = format!("There are no endpoints: backend stable: {cause}.");
        told.check("Ready", "False", "NoReadyEndpoints", &message);
    };
    let no_pod = "no pod has the labels that the selector of Service web asks for; start such pods, or make selector and \
                  labels agree";
    check(None, no_pod);
    check(Some(pod("web-1").label("app", "other")), no_pod);
    check(
        Some(pod("web-1").set("/status/phase", json!("Succeeded"))),
        "all pods that Service web selects have ended; start some that go on",
    );
    check(
        Some(pod("web-2").set("/status/podIPs", json!([]))),
        "no pod that Service web selects has an address yet; if that lasts, kubectl describe says why",
    );
    check(
        Some(pod("web-2").set("/spec/containers/0/ports", json!([]))),
        "no container of the pods that Service web selects has a port named http, the targetPort of its port 80; name it \
         so, or write its number as targetPort",
    );
    told.pod(pod("web-2").ready());
    told.check("Ready", "True", "Ready", "1 of 1");
}

#[test]
fn pods_that_only_slices_may_tell_of_are_waited_for() {
    let mut told = Told::new();
    let mut eager = service("web");
    eager["spec"]["publishNotReadyAddresses"] = json!(true);
    told.service(&eager);
    told.pod(pod("web-1").ready());
    let cause = "backend stable: the EndpointSlices of Service web do not list its pods yet; if that lasts, look at \
                 kube-controller-manager.";
    told.check("Ready", "False", "NoReadyEndpoints", cause);
}

#[test]
fn a_service_without_a_selector_is_told_what_its_slices_lack() {
    let mut told = Told::new();
    let mut by_hand = service("web");
    by_hand["spec"]["selector"] = json!(null);
    told.service(&by_hand);
    // Pods have no part in it, whatever their labels.
    told.pod(pod("web-1").ready());
    let mut check = |slice: Option<&Value>, cause: &str| {
        slice.into_iter().for_each(|slice| told.slice(slice));
        let message =
            format!("There are no endpoints: backend stable: Service web has no selector, and {cause}.");
        told.check("Ready", "False", "NoReadyEndpoints", &message);
    };
    check(
        None,
        "no EndpointSlice has the label kubernetes.io/service-name: web; give it a selector, or write such an \
         EndpointSlice",
    );
    let endpoints = [address("192.0.2.1", true)];
    let mut other = slice("web-6", &[]);
    other["addressType"] = json!("IPv6");
    check(
        Some(&other),
        "none of its EndpointSlices holds addresses of IPv4, its first family; write one that does",
    );
    let lack = "its EndpointSlices lack the port `http`: they have";
    let mut other = slice("web-4", &endpoints);
    other["ports"] = json!([]);
    check(Some(&other), &format!("{lack} none; name the port there as in the Service"));
    other["ports"] = json!([{ "name": "web", "port": 80 }, { "port": 8080 }]);
    check(Some(&other), &format!("{lack} one without a name, `web`; name the port there as in the Service"));
    let many = (0..25).map(|at| json!({ "name": format!("p{at:02}"), "port": 80 }));
    other["ports"] = many.collect();
    check(
        Some(&other),
        &format!("{lack} `p00`, {} and 5 more; name the port there as in the Service", {
            (1..20).map(|at| format!("`p{at:02}`")).collect::<Vec<_>>().join(", ")
        }),
    );
    let empty = slice("web-4", &[]);
    check(Some(&empty), "its EndpointSlices list no endpoints; write addresses into them");
    told.slice(&slice("web-4", &[address("192.0.2.1", false)]));
    let unready = "None of 1 endpoints is ready; they have no pods, so their EndpointSlices must say conditions.ready: true.";
    told.check("Ready", "False", "NoReadyEndpoints", unready);
    told.slice(&slice("web-4", &endpoints));
    told.check("Ready", "True", "Ready", "1 of 1");
}

#[test]
fn a_pod_on_its_way_out_that_serves_for_want_of_others_is_counted_once() {
    let mut told = Told::new();
    told.pod(pod("web-1").ready());
    told.slice(&slice("a", &[endpoint("web-1", true)]));
    told.pod(pod("web-1").ready().deleting());
    let counts = told.status().endpoints.unwrap();
    assert_eq!((counts.total, counts.ready, counts.draining), (1, 1, 0));
    told.pod(pod("web-2").ready());
    let counts = told.status().endpoints.unwrap();
    assert_eq!((counts.total, counts.ready, counts.draining), (2, 1, 1));
}

#[test]
fn every_backend_without_endpoints_is_told_of() {
    let mut told = Told::new();
    let mut two = pool();
    let canary = json!({"name": "canary", "service": {"name": "canary", "port": 80}});
    two["spec"]["backends"].as_array_mut().unwrap().push(canary);
    let mut by_hand = service("canary");
    by_hand["spec"]["selector"] = json!({});
    told.service(&by_hand);
    told.pool(&two);
    told.check("Ready", "False", "NoReadyEndpoints", "backend stable: no pod has the labels");
    told.check("Ready", "False", "NoReadyEndpoints", "; backend canary: Service canary has no selector");
    told.pod(pod("web-1").ready());
    told.check("Ready", "True", "Ready", "1 of 1");
}

#[test]
fn endpoints_that_are_ready_and_weigh_nothing_take_no_requests() {
    let mut told = Told::new();
    let mut weightless = pool();
    weightless["spec"]["backends"][0]["weight"] = json!(0);
    let empty = json!({"name": "empty", "service": {"name": "void", "port": 80}});
    weightless["spec"]["backends"].as_array_mut().unwrap().push(empty);
    told.pool(&weightless);
    let mut void = service("void");
    void["spec"]["selector"] = json!({"app": "void"});
    told.service(&void);
    told.pod(pod("web-1").ready());
    told.check("Ready", "False", "NoReadyEndpoints", "the 1 that are ready have weight 0");
    assert_eq!(told.status().endpoints.unwrap().summary, "0/1");
}

#[test]
fn a_table_too_small_for_its_endpoints_is_told() {
    let mut told = Told::new();
    let mut small = pool();
    small["spec"]["algorithm"] = json!({"type": "Maglev", "tableSize": 251});
    told.pool(&small);
    for number in 0..3 {
        told.pod(pod(&format!("web-{number}")).ready());
    }
    let (wanted, size) = ("tableSize 251 gives 3 seats less than 100 slots each", 251);
    told.check("Programmed", "True", "Programmed", wanted);
    assert_eq!(told.status().table.unwrap().size, size);
    for number in 3..252 {
        told.pod(pod(&format!("web-{number}")).ready());
    }
    let (wanted, size) = ("tableSize 251 has no slot for each of 252 seats, so 65537 is used", 65_537);
    told.check("Programmed", "True", "Programmed", wanted);
    assert_eq!(told.status().table.unwrap().size, size);
}

#[test]
fn where_readiness_is_ignored_unready_endpoints_count() {
    let mut told = Told::new();
    let mut ignoring = pool();
    ignoring["spec"]["health"] = json!({ "readiness": "Ignore" });
    told.pool(&ignoring);
    told.pod(pod("web-1"));
    told.check("Ready", "True", "Ready", "1 of 1");
}

#[test]
fn a_bad_edit_is_told_with_its_field_while_the_last_good_spec_serves() {
    let mut told = Told::new();
    told.pod(pod("web-1").ready());
    let mut bad = pool();
    bad["metadata"]["generation"] = json!(2);
    bad["spec"]["listeners"][0]["port"] = json!("eighty");
    told.pool(&bad);
    told.check("Accepted", "False", "Invalid", "spec.listeners[0].port");
    told.check("Accepted", "False", "Invalid", "The last good spec stays in force.");
    told.check("Programmed", "False", "EarlierGeneration", "Generation 1 stays in use");
    told.check("Ready", "False", "Invalid", "Accepted is False");
    assert_eq!(condition(&told.status().conditions, "Ready").observed_generation, Some(2));
}

#[test]
fn a_reference_that_leads_nowhere_is_told_by_its_kind() {
    let mut told = Told::new();
    let mut typo = pool();
    typo["spec"]["backends"][0]["service"]["port"] = json!("htpt");
    told.pool(&typo);
    told.check("ResolvedRefs", "False", "PortNotFound", "no TCP port named htpt; it has 80 (http).");
    typo["spec"]["backends"][0]["service"]["port"] = json!("80");
    told.pool(&typo);
    let quoted = "no TCP port named 80; it has 80 (http); a name stands in quotes, a number stands without.";
    told.check("ResolvedRefs", "False", "PortNotFound", quoted);
    typo["spec"]["backends"][0]["service"]["port"] = json!(81);
    told.pool(&typo);
    told.check("ResolvedRefs", "False", "PortNotFound", "no TCP port 81; it has 80 (http).");
    typo["spec"]["backends"][0]["service"]["name"] = json!("wbe");
    told.pool(&typo);
    told.check("ResolvedRefs", "False", "ServiceNotFound", "no Service wbe");
    told.check("Ready", "False", "ServiceNotFound", "ResolvedRefs is False");
}

#[test]
fn a_port_tells_whether_it_is_open() {
    let mut told = Told::new();
    told.pod(pod("web-1").ready());
    told.ports.clear();
    told.check("Programmed", "Unknown", "Pending", "Port 8080");
    told.check("Ready", "Unknown", "Pending", "Port 8080");
    told.ports.insert(PortId::Tcp(8080), BindState::Failed { reason: "address in use".into() });
    told.check("Programmed", "False", "PortUnavailable", "Port 8080: address in use");
}

#[test]
fn an_expired_certificate_is_told_of_and_in_use() {
    let mut told = Told::new();
    told.pool(&tls_pool(&["shop-tls"]));
    let old = expired(&["shop.test"]);
    let data = [("tls.crt", old.chain), ("tls.key", old.key)];
    let data = data.map(|(key, text)| (key.to_string(), ByteString(text.into_bytes())));
    let look = Look { key: key("shop-tls"), found: Ok(SecretCredentials::read(&data.into())) };
    let changes = told.bench.tell(Event::Secret(look));
    told.program(changes);
    told.ports.insert(PortId::Tcp(8443), BindState::Bound);
    let resolved = |second| {
        let status = told.status_after(&LoadBalancerPoolStatus::default(), second);
        let it = condition(&status.conditions, "ResolvedRefs");
        (it.status.clone(), it.message.clone())
    };
    let good = "Every Service, port and Secret exists.";
    let expired =
        "But listener secure: the certificate of Secret shop-tls expired at 2021-01-01T00:00:00Z; renew it.";
    let early = "But listener secure: the certificate of Secret shop-tls is not valid before 2020-01-01T00:00:00Z; \
                 check the clocks.";
    assert_eq!(resolved(1_600_000_000), ("True".into(), good.into()));
    assert_eq!(resolved(1_800_000_000), ("True".into(), format!("{good} {expired}")));
    assert_eq!(resolved(0), ("True".into(), format!("{good} {early}")));
    told.check("Programmed", "True", "Programmed", "");
}

#[test]
fn a_secret_that_was_not_read_yet_is_pending() {
    let mut told = Told::new();
    told.pool(&tls_pool(&["shop-tls"]));
    told.check("ResolvedRefs", "Unknown", "Pending", "listener secure: Secret shop-tls is being read");
    told.check("Ready", "Unknown", "Pending", "ResolvedRefs is Unknown");
}

#[test]
fn a_port_of_an_older_pool_is_a_conflict() {
    let mut told = Told::new();
    let mut older = pool();
    older["metadata"]["name"] = json!("older");
    older["metadata"]["creationTimestamp"] = json!("2026-11-21T07:00:00Z");
    told.pool(&older);
    told.check("Programmed", "False", "PortConflict", "Port 8080 belongs to pool shop/older");
}

#[test]
fn a_generation_that_is_not_in_use_is_not_programmed() {
    let mut told = Told::new();
    told.pod(pod("web-1").ready());
    told.check("Programmed", "True", "Programmed", "");
    let mut edit = pool();
    edit["metadata"]["generation"] = json!(2);
    edit["spec"]["backends"][0]["service"]["name"] = json!("wbe");
    told.pool(&edit);
    told.check(
        "Programmed",
        "False",
        "EarlierGeneration",
        "Generation 1 stays in use until generation 2 can be served.",
    );
    told.check("Ready", "False", "ServiceNotFound", "ResolvedRefs is False");
    edit["metadata"]["generation"] = json!(3);
    edit["spec"]["listeners"][0]["port"] = json!(0);
    told.pool(&edit);
    told.check(
        "Programmed",
        "False",
        "EarlierGeneration",
        "Generation 1 stays in use until generation 3 can be served.",
    );
    told.check("Ready", "False", "Invalid", "Accepted is False");
}

#[test]
fn the_same_state_is_told_in_the_same_words_and_with_the_same_time() {
    let mut told = Told::new();
    told.pod(pod("web-1").ready());
    let first = told.status();
    assert_eq!(told.status_after(&first, 99), first);
    told.pod(pod("web-1"));
    let later = told.status_after(&first, 99);
    let time = |kind| condition(&later.conditions, kind).last_transition_time.0.as_second();
    assert_eq!((time("Accepted"), time("Ready")), (10, 99));
}
