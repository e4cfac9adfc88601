//! Owns which waiting edits come into force: those that take nothing from another pool, one after the other or, where
//! pools exchange ports, all at once. What the lease holder decided comes first; a follower does not wait for its word
//! where it can see itself that what an edit waits for is free, so that no port is closed in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::entry::{PoolEntry, Voice};
use super::index::Room;
use crate::balance::pool::{Pool, PoolId};
use crate::balance::snapshot::Shares;
use crate::source::claims::{Conflict, contested};
use crate::source::programmer::Change;

/// How long what the holder decided waits for its word on the pool that still has the part here. Both are written at
/// once; this is how long one write may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The pools by namespace and name.
pub(super) type Rooms = BTreeMap<Arc<str>, Room>;

/// One settling of the edits that wait.
pub(super) struct Settlement<'a> {
    pub(super) rooms: &'a mut Rooms,
    /// How the ports are shared out now.
    pub(super) shares: &'a Shares,
    pub(super) now: Instant,
}

impl Settlement<'_> {
    /// Puts those edits of the pools `looked_at` into force that may be, and says what that changes.
    pub(super) fn settle(mut self, looked_at: &[PoolId]) -> Vec<(PoolId, Change)> {
        let edits = self.edits(looked_at);
        for (_, id) in &edits {
            self.begin_to_wait(id);
        }
        let of = |voice: Voice| edits.iter().filter(move |it| it.0 == voice).map(|(_, id)| id.clone());
        let mut changes = Vec::new();
        let mut waiting: Vec<PoolId> = of(Voice::Holder).collect();
        self.settle_those(&mut waiting, &mut changes);
        let mut with_returns = [waiting.clone(), self.in_the_way_of(&waiting)].concat();
        if with_returns.len() > waiting.len() {
            self.settle_those(&mut with_returns, &mut changes);
            waiting.retain(|id| with_returns.contains(id));
        }
        let over: Vec<PoolId> = waiting.extract_if(.., |id| self.has_waited_enough(id)).collect();
        over.iter().for_each(|id| changes.extend(self.accept(id)));
        for voice in [Voice::Own, Voice::Ahead] {
            waiting.extend(of(voice).filter(|id| voice == Voice::Own || self.has_conflicts(id)));
            self.settle_those(&mut waiting, &mut changes);
        }
        for id in waiting {
            let (conflicts, now) = (self.conflicts_of(&id, &[]), self.now);
            if let Some(entry) = self.entry(&id) {
                entry.wait(conflicts, now);
            }
        }
        changes
    }

    /// The pools with an edit, those of the weightiest voice first, and then the oldest.
    fn edits(&self, looked_at: &[PoolId]) -> Vec<(Voice, PoolId)> {
        let edited = |id: &PoolId| {
            let entry = pool(self.rooms, id)?;
            Some((entry.voice()?, entry.edit()?.created_ms, id.clone()))
        };
        let mut edits: Vec<(Voice, u64, PoolId)> = looked_at.iter().filter_map(edited).collect();
        edits.sort();
        edits.into_iter().map(|(voice, _, id)| (voice, id)).collect()
    }

    /// Remembers what stands in the way of an edit before others go out of it.
    fn begin_to_wait(&mut self, id: &PoolId) {
        let conflicts = self.conflicts_of(id, &[]);
        if !conflicts.is_empty()
            && let Some(entry) = self.entry(id)
        {
            entry.conflicts = conflicts;
        }
    }

    /// Puts those of `waiting` into force that may be, and leaves the others there.
    fn settle_those(&mut self, waiting: &mut Vec<PoolId>, changes: &mut Vec<(PoolId, Change)>) {
        loop {
            // What one leaves is for the first of those who wait for it.
            while let Some(at) = waiting.iter().position(|id| self.conflicts_of(id, &[]).is_empty()) {
                changes.extend(self.accept(&waiting.remove(at)));
            }
            let before = waiting.len();
            let together = self.fit_together(waiting.clone());
            waiting.retain(|id| !together.contains(id));
            together.iter().for_each(|id| changes.extend(self.accept(id)));
            if waiting.is_empty() || waiting.len() == before {
                return;
            }
        }
    }

    /// Those of `edits` that take nothing from anybody if they come into force at once. Of two that ask for the same
    /// the earlier one in the list has it.
    fn fit_together(&self, mut edits: Vec<PoolId>) -> Vec<PoolId> {
        loop {
            let before = edits.len();
            let alone = |id: &PoolId| self.conflicts_with_those_who_stay(id, &edits).is_empty();
            edits = edits.iter().filter(|id| alone(id)).cloned().collect();
            if edits.len() < before {
                continue;
            }
            match edits.iter().rposition(|id| !self.conflicts_of(id, &edits).is_empty()) {
                Some(last) => drop(edits.remove(last)),
                None => return edits,
            }
        }
    }

    /// Pools that went ahead of the holder and now keep what it decided on `waiting` from coming into force.
    fn in_the_way_of(&self, waiting: &[PoolId]) -> Vec<PoolId> {
        let holders =
            waiting.iter().flat_map(|id| self.conflicts_of(id, &[])).map(|conflict| conflict.holder);
        let mut ids: Vec<PoolId> = holders
            .filter(|id| pool(self.rooms, id).and_then(PoolEntry::voice) == Some(Voice::Return))
            .collect();
        ids.sort();
        ids.dedup();
        ids
    }

    fn has_waited_enough(&self, id: &PoolId) -> bool {
        pool(self.rooms, id).and_then(PoolEntry::patience_ends).is_some_and(|at| at <= self.now)
    }

    fn has_conflicts(&self, id: &PoolId) -> bool {
        pool(self.rooms, id).is_some_and(|entry| !entry.conflicts.is_empty())
    }

    /// What the edit of pool `id` would take from other pools, given that the edits of `along` come into force with it.
    fn conflicts_of(&self, id: &PoolId, along: &[PoolId]) -> Vec<Conflict> {
        let then = |it: &'_ PoolEntry| along.contains(&it.resource.id());
        self.conflicts(id, |it| if then(it) { it.edit() } else { it.in_force() })
    }

    /// As `conflicts_of`, but for what those of `along` ask for.
    fn conflicts_with_those_who_stay(&self, id: &PoolId, along: &[PoolId]) -> Vec<Conflict> {
        let goes = |it: &'_ PoolEntry| along.contains(&it.resource.id());
        self.conflicts(id, |it| if goes(it) { None } else { it.in_force() })
    }

    fn conflicts<'s>(
        &'s self,
        id: &PoolId,
        then: impl Fn(&'s PoolEntry) -> Option<&'s Pool>,
    ) -> Vec<Conflict> {
        let Some(entry) = pool(self.rooms, id) else { return Vec::new() };
        let Some(edit) = entry.edit() else { return Vec::new() };
        let others = || pools(self.rooms).filter(|other| other.resource.id() != *id);
        let mut conflicts = contested(others().filter_map(then), edit, self.shares);
        // What it lacks already is not taken by the edit.
        if let Some(in_force) = entry.in_force().filter(|_| !conflicts.is_empty()) {
            let lacking = contested(others().filter_map(PoolEntry::in_force), in_force, self.shares);
            conflicts.retain(|conflict| !lacking.contains(conflict));
        }
        conflicts
    }

    fn accept(&mut self, id: &PoolId) -> Option<(PoolId, Change)> {
        let change = self.entry(id)?.accept_edit()?;
        Some((id.clone(), change))
    }

    fn entry(&mut self, id: &PoolId) -> Option<&mut PoolEntry> {
        self.rooms.get_mut(&id.namespace)?.pools.get_mut(&id.name)
    }
}

/// A pool of these rooms.
pub(super) fn pool<'a>(rooms: &'a Rooms, id: &PoolId) -> Option<&'a PoolEntry> {
    rooms.get(&id.namespace)?.pools.get(&id.name)
}

/// All pools of these rooms.
pub(super) fn pools(rooms: &Rooms) -> impl Iterator<Item = &PoolEntry> {
    rooms.values().flat_map(|room| room.pools.values())
}
