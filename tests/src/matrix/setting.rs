//! What the cells of one bench have in common, and the label of each.

use std::fmt;

use anyhow::Result;
use traffic_lab::packet::Family;
use traffic_lab::topology::{FAR_DEVICE, MTU};
use traffic_lab::{Stack, link};

use super::kinds::{BOTH, Kind, Traffic};
use crate::processors::Processors;
use crate::site::Site;

/// What is not as always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Nothing.
    Ordinary,
    /// The links' MTU.
    Mtu(u32),
    /// All TCP headers are 12 bytes shorter.
    NoTimestamps,
    /// The proxy's sockets are IPv6 ones that carry IPv4.
    Mapped,
    /// The proxy's sockets belong to a cgroup below the counted one.
    SubCgroup,
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordinary => Ok(()),
            Self::Mtu(bytes) => write!(formatter, ", MTU {bytes}"),
            Self::NoTimestamps => formatter.write_str(", no timestamps"),
            Self::Mapped => formatter.write_str(", v4-mapped"),
            Self::SubCgroup => formatter.write_str(", in a sub-cgroup"),
        }
    }
}

impl Variant {
    /// The families that it exists for.
    pub(super) fn families(self) -> &'static [Family] {
        match self {
            Self::Mapped => &[Family::Ipv4],
            _ => &[Family::Ipv4, Family::Ipv6],
        }
    }

    /// The links' MTU.
    pub(super) fn mtu(self) -> u32 {
        if let Self::Mtu(bytes) = self { bytes } else { MTU }
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
            Self::Ordinary | Self::Mapped | Self::SubCgroup => Ok(()),
        }
    }
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
