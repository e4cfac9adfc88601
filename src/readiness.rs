//! Owns the answer to "may traffic be sent here?": ready once every latch is released, never again
//! after `drain`. One latch for each part that must have happened first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The answer, cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    missing: Mutex<Vec<&'static str>>,
    draining: AtomicBool,
}

/// Something that must have happened before we are ready. Dropping it unreleased keeps us unready.
#[derive(Debug)]
#[must_use = "readiness waits until the latch is released"]
pub struct Latch {
    name: &'static str,
    state: Arc<State>,
}

impl Readiness {
    /// Adds something to wait for; `name` is what `/readyz` shows while it is missing.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.state.with_missing(|missing| missing.push(name));
        Latch { name, state: self.state.clone() }
    }

    /// Whether traffic may be sent here.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    /// What stands in the way, in the order it was asked for.
    pub fn missing(&self) -> Vec<&'static str> {
        if self.state.draining.load(Ordering::Acquire) {
            return vec!["draining"];
        }
        self.state.with_missing(|missing| missing.clone())
    }

    /// Makes it unready for good.
    pub fn drain(&self) {
        self.state.draining.store(true, Ordering::Release);
    }
}

impl Latch {
    /// Says that it has happened.
    pub fn release(self) {
        self.state.with_missing(|missing| {
            if let Some(at) = missing.iter().position(|name| *name == self.name) {
                missing.remove(at);
            }
        });
    }
}

impl State {
    /// A poisoned list is still the right list: no closure here can panic half way.
    fn with_missing<T>(&self, use_it: impl FnOnce(&mut Vec<&'static str>) -> T) -> T {
        use_it(&mut self.missing.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_latch_is_released() {
        let readiness = Readiness::default();
        let (bound, listed) = (readiness.latch("listeners bound"), readiness.latch("first list"));
        assert_eq!(readiness.missing(), ["listeners bound", "first list"]);
        bound.release();
        assert_eq!(readiness.missing(), ["first list"]);
        assert!(!readiness.is_ready());
        listed.release();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_latch_that_is_dropped_keeps_us_unready() {
        let readiness = Readiness::default();
        drop(readiness.latch("first list"));
        assert!(!readiness.is_ready());
    }

    #[test]
    fn draining_is_for_good() {
        let readiness = Readiness::default();
        let latch = readiness.latch("listeners bound");
        readiness.drain();
        latch.release();
        assert_eq!(readiness.missing(), ["draining"]);
    }
}
