//! Owns the answer to "how many keys moved": where the table puts every key of the load, compared before
//! and after a switch.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::balance::key::RequestParts;
use crate::balance::snapshot::PoolSnapshot;

use super::load::KEY_HEADER;

/// Where the table puts the keys at one moment.
#[derive(Clone, Debug)]
pub struct Whereabouts {
    snapshot: Arc<PoolSnapshot>,
    places: Vec<Option<SocketAddr>>,
}

/// What a switch did to the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Keys looked at.
    pub keys: usize,
    /// Keys that the table now puts elsewhere.
    pub moved: usize,
    /// Slots of the table that changed their backend.
    pub slots: u32,
    /// Slots of the table.
    pub size: u32,
}

impl Whereabouts {
    /// Looks up the keys `key-0`, `key-1` … of the load.
    pub fn of(snapshot: &Arc<PoolSnapshot>, keys: u32) -> Self {
        let place = |key| {
            let hash = snapshot.key_hash(&Keyed(format!("key-{key}")));
            snapshot.pick(hash).map(|backend| backend.address)
        };
        Self { places: (0..keys).map(place).collect(), snapshot: snapshot.clone() }
    }

    /// Keys at a backend.
    pub fn at(&self, backend: SocketAddr) -> usize {
        self.places.iter().filter(|place| **place == Some(backend)).count()
    }

    /// The digest of the table.
    pub fn digest(&self) -> u64 {
        self.snapshot.digest
    }

    /// What lies between then and `now`.
    pub fn until(&self, now: &Self) -> Moves {
        let moved = self.places.iter().zip(&now.places).filter(|(before, after)| before != after).count();
        Moves {
            keys: self.places.len(),
            moved,
            slots: self.snapshot.moved_slots(&now.snapshot),
            size: now.snapshot.table.size(),
        }
    }
}

impl fmt::Display for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keys, moved, slots, size } = self;
        write!(f, "{moved} of {keys} keys moved, {slots} of {size} slots")
    }
}

/// A request that is nothing but its key.
struct Keyed(String);

impl RequestParts for Keyed {
    fn headers(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        (name == KEY_HEADER).then_some(self.0.as_bytes()).into_iter()
    }
    fn path(&self) -> &str {
        "/"
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn host(&self) -> Option<&str> {
        None
    }
    fn client_ip(&self) -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }
}
