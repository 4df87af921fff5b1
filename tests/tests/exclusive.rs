//! Cgroups of which another program lets none in beside it: they are counted by hooks above them, to the byte,
//! nothing of their neighbours is, and the other program stays what it is.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use traffic_agent::history::EventKind;
use traffic_agent::kernel::{Counter, Options, Sample};
use traffic_agent::target::Cgroup;
use traffic_lab::packet::{Family, Packet};
use traffic_lab::role::Role;
use traffic_lab::topology::{CLIENT_DEVICE, LabTrace, addresses};
use traffic_lab::workload::{Server, Workload};
use traffic_lab::{CountedCgroup, Process, Stack};
use traffic_tests::accounted::PAUSE;
use traffic_tests::agent::Desk;
use traffic_tests::daemon::{Home, has_pins};
use traffic_tests::exclusive::{Verdict, hold, is_held, programs};
use traffic_tests::factory::Factory;
use traffic_tests::figures::{self, Books};
use traffic_tests::load::under_paced_load;
use traffic_tests::moments::{SINK, assert_missing_in_gaps_only, burst, sink};
use traffic_tests::site::{RELAY_PORT, Site, any, tcp};

/// What a neighbour listens on, and what it talks to.
const NEIGHBOUR_PORT: u16 = 11_720;
const NEIGHBOUR_SERVER: u16 = 8090;
const WITHIN: Duration = Duration::from_secs(60);
const TRAFFIC: Workload = Workload {
    name: "small",
    connections: 20,
    parallel: 4,
    upload_bytes: 2_000,
    download_bytes: 60_000,
    at_once: false,
};

fn relay(site: &Site, cgroup: &CountedCgroup, port: u16) -> Result<Process> {
    let mut relay = site.start_in(cgroup, &Role::Relay { listen: any(port) })?;
    relay.wait_for_port(port, WITHIN)?;
    Ok(relay)
}

/// A cgroup below the site's that somebody holds.
fn held(site: &Site, name: &str) -> Result<CountedCgroup> {
    let cgroup = site.cgroup.child(name)?;
    hold(cgroup.path(), Verdict::Pass)?;
    Ok(cgroup)
}

/// A relay beside the target's, in the same parent, and traffic through it.
struct Neighbour<'s> {
    site: &'s Site,
    server: Server,
    // The process ends before its cgroup.
    _relay: Process,
    _cgroup: CountedCgroup,
}

impl<'s> Neighbour<'s> {
    fn start(site: &'s Site) -> Result<Self> {
        let cgroup = site.cgroup.child("neighbour")?;
        let relay = relay(site, &cgroup, NEIGHBOUR_PORT)?;
        let server = Server::start(&site.lab.upstream, any(NEIGHBOUR_SERVER))?;
        Ok(Self { site, server, _relay: relay, _cgroup: cgroup })
    }

    fn drive(&self, family: Family) -> Result<()> {
        self.site.drive_through(NEIGHBOUR_PORT, &TRAFFIC, family, &self.server).map(drop)
    }
}

fn is_neighbours(packet: &Packet) -> bool {
    packet.proxy().port() == NEIGHBOUR_PORT || packet.peer().port() == NEIGHBOUR_SERVER
}

/// What was captured without the neighbour's packets, of which there must be some.
fn captured(mut trace: LabTrace) -> Result<Books> {
    trace.check()?;
    for link in [&mut trace.client, &mut trace.upstream] {
        let all = link.trace.packets.len();
        link.trace.packets.retain(|packet| !is_neighbours(packet));
        ensure!(link.trace.packets.len() < all, "the neighbour had no traffic");
    }
    Ok(figures::of_capture(&trace, &[tcp(RELAY_PORT)]))
}

/// Traffic of the target and of its neighbour at the same time, by both families.
fn drive_both(site: &Site, neighbour: &Neighbour<'_>, server: &Server) -> Result<()> {
    for family in [Family::Ipv4, Family::Ipv6] {
        thread::scope(|scope| -> Result<()> {
            let beside = scope.spawn(|| neighbour.drive(family));
            site.drive(&TRAFFIC, family, server)?;
            beside.join().expect("the driver does not panic")
        })?;
    }
    Ok(())
}

