//! One line per traced packet, in the manner of tcpdump: `--trace-packets`.
//!
//! ```text
//! in  eth0 IP 10.77.1.2.40000 > 10.77.1.1.443: tcp [S.] client payload 0 wire 60 B in 1 packet
//! ```
//!
//! What the numbers of a record stand for may grow in the program before it does here: an unknown one
//! is printed as a number.

use std::{
    fmt::Write as _,
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
};

use traffic_ebpf::{
    EGRESS, INGRESS, IPV4, IPV6, PORT_SLOT_FIRST, PORT_SLOT_UPSTREAM_ICMP,
    PORT_SLOT_UPSTREAM_OTHER, PORT_SLOT_UPSTREAM_TCP, PORT_SLOT_UPSTREAM_UDP, PacketRecord,
};

use super::text::tame;

/// Writes a packet as one line. `name` gives the interface of a number in the target's namespace.
pub fn write(
    record: &PacketRecord,
    name: &dyn Fn(u32) -> Option<String>,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "{}", line(record, name))
}

/// Returns a packet as one line, without a newline.
pub fn line(record: &PacketRecord, name: &dyn Fn(u32) -> Option<String>) -> String {
    let direction = match u32::from(record.direction) {
        INGRESS => "in ",
        EGRESS => "out",
        _ => "?  ",
    };
    let interface = match name(record.ifindex) {
        Some(name) => tame(&name),
        None => format!("if{}", record.ifindex),
    };
    let (family, source, destination) = addresses(record);
    let has_ports = matches!(record.protocol, PORT_SLOT_UPSTREAM_TCP | PORT_SLOT_UPSTREAM_UDP);
    let (source, destination) = match has_ports {
        true => (
            format!("{source}.{}", record.source_port),
            format!("{destination}.{}", record.destination_port),
        ),
        false => (source, destination),
    };
    let leg = if record.port_slot >= PORT_SLOT_FIRST { "client" } else { "upstream" };
    let packets = record.wire_packets;
    let mut line = format!(
        "{direction} {interface} {family} {source} > {destination}: {} {leg} payload {} wire {} B in \
         {packets} packet{}",
        protocol(record),
        record.payload_bytes,
        record.wire_bytes,
        if packets == 1 { "" } else { "s" },
    );
    if record.gso_size != 0 {
        // Writing to a string cannot fail.
        let _ = write!(line, " (gso {}, {} B at the hook)", record.gso_size, record.bytes);
    }
    line
}

fn addresses(record: &PacketRecord) -> (&'static str, String, String) {
    let v4 = |address: [u8; 16]| {
        Ipv4Addr::new(address[0], address[1], address[2], address[3]).to_string()
    };
    let v6 = |address: [u8; 16]| Ipv6Addr::from(address).to_string();
    match u32::from(record.family) {
        IPV4 => ("IP", v4(record.source), v4(record.destination)),
        IPV6 => ("IP6", v6(record.source), v6(record.destination)),
        _ => ("IP?", v6(record.source), v6(record.destination)),
    }
}

fn protocol(record: &PacketRecord) -> String {
    match record.protocol {
        PORT_SLOT_UPSTREAM_TCP => format!("tcp [{}]", tcp_flags(record.tcp_flags)),
        PORT_SLOT_UPSTREAM_UDP => "udp".to_owned(),
        PORT_SLOT_UPSTREAM_ICMP => "icmp".to_owned(),
        PORT_SLOT_UPSTREAM_OTHER => "other".to_owned(),
        number => format!("protocol {number}"),
    }
}

/// Returns the letters of tcpdump, in the order of the bits (RFC 9293, 3.1).
fn tcp_flags(flags: u8) -> String {
    match flags {
        0 => "none".to_owned(),
        _ => "FSRP.UEW"
            .chars()
            .enumerate()
            .filter(|(bit, _)| flags >> bit & 1 == 1)
            .map(|(_, letter)| letter)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(address: [u8; 4]) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&address);
        bytes
    }

    fn eth0(ifindex: u32) -> Option<String> {
        (ifindex == 2).then(|| "eth0".to_owned())
    }

    fn syn_ack() -> PacketRecord {
        PacketRecord {
            source: v4([10, 77, 1, 2]),
            destination: v4([10, 77, 1, 1]),
            ifindex: 2,
            bytes: 60,
            wire_packets: 1,
            wire_bytes: 60,
            source_port: 40_000,
            destination_port: 443,
            direction: INGRESS as u8,
            family: IPV4 as u8,
            protocol: PORT_SLOT_UPSTREAM_TCP,
            port_slot: PORT_SLOT_FIRST,
            tcp_flags: 0x12,
            ..PacketRecord::ZERO
        }
    }

    #[test]
    fn a_packet_reads_like_tcpdump() {
        assert_eq!(
            line(&syn_ack(), &eth0),
            "in  eth0 IP 10.77.1.2.40000 > 10.77.1.1.443: tcp [S.] client payload 0 wire 60 B in 1 \
             packet"
        );
    }

    #[test]
    fn a_super_packet_shows_both_of_its_lengths() {
        // 45 segments of 1448 bytes behind 52 bytes of headers: 65,212 B at the hook, 67,500 outside.
        let packet = PacketRecord {
            bytes: 65_212,
            payload_bytes: 65_160,
            wire_packets: 45,
            wire_bytes: 67_500,
            gso_size: 1448,
            direction: EGRESS as u8,
            port_slot: PORT_SLOT_UPSTREAM_TCP,
            tcp_flags: 0x18,
            ifindex: 9,
            ..syn_ack()
        };
        assert_eq!(
            line(&packet, &eth0),
            "out if9 IP 10.77.1.2.40000 > 10.77.1.1.443: tcp [P.] upstream payload 65160 wire 67500 B \
             in 45 packets (gso 1448, 65212 B at the hook)"
        );
    }

    #[test]
    fn ipv6_is_compressed_and_icmp_has_no_ports() {
        let mut destination = [0; 16];
        (destination[0], destination[1], destination[15]) = (0xfe, 0x80, 1);
        let packet = PacketRecord {
            source: [0; 16],
            destination,
            family: IPV6 as u8,
            protocol: PORT_SLOT_UPSTREAM_ICMP,
            port_slot: PORT_SLOT_UPSTREAM_ICMP,
            payload_bytes: 20,
            ..syn_ack()
        };
        assert_eq!(
            line(&packet, &eth0),
            "in  eth0 IP6 :: > fe80::1: icmp upstream payload 20 wire 60 B in 1 packet"
        );
    }

    #[test]
    fn numbers_from_a_newer_program_are_printed_as_such() {
        let packet = PacketRecord {
            direction: 7,
            family: 255,
            protocol: 200,
            port_slot: 255,
            ..PacketRecord::ZERO
        };
        assert_eq!(
            line(&packet, &eth0),
            "?   if0 IP? :: > ::: protocol 200 client payload 0 wire 0 B in 0 packets"
        );
    }

    #[test]
    fn every_flag_has_its_letter() {
        assert_eq!(tcp_flags(0xff), "FSRP.UEW");
        assert_eq!(tcp_flags(0), "none");
    }
}
