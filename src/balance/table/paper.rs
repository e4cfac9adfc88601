//! Owns `fill: Paper`: the table of the listing in the Maglev paper (NSDI'16, section 3.4), byte for byte.
//! Backends take turns, and each takes the next slot of its permutation that is still free. A window of
//! turns looks ahead together, because the branch at the end of each single search costs most of the time.

use super::heirs;
use super::kernel::{Kernel, POSITION, Window};
use super::permutation::{Permutation, Steps, advance};
use super::turns::Turns;
use super::{MAX_SEATS, NOBODY, SeatLoad, Table, prime};
use crate::balance::hash;

/// Below this many turns a window costs more than the branches it saves.
const NARROW: usize = 24;

/// The table for backends called `names`, in this order: sort them by stable id, because another order
/// is another table. Seat is position. The two hashes of the listing are the halves of the name's hash
/// under `seed`. Weights are frequencies of turns: after `r` rounds a weight `w` has had
/// `floor(r * w / w_max)` of them; a missing one is zero. A size that is no prime becomes the next one.
pub fn fill(names: &[&[u8]], weights: &[u16], size: u32, seed: u64) -> Table {
    fill_with(Kernel::detect(), names, weights, size, seed)
}

/// The same table by the inner loops of `kernel`.
pub fn fill_with(kernel: Kernel, names: &[&[u8]], weights: &[u16], size: u32, seed: u64) -> Table {
    let size = prime::at_least(size);
    let seats = names.len().min(weights.len()).min(MAX_SEATS);
    let (names, weights) = (&names[..seats], &weights[..seats]);
    let walk = |name: &&[u8]| Permutation::from_hash(hash::stable(name, seed), size);
    let walks: Vec<Permutation> = names.iter().map(walk).collect();
    let turns = Turns::new(weights, size);
    let slots = Filling::new(kernel, &walks, size).fill(&turns);
    let counts = turns.counts(seats, size);
    let loads: Vec<SeatLoad> = weights.iter().map(|weight| SeatLoad::well((*weight).into())).collect();
    Table::new(slots.into(), &counts, heirs::taking_part(&loads), seed)
}

/// A table while it fills.
struct Filling<'a> {
    kernel: Kernel,
    size: u32,
    walks: &'a [Permutation],
    /// Where each backend goes on looking.
    next: Vec<u32>,
    skips: Vec<u32>,
    slots: Vec<u16>,
    /// One bit a slot: this part of the table stays in the first-level cache.
    taken: Vec<u32>,
    free: u32,
    window: Box<Window>,
}

impl<'a> Filling<'a> {
    fn new(kernel: Kernel, walks: &'a [Permutation], size: u32) -> Self {
        let next = walks.iter().map(|walk| walk.offset).collect();
        let skips = walks.iter().map(|walk| walk.skip).collect();
        let slots = vec![NOBODY; size as usize];
        let taken = vec![0; size.div_ceil(32) as usize];
        Self { kernel, size, walks, next, skips, slots, taken, free: size, window: Box::default() }
    }

    fn fill(mut self, turns: &Turns) -> Vec<u16> {
        let tail = self.kernel.tail(self.size);
        let lanes = self.kernel.lanes();
        let mut rounds = turns.rounds().flat_map(|round| round.chunks(lanes));
        while self.free > tail {
            let Some(turns) = rounds.next() else { return self.slots };
            let turns = &turns[..turns.len().min(self.free as usize)];
            if turns.len() < NARROW {
                turns.iter().for_each(|seat| self.step(*seat));
            } else {
                self.look_ahead(turns);
            }
            self.free -= turns.len() as u32;
        }
        self.finish(rounds.flatten().copied())
    }

    /// Every backend of the window looks for the slot it would take if it were alone. Those who find the
    /// same one take it in the order of their turns, and the later ones go on looking: what was taken
    /// stays taken, so this is what turn after turn would have given.
    fn look_ahead(&mut self, turns: &[u16]) {
        self.load(turns);
        self.kernel.settle(&mut self.window, turns.len(), &self.taken, self.size);
        let (taken, slots) = (self.taken.as_mut_slice(), self.slots.as_mut_slice());
        for (seat, found) in turns.iter().zip(&self.window.found) {
            let skip = self.skips[usize::from(*seat)];
            let slot = claim(taken, *found, skip, self.size);
            slots[slot as usize] = *seat;
            self.next[usize::from(*seat)] = advance(slot, skip, self.size);
        }
    }

    fn load(&mut self, turns: &[u16]) {
        let Window { cursors, skips, .. } = &mut *self.window;
        let (first, last) = (usize::from(turns[0]), usize::from(turns[turns.len() - 1]));
        if last - first + 1 == turns.len() {
            // A run of neighbours, as always with equal weights: copied whole.
            cursors[..turns.len()].copy_from_slice(&self.next[first..=last]);
            skips[..turns.len()].copy_from_slice(&self.skips[first..=last]);
        } else {
            for (lane, seat) in turns.iter().enumerate() {
                cursors[lane] = self.next[usize::from(*seat)];
                skips[lane] = self.skips[usize::from(*seat)];
            }
        }
        (0..).zip(&mut cursors[..turns.len()]).for_each(|(lane, cursor)| *cursor |= lane << POSITION);
    }

