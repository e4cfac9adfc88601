//! Owns who gets which part of which port: whoever asked first, and among those who asked at once the older pool,
//! so that every replica shares them out alike.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use crate::balance::pool::{Listener, Pool, PoolId, PortId};
use crate::balance::routes::{HostPattern, Match};
use crate::balance::snapshot::{PortShares, PortTls, Shares};
use crate::balance::tls::TlsTerms;

/// What a pool asks for of a port and cannot have beside another pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The port.
    pub port: PortId,
    /// What of it.
    pub over: Contested,
    /// The pool that has it.
    pub holder: PoolId,
}

/// What of a port two pools cannot both have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contested {
    /// The same requests; of a port without requests, all of it.
    Part(Match),
    /// What is spoken on the port, and whether within TLS.
    Protocol,
    /// Whether all of the port's connections begin with a header of the PROXY protocol.
    ProxyProtocol,
    /// What is asked of clients that want this host: the oldest version of TLS, and whose certificates.
    Clients(HostPattern),
}

/// What `last` asks for of ports and cannot have beside `others`, who were first.
pub(super) fn contested<'a>(others: impl Iterator<Item = &'a Pool>, last: &'a Pool) -> Vec<Conflict> {
    let mut claims = Claims::default();
    let shares_a_port = |other: &&Pool| {
        other
            .listeners
            .iter()
            .any(|theirs| last.listeners.iter().any(|ours| ours.port_id() == theirs.port_id()))
    };
    for other in by_age(others.filter(shares_a_port)) {
        claims.claim(other);
    }
    claims.claim(last)
}

/// The order in which pools that come at once are served: every replica sees the same.
pub(super) fn by_age<'a>(pools: impl Iterator<Item = &'a Pool>) -> Vec<&'a Pool> {
    let mut pools: Vec<&Pool> = pools.collect();
    pools.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
    pools
}

/// Who has which part of which port, of those who have asked.
#[derive(Default)]
pub(super) struct Claims<'a> {
    pub(super) shares: Shares,
    /// Who was first on each port.
    oldest: BTreeMap<PortId, &'a PoolId>,
}

impl<'a> Claims<'a> {
    /// Gives `pool` what is left of the ports it asks for. Returns what is not left.
    pub(super) fn claim(&mut self, pool: &'a Pool) -> Vec<Conflict> {
        let mut lost = Vec::new();
        for listener in &pool.listeners {
            let oldest = *self.oldest.entry(listener.port_id()).or_insert(&pool.id);
            lost.extend(claim(self.shares.entry(listener.port_id()), listener, &pool.id, oldest));
        }
        lost
    }
}

/// Gives pool `id` what is left of its listener's port, on which `oldest` was first; what is not left.
fn claim(
    port: Entry<'_, PortId, PortShares>,
    listener: &Listener,
    id: &PoolId,
    oldest: &PoolId,
) -> Vec<Conflict> {
    let (id_of_port, manner) = (listener.port_id(), listener.manner());
    let tls = |terms: &Arc<TlsTerms>| PortTls { by_host: BTreeMap::new(), default: terms.clone() };
    let port = port.or_insert_with(|| PortShares {
        manner,
        tls: listener.tls.as_ref().map(tls),
        owners: BTreeMap::new(),
    });
    let conflict = |over, holder: &PoolId| Conflict { port: id_of_port, over, holder: holder.clone() };
    if (port.manner.protocol, port.manner.encrypted) != (manner.protocol, manner.encrypted) {
        return vec![conflict(Contested::Protocol, oldest)];
    }
    if port.manner != manner {
        return vec![conflict(Contested::ProxyProtocol, oldest)];
    }
    let mut lost = Vec::new();
    for matched in &listener.matches {
        // Terms are settled before the path is known.
        if let (Some(tls), Some(terms)) = (&mut port.tls, &listener.tls)
            && !tls.by_host.entry(matched.host.clone()).or_insert_with(|| terms.clone()).asks_like(terms)
        {
            let of_host = port.owners.iter().find(|(other, _)| other.host == matched.host);
            let holder = of_host.map_or(oldest, |(_, holder)| holder);
            lost.push(conflict(Contested::Clients(matched.host.clone()), holder));
            continue;
        }
        let holder = port.owners.entry(matched.clone()).or_insert_with(|| id.clone());
        if holder != id {
            lost.push(conflict(Contested::Part(matched.clone()), holder));
        }
    }
    lost
}
