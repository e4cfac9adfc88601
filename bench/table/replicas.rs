//! Owns the agreement check: replicas that see the same events at different times, follow changing
//! lease holders and lose none of them must end with the same table, and none overlooks whoever serves on the way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use guideway::balance::assembly::Assembly;
use guideway::balance::backend::{Backend, HttpVersion, Lineage, Member, State, Weight};
use guideway::balance::hash::mix;
use guideway::balance::key::KeySource;
use guideway::balance::pool::{
    Fill, Group, Listener, Pool, PoolId, Protocol, ProxyProtocol, Readiness, Timeouts,
};
use guideway::balance::routes::Match;
use guideway::balance::seats::{Authority, Roster};
use guideway::balance::snapshot::PoolSnapshot;

const REPLICAS: usize = 3;
const STEPS: usize = 40;
/// A small prime keeps 100,000 schedules affordable; the rules do not depend on the size.
const TABLE_SIZE: u32 = 101;

/// Runs one schedule. `Err` says what differed, and at which replica.
pub(crate) fn check_schedule(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step()?;
    }
    world.settle_and_compare()
}

/// Events still on their way to a replica.
enum News {
    Members(Vec<Member>),
    Roster(Roster),
}

struct Replica {
    assembly: Assembly,
    members: Vec<Member>,
    inbox: VecDeque<News>,
    digest: u64,
}

struct World {
    random: u64,
    seed: u64,
    now_ms: u64,
    pool: Arc<Pool>,
    members: Vec<Member>,
    born: u64,
    replicas: Vec<Replica>,
    holder: Option<usize>,
    /// What the status says; nothing until a holder has written. That there are no seats is news like any other.
    published: Option<Roster>,
}

impl World {
    fn new(seed: u64) -> Self {
        let replica =
            |_| Replica { assembly: Assembly::default(), members: vec![], inbox: VecDeque::new(), digest: 0 };
        Self {
            random: 0,
            seed,
            now_ms: 1_000_000,
            pool: pool(seed),
            members: vec![],
            born: 0,
            replicas: (0..REPLICAS).map(replica).collect(),
            holder: Some(0),
            published: None,
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random += 1;
        (mix(self.seed, self.random) % bound as u64) as usize
    }

    fn step(&mut self) -> Result<(), String> {
        self.now_ms += [1, 20, 300, 1_500, 40_000, 90_000][self.below(6)];
        match self.below(8) {
            0..=1 => self.join(),
            2 => self.leave(),
            3..=4 => self.change_state(),
            5 => self.change_weight(),
            6 => self.holder = [None, Some(0), Some(1), Some(2)][self.below(4)],
            _ => {}
        }
        let view = self.members.clone();
        self.replicas.iter_mut().for_each(|replica| replica.inbox.push_back(News::Members(view.clone())));
        for replica in 0..REPLICAS {
            let deliveries = self.below(4);
            self.deliver(replica, deliveries)?;
        }
        Ok(())
    }

    fn join(&mut self) {
        if self.members.len() >= 8 {
            return;
        }
        self.born += 1;
        let name = format!("pod-{}", self.born);
        let group = if self.below(3) == 0 { "canary" } else { "stable" };
        let revision = if self.below(2) == 0 { "v1" } else { "v2" };
        let state = if self.below(3) == 0 { State::NotReady } else { State::Ready };
        self.members.push(Member {
            backend: Arc::new(Backend {
                id: name.as_str().into(),
                group: group.into(),
                name: name.as_str().into(),
                address: ([192, 0, 2, 1], 80).into(),
                http: HttpVersion::Http1,
            }),
            weight: Weight::ONE,
            state,
            lineage: Lineage {
                workload: Some(group.into()),
                revision: Some(revision.into()),
                ordinal: None,
                created_ms: self.now_ms / 1_000,
            },
        });
    }

    fn leave(&mut self) {
        if !self.members.is_empty() {
            let index = self.below(self.members.len());
            self.members.remove(index);
        }
    }

    fn change_state(&mut self) {
        if self.members.is_empty() {
            return;
        }
        let index = self.below(self.members.len());
        let next = [State::Ready, State::NotReady, State::Terminating { serving: true }][self.below(3)];
        let member = &mut self.members[index];
        // A terminating pod never comes back, but it may cease to serve.
        member.state = match (member.state, next) {
            (State::Terminating { .. }, State::NotReady) => State::Terminating { serving: false },
            (State::Terminating { serving }, _) => State::Terminating { serving },
            _ => next,
        };
    }

    fn change_weight(&mut self) {
        if self.members.is_empty() {
            return;
        }
        let index = self.below(self.members.len());
        let weight = 1 + self.below(5) as u16;
        self.members[index].weight = Weight::new(weight).expect("at least 1");
    }

    /// Hands a replica its next news and lets it rebuild after each.
    fn deliver(&mut self, index: usize, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let Some(news) = self.replicas[index].inbox.pop_front() else { break };
            let replica = &mut self.replicas[index];
            match news {
                News::Members(members) => replica.members = members,
                News::Roster(roster) => replica.assembly.adopt(&roster),
            }
            self.rebuild(index)?;
        }
        Ok(())
    }

