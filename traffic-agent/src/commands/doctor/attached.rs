//! Programs that others have attached to a cgroup or above it: whether they let ours in, and what ours
//! does to them.
//!
//! The rules are the kernel's: `hierarchy_allows_attach` and `compute_effective_progs`,
//! kernel/bpf/cgroup.c.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::check::{Check, CheckStatus};
use crate::install::slice;
use crate::kernel::attached::{Hook, Sharing, program_names, query};
use crate::target::{Cgroup, Host};

const NAME: &str = "attached";

/// Begin of the names of programs like ours: another agent that counts the same cgroup disturbs nobody.
const OURS: [&str; 4] = ["count_ingress", "count_egress", "announce_bind4", "announce_bind6"];

/// Suffixes of units that have processes in a cgroup which systemd does not share with others.
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// What is attached to one hook of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    path: String,
    sharing: Sharing,
    /// Names, or ids where those may not be seen.
    programs: Vec<String>,
}

/// What the kernel will do with a link of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// It attaches, and all programs run.
    Beside,
    /// It is refused because of the programs there.
    Refused(Level),
    /// It attaches, and those programs of a cgroup above no longer run for this one.
    Instead(Level),
}

/// Predicts what attaching to the first of these cgroups will do. The others are those above it, the
/// nearest first; all of one hook.
fn predict(levels: &[Level]) -> Outcome {
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

/// Checks a target's cgroup and those above it.
pub(super) fn look(host: &Host, target: &str, cgroup: &Cgroup) -> Vec<Check> {
    let hooks = match ask(host, cgroup) {
        Ok(hooks) => hooks,
        Err(error) => {
            let what = format!("{target}: cannot ask what is attached to {}: {error}", cgroup.path);
            let remedy = match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "run as root, or with CAP_NET_ADMIN",
                _ => "nothing if the line `program` is well",
            };
            return vec![Check::warning(NAME, what, remedy)];
        }
    };
    let mut checks = judge(target, &cgroup.path, &hooks);
    let refused = checks.iter().any(|check| check.status == CheckStatus::Error);
    // Where systemd holds the cgroup already, ours will not come first.
    if !refused
        && is_unshared_unit(&cgroup.path)
        && !is_delegated(&cgroup.dir)
        && let Some(version) = systemd_version()
        && version < FIRST_SHARING
    {
        checks.push(later_deny(target, &cgroup.path, version));
    }
    checks
}

/// From this version on systemd attaches to every unit as one of many (its pull request 19851, and
/// measured on 252: it attaches beside ours, and its IPAddressDeny= is enforced).
const FIRST_SHARING: u32 = 249;

