//! Processes: names, programs, network namespaces and sockets, from /proc.
//!
//! Everything may vanish while it is looked at; what has vanished is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::{Error, Host};
use crate::report::{Finding, ProcessReport, Severity};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Number in the agent's pid namespace.
    pub pid: i32,
    /// As in /proc/PID/comm: at most 15 bytes.
    pub name: String,
    /// File name of its executable; none where it may not be read, and for kernel threads and
    /// zombies.
    pub exe: Option<String>,
    /// When it started, in clock ticks since boot.
    pub started: u64,
    /// Inode of its network namespace; none where it may not be read.
    pub netns: Option<u64>,
}

impl Process {
    /// What tells programs apart: the executable, else the name.
    pub fn program(&self) -> &str {
        self.exe.as_deref().unwrap_or(&self.name)
    }

    /// Whether `name` means it: its name or its executable's. Only 15 bytes of the name are known.
    pub fn is_named(&self, name: &str) -> bool {
        let short = name.get(..15).unwrap_or(name);
        self.name == name
            || self.exe.as_deref() == Some(name)
            || self.exe.is_none() && self.name == short
    }
}

impl From<&Process> for ProcessReport {
    fn from(process: &Process) -> Self {
        Self { pid: process.pid, name: process.name.clone() }
    }
}

/// Looks at one process; `None` if it is gone.
pub fn read(proc: &Path, pid: i32) -> Option<Process> {
    let dir = proc.join(pid.to_string());
    let name = fs::read(dir.join("comm")).ok()?;
    let name = String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned();
    let stat = fs::read(dir.join("stat")).unwrap_or_default();
    let exe = fs::read_link(dir.join("exe")).ok();
    let netns = fs::read_link(dir.join("ns/net")).ok();
    Some(Process {
        pid,
        name,
        exe: exe.and_then(|path| program_name(&path)),
        started: parse_start(&String::from_utf8_lossy(&stat)).unwrap_or(0),
        netns: netns.and_then(|link| parse_inode(&link.to_string_lossy(), "net:[")),
    })
}

/// Looks at all processes, in the order of their numbers.
pub fn all(host: &Host) -> Result<Vec<Process>, Error> {
    let entries = fs::read_dir(&host.proc)
        .map_err(|source| Error::Read { path: host.proc.clone(), source })?;
    let mut pids: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids.into_iter().filter_map(|pid| read(&host.proc, pid)).collect())
}

/// Returns the inodes of the sockets that a process has open, of every kind.
pub fn socket_inodes(proc: &Path, pid: i32) -> io::Result<BTreeSet<u64>> {
    let entries = fs::read_dir(proc.join(pid.to_string()).join("fd"))?;
    let inode = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        parse_inode(link.to_str()?, "socket:[")
    };
    Ok(entries.flatten().filter_map(inode).collect())
}

/// Returns the network namespaces of processes, each with one process to reach it by; that with the
/// most processes first.
pub fn namespaces(processes: &[Process]) -> Vec<(u64, i32)> {
    let mut by_inode: BTreeMap<u64, (usize, i32)> = BTreeMap::new();
    for process in processes {
        if let Some(inode) = process.netns {
            by_inode.entry(inode).or_insert((0, process.pid)).0 += 1;
        }
    }
    let mut found: Vec<_> = by_inode.into_iter().collect();
    found.sort_by_key(|&(inode, (count, _))| (std::cmp::Reverse(count), inode));
    found.into_iter().map(|(inode, (_, pid))| (inode, pid)).collect()
}

