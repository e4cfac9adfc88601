//! Owns the law of edits: one that cannot be served leaves the earlier spec in force, on replicas that start later
//! too, and none takes from another pool what that has.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use tokio::time::Instant;

use super::super::edits::PATIENCE;
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
    now: Instant,
}

impl Replica {
    fn new(authority: Authority) -> Self {
        let (publisher, reader) = handoff();
        let programmer = Programmer::new(publisher, ControlMetrics::default());
        let mut index = Index::default();
        index.follow(authority == Authority::Follower);
        let mut replica =
            Self { index, programmer, reader, authority, reports: Vec::new(), now: Instant::now() };
        replica.index.apply(Event::Services(Change::Applied(service_facts(&service("web")))), replica.now);
        replica
    }

    /// A follower and a holder, which know these pools and what the holder made of them.
    fn two(pools: &[Value]) -> [Self; 2] {
        let [mut holder, mut follower] = [Authority::Holder, Authority::Follower].map(Self::new);
        let pools: Vec<&Value> = pools.iter().collect();
        holder.hears(&pools);
        follower.hears(&pools);
        for pool in pools {
            follower.hears(&[&holder.judge(pool)]);
        }
        [holder, follower]
    }

    /// Hears of pools at once.
    fn hears(&mut self, pools: &[&Value]) {
        for pool in pools {
            let event = Event::Pools(Change::Applied(pool_resource(pool)));
            self.index.apply(event, self.now);
        }
        self.works();
    }

    /// Hears of a pod, which concerns every pool.
    fn stirs(&mut self, pod: PodBuilder) {
        self.index.apply(Event::Pods(Change::Applied(pod.facts())), self.now);
        self.works();
    }

    fn works(&mut self) {
        self.index.lose_patience(self.now);
        let drained = self.index.drain(self.programmer.shares(), self.now);
        let changes = drained.into_iter().flat_map(|drained| drained.changes).collect();
        for report in self.programmer.apply(changes, self.authority, 1_000) {
            self.reports.retain(|it| it.id != report.id);
            self.reports.push(report);
        }
        self.programmer.begin();
    }

