//! Owns the second overlay: the table as things are now. Quotas by live weight lie over the nominal table;
//! what failed gives up everything, what is slowed down its newest claims, and nobody else anything.

use std::sync::Arc;

use super::super::hash;
use super::base::Base;
use super::heirs::Heirs;
use super::nominal::Nominal;
use super::quota::{Scale, Share};
use super::{NOBODY, SeatLoad};

/// Heirs may go this part of their share above it: with exact quotas one refused slot pushes out the
/// next, and failures move a third more slots than they must.
const SLACK: u32 = 20;

/// A seat this many standard deviations below its share did not get there by the luck of inheriting: its
/// live weight rose above its nominal one.
const DEVIATIONS: u32 = 3;

/// Lays the live weights over the nominal table: the slots now, and how many each seat has. A seat without nominal
/// weight takes no part.
pub(super) fn lay(base: &Base, nominal: &Nominal, loads: &[SeatLoad]) -> (Arc<[u16]>, Vec<u32>) {
    let weight = |load: &SeatLoad| if load.nominal > 0 { load.live } else { 0 };
    let scale = Scale::new(base.size(), loads.iter().map(weight));
    if scale.is_empty() {
        return (vec![NOBODY; base.size() as usize].into(), vec![0; loads.len()]);
    }
    if nominal.is_base() && loads.iter().all(|load| load.live == load.nominal) {
        return (base.shared(), nominal.counts().to_vec());
    }
    let shares = shares(scale, loads.iter().map(weight));
    let (mut slots, mut counts): (Arc<[u16]>, _) = (nominal.slots(base).into(), nominal.counts().to_vec());
    let own = Arc::get_mut(&mut slots).expect("it was made just now");
    let mut live = Live { slots: own, counts: &mut counts, handed: Vec::new() };
    live.hand_over(base, nominal, &shares);
    live.pull(base, nominal, loads, &shares);
    (slots, counts)
}

/// The slots now, and how many each seat has.
struct Live<'a> {
    slots: &'a mut [u16],
    counts: &'a mut [u32],
    /// Slots that went to heirs, in order.
    handed: Vec<u32>,
}

impl Live<'_> {
    /// Whoever has more than its share gives up its newest claims to those who have not.
    fn hand_over(&mut self, base: &Base, nominal: &Nominal, shares: &[Share]) {
        let before = nominal.counts();
        let excess = |seat: usize| before[seat].saturating_sub(shares[seat].ceil());
        if (0..shares.len()).all(|seat| excess(seat) == 0) {
            return;
        }
        let may_take =
            |seat: usize| if excess(seat) > 0 { 0 } else { cap(shares[seat]).saturating_sub(before[seat]) };
        let room = (0..shares.len()).map(may_take).collect();
        let mut heirs = Heirs::new(nominal.taking_part(), nominal.slots(base), base.seed(), before, room);
        for seat in 0..shares.len() {
            for slot in nominal.newest_first(base, seat).take(excess(seat) as usize) {
                if let Some(heir) = heirs.take(slot) {
                    self.give(slot, heir);
                    self.handed.push(slot);
                }
            }
        }
    }

    /// A seat far below its share takes what it lacks from those above theirs: inherited slots first, and
    /// only a raised seat slots that nobody lost.
    fn pull(&mut self, base: &Base, nominal: &Nominal, loads: &[SeatLoad], shares: &[Share]) {
        let lacks = |count: u32, seat: usize| {
            let inherits = shares[seat].ceil().saturating_sub(nominal.counts()[seat]);
            count + DEVIATIONS * inherits.isqrt() + 1 < shares[seat].floor
        };
        if (0..loads.len()).all(|seat| !lacks(self.counts[seat], seat)) {
            return;
        }
        let level = Level::new(loads);
        for (seat, load) in loads.iter().enumerate() {
            if lacks(self.counts[seat], seat) {
                self.claim_inherited(seat, shares);
                if level.is_raised(load) {
                    self.claim_newest(base, nominal, seat, shares);
                }
            }
        }
    }

    /// Takes what was handed over last from owners above their share. What is passed over stays so for
    /// the seats that come after: its owner only ever loses.
    fn claim_inherited(&mut self, seat: usize, shares: &[Share]) {
        while self.counts[seat] < shares[seat].floor
            && let Some(slot) = self.handed.pop()
        {
            let owner = usize::from(self.slots[slot as usize]);
            if owner != seat && self.counts[owner] > shares[owner].floor {
                self.give(slot, seat as u16);
            }
        }
    }

    /// Takes the newest claims of owners above their share, beginning with an owner that the seat decides,
    /// so that not all raised seats begin with the same one.
    fn claim_newest(&mut self, base: &Base, nominal: &Nominal, seat: usize, shares: &[Share]) {
        let first = (hash::mix(base.seed(), !(seat as u64)) % shares.len() as u64) as usize;
        for owner in (first..shares.len()).chain(0..first).filter(|owner| *owner != seat) {
            for slot in nominal.newest_first(base, owner) {
                if self.counts[owner] <= shares[owner].floor || self.counts[seat] >= shares[seat].floor {
                    break;
                }
                if usize::from(self.slots[slot as usize]) == owner {
                    self.give(slot, seat as u16);
                }
            }
        }
    }

    fn give(&mut self, slot: u32, heir: u16) {
        let owner = std::mem::replace(&mut self.slots[slot as usize], heir);
        self.counts[usize::from(owner)] -= 1;
        self.counts[usize::from(heir)] += 1;
    }
}

/// Nominal and live weight of all live seats. Who fails raises the shares of all others, so only against
/// these can it be told that one seat was raised.
struct Level {
    nominal: u128,
    live: u128,
}

impl Level {
    fn new(loads: &[SeatLoad]) -> Self {
        let live = || loads.iter().filter(|load| load.nominal > 0 && load.live > 0);
        Self {
            nominal: live().map(|load| u128::from(load.nominal)).sum(),
            live: live().map(|load| u128::from(load.live)).sum(),
        }
    }

    /// Whether the seat's live weight rose more than the slack above everybody's.
    fn is_raised(&self, load: &SeatLoad) -> bool {
        let slack = u128::from(SLACK);
        let (mine, level) = (u128::from(load.live) * slack, u128::from(load.nominal) * (slack + 1));
        mine.saturating_mul(self.nominal) > level.saturating_mul(self.live)
    }
}

/// The share of each weight. Neighbours are mostly equal, and a comparison is cheaper than a division.
fn shares(scale: Scale, weights: impl Iterator<Item = u64>) -> Vec<Share> {
    let mut last = (0, Share::default());
    let mut share = |weight| {
        if weight != last.0 {
            last = (weight, scale.share(weight));
        }
        last.1
    };
    weights.map(&mut share).collect()
}

/// The most a seat may have as an heir: the slack, and one slot because small shares have little of it.
/// Nothing for a seat without share.
fn cap(share: Share) -> u32 {
    match share.ceil() {
        0 => 0,
        quota => quota + quota.div_ceil(SLACK) + 1,
    }
}
