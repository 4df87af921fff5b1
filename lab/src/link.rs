//! veth pairs between namespaces, their addresses and routes, and the counters of a device.
//!
//! The pairs are silent: both ends have the same hardware address and no ARP, so that every neighbour
//! resolves to "the other end" without a packet. An IPv6 address is then usable at once (no duplicate
//! address detection), joins no solicited-node group and so sends no MLD report. What a capture sees
//! is the workload and nothing else.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::namespace::Namespace;
use crate::offload;

/// One end of a veth pair: where it is, what it is called, and its addresses with prefix lengths.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The namespace that the device lives in.
    pub namespace: &'a Namespace,
    /// The device's name, up to 15 bytes.
    pub name: &'a str,
    /// Addresses with prefix lengths, e.g. `(10.77.1.1, 24)`.
    pub addresses: &'a [(IpAddr, u8)],
}

/// The last octet of the next pair's hardware address.
static NEXT_PAIR: AtomicU8 = AtomicU8::new(1);

/// Makes a veth pair, gives both ends their addresses and brings both up. Packets pass on return.
///
/// It ends with either namespace.
pub fn connect(a: End<'_>, b: End<'_>, mtu: u32) -> Result<()> {
    connect_as(a, b, mtu, 0)
}

/// The same with a number for both devices; 0 leaves it to the kernel.
pub fn connect_as(a: End<'_>, b: End<'_>, mtu: u32, number: u32) -> Result<()> {
    // Locally administered; one for both ends, see the head of this file.
    let address = vec![0x02, 0x77, 0, 0, 0, NEXT_PAIR.fetch_add(1, Ordering::Relaxed)];
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(b.name)
        .index(number)
        .mtu(mtu)
        .address(address.clone())
        .arp(false)
        .setns_by_fd(b.namespace.fd().as_raw_fd())
        .build();
    // Without a number of its own the kernel passes over the peer's.
    let pair = LinkMessageBuilder::<LinkVeth>::new(a.name, b.name)
        .index(number)
        .mtu(mtu)
        .address(address)
        .arp(false)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    netlink(a.namespace, async move |handle| Ok(handle.link().add(pair).execute().await?))
        .with_context(|| {
            format!(
                "cannot make the veth pair {} ({}) - {} ({}): is the kernel's veth module there?",
                a.name,
                a.namespace.name(),
                b.name,
                b.namespace.name()
            )
        })?;
    for end in [a, b] {
        bring_up(end.namespace, end.name)?;
        for &(address, prefix) in end.addresses {
            add_address(end.namespace, end.name, address, prefix)?;
        }
    }
    // The end that came up first got its carrier from the other.
    [a, b].into_iter().try_for_each(|end| offload::await_link(end.namespace, end.name))
}

/// Brings a device up.
pub fn bring_up(namespace: &Namespace, device: &str) -> Result<()> {
    set(namespace, device, |message| message.up())
        .with_context(|| format!("cannot bring up {device} in namespace {}", namespace.name()))
}

/// Limits how many segments the stack puts into one packet for this device (`gso_max_segs`).
///
/// 1 ends GSO altogether: TCP otherwise builds super-packets even for a device without GSO.
pub fn set_gso_max_segments(namespace: &Namespace, device: &str, segments: u32) -> Result<()> {
    set(namespace, device, |message| {
        message.append_extra_attribute(LinkAttribute::GsoMaxSegs(segments))
    })
    .with_context(|| {
        format!("cannot set gso_max_segs of {device} in namespace {}", namespace.name())
    })
}

/// Lets the stack send and merge packets of so many bytes for this device, both families: above 64 KiB
/// that is BIG TCP, since 5.19 for IPv6 and 6.3 for IPv4.
pub fn set_super_packet_size(namespace: &Namespace, device: &str, bytes: u32) -> Result<()> {
    set(namespace, device, |message| {
        message
            .append_extra_attribute(LinkAttribute::GsoMaxSize(bytes))
            .append_extra_attribute(LinkAttribute::GroMaxSize(bytes))
            .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(bytes))
            .append_extra_attribute(LinkAttribute::GroIpv4MaxSize(bytes))
    })
    .with_context(|| {
        format!("cannot set gso_max_size of {device} in namespace {}", namespace.name())
    })
}

/// Sets the MTU of one end; the other end of a pair needs the same.
pub fn set_mtu(namespace: &Namespace, device: &str, mtu: u32) -> Result<()> {
    set(namespace, device, |message| message.mtu(mtu)).with_context(|| {
        format!("cannot set the MTU of {device} in namespace {}", namespace.name())
    })
}

/// Adds an address, usable at once (IPv6: without duplicate address detection).
pub fn add_address(namespace: &Namespace, device: &str, address: IpAddr, prefix: u8) -> Result<()> {
    netlink(namespace, async move |handle| {
        let mut request = handle.address().add(index(device)?, address, prefix);
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
        Ok(request.execute().await?)
    })
    .with_context(|| {
        format!("cannot add {address}/{prefix} to {device} in namespace {}", namespace.name())
    })
}

