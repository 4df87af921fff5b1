//! `selftest`: its verdict on this kernel, and nothing left behind, however it ends.

use std::fs;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use traffic_lab::cgroup;
use traffic_lab::kernel::Kernel;
use traffic_tests::agent::{Desk, Running};

/// `nobody`.
const NOBODY: u32 = 65_534;

fn start(desk: &Desk, arguments: &[&str]) -> Result<Running> {
    desk.start(["selftest", "--bytes", "500000"].iter().chain(arguments), None, |_| ())
}

/// The cgroups that an agent has made for its lab.
fn labs(agent: u32) -> Result<Vec<String>> {
    let prefix = format!("ta-lab-{agent}-");
    let entries = fs::read_dir(cgroup::mount()?)?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(&prefix)).collect())
}

#[test]
fn selftest_accounts_for_every_byte_on_this_kernel() -> Result<()> {
    let desk = Desk::new()?;
    let running = start(&desk, &["--json"])?;
    let agent = running.pid();
    let ended = running.finish()?;
    assert_eq!(ended.code()?, 0, "{ended:?}");
    let report = ended.report()?.0;
    assert_eq!((&report["command"], &report["passed"]), (&"selftest".into(), &true.into()));
    let cases = report["cases"].as_array().context("no cases")?;
    // Five kinds with super-packets and one without, over both IP versions.
    assert_eq!(cases.len(), 12);
    let knows_all = Kernel::running()?.shows_ipv6_syn_acks();
    for row in cases.iter().flat_map(|case| case["rows"].as_array().into_iter().flatten()) {
        assert_eq!(row["holds"], true, "{row}");
        assert!(row["capture"]["wire_bytes"].as_u64() > Some(0), "{row}");
        let explained = row["explained"].as_array().context("no explanations")?;
        let syn_acks = explained.iter().any(|one| one["class"] == "syn-ack-ipv6");
        assert!(!(knows_all && syn_acks), "this kernel's hook sees SYN-ACKs: {row}");
    }
    for payload in cases.iter().flat_map(|case| case["payloads"].as_array().into_iter().flatten()) {
        assert!(payload["application_bytes"].as_u64() >= Some(100_000), "{payload}");
    }
    assert_eq!(labs(agent)?, Vec::<String>::new());
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn selftest_takes_its_lab_down_after_ctrl_c() -> Result<()> {
    let desk = Desk::new()?;
    let running = start(&desk, &[])?;
    let agent = running.pid();
    let begin = std::time::Instant::now();
    while labs(agent)?.is_empty() && begin.elapsed().as_secs() < 20 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(labs(agent)?.len(), 1, "it has not begun");
    running.signal(Signal::SIGINT)?;
    running.finish()?.assert_complains(1, &["interrupted", "nothing is left behind"]);
    assert_eq!(labs(agent)?, Vec::<String>::new());
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn selftest_without_root_says_what_it_needs() -> Result<()> {
    let desk = Desk::for_everybody()?;
    let running = desk.start(["selftest"], None, |command| {
        command.uid(NOBODY);
    })?;
    running.finish()?.assert_complains(1, &["needs root", "sudo traffic-agent selftest"]);
    Ok(())
}
