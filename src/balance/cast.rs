//! Owns who plays now: of a pool's members those that answer, and the seats they answer for. Those are the ready ones on
//! their seats; where there is none of them, everybody who serves at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::assignment::GroupLoad;
use super::backend::{BackendId, Member, State};
use super::hash;
use super::pool::Pool;
use super::seats::Seat;
use super::table::{self, MAX_SEATS, SeatLoad};

/// Keeps the order in which a stand-in looks for a seat apart from all else that is made of its id.
const STAND_IN_SEED: u64 = 0x7374_616e_642d_696e;

/// Who plays now.
pub(super) struct Cast<'a> {
    /// By seat: who answers for it. Behind the last seat come those that found none.
    pub(super) occupants: Vec<Option<&'a Member>>,
    /// The groups in the order in which they came to their first seat, which neither a new group nor the
    /// order of the specification changes.
    pub(super) groups: Vec<CastGroup>,
}

/// One group of the cast.
pub(super) struct CastGroup {
    /// Its seats, ascending.
    pub(super) seats: Vec<usize>,
    pub(super) load: GroupLoad,
}

impl<'a> Cast<'a> {
    pub(super) fn new(pool: &Pool, members: &'a [Member], seats: &[Seat]) -> Self {
        let weights: HashMap<&str, u16> = pool.groups.iter().map(|it| (&*it.name, it.weight)).collect();
        let weight = |group: &str| weights.get(group).copied().unwrap_or(0);
        let eligible = members.iter().filter(|it| weight(&it.backend.group) > 0);
        let by_id: HashMap<&BackendId, &Member> = eligible.clone().map(|it| (&it.backend.id, it)).collect();
        let last_on = |seat: &Seat| {
            let last = by_id.get(&seat.occupant.as_ref()?.id).copied();
            last.filter(|it| it.backend.group == seat.group)
        };
        let ready_on = |seat: &Seat| last_on(seat).filter(|it| !seat.is_vacant() && it.state == State::Ready);
        let mut cast = Self { occupants: seats.iter().map(ready_on).collect(), groups: Vec::new() };
        for (index, seat) in seats.iter().enumerate() {
            cast.group(&seat.group, weight).seats.push(index);
        }
        if cast.occupants.iter().all(Option::is_none) {
            let mut stand_ins = StandIns::among(eligible);
            stand_ins.return_to(&mut cast.occupants, seats.iter().map(last_on));
            stand_ins.join(&mut cast, weight);
        }
        let Self { occupants, groups } = &mut cast;
        groups.iter_mut().for_each(|group| group.weigh(seats, occupants));
        cast
    }

    /// The group of this name; a new one comes last.
    fn group(&mut self, name: &Arc<str>, weight: impl Fn(&str) -> u16) -> &mut CastGroup {
        let known = self.groups.iter().position(|group| group.load.name == *name);
        let index = known.unwrap_or(self.groups.len());
        if known.is_none() {
            let load = GroupLoad { name: name.clone(), weight: weight(name).into(), seats: Vec::new() };
            self.groups.push(CastGroup { seats: Vec::new(), load });
        }
        &mut self.groups[index]
    }

    /// A seat of the member's group for which nobody answers: the first in an order that its id decides.
    fn free_seat_for(&self, member: &Member) -> Option<usize> {
        let backend = &member.backend;
        let group = self.groups.iter().find(|group| group.load.name == backend.group)?;
        let hash = hash::stable(backend.id.as_str().as_bytes(), STAND_IN_SEED);
        let mut seats = table::shuffled(hash, group.seats.len()).map(|place| group.seats[place]);
        seats.find(|seat| self.occupants[*seat].is_none())
    }
}

impl CastGroup {
    fn weigh(&mut self, seats: &[Seat], occupants: &[Option<&Member>]) {
        let load = |index: &usize| {
            let live = occupants[*index].map_or(0, |it| it.weight.get());
            let nominal = seats.get(*index).map_or(live, |seat| seat.weight);
            SeatLoad { nominal: nominal.into(), live: live.into() }
        };
        self.load.seats = self.seats.iter().map(load).collect();
    }

