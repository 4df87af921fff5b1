//! What TCP carries again is told apart, to the byte, by leg and direction.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::unistd::gettid;
use traffic_agent::report::{Direction, Leg};
use traffic_lab::handmade::{Connection, FarEnd, Side};
use traffic_lab::packet::{self, ACK, Family, RST};
use traffic_lab::proxy::wait_until_closed;
use traffic_lab::topology::LegTrace;
use traffic_lab::workload::{Server, Workload};
use traffic_lab::{Filter, Lab, Namespace, Stack};
use traffic_tests::rules;
use traffic_tests::site::{Counted, Counting, RELAY_PORT, Site, any, tcp};

const BULK_BYTES: u64 = 3_000_000;

const BOTH_WAYS: Workload = Workload {
    name: "both",
    connections: 4,
    parallel: 2,
    upload_bytes: BULK_BYTES,
    download_bytes: BULK_BYTES,
    at_once: false,
};

/// One packet in 40 each way.
const LOST: [&str; 2] = [
    "INPUT -p tcp -m statistic --mode random --probability 0.025 -j DROP",
    "OUTPUT -p tcp -m statistic --mode random --probability 0.025 -j DROP",
];
/// What was lost has come by then, however often it was lost.
const CLOSED_WITHIN: Duration = Duration::from_secs(60);

/// Drives traffic while both far ends lose packets behind their captures, so that a capture has what the
/// proxy sends and receives: outgoing packets are lost before the capture sees them, incoming ones after.
///
/// A FIN that is lost is sent again only after silence that would be taken for the end: so nothing is lost any
/// more once the bytes are through, and the end is that of all connections.
fn drive_with_loss(site: &Site, family: Family, server: &Server) -> Result<()> {
    for (far_end, rule) in lossy(site) {
        rules::add(far_end, family, rule)?;
    }
    site.drive(&BOTH_WAYS, family, server)?;
    for (far_end, rule) in lossy(site) {
        rules::remove(far_end, family, rule)?;
    }
    let Lab { client, proxy, upstream, .. } = &site.lab;
    [client, proxy, upstream].into_iter().try_for_each(|namespace| {
        // The thread's own number, because `/proc` has the network of the main thread at the process's.
        let closed = || wait_until_closed(gettid().as_raw().unsigned_abs(), None, CLOSED_WITHIN);
        namespace.run_in(closed)?
    })
}

/// Where packets are lost, and by which rule.
fn lossy(site: &Site) -> impl Iterator<Item = (&Namespace, &'static str)> {
    let far_ends = [&site.lab.client, &site.lab.upstream];
    far_ends.into_iter().flat_map(|far_end| LOST.map(|rule| (far_end, rule)))
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
    for family in [Family::Ipv4, Family::Ipv6] {
        let counting = site.count()?;
        drive_with_loss(&site, family, &server)?;
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

/// Bytes of a segment that is made by hand; what it carries is its number.
const PART: u32 = 100;

fn part(number: u32) -> [u8; PART as usize] {
    [number as u8; PART as usize]
}

/// Sends a part in its place, and waits for what acknowledges that it came.
fn send_part(connection: &Connection<'_>, number: u32) -> Result<()> {
    connection.send_ahead(number * PART, ACK, &part(number))?;
    connection.see(ACK).map(drop)
}

/// The proxy takes a connection, reads so many parts, which have come in order, and then the far end
/// resets it, so that neither has anything to send again.
fn take(listener: &TcpListener, connection: &Connection<'_>, parts: u32) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    let expected: Vec<u8> = (0..parts).flat_map(part).collect();
    let mut came = vec![0; expected.len()];
    stream.read_exact(&mut came)?;
    assert_eq!(came, expected);
    connection.send_ahead(parts * PART, RST, &[])?;
    ensure!(stream.read(&mut [0]).is_err(), "no reset has come");
    Ok(())
}

/// Ends the count, and holds what the client has sent again against `bytes`; the proxy has sent nothing.
fn assert_again(counting: Counting<'_>, bytes: u64) -> Result<()> {
    let counted = counting.finish()?;
    counted.assert_books_equal_capture(&[tcp(RELAY_PORT)]);
    let link = &counted.trace.client;
    let [ingress, egress] = [Direction::Ingress, Direction::Egress]
        .map(|direction| carried_again(&counted, Leg::Client, link, direction));
    assert_eq!((ingress, egress), ((bytes, bytes), (0, 0)), "each: counted, captured");
    Ok(())
}

#[test]
fn data_that_completed_the_handshake_and_comes_again_is_a_repeat() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let listener = site.factory.tcp_listener(any(RELAY_PORT))?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        // The third packet of the handshake is lost: the first data stands for it, and comes twice.
        let connection = far.half_open(RELAY_PORT)?;
        for number in [0, 0, 1] {
            send_part(&connection, number)?;
        }
        take(&listener, &connection, 2)?;
        assert_again(counting, PART.into())?;
    }
    Ok(())
}

#[test]
fn reordering_alone_is_no_repeat() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for family in [Family::Ipv4, Family::Ipv6] {
        let listener = site.factory.tcp_listener(any(RELAY_PORT))?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        for order in orders {
            let connection = far.connect(RELAY_PORT)?;
            order.iter().try_for_each(|&number| send_part(&connection, number))?;
            take(&listener, &connection, 3)?;
        }
        assert_again(counting, 0)?;
    }
    Ok(())
}

#[test]
fn a_repeat_among_reordered_segments_is_told_to_the_byte() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let listener = site.factory.tcp_listener(any(RELAY_PORT))?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let connection = far.connect(RELAY_PORT)?;
        // Before and after the hole is filled.
        for number in [0, 2, 2, 1, 0] {
            send_part(&connection, number)?;
        }
        take(&listener, &connection, 3)?;
        assert_again(counting, 2 * u64::from(PART))?;
    }
    Ok(())
}
