//! Owns the judgement of one payload: what the client heard against what the backend saw.

use crate::corpus::Verdict;
use crate::probe::{Heard, MARKER_TARGET};
use crate::recorder::Record;

/// What became of a payload.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Its requests that the backend saw, the marker aside.
    pub(crate) passed: usize,
    /// The statuses of the proxy's own answers.
    pub(crate) refused: Vec<u16>,
    /// Bytes that a strict backend cannot read.
    pub(crate) dirt: Vec<String>,
    /// Fields that should have ended at the proxy.
    pub(crate) leaks: Vec<String>,
    /// Requests that the backend answered and the client does not know of, or answers that came in another order.
    pub(crate) hides: bool,
}

impl Outcome {
    pub(crate) fn of(heard: Heard, record: Record) -> Self {
        Self {
            passed: record.requests.iter().filter(|request| request.target != MARKER_TARGET).count(),
            refused: heard.own,
            hides: heard.recorded != (1..=record.requests.len()).collect::<Vec<_>>(),
            leaks: record.requests.into_iter().flat_map(|request| request.leaks).collect(),
            dirt: record.dirt,
        }
    }

    /// Whether nothing got through that no proxy should let through.
    pub(crate) fn is_clean(&self) -> bool {
        self.dirt.is_empty() && self.leaks.is_empty() && !self.hides
    }

    /// Whether what became of it is what should have.
    pub(crate) fn meets(&self, verdict: &Verdict) -> bool {
        let refused_so = match self.refused.first() {
            None => verdict.refused.is_empty(),
            Some(status) => verdict.refused.contains(status),
        };
        verdict.is_open || self.passed == verdict.passed && refused_so
    }
}

#[test]
fn a_request_that_the_client_does_not_know_of_is_seen() {
    let request = |target: &str| crate::strict::Request { target: target.into(), leaks: vec![] };
    let record = || Record { requests: vec![request("GET /"), request("GET /smuggled")], dirt: vec![] };
    let hides = |recorded| Outcome::of(Heard { recorded, own: vec![] }, record()).hides;
    assert!(hides(vec![1]) && hides(vec![2, 1]));
    assert!(!hides(vec![1, 2]));
}
