//! Owns which pool of the files gets which part of a port. A host and path of a port go to one pool: whoever has
//! them keeps them, and an edit that asks for them too is a mistake like any other, with its line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::catalog::Held;
use super::reading::{Found, Place, Problem};
use crate::balance::pool::{Listener, Manner, Pool, PoolId, PortId, Protocol};
use crate::balance::routes::{HostPattern, Match};
use crate::balance::tls::TlsTerms;
use crate::source::reach;

/// Pools by their index in `found`, and what is wrong with them.
pub(super) type Refusals = BTreeMap<usize, Vec<Problem>>;

/// Ports that cannot be opened, and why.
pub(super) type Taken = BTreeMap<PortId, String>;

/// Who of `found` asks for a port that it cannot have. `held` are the pools in force, `own` is the port of the
/// process itself. Of several that ask for a free port the first has it.
pub(super) fn refusals(
    found: &[Found],
    held: &BTreeMap<PoolId, Held>,
    own: Option<PortId>,
    taken: &Taken,
) -> Refusals {
    let nothing = Taken::new();
    let mut refused = Refusals::new();
    loop {
        let holders = holders(found, held, &refused);
        let problems = |(index, it, pool): (usize, &Found, &Pool)| {
            let taken = if held.contains_key(&it.id) { taken } else { &nothing };
            (index, problems(it, pool, &holders, own, taken))
        };
        let more: Refusals =
            asking(found, &refused).map(problems).filter(|(_, problems)| !problems.is_empty()).collect();
        if more.is_empty() {
            return refused;
        }
        // Who is refused keeps the ports it has, on which others may have counted.
        refused.extend(more);
    }
}

/// Ports that `found` moves pools in force to and that cannot be opened, with the reasons. A new pool has nothing
/// to lose: it waits for its port.
pub(super) fn taken(
    found: &[Found],
    held: &BTreeMap<PoolId, Held>,
    own: Option<PortId>,
    open: impl Fn(PortId) -> Result<(), String>,
) -> Taken {
    let ports = |pool: &Pool| pool.listeners.iter().map(Listener::port_id).collect::<Vec<_>>();
    let ours: BTreeSet<PortId> = held.values().flat_map(|it| ports(&it.translated.pool)).chain(own).collect();
    let nobody = Refusals::new();
    let edits = asking(found, &nobody).filter(|(_, it, _)| held.contains_key(&it.id));
    let wanted: BTreeSet<PortId> = edits.flat_map(|(_, _, pool)| ports(pool)).collect();
    wanted.difference(&ours).filter_map(|port| Some((*port, open(*port).err()?))).collect()
}

