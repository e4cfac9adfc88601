//! Owns the digest of a table: one number that replicas compare to know that they route alike.

use super::super::hash;
use super::Table;

/// Slots hashed at a time: a buffer that stays in the first-level cache.
const CHUNK: usize = 4096;

/// A 64-bit hash over which backend answers for which slot, the size and the seed. `occupants` has the
/// hash of the id of the backend in each seat; seats without a slot do not count.
pub fn digest(table: &Table, occupants: &[Option<u64>], seed: u64) -> u64 {
    let mut digest = hash::mix(seed, u64::from(table.size()));
    let mut bytes = [0; CHUNK * 2];
    for chunk in table.slots.chunks(CHUNK) {
        let bytes = &mut bytes[..chunk.len() * 2];
        for (pair, slot) in bytes.chunks_exact_mut(2).zip(chunk) {
            pair.copy_from_slice(&slot.to_le_bytes());
        }
        digest = hash::stable(bytes, digest);
    }
    let live = table.live.iter().enumerate().filter(|(_, live)| **live);
    live.fold(digest, |digest, (seat, _)| {
        let occupant = occupants.get(seat).copied().flatten();
        hash::mix(digest ^ seat as u64, occupant.map_or(0, |id| id | 1))
    })
}
