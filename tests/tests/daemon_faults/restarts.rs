//! Proxies that are restarted as systemd does it: the cgroup goes with the last process and is made anew,
//! and the new process is in it before it makes its sockets.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use traffic_lab::packet::Family;
use traffic_lab::role::Role;
use traffic_lab::workload::Workload;
use traffic_lab::{Process, Stack};
use traffic_tests::accounted::{TARGET, captured};
use traffic_tests::daemon::{Home, pins};
use traffic_tests::figures;
use traffic_tests::moments::{assert_missing_in_gaps_only, burst, sink};
use traffic_tests::site::{RELAY_PORT, Site, any};

const RESTARTS: usize = 200;
const WITHIN: Duration = Duration::from_secs(60);
/// What a proxy that lives for a moment carries.
const MOMENT: Workload = Workload {
    name: "moment",
    connections: 4,
    parallel: 2,
    upload_bytes: 2_000,
    download_bytes: 20_000,
    at_once: false,
};

/// All bytes of the history.
fn counted_bytes(home: &Home) -> Result<u64> {
    Ok(figures::sum(&home.books(TARGET)?, |_| true).wire_bytes)
}

fn links(home: &Home) -> Result<usize> {
    Ok(fs::read_dir(pins(home, TARGET)?.join("links"))?.count())
}

/// The site, and a daemon that counts a cgroup in it which is still to be made.
fn to_come() -> Result<(Site, Home)> {
    let site = Site::new(Stack::default())?;
    let mut home = Home::counting(&format!("{}/proxy", site.cgroup.cgroup_path()))?;
    home.start_and_wait()?;
    Ok((site, home))
}

/// Starts proxies one after the other in a cgroup that is made anew each time, `idle` in between, and
/// holds the history against the capture: what is missing was sent in the gaps that the history tells.
fn restart(bursts: u64, idle: impl Fn()) -> Result<()> {
    let (site, mut home) = to_come()?;
    let _sink = sink(&site)?;
    let capture = site.lab.capture()?;
    for _ in 0..RESTARTS {
        let cgroup = site.cgroup.child("proxy")?;
        let mut proxy = site.start_in(&cgroup, &burst(bursts))?;
        anyhow::ensure!(proxy.wait(WITHIN)?.success(), "{}", proxy.log());
        cgroup.remove()?;
        idle();
    }
    let trace = capture.stop()?;
    trace.check()?;
    home.stop()?;
    assert_missing_in_gaps_only(&home, &trace)?;
    assert!(!home.log().contains("CGROUPS"), "{}", home.log());
    Ok(())
}

#[test]
fn what_two_hundred_restarts_leave_uncounted_lies_in_the_gaps_that_are_told() -> Result<()> {
    restart(20, || ())
}

#[test]
fn proxies_that_live_for_a_moment_are_missing_only_in_the_gaps_that_are_told() -> Result<()> {
    restart(1, || ())
}

#[test]
fn the_same_with_pauses_in_which_nothing_of_the_target_is_there() -> Result<()> {
    let random = std::cell::RefCell::new(fastrand::Rng::with_seed(7));
    restart(10, || std::thread::sleep(Duration::from_millis(random.borrow_mut().u64(..60))))
}

#[test]
fn after_each_of_two_hundred_restarts_the_new_cgroup_is_counted_whole() -> Result<()> {
    let (site, mut home) = to_come()?;
    let server = site.server()?;
    let capture = site.lab.capture()?;
    for restart in 0..RESTARTS {
        let cgroup = site.cgroup.child("proxy")?;
        let mut relay = site.start_in(&cgroup, &Role::Relay { listen: any(RELAY_PORT) })?;
        home.wait_until("the new cgroup is counted", |home| {
            home.times_in_log("made anew, and is counted") > restart
        })?;
        relay.wait_for_port(RELAY_PORT, WITHIN)?;
        site.drive(&MOMENT, if restart % 2 == 0 { Family::Ipv4 } else { Family::Ipv6 }, &server)?;
        drop(relay);
        cgroup.remove()?;
    }
    let trace = capture.stop()?;
    // The last one's, and those of the tracepoints. A link dies some time after its cgroup, and is removed at
    // the next look.
    home.wait_until("the links of what is gone are removed", |home| {
        links(home).is_ok_and(|links| links < 20)
    })?;
    home.stop()?;
    let links = links(&home)?;
    assert!(links < 20, "{links} links of {RESTARTS} cgroups are left");
    assert!(!home.log().contains("CGROUPS"), "{}", home.log());
    home.assert_books(TARGET, &captured(&trace)?)
}

#[test]
fn two_hundred_restarts_below_the_counted_cgroup_leave_no_gap() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let mut home = Home::counting(&site.cgroup.cgroup_path())?;
    home.start_and_wait()?;
    let server = site.server()?;
    let capture = site.lab.capture()?;
    for restart in 0..RESTARTS {
        let cgroup = site.cgroup.child("proxy")?;
        let mut relay = site.start_in(&cgroup, &Role::Relay { listen: any(RELAY_PORT) })?;
        relay.wait_for_port(RELAY_PORT, WITHIN)?;
        site.drive(&MOMENT, if restart % 2 == 0 { Family::Ipv4 } else { Family::Ipv6 }, &server)?;
        drop(relay);
        cgroup.remove()?;
    }
    let trace = capture.stop()?;
    home.stop()?;
    assert_eq!(home.doubts(TARGET)?, []);
    home.assert_books(TARGET, &captured(&trace)?)
}

#[test]
fn a_target_that_is_not_there_is_no_gap_and_several_processes_are_one_target() -> Result<()> {
    let begin = Instant::now();
    let (site, mut home) = to_come()?;
    let _sink = sink(&site)?;
    let cgroup = site.cgroup.child("proxy")?;
    home.wait_until("it is counted", |home| home.times_in_log("is counted since") == 1)?;
    // The gap lies in here, however slow the machine is.
    let counted_after = begin.elapsed();
    let capture = site.lab.capture()?;
    let mut relay = site.start_in(&cgroup, &Role::Relay { listen: any(RELAY_PORT) })?;
    relay.wait_for_port(RELAY_PORT, WITHIN)?;
    let server = site.server()?;
    let mut senders: Vec<Process> =
        (0..3).map(|_| site.start_in(&cgroup, &burst(20))).collect::<Result<_>>()?;
    site.drive(&MOMENT, Family::Ipv6, &server)?;
    for sender in &mut senders {
        anyhow::ensure!(sender.wait(WITHIN)?.success(), "{}", sender.log());
    }
    // A namespace is known as long as a process is in it.
    home.wait_until("all of it is written", |home| {
        counted_bytes(home).is_ok_and(|bytes| bytes > 3 * 640 * 128)
    })?;
    drop((senders, relay));
    cgroup.remove()?;
    let trace = capture.stop()?;
    // Gone for longer than any regular look takes to find out.
    std::thread::sleep(Duration::from_secs(7));
    home.stop()?;
    // The empty cgroup was made anew, and was counted at once: the only gap, and a short one.
    let gaps = home.doubts(TARGET)?;
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let gap = Duration::try_from(gaps[0].end.duration_since(gaps[0].start))?;
    assert!(gap <= counted_after, "{gaps:?}, not within {counted_after:?}");
    home.assert_books(TARGET, &captured(&trace)?)
}