    fn owners<const N: usize>(&self, ports: [u16; N]) -> [Option<String>; N] {
        ports.map(|port| self.owner(port))
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

#[test]
fn a_follower_exchanges_ports_with_the_edits_and_not_with_the_verdicts() {
    for order in [[0, 1], [1, 0]] {
        let pools = [on("a", 8201), on("b", 8202)];
        let [mut holder, mut follower] = Replica::two(&pools);
        let edits = [moved(&pools[0], 8202), moved(&pools[1], 8201)];
        holder.hears(&[&edits[0]]);
        follower.hears(&[&edits[0]]);
        let refused = holder.judge(&edits[0]);
        assert_eq!(condition(&refused, "Programmed").0, "PortConflict");
        follower.hears(&[&refused]);
        holder.hears(&[&edits[1]]);
        follower.hears(&[&edits[1]]);
        let exchanged = [Some("b".to_owned()), Some("a".to_owned())];
        assert_eq!(follower.owners([8201, 8202]), exchanged);
        follower.stirs(pod("web-1").ready());
        assert_eq!(follower.owners([8201, 8202]), exchanged, "other news do not turn it back");
        let judged = [holder.judge(&edits[0]), holder.judge(&edits[1])];
        for at in order {
            follower.hears(&[&judged[at]]);
            assert_eq!(follower.owners([8201, 8202]), exchanged);
        }
        assert_eq!(holder.owners([8201, 8202]), exchanged);
    }
}

#[test]
fn a_follower_that_started_meanwhile_exchanges_ports_too() {
    let pools = [on("a", 8201), on("b", 8202)];
    let [mut holder, _] = Replica::two(&pools);
    let edit = moved(&pools[0], 8202);
    holder.hears(&[&edit]);
    let mut fresh = Replica::new(Authority::Follower);
    fresh.hears(&[&holder.judge(&edit), &holder.judge(&pools[1])]);
    assert_eq!(fresh.owners([8201, 8202]), [Some("a".into()), Some("b".into())]);
    fresh.hears(&[&moved(&pools[1], 8201)]);
    assert_eq!(fresh.owners([8201, 8202]), [Some("b".into()), Some("a".into())]);
}

#[test]
fn a_follower_exchanges_paths_of_one_port_at_once() {
    let of = |name, path| {
        let mut pool = on(name, 8201);
        pool["spec"]["listeners"][0]["paths"] = json!([path]);
        pool
    };
    let pools = [of("a", "/x"), of("b", "/y")];
    let [mut holder, mut follower] = Replica::two(&pools);
    let owners = |it: &Replica| {
        let loaded = it.reader.load();
        ["/x", "/y"]
            .map(|path| loaded.route(PortId::Tcp(8201), None, path).map(|it| it.pool.id.name.to_string()))
    };
    let edits =
        [("/y", 0), ("/x", 1)].map(|(path, at)| edited(&pools[at], "/listeners/0/paths", json!([path])));
    holder.hears(&[&edits[0]]);
    follower.hears(&[&edits[0]]);
    follower.hears(&[&holder.judge(&edits[0])]);
    holder.hears(&[&edits[1]]);
    follower.hears(&[&edits[1]]);
    assert_eq!(owners(&follower), [Some("b".into()), Some("a".into())]);
    for edit in &edits {
        follower.hears(&[&holder.judge(edit)]);
        assert_eq!(owners(&follower), [Some("b".into()), Some("a".into())]);
    }
}

#[test]
fn three_pools_turn_their_ports_on_a_follower_at_once() {
    let pools = [on("a", 8201), on("b", 8202), on("c", 8203)];
    let [mut holder, mut follower] = Replica::two(&pools);
    let edits = [moved(&pools[0], 8202), moved(&pools[1], 8203), moved(&pools[2], 8201)];
    for edit in &edits {
        holder.hears(&[edit]);
        follower.hears(&[edit]);
        assert!(follower.owners([8201, 8202, 8203]).iter().all(Option::is_some));
        assert_eq!(follower.owners([8201, 8202, 8203]), holder.owners([8201, 8202, 8203]));
        follower.hears(&[&holder.judge(edit)]);
        assert_eq!(follower.owners([8201, 8202, 8203]), holder.owners([8201, 8202, 8203]));
    }
    assert_eq!(follower.owners([8201, 8202, 8203]), ["c", "a", "b"].map(|name| Some(name.into())));
    for edit in &edits {
        follower.hears(&[&holder.judge(edit)]);
        assert_eq!(follower.owners([8201, 8202, 8203]), holder.owners([8201, 8202, 8203]));
    }
}

#[test]
fn a_port_that_is_handed_over_is_never_closed_on_a_follower() {
    let pools = [on("a", 8201), on("b", 8202)];
    let [mut holder, mut follower] = Replica::two(&pools);
    let edits = [moved(&pools[0], 8202), moved(&pools[1], 8222)];
    holder.hears(&[&edits[0]]);
    follower.hears(&[&edits[0]]);
    let refused = holder.judge(&edits[0]);
    let waits = follower.index.pool(&PoolId::new("shop", "a")).unwrap().conflicts.len();
    assert_eq!(waits, 1);
    holder.hears(&[&edits[1]]);
    follower.hears(&[&edits[1]]);
    let handed = [None, Some("a".to_owned()), Some("b".to_owned())];
    assert_eq!(follower.owners([8201, 8202, 8222]), handed);
    // What was written before the holder saw the second edit comes late.
    follower.hears(&[&refused]);
    assert_eq!(follower.owners([8201, 8202, 8222]), handed);
    for edit in edits.iter().rev() {
        follower.hears(&[&holder.judge(edit)]);
        assert_eq!(follower.owners([8201, 8202, 8222]), handed);
    }
}

/// The follower gives a free port to one of two that wait for it, the holder gave it to the other.
#[test]
fn a_follower_that_went_ahead_of_the_holder_comes_back() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let pools = [on("a", 8201), on("b", 8202), on("c", 8203)];
        let [mut holder, mut follower] = Replica::two(&pools);
        let edits = [moved(&pools[0], 8202), moved(&pools[1], 8222), moved(&pools[2], 8202)];
        [2, 1, 0].iter().for_each(|at| holder.hears(&[&edits[*at]]));
        [0, 2, 1].iter().for_each(|at| follower.hears(&[&edits[*at]]));
        assert_eq!((holder.owner(8202).as_deref(), follower.owner(8202).as_deref()), (Some("c"), Some("a")));
        let judged = edits.each_ref().map(|edit| holder.judge(edit));
        for at in order {
            follower.hears(&[&judged[at]]);
            assert!(follower.owner(8202).is_some(), "no port is closed in between");
        }
        let ports = [8201, 8202, 8203, 8222];
        assert_eq!(follower.owners(ports), holder.owners(ports), "{order:?}");
    }
}

