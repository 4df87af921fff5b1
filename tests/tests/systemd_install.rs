//! `install` and `uninstall` against a real systemd: what they write, what they leave, what they refuse.

use std::fs;

use anyhow::Result;
use traffic_lab::{Namespace, Systemd};
use traffic_tests::systemd::{Snapshot, assert_ended, assert_same, relay_unit, snapshot, start};

const UNIT: &str = "/etc/systemd/system/relay.service";
const CGROUP: &str = "/system.slice/system-relay_traffic.slice/relay.service";
const DROP_IN: &str = "/etc/systemd/system/relay.service.d/50-traffic-agent.conf";

/// A package's unit whose agent counts in the slice.
const AGENT: (&str, &str) = (
    "/usr/lib/systemd/system/traffic-agent.service",
    "[Service]\nExecStart=/usr/bin/traffic-agent compare unit:system-relay_traffic.slice --duration 1h\n\
     ExecReload=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
);

fn install(systemd: &Systemd, more: &[&str]) -> Result<std::process::Output> {
    systemd.output("traffic-agent", [&["install", "--unit", "relay"], more].concat())
}

fn uninstall(systemd: &Systemd, more: &[&str]) -> Result<std::process::Output> {
    systemd.output("traffic-agent", [&["uninstall"], more].concat())
}

/// A systemd in which the relay runs.
fn with_relay(namespace: &Namespace, service: &str, agent: (&str, &str)) -> Result<Systemd> {
    let unit = relay_unit(service);
    let systemd = start(namespace, &[(UNIT, &unit), agent])?;
    systemd.systemctl(["start", "relay"])?;
    // Made here and not by install, which would keep it with the history.
    systemd.run("groupadd", ["--system", "traffic-agent"])?;
    Ok(systemd)
}

#[test]
fn systemd_install_moves_the_unit_and_uninstall_restores_every_byte() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let systemd = with_relay(&namespace, "CPUWeight=300\nIPAccounting=yes", AGENT)?;
    systemd.write(
        "/etc/traffic-agent/config.toml",
        "# mine\n[[target]]\ntargets = ['relay.service']",
    )?;
    // Counted before, with gaps: so the agent goes on when the unit is put back.
    systemd.systemctl(["enable", "traffic-agent"])?;
    let before = snapshot(&systemd, "/etc")?;
    let pid = systemd.main_pid("relay")?;

    let done = install(&systemd, &["--yes"])?;
    assert_ended(&done, 0, &["+Slice=system-relay_traffic.slice", "must restart", "is in it"]);
    assert_eq!(systemd.property("relay", "ControlGroup")?, CGROUP);
    assert_ne!(systemd.main_pid("relay")?, pid);
    assert_eq!(systemd.property("system-relay_traffic.slice", "CPUWeight")?, "300");
    assert_eq!(systemd.property("traffic-agent", "UnitFileState")?, "enabled");
    let order = systemd.property("traffic-agent", "Before")?;
    assert!(order.contains("relay.service"), "{order}");

    // The slice and what counts in it outlive what a unit goes through.
    let id = fs::metadata(systemd.cgroup("/system.slice/system-relay_traffic.slice"))?;
    for arguments in [["restart", "relay"], ["stop", "relay"], ["start", "relay"]] {
        systemd.systemctl(arguments)?;
    }
    systemd.systemctl(["daemon-reload"])?;
    let (pid, after) = (systemd.main_pid("relay")?, snapshot(&systemd, "/etc")?);
    assert_ended(&install(&systemd, &[])?, 0, &["nothing changes", "counts in", "is in it"]);
    assert_same(&snapshot(&systemd, "/etc")?, &after);
    assert_eq!(systemd.main_pid("relay")?, pid);
    let path = systemd.cgroup("/system.slice/system-relay_traffic.slice");
    assert_eq!(ino(&fs::metadata(&path)?), ino(&id));

    assert_ended(&uninstall(&systemd, &["--yes"])?, 0, &["relay.service is as before"]);
    assert_same(&snapshot(&systemd, "/etc")?, &before);
    assert_eq!(systemd.property("relay", "ControlGroup")?, "/system.slice/relay.service");
    assert!(!path.exists());
    assert_ended(&uninstall(&systemd, &[])?, 0, &["nothing changes"]);
    Ok(())
}

