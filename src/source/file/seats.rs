//! Owns the state directory: the seats of every pool as a file of their own, so that keys stay with their
//! backends over a restart. A file is replaced whole or not at all; one that cannot be read is set aside.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::balance::backend::BackendId;
use crate::balance::pool::PoolId;
use crate::balance::seats::{Occupant, Roster, RosterSeat};

/// Seats to write; none where a pool is gone.
pub(super) type Batch = BTreeMap<PoolId, Option<Roster>>;

/// Where seats are written.
#[derive(Debug)]
pub(super) struct SeatFiles {
    folder: PathBuf,
    /// Keeps other processes out of the folder. The system lets go of it however this one ends.
    lock: File,
}

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Written {
    /// The folder was gone and is there again, without what stood in it.
    pub(super) is_new: bool,
    /// What is not written.
    pub(super) left: Batch,
    /// Why not, if so.
    pub(super) error: Option<Error>,
}

/// Files written at once. Each waits for its own bytes to reach the disk, which takes eight of them in one go.
const WRITERS: usize = 8;

/// The file that is locked. It stays where it is: whoever removed it could let two processes in.
const LOCK: &str = "lock";

impl SeatFiles {
    /// Opens `folder` for this process alone, makes it where it is missing, and reads the seats in it.
    pub(super) fn open(folder: &Path) -> Result<(Self, Vec<(PoolId, Roster)>), Error> {
        let lock = take(folder)?;
        let rosters = read(folder).map_err(|reason| unusable(folder, reason))?;
        Ok((Self { folder: folder.into(), lock }, rosters))
    }

    /// Writes the batch. Whatever it holds, the folder is there afterwards, or the error says why not.
    pub(super) fn write(&mut self, batch: Batch) -> Written {
        let is_new = match self.restore() {
            Ok(is_new) => is_new,
            Err(error) => return Written { is_new: false, left: batch, error: Some(error) },
        };
        if batch.is_empty() {
            return Written { is_new, left: batch, error: None };
        }
        let (left, error) = self.write_at_once(&batch);
        // One flush of the folder is for all files in it, so where it fails none of them is safe.
        let (left, error) = match File::open(&self.folder).and_then(|folder| folder.sync_all()) {
            Ok(()) => (left, error),
            Err(reason) => (batch, error.or(Some(reason))),
        };
        Written { is_new, left, error: error.map(|reason| unusable(&self.folder, reason)) }
    }

    /// Makes the folder again where it is gone, and locks it; the lock we have is on a file that nobody sees.
    fn restore(&mut self) -> Result<bool, Error> {
        let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        let here =
            fs::metadata(self.folder.join(LOCK)).and_then(|here| Ok(same(here, self.lock.metadata()?)));
        if here.is_ok_and(|same| same) {
            return Ok(false);
        }
        self.lock = take(&self.folder)?;
        Ok(true)
    }

    /// What is not written, and the first reason.
    fn write_at_once(&self, batch: &Batch) -> (Batch, Option<io::Error>) {
        let queue = Mutex::new(batch.iter());
        let next = || locked(&queue).next();
        let failed = Mutex::new((Batch::new(), None));
        let work = || {
            while let Some((id, seats)) = next() {
                if let Err(reason) = self.write_one(id, seats.as_ref()) {
                    let mut failed = locked(&failed);
                    failed.0.insert(id.clone(), seats.clone());
                    failed.1.get_or_insert(reason);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..batch.len().min(WRITERS) {
                // One writer is enough where the system gives no more threads.
                let _or_none = thread::Builder::new().name("guideway-seats".into()).spawn_scoped(scope, work);
            }
            work();
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_one(&self, id: &PoolId, seats: Option<&Roster>) -> io::Result<()> {
        let path = self.folder.join(file_name(id));
        match seats {
            Some(roster) => replace(&path, &serde_json::to_vec(&Stored::new(id, roster))?),
            None => remove(&path),
        }
    }
}

/// No writer can panic while it holds one of these locks.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unusable(folder: &Path, reason: io::Error) -> Error {
    Error::StateDir { path: folder.into(), reason }
}

/// Takes `folder` for this process alone; makes it where it is missing.
fn take(folder: &Path) -> Result<File, Error> {
    lock(folder).map_err(|error| match error {
        TryLockError::WouldBlock => Error::StateDirTaken { path: folder.into() },
        TryLockError::Error(reason) => unusable(folder, reason),
    })
}

fn lock(folder: &Path) -> Result<File, TryLockError> {
    let open = || {
        fs::create_dir_all(folder)?;
        File::options().create(true).write(true).truncate(false).open(folder.join(LOCK))
    };
    let file = open().map_err(TryLockError::Error)?;
    file.try_lock().map(|()| file)
}

fn read(folder: &Path) -> io::Result<Vec<(PoolId, Roster)>> {
    let mut rosters = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "json") {
            rosters.extend(read_or_set_aside(&path)?);
        }
    }
    Ok(rosters)
}

/// Namespaces hold no dot, so no two pools share a name; both parts have at most 63 characters.
fn file_name(id: &PoolId) -> String {
    format!("{}.{}.json", id.namespace, id.name)
}

fn read_or_set_aside(path: &Path) -> io::Result<Option<(PoolId, Roster)>> {
    let text = fs::read(path)?;
    let reason = match serde_json::from_slice::<Stored>(&text).map(Stored::seats) {
        Ok(Some(found)) => return Ok(Some(found)),
        Ok(None) => "its seats are not numbered 0, 1, 2 …".into(),
        Err(error) => error.to_string(),
    };
    let aside = path.with_extension("json.unreadable");
    fs::rename(path, &aside)?;
    tracing::warn!(file = %path.display(), aside = %aside.display(), reason, "seats cannot be read; set aside, keys of this pool may move");
    Ok(None)
}

/// Either the old bytes or the new ones survive a crash: written beside, flushed, then renamed. The folder is for
/// whoever calls to flush.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The form on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    namespace: String,
    name: String,
    seats: Vec<StoredSeat>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredSeat {
    seat: u16,
    backend: String,
    weight: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    occupant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vacated_ms: Option<u64>,
}

impl Stored {
    fn new(id: &PoolId, roster: &Roster) -> Self {
        let seat = |it: &RosterSeat| StoredSeat {
            seat: it.seat,
            backend: it.group.to_string(),
            weight: it.weight,
            uid: it.occupant.as_ref().map(|occupant| occupant.id.to_string()),
            occupant: it.occupant.as_ref().map(|occupant| occupant.name.to_string()),
            vacated_ms: it.vacated_ms,
        };
        Self {
            namespace: id.namespace.to_string(),
            name: id.name.to_string(),
            seats: roster.seats.iter().map(seat).collect(),
        }
    }

