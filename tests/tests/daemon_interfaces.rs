//! Interfaces that come and go under the daemon: each has its bytes under its own name, however many there were
//! before it, and whoever was killed meanwhile.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData};
use traffic_agent::report::{CellReport, Direction, Scope};
use traffic_agent::store::Reader;
use traffic_ebpf::{INTERFACE_SLOT_FIRST, INTERFACE_SLOT_OTHER, TABLE_INTERFACE, owner_parts};
use traffic_lab::capture::{Capture, Vantage};
use traffic_lab::link::{End, connect_as};
use traffic_lab::topology::MTU;
use traffic_lab::trace::{Filter, Trace};
use traffic_lab::{CountedCgroup, Stack, packet};
use traffic_tests::daemon::{Home, pins, pins_of};
use traffic_tests::routes::ip;
use traffic_tests::site::Site;

/// Payload of a datagram.
const PAYLOAD: usize = 500;
/// How many interfaces have a slot of their own at a time.
const SLOTS: usize = (INTERFACE_SLOT_OTHER - INTERFACE_SLOT_FIRST) as usize;

/// Wire packets and bytes, by interface and direction.
type Sums = BTreeMap<(String, Direction), (u64, u64)>;

fn sums<'c>(cells: impl IntoIterator<Item = &'c CellReport>) -> Sums {
    let mut sums = Sums::new();
    for cell in cells {
        let sum = sums.entry((cell.interface.clone(), cell.direction)).or_default();
        *sum = (sum.0 + cell.counters.wire_packets, sum.1 + cell.counters.wire_bytes);
    }
    sums
}

fn add_trace(sums: &mut Sums, interface: &str, trace: &Trace) {
    let directions = [
        (Direction::Ingress, packet::Direction::Ingress),
        (Direction::Egress, packet::Direction::Egress),
    ];
    for (direction, in_trace) in directions {
        let seen = trace.sum(Filter::all().direction(in_trace));
        let sum = sums.entry((interface.to_owned(), direction)).or_default();
        *sum = (sum.0 + seen.packets, sum.1 + seen.l3_bytes);
    }
}

/// 10.88.n.h
fn address(link: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, link, host)
}

/// Makes a link between the proxy and the upstream; `number` of both devices, 0 leaves it to the kernel.
fn link_up(site: &Site, link: u8, near: &str, number: u32) -> Result<()> {
    let at = |host| [(IpAddr::V4(address(link, host)), 24)];
    let far = format!("f{link}");
    let near = End { namespace: &site.lab.proxy, name: near, addresses: &at(2) };
    let far = End { namespace: &site.lab.upstream, name: &far, addresses: &at(1) };
    connect_as(far, near, MTU, number)
}

/// Takes it away, with both ends.
fn link_down(site: &Site, near: &str) -> Result<()> {
    ip(&site.lab.proxy, &format!("link del {near}"))
}

/// Sends `datagrams` over a link and has them sent back.
fn send_over(site: &Site, link: u8, datagrams: u64) -> Result<()> {
    site.echo((address(link, 1), 7000).into(), PAYLOAD, datagrams)
}

fn is_in_history(home: &Home, interface: &str) -> bool {
    let cells = home.cells("counted").unwrap_or_default();
    cells.iter().any(|cell| cell.interface == interface)
}

/// How many interfaces have a slot.
fn taken_slots(home: &Home) -> Result<usize> {
    let map = pins(home, "counted")?.join("SLOT_OWNERS");
    let owners: HashMap<_, u32, u32> = Map::HashMap(MapData::from_pin(map)?).try_into()?;
    let mut taken = 0;
    for owner in owners.iter() {
        let (table, _) = owner_parts(owner?.1);
        taken += usize::from(table == TABLE_INTERFACE);
    }
    Ok(taken)
}

#[test]
fn forty_interfaces_one_after_the_other_have_their_bytes_under_their_own_names() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let mut home = Home::counting(&site.cgroup.cgroup_path())?;
    home.start_and_wait()?;
    let mut captured = Sums::new();
    for link in 1..=40 {
        home.wait_until("an interface that is gone has left its slot", |home| {
            taken_slots(home).is_ok_and(|taken| taken < SLOTS)
        })?;
        let (near, far) = (format!("n{link}"), format!("f{link}"));
        link_up(&site, link, &near, 0)?;
        let capture = Capture::start(&site.lab.upstream, &far, Vantage::FarEnd)?;
        // A different number each, so that none can stand for another.
        send_over(&site, link, u64::from(link))?;
        home.wait_until("its name is in the history", |home| is_in_history(home, &near))?;
        // What is written at last is not in the history yet when the interface goes.
        send_over(&site, link, 3)?;
        let is_killed = link % 13 == 0;
        if is_killed {
            home.kill()?;
            send_over(&site, link, 2)?;
        }
        add_trace(&mut captured, &near, &capture.stop()?);
        link_down(&site, &near)?;
        if is_killed {
            home.start()?;
        }
    }
    home.stop()?;
    assert_eq!(sums(&home.cells("counted")?), captured, "history, capture\n{}", home.log());
    Ok(())
}

