//! Owns `fill: Paper`: the table of the listing in the Maglev paper (NSDI'16, section 3.4), byte for byte.
//! Backends take turns, and each takes the next slot of its permutation that is still free.

use std::sync::Arc;

use super::heirs::Roster;
use super::permutation::{Permutation, advance};
use super::turns::Turns;
use super::{MAX_SEATS, NOBODY, SeatLoad, Table, prime, shares};
use crate::balance::hash;

/// The table for backends called `names`, in this order: sort them by stable id, because another order
/// is another table. Seat is position. The two hashes of the listing are the halves of the name's hash
/// under `seed`. Weights are frequencies of turns (`turns`); a missing one is zero. A size that is no
/// prime becomes the next one.
pub fn fill(names: &[&[u8]], weights: &[u16], size: u32, seed: u64) -> Table {
    let size = prime::at_least(size);
    let seats = names.len().min(weights.len()).min(MAX_SEATS);
    let (names, weights) = (&names[..seats], &weights[..seats]);
    let walks: Vec<Permutation> =
        names.iter().map(|name| Permutation::from_hash(hash::stable(name, seed), size)).collect();
    let slots = take_turns(&walks, &Turns::new(weights, size), size);
    let counts = shares(&slots, seats);
    let load = |weight: &u16| SeatLoad { group: 0, nominal: (*weight).into(), live: (*weight).into() };
    let loads: Vec<SeatLoad> = weights.iter().map(load).collect();
    Table::new(slots, &counts, Arc::new(Roster::new(&loads, &counts)), seed)
}

fn take_turns(walks: &[Permutation], turns: &Turns, size: u32) -> Vec<u16> {
    let mut slots = vec![NOBODY; size as usize];
    let mut next: Vec<u32> = walks.iter().map(|walk| walk.offset).collect();
    for seat in turns.rounds().flatten().take(size as usize) {
        let (next, skip) = (&mut next[usize::from(*seat)], walks[usize::from(*seat)].skip);
        while slots[*next as usize] != NOBODY {
            *next = advance(*next, skip, size);
        }
        slots[*next as usize] = *seat;
    }
    slots
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
        let table = fill(&names, weights, size, seed);
        assert_eq!(table.slots(), listing(&names, weights, size, seed), "{weights:?} over {size}");
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
