//! Owns where the kernel says how much memory is in use: the control groups of the process (versions 1 and 2), and
//! the process itself.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::overload::MemoryUse;

/// Where control groups are found, in a container as on its host.
const ROOT: &str = "/sys/fs/cgroup";

/// Version 1 writes the largest number of pages where there is no limit; no machine has an eighth of that.
const NO_LIMIT: u64 = 1 << 60;

/// The control groups that limit this process: its own and those around it, as far as they can be seen.
#[derive(Debug)]
pub(super) struct Groups(Vec<Group>);

#[derive(Debug)]
struct Group {
    folder: PathBuf,
    files: &'static Files,
}

/// The names of a version.
#[derive(Debug)]
struct Files {
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` that counts the memory the kernel takes back before anybody feels it.
    reclaimable: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};
const V2: Files = Files { limit: "memory.max", used: "memory.current", reclaimable: "inactive_file" };

impl Groups {
    pub(super) fn of_this_process() -> Self {
        let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::of(Path::new(ROOT), &memberships)
    }

    /// Of a process that is a member as `memberships` says, in the form of `/proc/self/cgroup`.
    fn of(root: &Path, memberships: &str) -> Self {
        let members = memberships.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?, fields.next()?))
        });
        let mut groups = Vec::new();
        for (controllers, path) in members {
            if controllers.is_empty() {
                groups.extend(Group::and_around(root, path, &V2));
            } else if controllers.split(',').any(|it| it == "memory") {
                groups.extend(Group::and_around(&root.join("memory"), path, &V1));
            }
        }
        Self(groups)
    }

    /// The memory of the group that is nearest to its limit, if any has one.
    pub(super) fn tightest(&self) -> Option<MemoryUse> {
        let fuller = |a: &MemoryUse, b: &MemoryUse| {
            (u128::from(a.used) * u128::from(b.limit)).cmp(&(u128::from(b.used) * u128::from(a.limit)))
        };
        self.0.iter().filter_map(Group::memory).max_by(fuller)
    }
}

impl Group {
    /// The group at `path` and those around it. In a container `path` may be that of the host, where only the mount
    /// itself is to be seen.
    fn and_around(mount: &Path, path: &str, files: &'static Files) -> Vec<Self> {
        let inner: PathBuf =
            Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let folders = inner.ancestors().map(|inner| mount.join(inner));
        let groups = folders.map(|folder| Self { folder, files });
        groups.filter(|group| group.folder.join(files.limit).is_file()).collect()
    }

    fn memory(&self) -> Option<MemoryUse> {
        let number = |name| fs::read_to_string(self.folder.join(name)).ok()?.trim().parse::<u64>().ok();
        // Version 2 writes `max` for no limit, and 0 is one that nobody can keep.
        let limit = number(self.files.limit).filter(|limit| (1..NO_LIMIT).contains(limit))?;
        let used = number(self.files.used)?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = field(&stat, self.files.reclaimable).unwrap_or(0);
        Some(MemoryUse { used: used.saturating_sub(reclaimable), limit })
    }
}

/// Bytes of this process that are in memory.
pub(super) fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(field(&status, "VmRSS:")? * 1024)
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, folder: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(root.join(folder)).unwrap();
        for (name, text) in files {
            fs::write(root.join(folder).join(name), text).unwrap();
        }
    }

    fn check(root: &Path, memberships: &str, used: u64, limit: u64) {
        assert_eq!(Groups::of(root, memberships).tightest(), Some(MemoryUse { used, limit }));
    }

    #[test]
    fn the_group_nearest_to_its_limit_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "a", &[("memory.max", "1000\n"), ("memory.current", "500\n")]);
        let stat = "anon 1\ninactive_file 100\nactive_file 7\n";
        write(root, "a/b", &[("memory.max", "max\n"), ("memory.current", "400\n"), ("memory.stat", stat)]);
        check(root, "0::/a/b\n", 500, 1000);
        fs::write(root.join("a/b/memory.max"), "400\n").unwrap();
        check(root, "0::/a/b\n", 300, 400);
        fs::write(root.join("a/memory.max"), "600\n").unwrap();
        check(root, "0::/a/b\n", 500, 600);
    }

    #[test]
    fn a_limit_may_come_and_go_while_it_runs() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "", &[("memory.max", "max\n"), ("memory.current", "1\n")]);
        let groups = Groups::of(folder.path(), "0::/\n");
        assert_eq!(groups.tightest(), None);
        fs::write(folder.path().join("memory.max"), "2\n").unwrap();
        assert_eq!(groups.tightest(), Some(MemoryUse { used: 1, limit: 2 }));
    }

    #[test]
    fn a_container_that_sees_its_own_group_alone_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "", &[("memory.max", "1000\n"), ("memory.current", "10\n")]);
        check(root, "0::/kubepods/pod1/c1\n", 10, 1000);
        check(root, "0::/../c1\n", 10, 1000);
    }

    #[test]
    fn the_first_version_is_read_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let no_limit = ("memory.limit_in_bytes", "9223372036854771712\n");
        write(root, "memory", &[no_limit, ("memory.usage_in_bytes", "9000\n")]);
        let stat = "inactive_file 1\ntotal_inactive_file 100\n";
        let limited =
            [("memory.limit_in_bytes", "1000\n"), ("memory.usage_in_bytes", "900\n"), ("memory.stat", stat)];
        write(root, "memory/docker/c1", &limited);
        let memberships = "5:cpu,cpuacct:/\n4:name=systemd:/a:b\n3:memory:/docker/c1\n0::/\n";
        check(root, memberships, 800, 1000);
        assert_eq!(Groups::of(root, "3:memory:/\n").tightest(), None);
    }

    #[test]
    fn a_process_knows_what_it_holds() {
        let resident = resident().unwrap();
        assert!((1 << 20..1 << 40).contains(&resident), "{resident}");
    }
}
