//! Owns the yardstick for the paper's fill: the listing with additions in place of its modulo, as plain
//! as it can be written. It stays as it is, so that ratios against it mean the same over the years.

use guideway::balance::hash;

const FREE: u16 = u16::MAX;

/// Slot to backend for equal weights.
pub(crate) fn fill(names: &[&[u8]], size: u32, seed: u64) -> Vec<u16> {
    let mut next = Vec::with_capacity(names.len());
    let mut skip = Vec::with_capacity(names.len());
    for name in names {
        let hash = hash::stable(name, seed);
        next.push((hash >> 32) as u32 % size);
        skip.push(hash as u32 % (size - 1) + 1);
    }
    let mut entry = vec![FREE; size as usize];
    let mut filled = 0;
    loop {
        for backend in 0..names.len() {
            let mut slot = next[backend];
            while entry[slot as usize] != FREE {
                slot += skip[backend];
                if slot >= size {
                    slot -= size;
                }
            }
            entry[slot as usize] = backend as u16;
            next[backend] = slot;
            filled += 1;
            if filled == size {
                return entry;
            }
        }
    }
}
