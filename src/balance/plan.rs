//! Owns the what-if: plays a change of a pool event by event through the same assembly that serves
//! traffic, and counts which keys change their backend on the way.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::assembly::{Assembly, table_size};
use super::backend::{Backend, BackendId, HttpVersion, Lineage, Member, State, Weight};
use super::pool::{Fill, Pool};
use super::seats::Authority;
use super::snapshot::PoolSnapshot;

/// Time between two events. Short of every hold, as in a healthy cluster.
const STEP_MS: u64 = 1_000;

/// A pool before the change.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The policy.
    pub pool: Arc<Pool>,
    /// The endpoints of each group.
    pub groups: BTreeMap<Arc<str>, Endpoints>,
}

/// The endpoints of one group.
#[derive(Clone, Debug)]
pub enum Endpoints {
    /// So many pods.
    Pods(u32),
    /// Fixed addresses.
    Fixed(Vec<Member>),
}

/// What is going to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A group grows or shrinks from its present size to this one, one pod after the other, the newest leaving first.
    Scale {
        /// The group.
        group: Arc<str>,
        /// Pods afterwards.
        to: u32,
    },
    /// All pods of a group are replaced as a Deployment does it.
    Rollout {
        /// The group.
        group: Arc<str>,
        /// Pods there may be above the number wanted.
        max_surge: u32,
        /// Pods that may be missing from the number wanted. Not zero together with `max_surge`.
        max_unavailable: u32,
    },
}

/// What a change does to the keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// By group, in the pool's order.
    pub groups: Vec<(Arc<str>, Movement)>,
    /// Over all groups.
    pub total: Movement,
}

/// The keys of a group, as parts of all keys of the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Movement {
    /// Served by the group before the change.
    pub before: f64,
    /// Served by the group afterwards.
    pub after: f64,
    /// Of those before: keys that change their backend at least once.
    pub moved: f64,
    /// Of those before: keys that must, because their backend leaves or gives its share up.
    pub unavoidable: f64,
    /// Moves of those keys in all; above `moved` when a key moves more than once.
    pub moves: f64,
    /// Moves of the key that moves most.
    pub most_moves: u32,
}

/// Plays `change` on `stage` with the table filled by `fill`.
pub fn play(stage: &Stage, change: &Change, fill: Fill) -> Outcome {
    let pool = Arc::new(Pool { fill, ..(*stage.pool).clone() });
    let mut theatre = Theatre::new(pool, stage, change);
    match change {
        Change::Scale { group, to } => theatre.scale(group, *to),
        Change::Rollout { group, max_surge, max_unavailable } => {
            theatre.roll(group, *max_surge, *max_unavailable);
        }
    }
    theatre.rest();
    theatre.ledger.outcome(&theatre.pool)
}

/// The pool while the change goes on.
struct Theatre {
    pool: Arc<Pool>,
    assembly: Assembly,
    members: Vec<Member>,
    now_ms: u64,
    ledger: Ledger,
    born: u64,
}

impl Theatre {
    fn new(pool: Arc<Pool>, stage: &Stage, change: &Change) -> Self {
        let mut theatre = Self {
            assembly: Assembly::default(),
            members: Vec::new(),
            now_ms: 0,
            ledger: Ledger::new(table_size(&pool, most_endpoints(stage, change))),
            born: 0,
            pool,
        };
        for (group, endpoints) in &stage.groups {
            match endpoints {
                Endpoints::Fixed(members) => theatre.members.extend(members.iter().cloned()),
                Endpoints::Pods(count) => (0..*count).for_each(|_| theatre.bear(group, "1", State::Ready)),
            }
        }
        theatre.step();
        theatre
    }

    /// A new pod. Its name is as good as random, as a real one's is.
    fn bear(&mut self, group: &Arc<str>, revision: &str, state: State) {
        self.born += 1;
        let name: Arc<str> = format!("{group}-{revision}-{:05}", self.born).into();
        let backend = Backend {
            id: BackendId(name.clone()),
            group: group.clone(),
            name,
            address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            http: HttpVersion::Http1,
        };
        let lineage = Lineage {
            workload: Some(group.clone()),
            revision: Some(revision.into()),
            ordinal: None,
            created_ms: self.born,
        };
        self.members.push(Member { backend: Arc::new(backend), weight: Weight::ONE, state, lineage });
    }

