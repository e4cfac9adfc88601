//! Owns how often tables are built: at once for a few changes in a row, and at a bearable rate in a flood,
//! where what comes together is built together.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two builds in a flood: a hundred a second cost little.
const BETWEEN: Duration = Duration::from_millis(10);
/// Builds in a row that need not wait, so that pods which change at the same moment by chance do not wait
/// for each other.
const AT_ONCE: u32 = 8;

/// A token bucket, kept as the moment at which it is full again.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    full_at: Option<Instant>,
}

impl Throttle {
    /// When the next build is due, if there is something to build now.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let due = self.full_at.and_then(|full_at| full_at.checked_sub(BETWEEN * (AT_ONCE - 1)));
        due.map_or(now, |due| due.max(now))
    }

    /// A build was made.
    pub(super) fn built(&mut self, now: Instant) {
        self.full_at = Some(self.full_at.map_or(now, |full_at| full_at.max(now)) + BETWEEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_builds_are_made_at_once_and_a_flood_in_step() {
        let (mut throttle, begun) = (Throttle::default(), Instant::now());
        let mut now = begun;
        let mut times = Vec::new();
        for _ in 0..10 {
            now = throttle.due(now);
            throttle.built(now);
            times.push((now - begun).as_millis());
        }
        assert_eq!(times, [0, 0, 0, 0, 0, 0, 0, 0, 10, 20]);
        now += BETWEEN * 3;
        let waits: Vec<_> = (0..4)
            .map(|_| {
                let wait = throttle.due(now) - now;
                throttle.built(now + wait);
                wait.as_millis()
            })
            .collect();
        assert_eq!(waits, [0, 0, 0, 10], "three builds' worth of quiet");
    }
}
