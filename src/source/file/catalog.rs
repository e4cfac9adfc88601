//! Owns which pools are in force: from every new reading of the files it takes what is right, and leaves
//! what is wrong as it last was. Pure, so that the rules can be tested without files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::ports::{self, PortProbe};
use super::reading::{Found, Place, Problem, Reading};
use crate::balance::pool::{Listener, Pool, PoolId, PortId};
use crate::handoff::BindState;
use crate::source::programmer::{Change, PoolFacts};
use crate::source::translate::{BackendSource, Translated};

/// The pools in force. No two of them have the same port.
#[derive(Debug)]
pub(super) struct Catalog {
    /// The port of the process itself, which no pool can have.
    own_port: Option<PortId>,
    probe: PortProbe,
    /// An edit is not in force because another program has its port, which may become free.
    waits_for_port: bool,
    pools: BTreeMap<PoolId, Held>,
}

/// A pool in force.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Where it stands, whether what stands there now is right or not.
    pub(super) place: Place,
    /// Where the ports of its listeners stood when they came into force.
    ports: Vec<Place>,
    /// What is in force of it.
    pub(super) translated: Translated,
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
    /// Pools that are in force as an earlier edit had them.
    pub(super) kept: usize,
}

impl Catalog {
    /// Without pools yet.
    pub(super) fn new(own_port: Option<PortId>, probe: PortProbe) -> Self {
        Self { own_port, probe, waits_for_port: false, pools: BTreeMap::new() }
    }

    /// Whether the same files may be right later, when another program has given up a port.
    pub(super) fn waits_for_port(&self) -> bool {
        self.waits_for_port
    }

    /// Takes in a new reading of every file. Pools of files that are gone are removed, unless `vanished` says
    /// that the whole place they stand in is.
    pub(super) fn update(&mut self, files: BTreeMap<Arc<Path>, Reading>, vanished: bool) -> Outcome {
        let mut outcome = Outcome::default();
        let known: BTreeSet<Arc<Path>> = files.keys().cloned().collect();
        let uncertain = files.iter().filter(|(_, reading)| !reading.loose.is_empty());
        let uncertain: BTreeSet<Arc<Path>> = uncertain.map(|(file, _)| file.clone()).collect();
        let mut found: BTreeMap<PoolId, Vec<Found>> = BTreeMap::new();
        for reading in files.into_values() {
            outcome.problems.extend(reading.loose);
            for pool in reading.pools {
                found.entry(pool.id.clone()).or_default().push(pool);
            }
        }
        // First, because what they had is free for others.
        let removed =
            self.drop_absent(&found, |file| uncertain.contains(file) || (vanished && !known.contains(file)));
        let count = found.len();
        let right = self.sift(found, &mut outcome);
        outcome.in_error = uncertain.len() + count - right.len();
        let correct = right.len();
        right.into_iter().for_each(|it| self.set(it, &mut outcome));
        outcome.kept = self.pools.len() - correct;
        outcome.changes.extend(removed);
        outcome.problems.sort();
        outcome
    }

    /// The pools in force.
    pub(super) fn in_force(&self) -> BTreeMap<PoolId, Arc<Pool>> {
        self.pools.iter().map(|(id, held)| (id.clone(), held.translated.pool.clone())).collect()
    }