#[test]
fn compare_counts_a_held_cgroup_to_the_byte_and_nothing_of_its_neighbour() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let unit = held(&site, "unit")?;
    let _relay = relay(&site, &unit, RELAY_PORT)?;
    let neighbour = Neighbour::start(&site)?;
    let server = site.server()?;
    let desk = Desk::new()?;
    let target = format!("proxy=cgroup:{}", unit.cgroup_path());
    let arguments = ["compare", "--json", "--target", &target, "-i", "200ms", "-d", "10m"];
    let mut running = desk.start(arguments, None, |_| ())?;
    running.wait_for_output("\"interval\"")?;
    assert!(is_held(unit.path())?, "its holder is not alone any more");
    assert_eq!(programs(site.cgroup.path())?, 2);
    let capture = site.lab.capture()?;
    drive_both(&site, &neighbour, &server)?;
    let captured = captured(capture.stop()?)?;
    running.signal(nix::sys::signal::Signal::SIGINT)?;
    let ended = running.finish()?;
    assert_eq!(ended.code()?, 0, "{ended:?}");
    let report = ended.last_report()?;
    assert_eq!(report.books()?, captured, "cells (left), capture (right)");
    let message = report.message("attached-above")?;
    assert!(message.contains(&format!("hooks on {},", site.cgroup.cgroup_path())), "{message}");
    assert!(message.contains("held exclusively by hold_"), "{message}");
    assert!(report.target()["complete"].as_bool().unwrap_or_default(), "{:?}", report.codes());
    assert_eq!(programs(site.cgroup.path())?, 0, "hooks are left");
    assert!(is_held(unit.path())?);
    let doctor = desk.run(["doctor", &target])?;
    let hooks = format!("counted by hooks on {}, which select them", site.cgroup.cgroup_path());
    assert!(doctor.stdout.contains(&hooks), "{doctor:?}");
    Ok(())
}

#[test]
fn the_daemon_does_it_too_says_so_and_leaves_nothing_when_it_is_detached() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let unit = held(&site, "unit")?;
    let _relay = relay(&site, &unit, RELAY_PORT)?;
    let neighbour = Neighbour::start(&site)?;
    let server = site.server()?;
    let mut home = Home::counting(&unit.cgroup_path())?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    drive_both(&site, &neighbour, &server)?;
    home.kill()?;
    drive_both(&site, &neighbour, &server)?;
    home.start_and_wait()?;
    drive_both(&site, &neighbour, &server)?;
    let captured = captured(capture.stop()?)?;
    home.wait_until("it says where it counts", |home| home.log().contains("attached-above"))?;
    home.stop()?;
    assert_eq!(home.books("counted")?, captured, "history (left), capture (right)\n{}", home.log());
    assert_eq!(home.doubts("counted")?, []);
    let events = home.events("counted")?;
    let notes: Vec<_> =
        events.iter().filter(|event| event.message.starts_with("attached-above: ")).collect();
    assert!(!notes.is_empty(), "{events:?}");
    assert!(is_held(unit.path())?);
    assert_eq!(programs(site.cgroup.path())?, 2);
    let output = home.command("detach").output()?;
    assert!(output.status.success(), "{output:?}");
    assert!(!has_pins(&home));
    assert_eq!(programs(site.cgroup.path())?, 0, "hooks are left");
    assert!(is_held(unit.path())?);
    Ok(())
}

#[test]
fn kills_under_load_lose_and_double_nothing() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let unit = held(&site, "unit")?;
    let _relay = relay(&site, &unit, RELAY_PORT)?;
    let neighbour = Neighbour::start(&site)?;
    let mut home = Home::counting(&unit.cgroup_path())?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_paced_load(&site, PAUSE, || {
        for kill in 0..20 {
            thread::sleep(Duration::from_millis(kill * 13));
            home.kill()?;
            // The counters of another ABI, every other time: hooks and selection move over.
            if kill % 2 == 0 {
                home.set("TRAFFIC_AGENT_ABI", 2 + kill / 2);
            }
            home.start()?;
        }
        neighbour.drive(Family::Ipv4)?;
        neighbour.drive(Family::Ipv6)
    })?;
    let captured = captured(capture.stop()?)?;
    home.kill()?;
    home.start_and_wait()?;
    home.stop()?;
    assert_eq!(home.books("counted")?, captured, "history (left), capture (right)\n{}", home.log());
    assert!(is_held(unit.path())?);
    Ok(())
}

