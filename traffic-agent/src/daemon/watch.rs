//! Tells when cgroups come and go, at once: systemd makes a new one at every start of a unit.
//!
//! inotify watches every directory of the cgroup tree, because a target may appear anywhere in it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// A cgroup tree of more directories than this is watched no further: what appears there is found by regular
/// looks only.
const MOST: usize = 8192;

/// What happened in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names of the directories that came or went.
    pub names: Vec<OsString>,
    /// Those that came, each as often as it did.
    pub made: Vec<PathBuf>,
    /// Events were lost, so anything may have changed.
    pub overflowed: bool,
}

impl Changes {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.overflowed
    }

    /// Adds what happened afterwards.
    pub fn extend(&mut self, later: Self) {
        self.names.extend(later.names);
        self.made.extend(later.made);
        self.overflowed |= later.overflowed;
    }
}

/// A watch on the cgroup tree.
pub struct Watch {
    inotify: Inotify,
    /// The same descriptor, to be waited for.
    readable: AsyncFd<OwnedFd>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    mount: PathBuf,
    /// Why not all of the tree is watched, if so.
    blind: Option<String>,
}

impl Watch {
    /// Begins to watch. Needs a tokio runtime.
    pub fn begin(mount: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let descriptor = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor belongs to the value that is registered, and is open as long.
        let readable = unsafe { AsyncFd::register(descriptor) }?;
        let mount = mount.to_owned();
        let mut watch = Self { inotify, readable, directories: HashMap::new(), mount, blind: None };
        watch.whole();
        Ok(watch)
    }

    /// Watches the whole tree, also what is in it since events were lost or watches were refused.
    pub fn whole(&mut self) {
        self.blind = None;
        let mount = self.mount.clone();
        self.add(&mount, &mut Vec::new());
    }

    /// Why not all of the tree is watched, if so: then cgroups may come and go without an event.
    pub fn blind(&self) -> Option<&str> {
        self.blind.as_deref()
    }

    /// Watches a directory and what is below it. A directory that was made before its parent was watched
    /// gives no event: those found below are named in `found`.
    fn add(&mut self, directory: &Path, found: &mut Vec<PathBuf>) {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        if self.directories.len() >= MOST {
            self.blind = Some(format!("it has more than {MOST} directories"));
            return;
        }
        let descriptor = match self.inotify.add_watch(directory, flags) {
            Ok(descriptor) => descriptor,
            // It is gone already.
            Err(nix::Error::ENOENT) => return,
            Err(error) => {
                self.blind = Some(match error {
                    nix::Error::ENOSPC => "no more watches are to be had; raise the sysctl \
                                           fs.inotify.max_user_watches"
                        .to_owned(),
                    error => format!("{}: {}", directory.display(), io::Error::from(error)),
                });
                return;
            }
        };
        self.directories.insert(descriptor, directory.to_owned());
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                self.add(&entry.path(), found);
            }
        }
    }

    /// Waits until cgroups come or go.
    pub async fn next(&mut self) -> io::Result<Changes> {
        loop {
            let mut ready = self.readable.readable().await?;
            ready.clear_ready();
            drop(ready);
            let changes = self.so_far()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// What has happened since it was asked last, without waiting.
    pub fn so_far(&mut self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(nix::Error::EAGAIN) => return Ok(changes),
                Err(error) => return Err(error.into()),
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    changes.overflowed = true;
                    self.whole();
                }
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.directories.remove(&event.wd);
                }
                let (Some(name), true) = (event.name, event.mask.contains(AddWatchFlags::IN_ISDIR))
                else {
                    continue;
                };
                let made = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
                if event.mask.intersects(made)
                    && let Some(parent) = self.directories.get(&event.wd)
                {
                    let (path, mut found) = (parent.join(&name), Vec::new());
                    self.add(&path, &mut found);
                    let names = found.iter().filter_map(|path| path.file_name());
                    changes.names.extend(names.map(ToOwned::to_owned));
                    changes.made.push(path);
                    changes.made.extend(found);
                }
                changes.names.push(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_tree_that_is_too_large_is_not_watched_whole_until_it_is_smaller() {
        let tree = tempfile::tempdir().unwrap();
        let slices: Vec<_> =
            (0..=MOST).map(|number| tree.path().join(number.to_string())).collect();
        slices.iter().for_each(|slice| fs::create_dir(slice).unwrap());
        let mut watch = Watch::begin(tree.path()).unwrap();
        assert_eq!(watch.blind(), Some("it has more than 8192 directories"));
        slices[1..].iter().for_each(|slice| fs::remove_dir(slice).unwrap());
        // So many at once may be more events than there is room for.
        while !watch.so_far().unwrap().is_empty() {}
        watch.whole();
        assert_eq!(watch.blind(), None);
        let unit = slices[0].join("xray.service");
        fs::create_dir(&unit).unwrap();
        let changes = watch.so_far().unwrap();
        assert_eq!((changes.made, changes.overflowed), (vec![unit], false));
    }

    #[tokio::test]
    async fn what_was_made_while_events_were_lost_is_watched() {
        let tree = tempfile::tempdir().unwrap();
        let mut watch = Watch::begin(tree.path()).unwrap();
        let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        // Two events each.
        for number in 0..=most / 2 {
            let passing = tree.path().join(number.to_string());
            fs::create_dir(&passing).unwrap();
            fs::remove_dir(&passing).unwrap();
        }
        let slice = tree.path().join("system.slice");
        fs::create_dir(&slice).unwrap();
        assert!(watch.so_far().unwrap().overflowed);
        assert_eq!(watch.blind(), None);
        let unit = slice.join("xray.service");
        fs::create_dir(&unit).unwrap();
        assert_eq!(watch.so_far().unwrap().made, [unit]);
    }
}