#[test]
fn interfaces_that_found_no_slot_get_one_as_soon_as_one_is_free() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let mut home = Home::counting(&site.cgroup.cgroup_path())?;
    home.start_and_wait()?;
    // One more than there are slots.
    let last = SLOTS as u8 + 1;
    for link in 1..=last {
        link_up(&site, link, &format!("n{link}"), 0)?;
        send_over(&site, link, 1)?;
    }
    home.wait_until("the last one is among others", |home| is_in_history(home, "other"))?;
    link_down(&site, "n1")?;
    home.wait_until("its slot is free", |home| taken_slots(home).is_ok_and(|taken| taken < SLOTS))?;
    send_over(&site, last, 5)?;
    home.stop()?;
    let counted = sums(&home.cells("counted")?);
    let expected = |datagrams: u64| Some((datagrams, datagrams * (PAYLOAD as u64 + 28)));
    for (interface, datagrams) in [("n1", 1), ("other", 1), (&format!("n{last}"), 5)] {
        for direction in [Direction::Ingress, Direction::Egress] {
            let sum = counted.get(&(interface.to_owned(), direction)).copied();
            assert_eq!(sum, expected(datagrams), "{interface} {direction:?}\n{}", home.log());
        }
    }
    Ok(())
}

/// The number of an interface of the namespace that the daemon is in, which is not the target's.
fn number_of_the_agents_own() -> Result<u32> {
    let own = nix::net::if_::if_nameindex()?;
    let numbers = own.iter().map(nix::net::if_::Interface::index);
    Ok(numbers.filter(|number| *number > 1).max().unwrap_or(77))
}

#[test]
fn a_name_outlives_interface_processes_and_agent_together() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let mut home = Home::counting(&site.cgroup.cgroup_path())?;
    home.start_and_wait()?;
    link_up(&site, 1, "n1", number_of_the_agents_own()?)?;
    let capture = Capture::start(&site.lab.upstream, "f1", Vantage::FarEnd)?;
    send_over(&site, 1, 4)?;
    home.wait_until("its name is in the history", |home| is_in_history(home, "n1"))?;
    home.kill()?;
    send_over(&site, 1, 9)?;
    let mut captured = Sums::new();
    add_trace(&mut captured, "n1", &capture.stop()?);
    link_down(&site, "n1")?;
    let Site { factory, cgroup: _cgroup, lab, .. } = site;
    drop(factory);
    drop(lab);
    home.start_and_wait()?;
    home.stop()?;
    assert_eq!(sums(&home.cells("counted")?), captured, "history, capture\n{}", home.log());
    Ok(())
}

#[test]
fn what_ends_with_its_target_is_free_if_it_was_and_keeps_its_selector() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let other = CountedCgroup::new("other")?;
    let selector = format!("cgroup:{}", site.cgroup.cgroup_path());
    let mut home = Home::counting(&site.cgroup.cgroup_path())?;
    home.add_flags(["--unbilled", "n1"]);
    home.start_and_wait()?;
    link_up(&site, 1, "n1", 0)?;
    send_over(&site, 1, 4)?;
    home.wait_until("its name is in the history", |home| is_in_history(home, "n1"))?;
    home.kill()?;
    send_over(&site, 1, 9)?;
    // Nothing says any more what is free; and it is an upgrade, whose counters are read for two seconds.
    let target = format!("other=cgroup:{}", other.cgroup_path());
    home.set_flags(&["--target", &target, "--interval", "1s", "--flush-interval", "1s"]);
    home.set("TRAFFIC_AGENT_ABI", 2);
    home.start_and_wait()?;
    assert!(pins_of(&home, 2, "other")?.exists());
    for abi in [1, 2] {
        // Nothing at all is left of the earlier version.
        assert!(!pins_of(&home, abi, "counted").is_ok_and(|pins| pins.exists()), "ABI {abi}");
    }
    home.stop()?;
    let cells = home.cells("counted")?;
    assert!(cells.iter().all(|cell| cell.scope == Scope::Unbilled), "{cells:?}");
    let bytes: Vec<u64> = sums(&cells).into_values().map(|(_, bytes)| bytes).collect();
    assert_eq!(bytes, [13 * (PAYLOAD as u64 + 28); 2], "{}", home.log());
    let targets = Reader::open(&home.state_dir())?.targets()?;
    let ended = targets.iter().find(|target| target.name == "counted");
    assert_eq!(ended.map(|target| &target.selector), Some(&selector));
    Ok(())
}