#[test]
fn a_unit_that_is_made_anew_is_held_first_and_counted_from_then_on() -> Result<()> {
    const RESTARTS: usize = 30;
    let site = Site::new(Stack::default())?;
    let server = site.server()?;
    let neighbour = Neighbour::start(&site)?;
    let mut unit = Some(held(&site, "unit")?);
    let mut home = Home::counting(&format!("{}/unit", site.cgroup.cgroup_path()))?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    neighbour.drive(Family::Ipv4)?;
    for restart in 0..RESTARTS {
        unit.take().context("there is one")?.remove()?;
        let again = site.cgroup.child("unit")?;
        // Its owner is slower than any look at a new cgroup.
        thread::sleep(Duration::from_millis(20));
        hold(again.path(), Verdict::Pass)?;
        home.wait_until("the new cgroup is counted", |home| {
            home.log().matches("made anew, and is counted").count() > restart
        })?;
        let relay = relay(&site, &again, RELAY_PORT)?;
        site.drive(&TRAFFIC, if restart % 2 == 0 { Family::Ipv4 } else { Family::Ipv6 }, &server)?;
        if restart == 0 {
            // The names of interfaces are learnt from a living process, which is looked for once a second.
            home.wait_until("its interfaces have their names", |home| {
                let books = home.books("counted").unwrap_or_default();
                books.keys().any(|key| key.interface == CLIENT_DEVICE)
            })?;
        }
        drop(relay);
        assert!(is_held(again.path())?, "{}", home.log());
        unit = Some(again);
    }
    let captured = captured(capture.stop()?)?;
    home.stop()?;
    assert_eq!(programs(site.cgroup.path())?, 2);
    assert_eq!(home.books("counted")?, captured, "history (left), capture (right)\n{}", home.log());
    Ok(())
}

#[test]
fn what_restarts_leave_uncounted_lies_in_the_gaps_that_are_told() -> Result<()> {
    const RESTARTS: usize = 100;
    let site = Site::new(Stack::default())?;
    let _sink = sink(&site)?;
    // From here on the agent knows that somebody wants it for himself.
    let unit = held(&site, "unit")?;
    let mut home = Home::counting(&unit.cgroup_path())?;
    home.start_and_wait()?;
    unit.remove()?;
    let capture = site.lab.capture()?;
    for _ in 0..RESTARTS {
        let unit = held(&site, "unit")?;
        let mut proxy = site.start_in(&unit, &burst(20))?;
        ensure!(proxy.wait(WITHIN)?.success(), "{}", proxy.log());
        ensure!(is_held(unit.path())?, "{}", home.log());
        unit.remove()?;
    }
    let trace = capture.stop()?;
    trace.check()?;
    home.stop()?;
    assert_missing_in_gaps_only(&home, &trace)
}

#[test]
fn a_restart_while_the_agent_is_away_is_a_gap() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let server = site.server()?;
    let neighbour = Neighbour::start(&site)?;
    let unit = held(&site, "unit")?;
    let mut home = Home::counting(&unit.cgroup_path())?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    let first = relay(&site, &unit, RELAY_PORT)?;
    drive_both(&site, &neighbour, &server)?;
    let before = captured(capture.stop()?)?;
    home.stop()?;
    drop(first);
    unit.remove()?;
    let again = held(&site, "unit")?;
    let second = relay(&site, &again, RELAY_PORT)?;
    site.drive(&TRAFFIC, Family::Ipv4, &server)?;
    home.start_and_wait()?;
    let capture = site.lab.capture()?;
    drive_both(&site, &neighbour, &server)?;
    let after = captured(capture.stop()?)?;
    home.stop()?;
    drop(second);
    let mut expected = before;
    for (key, figures) in after {
        let sum = expected.entry(key).or_default();
        *sum = *sum + figures;
    }
    assert_eq!(home.books("counted")?, expected, "history (left), captures (right)");
    let doubts = home.doubts("counted")?;
    assert_eq!(doubts.len(), 1, "{doubts:?}");
    assert_eq!(doubts[0].kind, EventKind::Gap);
    assert!(doubts[0].message.contains("/unit (by hooks on "), "{doubts:?}");
    Ok(())
}

#[test]
fn a_cgroup_that_was_selected_and_is_hooked_itself_is_counted_once() -> Result<()> {
    const DATAGRAMS: u64 = 40;
    let site = Site::new(Stack::default())?;
    let _sink = sink(&site)?;
    let unit = site.cgroup.child("unit")?;
    let to = (addresses(Family::Ipv4).upstream, SINK).into();
    let socket = Factory::start(&site.lab.proxy, &unit)?.udp_unbound(to)?;
    let mut counter = Counter::load(&Options::default())?;
    counter.attach_above(unit.path(), site.cgroup.path(), &[1, 2])?;
    let before = counter.sample()?;
    for _ in 0..DATAGRAMS {
        socket.send_to(&[1; 100], to)?;
    }
    let between = counter.sample()?;
    // As an agent does that finds the holder gone; one that was killed then has left the selection.
    counter.attach(unit.path())?;
    for _ in 0..DATAGRAMS {
        socket.send_to(&[1; 100], to)?;
    }
    let after = counter.sample()?;
    let packets = |from: &Sample, to: &Sample| -> u64 {
        from.cells.iter().zip(&to.cells).map(|(from, to)| to.packets - from.packets).sum()
    };
    assert_eq!(packets(&before, &between), DATAGRAMS);
    assert_eq!(packets(&between, &after), DATAGRAMS);
    assert_eq!(programs(site.cgroup.path())?, 0, "the anchor is left");
    Ok(())
}

