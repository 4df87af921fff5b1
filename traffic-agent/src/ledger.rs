//! From two samples to figures: what was counted in between, cell by cell, with names. Pure.

mod posting;

pub use posting::{absolute, post};

use traffic_ebpf::{
    ANSWERED_FOLLOWS, ANSWERED_SEEN, ANSWERED_UNATTRIBUTED, CELLS_PER_INTERFACE, Cell, FAMILIES,
    INGRESS, INTERFACE_SLOTS, IPV4, PORT_SLOT_CLIENT_TCP, PORT_SLOT_CLIENT_UDP,
    PORT_SLOT_UPSTREAM_ICMP, PORT_SLOT_UPSTREAM_OTHER, PORT_SLOT_UPSTREAM_TCP,
    PORT_SLOT_UPSTREAM_UDP, PORT_SLOTS,
};

use crate::{
    method::ListeningPort,
    report::{
        CellReport, Direction, Directions, Family, Leg, Origin, PortReport, Protocol, Scope, Scopes,
    },
};

/// What the slots of one instance stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Name and scope of each interface slot.
    pub interfaces: [(String, Scope); INTERFACE_SLOTS],
    /// The port of each port slot that a listening port has claimed.
    pub ports: [Option<ListeningPort>; PORT_SLOTS],
}

/// A counter is smaller than before. Counters only grow, so the samples are not of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a counter went backwards: the two samples are not of the same instance")]
pub struct Backwards;

/// Returns what was counted between two samples of one instance.
pub fn difference(start: &[Cell], end: &[Cell]) -> Result<Vec<Cell>, Backwards> {
    start.iter().zip(end).map(|(start, end)| cell_difference(start, end)).collect()
}

fn cell_difference(start: &Cell, end: &Cell) -> Result<Cell, Backwards> {
    let minus = |end: u64, start: u64| end.checked_sub(start).ok_or(Backwards);
    Ok(Cell {
        packets: minus(end.packets, start.packets)?,
        bytes: minus(end.bytes, start.bytes)?,
        wire_packets: minus(end.wire_packets, start.wire_packets)?,
        wire_bytes: minus(end.wire_bytes, start.wire_bytes)?,
        payload_bytes: minus(end.payload_bytes, start.payload_bytes)?,
        retransmitted_bytes: minus(end.retransmitted_bytes, start.retransmitted_bytes)?,
    })
}

/// What the elements of a sample stand for, `INTERFACE_SLOTS` each.
const ORIGINS: [Origin; 3] = [Origin::Socket, Origin::Kernel, Origin::KernelDerived];
/// The element behind them: packets that may be anybody's, so no cells of the target.
const UNATTRIBUTED: usize = INTERFACE_SLOTS + ANSWERED_UNATTRIBUTED;
const _: () = assert!(ANSWERED_SEEN == 0 && ANSWERED_FOLLOWS == 1);
const _: () = assert!(UNATTRIBUTED == ORIGINS.len() * INTERFACE_SLOTS);

/// Returns the sum of what may be anybody's.
pub fn unattributed(cells: &[Cell]) -> Directions {
    let mut sum = Directions::default();
    let first = UNATTRIBUTED * CELLS_PER_INTERFACE;
    for (index, cell) in cells.iter().enumerate().skip(first) {
        *sum.of_mut(direction_of(index)) += (*cell).into();
    }
    sum
}

fn direction_of(index: usize) -> Direction {
    match index / (FAMILIES * PORT_SLOTS) % 2 == INGRESS as usize {
        true => Direction::Ingress,
        false => Direction::Egress,
    }
}

/// Gives every cell that is not zero its coordinates.
pub fn name_cells(cells: &[Cell], names: &Names) -> Vec<CellReport> {
    let attributed = &cells[..UNATTRIBUTED * CELLS_PER_INTERFACE];
    attributed
        .iter()
        .enumerate()
        .filter(|(_, cell)| **cell != Cell::default())
        .map(|(index, cell)| {
            let element = index / CELLS_PER_INTERFACE;
            let (interface, scope) = &names.interfaces[element % INTERFACE_SLOTS];
            let port_slot = index / FAMILIES % PORT_SLOTS;
            let (leg, protocol, port) = name_port_slot(port_slot, names);
            CellReport {
                interface: interface.clone(),
                scope: *scope,
                origin: ORIGINS[element / INTERFACE_SLOTS],
                direction: direction_of(index),
                leg,
                protocol,
                port,
                family: if index % FAMILIES == IPV4 as usize { Family::Ipv4 } else { Family::Ipv6 },
                counters: (*cell).into(),
            }
        })
        .collect()
}

fn name_port_slot(slot: usize, names: &Names) -> (Leg, Protocol, Option<u16>) {
    match slot as u8 {
        PORT_SLOT_UPSTREAM_TCP => (Leg::Upstream, Protocol::Tcp, None),
        PORT_SLOT_UPSTREAM_UDP => (Leg::Upstream, Protocol::Udp, None),
        PORT_SLOT_UPSTREAM_ICMP => (Leg::Upstream, Protocol::Icmp, None),
        PORT_SLOT_UPSTREAM_OTHER => (Leg::Upstream, Protocol::Other, None),
        PORT_SLOT_CLIENT_TCP => (Leg::Client, Protocol::Tcp, None),
        PORT_SLOT_CLIENT_UDP => (Leg::Client, Protocol::Udp, None),
        _ => match names.ports[slot] {
            Some(ListeningPort { protocol, port }) => (Leg::Client, protocol, Some(port)),
            // The program claims a slot before it counts in it, so an unclaimed one holds nothing.
            None => (Leg::Client, Protocol::Other, None),
        },
    }
}