/// The installed systemd's version; none where there is none.
fn systemd_version() -> Option<u32> {
    let output = Command::new("systemctl").arg("--version").stderr(Stdio::null()).output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `systemd 252 (252.38-1~deb12u1)` and what follows it.
fn parse_version(text: &str) -> Option<u32> {
    let version = text.strip_prefix("systemd ")?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// Asks for every hook and every level, the target's own cgroup first.
fn ask(host: &Host, cgroup: &Cgroup) -> io::Result<BTreeMap<Hook, Vec<Level>>> {
    let mut lineage = vec![(cgroup.path.clone(), cgroup.dir.clone())];
    for dir in cgroup.dir.ancestors().skip(1) {
        let Ok(below) = dir.strip_prefix(host.cgroups.mount()) else { break };
        lineage.push((format!("/{}", below.display()), dir.to_owned()));
    }
    let mut names = None;
    let mut hooks: BTreeMap<Hook, Vec<Level>> = BTreeMap::new();
    for (path, dir) in lineage {
        let directory = File::open(dir)?;
        for hook in Hook::ALL {
            let attached = query(&directory, hook)?;
            let programs = attached.programs.iter().map(|id| {
                let names = names.get_or_insert_with(program_names);
                let name = names.get(id).filter(|name| !name.is_empty());
                name.cloned().unwrap_or_else(|| format!("program {id}"))
            });
            let programs = programs.collect();
            let level = Level { path: path.clone(), sharing: attached.sharing, programs };
            hooks.entry(hook).or_default().push(level);
        }
    }
    Ok(hooks)
}

fn judge(target: &str, path: &str, hooks: &BTreeMap<Hook, Vec<Level>>) -> Vec<Check> {
    // By what happens and where, so that ingress and egress of one owner are one line.
    let mut troubles: BTreeMap<(bool, &str), Vec<(Hook, Level)>> = BTreeMap::new();
    for (&hook, levels) in hooks {
        let (refused, level) = match predict(levels) {
            Outcome::Beside => continue,
            Outcome::Refused(level) => (true, level),
            Outcome::Instead(level) => (false, level),
        };
        let place = levels.iter().find(|one| one.path == level.path).map_or("", |one| &one.path);
        troubles.entry((refused, place)).or_default().push((hook, level));
    }
    if !troubles.is_empty() {
        let check = |((refused, place), found): ((bool, &str), Vec<(Hook, Level)>)| {
            let on: Vec<_> = found.iter().map(|(hook, _)| hook.name()).collect();
            let programs = names(found.iter().map(|(_, level)| level));
            match refused {
                true => refusal(target, path, place, &programs, &on.join(", ")),
                false => silencing(target, path, place, &programs, &on.join(", ")),
            }
        };
        return troubles.into_iter().rev().map(check).collect();
    }
    let mut beside: BTreeMap<&str, Vec<&Level>> = BTreeMap::new();
    for level in hooks.values().flatten().filter(|level| !level.programs.is_empty()) {
        beside.entry(&level.path).or_default().push(level);
    }
    let message = match beside.is_empty() {
        true => format!("{target}: no program is attached to {path} or above it"),
        false => {
            let list = beside
                .iter()
                .map(|(path, levels)| format!("{} at {path}", names(levels.iter().copied())));
            let list: Vec<_> = list.collect();
            format!("{target}: runs beside what is attached already: {}", list.join("; "))
        }
    };
    vec![Check::ok(NAME, message)]
}

/// Names of programs, each once, with a word on those that are like ours.
fn names<'a>(levels: impl Iterator<Item = &'a Level>) -> String {
    let all: BTreeSet<&str> =
        levels.flat_map(|level| &level.programs).map(String::as_str).collect();
    let name = |name: &&str| match OURS.contains(name) {
        true => format!("{name} (an agent like this one)"),
        false => (*name).to_owned(),
    };
    all.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn refusal(target: &str, path: &str, place: &str, programs: &str, hooks: &str) -> Check {
    let message = format!(
        "{target}: cgroup {place} is held exclusively ({hooks}) by {programs}, as systemd before \
         {FIRST_SHARING} does for a unit with IPAccounting=, IPAddressAllow= or IPAddressDeny=: the kernel \
         refuses a second program{}",
        if path == place { "" } else { ", there and below" }
    );
    let parent = match place.rsplit_once('/') {
        Some((parent, _)) if !parent.is_empty() => parent,
        _ => return Check::error(NAME, message, "detach it: `bpftool cgroup tree` shows it"),
    };
    let unit = place.rsplit('/').next().unwrap_or_default();
    let remedy = match unit.ends_with(".service") {
        true => {
            let above = parent.rsplit('/').next().unwrap_or_default();
            let slice = slice::name(above, unit).unwrap_or_else(|| "NAME.slice".to_owned());
            format!(
                "put the unit into a slice of its own (`traffic-agent install --unit {unit}`) and measure the slice: --target unit:{slice}. Or measure the parent, with \
                 everything in it: --target cgroup:{parent}. Or take those settings away from the unit"
            )
        }
        false => format!(
            "measure the parent, with everything in it: --target cgroup:{parent}; or detach the program \
             (`bpftool cgroup show` lists it)"
        ),
    };
    Check::error(NAME, message, remedy)
}

fn silencing(target: &str, path: &str, place: &str, programs: &str, hooks: &str) -> Check {
    Check::warning(
        NAME,
        format!(
            "{target}: below {place} what is attached to it ({hooks}: {programs}) may be overridden: while {path} is \
             counted, that does not run for it"
        ),
        "nothing if it need not run; else let its owner attach it with BPF_F_ALLOW_MULTI",
    )
}

/// Whether a cgroup is a unit's own, and not a slice, which systemd shares.
fn is_unshared_unit(path: &str) -> bool {
    UNITS.iter().any(|suffix| path.ends_with(suffix))
}

/// Whether systemd has marked the cgroup as delegated (a container's, for one): it attaches to those as
/// one of many. The mark is `user.delegate` since 251, before that `trusted.delegate` for root alone.
fn is_delegated(dir: &Path) -> bool {
    let Ok(dir) = CString::new(dir.as_os_str().as_bytes()) else { return false };
    [c"user.delegate", c"trusted.delegate"].iter().any(|name| {
        let mut value = [0u8; 1];
        // SAFETY: both names end in 0 and outlive the call, which writes at most one byte to `value`.
        let length = unsafe {
            libc::getxattr(dir.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        length == 1 && value[0] == b'1'
    })
}

fn later_deny(target: &str, path: &str, version: u32) -> Check {
    let unit = path.rsplit('/').next().unwrap_or_default();
    Check::warning(
        "unit",
        format!(
            "{target}: {path} is a unit's own cgroup. While it is counted, systemd {version} cannot attach \
             to it exclusively, and does not say so: an IPAddressDeny= or IPAccounting= that is set on \
             {unit} meanwhile would not take effect"
        ),
        "nothing if the unit has none of them; for good, a slice of its own (Slice= in the unit), which \
         also outlives restarts",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(path: &str, sharing: Sharing, programs: &[&str]) -> Level {
        let programs = programs.iter().map(|&name| name.to_owned()).collect();
        Level { path: path.to_owned(), sharing, programs }
    }

    /// Nothing attached: the kernel reports the flags as 0 then.
    fn free(path: &str) -> Level {
        level(path, Sharing::Exclusive, &[])
    }

    #[test]
    fn without_programs_the_flags_mean_nothing() {
        assert_eq!(predict(&[free("/a"), free("/")]), Outcome::Beside);
        assert_eq!(predict(&[]), Outcome::Beside);
    }

    #[test]
    fn only_programs_that_share_let_another_in() {
        for sharing in [Sharing::Exclusive, Sharing::Override] {
            let own = level("/a", sharing, &["sd_fw_ingress"]);
            assert_eq!(predict(&[own.clone(), free("/")]), Outcome::Refused(own));
        }
        let shared = level("/a", Sharing::Multi, &["other"]);
        assert_eq!(predict(&[shared, free("/")]), Outcome::Beside);
    }

    #[test]
    fn nearest_cgroup_above_with_programs_decides() {
        let exclusive = level("/", Sharing::Exclusive, &["x"]);
        let overridable = level("/", Sharing::Override, &["x"]);
        let shared = level("/a", Sharing::Multi, &["y"]);
        let predict =
            |above: [&Level; 2]| predict(&[free("/a/b"), above[0].clone(), above[1].clone()]);
        assert_eq!(predict([&free("/a"), &exclusive]), Outcome::Refused(exclusive.clone()));
        assert_eq!(predict([&free("/a"), &overridable]), Outcome::Instead(overridable.clone()));
        assert_eq!(predict([&shared, &exclusive]), Outcome::Beside);
    }

    #[test]
    fn both_directions_of_one_owner_are_one_line_with_a_remedy() {
        let unit = "/system.slice/xray.service";
        let held =
            |name| vec![level(unit, Sharing::Exclusive, &[name]), free("/system.slice"), free("/")];
        let hooks = BTreeMap::from([
            (Hook::Ingress, held("sd_fw_ingress")),
            (Hook::Egress, held("sd_fw_egress")),
            (Hook::Bind4, vec![free(unit), free("/system.slice"), free("/")]),
        ]);
        let checks = judge("xray", unit, &hooks);
        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].status, CheckStatus::Error);
        assert!(
            checks[0].message.contains("(ingress, egress) by sd_fw_egress, sd_fw_ingress, as"),
            "{}",
            checks[0].message
        );
        assert!(checks[0].message.contains("(ingress, egress)"), "{}", checks[0].message);
        let remedy = checks[0].remedy.as_deref().unwrap();
        assert!(remedy.contains("install --unit xray.service"), "{remedy}");
        assert!(remedy.contains("unit:system-xray_traffic.slice"), "{remedy}");
        assert!(remedy.contains("--target cgroup:/system.slice."), "{remedy}");
    }

    #[test]
    fn slices_are_shared_and_services_are_not() {
        assert!(is_unshared_unit("/system.slice/xray.service"));
        assert!(is_unshared_unit("/system.slice/docker-1.scope"));
        assert!(!is_unshared_unit("/xray-traffic.slice"));
        assert!(!is_unshared_unit("/proxy"));
        assert!(!is_unshared_unit("/"));
    }

    #[test]
    fn version_of_systemd_is_the_first_number() {
        let text = "systemd 252 (252.38-1~deb12u1)\n+PAM +AUDIT\n";
        assert_eq!(parse_version(text), Some(252));
        assert_eq!(parse_version("systemd 258~rc1"), Some(258));
        for bad in ["", "systemd", "systemd ", "systemd x", "elogind 252", "systemd 99999999999"] {
            assert_eq!(parse_version(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_has_no_mark_is_not_delegated() {
        assert!(!is_delegated(Path::new("/")));
        assert!(!is_delegated(Path::new("/does/not/exist")));
    }
}
