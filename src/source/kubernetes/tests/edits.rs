//! Owns the law of edits: one that cannot be served leaves the earlier spec in force, on replicas that start later
//! too, and none takes from another pool what that has.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::super::index::Index;
use super::super::status::View;
use super::super::watch::{Change, Event};
use super::fixtures::*;
use crate::balance::pool::{PoolId, PortId};
use crate::crd::LoadBalancerPoolStatus;
use crate::handoff::{Reader, handoff};
use crate::metrics::ControlMetrics;
use crate::source::programmer::{Authority, Programmer, Report};

const OLDER: &str = "2026-11-21T07:00:00Z";

/// A replica: what it heard, and what it serves.
struct Replica {
    index: Index,
    programmer: Programmer,
    reader: Reader,
    authority: Authority,
    reports: Vec<Report>,
}

impl Replica {
    fn new(authority: Authority) -> Self {
        let (publisher, reader) = handoff();
        let programmer = Programmer::new(publisher, ControlMetrics::default());
        let mut index = Index::default();
        index.follow(authority == Authority::Follower);
        index.apply(
            Event::Services(Change::Applied(service_facts(&service("web")))),
            tokio::time::Instant::now(),
        );
        Self { index, programmer, reader, authority, reports: Vec::new() }
    }

    /// Hears of pools at once.
    fn hears(&mut self, pools: &[&Value]) {
        for pool in pools {
            let event = Event::Pools(Change::Applied(pool_resource(pool)));
            self.index.apply(event, tokio::time::Instant::now());
        }
        let changes = self.index.drain().into_iter().flat_map(|drained| drained.changes).collect();
        for report in self.programmer.apply(changes, self.authority, 1_000) {
            self.reports.retain(|it| it.id != report.id);
            self.reports.push(report);
        }
    }

    /// Which pool serves a port.
    fn owner(&self, port: u16) -> Option<String> {
        self.reader.load().route(PortId::Tcp(port), None, "/").map(|it| it.pool.id.name.to_string())
    }

    /// The pool with the status that this replica would write.
    fn judge(&self, pool: &Value) -> Value {
        let id = PoolId::new("shop", pool["metadata"]["name"].as_str().unwrap());
        let serving = self.programmer.snapshot(&id).map(|snapshot| &*snapshot.pool);
        let report = self.reports.iter().find(|it| it.id == id);
        let ports = Default::default();
        let view = View { pool: self.index.pool(&id).unwrap(), report, serving, ports: &ports };
        let before: LoadBalancerPoolStatus =
            serde_json::from_value(pool["status"].clone()).unwrap_or_default();
        let status = view.status(&before, &Time(jiff::Timestamp::from_second(10).unwrap()));
        let mut judged = pool.clone();
        judged["status"] = serde_json::to_value(status).unwrap();
        judged
    }
}

/// A pool of this name on this port.
fn on(name: &str, port: u16) -> Value {
    let mut pool = pool();
    pool["metadata"]["name"] = json!(name);
    pool["metadata"]["uid"] = json!(format!("uid-{name}"));
    pool["spec"]["listeners"][0]["port"] = json!(port);
    pool
}

/// The pool with this change to its spec, as the next generation.
fn edited(pool: &Value, pointer: &str, value: Value) -> Value {
    let mut pool = pool.clone();
    *pool["spec"].pointer_mut(pointer).unwrap() = value;
    pool["metadata"]["generation"] = json!(pool["metadata"]["generation"].as_i64().unwrap() + 1);
    pool
}

fn moved(pool: &Value, port: u16) -> Value {
    edited(pool, "/listeners/0/port", json!(port))
}

