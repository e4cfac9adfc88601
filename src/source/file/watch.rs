//! Owns when to look again: the kernel says that something changed in a folder that matters, and a slow look of our own
//! finds what it could not tell. A folder is known by its identity, so one that replaces another is watched anew.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::fs::inotify::{self, CreateFlags, Event, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use super::folder::Credentials;
use super::trail::{Entries, Trails};

/// An editor writes in several steps; it is done when nothing happened for so long,
const QUIET: Duration = Duration::from_millis(50);
/// but a file that changes all the time is read after this one.
const QUIET_MAX: Duration = Duration::from_millis(500);

/// What is read of the kernel's queue at once: the longest event many times over. The queue itself is bounded by the
/// kernel, which says when it lost events.
const EVENT_BYTES: usize = 8 * 1024;

/// Entries that come, go, or are allowed to be read now, and the end of the folder itself.
const ENTRIES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR)
    // One folder may be reached on two ways.
    .union(WatchFlags::MASK_ADD);
/// What is written into files.
const CONTENTS: WatchFlags = WatchFlags::MODIFY.union(WatchFlags::CLOSE_WRITE);

/// What matters of each folder, by the number that the kernel gave it: a folder has one, however it is reached, and no
/// other folder gets it.
type Watched = BTreeMap<i32, Entries>;

/// Tells when to read again.
#[derive(Debug)]
pub(super) struct Changes {
    queue: Option<AsyncFd<Arc<OwnedFd>>>,
    watched: Arc<ArcSwap<Watched>>,
    look: Interval,
    unrest: Option<Unrest>,
}

/// Something happened, and more may follow.
#[derive(Clone, Copy, Debug)]
struct Unrest {
    quiet_at: Instant,
    latest: Instant,
}

/// Has the system tell of changes. Apart from `Changes`, because to look at folders may take long.
#[derive(Debug)]
pub(super) struct Watch {
    path: PathBuf,
    queue: Option<Arc<OwnedFd>>,
    watched: Arc<ArcSwap<Watched>>,
    every: Duration,
    /// What was last said about folders that cannot be watched.
    told: BTreeSet<String>,
}

/// Watches the folders that decide what `path` holds, and looks again after `every` in any case.
pub(super) fn watch(path: &Path, every: Duration) -> (Watch, Changes) {
    let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map(Arc::new);
    let queue = queue.map_err(io::Error::from).and_then(|queue| Ok((queue.clone(), register(queue)?)));
    let queue = queue.inspect_err(
        |error| tracing::warn!(%error, ?every, "changes are not told by the system; looking regularly"),
    );
    let (queue, told) = queue.ok().unzip();
    let mut look = interval_at(Instant::now() + every, every);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watched = Arc::new(ArcSwap::default());
    let changes = Changes { queue: told, watched: watched.clone(), look, unrest: None };
    let mut watch = Watch { path: path.into(), queue, watched, every, told: BTreeSet::new() };
    watch.renew(&Credentials::new());
    (watch, changes)
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for owners whose descriptor changes; ours stays the same"
)]
fn register(queue: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    AsyncFd::with_interest(queue, Interest::READABLE)
}

impl Changes {
    /// Returns when it is time to read again. May be dropped at any time.
    pub(super) async fn next(&mut self) {
        loop {
            let rest = self.unrest.map(|it| it.quiet_at.min(it.latest));
            tokio::select! {
                _ = self.look.tick() => return,
                () = sleep_until(rest.unwrap_or_else(Instant::now)), if rest.is_some() => {
                    self.unrest = None;
                    return;
                }
                () = told(self.queue.as_ref(), &self.watched) => self.disturb(),
            }
        }
    }

    fn disturb(&mut self) {
        let now = Instant::now();
        let latest = self.unrest.map_or(now + QUIET_MAX, |it| it.latest);
        self.unrest = Some(Unrest { quiet_at: now + QUIET, latest });
    }
}

/// Returns when the kernel told of something that matters. May be dropped at any time.
async fn told(queue: Option<&AsyncFd<Arc<OwnedFd>>>, watched: &ArcSwap<Watched>) {
    let Some(queue) = queue else { return std::future::pending().await };
    while let Ok(mut ready) = queue.readable().await {
        match read(queue.get_ref(), &watched.load()) {
            Ok(true) => return,
            Ok(false) => {}
            Err(Errno::WOULDBLOCK) => ready.clear_ready(),
            // Whatever it was that could not be told.
            Err(_) => {
                ready.clear_ready();
                return;
            }
        }
    }
    std::future::pending().await
}

/// Takes some of what the kernel has to tell. Says whether any of it matters.
fn read(queue: &OwnedFd, watched: &Watched) -> Result<bool, Errno> {
    let mut buffer = [MaybeUninit::uninit(); EVENT_BYTES];
    let mut reader = inotify::Reader::new(queue, &mut buffer);
    let mut any = false;
    loop {
        any |= matters(&reader.next()?, watched);
        if reader.is_buffer_empty() {
            return Ok(any);
        }
    }
}

fn matters(event: &Event<'_>, watched: &Watched) -> bool {
    if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
        return true;
    }
    // Those that are no longer watched, or not yet known to be, were looked at after they became so.
    let Some(entries) = watched.get(&event.wd()) else { return false };
    match event.file_name() {
        Some(name) => entries.hold(OsStr::from_bytes(name.to_bytes())),
        None => true,
    }
}

