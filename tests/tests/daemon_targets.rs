//! What a target is made of changes while its links are pinned: no cgroup is counted that is not the
//! target's, and none twice.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData};
use nix::sys::signal::Signal;
use traffic_agent::history::{EventKind, Quarter};
use traffic_agent::report::Direction;
use traffic_agent::store::Reader;
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::topology::addresses;
use traffic_lab::workload::Workload;
use traffic_lab::{CountedCgroup, Process, Stack};
use traffic_tests::daemon::{Home, pins};
use traffic_tests::figures;
use traffic_tests::moments::assert_missing_in_gaps_only;
use traffic_tests::site::{RELAY_PORT, Site, any, tcp};
use traffic_tests::{helper, role, role_of};

const TRAFFIC: Workload = Workload {
    name: "steady",
    connections: 5,
    parallel: 2,
    upload_bytes: 20_000,
    download_bytes: 200_000,
    at_once: false,
};

fn home(target: &str) -> Result<Home> {
    Home::new(&["--target", target, "--interval", "1s", "--flush-interval", "1s"])
}

fn counted(cgroup: &CountedCgroup) -> String {
    format!("counted=cgroup:{}", cgroup.cgroup_path())
}

/// Lets a daemon that was started with one target end, and one with another begin.
fn change_target(home: &mut Home, target: &str) -> Result<()> {
    home.stop()?;
    home.set_flags(&["--target", target, "--interval", "1s", "--flush-interval", "1s"]);
    home.start_and_wait()
}

#[test]
fn a_cgroup_that_is_not_the_targets_any_more_is_not_counted() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let other = CountedCgroup::new("other")?;
    let mut home = home(&counted(&site.cgroup))?;
    home.start_and_wait()?;
    site.drive(&TRAFFIC, Family::Ipv4, &server)?;
    change_target(&mut home, &counted(&other))?;
    let before = home.books("counted")?;
    assert!(!before.is_empty(), "nothing was counted");
    site.drive(&TRAFFIC, Family::Ipv4, &server)?;
    home.stop()?;
    assert_eq!(home.books("counted")?, before, "the cgroup of another is counted\n{}", home.log());
    Ok(())
}

#[test]
fn a_target_that_moves_into_a_child_or_to_the_parent_is_counted_once() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let child = site.cgroup.child("child")?;
    let place = Place { namespace: Some(&site.lab.proxy), cgroup: Some(&child), user: None };
    let mut relay = Process::spawn(role(&Role::Relay { listen: any(RELAY_PORT) })?, place)?;
    relay.wait_for_port(RELAY_PORT, Duration::from_secs(60))?;
    let server = site.server()?;
    let mut home = home(&counted(&site.cgroup))?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    site.drive(&TRAFFIC, Family::Ipv4, &server)?;
    for target in [&child, &site.cgroup] {
        capture.settle()?;
        change_target(&mut home, &counted(target))?;
        site.drive(&TRAFFIC, Family::Ipv4, &server)?;
    }
    capture.settle()?;
    let trace = capture.stop()?;
    trace.check()?;
    home.stop()?;
    let captured = figures::of_capture(&trace, &[tcp(RELAY_PORT)]);
    assert_eq!(home.books("counted")?, captured, "history (left), capture (right)\n{}", home.log());
    Ok(())
}

#[test]
fn cgroups_that_end_while_the_agent_is_away_take_no_place() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let path = site.cgroup.path().join("unit");
    let target = format!("counted=cgroup:{}/unit", site.cgroup.cgroup_path());
    let mut home = home(&target)?;
    for _ in 0..3 {
        fs::create_dir(&path)?;
        home.start_and_wait()?;
        home.kill()?;
        fs::remove_dir(&path)?;
    }
    fs::create_dir(&path)?;
    home.start_and_wait()?;
    let map = pins(&home, "counted")?.join("CGROUPS");
    let map = Map::HashMap(MapData::from_pin(map)?);
    let known: HashMap<_, u64, u32> = map.try_into()?;
    let known = known.keys().collect::<Result<Vec<u64>, _>>()?;
    let present = fs::metadata(&path)?.ino();
    home.stop()?;
    fs::remove_dir(&path)?;
    assert_eq!(known, [present], "{}", home.log());
    Ok(())
}

#[test]
fn what_was_made_anew_while_the_agent_was_away_is_a_gap_also_if_the_history_opens_late()
-> Result<()> {
    let site = Site::new(Stack::default())?;
    let path = site.cgroup.path().join("unit");
    let target = format!("counted=cgroup:{}/unit", site.cgroup.cgroup_path());
    let mut home = home(&target)?;
    fs::create_dir(&path)?;
    home.start_and_wait()?;
    home.stop()?;
    fs::remove_dir(&path)?;
    fs::create_dir(&path)?;
    let [history, aside] = ["history.db", "aside"].map(|name| home.state_dir().join(name));
    fs::rename(&history, &aside)?;
    fs::write(&history, "no database ".repeat(1000))?;
    home.start()?;
    home.wait_until("it attaches without a history", |home| {
        home.log().contains("there is no history") && home.log().matches("counting /").count() == 2
    })?;
    fs::rename(&aside, &history)?;
    home.signal(Signal::SIGHUP)?;
    home.wait_until("it has read its configuration", |home| home.log().contains("was read again"))?;
    home.stop()?;
    fs::remove_dir(&path)?;
    let events = home.events("counted")?;
    let gaps: Vec<_> = events.iter().filter(|event| event.kind == EventKind::Gap).collect();
    assert_eq!(gaps.len(), 1, "{events:?}\n{}", home.log());
    assert!(gaps[0].message.contains("/unit was made anew"), "{gaps:?}");
    Ok(())
}

