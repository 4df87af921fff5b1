//! Whose sockets are counted: those that were made in the cgroup or below it, whoever has them now.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use traffic_agent::report::Leg;
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::topology::addresses;
use traffic_lab::workload::Workload;
use traffic_lab::{CountedCgroup, Process, Stack};
use traffic_tests::exchange::with_listener;
use traffic_tests::factory::Factory;
use traffic_tests::figures;
use traffic_tests::site::{RELAY_PORT, Site, any, tcp};
use traffic_tests::{helper, role, role_of};

const WORKLOAD: Workload = Workload {
    name: "small",
    connections: 3,
    parallel: 1,
    upload_bytes: 10_000,
    download_bytes: 200_000,
    at_once: false,
};
const PORT: u16 = 1171;

#[test]
fn sockets_of_sub_cgroups_count_whenever_those_were_made() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let before = site.cgroup.child("before")?;
    let first = Factory::start(&site.lab.proxy, &before)?;
    let counting = site.count()?;
    let during = site.cgroup.child("during")?;
    let deeper = during.child("deeper")?;
    let second = Factory::start(&site.lab.proxy, &deeper)?;
    for (factory, port) in [(&first, PORT), (&second, PORT + 1)] {
        let listener = factory.tcp_listener(any(port))?;
        let to = (addresses(Family::Ipv4).proxy_client, port).into();
        with_listener(&site.lab.client, to, &listener)?;
    }
    counting.finish()?.assert_books_equal_capture(&[tcp(PORT), tcp(PORT + 1)]);
    drop((first, second));
    Ok(())
}

#[test]
fn a_server_that_was_moved_in_while_it_listened_is_not_counted_and_named() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let elsewhere = CountedCgroup::new("elsewhere")?;
    let place = Place { cgroup: Some(&elsewhere), ..site.place() };
    let mut relay = Process::spawn(role(&Role::Relay { listen: any(RELAY_PORT) })?, place)?;
    relay.wait_for_port(RELAY_PORT, Duration::from_secs(60))?;
    let server = site.server()?;
    site.cgroup.add(relay.pid())?;

    let counting = site.count()?;
    site.drive(&WORKLOAD, Family::Ipv4, &server)?;
    let counted = counting.finish()?;
    // The listener is still the old cgroup's, and so is what it accepts; what the process connects
    // from now on is the new one's.
    let books = counted.books();
    assert_eq!(figures::sum(&books, |key| key.leg == Leg::Client), figures::Figures::default());
    let captured = counted.captured(&[tcp(RELAY_PORT)]);
    let upstream = |key: &figures::Key| key.leg == Leg::Upstream;
    assert!(figures::sum(&books, upstream).payload_bytes > 0);
    assert_eq!(figures::sum(&books, upstream), figures::sum(&captured, upstream));

    assert!(!counted.report.complete);
    let finding = counted.expect_finding("socket-not-owned")?;
    for part in [format!("pid {}", relay.pid()), RELAY_PORT.to_string(), elsewhere.cgroup_path()] {
        assert!(finding.message.contains(&part), "{part} is not in: {}", finding.message);
    }
    assert!(finding.remedy.contains("restart"), "{}", finding.remedy);
    drop(relay);
    Ok(())
}

#[test]
fn a_second_program_beside_a_known_proxy_is_named() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let directory = tempfile::tempdir()?;
    let xray = directory.path().join("xray");
    fs::copy(helper()?, &xray)?;
    let start = |program: &Path, port| -> Result<Process> {
        let relay = Role::Relay { listen: any(port) };
        let mut relay = Process::spawn(role_of(program, &relay)?, site.place())?;
        relay.wait_for_port(port, Duration::from_secs(60))?;
        Ok(relay)
    };
    let _proxy = start(&xray, PORT)?;
    let alone = site.count()?.finish()?;
    assert!(alone.finding("cgroup-shared").is_none());

    let panel = start(&helper()?, RELAY_PORT)?;
    let counted = site.count()?.finish()?;
    let finding = counted.expect_finding("cgroup-shared")?;
    for part in [&format!("traffic-tests (pid {})", panel.pid()), "of xray alone", "tcp 11710"] {
        assert!(finding.message.contains(part), "{part} is not in: {}", finding.message);
    }
    Ok(())
}
