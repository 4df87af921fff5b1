//! The cgroup v2 tree: where it is mounted, and paths, ids and processes in it.
//!
//! It does not know units, containers or processes' names; that is `resolve`.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use procfs::FromRead;
use procfs::process::MountInfos;

use super::Error;
use crate::report::CgroupReport;

/// `PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h: the inode of the first cgroup namespace.
pub const FIRST_NAMESPACE: u64 = 0xEFFF_FFFB;

/// One cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cgroup {
    /// Path from the mount, such as `/system.slice/xray.service`; `/` for the mount itself.
    pub path: String,
    /// The directory.
    pub dir: PathBuf,
    /// Its inode, unique until reboot: what sock_diag and BPF call the cgroup id.
    pub id: u64,
}

impl Cgroup {
    /// Whether `other` is this cgroup or lies below it.
    pub fn contains(&self, other: &Self) -> bool {
        strip_root(&self.path, &other.path).is_some()
    }

    /// Whether `other` really lies below this cgroup, where one or the other may be gone: a path can have
    /// been made again since, but ids only grow, and what contains another was there before it.
    pub fn is_above(&self, other: &Self) -> bool {
        self.id < other.id && self.path != other.path && self.contains(other)
    }
}

impl From<&Cgroup> for CgroupReport {
    fn from(cgroup: &Cgroup) -> Self {
        Self { path: cgroup.path.clone(), id: cgroup.id }
    }
}

/// A mounted cgroup v2 tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
    /// The cgroup that is mounted there, as /proc/PID/cgroup would name it. Not `/` for a bind mount
    /// of a part of the tree, and `/..` for a mount made outside of our cgroup namespace.
    root: String,
}

impl Hierarchy {
    /// Finds the cgroup v2 mount. On hybrid systems it is not /sys/fs/cgroup itself.
    pub fn find() -> Result<Self, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let read = |source| Error::Read { path: path.to_owned(), source };
        let text = fs::read(path).map_err(read)?;
        let mounts = MountInfos::from_read(&*text)
            .map_err(|error| read(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        // A mount can be hidden by a later one at the same place: ask what is really there.
        candidates(&mounts)
            .into_iter()
            .find(|tree| {
                statfs(&tree.mount).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC)
            })
            .ok_or(Error::NoCgroup2)
    }

    /// A tree at a known place; `root` is the cgroup that is mounted there, usually `/`.
    pub fn at(mount: impl Into<PathBuf>, root: impl Into<String>) -> Self {
        Self { mount: mount.into(), root: root.into() }
    }

    /// Where it is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// Whether the mount shows the whole tree of our cgroup namespace.
    pub fn is_whole(&self) -> bool {
        self.root == "/"
    }

