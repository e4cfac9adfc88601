//! Owns the first overlay: the table when everybody is well. Quotas by nominal weight lie over the base;
//! a seat above its quota gives up its newest claims, and each goes to a seat below its own.
//! It is kept between events, because failures and recoveries do not touch it.

use std::sync::Arc;

use super::SeatLoad;
use super::base::{Base, Bases};
use super::heirs::{self, Heirs};
use super::quota;

/// Ends a list of gains.
const NONE: u32 = u32::MAX;

/// The table by nominal weights.
#[derive(Debug)]
pub(super) struct Nominal {
    /// The weight of each seat this was made for.
    key: Vec<u64>,
    /// `None` when it is the base as it stands, as with equal weights.
    slots: Option<Vec<u16>>,
    counts: Vec<u32>,
    /// Newest claims of the base each seat gave up.
    given: Vec<u32>,
    gains: Vec<Gain>,
    /// The newest gain of each seat; they are linked from there to the oldest.
    newest: Vec<u32>,
    taking_part: Arc<[u16]>,
}

#[derive(Debug)]
struct Gain {
    slot: u32,
    older: u32,
}

impl Nominal {
    /// The table of nobody.
    pub(super) fn new() -> Self {
        Self {
            key: Vec::new(),
            slots: None,
            counts: Vec::new(),
            given: Vec::new(),
            gains: Vec::new(),
            newest: Vec::new(),
            taking_part: Arc::new([]),
        }
    }

    /// Whether it is the base as it stands.
    pub(super) fn is_base(&self) -> bool {
        self.slots.is_none()
    }

    /// Slot to seat.
    pub(super) fn slots<'a>(&'a self, base: &'a Base) -> &'a [u16] {
        self.slots.as_deref().unwrap_or(base.owners())
    }

    /// Slots of each seat.
    pub(super) fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// The seats with a weight, ascending.
    pub(super) fn taking_part(&self) -> &Arc<[u16]> {
        &self.taking_part
    }

    /// The slots of `seat`, those it gained here before its claims of the base, newest first.
    pub(super) fn newest_first<'a>(&'a self, base: &'a Base, seat: usize) -> impl Iterator<Item = u32> {
        let gain = |at: u32| self.gains.get(at as usize);
        let gained = std::iter::successors(gain(self.newest[seat]), move |newer| gain(newer.older));
        gained.map(|gain| gain.slot).chain(base.newest_first(seat).skip(self.given[seat] as usize))
    }

    /// Becomes the table of these seats; does nothing when it is.
    pub(super) fn update(&mut self, base: &mut Arc<Base>, bases: &Bases, loads: &[SeatLoad]) {
        let key = || loads.iter().map(|load| load.nominal);
        if self.key.iter().copied().eq(key()) {
            return;
        }
        self.key.clear();
        self.key.extend(key());
        bases.resize(base, loads.len());
        self.counts.clear();
        self.counts.extend_from_slice(base.counts());
        self.gains.clear();
        self.given.clear();
        self.given.resize(loads.len(), 0);
        self.newest.clear();
        self.newest.resize(loads.len(), NONE);
        self.slots = None;
        self.taking_part = heirs::taking_part(loads);
        if loads.iter().any(|load| load.nominal == 0 || load.nominal != loads[0].nominal) {
            self.lay(base);
        }
    }

    fn lay(&mut self, base: &Base) {
        let quotas = quota::largest_remainder(base.size(), &self.key);
        let room =
            quotas.iter().zip(&self.counts).map(|(quota, count)| quota.saturating_sub(*count)).collect();
        let mut heirs = Heirs::new(&self.taking_part, base.owners(), base.seed(), &self.counts, room);
        let mut slots = base.owners().to_vec();
        for (seat, quota) in quotas.iter().enumerate() {
            self.given[seat] = self.counts[seat].saturating_sub(*quota);
            for slot in base.newest_first(seat).take(self.given[seat] as usize) {
                let heir = heirs.take(slot);
                slots[slot as usize] = heir.unwrap_or(super::NOBODY);
                if let Some(heir) = heir {
                    let older =
                        std::mem::replace(&mut self.newest[usize::from(heir)], self.gains.len() as u32);
                    self.gains.push(Gain { slot, older });
                }
            }
        }
        self.counts = quotas;
        self.slots = Some(slots);
    }
}
