//! The number of changes that nf_tables has seen in a network namespace.
//!
//! Every transaction counts: a rule added or deleted, a reload, `iptables-nft -Z`, an element of a set. Listing
//! and `nft reset counters` do not (tried on Linux 6.18). So with the same generation twice, the rules are the
//! same, and an expensive listing can be spared where nothing in it counts the target's ports.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETGEN; include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h.
const GET_GENERATION: u16 = (10 << 8) | 16;
/// NFT_MSG_NEWGEN, the answer.
const NEW_GENERATION: u16 = (10 << 8) | 15;
/// NFTA_GEN_ID: 32 bits, big-endian.
const GENERATION_ID: u16 = 1;
/// struct nlmsghdr and struct nfgenmsg.
const HEADERS: usize = 20;
const NLM_F_REQUEST: u16 = 1;

/// Asks for the generation of the calling thread's network namespace. Needs CAP_NET_ADMIN.
///
/// # Errors
///
/// Without the right, or without nf_tables in this kernel.
pub(crate) fn read() -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(), 0)?;
    // The kernel answers within the call that asks: an answer that is not there will not come.
    socket.set_non_blocking(true)?;
    let mut answer = Vec::with_capacity(1024);
    socket.recv(&mut answer, 0)?;
    parse(&answer).ok_or_else(|| io::Error::other("nf_tables answers with no generation"))
}

fn request() -> [u8; HEADERS] {
    let mut message = [0; HEADERS];
    message[0..4].copy_from_slice(&(HEADERS as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&GET_GENERATION.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message
}

/// Finds the number in an answer; `None` in an error or anything else.
fn parse(message: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    if kind != NEW_GENERATION {
        return None;
    }
    let mut rest = message.get(HEADERS..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(0..2)?.try_into().ok()?));
        let attribute = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        if attribute == GENERATION_ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As read on Linux 6.18: generation 3, the process's number, its name.
    #[cfg(target_endian = "little")]
    const ANSWER: [u8; 48] = [
        0x30, 0, 0, 0, 0x0f, 0x0a, 0, 0, 1, 0, 0, 0, 0x9f, 0x20, 0, 0, 0, 0, 0, 0, // headers
        8, 0, 1, 0, 0, 0, 0, 3, 8, 0, 2, 0, 0, 0, 0x20, 0x9f, // generation, process
        0x0c, 0, 3, 0, b'p', b'y', b't', b'h', b'o', b'n', b'3', 0,
    ];

    #[test]
    #[cfg(target_endian = "little")]
    fn the_generation_is_found_in_the_kernels_answer() {
        assert_eq!(parse(&ANSWER), Some(3));
        let mut reordered = ANSWER.to_vec();
        reordered[20..36].rotate_left(8);
        assert_eq!(parse(&reordered), Some(3));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn what_is_cut_short_or_an_error_is_no_generation() {
        for length in 0..28 {
            assert_eq!(parse(&ANSWER[..length]), None, "{length} bytes");
        }
        let mut error = ANSWER;
        error[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        assert_eq!(parse(&error), None);
        // A length of 0 must not go round for ever.
        let mut stuck = ANSWER;
        stuck[20..24].fill(0);
        assert_eq!(parse(&stuck), None);
    }
}
