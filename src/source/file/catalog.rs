//! Owns which pools are in force: from every new reading of the files it takes what is right, and leaves
//! what is wrong as it last was. Pure, so that the rules can be tested without files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::reading::{Found, Place, Problem, Reading};
use crate::balance::pool::PoolId;
use crate::source::programmer::{Change, PoolFacts};
use crate::source::translate::{BackendSource, Translated};

/// The pools in force.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    pools: BTreeMap<PoolId, Held>,
}

#[derive(Clone, Debug)]
struct Held {
    file: Arc<Path>,
    translated: Translated,
}

/// What a new reading came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// What differs from the pools in force before.
    pub(super) changes: Vec<Change>,
    /// Everything that is wrong, in the order of files and lines.
    pub(super) problems: Vec<Problem>,
    /// Pools whose latest edit is not in force, and files that cannot be told pools from.
    pub(super) in_error: usize,
}

impl Catalog {
    /// Takes in a new reading of every file. Pools of files that are gone are removed, unless `vanished` says
    /// that the whole place they stand in is.
    pub(super) fn update(&mut self, files: BTreeMap<Arc<Path>, Reading>, vanished: bool) -> Outcome {
        let mut outcome = Outcome::default();
        let mut uncertain: BTreeSet<Arc<Path>> = BTreeSet::new();
        let mut found: BTreeMap<PoolId, Vec<Found>> = BTreeMap::new();
        for (file, reading) in &files {
            if !reading.loose.is_empty() {
                uncertain.insert(file.clone());
                outcome.in_error += 1;
            }
        }
        for reading in files.values() {
            outcome.problems.extend(reading.loose.iter().cloned());
        }
        let known: BTreeSet<Arc<Path>> = files.keys().cloned().collect();
        for pool in files.into_values().flat_map(|reading| reading.pools) {
            found.entry(pool.id.clone()).or_default().push(pool);
        }
        let wrong = self.take(found, &mut outcome);
        self.drop_absent(&wrong, &mut outcome, |file| {
            uncertain.contains(file) || (vanished && !known.contains(file))
        });
        outcome.in_error += wrong.values().filter(|is_wrong| **is_wrong).count();
        outcome.problems.sort();
        outcome
    }

    /// Says whether a pool is in force.
    pub(super) fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// Puts what is right in force. Returns every pool found, and whether it is wrong.
    fn take(&mut self, found: BTreeMap<PoolId, Vec<Found>>, outcome: &mut Outcome) -> BTreeMap<PoolId, bool> {
        let mut seen = BTreeMap::new();
        for (id, mut places) in found {
            outcome.problems.extend(doubles(&id, &places));
            let is_double = places.len() > 1;
            for it in &mut places {
                outcome.problems.extend(it.outcome.as_mut().err().into_iter().flat_map(std::mem::take));
            }
            let right = places.pop().filter(|_| !is_double);
            let right = right.and_then(|it| it.outcome.ok().map(|translated| (it.place, translated)));
            seen.insert(id.clone(), right.is_none());
            if let Some((place, translated)) = right {
                self.set(id, &place, translated, outcome);
            }
        }
        seen
    }

    fn set(&mut self, id: PoolId, place: &Place, translated: Translated, outcome: &mut Outcome) {
        let differs = self.pools.get(&id).is_none_or(|before| before.translated != translated);
        if differs {
            outcome.changes.push(Change::Set(facts(&translated)));
        }
        self.pools.insert(id, Held { file: place.file.clone(), translated });
    }

    fn drop_absent(
        &mut self,
        found: &BTreeMap<PoolId, bool>,
        outcome: &mut Outcome,
        stays: impl Fn(&Arc<Path>) -> bool,
    ) {
        self.pools.retain(|id, held| {
            let keep = found.contains_key(id) || stays(&held.file);
            if !keep {
                outcome.changes.push(Change::Remove(id.clone()));
            }
            keep
        });
    }
}

/// Nobody can say which of two definitions is meant, so neither is taken.
pub(super) fn doubles(id: &PoolId, places: &[Found]) -> Vec<Problem> {
    let [first, others @ ..] = places else { return Vec::new() };
    let double = |other: &Found| Problem {
        place: other.place.clone(),
        field: "metadata.name".into(),
        reason: format!("pool {id} stands at {} already; remove or rename one of the two", first.place),
    };
    others.iter().map(double).collect()
}

fn facts(translated: &Translated) -> PoolFacts {
    let members = translated.backends.iter().flat_map(|backend| match backend {
        BackendSource::Endpoints { members, .. } => members.as_slice(),
        // Refused while reading.
        BackendSource::Service { .. } => &[],
    });
    PoolFacts { pool: translated.pool.clone(), members: members.cloned().collect() }
}

