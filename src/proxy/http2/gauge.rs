//! Owns the measure of what a client of HTTP/2 sends that costs work and carries nothing: a look at the head of
//! each frame, before anybody interprets it, and a credit that floods use up and busy clients earn back.

use std::cell::Cell;
use std::time::Instant;

use super::PREFACE;
use crate::proxy::limits::{FRAME_CREDIT, FRAME_CREDIT_PER_SECOND};

/// Bytes of a frame's head (RFC 9113 section 4.1).
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// What is known of the frames of one connection.
#[derive(Debug)]
pub(super) struct Gauge {
    place: Cell<Place>,
    /// A request's head has begun and not ended.
    in_head: Cell<bool>,
    credit: Cell<u32>,
    /// What comes back with the time came back up to here.
    refilled: Cell<Instant>,
}

/// Where among the bytes we are.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// So many bytes of something that need not be looked at are left.
    Inside(usize),
    /// So many bytes of a frame's head are there.
    Head { bytes: [u8; FRAME_HEAD], known: usize },
}

impl Place {
    const BETWEEN: Self = Self::Head { bytes: [0; FRAME_HEAD], known: 0 };
}

impl Gauge {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            place: Cell::new(Place::Inside(PREFACE.len())),
            in_head: Cell::new(false),
            credit: Cell::new(FRAME_CREDIT),
            refilled: Cell::new(now),
        }
    }

    /// Looks at what the client sent.
    pub(super) fn see(&self, mut bytes: &[u8]) {
        let mut place = self.place.get();
        while !bytes.is_empty() {
            match &mut place {
                Place::Inside(left) => {
                    let passed = bytes.len().min(*left);
                    bytes = &bytes[passed..];
                    *left -= passed;
                    if *left == 0 {
                        place = Place::BETWEEN;
                    }
                }
                Place::Head { bytes: head, known } => {
                    let taken = bytes.len().min(FRAME_HEAD - *known);
                    head[*known..*known + taken].copy_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    *known += taken;
                    if *known == FRAME_HEAD {
                        let length = self.judge(*head);
                        place = if length == 0 { Place::BETWEEN } else { Place::Inside(length) };
                    }
                }
            }
        }
        self.place.set(place);
    }

    /// Takes note of a frame; the length of what it carries.
    fn judge(&self, head: [u8; FRAME_HEAD]) -> usize {
        let [high, middle, low, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        match kind {
            HEADERS | CONTINUATION => self.in_head.set(flags & END_HEADERS == 0),
            _ => {}
        }
        let carries = match kind {
            // The end of a request may come by itself; there is one for each.
            DATA => length > 0 || flags & END_STREAM != 0,
            HEADERS => true,
            _ => false,
        };
        if !carries {
            self.credit.set(self.credit.get().saturating_sub(1));
        }
        length
    }

    /// Whether the head of a request is on its way.
    pub(super) fn is_in_head(&self) -> bool {
        self.in_head.get()
    }

    /// Whether the client sent more than it may.
    pub(super) fn is_spent(&self) -> bool {
        self.credit.get() == 0
    }

    /// The client gets something, to which it may answer.
    pub(super) fn earn(&self, frames: u32) {
        self.credit.set(self.credit.get().saturating_add(frames).min(FRAME_CREDIT));
    }

    /// Gives back what comes back with the time.
    pub(super) fn refill(&self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled.get());
        let frames = passed.as_millis() as u64 * u64::from(FRAME_CREDIT_PER_SECOND) / 1000;
        if frames > 0 && !self.is_spent() {
            self.refilled.set(now);
            self.earn(u32::try_from(frames).unwrap_or(FRAME_CREDIT));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, carried: &[u8]) -> Vec<u8> {
        let length = carried.len() as u32;
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(carried);
        frame
    }

    fn spent(frames: &[Vec<u8>]) -> u32 {
        let wire = [PREFACE, &frames.concat()].concat();
        let mut spent = Vec::new();
        for size in [1, 2, 7, wire.len()] {
            let gauge = Gauge::new(Instant::now());
            wire.chunks(size).for_each(|bytes| gauge.see(bytes));
            spent.push(FRAME_CREDIT - gauge.credit.get());
        }
        assert!(spent.iter().all(|it| *it == spent[0]), "it depends on how the bytes come: {spent:?}");
        spent[0]
    }

    #[test]
    fn frames_that_carry_something_are_free() {
        assert_eq!(spent(&[frame(1, 5, b"head"), frame(0, 0, b"data"), frame(0, 1, b"")]), 0);
    }

    #[test]
    fn frames_that_carry_nothing_cost_credit() {
        for (kind, flags, carried) in [
            (0, 0, &b""[..]),
            (2, 0, b"12345"),
            (3, 0, b"1234"),
            (4, 0, b""),
            (4, 1, b""),
            (6, 0, b"12345678"),
            (8, 0, b"1234"),
            (9, 4, b""),
            (77, 0, b"who knows"),
        ] {
            assert_eq!(spent(&[frame(kind, flags, carried), frame(kind, flags, carried)]), 2, "{kind}");
        }
    }

    #[test]
    fn a_head_lasts_until_its_last_frame() {
        let gauge = Gauge::new(Instant::now());
        gauge.see(PREFACE);
        gauge.see(&frame(1, 1, b"some"));
        assert!(gauge.is_in_head());
        gauge.see(&frame(9, 0, b"more"));
        assert!(gauge.is_in_head());
        gauge.see(&frame(9, 4, b"rest"));
        assert!(!gauge.is_in_head());
    }

    #[test]
    fn credit_comes_back_with_answers_and_with_the_time() {
        let begun = Instant::now();
        let gauge = Gauge::new(begun);
        gauge.see(PREFACE);
        (0..FRAME_CREDIT - 1).for_each(|_| gauge.see(&frame(6, 0, b"12345678")));
        assert!(!gauge.is_spent());
        gauge.earn(4);
        gauge.refill(begun + Duration::from_millis(500));
        assert_eq!(gauge.credit.get(), 1 + 4 + FRAME_CREDIT_PER_SECOND / 2);
        gauge.refill(begun + Duration::from_secs(3600));
        assert_eq!(gauge.credit.get(), FRAME_CREDIT);
        (0..FRAME_CREDIT).for_each(|_| gauge.see(&frame(6, 0, b"12345678")));
        assert!(gauge.is_spent());
    }
}
