use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::target::Hierarchy;
use crate::target::container::Stores;

const ID_A: &str = "aaaa1111aaaa1111aaaa1111aaaa1111aaaa1111aaaa1111aaaa1111aaaa1111";
const ID_B: &str = "aaaa2222aaaa2222aaaa2222aaaa2222aaaa2222aaaa2222aaaa2222aaaa2222";

/// A made-up machine. What it imitates is tried on a real one in the package `tests`.
struct Machine {
    dir: TempDir,
    host: Host,
}

impl Machine {
    fn new(cgroups: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let host = Host {
            proc: at("proc"),
            cgroups: Hierarchy::at(at("cgroup"), "/"),
            containers: Stores { docker: vec![at("docker")], podman: vec![at("podman")] },
        };
        fs::create_dir_all(&host.proc).unwrap();
        fs::create_dir_all(host.cgroups.mount()).unwrap();
        for path in cgroups {
            fs::create_dir_all(host.cgroups.mount().join(&path[1..])).unwrap();
        }
        Self { dir, host }
    }

    fn process(self, pid: i32, name: &str, cgroup: &str) -> Self {
        let dir = self.host.proc.join(pid.to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
        fs::write(dir.join("cgroup"), format!("4:memory:/\n0::{cgroup}\n")).unwrap();
        symlink(format!("/usr/bin/{name}"), dir.join("exe")).unwrap();
        self
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path: PathBuf = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn resolve(&self, selectors: &[&str]) -> Result<Resolved, Error> {
        let selectors = selectors.iter().map(|text| format!("t={text}").parse().unwrap()).collect();
        resolve(&self.host, &group(selectors).unwrap()[0])
    }

    fn paths(&self, selectors: &[&str]) -> Vec<String> {
        let resolved = self.resolve(selectors).unwrap();
        resolved.cgroups.into_iter().map(|cgroup| cgroup.path).collect()
    }

    fn error(&self, selector: &str) -> String {
        self.resolve(&[selector]).unwrap_err().to_string()
    }
}

#[test]
fn unit_is_found_wherever_its_slice_is() {
    let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/mine.service";
    let machine = Machine::new(&[
        "/system.slice/xray.service/xray.service",
        "/xray.slice/xray-hk.slice/hk.service",
        "/system.slice/_cpu.service",
        user,
    ]);
    assert_eq!(machine.paths(&["unit:xray"]), ["/system.slice/xray.service"]);
    assert_eq!(machine.paths(&["hk.service"]), ["/xray.slice/xray-hk.slice/hk.service"]);
    assert_eq!(machine.paths(&["mine.service"]), [user]);
    assert_eq!(machine.paths(&["cpu.service"]), ["/system.slice/_cpu.service"]);
}

#[test]
fn several_units_of_one_name_are_told_apart_by_commands() {
    let error = Machine::new(&["/system.slice/a.service", "/b.slice/a.service"]).error("a.service");
    assert!(error.contains("2 match"), "{error}");
    assert!(
        error.contains("\n  traffic-agent compare --target cgroup:/b.slice/a.service"),
        "{error}"
    );
}

#[test]
fn missing_targets_list_what_could_be_meant() {
    let machine = Machine::new(&["/system.slice/xray.service"]).process(
        7,
        "xray",
        "/system.slice/xray.service",
    );
    for selector in ["v2ray.service", "/system.slice/v2ray.service", "process:v2ray", "pid:8"] {
        let error = machine.error(selector);
        assert!(error.contains("\n  traffic-agent compare --target unit:xray.service"), "{error}");
    }
}

#[test]
fn cgroup_is_a_path_from_the_mount_or_a_directory() {
    let machine = Machine::new(&["/a/b"]);
    assert_eq!(machine.paths(&["/a/b"]), ["/a/b"]);
    let dir = machine.host.cgroups.mount().join("a/b");
    assert_eq!(machine.paths(&[dir.to_str().unwrap()]), ["/a/b"]);
}

#[test]
fn whole_host_is_refused_with_the_remedy() {
    let machine = Machine::new(&["/a"]).process(7, "xray", "/").process(8, "xray", "/a");
    let mount = machine.host.cgroups.mount().to_str().unwrap();
    for selector in ["/", mount, "pid:7", "process:xray"] {
        let error = machine.error(selector);
        assert!(error.contains("every socket of the host"), "{error}");
        assert!(error.contains("traffic-agent exec -- CMD"), "{error}");
    }
}

#[test]
fn nested_anchors_leave_the_outermost() {
    let machine = Machine::new(&["/a.slice/b.service/c", "/d"]);
    assert_eq!(machine.paths(&["/a.slice/b.service/c", "a.slice", "/d"]), ["/a.slice", "/d"]);
}

#[test]
fn process_means_its_cgroup_and_says_so() {
    let session = "/user.slice/user-0.slice/session-3.scope";
    let machine = Machine::new(&[session, "/a/b", "/c"])
        .process(7, "sing-box", session)
        .process(8, "xray", "/a")
        .process(9, "xray", "/a/b")
        .process(10, "xray", "/c");
    let resolved = machine.resolve(&["pid:7"]).unwrap();
    assert_eq!(resolved.cgroups[0].path, session);
    assert!(
        resolved.notes[0].contains("process 7 (sing-box) is in cgroup"),
        "{:?}",
        resolved.notes
    );
    assert!(resolved.notes[1].contains("a whole login session"), "{:?}", resolved.notes);
    assert_eq!(machine.paths(&["process:xray"]), ["/a", "/c"]);
}

#[test]
fn process_outside_of_the_cgroup_namespace_names_the_option() {
    let error = Machine::new(&[]).process(7, "xray", "/../other").error("pid:7");
    assert!(error.contains("/../other") && error.contains("--cgroupns=host"), "{error}");
}

#[test]
fn malformed_process_files_are_no_process() {
    for text in ["", "0::", "garbage", "0::relative", "0::/a (deleted)"] {
        let machine = Machine::new(&["/a"]).process(7, "xray", "/a").file("proc/7/cgroup", text);
        assert!(machine.error("pid:7").contains("no such process"), "{text:?}");
        assert!(matches!(default_target(&machine.host), Err(Error::NoProxy { .. })));
    }
}

#[test]
fn default_is_the_only_proxy_that_runs() {
    let machine = Machine::new(&["/system.slice/x-ui.service", "/system.slice/panel.service"])
        .process(7, "x-ui", "/system.slice/x-ui.service")
        .process(8, "xray-linux-amd64", "/system.slice/x-ui.service")
        .process(9, "s-ui", "/system.slice/panel.service")
        .process(10, "nginx", "/");
    let target = default_target(&machine.host).unwrap();
    assert_eq!((target.name.as_str(), target.selector().as_str()), ("x-ui", "unit:x-ui.service"));
}

#[test]
fn two_proxies_make_the_user_choose() {
    let machine = Machine::new(&["/system.slice/a.service", "/b"])
        .process(7, "xray", "/system.slice/a.service")
        .process(8, "hysteria", "/b");
    let error = default_target(&machine.host).unwrap_err().to_string();
    assert!(error.contains("2 known proxies are running"), "{error}");
    assert!(error.contains("--target cgroup:/b\n"), "{error}");
    assert!(error.ends_with("--target unit:a.service"), "{error}");
}

#[test]
fn proxy_in_the_root_cgroup_is_no_default() {
    let machine = Machine::new(&[]).process(7, "xray", "/");
    let error = default_target(&machine.host).unwrap_err().to_string();
    assert!(
        error.contains("xray (pid 7)") && error.contains("every socket of the host"),
        "{error}"
    );
}

fn containers() -> Machine {
    let docker = format!("/system.slice/docker-{ID_A}.scope");
    let podman = format!("/machine.slice/libpod-{ID_B}.scope");
    let monitor = format!("/machine.slice/libpod-conmon-{ID_B}.scope");
    let config = |id: &str, name: &str| format!(r#"{{"ID":"{id}","Name":"/{name}","State":{{}}}}"#);
    Machine::new(&[&docker, &format!("{podman}/container"), &monitor])
        .file(&format!("docker/containers/{ID_A}/config.v2.json"), &config(ID_A, "front"))
        .file("docker/containers/old/config.v2.json", &config(&"b".repeat(64), "stopped"))
        .file("docker/containers/broken/config.v2.json", r#"{"ID": 7"#)
        .file(
            "podman/overlay-containers/containers.json",
            &format!(r#"[{{"id":"{ID_B}","names":["back"],"image":"x"}},{{"id":"c"}}]"#),
        )
        .file("podman/overlay-containers/volatile-containers.json", "not json")
}

#[test]
fn containers_are_found_by_name_and_by_id() {
    let machine = containers();
    let docker = format!("/system.slice/docker-{ID_A}.scope");
    let podman = format!("/machine.slice/libpod-{ID_B}.scope");
    assert_eq!(machine.paths(&["container:front"]), [docker.as_str()]);
    assert_eq!(machine.paths(&["container:back"]), [podman]);
    assert_eq!(machine.paths(&["container:aaaa1"]), [docker.as_str()]);
    assert_eq!(machine.paths(&[&format!("container:{ID_A}")]), [docker]);
}

#[test]
fn docker_without_systemd_has_the_bare_id() {
    let machine = Machine::new(&[&format!("/docker/{ID_A}")]);
    assert_eq!(machine.paths(&["container:aaaa1111"]), [format!("/docker/{ID_A}")]);
}

#[test]
fn missing_containers_name_what_was_looked_at() {
    let machine = containers();
    let error = machine.error("container:nope");
    assert!(error.contains("docker/containers (2 found)"), "{error}");
    assert!(error.contains("/cgroup (2 containers running)"), "{error}");
    assert!(machine.error("container:stopped").contains("it is not running"));
    let error = machine.error("container:aaaa");
    assert!(error.contains("--target container:aaaa1111aaaa\n"), "{error}");
    let bare = Machine::new(&[]).error("container:x");
    assert!(bare.contains("docker/containers (not there)"), "{bare}");
}

#[test]
fn targets_that_count_the_same_cgroup_are_told() {
    let machine = Machine::new(&["/a/b", "/c"]);
    let [a, b, c] = ["/a", "/a/b", "/c"].map(|path| machine.resolve(&[path]).unwrap());
    let findings = overlaps(&[("one", &a.cgroups), ("two", &b.cgroups), ("three", &c.cgroups)]);
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].message, "targets one and two both count cgroup /a/b");
}
