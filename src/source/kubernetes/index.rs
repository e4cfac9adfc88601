//! Owns the join of all pools with what stands in their namespaces. Events in, changes for the programmer out.
//! Pure: no await and no clock of its own, so any order of events can be tried in a test.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::edits::{self, Rooms, Settlement};
use super::entry::PoolEntry;
use super::facts::Key;
use super::guard::Guard;
use super::join::join;
use super::keyring::Look;
use super::namespace::{Namespace, Object, Seen, covers};
use super::resource::PoolResource;
use super::secrets::Named;
use super::watch::{self, Event, Kind, Scope};
use crate::balance::backend::Member;
use crate::balance::pool::{PoolId, PortId};
use crate::balance::seats::Roster;
use crate::balance::snapshot::Shares;
use crate::source::programmer::Change;

/// Everything the API server told us, joined.
#[derive(Debug, Default)]
pub(super) struct Index {
    rooms: Rooms,
    dirty: BTreeMap<PoolId, Dirt>,
    guard: Guard,
    /// The Secrets that pools name, as told last.
    named: Named,
    /// How many Secrets came to be named so far.
    namings: u64,
    /// Whether the lease holder's decisions count for more than our own.
    follows: bool,
    /// No pool can have it.
    own_port: Option<PortId>,
}

#[derive(Debug, Default)]
pub(super) struct Room {
    objects: Namespace,
    pub(super) pools: BTreeMap<Arc<str>, PoolEntry>,
}

/// Why a pool is looked at again, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dirt {
    /// The kind of the first object that told.
    pub(super) cause: Kind,
    /// When it told.
    pub(super) since: Instant,
}

/// A pool that was looked at again.
#[derive(Debug)]
pub(super) struct Drained {
    pub(super) id: PoolId,
    pub(super) dirt: Dirt,
    /// For the programmer, in this order; empty when it all comes to the same.
    pub(super) changes: Vec<Change>,
}

impl Index {
    /// The index of a replica that does not hold the lease, and on `own_port` answers for itself.
    pub(super) fn following(own_port: Option<PortId>) -> Self {
        Self { follows: true, own_port, ..Self::default() }
    }

    /// Takes an event in. Nothing is computed until `drain`, so a burst costs one join.
    pub(super) fn apply(&mut self, event: Event, at: Instant) {
        match event {
            Event::Pools(change) => self.apply_pools(change, at),
            Event::Services(change) => self.apply_objects(change, at),
            Event::Slices(change) => self.apply_objects(change, at),
            Event::Pods(change) => self.apply_objects(change, at),
            Event::Secret(look) => self.apply_look(look, at),
        }
    }

