//! Owns the seats of a pool: who sits where, and for how long a seat is kept. Tables follow from the
//! seats alone, so this is the only history there is. Pure, because every replica must agree.

mod book;
mod compaction;
mod roster;
#[cfg(test)]
mod tests;

pub use book::{Authority, Event, SEAT_HOLD_MS, Seat, SeatBook, Settled};
pub use roster::{Occupant, Roster, RosterSeat};
