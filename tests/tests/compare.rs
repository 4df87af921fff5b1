//! `compare`: a report whatever happens meanwhile, and nothing left behind.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::topology::addresses;
use traffic_lab::workload::Workload;
use traffic_lab::{CountedCgroup, Filter, Lab, Stack};
use traffic_tests::agent::{Desk, Running};
use traffic_tests::figures;
use traffic_tests::rules;
use traffic_tests::site::{RELAY_PORT, Site, tcp};

const WORKLOAD: Workload = Workload {
    name: "small",
    connections: 20,
    parallel: 2,
    upload_bytes: 2000,
    download_bytes: 100_000,
    at_once: false,
};
/// Long enough for any test: a signal ends it.
const FOR_EVER: &str = "10m";

/// Starts `compare --json` on the site's cgroup, and waits until it counts.
///
/// A line of the first interval says so: the first reading is then over.
fn start(desk: &Desk, site: &Site, options: &[&str]) -> Result<Running> {
    let target = format!("proxy=cgroup:{}", site.cgroup.cgroup_path());
    let fixed = ["compare", "--json", "--target", &target, "-i", "200ms"];
    let arguments = fixed.iter().chain(options);
    let mut running = desk.start(arguments, None, |_| ())?;
    running.wait_for_output("\"interval\"")?;
    Ok(running)
}

/// All rules of a namespace that nft knows, without their counters.
fn rule_set(lab: &Lab) -> Result<String> {
    let mut nft = Command::new("nft");
    nft.args(["--stateless", "list", "ruleset"]);
    let output = lab.proxy.command_in(&mut nft)?.output().context("cannot run nft")?;
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn ctrl_c_ends_early_with_a_report_that_equals_capture_and_rules() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    for family in [Family::Ipv4, Family::Ipv6] {
        rules::add(&site.lab.proxy, family, &format!("INPUT -p tcp --dport {RELAY_PORT}"))?;
        rules::add(&site.lab.proxy, family, &format!("OUTPUT -p tcp --sport {RELAY_PORT}"))?;
    }
    let desk = Desk::new()?;
    let running = start(&desk, &site, &["-d", FOR_EVER])?;
    let capture = site.lab.capture()?;
    for family in [Family::Ipv4, Family::Ipv6] {
        site.drive(&WORKLOAD, family, &server)?;
    }
    let trace = capture.stop()?;
    trace.check()?;
    running.signal(Signal::SIGINT)?;
    let ended = running.finish()?;
    assert_eq!(ended.code()?, 0, "{ended:?}");

    let report = ended.last_report()?;
    assert_eq!(report.0["command"], "compare");
    assert!(report.0["interval"]["seconds"].as_f64().context("no seconds")? < 60.0);
    assert_eq!(report.books()?, figures::of_capture(&trace, &[tcp(RELAY_PORT)]));
    let exact = trace.sum(Filter::all()).l3_bytes;
    assert_eq!(report.number("/total_wire_bytes")?, exact);

    // The rules, read by the product and without it.
    let mut by_hand = [0; 2];
    for family in [Family::Ipv4, Family::Ipv6] {
        by_hand[0] += rules::read(&site.lab.proxy, family, "INPUT")?.bytes;
        by_hand[1] += rules::read(&site.lab.proxy, family, "OUTPUT")?.bytes;
    }
    for method in ["iptables-port", "hook-port"] {
        let row = named(report.target(), "methods", method)?;
        assert_eq!(row["available"], true, "{row}");
        let read = ["ingress_bytes", "egress_bytes"].map(|key| row[key].as_u64());
        assert_eq!(read, by_hand.map(Some), "{method}");
    }
    // The published formula, by hand.
    let row = named(report.target(), "estimates", "in-x2")?;
    assert_eq!(row["total_bytes"].as_u64(), Some(2 * by_hand[0]));
    let error = 100.0 * (2.0 * by_hand[0] as f64 - exact as f64) / exact as f64;
    let told = row["error_percent"].as_f64().context("no error")?;
    assert!((told - error).abs() < 0.01, "{told} instead of {error}");
    desk.assert_nothing_left();
    Ok(())
}