    /// Listeners of pools in force whose port could not be opened, which `bindings` tell.
    pub(super) fn closed(&self, bindings: &BTreeMap<PortId, BindState>) -> Vec<Problem> {
        let closed = |(index, (listener, place)): (usize, (&Listener, &Place))| {
            let Some(BindState::Failed { reason }) = bindings.get(&listener.port_id()) else { return None };
            let reason = format!("{reason}; it is tried again until it opens");
            Some(Problem { place: place.clone(), field: port_field(index), reason })
        };
        let of_pool = |(id, held): (&PoolId, &Held)| {
            let listeners = held.translated.pool.listeners.iter().zip(&held.ports).enumerate();
            let of_pool =
                |problem: Problem| Problem { reason: format!("pool {id}: {}", problem.reason), ..problem };
            listeners.filter_map(closed).map(of_pool).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(of_pool).collect()
    }

    /// Says whether a pool is in force.
    pub(super) fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    fn drop_absent(
        &mut self,
        found: &BTreeMap<PoolId, Vec<Found>>,
        stays: impl Fn(&Arc<Path>) -> bool,
    ) -> Vec<Change> {
        let absent = |id: &PoolId, held: &mut Held| !found.contains_key(id) && !stays(&held.place.file);
        self.pools.extract_if(.., absent).map(|(id, _)| Change::Remove(id)).collect()
    }

    /// The pools that nothing is wrong with.
    fn sift(&mut self, found: BTreeMap<PoolId, Vec<Found>>, outcome: &mut Outcome) -> Vec<Found> {
        let mut right: Vec<Found> = Vec::new();
        for (id, mut places) in found {
            outcome.problems.extend(doubles(&id, &places));
            for it in &mut places {
                outcome.problems.extend(it.outcome.as_mut().err().into_iter().flat_map(std::mem::take));
            }
            if places.len() > 1 {
                continue;
            }
            for it in places {
                self.pools.entry(id.clone()).and_modify(|held| held.place = it.place.clone());
                right.extend(Some(it).filter(|it| it.outcome.is_ok()));
            }
        }
        right.sort_by(|a, b| a.place.cmp(&b.place));
        let taken = ports::taken(&right, &self.pools, self.own_port, |port| self.probe.check(port));
        self.waits_for_port = !taken.is_empty();
        let refused = ports::refusals(&right, &self.pools, self.own_port, &taken);
        let right = (0..).zip(right).filter(|(index, _)| !refused.contains_key(index));
        let right = right.map(|(_, it)| it).collect();
        outcome.problems.extend(refused.into_values().flatten());
        right
    }

    fn set(&mut self, found: Found, outcome: &mut Outcome) {
        let listeners = found.outcome.as_ref().map_or(0, |it| it.pool.listeners.len());
        let ports = (0..listeners).map(|index| found.place_of(&port_field(index))).collect();
        let Found { id, place, outcome: Ok(translated), .. } = found else { return };
        let differs = self.pools.get(&id).is_none_or(|before| before.translated != translated);
        if differs {
            outcome.changes.push(Change::Set(facts(&translated)));
        }
        self.pools.insert(id, Held { place, ports, translated });
    }
}

fn port_field(listener: usize) -> String {
    format!("spec.listeners[{listener}].port")
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

    const OWN_PORT: u16 = 9901;

    /// A port that another program has.
    const TAKEN_PORT: u16 = 8009;

    fn probe() -> PortProbe {
        PortProbe::new(
            |port| if port == PortId::Tcp(TAKEN_PORT) { Err("it is taken".into()) } else { Ok(()) },
        )
    }

    struct Folder {
        catalog: Catalog,
        admission: Admission,
    }

    impl Folder {
        fn new() -> Self {
            Self {
                catalog: Catalog::new(Some(PortId::Tcp(OWN_PORT)), probe()),
                admission: Admission::new().unwrap(),
            }
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
                Change::Adopt(..) | Change::Tenure(..) => panic!("no seats and no status here"),
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

    /// The pools `a` and `b` in one file, with these ports.
    fn both(a: u32, b: u32) -> String {
        format!("{}---\n{}", pool("a", a), pool("b", b))
    }

    #[test]
    fn a_bad_pool_stays_as_it_was_and_disturbs_no_other() {
        let mut folder = Folder::new();
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
    fn a_port_stays_with_the_pool_that_has_it() {
        let mut folder = Folder::new();
        folder.check(&[("x.yaml", &both(80, 81))], &["a:80", "b:81"], &[]);
        folder.check(
            &[("x.yaml", &both(80, 80))],
            &[],
            &["x.yaml:18: spec.listeners[0].port: pool default/a at x.yaml:1 has port 80 too; use another port, or \
               name the hosts or paths of each"],
        );
        // The first in the file is the one that came too late.
        folder.check(
            &[("x.yaml", &both(81, 81))],
            &[],
            &["x.yaml:7: spec.listeners[0].port: pool default/b at x.yaml:12 has port 81 too; use another port, or \
               name the hosts or paths of each"],
        );
        folder.check(&[("x.yaml", &both(81, 80))], &["a:81", "b:80"], &[]);
        folder.check(&[("x.yaml", &pool("a", 80))], &["a:80", "-b"], &[]);
    }

    /// The pools `a` and `b` on port 80, with these fields of their listeners.
    fn sharing(a: &str, b: &str) -> String {
        let with = |name, fields: &str| {
            pool(name, 80).replace("port: 80\n  b", &format!("port: 80\n    {fields}\n  b"))
        };
        format!("{}---\n{}", with("a", a), with("b", b))
    }

    #[test]
    fn pools_share_a_port_by_host_and_path_but_not_the_same_ones() {
        let mut folder = Folder::new();
        let apart = sharing("hostnames: [a.test]", "hostnames: [b.test]");
        folder.check(&[("x.yaml", &apart)], &["a:80", "b:80"], &[]);
        // The first in the file wants what the second has.
        folder.check(
            &[("x.yaml", &sharing("hostnames: [a.test, b.test]", "hostnames: [b.test]"))],
            &[],
            &["x.yaml:7: spec.listeners[0].port: pool default/b at x.yaml:13 has host b.test path / of port 80 too; \
               use another port, host or path"],
        );
        let by_path = sharing("hostnames: [b.test]", "hostnames: [b.test]\n    paths: [/b]");
        folder.check(&[("x.yaml", &by_path)], &["a:80", "b:80"], &[]);
    }

    #[test]
    fn pools_of_one_port_agree_how_its_connections_begin() {
        let mut folder = Folder::new();
        let apart = |a: &str, b: &str| {
            sharing(&format!("hostnames: [a.test]{a}"), &format!("hostnames: [b.test]{b}"))
        };
        let requires = "\n    proxyProtocol: Require";
        folder.check(&[("x.yaml", &apart("", ""))], &["a:80", "b:80"], &[]);
        folder.check(
            &[("x.yaml", &apart("", requires))],
            &[],
            &["x.yaml:21: spec.listeners[0].proxyProtocol: pool default/a at x.yaml:1 has another proxyProtocol on \
               port 80; use the same, or another port"],
        );
        folder.check(&[("x.yaml", &apart(requires, requires))], &["a:80", "b:80"], &[]);
    }

    #[test]
    fn a_port_has_one_protocol_and_without_requests_one_pool() {
        let mut folder = Folder::new();
        let speaking = |a, b| sharing(&format!("protocol: {a}"), &format!("protocol: {b}"));
        folder.check(&[("x.yaml", &speaking("TCP", "UDP"))], &["a:80", "b:80"], &[]);
        folder.check(
            &[("x.yaml", &speaking("TCP", "TCP"))],
            &[],
            &["x.yaml:19: spec.listeners[0].port: pool default/a at x.yaml:1 has port 80 too; use another port"],
        );
        folder.check(
            &[("x.yaml", &speaking("TCP", "HTTP"))],
            &[],
            &["x.yaml:20: spec.listeners[0].protocol: pool default/a at x.yaml:1 has another protocol on port 80; use \
               the same, or another port"],
        );
        folder.check(&[("x.yaml", &speaking("UDP", "TCP"))], &["a:80", "b:80"], &[]);
        folder.check(
            &[("x.yaml", &speaking("UDP", "UDP"))],
            &[],
            &["x.yaml:19: spec.listeners[0].port: pool default/a at x.yaml:1 has port 80/UDP too; use another port"],
        );
    }

    #[test]
    fn a_port_that_a_refused_edit_would_have_given_up_is_not_free() {
        let mut folder = Folder::new();
        let three = |a, b, c| format!("{}---\n{}---\n{}", pool("a", a), pool("b", b), pool("c", c));
        folder.check(&[("x.yaml", &three(80, 81, 82))], &["a:80", "b:81", "c:82"], &[]);
        folder.check(
            &[("x.yaml", &three(81, 82, 70_000))],
            &[],
            &[
                "x.yaml:7: spec.listeners[0].port: pool default/b at x.yaml:12 has port 81 too; use another port, or \
                 name the hosts or paths of each",
                "x.yaml:18: spec.listeners[0].port: pool default/c at x.yaml:23 has port 82 too; use another port, or \
                 name the hosts or paths of each",
                "x.yaml:29: spec.listeners[0].port: 70000 is not a port; use 1 to 65535",
            ],
        );
        folder.check(&[("x.yaml", &three(81, 82, 83))], &["a:81", "b:82", "c:83"], &[]);
    }

    #[test]
    fn a_port_that_a_move_to_a_taken_port_would_have_given_up_is_not_free() {
        let mut folder = Folder::new();
        folder.check(&[("x.yaml", &pool("a", 80))], &["a:80"], &[]);
        folder.check(
            &[("x.yaml", &both(TAKEN_PORT.into(), 80))],
            &[],
            &[
                "x.yaml:7: spec.listeners[0].port: it is taken",
                "x.yaml:18: spec.listeners[0].port: pool default/a at x.yaml:1 has port 80 too; use another port, or \
                 name the hosts or paths of each",
            ],
        );
        assert!(folder.catalog.waits_for_port());
    }

    #[test]
    fn the_port_of_the_process_itself_goes_to_no_pool() {
        let mut folder = Folder::new();
        let text = pool("a", OWN_PORT.into());
        let problem = "x.yaml:7: spec.listeners[0].port: 9901 is Guideway's own metrics port (--metrics-address); \
                       use another port";
        folder.check(&[("x.yaml", &pool("a", 80))], &["a:80"], &[]);
        folder.check(&[("x.yaml", &text)], &[], &[problem]);
        let outcome = folder.catalog.update(folder.read(&[("x.yaml", &text)]), false);
        assert_eq!(outcome.in_error, 1);
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
