//! Owns the arithmetic of shares: how many of the table's slots a weight is worth. All in integers,
//! because replicas on different machines must agree to the last slot.

use std::cmp::Reverse;

/// Exact shares of `size` slots for weights that sum to `total`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    size: u64,
    total: u128,
    /// The total as a 64-bit number when no product overflows: division is then ten times as fast.
    small: Option<u64>,
}

/// What one weight is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Whole slots.
    pub(super) floor: u32,
    /// The rest in units of slot / total, below the total.
    pub(super) rest: u128,
}

impl Share {
    /// Slots when the rest counts as one.
    pub(super) fn ceil(self) -> u32 {
        self.floor + u32::from(self.rest > 0)
    }
}

impl Scale {
    /// Products stay below 2^63: sizes are below 2^24.
    const SMALL_TOTAL: u128 = 1 << 39;

    /// The scale of these weights.
    pub(super) fn new(size: u32, weights: impl Iterator<Item = u64>) -> Self {
        let total = weights.map(u128::from).sum();
        let small = u64::try_from(total).ok().filter(|_| total < Self::SMALL_TOTAL);
        Self { size: size.into(), total, small }
    }

    /// Whether there is anybody to share among.
    pub(super) fn is_empty(self) -> bool {
        self.total == 0
    }

    /// The share of one of the weights. The scale must not be empty.
    pub(super) fn share(self, weight: u64) -> Share {
        if let Some(total) = self.small {
            let product = self.size * weight;
            return Share { floor: (product / total) as u32, rest: (product % total).into() };
        }
        let product = u128::from(self.size) * u128::from(weight);
        Share { floor: (product / self.total) as u32, rest: product % self.total }
    }
}

/// Whole slots for each weight, `size` in all: every weight above zero gets at least one, and no seat is
/// a whole slot away from its exact share. Ties go to the lower seat, so equal weights get the quotas
/// of the base. Only where slots are so few that the tiny weights' single slots must be taken from
/// the others does the error of those grow, in proportion.
pub(super) fn largest_remainder(size: u32, weights: &[u64]) -> Vec<u32> {
    let scale = Scale::new(size, weights.iter().copied());
    let mut quotas = vec![0; weights.len()];
    if scale.is_empty() {
        return quotas;
    }
    let mut rests = Vec::with_capacity(weights.len());
    let mut given: u64 = 0;
    for (seat, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
        let share = scale.share(*weight);
        quotas[seat] = share.floor.max(1);
        given += u64::from(quotas[seat]);
        if share.floor > 0 {
            rests.push((Reverse(share.rest), seat));
        }
    }
    match u64::from(size).checked_sub(given) {
        Some(left) => round_up(&mut quotas, rests, left as usize),
        None => squeeze(size, weights, &mut quotas),
    }
    quotas
}

/// One more slot to the `left` seats with the largest rests. The rests sum to at least `left` slots.
fn round_up(quotas: &mut [u32], mut rests: Vec<(Reverse<u128>, usize)>, left: usize) {
    if left < rests.len() {
        rests.select_nth_unstable(left);
    }
    for (_, seat) in rests.into_iter().take(left) {
        quotas[seat] += 1;
    }
}

/// Single slots for the weights worth less, the remaining slots for the others in proportion. Taking
/// slots away makes further seats worth less than one, so it repeats until none is.
fn squeeze(size: u32, weights: &[u64], quotas: &mut [u32]) {
    let mut by_weight: Vec<(u64, Reverse<usize>)> =
        weights.iter().copied().zip((0..).map(Reverse)).filter(|(weight, _)| *weight > 0).collect();
    by_weight.sort_unstable();
    let crowd = by_weight.len().saturating_sub(size as usize);
    by_weight[..crowd].iter().for_each(|(_, seat)| quotas[seat.0] = 0);
    let mut large = &by_weight[crowd..];
    let mut left = size;
    loop {
        let scale = Scale::new(left, large.iter().map(|(weight, _)| *weight));
        let tiny = large.iter().take_while(|(weight, _)| scale.share(*weight).floor == 0).count();
        if tiny == 0 {
            break;
        }
        large[..tiny].iter().for_each(|(_, seat)| quotas[seat.0] = 1);
        left -= tiny as u32;
        large = &large[tiny..];
    }
    let mut given = 0;
    let scale = Scale::new(left, large.iter().map(|(weight, _)| *weight));
    let rests = large.iter().map(|(weight, seat)| {
        let share = scale.share(*weight);
        quotas[seat.0] = share.floor;
        given += share.floor;
        (Reverse(share.rest), seat.0)
    });
    let rests = rests.collect();
    round_up(quotas, rests, (left - given) as usize);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_weights_get_the_quotas_of_the_base() {
        assert_eq!(largest_remainder(11, &[5; 4]), [3, 3, 3, 2]);
        assert_eq!(largest_remainder(251, &[u64::MAX; 3]), [84, 84, 83]);
    }

    #[test]
    fn the_largest_rests_get_the_slots_left_over() {
        assert_eq!(largest_remainder(10, &[66, 26, 8]), [7, 2, 1]);
        assert_eq!(largest_remainder(65_537, &[99, 0, 1]), [64_882, 0, 655]);
    }

    #[test]
    fn nobody_gets_nothing() {
        assert_eq!(largest_remainder(11, &[]), Vec::<u32>::new());
        assert_eq!(largest_remainder(11, &[0, 0]), [0, 0]);
    }

    #[test]
    fn tiny_weights_own_a_slot_at_the_cost_of_the_large_ones() {
        assert_eq!(largest_remainder(11, &[1, 1, 1, 1_000_000, 1]), [1, 1, 1, 7, 1]);
        assert_eq!(largest_remainder(7, &[1, 1, 1, 3, 900, 4]), [1, 1, 1, 1, 2, 1]);
    }

    #[test]
    fn more_seats_than_slots_leave_the_lightest_and_latest_without() {
        assert_eq!(largest_remainder(3, &[1, 9, 1, 5, 1]), [1, 1, 0, 1, 0]);
    }

    proptest! {
        #[test]
        fn quotas_sum_to_the_size_and_every_weight_owns_a_slot(
            weights in prop::collection::vec(prop_oneof![0..3_u64, 0..1000_u64, any::<u64>()], 1..100),
            size in prop::sample::select(vec![127_u32, 251, 1021, 65_537]),
        ) {
            let quotas = largest_remainder(size, &weights);
            if weights.iter().any(|weight| *weight > 0) {
                prop_assert_eq!(quotas.iter().sum::<u32>(), size);
            }
            for (quota, weight) in quotas.iter().zip(&weights) {
                prop_assert_eq!(*quota > 0, *weight > 0);
            }
        }

        #[test]
        fn no_quota_is_a_slot_away_from_its_share(weights in prop::collection::vec(50..100_u64, 1..100)) {
            let scale = Scale::new(1021, weights.iter().copied());
            for (quota, weight) in largest_remainder(1021, &weights).into_iter().zip(&weights) {
                let share = scale.share(*weight);
                prop_assert!(quota == share.floor || quota == share.ceil(), "{quota} for {share:?}");
            }
        }
    }
}
