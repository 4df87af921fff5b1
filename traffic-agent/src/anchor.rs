//! Where the hooks of a target's cgroup hang: on itself, or on the nearest one above where another program
//! holds it exclusively, or systemd would, if ours did not come first.
//!
//! A cgroup of which somebody lets no other program in must not be hooked, and what we hook must not be a cgroup
//! that its owner would want for himself later: he would be refused, and systemd does not say so. The rules are
//! the kernel's: `hierarchy_allows_attach` and `compute_effective_progs`, kernel/bpf/cgroup.c.

pub mod systemd;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use traffic_ebpf::MOST_SELECTED_LEVELS;

use crate::install::slice;
use crate::kernel::attached::{Hook, Sharing, program_names, query};
use crate::target::cgroup2::FIRST_NAMESPACE;
use crate::target::{Cgroup, Host};

/// The hooks that packets pass.
const PACKETS: [Hook; 2] = [Hook::Ingress, Hook::Egress];

/// What is attached to one hook of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The cgroup's path.
    pub path: String,
    /// Whether it lets others in.
    pub sharing: Sharing,
    /// Names, or ids where those may not be seen.
    pub programs: Vec<String>,
}

/// What the kernel will do with a link of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It attaches, and all programs run.
    Beside,
    /// It is refused because of the programs there.
    Refused(Level),
    /// It attaches, and those programs of a cgroup above no longer run for this one.
    Instead(Level),
}

/// Predicts what attaching to the first of these cgroups will do. The others are those above it, the
/// nearest first; all of one hook.
pub fn predict(levels: &[Level]) -> Outcome {
    let Some((own, above)) = levels.split_first() else { return Outcome::Beside };
    if !own.programs.is_empty() && own.sharing != Sharing::Multi {
        return Outcome::Refused(own.clone());
    }
    // The nearest one above that has programs decides.
    match above.iter().find(|level| !level.programs.is_empty()) {
        Some(level) => match level.sharing {
            Sharing::Multi => Outcome::Beside,
            Sharing::Override => Outcome::Instead(level.clone()),
            Sharing::Exclusive => Outcome::Refused(level.clone()),
        },
        None => Outcome::Beside,
    }
}

/// Asks what is attached to hooks of a cgroup and of those above it, the cgroup itself first.
pub fn ask(
    host: &Host,
    cgroup: &Cgroup,
    hooks: &[Hook],
    mut name: impl FnMut(u32) -> String,
) -> io::Result<BTreeMap<Hook, Vec<Level>>> {
    let mut found: BTreeMap<Hook, Vec<Level>> = BTreeMap::new();
    for (path, dir) in lineage(host, cgroup) {
        let directory = File::open(dir)?;
        for &hook in hooks {
            let attached = query(&directory, hook)?;
            let programs = attached.programs.into_iter().map(&mut name).collect();
            let level = Level { path: path.clone(), sharing: attached.sharing, programs };
            found.entry(hook).or_default().push(level);
        }
    }
    Ok(found)
}

/// Names programs as far as they may be seen. They are looked up when the first is asked for.
pub fn names() -> impl FnMut(u32) -> String {
    let mut names = None;
    move |id| {
        let known = names.get_or_insert_with(program_names).get(&id);
        let known = known.filter(|name| !name.is_empty());
        known.cloned().unwrap_or_else(|| format!("program {id}"))
    }
}

/// Paths and directories of a cgroup and those above it.
fn lineage(host: &Host, cgroup: &Cgroup) -> Vec<(String, std::path::PathBuf)> {
    let mut lineage = vec![(cgroup.path.clone(), cgroup.dir.clone())];
    for dir in cgroup.dir.ancestors().skip(1) {
        let Ok(below) = dir.strip_prefix(host.cgroups.mount()) else { break };
        lineage.push((format!("/{}", below.display()), dir.to_owned()));
    }
    lineage
}

/// A cgroup above the target's, whose hooks select the target's packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Above {
    /// Where the hooks hang.
    pub anchor: Cgroup,
    /// How deep in the tree the target's cgroup may be, the root being 0.
    pub levels: Vec<u8>,
    /// Why not on its own.
    pub why: Why,
}

/// Why a cgroup is not hooked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Others hold it, or one above it, exclusively.
    Held {
        /// Which.
        path: String,
        /// By what.
        programs: String,
    },
    /// One of this path was held so before.
    WasHeld {
        /// Which.
        path: String,
    },
    /// systemd attaches exclusively to it, or to one above it, as it is configured.
    Claimed {
        /// Which.
        path: String,
        /// What systemd says of it.
        claim: systemd::Claim,
    },
}

