//! Owns the way from facts to a published snapshot: one assembly a pool, ports by seniority, one swap
//! for all changes of a batch. A pool that does not change keeps its very table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::builds::{Builds, Built, Order, is_large};
use super::claims::{Claimant, Conflict, Tenure, share_out};
use crate::balance::assembly::{Assembled, Assembly, Cause};
use crate::balance::backend::{Member, State};
use crate::balance::pool::{Pool, PoolId};
use crate::balance::seats::Roster;
use crate::balance::snapshot::{MemberView, PoolSnapshot, Shares, Snapshot};
use crate::balance::table::Bases;
use crate::balance::table::prime::SLOTS_PER_SEAT;
use crate::handoff::Publisher;
use crate::metrics::ControlMetrics;

pub use crate::balance::seats::Authority;

/// What a source knows of one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFacts {
    /// The checked policy.
    pub pool: Arc<Pool>,
    /// Every backend known, in any order.
    pub members: Vec<Member>,
}

/// One change a source reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A pool is new or differs.
    Set(PoolFacts),
    /// A pool is gone.
    Remove(PoolId),
    /// Seats read from the pool's status, or from the state directory.
    Adopt(PoolId, Roster),
    /// What the pool's status says it has of its ports.
    Tenure(PoolId, Tenure),
}

/// What became of a pool, for status, logs and the state directory.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which pool.
    pub id: PoolId,
    /// Digest of its table.
    pub digest: u64,
    /// Slots of its table.
    pub table_size: u32,
    /// What its owner should know about that size, if anything.
    pub size_remark: Option<String>,
    /// Memory of its table.
    pub table_bytes: usize,
    /// Seats, holes included.
    pub seats: usize,
    /// Backends known.
    pub total: usize,
    /// Backends that take new requests.
    pub ready: usize,
    /// Backends that are ready and take none: they weigh nothing or wait for a seat.
    pub idle: usize,
    /// Backends on their way out that take none. Those that stand in for ready ones count as these.
    pub draining: usize,
    /// The seats.
    pub roster: Roster,
    /// Whether the seats differ from the last report.
    pub roster_changed: bool,
    /// Whether what is published of the pool differs from the last report.
    pub table_changed: bool,
    /// Whether keys may find another backend than at the last report.
    pub digest_changed: bool,
    /// Slots that changed backend, and why.
    pub moved: Option<(Cause, u32)>,
    /// What of ports another pool has.
    pub port_conflicts: Vec<Conflict>,
    /// Time to settle the seats and build the table.
    pub build: Duration,
}

/// Builds and publishes. One a process. A pool with large tables follows its facts when they are built; the others do
/// not wait for it.
#[derive(Debug)]
pub struct Programmer {
    publisher: Publisher,
    metrics: ControlMetrics,
    pools: BTreeMap<PoolId, Programmed>,
    /// Seats that came before their pool.
    early: HashMap<PoolId, Roster>,
    authority: Authority,
    generation: u64,
    shares: Shares,
    /// Whether the first full picture is in. Until then nobody has anything.
    begun: bool,
    bases: Bases,
    /// Builds beside the loop.
    builds: Builds,
    /// Pools that wait to be built there.
    queue: BTreeSet<PoolId>,
    /// Counts pools, so that a build of one that is gone is not taken for another of its name.
    births: u64,
}

#[derive(Debug)]
struct Programmed {
    birth: u64,
    facts: PoolFacts,
    /// Absent while it is built beside the loop.
    assembly: Option<Assembly>,
    /// Seats that arrived meanwhile.
    adopted: Option<Roster>,
    /// Seats, holes included.
    seats: usize,
    snapshot: Option<Arc<PoolSnapshot>>,
    roster: Roster,
    conflicts: Vec<Conflict>,
    tenure: Tenure,
    wake_at_ms: Option<u64>,
}

impl Programmer {
    /// A programmer that publishes through `publisher`.
    pub fn new(publisher: Publisher, metrics: ControlMetrics) -> Self {
        Self {
            publisher,
            metrics,
            pools: BTreeMap::new(),
            early: HashMap::new(),
            authority: Authority::Follower,
            generation: 0,
            shares: Shares::new(),
            begun: false,
            bases: Bases::default(),
            builds: Builds::default(),
            queue: BTreeSet::new(),
            births: 0,
        }
    }