#[test]
fn what_the_holder_denies_is_denied_while_it_is_counted() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let unit = held(&site, "unit")?;
    let sockets = Factory::start(&site.lab.proxy, &unit)?;
    let mut home = Home::counting(&unit.cgroup_path())?;
    home.start_and_wait()?;
    let to = (addresses(Family::Ipv4).upstream, SINK);
    let socket = sockets.udp_unbound(to.into())?;
    assert_eq!(socket.send_to(b"let", to)?, 3);
    hold(unit.path(), Verdict::Deny)?;
    let refused = socket.send_to(b"not let", to).map_err(|error| error.raw_os_error());
    assert_eq!(refused, Err(Some(libc::EPERM)));
    assert!(is_held(unit.path())?);
    home.stop()
}

/// Makes a `systemctl` of which systemd is an old one, with these settings of every unit.
fn old_systemd(home: &mut Home, settings: &str) -> Result<()> {
    let bin = home.file("bin");
    fs::create_dir(&bin)?;
    let program = bin.join("systemctl");
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in --version) echo 'systemd 247 (247.3-7)';; *) printf '{settings}';; esac\n"
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    home.set("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", bin.display()));
    Ok(())
}

#[test]
fn a_unit_that_an_old_systemd_will_want_for_itself_is_not_hooked_before() -> Result<()> {
    let denies = "IPAccounting=no\\nIPAddressAllow=\\nIPAddressDeny=::/0 0.0.0.0/0\\n";
    let nothing = "IPAccounting=no\\nIPAddressAllow=\\nIPAddressDeny=\\n";
    for (settings, is_hooked) in [(denies, false), (nothing, true), ("", false)] {
        let site = Site::new(Stack::default())?;
        let unit = site.cgroup.child("proxy.service")?;
        let mut home = Home::counting(&unit.cgroup_path())?;
        old_systemd(&mut home, settings)?;
        home.start_and_wait()?;
        assert_eq!(programs(unit.path())?, if is_hooked { 2 } else { 0 }, "{settings}");
        assert_eq!(programs(site.cgroup.path())?, if is_hooked { 0 } else { 2 }, "{settings}");
        // What systemd would do when the unit starts.
        assert_eq!(hold(unit.path(), Verdict::Pass).is_err(), is_hooked, "{settings}");
        home.stop()?;
    }
    Ok(())
}

#[test]
fn several_cgroups_at_several_depths_are_counted_once_each() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let inner = site.cgroup.child("inner")?;
    let deep = inner.child("deep")?;
    let [unit, free] = ["unit", "free"].map(|name| site.cgroup.child(name));
    let (unit, free) = (unit?, free?);
    for held in [&deep, &unit] {
        hold(held.path(), Verdict::Pass)?;
    }
    // The first one's hooks go to `inner`, and on to the site's cgroup when the second one comes.
    let cgroups = [&deep, &unit, &free];
    let mut plan = site.plan()?;
    plan.cgroups = cgroups
        .iter()
        .map(|it| Ok(Cgroup { path: it.cgroup_path(), dir: it.path().to_owned(), id: it.id()? }))
        .collect::<Result<_>>()?;
    let ports = [RELAY_PORT, RELAY_PORT + 1, RELAY_PORT + 2];
    let relays: Vec<Process> = cgroups
        .iter()
        .zip(ports)
        .map(|(cgroup, port)| relay(&site, cgroup, port))
        .collect::<Result<_>>()?;
    let neighbour = Neighbour::start(&site)?;
    let server = site.server()?;
    let counting = site.count_as(plan)?;
    assert_eq!(programs(inner.path())?, 0);
    assert_eq!(programs(site.cgroup.path())?, 2);
    assert_eq!(programs(free.path())?, 2);
    for (port, family) in ports.into_iter().zip([Family::Ipv4, Family::Ipv6, Family::Ipv4]) {
        site.drive_through(port, &TRAFFIC, family, &server)?;
    }
    neighbour.drive(Family::Ipv6)?;
    let mut counted = counting.finish()?;
    drop(relays);
    for link in [&mut counted.trace.client, &mut counted.trace.upstream] {
        link.trace.packets.retain(|packet| !is_neighbours(packet));
    }
    counted.assert_books_equal_capture(&ports.map(tcp));
    Ok(())
}
