//! Owns what is seen at one look at the files: their texts, the pools and Secrets in them, and the certificates that
//! the pools name. Two equal pictures mean "nothing new".

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::credentials::{self, Means};
use super::folder::{self, Credentials, Texts};
use super::reading::{self, Place, Problem, Reading};
use crate::balance::pool::{Pool, PoolId};
use crate::crd::manifest::ManifestError;
use crate::source::admission::Admission;
use crate::source::reach::Target;

/// One look.
#[derive(Debug)]
pub(super) struct Picture {
    texts: Result<Texts, String>,
    /// The same in pools, which are yet to be equipped.
    readings: Arc<BTreeMap<Arc<Path>, Reading>>,
    credentials: Credentials,
}

impl PartialEq for Picture {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts && self.credentials == other.credentials
    }
}

impl Picture {
    /// What `texts`, read from `path`, come to. Reads the certificates that they name. What `last` had of the same
    /// texts is used again.
    pub(super) fn of(
        texts: Result<Texts, String>,
        path: &Arc<Path>,
        last: Option<&Self>,
    ) -> Result<Self, ManifestError> {
        let readings = match last.filter(|last| last.texts == texts) {
            Some(last) => last.readings.clone(),
            None => Arc::new(readings(&texts, path)?),
        };
        let credentials = folder::read_credentials(credentials::named_files(readings.values()));
        Ok(Self { texts, readings, credentials })
    }

    /// Why the path as a whole cannot be read, if it cannot.
    pub(super) fn unreadable(&self) -> Option<&str> {
        self.texts.as_ref().err().map(String::as_str)
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub(super) fn holds_files(&self) -> bool {
        self.texts.as_ref().is_ok_and(|files| !files.is_empty())
    }

    /// What every file holds, its pools with the terms of TLS that they ask for. `now` is in seconds since the UNIX
    /// epoch.
    pub(super) fn equipped(
        &self,
        in_force: &BTreeMap<PoolId, Arc<Pool>>,
        now: u64,
    ) -> BTreeMap<Arc<Path>, Reading> {
        let mut readings = BTreeMap::clone(&self.readings);
        let means = Means { files: &self.credentials, target: Target::Standalone, now, in_force };
        credentials::equip(&mut readings.values_mut().collect::<Vec<_>>(), &means);
        readings
    }
}

/// The pools of every file. A path that cannot be read at all is a mistake of its own.
fn readings(
    texts: &Result<Texts, String>,
    path: &Arc<Path>,
) -> Result<BTreeMap<Arc<Path>, Reading>, ManifestError> {
    let admission = Admission::new()?;
    let unreadable = |file: &Arc<Path>, reason: String| {
        let place = Place { file: file.clone(), line: 1 };
        let problem = Problem { place, field: String::new(), reason };
        (file.clone(), Reading { loose: vec![problem], ..Reading::default() })
    };
    let files = match texts {
        Ok(files) if files.is_empty() => {
            let reason = "holds no .yaml, .yml or .json file; put one there";
            return Ok(BTreeMap::from([unreadable(path, reason.into())]));
        }
        Ok(files) => files,
        Err(error) => {
            let reason = format!("cannot be read: {error}; put it back or make it readable");
            return Ok(BTreeMap::from([unreadable(path, reason)]));
        }
    };
    let read = |(file, text): (&Arc<Path>, &Result<Arc<str>, String>)| match text {
        Ok(text) => (file.clone(), reading::read(text, file, &admission, Target::Standalone)),
        Err(error) => unreadable(file, format!("cannot be read: {error}")),
    };
    Ok(files.iter().map(read).collect())
}
