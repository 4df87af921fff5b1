//! Proxies that are known by name, and those of them that run: candidates for error messages, the
//! default target, and `doctor`.

use std::fs;

use super::cgroup2::process_path;
use super::container::{self, Container};
use super::processes::{self, Process};
use super::{Candidates, Cgroup, Error, Host, Value};

/// Programs that relay traffic. Also recognised with the platform behind the name, as panels install
/// them (`xray-linux-amd64`).
pub const PROXIES: [&str; 20] = [
    "xray",
    "v2ray",
    "sing-box",
    "hysteria",
    "hysteria2",
    "tuic-server",
    "trojan",
    "trojan-go",
    "trojan-plus",
    "ss-server",
    "ssserver",
    "shadowsocks-rust",
    "naive",
    "brook",
    "mihomo",
    "gost",
    "juicity-server",
    "anytls-server",
    "XrayR",
    "V2bX",
];

/// Programs that manage a proxy and run it as a child.
pub const PANELS: [&str; 3] = ["x-ui", "s-ui", "v2ray-ui"];

/// Returns the known name of a program: a proxy or a panel.
pub fn known_name(program: &str) -> Option<&'static str> {
    let is_it = |known: &&&str| {
        program.strip_prefix(**known).is_some_and(|rest| {
            // comm is cut to 15 bytes: `xray-linux-amd64` is `xray-linux-amd6`.
            rest.is_empty() || rest.starts_with("-linux")
        })
    };
    PROXIES.iter().chain(&PANELS).find(is_it).copied()
}

/// Whether a program is a known proxy, not only its panel.
pub fn is_proxy(program: &str) -> bool {
    known_name(program).is_some_and(|name| PROXIES.contains(&name))
}

fn name_of(process: &Process) -> Option<&'static str> {
    known_name(process.program()).or_else(|| known_name(&process.name))
}

/// A cgroup in which known proxies run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Their processes.
    pub processes: Vec<Process>,
    /// The cgroup.
    pub cgroup: Cgroup,
    /// How to select it; none where it is the root, and selecting would count the whole host.
    pub value: Option<Value>,
}

impl Running {
    /// Whether one of them is a proxy, not only a panel.
    pub fn has_proxy(&self) -> bool {
        self.processes.iter().filter_map(name_of).any(is_proxy)
    }

    /// The command to paste.
    pub fn command(&self) -> Option<String> {
        let value = self.value.as_ref()?;
        Some(command(value))
    }
}

/// Quotes what a shell would not take as one plain word (`\x2d` in unit names).
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@=,+".contains(&byte);
    match text.bytes().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The command that measures what `value` says.
pub(super) fn command(value: &Value) -> String {
    format!("traffic-agent compare --target {}", quoted(&value.to_string()))
}

/// Returns the cgroups in which known proxies run, in the order of their paths.
pub fn running(host: &Host) -> Result<Vec<Running>, Error> {
    let mut found: Vec<Running> = Vec::new();
    let mut stored = None;
    for process in processes::all(host)? {
        if name_of(&process).is_none() {
            continue;
        }
        let Some(leaf) = cgroup_path(host, process.pid) else { continue };
        let stored = stored.get_or_insert_with(|| host.containers.list().0);
        let (path, value) = selector_of(&leaf, process.pid, stored);
        if let Some(running) = found.iter_mut().find(|running| running.cgroup.path == path) {
            running.processes.push(process);
        } else if let Ok(cgroup) = host.cgroups.cgroup(&path) {
            found.push(Running { processes: vec![process], cgroup, value });
        }
    }
    found.sort_by(|a, b| a.cgroup.path.cmp(&b.cgroup.path));
    Ok(found)
}

/// Commands that measure the known proxies that run; empty if that cannot be found out either.
pub fn candidates(host: &Host) -> Candidates {
    let running = running(host).unwrap_or_default();
    Candidates(running.iter().filter_map(Running::command).collect())
}

/// Returns the path from the mount of a process's cgroup.
pub(super) fn cgroup_path(host: &Host, pid: i32) -> Option<String> {
    let text = fs::read_to_string(host.proc.join(pid.to_string()).join("cgroup")).ok()?;
    host.cgroups.visible_path(process_path(&text)?)
}

