//! Owns compaction: a pool that shrank for good gets fewer seats, and its slots move once for it.

use super::book::{Seat, SeatBook};

/// Holes younger than this may still be filled by a rollout or a returning backend.
const HOLE_SETTLED_MS: u64 = 60_000;

impl SeatBook {
    /// When more than half of the seats have been holes for a while, the occupants of the last seats
    /// move into the first holes and the seats behind them go. Fewer holes than that are cheaper to keep.
    /// Returns when the holes will be old enough.
    pub(super) fn compact(&mut self, now_ms: u64) -> Option<u64> {
        let holes = self.seats.iter().filter(|seat| seat.is_vacant()).count();
        if holes * 2 <= self.seats.len() {
            return None;
        }
        let youngest = self.seats.iter().filter_map(|seat| seat.vacated_ms).max().unwrap_or(0);
        let due = youngest + HOLE_SETTLED_MS;
        if now_ms < due {
            return Some(due);
        }
        let keep = self.seats.len() - holes;
        let movers: Vec<Seat> = self.seats.drain(keep..).filter(|seat| !seat.is_vacant()).collect();
        let vacancies = self.seats.iter_mut().filter(|seat| seat.is_vacant());
        vacancies.zip(movers).for_each(|(hole, mover)| *hole = mover);
        None
    }
}