    /// Returns when a pool was built beside the loop: then call `apply`. May be dropped at any time.
    pub async fn built(&mut self) {
        self.builds.ended().await;
    }

    /// Whether every pool was published once.
    pub fn is_complete(&self) -> bool {
        self.pools.values().all(|pool| pool.snapshot.is_some())
    }

    /// Takes a batch of changes in, and publishes once if anything differs. Also call it with no
    /// changes at `wake_at_ms`, after `built`, and when the authority changed. Reports the pools it looked at.
    pub fn apply(&mut self, changes: Vec<Change>, authority: Authority, now_ms: u64) -> Vec<Report> {
        let mut dirty = self.due(authority, now_ms);
        let mut publish = false;
        self.authority = authority;
        for change in changes {
            match change {
                Change::Set(facts) => dirty.extend(Some(self.set(facts))),
                Change::Remove(id) => {
                    dirty.remove(&id);
                    self.early.remove(&id);
                    self.metrics.forget(&id);
                    publish |= self.pools.remove(&id).is_some();
                }
                Change::Adopt(id, roster) => dirty.extend(self.adopt(id, roster)),
                Change::Tenure(id, tenure) => {
                    self.pools.get_mut(&id).into_iter().for_each(|known| known.tenure = tenure);
                }
            }
        }
        let mut reports = Vec::new();
        for built in self.builds.take() {
            reports.extend(self.take_in(built));
        }
        self.queue.retain(|id| self.pools.contains_key(id));
        for id in &dirty {
            if self.pools.get(id).is_some_and(|pool| pool.assembly.is_none() || is_large(&pool.facts)) {
                self.queue.insert(id.clone());
            } else {
                reports.extend(self.assemble(id, authority, now_ms));
            }
        }
        self.begin_builds(authority, now_ms);
        publish |= reports.iter().any(|report| report.table_changed);
        let conflicts_changed = self.share_out_ports();
        for report in &mut reports {
            report.port_conflicts = self.pools[&report.id].conflicts.clone();
        }
        let reported: BTreeSet<&PoolId> = reports.iter().map(|report| &report.id).collect();
        let others = conflicts_changed.iter().filter(|id| !reported.contains(id));
        let others = others.filter_map(|id| self.unchanged_report(id));
        let others: Vec<Report> = others.collect();
        reports.extend(others);
        if publish || !conflicts_changed.is_empty() {
            self.publish();
        }
        reports
    }

    /// To be called when the first full picture is in: from now on a pool keeps what it has of ports. Publishes what
    /// there is if nothing was published yet: a cluster without pools is served too, and whoever waits for a first
    /// snapshot gets it.
    pub fn begin(&mut self) {
        self.begun = true;
        if self.generation == 0 {
            self.publish();
        }
    }

    /// When to call `apply` again although nothing happens, milliseconds since the UNIX epoch.
    pub fn wake_at_ms(&self) -> Option<u64> {
        self.pools.values().filter_map(|pool| pool.wake_at_ms).min()
    }

    /// The snapshot of a pool as last published.
    pub fn snapshot(&self, id: &PoolId) -> Option<&Arc<PoolSnapshot>> {
        self.pools.get(id)?.snapshot.as_ref()
    }

    /// How the ports are shared out.
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// The seats of every pool.
    pub fn rosters(&self) -> impl Iterator<Item = (&PoolId, &Roster)> {
        self.pools.iter().map(|(id, pool)| (id, &pool.roster))
    }

    fn due(&self, authority: Authority, now_ms: u64) -> BTreeSet<PoolId> {
        let all = authority != self.authority;
        let is_due = |pool: &Programmed| all || pool.wake_at_ms.is_some_and(|at| at <= now_ms);
        self.pools.iter().filter(|(_, pool)| is_due(pool)).map(|(id, _)| id.clone()).collect()
    }

