//! `--trace-packets N` describes the first N packets, and none without.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;
use traffic_agent::kernel::{Counter, Options};
use traffic_ebpf::{EGRESS, INGRESS, IPV4, PORT_SLOT_FIRST, PORT_SLOT_UPSTREAM_TCP, PacketRecord};
use traffic_lab::Stack;
use traffic_lab::packet::Family;
use traffic_lab::topology::addresses;
use traffic_tests::exchange::with_listener;
use traffic_tests::site::{Counting, Site, any};

const PORT: u16 = 1171;
/// TCP's flags.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// One connection is traced with room for so many packets.
fn traced(packets: u32, family: Family) -> Result<Vec<PacketRecord>> {
    let site = Site::new(Stack::GsoGro)?;
    let mut plan = site.plan()?;
    plan.trace_packets = packets;
    let mut counting: Counting<'_> = site.count_as(plan)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    let to = (addresses(family).proxy_client, PORT).into();
    with_listener(&site.lab.client, to, &listener)?;
    counting.settle()?;
    let records = counting.measurement.take_packets();
    assert_eq!(counting.measurement.take_packets(), []);
    // Tracing takes nothing away from counting.
    counting.finish()?.assert_books_equal_capture(&[traffic_tests::site::tcp(PORT)]);
    Ok(records)
}

#[test]
fn the_first_five_packets_are_described() -> Result<()> {
    let records = traced(5, Family::Ipv4)?;
    assert_eq!(records.len(), 5);
    let (syn, syn_ack, ack) = (records[0], records[1], records[2]);
    assert_eq!([syn.tcp_flags, syn_ack.tcp_flags, ack.tcp_flags], [SYN, SYN | ACK, ACK]);
    let directions = [syn.direction, syn_ack.direction, ack.direction].map(u32::from);
    assert_eq!(directions, [INGRESS, EGRESS, INGRESS]);
    let addresses = addresses(Family::Ipv4);
    for record in &records {
        assert_eq!(u32::from(record.family), IPV4);
        assert_eq!(record.protocol, PORT_SLOT_UPSTREAM_TCP);
        assert_eq!(record.port_slot, PORT_SLOT_FIRST);
        let (port, address) = match u32::from(record.direction) {
            INGRESS => (record.destination_port, record.destination),
            _ => (record.source_port, record.source),
        };
        assert_eq!(port, PORT);
        assert_eq!(
            IpAddr::from([address[0], address[1], address[2], address[3]]),
            addresses.proxy_client
        );
    }
    // 20 of IP, 40 and 32 of TCP.
    assert_eq!([syn.bytes, ack.bytes, ack.wire_bytes, ack.payload_bytes], [60, 52, 52, 0]);
    Ok(())
}

#[test]
fn ipv6_addresses_are_whole() -> Result<()> {
    let records = traced(1, Family::Ipv6)?;
    let [syn] = records.as_slice() else { panic!("{} records", records.len()) };
    let addresses = addresses(Family::Ipv6);
    assert_eq!(IpAddr::from(Ipv6Addr::from(syn.source)), addresses.client);
    assert_eq!(IpAddr::from(Ipv6Addr::from(syn.destination)), addresses.proxy_client);
    assert_eq!((syn.bytes, syn.tcp_flags), (80, SYN));
    Ok(())
}

#[test]
fn nothing_is_described_unless_asked_for() -> Result<()> {
    assert_eq!(traced(0, Family::Ipv4)?, []);
    Ok(())
}

#[test]
fn a_thousand_records_have_room_at_once() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let mut counter = Counter::load(&Options { trace_packets: 1000, ..Options::default() })?;
    counter.attach(site.cgroup.path())?;
    let to = (addresses(Family::Ipv4).upstream, 9).into();
    let socket = site.factory.udp_unbound(to)?;
    for _ in 0..1100 {
        socket.send_to(&[1; 10], to)?;
    }
    assert_eq!(counter.trace().take_packets().len(), 1000);
    Ok(())
}