/// Sends datagrams from the counted cgroup to the upstream; returns how many bytes of IP packets that was.
#[test]
fn what_a_process_exchanges_before_it_is_found_in_a_cgroup_that_was_there_is_in_a_gap() -> Result<()>
{
    let site = Site::new(Stack::default())?;
    let [scope, other] = ["session.scope", "other.scope"].map(|name| site.cgroup.child(name));
    let (scope, other) = (scope?, other?);
    let mut home = home("counted=process:odd-proxy")?;
    let program = home.file("odd-proxy");
    fs::copy(helper()?, &program)?;
    home.start_and_wait()?;
    let server = site.server()?;
    let capture = site.lab.capture()?;
    let mut relays = Vec::new();
    for (place, port) in [(&scope, RELAY_PORT), (&other, RELAY_PORT + 1)] {
        // So that it was looked for since the one before, and in vain.
        thread::sleep(Duration::from_secs(2));
        let relay = role_of(&program, &Role::Relay { listen: any(port) })?;
        let place = Place { namespace: Some(&site.lab.proxy), cgroup: Some(place), user: None };
        let mut relay = Process::spawn(relay, place)?;
        relay.wait_for_port(port, Duration::from_secs(60))?;
        relays.push(relay);
        let found = relays.len();
        // At first nothing of it is counted, and at last all.
        site.drive_through(port, &TRAFFIC, Family::Ipv4, &server)?;
        home.wait_until("it is found", |home| {
            home.times_in_log("became the target's, and is counted") == found
        })?;
        site.drive_through(port, &TRAFFIC, Family::Ipv4, &server)?;
    }
    drop(relays);
    let trace = capture.stop()?;
    home.stop()?;
    assert_missing_in_gaps_only(&home, &trace)
}

fn send(site: &Site, datagrams: u64) -> Result<u64> {
    let to = (addresses(Family::Ipv4).upstream, 7000).into();
    let receiver = site.lab.upstream.run_in(|| UdpSocket::bind(to))??;
    receiver.set_read_timeout(Some(Duration::from_secs(60)))?;
    let sender = site.factory.udp_unbound(to)?;
    for _ in 0..datagrams {
        sender.send_to(&[1; 500], to)?;
        receiver.recv(&mut [0; 1000])?;
    }
    Ok(datagrams * 528)
}

/// What the host's ledger has of the counted cgroup, sent.
fn sent_by_host(home: &Home, site: &Site) -> Result<u64> {
    let own = site.cgroup.cgroup_path();
    let mut sent = 0;
    let all = Quarter(0)..Quarter(i64::from(u32::MAX));
    Reader::open(&home.state_dir())?.host_quarters(all, |_, series, counters| {
        if series.cgroup == own && series.direction == Direction::Egress {
            sent += counters.wire_bytes;
        }
    })?;
    Ok(sent)
}

#[test]
fn what_the_host_used_is_in_the_history_when_its_counting_ends() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let target = counted(&site.cgroup);
    let mut home = home(&target)?;
    home.add_flags(["--host"]);
    home.start_and_wait()?;
    let mut expected = send(&site, 10)?;
    home.kill()?;
    expected += send(&site, 7)?;
    // It is not wanted any more, and is read once more all the same.
    change_flags(&mut home, &["--target", &target, "--interval", "1s", "--flush-interval", "1s"])?;
    let is_pinned = |home: &Home| pins(home, "~host").is_ok_and(|it| it.exists());
    home.wait_until("its pins are gone", |home| !is_pinned(home))?;
    assert_eq!(sent_by_host(&home, &site)?, expected, "{}", home.log());
    home.stop()?;
    send(&site, 100)?;
    // And with `detach`.
    home.add_flags(["--host"]);
    home.start_and_wait()?;
    home.wait_until("it is pinned again", is_pinned)?;
    expected += send(&site, 5)?;
    home.kill()?;
    expected += send(&site, 3)?;
    let output = home.command("detach").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "not counted any more: counted, the host's cgroups\n", "{output:?}");
    assert_eq!(sent_by_host(&home, &site)?, expected, "{}", home.log());
    Ok(())
}

fn change_flags(home: &mut Home, flags: &[&str]) -> Result<()> {
    home.set_flags(flags);
    home.start_and_wait()
}
