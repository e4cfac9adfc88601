//! Owns the base table `T(N)`: seats join one by one, and each takes only what the others have too much.
//! So a join moves the least possible, shares differ by one slot at most, and `T(N)` depends on the
//! size, the seed and `N` alone, however long the history that led there.

use super::NOBODY;
use super::permutation::{Permutation, advance};

/// Ends a list of claims.
const NONE: u32 = u32::MAX;

/// `T(N)` and, for every seat, its slots in the order of claim.
#[derive(Debug)]
pub(super) struct Base {
    size: u32,
    seed: u64,
    owners: Vec<u16>,
    counts: Vec<u32>,
    /// The newest claim of each seat; the lists below lead from there to its oldest.
    newest: Vec<u32>,
    older: Vec<u32>,
    newer: Vec<u32>,
    /// What each seat has above its new quota while another one joins.
    surplus: Vec<u32>,
}

impl Base {
    /// `T(0)`: nobody owns anything.
    pub(super) fn new(size: u32, seed: u64) -> Self {
        let slots = size as usize;
        Self {
            size,
            seed,
            owners: vec![NOBODY; slots],
            counts: Vec::new(),
            newest: Vec::new(),
            older: vec![NONE; slots],
            newer: vec![NONE; slots],
            surplus: Vec::new(),
        }
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
        let some = |slot: u32| (slot != NONE).then_some(slot);
        std::iter::successors(some(self.newest[seat]), move |slot| some(self.older[*slot as usize]))
    }

    /// Becomes `T(seats)`. Growing costs a join for each new seat; shrinking starts over, because pools
    /// give seats up only when they compact, and a log to undo joins would cost more than the table.
    pub(super) fn resize(&mut self, seats: usize) {
        if seats < self.counts.len() {
            *self = Self::new(self.size, self.seed);
        }
        while self.counts.len() < seats {
            self.join();
        }
    }

    /// One more seat. The quotas of the others only fall, so all they have above them is what it takes.
    fn join(&mut self) {
        let seat = self.counts.len() as u16;
        let (floor, longer) = (self.size / (u32::from(seat) + 1), self.size % (u32::from(seat) + 1));
        let quota = |seat: u32| floor + u32::from(seat < longer);
        self.surplus.clear();
        self.surplus.extend((0..).zip(&self.counts).map(|(other, count)| count - quota(other)));
        self.counts.push(0);
        self.newest.push(NONE);
        self.surplus.push(0);
        self.claim(seat, quota(u32::from(seat)));
    }

    /// Walks the permutation of `seat` and takes `wanted` slots from seats with a surplus.
    fn claim(&mut self, seat: u16, mut wanted: u32) {
        let Permutation { offset: mut slot, skip } = Permutation::of_seat(seat, self.seed, self.size);
        while wanted > 0 {
            let owner = self.owners[slot as usize];
            if owner == NOBODY {
                self.append(seat, slot);
                wanted -= 1;
            } else if self.surplus[usize::from(owner)] > 0 {
                self.surplus[usize::from(owner)] -= 1;
                self.unlink(owner, slot);
                self.append(seat, slot);
                wanted -= 1;
            }
            slot = advance(slot, skip, self.size);
        }
    }

    fn unlink(&mut self, owner: u16, slot: u32) {
        let (older, newer) = (self.older[slot as usize], self.newer[slot as usize]);
        if newer == NONE {
            self.newest[usize::from(owner)] = older;
        } else {
            self.older[newer as usize] = older;
        }
        if older != NONE {
            self.newer[older as usize] = newer;
        }
        self.counts[usize::from(owner)] -= 1;
    }

    fn append(&mut self, seat: u16, slot: u32) {
        let older = std::mem::replace(&mut self.newest[usize::from(seat)], slot);
        if older != NONE {
            self.newer[older as usize] = slot;
        }
        self.older[slot as usize] = older;
        self.newer[slot as usize] = NONE;
        self.owners[slot as usize] = seat;
        self.counts[usize::from(seat)] += 1;
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
    fn a_table_that_shrank_is_the_table_that_never_grew() {
        let mut table = base(1021, 50);
        table.resize(20);
        assert_eq!(table.owners, base(1021, 20).owners);
    }
}