/// Sums cells by scope and direction.
pub fn totals(cells: &[CellReport]) -> Scopes {
    let mut scopes = Scopes::default();
    for cell in cells {
        *scopes.of_mut(cell.scope).of_mut(cell.direction) += cell.counters;
    }
    scopes
}

/// Sums the client leg by listening port. Loopback included, as in the counters of a rule.
///
/// `listening` are ports to be listed even if they saw no traffic.
pub fn ports(cells: &[CellReport], listening: &[ListeningPort]) -> Vec<PortReport> {
    let mut ports: std::collections::BTreeMap<(Protocol, Option<u16>), Directions> = listening
        .iter()
        .map(|port| ((port.protocol, Some(port.port)), Directions::default()))
        .collect();
    for cell in cells.iter().filter(|cell| cell.leg == Leg::Client) {
        *ports.entry((cell.protocol, cell.port)).or_default().of_mut(cell.direction) +=
            cell.counters;
    }
    ports
        .into_iter()
        .map(|((protocol, port), Directions { ingress, egress })| PortReport {
            protocol,
            port,
            ingress,
            egress,
        })
        .collect()
}

/// Sums the cells that `keep` selects, by direction.
pub fn sum(cells: &[CellReport], keep: impl Fn(&CellReport) -> bool) -> Directions {
    let mut sum = Directions::default();
    for cell in cells.iter().filter(|cell| keep(cell)) {
        *sum.of_mut(cell.direction) += cell.counters;
    }
    sum
}

#[cfg(test)]
mod tests {
    use traffic_ebpf::{EGRESS, IPV6, PORT_SLOT_FIRST, cell_index};

    use crate::report::Counters;

    use super::*;

    fn names() -> Names {
        let mut ports = [None; PORT_SLOTS];
        ports[usize::from(PORT_SLOT_FIRST)] =
            Some(ListeningPort { protocol: Protocol::Tcp, port: 443 });
        Names {
            interfaces: std::array::from_fn(|slot| match slot {
                0 => ("lo".to_owned(), Scope::Loopback),
                1 => ("eth0".to_owned(), Scope::Billed),
                _ => ("other".to_owned(), Scope::Billed),
            }),
            ports,
        }
    }

    fn empty() -> Vec<Cell> {
        vec![Cell::default(); (UNATTRIBUTED + 1) * CELLS_PER_INTERFACE]
    }

    fn cell(wire_bytes: u64) -> Cell {
        Cell { packets: 1, bytes: wire_bytes, wire_packets: 1, wire_bytes, ..Cell::default() }
    }

    #[test]
    fn a_cell_gets_the_coordinates_it_was_counted_under() {
        let mut cells = empty();
        let at = CELLS_PER_INTERFACE + cell_index(EGRESS, u32::from(PORT_SLOT_FIRST), IPV6);
        cells[at] = cell(1500);
        let named = name_cells(&cells, &names());
        let [named] = named.as_slice() else { panic!("one cell, got {named:?}") };
        assert_eq!(
            (named.interface.as_str(), named.scope, named.direction, named.leg),
            ("eth0", Scope::Billed, Direction::Egress, Leg::Client)
        );
        assert_eq!(
            (named.protocol, named.port, named.family),
            (Protocol::Tcp, Some(443), Family::Ipv6)
        );
        assert_eq!(named.counters.wire_bytes, 1500);
    }

    #[test]
    fn loopback_is_in_no_total_but_its_own() {
        let mut cells = empty();
        cells[cell_index(INGRESS, u32::from(PORT_SLOT_FIRST), IPV4)] = cell(1000);
        let tcp = u32::from(PORT_SLOT_UPSTREAM_TCP);
        cells[CELLS_PER_INTERFACE + cell_index(INGRESS, tcp, IPV4)] = cell(300);
        let named = name_cells(&cells, &names());
        let totals = totals(&named);
        assert_eq!(totals.loopback.ingress.wire_bytes, 1000);
        assert_eq!(totals.billed.ingress.wire_bytes, 300);
        assert_eq!(totals.billed.wire_bytes() + totals.unbilled.wire_bytes(), 300);
        // The port's figure is what a rule for the port counts, loopback included.
        let ports = ports(&named, &[ListeningPort { protocol: Protocol::Udp, port: 53 }]);
        assert_eq!(ports.len(), 2);
        assert_eq!((ports[0].port, ports[0].ingress.wire_bytes), (Some(443), 1000));
        assert_eq!((ports[1].port, ports[1].ingress), (Some(53), Counters::default()));
    }

    #[test]
    fn every_cell_is_in_exactly_one_total() {
        let cells: Vec<Cell> = (0..empty().len() as u64).map(|n| cell(n + 1)).collect();
        let named = name_cells(&cells, &names());
        let totals = totals(&named);
        let all = totals.billed.wire_bytes()
            + totals.unbilled.wire_bytes()
            + totals.loopback.wire_bytes();
        // 1 + 2 + ... + 6144: eight interfaces of 256 cells, for each of the three origins.
        assert_eq!(all, 6144 * 6145 / 2);
        // And what may be anybody's in none.
        assert_eq!(unattributed(&cells).wire_bytes(), 6400 * 6401 / 2 - all);
        let legs = sum(&named, |cell| cell.leg == Leg::Client).wire_bytes()
            + sum(&named, |cell| cell.leg == Leg::Upstream).wire_bytes();
        assert_eq!(legs, all);
    }

    #[test]
    fn a_decrease_is_an_error_and_never_a_huge_number() {
        let (mut start, mut end) = (empty(), empty());
        start[7] = cell(2);
        end[7] = cell(1);
        assert_eq!(difference(&start, &end), Err(Backwards));
        assert_eq!(difference(&end, &start).unwrap()[7].wire_bytes, 1);
    }
}