impl Watch {
    /// Folders may have been replaced, links lead elsewhere now, and other `credentials` be named: watches what is on
    /// the ways by now. Says whether something came to be watched that may have changed meanwhile.
    pub(super) fn renew(&mut self, credentials: &Credentials) -> bool {
        let Some(queue) = &self.queue else { return false };
        let trails = Trails::of(&self.path, credentials.keys().map(PathBuf::as_path));
        let (before, mut now, mut faults) = (self.watched.load_full(), Watched::new(), BTreeSet::new());
        if trails.is_cut {
            faults.insert("more folders lead to files than are watched".to_owned());
        }
        for (folder, entries) in trails.folders {
            let flags = if entries.contents { ENTRIES | CONTENTS } else { ENTRIES };
            match inotify::add_watch(queue, &folder, flags) {
                Ok(number) => now.entry(number).or_default().add(entries),
                // It went while we looked, of which the folder that held it tells.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => drop(faults.insert(fault(&folder, error))),
            }
        }
        for gone in before.keys().filter(|it| !now.contains_key(it)) {
            // The kernel let go of those that were deleted by itself.
            let _was_gone = inotify::remove_watch(queue, *gone);
        }
        let is_new =
            |(number, entries): (&i32, &Entries)| !before.get(number).is_some_and(|it| it.cover(entries));
        let news = now.iter().any(is_new);
        self.watched.store(Arc::new(now));
        for fault in faults.difference(&self.told) {
            tracing::warn!("{fault}; changes there are seen within {:?}", self.every);
        }
        self.told = faults;
        news
    }
}

fn fault(folder: &Path, error: Errno) -> String {
    match error {
        Errno::NOSPC => "no more folders can be watched; raise fs.inotify.max_user_watches".into(),
        _ => format!("{} cannot be watched: {error}; make it readable", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use futures::FutureExt;
    use tempfile::TempDir;

    use super::*;

    /// So rarely that only the kernel can have told of a change.
    const NEVER: Duration = Duration::from_secs(3600);

    fn pools() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pools");
        fs::create_dir(&path).unwrap();
        (folder, path)
    }

    #[tokio::test(start_paused = true)]
    async fn it_looks_again_although_nobody_told_of_a_change() {
        let (_folder, path) = pools();
        let (_watch, mut changes) = watch(&path, Duration::from_secs(5));
        let begin = Instant::now();
        changes.next().await;
        changes.next().await;
        assert_eq!(begin.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test]
    async fn a_change_that_was_heard_of_is_not_lost_with_the_wait_for_quiet() {
        let (_folder, path) = pools();
        let (_watch, mut changes) = watch(&path, NEVER);
        fs::write(path.join("a.yaml"), "x").unwrap();
        drop(changes.queue.as_ref().unwrap().readable().await.unwrap());
        assert!(changes.next().now_or_never().is_none(), "the editor may not be done");
        assert_eq!(read(changes.queue.as_ref().unwrap().get_ref(), &Watched::new()), Err(Errno::WOULDBLOCK));
        tokio::time::timeout(Duration::from_secs(30), changes.next()).await.unwrap();
    }

    #[tokio::test]
    async fn only_what_matters_is_told() {
        let (folder, path) = pools();
        let (watch, _changes) = watch(&path, NEVER);
        let told = || read(watch.queue.as_ref().unwrap(), &watch.watched.load());
        fs::write(path.join("a.yaml~"), "x").unwrap();
        fs::write(folder.path().join("a.yaml"), "x").unwrap();
        assert_eq!(told(), Ok(false));
        fs::write(path.join("a.yaml"), "x").unwrap();
        assert_eq!(told(), Ok(true));
        fs::read(path.join("a.yaml")).unwrap();
        assert_eq!(told(), Err(Errno::WOULDBLOCK), "our own reading is no change");
        fs::rename(&path, folder.path().join("away")).unwrap();
        assert_eq!(told(), Ok(true));
    }

    #[tokio::test]
    async fn a_folder_is_known_by_its_identity() {
        let (folder, path) = pools();
        let (mut watch, _changes) = watch(&path, NEVER);
        let none = Credentials::new();
        let watched = |watch: &Watch| watch.watched.load().len();
        let all = watched(&watch);
        assert!(!watch.renew(&none), "nothing is new");
        for round in ["1", "2"] {
            fs::rename(&path, folder.path().join(round)).unwrap();
            fs::create_dir(&path).unwrap();
            assert!(watch.renew(&none) && !watch.renew(&none), "{round}");
            fs::remove_dir(&path).unwrap();
            assert!(!watch.renew(&none), "{round}");
            assert_eq!(watched(&watch), all - 1, "what is away is let go of");
            fs::create_dir(&path).unwrap();
            assert!(watch.renew(&none) && !watch.renew(&none), "{round}");
        }
    }

    #[tokio::test]
    async fn more_folders_than_are_watched_are_told_and_no_reason_to_look_for_ever() {
        let (folder, path) = pools();
        for number in 0..1100 {
            fs::create_dir(folder.path().join(number.to_string())).unwrap();
            symlink(format!("../{number}/p"), path.join(format!("{number}.yaml"))).unwrap();
        }
        let (mut watch, _changes) = watch(&path, NEVER);
        assert!(!watch.renew(&Credentials::new()));
        let told: Vec<_> = watch.told.iter().collect();
        assert_eq!(told, ["more folders lead to files than are watched"]);
    }
}
