//! Owns one pool among its namespace's objects: the versions of its spec, which of them is in use, and what comes of
//! it. A spec that cannot be served waits, and the earlier one stays.

use std::sync::Arc;

use tokio::time::Instant;

use super::absence::Absence;
use super::edits::PATIENCE;
use super::join::{Problem, bare_id, join};
use super::keyring::Shown;
use super::namespace::Namespace;
use super::resource::{PoolResource, Verdict, Version};
use crate::balance::backend::Member;
use crate::balance::pool::Pool;
use crate::balance::seats::Roster;
use crate::source::claims::{Conflict, Tenure};
use crate::source::programmer::{Change, PoolFacts};
use crate::source::tls::Secured;
use crate::source::translate::{BackendSource, Translated};

/// One pool and what was made of it.
#[derive(Debug)]
pub(super) struct PoolEntry {
    pub(super) resource: PoolResource,
    /// The version in use: the latest that could be served when it came, or else the first there was.
    serving: Option<Version>,
    /// What the latest spec lacks.
    pub(super) problems: Vec<Problem>,
    /// What the version that waits would take from other pools.
    pub(super) conflicts: Vec<Conflict>,
    /// The version that waits.
    edit: Option<Edit>,
    /// Whether the latest version is in use although the holder may not have seen yet that it can be.
    is_ahead: bool,
    /// Since when the holder's word waits to be followed.
    held_up: Option<Instant>,
    /// What the programmer was told.
    tenure: Option<Tenure>,
    /// Whether a Secret was not looked at yet.
    pub(super) is_pending: bool,
    /// The certificates in use.
    pub(super) shown: Vec<Shown>,
    /// Services of the version in use that lead to no endpoint.
    pub(super) absences: Vec<Absence>,
    /// As last handed out, members by id.
    facts: Option<PoolFacts>,
    adopted: Option<Arc<Roster>>,
}

impl PoolEntry {
    pub(super) fn new(resource: PoolResource) -> Self {
        Self {
            resource,
            serving: None,
            problems: Vec::new(),
            conflicts: Vec::new(),
            edit: None,
            is_ahead: false,
            held_up: None,
            tenure: None,
            is_pending: false,
            shown: Vec::new(),
            absences: Vec::new(),
            facts: None,
            adopted: None,
        }
    }

    /// Takes in how the pool stands now. What was served of another pool of its name is no earlier version of it.
    pub(super) fn tell(&mut self, resource: PoolResource) {
        if self.resource.uid != resource.uid {
            (self.serving, self.adopted) = (None, None);
        }
        if self.resource.uid != resource.uid || self.resource.generation != resource.generation {
            (self.is_ahead, self.held_up) = (false, None);
            self.conflicts.clear();
        }
        self.resource = resource;
    }

    /// The version in use and the latest one.
    fn versions(&self) -> impl Iterator<Item = &Version> {
        self.serving.iter().chain(self.resource.wanted.as_ref().ok())
    }

