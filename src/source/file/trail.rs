//! Owns the ways to files: the folders that decide what stands at a path, and in each of them the entries that matter.
//! Links are followed one by one, as the kernel does, because each of them may be turned on its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use super::folder::is_manifest;

/// Most folders that are watched: an eighth of the smallest usual limit of the kernel for all processes of a user. A
/// way takes a handful; more come of links that lead from one folder into many.
const FOLDERS_MAX: usize = 1024;
/// As many links as the kernel follows on one way.
const LINKS_MAX: usize = 40;

/// What matters of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    names: BTreeSet<OsString>,
    /// Besides the names, whatever is named like a file of pools.
    manifests: bool,
    /// What is written into the files as well, not only which entries there are.
    pub(super) contents: bool,
}

impl Entries {
    /// Whether the entry `name` matters.
    pub(super) fn hold(&self, name: &OsStr) -> bool {
        self.names.contains(name) || self.manifests && is_manifest(Path::new(name))
    }

    /// Whether all of `other` matters here too.
    pub(super) fn cover(&self, other: &Self) -> bool {
        self.manifests >= other.manifests
            && self.contents >= other.contents
            && self.names.is_superset(&other.names)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.names.extend(other.names);
        self.manifests |= other.manifests;
        self.contents |= other.contents;
    }
}

/// The folders on the way to files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Trails {
    /// Each by its real name, as far as one looks at it from the working directory.
    pub(super) folders: BTreeMap<PathBuf, Entries>,
    /// There are more than are watched.
    pub(super) is_cut: bool,
}

impl Trails {
    /// The ways to `path`, to the files in it where it is a folder, and to `others`. What comes first is watched first.
    pub(super) fn of<'a>(path: &Path, others: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut trails = Self::default();
        let folder = trails.follow(Path::new("."), path).filter(|it| it.is_dir());
        let links = folder.iter().flat_map(|folder| trails.enter(folder)).collect::<Vec<_>>();
        others.into_iter().for_each(|it| drop(trails.follow(Path::new("."), it)));
        for (folder, link) in folder.iter().flat_map(|folder| links.iter().map(move |link| (folder, link))) {
            trails.follow(folder, Path::new(link));
        }
        trails
    }

    /// Takes in the files of `folder`. Gives those that are links.
    fn enter(&mut self, folder: &Path) -> Vec<OsString> {
        self.note(folder, Entries { manifests: true, contents: true, names: BTreeSet::new() });
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let links = entries.filter(|it| it.file_type().is_ok_and(|kind| kind.is_symlink()));
        links.map(|it| it.file_name()).filter(|name| is_manifest(Path::new(name))).collect()
    }

    /// Notes every folder on the way that `path` takes from the real folder `from`. Gives where it ends, unless nothing
    /// is there.
    fn follow(&mut self, from: &Path, path: &Path) -> Option<PathBuf> {
        let (mut at, mut steps, mut links) = (from.to_owned(), steps(path), 0);
        while let Some(step) = steps.pop() {
            match step.as_encoded_bytes() {
                b"/" => at = "/".into(),
                b"." => {}
                b".." => ascend(&mut at),
                _ => {
                    let entry = at.join(&step);
                    let kind = fs::symlink_metadata(&entry).ok().map(|it| it.file_type());
                    let contents = steps.is_empty() && kind.is_some_and(|it| it.is_file());
                    self.note(&at, Entries { names: [step].into(), manifests: false, contents });
                    match kind? {
                        kind if kind.is_symlink() => {
                            links += 1;
                            let target = fs::read_link(&entry).ok().filter(|_| links <= LINKS_MAX)?;
                            steps.extend(self::steps(&target));
                        }
                        kind if kind.is_dir() || steps.is_empty() => at = entry,
                        _ => return None,
                    }
                }
            }
        }
        Some(at)
    }

    fn note(&mut self, folder: &Path, entries: Entries) {
        if self.folders.len() < FOLDERS_MAX || self.folders.contains_key(folder) {
            self.folders.entry(folder.into()).or_default().add(entries);
        } else {
            self.is_cut = true;
        }
    }
}

/// The steps of a path, the last one first.
fn steps(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|it| it.as_os_str().to_owned()).collect()
}

