//! Owns what is done when memory runs out: a level that a task derives from the memory in use, and that workers act by.
//! To send clients away in time costs less than to be killed with all of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::sleep;

use super::memory;
use crate::metrics::TrafficMeters;

/// How often the memory in use is read. A flood at full speed fills a few percent of a small container meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The least memory to serve with. The process holds some 20 MiB with a few pools and clients, twice that in a build for
/// tests, and the first level is to begin well above.
pub const MEMORY_MIN: u64 = 64 << 20;

/// Percent of the limit from which each level is in force.
const STEPS: [(Level, u64); 3] = [(Level::Tight, 85), (Level::Leaving, 92), (Level::Shedding, 95)];

/// Percent of the limit that memory has to fall below its step before the level is left, so that it does not flap
/// while clients leave and others come.
const RELIEF: u64 = 3;

/// How short of memory the process is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// There is enough.
    #[default]
    Calm,
    /// Idle clients are sent away sooner.
    Tight,
    /// Besides, every client is asked to leave behind its next answer.
    Leaving,
    /// Besides, requests are refused, and so are connections.
    Shedding,
}

impl Level {
    /// The level that follows this one.
    fn next(self, memory: MemoryUse) -> Self {
        let exceeds = |percent: u64| memory.used.saturating_mul(100) >= memory.limit.saturating_mul(percent);
        let in_force = |(level, step): &(Self, u64)| exceeds(*step - if *level <= self { RELIEF } else { 0 });
        STEPS.iter().rev().find(|step| in_force(step)).map_or(Self::Calm, |(level, _)| *level)
    }

    fn of_number(number: u8) -> Self {
        STEPS.iter().map(|(level, _)| *level).find(|level| *level as u8 == number).unwrap_or_default()
    }

    fn consequence(self) -> &'static str {
        match self {
            Self::Calm => "serving as usual",
            Self::Tight => "idle clients are sent away sooner",
            Self::Leaving => "clients are asked to leave with their next answer",
            Self::Shedding => "new requests and connections are refused",
        }
    }
}

/// The level, as one task sets it and every worker reads it.
#[derive(Debug, Default)]
pub(super) struct Pressure(AtomicU8);

impl Pressure {
    pub(super) fn level(&self) -> Level {
        Level::of_number(self.0.load(Relaxed))
    }

    /// Looks at the memory again and again.
    pub(super) async fn follow(&self, probe: MemoryProbe, meters: Arc<TrafficMeters>) {
        if let Some(MemoryUse { limit, .. }) = (probe.0)().filter(|memory| memory.is_too_little()) {
            let least = MEMORY_MIN;
            tracing::warn!(
                limit,
                least,
                "the memory limit is less than it takes to serve, so clients may find no room; raise that of the container"
            );
        }
        loop {
            self.look(&probe, &meters);
            sleep(LOOK_EVERY).await;
        }
    }

    fn look(&self, probe: &MemoryProbe, meters: &TrafficMeters) {
        let (before, memory) = (self.level(), (probe.0)());
        let level = memory.map_or(Level::Calm, |memory| before.next(memory));
        if level == before {
            return;
        }
        self.0.store(level as u8, Relaxed);
        meters.overload(level as u8);
        let MemoryUse { used, limit } = memory.unwrap_or_default();
        let now = level.consequence();
        if level > before {
            tracing::warn!(used, limit, "memory runs out: {now}; give it more memory or spread its clients");
        } else {
            tracing::info!(used, limit, "there is memory again: {now}");
        }
    }
}

/// How much memory is in use and how much may be, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

impl MemoryUse {
    /// Whether the limit leaves no room for clients, whatever is in use.
    fn is_too_little(&self) -> bool {
        self.limit < MEMORY_MIN
    }
}

/// Finds out how much memory is in use; nothing where there is no limit.
#[derive(Clone)]
pub struct MemoryProbe(Arc<dyn Fn() -> Option<MemoryUse> + Send + Sync>);

impl MemoryProbe {
    /// Asks `probe`.
    pub fn new(probe: impl Fn() -> Option<MemoryUse> + Send + Sync + 'static) -> Self {
        Self(Arc::new(probe))
    }

    /// What this process holds beside `limit`, in bytes; without one the tightest of its control groups.
    pub fn of_this_process(limit: Option<u64>) -> Self {
        match limit {
            Some(limit) => Self::new(move || Some(MemoryUse { used: memory::resident()?, limit })),
            None => {
                let groups = memory::Groups::of_this_process();
                Self::new(move || groups.tightest())
            }
        }
    }
}

impl fmt::Debug for MemoryProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryProbe")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_level_is_reached_at_its_step_and_left_below_it() {
        let mut level = Level::Calm;
        for (used, expected) in [
            (849, Level::Calm),
            (850, Level::Tight),
            (919, Level::Tight),
            (920, Level::Leaving),
            (890, Level::Leaving),
            (889, Level::Tight),
            (820, Level::Tight),
            (819, Level::Calm),
            (950, Level::Shedding),
            (920, Level::Shedding),
            (919, Level::Leaving),
            (2000, Level::Shedding),
            (0, Level::Calm),
        ] {
            level = level.next(MemoryUse { used, limit: 1000 });
            assert_eq!(level, expected, "at {used} of 1000");
        }
    }

    #[test]
    fn a_limit_below_what_it_takes_to_serve_is_told() {
        let memory = |limit| MemoryUse { used: 1, limit };
        assert!(memory(MEMORY_MIN - 1).is_too_little() && !memory(MEMORY_MIN).is_too_little());
    }

    #[test]
    fn a_level_is_read_as_it_was_set() {
        for (level, _) in STEPS {
            assert_eq!(Level::of_number(level as u8), level);
        }
        assert_eq!(Level::of_number(0), Level::Calm);
    }

    #[tokio::test(start_paused = true)]
    async fn the_level_follows_the_memory() {
        let used = Arc::new(AtomicU64::new(10));
        let read = used.clone();
        // A limit that is taken away counts as none.
        let probe = MemoryProbe::new(move || {
            let used = read.load(Relaxed);
            (used > 0).then_some(MemoryUse { used, limit: 100 })
        });
        let (pressure, meters) = (Arc::new(Pressure::default()), Arc::<TrafficMeters>::default());
        let task = {
            let (pressure, meters) = (pressure.clone(), meters.clone());
            tokio::spawn(async move { pressure.follow(probe, meters).await })
        };
        for (now, expected) in [
            (10, Level::Calm),
            (96, Level::Shedding),
            (93, Level::Shedding),
            (86, Level::Tight),
            (0, Level::Calm),
        ] {
            used.store(now, Relaxed);
            sleep(LOOK_EVERY).await;
            tokio::task::yield_now().await;
            assert_eq!((pressure.level(), meters.overload_level()), (expected, expected as u8), "at {now}");
        }
        task.abort();
    }
}
