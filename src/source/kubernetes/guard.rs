//! Owns the doubt about lists that lost a lot. An API server that comes back from a restore may answer with too
//! little or with nothing; what is missing in one such list is kept until a second list, a little later, agrees.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::facts::Key;
use super::watch::{Kind, Scope};

/// How much later a second list must be to count as a second witness: long enough for an API server that just came
/// up to have read its storage, short enough that dead addresses do not stay.
pub(super) const SECOND_OPINION: Duration = Duration::from_secs(2);

/// Objects that are missing in the latest list and are kept all the same.
#[derive(Debug, Default)]
pub(super) struct Guard {
    kept: HashMap<(Kind, Key), Kept>,
}

#[derive(Debug)]
struct Kept {
    scope: Scope,
    since: Instant,
}

impl Guard {
    /// The object was told of by name: no doubt any more.
    pub(super) fn seen(&mut self, kind: Kind, key: &Key) {
        if !self.kept.is_empty() {
            self.kept.remove(&(kind, key.clone()));
        }
    }

    /// Of the objects that a list lacks, those that may be taken for gone. `shrinks` says whether losing all these
    /// objects of one namespace would cost too much to believe one list.
    pub(super) fn believe(
        &mut self,
        kind: Kind,
        scope: &Scope,
        missing: Vec<Key>,
        mut shrinks: impl FnMut(&[&Key]) -> bool,
        at: Instant,
    ) -> Vec<Key> {
        let mut by_namespace: HashMap<Arc<str>, Vec<Key>> = HashMap::new();
        for key in missing {
            by_namespace.entry(key.namespace.clone()).or_default().push(key);
        }
        let mut gone = Vec::new();
        for (namespace, keys) in by_namespace {
            let confirmed = keys.iter().all(|key| self.is_confirmed(kind, key, at));
            if confirmed || !shrinks(&keys.iter().collect::<Vec<_>>()) {
                keys.iter().for_each(|key| self.seen(kind, key));
                gone.extend(keys);
            } else {
                let kind_name = kind.name();
                tracing::warn!(kind = kind_name, %namespace, missing = keys.len(), "a list lacks most of what was known; kept until a second list agrees");
                for key in keys {
                    let kept = || Kept { scope: scope.clone(), since: at };
                    self.kept.entry((kind, key)).or_insert_with(kept);
                }
            }
        }
        gone
    }

    /// The lists that a second opinion is needed for.
    pub(super) fn doubted(&self) -> impl Iterator<Item = (Kind, Scope)> {
        let lists: BTreeSet<(Kind, Scope)> =
            self.kept.iter().map(|((kind, _), kept)| (*kind, kept.scope.clone())).collect();
        lists.into_iter()
    }

    fn is_confirmed(&self, kind: Kind, key: &Key, at: Instant) -> bool {
        let kept = self.kept.get(&(kind, key.clone()));
        kept.is_some_and(|kept| at.duration_since(kept.since) >= SECOND_OPINION)
    }
}
