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
use self::folder::Changes;
use self::picture::Picture;
use self::reading::Problem;
use self::seats::SeatFiles;
use super::Outlets;
use super::programmer::{Authority, Change, Programmer, Report};
use crate::crd::manifest::ManifestError;
use crate::handoff::{BindState, BindingsReader};
use crate::metrics::ControlMetrics;
use crate::readiness::Latch;

mod catalog;
mod credentials;
mod documents;
mod folder;
pub mod inspection;
mod marks;
mod picture;
mod ports;
pub mod reading;
mod seats;
mod secrets;
#[cfg(test)]
mod tests;

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
        /// Why. Part of the message, so no source of it: that would be told again.
        reason: io::Error,
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

/// Seats change in bursts; wait this long for the next change before they are written.
const SEATS_SETTLE: Duration = Duration::from_millis(100);
/// Network file systems and replaced mount points tell nothing of changes: look this often anyway.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Try again to write seats after this.
const SEATS_RETRY: Duration = Duration::from_secs(5);

/// Follows the file or folder until `stop`. Ready when the first pool is published.
pub async fn run(
    options: Options,
    outlets: Outlets,
    probe: PortProbe,
    stop: CancellationToken,
) -> Result<(), Error> {
    let changes = Changes::of(&options.path, LOOK_EVERY);
    follow(options, changes, outlets, probe, stop).await
}

/// As `run`, with changes that were watched from before the first reading, so that none falls between the two.
async fn follow(
    options: Options,
    changes: Changes,
    outlets: Outlets,
    probe: PortProbe,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut source = FileSource::start(options, changes, outlets, probe)?;
    source.follow(&stop).await?;
    source.write_seats().await
}

struct FileSource {
    path: Arc<Path>,
    programmer: Programmer,
    bindings: BindingsReader,
    readiness: Option<Latch>,
    metrics: ControlMetrics,
    catalog: Catalog,
    changes: Changes,
    seats: Option<SeatFiles>,
    seats_retry: bool,
    /// What was read last; the same again is no news.
    last: Option<Arc<Picture>>,
    told: BTreeSet<Problem>,
    remarked: BTreeSet<Problem>,
}

impl FileSource {
    fn start(options: Options, changes: Changes, outlets: Outlets, probe: PortProbe) -> Result<Self, Error> {
        let Outlets { mut programmer, bindings, readiness, metrics } = outlets;
        let mut seats = None;
        if let Some(path) = options.state_dir {
            let (files, rosters) = SeatFiles::open(&path)?;
            let adopted = rosters.into_iter().map(|(id, roster)| Change::Adopt(id, roster));
            programmer.apply(adopted.collect(), Authority::Holder, now_ms());
            seats = Some(files);
        }
        let path = options.path;
        let texts = folder::read(&path).map_err(|reason| Error::Path { path: path.clone(), reason })?;
        let mut source = Self {
            path: path.into(),
            programmer,
            catalog: Catalog::new(bindings.own_port(), probe),
            bindings,
            readiness: Some(readiness),
            metrics,
            changes,
            seats,
            seats_retry: false,
            last: None,
            told: BTreeSet::new(),
            remarked: BTreeSet::new(),
        };
        let mut picture = Picture::of(Ok(texts), &source.path, None)?;
        if source.changes.rewatch(picture.credentials()) {
            picture = picture.refreshed();
        }
        source.take(picture);
        Ok(source)
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut proxy_lives = true;
        loop {
            let wake =
                self.programmer.wake_at_ms().map(|at| Duration::from_millis(at.saturating_sub(now_ms())));
            let seats_due = self.seats.as_ref().is_some_and(SeatFiles::is_due);
            let seats_after = if self.seats_retry { SEATS_RETRY } else { SEATS_SETTLE };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.changes.next() => self.look_again().await?,
                () = sleep(wake.unwrap_or_default()), if wake.is_some() => self.apply(Vec::new()),
                () = sleep(seats_after), if seats_due => self.write_seats().await?,
                lives = self.bindings.changed(), if proxy_lives => {
                    proxy_lives = lives;
                    self.tell_ports();
                }
            }
        }
    }

    async fn look_again(&mut self) -> Result<(), Error> {
        loop {
            let (path, last) = (self.path.clone(), self.last.clone());
            let look = move || {
                let texts = folder::read(&path).map_err(|error| error.to_string());
                Picture::of(texts, &path, last.as_deref())
            };
            let picture = tokio::task::spawn_blocking(look).await??;
            let is_late = self.changes.rewatch(picture.credentials());
            self.take(picture);
            if !is_late {
                return Ok(());
            }
        }
    }

    /// Takes in what the files hold now.
    fn take(&mut self, picture: Picture) {
        if self.last.as_deref() == Some(&picture) && !self.catalog.waits_for_port() {
            return;
        }
        let readings = picture.equipped(&self.catalog.in_force(), now_ms() / 1000);
        let remarks = readings.values().flat_map(|reading| reading.remarks.iter().cloned()).collect();
        let outcome = self.catalog.update(readings, !picture.holds_files());
        self.tell(&outcome.problems, outcome.kept);
        self.tell_remarks(remarks);
        self.metrics.set_config_errors(outcome.in_error);
        self.last = Some(Arc::new(picture));
        self.apply(outcome.changes);
        if !self.catalog.is_empty() {
            self.readiness.take().into_iter().for_each(Latch::release);
        }
    }

    fn apply(&mut self, changes: Vec<Change>) {
        for change in &changes {
            if let Change::Remove(id) = change {
                self.seats.iter_mut().for_each(|files| files.forget(id.clone()));
                tracing::info!(pool = %id, "pool removed");
            }
        }
        for report in self.programmer.apply(changes, Authority::Holder, now_ms()) {
            tell_report(&report);
            if report.roster_changed {
                self.seats.iter_mut().for_each(|files| files.keep(report.id.clone(), report.roster.clone()));
            }
        }
    }

    async fn write_seats(&mut self) -> Result<(), Error> {
        let Some(mut files) = self.seats.take() else { return Ok(()) };
        let (files, written) = tokio::task::spawn_blocking(move || {
            let written = files.write();
            (files, written)
        })
        .await?;
        if let Err(error) = &written {
            tracing::warn!(%error, again_in = ?SEATS_RETRY, "seats cannot be written; a restart now would move keys");
        }
        self.seats_retry = written.is_err();
        self.seats = Some(files);
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

    fn tell_ports(&self) {
        for (port, state) in self.bindings.current() {
            if let BindState::Failed { reason } = state {
                tracing::error!(port, %reason, "port cannot be opened");
            }
        }
    }
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