/// Says so when a target's processes live in several network namespaces: interface numbers mean
/// something else in each.
pub fn several_namespaces(processes: &[Process]) -> Option<Finding> {
    let found = namespaces(processes);
    if found.len() < 2 {
        return None;
    }
    let name = |pid| processes.iter().find(|p| p.pid == pid).map_or("?", |p| p.name.as_str());
    let list: Vec<_> = found
        .iter()
        .map(|&(inode, pid)| format!("{} (pid {pid}) in net:[{inode}]", name(pid)))
        .collect();
    Some(Finding {
        severity: Severity::Warning,
        code: "several-namespaces",
        message: format!(
            "the target's processes live in {} network namespaces: {}; interface numbers are looked \
             up in the first only",
            found.len(),
            list.join(", ")
        ),
        remedy:
            "measure each as a target of its own, such as --target a=unit:… --target b=container:…"
                .to_owned(),
        incomplete: true,
    })
}

/// The file name, without what the kernel appends when the file was replaced (an upgrade).
fn program_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    Some(name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned())
}

/// Returns the start time of a /proc/PID/stat. The name in it may hold spaces and brackets.
fn parse_start(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    // Field 22 of proc(5); the first one behind the name is field 3.
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

fn parse_inode(link: &str, prefix: &str) -> Option<u64> {
    link.strip_prefix(prefix)?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, netns: Option<u64>) -> Process {
        Process { pid, name: format!("p{pid}"), exe: None, started: 0, netns }
    }

    #[test]
    fn start_time_survives_brackets_in_the_name() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 9876 1000 1";
        assert_eq!(parse_start(stat), Some(9876));
        for bad in ["", "12 (a", "12 (a) S 1", "12 (a) S 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 x"] {
            assert_eq!(parse_start(bad), None);
        }
    }

    #[test]
    fn inodes_are_read_from_links() {
        assert_eq!(parse_inode("socket:[123]", "socket:["), Some(123));
        assert_eq!(parse_inode("net:[4026531840]", "net:["), Some(4_026_531_840));
        for bad in ["", "socket:", "socket:[", "socket:[]", "socket:[-1]", "pipe:[1]", "/dev/null"]
        {
            assert_eq!(parse_inode(bad, "socket:["), None);
        }
    }

    #[test]
    fn replaced_executable_keeps_its_name() {
        let name = |path: &str| program_name(Path::new(path));
        assert_eq!(name("/usr/bin/xray (deleted)").as_deref(), Some("xray"));
        assert_eq!(name("/usr/bin/xray").as_deref(), Some("xray"));
        assert_eq!(name("/"), None);
    }

    #[test]
    fn long_names_are_known_by_fifteen_bytes() {
        let mut process = process(1, None);
        process.name = "hysteria-linux-".into();
        assert!(process.is_named("hysteria-linux-amd64"));
        process.exe = Some("hysteria-linux-arm64".into());
        assert!(!process.is_named("hysteria-linux-amd64"));
        assert!(process.is_named("hysteria-linux-arm64"));
    }

    #[test]
    fn several_namespaces_are_a_finding() {
        let kernel_thread = process(4, None);
        let same = [process(1, Some(7)), process(2, Some(7)), kernel_thread];
        assert_eq!(several_namespaces(&same), None);
        let two = [process(1, Some(7)), process(2, Some(9)), process(3, Some(9))];
        assert_eq!(namespaces(&two), [(9, 2), (7, 1)]);
        let finding = several_namespaces(&two).unwrap();
        assert!(finding.incomplete);
        assert!(finding.message.contains("p2 (pid 2) in net:[9], p1 (pid 1) in net:[7]"));
    }

    #[test]
    fn what_has_vanished_is_left_out() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(read(proc.path(), 1), None);
        assert!(socket_inodes(proc.path(), 1).is_err());
        fs::create_dir_all(proc.path().join("2/fd")).unwrap();
        fs::write(proc.path().join("2/comm"), "kworker/0:1\n").unwrap();
        std::os::unix::fs::symlink("socket:[5]", proc.path().join("2/fd/3")).unwrap();
        assert_eq!(read(proc.path(), 2).unwrap().program(), "kworker/0:1");
        assert_eq!(socket_inodes(proc.path(), 2).unwrap(), BTreeSet::from([5]));
    }
}