/// The element of a list that has this name.
fn named<'v>(target: &'v Value, list: &str, name: &str) -> Result<&'v Value> {
    let mut elements = target[list].as_array().into_iter().flatten();
    elements.find(|element| element["name"] == name).with_context(|| format!("no {name}: {target}"))
}

#[test]
fn a_cgroup_that_vanishes_is_a_finding_and_incomplete() -> Result<()> {
    for (options, code) in [(&["-d", FOR_EVER][..], 0), (&["-d", FOR_EVER, "--strict"][..], 3)] {
        let site = Site::new(Stack::GsoGro)?;
        let desk = Desk::new()?;
        let to = (addresses(Family::Ipv4).upstream, 9).into();
        let socket = site.factory.udp_unbound(to)?;
        let running = start(&desk, &site, options)?;
        socket.send_to(&[1; 100], to)?;
        let Site { factory, cgroup, lab, .. } = site;
        drop((socket, factory));
        cgroup.remove()?;
        // It goes on looking at what is not there.
        std::thread::sleep(Duration::from_millis(500));
        running.signal(Signal::SIGTERM)?;
        let ended = running.finish()?;
        assert_eq!(ended.code()?, code, "{ended:?}");
        let report = ended.last_report()?;
        report.message("cgroup-gone")?;
        assert_eq!(report.number("/total_wire_bytes")?, 128);
        assert_eq!(report.target()["complete"], false);
        desk.assert_nothing_left();
        drop(lab);
    }
    Ok(())
}

#[test]
fn a_target_that_never_sends_is_reported_as_such() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let desk = Desk::new()?;
    let target = format!("cgroup:{}", site.cgroup.cgroup_path());
    let ended = desk.run(["compare", "--json", "-d", "300ms", &target])?;
    assert_eq!(ended.code()?, 0, "{ended:?}");
    let report = ended.report()?;
    report.message("no-traffic")?;
    assert_eq!(report.number("/total_wire_bytes")?, 0);
    let estimates = report.target()["estimates"].as_array().context("no estimates")?;
    assert!(estimates.iter().all(|one| one["error_percent"].is_null()), "{estimates:?}");
    for format in ["table", "csv"] {
        let ended = desk.run(["compare", "--format", format, "-d", "300ms", &target])?;
        assert_eq!(ended.code()?, 0, "{ended:?}");
        assert!(!ended.stdout.contains("NaN") && !ended.stdout.contains(" inf "), "{ended:?}");
    }
    Ok(())
}

