//! How often the classes occur: the demo's four workloads through the lab's relay. The same through a
//! real proxy is in `proxy_unseen.rs`.

use anyhow::Result;
use traffic_agent::report::{Counters, Direction, Origin};
use traffic_lab::Stack;
use traffic_lab::workload::Workload;
use traffic_tests::frequency::{self, WithoutSocket};
use traffic_tests::site::{Counted, RELAY_PORT, Site, tcp};

use crate::FAMILIES;

fn without_socket(counted: &Counted) -> WithoutSocket {
    let sum = |direction| -> Counters {
        let cells = counted.report.cells.iter().filter(|cell| cell.direction == direction);
        cells.filter(|cell| cell.origin != Origin::Socket).map(|cell| cell.counters).sum()
    };
    let (ingress, egress) = (sum(Direction::Ingress), sum(Direction::Egress));
    WithoutSocket {
        packets: ingress.wire_packets + egress.wire_packets,
        ingress_bytes: ingress.wire_bytes,
        egress_bytes: egress.wire_bytes,
    }
}

#[test]
fn the_four_workloads_through_a_relay_are_counted_with_what_is_unseen_at_the_hook() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    frequency::print_head()?;
    for workload in Workload::DEMO {
        for family in FAMILIES {
            let counting = site.count()?;
            site.drive(&workload, family, &server)?;
            let counted = counting.finish()?;
            counted.assert_books_equal_capture(&[tcp(RELAY_PORT)]);
            let without = without_socket(&counted);
            frequency::print_row("relay", &workload, family, &counted.trace, without)?;
        }
    }
    Ok(())
}