    fn scale(&mut self, group: &Arc<str>, to: u32) {
        while self.count(|it| it.backend.group == *group) < to {
            self.bear(group, "1", State::Ready);
            self.step();
        }
        while self.count(|it| it.backend.group == *group) > to {
            let last = self.members.iter().rposition(|it| it.backend.group == *group);
            last.into_iter().for_each(|index| self.bury(index));
        }
    }

    fn roll(&mut self, group: &Arc<str>, max_surge: u32, max_unavailable: u32) {
        let old = |it: &Member| it.backend.group == *group && it.lineage.revision.as_deref() == Some("1");
        let new = |it: &Member| it.backend.group == *group && it.lineage.revision.as_deref() == Some("2");
        let wanted = self.count(old);
        let available = |it: &Member| it.backend.group == *group && it.state == State::Ready;
        loop {
            while self.count(new) < wanted && self.count(old) + self.count(new) < wanted + max_surge {
                self.bear(group, "2", State::NotReady);
            }
            let leaving = self.members.iter().position(old);
            let spare = self.count(available) > wanted.saturating_sub(max_unavailable);
            if let Some(index) = leaving.filter(|_| spare) {
                self.bury(index);
            } else if let Some(index) =
                self.members.iter().position(|it| new(it) && it.state == State::NotReady)
            {
                self.members[index].state = State::Ready;
                self.step();
            } else {
                return;
            }
        }
    }

    /// A pod leaves: it is told to, and some time later it is gone.
    fn bury(&mut self, index: usize) {
        self.members[index].state = State::Terminating { serving: true };
        self.step();
        self.members.remove(index);
        self.step();
    }

    fn count(&self, is: impl Fn(&Member) -> bool) -> u32 {
        self.members.iter().filter(|it| is(it)).count() as u32
    }

    /// Lets pass what follows by time alone, such as the compaction of seats.
    fn rest(&mut self) {
        while let Some(at) = self.step().filter(|at| *at > self.now_ms) {
            self.now_ms = at - STEP_MS;
        }
    }

    fn step(&mut self) -> Option<u64> {
        self.now_ms += STEP_MS;
        let built = self.assembly.assemble(&self.pool, &self.members, Authority::Holder, self.now_ms);
        self.ledger.enter(&built.snapshot);
        built.wake_at_ms
    }
}

fn most_endpoints(stage: &Stage, change: &Change) -> usize {
    let size = |(group, endpoints): (&Arc<str>, &Endpoints)| {
        let now = match endpoints {
            Endpoints::Pods(count) => *count as usize,
            Endpoints::Fixed(members) => members.len(),
        };
        match change {
            Change::Scale { group: changed, to } if changed == group => now.max(*to as usize),
            _ => now,
        }
    };
    stage.groups.iter().map(size).sum()
}

/// Who serves each key, and how often it moved. A key stands for each slot of the largest table, so that
/// tables of different sizes can be compared.
struct Ledger {
    first: Vec<Owner>,
    now: Vec<Owner>,
    moves: Vec<u32>,
    backends: Vec<Arc<Backend>>,
    known: HashMap<BackendId, Owner>,
}

/// Index of a backend, `NOBODY` for none.
type Owner = u32;
const NOBODY: Owner = Owner::MAX;

impl Ledger {
    fn new(keys: u32) -> Self {
        let keys = keys as usize;
        Self {
            first: Vec::new(),
            now: vec![NOBODY; keys],
            moves: vec![0; keys],
            backends: Vec::new(),
            known: HashMap::new(),
        }
    }

