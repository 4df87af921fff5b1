//! The agent's unit has the rights that it needs, and no others; what it cannot see for that it says.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use traffic_lab::{Namespace, Systemd};
use traffic_tests::capabilities::{
    BPF, DAC_READ_SEARCH, NET_ADMIN, PERFMON, SYS_ADMIN, SYS_PTRACE,
};
use traffic_tests::systemd::{assert_ended, relay_unit, start};

/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The agent audits for the first time 5 s after its start.
const AUDITED_WITHIN: Duration = Duration::from_secs(8);

fn installed(service: &str, drop_in: Option<&str>) -> Result<Systemd> {
    let namespace = Namespace::new("systemd")?;
    let unit = relay_unit(service);
    let mut files = vec![("/etc/systemd/system/relay.service", unit.as_str())];
    files.extend(
        drop_in.map(|text| ("/etc/systemd/system/traffic-agent.service.d/opt-in.conf", text)),
    );
    let systemd = start(&namespace, &files)?;
    systemd.systemctl(["start", "relay"])?;
    let done = systemd.output("traffic-agent", ["install", "--unit", "relay", "--yes"])?;
    assert_ended(&done, 0, &["is in it"]);
    Ok(systemd)
}

fn capabilities(systemd: &Systemd) -> Result<u64> {
    let pid = systemd.main_pid("traffic-agent")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
    Ok(u64::from_str_radix(line.context("no CapEff")?, 16)?)
}

/// Waits until the agent has said so.
fn wait_for_word(systemd: &Systemd, word: &str) -> Result<()> {
    let begin = Instant::now();
    while !systemd.journal("traffic-agent")?.contains(word) {
        ensure!(begin.elapsed() < PATIENCE, "{word:?}: {}", systemd.journal("traffic-agent")?);
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn systemd_sandbox_has_three_capabilities_and_says_what_it_cannot_see() -> Result<()> {
    let systemd = installed("User=nobody", None)?;
    assert_eq!(capabilities(&systemd)?, NET_ADMIN | PERFMON | BPF);
    wait_for_word(&systemd, "network namespace of")?;
    wait_for_word(&systemd, "cannot be seen")?;

    let score = systemd.run("systemd-analyze", ["security", "--no-pager", "traffic-agent"])?;
    let score = score.lines().last().context("no score")?.to_owned();
    println!("{score}");
    systemd
        .run("systemd-analyze", ["security", "--threshold=21", "--no-pager", "traffic-agent"])?;

    // What it writes is for root and the group of those that may read the history.
    let state = systemd.run("stat", ["-c", "%a %U:%G", "/var/lib/traffic-agent"])?;
    assert_eq!(state, "750 root:traffic-agent\n");
    let database = "/var/lib/traffic-agent/history.db";
    assert_eq!(systemd.run("stat", ["-c", "%a %U:%G", database])?, "640 root:traffic-agent\n");
    let pins = systemd.run("stat", ["-c", "%a %U", "/sys/fs/bpf/traffic-agent"])?;
    assert_eq!(pins, "700 root\n");
    Ok(())
}

#[test]
fn systemd_sandbox_opt_in_for_process_names_is_enough() -> Result<()> {
    let drop_in = include_str!("../../packaging/opt-in/process-names.conf");
    let systemd = installed("User=nobody", Some(drop_in))?;
    assert_eq!(capabilities(&systemd)?, NET_ADMIN | PERFMON | BPF | DAC_READ_SEARCH | SYS_PTRACE);
    assert_sees_all(&systemd)
}

#[test]
fn systemd_sandbox_opt_in_for_another_namespace_is_enough() -> Result<()> {
    let drop_in = include_str!("../../packaging/opt-in/network-namespaces.conf");
    let systemd = installed("User=nobody\nPrivateNetwork=yes", Some(drop_in))?;
    assert_eq!(
        capabilities(&systemd)?,
        NET_ADMIN | PERFMON | BPF | DAC_READ_SEARCH | SYS_PTRACE | SYS_ADMIN
    );
    assert_sees_all(&systemd)
}

/// The unit of the agent with another program in it, which runs once.
fn sandboxed(program: &str) -> String {
    let unit = include_str!("../../packaging/traffic-agent.service");
    let kept = unit.lines().filter(|line| {
        !["Type=", "NotifyAccess=", "Exec", "Restart", "WatchdogSec="]
            .iter()
            .any(|start| line.starts_with(start))
    });
    let lines = kept.map(|line| match line {
        "[Service]" => format!("[Service]\nType=oneshot\nExecStart={program}"),
        line => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn systemd_sandbox_reads_rules_of_nft_and_those_of_legacy_iptables_with_an_opt_in() -> Result<()> {
    let namespace = Namespace::new("systemd")?;
    let opt_in = include_str!("../../packaging/opt-in/legacy-iptables.conf");
    let legacy = sandboxed("/usr/sbin/iptables-legacy-save -c");
    let [nft, iptables_nft] = ["nft -j list ruleset", "iptables-nft-save -c"]
        .map(|it| sandboxed(&format!("/usr/sbin/{it}")));
    let systemd = start(
        &namespace,
        &[
            ("/etc/systemd/system/nft.service", &nft),
            ("/etc/systemd/system/iptables-nft.service", &iptables_nft),
            ("/etc/systemd/system/refused.service", &legacy),
            ("/etc/systemd/system/legacy.service", &legacy),
            ("/etc/systemd/system/legacy.service.d/opt-in.conf", opt_in),
            ("/etc/group", "root:x:0:\ntraffic-agent:x:999:\n"),
        ],
    )?;
    let rule = ["-A", "INPUT", "-p", "tcp", "--dport", "443"];
    systemd.run("/usr/sbin/iptables-legacy", rule)?;
    for unit in ["nft", "iptables-nft", "legacy"] {
        systemd.systemctl(["start", unit]).with_context(|| format!("{unit} may not read rules"))?;
    }
    let refused = systemd.output("systemctl", ["start", "refused"])?;
    ensure!(!refused.status.success(), "the opt-in is not needed any more");
    let journal = systemd.journal("refused")?;
    ensure!(journal.contains("Permission denied"), "{journal}");
    Ok(())
}

/// The first audit, some seconds after the start, has nothing to complain about. It says nothing then, so
/// that is waited for; on a machine too busy for it in time the test proves less, and does not fail.
fn assert_sees_all(systemd: &Systemd) -> Result<()> {
    let audited = || -> Result<String> { systemd.journal("traffic-agent") };
    wait_for_word(systemd, "target relay: counting")?;
    let begin = Instant::now();
    while begin.elapsed() < AUDITED_WITHIN {
        ensure!(!audited()?.contains("audit-limited"), "{}", audited()?);
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
