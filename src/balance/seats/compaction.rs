//! Owns compaction: a group that shrank for good gets fewer seats, and its slots move once for it.

use std::collections::HashSet;
use std::sync::Arc;

use super::book::SeatBook;

/// Holes younger than this may still be filled by a rollout or a returning backend.
const HOLE_SETTLED_MS: u64 = 60_000;

impl SeatBook {
    /// When more than half of a group's seats have been holes for a while, the occupants of its last seats
    /// move into its first holes and the seats behind them go. Fewer holes than that are cheaper to keep.
    ///
    /// An empty group keeps one seat, and with it its place among the groups, until only empty ones
    /// follow or more than half of the groups are empty. Returns when the next holes will be old enough.
    pub(super) fn compact(&mut self, now_ms: u64) -> Option<u64> {
        let groups = self.groups();
        let wake_at_ms = groups.iter().filter_map(Group::due_ms).filter(|due| *due > now_ms).min();
        let given_up = |group: &&Group| group.is_empty() && group.is_due(now_ms);
        let at_the_end = groups.iter().rev().take_while(given_up).count();
        let most = groups.iter().filter(given_up).count() * 2 > groups.len();
        let mut gone: HashSet<usize> = HashSet::new();
        for (index, group) in groups.iter().enumerate().filter(|(_, group)| group.is_due(now_ms)) {
            let stays = !group.is_empty() || !(most || index >= groups.len() - at_the_end);
            let keep = group.occupied.max(usize::from(stays));
            self.move_up(&group.seats, keep);
            gone.extend(&group.seats[keep..]);
        }
        let mut index = 0..;
        self.seats.retain(|_| index.next().is_some_and(|index| !gone.contains(&index)));
        wake_at_ms
    }

    /// The groups in the order of their first seats.
    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (index, seat) in self.seats.iter().enumerate() {
            let known = groups.iter().position(|group| group.name == seat.group).unwrap_or_else(|| {
                groups.push(Group { name: seat.group.clone(), ..Group::default() });
                groups.len() - 1
            });
            let group = &mut groups[known];
            group.seats.push(index);
            group.occupied += usize::from(!seat.is_vacant());
            group.youngest_hole_ms = group.youngest_hole_ms.max(seat.vacated_ms.unwrap_or(0));
        }
        groups
    }

    /// Occupants of the seats after the first `keep` move into the holes before them.
    fn move_up(&mut self, seats: &[usize], keep: usize) {
        let (first, last) = seats.split_at(keep);
        let holes: Vec<usize> = first.iter().copied().filter(|seat| self.seats[*seat].is_vacant()).collect();
        let movers: Vec<usize> = last.iter().copied().filter(|seat| !self.seats[*seat].is_vacant()).collect();
        holes.into_iter().zip(movers).for_each(|(hole, mover)| self.seats.swap(hole, mover));
    }
}

/// The seats of one group.
#[derive(Default)]
struct Group {
    name: Arc<str>,
    seats: Vec<usize>,
    occupied: usize,
    youngest_hole_ms: u64,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// When it may be compacted, if it has enough holes for that.
    fn due_ms(&self) -> Option<u64> {
        (self.occupied * 2 < self.seats.len()).then_some(self.youngest_hole_ms + HOLE_SETTLED_MS)
    }

    fn is_due(&self, now_ms: u64) -> bool {
        self.due_ms().is_some_and(|due| due <= now_ms)
    }
}
