//! What the cells of one bench have in common, and the label of each.

use std::fmt;
use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use traffic_lab::packet::Family;
use traffic_lab::topology::{FAR_DEVICE, MTU};
use traffic_lab::{Stack, link};

use super::kinds::{BOTH, Kind, Traffic};
use crate::options::{set_ipv4_options, set_ipv6_header};
use crate::processors::Processors;
use crate::rules;
use crate::site::Site;

/// The largest packets of [`Variant::BigTcp`].
const BIG_BYTES: u32 = 185_000;
/// A match for packets whose IP header has 0 for their length: bytes 2 and 3 of IPv4, 4 and 5 of IPv6.
const UNSAID_LENGTH: [(Family, &str); 2] =
    [(Family::Ipv4, "-m u32 --u32 0&0xFFFF=0x0"), (Family::Ipv6, "-m u32 --u32 2&0xFFFF=0x0")];
/// Where the rules are that see them.
const TABLE: &str = "raw";

/// What is not as always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Nothing.
    Ordinary,
    /// The links' MTU.
    Mtu(u32),
    /// All TCP headers are 12 bytes shorter.
    NoTimestamps,
    /// Every socket of all three sends IPv4 options of 12 bytes.
    Ipv4Options,
    /// Every socket of all three sends a hop-by-hop header of 16 bytes and destination options of 24.
    Ipv6Headers,
    /// The proxy's sockets are IPv6 ones that carry IPv4.
    Mapped,
    /// Super-packets of more than 64 KiB, for which the length in the IP header has no room. IPv6 says it
    /// in a header that never reaches the wire.
    BigTcp,
    /// The proxy's sockets belong to a cgroup below the counted one.
    SubCgroup,
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordinary => Ok(()),
            Self::Mtu(bytes) => write!(formatter, ", MTU {bytes}"),
            Self::NoTimestamps => formatter.write_str(", no timestamps"),
            Self::Ipv4Options => formatter.write_str(", IP options"),
            Self::Ipv6Headers => formatter.write_str(", extension headers"),
            Self::Mapped => formatter.write_str(", v4-mapped"),
            Self::BigTcp => formatter.write_str(", BIG TCP"),
            Self::SubCgroup => formatter.write_str(", in a sub-cgroup"),
        }
    }
}

impl Variant {
    /// The families that it exists for.
    pub(super) fn families(self) -> &'static [Family] {
        match self {
            Self::Mapped | Self::Ipv4Options => &[Family::Ipv4],
            Self::Ipv6Headers => &[Family::Ipv6],
            _ => &[Family::Ipv4, Family::Ipv6],
        }
    }

    /// The links' MTU.
    pub(super) fn mtu(self) -> u32 {
        if let Self::Mtu(bytes) = self { bytes } else { MTU }
    }

    /// Changes what is not as always, as far as it is a socket's that is not connected, or listens: its
    /// accepted sockets inherit extension headers. (Bulk stalls for good on a connection that gets them
    /// when it is there already.)
    pub(super) fn dress_early(self, socket: &impl AsFd) -> Result<()> {
        if self == Self::Ipv6Headers {
            set_ipv6_header(socket, libc::IPV6_HOPOPTS, 16)?;
            set_ipv6_header(socket, libc::IPV6_DSTOPTS, 24)?;
        }
        Ok(())
    }

    /// The same for a socket that is connected: IPv4 options are not inherited.
    pub(super) fn dress_late(self, socket: &impl AsFd) -> Result<()> {
        if self == Self::Ipv4Options {
            // NOPs, and the end.
            let mut twelve = [1; 12];
            twelve[11] = 0;
            set_ipv4_options(socket, &twelve)?;
        }
        Ok(())
    }

    /// Bytes of headers of an ordinary TCP packet that carries data.
    pub(super) fn tcp_headers(self, family: Family) -> u32 {
        let ip = if family == Family::Ipv6 { 40 } else { 20 };
        match self {
            Self::NoTimestamps => ip + 20,
            Self::Ipv4Options => ip + 12 + 32,
            Self::Ipv6Headers => ip + 16 + 24 + 32,
            _ => ip + 32,
        }
    }

    /// Changes what is not as always, as far as it is the site's.
    pub(super) fn prepare(self, site: &Site) -> Result<()> {
        let lab = &site.lab;
        match self {
            Self::Mtu(bytes) => {
                link::set_mtu(&lab.client, FAR_DEVICE, bytes)?;
                link::set_mtu(&lab.upstream, FAR_DEVICE, bytes)?;
                BOTH.iter().try_for_each(|device| link::set_mtu(&lab.proxy, device, bytes))
            }
            Self::NoTimestamps => lab.proxy.sysctl("ipv4/tcp_timestamps", "0"),
            Self::BigTcp => {
                // In flight, so that one packet can be that large.
                lab.proxy.sysctl("ipv4/tcp_wmem", "4096 600000 600000")?;
                for device in BOTH {
                    link::set_super_packet_size(&lab.proxy, device, BIG_BYTES)?;
                    for (family, unsaid) in UNSAID_LENGTH {
                        let rule = format!("{} {unsaid}", sent(device));
                        rules::add_to(&lab.proxy, family, TABLE, &rule)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Variant {
    /// Or the cells would prove less than their labels say.
    pub(super) fn check_was_seen(self, site: &Site) -> Result<()> {
        if self != Self::BigTcp {
            return Ok(());
        }
        for (family, _) in UNSAID_LENGTH {
            let saved = rules::save(&site.lab.proxy, family, TABLE)?;
            for device in BOTH {
                let big = rules::find(&saved, &format!("{} ", sent(device))).unwrap_or_default();
                ensure!(big.packets > 0, "no packet above 64 KiB was sent on {device}:\n{saved}");
                ensure!(big.bytes > big.packets * 65_535, "they were not above 64 KiB: {big:?}");
            }
        }
        Ok(())
    }
}

/// A chain of [`TABLE`] where nothing else is, and a device.
fn sent(device: &str) -> String {
    format!("OUTPUT -o {device}")
}

/// Where the cells of one bench are in the matrix.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Offloads on or off.
    pub stack: Stack,
    /// One CPU or all.
    pub processors: Processors,
    /// What else.
    pub variant: Variant,
}

/// Where a cell is in the matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label {
    pub(super) kind: Kind,
    pub(super) family: Family,
    pub(super) setting: Setting,
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.kind.traffic {
            Traffic::Streams(_) => "TCP",
            Traffic::Datagrams(_) => "UDP",
        };
        let family = match self.family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        };
        let Setting { stack, processors, variant } = self.setting;
        let offloads = if stack == Stack::Plain { "off" } else { "on" };
        let name = self.kind.name;
        write!(formatter, "{protocol} {family}, offloads {offloads}, {processors}{variant}, {name}")
    }
}
