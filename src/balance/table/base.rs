//! Owns the base table `T(N)`: seats join one by one, and each takes only what the others have too much.
//! So a join moves the least possible, shares differ by one slot at most, and `T(N)` depends on the
//! size, the seed and `N` alone, however long the history that led there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::NOBODY;
use super::permutation::{Permutation, advance};

/// Lists of claims keep lost slots until fewer than half of a list is still owned, and a few more so that
/// short lists are left alone.
const LOST_AT_LEAST: usize = 8;

/// The bases in use, so that tables of the same size, seed and number of seats share one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Bases {
    known: Arc<Mutex<Known>>,
}

/// By size, seed and number of seats.
type Known = BTreeMap<(u32, u64, usize), Weak<Base>>;

impl Bases {
    /// Makes `base` that of `seats`: one that is there already, or this one with seats added or taken.
    pub(super) fn resize(&self, base: &mut Arc<Base>, seats: usize) {
        if base.counts.len() == seats {
            return;
        }
        let key = (base.size, base.seed, seats);
        if let Some(known) = self.with(|known| known.get(&key).and_then(Weak::upgrade)) {
            *base = known;
            return;
        }
        // Cloned only while others use it as it is.
        Arc::make_mut(base).resize(seats);
        self.with(|known| {
            known.retain(|_, base| base.strong_count() > 0);
            known.insert(key, Arc::downgrade(base));
        });
    }

