//! Owns the memory that a worker thread reads into: one area for all its connections, used by one at a
//! time and never across an await, so that it stays in the cache and a connection that waits holds none.

use std::ops::Range;

use super::http1::TAIL_BYTES;
use super::limits::{BUFFER_BYTES, HEAD_GROWTH_BYTES};

/// Where bytes are read to: with room before them for what a head grows by, so that a new head can be put
/// right in front of the body that came with the old one, and room behind them for the end of a body.
pub(super) const READ: Range<usize> = HEAD_GROWTH_BYTES..HEAD_GROWTH_BYTES + BUFFER_BYTES;

/// A worker's memory for the step it is at.
#[derive(Debug)]
pub(super) struct Scratch {
    /// What is read, and sent on from here.
    pub(super) area: Box<[u8]>,
    /// The head that is to go in front of it.
    pub(super) head: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { area: vec![0; READ.end + TAIL_BYTES].into(), head: Vec::new() }
    }
}

impl Scratch {
    /// Puts `head` in front of `body` in the area; where the two are together.
    pub(super) fn put_head(&mut self, body: Range<usize>) -> Range<usize> {
        let start = body.start - self.head.len();
        self.area[start..body.start].copy_from_slice(&self.head);
        start..body.end
    }
}
