//! Owns the state directory: the seats of every pool as a file of their own, so that keys stay with their
//! backends over a restart. A file is replaced whole or not at all; one that cannot be read is set aside.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::balance::backend::BackendId;
use crate::balance::pool::PoolId;
use crate::balance::seats::{Occupant, Roster, RosterSeat};

/// Seats that wait to be written, and where.
#[derive(Debug)]
pub(super) struct SeatFiles {
    folder: PathBuf,
    pending: BTreeMap<PoolId, Option<Roster>>,
    /// Keeps other processes out of the folder. The system lets go of it however this one ends.
    _lock: File,
}

/// The file that is locked. It stays where it is: whoever removed it could let two processes in.
const LOCK: &str = "lock";

impl SeatFiles {
    /// Opens `folder` for this process alone, makes it where it is missing, and reads the seats in it.
    pub(super) fn open(folder: &Path) -> Result<(Self, Vec<(PoolId, Roster)>), Error> {
        let unusable = |reason| Error::StateDir { path: folder.into(), reason };
        let lock = lock(folder).map_err(|error| match error {
            TryLockError::WouldBlock => Error::StateDirTaken { path: folder.into() },
            TryLockError::Error(reason) => unusable(reason),
        })?;
        let rosters = read(folder).map_err(unusable)?;
        Ok((Self { folder: folder.into(), pending: BTreeMap::new(), _lock: lock }, rosters))
    }

    /// Remembers to write these seats.
    pub(super) fn keep(&mut self, id: PoolId, roster: Roster) {
        self.pending.insert(id, Some(roster));
    }

    /// Remembers to remove the seats of a pool that is gone.
    pub(super) fn forget(&mut self, id: PoolId) {
        self.pending.insert(id, None);
    }

    /// Whether anything waits to be written.
    pub(super) fn is_due(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes everything that waits. What fails goes on waiting.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while let Some((id, roster)) = self.pending.first_key_value() {
            let path = self.folder.join(file_name(id));
            match roster {
                Some(roster) => replace(&path, &serde_json::to_vec(&Stored::new(id, roster))?)?,
                None => remove(&path)?,
            }
            self.pending.pop_first();
        }
        Ok(())
    }
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

/// Either the old bytes or the new ones survive a crash: written beside, flushed, then renamed.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(path),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
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

    #[test]
    fn seats_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let id = PoolId::new("shop", "web.v2");
        let (mut files, found) = SeatFiles::open(&folder.path().join("new")).unwrap();
        assert!(found.is_empty());
        files.keep(id.clone(), roster());
        assert!(files.is_due());
        files.write().unwrap();
        assert!(!files.is_due());
        drop(files);
        let (_, found) = SeatFiles::open(&folder.path().join("new")).unwrap();
        assert_eq!(found, [(id, roster())]);
    }

    #[test]
    fn a_forgotten_pool_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let id = PoolId::new("shop", "web");
        let (mut files, _) = SeatFiles::open(folder.path()).unwrap();
        files.keep(id.clone(), roster());
        files.write().unwrap();
        assert_eq!(names(folder.path()), ["shop.web.json"]);
        files.forget(id.clone());
        files.forget(PoolId::new("shop", "never-written"));
        files.write().unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut files, _) = SeatFiles::open(folder.path()).unwrap();
        files.keep(PoolId::new("shop", "good"), roster());
        files.keep(PoolId::new("shop", "torn"), roster());
        files.keep(PoolId::new("shop", "order"), Roster { seats: roster().seats.split_off(1) });
        files.write().unwrap();
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
    fn what_could_not_be_written_waits() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let (mut files, _) = SeatFiles::open(&gone).unwrap();
        fs::remove_dir_all(&gone).unwrap();
        files.keep(PoolId::new("shop", "web"), roster());
        assert!(files.write().is_err());
        fs::create_dir(&gone).unwrap();
        files.write().unwrap();
        assert_eq!(names(&gone), ["shop.web.json"]);
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
