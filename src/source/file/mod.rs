//! Owns the file source: pools from a file or folder that is followed while it changes. One process alone, so it
//! assigns the seats itself and keeps them in the state directory. A bad edit is told and changes nothing.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinError;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::catalog::Catalog;
use self::keeper::SeatKeeper;
use self::look::{LOOK_WITHIN, Looker, Sight};
use self::picture::Picture;
use self::reading::Problem;
use self::seats::{Batch, SeatFiles};
use self::watch::{Changes, Watch};
use super::Outlets;
use super::programmer::{Authority, Change, Programmer, Report};
use crate::crd::manifest::ManifestError;
use crate::handoff::BindingsReader;
use crate::metrics::ControlMetrics;
use crate::readiness::Latch;

mod catalog;
mod credentials;
mod documents;
mod folder;
pub mod inspection;
mod keeper;
mod kubectl;
mod look;
mod marks;
mod picture;
mod ports;
pub mod reading;
mod seats;
mod secrets;
#[cfg(test)]
mod tests;
mod trail;
mod watch;

pub use ports::PortProbe;

/// Where pools stand and seats are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A file, or a folder of `*.yaml`, `*.yml` and `*.json`.
    pub path: PathBuf,
    /// Where seats are kept over a restart.
    pub state_dir: Option<PathBuf>,
}

/// Why the source cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path cannot be read at start. Later on the last good state would stay.
    #[error("{path} cannot be read: {reason}; correct --file or make the file readable", path = path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The state directory cannot be used.
    #[error("the state directory {path} cannot be used: {reason}; correct --state-dir or its owner", path = path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why. Part of the message, so no source of it: that would be told again.
        reason: io::Error,
    },
    /// Two processes would overwrite each other's seats.
    #[error("the state directory {path} is in use by another Guideway; give each its own --state-dir", path = path.display())]
    StateDirTaken {
        /// The directory.
        path: PathBuf,
    },
    /// The definition of pools is broken.
    #[error(transparent)]
    Definition(#[from] ManifestError),
    /// A task that reads or writes files died.
    #[error("a file task died: {0}")]
    Task(#[from] JoinError),
}

/// Network file systems and replaced mount points tell nothing of changes: look this often anyway.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Follows the file or folder until `stop`. Ready when the first pool is published.
pub async fn run(
    options: Options,
    outlets: Outlets,
    probe: PortProbe,
    stop: CancellationToken,
) -> Result<(), Error> {
    let path = options.path.clone();
    let watch = tokio::task::spawn_blocking(move || watch::watch(&path, LOOK_EVERY));
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        watch = watch => follow(options, watch?, outlets, probe, stop.clone()).await,
    }
}

/// As `run`, with changes that were watched from before the first reading, so that none falls between the two.
async fn follow(
    options: Options,
    watch: (Watch, Changes),
    outlets: Outlets,
    probe: PortProbe,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut source = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        source = FileSource::open(options, watch, outlets, probe) => source?,
    };
    source.follow(&stop).await?;
    source.write_last_seats().await
}

struct FileSource {
    path: Arc<Path>,
    programmer: Programmer,
    bindings: BindingsReader,
    readiness: Option<Latch>,
    metrics: ControlMetrics,
    catalog: Catalog,
    looker: Looker,
    seats: Option<SeatKeeper>,
    /// What was read last; the same again is no news.
    last: Option<Arc<Picture>>,
    /// Mistakes as last counted, but for what can only be told when the disk answers.
    in_error: usize,
    told: BTreeSet<Problem>,
    remarked: BTreeSet<Problem>,
    /// Listeners whose ports are not open.
    closed: BTreeSet<Problem>,
    seats_fault: Option<String>,
}