fn ino(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[test]
fn systemd_install_does_nothing_unless_it_may() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let systemd = with_relay(&namespace, "", AGENT)?;
    let (before, pid) = (snapshot(&systemd, "/etc")?, systemd.main_pid("relay")?);

    assert_ended(&install(&systemd, &["--dry-run"])?, 0, &["create", DROP_IN, "nothing was done"]);
    assert_ended(&install(&systemd, &[])?, 2, &["--yes", "--dry-run"]);
    let refused = |arguments: &[&str], words: &[&str]| -> Result<()> {
        let output = systemd.output("traffic-agent", [&["install"], arguments].concat())?;
        assert_ended(&output, if arguments.len() < 2 { 2 } else { 1 }, words);
        Ok(())
    };
    refused(&[], &["--unit"])?;
    refused(&["--unit", "nothing", "--yes"], &["there is no unit nothing.service"])?;
    refused(&["--unit", "relay@.service", "--yes"], &["template", "relay@NAME.service"])?;
    refused(&["--unit", "system.slice", "--yes"], &["no service"])?;
    refused(&["--unit", "relay", "--slice", "a--b", "--yes"], &["no name of a slice"])?;
    systemd.run("systemd-run", ["--unit=moment", "sleep", "1000"])?;
    refused(&["--unit", "moment", "--yes"], &["systemd-run --slice="])?;
    systemd.systemctl(["mask", "--runtime", "speaker.service"])?;
    refused(&["--unit", "speaker", "--yes"], &["is masked"])?;
    let container = systemd.output("traffic-agent", ["install", "--container", "xray"])?;
    assert_ended(&container, 0, &["cgroup_parent: xray_traffic.slice", "Nothing was changed"]);

    assert_same(&snapshot(&systemd, "/etc")?, &before);
    assert_eq!(systemd.main_pid("relay")?, pid);
    Ok(())
}

#[test]
fn systemd_install_takes_all_back_when_the_agent_does_not_attach() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let broken = (
        AGENT.0,
        "[Service]\nType=exec\nExecStart=/usr/bin/nothing\n[Install]\nWantedBy=multi-user.target\n",
    );
    let systemd = with_relay(&namespace, "", broken)?;
    let (before, pid) = (snapshot(&systemd, "/etc")?, systemd.main_pid("relay")?);

    let failed = install(&systemd, &["--yes"])?;
    assert_ended(&failed, 1, &["journalctl -u traffic-agent.service", "taken back"]);
    assert_same(&snapshot(&systemd, "/etc")?, &before);
    // It was not restarted for nothing.
    assert_eq!(systemd.main_pid("relay")?, pid);
    assert!(!systemd.cgroup("/system.slice/system-relay_traffic.slice").exists());
    Ok(())
}

#[test]
fn systemd_install_without_a_restart_is_in_force_at_the_next_one() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let systemd = with_relay(&namespace, "", AGENT)?;
    let (before, pid) = (snapshot(&systemd, "/etc")?, systemd.main_pid("relay")?);

    let done = install(&systemd, &["--yes", "--no-restart"])?;
    assert_ended(&done, 0, &["coverage", "not counted until it is restarted"]);
    assert_eq!(systemd.main_pid("relay")?, pid);
    systemd.systemctl(["restart", "relay"])?;
    assert_eq!(systemd.property("relay", "ControlGroup")?, CGROUP);

    let seen = snapshot(&systemd, "/etc")?;
    let words = ["remove", DROP_IN, "nothing was done", "would be deleted"];
    assert_ended(&uninstall(&systemd, &["--purge", "--dry-run"])?, 0, &words);
    assert_same(&snapshot(&systemd, "/etc")?, &seen);

    // And back: the unit stays, and is not stopped with its slice.
    let pid = systemd.main_pid("relay")?;
    assert_ended(
        &uninstall(&systemd, &["--yes", "--no-restart"])?,
        0,
        &["from its next restart on"],
    );
    assert_same(&snapshot(&systemd, "/etc")?, &before);
    assert_eq!(systemd.main_pid("relay")?, pid);
    systemd.systemctl(["restart", "relay"])?;
    assert_eq!(systemd.property("relay", "ControlGroup")?, "/system.slice/relay.service");
    Ok(())
}

