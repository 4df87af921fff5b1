//! One look at a target: its processes, every socket of their network namespaces, and who has which.
//!
//! Both the listening ports and the ownership audit are read from the same look, so that they do not
//! contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;

use super::ports::{self, Listening, PortFilter};
use super::processes::{self, Process};
use super::sockets::{self, Socket, Which};
use super::{Cgroup, Error, Host};
use crate::netns::{self, NetNs};
use crate::report::{Finding, Severity};

/// A network namespace of the target, as it was seen.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its inode.
    pub inode: u64,
    /// A process to reach it by; none for the agent's own.
    pub pid: Option<i32>,
    /// All of its TCP and UDP sockets, whoever's.
    pub sockets: Vec<Socket>,
    /// The ports that its kernel hands out by itself.
    pub ephemeral: RangeInclusive<u16>,
}

/// One look at a target.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The cgroups that are counted.
    pub cgroups: Vec<Cgroup>,
    /// Ids of the cgroups and of everything below them, each with the index of its cgroup.
    pub owned: BTreeMap<u64, usize>,
    /// The target's processes, in the order of their numbers.
    pub processes: Vec<Process>,
    /// Index of the cgroup that each process is in, by process id.
    pub anchors: BTreeMap<i32, usize>,
    /// The namespaces of the processes; that with the most processes first.
    pub namespaces: Vec<Namespace>,
    /// Indices into `processes` of those who have a socket, by its inode.
    pub holders: BTreeMap<u64, Vec<usize>>,
    /// Processes whose open files may not be read.
    pub unreadable: Vec<i32>,
    /// What could not be seen.
    pub findings: Vec<Finding>,
}

impl Survey {
    /// Looks at the processes and sockets of the given cgroups.
    ///
    /// A cgroup that has vanished is empty, not an error.
    pub fn take(host: &Host, cgroups: &[Cgroup], which: Which) -> Result<Self, Error> {
        let mut anchors = BTreeMap::new();
        for (index, cgroup) in cgroups.iter().enumerate() {
            let pids = host.cgroups.pids(std::slice::from_ref(cgroup))?;
            anchors.extend(pids.into_iter().map(|pid| (pid, index)));
        }
        Self::look(host, cgroups, anchors, which)
    }

