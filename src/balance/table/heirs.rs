//! Owns the order in which a slot looks for another seat, and the search by it. The order follows the
//! slots and groups as they are when everybody is well, never who is live: so a second failure moves the
//! slots of the second seat and leaves the heirs of the first where they are.

use super::super::hash;
use super::permutation::Permutation;
use super::{NOBODY, SeatLoad};

/// Slots of the table a slot asks in turn before it falls back to a list. With half of all seats without
/// room, one search in 2^64 gets there.
const PROBES: usize = 64;

/// Places of its group's list a slot asks in turn, for groups too small to be met in the table.
pub(super) const LIST_PROBES: u64 = 16;

/// A group, or what has room, is looked for in the table if it owns one slot in this many or more: then
/// all probes miss it once in sixty searches at worst.
const RARE: u64 = 16;

/// The seats by group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Roster {
    group_of: Box<[u16]>,
    /// Seats that take part, by group, ascending.
    seats: Box<[u16]>,
    groups: Box<[Group]>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Group {
    start: u32,
    end: u32,
    slots: u64,
    /// Whether its members are met often enough by asking the table.
    by_table: bool,
}

impl Roster {
    /// The roster of these seats, which own `counts` slots when everybody is well.
    pub(super) fn new(loads: &[SeatLoad], counts: &[u32]) -> Self {
        let taking_part = || loads.iter().zip(0_u16..).filter(|(load, _)| load.nominal > 0);
        let length = taking_part().map(|(load, _)| usize::from(load.group) + 1).max().unwrap_or(0);
        let mut groups = vec![Group::default(); length];
        for (load, seat) in taking_part() {
            let group = &mut groups[usize::from(load.group)];
            group.end += 1;
            group.slots += u64::from(counts[usize::from(seat)]);
        }
        let size: u64 = groups.iter().map(|group| group.slots).sum();
        let mut start = 0;
        for group in &mut groups {
            let length = std::mem::replace(&mut group.end, start);
            group.start = start;
            group.by_table = group.slots * RARE >= size;
            start += length;
        }
        let mut seats = vec![0; start as usize];
        for (load, seat) in taking_part() {
            let group = &mut groups[usize::from(load.group)];
            seats[group.end as usize] = seat;
            group.end += 1;
        }
        let group_of = loads.iter().map(|load| load.group).collect();
        Self { group_of, seats: seats.into(), groups: groups.into() }
    }

    /// The group of a seat.
    pub(super) fn group_of(&self, seat: u16) -> u16 {
        self.group_of[usize::from(seat)]
    }

    /// Whether all seats belong together, so that looking in the group first says nothing.
    pub(super) fn is_one_group(&self) -> bool {
        self.groups.iter().filter(|group| group.start < group.end).count() <= 1
    }

    /// The members of a group, ascending.
    pub(super) fn members(&self, group: u16) -> &[u16] {
        let Group { start, end, .. } = self.groups[usize::from(group)];
        &self.seats[start as usize..end as usize]
    }

    /// All seats that take part, by group.
    pub(super) fn seats(&self) -> &[u16] {
        &self.seats
    }

    /// Memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.group_of) + size_of_val(&*self.seats) + size_of_val(&*self.groups)
    }

    /// Seats of `group` in the order a slot asks them, with repeats: first those it meets in the table,
    /// which is in proportion to their shares, then those it meets in the list.
    #[inline]
    pub(super) fn in_group(
        &self,
        slots: &[u16],
        order: Permutation,
        group: u16,
    ) -> impl Iterator<Item = u16> {
        let probes = if self.groups[usize::from(group)].by_table { PROBES } else { 0 };
        let members = self.members(group);
        let listed = if members.is_empty() { 0 } else { LIST_PROBES };
        everywhere(slots, order)
            .take(probes)
            .filter(move |seat| self.group_of(*seat) == group)
            .chain((0..listed).map(move |turn| members[place(order, turn, members.len())]))
    }
}

