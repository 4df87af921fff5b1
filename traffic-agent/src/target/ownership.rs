//! The ownership audit: which sockets are counted, and whose are they.
//!
//! A socket belongs for ever to the cgroup that it was made in, and an accepted one to its
//! listener's; moving the process changes nothing. So a process can sit in the counted cgroup and not
//! be counted, and another program can sit there and be counted too.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::known;
use super::processes::{self, Process};
use super::sockets::{Socket, State};
use super::{Error, Host, Survey, Value};
use crate::report::{Finding, Protocol, Severity};

/// How many ports a message lists before it only counts them.
const PORTS_LISTED: usize = 8;

/// Audits a target both ways. `selectors` say what was asked for: they decide which program is meant.
pub fn audit(host: &Host, survey: &Survey, selectors: &[Value]) -> Result<Vec<Finding>, Error> {
    let mut findings = not_owned(survey, &owners(host, survey)?);
    findings.extend(shared(survey, selectors));
    findings.extend(shared_from_outside(survey, &outsiders(host, survey)?));
    findings.extend(limited(survey));
    Ok(findings)
}

/// Paths of cgroups by id; only looked up when a message needs one.
fn owners(host: &Host, survey: &Survey) -> Result<HashMap<u64, String>, Error> {
    match foreign(survey).next() {
        None => Ok(HashMap::new()),
        Some(_) => host.cgroups.paths_by_id(),
    }
}

/// Sockets of the target's processes that another cgroup owns.
fn foreign(survey: &Survey) -> impl Iterator<Item = (&Socket, u64, &Process)> {
    survey
        .sockets()
        .filter(|socket| !survey.owns(socket))
        .filter_map(|socket| Some((socket, socket.cgroup_id?, survey.holders(socket).next()?)))
}

fn not_owned(survey: &Survey, owners: &HashMap<u64, String>) -> Vec<Finding> {
    let mut groups: BTreeMap<(i32, u64), (&Process, Vec<&Socket>)> = BTreeMap::new();
    for (socket, owner, process) in foreign(survey) {
        let group = groups.entry((process.pid, owner)).or_insert((process, Vec::new()));
        group.1.push(socket);
    }
    let finding = |((pid, owner), (process, sockets)): ((i32, u64), (&Process, Vec<&Socket>))| {
        let path = owners.get(&owner).map(String::as_str);
        let place = match path {
            Some(path) => format!("cgroup {path}"),
            None => format!("a cgroup that no longer exists (id {owner})"),
        };
        Finding {
            severity: Severity::Error,
            code: "socket-not-owned",
            message: format!(
                "sockets of {} (pid {pid}) are not counted, because they were made in {place}: {}",
                process.name,
                describe(&sockets)
            ),
            remedy: not_owned_remedy(path),
            incomplete: true,
        }
    };
    groups.into_iter().map(finding).collect()
}

fn not_owned_remedy(owner: Option<&str>) -> String {
    match owner {
        Some(path) if path.ends_with(".socket") => format!(
            "systemd made the socket for the service: count both under one name, with another \
             --target of the same NAME=cgroup:{path}"
        ),
        Some(path) if path.ends_with("/init.scope") => "systemd itself made the socket: let the \
             program listen by itself (`systemctl disable --now` its socket unit), then restart it"
            .to_owned(),
        _ => {
            "restart the service, so that its sockets are made in its own cgroup, or start it with \
              `traffic-agent exec -- CMD`; moving a running process does not move its sockets"
                .to_owned()
        }
    }
}

/// Sockets in the counted cgroups that programs other than the target's own have.
fn shared(survey: &Survey, selectors: &[Value]) -> Vec<Finding> {
    // By cgroup and program: several units summed as one target have a main program each.
    let mut programs: BTreeMap<(usize, &str), Share<'_>> = BTreeMap::new();
    for socket in survey.sockets() {
        let Some(id) = socket.cgroup_id.filter(|_| survey.owns(socket)) else { continue };
        let Some(&anchor) = survey.owned.get(&id) else { continue };
        for process in survey.holders(socket) {
            let share = programs.entry((anchor, process.program())).or_default();
            share.pids.insert(process.pid);
            share.sockets.push(socket);
            share.name = &process.name;
        }
    }
    let mut findings = Vec::new();
    for (anchor, cgroup) in survey.cgroups.iter().enumerate() {
        let names: BTreeSet<_> =
            programs.keys().filter(|(a, _)| *a == anchor).map(|&(_, name)| name).collect();
        let main = main_programs(survey, anchor, &names, selectors);
        if main.is_empty() {
            continue;
        }
        let ours: Vec<_> = main.iter().copied().collect();
        for name in names.difference(&main) {
            findings.push(programs[&(anchor, *name)].finding(&cgroup.path, &ours.join(", ")));
        }
    }
    findings
}

#[derive(Default)]
struct Share<'a> {
    name: &'a str,
    pids: BTreeSet<i32>,
    sockets: Vec<&'a Socket>,
}

impl Share<'_> {
    fn finding(&self, path: &str, main: &str) -> Finding {
        let pids: Vec<_> = self.pids.iter().map(i32::to_string).collect();
        Finding {
            severity: Severity::Warning,
            code: "cgroup-shared",
            message: format!(
                "{} (pid {}) has sockets in cgroup {path} too ({}): the figures are the cgroup's, \
                 not those of {main} alone",
                self.name,
                pids.join(", "),
                describe(&self.sockets)
            ),
            remedy: "run it as a unit of its own, or look at the figures of the ports alone"
                .to_owned(),
            incomplete: false,
        }
    }
}