    fn look(
        host: &Host,
        cgroups: &[Cgroup],
        anchors: BTreeMap<i32, usize>,
        which: Which,
    ) -> Result<Self, Error> {
        let mut survey = Self { cgroups: cgroups.to_vec(), anchors, ..Self::default() };
        for (index, cgroup) in cgroups.iter().enumerate() {
            survey.owned.extend(host.cgroups.subtree(cgroup).iter().map(|c| (c.id, index)));
        }
        let read = |&pid| processes::read(&host.proc, pid);
        survey.processes = survey.anchors.keys().filter_map(read).collect();
        survey.findings.extend(processes::several_namespaces(&survey.processes));
        survey.look_into_namespaces(host, which)?;
        for (index, process) in survey.processes.iter().enumerate() {
            match processes::socket_inodes(&host.proc, process.pid) {
                Ok(inodes) => {
                    for inode in inodes {
                        survey.holders.entry(inode).or_default().push(index);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    survey.unreadable.push(process.pid);
                }
                // It ended meanwhile.
                Err(_) => {}
            }
        }
        Ok(survey)
    }

    fn look_into_namespaces(&mut self, host: &Host, which: Which) -> Result<(), Error> {
        for (inode, pid) in processes::namespaces(&self.processes) {
            let looked = NetNs::of_process(&host.proc, pid)
                .and_then(|netns| netns.run(|| Namespace::look(inode, Some(pid), which)));
            match looked {
                Ok(namespace) => self.namespaces.push(namespace?),
                // It ended between the two looks.
                Err(netns::Error::Open { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => self.findings.push(closed_namespace(&self.processes, pid, &error)),
            }
        }
        let blind = !self.processes.is_empty() && self.processes.iter().all(|p| p.netns.is_none());
        if blind {
            self.findings.push(namespace_unknown(&self.processes));
        }
        if self.namespaces.is_empty() {
            let inode = NetNs::current()?.inode();
            self.namespaces.push(Namespace::look(inode, None, which)?);
        }
        Ok(())
    }

    /// Opens the namespace in which interface names are to be looked up.
    pub fn network(&self, host: &Host) -> Result<NetNs, Error> {
        let pid = self.namespaces.first().and_then(|namespace| namespace.pid);
        Ok(pid.map_or_else(NetNs::current, |pid| NetNs::of_process(&host.proc, pid))?)
    }

    /// Every socket that was seen.
    pub fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.namespaces.iter().flat_map(|namespace| &namespace.sockets)
    }

    /// Whether a socket belongs to the counted cgroups.
    pub fn owns(&self, socket: &Socket) -> bool {
        socket.cgroup_id.is_some_and(|id| self.owned.contains_key(&id))
    }

    /// Processes of the target that have this socket open.
    pub fn holders(&self, socket: &Socket) -> impl Iterator<Item = &Process> {
        let indices = self.holders.get(&socket.inode).map(Vec::as_slice).unwrap_or_default();
        indices.iter().filter_map(|&index| self.processes.get(index))
    }

    /// Returns the listening ports of the target's own sockets, in their order.
    pub fn listening(&self, filter: &PortFilter) -> Vec<Listening> {
        let listening = self.namespaces.iter().flat_map(|namespace| {
            let waits = |socket: &&Socket| ports::is_listening(socket, &namespace.ephemeral);
            namespace.sockets.iter().filter(waits)
        });
        let named = listening.filter(|socket| self.owns(socket)).map(|socket| {
            (socket, self.holders(socket).map(|process| process.name.clone()).collect())
        });
        ports::collect(named, filter)
    }
}

impl Namespace {
    /// Looks at the calling thread's namespace.
    pub fn look(inode: u64, pid: Option<i32>, which: Which) -> Result<Self, Error> {
        // This file shows the namespace of the thread that reads it, wherever /proc was mounted.
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
        let ephemeral = range.and_then(|text| ports::parse_ephemeral(&text));
        Ok(Self {
            inode,
            pid,
            sockets: sockets::dump(which)?,
            ephemeral: ephemeral.unwrap_or(ports::DEFAULT_EPHEMERAL),
        })
    }
}

/// The totals do not need the namespace, only ports, interface names and the audit do.
fn closed_namespace(processes: &[Process], pid: i32, error: &netns::Error) -> Finding {
    let name = processes.iter().find(|p| p.pid == pid).map_or("?", |p| p.name.as_str());
    let cause = std::error::Error::source(error).map(|source| format!(" ({source})"));
    Finding {
        severity: Severity::Warning,
        code: "audit-limited",
        message: format!(
            "the sockets in the network namespace of {name} (pid {pid}) cannot be seen{}: its \
             listening ports and interface names are unknown",
            cause.unwrap_or_default()
        ),
        remedy: "run as root, or with CAP_SYS_ADMIN (which `run` keeps with --look-into namespaces); name the \
                 ports with --port".to_owned(),
        incomplete: false,
    }
}

fn namespace_unknown(processes: &[Process]) -> Finding {
    let names: BTreeSet<_> = processes.iter().map(|process| process.name.as_str()).collect();
    let names: Vec<_> = names.into_iter().collect();
    Finding {
        severity: Severity::Warning,
        code: "audit-limited",
        message: format!(
            "the network namespace of {} cannot be seen: the agent's own is assumed, and in another \
             one what the kernel answers without a socket would not be counted",
            names.join(", ")
        ),
        remedy:
            "run as root, or with CAP_SYS_PTRACE (which `run` keeps with --look-into processes)"
                .to_owned(),
        incomplete: false,
    }
}