    fn enter(&mut self, snapshot: &PoolSnapshot) {
        let owners: Vec<Owner> = snapshot.places.iter().map(|place| self.owner(place.as_ref())).collect();
        let now: Vec<Owner> = (0..self.now.len())
            .map(|key| self.hash(key))
            .map(|hash| snapshot.table.pick(hash).map_or(NOBODY, |place| owners[usize::from(place)]))
            .collect();
        if self.first.is_empty() {
            self.first.clone_from(&now);
        } else {
            let pairs = self.now.iter().zip(&now).zip(&mut self.moves);
            pairs.filter(|((was, is), _)| was != is).for_each(|(_, moves)| *moves += 1);
        }
        self.now = now;
    }

    /// The upper half, which decides the seat, is the middle of each of the equal parts of the key space, so
    /// that it is beyond rounding. The lower half, which decides the group, walks by the golden ratio: so
    /// every part of the one space meets every part of the other evenly.
    fn hash(&self, key: usize) -> u64 {
        let middle = ((2 * key as u128 + 1) << 63) / self.now.len() as u128;
        (middle as u64 & !u64::from(u32::MAX)) | u64::from((key as u32).wrapping_mul(0x9e37_79b9))
    }

    fn owner(&mut self, backend: Option<&Arc<Backend>>) -> Owner {
        let Some(backend) = backend else { return NOBODY };
        let next = self.backends.len() as Owner;
        let owner = *self.known.entry(backend.id.clone()).or_insert(next);
        if owner == next {
            self.backends.push(backend.clone());
        }
        owner
    }

    fn outcome(&self, pool: &Pool) -> Outcome {
        let of = |name: &Arc<str>| {
            self.movement(|it| self.backends.get(it as usize).is_some_and(|b| b.group == *name))
        };
        Outcome {
            groups: pool.groups.iter().map(|group| (group.name.clone(), of(&group.name))).collect(),
            total: self.movement(|owner| owner != NOBODY),
        }
    }

    /// The movement of the keys whose first owner is one of these.
    fn movement(&self, is: impl Fn(Owner) -> bool) -> Movement {
        let keys = self.now.len() as f64;
        let part = |count: usize| count as f64 / keys;
        let mine =
            || self.first.iter().zip(&self.moves).filter(|(owner, _)| is(**owner)).map(|(_, moves)| *moves);
        let after = tally(&self.now);
        let lost =
            |(owner, count): (Owner, usize)| count.saturating_sub(after.get(&owner).copied().unwrap_or(0));
        let unavoidable = tally(&self.first).into_iter().filter(|(owner, _)| is(*owner)).map(lost);
        Movement {
            before: part(mine().count()),
            after: part(self.now.iter().filter(|owner| is(**owner)).count()),
            moved: part(mine().filter(|moves| *moves > 0).count()),
            unavoidable: part(unavoidable.sum()),
            moves: mine().map(u64::from).sum::<u64>() as f64 / keys,
            most_moves: mine().max().unwrap_or(0),
        }
    }
}