/// Seats in the order a slot asks them, with repeats, in proportion to their shares.
#[inline]
pub(super) fn everywhere(slots: &[u16], order: Permutation) -> impl Iterator<Item = u16> {
    let owners = order.walk(slots.len() as u32).take(PROBES).map(|slot| slots[slot as usize]);
    owners.filter(|seat| *seat != NOBODY)
}

/// The place in a list of `length` a slot asks at its `turn`.
pub(super) fn place(order: Permutation, turn: u64, length: usize) -> usize {
    let hash = hash::mix(u64::from(order.offset) << 32 | u64::from(order.skip), turn + 1);
    ((u128::from(hash) * length as u128) >> 64) as usize
}

/// The seats that may take more slots, and how many.
pub(super) struct Heirs<'a> {
    roster: &'a Roster,
    /// The table in which slots look for owners.
    slots: &'a [u16],
    seed: u64,
    room: Vec<u32>,
    group_room: Vec<u64>,
    one_group: bool,
    /// Slots of `slots` whose owners have room.
    reachable: u64,
    counts: &'a [u32],
    /// What has room, by group and at the end over all; made when the first search falls back to it.
    open: Vec<Option<Vec<u16>>>,
}

impl<'a> Heirs<'a> {
    /// Seats may take `room` slots each; `counts` are their slots in `slots`.
    pub(super) fn new(
        roster: &'a Roster,
        slots: &'a [u16],
        seed: u64,
        counts: &'a [u32],
        room: Vec<u32>,
    ) -> Self {
        let mut group_room = vec![0; roster.groups.len()];
        let mut reachable = 0;
        for (seat, room) in room.iter().enumerate().filter(|(_, room)| **room > 0) {
            group_room[usize::from(roster.group_of[seat])] += u64::from(*room);
            reachable += u64::from(counts[seat]);
        }
        let open = vec![None; roster.groups.len() + 1];
        Self {
            roster,
            slots,
            seed,
            room,
            group_room,
            one_group: roster.is_one_group(),
            reachable,
            counts,
            open,
        }
    }

    /// The seat that takes `slot` from `owner`, of its group if that has room. `None` when nobody has.
    pub(super) fn take(&mut self, slot: u32, owner: u16) -> Option<u16> {
        let order = Permutation::of_slot(slot, self.seed, self.slots.len() as u32);
        let heir = self.relative(order, owner).or_else(|| self.anybody(order))?;
        let room = &mut self.room[usize::from(heir)];
        *room -= 1;
        if *room == 0 {
            self.reachable -= u64::from(self.counts[usize::from(heir)]);
        }
        self.group_room[usize::from(self.roster.group_of(heir))] -= 1;
        Some(heir)
    }

    fn relative(&mut self, order: Permutation, owner: u16) -> Option<u16> {
        if self.one_group || owner == NOBODY {
            return None;
        }
        let group = self.roster.group_of(owner);
        if self.group_room.get(usize::from(group)).is_none_or(|room| *room == 0) {
            return None;
        }
        let mut asked = self.roster.in_group(self.slots, order, group);
        asked.find(|seat| self.room[usize::from(*seat)] > 0).or_else(|| self.scan(order, Some(group)))
    }

    fn anybody(&mut self, order: Permutation) -> Option<u16> {
        let asked = || everywhere(self.slots, order).find(|seat| self.room[usize::from(*seat)] > 0);
        let by_table = self.reachable * RARE >= self.slots.len() as u64;
        by_table.then(asked).flatten().or_else(|| self.scan(order, None))
    }

    /// The first with room from a place of the list that the slot decides. Who is full leaves the list, so
    /// all scans together pass each seat once in vain.
    fn scan(&mut self, order: Permutation, group: Option<u16>) -> Option<u16> {
        let (members, index) = match group {
            Some(group) => (self.roster.members(group), usize::from(group)),
            None => (self.roster.seats(), self.roster.groups.len()),
        };
        let has_room = |seat: &u16| self.room[usize::from(*seat)] > 0;
        let open = self.open[index].get_or_insert_with(|| members.iter().copied().filter(has_room).collect());
        let mut at = place(order, LIST_PROBES, open.len());
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
