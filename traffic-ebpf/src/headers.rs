//! What the headers of a packet say.
//!
//! An ordinary packet (IPv4 without options, IPv6 without extension headers) has its fields at fixed
//! places; everything else is parsed out of line.

use core::arch::asm;

use aya_ebpf::bindings::__sk_buff;
use traffic_ebpf::{
    FAMILIES, IPV4, IPV6, PORT_SLOT_UPSTREAM_ICMP, PORT_SLOT_UPSTREAM_OTHER,
    PORT_SLOT_UPSTREAM_TCP, PORT_SLOT_UPSTREAM_UDP, TABLE_BYTES,
};

use crate::program::masked;

// Protocol numbers. Source: IANA "Assigned Internet Protocol Numbers".
const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;

/// Source: `ETH_P_IPV6`, include/uapi/linux/if_ether.h.
const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const IPV4_HEADER: usize = 20;
pub const IPV6_HEADER: usize = 40;
pub const UDP_HEADER: u64 = 8;
/// Version 4 and a header of five words: no options.
const IPV4_PLAIN: u8 = 0x45;
/// Offset of the byte that holds the length of a TCP header.
pub const TCP_DATA_OFFSET: usize = 12;
/// Offset of the byte that holds the flags of a TCP header.
pub const TCP_FLAGS: u64 = 13;
/// More extension headers than any packet carries that a socket sends or accepts.
pub const EXTENSION_HEADERS: u32 = 8;
/// Hop-by-hop option "jumbo payload". Source: RFC 2675.
const OPTION_JUMBO: u8 = 0xc2;
/// Bytes of the extension header with that option.
const JUMBO_HEADER: u64 = 8;

/// What the headers say, in one number: the program has few registers, and what is put aside on the
/// stack costs more than to take a number apart.
///
/// From bit 0: bytes of all headers that are on the wire (16 bits), family (1), protocol (2), whether the
/// kernel takes a jumbo header out again before the wire (1); from bit 32: where the transport header
/// begins.
#[derive(Clone, Copy)]
pub struct Headers(u64);

impl Headers {
    const FAMILY: u32 = 16;
    const PROTOCOL: u32 = 17;
    const JUMBO: u32 = 19;
    const TRANSPORT: u32 = 32;

    /// `protocol` is the packet's upstream port slot; `l3` and `l4` are the lengths of the headers.
    #[inline(always)]
    const fn new(family: u32, protocol: u8, l3: u64, l4: u64) -> Self {
        let coordinates = (family as u64) << Self::FAMILY | (protocol as u64) << Self::PROTOCOL;
        Self((l3 + l4) | coordinates | l3 << Self::TRANSPORT)
    }

    /// With a jumbo header of [`JUMBO_HEADER`] bytes between IP header and transport header.
    #[inline(always)]
    const fn with_jumbo(self) -> Self {
        Self((self.0 | 1 << Self::JUMBO) + (JUMBO_HEADER << Self::TRANSPORT))
    }

    /// Nothing is known but the family: the packet is counted with its length.
    pub fn unknown(skb: *mut __sk_buff) -> Self {
        // SAFETY: the kernel hands a valid context to the program.
        let protocol = unsafe { (*skb).protocol };
        let ipv6 = u16::from_be(protocol as u16) == ETHERTYPE_IPV6;
        Self::new(if ipv6 { IPV6 } else { IPV4 }, PORT_SLOT_UPSTREAM_OTHER, 0, 0)
    }

    /// Bytes of the IP header with options or extension headers and of the transport header, as every
    /// segment carries them.
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        self.0 & 0xffff
    }

    /// Bytes of headers that the kernel takes out again before the wire (BIG TCP).
    #[inline(always)]
    pub const fn unsent_bytes(self) -> u64 {
        // The bit becomes an 8.
        self.0 >> (Self::JUMBO - 3) & JUMBO_HEADER
    }

    /// [`IPV4`] or [`IPV6`].
    #[inline(always)]
    pub const fn family(self) -> u64 {
        self.0 >> Self::FAMILY & (FAMILIES as u64 - 1)
    }

    /// Whether it is TCP or UDP, the two with ports.
    #[inline(always)]
    pub const fn has_ports(self) -> bool {
        self.0 & 2 << Self::PROTOCOL == 0
    }

    /// Where the table of the protocol's ports begins in the tables: TCP's is the first, UDP's the second.
    #[inline(always)]
    pub const fn port_table(self) -> u64 {
        self.0 >> (Self::PROTOCOL - 16) & TABLE_BYTES as u64
    }

    /// Cell of the upstream leg, of the cells of a direction: the protocol's port slot, and the family.
    #[inline(always)]
    pub const fn upstream_cell(self) -> u64 {
        self.0 >> Self::FAMILY & 7
    }

    /// The packet's upstream port slot: its protocol.
    #[inline(always)]
    pub const fn protocol(self) -> u64 {
        self.0 >> Self::PROTOCOL & 3
    }

    /// Where the transport header begins.
    #[inline(always)]
    pub const fn transport(self) -> u64 {
        self.0 >> Self::TRANSPORT
    }
}

