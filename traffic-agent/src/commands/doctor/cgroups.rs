//! The mounts that counting needs: cgroup v2 always, bpffs for the daemon.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::host::Version;
use crate::check::Check;
use crate::target::Host;
use crate::target::cgroup2::FIRST_NAMESPACE;

/// Where the daemon keeps its pins.
const BPFFS: &str = "/sys/fs/bpf";
/// From here on cgroup v1 controllers do not take the cgroup away from new sockets.
const MIXED_MODE_FIXED: Version = Version(5, 15);

/// A line of /proc/mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount<'a> {
    point: String,
    kind: &'a str,
    options: Vec<&'a str>,
}

/// Reads /proc/mounts; lines that are not understood are left out.
fn parse_mounts(text: &str) -> Vec<Mount<'_>> {
    let mount = |line| {
        let mut fields = str::split_ascii_whitespace(line).skip(1);
        let point = fields.next()?.replace("\\040", " ");
        Some(Mount { point, kind: fields.next()?, options: fields.next()?.split(',').collect() })
    };
    text.lines().filter_map(mount).collect()
}

/// What is to be known of the cgroup v2 tree.
#[derive(Clone, Copy, Debug)]
struct Tree<'a> {
    point: &'a Path,
    /// The mount shows all of our cgroup namespace.
    whole: bool,
    /// Our cgroup namespace is the host's; none where that cannot be seen.
    first_namespace: Option<bool>,
    kernel: Option<Version>,
}

/// Checks where the tree is, and what of it can be seen.
pub(super) fn tree(host: &Host, kernel: Option<Version>) -> Check {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let namespace = fs::metadata("/proc/self/ns/cgroup").ok();
    let tree = Tree {
        point: host.cgroups.mount(),
        whole: host.cgroups.is_whole(),
        first_namespace: namespace.map(|namespace| namespace.ino() == FIRST_NAMESPACE),
        kernel,
    };
    judge(tree, &parse_mounts(&mounts))
}

fn judge(tree: Tree<'_>, mounts: &[Mount<'_>]) -> Check {
    const NAME: &str = "cgroup2";
    let v1: Vec<_> = mounts.iter().filter(|mount| mount.kind == "cgroup").collect();
    let layout = if v1.is_empty() { "unified" } else { "hybrid, beside cgroup v1" };
    let here = mounts.iter().rfind(|mount| Path::new(&mount.point) == tree.point);
    let read_only = here.is_some_and(|mount| mount.options.contains(&"ro"));
    let place = format!("cgroup v2 is mounted at {} ({layout})", tree.point.display());

    let takes_sockets = |mount: &Mount<'_>| {
        mount.options.iter().any(|option| matches!(*option, "net_cls" | "net_prio"))
    };
    if tree.kernel.is_some_and(|kernel| kernel < MIXED_MODE_FIXED)
        && v1.iter().copied().any(takes_sockets)
    {
        return Check::warning(
            NAME,
            format!(
                "{place}, and so are the v1 controllers net_cls or net_prio: once they are used, kernels \
                 before {MIXED_MODE_FIXED} no longer note the cgroup of new sockets, which are then not counted"
            ),
            "boot with cgroup_no_v1=net_cls,net_prio, or with systemd.unified_cgroup_hierarchy=1",
        );
    }
    if !tree.whole {
        return Check::warning(
            NAME,
            format!("{place}, but only a part of the tree: what is outside cannot be counted"),
            "run the agent outside of this container, or mount the whole tree into it (docker: --cgroupns \
             host -v /sys/fs/cgroup:/sys/fs/cgroup)",
        );
    }
    if tree.first_namespace == Some(false) {
        return Check::warning(
            NAME,
            format!("{place}, in a cgroup namespace of its own: what is outside cannot be counted"),
            "nothing if the target is inside; else run the agent on the host (docker: --cgroupns host)",
        );
    }
    if read_only {
        return Check::warning(
            NAME,
            format!("{place} read-only: `exec` and `compare -- CMD` cannot make cgroups"),
            format!(
                "`mount -o remount,rw {}`; `compare --target` works without",
                tree.point.display()
            ),
        );
    }
    Check::ok(NAME, format!("{place}, the whole tree, writable"))
}

/// Checks where the daemon would keep what goes on counting without it.
pub(super) fn bpffs() -> Check {
    const NAME: &str = "bpffs";
    match statfs(BPFFS) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {
            Check::ok(NAME, format!("mounted at {BPFFS}"))
        }
        _ => Check::warning(
            NAME,
            format!("not mounted at {BPFFS}: the daemon needs it, `compare` and `exec` do not"),
            format!("`mount -t bpf bpf {BPFFS}`"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::CheckStatus;

    const UNIFIED: &str = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
    const HYBRID: &str = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                          cgroup /sys/fs/cgroup/net_cls,net_prio cgroup rw,net_cls,net_prio 0 0\n";

    fn tree(point: &str) -> Tree<'_> {
        let (whole, first_namespace) = (true, Some(true));
        Tree { point: Path::new(point), whole, first_namespace, kernel: Some(Version(6, 1)) }
    }

    #[test]
    fn layout_and_rights_are_read_from_the_mounts() {
        let check = judge(tree("/sys/fs/cgroup"), &parse_mounts(UNIFIED));
        assert_eq!(check.status, CheckStatus::Ok);
        assert!(check.message.contains("(unified)"), "{}", check.message);
        let check = judge(tree("/sys/fs/cgroup/unified"), &parse_mounts(HYBRID));
        assert!(check.message.contains("(hybrid"), "{}", check.message);
        let read_only = UNIFIED.replace("rw,nosuid", "ro,nosuid");
        let check = judge(tree("/sys/fs/cgroup"), &parse_mounts(&read_only));
        assert!(check.message.contains("read-only"), "{}", check.message);
    }

    #[test]
    fn a_part_of_the_tree_is_a_warning() {
        let mounts = parse_mounts(UNIFIED);
        let part = Tree { whole: false, ..tree("/sys/fs/cgroup") };
        assert!(judge(part, &mounts).message.contains("a part of the tree"));
        let inside = Tree { first_namespace: Some(false), ..tree("/sys/fs/cgroup") };
        assert!(judge(inside, &mounts).message.contains("namespace of its own"));
        let unknown = Tree { first_namespace: None, ..tree("/sys/fs/cgroup") };
        assert_eq!(judge(unknown, &mounts).status, CheckStatus::Ok);
    }

    #[test]
    fn v1_controllers_take_sockets_away_before_5_15() {
        let mounts = parse_mounts(HYBRID);
        let old = Tree { kernel: Some(Version(5, 10)), ..tree("/sys/fs/cgroup/unified") };
        assert!(judge(old, &mounts).message.contains("net_cls"));
        assert_eq!(judge(tree("/sys/fs/cgroup/unified"), &mounts).status, CheckStatus::Ok);
    }

    #[test]
    fn lines_that_are_no_mounts_are_left_out() {
        for bad in ["", "\n", "cgroup2", "cgroup2 /x", "cgroup2 /x cgroup2", "\0 \0"] {
            assert_eq!(parse_mounts(bad), [], "{bad:?}");
        }
        assert_eq!(parse_mounts("none /a\\040b cgroup2 rw 0 0")[0].point, "/a b");
    }
}
