//! Owns where pools and backends come from: a cluster or a file. Every source reduces what it sees to
//! `PoolFacts` and hands them to the one `Programmer`.

pub mod admission;
mod backends;
mod builds;
pub mod claims;
pub mod credentials;
pub mod file;
mod fitness;
#[cfg(test)]
mod fuzz;
pub mod kubernetes;
mod listening;
mod metadata;
pub mod programmer;
pub mod reach;
mod schema;
pub mod tls;
pub mod translate;

use crate::handoff::BindingsReader;
use crate::metrics::ControlMetrics;
use crate::readiness::Latch;

use self::programmer::Programmer;

/// What every source works with.
#[derive(Debug)]
pub struct Outlets {
    /// Takes the facts and publishes what follows.
    pub programmer: Programmer,
    /// Tells which ports the proxy could bind.
    pub bindings: BindingsReader,
    /// Released with the first full picture published.
    pub readiness: Latch,
    /// Counts what the source sees.
    pub metrics: ControlMetrics,
}
