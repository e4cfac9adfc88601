//! Owns which place answers for a key: a table for each group, and one that splits the keys among the
//! groups. So a group that scales moves no key of another group, and a weight that shifts between groups
//! moves no key within one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::table::{self, Bases, NOBODY, SeatLoad, Table, TableBuilder, prime};

/// Index of a backend in a pool's snapshot: the seats of the first group, then those of the second …
pub type Place = u16;

/// The tables of one pool, immutable.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// Slot to group.
    split: Arc<Table>,
    groups: Box<[Part]>,
}

/// The table of one group.
#[derive(Clone, Debug)]
struct Part {
    /// Slot to seat within the group.
    table: Arc<Table>,
    /// Its first place.
    first: Place,
    seats: u16,
}

impl Assignment {
    /// Everything to the seats of one table.
    pub fn of_one(table: Arc<Table>, seats: u16) -> Self {
        let split = Kept::new(Bases::default(), SPLIT_SIZE_OF_ONE, 0).build(&[SeatLoad::well(1)]);
        Self { split, groups: Box::new([Part { table, first: 0, seats }]) }
    }

    /// The place for a key. `None` when nobody is live.
    #[inline]
    pub fn pick(&self, key_hash: u64) -> Option<Place> {
        let part = match &*self.groups {
            [only] => only,
            groups => &groups[usize::from(self.split.pick(split_hash(key_hash))?)],
        };
        Some(part.first + part.table.pick(key_hash)?)
    }

    /// Live places for a key, best first, each once: who has it, then those who would inherit it, the
    /// same group before others. Nothing is allocated until the second one is asked for.
    pub fn candidates(&self, key_hash: u64) -> impl Iterator<Item = Place> {
        let of_group = move |group: u16| {
            let part = &self.groups[usize::from(group)];
            part.table.candidates(key_hash).map(|seat| part.first + seat)
        };
        self.split.candidates(split_hash(key_hash)).flat_map(of_group)
    }

    /// Slots of the largest table of a group: the size in which shares and moves are told.
    pub fn size(&self) -> u32 {
        self.groups.iter().map(|part| part.table.size()).max().unwrap_or(0)
    }

    /// What each place has of all keys, in slots of `size`, rounded; at least 1 for whoever has any.
    pub fn shares(&self) -> Vec<u32> {
        let size = u64::from(self.size());
        let of_group = |(part, group_slots): (&Part, u32)| {
            let whole = u64::from(part.table.size()) * u64::from(self.split.size());
            let share = move |slots: u32| {
                let exact = u128::from(size) * u128::from(slots) * u128::from(group_slots);
                let rounded = ((2 * exact + u128::from(whole)) / u128::from(2 * whole)) as u32;
                rounded.max(u32::from(exact > 0))
            };
            part.table.shares(usize::from(part.seats)).into_iter().map(share)
        };
        self.groups.iter().zip(self.split.shares(self.groups.len())).flat_map(of_group).collect()
    }

    /// The part of all keys, 0 to 1, whose place here and place in `later` are not `same`.
    pub fn moved(&self, later: &Self, same: impl Fn(Place, Place) -> bool) -> f64 {
        let mut pairs: BTreeMap<(u16, u16), u64> = BTreeMap::new();
        let whole =
            self.split.compare(&later.split, |was, is, keys| *pairs.entry((was, is)).or_default() += keys);
        let moved = |((was, is), keys): ((u16, u16), u64)| {
            let part = match (self.groups.get(usize::from(was)), later.groups.get(usize::from(is))) {
                (None, None) => 0.0,
                (Some(was), Some(is)) => was.moved(is, &same),
                (Some(_), None) | (None, Some(_)) => 1.0,
            };
            part * keys as f64
        };
        pairs.into_iter().map(moved).sum::<f64>() / (whole.max(1)) as f64
    }

    /// A 64-bit hash over all tables, their sizes and seed, and who answers: `occupants` has the hash of
    /// the id of the backend at each place.
    pub fn digest(&self, occupants: &[Option<u64>], seed: u64) -> u64 {
        let split = match &*self.groups {
            [_] => seed,
            _ => table::digest(&self.split, &[], seed),
        };
        self.groups.iter().fold(split, |digest, part| {
            let first = usize::from(part.first).min(occupants.len());
            table::digest(&part.table, &occupants[first..], digest)
        })
    }

