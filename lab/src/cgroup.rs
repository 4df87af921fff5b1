//! Cgroups to be counted: made below the cgroup v2 mount, emptied and removed in `Drop`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// Begins the name of every cgroup of the lab, followed by the maker's pid.
const PREFIX: &str = "ta-lab-";
/// How long `Drop` waits for killed members to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// How long [`CountedCgroup::remove`] waits for the last member to leave.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// A cgroup of the lab. Dropped, it kills what is still in it and vanishes with all below it.
#[derive(Debug)]
pub struct CountedCgroup {
    mount: PathBuf,
    path: PathBuf,
}

impl CountedCgroup {
    /// Makes `/ta-lab-<pid>-<n>-<name>` at the root of the cgroup v2 mount, wherever that is (hybrid
    /// layouts included), and removes those that killed processes have left.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mount = mount()?;
        remove_stale(&mount);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("{PREFIX}{}-{number}-{name}", std::process::id()));
        Self::make(mount, path)
    }

    /// Makes a cgroup below this one. It must not outlive it.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.mount.clone(), self.path.join(name))
    }

    fn make(mount: PathBuf, path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| {
            format!("cannot make the cgroup {}: run it as root", path.display())
        })?;
        Ok(Self { mount, path })
    }

    /// The directory in the file system.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path from the mount, with a leading slash: `/ta-lab-…`.
    pub fn cgroup_path(&self) -> String {
        let below = self.path.strip_prefix(&self.mount).unwrap_or(&self.path);
        format!("/{}", below.display())
    }

    /// The cgroup id, which is the inode of the directory.
    pub fn id(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.path)
            .with_context(|| format!("the cgroup {} is gone", self.path.display()))?;
        Ok(metadata.ino())
    }

    /// Moves a process into the cgroup. Sockets that it already has stay with the old one.
    pub fn add(&self, pid: u32) -> Result<()> {
        let file = self.path.join("cgroup.procs");
        fs::write(&file, pid.to_string())
            .with_context(|| format!("cannot write pid {pid} to {}", file.display()))
    }

    /// The processes in the cgroup itself (not below it).
    pub fn members(&self) -> Result<Vec<u32>> {
        members(&self.path).with_context(|| format!("cannot read {}", self.path.display()))
    }

    /// Makes `command` start inside the cgroup, before its first instruction.
    pub fn enter<'c>(&self, command: &'c mut Command) -> Result<&'c mut Command> {
        let path = self.path.join("cgroup.procs");
        // Opened here and not in the child, which may not allocate; it counts who has opened it, so
        // this works also if the child gives up its rights first.
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // 0 is the writer itself.
        let enter = move || (&file).write_all(b"0");
        // SAFETY: between fork and exec the closure only calls write(2), which is async-signal-safe.
        Ok(unsafe { command.pre_exec(enter) })
    }

    /// Removes the empty cgroup now, as a service manager does when a unit has stopped. Sockets that
    /// still drain keep it alive inside the kernel.
    ///
    /// A process that was reaped leaves its cgroup only a moment later, so it waits for that.
    pub fn remove(self) -> Result<()> {
        let begin = Instant::now();
        loop {
            match fs::remove_dir(&self.path) {
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy
                        && begin.elapsed() < EMPTY_WITHIN =>
                {
                    thread::sleep(Duration::from_millis(1));
                }
                removed => {
                    return removed.with_context(|| {
                        format!("cannot remove the cgroup {}", self.path.display())
                    });
                }
            }
        }
    }
}

impl Drop for CountedCgroup {
    fn drop(&mut self) {
        if let Err(error) = empty_and_remove(&self.path) {
            // Nobody to return it to; the next run tries again.
            eprintln!("cannot remove the cgroup {}: {error}", self.path.display());
        }
    }
}

/// Where cgroup v2 is mounted, from `/proc/self/mountinfo`.
pub fn mount() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    mount_point(&text).ok_or_else(|| {
        anyhow!("cgroup v2 is not mounted: mount it with `mount -t cgroup2 none /sys/fs/cgroup`")
    })
}

/// Finds the mount point of type cgroup2 in the text of mountinfo.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    // id parent device root mount-point options optional-fields... - type source options
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        // The kernel writes a space as \040.
        (right.split(' ').next()? == "cgroup2").then(|| point.replace("\\040", " ").into())
    })
}

/// Removes the cgroups of runs whose process is gone. Best effort: they are in nobody's way.
fn remove_stale(mount: &Path) {
    let Ok(entries) = fs::read_dir(mount) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(maker);
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = empty_and_remove(&entry.path());
        }
    }
}

/// The pid in the name of a cgroup of the lab.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

fn members(path: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(path.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Kills all processes in the cgroup and below it, and removes the directories.
fn empty_and_remove(path: &Path) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match remove_tree(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if begin.elapsed() > GONE_WITHIN => return Err(error),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
        kill_tree(path);
        // A zombie still occupies its cgroup until it is reaped by its parent, often ourselves.
        thread::sleep(Duration::from_millis(5));
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn kill_tree(path: &Path) {
    // cgroup.kill, since 5.14, takes all below it at once and leaves no time to fork.
    let killed = OpenOptions::new().write(true).open(path.join("cgroup.kill"));
    if killed.and_then(|mut file: File| file.write_all(b"1")).is_ok() {
        return;
    }
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        kill_tree(&entry.path());
    }
    for pid in members(path).unwrap_or_default() {
        let Ok(pid) = i32::try_from(pid) else { continue };
        // It may be gone already.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_in_hybrid_and_unified_layouts() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw
";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let unified =
            "30 23 0:26 / /sys/fs/cg\\040roup rw shared:9 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(unified), Some("/sys/fs/cg roup".into()));
        assert_eq!(mount_point(""), None);
        assert_eq!(mount_point("garbage - cgroup2\n"), None);
    }

    #[test]
    fn only_cgroups_of_the_lab_name_their_maker() {
        assert_eq!(maker("ta-lab-4711-0-proxy"), Some(4711));
        assert_eq!(maker("ta-lab-x-0-proxy"), None);
        assert_eq!(maker("ta-lab-4711"), None);
        assert_eq!(maker("system.slice"), None);
    }
}