/// To the folder that holds `at`, which is real, so that the step back is the one that led here.
fn ascend(at: &mut PathBuf) {
    match at.file_name() {
        Some(_) => drop(at.pop()),
        None if at.has_root() => {}
        None => at.push(".."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A folder with one link for each, the path of which has no links itself.
    fn folder(links: &[(&str, &str)]) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        links.iter().for_each(|(name, target)| symlink(target, folder.path().join(name)).unwrap());
        let path = fs::canonicalize(folder.path()).unwrap();
        (folder, path)
    }

    /// The folders below `root` with the names that matter in them, `*` for all files of pools and `!` where what is
    /// written matters.
    fn shown(trails: &Trails, root: &Path) -> Vec<String> {
        let below = trails.folders.iter().filter_map(|(path, it)| Some((path.strip_prefix(root).ok()?, it)));
        let show = |(path, it): (&Path, &Entries)| {
            let names = it.names.iter().map(|it| it.to_str().unwrap());
            let names: Vec<&str> = it.manifests.then_some("*").into_iter().chain(names).collect();
            format!("{}: {}{}", path.display(), names.join(" "), if it.contents { "!" } else { "" })
        };
        below.map(show).collect()
    }

    #[test]
    fn every_folder_on_the_way_to_a_file_matters() {
        let (_folder, root) = folder(&[]);
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/p.yaml"), "x").unwrap();
        let trails = Trails::of(&root.join("a/b/p.yaml"), []);
        assert_eq!(shown(&trails, &root), [": a", "a: b", "a/b: p.yaml!"]);
        assert!(trails.folders[Path::new("/")].names.len() == 1, "the way begins at the root");
        assert!(!trails.folders.contains_key(Path::new(".")));
    }

    #[test]
    fn links_are_followed_one_by_one() {
        let (_folder, root) = folder(&[("..data", "..1"), ("p.yaml", "..data/p.yaml"), ("up", "..1/../..1")]);
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/p.yaml"), "x").unwrap();
        let trails = Trails::of(&root.join("p.yaml"), []);
        assert_eq!(shown(&trails, &root), [": ..1 ..data p.yaml", "..1: p.yaml!"]);
        let trails = Trails::of(&root.join("up/p.yaml"), []);
        assert_eq!(shown(&trails, &root), [": ..1 up", "..1: p.yaml!"]);
    }

    #[test]
    fn the_links_of_a_folder_and_other_paths_are_followed_too() {
        let (_folder, root) = folder(&[("note", "o/note")]);
        ["c", "o", "cm"].iter().for_each(|it| fs::create_dir(root.join(it)).unwrap());
        symlink("../o/p.yaml", root.join("cm/p.yaml")).unwrap();
        symlink("../o/notes", root.join("cm/notes")).unwrap();
        fs::write(root.join("cm/q.yaml"), "x").unwrap();
        let other = root.join("c/tls.crt");
        let trails = Trails::of(&root.join("cm"), [&*other]);
        assert_eq!(
            shown(&trails, &root),
            [": c cm o", "c: tls.crt", "cm: * p.yaml!", "o: p.yaml"],
            "what is not there yet has no content"
        );
    }

    #[test]
    fn a_way_ends_where_there_is_nothing_or_no_folder_and_in_a_loop() {
        let (_folder, root) = folder(&[("loop", "loop")]);
        fs::write(root.join("file"), "x").unwrap();
        for name in ["loop", "file/p.yaml", "none/p.yaml"] {
            let first = name.split('/').next().unwrap();
            assert_eq!(shown(&Trails::of(&root.join(name), []), &root), [format!(": {first}")]);
        }
    }

    #[test]
    fn relative_ways_begin_at_the_working_directory() {
        let way = |path: &str| Trails::of(Path::new(path), []).folders.into_keys().collect::<Vec<_>>();
        assert_eq!(way("src/source/mod.rs"), [".", "./src", "./src/source"].map(PathBuf::from));
        assert_eq!(way("src/../src/lib.rs"), [".", "./src"].map(PathBuf::from));
        assert_eq!(way("../none"), [Path::new("./..")]);
        assert_eq!(way("."), [Path::new(".")]);
    }

    #[test]
    fn no_more_folders_are_watched_than_fit_and_the_path_comes_first() {
        let (_folder, root) = folder(&[]);
        fs::create_dir(root.join("cm")).unwrap();
        for number in 0..=FOLDERS_MAX {
            fs::create_dir(root.join(number.to_string())).unwrap();
            symlink(format!("../{number}/p"), root.join(format!("cm/{number}.yaml"))).unwrap();
        }
        let other = root.join("0/tls.crt");
        let trails = Trails::of(&root.join("cm"), [&*other]);
        assert!(trails.is_cut && trails.folders.len() == FOLDERS_MAX);
        assert!(trails.folders[&root.join("cm")].manifests && trails.folders.contains_key(&root.join("0")));
        assert!(!Trails::of(&root.join("cm/0.yaml"), []).is_cut);
    }

    #[test]
    fn entries_matter_by_name_or_as_files_of_pools() {
        let named = Entries { names: ["..data".into()].into(), manifests: false, contents: false };
        let all = Entries { names: named.names.clone(), manifests: true, contents: true };
        assert!(named.hold(OsStr::new("..data")) && !named.hold(OsStr::new("p.yaml")));
        assert!(all.hold(OsStr::new("p.yaml")) && !all.hold(OsStr::new(".p.yaml.swp")));
        assert!(all.cover(&named) && !named.cover(&all) && !Entries::default().cover(&named));
        let (mut sum, written) = (named, Entries { contents: true, ..Entries::default() });
        assert!(!sum.cover(&written));
        sum.add(all.clone());
        assert_eq!(sum, all);
    }
}
