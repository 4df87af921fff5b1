//! Containers and namespaces around the agent: some of them forbid counting whatever the kernel can.

use std::fs;
use std::path::Path;

use crate::check::Check;

const NAME: &str = "virtualisation";

/// What is around the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// A guest of OpenVZ or Virtuozzo, which shares its provider's kernel.
    openvz: bool,
    /// The kind of container, as it calls itself.
    container: Option<String>,
    /// Our user namespace is not the first: rights in it are none outside.
    pub(super) user_namespace: bool,
}

impl Surroundings {
    /// Looks below `root`, usually `/`.
    pub(super) fn detect(root: &Path) -> Self {
        let exists = |path: &str| root.join(path).exists();
        // /proc/bc is only there on the host.
        let openvz = exists("proc/vz") && !exists("proc/bc");
        // The manager's word first: only root may read the environment of process 1.
        let named = fs::read_to_string(root.join("run/systemd/container")).ok();
        let named = named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        let environment = || fs::read(root.join("proc/1/environ")).ok();
        let container = named
            .or_else(|| environment().and_then(|environ| container_of(&environ)))
            .or_else(|| exists("run/.containerenv").then(|| "podman".to_owned()))
            .or_else(|| exists(".dockerenv").then(|| "docker".to_owned()));
        let uid_map = fs::read_to_string(root.join("proc/self/uid_map")).unwrap_or_default();
        Self { openvz, container, user_namespace: is_user_namespace(&uid_map) }
    }
}

/// Returns what `container=` says in the environment of a container's first process.
fn container_of(environ: &[u8]) -> Option<String> {
    let value = environ.split(|&byte| byte == 0).find_map(|one| one.strip_prefix(b"container="))?;
    // The empty value is a container that was not named.
    let name = String::from_utf8_lossy(value).into_owned();
    Some(if name.is_empty() { "unnamed".to_owned() } else { name })
}

/// Whether a /proc/self/uid_map is that of another user namespace than the first, which maps every id
/// to itself. One that cannot be read says nothing.
fn is_user_namespace(uid_map: &str) -> bool {
    let numbers: Result<Vec<u32>, _> = uid_map.split_ascii_whitespace().map(str::parse).collect();
    numbers.is_ok_and(|numbers| {
        let whole = !numbers.is_empty() && numbers.len() % 3 == 0;
        whole && numbers != [0, 0, u32::MAX]
    })
}

/// Says in one line what is around the agent, and whether it stands in the way: `refused` says that
/// loading the program was not permitted.
pub(super) fn judge(around: &Surroundings, rights: bool, refused: bool) -> Check {
    const FROM_HOST: &str =
        "run the agent on the host, which counts containers from outside: --target container:NAME";
    let container = around.container.as_deref();
    let inside = match container {
        Some(kind) => format!("inside a container ({kind})"),
        None if around.user_namespace => "inside a user namespace".to_owned(),
        None => "not inside a container".to_owned(),
    };
    if !refused {
        let enough = if container.is_some() { ", which may load programs" } else { "" };
        return Check::ok(NAME, inside + enough);
    }
    if around.openvz {
        return Check::error(
            NAME,
            "inside OpenVZ: guests share their provider's kernel and may not load programs into it",
            "none on this machine: eBPF needs a kernel of its own, as KVM and Xen guests have",
        );
    }
    if around.user_namespace {
        let what = match container {
            Some(kind) => format!("a container without rights ({kind})"),
            None => "a user namespace".to_owned(),
        };
        return Check::error(
            NAME,
            format!("inside {what}: its root is not the kernel's, and may not load programs"),
            FROM_HOST,
        );
    }
    match container {
        None => Check::ok(NAME, inside),
        Some(_) if rights => Check::error(
            NAME,
            format!("{inside}, which does not let the agent count in spite of its capabilities"),
            format!("{FROM_HOST}; or loosen the container's seccomp filter"),
        ),
        Some(_) => Check::error(
            NAME,
            format!("{inside} without the rights to count"),
            format!(
                "{FROM_HOST}; or give the container --cap-add BPF --cap-add PERFMON --cap-add \
                 NET_ADMIN --cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup, and run as its root"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::CheckStatus;

    #[test]
    fn identity_map_is_the_first_user_namespace() {
        assert!(!is_user_namespace("         0          0 4294967295\n"));
        assert!(is_user_namespace("         0     100000      65536\n"));
        assert!(is_user_namespace("0 1000 1\n1 100000 65536\n"));
        for bad in ["", "\n", "a b c", "0 0", "-1 0 1", "0 0 99999999999"] {
            assert!(!is_user_namespace(bad), "{bad:?}");
        }
    }

    #[test]
    fn first_process_says_what_contains_it() {
        assert_eq!(container_of(b"PATH=/bin\0container=lxc\0TERM=x\0").as_deref(), Some("lxc"));
        assert_eq!(container_of(b"container=\0").as_deref(), Some("unnamed"));
        assert_eq!(container_of(b"container=\xff").as_deref(), Some("\u{fffd}"));
        for none in [&b""[..], b"\0", b"container", b"xcontainer=lxc\0", b"CONTAINER=lxc"] {
            assert_eq!(container_of(none), None);
        }
    }

    #[test]
    fn containers_are_known_by_what_they_leave_lying_about() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(Surroundings::detect(root.path()), Surroundings::default());
        write(".dockerenv", "");
        let kind = || Surroundings::detect(root.path()).container;
        assert_eq!(kind().as_deref(), Some("docker"));
        write("run/.containerenv", "");
        assert_eq!(kind().as_deref(), Some("podman"));
        write("proc/1/environ", "A=b\0container=lxc\0");
        assert_eq!(kind().as_deref(), Some("lxc"));
        write("run/systemd/container", "systemd-nspawn\n");
        assert_eq!(kind().as_deref(), Some("systemd-nspawn"));
        write("proc/vz/veinfo", "");
        assert!(Surroundings::detect(root.path()).openvz);
        write("proc/bc/0", "");
        assert!(!Surroundings::detect(root.path()).openvz);
    }

    #[test]
    fn container_is_only_to_blame_when_loading_is_refused() {
        let docker = Surroundings { container: Some("docker".into()), ..Surroundings::default() };
        assert_eq!(judge(&docker, true, false).status, CheckStatus::Ok);
        assert_eq!(judge(&docker, false, true).status, CheckStatus::Error);
        assert!(judge(&docker, false, true).remedy.unwrap().contains("--cap-add BPF"));
        let lxc = Surroundings {
            container: Some("lxc".into()),
            user_namespace: true,
            ..Surroundings::default()
        };
        assert!(judge(&lxc, true, true).message.contains("without rights (lxc)"));
        let openvz = Surroundings { openvz: true, ..Surroundings::default() };
        assert!(judge(&openvz, true, true).message.contains("OpenVZ"));
        // A host where something else is wrong: other lines say what.
        assert_eq!(judge(&Surroundings::default(), false, true).status, CheckStatus::Ok);
    }
}