#[cfg(test)]
mod tests {
    use super::super::reading;
    use super::super::reading::tests::pool;
    use super::*;
    use crate::source::admission::Admission;
    use crate::source::reach::Target;

    struct Folder {
        catalog: Catalog,
        admission: Admission,
    }

    impl Folder {
        fn new() -> Self {
            Self { catalog: Catalog::default(), admission: Admission::new().unwrap() }
        }

        fn read(&self, files: &[(&str, &str)]) -> BTreeMap<Arc<Path>, Reading> {
            let read = |(file, text): &(&str, &str)| {
                let file: Arc<Path> = Path::new(file).into();
                (file.clone(), reading::read(text, &file, &self.admission, Target::Standalone))
            };
            files.iter().map(read).collect()
        }

        /// The changes and problems of these files, in words.
        fn check(&mut self, files: &[(&str, &str)], changes: &[&str], problems: &[&str]) {
            let outcome = self.catalog.update(self.read(files), false);
            self.compare(&outcome, changes, problems);
        }

        fn compare(&self, outcome: &Outcome, changes: &[&str], problems: &[&str]) {
            let in_words = |change: &Change| match change {
                Change::Set(facts) => format!("{}:{}", facts.pool.id.name, facts.pool.listeners[0].port),
                Change::Remove(id) => format!("-{}", id.name),
                Change::Adopt(..) => panic!("no seats here"),
            };
            assert_eq!(outcome.changes.iter().map(in_words).collect::<Vec<_>>(), changes);
            assert_eq!(outcome.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), problems);
        }
    }

    #[test]
    fn only_what_differs_is_changed() {
        let mut folder = Folder::new();
        let both = format!("{}---\n{}", pool("a", 80), pool("b", 81));
        folder.check(&[("x.yaml", &both)], &["a:80", "b:81"], &[]);
        folder.check(&[("x.yaml", &both)], &[], &[]);
        folder.check(&[("x.yaml", &pool("a", 82))], &["a:82", "-b"], &[]);
        folder.check(&[("y.yaml", &pool("a", 82))], &[], &[]);
    }

    #[test]
    fn a_bad_pool_stays_as_it_was_and_disturbs_no_other() {
        let mut folder = Folder::new();
        let both = |a, b| format!("{}---\n{}", pool("a", a), pool("b", b));
        folder.check(&[("x.yaml", &both(80, 81))], &["a:80", "b:81"], &[]);
        folder.check(
            &[("x.yaml", &both(70_000, 82))],
            &["b:82"],
            &["x.yaml:7: spec.listeners[0].port: 70000 is not a port; use 1 to 65535"],
        );
        folder.check(&[("x.yaml", &both(83, 82))], &["a:83"], &[]);
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_all_its_pools() {
        let mut folder = Folder::new();
        folder.check(&[("x.yaml", &pool("a", 80)), ("y.yaml", &pool("b", 81))], &["a:80", "b:81"], &[]);
        for text in ["a: [", "", "kind: LoadBalancerPool\n"] {
            let outcome =
                folder.catalog.update(folder.read(&[("x.yaml", text), ("y.yaml", &pool("b", 82))]), false);
            assert_eq!(outcome.problems.len(), 1, "{text:?}");
            assert_eq!(outcome.in_error, 1, "{text:?}");
            assert!(folder.catalog.pools.contains_key(&PoolId::new("default", "a")), "{text:?}");
        }
        folder.check(&[("x.yaml", &pool("c", 83)), ("y.yaml", &pool("b", 82))], &["c:83", "-a"], &[]);
    }

    #[test]
    fn a_pool_that_stands_in_two_places_stays_as_it_was() {
        let mut folder = Folder::new();
        folder.check(&[("x.yaml", &pool("a", 80))], &["a:80"], &[]);
        folder.check(
            &[("w.yaml", &pool("a", 81)), ("x.yaml", &pool("a", 80))],
            &[],
            &["x.yaml:1: metadata.name: pool default/a stands at w.yaml:1 already; remove or rename one of the two"],
        );
        folder.check(&[("w.yaml", &pool("a", 81))], &["a:81"], &[]);
    }

    #[test]
    fn a_removed_file_takes_its_pools_along_but_a_vanished_folder_none() {
        let mut folder = Folder::new();
        folder.check(&[("x.yaml", &pool("a", 80)), ("y.yaml", &pool("b", 81))], &["a:80", "b:81"], &[]);
        folder.check(&[("x.yaml", &pool("a", 80))], &["-b"], &[]);
        let outcome = folder.catalog.update(BTreeMap::new(), true);
        folder.compare(&outcome, &[], &[]);
        assert!(!folder.catalog.is_empty());
    }
}
