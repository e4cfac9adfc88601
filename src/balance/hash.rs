//! Owns the stable hashes. XXH3 is fixed by its specification, so replicas, builds and restarts agree.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// 64-bit hash of `bytes`; different `seed`s give independent hashes.
#[inline]
pub fn stable(bytes: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(bytes, seed)
}

/// Mixes two numbers into an independent third (the finaliser of `SplitMix64`, Steele et al. 2014).
#[inline]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
