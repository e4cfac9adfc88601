//! Owns the one loop that turns events into tables: takes events in, drains the index at its own pace, has the
//! programmer publish, and leaves statuses to be written while this replica holds the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::sync::{Notify, mpsc, watch as channel};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::entry::PoolEntry;
use super::guard::SECOND_OPINION;
use super::index::{Dirt, Drained, Index};
use super::join::Problem;
use super::secrets::Named;
use super::status::View;
use super::status_writer::StatusQueue;
use super::throttle::Throttle;
use super::watch::{Change, Event, Kind, Scope, Told};
use crate::balance::pool::{PoolId, PortId};
use crate::handoff::{BindState, BindingsReader};
use crate::metrics::ControlMetrics;
use crate::readiness::Latch;
use crate::source::programmer::{self, Authority, Programmer, Report};

/// Events taken in at once before tables are built, so that a flood does not starve them.
const EVENTS_AT_ONCE: usize = 4096;
/// How often what is no longer needed is forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// What the controller is connected to.
pub(super) struct Wires {
    pub(super) events: mpsc::Receiver<Told>,
    /// Asks a watch for a second list.
    pub(super) relists: BTreeMap<(Kind, Scope), Arc<Notify>>,
    /// Says which Secrets to look at.
    pub(super) secrets: channel::Sender<Named>,
    /// Whether this replica holds the lease.
    pub(super) lease: channel::Receiver<bool>,
    pub(super) bindings: BindingsReader,
    pub(super) statuses: StatusQueue,
    pub(super) metrics: ControlMetrics,
}

/// The loop and its state.
pub(super) struct Controller {
    wires: Wires,
    index: Index,
    programmer: Programmer,
    authority: Authority,
    /// Taken when the first full picture was published.
    readiness: Option<Latch>,
    /// Lists that never came yet.
    unlisted: BTreeSet<(Kind, Scope)>,
    /// Of each pool, as last made.
    reports: BTreeMap<PoolId, Report>,
    throttle: Throttle,
    second_opinion: Option<Instant>,
    housekeeping: Instant,
    clock: Clock,
}

impl Controller {
    pub(super) fn new(programmer: Programmer, readiness: Latch, wires: Wires) -> Self {
        Self {
            unlisted: wires.relists.keys().cloned().collect(),
            index: Index::following(wires.bindings.own_port()),
            wires,
            programmer,
            authority: Authority::Follower,
            readiness: Some(readiness),
            reports: BTreeMap::new(),
            throttle: Throttle::default(),
            second_opinion: None,
            housekeeping: Instant::now() + HOUSEKEEPING,
            clock: Clock::start(),
        }
    }

    /// Runs until `stop`, or until every watch has ended.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut proxy_gone = false;
        loop {
            let wake = self.next_wake();
            tokio::select! {
                told = self.wires.events.recv() => match told {
                    Some(told) => self.take_all(told),
                    None => return,
                },
                () = sleep_until(wake) => {}
                () = self.programmer.built() => self.program(Vec::new(), &[]),
                Ok(()) = self.wires.lease.changed() => self.change_authority(),
                known = self.wires.bindings.changed(), if !proxy_gone => {
                    proxy_gone = !known;
                    self.count_errors();
                    self.write_all_statuses();
                }
                () = stop.cancelled() => return,
            }
            self.work();
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let seats = self
            .programmer
            .wake_at_ms()
            .map(|at| now + Duration::from_millis(at.saturating_sub(self.clock.unix_ms())));
        let tables =
            self.index.waiting_since().filter(|_| self.unlisted.is_empty()).map(|_| self.throttle.due(now));
        let patience = self.index.patience_ends().filter(|_| self.index.waiting_since().is_none());
        [seats, tables, patience, self.second_opinion]
            .into_iter()
            .flatten()
            .fold(self.housekeeping, Instant::min)
    }

    /// Takes in everything that has arrived.
    fn take_all(&mut self, first: Told) {
        self.take(first);
        for _ in 0..EVENTS_AT_ONCE {
            match self.wires.events.try_recv() {
                Ok(told) => self.take(told),
                Err(_) => break,
            }
        }
    }

