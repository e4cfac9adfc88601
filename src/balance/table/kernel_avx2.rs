//! Owns the inner loops of the paper's fill with AVX2: eight cursors a step, which halves the time of a
//! fill. The only unsafe code of `balance`, in four places: calls that need the instructions, which the
//! `Avx2` value proves; one load and one store of eight numbers, which the types prove to be there;
//! and one gather, whose indices are clamped to the slice.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256i, _mm_cvtsi64_si128, _mm256_add_epi32, _mm256_and_si256, _mm256_andnot_si256, _mm256_blend_epi32,
    _mm256_castsi256_ps, _mm256_cvtepu8_epi32, _mm256_i32gather_epi32, _mm256_loadu_si256, _mm256_min_epu32,
    _mm256_movemask_ps, _mm256_mul_epu32, _mm256_mullo_epi32, _mm256_or_si256, _mm256_permutevar8x32_epi32,
    _mm256_set1_epi32, _mm256_sllv_epi32, _mm256_srli_epi32, _mm256_srli_epi64, _mm256_storeu_si256,
    _mm256_sub_epi32,
};

use super::kernel::{self, LANES, POSITION, ROOM, Window};
use super::permutation::Steps;

/// Says that this machine has AVX2 and its companions. Nobody else can make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt");
        detected.then_some(Self(()))
    }

    #[inline]
    pub(super) fn settle(self, window: &mut Window, lanes: usize, taken: &[u32], size: u32) {
        // SAFETY: `detect` is the only way to `self`, and it found both features.
        unsafe { settle(window, lanes, taken, size) }
    }

    #[inline]
    pub(super) fn nearest(self, steps: Steps, slots: &[u32]) -> u32 {
        // SAFETY: as above.
        unsafe { nearest(steps, slots) }
    }
}

/// As the portable one, and who arrives is written to a list of its own, because AVX2 cannot scatter.
#[target_feature(enable = "avx2,popcnt")]
fn settle(window: &mut Window, lanes: usize, taken: &[u32], size: u32) {
    let (position, low_bits, size) = (splat((1 << POSITION) - 1), splat(31), splat(size));
    let mut arrivals = [0; ROOM];
    let (mut moving, mut arrived) = (lanes.min(LANES), 0);
    while moving > 0 {
        let mut kept = 0;
        for at in (0..moving).step_by(8) {
            let (cursors, skips) = (load(&window.cursors, at), load(&window.skips, at));
            let slots = _mm256_and_si256(cursors, position);
            let words = gather(taken, _mm256_srli_epi32::<5>(slots));
            // The bit of the slot becomes the sign.
            let signs = _mm256_sllv_epi32(words, _mm256_andnot_si256(slots, low_bits));
            let is_taken = _mm256_movemask_ps(_mm256_castsi256_ps(signs)) as usize;
            let next = wrap(_mm256_add_epi32(slots, skips), size);
            let next = _mm256_or_si256(_mm256_andnot_si256(position, cursors), next);
            let present = 0xff >> 8_usize.saturating_sub(moving - at);
            let (stays, arrives) = (is_taken & present, !is_taken & present);
            store(&mut window.cursors, kept, gathered(next, stays));
            store(&mut window.skips, kept, gathered(skips, stays));
            store(&mut arrivals, arrived, gathered(cursors, arrives));
            kept += stays.count_ones() as usize;
            arrived += arrives.count_ones() as usize;
        }
        moving = kept;
    }
    for cursor in &arrivals[..arrived] {
        window.found[(cursor >> POSITION) as usize] = cursor & ((1 << POSITION) - 1);
    }
}

/// `Steps::to` for eight slots at a time.
#[target_feature(enable = "avx2")]
fn nearest(steps: Steps, slots: &[u32]) -> u32 {
    let (offset, size) = (splat(steps.offset), splat(steps.size));
    let (inverse, ratio) = (splat(steps.inverse), splat(steps.ratio));
    let mut fewest = splat(u32::MAX);
    let (eights, rest) = slots.as_chunks::<8>();
    for eight in eights {
        let distance = _mm256_sub_epi32(load(eight, 0), offset);
        let distance = _mm256_min_epu32(distance, _mm256_add_epi32(distance, size));
        let even = _mm256_srli_epi64::<32>(_mm256_mul_epu32(distance, ratio));
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(distance), ratio);
        let quotient = _mm256_blend_epi32::<0b1010_1010>(even, odd);
        let product = _mm256_mullo_epi32(distance, inverse);
        let rest = _mm256_sub_epi32(product, _mm256_mullo_epi32(quotient, size));
        fewest = _mm256_min_epu32(fewest, wrap(rest, size));
    }
    let mut lanes = [0; 8];
    store(&mut lanes, 0, fewest);
    let rest = if rest.is_empty() { u32::MAX } else { kernel::nearest(steps, rest) };
    lanes.into_iter().fold(rest, u32::min)
}

