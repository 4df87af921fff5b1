//! The packets of a test run: what the hook is given without any traffic.

/// An Ethernet header comes first, and the kernel takes it off again. Source: `bpf_prog_test_run_skb()`.
const ETHERNET: usize = 14;
/// Bytes of `struct __sk_buff`, include/uapi/linux/bpf.h.
const CONTEXT: usize = 192;
// Offsets of its members.
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A packet, and what the kernel is told about it.
#[derive(Debug, Clone)]
pub struct TestPacket {
    /// For tables.
    pub name: &'static str,
    data: Vec<u8>,
    gso_size: u32,
}

/// The local port of every test packet: nobody listens on it, so it is the upstream leg.
pub const LOCAL_PORT: u16 = 40_000;
const REMOTE_PORT: u16 = 443;

impl TestPacket {
    /// The kinds that the cost is told for.
    pub fn kinds() -> [Self; 5] {
        [
            Self::new("ACK 52 B", 4, TCP, 0, 0),
            Self::new("TCP 1500 B", 4, TCP, 1448, 0),
            // As large as a test packet may be: it must fit in a page.
            Self::new("GSO 2 x 1448", 4, TCP, 2 * 1448, 1448),
            Self::new("UDP 92 B", 4, UDP, 64, 0),
            Self::new("IPv6 1500 B", 6, TCP, 1428, 0),
        ]
    }

    fn new(name: &'static str, version: u8, protocol: u8, payload: usize, gso_size: u32) -> Self {
        let transport = if protocol == TCP { tcp() } else { udp(payload) };
        let length = transport.len() + payload;
        let mut data = vec![0; ETHERNET - 2];
        if version == 4 {
            data.extend([0x08, 0x00]);
            data.extend(ipv4(protocol, length));
        } else {
            data.extend([0x86, 0xdd]);
            data.extend(ipv6(protocol, length));
        }
        data.extend(transport);
        data.resize(data.len() + payload, 0xa5);
        Self { name, data, gso_size }
    }

    /// The frame.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The context: `ifindex` is the interface, in the caller's network namespace.
    pub fn context(&self, ifindex: u32) -> [u8; CONTEXT] {
        let mut context = [0; CONTEXT];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&self.gso_size.to_ne_bytes());
        context
    }
}

fn ipv4(protocol: u8, length: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + length as u16).to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    header.extend([10, 77, 2, 2, 10, 77, 2, 1]);
    header
}

fn ipv6(protocol: u8, length: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((length as u16).to_be_bytes());
    header.extend([protocol, 64]);
    for host in [2, 1] {
        header.extend([0xfd, 0x77, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    header
}

/// With timestamps, as Linux sends it.
fn tcp() -> Vec<u8> {
    let mut header = ports();
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0]);
    header.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]);
    header
}

fn udp(payload: usize) -> Vec<u8> {
    let mut header = ports();
    header.extend((8 + payload as u16).to_be_bytes());
    header.extend([0, 0]);
    header
}

/// The local port first, as on the way out.
fn ports() -> Vec<u8> {
    [LOCAL_PORT.to_be_bytes(), REMOTE_PORT.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_long_as_their_names_say() {
        let lengths = TestPacket::kinds().map(|packet| packet.data.len() - ETHERNET);
        assert_eq!(lengths, [52, 1500, 2948, 92, 1500]);
    }
}