    /// Memory of all tables in bytes.
    pub fn bytes(&self) -> usize {
        self.split.bytes() + self.groups.iter().map(|part| part.table.bytes()).sum::<usize>()
    }
}

impl Part {
    fn moved(&self, later: &Self, same: impl Fn(Place, Place) -> bool) -> f64 {
        let mut moved = 0;
        let whole = self.table.compare(&later.table, |was, is, keys| {
            let stays = match (was, is) {
                (NOBODY, NOBODY) => true,
                (NOBODY, _) | (_, NOBODY) => false,
                (was, is) => same(self.first + was, later.first + is),
            };
            moved += if stays { 0 } else { keys };
        });
        moved as f64 / whole as f64
    }
}

/// The hash that decides the group. A table reads the upper bits, so the other half is as good as
/// another hash.
#[inline]
fn split_hash(key_hash: u64) -> u64 {
    key_hash.rotate_left(32)
}

/// One group has all keys, however few slots say so.
const SPLIT_SIZE_OF_ONE: u32 = 2;

/// What a group asks for.
#[derive(Clone, Debug)]
pub struct GroupLoad {
    /// Its name, by which its table is found again.
    pub name: Arc<str>,
    /// Its share of the keys, relative to the other groups.
    pub weight: u64,
    /// Its seats in order.
    pub seats: Vec<SeatLoad>,
}

/// Builds assignments, and keeps what the next one of the same pool can start from.
#[derive(Debug, Default)]
pub struct AssignmentBuilder {
    split: Option<Kept>,
    groups: BTreeMap<Arc<str>, Kept>,
    bases: Bases,
}

impl AssignmentBuilder {
    /// One that shares what its tables start from with the others of `bases`.
    pub fn sharing(bases: Bases) -> Self {
        Self { bases, ..Self::default() }
    }

    /// The assignment for these groups. `size` is that of every table, unless it has more seats than
    /// slots; chosen for each table when absent. What was built before only makes it faster.
    ///
    /// The order of the groups counts as that of seats does: a new one belongs at the end.
    pub fn build(&mut self, groups: &[GroupLoad], size: Option<u32>, seed: u64) -> Assignment {
        let size_for = |seats| size.filter(|size| *size as usize >= seats).unwrap_or(prime::size_for(seats));
        self.groups.retain(|name, _| groups.iter().any(|group| group.name == *name));
        let mut first = 0;
        let part = |group: &GroupLoad| {
            let size = size_for(group.seats.len());
            let kept = self
                .groups
                .entry(group.name.clone())
                .or_insert_with(|| Kept::new(self.bases.clone(), size, seed));
            let seats = group.seats.len() as u16;
            let part = Part { table: kept.of_size(size, seed).build(&group.seats), first, seats };
            first += seats;
            part
        };
        let parts = groups.iter().map(part).collect();
        let shares: Vec<SeatLoad> = groups.iter().map(GroupLoad::share).collect();
        let size = if groups.len() == 1 { SPLIT_SIZE_OF_ONE } else { size_for(groups.len()) };
        let split = self
            .split
            .get_or_insert_with(|| Kept::new(self.bases.clone(), size, seed))
            .of_size(size, seed)
            .build(&shares);
        Assignment { split, groups: parts }
    }
}

impl GroupLoad {
    /// A group keeps its share as long as one of its seats is live.
    fn share(&self) -> SeatLoad {
        let is_live = self.seats.iter().any(|seat| seat.nominal > 0 && seat.live > 0);
        SeatLoad { nominal: self.weight, live: if is_live { self.weight } else { 0 } }
    }
}

/// A table and its builder.
#[derive(Debug)]
struct Kept {
    bases: Bases,
    builder: TableBuilder,
    loads: Vec<SeatLoad>,
    table: Option<Arc<Table>>,
}

impl Kept {
    fn new(bases: Bases, size: u32, seed: u64) -> Self {
        Self {
            builder: TableBuilder::sharing(bases.clone(), size, seed),
            bases,
            loads: Vec::new(),
            table: None,
        }
    }

