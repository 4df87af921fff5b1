//! Programs that others have attached to a cgroup or above it: whether they let ours in, and what ours
//! does to them.

use std::collections::{BTreeMap, BTreeSet};

use crate::anchor::systemd::{FIRST_SHARING, version_that_claims};
use crate::anchor::{self, Above, Level, Outcome, Why, predict};
use crate::check::{Check, CheckStatus};
use crate::kernel::attached::Hook;
use crate::target::{Cgroup, Host};

const NAME: &str = "attached";

/// Begin of the names of programs like ours: another agent that counts the same cgroup disturbs nobody.
const OURS: [&str; 6] = [
    "count_ingress",
    "count_egress",
    "select_ingress",
    "select_egress",
    "announce_bind4",
    "announce_bind6",
];

/// Checks a target's cgroup and those above it.
pub(super) fn look(host: &Host, target: &str, cgroup: &Cgroup) -> Vec<Check> {
    let hooks = match anchor::ask(host, cgroup, &Hook::ALL, anchor::names()) {
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
    let above = anchor::find(host, cgroup, &BTreeSet::new());
    let mut checks = judge(target, &cgroup.path, &hooks, above.as_ref());
    match &above {
        Some(Above { anchor, why: why @ Why::Claimed { .. }, .. }) => {
            checks.push(claimed(target, &anchor.path, why));
        }
        // Where systemd holds the cgroup already, ours will not come first.
        None if checks.iter().all(|check| check.status != CheckStatus::Error) => {
            let version = version_that_claims(&cgroup.path, &cgroup.dir);
            checks.extend(version.map(|version| later_deny(target, &cgroup.path, version)));
        }
        _ => {}
    }
    checks
}

/// `above`: where hooks hang that cannot hang on the cgroup itself.
fn judge(
    target: &str,
    path: &str,
    hooks: &BTreeMap<Hook, Vec<Level>>,
    above: Option<&Above>,
) -> Vec<Check> {
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
                true => {
                    let counts = |hook: Hook| matches!(hook, Hook::Ingress | Hook::Egress);
                    let above = above.filter(|_| found.iter().all(|(hook, _)| counts(*hook)));
                    refusal(target, path, place, &programs, &on.join(", "), above)
                }
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

fn refusal(
    target: &str,
    path: &str,
    place: &str,
    programs: &str,
    hooks: &str,
    above: Option<&Above>,
) -> Check {
    let message = format!(
        "{target}: cgroup {place} is held exclusively ({hooks}) by {programs}, as systemd before \
         {FIRST_SHARING} does for a unit with IPAccounting=, IPAddressAllow= or IPAddressDeny=: the kernel \
         refuses a second program{}",
        if path == place { "" } else { ", there and below" }
    );
    match above {
        Some(above) => Check::warning(
            NAME,
            format!("{message}; {}", selected_at(&above.anchor.path)),
            anchor::remedy(place),
        ),
        None => Check::error(NAME, message, "detach it: `bpftool cgroup tree` shows it"),
    }
}

/// The cgroup is free, but systemd will want it.
fn claimed(target: &str, anchor: &str, why: &Why) -> Check {
    let message = format!("{target}: {why}; {}", selected_at(anchor));
    Check::warning("unit", message, anchor::remedy(why.path()))
}

fn selected_at(anchor: &str) -> String {
    format!("its packets are counted by hooks on {anchor}, which select them")
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
    use crate::kernel::attached::Sharing;

    fn level(path: &str, sharing: Sharing, programs: &[&str]) -> Level {
        let programs = programs.iter().map(|&name| name.to_owned()).collect();
        Level { path: path.to_owned(), sharing, programs }
    }

    /// Nothing attached: the kernel reports the flags as 0 then.
    fn free(path: &str) -> Level {
        level(path, Sharing::Exclusive, &[])
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
        let (dir, id) = ("/sys/fs/cgroup/system.slice".into(), 7);
        let above = Above {
            anchor: Cgroup { path: "/system.slice".to_owned(), dir, id },
            levels: vec![2],
            why: Why::WasHeld { path: unit.to_owned() },
        };
        let checks = judge("xray", unit, &hooks, Some(&above));
        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].status, CheckStatus::Warning);
        let message = &checks[0].message;
        assert!(
            message.contains("(ingress, egress) by sd_fw_egress, sd_fw_ingress, as"),
            "{message}"
        );
        assert!(message.contains("by hooks on /system.slice, which select them"), "{message}");
        let remedy = checks[0].remedy.as_deref().unwrap();
        assert!(remedy.contains("install --unit xray.service"), "{remedy}");
        assert!(remedy.contains("unit:system-xray_traffic.slice"), "{remedy}");
    }

    #[test]
    fn what_can_hang_nowhere_is_an_error() {
        let held = vec![level("/a", Sharing::Exclusive, &["x"]), free("/")];
        let hooks = BTreeMap::from([(Hook::Bind4, held.clone())]);
        let checks = judge("a", "/a", &hooks, None);
        assert_eq!(checks[0].status, CheckStatus::Error, "{checks:?}");
        let root = BTreeMap::from([(Hook::Egress, vec![held[0].clone()])]);
        assert_eq!(judge("a", "/a", &root, None)[0].status, CheckStatus::Error);
    }
}