// The numbers above take for granted:
const _: () = assert!(PORT_SLOT_UPSTREAM_TCP == 0 && PORT_SLOT_UPSTREAM_UDP == 1);
const _: () = assert!(TABLE_BYTES == 1 << 16 && FAMILIES == 2);

/// Reads the headers, or `None` if the packet is too short for what it says it is.
#[inline(always)]
pub fn parse(skb: *mut __sk_buff) -> Option<Headers> {
    // SAFETY: the kernel hands a valid context to the program.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // The shorter of the two headers, so that the version can be read.
    let header = read::<IPV4_HEADER>(data, end)?;
    if header[0] == IPV4_PLAIN && !is_later_fragment(header) {
        return transport_at::<IPV4_HEADER>(data, end, header[9], IPV4);
    }
    if header[0] >> 4 == 6 && matches!(header[6], TCP | UDP | ICMPV6) {
        // The rest of the header is part of what is read next, but for UDP and ICMP.
        read::<IPV6_HEADER>(data, end)?;
        return transport_at::<IPV6_HEADER>(data, end, header[6], IPV6);
    }
    let parsed = parse_slowly(skb);
    if parsed == 0 { None } else { Some(Headers(parsed)) }
}

/// Only the first fragment has a transport header. (Fragments do not reach a cgroup hook but from raw
/// sockets: it sits before fragmentation and behind reassembly.)
#[inline(always)]
fn is_later_fragment(header: &[u8; IPV4_HEADER]) -> bool {
    // SAFETY: two bytes of the header.
    let flags_and_offset = unsafe { load_u16::<6>(header.as_ptr()) };
    flags_and_offset & u64::from(0x1fff_u16.to_be()) != 0
}

/// The headers of a packet whose transport header begins at `L3`.
#[inline(always)]
fn transport_at<const L3: usize>(
    data: usize,
    end: usize,
    protocol: u8,
    family: u32,
) -> Option<Headers> {
    transport(data + L3, end, L3 as u64, protocol, family)
}

/// The headers of a packet whose transport header is at an address, behind an IP header of `l3` bytes.
#[inline(always)]
fn transport(at: usize, end: usize, l3: u64, protocol: u8, family: u32) -> Option<Headers> {
    if protocol == TCP {
        let header = read::<{ TCP_DATA_OFFSET + 1 }>(at, end)?;
        let l4 = u64::from(header[TCP_DATA_OFFSET] >> 4) * 4;
        return Some(Headers::new(family, PORT_SLOT_UPSTREAM_TCP, l3, l4));
    }
    Some(match protocol {
        UDP => Headers::new(family, PORT_SLOT_UPSTREAM_UDP, l3, UDP_HEADER),
        ICMP | ICMPV6 => Headers::new(family, PORT_SLOT_UPSTREAM_ICMP, l3, 0),
        _ => Headers::new(family, PORT_SLOT_UPSTREAM_OTHER, l3, 0),
    })
}

/// Parses what is not ordinary: [`Headers`] as a number, 0 if the packet is too short.
///
/// A global function, because the verifier checks those once, and others with all that comes after for
/// every way through them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_slowly(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the kernel hands a valid context to the program.
    let (data, end, gso_size) =
        unsafe { ((*skb).data as usize, (*skb).data_end as usize, (*skb).gso_size) };
    let Some(&[first, ..]) = read::<IPV4_HEADER>(data, end) else { return 0 };
    let headers = match first >> 4 {
        4 => parse_ipv4(data, end),
        6 => parse_ipv6(data, end, gso_size),
        _ => None,
    };
    headers.map_or(0, |headers| headers.0)
}

#[inline(always)]
fn parse_ipv4(data: usize, end: usize) -> Option<Headers> {
    let header = read::<IPV4_HEADER>(data, end)?;
    let l3 = usize::from(header[0] & 0x0f) * 4;
    if l3 < IPV4_HEADER {
        return None;
    }
    let protocol = if is_later_fragment(header) { FRAGMENT } else { header[9] };
    transport(data + l3, end, l3 as u64, protocol, IPV4)
}

/// How long an extension header is: `((units & mask) + more) << shift`, `units` being its second byte.
/// All zero where a number is no extension header's.
#[derive(Clone, Copy)]
pub struct Extension {
    mask: u8,
    more: u8,
    shift: u8,
}