/// Numbers below twice `size`, less `size` where they are not below it.
#[inline]
#[target_feature(enable = "avx2")]
fn wrap(numbers: __m256i, size: __m256i) -> __m256i {
    _mm256_min_epu32(numbers, _mm256_sub_epi32(numbers, size))
}

#[inline]
#[target_feature(enable = "avx2")]
fn splat(number: u32) -> __m256i {
    _mm256_set1_epi32(number as i32)
}

/// The lanes of `mask` moved to the front.
#[inline]
#[target_feature(enable = "avx2")]
fn gathered(numbers: __m256i, mask: usize) -> __m256i {
    let places = _mm_cvtsi64_si128(i64::from_le_bytes(FRONT[mask & 0xff]));
    _mm256_permutevar8x32_epi32(numbers, _mm256_cvtepu8_epi32(places))
}

/// For every mask of eight lanes, its lanes in order.
static FRONT: [[u8; 8]; 256] = {
    let mut front = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut place) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                front[mask][place] = lane as u8;
                place += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    front
};

#[inline]
#[target_feature(enable = "avx2")]
fn load(numbers: &[u32], at: usize) -> __m256i {
    let eight: &[u32] = &numbers[at..at + 8];
    // SAFETY: the slice has eight numbers, 32 bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(eight.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(numbers: &mut [u32], at: usize, value: __m256i) {
    let eight: &mut [u32] = &mut numbers[at..at + 8];
    // SAFETY: the slice has eight numbers, 32 bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(eight.as_mut_ptr().cast(), value) }
}

/// The words at eight places. Places behind the end read as the last word.
#[inline]
#[target_feature(enable = "avx2")]
fn gather(words: &[u32], places: __m256i) -> __m256i {
    assert!(!words.is_empty(), "a table has at least two slots, so its bitmap has a word");
    let places = _mm256_min_epu32(places, splat((words.len() - 1) as u32));
    // SAFETY: every place is an index of `words`, at most 2^31 because sizes are below 2^24.
    unsafe { _mm256_i32gather_epi32::<4>(words.as_ptr().cast(), places) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::table::permutation::Permutation;

    #[test]
    fn both_kernels_find_the_same_slots() {
        let Some(avx2) = Avx2::detect() else { return };
        let size = 1021;
        let mut taken = vec![0x6bdf_7fff_u32; 32];
        taken[7] = 0;
        for lanes in [1, 7, 8, 9, 31, 256] {
            let mut portable = Window::default();
            for lane in 0..lanes {
                let walk = Permutation::of_seat(lane as u16, 3, size);
                portable.cursors[lane] = (lane as u32) << POSITION | walk.offset;
                portable.skips[lane] = walk.skip;
            }
            let mut vector = Window { cursors: portable.cursors, skips: portable.skips, ..Window::default() };
            kernel::Kernel::Portable.settle(&mut portable, lanes, &taken, size);
            avx2.settle(&mut vector, lanes, &taken, size);
            assert_eq!(portable.found, vector.found, "{lanes} lanes");
        }
    }

    #[test]
    fn both_kernels_find_the_nearest_slot() {
        let Some(avx2) = Avx2::detect() else { return };
        for size in [251, 65_537, 16_777_213] {
            let slots: Vec<u32> = (0..251).step_by(3).map(|slot| slot * (size / 251)).collect();
            for seat in 0..50 {
                let steps = Permutation::of_seat(seat, 3, size).steps(size);
                for length in [1, 7, 8, 40, slots.len()] {
                    let slots = &slots[..length];
                    assert_eq!(avx2.nearest(steps, slots), kernel::nearest(steps, slots));
                }
            }
        }
    }
}