    /// The seats, or `None` where they are not in order.
    fn seats(self) -> Option<(PoolId, Roster)> {
        let mut seats = Vec::new();
        for it in self.seats {
            if usize::from(it.seat) != seats.len() || it.weight == 0 {
                return None;
            }
            let occupant = it.uid.zip(it.occupant);
            seats.push(RosterSeat {
                seat: it.seat,
                group: it.backend.into(),
                weight: it.weight,
                occupant: occupant.map(|(id, name)| Occupant { id: BackendId(id.into()), name: name.into() }),
                vacated_ms: it.vacated_ms,
            });
        }
        Some((PoolId::new(&self.namespace, &self.name), Roster { seats }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster() -> Roster {
        let seat = |seat, occupant: Option<&str>, vacated_ms| RosterSeat {
            seat,
            group: "all".into(),
            weight: 3,
            occupant: occupant.map(|it| Occupant { id: it.into(), name: it.into() }),
            vacated_ms,
        };
        let seats =
            vec![seat(0, Some("192.0.2.1:80"), None), seat(1, Some("b"), Some(17)), seat(2, None, Some(5))];
        Roster { seats }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != LOCK);
        names.sort();
        names
    }

    /// Writes these seats, or removes those of pools without any.
    fn write(files: &mut SeatFiles, seats: impl IntoIterator<Item = (PoolId, Option<Roster>)>) -> Written {
        files.write(seats.into_iter().collect())
    }

    fn web() -> PoolId {
        PoolId::new("shop", "web")
    }

    #[test]
    fn seats_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let ids = (0..40).map(|number| PoolId::new("shop", &format!("web.v{number}")));
        let (mut files, found) = SeatFiles::open(&folder.path().join("new")).unwrap();
        assert!(found.is_empty());
        let written = write(&mut files, ids.clone().map(|id| (id, Some(roster()))));
        assert!(written.error.is_none() && written.left.is_empty() && !written.is_new, "{written:?}");
        drop(files);
        let (_, found) = SeatFiles::open(&folder.path().join("new")).unwrap();
        let expected: BTreeMap<_, _> = ids.map(|id| (id, roster())).collect();
        assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), expected);
    }

    #[test]
    fn a_forgotten_pool_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, _) = SeatFiles::open(folder.path()).unwrap();
        write(&mut files, [(web(), Some(roster()))]);
        assert_eq!(names(folder.path()), ["shop.web.json"]);
        let written = write(&mut files, [(web(), None), (PoolId::new("shop", "never-written"), None)]);
        assert!(written.error.is_none(), "{written:?}");
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, _) = SeatFiles::open(folder.path()).unwrap();
        let disorder = Roster { seats: roster().seats.split_off(1) };
        let of = |name, roster| (PoolId::new("shop", name), Some(roster));
        write(&mut files, [of("good", roster()), of("torn", roster()), of("order", disorder)]);
        let torn = folder.path().join("shop.torn.json");
        let half = fs::read(&torn).unwrap();
        fs::write(&torn, &half[..half.len() / 2]).unwrap();
        drop(files);
        let (_, found) = SeatFiles::open(folder.path()).unwrap();
        assert_eq!(found, [(PoolId::new("shop", "good"), roster())]);
        let left = ["shop.good.json", "shop.order.json.unreadable", "shop.torn.json.unreadable"];
        assert_eq!(names(folder.path()), left);
    }

    #[test]
    fn what_could_not_be_written_is_left_and_the_rest_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, _) = SeatFiles::open(folder.path()).unwrap();
        fs::create_dir(folder.path().join("shop.web.json")).unwrap();
        let written =
            write(&mut files, [(PoolId::new("shop", "api"), Some(roster())), (web(), Some(roster()))]);
        assert_eq!(written.left, [(web(), Some(roster()))].into());
        assert!(written.error.is_some());
        assert!(folder.path().join("shop.api.json").is_file());
    }

    #[test]
    fn a_folder_belongs_to_one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = SeatFiles::open(folder.path()).unwrap();
        let error = SeatFiles::open(folder.path()).unwrap_err();
        let path = folder.path().display();
        let expected = format!(
            "the state directory {path} is in use by another Guideway; give each its own --state-dir"
        );
        assert_eq!(error.to_string(), expected);
        drop(first);
        assert!(SeatFiles::open(folder.path()).is_ok());
    }

    #[test]
    fn a_folder_that_cannot_be_used_says_why_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = anyhow::Error::new(SeatFiles::open(&file).unwrap_err());
        let told = format!("{error:#}");
        let path = file.display();
        let expected = format!(
            "the state directory {path} cannot be used: File exists (os error 17); correct --state-dir or its owner"
        );
        assert_eq!(told, expected);
    }
}
