//! A daemon that root starts by hand keeps the rights that it needs and no others, and they are enough for all
//! that it does later.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use traffic_agent::report::Direction;
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::workload::Workload;
use traffic_lab::{CountedCgroup, Process, Stack};
use traffic_tests::capabilities::{
    BPF, DAC_READ_SEARCH, NET_ADMIN, NET_RAW, PERFMON, SYS_ADMIN, SYS_PTRACE,
};
use traffic_tests::daemon::Home;
use traffic_tests::figures::{self, Books, Figures, Key};
use traffic_tests::role;
use traffic_tests::site::{RELAY_PORT, Site, any, tcp};

const TRAFFIC: Workload = Workload {
    name: "steady",
    connections: 5,
    parallel: 2,
    upload_bytes: 20_000,
    download_bytes: 200_000,
    at_once: false,
};

const COUNTING: u64 = BPF | PERFMON | NET_ADMIN | NET_RAW;
const PROCESSES: u64 = COUNTING | SYS_PTRACE | DAC_READ_SEARCH;

/// The lines of a /proc/PID/status about rights.
fn rights(status: &str) -> BTreeSet<String> {
    let about = |line: &&str| line.starts_with("Cap") || line.starts_with("NoNewPrivs");
    status.lines().filter(about).map(|line| line.replace('\t', "")).collect()
}

/// Asserts that every thread of the daemon has these rights, and can get no others.
#[track_caller]
fn assert_rights(home: &Home, kept: u64) -> Result<()> {
    let expected: BTreeSet<String> = [
        "CapInh:0000000000000000".to_owned(),
        format!("CapPrm:{kept:016x}"),
        format!("CapEff:{kept:016x}"),
        format!("CapBnd:{kept:016x}"),
        "CapAmb:0000000000000000".to_owned(),
        "NoNewPrivs:1".to_owned(),
    ]
    .into();
    let tasks = fs::read_dir(format!("/proc/{}/task", home.pid()?))?;
    let mut looked_at = 0;
    for task in tasks {
        // Threads that look into a namespace come and go.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        assert_eq!(rights(&status), expected, "{status}\n{}", home.log());
        looked_at += 1;
    }
    ensure!(looked_at > 0, "the daemon has no thread");
    Ok(())
}

/// A cgroup with a relay in it, which are made anew as a restart of a unit does.
struct Unit {
    relay: Process,
    cgroup: CountedCgroup,
}

impl Unit {
    fn start(site: &Site) -> Result<Self> {
        let cgroup = site.cgroup.child("unit")?;
        let place = Place { namespace: Some(&site.lab.proxy), cgroup: Some(&cgroup), user: None };
        let mut relay = Process::spawn(role(&Role::Relay { listen: any(RELAY_PORT) })?, place)?;
        relay.wait_for_port(RELAY_PORT, Duration::from_secs(60))?;
        Ok(Self { relay, cgroup })
    }

    fn end(self) {
        drop(self.relay);
        drop(self.cgroup);
    }
}

/// Asserts that nothing is missing but what has no socket: what the kernel answers by itself is only known to
/// be the target's where its network namespace is known. That has no payload, and an IPv4 and a TCP header.
#[track_caller]
fn assert_all_of_sockets(counted: &Books, captured: &Books, log: &str) {
    for direction in [Direction::Ingress, Direction::Egress] {
        let sum = |books| figures::sum(books, |key: &Key| key.direction == direction);
        let (counted, captured): (Figures, Figures) = (sum(counted), sum(captured));
        println!("{direction:?}: counted {counted:?}, captured {captured:?}");
        assert_eq!(counted.payload_bytes, captured.payload_bytes, "{direction:?}\n{log}");
        let packets = captured.wire_packets - counted.wire_packets;
        let bytes = captured.wire_bytes - counted.wire_bytes;
        assert!((40 * packets..=60 * packets).contains(&bytes), "{packets}: {bytes} B\n{log}");
    }
}

