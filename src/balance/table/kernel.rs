//! Owns the two inner loops of the paper's fill, portable, and the choice of the instructions they use.
//! All kernels give the same results; only the time differs.

#[cfg(target_arch = "x86_64")]
use super::kernel_avx2::Avx2;
use super::permutation::{Steps, advance};

/// The most turns that look ahead together.
pub(super) const LANES: usize = 256;

/// Bits of a position; sizes are below 2^24.
pub(super) const POSITION: u32 = 24;

/// Room for a full vector to be written at the last lane.
pub(super) const ROOM: usize = LANES + 8;

/// Instructions the inner loops may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// What every machine has.
    Portable,
    /// Eight lanes at a time. Its value is the proof that this machine can.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
}

/// Backends of one window on the way to a free slot each.
pub(super) struct Window {
    /// Lane in the upper bits, position below.
    pub(super) cursors: [u32; ROOM],
    pub(super) skips: [u32; ROOM],
    /// The free slot of each lane.
    pub(super) found: [u32; ROOM],
}

impl Default for Window {
    fn default() -> Self {
        Self { cursors: [0; ROOM], skips: [0; ROOM], found: [0; ROOM] }
    }
}

impl Kernel {
    /// The fastest one of this machine.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::detect() {
            return Self::Avx2(avx2);
        }
        Self::Portable
    }

    /// Turns that look ahead together: more save branches, and later meet more often at one slot.
    pub(super) fn lanes(self) -> usize {
        match self {
            Self::Portable => LANES / 2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => LANES,
        }
    }

    /// Free slots at which asking all of them gets cheaper than stepping, `size / free` steps a turn. Both
    /// factors are measured.
    pub(super) fn tail(self, size: u32) -> u32 {
        match self {
            Self::Portable => size.isqrt(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => (size * 6).isqrt(),
        }
    }

    /// Moves the first `lanes` cursors to a slot that is not taken.
    #[inline]
    pub(super) fn settle(self, window: &mut Window, lanes: usize, taken: &[u32], size: u32) {
        match self {
            Self::Portable => settle(window, lanes, taken, size),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.settle(window, lanes, taken, size),
        }
    }

    /// The fewest steps to any of the slots.
    #[inline]
    pub(super) fn nearest(self, steps: Steps, slots: &[u32]) -> u32 {
        match self {
            Self::Portable => nearest(steps, slots),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.nearest(steps, slots),
        }
    }
}

/// One pass moves every cursor by one step and keeps those that met a taken slot; who arrived is
/// overwritten by the next. No branch depends on a slot.
fn settle(window: &mut Window, lanes: usize, taken: &[u32], size: u32) {
    let Window { cursors, skips, found, .. } = window;
    let mut moving = lanes;
    while moving > 0 {
        let mut kept = 0;
        for at in 0..moving.min(LANES) {
            let (cursor, skip) = (cursors[at], skips[at]);
            let (lane, slot) = ((cursor >> POSITION) as usize, cursor & ((1 << POSITION) - 1));
            let is_taken = taken[slot as usize / 32] >> (slot % 32) & 1;
            found[lane] = slot;
            cursors[kept] = (lane as u32) << POSITION | advance(slot, skip, size);
            skips[kept] = skip;
            kept += is_taken as usize;
        }
        moving = kept;
    }
}

pub(super) fn nearest(steps: Steps, slots: &[u32]) -> u32 {
    slots.iter().map(|slot| steps.to(*slot)).min().unwrap_or(0)
}