    /// No closure can leave the map half changed.
    fn with<T>(&self, use_it: impl FnOnce(&mut Known) -> T) -> T {
        use_it(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `T(N)` and, for every seat, its slots in the order of claim.
#[derive(Clone, Debug)]
pub(super) struct Base {
    size: u32,
    seed: u64,
    owners: Vec<u16>,
    counts: Vec<u32>,
    /// What each seat ever took, in order. A slot that was lost never comes back, so whether it is still
    /// owned can be read from `owners`, and nothing is done for each slot lost.
    claims: Vec<Vec<u32>>,
    /// What each seat has above its new quota while another one joins.
    surplus: Vec<u32>,
    /// Steps and slots of those the walk of a newcomer meets next. Empty between joins.
    nearest: Vec<(u32, u32)>,
    /// Slot to seat, for the tables that are no other than this one.
    shared: OnceLock<Arc<[u16]>>,
}

impl Base {
    /// `T(0)`: nobody owns anything.
    pub(super) fn new(size: u32, seed: u64) -> Self {
        Self {
            size,
            seed,
            owners: vec![NOBODY; size as usize],
            counts: Vec::new(),
            claims: Vec::new(),
            surplus: Vec::new(),
            nearest: Vec::new(),
            shared: OnceLock::new(),
        }
    }

    /// Slot to seat, to be kept.
    pub(super) fn shared(&self) -> Arc<[u16]> {
        self.shared.get_or_init(|| self.owners.as_slice().into()).clone()
    }

    /// Number of slots.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// The seed of all permutations.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Slot to seat.
    pub(super) fn owners(&self) -> &[u16] {
        &self.owners
    }

    /// Slots of each seat.
    pub(super) fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// The slots of `seat` from the newest claim to the oldest.
    pub(super) fn newest_first(&self, seat: usize) -> impl Iterator<Item = u32> {
        let is_kept = move |slot: &u32| usize::from(self.owners[*slot as usize]) == seat;
        self.claims[seat].iter().rev().copied().filter(is_kept)
    }

    /// Becomes `T(seats)`. Growing costs a join for each new seat; shrinking starts over, because pools
    /// give seats up only when they compact, and a log to undo joins would cost more than the table.
    fn resize(&mut self, seats: usize) {
        self.shared = OnceLock::new();
        if seats < self.counts.len() {
            *self = Self::new(self.size, self.seed);
        }
        let joins = seats - self.counts.len();
        (0..joins).for_each(|_| self.join());
        if joins > 1 {
            self.tidy();
        }
    }

    /// Forgets lost claims and gives back the room that lists have left. After a single join it would cost more than
    /// the join.
    fn tidy(&mut self) {
        for (seat, claims) in self.claims.iter_mut().enumerate() {
            claims.retain(|slot| usize::from(self.owners[*slot as usize]) == seat);
            claims.shrink_to_fit();
        }
    }

    /// One more seat. The quotas of the others only fall, so all they have above them is what it takes.
    fn join(&mut self) {
        let seat = self.counts.len() as u16;
        let (floor, longer) = (self.size / (u32::from(seat) + 1), self.size % (u32::from(seat) + 1));
        let quota = |seat: u32| floor + u32::from(seat < longer);
        self.surplus.clear();
        self.surplus.extend((0..).zip(&self.counts).map(|(other, count)| count - quota(other)));
        let wanted = quota(u32::from(seat));
        self.counts.push(0);
        self.claims.push(Vec::with_capacity(wanted as usize));
        self.surplus.push(0);
        self.claim(seat, wanted);
    }

    /// Walks the permutation of `seat` and takes `wanted` slots from seats with a surplus.
    fn claim(&mut self, seat: u16, wanted: u32) {
        let walk = Permutation::of_seat(seat, self.seed, self.size);
        let mut slot = walk.offset;
        let mut givers = self.surplus.iter().filter(|surplus| **surplus > 0).count() as u64;
        while self.counts[usize::from(seat)] < wanted {
            let owner = self.owners[slot as usize];
            if owner == NOBODY {
                self.take(slot, seat);
            } else if self.surplus[usize::from(owner)] > 0 {
                if self.is_far(givers) {
                    return self.claim_nearest(seat, walk);
                }
                self.surplus[usize::from(owner)] -= 1;
                givers -= u64::from(self.surplus[usize::from(owner)] == 0);
                self.take(slot, seat);
            }
            slot = advance(slot, walk.skip, self.size);
        }
    }

    /// Whether the walk to the slots of the last `givers` is longer than asking each of their slots how far
    /// along the walk it lies. The walk takes about `seats * ln(givers)` steps; as measured, a question
    /// with its share of the bookkeeping costs sixteen of them.
    fn is_far(&self, givers: u64) -> bool {
        let seats = self.counts.len() as u64;
        givers * 16 * u64::from(self.size) < seats * seats * u64::from(givers.ilog2() + 1)
    }

    /// Takes from every seat with a surplus the slots that the rest of the walk meets first, in the order
    /// of the walk: who gives which slot does not depend on the others.
    fn claim_nearest(&mut self, seat: u16, walk: Permutation) {
        let steps = walk.steps(self.size);
        let mut nearest = std::mem::take(&mut self.nearest);
        for (giver, surplus) in self.surplus.iter().map(|surplus| *surplus as usize).enumerate() {
            if surplus > 0 {
                let start = nearest.len();
                nearest.extend(self.newest_first(giver).map(|slot| (steps.to(slot), slot)));
                if surplus < nearest.len() - start {
                    nearest[start..].select_nth_unstable(surplus);
                }
                nearest.truncate(start + surplus);
            }
        }
        nearest.sort_unstable();
        nearest.drain(..).for_each(|(_, slot)| self.take(slot, seat));
        self.nearest = nearest;
    }

    fn take(&mut self, slot: u32, seat: u16) {
        let owner = usize::from(std::mem::replace(&mut self.owners[slot as usize], seat));
        self.claims[usize::from(seat)].push(slot);
        self.counts[usize::from(seat)] += 1;
        if let Some(count) = self.counts.get_mut(owner) {
            *count -= 1;
            let claims = &mut self.claims[owner];
            if claims.len() > 2 * *count as usize + LOST_AT_LEAST {
                claims.retain(|slot| usize::from(self.owners[*slot as usize]) == owner);
                claims.shrink_to(2 * claims.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(size: u32, seats: usize) -> Base {
        let mut base = Base::new(size, 7);
        base.resize(seats);
        base
    }

    #[test]
    fn every_join_moves_only_slots_to_the_newcomer() {
        let mut table = base(1021, 0);
        for seats in 1..=300_usize {
            let before = table.owners.clone();
            table.resize(seats);
            let newcomer = (seats - 1) as u16;
            let moved: Vec<u16> = before
                .iter()
                .zip(&table.owners)
                .filter(|(old, new)| old != new)
                .map(|(_, new)| *new)
                .collect();
            assert!(moved.iter().all(|owner| *owner == newcomer));
            assert_eq!(moved.len() as u32, table.counts[seats - 1]);
        }
    }

    #[test]
    fn shares_differ_by_one_slot_and_the_first_seats_have_the_longer_ones() {
        for seats in [1, 2, 9, 100, 1021, 1500] {
            let expected =
                (0..seats as u32).map(|seat| 1021 / seats as u32 + u32::from(seat < 1021 % seats as u32));
            assert_eq!(base(1021, seats).counts, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn claims_follow_the_permutation_of_the_seat() {
        let table = base(251, 9);
        for seat in 0..9 {
            let walk: Vec<u32> = Permutation::of_seat(seat, 7, 251).walk(251).take(251).collect();
            let claims: Vec<u32> = table.newest_first(usize::from(seat)).collect();
            let owned = walk.iter().rev().filter(|slot| table.owners[**slot as usize] == seat);
            assert!(claims.iter().eq(owned), "seat {seat}");
        }
    }

    #[test]
    fn a_base_takes_six_bytes_a_slot() {
        for seats in [2, 3, 50] {
            let table = base(65_537, seats);
            let claims: usize = table.claims.iter().map(|claims| claims.capacity() * size_of::<u32>()).sum();
            assert_eq!(claims + size_of_val(&*table.owners), 6 * 65_537, "{seats} seats");
        }
    }

    #[test]
    fn a_table_that_shrank_is_the_table_that_never_grew() {
        let mut table = base(1021, 50);
        table.resize(20);
        assert_eq!(table.owners, base(1021, 20).owners);
    }
}