/// Pools that are right so far. The others stay as they are held.
fn asking<'a>(found: &'a [Found], refused: &Refusals) -> impl Iterator<Item = (usize, &'a Found, &'a Pool)> {
    let right = |(index, it): (usize, &'a Found)| Some((index, it, &*it.outcome.as_ref().ok()?.pool));
    found.iter().enumerate().filter(|(index, _)| !refused.contains_key(index)).filter_map(right)
}

/// Who has what of each port.
#[derive(Default)]
struct Holders<'a> {
    parts: BTreeMap<(PortId, &'a Match), (&'a PoolId, &'a Place)>,
    /// Of those who say how the port is spoken on, the first.
    manners: BTreeMap<PortId, (Manner, &'a PoolId, &'a Place)>,
    /// Of those who say what is asked of clients that want a host, the first.
    terms: BTreeMap<(PortId, &'a HostPattern), (&'a TlsTerms, &'a PoolId, &'a Place)>,
}

impl<'a> Holders<'a> {
    /// Gives a listener what is not somebody's yet, of the parts that `keeps` says.
    fn add(
        &mut self,
        listener: &'a Listener,
        id: &'a PoolId,
        place: &'a Place,
        keeps: impl Fn(&Match) -> bool,
    ) {
        let port = listener.port_id();
        self.manners.entry(port).or_insert((listener.manner(), id, place));
        for matched in listener.matches.iter().filter(|matched| keeps(matched)) {
            self.parts.entry((port, matched)).or_insert((id, place));
            if let Some(terms) = &listener.tls {
                self.terms.entry((port, &matched.host)).or_insert((terms, id, place));
            }
        }
    }
}

fn holders<'a>(found: &'a [Found], held: &'a BTreeMap<PoolId, Held>, refused: &Refusals) -> Holders<'a> {
    let asking = || asking(found, refused);
    let edits: BTreeMap<&PoolId, (&Place, &Pool)> =
        asking().map(|(_, it, pool)| (&it.id, (&it.place, pool))).collect();
    let mut holders = Holders::default();
    for (id, held) in held {
        let (place, next) = edits.get(id).copied().unwrap_or((&held.place, &held.translated.pool));
        for had in &held.translated.pool.listeners {
            let same = |it: &&Listener| it.port_id() == had.port_id() && it.manner() == had.manner();
            if let Some(kept) = next.listeners.iter().find(same) {
                holders.add(had, id, place, |matched| kept.matches.contains(matched));
            }
        }
    }
    for (_, it, pool) in asking() {
        pool.listeners.iter().for_each(|listener| holders.add(listener, &it.id, &it.place, |_| true));
    }
    holders
}

fn problems(
    found: &Found,
    pool: &Pool,
    holders: &Holders<'_>,
    own: Option<PortId>,
    taken: &Taken,
) -> Vec<Problem> {
    let problem = |(index, listener): (usize, &Listener)| {
        let (field, reason) = fault(found, listener, holders, own, taken)?;
        let field = format!("spec.listeners[{index}].{field}");
        Some(Problem { place: found.place_of(&field), field, reason })
    };
    pool.listeners.iter().enumerate().filter_map(problem).collect()
}

/// The field of a listener that asks for what it cannot have, and why.
fn fault(
    found: &Found,
    listener: &Listener,
    holders: &Holders<'_>,
    own: Option<PortId>,
    taken: &Taken,
) -> Option<(&'static str, String)> {
    let (port, manner) = (listener.port_id(), listener.manner());
    if own == Some(port) {
        return Some(("port", reach::is_our_own(port)));
    }
    let differs = holders.manners.get(&port).filter(|(theirs, _, _)| *theirs != manner);
    if let Some((theirs, id, place)) = differs
        && (theirs.protocol, theirs.encrypted) != (manner.protocol, manner.encrypted)
    {
        return Some(("protocol", disagreement("protocol", port, id, place)));
    }
    let other = |matched| holders.parts.get(&(port, matched)).filter(|(id, _)| **id != found.id);
    if let Some((matched, (id, place))) = listener.matches.iter().find_map(|it| Some((it, other(it)?))) {
        let reason = match matched {
            _ if manner.protocol != Protocol::Http => {
                format!("pool {id} at {place} has port {port} too; use another port")
            }
            all if *all == Match::all() => format!(
                "pool {id} at {place} has port {port} too; use another port, or name the hosts or paths of each"
            ),
            part => {
                format!("pool {id} at {place} has {part} of port {port} too; use another port, host or path")
            }
        };
        return Some(("port", reason));
    }
    if let Some(reason) = taken.get(&port) {
        return Some(("port", reason.clone()));
    }
    if let Some((_, id, place)) = differs {
        return Some(("proxyProtocol", disagreement("proxyProtocol", port, id, place)));
    }
    let terms = listener.tls.as_ref()?;
    let asked = |host| holders.terms.get(&(port, host)).filter(|(other, _, _)| !other.asks_like(terms));
    let (host, (_, id, place)) = listener.matches.iter().find_map(|it| Some((&it.host, asked(&it.host)?)))?;
    let reason = format!(
        "pool {id} at {place} asks clients of host {host} on port {port} for another minVersion or clientCA; use the same, or another host or port"
    );
    Some(("tls", reason))
}

fn disagreement(field: &str, port: PortId, id: &PoolId, place: &Place) -> String {
    format!("pool {id} at {place} has another {field} on port {port}; use the same, or another port")
}

/// Finds out whether the proxy could open a port, and if not, why and what to do about it.
pub struct PortProbe(Box<dyn Fn(PortId) -> Result<(), String> + Send + Sync>);

impl PortProbe {
    /// Asks `probe`.
    pub fn new(probe: impl Fn(PortId) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Box::new(probe))
    }

    pub(super) fn check(&self, port: PortId) -> Result<(), String> {
        (self.0)(port)
    }
}

impl fmt::Debug for PortProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PortProbe")
    }
}
