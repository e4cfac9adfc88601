//! Owns one pool among its namespace's objects: the versions of its spec, which of them is in use, and what comes of
//! it. A spec that cannot be served waits, and the earlier one stays.

use std::sync::Arc;

use super::absence::Absence;
use super::join::{Problem, bare_id, join};
use super::keyring::Shown;
use super::namespace::Namespace;
use super::resource::{PoolResource, Verdict, Version};
use crate::balance::backend::Member;
use crate::balance::pool::Pool;
use crate::balance::seats::Roster;
use crate::source::claims::Conflict;
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
    /// What it would take from other pools.
    pub(super) conflicts: Vec<Conflict>,
    /// What comes of it, while another version is in use and nothing is missing.
    edit: Option<Attempt>,
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

    /// The pool as the latest spec would have it, where that could come into force.
    pub(super) fn edit(&self) -> Option<&Pool> {
        self.edit.as_ref().map(|edit| &*edit.facts.pool)
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
        self.conflicts.clear();
        if let Some(attempt) = self.choose(objects, follows) {
            changes.extend(self.put_into_force(attempt));
        }
        changes
    }

    /// Puts the edit into force and says what that changes.
    pub(super) fn accept_edit(&mut self) -> Option<Change> {
        let edit = self.edit.take()?;
        self.serving = self.resource.wanted.as_ref().ok().cloned();
        self.put_into_force(edit)
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
        if self.serving.is_none() || (follows && (!is_good || self.yields())) {
            self.heed_verdict();
        }
        if self.serving.is_none() && !self.is_pending {
            self.serving.clone_from(&latest);
        }
        self.edit = None;
        let serving = self.serving.clone()?;
        match (attempt, latest) {
            (Some(attempt), Some(latest)) if serving.says_the_same(&latest) => {
                self.serving = Some(latest);
                return Some(attempt);
            }
            (Some(attempt), _) if is_good && !(follows && self.yields()) => self.edit = Some(attempt),
            _ => {}
        }
        let earlier = Attempt::new(&serving, objects, self.facts.as_ref());
        let waits = self.facts.is_none() && earlier.problems.iter().any(Problem::is_pending);
        self.is_pending |= waits;
        (!waits).then_some(earlier)
    }

    /// Whether the lease holder has put the latest spec into force.
    pub(super) fn is_decided(&self) -> bool {
        matches!(self.resource.verdict, Verdict::Latest)
    }

    /// Whether the lease holder found that the latest spec asks for what another pool has of a port.
    fn yields(&self) -> bool {
        matches!(self.resource.verdict, Verdict::Earlier { for_its_ports: true, .. })
    }

    /// Uses the version that the lease holder does.
    fn heed_verdict(&mut self) {
        match (&self.resource.verdict, &self.resource.wanted) {
            (Verdict::Earlier { version, .. }, _) => self.serving = Some(version.clone()),
            (Verdict::Latest, Ok(latest)) if !self.is_pending => self.serving = Some(latest.clone()),
            _ => {}
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

/// What comes of a spec.
#[derive(Debug)]
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
