use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR};
use proptest::prelude::*;

use super::*;

// Captured from Linux 6.18 in a namespace of its own: a transparent listener on 127.0.0.1:443, an
// accepted connection, one not yet accepted, one in TIME_WAIT; all in the cgroup with id 44.
const TCP4: &str = "\
7c00000014000200010000007c6b0000020a000001bb00007f0000010000000000000000000000000000000000000000\
0000000000000000000000000d10000000000000000000000100000080000000000000000ec800000500080000000000\
08000f00000000000c0015002c0000000000000006001600720000006000000014000200010000007c6b000002060300\
01bbe3867f0000010000000000000000000000007f000001000000000000000000000000000000000e10000000000000\
8ce900000000000000000000000000000000000008000f00000000007c00000014000200010000007c6b000002010000\
01bbe3947f0000010000000000000000000000007f000001000000000000000000000000000000000f10000000000000\
0000000000000000000000000000000000000000050008000000000008000f00000000000c0015002c00000000000000\
06001600720000007c00000014000200010000007c6b00000201000001bbe3787f000001000000000000000000000000\
7f0000010000000000000000000000000000000010100000000000000000000000000000000000000000000010c80000\
050008000000000008000f00000000000c0015002c0000000000000006001600720000007c0000001400020001000000\
7c6b000002010000e37801bb7f0000010000000000000000000000007f00000100000000000000000000000000000000\
1110000000000000000000000000000000000000000000000fc80000050008000000000008000f00000000000c001500\
2c0000000000000006001600520000007c00000014000200010000007c6b000002010000e39401bb7f00000100000000\
00000000000000007f000001000000000000000000000000000000001210000000000000000000000000000000000000\
0000000013c80000050008000000000008000f00000000000c0015002c000000000000000600160052000000";
// An MPTCP socket listening on [::1]:8443: the dump shows its subflow, with the descriptor's inode.
const TCP6: &str = "\
8400000014000200010000007c6b00000a0a000020fb0000000000000000000000000000000000010000000000000000\
00000000000000000000000013100000000000000000000000000000800000000000000014c800000500080000000000\
05000b000100000008000f00000000000c0015002c000000000000000600160012000000";
// A UDP socket bound to [::]:8443.
const UDP6: &str = "\
8400000014000200010000007c6b00000a07000020fb0000000000000000000000000000000000000000000000000000\
00000000000000000000000014100000000000000000000000000000000000000000000016c800000500080000000000\
05000b000000000008000f00000000000c0015002c000000000000000600160010000000";
const DONE: &str = "1400000003000200010000007c6b000000000000";
/// Its answer to a protocol that it has no module for: the end, with -ENOENT.
const NO_MODULE: &str = "1400000003000200010000007c6b0000feffffff";

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn taken(protocol: Protocol, hex: &str) -> Dump {
    let mut dump = Dump::new(protocol);
    dump.take(&bytes(hex)).unwrap();
    dump
}

fn refusal(bytes: &[u8]) -> io::Error {
    Dump::new(Protocol::Tcp).take(bytes).unwrap_err()
}

#[test]
fn listener_and_its_connections_are_read() {
    let sockets = taken(Protocol::Tcp, TCP4).sockets;
    let seen: Vec<_> = sockets
        .iter()
        .map(|s| (s.local.port(), s.state.0, s.inode, s.cgroup_id, s.transparent))
        .collect();
    let expected = [
        (443, 10, 51214, Some(44), true),
        (443, 6, 0, None, false),
        (443, 1, 0, Some(44), true),
        (443, 1, 51216, Some(44), true),
        (58232, 1, 51215, Some(44), false),
        (58260, 1, 51219, Some(44), false),
    ];
    assert_eq!(seen, expected);
    assert_eq!(sockets[4].local.to_string(), "127.0.0.1:58232");
    assert_eq!(sockets[4].remote.to_string(), "127.0.0.1:443");
    assert_eq!((sockets[4].family, sockets[4].uid), (Family::Ipv4, 0));
}