fn condition(pool: &Value, kind: &str) -> (String, String) {
    let conditions = pool["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|it| it["type"] == kind).unwrap();
    (found["reason"].as_str().unwrap().into(), found["message"].as_str().unwrap().into())
}

#[test]
fn a_replica_that_starts_under_a_bad_edit_serves_the_last_good_spec() {
    let good = on("web", 8080);
    let no_service = edited(&good, "/backends/0/service/name", json!("wbe"));
    let nonsense = edited(&good, "/listeners/0/port", json!(0));
    let mut taken = moved(&good, 8081);
    taken["spec"]["hashOn"] = Value::Null;
    for bad in [no_service, nonsense, taken] {
        let mut holder = Replica::new(Authority::Holder);
        let neighbour = on("neighbour", 8081);
        holder.hears(&[&good, &neighbour]);
        let judged = holder.judge(&good);
        assert!(judged["status"].get("inForce").is_none(), "the latest is served");
        let mut bad = bad;
        bad["status"] = judged["status"].clone();
        holder.hears(&[&bad]);
        assert_eq!(holder.owner(8080).as_deref(), Some("web"));
        let judged = holder.judge(&bad);
        assert_eq!(judged["status"]["inForce"]["generation"], 1);
        for authority in [Authority::Holder, Authority::Follower] {
            let mut fresh = Replica::new(authority);
            fresh.hears(&[&judged, &neighbour]);
            assert_eq!(fresh.owner(8080).as_deref(), Some("web"));
            assert_eq!(fresh.owner(8081).as_deref(), Some("neighbour"));
            assert_eq!(fresh.judge(&judged)["status"]["inForce"], judged["status"]["inForce"]);
        }
        let corrected = edited(&judged, "/listeners/0/port", json!(8082));
        let corrected = edited(&corrected, "/backends/0/service/name", json!("web"));
        holder.hears(&[&corrected]);
        assert_eq!((holder.owner(8080), holder.owner(8082).as_deref()), (None, Some("web")));
        assert!(holder.judge(&corrected)["status"].get("inForce").is_none());
    }
}

#[test]
fn seats_outlive_a_spec_that_nobody_can_serve() {
    let mut bad = on("web", 0);
    bad["status"] = json!({ "seats": [
        { "seat": 0, "backend": "stable", "occupant": "web-1", "uid": "uid-web-1", "weight": 1 },
    ]});
    let mut holder = Replica::new(Authority::Holder);
    holder.hears(&[&bad]);
    assert_eq!(holder.judge(&bad)["status"]["seats"], bad["status"]["seats"]);
}

#[test]
fn an_edit_takes_no_port_from_another_pool_not_even_from_a_younger_one() {
    let mut replica = Replica::new(Authority::Holder);
    let mut older = on("older", 8080);
    older["metadata"]["creationTimestamp"] = json!(OLDER);
    let younger = on("younger", 8081);
    replica.hears(&[&older, &younger]);
    let mut edit = older.clone();
    let second = json!({ "name": "second", "port": 8081, "protocol": "HTTP" });
    edit["spec"]["listeners"].as_array_mut().unwrap().push(second);
    edit["metadata"]["generation"] = json!(2);
    replica.hears(&[&edit]);
    assert_eq!(replica.owner(8081).as_deref(), Some("younger"));
    assert_eq!(replica.owner(8080).as_deref(), Some("older"));
    let (reason, message) = condition(&replica.judge(&edit), "Programmed");
    assert_eq!(reason, "PortConflict");
    assert!(message.starts_with("Port 8081 belongs to pool shop/younger; choose"), "{message}");
    assert!(message.ends_with("The last good spec stays in force."), "{message}");
    replica.hears(&[&moved(&younger, 8082)]);
    let owners = [8080, 8081, 8082].map(|port| replica.owner(port));
    assert_eq!(owners.each_ref().map(Option::as_deref), [Some("older"), Some("older"), Some("younger")]);
    assert_eq!(condition(&replica.judge(&edit), "Programmed").0, "Pending", "the port is about to be opened");
}

#[test]
fn pools_may_exchange_their_ports() {
    let mut replica = Replica::new(Authority::Holder);
    let pools = [on("a", 8080), on("b", 8081), on("c", 8082)];
    replica.hears(&pools.each_ref());
    let turned = [moved(&pools[0], 8081), moved(&pools[1], 8082), moved(&pools[2], 8080)];
    replica.hears(&[&turned[0]]);
    assert_eq!(replica.owner(8081).as_deref(), Some("b"));
    replica.hears(&[&turned[1], &turned[2]]);
    let owners = [8080, 8081, 8082].map(|port| replica.owner(port));
    assert_eq!(owners.each_ref().map(Option::as_deref), [Some("c"), Some("a"), Some("b")]);
}

#[test]
fn an_edit_that_is_refused_keeps_no_others_from_exchanging_their_ports() {
    let mut replica = Replica::new(Authority::Holder);
    let pools = [on("a", 8080), on("b", 8081), on("c", 8082), on("d", 8083)];
    replica.hears(&pools.each_ref());
    let stuck = moved(&pools[2], 8083);
    replica.hears(&[&stuck]);
    replica.hears(&[&moved(&pools[0], 8081), &moved(&pools[1], 8080)]);
    let owners = [8080, 8081, 8082, 8083].map(|port| replica.owner(port));
    assert_eq!(owners.each_ref().map(Option::as_deref), [Some("b"), Some("a"), Some("c"), Some("d")]);
    assert_eq!(condition(&replica.judge(&stuck), "Programmed").0, "PortConflict");
}

#[test]
fn what_a_pool_never_had_holds_no_edit_up() {
    let mut replica = Replica::new(Authority::Holder);
    let mut holder = on("holder", 8080);
    holder["metadata"]["creationTimestamp"] = json!(OLDER);
    let late = on("late", 8080);
    replica.hears(&[&holder, &late]);
    assert_eq!(condition(&replica.judge(&late), "Programmed").0, "PortConflict");
    let second = json!([
        { "name": "web", "port": 8080, "protocol": "HTTP" },
        { "name": "second", "port": 8083, "protocol": "HTTP" }
    ]);
    replica.hears(&[&edited(&late, "/listeners", second)]);
    assert_eq!(replica.owner(8080).as_deref(), Some("holder"));
    assert_eq!(replica.owner(8083).as_deref(), Some("late"));
}

/// Two edits ask for one port. Whichever reached the holder first has it, whatever the others heard first.
#[test]
fn replicas_agree_on_edits_that_they_heard_in_another_order() {
    let pools = [on("a", 8080), on("b", 8081)];
    let edits = [moved(&pools[0], 8090), moved(&pools[1], 8090)];
    for first in [0, 1] {
        let [mut holder, mut follower] = [Authority::Holder, Authority::Follower].map(Replica::new);
        holder.hears(&pools.each_ref());
        follower.hears(&pools.each_ref());
        holder.hears(&[&edits[first]]);
        holder.hears(&[&edits[1 - first]]);
        follower.hears(&[&edits[1 - first]]);
        follower.hears(&[&edits[first]]);
        let winner = Some(["a", "b"][first]);
        assert_eq!(holder.owner(8090).as_deref(), winner);
        assert_ne!(follower.owner(8090).as_deref(), winner, "before it knows better");
        let judged = edits.each_ref().map(|edit| holder.judge(edit));
        for order in [[0, 1], [1, 0]] {
            order.iter().for_each(|at| follower.hears(&[&judged[*at]]));
            let owners = |replica: &Replica| [8080, 8081, 8090].map(|port| replica.owner(port));
            assert_eq!(owners(&follower), owners(&holder));
        }
        let mut fresh = Replica::new(Authority::Follower);
        fresh.hears(&judged.each_ref());
        assert_eq!(fresh.owner(8090).as_deref(), winner);
    }
}