/// Returns the programs that a cgroup is counted for; empty where that cannot be said.
fn main_programs<'a>(
    survey: &'a Survey,
    anchor: usize,
    names: &BTreeSet<&'a str>,
    selectors: &[Value],
) -> BTreeSet<&'a str> {
    let here = || survey.processes.iter().filter(|p| survey.anchors.get(&p.pid) == Some(&anchor));
    // A process was asked for: it is meant, whatever else is there.
    let asked = |process: &&Process| {
        selectors.iter().any(|value| match value {
            Value::Process(name) => process.is_named(name),
            Value::Pid(pid) => process.pid == *pid,
            _ => false,
        })
    };
    let asked: BTreeSet<_> = here().filter(asked).map(Process::program).collect();
    if !asked.is_empty() {
        return asked;
    }
    let proxies: BTreeSet<_> = names.iter().copied().filter(|name| known::is_proxy(name)).collect();
    if !proxies.is_empty() {
        return proxies;
    }
    // The first process of a service is its main process, as far as can be seen from outside.
    let is_service = survey.cgroups[anchor].path.ends_with(".service");
    let with_sockets = here().filter(|process| names.contains(process.program()));
    let oldest = with_sockets.min_by_key(|process| (process.started, process.pid));
    oldest.filter(|_| is_service).map(Process::program).into_iter().collect()
}

/// Processes outside of the counted cgroups that have sockets of theirs. All of /proc is only searched
/// when there is a counted socket that none of the target's processes has.
fn outsiders(host: &Host, survey: &Survey) -> Result<Vec<(Process, BTreeSet<u64>)>, Error> {
    let strays: BTreeSet<_> = strays(survey).map(|socket| socket.inode).collect();
    if strays.is_empty() {
        return Ok(Vec::new());
    }
    let inside = |process: &Process| survey.anchors.contains_key(&process.pid);
    Ok(processes::all(host)?
        .into_iter()
        .filter(|process| !inside(process))
        .filter_map(|process| {
            let inodes = processes::socket_inodes(&host.proc, process.pid).ok()?;
            let common: BTreeSet<_> = inodes.intersection(&strays).copied().collect();
            (!common.is_empty()).then_some((process, common))
        })
        .collect())
}

fn strays(survey: &Survey) -> impl Iterator<Item = &Socket> {
    survey.sockets().filter(|socket| {
        socket.inode != 0 && survey.owns(socket) && survey.holders(socket).next().is_none()
    })
}

fn shared_from_outside(survey: &Survey, outsiders: &[(Process, BTreeSet<u64>)]) -> Vec<Finding> {
    let finding = |(process, inodes): &(Process, BTreeSet<u64>)| {
        let sockets: Vec<_> = strays(survey).filter(|s| inodes.contains(&s.inode)).collect();
        Finding {
            severity: Severity::Warning,
            code: "cgroup-shared",
            message: format!(
                "sockets of {} (pid {}) are counted, because they were made in the counted cgroup, but \
                 the process is outside of it: {}",
                process.name,
                process.pid,
                describe(&sockets)
            ),
            remedy: "restart that process where it belongs: sockets stay where they were made"
                .to_owned(),
            incomplete: false,
        }
    };
    outsiders.iter().map(finding).collect()
}

/// Says so when open files may not be read: then neither direction of the audit is whole.
fn limited(survey: &Survey) -> Option<Finding> {
    let blind: Vec<_> = survey
        .processes
        .iter()
        .filter(|process| survey.unreadable.contains(&process.pid))
        .map(|process| format!("{} (pid {})", process.name, process.pid))
        .collect();
    (!blind.is_empty()).then(|| Finding {
        severity: Severity::Warning,
        code: "audit-limited",
        message: format!(
            "the open sockets of {} cannot be seen: whether all of them are counted is unknown",
            blind.join(", ")
        ),
        remedy:
            "run as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH (which `run` keeps with \
                 --look-into processes)"
                .to_owned(),
        incomplete: false,
    })
}

fn number(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Such as `listening on tcp 443, udp 8443; 12 connections`.
fn describe(sockets: &[&Socket]) -> String {
    let mut ports = BTreeSet::new();
    let mut connections = BTreeSet::new();
    for socket in sockets {
        let bound = match socket.protocol {
            Protocol::Tcp => socket.state == State::LISTEN,
            _ => socket.state == State::CLOSE,
        };
        match bound {
            true => ports.insert((socket.protocol, socket.local.port())),
            // By inode, which is none twice: a socket can be listed once for each holder.
            false => connections.insert(socket.inode),
        };
    }
    let name = |&(protocol, port): &(Protocol, u16)| match protocol {
        Protocol::Udp => format!("udp {port}"),
        _ => format!("tcp {port}"),
    };
    let mut listed: Vec<_> = ports.iter().take(PORTS_LISTED).map(name).collect();
    if ports.len() > PORTS_LISTED {
        listed.push(format!("{} more", ports.len() - PORTS_LISTED));
    }
    let mut parts = Vec::new();
    if !listed.is_empty() {
        parts.push(format!("bound to {}", listed.join(", ")));
    }
    if !connections.is_empty() {
        parts.push(number(connections.len(), "connection"));
    }
    parts.join("; ")
}

#[cfg(test)]
#[path = "ownership_tests.rs"]
mod tests;
