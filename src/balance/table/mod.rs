//! Owns the Maglev table: slots that name seats. `TableBuilder` fills it, `Table` answers picks.
//! The table is a pure function of size, seed and loads; all history is in who sits where.

mod base;
mod digest;
mod heirs;
pub mod kernel;
#[cfg(target_arch = "x86_64")]
mod kernel_avx2;
mod live;
mod nominal;
pub mod paper;
mod permutation;
pub mod prime;
mod quota;
mod turns;

use std::fmt;
use std::sync::Arc;

pub use self::base::Bases;
pub use self::digest::digest;

use self::base::Base;
use self::nominal::Nominal;
use self::permutation::Permutation;

/// Index of a seat. A pool has at most 65,535 seats.
pub type SeatIndex = u16;

/// The most seats a table can name.
pub const MAX_SEATS: usize = NOBODY as usize;

/// Stands in a slot that nobody owns.
pub(super) const NOBODY: u16 = u16::MAX;

/// What one seat asks of the table. Weights are relative numbers on one scale for all seats of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeatLoad {
    /// Weight when everybody is well; decides the base share. A seat with none takes no part. An empty
    /// seat should keep the weight of its next occupant, so that filling it moves only its own slots.
    pub nominal: u64,
    /// Weight now: zero for an empty seat or a failed occupant, less than nominal during slow start.
    pub live: u64,
}

impl SeatLoad {
    /// A seat of this weight whose occupant is well.
    pub fn well(weight: u64) -> Self {
        Self { nominal: weight, live: weight }
    }
}

/// The numbers below `count`, each once, in an order that `hash` decides.
pub(super) fn shuffled(hash: u64, count: usize) -> impl Iterator<Item = usize> {
    let size = prime::at_least(count as u32);
    let walk = Permutation::from_hash(hash, size).walk(size).take(size as usize);
    walk.map(|number| number as usize).filter(move |number| *number < count)
}

/// Fills tables of one size and seed, and keeps what the next table of the same pool can start from.
#[derive(Debug)]
pub struct TableBuilder {
    base: Arc<Base>,
    bases: Bases,
    nominal: Nominal,
}

impl TableBuilder {
    /// A builder for tables of `size` slots, a prime; any other number becomes the next prime, because
    /// only then does every permutation meet every slot.
    pub fn new(size: u32, seed: u64) -> Self {
        Self::sharing(Bases::default(), size, seed)
    }

    /// The same, which shares what it starts from with the others of `bases`.
    pub fn sharing(bases: Bases, size: u32, seed: u64) -> Self {
        Self { base: Arc::new(Base::new(prime::at_least(size), seed)), bases, nominal: Nominal::new() }
    }

    /// Number of slots.
    pub fn size(&self) -> u32 {
        self.base.size()
    }

    /// The table for these seats, of which those after the first 65,535 are left out. What was built
    /// before only makes it faster.
    pub fn build(&mut self, loads: &[SeatLoad]) -> Table {
        let loads = &loads[..loads.len().min(MAX_SEATS)];
        self.nominal.update(&mut self.base, &self.bases, loads);
        let (slots, counts) = live::lay(&self.base, &self.nominal, loads);
        Table::new(slots, &counts, self.nominal.taking_part().clone(), self.base.seed())
    }
}

/// Slot to seat, immutable.
#[derive(Clone, PartialEq, Eq)]
pub struct Table {
    slots: Arc<[u16]>,
    /// Whether each seat owns a slot.
    live: Box<[bool]>,
    taking_part: Arc<[u16]>,
    seed: u64,
}

impl Table {
    fn new(slots: Arc<[u16]>, counts: &[u32], taking_part: Arc<[u16]>, seed: u64) -> Self {
        let live = counts.iter().map(|count| *count > 0).collect();
        Self { slots, live, taking_part, seed }
    }