    /// When the first of the changes that wait for `drain` was told.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.dirty.values().map(|dirt| dirt.since).min()
    }

    /// Whether the lease holder's decisions count for more than our own.
    pub(super) fn follow(&mut self, follows: bool) {
        self.follows = follows;
    }

    /// What all changes since the last call come to, where the ports are shared out like this `now`.
    pub(super) fn drain(&mut self, shares: &Shares, now: Instant) -> Vec<Drained> {
        self.mark_waiting();
        let mut drained = BTreeMap::new();
        for (id, dirt) in std::mem::take(&mut self.dirty) {
            let room = self.rooms.get_mut(&id.namespace);
            let entry = room.and_then(|room| Some((room.pools.get_mut(&id.name)?, &room.objects)));
            let changes = match entry {
                Some((entry, objects)) => entry.refresh(objects, self.follows),
                None => vec![Change::Remove(id.clone())],
            };
            drained.insert(id.clone(), Drained { id, dirt, changes });
        }
        let ids: Vec<PoolId> = drained.keys().cloned().collect();
        let settled = Settlement { rooms: &mut self.rooms, shares, now }.settle(&ids);
        for (id, change) in settled {
            drained.entry(id).and_modify(|it| it.changes.push(change));
        }
        for Drained { id, changes, .. } in drained.values_mut() {
            let room = self.rooms.get_mut(&id.namespace);
            let entry = room.and_then(|room| room.pools.get_mut(&id.name));
            changes.extend(entry.and_then(PoolEntry::new_tenure));
        }
        drained.into_values().collect()
    }

    /// An edit that waits may be let in by any change.
    fn mark_waiting(&mut self) {
        let Some(&dirt) = self.dirty.values().min_by_key(|dirt| dirt.since) else { return };
        let waiting: Vec<PoolId> = self.pools().filter(|it| it.waits()).map(|it| it.resource.id()).collect();
        for id in waiting {
            self.dirty.entry(id).or_insert(dirt);
        }
    }

    /// When the first edit has waited enough for what the holder says of another pool. Then call `lose_patience`.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.pools().filter_map(PoolEntry::patience_ends).min()
    }

    /// Has the next `drain` look at the edits that have waited enough.
    pub(super) fn lose_patience(&mut self, now: Instant) {
        let is_over = |it: &&PoolEntry| it.patience_ends().is_some_and(|at| at <= now);
        let ids: Vec<PoolId> = self.pools().filter(is_over).map(|it| it.resource.id()).collect();
        ids.into_iter().for_each(|id| self.mark(id, Kind::Pools, now));
    }

    /// The Secrets that pools name, after a `drain`, if these are others than the last time. What is known of Secrets
    /// that none names any more is forgotten.
    pub(super) fn newly_named_secrets(&mut self) -> Option<Named> {
        let mut named = Named::new();
        for (namespace, room) in &mut self.rooms {
            let names: BTreeSet<&Arc<str>> = room.pools.values().flat_map(PoolEntry::secrets).collect();
            room.objects.keyring.retain(&names);
            for name in names {
                let key = Key { namespace: namespace.clone(), name: name.clone() };
                let number = self.named.get(&key).copied().unwrap_or_else(|| {
                    self.namings += 1;
                    self.namings
                });
                named.insert(key, number);
            }
        }
        if named == self.named {
            return None;
        }
        self.named.clone_from(&named);
        Some(named)
    }

    /// A pool as it stands after the last `drain`.
    pub(super) fn pool(&self, id: &PoolId) -> Option<&PoolEntry> {
        edits::pool(&self.rooms, id)
    }

    /// All pools.
    pub(super) fn pools(&self) -> impl Iterator<Item = &PoolEntry> {
        edits::pools(&self.rooms)
    }

    /// The lists that must be asked for again before what is missing in them is believed.
    pub(super) fn doubted(&self) -> impl Iterator<Item = (Kind, Scope)> {
        self.guard.doubted()
    }

    /// The seats the holder wrote last, for a replica that holds the lease no more.
    pub(super) fn rosters(&self) -> Vec<Change> {
        let roster = |pool: &PoolEntry| {
            Some(Change::Adopt(pool.resource.id(), Roster::clone(pool.resource.roster.as_ref()?)))
        };
        self.pools().filter_map(roster).collect()
    }

    /// Forgets deleted pods that no slice names any more. Call it now and then.
    pub(super) fn forget_gone(&mut self, at: Instant) {
        self.rooms.values_mut().for_each(|room| room.objects.forget_gone(at));
    }

    fn mark(&mut self, id: PoolId, cause: Kind, since: Instant) {
        let dirt = self.dirty.entry(id).or_insert(Dirt { cause, since });
        dirt.since = dirt.since.min(since);
    }

    fn apply_pools(&mut self, change: watch::Change<PoolResource>, at: Instant) {
        match change {
            watch::Change::Applied(resource) => self.put_pool(resource, at),
            watch::Change::Deleted(key) => self.remove_pool(&key, at),
            watch::Change::Relisted { scope, objects } => {
                let listed: HashSet<Key> = objects.iter().map(|pool| pool.key.clone()).collect();
                let known = self.pools().map(|pool| &pool.resource.key);
                let known: Vec<Key> = known.filter(|key| covers(scope.as_ref(), key)).cloned().collect();
                let missing: Vec<Key> = known.iter().filter(|key| !listed.contains(*key)).cloned().collect();
                objects.into_iter().for_each(|resource| self.put_pool(resource, at));
                let shrunk = missing.len() * 2 > known.len();
                for key in self.guard.believe(Kind::Pools, &scope, missing, |_| shrunk, at) {
                    self.remove_pool(&key, at);
                }
            }
        }
    }

    fn put_pool(&mut self, resource: PoolResource, at: Instant) {
        self.guard.seen(Kind::Pools, &resource.key);
        let resource = self.own_port.into_iter().fold(resource, PoolResource::unless_on);
        let id = resource.id();
        let room = self.rooms.entry(id.namespace.clone()).or_default();
        let Some(entry) = room.pools.get_mut(&id.name) else {
            room.pools.insert(id.name.clone(), PoolEntry::new(resource));
            return self.mark(id, Kind::Pools, at);
        };
        let reborn = entry.resource.uid != resource.uid;
        let same = !reborn
            && entry.resource.wants_the_same(&resource)
            && entry.resource.generation == resource.generation
            && entry.resource.verdict.says_the_same(&resource.verdict)
            && entry.resource.roster == resource.roster;
        entry.tell(resource);
        if !same {
            self.mark(id, Kind::Pools, at);
        }
    }

    fn remove_pool(&mut self, key: &Key, at: Instant) {
        self.guard.seen(Kind::Pools, key);
        let removed = self.rooms.get_mut(&key.namespace).and_then(|room| room.pools.remove(&key.name));
        if let Some(entry) = removed {
            self.mark(entry.resource.id(), Kind::Pools, at);
        }
    }

    /// Takes in what a look at a Secret came to, if a pool names it still.
    fn apply_look(&mut self, look: Look, at: Instant) {
        let Some(room) = self.rooms.get_mut(&look.key.namespace) else { return };
        let name = look.key.name;
        let names_it = |entry: &&PoolEntry| entry.secrets().any(|secret| *secret == name);
        let ids: Vec<PoolId> =
            room.pools.values().filter(names_it).map(|entry| entry.resource.id()).collect();
        if !ids.is_empty() {
            room.objects.keyring.take(&name, look.found);
        }
        ids.into_iter().for_each(|id| self.mark(id, Kind::Secrets, at));
    }

    fn apply_objects<T: Object>(&mut self, change: watch::Change<T>, at: Instant) {
        match change {
            watch::Change::Applied(object) => self.put(object, at),
            watch::Change::Deleted(key) => {
                self.guard.seen(T::KIND, &key);
                let Some(room) = self.rooms.get_mut(&key.namespace) else { return };
                if let Some(object) = room.objects.delete::<T>(&key.name, at) {
                    self.mark_concerned(&key, Some(&object), at);
                }
            }
            watch::Change::Relisted { scope, objects } => self.relist(&scope, objects, at),
        }
    }

    fn put<T: Object>(&mut self, object: T, at: Instant) {
        let key = object.key().clone();
        self.guard.seen(T::KIND, &key);
        let room = self.rooms.entry(key.namespace.clone()).or_default();
        if let Some(before) = room.objects.put(object, at) {
            self.mark_concerned(&key, before.as_ref(), at);
        }
    }

    /// Puts a whole list in the place of an earlier one. What is missing leaves at once only where no pool loses more
    /// than half of its backends by it; elsewhere a second list must say the same.
    fn relist<T: Object>(&mut self, scope: &Scope, objects: Vec<T>, at: Instant) {
        let listed: HashSet<Key> = objects.iter().map(|object| object.key().clone()).collect();
        objects.into_iter().for_each(|object| self.put(object, at));
        let mut missing: Vec<Key> = Vec::new();
        for room in self.rooms.values_mut() {
            let known = T::shelf(&mut room.objects).values().map(|seen| seen.facts.key());
            missing
                .extend(known.filter(|key| covers(scope.as_ref(), key) && !listed.contains(*key)).cloned());
        }
        let rooms = &mut self.rooms;
        let shrinks = |missing: &[&Key]| shrinks::<T>(rooms, missing);
        for key in self.guard.believe(T::KIND, scope, missing, shrinks, at) {
            let room = self.rooms.get_mut(&key.namespace);
            // Not a deletion we were told of: a pod missing here lives on where a slice still names it.
            if let Some(seen) = room.and_then(|room| T::shelf(&mut room.objects).remove(&key.name)) {
                self.mark_concerned(&key, Some(&seen.facts), at);
            }
        }
    }

    /// Marks the pools that the object concerns, as it was or as it is now.
    fn mark_concerned<T: Object>(&mut self, key: &Key, before: Option<&T>, at: Instant) {
        let Some(room) = self.rooms.get(&key.namespace) else { return };
        let now = T::find(&room.objects, &key.name).map(|seen| &seen.facts);
        let versions = || before.into_iter().chain(now);
        let concerned = |entry: &&PoolEntry| versions().any(|object| object.concerns(entry, &room.objects));
        let ids: Vec<PoolId> =
            room.pools.values().filter(concerned).map(|entry| entry.resource.id()).collect();
        ids.into_iter().for_each(|id| self.mark(id, T::KIND, at));
    }
}

/// Would a pool of this namespace lose more than half of its backends without the `missing` objects?
/// Pods and slices are witnesses for each other here: a backend that either of them knows is not lost.
fn shrinks<T: Object>(rooms: &mut Rooms, missing: &[&Key]) -> bool {
    let Some(room) = missing.first().and_then(|key| rooms.get_mut(&key.namespace)) else { return false };
    let take = |key: &&Key| Some((key.name.clone(), T::shelf(&mut room.objects).remove(&key.name)?));
    let taken: Vec<(Arc<str>, Seen<T>)> = missing.iter().filter_map(take).collect();
    let shrinks = room.pools.values().any(|entry| {
        let Some(serving) = entry.serving() else { return false };
        let before = entry.members();
        let left = join(serving, &room.objects, before).members;
        let is_left =
            |member: &&Member| left.binary_search_by(|it| it.backend.id.cmp(&member.backend.id)).is_ok();
        before.iter().filter(is_left).count() * 2 < before.len()
    });
    T::shelf(&mut room.objects).extend(taken);
    shrinks
}