    fn set(&mut self, facts: PoolFacts) -> PoolId {
        let id = facts.pool.id.clone();
        if let Some(known) = self.pools.get_mut(&id) {
            known.facts = facts;
            return id;
        }
        let mut assembly = Assembly::sharing(self.bases.clone());
        if let Some(roster) = self.early.remove(&id) {
            assembly.adopt(&roster);
        }
        let roster = assembly.roster();
        self.births += 1;
        let fresh = Programmed {
            birth: self.births,
            facts,
            seats: assembly.seats().len(),
            assembly: Some(assembly),
            adopted: None,
            snapshot: None,
            roster,
            conflicts: Vec::new(),
            tenure: Tenure::default(),
            wake_at_ms: None,
        };
        self.pools.insert(id.clone(), fresh);
        id
    }

    /// Names the pool when the roster may change its table: a holder's own seats are the truth.
    fn adopt(&mut self, id: PoolId, roster: Roster) -> Option<PoolId> {
        let Some(known) = self.pools.get_mut(&id) else {
            self.early.insert(id, roster);
            return None;
        };
        let heeds = self.authority == Authority::Follower || known.seats == 0;
        match &mut known.assembly {
            Some(assembly) => assembly.adopt(&roster),
            None => known.adopted = Some(roster),
        }
        heeds.then_some(id)
    }

    fn assemble(&mut self, id: &PoolId, authority: Authority, now_ms: u64) -> Option<Report> {
        let known = self.pools.get_mut(id)?;
        let started = Instant::now();
        let built =
            known.assembly.as_mut()?.assemble(&known.facts.pool, &known.facts.members, authority, now_ms);
        self.settle(id, built, started.elapsed())
    }

    /// Has as many pools of the queue built beside the loop as may be at once.
    fn begin_builds(&mut self, authority: Authority, now_ms: u64) {
        let is_free = |pools: &BTreeMap<PoolId, Programmed>, id: &PoolId| {
            pools.get(id).is_some_and(|it| it.assembly.is_some())
        };
        while self.builds.has_room()
            && let Some(id) = self.queue.iter().find(|id| is_free(&self.pools, id)).cloned()
            && let Some(known) = self.pools.get_mut(&id)
            && let Some(assembly) = known.assembly.take()
        {
            self.queue.remove(&id);
            known.wake_at_ms = None;
            let order = Order { id, birth: known.birth, assembly, facts: known.facts.clone() };
            self.builds.begin(order, authority, now_ms);
        }
    }

    /// Takes in what was built beside the loop, unless the pool is gone.
    fn take_in(&mut self, built: Built) -> Option<Report> {
        let known = self.pools.get_mut(&built.id).filter(|known| known.birth == built.birth)?;
        let assembly = known.assembly.insert(built.assembly);
        if let Some(roster) = known.adopted.take() {
            assembly.adopt(&roster);
            self.queue.insert(built.id.clone());
        }
        self.settle(&built.id, built.assembled, built.took)
    }

