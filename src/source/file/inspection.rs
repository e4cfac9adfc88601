//! Owns the look at files that nobody serves yet: what a cluster, or a process of its own, would say to all
//! of them together.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::catalog::doubles;
use super::credentials::{self, Means};
use super::folder::{self, Texts};
use super::ports;
use super::reading::{self, Found, Place, Problem, Reading};
use crate::balance::pool::PoolId;
use crate::crd::manifest::ManifestError;
use crate::source::admission::Admission;
use crate::source::reach::Target;
use crate::source::translate::Translated;

/// What is in the files.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Everything that is wrong, by file and line.
    pub problems: Vec<Problem>,
    /// What works and is not as it should be, by file and line.
    pub remarks: Vec<Problem>,
    /// The pools with nothing wrong of their own, by file and line.
    pub pools: Vec<(Place, Translated)>,
    /// The pools with something wrong of their own, by file and line.
    pub refused: Vec<PoolId>,
    /// Documents of other kinds, which were not looked at.
    pub others: Vec<(Place, String)>,
}

/// Looks at files and folders; `-` is standard input.
pub fn inspect(paths: &[PathBuf], target: Target) -> Result<Inspection, ManifestError> {
    let admission = Admission::new()?;
    let mut inspection = Inspection::default();
    let mut pools: BTreeMap<PoolId, Vec<Found>> = BTreeMap::new();
    let read = |(file, text): (Arc<Path>, Result<Arc<str>, String>)| match text {
        Ok(text) => reading::read(&text, &file, &admission, target),
        Err(error) => unreadable(file, &error),
    };
    let mut readings: Vec<Reading> = paths.iter().flat_map(|path| texts(path)).map(read).collect();
    let files = folder::read_credentials(credentials::named_files(&readings));
    let means = Means { files: &files, target, now: now(), in_force: &BTreeMap::new() };
    credentials::equip(&mut readings.iter_mut().collect::<Vec<_>>(), &means);
    for reading in readings {
        inspection.problems.extend(reading.loose);
        inspection.remarks.extend(reading.remarks);
        inspection.others.extend(reading.others);
        reading.pools.into_iter().for_each(|pool| pools.entry(pool.id.clone()).or_default().push(pool));
    }
    pools.iter().for_each(|(id, places)| inspection.problems.extend(doubles(id, places)));
    let mut pools: Vec<Found> = pools.into_values().flatten().collect();
    pools.sort_by(|a, b| a.place.cmp(&b.place));
    let refused = ports::refusals(&pools, &BTreeMap::new(), None, &BTreeMap::new());
    inspection.problems.extend(refused.into_values().flatten());
    for pool in pools {
        match pool.outcome {
            Ok(translated) => inspection.pools.push((pool.place, translated)),
            Err(problems) => {
                inspection.problems.extend(problems);
                inspection.refused.push(pool.id);
            }
        }
    }
    inspection.problems.sort();
    // A Secret that several pools name is wrong for each of them.
    inspection.problems.dedup();
    Ok(inspection)
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}

fn texts(path: &Path) -> Texts {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().read_to_string(&mut text);
        let text = read.map(|_| text.into()).map_err(|error| error.to_string());
        return Texts::from([(Path::new("stdin").into(), text)]);
    }
    // What a shell puts in the place of a command. Nobody follows it, so whoever writes may take their time.
    if fs::metadata(path).is_ok_and(|it| it.file_type().is_fifo()) {
        let text = fs::read_to_string(path).map(Into::into).map_err(|error| error.to_string());
        return Texts::from([(path.into(), text)]);
    }
    match folder::read(path) {
        Ok(texts) if texts.is_empty() => {
            Texts::from([(path.into(), Err("the folder holds no .yaml, .yml or .json file; put one there".into()))])
        }
        Ok(texts) => texts,
        Err(error) => Texts::from([(path.into(), Err(error.to_string()))]),
    }
}

fn unreadable(file: Arc<Path>, error: &str) -> Reading {
    let place = Place { file, line: 1 };
    let problem = Problem { place, field: String::new(), reason: format!("cannot be read: {error}") };
    Reading { loose: vec![problem], ..Reading::default() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::reading::tests::pool;
    use super::*;

    fn check(files: &[(&str, String)], problems: &[&str], pools: &[&str]) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let inspection = inspect(&[folder.path().into()], Target::Cluster).unwrap();
        let prefix = format!("{}/", folder.path().display());
        let bare = |text: String| text.replace(&prefix, "");
        let found: Vec<String> = inspection.problems.iter().map(|it| bare(it.to_string())).collect();
        assert_eq!(found, problems);
        let found: Vec<String> = inspection
            .pools
            .iter()
            .map(|(place, translated)| bare(format!("{place}: {}", translated.pool.id)))
            .collect();
        assert_eq!(found, pools);
    }

    #[test]
    fn pools_are_held_against_each_other_over_all_files() {
        check(
            &[
                ("a.yaml", format!("{}---\n{}", pool("a", 80), pool("b", 81))),
                ("b.yaml", format!("{}---\n{}", pool("a", 82), pool("c", 81))),
            ],
            &[
                "b.yaml:1: metadata.name: pool default/a stands at a.yaml:1 already; remove or rename one of the two",
                "b.yaml:18: spec.listeners[0].port: pool default/b at a.yaml:12 has port 81 too; use another port, or \
                 name the hosts or paths of each",
            ],
            &["a.yaml:1: default/a", "a.yaml:12: default/b", "b.yaml:1: default/a", "b.yaml:12: default/c"],
        );
    }

    #[test]
    fn what_cannot_be_read_is_a_problem_of_its_own() {
        let missing = PathBuf::from("/nowhere/pools.yaml");
        let empty = tempfile::tempdir().unwrap();
        let inspection = inspect(&[missing, empty.path().into()], Target::Cluster).unwrap();
        let found: Vec<&str> = inspection.problems.iter().map(|it| it.reason.as_str()).collect();
        let no_file = "cannot be read: No such file or directory (os error 2)";
        let empty = "cannot be read: the folder holds no .yaml, .yml or .json file; put one there";
        assert_eq!(found, [no_file, empty]);
    }

    #[test]
    fn every_file_is_looked_at() {
        check(
            &[("a.yaml", "a: [".into()), ("b.yaml", pool("b", 0)), ("c.yaml", pool("c", 80))],
            &[
                "a.yaml:2: did not find expected node content",
                "b.yaml:7: spec.listeners[0].port: 0 is not a port; use 1 to 65535",
            ],
            &["c.yaml:1: default/c"],
        );
    }
}
