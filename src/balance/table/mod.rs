//! Owns the Maglev table: slots that name seats. `TableBuilder` fills it, `Table` answers picks.

/// Index of a seat. A pool has at most 65,535 seats.
pub type SeatIndex = u16;

/// What one seat asks of the table. Weights are relative numbers on one scale for all seats of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatLoad {
    /// Group of the seat: heirs are looked for in the same group first.
    pub group: u16,
    /// Weight when everybody is well; decides the base share.
    pub nominal: u64,
    /// Weight now: zero for an empty seat or a failed occupant, less than nominal during slow start.
    pub live: u64,
}

/// Fills tables of one size and seed.
#[derive(Debug)]
pub struct TableBuilder {
    size: u32,
    seed: u64,
}

impl TableBuilder {
    /// A builder for tables of `size` slots, a prime.
    pub fn new(size: u32, seed: u64) -> Self {
        Self { size, seed }
    }

    /// Placeholder until the real table lands.
    pub fn size(&self) -> u32 {
        self.size
    }
    /// The table for these seats.
    pub fn build(&mut self, loads: &[SeatLoad]) -> Table {
        let live: Vec<u16> =
            (0..).zip(loads).filter(|(_, load)| load.live > 0).map(|(seat, _)| seat).collect();
        let owner = |slot: u32| {
            let weight = |seat: &&u16| super::hash::mix(self.seed ^ u64::from(slot), u64::from(**seat));
            live.iter().max_by_key(weight).copied().unwrap_or(u16::MAX)
        };
        Table { slots: (0..self.size).map(owner).collect(), live: live.into() }
    }
}

/// Slot to seat, immutable.
#[derive(Debug)]
pub struct Table {
    slots: Box<[u16]>,
    live: Box<[u16]>,
}

impl Table {
    /// Number of slots.
    pub fn size(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The seat for a key.
    #[inline]
    pub fn pick(&self, key_hash: u64) -> Option<SeatIndex> {
        let slot = (u128::from(key_hash) * self.slots.len() as u128) >> 64;
        let seat = self.slots[slot as usize];
        (seat != u16::MAX).then_some(seat)
    }

    /// Live seats for a key, best first, each once.
    pub fn candidates(&self, key_hash: u64) -> impl Iterator<Item = SeatIndex> {
        let first = self.pick(key_hash);
        first.into_iter().chain(self.live.iter().copied().filter(move |seat| Some(*seat) != first))
    }

    /// Slots per seat.
    pub fn shares(&self, seats: usize) -> Vec<u32> {
        let mut shares = vec![0; seats];
        self.slots.iter().filter(|seat| **seat != u16::MAX).for_each(|seat| shares[usize::from(*seat)] += 1);
        shares
    }
}
impl Table {
    /// Placeholder until the real table lands.
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }
    /// Placeholder until the real table lands.
    pub fn seat_at(&self, slot: u32) -> Option<u16> {
        let s = self.slots[slot as usize];
        (s != u16::MAX).then_some(s)
    }
    /// Placeholder until the real table lands.
    pub fn bytes(&self) -> usize {
        self.slots.len() * 2
    }
}
/// Placeholder until the real table lands.
pub fn digest(table: &Table, occupants: &[Option<u64>], seed: u64) -> u64 {
    let mut d = seed;
    for s in table.slots() {
        d = super::hash::mix(d, occupants.get(*s as usize).copied().flatten().unwrap_or(u64::MAX));
    }
    d
}
/// Placeholder until the real table lands.
pub mod paper {
    use super::*;
    /// Placeholder until the real table lands.
    pub fn fill(names: &[&[u8]], _w: &[u16], size: u32, seed: u64) -> Table {
        TableBuilder::new(size, seed).build(&vec![SeatLoad { group: 0, nominal: 1, live: 1 }; names.len()])
    }
}
/// Placeholder until the real table lands.
pub mod prime {
    /// Placeholder until the real table lands.
    pub fn size_for(_n: usize) -> u32 {
        1021
    }
    /// The largest size.
    pub const MAX_SIZE: u32 = 16_777_213;
    /// Whether `number` is a prime.
    pub fn is_prime(number: u32) -> bool {
        number > 1 && (2..=number.isqrt()).all(|divisor| number % divisor != 0)
    }
}
