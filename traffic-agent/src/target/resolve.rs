//! From what was asked for to cgroups.
//!
//! Run again whenever a cgroup vanished: systemd makes a new one at every restart of a unit.

use std::fs;
use std::path::Path;

use super::cgroup2::{process_path, without_nested};
use super::known::{self, Kind, command, kind_of};
use super::processes;
use super::selector::{Selector, group};
use super::{Candidates, Cgroup, Error, Host, TargetSpec, Value, container};
use crate::report::{Finding, Severity};

/// The cgroups of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Where to attach: never empty, none inside another.
    pub cgroups: Vec<Cgroup>,
    /// What the user may not expect, to be printed: what a process id meant, that it is a whole
    /// session.
    pub notes: Vec<String>,
}

/// Finds the cgroups of a target; an error says what else there is.
pub fn resolve(host: &Host, target: &TargetSpec) -> Result<Resolved, Error> {
    find(host, target).map_err(|error| error.or_one_of(|| known::candidates(host)))
}

/// The same for whoever looks for it again and again, and does not show the error: it proposes nothing, because
/// that takes a look at all processes.
pub fn find(host: &Host, target: &TargetSpec) -> Result<Resolved, Error> {
    let mut all = Vec::new();
    let mut notes = Vec::new();
    for value in &target.selectors {
        let cgroups = match value {
            Value::Unit(name) => unit(host, value, name)?,
            Value::Cgroup(path) => vec![cgroup(host, value, path)?],
            Value::Container(name) => container::cgroups(host, name)?,
            Value::Pid(pid) => vec![process(host, value, *pid, &mut notes)?],
            Value::Process(name) => named(host, value, name, &mut notes)?,
        };
        all.extend(cgroups);
    }
    let cgroups = without_nested(all);
    for cgroup in &cgroups {
        notes.extend(breadth(&cgroup.path));
    }
    Ok(Resolved { cgroups, notes })
}

/// The target when none was named: the only known proxy that runs.
pub fn default_target(host: &Host) -> Result<TargetSpec, Error> {
    let mut running = known::running(host)?;
    // A panel beside the proxy that it manages is no second choice.
    if running.iter().any(known::Running::has_proxy) {
        running.retain(known::Running::has_proxy);
    }
    match running.as_slice() {
        [] => Err(Error::NoProxy { known: known::PROXIES.join(", ") }),
        [only] => {
            let selector = only.value.clone().map(Selector::from).ok_or_else(|| {
                let names = only.processes.iter().map(|p| format!("{} (pid {})", p.name, p.pid));
                Error::WholeHost {
                    selector: names.collect::<Vec<_>>().join(", "),
                    what: "it runs in the root cgroup".to_owned(),
                }
            })?;
            let targets = group(vec![selector])?;
            Ok(targets.into_iter().next().expect("one selector makes one target"))
        }
        several => Err(Error::NoDefault {
            count: several.len(),
            candidates: Candidates(several.iter().filter_map(known::Running::command).collect()),
        }),
    }
}

/// Says so when two targets count the same packets: each figure is right, their sum is not.
pub fn overlaps(targets: &[(&str, &[Cgroup])]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, (first, one)) in targets.iter().enumerate() {
        for (second, other) in &targets[index + 1..] {
            let shared = one.iter().find_map(|a| {
                let b = other.iter().find(|b| a.contains(b) || b.contains(a))?;
                Some(if a.contains(b) { b } else { a })
            });
            findings.extend(shared.map(|cgroup| {
                Finding {
                    severity: Severity::Warning,
                    code: "targets-overlap",
                    message: format!(
                        "targets {first} and {second} both count cgroup {}",
                        cgroup.path
                    ),
                    remedy:
                        "do not add their figures, or name both alike to count them as one target"
                            .to_owned(),
                    incomplete: false,
                }
            }));
        }
    }
    findings
}