    /// Looks up a cgroup by its path from the mount.
    pub fn cgroup(&self, path: &str) -> io::Result<Cgroup> {
        let path = normalise(path);
        let dir = self.mount.join(&path[1..]);
        let metadata = fs::symlink_metadata(&dir)?;
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Cgroup { path, dir, id: metadata.ino() })
    }

    /// Whether the cgroup still exists. Its path can exist without: a restarted unit has a new one.
    pub fn is_current(&self, cgroup: &Cgroup) -> bool {
        self.cgroup(&cgroup.path).is_ok_and(|now| now.id == cgroup.id)
    }

    /// Returns the path from the mount of the cgroup that /proc/PID/cgroup names so.
    ///
    /// `None` where the mount does not show it: it is outside of our cgroup namespace (`/../x`), or
    /// only another part of the tree is mounted.
    pub fn visible_path(&self, named: &str) -> Option<String> {
        strip_root(&self.root, named).filter(|rest| !rest.split('/').any(|part| part == ".."))
    }

    /// Returns a cgroup and everything below it, parents first.
    ///
    /// Cgroups that vanish meanwhile are left out.
    pub fn subtree(&self, top: &Cgroup) -> Vec<Cgroup> {
        let mut found = vec![top.clone()];
        let mut next = 0;
        while let Some(Cgroup { path, dir, .. }) = found.get(next) {
            let (path, dir) = (path.clone(), dir.clone());
            next += 1;
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            let mut below: Vec<_> = entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .filter_map(|entry| {
                    let name = entry.file_name();
                    let path = format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy());
                    Some(Cgroup { path, dir: entry.path(), id: entry.metadata().ok()?.ino() })
                })
                .collect();
            below.sort();
            found.append(&mut below);
        }
        found
    }

    /// Returns every cgroup of the tree, parents first.
    pub fn tree(&self) -> Result<Vec<Cgroup>, Error> {
        let root =
            self.cgroup("/").map_err(|source| Error::Read { path: self.mount.clone(), source })?;
        Ok(self.subtree(&root))
    }

    /// Returns the path of each cgroup by its id.
    pub fn paths_by_id(&self) -> Result<HashMap<u64, String>, Error> {
        Ok(self.tree()?.into_iter().map(|cgroup| (cgroup.id, cgroup.path)).collect())
    }

    /// Returns the ids of the given cgroups and everything below them.
    pub fn subtree_ids(&self, tops: &[Cgroup]) -> BTreeSet<u64> {
        tops.iter().flat_map(|top| self.subtree(top)).map(|cgroup| cgroup.id).collect()
    }

    /// Returns the processes in the given cgroups and everything below them.
    ///
    /// Processes of another pid namespace have no number here and are left out.
    pub fn pids(&self, tops: &[Cgroup]) -> Result<BTreeSet<i32>, Error> {
        let mut pids = BTreeSet::new();
        for cgroup in tops.iter().flat_map(|top| self.subtree(top)) {
            let path = cgroup.dir.join("cgroup.procs");
            match fs::read_to_string(&path) {
                Ok(text) => pids.extend(parse_pids(&text)),
                // The cgroup went away, or it is threaded: its processes are listed further up.
                Err(error) if is_gone(&error) => {}
                Err(source) => return Err(Error::Read { path, source }),
            }
        }
        Ok(pids)
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP))
}

/// Drops every cgroup that lies inside another one of the list: anchors never nest, so that no packet
/// passes two hooks of one target.
pub fn without_nested(mut cgroups: Vec<Cgroup>) -> Vec<Cgroup> {
    cgroups.sort();
    cgroups.dedup();
    let all = cgroups.clone();
    cgroups.retain(|cgroup| !all.iter().any(|other| other != cgroup && other.contains(cgroup)));
    cgroups
}

/// Returns the cgroup v2 line's path of a /proc/PID/cgroup.
///
/// `None` where there is none, or where the cgroup was removed under the process.
pub fn process_path(text: &str) -> Option<&str> {
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .filter(|path| path.starts_with('/') && !path.ends_with(" (deleted)"))
}

fn parse_pids(text: &str) -> impl Iterator<Item = i32> {
    text.lines().filter_map(|line| line.trim().parse().ok()).filter(|&pid| pid > 0)
}

/// Returns the cgroup v2 mounts, the most useful first: the whole tree before a part of it, the
/// usual place before others.
fn candidates(mounts: &MountInfos) -> Vec<Hierarchy> {
    let mut found: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.fs_type == "cgroup2")
        .map(|mount| Hierarchy {
            mount: unescape(&mount.mount_point.to_string_lossy()).into(),
            root: unescape(&mount.root),
        })
        .collect();
    found.sort_by_key(|tree| (!tree.is_whole(), !tree.mount.starts_with("/sys/fs/cgroup")));
    found
}

/// Undoes mountinfo's `\040` for a space.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// One leading slash, none at the end, none doubled.
fn normalise(path: &str) -> String {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

/// Returns `path` as seen from `root`, whole components only.
fn strip_root(root: &str, path: &str) -> Option<String> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then(|| normalise(rest))
}

#[cfg(test)]
#[path = "cgroup2_tests.rs"]
mod tests;
