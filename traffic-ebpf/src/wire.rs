//! From a super-packet to the wire: how many packets more it becomes.

/// Returns how many wire packets carry a (super-)packet with `payload` bytes behind its headers, beyond
/// the first one.
///
/// * `gso_size`: payload bytes per segment; 0 means "not segmented".
///
/// Computed from `gso_size`, never from `gso_segs`, which is 0 on the ingress of virtio, xen and tun.
/// Source: `qdisc_pkt_len_segs_init()`, net/core/dev.c, its `SKB_GSO_DODGY` branch.
///
/// `ceil(payload / gso_size) - 1`, by one division; 64 bits, as the program calculates.
#[inline(always)]
pub const fn split_packets(payload: u64, gso_size: u64) -> u64 {
    match payload.saturating_sub(1).checked_div(gso_size) {
        Some(packets) => packets,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_packet_of_45_segments_is_45_wire_packets() {
        // 45 segments of 1448 bytes of payload behind 52 bytes of IPv4 + TCP header with timestamps.
        assert_eq!(1 + split_packets(45 * 1448, 1448), 45);
    }

    #[test]
    fn last_segment_may_be_short() {
        assert_eq!(1 + split_packets(2 * 1448 + 1, 1448), 3);
        assert_eq!(1 + split_packets(3 * 1448 - 1, 1448), 3);
    }

    #[test]
    fn packet_without_gso_size_is_itself() {
        assert_eq!(split_packets(65_000, 0), 0);
        // A pure ACK of a GSO flow, and a super-packet of exactly one segment.
        assert_eq!(split_packets(0, 1448), 0);
        assert_eq!(split_packets(1448, 1448), 0);
    }

    #[test]
    fn udp_gso_is_one_packet_per_datagram() {
        // 60,000 bytes by UDP_SEGMENT = 1200: 50 datagrams.
        assert_eq!(1 + split_packets(60_000, 1200), 50);
    }

    #[test]
    fn it_is_the_rounded_up_quotient_for_every_payload() {
        for gso_size in [1, 2, 7, 1448] {
            for payload in 1..4 * 1448_u64 {
                assert_eq!(1 + split_packets(payload, gso_size), payload.div_ceil(gso_size));
            }
        }
        assert_eq!(split_packets(u64::MAX, 1), u64::MAX - 1);
    }
}