    /// Who serves, and what part of the keys each is worth, on one scale for all groups.
    pub(super) fn shares<'a>(&self, occupants: &[Option<&'a Member>]) -> Vec<(&'a Member, u128)> {
        const SCALE: u128 = 1 << 64;
        let live: u128 = self.load.seats.iter().map(|seat| u128::from(seat.live)).sum();
        let share = |live_weight: u64| {
            (SCALE * u128::from(self.load.weight) * u128::from(live_weight)).checked_div(live).unwrap_or(0)
        };
        let loads = self.seats.iter().zip(&self.load.seats);
        loads.filter_map(|(seat, load)| Some((occupants[*seat]?, share(load.live)))).collect()
    }
}

/// Who answers where nobody ready has a seat. Members and seats alone decide who and where, so all replicas agree.
struct StandIns<'a> {
    /// The oldest first.
    left: BTreeMap<(u64, &'a BackendId), &'a Member>,
    /// They wait for seats of their own; otherwise they are on their way out.
    are_ready: bool,
}

impl<'a> StandIns<'a> {
    /// The ready ones; without any, those on their way out that still answer.
    fn among(members: impl Iterator<Item = &'a Member> + Clone) -> Self {
        let in_state = |state: State| members.clone().filter(move |it| it.state == state);
        let ready: BTreeMap<_, _> = in_state(State::Ready).map(|it| (age_of(it), it)).collect();
        if !ready.is_empty() {
            return Self { left: ready, are_ready: true };
        }
        let serving = in_state(State::Terminating { serving: true });
        Self { left: serving.map(|it| (age_of(it), it)).collect(), are_ready: false }
    }