fn tally(owners: &[Owner]) -> BTreeMap<Owner, usize> {
    let mut tally = BTreeMap::new();
    owners.iter().for_each(|owner| *tally.entry(*owner).or_default() += 1);
    tally
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::key::KeySource;
    use crate::balance::pool::{Group, PoolId, Readiness, Timeouts};

    fn stage(groups: &[(&str, u16, u32)]) -> Stage {
        let pool = Pool {
            id: PoolId::new("shop", "web"),
            created_ms: 0,
            listeners: Vec::new(),
            groups: groups
                .iter()
                .map(|(name, weight, _)| Group {
                    name: (*name).into(),
                    weight: *weight,
                    tls: None,
                    introduction: None,
                })
                .collect(),
            table_size: Some(4093),
            fill: Fill::Seats,
            hash_on: vec![KeySource::ClientIp],
            readiness: Readiness::Require,
            drain_timeout: std::time::Duration::ZERO,
            timeouts: Timeouts::default(),
            max_request_body: None,
            access_log: None,
        };
        let groups = groups.iter().map(|(name, _, pods)| ((*name).into(), Endpoints::Pods(*pods))).collect();
        Stage { pool: Arc::new(pool), groups }
    }

    fn rollout(max_surge: u32, max_unavailable: u32) -> Change {
        Change::Rollout { group: "stable".into(), max_surge, max_unavailable }
    }

    fn near(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 0.005
    }

    #[test]
    fn a_join_moves_only_what_the_newcomer_takes() {
        let change = Change::Scale { group: "stable".into(), to: 11 };
        let total = play(&stage(&[("stable", 1, 10)]), &change, Fill::Seats).total;
        assert!(near(total.moved, 1.0 / 11.0), "{total:?}");
        assert_eq!((total.moved, total.most_moves), (total.unavoidable, 1));
    }

    #[test]
    fn a_rollout_moves_every_key_once_and_with_the_paper_more_often() {
        for (max_surge, max_unavailable) in [(1, 0), (0, 1), (3, 2)] {
            let change = rollout(max_surge, max_unavailable);
            let stage = stage(&[("stable", 1, 10)]);
            let seats = play(&stage, &change, Fill::Seats).total;
            let paper = play(&stage, &change, Fill::Paper).total;
            assert_eq!((seats.moved, seats.unavoidable), (1.0, 1.0));
            assert!(seats.moves < paper.moves, "{change:?}: {} and {}", seats.moves, paper.moves);
            if max_unavailable == 0 {
                assert_eq!((seats.moves, seats.most_moves), (1.0, 1));
            }
        }
    }

    #[test]
    fn groups_that_nobody_touches_keep_their_keys() {
        let outcome = play(&stage(&[("stable", 90, 10), ("canary", 10, 2)]), &rollout(1, 0), Fill::Seats);
        let (stable, canary) = (outcome.groups[0].1, outcome.groups[1].1);
        assert!(near(stable.before, 0.9) && near(stable.after, 0.9) && near(canary.before, 0.1));
        assert_eq!((stable.moved, canary.moved), (stable.before, 0.0));
        assert_eq!(outcome.total.moved, stable.moved);
    }

    #[test]
    fn a_group_that_grows_takes_from_its_own_seats_alone() {
        let stage = stage(&[("stable", 90, 10), ("canary", 10, 4), ("trial", 1, 2)]);
        let change = Change::Scale { group: "stable".into(), to: 14 };
        let outcome = play(&stage, &change, Fill::Seats);
        let moved: Vec<f64> = outcome.groups.iter().map(|(_, movement)| movement.moved).collect();
        assert_eq!((moved[1], moved[2], moved[0]), (0.0, 0.0, outcome.total.unavoidable));
        assert_eq!(outcome.groups[0].1.before, outcome.groups[0].1.after);
    }

    #[test]
    fn shrinking_far_counts_the_compaction_too() {
        let change = Change::Scale { group: "stable".into(), to: 3 };
        let total = play(&stage(&[("stable", 1, 10)]), &change, Fill::Seats).total;
        assert!(total.moved >= total.unavoidable && near(total.unavoidable, 0.7), "{total:?}");
        assert!(total.moves > total.moved, "keys move again when seats are given up: {total:?}");
    }

    #[test]
    fn keys_that_nobody_serves_count_for_nobody() {
        let ends = |from, to| {
            let change = Change::Scale { group: "stable".into(), to };
            let outcome = play(&stage(&[("stable", 1, from)]), &change, Fill::Seats);
            assert_eq!(outcome.total, outcome.groups[0].1);
            assert!(outcome.total.moves.is_sign_positive(), "no part of the keys is -0");
            (outcome.total.before, outcome.total.after, outcome.total.moved)
        };
        assert_eq!(ends(2, 0), (1.0, 0.0, 1.0));
        assert_eq!(ends(0, 2), (0.0, 1.0, 0.0));
        assert_eq!(ends(0, 0), (0.0, 0.0, 0.0));
    }

    #[test]
    fn the_same_change_gives_the_same_outcome() {
        let stage = stage(&[("stable", 90, 7), ("canary", 10, 3)]);
        for fill in [Fill::Seats, Fill::Paper] {
            assert_eq!(play(&stage, &rollout(1, 0), fill), play(&stage, &rollout(1, 0), fill));
        }
    }
}