/// Installed, with an agent that runs with this configuration and may write below `/srv`. Returns what `/etc`
/// was before.
fn installed_with(systemd: &Systemd, config: &str) -> Result<Snapshot> {
    systemd.write("/etc/traffic-agent/config.toml", config)?;
    systemd.write(
        "/etc/systemd/system/traffic-agent.service.d/srv.conf",
        "[Service]\nReadWritePaths=/srv\n",
    )?;
    let before = snapshot(systemd, "/etc")?;
    assert_ended(&install(systemd, &["--yes"])?, 0, &["is in it"]);
    Ok(before)
}

/// A systemd in which the relay runs and no package has brought the agent.
fn without_package(namespace: &Namespace) -> Result<Systemd> {
    with_relay(namespace, "", ("/srv/bpf/.keep", ""))
}

/// The time zone of a history, and whether its only target was read to the end.
fn last_word(systemd: &Systemd, state_dir: &str) -> Result<(String, bool)> {
    let status = ["status", "--json", "--bpffs", "/srv/bpf", "--state-dir", state_dir];
    let status: serde_json::Value = serde_json::from_str(&systemd.run("traffic-agent", status)?)?;
    let events = status["targets"][0]["events"].to_string();
    let zone = status["time_zone"].as_str().unwrap_or_default();
    Ok((zone.to_owned(), events.contains("counting ended")))
}

#[test]
fn systemd_uninstall_keeps_the_history_in_the_configured_time_zone() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let systemd = without_package(&namespace)?;
    let before = installed_with(&systemd, "time_zone = \"Asia/Kathmandu\"\n")?;
    assert_ended(&uninstall(&systemd, &["--yes"])?, 0, &["detached", "The history is kept"]);
    assert_same(&snapshot(&systemd, "/etc")?, &before);
    let zone = "Asia/Kathmandu".to_owned();
    assert_eq!(last_word(&systemd, "/var/lib/traffic-agent")?, (zone, true));
    Ok(())
}

#[test]
fn systemd_uninstall_detaches_and_purges_where_the_configuration_says() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let systemd = without_package(&namespace)?;
    systemd.run("mount", ["-t", "bpf", "bpf", "/srv/bpf"])?;
    let config =
        "state_dir = \"/srv/count\"\nbpffs = \"/srv/bpf\"\ntime_zone = \"Asia/Kathmandu\"\n";
    installed_with(&systemd, config)?;
    let pins = || systemd.run("find", ["/srv/bpf/traffic-agent", "-type", "f"]);
    assert!(pins()?.contains("CELLS"));

    assert_ended(&uninstall(&systemd, &["--yes"])?, 0, &["detached", "The history is kept"]);
    assert_eq!(pins().unwrap_or_default(), "");
    let zone = "Asia/Kathmandu".to_owned();
    assert_eq!(last_word(&systemd, "/srv/count")?, (zone, true));

    // Somebody else's file is not the agent's to delete.
    systemd.write("/srv/count/mine", "")?;
    let purge = ["--purge", "--yes"];
    assert_ended(&uninstall(&systemd, &purge)?, 0, &["/srv/count", "the directory stays"]);
    assert_eq!(systemd.run("ls", ["/srv/count"])?, "mine\n");
    systemd.run("rm", ["/srv/count/mine"])?;
    assert_ended(&uninstall(&systemd, &purge)?, 0, &["/srv/count is deleted"]);
    assert!(!systemd.path("/srv/count").exists());
    Ok(())
}

#[test]
fn systemd_uninstall_changes_nothing_while_the_configuration_is_not_understood() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let systemd = without_package(&namespace)?;
    installed_with(&systemd, "")?;
    let installed = systemd.read("/etc/traffic-agent/config.toml")?;
    // It might be meant to say where the history is.
    systemd
        .write("/etc/traffic-agent/config.toml", &format!("statedir = \"/srv\"\n{installed}"))?;
    let seen = snapshot(&systemd, "/etc")?;
    let words = ["config.toml:1", "statedir"];
    assert_ended(&uninstall(&systemd, &["--yes"])?, 2, &words);
    assert_ended(&uninstall(&systemd, &["--unit", "other", "--purge"])?, 2, &words);
    assert_same(&snapshot(&systemd, "/etc")?, &seen);
    Ok(())
}
