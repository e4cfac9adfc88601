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

    /// The slot after `steps` steps.
    pub(super) fn at(self, steps: u32, size: u32) -> u32 {
        ((u64::from(self.offset) + u64::from(steps) * u64::from(self.skip)) % u64::from(size)) as u32
    }

    /// The walk read backwards.
    pub(super) fn steps(self, size: u32) -> Steps {
        let inverse = inverse(self.skip, size);
        let ratio = ((u64::from(inverse) << 32) / u64::from(size)) as u32;
        Steps { offset: self.offset, inverse, ratio, size }
    }

    /// The slots in order, `size` of them before they repeat; it never ends by itself.
    #[inline]
    pub(super) fn walk(self, size: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(self.offset), move |slot| Some(advance(*slot, self.skip, size)))
    }
}

/// A walk read backwards: how many steps from its offset to a given slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    pub(super) offset: u32,
    /// Inverse of the skip modulo `size`.
    pub(super) inverse: u32,
    /// `inverse / size` in units of 2^-32: multiplying by it finds the quotient without a division.
    pub(super) ratio: u32,
    pub(super) size: u32,
}

impl Steps {
    /// Steps to `slot`, below `size`. The quotient is at most one too small (Shoup), because slots are
    /// below 2^32.
    #[inline]
    pub(super) fn to(self, slot: u32) -> u32 {
        let distance = if slot >= self.offset { slot - self.offset } else { slot + self.size - self.offset };
        let quotient = ((u64::from(distance) * u64::from(self.ratio)) >> 32) as u32;
        let rest = distance.wrapping_mul(self.inverse).wrapping_sub(quotient.wrapping_mul(self.size));
        if rest >= self.size { rest - self.size } else { rest }
    }
}

/// The number that times `skip` is 1 modulo the prime `size` (extended Euclid).
fn inverse(skip: u32, size: u32) -> u32 {
    let (mut rest, mut next_rest) = (i64::from(size), i64::from(skip));
    let (mut factor, mut next_factor) = (0, 1);
    while next_rest != 0 {
        let quotient = rest / next_rest;
        (rest, next_rest) = (next_rest, rest - quotient * next_rest);
        (factor, next_factor) = (next_factor, factor - quotient * next_factor);
    }
    factor.rem_euclid(size.into()) as u32
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
    fn a_walk_meets_every_slot_once_and_knows_when() {
        for size in [2, 3, 251, 1021, 65_537] {
            for seat in 0..20 {
                for walk in [Permutation::of_seat(seat, 7, size), Permutation::of_slot(seat.into(), 7, size)]
                {
                    let steps = walk.steps(size);
                    let mut met = vec![false; size as usize];
                    for (step, slot) in (0..size).zip(walk.walk(size)) {
                        assert_eq!(
                            (steps.to(slot), walk.at(step, size)),
                            (step, slot),
                            "{walk:?} over {size}"
                        );
                        met[slot as usize] = true;
                    }
                    assert!(met.into_iter().all(|met| met), "{walk:?} over {size}");
                }
            }
        }
    }

    #[test]
    fn steps_are_exact_in_the_largest_table() {
        let size = super::super::prime::MAX_SIZE;
        for (offset, skip) in [(0, 1), (size - 1, size - 1), (1, size - 2), (9_999_999, 8_388_608)] {
            let walk = Permutation { offset, skip };
            for steps in (0..size).step_by(99_991).chain([size - 1]) {
                assert_eq!(walk.steps(size).to(walk.at(steps, size)), steps);
            }
        }
    }
}