    fn take(&mut self, told: Told) {
        match &told.event {
            Event::Pools(Change::Relisted { scope, objects }) => {
                self.unlisted.remove(&(Kind::Pools, scope.clone()));
                objects
                    .iter()
                    .for_each(|pool| self.wires.statuses.observed(&pool.id(), &pool.uid, &pool.status));
            }
            Event::Pools(Change::Applied(pool)) => {
                self.wires.statuses.observed(&pool.id(), &pool.uid, &pool.status);
            }
            Event::Services(Change::Relisted { scope, .. }) => self.listed(Kind::Services, scope),
            Event::Slices(Change::Relisted { scope, .. }) => self.listed(Kind::Slices, scope),
            Event::Pods(Change::Relisted { scope, .. }) => self.listed(Kind::Pods, scope),
            _ => {}
        }
        self.index.apply(told.event, told.at);
    }

    fn listed(&mut self, kind: Kind, scope: &Scope) {
        self.unlisted.remove(&(kind, scope.clone()));
    }

    fn change_authority(&mut self) {
        let holds = *self.wires.lease.borrow_and_update();
        let authority = if holds { Authority::Holder } else { Authority::Follower };
        if authority == self.authority {
            return;
        }
        self.authority = authority;
        self.index.follow(!holds);
        self.wires.metrics.set_leader(holds);
        if holds {
            self.program(Vec::new(), &[]);
            self.write_all_statuses();
        } else {
            self.wires.statuses.withdraw();
            let rosters = self.index.rosters();
            self.program(rosters, &[]);
        }
    }

    /// Does what is due.
    fn work(&mut self) {
        let now = Instant::now();
        self.index.lose_patience(now);
        if self.unlisted.is_empty() && self.index.waiting_since().is_some() && self.throttle.due(now) <= now {
            self.build_tables();
        }
        if self.programmer.wake_at_ms().is_some_and(|at| at <= self.clock.unix_ms()) {
            self.program(Vec::new(), &[]);
        }
        if self.unlisted.is_empty()
            && self.programmer.is_complete()
            && !self.index.pools().any(|pool| pool.is_pending)
            && let Some(latch) = self.readiness.take()
        {
            tracing::info!(
                pools = self.index.pools().count(),
                "the first full picture of the cluster is in use"
            );
            self.programmer.begin();
            latch.release();
        }
        self.ask_second_opinions(now);
        if self.housekeeping <= now {
            self.index.forget_gone(now);
            // A certificate may have expired, which no event tells.
            self.write_statuses(|pool| !pool.shown.is_empty());
            self.housekeeping = now + HOUSEKEEPING;
        }
    }

    /// Builds what all changes since the last time come to.
    fn build_tables(&mut self) {
        let mut drained = self.index.drain(self.programmer.shares(), Instant::now());
        let changes = drained.iter_mut().flat_map(|pool| std::mem::take(&mut pool.changes)).collect();
        if let Some(named) = self.index.newly_named_secrets() {
            self.wires.secrets.send_replace(named);
        }
        self.program(changes, &drained);
        self.throttle.built(Instant::now());
        for pool in &drained {
            if self.index.pool(&pool.id).is_none() {
                self.reports.remove(&pool.id);
                self.wires.statuses.forget(&pool.id);
                tracing::info!(namespace = %pool.id.namespace, pool = %pool.id.name, "the pool is gone");
            }
            self.write_status(&pool.id);
        }
        self.count_errors();
    }

    /// Counts the pools that are not served as their latest spec asks.
    fn count_errors(&self) {
        let ports = self.wires.bindings.current();
        let is_bad = |problem: &Problem| !problem.is_pending();
        let is_shut = |port: PortId| matches!(ports.get(&port), Some(BindState::Failed { .. }));
        let bad = |pool: &&PoolEntry| {
            pool.resource.wanted.is_err()
                || pool.problems.iter().any(is_bad)
                || !pool.conflicts.is_empty()
                || self.reports.get(&pool.resource.id()).is_some_and(|it| !it.port_conflicts.is_empty())
                || pool.in_force().is_some_and(|it| it.listeners.iter().any(|it| is_shut(it.port_id())))
        };
        self.wires.metrics.set_config_errors(self.index.pools().filter(bad).count());
    }

