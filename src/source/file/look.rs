//! Owns the one look at the files that is under way. Disks and network mounts answer when they like, so it is taken
//! beside the loop; one that takes too long is told, and waited for: a second one would hang as the first.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::Error;
use super::folder::{self, Texts};
use super::picture::Picture;
use super::watch::{Changes, Watch};
use crate::crd::manifest::ManifestError;

/// A look takes milliseconds, at ten thousand pools a second. After this the disk is away.
pub(super) const LOOK_WITHIN: Duration = Duration::from_secs(10);

/// What came of a look.
#[derive(Debug)]
pub(super) enum Sight {
    /// What the files hold.
    Seen(Picture),
    /// Nothing so far; what is seen comes later, if ever.
    Stuck,
}

/// Looks when there may be news.
pub(super) struct Looker {
    path: Arc<Path>,
    reader: Arc<Reader>,
    changes: Changes,
    /// Absent while a look is under way.
    watch: Option<Watch>,
    under_way: Option<UnderWay>,
    /// Not to wait for a change: there was no look yet, or something may have happened during the last one.
    at_once: bool,
}

/// Reads all files of a path.
pub(super) type Reader = dyn Fn(&Path) -> io::Result<Texts> + Send + Sync;

struct UnderWay {
    task: JoinHandle<Result<Look, ManifestError>>,
    /// When it counts as stuck; absent once that was told.
    patience_ends: Option<Instant>,
}

struct Look {
    picture: Picture,
    watch: Watch,
    /// Folders came to be watched after they were read.
    is_late: bool,
}

impl Looker {
    /// Looks at `path`, of which `changes` tell.
    pub(super) fn new(path: Arc<Path>, (watch, changes): (Watch, Changes)) -> Self {
        Self::with(Arc::new(folder::read), path, (watch, changes))
    }

    fn with(reader: Arc<Reader>, path: Arc<Path>, (watch, changes): (Watch, Changes)) -> Self {
        Self { path, reader, changes, watch: Some(watch), under_way: None, at_once: true }
    }

    /// Returns when there is something to say. May be dropped at any time. What `last` had of the same texts is used
    /// again.
    pub(super) async fn next(&mut self, last: Option<&Arc<Picture>>) -> Result<Sight, Error> {
        loop {
            if let Some(look) = &mut self.under_way {
                let done = match look.patience_ends {
                    None => (&mut look.task).await,
                    Some(at) => match timeout_at(at, &mut look.task).await {
                        Ok(done) => done,
                        Err(_) => {
                            look.patience_ends = None;
                            return Ok(Sight::Stuck);
                        }
                    },
                };
                self.under_way = None;
                let look = done??;
                (self.watch, self.at_once) = (Some(look.watch), look.is_late);
                return Ok(Sight::Seen(look.picture));
            }
            if !self.at_once {
                self.changes.next().await;
            }
            self.begin(last.cloned());
        }
    }

    fn begin(&mut self, last: Option<Arc<Picture>>) {
        let (path, reader) = (self.path.clone(), self.reader.clone());
        let mut watch = self.watch.take().expect("none is under way, so the last one gave it back");
        let look = move || {
            let texts = reader(&path).map_err(|error| error.to_string());
            let picture = Picture::of(texts, &path, last.as_deref())?;
            let is_late = watch.renew(picture.credentials());
            Ok(Look { picture, watch, is_late })
        };
        let task = tokio::task::spawn_blocking(look);
        self.under_way = Some(UnderWay { task, patience_ends: Some(Instant::now() + LOOK_WITHIN) });
    }
}

impl fmt::Debug for Looker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Looker").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::{Mutex, mpsc};

    use futures::FutureExt;
    use tokio::time::advance;

    use super::super::watch;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_is_told_and_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (answer, answers) = mpsc::channel();
        let answers = Mutex::new(answers);
        let reader = move |_: &Path| {
            answers.lock().unwrap().recv().map_err(io::Error::other)?;
            Ok(Texts::new())
        };
        let watch = watch::watch(folder.path(), Duration::from_secs(3600));
        let mut looker = Looker::with(Arc::new(reader), folder.path().into(), watch);
        {
            let mut next = pin!(looker.next(None));
            assert!(next.as_mut().now_or_never().is_none(), "it does not answer yet");
            advance(LOOK_WITHIN).await;
            assert!(matches!(next.await, Ok(Sight::Stuck)));
        }
        {
            let mut next = pin!(looker.next(None));
            advance(LOOK_WITHIN).await;
            assert!(next.as_mut().now_or_never().is_none(), "it is told once");
        }
        answer.send(()).unwrap();
        assert!(matches!(looker.next(None).await, Ok(Sight::Seen(_))));
    }
}