#[test]
fn mptcp_listener_and_udp_socket_are_read() {
    let tcp = taken(Protocol::Tcp, TCP6).sockets.remove(0);
    assert_eq!((tcp.local.to_string().as_str(), tcp.state), ("[::1]:8443", State::LISTEN));
    assert_eq!((tcp.inode, tcp.cgroup_id), (51220, Some(44)));
    let udp = taken(Protocol::Udp, UDP6).sockets.remove(0);
    assert_eq!((udp.local.to_string().as_str(), udp.state), ("[::]:8443", State::CLOSE));
    assert_eq!((udp.family, udp.protocol), (Family::Ipv6, Protocol::Udp));
    assert_eq!((udp.inode, udp.cgroup_id), (51222, Some(44)));
}

#[test]
fn only_the_end_ends_a_dump() {
    let mut dump = taken(Protocol::Tcp, TCP4);
    assert!(!dump.done);
    dump.take(&bytes(DONE)).unwrap();
    assert!(dump.done);
    assert_eq!(dump.sockets.len(), 6);
}

#[test]
fn interrupted_dump_is_no_list() {
    let mut interrupted = bytes(TCP6);
    interrupted[6] |= NLM_F_DUMP_INTR as u8;
    assert_eq!(refusal(&interrupted).raw_os_error(), Some(libc::EINTR));
    let mut at_the_end = bytes(DONE);
    at_the_end[6] |= NLM_F_DUMP_INTR as u8;
    assert_eq!(refusal(&at_the_end).raw_os_error(), Some(libc::EINTR));
}

#[test]
fn refusals_keep_their_errno_and_name_the_remedy() {
    let error = refusal(&bytes(NO_MODULE));
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    let text = refused(Protocol::Udp, Family::Ipv6, error).to_string();
    assert!(text.contains("udp ipv6") && text.contains("modprobe udp_diag"), "{text}");

    let mut message = bytes(NO_MODULE);
    message[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
    message[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
    message.extend([0; 16]);
    message[0] = 36;
    assert_eq!(refusal(&message).raw_os_error(), Some(libc::EPERM));
}

#[test]
fn truncated_messages_are_errors() {
    let whole = bytes(TCP6);
    for length in 1..whole.len() {
        refusal(&whole[..length]);
    }
    // A length that does not even cover the header must not loop for ever.
    let mut short = bytes(DONE);
    short[4..6].copy_from_slice(&NLMSG_DONE.to_ne_bytes());
    short[0] = 0;
    refusal(&short);
}

#[test]
fn unknown_and_misshapen_attributes_are_ignored() {
    let mut message = bytes(UDP6);
    let id = message.windows(4).position(|w| w == [0x0c, 0, 0x15, 0]).unwrap();
    message[id + 2] = 0x63;
    let mut dump = Dump::new(Protocol::Udp);
    dump.take(&message).unwrap();
    assert_eq!(dump.sockets[0].cgroup_id, None);
    assert_eq!(dump.sockets[0].local.port(), 8443);
}

#[test]
fn kernel_without_cgroup_ids_is_told_from_sockets_without() {
    let mut sockets = taken(Protocol::Tcp, TCP4).sockets;
    assert_eq!(require_cgroup_ids(sockets.clone()).unwrap().len(), 6);
    assert!(require_cgroup_ids(vec![sockets[1].clone()]).is_ok());
    assert!(require_cgroup_ids(Vec::new()).is_ok());
    for socket in &mut sockets {
        socket.cgroup_id = None;
    }
    let error = require_cgroup_ids(sockets).unwrap_err().to_string();
    assert!(error.contains("Linux 5.8"), "{error}");
}

#[test]
fn request_is_what_the_kernel_was_asked_by_hand() {
    let bytes = request(Protocol::Tcp, Family::Ipv6, &StateFlags::LISTEN);
    assert_eq!(bytes.len(), 72);
    assert_eq!(bytes[..8], [72, 0, 0, 0, 20, 0, 1, 3]);
    assert_eq!(bytes[16..24], [10, 6, 0, 0, 0, 4, 0, 0]);
    assert!(bytes[24..].iter().all(|&byte| byte == 0));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Dump::new(Protocol::Tcp).take(&bytes);
    }

    #[test]
    fn no_damage_makes_the_parser_panic(
        damage in prop::collection::vec((0..716_usize, any::<u8>()), 1..8),
        length in 0..=716_usize,
    ) {
        let mut message = bytes(TCP4);
        for (at, byte) in damage {
            message[at] = byte;
        }
        let mut dump = Dump::new(Protocol::Tcp);
        let _ = dump.take(&message[..length]);
        prop_assert!(dump.sockets.len() <= 6);
    }
}
