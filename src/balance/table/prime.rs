//! Owns the sizes of tables. A size is a prime, so that every permutation visits every slot, and at
//! least a hundred slots a seat, so that shares differ by at most one percent (Maglev, section 5.3).

/// The largest size: the last prime below 2^24. It gives 256 slots to each of 65,535 seats in 32 MiB.
pub const MAX_SIZE: u32 = 16_777_213;

/// The most slots that all groups of a pool may have together where its owner names the size. A pool of so many takes
/// some 200 MB with what its next table starts from, and as much again while groups share it out, so two such pools
/// fit the container's default limit of 1 GiB. Sizes that are chosen for a pool stay below it.
pub const MAX_POOL_SLOTS: u32 = 1 << 24;

/// Few sizes, each twice the one before, so that growth rarely changes the size: a new size is a new table.
const LADDER: [u32; 9] =
    [65_537, 131_071, 262_147, 524_309, 1_048_583, 2_097_169, 4_194_319, 8_388_617, MAX_SIZE];

/// Slots a seat needs so that one slot more or less is one percent.
pub const SLOTS_PER_SEAT: usize = 100;

/// The size chosen for a pool of `seats` when its owner names none.
pub fn size_for(seats: usize) -> u32 {
    let wanted = seats.saturating_mul(SLOTS_PER_SEAT);
    LADDER.into_iter().find(|size| *size as usize >= wanted).unwrap_or(MAX_SIZE)
}

/// Memory of a table of `size` slots in bytes, without the few bytes it keeps for each seat.
pub fn size_bytes(size: u32) -> usize {
    size as usize * size_of::<u16>()
}

/// Whether `number` is a prime.
pub fn is_prime(number: u32) -> bool {
    let odd = || (3..=number.isqrt()).step_by(2);
    number == 2 || (number > 2 && number % 2 == 1 && !odd().any(|divisor| number.is_multiple_of(divisor)))
}

/// The smallest prime that is not below `size`, `MAX_SIZE` at most.
pub(in crate::balance) fn at_least(size: u32) -> u32 {
    (size..MAX_SIZE).find(|size| is_prime(*size)).unwrap_or(MAX_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_of_the_ladder_is_a_prime() {
        assert!(LADDER.into_iter().all(is_prime));
    }

    #[test]
    fn primes_are_told_from_other_numbers() {
        let primes: Vec<u32> = (0..50).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47]);
        assert!(!is_prime(65_537 * 3));
        assert!(!is_prime(4_093 * 4_093));
    }

    #[test]
    fn the_size_is_the_first_of_the_ladder_with_a_hundred_slots_a_seat() {
        let sizes = [0, 1, 655, 656, 1_310, 1_311, 5_000, 65_535].map(size_for);
        assert_eq!(sizes, [65_537, 65_537, 65_537, 131_071, 131_071, 262_147, 524_309, 8_388_617]);
        assert_eq!(size_for(usize::MAX), MAX_SIZE);
    }

    #[test]
    fn a_size_that_is_no_prime_becomes_the_next_one() {
        assert_eq!([0, 2, 4, 65_536, u32::MAX].map(at_least), [2, 2, 5, 65_537, MAX_SIZE]);
    }
}
