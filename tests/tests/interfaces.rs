//! Each interface has its own figures as long as there are slots; loopback is shown apart, and what is
//! named as free is not billed.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Result;
use traffic_agent::ledger;
use traffic_agent::measure::{Measurement, Plan};
use traffic_agent::report::{Directions, Scope, TargetReport};
use traffic_lab::Stack;
use traffic_lab::link::{End, connect};
use traffic_lab::topology::MTU;
use traffic_tests::site::Site;

/// More than the six that are told apart.
const PAIRS: u8 = 9;
/// Payload of a datagram, and what it is with its headers.
const PAYLOAD: usize = 500;
const L3_BYTES: u64 = PAYLOAD as u64 + 28;

/// 10.88.n.h
fn address(pair: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 88, pair, host)
}

/// A site with further links between the proxy (`n1`, `n2`, …) and the upstream.
fn site_with_links() -> Result<Site> {
    let site = Site::new(Stack::GsoGro)?;
    for pair in 1..=PAIRS {
        let (near, far) = (format!("n{pair}"), format!("f{pair}"));
        let at = |host| [(IpAddr::V4(address(pair, host)), 24)];
        let near = End { namespace: &site.lab.proxy, name: &near, addresses: &at(2) };
        let far = End { namespace: &site.lab.upstream, name: &far, addresses: &at(1) };
        connect(far, near, MTU)?;
    }
    Ok(site)
}

/// Sends `datagrams` over a link and has them sent back.
fn send_over(site: &Site, pair: u8, datagrams: u64) -> Result<()> {
    site.echo((address(pair, 1), 7000).into(), PAYLOAD, datagrams)
}

/// Counts while `traffic` goes on.
fn count(site: &Site, plan: Plan, traffic: impl FnOnce() -> Result<()>) -> Result<TargetReport> {
    let mut measurement = Measurement::start(&site.host, plan)?;
    let start = measurement.sample()?;
    traffic()?;
    let end = measurement.sample()?;
    measurement.report(&start, &end)
}

fn of_interface(report: &TargetReport, name: &str) -> Directions {
    ledger::sum(&report.cells, |cell| cell.interface == name)
}

/// The wire bytes of a direction, which are equal for traffic that is echoed.
#[track_caller]
fn assert_echoed(counted: Directions, datagrams: u64) {
    let bytes = (counted.ingress.wire_bytes, counted.egress.wire_bytes);
    assert_eq!(bytes, (datagrams * L3_BYTES, datagrams * L3_BYTES));
}

#[test]
fn the_seventh_interface_shares_a_slot_that_is_billed_and_reported() -> Result<()> {
    let site = site_with_links()?;
    let report = count(&site, site.plan()?, || {
        // A different number each, so that none can stand for another; then once more in between.
        (1..=PAIRS).try_for_each(|pair| send_over(&site, pair, pair.into()))?;
        send_over(&site, 1, 1)
    })?;
    assert_echoed(of_interface(&report, "n1"), 2);
    for pair in 2..=6 {
        assert_echoed(of_interface(&report, &format!("n{pair}")), pair);
    }
    assert_echoed(of_interface(&report, "other"), 7 + 8 + 9);
    assert_echoed(report.totals.billed, 1 + (1..=u64::from(PAIRS)).sum::<u64>());
    assert!(report.complete);
    let finding = report.findings.iter().find(|one| one.code == "interface-without-slot");
    let beyond = 2 * (7 + 8 + 9) * L3_BYTES;
    assert!(finding.is_some_and(|one| one.message.starts_with(&format!("{beyond} bytes"))));
    Ok(())
}

#[test]
fn six_interfaces_have_slots_of_their_own_and_no_finding() -> Result<()> {
    let site = site_with_links()?;
    let report =
        count(&site, site.plan()?, || (1..=6).try_for_each(|pair| send_over(&site, pair, 3)))?;
    (1..=6).for_each(|pair| assert_echoed(of_interface(&report, &format!("n{pair}")), 3));
    assert!(report.findings.iter().all(|one| one.code != "interface-without-slot"));
    Ok(())
}

#[test]
fn loopback_is_shown_apart_twice_and_not_billed() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let server = site.factory.udp((Ipv4Addr::LOCALHOST, 7000).into())?;
    let client = site.factory.udp((Ipv4Addr::LOCALHOST, 0).into())?;
    let report = count(&site, site.plan()?, || {
        for _ in 0..5 {
            client.send_to(&[1; PAYLOAD], server.local_addr()?)?;
            server.recv(&mut [0; PAYLOAD])?;
        }
        Ok(())
    })?;
    // Each packet leaves one socket of the cgroup and reaches another.
    assert_echoed(report.totals.loopback, 5);
    assert_echoed(of_interface(&report, "lo"), 5);
    assert_eq!(report.total_wire_bytes, 0);
    assert_eq!(report.totals.billed, Directions::default());
    Ok(())
}

#[test]
fn an_interface_that_is_named_as_free_is_not_billed() -> Result<()> {
    let site = site_with_links()?;
    let mut plan = site.plan()?;
    plan.unbilled = vec!["n2".to_owned()];
    let report = count(&site, plan, || (1..=3).try_for_each(|pair| send_over(&site, pair, 4)))?;
    assert_echoed(report.totals.unbilled, 4);
    assert_echoed(report.totals.billed, 8);
    assert_eq!(report.total_wire_bytes, 2 * 8 * L3_BYTES);
    assert!(
        report.cells.iter().all(|one| (one.scope == Scope::Unbilled) == (one.interface == "n2"))
    );
    Ok(())
}

#[test]
fn an_interface_that_comes_and_goes_while_measuring_keeps_its_name() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let mut measurement = Measurement::start(&site.host, site.plan()?)?;
    let start = measurement.sample()?;
    let far_end = traffic_lab::Namespace::new("short-lived")?;
    connect(
        End { namespace: &far_end, name: "f1", addresses: &[(address(1, 1).into(), 24)] },
        End { namespace: &site.lab.proxy, name: "n1", addresses: &[(address(1, 2).into(), 24)] },
        MTU,
    )?;
    let sender = site.factory.udp((address(1, 2), 0).into())?;
    sender.send_to(&[1; PAYLOAD], (address(1, 1), 7000))?;
    measurement.follow()?;
    drop(far_end);
    std::thread::sleep(Duration::from_millis(100));
    measurement.follow()?;
    let end = measurement.sample()?;
    let report = measurement.report(&start, &end)?;
    assert_eq!(of_interface(&report, "n1").egress.wire_bytes, L3_BYTES);
    Ok(())
}
