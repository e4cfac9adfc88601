//! Owns who may connect: the counts of client connections and of flows of UDP, in all and by address, and how short of
//! memory the process is. It is all that workers share besides the snapshot, and is touched when a connection or flow
//! begins or ends and once per tick, never for a request or datagram.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::limits::Limits;
use super::overload::{Level, Pressure};
use crate::balance::hash;
use crate::metrics::Refusal;

/// Locks over the counts by address, so that workers that accept at once rarely meet.
const SHARDS: usize = 16;

/// Who is there in the whole process.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) pressure: Pressure,
    connections: Arc<Count>,
    flows: Arc<Count>,
}

/// How many there are of one kind.
#[derive(Debug)]
struct Count {
    most: usize,
    most_per_client: usize,
    open: AtomicUsize,
    by_client: [Mutex<HashMap<IpAddr, usize>>; SHARDS],
}

/// A connection or flow that is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    count: Arc<Count>,
    client: IpAddr,
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            pressure: Pressure::default(),
            connections: Count::new(limits.connections, limits.connections_per_client),
            flows: Count::new(limits.flows, limits.flows_per_client),
        })
    }

    /// Counts a new connection of `client`, or says which limit it meets.
    pub(super) fn enter(&self, client: IpAddr) -> Result<Ticket, Refusal> {
        self.admit(&self.connections, client, Refusal::Total)
    }

    /// Counts a new flow of `client`, or says which limit it meets.
    pub(super) fn enter_flow(&self, client: IpAddr) -> Result<Ticket, Refusal> {
        self.admit(&self.flows, client, Refusal::Flows)
    }

    /// Whether half of all flows that there may be are there.
    pub(super) fn is_crowded_with_flows(&self) -> bool {
        self.flows.open.load(Relaxed) >= self.flows.most.div_ceil(2)
    }

    fn admit(&self, count: &Arc<Count>, client: IpAddr, full: Refusal) -> Result<Ticket, Refusal> {
        if self.pressure.level() == Level::Shedding {
            return Err(Refusal::Memory);
        }
        count.enter(client, full)
    }
}

impl Count {
    fn new(most: usize, most_per_client: usize) -> Arc<Self> {
        let (open, by_client) = (AtomicUsize::new(0), Default::default());
        Arc::new(Self { most, most_per_client, open, by_client })
    }

    fn enter(self: &Arc<Self>, client: IpAddr, full: Refusal) -> Result<Ticket, Refusal> {
        if self.open.fetch_add(1, Relaxed) >= self.most {
            self.open.fetch_sub(1, Relaxed);
            return Err(full);
        }
        match self.join(client) {
            Ok(()) => Ok(Ticket { count: self.clone(), client }),
            Err(limit) => {
                self.open.fetch_sub(1, Relaxed);
                Err(limit)
            }
        }
    }

    fn join(&self, client: IpAddr) -> Result<(), Refusal> {
        let mut shard = self.shard(client);
        let count = shard.entry(client).or_default();
        if *count >= self.most_per_client {
            return Err(Refusal::Client);
        }
        *count += 1;
        Ok(())
    }

    fn leave(&self, client: IpAddr) {
        let mut shard = self.shard(client);
        if let Some(count) = shard.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&client);
            }
        }
    }

    /// Counts cannot be left half changed, so a poisoned shard is as good as any.
    fn shard(&self, client: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        let number = match client {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits() as u64 ^ (v6.to_bits() >> 64) as u64,
        };
        let shard = hash::mix(number, 0) as usize % SHARDS;
        self.by_client[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Counts the connection for `client` from now on, for whom somebody else opened it, or says that this client
    /// has as many as it may.
    pub(super) fn transfer(&mut self, client: IpAddr) -> Result<(), Refusal> {
        if client == self.client {
            return Ok(());
        }
        self.count.join(client)?;
        self.count.leave(std::mem::replace(&mut self.client, client));
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.count.open.fetch_sub(1, Relaxed);
        self.count.leave(self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(most: usize, most_per_client: usize) -> Arc<Admission> {
        let limits = Limits {
            connections: most,
            connections_per_client: most_per_client,
            ..Limits::for_descriptors(100)
        };
        Admission::new(&limits)
    }

    const ADA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const BOB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn one_client_cannot_take_all_connections() {
        let admission = admission(3, 2);
        let _first = admission.enter(ADA).unwrap();
        let second = admission.enter(ADA).unwrap();
        assert_eq!(admission.enter(ADA).unwrap_err(), Refusal::Client);
        let _other = admission.enter(BOB).unwrap();
        assert_eq!(admission.enter(BOB).unwrap_err(), Refusal::Total);
        drop(second);
        assert!(admission.enter(ADA).is_ok());
    }

    #[test]
    fn flows_keep_nobody_out_who_connects() {
        let limits = Limits { flows: 3, flows_per_client: 2, ..Limits::for_descriptors(100) };
        let admission = Admission::new(&limits);
        let _one = admission.enter_flow(ADA).unwrap();
        assert!(!admission.is_crowded_with_flows());
        let _two = admission.enter_flow(ADA).unwrap();
        assert!(admission.is_crowded_with_flows());
        assert_eq!(admission.enter_flow(ADA).unwrap_err(), Refusal::Client);
        let _three = admission.enter_flow(BOB).unwrap();
        assert_eq!(admission.enter_flow(BOB).unwrap_err(), Refusal::Flows);
        assert!(admission.enter(ADA).is_ok());
    }

    #[test]
    fn a_connection_counts_for_whom_it_was_opened() {
        let admission = admission(3, 1);
        let mut first = admission.enter(ADA).unwrap();
        first.transfer(BOB).unwrap();
        let mut second = admission.enter(ADA).unwrap();
        assert_eq!(second.transfer(BOB).unwrap_err(), Refusal::Client);
        assert_eq!(admission.enter(ADA).unwrap_err(), Refusal::Client, "it counts as before");
        drop(first);
        second.transfer(BOB).unwrap();
        drop((second, admission.enter(ADA).unwrap()));
        assert_eq!(admission.connections.open.load(Relaxed), 0);
        assert!(admission.connections.by_client.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }

    #[test]
    fn clients_that_left_leave_nothing_behind() {
        let admission = admission(3, 3);
        drop(admission.enter(ADA).unwrap());
        assert_eq!(admission.connections.open.load(Relaxed), 0);
        assert!(admission.connections.by_client.iter().all(|shard| shard.lock().unwrap().is_empty()));
    }
}