    fn of_size(&mut self, size: u32, seed: u64) -> &mut Self {
        if self.builder.size() != prime::at_least(size) {
            *self = Self::new(self.bases.clone(), size, seed);
        }
        self
    }

    /// The table for these seats; the very same one when nothing changed.
    fn build(&mut self, loads: &[SeatLoad]) -> Arc<Table> {
        match &self.table {
            Some(table) if self.loads == loads => table.clone(),
            _ => {
                self.loads = loads.to_vec();
                self.table.insert(Arc::new(self.builder.build(loads))).clone()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::hash;

    const SIZE: u32 = 4_099;

    fn group(name: &str, weight: u64, seats: usize) -> GroupLoad {
        GroupLoad { name: name.into(), weight, seats: vec![SeatLoad::well(1); seats] }
    }

    fn build(groups: &[GroupLoad]) -> Assignment {
        AssignmentBuilder::default().build(groups, Some(SIZE), 7)
    }

    fn canary(weight: u64, stable: usize, canary: usize) -> Vec<GroupLoad> {
        vec![group("stable", 100 - weight, stable), group("canary", weight, canary)]
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..20_000).map(|key| hash::mix(key, 1))
    }

    /// The group and the seat in it.
    fn seat_of(groups: &[GroupLoad], place: Place) -> (usize, usize) {
        let mut first = 0;
        for (index, group) in groups.iter().enumerate() {
            if usize::from(place) < first + group.seats.len() {
                return (index, usize::from(place) - first);
            }
            first += group.seats.len();
        }
        panic!("there is no place {place}")
    }

    /// Keys whose seat before `is_moved` another one than afterwards.
    fn moves(before: &[GroupLoad], after: &[GroupLoad]) -> Vec<((usize, usize), (usize, usize))> {
        let (was, is) = (build(before), build(after));
        let seats = keys()
            .map(|key| (seat_of(before, was.pick(key).unwrap()), seat_of(after, is.pick(key).unwrap())));
        seats.filter(|(was, is)| was != is).collect()
    }

    #[test]
    fn a_group_that_scales_moves_no_key_of_another() {
        for (before, after) in [((10, 4), (11, 4)), ((10, 4), (10, 5))] {
            let moved = moves(&canary(10, before.0, before.1), &canary(10, after.0, after.1));
            let newcomer = if after.0 > before.0 { (0, before.0) } else { (1, before.1) };
            assert!(!moved.is_empty());
            assert!(moved.iter().all(|(was, is)| was.0 == is.0 && *is == newcomer), "{newcomer:?}");
        }
    }

    #[test]
    fn a_shift_of_weights_moves_keys_to_the_group_that_gains_and_no_other() {
        let moved = moves(&canary(10, 10, 4), &canary(20, 10, 4));
        assert!(moved.iter().all(|(was, is)| (was.0, is.0) == (0, 1)));
        let (was, is) = (build(&canary(10, 10, 4)), build(&canary(20, 10, 4)));
        assert!((was.moved(&is, |was, is| was == is) - 0.1).abs() < 1.0 / f64::from(SIZE));
    }

    #[test]
    fn a_second_group_takes_its_share_and_moves_nothing_else() {
        let before = [group("stable", 1, 10)];
        let moved = moves(&before, &canary(10, 10, 3));
        assert!(moved.iter().all(|(was, is)| (was.0, is.0) == (0, 1)));
        assert!((moved.len() as f64 / 20_000.0 - 0.1).abs() < 0.01);
    }

    #[test]
    fn a_group_without_anybody_live_leaves_its_keys_to_the_others_until_it_is_back() {
        let well = canary(30, 4, 3);
        let mut down = well.clone();
        down[1].seats.iter_mut().for_each(|seat| seat.live = 0);
        let mut builder = AssignmentBuilder::default();
        let (before, during) = (builder.build(&well, Some(SIZE), 7), builder.build(&down, Some(SIZE), 7));
        for key in keys() {
            let (was, is) = (before.pick(key).unwrap(), during.pick(key).unwrap());
            assert!(is < 4 && (was >= 4 || was == is));
        }
        let after = builder.build(&well, Some(SIZE), 7);
        assert!(keys().all(|key| before.pick(key) == after.pick(key)));
        assert_eq!(before.digest(&[None; 7], 7), after.digest(&[None; 7], 7));
        assert_ne!(before.digest(&[None; 7], 7), during.digest(&[None; 7], 7));
    }

    #[test]
    fn candidates_name_each_place_once_and_the_own_group_first() {
        let groups = canary(50, 5, 3);
        let assignment = build(&groups);
        for key in keys().take(500) {
            let candidates: Vec<Place> = assignment.candidates(key).collect();
            assert_eq!(candidates.first().copied(), assignment.pick(key));
            let of_first = seat_of(&groups, candidates[0]).0;
            let own = candidates.iter().take_while(|place| seat_of(&groups, **place).0 == of_first).count();
            assert_eq!(own, groups[of_first].seats.len());
            let mut each = candidates;
            each.sort_unstable();
            assert_eq!(each, (0..8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn shares_are_those_of_the_weights() {
        let shares = build(&canary(10, 9, 2)).shares();
        for (place, share) in shares.iter().enumerate() {
            let exact = f64::from(SIZE) * if place < 9 { 0.9 / 9.0 } else { 0.1 / 2.0 };
            assert!((f64::from(*share) - exact).abs() <= 1.5, "place {place}: {share} for {exact}");
        }
        assert_eq!(build(&[group("stable", 1, 3)]).shares().iter().sum::<u32>(), SIZE);
        assert_eq!(build(&[group("a", 65_535, 2), group("b", 1, 40)]).shares()[41], 1);
    }

    #[test]
    fn keys_spread_over_a_group_as_over_the_pool() {
        let assignment = build(&canary(50, 1, 4));
        let mut hits = [0; 5];
        keys().for_each(|key| hits[usize::from(assignment.pick(key).unwrap())] += 1);
        for hit in &hits[1..] {
            assert!((2_500_i32 - hit).abs() < 250, "{hits:?}");
        }
    }

    #[test]
    fn pools_with_as_many_seats_share_their_slots_until_a_seat_fails() {
        let bases = Bases::default();
        let build =
            |groups: &[GroupLoad]| AssignmentBuilder::sharing(bases.clone()).build(groups, Some(SIZE), 7);
        let slots = |assignment: &Assignment| assignment.groups[0].table.slots().as_ptr();
        let (mut first, mut second) =
            (AssignmentBuilder::sharing(bases.clone()), AssignmentBuilder::sharing(bases.clone()));
        let well = [group("all", 1, 3)];
        let (one, other) = (first.build(&well, Some(SIZE), 7), second.build(&well, Some(SIZE), 7));
        assert_eq!(slots(&one), slots(&other));
        let mut grown = well.clone();
        grown[0].seats.push(SeatLoad::well(1));
        let (four, three) = (first.build(&grown, Some(SIZE), 7), build(&well));
        assert_eq!((slots(&one), four.groups[0].seats), (slots(&three), 4));
        let mut failed = well.clone();
        failed[0].seats[0].live = 0;
        let failed = second.build(&failed, Some(SIZE), 7);
        assert_ne!(slots(&failed), slots(&three));
        assert!(one.digest(&[None; 3], 7) == build(&well).digest(&[None; 3], 7));
    }

    #[test]
    fn what_did_not_change_is_not_built_again() {
        let mut builder = AssignmentBuilder::default();
        let before = builder.build(&canary(10, 4, 3), None, 7);
        let after = builder.build(&canary(20, 4, 2), None, 7);
        assert!(Arc::ptr_eq(&before.groups[0].table, &after.groups[0].table));
        assert!(!Arc::ptr_eq(&before.groups[1].table, &after.groups[1].table));
    }

    #[test]
    fn without_anybody_there_is_no_pick() {
        assert_eq!(build(&[]).pick(7), None);
        assert_eq!(build(&[group("stable", 1, 0)]).pick(7), None);
        assert_eq!(build(&[group("a", 1, 0), group("b", 1, 0)]).pick(7), None);
        assert_eq!(build(&[group("a", 0, 2), group("b", 1, 0)]).candidates(7).count(), 0);
    }
}