/// Returns the cgroup to count for a process in `leaf`, and how to ask for it.
fn selector_of(leaf: &str, pid: i32, stored: &[Container]) -> (String, Option<Value>) {
    let mut path = leaf;
    while path.len() > 1 {
        if let Some(name) = container::name_in_path(stored, path) {
            return (path.to_owned(), Some(Value::Container(name)));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if matches!(kind_of(name), Kind::Service) {
            return (path.to_owned(), Some(Value::Unit(name.to_owned())));
        }
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    let value = match leaf.rsplit('/').next().map(kind_of) {
        _ if leaf == "/" => None,
        Some(Kind::Session | Kind::UserManager | Kind::Init) => Some(Value::Pid(pid)),
        _ => Some(Value::Cgroup(leaf.to_owned())),
    };
    (leaf.to_owned(), value)
}

/// What a component of a cgroup path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A service or scope of its own.
    Service,
    /// A login session.
    Session,
    /// All services of a user.
    UserManager,
    /// systemd itself.
    Init,
    /// A group of units.
    Slice,
    /// Not systemd's.
    Plain,
}

pub(super) fn kind_of(component: &str) -> Kind {
    if component == "init.scope" {
        Kind::Init
    } else if component.starts_with("session-") && component.ends_with(".scope") {
        Kind::Session
    } else if component.starts_with("user@") && component.ends_with(".service") {
        Kind::UserManager
    } else if component.ends_with(".service") || component.ends_with(".scope") {
        Kind::Service
    } else if component.ends_with(".slice") {
        Kind::Slice
    } else {
        Kind::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platform_behind_the_name_is_no_other_program() {
        for (program, known) in [
            ("xray", Some("xray")),
            ("xray-linux-amd6", Some("xray")),
            ("hysteria-linux-amd64", Some("hysteria")),
            ("hysteria2", Some("hysteria2")),
            ("trojan-go", Some("trojan-go")),
            ("x-ui", Some("x-ui")),
            ("xray2", None),
            ("xray-exporter", None),
            ("nginx", None),
            ("", None),
        ] {
            assert_eq!(known_name(program), known, "{program}");
        }
        assert!(is_proxy("xray") && !is_proxy("x-ui"));
    }

    #[test]
    fn process_is_selected_by_its_unit_container_or_cgroup() {
        let id = "0123456789abcdef".repeat(4);
        let stored = [Container { id: id.clone(), names: vec!["px".into()] }];
        let user = "/user.slice/user-1000.slice/user@1000.service";
        for (leaf, path, value) in [
            ("/system.slice/a.service/sub", "/system.slice/a.service", "unit:a.service"),
            (
                &format!("{user}/app.slice/a.service"),
                &format!("{user}/app.slice/a.service"),
                "unit:a.service",
            ),
            (&format!("{user}/init.scope"), &format!("{user}/init.scope"), "pid:9"),
            (
                "/user.slice/user-0.slice/session-3.scope",
                "/user.slice/user-0.slice/session-3.scope",
                "pid:9",
            ),
            (
                &format!("/system.slice/docker-{id}.scope"),
                &format!("/system.slice/docker-{id}.scope"),
                "container:px",
            ),
            (
                &format!("/m/libpod-{id}.scope/container"),
                &format!("/m/libpod-{id}.scope"),
                "container:px",
            ),
            ("/proxy", "/proxy", "cgroup:/proxy"),
        ] {
            let found = selector_of(leaf, 9, &stored);
            assert_eq!((found.0.as_str(), found.1.unwrap().to_string().as_str()), (path, value));
        }
        assert_eq!(selector_of("/", 9, &stored), ("/".into(), None));
    }

    #[test]
    fn commands_survive_the_shell() {
        assert_eq!(quoted("unit:a-b_c@1.service"), "unit:a-b_c@1.service");
        assert_eq!(quoted(r"unit:a\x2db.service"), r"'unit:a\x2db.service'");
        assert_eq!(quoted("process:it's"), r"'process:it'\''s'");
    }
}