    /// The Services that the version in use and the latest one name.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<str>> {
        self.versions().flat_map(|version| &version.spec.backends).filter_map(|source| match source {
            BackendSource::Service { service, .. } => Some(service),
            BackendSource::Endpoints { .. } => None,
        })
    }

    /// The Secrets that they name.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Arc<str>> {
        self.versions().flat_map(|version| &version.spec.secured).flat_map(Secured::secret_names)
    }

    pub(super) fn names_service(&self, name: &str) -> bool {
        self.services().any(|service| service.as_ref() == name)
    }

    pub(super) fn has_pod(&self, uid: &str) -> bool {
        self.members().iter().any(|member| bare_id(&member.backend.id) == uid)
    }

    /// The version in use, if it is an earlier one because the latest cannot be served.
    pub(super) fn earlier(&self) -> Option<&Version> {
        let serving = self.serving.as_ref()?;
        let is_latest = self.resource.wanted.as_ref().is_ok_and(|wanted| serving.says_the_same(wanted));
        (!is_latest).then_some(serving)
    }

    /// The spec in use.
    pub(super) fn serving(&self) -> Option<&Translated> {
        self.serving.as_ref().map(|serving| &*serving.spec)
    }

    pub(super) fn members(&self) -> &[Member] {
        self.facts.as_ref().map_or(&[], |facts| &facts.members)
    }

    /// The pool as it was last handed out.
    pub(super) fn in_force(&self) -> Option<&Pool> {
        self.facts.as_ref().map(|facts| &*facts.pool)
    }

    /// The pool as the version that waits would have it.
    pub(super) fn edit(&self) -> Option<&Pool> {
        self.edit.as_ref().map(|edit| &*edit.attempt.facts.pool)
    }

    /// On whose word that version would come into force.
    pub(super) fn voice(&self) -> Option<Voice> {
        self.edit.as_ref().map(|edit| edit.voice)
    }

    /// Whether a change elsewhere may bring another version into force.
    pub(super) fn waits(&self) -> bool {
        self.edit.is_some() || (self.yields() && self.earlier().is_some())
    }

    /// When the holder's word is followed even against another pool.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.held_up.map(|since| since + PATIENCE)
    }

    /// Joins anew and says what that changes. A new spec whose references lead nowhere waits until they do; one whose
    /// references are good is an edit that waits for `accept_edit`. `follows` says whether the lease holder's decision
    /// counts for more than our own.
    pub(super) fn refresh(&mut self, objects: &Namespace, follows: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        if let Some(roster) = self.resource.roster.clone().filter(|it| Some(it) != self.adopted.as_ref()) {
            changes.push(Change::Adopt(self.resource.id(), Roster::clone(&roster)));
            self.adopted = Some(roster);
        }
        if let Some(attempt) = self.choose(objects, follows) {
            changes.extend(self.put_into_force(attempt));
        }
        if self.edit.is_none() {
            self.conflicts.clear();
        }
        if self.voice() != Some(Voice::Holder) {
            self.held_up = None;
        }
        changes
    }

    /// Puts the edit into force and says what that changes.
    pub(super) fn accept_edit(&mut self) -> Option<Change> {
        let edit = self.edit.take()?;
        // Who had to wait may be let in here before the holder says so.
        self.is_ahead = matches!(edit.voice, Voice::Own | Voice::Ahead) && !self.conflicts.is_empty();
        self.conflicts.clear();
        self.held_up = None;
        self.serving = Some(edit.version);
        self.put_into_force(edit.attempt)
    }

    /// Leaves the edit waiting.
    pub(super) fn wait(&mut self, conflicts: Vec<Conflict>, now: Instant) {
        self.conflicts = conflicts;
        if self.voice() == Some(Voice::Holder) {
            self.held_up.get_or_insert(now);
        }
    }

    /// What the status says the version in use has of ports, if that is news.
    pub(super) fn new_tenure(&mut self) -> Option<Change> {
        let serving = self.serving.as_ref().filter(|_| self.facts.is_some())?;
        let is_latest = || self.resource.wanted.as_ref().is_ok_and(|latest| serving.says_the_same(latest));
        let tenure = match &self.resource.verdict {
            Verdict::Latest { lacks_ports: false } if is_latest() => Tenure::Whole,
            Verdict::Outdated if is_latest() => Tenure::Earlier,
            Verdict::Earlier { version, .. } if serving.says_the_same(version) => Tenure::Earlier,
            _ => Tenure::Unknown,
        };
        let is_news = self.tenure.replace(tenure) != Some(tenure);
        is_news.then(|| Change::Tenure(self.resource.id(), tenure))
    }

    fn put_into_force(&mut self, Attempt { facts, shown, absences, .. }: Attempt) -> Option<Change> {
        (self.shown, self.absences) = (shown, absences);
        if self.facts.as_ref() == Some(&facts) {
            return None;
        }
        self.facts = Some(facts.clone());
        Some(Change::Set(facts))
    }

    /// What comes of the version in use. Where none is in use yet, a latest one will do that lacks something, once
    /// everything was looked for.
    fn choose(&mut self, objects: &Namespace, follows: bool) -> Option<Attempt> {
        let latest = self.resource.wanted.as_ref().ok().cloned();
        let attempt = latest.as_ref().map(|latest| Attempt::new(latest, objects, self.facts.as_ref()));
        let problems = attempt.as_ref().map(|attempt| attempt.problems.clone()).unwrap_or_default();
        self.tell_new(&problems);
        self.problems = problems;
        let is_good = attempt.is_some() && !self.problems.iter().any(Problem::is_felt);
        self.is_pending = self.problems.iter().any(Problem::is_pending);
        if self.serving.is_none() {
            self.serving = self.decided(is_good).or_else(|| latest.clone().filter(|_| !self.is_pending));
        }
        self.edit = None;
        let serving = self.serving.clone()?;
        self.edit = self.next(&serving, attempt.as_ref().filter(|_| is_good), objects, follows);
        if let (Some(attempt), Some(latest)) = (attempt, latest)
            && serving.says_the_same(&latest)
        {
            self.serving = Some(latest);
            return Some(attempt);
        }
        let earlier = Attempt::new(&serving, objects, self.facts.as_ref());
        let waits = self.facts.is_none() && earlier.problems.iter().any(Problem::is_pending);
        self.is_pending |= waits;
        (!waits).then_some(earlier)
    }

    /// The version that is to follow the one in use; `good` is what comes of the latest, where nothing is missing.
    fn next(
        &self,
        serving: &Version,
        good: Option<&Attempt>,
        objects: &Namespace,
        follows: bool,
    ) -> Option<Edit> {
        let other = |version: Version| Some(version).filter(|it| !it.says_the_same(serving));
        if follows && let Some(version) = self.decided(good.is_some()).and_then(other) {
            let voice = if self.is_ahead && self.yields() { Voice::Return } else { Voice::Holder };
            let attempt = Attempt::new(&version, objects, self.facts.as_ref());
            return Some(Edit { version, attempt, voice });
        }
        let version = self.resource.wanted.as_ref().ok().cloned().and_then(other)?;
        let voice = if follows && self.yields() { Voice::Ahead } else { Voice::Own };
        Some(Edit { version, attempt: good?.clone(), voice })
    }

    /// Whether the lease holder found that the latest spec asks for what another pool has of a port.
    fn yields(&self) -> bool {
        matches!(self.resource.verdict, Verdict::Earlier { for_its_ports: true, .. })
    }

    /// The version that the lease holder uses, where that counts for more than what we find: who has which port is for
    /// the holder to say, but what `is_good` here and not there will be so there too in a moment.
    fn decided(&self, is_good: bool) -> Option<Version> {
        match (&self.resource.verdict, &self.resource.wanted) {
            (Verdict::Earlier { version, .. }, _) if !is_good || self.yields() || self.serving.is_none() => {
                Some(version.clone())
            }
            (Verdict::Latest { .. }, Ok(latest)) if is_good || !self.is_pending => Some(latest.clone()),
            _ => None,
        }
    }

    /// Followers write no status, so what is wrong with a Secret is in the log of every replica.
    fn tell_new(&self, problems: &[Problem]) {
        let (namespace, pool) = (&self.resource.key.namespace, &self.resource.key.name);
        for problem in problems.iter().filter(|it| !it.is_pending() && !self.problems.contains(it)) {
            if let Problem::Secret(problem) = problem {
                tracing::warn!(%namespace, %pool, "{problem}");
            }
        }
    }
}