    /// Has the programmer publish. `drained` are the pools that news came for; a table may change without any, when
    /// the patience with a silent holder ends or the lease changes hands.
    fn program(&mut self, changes: Vec<programmer::Change>, drained: &[Drained]) {
        for report in self.programmer.apply(changes, self.authority, self.clock.unix_ms()) {
            let id = report.id.clone();
            if report.table_changed {
                let dirt = drained.iter().find(|pool| pool.id == id).map(|pool| pool.dirt);
                let gist = |report: &Report| (report.digest, report.ready, report.total);
                let is_news = self.reports.get(&id).map(gist) != Some(gist(&report));
                self.tell_published(&report, dirt, is_news);
            }
            self.reports.insert(id.clone(), report);
            self.write_status(&id);
        }
    }

    /// One line for each new table, with the time in microseconds, by which a test can measure from outside. What changes
    /// neither keys nor counts is no news.
    fn tell_published(&self, report: &Report, dirt: Option<Dirt>, is_news: bool) {
        let took = dirt.map(|dirt| dirt.since.elapsed());
        // A pod that is known and waits for its seat has not reached the table yet.
        if let (Some(Kind::Pods | Kind::Slices), Some(took)) = (dirt.map(|dirt| dirt.cause), took)
            && report.digest_changed
        {
            self.wires.metrics.propagated(&report.id, took);
        }
        macro_rules! tell {
            ($level:ident) => {
                tracing::$level!(
                    namespace = %report.id.namespace,
                    pool = %report.id.name,
                    cause = dirt.map_or("seats", |dirt| dirt.cause.name()),
                    digest = format_args!("{:016x}", report.digest),
                    ready = report.ready,
                    total = report.total,
                    took_us = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
                    at_us = Timestamp::now().as_microsecond(),
                    "table published"
                )
            };
        }
        if is_news { tell!(info) } else { tell!(debug) }
    }

    fn write_all_statuses(&self) {
        self.write_statuses(|_| true);
    }

    fn write_statuses(&self, of: impl Fn(&PoolEntry) -> bool) {
        if self.authority == Authority::Holder {
            let pools = self.index.pools().filter(|pool| of(pool));
            let ids: Vec<PoolId> = pools.map(|pool| pool.resource.id()).collect();
            ids.iter().for_each(|id| self.write_status(id));
        }
    }

    fn write_status(&self, id: &PoolId) {
        if self.authority != Authority::Holder || !self.unlisted.is_empty() {
            return;
        }
        let Some(pool) = self.index.pool(id) else { return };
        let serving = self.programmer.snapshot(id).map(|snapshot| &*snapshot.pool);
        let ports = self.wires.bindings.current();
        let view = View { pool, report: self.reports.get(id), serving, ports: &ports };
        self.wires.statuses.write(id, |before| view.status(before, &Time(Timestamp::now())));
    }

    /// Asks for a second list where the first was too poor to be believed.
    fn ask_second_opinions(&mut self, now: Instant) {
        match self.second_opinion {
            Some(at) if at <= now => {
                self.second_opinion = None;
                for list in self.index.doubted() {
                    if let Some(bell) = self.wires.relists.get(&list) {
                        bell.notify_one();
                    }
                }
            }
            None if self.index.doubted().next().is_some() => self.second_opinion = Some(now + SECOND_OPINION),
            _ => {}
        }
    }
}

/// Time since the UNIX epoch that never steps: the wall clock as it was at the start, and our own from then on.
struct Clock {
    started: Instant,
    started_unix_ms: u64,
}

impl Clock {
    fn start() -> Self {
        let unix_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        Self { started: Instant::now(), started_unix_ms: unix_ms }
    }

    fn unix_ms(&self) -> u64 {
        let passed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.started_unix_ms.saturating_add(passed)
    }
}
