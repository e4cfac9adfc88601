//! Owns the builds of large tables beside a source's loop, so that no other pool waits for one.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::programmer::{Authority, PoolFacts};
use crate::balance::assembly::{self, Assembled, Assembly};
use crate::balance::pool::PoolId;

/// Slots of a pool above which its tables are built beside the loop: up to here the worst takes some 50 ms.
const SLOTS_AT_ONCE: usize = 1 << 20;

/// Pools whose tables are built beside the loop at once. One, because each may take a fifth of the default memory
/// and all of a CPU that traffic could use.
const BUILDS_AT_ONCE: usize = 1;

/// Whether the tables of the pool are too large to build in between.
pub(super) fn is_large(facts: &PoolFacts) -> bool {
    let tables = facts.pool.groups.len() + usize::from(facts.pool.groups.len() > 1);
    assembly::table_size(&facts.pool, facts.members.len()) as usize * tables > SLOTS_AT_ONCE
}

/// What is to be built.
pub(super) struct Order {
    pub(super) id: PoolId,
    pub(super) birth: u64,
    pub(super) assembly: Assembly,
    pub(super) facts: PoolFacts,
}

/// What a build gave back.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) id: PoolId,
    pub(super) birth: u64,
    pub(super) assembly: Assembly,
    pub(super) assembled: Assembled,
    pub(super) took: Duration,
}

/// Builds under way, and those that ended and are yet to be taken in.
#[derive(Debug, Default)]
pub(super) struct Builds {
    running: JoinSet<Built>,
    ended: Vec<Built>,
}

impl Builds {
    /// Whether one more may begin.
    pub(super) fn has_room(&self) -> bool {
        self.running.len() < BUILDS_AT_ONCE
    }

    pub(super) fn begin(&mut self, order: Order, authority: Authority, now_ms: u64) {
        self.running.spawn_blocking(move || {
            let Order { id, birth, mut assembly, facts } = order;
            let started = Instant::now();
            let assembled = assembly.assemble(&facts.pool, &facts.members, authority, now_ms);
            Built { id, birth, assembly, assembled, took: started.elapsed() }
        });
    }

    /// Returns when one ended. May be dropped at any time.
    pub(super) async fn ended(&mut self) {
        match self.running.join_next().await {
            Some(Ok(built)) => self.ended.push(built),
            Some(Err(died)) => std::panic::resume_unwind(died.into_panic()),
            None => std::future::pending().await,
        }
    }

    /// Those that ended since the last call.
    pub(super) fn take(&mut self) -> Vec<Built> {
        std::mem::take(&mut self.ended)
    }
}
