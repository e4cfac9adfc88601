//! Owns the order of turns in the paper's listing. The paper lets weights "alter the relative frequency of
//! turns" and no more; here, after `r` rounds a weight `w` has had `floor(r * w / w_max)` turns.

/// Turns in rounds; within a round each backend has one turn at most, in the order given.
pub(super) struct Turns {
    order: Vec<u16>,
    /// Where each round ends in `order`. Empty when all rounds are alike.
    ends: Vec<u32>,
}

impl Turns {
    /// Turns for `weights`, at least `wanted` of them in all. A weight of zero has none.
    pub(super) fn new(weights: &[u16], wanted: u32) -> Self {
        let most = weights.iter().copied().max().unwrap_or(0);
        let taking_part = || weights.iter().zip(0_u16..).filter(|(weight, _)| **weight > 0);
        if taking_part().all(|(weight, _)| *weight == most) {
            return Self { order: taking_part().map(|(_, index)| index).collect(), ends: Vec::new() };
        }
        let had = |rounds: u32, weight: u16| u64::from(rounds) * u64::from(weight) / u64::from(most);
        let enough =
            |rounds| taking_part().map(|(weight, _)| had(rounds, *weight)).sum::<u64>() >= wanted.into();
        let rounds = first(wanted, enough);
        let round_of = |turn: u64, weight: u16| (turn * u64::from(most)).div_ceil(weight.into()) as usize - 1;
        let mut ends = vec![0_u32; rounds as usize + 1];
        for (weight, _) in taking_part() {
            (1..=had(rounds, *weight)).for_each(|turn| ends[round_of(turn, *weight) + 1] += 1);
        }
        (1..ends.len()).for_each(|round| ends[round] += ends[round - 1]);
        let mut order = vec![0; ends[rounds as usize] as usize];
        for (weight, index) in taking_part() {
            for turn in 1..=had(rounds, *weight) {
                let end = &mut ends[round_of(turn, *weight)];
                order[*end as usize] = index;
                *end += 1;
            }
        }
        ends.truncate(rounds as usize);
        Self { order, ends }
    }

    /// Turns each of `backends` has among the first `wanted`.
    pub(super) fn counts(&self, backends: usize, wanted: u32) -> Vec<u32> {
        let mut counts = vec![0; backends];
        if !self.ends.is_empty() {
            self.order.iter().take(wanted as usize).for_each(|index| counts[usize::from(*index)] += 1);
            return counts;
        }
        let alike = self.order.len().max(1) as u32;
        for (place, index) in (0..).zip(&self.order) {
            counts[usize::from(*index)] = wanted / alike + u32::from(place < wanted % alike);
        }
        counts
    }

    /// The rounds, none of them without a turn. Without end when all are alike.
    pub(super) fn rounds(&self) -> impl Iterator<Item = &[u16]> {
        let alike = if self.ends.is_empty() && !self.order.is_empty() { usize::MAX } else { 0 };
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let different = starts.zip(&self.ends).map(|(start, end)| &self.order[start as usize..*end as usize]);
        std::iter::repeat_n(self.order.as_slice(), alike).chain(different)
    }
}

/// The first number up to `last` for which `holds`, which from there on stays so.
fn first(last: u32, holds: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, last);
    while low < high {
        let middle = low.midpoint(high);
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(weights: &[u16], wanted: u32) -> Vec<Vec<u16>> {
        Turns::new(weights, wanted).rounds().take(9).map(<[u16]>::to_vec).collect()
    }

    #[test]
    fn equal_weights_take_turns_for_ever() {
        assert_eq!(rounds(&[3, 0, 3], 1), vec![vec![0, 2]; 9]);
    }

    #[test]
    fn a_third_of_the_weight_has_a_turn_in_every_third_round() {
        let third = [vec![0], vec![0], vec![0, 1]];
        assert_eq!(rounds(&[30, 10], 12), [third.clone(), third.clone(), third].concat());
        assert_eq!(rounds(&[3, 2, 0], 5), [vec![0], vec![0, 1], vec![0, 1]]);
    }

    #[test]
    fn counts_are_those_of_the_rounds() {
        for weights in [&[1, 0, 1, 1][..], &[3, 2, 0], &[1, 7, 100]] {
            let turns = Turns::new(weights, 50);
            let counts = turns.counts(weights.len(), 50);
            for (index, count) in (0..).zip(counts) {
                let had = turns.rounds().flatten().take(50).filter(|turn| **turn == index).count();
                assert_eq!(count as usize, had, "{weights:?}");
            }
        }
    }

    #[test]
    fn without_weight_there_is_no_turn() {
        assert_eq!(rounds(&[0, 0], 5), Vec::<Vec<u16>>::new());
        assert_eq!(rounds(&[], 5), Vec::<Vec<u16>>::new());
    }
}