    /// Number of slots.
    pub fn size(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The slot of a key: the hash's part of 2^64 as a part of the table (Lemire 2019, multiply-high in
    /// place of a division).
    #[inline]
    pub fn slot_of(&self, key_hash: u64) -> u32 {
        ((u128::from(key_hash) * self.slots.len() as u128) >> 64) as u32
    }

    /// The seat for a key. `None` when nobody is live.
    #[inline]
    pub fn pick(&self, key_hash: u64) -> Option<SeatIndex> {
        self.seat_at(self.slot_of(key_hash))
    }

    /// The seat of a slot. `None` when nobody is live, or past the end.
    #[inline]
    pub fn seat_at(&self, slot: u32) -> Option<SeatIndex> {
        self.slots.get(slot as usize).copied().filter(|seat| *seat != NOBODY)
    }

    /// Slot to seat, `u16::MAX` for nobody.
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }

    /// Slots of each of the first `seats` seats.
    pub fn shares(&self, seats: usize) -> Vec<u32> {
        shares(&self.slots, seats)
    }

    /// Slots whose keys go to another seat in `other`. For tables of different sizes: the moved part of
    /// all keys, in slots of this table, rounded to the nearest.
    pub fn moved_slots(&self, other: &Self) -> u32 {
        let mut moved = 0;
        let whole = self.compare(other, |here, there, keys| moved += if here == there { 0 } else { keys });
        ((2 * moved * u64::from(self.size()) + whole) / (2 * whole.max(1))) as u32
    }

    /// Tells for each stretch of the key space its seat here, its seat in `other` (`u16::MAX` for nobody)
    /// and its length. Returns the length of the whole key space.
    pub(super) fn compare(&self, other: &Self, mut tell: impl FnMut(u16, u16, u64)) -> u64 {
        let (mine, theirs) = (u64::from(self.size()), u64::from(other.size()));
        if mine == theirs {
            self.slots.iter().zip(&*other.slots).for_each(|(here, there)| tell(*here, *there, 1));
            return mine;
        }
        let (mut here, mut there, mut at) = (0, 0, 0);
        while here < mine && there < theirs {
            let (end_here, end_there) = ((here + 1) * theirs, (there + 1) * mine);
            let end = end_here.min(end_there);
            tell(self.slots[here as usize], other.slots[there as usize], end - at);
            here += u64::from(end == end_here);
            there += u64::from(end == end_there);
            at = end;
        }
        mine * theirs
    }

    /// Live seats for a key, best first, each once: the owner of its slot, then those who would inherit
    /// it. The heirs are exact while everybody is well; a slot they are looked up in may itself be
    /// inherited. Nothing is allocated until the second one is asked for.
    pub fn candidates(&self, key_hash: u64) -> impl Iterator<Item = SeatIndex> {
        let slot = self.slot_of(key_hash);
        let owner = self.seat_at(slot);
        owner.into_iter().chain(owner.into_iter().flat_map(move |owner| self.heirs(slot, owner)))
    }

    /// Live seats but the owner, in the order the slot asks them; those it never asks come last.
    fn heirs(&self, slot: u32, owner: u16) -> impl Iterator<Item = SeatIndex> {
        let order = Permutation::of_slot(slot, self.seed, self.size());
        let (before, after) = self.taking_part.split_at(heirs::place(order, self.taking_part.len()));
        let mut seen = vec![0_u64; self.live.len().div_ceil(64)];
        let mut is_new = move |seat: u16| {
            let (word, bit) = (usize::from(seat) / 64, 1 << (seat % 64));
            let new = seen[word] & bit == 0;
            seen[word] |= bit;
            new
        };
        is_new(owner);
        heirs::in_order(&self.slots, order)
            .chain(after.iter().chain(before).copied())
            .filter(move |seat| self.live[usize::from(*seat)] && is_new(*seat))
    }

    /// Memory of the table in bytes, of which equal tables share the slots.
    pub fn bytes(&self) -> usize {
        let seats = size_of_val(&*self.live) + size_of_val(&*self.taking_part);
        size_of::<Self>() + size_of_val(&*self.slots) + seats
    }
}

fn shares(slots: &[u16], seats: usize) -> Vec<u32> {
    let mut shares = vec![0; seats];
    for seat in slots {
        if let Some(share) = shares.get_mut(usize::from(*seat)) {
            *share += 1;
        }
    }
    shares
}

/// The slots would fill pages of a log.
impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.live.iter().filter(|live| **live).count();
        f.debug_struct("Table").field("size", &self.size()).field("live_seats", &live).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod laws;