    /// Who was the last one on a seat answers for it again, and so keeps its keys.
    fn return_to(
        &mut self,
        occupants: &mut [Option<&'a Member>],
        last: impl Iterator<Item = Option<&'a Member>>,
    ) {
        for (occupant, last) in occupants.iter_mut().zip(last) {
            *occupant = last.filter(|it| self.left.remove(&age_of(it)).is_some());
        }
    }

    /// Who is on its way out and lost its seat takes one of its group for which nobody answers, the first in an order
    /// of its own, so that one of them that goes hardly moves the others. Who is ready stands behind the last seat,
    /// which is where it will sit.
    fn join(self, cast: &mut Cast<'a>, weight: impl Fn(&str) -> u16) {
        let mut full = BTreeSet::new();
        for member in self.left.into_values() {
            let (name, behind) = (&member.backend.group, cast.occupants.len());
            let stays_behind = full.contains(name) || self.are_ready && behind < MAX_SEATS;
            match (!stays_behind).then(|| cast.free_seat_for(member)).flatten() {
                Some(seat) => cast.occupants[seat] = Some(member),
                None if behind < MAX_SEATS => {
                    full.insert(name);
                    cast.group(name, &weight).seats.push(behind);
                    cast.occupants.push(Some(member));
                }
                None => {}
            }
        }
    }
}

/// By age, and among equals by id.
fn age_of(member: &Member) -> (u64, &BackendId) {
    (member.lineage.created_ms, &member.backend.id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::assembly::Assembly;
    use super::super::backend::{Backend, HttpVersion, Lineage, Weight};
    use super::super::key::KeySource;
    use super::super::pool::{Fill, Group, PoolId, Readiness, Timeouts};
    use super::super::seats::Authority;
    use super::super::snapshot::PoolSnapshot;
    use super::*;

    const SERVING: State = State::Terminating { serving: true };
    const SILENT: State = State::Terminating { serving: false };

    /// Of the groups `stable` and `canary`, with these weights.
    fn pool(stable: u16, canary: u16, fill: Fill) -> Arc<Pool> {
        let group = |name: &str, weight| Group { name: name.into(), weight, tls: None, introduction: None };
        Arc::new(Pool {
            id: PoolId::new("shop", "web"),
            created_ms: 0,
            listeners: Vec::new(),
            groups: vec![group("stable", stable), group("canary", canary)],
            table_size: Some(4_099),
            fill,
            hash_on: vec![KeySource::ClientIp],
            readiness: Readiness::Require,
            drain_timeout: Duration::ZERO,
            timeouts: Timeouts::default(),
            max_request_body: None,
            access_log: None,
        })
    }

    /// A pod of `group`; a later one has a larger number.
    fn pod(group: &str, revision: &str, number: u64, state: State) -> Member {
        let name = format!("{group}-{revision}-{number}");
        Member {
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
                created_ms: number,
            },
        }
    }

    fn in_state(members: &[Member], state: State) -> Vec<Member> {
        members.iter().map(|member| Member { state, ..member.clone() }).collect()
    }

    /// A pool on one replica.
    struct Replica {
        pool: Arc<Pool>,
        assembly: Assembly,
        now_ms: u64,
        authority: Authority,
    }

    impl Replica {
        fn of(pool: Arc<Pool>) -> Self {
            Self { pool, assembly: Assembly::default(), now_ms: 0, authority: Authority::Holder }
        }

        fn stable() -> Self {
            Self::of(pool(1, 1, Fill::Seats))
        }

        /// One that follows and knows what the holder tells.
        fn follower(&self) -> Self {
            let mut follower = Self { authority: Authority::Follower, ..Self::of(self.pool.clone()) };
            follower.assembly.adopt(&self.assembly.roster());
            follower
        }

        fn sees(&mut self, members: &[&[Member]]) -> Arc<PoolSnapshot> {
            self.now_ms += 1;
            let members = members.concat();
            self.assembly.assemble(&self.pool, &members, self.authority, self.now_ms).snapshot
        }
    }

    /// Who answers, and what part of the keys, by name.
    fn parts(snapshot: &PoolSnapshot) -> Vec<(String, f64)> {
        let serving = snapshot.members.iter().filter(|it| it.slots > 0);
        let part = |slots: u32| f64::from(slots) / f64::from(snapshot.table.size());
        serving.map(|it| (it.backend.name.to_string(), part(it.slots))).collect()
    }

    fn names(snapshot: &PoolSnapshot) -> Vec<String> {
        parts(snapshot).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_pod_on_its_way_out_answers_again_when_its_heir_fails() {
        for fill in [Fill::Seats, Fill::Paper] {
            let mut replica = Replica::of(pool(1, 1, fill));
            let old = |state| pod("stable", "v1", 1, state);
            let new = |state| pod("stable", "v2", 2, state);
            replica.sees(&[&[old(State::Ready)]]);
            let inherited = replica.sees(&[&[old(SERVING), new(State::Ready)]]);
            assert_eq!(names(&inherited), ["stable-v2-2"]);
            let failed = replica.sees(&[&[old(SERVING), new(State::NotReady)]]);
            assert_eq!(parts(&failed), [("stable-v1-1".into(), 1.0)]);
            assert_eq!(failed.members[0].seat, None);
            let back = replica.sees(&[&[old(SERVING), new(State::Ready)]]);
            assert_eq!(back.digest, inherited.digest);
        }
    }

    #[test]
    fn whoever_neither_is_ready_nor_serves_gets_nothing() {
        let members = [
            pod("stable", "v1", 1, State::NotReady),
            pod("stable", "v1", 2, SILENT),
            pod("canary", "v1", 3, SERVING),
        ];
        assert_eq!(names(&Replica::of(pool(1, 0, Fill::Seats)).sees(&[&members])), [""; 0]);
        assert_eq!(names(&Replica::of(pool(1, 1, Fill::Seats)).sees(&[&members])), ["canary-v1-3"]);
    }

    #[test]
    fn one_ready_pod_of_any_group_spares_those_on_their_way_out() {
        let mut replica = Replica::of(pool(90, 10, Fill::Seats));
        let canary: Vec<Member> = (0..3).map(|number| pod("canary", "v1", number, State::Ready)).collect();
        let stable = [pod("stable", "v1", 9, State::Ready)];
        replica.sees(&[&stable, &canary]);
        assert_eq!(names(&replica.sees(&[&stable, &in_state(&canary, SERVING)])), ["stable-v1-9"]);
    }

    #[test]
    fn groups_on_their_way_out_share_the_keys_as_ready_ones_do() {
        for fill in [Fill::Seats, Fill::Paper] {
            let mut replica = Replica::of(pool(90, 10, fill));
            let stable: Vec<Member> =
                (0..3).map(|number| pod("stable", "v1", number, State::Ready)).collect();
            let heirs: Vec<Member> = (5..8).map(|number| pod("stable", "v2", number, State::Ready)).collect();
            let canary = [pod("canary", "v1", 9, State::Ready)];
            replica.sees(&[&stable, &canary]);
            replica.sees(&[&in_state(&stable, SERVING), &heirs, &canary]);
            let (stable, heirs) = (in_state(&stable, SERVING), in_state(&heirs, State::NotReady));
            let parts = parts(&replica.sees(&[&stable, &heirs, &in_state(&canary, SERVING)]));
            let expected =
                [("canary-v1-9", 0.1), ("stable-v1-0", 0.3), ("stable-v1-1", 0.3), ("stable-v1-2", 0.3)];
            for ((name, part), expected) in parts.iter().zip(expected) {
                assert!(name == expected.0 && (part - expected.1).abs() < 0.02, "{fill:?}: {parts:?}");
            }
        }
    }

    /// Forty pods that are not ready, of which some inherited the seats of pods that are on their way out.
    fn rolled(heirs: usize) -> (Replica, Vec<Member>, Vec<Member>) {
        let old: Vec<Member> = (0..40).map(|number| pod("stable", "v1", number, State::Ready)).collect();
        let new: Vec<Member> =
            (40..40 + heirs as u64).map(|number| pod("stable", "v2", number, State::Ready)).collect();
        let (leaving, staying) = old.split_at(heirs);
        let leaving = in_state(leaving, SERVING);
        let mut replica = Replica::stable();
        replica.sees(&[&old]);
        replica.sees(&[&leaving, staying, &new]);
        (replica, leaving, in_state(&[staying, &new].concat(), State::NotReady))
    }

    #[test]
    fn a_stand_in_that_goes_moves_hardly_more_than_its_own_keys() {
        let (mut replica, leaving, others) = rolled(10);
        let (mut moved, mut least) = (0, 0);
        let mut before = replica.sees(&[&leaving, &others]);
        for gone in 1..8 {
            least +=
                before.members.iter().find(|it| it.backend.id == leaving[gone - 1].backend.id).unwrap().slots;
            let after = replica.sees(&[&leaving[gone..], &others]);
            assert_eq!(names(&after).len(), 10 - gone);
            moved += before.moved_slots(&after);
            before = after;
        }
        assert!(f64::from(moved) <= f64::from(least) * 1.2, "{moved} of {least}");
    }

    #[test]
    fn who_still_has_its_seat_keeps_its_keys_while_others_stand_in() {
        let (mut replica, leaving, mut others) = rolled(3);
        others[..37].iter_mut().for_each(|it| it.state = SERVING);
        let alone = replica.sees(&[&others]);
        let helped = replica.sees(&[&leaving, &others]);
        assert_eq!(names(&helped).len(), 40);
        for key in (0..10_000).map(|key| hash::mix(key, 1)) {
            let (was, is) = (&alone.pick(key).unwrap().id, &helped.pick(key).unwrap().id);
            assert!(was == is || leaving.iter().any(|it| it.backend.id == *is));
        }
    }

    #[test]
    fn more_stand_ins_than_seats_all_serve() {
        let serving: Vec<Member> = (0..7).map(|number| pod("stable", "v1", number, SERVING)).collect();
        let mut replica = Replica::stable();
        replica.sees(&[&[pod("stable", "v2", 9, State::Ready), pod("stable", "v2", 10, State::Ready)]]);
        let unready = [pod("stable", "v2", 9, State::NotReady), pod("stable", "v2", 10, State::NotReady)];
        assert_eq!(names(&replica.sees(&[&unready, &serving])).len(), 7);
        assert_eq!(names(&Replica::stable().sees(&[&serving])).len(), 7, "nobody ever had a seat");
    }

    #[test]
    fn replicas_choose_the_same_stand_ins_in_whatever_order_they_are_listed() {
        let (mut holder, leaving, others) = rolled(10);
        let mut follower = holder.follower();
        let there = holder.sees(&[&leaving, &others]);
        let reversed: Vec<Member> = others.iter().chain(&leaving).rev().cloned().collect();
        assert_eq!(follower.sees(&[&reversed]).digest, there.digest);
    }

    #[test]
    fn a_ready_pod_serves_before_the_holder_gave_it_a_seat_and_as_afterwards() {
        let unready = [pod("stable", "v1", 1, State::NotReady)];
        let mut holder = Replica::stable();
        holder.sees(&[&in_state(&unready, State::Ready)]);
        let mut follower = holder.follower();
        let ready: Vec<Member> = (2..5).map(|number| pod("stable", "v2", number, State::Ready)).collect();
        let serving = [pod("stable", "v1", 0, SERVING)];
        let early = follower.sees(&[&unready, &ready, &serving]);
        assert_eq!(names(&early), ["stable-v2-2", "stable-v2-3", "stable-v2-4"]);
        assert_eq!(early.members.iter().filter(|it| it.seat.is_some()).count(), 1);
        assert_eq!(holder.sees(&[&unready, &ready, &serving]).digest, early.digest);
    }
}