    /// Puts what was built into force.
    fn settle(&mut self, id: &PoolId, built: Assembled, build: Duration) -> Option<Report> {
        let known = self.pools.get_mut(id)?;
        self.metrics.table_built(build);
        if let Some((cause, slots)) = built.moved {
            self.metrics.slots_moved(id, cause.label(), u64::from(slots));
        }
        let table_changed =
            known.snapshot.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &built.snapshot));
        let digest_changed =
            known.snapshot.as_ref().is_none_or(|before| before.digest != built.snapshot.digest);
        let assembly = known.assembly.as_ref()?;
        let (roster, seats) = (assembly.roster(), assembly.seats().len());
        let roster_changed = roster != known.roster;
        known.snapshot = Some(built.snapshot);
        (known.roster, known.seats) = (roster, seats);
        known.wake_at_ms = built.wake_at_ms;
        let mut report = known.report()?;
        (report.moved, report.build) = (built.moved, build);
        (report.roster_changed, report.table_changed) = (roster_changed, table_changed);
        report.digest_changed = digest_changed;
        Some(report)
    }

    fn unchanged_report(&self, id: &PoolId) -> Option<Report> {
        self.pools.get(id)?.report()
    }

    /// Gives each part of each port to the pool that has it, or else to the oldest that asks for it. Returns the pools
    /// whose conflicts changed.
    fn share_out_ports(&mut self) -> BTreeSet<PoolId> {
        let nothing = Shares::new();
        let before = if self.begun { &self.shares } else { &nothing };
        let claimants =
            self.pools.values().map(|pool| Claimant { pool: pool.in_force(), rank: self.rank(pool.tenure) });
        let (shares, mut conflicts) = share_out(claimants, before);
        let mut changed: BTreeSet<PoolId> = BTreeSet::new();
        for (id, pool) in &mut self.pools {
            let now = conflicts.remove(id).unwrap_or_default();
            if pool.conflicts != now {
                pool.conflicts = now;
                changed.insert(id.clone());
            }
        }
        self.shares = shares;
        changed
    }

    /// Where nobody has anything yet, who had it comes first. Later a follower gives way to whoever has something by
    /// the holder's word, and the holder knows best who has what.
    fn rank(&self, tenure: Tenure) -> u8 {
        match (self.begun, self.authority) {
            (false, _) => tenure as u8,
            (true, Authority::Follower) => (tenure != Tenure::Whole).into(),
            (true, Authority::Holder) => 0,
        }
    }

    fn publish(&mut self) {
        self.generation += 1;
        let pools =
            self.pools.iter().filter_map(|(id, pool)| Some((id.clone(), pool.snapshot.clone()?))).collect();
        self.publisher.publish(Snapshot::new(self.generation, pools, &self.shares));
    }
}

impl Programmed {
    /// The pool as it is served; as it is to be where it is not yet.
    fn in_force(&self) -> &Pool {
        self.snapshot.as_ref().map_or(&self.facts.pool, |snapshot| &snapshot.pool)
    }

    fn report(&self) -> Option<Report> {
        let snapshot = self.snapshot.as_ref()?;
        let (table_size, seats) = (snapshot.table.size(), self.seats);
        let count = |is: fn(&MemberView) -> bool| snapshot.members.iter().filter(|it| is(it)).count();
        Some(Report {
            id: self.facts.pool.id.clone(),
            digest: snapshot.digest,
            table_size,
            size_remark: size_remark(self.facts.pool.table_size, table_size, seats),
            table_bytes: snapshot.table.bytes(),
            seats,
            total: snapshot.members.len(),
            ready: count(|it| it.slots > 0),
            idle: count(|it| it.slots == 0 && it.state == State::Ready),
            draining: count(|it| it.slots == 0 && matches!(it.state, State::Terminating { .. })),
            roster: self.roster.clone(),
            roster_changed: false,
            table_changed: false,
            digest_changed: false,
            moved: None,
            port_conflicts: self.conflicts.clone(),
            build: Duration::ZERO,
        })
    }
}

