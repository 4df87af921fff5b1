//! What TCP carries again is told apart, to the byte, by leg and direction.

use anyhow::Result;
use traffic_agent::report::{Direction, Leg};
use traffic_lab::packet::{self, Family};
use traffic_lab::topology::LegTrace;
use traffic_lab::workload::Workload;
use traffic_lab::{Filter, Namespace, Stack};
use traffic_tests::rules;
use traffic_tests::site::{Counted, RELAY_PORT, Site, tcp};

const BULK_BYTES: u64 = 3_000_000;

const BOTH_WAYS: Workload = Workload {
    name: "both",
    connections: 4,
    parallel: 2,
    upload_bytes: BULK_BYTES,
    download_bytes: BULK_BYTES,
    at_once: false,
};

/// Loses one packet in 40 each way behind the far end's capture, so that the capture has what the proxy
/// sends and receives: outgoing packets are lost before the capture sees them, incoming ones after.
fn lose_packets(far_end: &Namespace) -> Result<()> {
    for family in [Family::Ipv4, Family::Ipv6] {
        for chain in ["INPUT", "OUTPUT"] {
            let lost = "-p tcp -m statistic --mode random --probability 0.025 -j DROP";
            rules::add(far_end, family, &format!("{chain} {lost}"))?;
        }
    }
    Ok(())
}

/// What was counted as carried again, and what the capture shows of it.
fn carried_again(counted: &Counted, leg: Leg, link: &LegTrace, direction: Direction) -> (u64, u64) {
    let cells = counted.report.cells.iter();
    let counted = cells
        .filter(|cell| cell.leg == leg && cell.direction == direction)
        .map(|cell| cell.counters.retransmitted_bytes)
        .sum();
    let direction = match direction {
        Direction::Ingress => packet::Direction::Ingress,
        Direction::Egress => packet::Direction::Egress,
    };
    (counted, link.trace.retransmitted_payload(Filter::all().direction(direction)))
}

fn check(stack: Stack) -> Result<()> {
    let site = Site::new(stack)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    lose_packets(&site.lab.client)?;
    lose_packets(&site.lab.upstream)?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let counting = site.count()?;
        site.drive(&BOTH_WAYS, family, &server)?;
        let counted = counting.finish()?;
        counted.assert_books_equal_capture(&[tcp(RELAY_PORT)]);
        let legs = [(Leg::Client, &counted.trace.client), (Leg::Upstream, &counted.trace.upstream)];
        for (leg, link) in legs {
            for direction in [Direction::Ingress, Direction::Egress] {
                let (counted, captured) = carried_again(&counted, leg, link, direction);
                let what = format!("{stack:?} {family:?} {leg:?} {direction:?}");
                println!("{what}: {captured} B again");
                // A far end that sends super-packets loses them whole, so that nothing of them comes
                // twice; what the proxy sends again is in the capture with what was lost behind it.
                if direction == Direction::Egress || stack == Stack::Plain {
                    assert!(captured > 0, "{what}: nothing was lost");
                }
                assert_eq!(counted, captured, "{what}: counted (left), captured (right)");
            }
        }
    }
    Ok(())
}

#[test]
fn bytes_carried_again_equal_the_capture_with_super_packets() -> Result<()> {
    check(Stack::GsoGro)
}

#[test]
fn bytes_carried_again_equal_the_capture_without_offloads() -> Result<()> {
    check(Stack::Plain)
}

#[test]
fn without_loss_the_capture_has_the_same_repeats() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let counting = site.count()?;
    site.drive(&BOTH_WAYS, Family::Ipv4, &server)?;
    let counted = counting.finish()?;
    for (leg, link) in
        [(Leg::Client, &counted.trace.client), (Leg::Upstream, &counted.trace.upstream)]
    {
        for direction in [Direction::Ingress, Direction::Egress] {
            // TCP may take a late acknowledgement for a loss; then both have it.
            let (counted, captured) = carried_again(&counted, leg, link, direction);
            assert_eq!(counted, captured, "{leg:?} {direction:?}");
        }
    }
    Ok(())
}
