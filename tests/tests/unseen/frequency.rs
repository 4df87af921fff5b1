//! How often the classes occur: the demo's four workloads through the lab's relay. The same through a
//! real proxy is in `proxy_unseen.rs`.

use anyhow::{Context, Result};
use traffic_agent::report::{Counters, Direction, Leg, Origin};
use traffic_lab::Stack;
use traffic_lab::topology::LegTrace;
use traffic_lab::workload::Workload;
use traffic_tests::proxies::books::{self, Account, Counted};
use traffic_tests::proxies::frequency;
use traffic_tests::site::{self, Site};

use crate::FAMILIES;

/// What the hook saw of one leg and direction.
fn cells(counted: &site::Counted, leg: Leg, direction: Direction) -> Counted {
    let cells = counted.report.cells.iter().filter(|cell| {
        cell.origin == Origin::Socket && cell.leg == leg && cell.direction == direction
    });
    let sum: Counters = cells.map(|cell| cell.counters).sum();
    Counted {
        packets: sum.packets,
        bytes: sum.bytes,
        wire_packets: sum.wire_packets,
        wire_bytes: sum.wire_bytes,
        payload_bytes: sum.payload_bytes,
    }
}

fn account(counted: &site::Counted, leg: Leg, captured: &LegTrace) -> Result<Account> {
    let both = [Direction::Ingress, Direction::Egress].map(|one| cells(counted, leg, one));
    books::balance(&captured.trace, both).with_context(|| format!("{leg:?} leg"))
}

#[test]
fn unseen_in_the_four_workloads_through_a_relay_are_only_whole_packets_of_the_classes() -> Result<()>
{
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    frequency::print_head()?;
    for workload in Workload::DEMO {
        for family in FAMILIES {
            let counting = site.count()?;
            site.drive(&workload, family, &server)?;
            let counted = counting.finish()?;
            let client = account(&counted, Leg::Client, &counted.trace.client)?;
            let upstream = account(&counted, Leg::Upstream, &counted.trace.upstream)?;
            let legs = [&client, &upstream];
            frequency::print_row("relay", &workload, family, &counted.trace, legs)?;
        }
    }
    Ok(())
}
