//! From a super-packet to the wire: how many packets it becomes, and how many bytes they have.

/// Returns how many wire packets carry a (super-)packet with `payload` bytes behind its headers.
///
/// * `gso_size`: payload bytes per segment; 0 means "not segmented".
///
/// Computed from `gso_size`, never from `gso_segs`, which is 0 on the ingress of virtio, xen and tun.
/// Source: `qdisc_pkt_len_segs_init()`, net/core/dev.c, its `SKB_GSO_DODGY` branch.
#[inline(always)]
pub const fn wire_packets(payload: u32, gso_size: u32) -> u32 {
    if gso_size == 0 || payload <= gso_size { 1 } else { payload.div_ceil(gso_size) }
}

/// Returns the L3 bytes on the wire of a (super-)packet of `l3_bytes`, of which `header_bytes` are the
/// IP and transport headers that every one of its `packets` segments repeats.
#[inline(always)]
pub const fn wire_bytes(l3_bytes: u32, header_bytes: u32, packets: u32) -> u64 {
    l3_bytes as u64 + (packets as u64 - 1) * header_bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_packet_of_45_segments_is_45_wire_packets() {
        // 45 segments of 1448 bytes of payload behind 52 bytes of IPv4 + TCP header with timestamps.
        assert_eq!(wire_packets(45 * 1448, 1448), 45);
        assert_eq!(wire_bytes(45 * 1448 + 52, 52, 45), 45 * 1500);
    }

    #[test]
    fn last_segment_may_be_short() {
        assert_eq!(wire_packets(2 * 1448 + 1, 1448), 3);
        assert_eq!(wire_bytes(2 * 1448 + 1 + 52, 52, 3), 2 * 1500 + 53);
    }

    #[test]
    fn packet_without_gso_size_is_itself() {
        assert_eq!(wire_packets(65_000, 0), 1);
        assert_eq!(wire_bytes(1500, 52, 1), 1500);
        // A pure ACK of a GSO flow, and a super-packet of exactly one segment.
        assert_eq!(wire_packets(0, 1448), 1);
        assert_eq!(wire_packets(1448, 1448), 1);
    }

    #[test]
    fn udp_gso_counts_a_udp_header_per_segment() {
        // 60,000 bytes by UDP_SEGMENT = 1200 over IPv4: 50 datagrams of 20 + 8 + 1200 bytes.
        assert_eq!(wire_packets(60_000, 1200), 50);
        assert_eq!(wire_bytes(60_028, 28, 50), 50 * 1228);
    }

    #[test]
    fn no_input_overflows() {
        assert_eq!(wire_packets(u32::MAX, u32::MAX), 1);
        assert_eq!(wire_packets(u32::MAX, u32::MAX - 1), 2);
        assert_eq!(wire_packets(u32::MAX, 1), u32::MAX);
        let most = wire_bytes(u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(most, u32::MAX as u64 + (u32::MAX as u64 - 1) * u32::MAX as u64);
    }
}