    /// One turn by itself.
    fn step(&mut self, seat: u16) {
        let skip = self.skips[usize::from(seat)];
        let slot = claim(&mut self.taken, self.next[usize::from(seat)], skip, self.size);
        self.slots[slot as usize] = seat;
        self.next[usize::from(seat)] = advance(slot, skip, self.size);
    }

    /// The last slots are found from the other end: a walk would step over a table that is almost full,
    /// so every slot still free is asked how far along the walk it lies. While they are free, the slots
    /// hold their own place in the list of free ones.
    fn finish(mut self, turns: impl Iterator<Item = u16>) -> Vec<u16> {
        let mut open = self.free_slots();
        (0..).zip(&open).for_each(|(at, slot)| self.slots[*slot as usize] = at);
        let mut steps: Vec<Option<Steps>> = vec![None; self.walks.len()];
        for seat in turns.take(open.len()) {
            let walk = self.walks[usize::from(seat)];
            let steps = *steps[usize::from(seat)].get_or_insert_with(|| walk.steps(self.size));
            let slot = walk.at(self.kernel.nearest(steps, &open), self.size);
            let at = std::mem::replace(&mut self.slots[slot as usize], seat);
            open.swap_remove(usize::from(at));
            if let Some(moved) = open.get(usize::from(at)) {
                self.slots[*moved as usize] = at;
            }
        }
        open.iter().for_each(|slot| self.slots[*slot as usize] = NOBODY);
        self.slots
    }

    fn free_slots(&self) -> Vec<u32> {
        let mut open = Vec::with_capacity(self.free as usize + 32);
        for (word, taken) in (0..).zip(&self.taken) {
            let mut free = !taken;
            while free != 0 {
                open.push(word * 32 + free.trailing_zeros());
                free &= free - 1;
            }
        }
        // The last word has bits behind the end of the table.
        open.truncate(self.free as usize);
        open
    }
}

/// Takes the first free slot of a walk from `slot` on.
#[inline]
fn claim(taken: &mut [u32], mut slot: u32, skip: u32, size: u32) -> u32 {
    loop {
        let word = &mut taken[slot as usize / 32];
        if *word >> (slot % 32) & 1 == 0 {
            *word |= 1 << (slot % 32);
            return slot;
        }
        slot = advance(slot, skip, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The listing as printed: a permutation matrix, `next` and `entry`, with turns skipped by weight.
    fn listing(names: &[&[u8]], weights: &[u16], size: u32, seed: u64) -> Vec<u16> {
        let m = u64::from(size);
        let permutation: Vec<Vec<u64>> = names
            .iter()
            .map(|name| {
                let hash = hash::stable(name, seed);
                let (offset, skip) = ((hash >> 32) % m, (hash & 0xffff_ffff) % (m - 1) + 1);
                (0..m).map(|j| (offset + j * skip) % m).collect()
            })
            .collect();
        let most = u64::from(*weights.iter().max().unwrap());
        let mut next = vec![0; names.len()];
        let mut entry = vec![u16::MAX; size as usize];
        let mut filled = 0;
        for round in 1_u64.. {
            for i in 0..names.len() {
                let turns = |round: u64| round * u64::from(weights[i]) / most;
                if turns(round) == turns(round - 1) {
                    continue;
                }
                let mut c = permutation[i][next[i]] as usize;
                while entry[c] != u16::MAX {
                    next[i] += 1;
                    c = permutation[i][next[i]] as usize;
                }
                entry[c] = i as u16;
                next[i] += 1;
                filled += 1;
                if filled == size {
                    return entry;
                }
            }
        }
        entry
    }

    fn check(weights: &[u16], size: u32, seed: u64) {
        let names: Vec<String> = (0..weights.len()).map(|index| format!("10.0.0.{index}:8080")).collect();
        let names: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
        let listing = listing(&names, weights, size, seed);
        for kernel in [Kernel::Portable, Kernel::detect()] {
            let table = fill_with(kernel, &names, weights, size, seed);
            assert_eq!(table.slots(), listing, "{weights:?} over {size} by {kernel:?}");
            assert!(
                table.live.iter().zip(table.shares(weights.len())).all(|(live, share)| *live == (share > 0))
            );
        }
    }

    #[test]
    fn equal_weights_give_the_table_of_the_listing() {
        for (seats, size) in
            [(1, 251), (2, 2), (3, 7), (10, 1021), (100, 1021), (300, 1021), (300, 251), (70, 4093)]
        {
            for seed in 0..4 {
                check(&vec![2; seats], size, seed);
            }
        }
    }

    #[test]
    fn weights_give_the_table_of_the_listing_with_turns_skipped() {
        check(&[1, 2, 3], 1021, 7);
        check(&[100, 1, 0, 100, 99, 7], 1021, 7);
        check(&(1..=200).collect::<Vec<u16>>(), 4093, 7);
    }

    #[test]
    fn nobody_gets_nothing() {
        assert_eq!(fill(&[], &[], 251, 7).pick(9), None);
        assert_eq!(fill(&[b"a"], &[0], 251, 7).pick(9), None);
    }
}