impl FileSource {
    async fn open(
        options: Options,
        watch: (Watch, Changes),
        outlets: Outlets,
        probe: PortProbe,
    ) -> Result<Self, Error> {
        let Outlets { mut programmer, bindings, readiness, metrics } = outlets;
        // There is nobody else to assign seats.
        metrics.set_leader(true);
        let mut seats = None;
        if let Some(path) = options.state_dir {
            let (files, rosters) = tokio::task::spawn_blocking(move || SeatFiles::open(&path)).await??;
            let adopted = rosters.into_iter().map(|(id, roster)| Change::Adopt(id, roster));
            programmer.apply(adopted.collect(), Authority::Holder, now_ms());
            seats = Some(SeatKeeper::new(files));
        }
        let path: Arc<Path> = options.path.into();
        Ok(Self {
            looker: Looker::new(path.clone(), watch),
            path,
            programmer,
            catalog: Catalog::new(bindings.own_port(), probe),
            bindings,
            readiness: Some(readiness),
            metrics,
            seats,
            last: None,
            in_error: 0,
            told: BTreeSet::new(),
            remarked: BTreeSet::new(),
            closed: BTreeSet::new(),
            seats_fault: None,
        })
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut proxy_lives = true;
        loop {
            let wake =
                self.programmer.wake_at_ms().map(|at| Duration::from_millis(at.saturating_sub(now_ms())));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                sight = self.looker.next(self.last.as_ref()) => match sight? {
                    Sight::Seen(picture) => self.take(picture)?,
                    Sight::Stuck => self.tell_stuck(),
                },
                () = sleep(wake.unwrap_or_default()), if wake.is_some() => self.apply(Vec::new()),
                () = self.programmer.built() => self.apply(Vec::new()),
                kept = next_kept(self.seats.as_mut()) => self.tell_kept(kept?),
                lives = self.bindings.changed(), if proxy_lives => {
                    proxy_lives = lives;
                    self.tell_ports();
                }
            }
        }
    }

    /// Takes in what the files hold now.
    fn take(&mut self, picture: Picture) -> Result<(), Error> {
        if let (None, Some(reason)) = (&self.last, picture.unreadable()) {
            return Err(Error::Path { path: self.path.to_path_buf(), reason: reason.into() });
        }
        self.metrics.set_config_errors(self.in_error);
        if self.last.as_deref() == Some(&picture) && !self.catalog.waits_for_port() {
            return Ok(());
        }
        let readings = picture.equipped(&self.catalog.in_force(), now_ms() / 1000);
        let remarks = readings.values().flat_map(|reading| reading.remarks.iter().cloned()).collect();
        let outcome = self.catalog.update(readings, !picture.holds_files());
        self.tell(&outcome.problems, outcome.kept);
        self.tell_remarks(remarks);
        self.in_error = outcome.in_error;
        self.metrics.set_config_errors(self.in_error);
        self.last = Some(Arc::new(picture));
        self.apply(outcome.changes);
        Ok(())
    }

    fn apply(&mut self, changes: Vec<Change>) {
        for change in &changes {
            if let Change::Remove(id) = change {
                self.seats.iter_mut().for_each(|files| files.keep(id.clone(), None));
                tracing::info!(pool = %id, "pool removed");
            }
        }
        for report in self.programmer.apply(changes, Authority::Holder, now_ms()) {
            tell_report(&report);
            if report.roster_changed {
                self.seats
                    .iter_mut()
                    .for_each(|files| files.keep(report.id.clone(), Some(report.roster.clone())));
            }
        }
        if !self.catalog.is_empty() && self.programmer.is_complete() {
            self.programmer.begin();
            self.readiness.take().into_iter().for_each(Latch::release);
        }
    }

    fn tell_kept(&mut self, kept: keeper::Outcome) {
        let fault = kept.error.map(|error| error.to_string());
        self.metrics.seat_writes_failed(fault.is_some().into());
        match (&fault, &self.seats_fault) {
            (Some(now), before) if Some(now) != before.as_ref() => {
                tracing::error!(again_in = ?keeper::RETRY, "{now}; a restart before that moves keys");
            }
            (None, Some(_)) => tracing::info!("seats are written again"),
            _ => {}
        }
        self.seats_fault = fault;
        if kept.is_new {
            tracing::warn!(
                "the state directory was gone; it is made again, and the seats of all pools are written"
            );
            let all = all_seats(&self.programmer);
            self.seats.iter_mut().for_each(|keeper| keeper.keep_all(all.clone()));
        }
    }

    async fn write_last_seats(&mut self) -> Result<(), Error> {
        let Some(mut keeper) = self.seats.take() else { return Ok(()) };
        let (lost, error) = keeper.finish(|| all_seats(&self.programmer)).await?;
        if let Some(error) = error {
            tracing::error!(
                pools = lost.len(),
                "{error}; the seats of these pools are lost, so their keys may move"
            );
        }
        Ok(())
    }

    /// Says what is newly wrong, and when all is well again.
    fn tell(&mut self, problems: &[Problem], kept: usize) {
        let now: BTreeSet<Problem> = problems.iter().cloned().collect();
        for problem in now.difference(&self.told) {
            tracing::error!("{problem}");
        }
        if now.is_empty() && !self.told.is_empty() {
            tracing::info!(path = %self.path.display(), "all mistakes are corrected");
        } else if now != self.told && kept == 0 {
            tracing::warn!(
                mistakes = now.len(),
                "pools with mistakes are not served before they are corrected"
            );
        } else if now != self.told {
            tracing::warn!(
                mistakes = now.len(),
                kept,
                "pools with mistakes stay as they last were; new ones are not served"
            );
        }
        self.told = now;
    }

    fn tell_remarks(&mut self, remarks: BTreeSet<Problem>) {
        remarks.difference(&self.remarked).for_each(|remark| tracing::warn!("{remark}"));
        self.remarked = remarks;
    }

    fn tell_stuck(&self) {
        let path = self.path.display();
        tracing::error!(%path, "cannot be read: no answer within {LOOK_WITHIN:?}; the pools stay as they are until there is one");
        self.metrics.set_config_errors(self.in_error + 1);
    }

    /// Says which listeners are newly closed, and which of those are open again.
    fn tell_ports(&mut self) {
        let now: BTreeSet<Problem> = self.catalog.closed(&self.bindings.current()).into_iter().collect();
        now.difference(&self.closed).for_each(|problem| tracing::error!("{problem}"));
        for problem in self.closed.difference(&now) {
            tracing::info!("{}: {}: no longer closed", problem.place, problem.field);
        }
        self.closed = now;
    }
}

/// Never returns where no seats are kept.
async fn next_kept(keeper: Option<&mut SeatKeeper>) -> Result<keeper::Outcome, Error> {
    match keeper {
        Some(keeper) => keeper.next().await,
        None => std::future::pending().await,
    }
}

fn all_seats(programmer: &Programmer) -> Batch {
    programmer.rosters().map(|(id, roster)| (id.clone(), Some(roster.clone()))).collect()
}

fn tell_report(report: &Report) {
    if report.table_changed {
        if let Some(remark) = &report.size_remark {
            tracing::warn!(pool = %report.id, "{remark}");
        }
        tracing::info!(
            pool = %report.id, ready = report.ready, total = report.total, seats = report.seats,
            table = report.table_size, digest = format!("{:016x}", report.digest),
            moved_slots = report.moved.map_or(0, |(_, slots)| slots), "pool published"
        );
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