#[test]
fn a_target_that_is_missing_or_ambiguous_lists_candidates() -> Result<()> {
    let desk = Desk::new()?;
    let (one, other) = (CountedCgroup::new("one")?, CountedCgroup::new("other")?);
    let same = [one.child("ta-same.service")?, other.child("ta-same.service")?];
    let ambiguous = desk.run(["compare", "-d", "1s", "unit:ta-same.service"])?;
    let paths = same.each_ref().map(CountedCgroup::cgroup_path);
    ambiguous.assert_complains(1, &["ambiguous", &paths[0], &paths[1]]);

    // A known proxy in a cgroup of its own is a candidate.
    let directory = tempfile::tempdir()?;
    let xray = directory.path().join("xray");
    std::fs::copy("/bin/sleep", &xray)?;
    let alone = one.child("plain")?;
    let place = Place { cgroup: Some(&alone), ..Place::default() };
    let mut command = Command::new(&xray);
    command.arg("60");
    let proxy = traffic_lab::Process::spawn(command, place)?;
    for missing in ["unit:ta-none.service", "cgroup:/ta-none", "process:ta-none", "pid:4000000"] {
        let ended = desk.run(["compare", "-d", "1s", missing])?;
        ended.assert_complains(1, &["cannot find", "try one of", &alone.cgroup_path()]);
    }
    drop((proxy, same));
    drop(alone);
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn wrong_usage_is_exit_status_2() -> Result<()> {
    let desk = Desk::new()?;
    for port in ["0", "65536", "tcp/0", "!udp/65536", "x", "icmp/1", "20-10"] {
        let ended = desk.run(["compare", "-d", "1s", "--port", port, "cgroup:/x"])?;
        ended.assert_complains(2, &["port"]);
        // `exec` keeps the statuses below 125 for its command.
        desk.run(["exec", "--port", port, "--", "true"])?.assert_complains(125, &["port"]);
    }
    for arguments in [
        &["compare", "-d", "0s", "cgroup:/x"][..],
        &["compare", "--format", "yaml", "cgroup:/x"],
        &["compare", "kind:x"],
        &["compare", "pid:0"],
        &["compare", "--no-such-option"],
        &["classic", "--port", "0"],
        &["classic", "--port", "65536"],
        &["exec"],
        &["nonsense"],
    ] {
        let ended = desk.run(arguments)?;
        assert_eq!(ended.code()?, 2, "{arguments:?}: {ended:?}");
    }
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn without_rights_the_error_names_them() -> Result<()> {
    use std::os::unix::process::CommandExt as _;
    let site = Site::new(Stack::GsoGro)?;
    let desk = Desk::for_everybody()?;
    let target = format!("cgroup:{}", site.cgroup.cgroup_path());
    let nobody = |command: &mut Command| {
        command.gid(65_534).uid(65_534);
    };
    let compare = ["compare", "-d", "1s", &target];
    let ended = desk.start(compare, None, nobody)?.finish()?;
    ended.assert_complains(1, &["root"]);
    let ended = desk.start(["exec", "--", "true"], None, nobody)?.finish()?;
    ended.assert_complains(125, &["root"]);
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn rules_that_were_added_are_removed_also_after_ctrl_c() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    // One of the user's own, which must stay.
    rules::add(&site.lab.proxy, Family::Ipv4, "INPUT -p udp --dport 9")?;
    let before = rule_set(&site.lab)?;
    let desk = Desk::new()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let running = start(&desk, &site, &["-d", FOR_EVER, "--add-rules"])?;
        assert_ne!(rule_set(&site.lab)?, before, "no rule was added");
        for family in [Family::Ipv4, Family::Ipv6] {
            site.drive(&WORKLOAD, family, &server)?;
        }
        running.signal(signal)?;
        let ended = running.finish()?;
        assert_eq!(ended.code()?, 0, "{ended:?}");
        assert_eq!(rule_set(&site.lab)?, before, "after {signal}");
        let report = ended.last_report()?;
        let bytes = |method| -> Result<_> {
            let row = named(report.target(), "methods", method)?;
            Ok(["ingress_bytes", "egress_bytes"].map(|key| row[key].as_u64()))
        };
        assert_eq!(bytes("iptables-port")?, bytes("hook-port")?);
        assert!(bytes("hook-port")?[0].is_some_and(|bytes| bytes > 0));
    }
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn a_command_is_compared_while_it_runs_and_its_status_is_passed_on() -> Result<()> {
    let desk = Desk::new()?;
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill $$", 143)] {
        let ended = desk.run(["compare", "--json", "--", "sh", "-c", script])?;
        assert_eq!(ended.code()?, code, "{ended:?}");
        let report = ended.report()?;
        assert_eq!(report.0["command"], "compare");
        assert!(report.0["exit_status"].is_object());
    }
    desk.run(["compare", "--", "/no/such/program"])?.assert_complains(127, &["not found"]);
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn a_closed_pipe_is_a_quiet_end() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let desk = Desk::new()?;
    let target = format!("cgroup:{}", site.cgroup.cgroup_path());
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let running = desk.start(["compare", "-d", "300ms", &target], None, |command| {
        command.stdout(writer);
    })?;
    let ended = running.finish()?;
    assert_eq!((ended.code()?, ended.stderr.as_str()), (0, ""), "{ended:?}");
    Ok(())
}

#[test]
fn packets_are_traced_on_stderr() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let to = (addresses(Family::Ipv4).upstream, 9).into();
    let socket = site.factory.udp_unbound(to)?;
    let desk = Desk::new()?;
    for packets in [0, 5] {
        let running =
            start(&desk, &site, &["-d", FOR_EVER, "--trace-packets", &packets.to_string()])?;
        for _ in 0..8 {
            socket.send_to(&[1; 100], to)?;
        }
        running.signal(Signal::SIGINT)?;
        let ended = running.finish()?;
        let lines = ended.stderr.lines().filter(|line| line.contains("10.77.2.1"));
        assert_eq!(lines.count(), packets, "{ended:?}");
    }
    Ok(())
}