    fn rebuild(&mut self, index: usize) -> Result<(), String> {
        let is_holder = self.holder == Some(index);
        let authority = if is_holder { Authority::Holder } else { Authority::Follower };
        let replica = &mut self.replicas[index];
        let built = replica.assembly.assemble(&self.pool, &replica.members, authority, self.now_ms);
        replica.digest = built.snapshot.digest;
        let overlooked = overlooked(&built.snapshot);
        let roster = replica.assembly.roster();
        if is_holder && self.published.as_ref() != Some(&roster) {
            self.published = Some(roster.clone());
            // Everybody watches the status, also who wrote it.
            self.replicas
                .iter_mut()
                .for_each(|replica| replica.inbox.push_back(News::Roster(roster.clone())));
        }
        let seed = self.seed;
        overlooked.map_or(Ok(()), |what| Err(format!("schedule {seed}: at replica {index}, {what}")))
    }

    /// Ends the schedule: someone holds the lease, all news arrive, nobody waits any more.
    fn settle_and_compare(mut self) -> Result<(), String> {
        self.holder = Some(self.below(REPLICAS));
        for _ in 0..4 {
            self.now_ms += 100_000;
            for replica in 0..REPLICAS {
                self.deliver(replica, usize::MAX)?;
                self.rebuild(replica)?;
            }
        }
        for (index, replica) in self.replicas.iter().enumerate().skip(1) {
            if replica.digest != self.replicas[0].digest {
                let seed = self.seed;
                return Err(format!(
                    "schedule {seed}: replica {index} ends with another table than replica 0"
                ));
            }
        }
        Ok(())
    }
}

/// The keys go to ready backends alone as long as there is one, then to all that serve on their way out, and to
/// nobody only where nobody serves. What is wrong, if anything.
fn overlooked(snapshot: &PoolSnapshot) -> Option<String> {
    let weight =
        |group: &str| snapshot.pool.groups.iter().find(|it| *it.name == *group).map_or(0, |it| it.weight);
    let members = || snapshot.members.iter().filter(|it| weight(&it.backend.group) > 0);
    let in_state = |state: State| members().filter(move |it| it.state == state);
    let serving = State::Terminating { serving: true };
    let best = if in_state(State::Ready).next().is_some() { State::Ready } else { serving };
    let wrong = snapshot
        .members
        .iter()
        .find(|it| it.slots > 0 && (it.state != best || weight(&it.backend.group) == 0));
    let idle = in_state(serving).find(|it| best == serving && it.slots == 0);
    let is_served = snapshot.pick(mix(snapshot.digest, 0)).is_some();
    match (wrong.or(idle), in_state(best).next().is_some() == is_served) {
        (Some(member), _) => {
            Some(format!("{} has {} slots as {:?}", member.backend.id, member.slots, member.state))
        }
        (None, false) if is_served => Some("a key goes to somebody, and nobody serves".into()),
        (None, false) => Some("a key goes to nobody, and somebody serves".into()),
        (None, true) => None,
    }
}

fn pool(seed: u64) -> Arc<Pool> {
    let canary = match seed {
        _ if seed.is_multiple_of(7) => 0,
        _ if seed.is_multiple_of(2) => 10,
        _ => 90,
    };
    Arc::new(Pool {
        id: PoolId::new("default", "web"),
        created_ms: 0,
        listeners: vec![Listener {
            name: "web".into(),
            port: 8080,
            protocol: Protocol::Http,
            proxy_protocol: ProxyProtocol::Off,
            tls: None,
            matches: vec![Match::all()],
        }],
        groups: vec![
            Group { name: "stable".into(), weight: 90, tls: None, introduction: None },
            Group { name: "canary".into(), weight: canary, tls: None, introduction: None },
        ],
        table_size: Some(TABLE_SIZE),
        fill: if seed.is_multiple_of(5) { Fill::Paper } else { Fill::Seats },
        hash_on: vec![KeySource::ClientIp],
        readiness: Readiness::Require,
        drain_timeout: Duration::from_secs(60),
        timeouts: Timeouts::default(),
        max_request_body: None,
        access_log: None,
    })
}
