//! Owns what the TLS library makes of terms, on either side. It is made once for all workers, so that a session begun
//! on one is known to the others, and kept as long as somebody uses it.

mod connector;
mod contract;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub(super) use connector::{Connector, Security};
pub(super) use contract::{Contract, PortContracts};

/// All that was made and is in use.
#[derive(Debug, Default)]
pub(super) struct Made {
    contracts: Kept<Contract>,
    connectors: Kept<Connector>,
}

/// What is kept as long as somebody uses it.
#[derive(Debug)]
struct Kept<T>(Mutex<Vec<Weak<T>>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    /// The one that `is` says, made if there is none.
    fn find(&self, is: impl Fn(&T) -> bool, make: impl FnOnce() -> Option<T>) -> Option<Arc<T>> {
        let mut known = self.locked();
        known.retain(|it| it.strong_count() > 0);
        if let Some(found) = known.iter().filter_map(Weak::upgrade).find(|it| is(it)) {
            return Some(found);
        }
        let made = Arc::new(make()?);
        known.push(Arc::downgrade(&made));
        Some(made)
    }

    /// A list cannot be left half changed, so a poisoned one is as good as any.
    fn locked(&self) -> MutexGuard<'_, Vec<Weak<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