impl Why {
    /// The cgroup that must not be hooked: the target's, or one above it.
    pub fn path(&self) -> &str {
        match self {
            Self::Held { path, .. } | Self::WasHeld { path } | Self::Claimed { path, .. } => path,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { path, programs } => write!(f, "{path} is held exclusively by {programs}"),
            Self::WasHeld { path } => write!(f, "{path} was held exclusively before"),
            Self::Claimed { claim, .. } => write!(f, "{claim}"),
        }
    }
}

/// What to do about a cgroup that must not be hooked.
pub fn remedy(held: &str) -> String {
    let (above, unit) = held.rsplit_once('/').unwrap_or_default();
    if !unit.ends_with(".service") {
        return "nothing: it is counted all the same; every packet below those hooks is looked at for it"
            .to_owned();
    }
    let above = above.rsplit('/').next().unwrap_or_default();
    let slice = slice::name(above, unit).unwrap_or_else(|| "NAME.slice".to_owned());
    format!(
        "nothing, or put the unit into a slice of its own (`traffic-agent install --unit {unit}`) and count \
         the slice, which outlives the unit's restarts: --target unit:{slice}"
    )
}

/// Finds the cgroup on which hooks for this one may hang, if that is not itself.
///
/// `held`: paths of cgroups that others have held exclusively. When one of them is made again, its owner may come
/// later than we do.
///
/// What cannot be asked, or has no place, is tried on the cgroup itself: the kernel says why not.
pub fn find(host: &Host, cgroup: &Cgroup, held: &BTreeSet<String>) -> Option<Above> {
    let hooks = ask(host, cgroup, &PACKETS, |_| String::new()).ok()?;
    let lineage = lineage(host, cgroup);
    let mut reserved = Vec::new();
    for (path, dir) in &lineage {
        let was_held = || held.contains(path).then(|| Why::WasHeld { path: path.clone() });
        let claimed =
            || systemd::claim(path, dir).map(|claim| Why::Claimed { path: path.clone(), claim });
        reserved.push(was_held().or_else(claimed));
    }
    let at = nearest(&hooks, &reserved)?;
    let (path, _) = lineage.get(at).filter(|_| at > 0)?;
    let anchor = host.cgroups.cgroup(path).ok()?;
    let why = why(host, cgroup).or_else(|| reserved.into_iter().flatten().last())?;
    Some(Above { anchor, levels: levels(host, cgroup), why })
}

/// Which of the levels is the nearest where a link is let in, and no owner will come later.
fn nearest(hooks: &BTreeMap<Hook, Vec<Level>>, reserved: &[Option<Why>]) -> Option<usize> {
    let depth = hooks.values().map(Vec::len).min()?;
    let first = reserved.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    let lets_in = |levels: &Vec<Level>, at| !matches!(predict(&levels[at..]), Outcome::Refused(_));
    (first..depth).find(|&at| hooks.values().all(|levels| lets_in(levels, at)))
}

/// By what a cgroup is held, if so.
fn why(host: &Host, cgroup: &Cgroup) -> Option<Why> {
    let hooks = ask(host, cgroup, &PACKETS, names()).ok()?;
    let held: Vec<Level> = hooks
        .values()
        .filter_map(|levels| match predict(levels) {
            Outcome::Refused(level) => Some(level),
            _ => None,
        })
        .collect();
    let path = held.first()?.path.clone();
    let programs: BTreeSet<String> = held.into_iter().flat_map(|level| level.programs).collect();
    Some(Why::Held { path, programs: programs.into_iter().collect::<Vec<_>>().join(", ") })
}

/// How deep in the tree a cgroup is. In a part of the tree only how deep at least can be seen: then it may be
/// at any level from there on.
fn levels(host: &Host, cgroup: &Cgroup) -> Vec<u8> {
    let depth = cgroup.path.split('/').filter(|part| !part.is_empty()).count();
    let depth = u8::try_from(depth).unwrap_or(u8::MAX);
    let namespace = fs::metadata(host.proc.join("self/ns/cgroup"));
    let is_exact = host.cgroups.is_whole() && namespace.is_ok_and(|it| it.ino() == FIRST_NAMESPACE);
    let last = if is_exact { depth } else { depth.max(MOST_SELECTED_LEVELS as u8) };
    (depth..=last).collect()
}

#[cfg(test)]
#[path = "anchor_tests.rs"]
mod tests;
