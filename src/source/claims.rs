//! Owns who gets which part of which port: whoever has it keeps it for as long as it asks for it, and of those who ask
//! for what nobody has the older pool is first, so that every replica shares them out alike.

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

/// What the status of a pool says it has of the ports that it asks for: the lease holder's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tenure {
    /// All of it: the spec in use is the one that the holder uses, and lacks nothing of a port there.
    Whole,
    /// Most likely all: the holder uses an earlier spec than the latest, and this is the one in use; or it has not looked
    /// at this one yet and used the one before, which lacked nothing.
    Earlier,
    /// Nothing is said, or not all is had.
    #[default]
    Unknown,
}

/// Who asks for parts of ports, and when its turn is.
pub(super) struct Claimant<'a> {
    pub(super) pool: &'a Pool,
    /// Those with a lower one are served before all others, whoever has what.
    pub(super) rank: u8,
}

/// Shares the ports out anew where `before` is how they were shared: the shares, and what each pool does not get.
pub(super) fn share_out<'a>(
    claimants: impl Iterator<Item = Claimant<'a>>,
    before: &Shares,
) -> (Shares, BTreeMap<PoolId, Vec<Conflict>>) {
    let mut ranks: BTreeMap<u8, Vec<&Pool>> = BTreeMap::new();
    claimants.for_each(|it| ranks.entry(it.rank).or_default().push(it.pool));
    let mut claims = Claims::default();
    let mut lost = BTreeMap::new();
    for pools in ranks.into_values() {
        let pools = by_age(pools.into_iter());
        claims.keep(&pools, before);
        lost.extend(pools.into_iter().map(|pool| (pool.id.clone(), claims.claim(pool))));
    }
    (claims.shares, lost)
}

/// What `last` asks for of ports and cannot have beside `others`, who were first, where `before` is how the ports are
/// shared now.
pub(super) fn contested<'a>(
    others: impl Iterator<Item = &'a Pool>,
    last: &'a Pool,
    before: &Shares,
) -> Vec<Conflict> {
    let mut claims = Claims::default();
    let shares_a_port = |other: &&Pool| {
        other
            .listeners
            .iter()
            .any(|theirs| last.listeners.iter().any(|ours| ours.port_id() == theirs.port_id()))
    };
    let mut pools = by_age(others.filter(shares_a_port));
    pools.push(last);
    claims.keep(&pools, before);
    pools.into_iter().map(|pool| claims.claim(pool)).last().unwrap_or_default()
}

/// The order in which pools that come at once are served: every replica sees the same.
fn by_age<'a>(pools: impl Iterator<Item = &'a Pool>) -> Vec<&'a Pool> {
    let mut pools: Vec<&Pool> = pools.collect();
    pools.sort_by_key(|pool| age(pool));
    pools
}

fn age(pool: &Pool) -> (u64, &PoolId) {
    (pool.created_ms, &pool.id)
}

/// Who has which part of which port, of those who have asked.
#[derive(Default)]
struct Claims<'a> {
    shares: Shares,
    /// The oldest pool that has something of each port.
    oldest: BTreeMap<PortId, &'a Pool>,
}

