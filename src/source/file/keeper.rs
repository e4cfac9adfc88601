//! Owns when seats are written: beside the loop, so that no edit waits for a disk; what changes meanwhile is gathered,
//! the last of each pool, and written next. A state directory that is gone is made again, with all seats in it.

use std::future::pending;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::Error;
use super::seats::{Batch, SeatFiles, Written};
use crate::balance::pool::PoolId;
use crate::balance::seats::Roster;

/// Seats change in bursts; wait this long for the next change before they are written.
const SETTLE: Duration = Duration::from_millis(100);
/// Try again after this, and look this often whether the directory is still there.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// Writes seats.
#[derive(Debug)]
pub(super) struct SeatKeeper {
    /// Absent while it is being written.
    files: Option<SeatFiles>,
    writing: Option<JoinHandle<(SeatFiles, Written)>>,
    waiting: Batch,
    /// When to write what waits, or to look after the directory.
    due: Instant,
}

/// What became of the seats.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The directory was gone and is there again: it wants the seats of every pool.
    pub(super) is_new: bool,
    /// Why some could not be written, if so; they wait.
    pub(super) error: Option<Error>,
}

impl SeatKeeper {
    /// Keeps seats in `files`.
    pub(super) fn new(files: SeatFiles) -> Self {
        Self { files: Some(files), writing: None, waiting: Batch::new(), due: Instant::now() + RETRY }
    }

    /// Remembers to write these seats, or to remove those of a pool that is gone.
    pub(super) fn keep(&mut self, id: PoolId, roster: Option<Roster>) {
        self.waiting.insert(id, roster);
        self.due = self.due.min(Instant::now() + SETTLE);
    }

    /// Remembers to write these.
    pub(super) fn keep_all(&mut self, batch: Batch) {
        batch.into_iter().for_each(|(id, roster)| self.keep(id, roster));
    }

    /// Returns when something was written or could not be. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Result<Outcome, Error> {
        if self.writing.is_none() {
            sleep_until(self.due).await;
            self.begin();
        }
        self.end().await
    }

    /// Writes all that waits, or everything where the directory is gone. Gives up at an error; what is lost then.
    pub(super) async fn finish(&mut self, all: impl Fn() -> Batch) -> Result<(Batch, Option<Error>), Error> {
        if self.writing.is_some() {
            let outcome = self.end().await?;
            self.waiting.extend(outcome.is_new.then(&all).unwrap_or_default());
        }
        loop {
            self.begin();
            let outcome = self.end().await?;
            self.waiting.extend(outcome.is_new.then(&all).unwrap_or_default());
            if outcome.error.is_some() || self.waiting.is_empty() {
                return Ok((std::mem::take(&mut self.waiting), outcome.error));
            }
        }
    }

    fn begin(&mut self) {
        let Some(mut files) = self.files.take() else { return };
        let batch = std::mem::take(&mut self.waiting);
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let written = files.write(batch);
            (files, written)
        }));
    }

    async fn end(&mut self) -> Result<Outcome, Error> {
        let Some(writing) = &mut self.writing else { return pending().await };
        let (files, written) = writing.await?;
        (self.files, self.writing) = (Some(files), None);
        for (id, roster) in written.left {
            self.waiting.entry(id).or_insert(roster);
        }
        let now = Instant::now();
        self.due =
            if written.error.is_some() || self.waiting.is_empty() { now + RETRY } else { now + SETTLE };
        Ok(Outcome { is_new: written.is_new, error: written.error })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn some(id: &str) -> (PoolId, Option<Roster>) {
        (PoolId::new("shop", id), Some(Roster { seats: Vec::new() }))
    }

    #[tokio::test]
    async fn a_directory_that_vanished_is_made_again_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut keeper = SeatKeeper::new(SeatFiles::open(&state).unwrap().0);
        fs::remove_dir_all(&state).unwrap();
        let (id, roster) = some("web");
        keeper.keep(id, roster);
        let outcome = keeper.next().await.unwrap();
        assert!(outcome.is_new && outcome.error.is_none(), "{outcome:?}");
        assert!(state.join("shop.web.json").exists());
        let error = SeatFiles::open(&state).unwrap_err();
        assert!(matches!(error, Error::StateDirTaken { .. }), "{error}");
    }

    #[tokio::test]
    async fn at_the_end_a_directory_that_vanished_gets_the_seats_of_all_pools() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut keeper = SeatKeeper::new(SeatFiles::open(&state).unwrap().0);
        fs::remove_dir_all(&state).unwrap();
        let (lost, error) = keeper.finish(|| [some("web"), some("api")].into()).await.unwrap();
        assert!(lost.is_empty() && error.is_none(), "{lost:?} {error:?}");
        assert!(state.join("shop.web.json").exists() && state.join("shop.api.json").exists());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_is_told_with_the_path_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut keeper = SeatKeeper::new(SeatFiles::open(&state).unwrap().0);
        fs::remove_dir_all(&state).unwrap();
        fs::write(&state, "in the way").unwrap();
        let (id, roster) = some("web");
        keeper.keep(id, roster);
        let error = keeper.next().await.unwrap().error.unwrap().to_string();
        assert!(
            error.starts_with(&format!("the state directory {} cannot be used: ", state.display())),
            "{error}"
        );
        fs::remove_file(&state).unwrap();
        let failed = Instant::now();
        let outcome = keeper.next().await.unwrap();
        assert!(outcome.error.is_none() && failed.elapsed() >= RETRY, "{outcome:?}");
        assert!(state.join("shop.web.json").exists());
    }

    #[tokio::test]
    async fn what_is_lost_at_the_end_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut keeper = SeatKeeper::new(SeatFiles::open(&state).unwrap().0);
        fs::remove_dir_all(&state).unwrap();
        fs::write(&state, "in the way").unwrap();
        keeper.keep_all([some("web")].into());
        let (lost, error) = keeper.finish(Batch::new).await.unwrap();
        assert_eq!(lost, [some("web")].into());
        assert!(error.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_come_close_together_are_written_once_and_the_last_counts() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = SeatKeeper::new(SeatFiles::open(folder.path()).unwrap().0);
        let begin = Instant::now();
        let (id, roster) = some("web");
        keeper.keep(id.clone(), roster);
        keeper.keep(id, None);
        keeper.next().await.unwrap();
        assert_eq!(begin.elapsed(), SETTLE);
        assert!(!folder.path().join("shop.web.json").exists());
    }
}
