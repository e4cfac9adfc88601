//! Owns the order in which a slot looks for another seat, and the search by it. The order follows the
//! slots as they are when everybody is well, never who is live: so a second failure moves the
//! slots of the second seat and leaves the heirs of the first where they are.

use std::sync::Arc;

use super::super::hash;
use super::permutation::Permutation;
use super::{NOBODY, SeatLoad};

/// Slots of the table a slot asks in turn before it falls back to a list. With half of all seats without
/// room, one search in 2^64 gets there.
const PROBES: usize = 64;

/// What has room is looked for in the table if it owns one slot in this many or more: then all probes miss
/// it once in sixty searches at worst.
const RARE: u64 = 16;

/// The seats that take part in a table, ascending: those with a nominal weight.
pub(super) fn taking_part(loads: &[SeatLoad]) -> Arc<[u16]> {
    loads.iter().zip(0_u16..).filter(|(load, _)| load.nominal > 0).map(|(_, seat)| seat).collect()
}

/// Seats in the order a slot asks them, with repeats, in proportion to their shares.
#[inline]
pub(super) fn in_order(slots: &[u16], order: Permutation) -> impl Iterator<Item = u16> {
    let owners = order.walk(slots.len() as u32).take(PROBES).map(|slot| slots[slot as usize]);
    owners.filter(|seat| *seat != NOBODY)
}

/// The place in a list of `length` where a slot begins to ask.
pub(super) fn place(order: Permutation, length: usize) -> usize {
    let hash = hash::mix(u64::from(order.offset) << 32 | u64::from(order.skip), 1);
    ((u128::from(hash) * length as u128) >> 64) as usize
}

/// The seats that may take more slots, and how many.
pub(super) struct Heirs<'a> {
    taking_part: &'a [u16],
    /// The table in which slots look for owners.
    slots: &'a [u16],
    seed: u64,
    room: Vec<u32>,
    /// Slots of `slots` whose owners have room.
    reachable: u64,
    counts: &'a [u32],
    /// Who has room; made when the first search falls back to it.
    open: Option<Vec<u16>>,
}

impl<'a> Heirs<'a> {
    /// Seats may take `room` slots each; `counts` are their slots in `slots`.
    pub(super) fn new(
        taking_part: &'a [u16],
        slots: &'a [u16],
        seed: u64,
        counts: &'a [u32],
        room: Vec<u32>,
    ) -> Self {
        let with_room = room.iter().zip(counts).filter(|(room, _)| **room > 0);
        let reachable = with_room.map(|(_, count)| u64::from(*count)).sum();
        Self { taking_part, slots, seed, room, reachable, counts, open: None }
    }

    /// The seat that takes `slot`. `None` when nobody has room.
    pub(super) fn take(&mut self, slot: u32) -> Option<u16> {
        let order = Permutation::of_slot(slot, self.seed, self.slots.len() as u32);
        let asked = || in_order(self.slots, order).find(|seat| self.room[usize::from(*seat)] > 0);
        let by_table = self.reachable * RARE >= self.slots.len() as u64;
        let heir = by_table.then(asked).flatten().or_else(|| self.scan(order))?;
        let room = &mut self.room[usize::from(heir)];
        *room -= 1;
        if *room == 0 {
            self.reachable -= u64::from(self.counts[usize::from(heir)]);
        }
        Some(heir)
    }

    /// The first with room from a place of the list that the slot decides. Who is full leaves the list, so
    /// all scans together pass each seat once in vain.
    fn scan(&mut self, order: Permutation) -> Option<u16> {
        let has_room = |seat: &u16| self.room[usize::from(*seat)] > 0;
        let all = || self.taking_part.iter().copied().filter(has_room).collect();
        let open = self.open.get_or_insert_with(all);
        let mut at = place(order, open.len());
        while let Some(seat) = open.get(at).or(open.first()).copied() {
            if has_room(&seat) {
                return Some(seat);
            }
            at = if at < open.len() { at } else { 0 };
            open.swap_remove(at);
        }
        None
    }
}
