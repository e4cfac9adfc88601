//! Owns the look at files that nobody serves yet: what a cluster, or a process of its own, would say to all
//! of them together.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::balance::pool::{PoolId, PortId};
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
    /// The pools with nothing wrong, by file and line.
    pub pools: Vec<(Place, Translated)>,
    /// The pools with something wrong, of their own or beside the others, by file and line.
    pub refused: Vec<PoolId>,
    /// Documents of other kinds, which were not looked at.
    pub others: Vec<(Place, String)>,
}

/// Looks at files and folders; `-` is standard input. No pool can have the port `own`, which the process itself has.
pub fn inspect(paths: &[PathBuf], target: Target, own: Option<PortId>) -> Result<Inspection, ManifestError> {
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
    judge(pools, own, &mut inspection);
    inspection.problems.sort();
    // A Secret that several pools name is wrong for each of them.
    inspection.problems.dedup();
    Ok(inspection)
}

/// Holds the pools against each other, and says only then which of them are right.
fn judge(pools: BTreeMap<PoolId, Vec<Found>>, own: Option<PortId>, inspection: &mut Inspection) {
    pools.iter().for_each(|(id, places)| inspection.problems.extend(doubles(id, places)));
    let is_double = |(id, places): (&PoolId, &Vec<Found>)| (places.len() > 1).then(|| id.clone());
    let doubled: BTreeSet<PoolId> = pools.iter().filter_map(is_double).collect();
    let mut pools: Vec<Found> = pools.into_values().flatten().collect();
    pools.sort_by(|a, b| a.place.cmp(&b.place));
    let mut refused = ports::refusals(&pools, &BTreeMap::new(), own, &BTreeMap::new());
    for (index, pool) in pools.into_iter().enumerate() {
        let problems = refused.remove(&index);
        match pool.outcome {
            Ok(translated) if problems.is_none() && !doubled.contains(&pool.id) => {
                inspection.pools.push((pool.place, translated));
            }
            outcome => {
                inspection.problems.extend(outcome.err().into_iter().chain(problems).flatten());
                inspection.refused.push(pool.id);
            }
        }
    }
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
        Ok(texts) if texts.is_empty() => Texts::from([(
            path.into(),
            Err("the folder holds no .yaml, .yml or .json file; put one there".into()),
        )]),
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
        let inspection = inspect(&[folder.path().into()], Target::Cluster, Some(PortId::Tcp(9901))).unwrap();
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
            &["a.yaml:12: default/b"],
        );
    }

    #[test]
    fn a_pool_that_begins_connections_otherwise_than_the_first_of_its_port_is_not_right() {
        let on = |name, fields: &str| {
            let fields = format!("port: 80\n    hostnames: [{name}.test]{fields}\n  b");
            pool(name, 80).replace("port: 80\n  b", &fields)
        };
        check(
            &[("a.yaml", on("a", "")), ("b.yaml", on("b", "\n    proxyProtocol: Require"))],
            &[
                "b.yaml:9: spec.listeners[0].proxyProtocol: pool default/a at a.yaml:1 has another proxyProtocol on \
               port 80; use the same, or another port",
            ],
            &["a.yaml:1: default/a"],
        );
    }

    #[test]
    fn no_pool_has_the_port_of_the_process() {
        check(
            &[("a.yaml", pool("a", 9901)), ("b.yaml", pool("b", 80))],
            &[
                "a.yaml:7: spec.listeners[0].port: 9901 is Guideway's own metrics port (--metrics-address); use another \
               port",
            ],
            &["b.yaml:1: default/b"],
        );
    }

    #[test]
    fn what_cannot_be_read_is_a_problem_of_its_own() {
        let missing = PathBuf::from("/nowhere/pools.yaml");
        let empty = tempfile::tempdir().unwrap();
        let inspection = inspect(&[missing, empty.path().into()], Target::Cluster, None).unwrap();
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