/// On whose word a version comes into force, the weightiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Voice {
    /// That of the lease holder, which uses it.
    Holder,
    /// Our own: the holder has said nothing yet, or the holder is us.
    Own,
    /// Our own, once what the holder found taken is free: it will see so too.
    Ahead,
    /// That of the holder, ahead of which we were. It will follow, unless it says otherwise of another pool.
    Return,
}

/// A version that waits to come into force.
#[derive(Debug)]
struct Edit {
    version: Version,
    attempt: Attempt,
    voice: Voice,
}

/// What comes of a spec.
#[derive(Clone, Debug)]
struct Attempt {
    facts: PoolFacts,
    problems: Vec<Problem>,
    shown: Vec<Shown>,
    absences: Vec<Absence>,
}

impl Attempt {
    fn new(version: &Version, objects: &Namespace, before: Option<&PoolFacts>) -> Self {
        let members = before.map_or(&[][..], |facts| &facts.members);
        let joined = join(&version.spec, objects, members);
        let equipped = objects.keyring.equip(&version.spec, before.map(|facts| &facts.pool));
        let mut problems = joined.problems;
        problems.extend(equipped.problems.into_iter().map(Problem::Secret));
        let facts = PoolFacts { pool: equipped.pool, members: joined.members };
        Self { facts, problems, shown: equipped.shown, absences: joined.absences }
    }
}
