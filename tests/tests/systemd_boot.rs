//! The bench of the other `systemd_*` tests: a real systemd in namespaces, and what it leaves behind.

use std::path::Path;

use anyhow::Result;
use traffic_lab::Namespace;
use traffic_tests::systemd::{RELAY_PORT, relay_unit, start};

#[test]
fn systemd_runs_a_unit_and_leaves_nothing() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let unit = relay_unit("");
    let speaker = "[Service]\nType=oneshot\nExecStart=/bin/echo spoken\n";
    let files = [
        ("/etc/systemd/system/relay.service", unit.as_str()),
        ("/etc/systemd/system/speaker.service", speaker),
    ];
    let systemd = start(&namespace, &files)?;
    systemd.systemctl(["start", "relay.service"])?;

    assert_eq!(systemd.property("relay.service", "ActiveState")?, "active");
    assert_eq!(systemd.property("relay.service", "ControlGroup")?, "/system.slice/relay.service");
    let cgroup = systemd.cgroup("/system.slice/relay.service");
    assert!(cgroup.is_dir());
    let pid = systemd.main_pid("relay.service")?;
    let port = format!(":{RELAY_PORT:04X} ");
    let listening = || std::fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap();
    while !listening().contains(&port) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let journal = systemd.journal("relay.service")?;
    assert!(journal.contains("Started relay.service"), "{journal}");
    systemd.systemctl(["start", "speaker.service"])?;
    assert!(systemd.journal("speaker.service")?.contains("spoken"));
    assert!(systemd.run("systemctl", ["start", "nothing.service"]).is_err());
    // Its own file systems, not the host's.
    systemd.write("/etc/ta-lab-was-here", "x")?;
    assert!(!Path::new("/etc/ta-lab-was-here").exists());
    // The kernel itself puts these into every new one.
    assert_eq!(systemd.run("ls", ["/sys/fs/bpf"])?, "maps.debug\nprogs.debug\n");

    let init = systemd.pid();
    drop(systemd);
    assert!(!Path::new(&format!("/proc/{init}")).exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!cgroup.exists());
    Ok(())
}

#[test]
fn two_systemds_run_side_by_side() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let (one, other) = (start(&namespace, &[])?, start(&namespace, &[])?);
    one.write("/etc/hostname", "one\n")?;
    assert_ne!(other.read("/etc/hostname").unwrap_or_default(), "one\n");
    assert_ne!(one.cgroup("/"), other.cgroup("/"));
    Ok(())
}