fn unit(host: &Host, value: &Value, name: &str) -> Result<Vec<Cgroup>, Error> {
    let tree = host.cgroups.tree()?;
    // systemd puts `_` in front of names that are a controller's too: cpu.service, memory.slice.
    let is_it = |cgroup: &Cgroup| {
        let last = cgroup.path.rsplit('/').next().unwrap_or_default();
        last == name || last.strip_prefix('_') == Some(name)
    };
    let found = without_nested(tree.into_iter().filter(is_it).collect());
    match found.len() {
        0 => Err(Error::NoSuchUnit {
            unit: name.to_owned(),
            mount: host.cgroups.mount().to_owned(),
            candidates: Candidates::default(),
        }),
        1 => Ok(found),
        count => Err(Error::Ambiguous {
            selector: value.to_string(),
            count,
            candidates: Candidates(
                found.iter().map(|c| command(&Value::Cgroup(c.path.clone()))).collect(),
            ),
        }),
    }
}

/// Looks a path up from the mount, then as a directory of the filesystem.
fn cgroup(host: &Host, value: &Value, path: &str) -> Result<Cgroup, Error> {
    let mount = host.cgroups.mount();
    let found = host.cgroups.cgroup(path).or_else(|source| {
        let below = Path::new(path).strip_prefix(mount).ok().and_then(Path::to_str);
        below.map_or(Err(source), |below| host.cgroups.cgroup(below))
    });
    let found = found.map_err(|source| Error::NoSuchCgroup {
        path: path.to_owned(),
        mount: mount.to_owned(),
        candidates: Candidates::default(),
        source,
    })?;
    not_the_root(value, found, "it is the root of the cgroup tree")
}

fn not_the_root(value: &Value, cgroup: Cgroup, what: &str) -> Result<Cgroup, Error> {
    if cgroup.path == "/" {
        return Err(Error::WholeHost { selector: value.to_string(), what: what.to_owned() });
    }
    Ok(cgroup)
}

fn process(host: &Host, value: &Value, pid: i32, notes: &mut Vec<String>) -> Result<Cgroup, Error> {
    let gone =
        || Error::NoSuchProcess { selector: value.to_string(), candidates: Candidates::default() };
    let text =
        fs::read_to_string(host.proc.join(pid.to_string()).join("cgroup")).map_err(|_| gone())?;
    let Some(named) = process_path(&text) else { return Err(gone()) };
    let cgroup = host
        .cgroups
        .visible_path(named)
        .and_then(|path| host.cgroups.cgroup(&path).ok())
        .ok_or_else(|| Error::NotVisible {
            selector: value.to_string(),
            pid,
            named: named.to_owned(),
            mount: host.cgroups.mount().to_owned(),
        })?;
    let cgroup = not_the_root(value, cgroup, &format!("process {pid} runs in the root cgroup"))?;
    let name = processes::read(&host.proc, pid).map_or_else(|| "?".to_owned(), |p| p.name);
    notes.push(format!(
        "{value}: process {pid} ({name}) is in cgroup {}; everything in it is counted",
        cgroup.path
    ));
    Ok(cgroup)
}

fn named(
    host: &Host,
    value: &Value,
    name: &str,
    notes: &mut Vec<String>,
) -> Result<Vec<Cgroup>, Error> {
    let own = i32::try_from(std::process::id()).ok();
    let mut found = Vec::new();
    for candidate in processes::all(host)? {
        if candidate.is_named(name) && Some(candidate.pid) != own {
            match process(host, value, candidate.pid, notes) {
                Ok(cgroup) => found.push(cgroup),
                // It ended meanwhile.
                Err(Error::NoSuchProcess { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    if found.is_empty() {
        let candidates = Candidates::default();
        return Err(Error::NoSuchProcess { selector: value.to_string(), candidates });
    }
    Ok(found)
}

/// Says so when a cgroup holds more than one would think of.
fn breadth(path: &str) -> Option<String> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let what = match kind_of(name) {
        Kind::Session => "a whole login session",
        Kind::UserManager => "all services of a user",
        Kind::Init => "systemd itself",
        Kind::Slice => "all units of a slice",
        Kind::Service | Kind::Plain => return None,
    };
    Some(format!(
        "cgroup {path} is {what}: to count one program alone, start it with `traffic-agent exec -- CMD` \
         or run it as a unit of its own"
    ))
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