fn size_remark(wanted: Option<u32>, size: u32, seats: usize) -> Option<String> {
    let wanted = wanted?;
    if wanted != size {
        return Some(format!("tableSize {wanted} has no slot for each of {seats} seats, so {size} is used"));
    }
    ((wanted as usize) < seats.saturating_mul(SLOTS_PER_SEAT)).then(|| {
        format!(
            "tableSize {wanted} gives {seats} seats less than {SLOTS_PER_SEAT} slots each, so their shares \
             differ by more than 1 %"
        )
    })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;
    use crate::balance::backend::{Backend, HttpVersion, Lineage, Weight};
    use crate::balance::key::KeySource;
    use crate::balance::pool::{Fill, Group, Listener, PortId, Protocol, ProxyProtocol, Readiness, Timeouts};
    use crate::balance::routes::{HostPattern, Match, PathPrefix};
    use crate::balance::tls::{CaBundle, Certificate, TlsTerms, TlsVersion, Validity};
    use crate::handoff::{Reader, handoff};
    use crate::source::claims::Contested;

    fn pool(name: &str, port: u16, created_ms: u64) -> Pool {
        Pool {
            id: PoolId::new("shop", name),
            created_ms,
            listeners: vec![listener(port)],
            groups: vec![Group { name: "stable".into(), weight: 1, tls: None, introduction: None }],
            table_size: Some(251),
            fill: Fill::Seats,
            hash_on: vec![KeySource::ClientIp],
            readiness: Readiness::Require,
            drain_timeout: Duration::from_secs(60),
            timeouts: Timeouts::default(),
            max_request_body: None,
            access_log: None,
        }
    }

    fn listener(port: u16) -> Listener {
        let proxy_protocol = ProxyProtocol::Off;
        let (protocol, matches) = (Protocol::Http, vec![Match::all()]);
        Listener { name: "web".into(), port, protocol, proxy_protocol, tls: None, matches }
    }

    fn member(name: &str) -> Member {
        Member {
            backend: Arc::new(Backend {
                id: name.into(),
                group: "stable".into(),
                name: name.into(),
                address: "192.0.2.1:80".parse().unwrap(),
                http: HttpVersion::Http1,
            }),
            weight: Weight::ONE,
            state: State::Ready,
            lineage: Lineage::default(),
        }
    }

    fn facts(pool: Pool, members: &[&str]) -> Change {
        Change::Set(PoolFacts {
            pool: Arc::new(pool),
            members: members.iter().map(|name| member(name)).collect(),
        })
    }

    /// One that has begun.
    fn programmer() -> (Programmer, Reader) {
        let (mut programmer, reader) = starting();
        programmer.begun = true;
        (programmer, reader)
    }

    fn starting() -> (Programmer, Reader) {
        let (publisher, reader) = handoff();
        (Programmer::new(publisher, ControlMetrics::default()), reader)
    }

    fn owner(reader: &Reader, port: u16) -> Option<String> {
        reader.load().route(PortId::Tcp(port), None, "/").map(|it| it.pool.id.name.to_string())
    }

    #[test]
    fn a_batch_is_one_publish() {
        let (mut programmer, reader) = programmer();
        let batch = vec![facts(pool("a", 80, 0), &["x"]), facts(pool("b", 81, 0), &["y"])];
        programmer.apply(batch, Authority::Holder, 0);
        assert_eq!(reader.load().generation, 1);
        assert_eq!(reader.load().pools().count(), 2);
    }

    #[test]
    fn a_source_without_pools_publishes_that_there_are_none() {
        let (mut programmer, reader) = programmer();
        programmer.begin();
        assert_eq!((reader.load().generation, reader.load().pools().count()), (1, 0));
        programmer.begin();
        assert_eq!(reader.load().generation, 1);
    }

    #[test]
    fn facts_that_change_nothing_publish_nothing_and_keep_the_very_table() {
        let (mut programmer, reader) = programmer();
        programmer.apply(vec![facts(pool("a", 80, 0), &["x", "y"])], Authority::Holder, 0);
        let before = reader.load().route(PortId::Tcp(80), None, "/").cloned().unwrap();
        programmer.apply(vec![facts(pool("a", 80, 0), &["y", "x"])], Authority::Holder, 1);
        assert_eq!(reader.load().generation, 1);
        assert!(Arc::ptr_eq(&before, reader.load().route(PortId::Tcp(80), None, "/").unwrap()));
    }

    #[test]
    fn pools_share_a_port_and_only_what_both_want_is_in_conflict() {
        let (mut programmer, reader) = programmer();
        let of = |name: &str, created_ms, hosts: &[&str]| {
            let matched = |host: &&str| Match { host: HostPattern::new(host), path: PathPrefix::all() };
            let matches = hosts.iter().map(matched).collect();
            let mut pool = pool(name, 80, created_ms);
            pool.listeners[0].matches = matches;
            pool
        };
        programmer.apply(vec![facts(of("a", 1, &["x.test", "y.test"]), &["x"])], Authority::Holder, 0);
        let reports =
            programmer.apply(vec![facts(of("b", 2, &["y.test", "z.test"]), &["y"])], Authority::Holder, 0);
        let matched = Match { host: HostPattern::new("y.test"), path: PathPrefix::all() };
        let conflict = Conflict {
            port: PortId::Tcp(80),
            over: Contested::Part(matched),
            holder: PoolId::new("shop", "a"),
        };
        assert_eq!(reports[0].port_conflicts, [conflict]);
        let snapshot = reader.load();
        let owner = |host| snapshot.route(PortId::Tcp(80), host, "/").map(|it| &*it.pool.id.name);
        let owners = ["x.test", "y.test", "z.test", "w.test"].map(|host| owner(Some(host)));
        assert_eq!(owners, [Some("a"), Some("a"), Some("b"), None]);
        assert_eq!(owner(None), None);
    }

    #[test]
    fn all_pools_of_a_port_agree_how_its_connections_begin() {
        let (mut programmer, reader) = programmer();
        let of = |name: &str, created_ms, proxy_protocol| {
            let mut pool = pool(name, 80, created_ms);
            pool.listeners[0].proxy_protocol = proxy_protocol;
            pool.listeners[0].matches = vec![Match { host: HostPattern::new(name), path: PathPrefix::all() }];
            pool
        };
        programmer.apply(vec![facts(of("a", 1, ProxyProtocol::Require), &["x"])], Authority::Holder, 0);
        let reports =
            programmer.apply(vec![facts(of("b", 2, ProxyProtocol::Off), &["y"])], Authority::Holder, 0);
        let holder = PoolId::new("shop", "a");
        assert_eq!(
            reports[0].port_conflicts,
            [Conflict { port: PortId::Tcp(80), over: Contested::ProxyProtocol, holder }]
        );
        assert!(reader.load().route(PortId::Tcp(80), Some("b"), "/").is_none());
        assert!(reader.load().ports().all(|(_, port)| port.manner.proxy_protocol == ProxyProtocol::Require));
    }

    #[test]
    fn all_pools_of_a_port_speak_the_same_and_udp_has_ports_of_its_own() {
        let (mut programmer, reader) = programmer();
        let of = |name: &str, created_ms, protocol| {
            let mut pool = pool(name, 53, created_ms);
            pool.listeners[0].protocol = protocol;
            facts(pool, &["x"])
        };
        let mut conflicts =
            |change| programmer.apply(vec![change], Authority::Holder, 0).remove(0).port_conflicts;
        let (holder, port) = (PoolId::new("shop", "a"), PortId::Tcp(53));
        assert_eq!(conflicts(of("a", 1, Protocol::Tcp)), []);
        let expected = Conflict { port, over: Contested::Protocol, holder: holder.clone() };
        assert_eq!(conflicts(of("b", 2, Protocol::Http)), [expected]);
        let expected = Conflict { port, over: Contested::Part(Match::all()), holder };
        assert_eq!(conflicts(of("c", 3, Protocol::Tcp)), [expected]);
        assert_eq!(conflicts(of("d", 4, Protocol::Udp)), []);
        let snapshot = reader.load();
        let served: Vec<(PortId, Protocol)> =
            snapshot.ports().map(|(id, port)| (id, port.manner.protocol)).collect();
        assert_eq!(served, [(port, Protocol::Tcp), (PortId::Udp(53), Protocol::Udp)]);
        let owner = |port| snapshot.route(port, None, "/").map(|it| &*it.pool.id.name);
        assert_eq!([port, PortId::Udp(53)].map(owner), [Some("a"), Some("d")]);
    }

    fn terms(key: u8, client_ca: &[u8]) -> TlsTerms {
        let certificate = Certificate {
            names: Vec::new(),
            chain: Vec::new(),
            key: PrivatePkcs8KeyDer::from(vec![key]).into(),
            validity: Validity { not_before: 0, not_after: u64::MAX },
            ocsp: None,
        };
        let roots: Vec<_> = client_ca.iter().map(|root| vec![*root].into()).collect();
        TlsTerms {
            certificates: vec![Arc::new(certificate)],
            min_version: TlsVersion::V12,
            client_ca: (!roots.is_empty()).then(|| Arc::new(CaBundle { roots })),
        }
    }

    fn encrypted(name: &str, created_ms: u64, path: &str, tls: Option<TlsTerms>) -> Change {
        let mut pool = pool(name, 80, created_ms);
        pool.listeners[0].tls = tls.map(Arc::new);
        pool.listeners[0].matches =
            vec![Match { host: HostPattern::new("x.test"), path: PathPrefix::new(path) }];
        facts(pool, &["x"])
    }

    #[test]
    fn pools_that_share_a_host_ask_the_same_of_its_clients() {
        let (mut programmer, reader) = programmer();
        let mut conflict = |change| {
            let reports = programmer.apply(vec![change], Authority::Holder, 0);
            reports[0].port_conflicts.iter().map(|it| it.over.clone()).collect::<Vec<_>>()
        };
        assert_eq!(conflict(encrypted("a", 1, "/", Some(terms(1, &[7])))), []);
        assert_eq!(conflict(encrypted("b", 2, "/b", Some(terms(2, &[7])))), []);
        let clients = Contested::Clients(HostPattern::new("x.test"));
        assert_eq!(conflict(encrypted("c", 3, "/c", Some(terms(1, &[])))), [clients]);
        assert_eq!(conflict(encrypted("d", 4, "/d", None)), [Contested::Protocol]);
        let snapshot = reader.load();
        let owner = |path| snapshot.route(PortId::Tcp(80), Some("x.test"), path).map(|it| &*it.pool.id.name);
        assert_eq!(["/", "/b", "/c", "/d"].map(owner), [Some("a"), Some("b"), Some("a"), Some("a")]);
        let (_, port) = snapshot.ports().next().unwrap();
        assert_eq!(*port.tls.as_ref().unwrap().default, terms(1, &[7]), "the oldest pool's");
    }

    #[test]
    fn a_new_certificate_is_published_and_moves_no_key() {
        let (mut programmer, reader) = programmer();
        programmer.apply(vec![encrypted("a", 1, "/", Some(terms(1, &[])))], Authority::Holder, 0);
        let before = reader.load();
        programmer.apply(vec![encrypted("a", 1, "/", Some(terms(2, &[])))], Authority::Holder, 0);
        let after = reader.load();
        let shown = |snapshot: &Snapshot| snapshot.ports().next().unwrap().1.tls.clone().unwrap().default;
        assert_eq!((shown(&before), shown(&after)), (terms(1, &[]).into(), terms(2, &[]).into()));
        let digest = |snapshot: &Snapshot| snapshot.pools().next().unwrap().digest;
        assert_eq!(digest(&before), digest(&after));
    }

    #[test]
    fn the_older_of_two_pools_has_a_port_at_the_start_and_the_younger_is_told_who_has_it() {
        let (mut programmer, reader) = starting();
        let younger = facts(pool("a", 80, 2), &["x"]);
        assert!(programmer.apply(vec![younger], Authority::Holder, 0)[0].port_conflicts.is_empty());
        let reports = programmer.apply(vec![facts(pool("b", 80, 1), &["y"])], Authority::Holder, 0);
        let loser = reports.iter().find(|report| &*report.id.name == "a").expect("the younger is reported");
        let holder = PoolId::new("shop", "b");
        assert_eq!(
            loser.port_conflicts,
            [Conflict { port: PortId::Tcp(80), over: Contested::Part(Match::all()), holder }]
        );
        assert_eq!(owner(&reader, 80).as_deref(), Some("b"));
        programmer.apply(vec![Change::Remove(PoolId::new("shop", "b"))], Authority::Holder, 0);
        assert_eq!(owner(&reader, 80).as_deref(), Some("a"));
    }

    #[test]
    fn seats_that_arrive_before_their_pool_wait_for_it() {
        let (mut first, _) = programmer();
        let report =
            first.apply(vec![facts(pool("a", 80, 0), &["z", "x", "y"])], Authority::Holder, 0).remove(0);
        let (mut second, _) = programmer();
        let adopt = Change::Adopt(PoolId::new("shop", "a"), report.roster.clone());
        second.apply(vec![adopt], Authority::Holder, 0);
        let again =
            second.apply(vec![facts(pool("a", 80, 0), &["y", "z", "x"])], Authority::Holder, 0).remove(0);
        assert_eq!(again.roster, report.roster);
        assert_eq!(again.digest, report.digest);
    }

    /// A pool whose table is built beside the loop.
    fn large(name: &str, port: u16, members: &[&str]) -> Change {
        facts(Pool { table_size: Some(1_048_583), ..pool(name, port, 0) }, members)
    }

    #[tokio::test]
    async fn a_large_table_keeps_no_other_pool_waiting() {
        let (mut programmer, reader) = programmer();
        assert!(programmer.apply(vec![large("a", 80, &["x"])], Authority::Holder, 0).is_empty());
        assert!(!programmer.is_complete());
        let small = vec![facts(pool("b", 81, 0), &["y"])];
        assert_eq!(programmer.apply(small, Authority::Holder, 0).len(), 1);
        assert_eq!((owner(&reader, 80), owner(&reader, 81).as_deref()), (None, Some("b")));
        programmer.built().await;
        assert!(programmer.apply(Vec::new(), Authority::Holder, 0)[0].table_changed);
        assert!(programmer.is_complete());
        assert_eq!(owner(&reader, 80).as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn what_changes_while_a_large_table_is_built_is_built_next_and_swapped_whole() {
        let (mut programmer, reader) = programmer();
        programmer.apply(vec![large("a", 80, &["x"])], Authority::Holder, 0);
        programmer.built().await;
        programmer.apply(Vec::new(), Authority::Holder, 0);
        programmer.apply(vec![large("a", 81, &["x"])], Authority::Holder, 0);
        programmer.apply(vec![large("a", 82, &["x", "y"])], Authority::Holder, 0);
        assert_eq!(owner(&reader, 80).as_deref(), Some("a"), "its port goes with its table");
        for port in [81, 82] {
            programmer.built().await;
            programmer.apply(Vec::new(), Authority::Holder, 0);
            assert_eq!(owner(&reader, port).as_deref(), Some("a"));
        }
        assert_eq!(reader.load().pools().next().unwrap().members.len(), 2);
    }

    #[tokio::test]
    async fn a_build_of_a_pool_that_is_gone_is_not_taken_for_another_of_its_name() {
        let (mut programmer, reader) = programmer();
        programmer.apply(vec![large("a", 80, &["x"])], Authority::Holder, 0);
        programmer.apply(vec![Change::Remove(PoolId::new("shop", "a"))], Authority::Holder, 0);
        programmer.apply(vec![facts(pool("a", 81, 0), &["y"])], Authority::Holder, 0);
        programmer.built().await;
        programmer.apply(Vec::new(), Authority::Holder, 0);
        assert_eq!((owner(&reader, 80), owner(&reader, 81).as_deref()), (None, Some("a")));
    }

    #[tokio::test]
    async fn seats_that_arrive_while_a_large_table_is_built_are_heeded() {
        let (mut first, _) = programmer();
        let known = first.apply(vec![facts(pool("a", 80, 0), &["z", "x", "y"])], Authority::Holder, 0);
        let (mut follower, _) = programmer();
        follower.apply(vec![large("a", 80, &["x", "y", "z"])], Authority::Follower, 0);
        let adopt = Change::Adopt(PoolId::new("shop", "a"), known[0].roster.clone());
        follower.apply(vec![adopt], Authority::Follower, 0);
        for _ in 0..2 {
            follower.built().await;
            follower.apply(Vec::new(), Authority::Follower, 0);
        }
        assert_eq!(follower.rosters().next().unwrap().1, &known[0].roster);
    }

    #[test]
    fn a_follower_that_becomes_the_holder_seats_who_was_waiting() {
        let (mut programmer, reader) = programmer();
        let seat = || reader.load().pool(&PoolId::new("shop", "a")).unwrap().members[0].seat;
        programmer.apply(vec![facts(pool("a", 80, 0), &["x"])], Authority::Follower, 0);
        assert_eq!(seat(), None);
        assert_eq!(programmer.wake_at_ms(), Some(1_000));
        programmer.apply(vec![], Authority::Holder, 1);
        assert_eq!(seat(), Some(0));
    }
}
