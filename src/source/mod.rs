//! Owns where pools and backends come from: a cluster or a file. Every source reduces what it sees to
//! `PoolFacts` and hands them to the one `Programmer`.

pub mod admission;
pub mod file;
pub mod kubernetes;
pub mod programmer;
pub mod reach;
mod schema;
pub mod translate;

use std::fmt;
use std::sync::Arc;

use crate::handoff::BindingsReader;
use crate::metrics::ControlMetrics;
use crate::readiness::Latch;

use self::programmer::Programmer;

/// What every source works with.
#[derive(Debug)]
pub struct Outlets {
    /// Finds out whether a port could be opened.
    pub probe: PortProbe,
    /// Takes the facts and publishes what follows.
    pub programmer: Programmer,
    /// Tells which ports the proxy could bind.
    pub bindings: BindingsReader,
    /// Released with the first full picture published.
    pub readiness: Latch,
    /// Counts what the source sees.
    pub metrics: ControlMetrics,
}

/// Finds out whether the proxy could open a port, and if not, why and what to do about it.
#[derive(Clone)]
pub struct PortProbe(Arc<dyn Fn(u16) -> Result<(), String> + Send + Sync>);

impl PortProbe {
    /// Asks `probe`.
    pub fn new(probe: impl Fn(u16) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(probe))
    }

    fn check(&self, port: u16) -> Result<(), String> {
        (self.0)(port)
    }
}

impl fmt::Debug for PortProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PortProbe")
    }
}
