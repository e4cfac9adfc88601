//! Owns how long a connection to a backend is waited for: as long as its pool says, as the backend is one of the pool,
//! and as somebody wants it.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::{Slot, Unreached};
use crate::metrics::RetryReason;
use crate::proxy::limits::{ABANDONED_CONNECT, TICK};

impl Slot {
    /// Waits for a connection that is being opened, and remembers whether it came about.
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        opening: impl Future<Output = Result<T, Unreached>>,
    ) -> Result<T, Unreached> {
        let mut attempt = Attempt { slot: self, begun: Instant::now(), is_over: false };
        let opened = timeout(limit, opening).await.unwrap_or(Err(RetryReason::ConnectTimeout.into()));
        attempt.is_over = true;
        match &opened {
            Ok(_) => self.refused_at.set(None),
            Err(Unreached::Backend(_)) => self.refused_at.set(Some(Instant::now())),
            Err(Unreached::Exhausted) => {}
        }
        opened
    }

    /// Waits for `step`, but not for longer than a request that began at `begun` has to do with this backend.
    pub(super) async fn unless_lost<T>(
        &self,
        begun: Instant,
        step: impl Future<Output = Result<T, Unreached>>,
    ) -> Result<T, Unreached> {
        tokio::select! {
            biased;
            done = step => done,
            () = self.lost(begun) => Err(RetryReason::ConnectFailed.into()),
        }
    }

    /// Waits until the pool does not know it any more, or until it was on its way out for long enough.
    async fn lost(&self, begun: Instant) {
        // Who was gone before is what is left of a pool that is gone itself, or comes back.
        let was_gone = self.gone.get();
        loop {
            tokio::select! {
                () = self.moved.notified() => {}
                () = self.drained(begun) => return,
            }
            if self.gone.get() && !was_gone {
                return;
            }
        }
    }

    async fn drained(&self, begun: Instant) {
        match self.leaving.get() {
            // No request ends sooner than at the next tick, and where all are on their way out they are tried too.
            Some((since, limit)) => sleep(limit.saturating_sub(since.max(begun).elapsed()).max(TICK)).await,
            None => std::future::pending().await,
        }
    }
}

/// A connection that is being opened. If nobody waits for its end, it may have been waited for in vain all the same.
struct Attempt<'a> {
    slot: &'a Slot,
    begun: Instant,
    is_over: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_over && self.begun.elapsed() >= ABANDONED_CONNECT {
            self.slot.refuse(Instant::now());
        }
    }
}