fn wait_for(home: &Home, words: &str, times: usize) -> Result<()> {
    let is_said = |home: &Home| home.log().matches(words).count() >= times;
    home.wait_until(words, is_said)
}

/// Counts, attaches to a new cgroup, reloads, writes, and takes over its pins after it was killed; returns
/// what was counted and what was captured.
fn live_through_everything(site: &Site, home: &mut Home, kept: u64) -> Result<[Books; 2]> {
    let server = site.server()?;
    let mut unit = Unit::start(site)?;
    home.start_and_wait()?;
    assert_rights(home, kept)?;
    let capture = site.lab.capture()?;
    let drive = || -> Result<()> {
        site.drive(&TRAFFIC, Family::Ipv4, &server)?;
        capture.settle()
    };
    drive()?;
    unit.end();
    unit = Unit::start(site)?;
    wait_for(home, "was made anew", 1)?;
    drive()?;
    home.signal(Signal::SIGHUP)?;
    wait_for(home, "was read again", 1)?;
    drive()?;
    home.kill()?;
    drive()?;
    home.start_and_wait()?;
    assert_rights(home, kept)?;
    drive()?;
    let trace = capture.stop()?;
    trace.check()?;
    home.stop()?;
    unit.end();
    ensure!(!home.log().contains("ermission"), "{}", home.log());
    Ok([home.books("counted")?, figures::of_capture(&trace, &[tcp(RELAY_PORT)])])
}

fn home(site: &Site, flags: &[&str]) -> Result<Home> {
    let target = format!("counted=cgroup:{}/unit", site.cgroup.cgroup_path());
    let always = ["--target", &target, "--interval", "1s", "--flush-interval", "1s"];
    Home::new(&[&always, flags].concat())
}

#[test]
fn rights_to_count_alone_are_enough_to_count_attach_reload_and_write() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let mut home = home(&site, &["--look-into", "nothing", "--port", "tcp/11710"])?;
    let [counted, captured] = live_through_everything(&site, &mut home, COUNTING)?;
    assert_all_of_sockets(&counted, &captured, &home.log());
    Ok(())
}

#[test]
fn rights_to_look_into_a_namespace_are_kept_where_the_target_is_in_another() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let mut home = home(&site, &[])?;
    let [counted, captured] = live_through_everything(&site, &mut home, PROCESSES | SYS_ADMIN)?;
    assert_eq!(counted, captured, "history (left), capture (right)\n{}", home.log());
    Ok(())
}

#[test]
fn rights_that_are_missing_are_named_before_anything_is_made() -> Result<()> {
    let home = Home::new(&[])?;
    let state = home.file("none");
    let run = home.command("run");
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-all", "--inh-caps", "-all"])
        .arg(run.get_program())
        .args(["run", "cgroup:/nosuch", "--state-dir"])
        .arg(&state)
        .output()
        .context("setpriv of util-linux")?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN are missing; run as root"),
        "{said}"
    );
    assert!(!state.exists(), "a state directory was made");
    Ok(())
}

#[test]
fn rights_to_look_into_a_namespace_are_kept_where_nobody_knows_where_the_target_will_be()
-> Result<()> {
    let cgroup = CountedCgroup::new("later")?;
    let mut home = Home::counting(&cgroup.cgroup_path())?;
    home.start_and_wait()?;
    assert_rights(&home, PROCESSES | SYS_ADMIN)?;
    home.stop()
}

#[test]
fn rights_of_an_administrator_are_dropped_where_the_target_is_in_the_same_namespace() -> Result<()>
{
    let cgroup = CountedCgroup::new("here")?;
    let place = Place { namespace: None, cgroup: Some(&cgroup), user: None };
    let _relay = Process::spawn(role(&Role::Relay { listen: "127.0.0.1:0".parse()? })?, place)?;
    let mut home = Home::counting(&cgroup.cgroup_path())?;
    home.start_and_wait()?;
    assert_rights(&home, PROCESSES)?;
    let own = fs::read_to_string("/proc/self/status")?;
    let all = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
    println!("of {} {PROCESSES:016x} are kept", all.trim());
    home.stop()
}