#[test]
fn what_the_holder_decided_waits_for_its_other_word_but_not_for_ever() {
    let pools = [on("a", 8201), on("b", 8202)];
    let edits = [moved(&pools[0], 8290), moved(&pools[1], 8290)];
    let [mut holder, mut follower] = Replica::two(&pools);
    edits.iter().for_each(|edit| holder.hears(&[edit]));
    edits.iter().rev().for_each(|edit| follower.hears(&[edit]));
    assert_eq!(follower.owner(8290).as_deref(), Some("b"));
    follower.hears(&[&holder.judge(&edits[0])]);
    assert_eq!(follower.owners([8201, 8290]), [Some("a".into()), Some("b".into())]);
    assert_eq!(follower.index.patience_ends(), Some(follower.now + PATIENCE));
    follower.now += PATIENCE;
    follower.works();
    assert_eq!(follower.owner(8290).as_deref(), Some("a"));
    assert_eq!(follower.index.patience_ends(), None);
}

#[test]
fn a_first_good_spec_takes_nothing_from_a_pool_that_serves() {
    let mut old = on("old", 0);
    old["metadata"]["creationTimestamp"] = json!(OLDER);
    let pools = [old, on("new", 8405)];
    let [mut holder, mut follower] = Replica::two(&pools);
    let patched = moved(&pools[0], 8405);
    for replica in [&mut holder, &mut follower] {
        replica.hears(&[&patched]);
        assert_eq!(replica.owner(8405).as_deref(), Some("new"));
    }
    let judged = [holder.judge(&patched), holder.judge(&pools[1])];
    let (reason, message) = condition(&judged[0], "Programmed");
    assert!(
        reason == "PortConflict" && message.starts_with("Port 8405 belongs to pool shop/new"),
        "{message}"
    );
    follower.hears(&[&judged[0], &judged[1]]);
    assert_eq!(follower.owner(8405).as_deref(), Some("new"));
    for authority in [Authority::Holder, Authority::Follower] {
        let mut fresh = Replica::new(authority);
        fresh.hears(&[&judged[0], &judged[1]]);
        assert_eq!(fresh.owner(8405).as_deref(), Some("new"), "nor after a restart");
    }
}

/// A follower hears at once of what the holder heard of one after the other.
#[test]
fn replicas_agree_on_two_new_pools() {
    let pools = [on("aa", 8408), on("zz", 8408)];
    let [mut holder, mut follower] = [Authority::Holder, Authority::Follower].map(Replica::new);
    holder.hears(&[]);
    follower.hears(&[]);
    holder.hears(&[&pools[1]]);
    holder.hears(&[&pools[0]]);
    assert_eq!(holder.owner(8408).as_deref(), Some("zz"));
    follower.hears(&[&pools[0], &pools[1]]);
    assert_eq!(follower.owner(8408).as_deref(), Some("aa"), "before it knows better");
    for pool in &pools {
        follower.hears(&[&holder.judge(pool)]);
        assert!(follower.owner(8408).is_some());
    }
    assert_eq!(follower.owner(8408).as_deref(), Some("zz"));
}