impl<'a> Claims<'a> {
    /// Gives each of `pools` what it has already. Whoever changes the terms of what it has comes after those who leave
    /// them as they are: the terms of a port are everybody's.
    fn keep(&mut self, pools: &[&'a Pool], before: &Shares) {
        for changes_terms in [false, true] {
            for pool in pools {
                for listener in &pool.listeners {
                    let Some(had) = before.get(&listener.port_id()) else { continue };
                    let has = |part: &Match| {
                        had.owners.get(part) == Some(&pool.id)
                            && (changes_terms || keeps_terms(had, listener, part))
                    };
                    self.take(pool, listener, has);
                }
            }
        }
    }

    /// Gives `pool` what is left of the ports it asks for. Returns what is not left.
    fn claim(&mut self, pool: &'a Pool) -> Vec<Conflict> {
        pool.listeners.iter().flat_map(|listener| self.take(pool, listener, |_| true)).collect()
    }

    /// Gives `pool` those parts of its listener's port that are `asked` for and left; what is not left.
    fn take(&mut self, pool: &'a Pool, listener: &Listener, asked: impl Fn(&Match) -> bool) -> Vec<Conflict> {
        let parts: Vec<&Match> = listener.matches.iter().filter(|part| asked(part)).collect();
        if parts.is_empty() {
            return Vec::new();
        }
        let oldest = *self.oldest.get(&listener.port_id()).unwrap_or(&pool);
        let lost = take(self.shares.entry(listener.port_id()), listener, &parts, &pool.id, &oldest.id);
        let Some(port) = self.shares.get_mut(&listener.port_id()) else { return lost };
        let has_some = parts.iter().any(|part| port.owners.get(part) == Some(&pool.id));
        if has_some && age(pool) <= age(oldest) {
            self.oldest.insert(listener.port_id(), pool);
            // Whoever asks for no host by name is shown the certificate of the oldest.
            if let (Some(tls), Some(terms)) = (&mut port.tls, &listener.tls) {
                tls.default = terms.clone();
            }
        }
        lost
    }
}

/// Whether this listener asks for a part that it has on the terms on which it has it.
fn keeps_terms(had: &PortShares, listener: &Listener, part: &Match) -> bool {
    let of_host = had.tls.as_ref().and_then(|tls| tls.by_host.get(&part.host));
    let same_terms = match (of_host, &listener.tls) {
        (Some(before), Some(now)) => before.asks_like(now),
        _ => true,
    };
    had.manner == listener.manner() && same_terms
}

/// Gives pool `id` what is left of these parts of its listener's port, on which `oldest` was first; what is not left.
fn take(
    port: Entry<'_, PortId, PortShares>,
    listener: &Listener,
    parts: &[&Match],
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
    for matched in parts.iter().copied() {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::balance::key::KeySource;
    use crate::balance::pool::{Fill, Protocol, ProxyProtocol, Readiness, Timeouts};
    use crate::balance::routes::PathPrefix;

    /// A pool that asks for these hosts on one port.
    fn pool(name: usize, port: u16, hosts: &[&str], proxy_protocol: ProxyProtocol) -> Pool {
        let part = |host: &&str| Match { host: HostPattern::new(host), path: PathPrefix::all() };
        let matches = hosts.iter().map(part).collect();
        let protocol = Protocol::Http;
        let listener = Listener { name: "web".into(), port, protocol, proxy_protocol, tls: None, matches };
        Pool {
            id: PoolId::new("shop", &name.to_string()),
            created_ms: 0,
            listeners: vec![listener],
            groups: Vec::new(),
            table_size: None,
            fill: Fill::Seats,
            hash_on: vec![KeySource::ClientIp],
            readiness: Readiness::Require,
            drain_timeout: Duration::ZERO,
            timeouts: Timeouts::default(),
            max_request_body: None,
            access_log: None,
        }
    }

    fn any_pool() -> impl Strategy<Value = Pool> {
        let hosts = prop::sample::subsequence(vec!["a.test", "b.test", "c.test"], 1..3);
        let manner = prop::sample::select(vec![ProxyProtocol::Off, ProxyProtocol::Require]);
        (0..4_usize, 80..82_u16, hosts, manner)
            .prop_map(|(name, port, hosts, manner)| pool(name, port, &hosts, manner))
    }

    fn shared(pools: &BTreeMap<PoolId, Pool>, before: &Shares) -> Shares {
        share_out(pools.values().map(|pool| Claimant { pool, rank: 0 }), before).0
    }

    proptest! {
        /// Whatever is asked for at once and in a row, nobody takes from a pool what it has and goes on asking for.
        #[test]
        fn who_has_a_part_keeps_it(
            batches in prop::collection::vec(prop::collection::vec((any_pool(), any::<bool>()), 1..4), 1..12),
        ) {
            let (mut pools, mut shares) = (BTreeMap::new(), Shares::new());
            for batch in batches {
                for (pool, is_gone) in batch {
                    match is_gone {
                        true => drop(pools.remove(&pool.id)),
                        false => drop(pools.insert(pool.id.clone(), pool)),
                    }
                }
                let before = std::mem::take(&mut shares);
                shares = shared(&pools, &before);
                for (port, had) in &before {
                    for (part, owner) in &had.owners {
                        let asks = |it: &Listener| {
                            it.port_id() == *port && it.manner() == had.manner && it.matches.contains(part)
                        };
                        if pools.get(owner).is_some_and(|pool| pool.listeners.iter().any(asks)) {
                            prop_assert_eq!(shares[port].owners.get(part), Some(owner));
                        }
                    }
                }
                prop_assert_eq!(shared(&pools, &shares), shares.clone(), "the same again changes nothing");
            }
        }
    }

    #[test]
    fn at_the_start_who_had_a_part_comes_first_and_then_the_older() {
        let pools = [0, 1, 2].map(|name| pool(name, 80, &["a.test"], ProxyProtocol::Off));
        let owner = |tenures: [Tenure; 3]| {
            let claimants = pools.iter().zip(tenures);
            let claimants = claimants.map(|(pool, tenure)| Claimant { pool, rank: tenure as u8 });
            let (shares, lost) = share_out(claimants, &Shares::new());
            let owner = shares[&PortId::Tcp(80)].owners.values().next().unwrap().clone();
            assert!(lost.iter().all(|(id, lost)| *id == owner || lost[0].holder == owner), "{lost:?}");
            owner.name.to_string()
        };
        assert_eq!(owner([Tenure::Unknown; 3]), "0");
        assert_eq!(owner([Tenure::Unknown, Tenure::Whole, Tenure::Earlier]), "1");
        assert_eq!(owner([Tenure::Unknown, Tenure::Unknown, Tenure::Earlier]), "2");
    }

    #[test]
    fn an_edit_is_told_who_has_the_part_and_not_who_would_like_to() {
        let asking = [0, 1].map(|name| pool(name, 80, &["a.test"], ProxyProtocol::Off));
        let shares = share_out([Claimant { pool: &asking[1], rank: 0 }].into_iter(), &Shares::new()).0;
        let edit = pool(2, 80, &["a.test"], ProxyProtocol::Off);
        let conflicts = contested(asking.iter(), &edit, &shares);
        assert_eq!(conflicts.iter().map(|it| &it.holder).collect::<Vec<_>>(), [&asking[1].id]);
        let stays = contested([&asking[0], &edit].into_iter(), &asking[1], &shares);
        assert_eq!(stays, [], "what a pool has is not taken by who came before it and got nothing");
    }
}
