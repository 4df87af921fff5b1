//! What the running kernel does otherwise than the newest one, as far as it shows in the lab: measured
//! on Debian's kernels, each in qemu.

use anyhow::{Context, Result};
use nix::sys::utsname::uname;

use crate::packet::{ACK, Direction, Family, Packet, SYN};
use crate::topology::LabTrace;
use crate::trace::Sum;

/// The version of a kernel: 6 and 1 of `6.1.0-56-cloud-amd64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    major: u32,
    minor: u32,
}

impl Kernel {
    /// The running one.
    pub fn running() -> Result<Self> {
        let name = uname().context("uname")?;
        let release = name.release().to_string_lossy();
        Self::parse(&release).with_context(|| format!("`{release}` is no version of a kernel"))
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|character: char| !character.is_ascii_digit());
        let mut number = || numbers.next()?.parse().ok();
        Some(Self { major: number()?, minor: number()? })
    }

    const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Whether a cgroup's egress hook sees the SYN-ACK of an inbound IPv6 connection.
    ///
    /// Older kernels run the hook only if the packet belongs to the very socket that it is sent
    /// through: a SYN-ACK belongs to the request, and over IPv6 is sent through the listener. 5.10 and
    /// 6.1 do not show it, 6.12 and 6.18 do; a kernel in between may have been mended.
    pub fn shows_ipv6_syn_acks(self) -> bool {
        self >= Self::new(6, 12)
    }

    /// Whether a veth merges frames on the way in (GRO without XDP; since 5.13).
    pub fn merges_on_veth(self) -> bool {
        self >= Self::new(5, 13)
    }

    /// Takes out of a capture what no hook of this kernel sees although a socket takes part, and
    /// returns what that was.
    pub fn take_unseen(self, trace: &mut LabTrace) -> Sum {
        let mut taken = Sum::default();
        if self.shows_ipv6_syn_acks() {
            return taken;
        }
        for link in [&mut trace.client, &mut trace.upstream] {
            let packets = &mut link.trace.packets;
            taken = taken + Sum::of(packets.iter().filter(|packet| is_ipv6_syn_ack(packet)));
            packets.retain(|packet| !is_ipv6_syn_ack(packet));
        }
        taken
    }
}

/// Whether it is the proxy's answer to the SYN of an IPv6 connection.
pub fn is_ipv6_syn_ack(packet: &Packet) -> bool {
    packet.direction == Direction::Egress
        && packet.family() == Family::Ipv6
        && packet.headers.tcp.is_some_and(|tcp| tcp.has(SYN | ACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_the_first_two_numbers() {
        assert_eq!(Kernel::parse("6.1.0-56-cloud-amd64"), Some(Kernel::new(6, 1)));
        assert_eq!(Kernel::parse("5.10"), Some(Kernel::new(5, 10)));
        assert_eq!(Kernel::parse("7.3.4+deb13"), Some(Kernel::new(7, 3)));
        assert_eq!(Kernel::parse("Linux"), None);
        assert!(Kernel::new(6, 12).shows_ipv6_syn_acks());
        assert!(
            !Kernel::new(5, 19).shows_ipv6_syn_acks() && !Kernel::new(6, 1).shows_ipv6_syn_acks()
        );
    }
}
