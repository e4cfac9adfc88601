//! Owns the one permutation everything here walks: `offset + j * skip mod size` (Maglev, NSDI'16,
//! section 3.4). A seat walks it over the slots it wants, a slot over the owners it might fall to.

use super::super::hash;

/// Keeps the walks of slots apart from those of seats under the same seed.
const SLOT_SALT: u64 = 0x7072_6566_6572_7265;

/// A walk that meets every slot of a prime-sized table once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permutation {
    pub(super) offset: u32,
    pub(super) skip: u32,
}

impl Permutation {
    /// The paper's recipe: `offset = h1 mod M`, `skip = h2 mod (M - 1) + 1`, the two hashes being the
    /// halves of one. `size` is a prime, so at least 2.
    #[inline]
    pub(super) fn from_hash(hash: u64, size: u32) -> Self {
        let (high, low) = ((hash >> 32) as u32, hash as u32);
        Self { offset: high % size, skip: low % (size - 1) + 1 }
    }

    /// The order in which a seat claims slots.
    pub(super) fn of_seat(seat: u16, seed: u64, size: u32) -> Self {
        Self::from_hash(hash::mix(seed, u64::from(seat)), size)
    }

    /// The order in which a slot looks for an owner. One multiplication in place of each division,
    /// because this one is made for every freed slot.
    #[inline]
    pub(super) fn of_slot(slot: u32, seed: u64, size: u32) -> Self {
        let hash = hash::mix(seed ^ SLOT_SALT, u64::from(slot));
        let scale = |half: u64, range: u32| ((half * u64::from(range)) >> 32) as u32;
        Self { offset: scale(hash >> 32, size), skip: scale(hash & 0xffff_ffff, size - 1) + 1 }
    }

    /// The slots in order, `size` of them before they repeat; it never ends by itself.
    #[inline]
    pub(super) fn walk(self, size: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(self.offset), move |slot| Some(advance(*slot, self.skip, size)))
    }
}

/// One step without a division: both numbers are below `size`, and `size` is below 2^31.
#[inline]
pub(super) fn advance(slot: u32, skip: u32, size: u32) -> u32 {
    let next = slot + skip;
    if next >= size { next - size } else { next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_meets_every_slot_once() {
        for size in [2, 3, 251, 1021] {
            for seat in 0..20 {
                for walk in [Permutation::of_seat(seat, 7, size), Permutation::of_slot(seat.into(), 7, size)]
                {
                    let mut met: Vec<u32> = walk.walk(size).take(size as usize).collect();
                    met.sort_unstable();
                    assert!(met.into_iter().eq(0..size), "{walk:?} over {size}");
                }
            }
        }
    }
}