/// By protocol number. A table in memory and not a match, because the verifier follows every arm of a
/// match with all that comes after, eight headers deep.
static EXTENSIONS: [Extension; 256] = {
    let mut table = [Extension { mask: 0, more: 0, shift: 0 }; 256];
    // Source of the units: RFC 8200, section 4; for AH: RFC 4302, section 2.2.
    let ordinary = Extension { mask: 0xff, more: 1, shift: 3 };
    table[HOP_BY_HOP as usize] = ordinary;
    table[ROUTING as usize] = ordinary;
    table[DESTINATION_OPTIONS as usize] = ordinary;
    table[MOBILITY as usize] = ordinary;
    table[FRAGMENT as usize] = Extension { mask: 0, more: 1, shift: 3 };
    table[AUTHENTICATION as usize] = Extension { mask: 0xff, more: 2, shift: 2 };
    table
};

impl Extension {
    /// What is known of a header with this protocol number; `None` if it is no extension header.
    #[inline(always)]
    pub fn of(header: u8) -> Option<Self> {
        let known = &EXTENSIONS[usize::from(header)];
        // Each field by itself: all three at once would be bytes of one number to the compiler.
        // SAFETY: a live static.
        let more = unsafe { (&raw const known.more).read_volatile() };
        if more == 0 {
            return None;
        }
        // SAFETY: as above.
        let mask = unsafe { (&raw const known.mask).read_volatile() };
        // SAFETY: as above.
        let shift = unsafe { (&raw const known.shift).read_volatile() };
        Some(Self { mask, more, shift })
    }

    /// The length of the header, of which `units` is the second byte.
    #[inline(always)]
    pub fn bytes(self, units: u8) -> u64 {
        (u64::from(units & self.mask) + u64::from(self.more)) << (self.shift & 3)
    }
}

/// Walks the extension headers.
#[inline(always)]
fn parse_ipv6(data: usize, end: usize, gso_size: u32) -> Option<Headers> {
    let mut next = read::<IPV6_HEADER>(data, end)?[6];
    let mut l3 = IPV6_HEADER;
    for _ in 0..EXTENSION_HEADERS {
        let Some(extension) = Extension::of(next) else { break };
        let header = read::<8>(data + l3, end)?;
        // The kernel puts a hop-by-hop jumbo header into super-packets above 64 kB and takes it out
        // before the wire. Source: `ipv6_hopopt_jumbo_remove()`, include/net/ipv6.h, since 5.19.
        if next == HOP_BY_HOP && header[1] == 0 && header[2] == OPTION_JUMBO && gso_size != 0 {
            let at = data + l3 + JUMBO_HEADER as usize;
            return Some(transport(at, end, l3 as u64, header[0], IPV6)?.with_jumbo());
        }
        let is_later = next == FRAGMENT && u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
        let length = extension.bytes(header[1]);
        // Eight headers of at most 2,048 bytes behind the first 40: the mask changes nothing.
        l3 = masked::<0x7fff>(l3 as u64 + length) as usize;
        if is_later {
            return Some(Headers::new(IPV6, PORT_SLOT_UPSTREAM_OTHER, l3 as u64, 0));
        }
        next = header[0];
    }
    transport(data + l3, end, l3 as u64, next, IPV6)
}

/// Returns `N` bytes of the transport header from an offset on, or `None` if they cannot be read.
///
/// For what few packets are asked for: the packet's limits are read again.
#[inline(always)]
pub fn read_transport<'a, const N: usize>(
    skb: *mut __sk_buff,
    headers: Headers,
    offset: u64,
) -> Option<&'a [u8; N]> {
    // SAFETY: the kernel hands a valid context to the program.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // Eight headers of at most 2,048 bytes behind the first 40: the mask changes nothing.
    let transport = masked::<0x7fff>(headers.transport());
    read(data + transport as usize + offset as usize, end)
}

/// Returns the `N` bytes of the packet at an address, or `None` if its linear part ends before.
///
/// One check for a whole header: the verifier learns nothing from a check of a single byte.
#[inline(always)]
fn read<'a, const N: usize>(at: usize, end: usize) -> Option<&'a [u8; N]> {
    if at + N > end {
        return None;
    }
    // SAFETY: inside the packet, as just checked; bytes have no alignment.
    Some(unsafe { &*(at as *const [u8; N]) })
}

/// Loads two bytes at an even offset of a packet by one instruction, in network byte order: the compiler,
/// which knows of no alignment, would load them singly.
///
/// # Safety
///
/// Two bytes of a packet must be there.
#[inline(always)]
pub unsafe fn load_u16<const OFFSET: usize>(at: *const u8) -> u64 {
    let value: u64;
    // SAFETY: guaranteed by the caller. The verifier refuses what a machine cannot load.
    unsafe {
        asm!(
            "{value} = *(u16 *)({at} + {offset})",
            value = out(reg) value,
            at = in(reg) at,
            offset = const OFFSET,
            options(pure, readonly, nostack)
        );
    }
    value
}