/// Adds a default route of the gateway's family.
pub fn add_default_route(namespace: &Namespace, gateway: IpAddr) -> Result<()> {
    let route = match gateway {
        IpAddr::V4(gateway) => {
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(gateway).build()
        }
        IpAddr::V6(gateway) => {
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().gateway(gateway).build()
        }
    };
    netlink(namespace, async move |handle| Ok(handle.route().add(route).execute().await?))
        .with_context(|| {
            format!("cannot add a default route by {gateway} in namespace {}", namespace.name())
        })
}

/// What a device has counted since it was made, from `/proc/net/dev`.
///
/// veth counts super-packets where they are not split, and its ingress bytes have the Ethernet header
/// only without NAPI (that is, with GRO off). Packets are comparable, bytes seldom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Bytes received.
    pub ingress_bytes: u64,
    /// Frames received.
    pub ingress_packets: u64,
    /// Frames dropped on the way in.
    pub ingress_dropped: u64,
    /// Bytes sent.
    pub egress_bytes: u64,
    /// Frames sent.
    pub egress_packets: u64,
    /// Frames dropped on the way out; for veth also those for which the *peer's* ring had no room.
    pub egress_dropped: u64,
}

impl DeviceCounters {
    /// What was added since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            ingress_bytes: self.ingress_bytes - earlier.ingress_bytes,
            ingress_packets: self.ingress_packets - earlier.ingress_packets,
            ingress_dropped: self.ingress_dropped - earlier.ingress_dropped,
            egress_bytes: self.egress_bytes - earlier.egress_bytes,
            egress_packets: self.egress_packets - earlier.egress_packets,
            egress_dropped: self.egress_dropped - earlier.egress_dropped,
        }
    }
}

/// Reads the counters of a device of the namespace.
pub fn counters(namespace: &Namespace, device: &str) -> Result<DeviceCounters> {
    let text = namespace.run_in(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    parse_counters(&text, device)
        .with_context(|| format!("cannot read the counters in namespace {}", namespace.name()))
}

/// Finds the line of `device` in the text of `/proc/net/dev`.
fn parse_counters(text: &str, device: &str) -> Result<DeviceCounters> {
    let line = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == device)
        .ok_or_else(|| anyhow!("/proc/net/dev has no line for {device}"))?
        .1;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("/proc/net/dev has a line for {device} that is no numbers"))?;
    // bytes packets errs drop fifo frame compressed multicast | the same for the way out, from 8 on.
    let &[
        ingress_bytes,
        ingress_packets,
        _,
        ingress_dropped,
        _,
        _,
        _,
        _,
        egress_bytes,
        egress_packets,
        _,
        egress_dropped,
        ..,
    ] = numbers.as_slice()
    else {
        bail!("/proc/net/dev has {} columns for {device} instead of 16", numbers.len());
    };
    Ok(DeviceCounters {
        ingress_bytes,
        ingress_packets,
        ingress_dropped,
        egress_bytes,
        egress_packets,
        egress_dropped,
    })
}

/// Changes a device by one netlink message.
fn set(
    namespace: &Namespace,
    device: &str,
    change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec> + Send,
) -> Result<()> {
    netlink(namespace, async move |handle| {
        let message: LinkMessage = change(LinkUnspec::new_with_index(index(device)?)).build();
        Ok(handle.link().set(message).execute().await?)
    })
}

/// The index of a device in the calling thread's namespace.
fn index(device: &str) -> Result<u32> {
    if_nametoindex(device).with_context(|| format!("there is no device {device}"))
}

/// Runs `work` with a route netlink connection of the namespace.
fn netlink<T: Send>(
    namespace: &Namespace,
    work: impl AsyncFnOnce(Handle) -> Result<T> + Send,
) -> Result<T> {
    namespace.run_in(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            work(handle).await
        })
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       1       2    0    3    0     0          0         0        4       5    0    6    0     0       0          0
  eth0:1000000      20    0    0    0     0          0         0       70       8    0    9    0     0       0          0
";

    #[test]
    fn columns_of_proc_net_dev_are_found_also_without_a_space_after_the_name() {
        let eth0 = parse_counters(TEXT, "eth0").unwrap();
        assert_eq!((eth0.ingress_bytes, eth0.ingress_packets), (1_000_000, 20));
        assert_eq!((eth0.egress_bytes, eth0.egress_packets, eth0.egress_dropped), (70, 8, 9));
        assert_eq!(parse_counters(TEXT, "lo").unwrap().ingress_dropped, 3);
    }

    #[test]
    fn malformed_proc_net_dev_is_an_error() {
        assert!(parse_counters("", "eth0").is_err());
        assert!(parse_counters("eth0: 1 2 3", "eth0").is_err());
        assert!(parse_counters("eth0: a", "eth0").is_err());
        assert!(parse_counters(TEXT, "eth").is_err());
    }
}
