//! Every byte of TCP is counted as the wire carries it, per direction and leg, whatever the stack does.

use anyhow::Result;
use traffic_agent::report::Leg;
use traffic_lab::kernel::Kernel;
use traffic_lab::packet::Family;
use traffic_lab::workload::{Outcome, Workload};
use traffic_lab::{Filter, Stack};
use traffic_tests::figures;
use traffic_tests::site::{Counted, RELAY_PORT, Site, tcp};

/// Small enough for a test, large enough for super-packets of 64 KiB.
const BULK_BYTES: u64 = 3_000_000;

/// Drives all four kinds of traffic, IPv4 and IPv6, and compares each with the capture.
fn check(stack: Stack) -> Result<()> {
    let site = Site::new(stack)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let one = Workload {
        name: "down",
        connections: 1,
        parallel: 1,
        upload_bytes: 500,
        download_bytes: BULK_BYTES,
        at_once: false,
    };
    let workloads = [
        one,
        Workload { name: "up", upload_bytes: BULK_BYTES, download_bytes: 500, ..one },
        Workload {
            name: "both",
            connections: 2,
            parallel: 2,
            upload_bytes: BULK_BYTES / 4,
            download_bytes: BULK_BYTES / 4,
            at_once: true,
        },
        Workload { name: "short", connections: 200, parallel: 8, download_bytes: 2000, ..one },
    ];
    for workload in &workloads {
        for family in [Family::Ipv4, Family::Ipv6] {
            println!("{stack:?} {family:?} {}", workload.name);
            let counting = site.count()?;
            let outcome = site.drive(workload, family, &server)?;
            let counted = counting.finish()?;
            counted.assert_books_equal_capture(&[tcp(RELAY_PORT)]);
            assert_payload_is_that_of_the_applications(&counted, &outcome);
            assert_stack_did_as_its_model_says(&counted, stack, workload);
        }
    }
    Ok(())
}

/// Client and server count themselves what they pass to and get from their sockets.
fn assert_payload_is_that_of_the_applications(counted: &Counted, outcome: &Outcome) {
    let books = counted.books();
    let legs = [
        (Leg::Client, &counted.trace.client, outcome.client),
        (Leg::Upstream, &counted.trace.upstream, outcome.server),
    ];
    for (leg, link, application) in legs {
        let payload = figures::sum(&books, |key| key.leg == leg).payload_bytes;
        let again = link.trace.retransmitted_payload(Filter::all());
        assert_eq!(
            payload - again,
            application.sent_bytes + application.received_bytes,
            "{leg:?} leg, {again} bytes sent again"
        );
    }
}

/// Or the test would prove less than it says.
fn assert_stack_did_as_its_model_says(counted: &Counted, stack: Stack, workload: &Workload) {
    let billed = counted.report.totals.billed;
    let bulk = workload.connections == 1;
    // A veth that does not merge brings single frames in.
    let merges = Kernel::running().is_ok_and(Kernel::merges_on_veth);
    let ingress = merges.then_some(billed.ingress);
    for counters in [billed.egress].into_iter().chain(ingress) {
        match stack {
            Stack::Plain => assert_eq!(counters.packets, counters.wire_packets),
            _ if bulk => assert!(counters.packets < counters.wire_packets, "no super-packets"),
            _ => {}
        }
    }
}

#[test]
fn wire_bytes_equal_the_capture_with_super_packets_both_ways() -> Result<()> {
    check(Stack::GsoGro)
}

#[test]
fn wire_bytes_equal_the_capture_without_any_offload() -> Result<()> {
    check(Stack::Plain)
}
