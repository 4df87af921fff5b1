//! Segmentation offloads of a device, and whether it is ready, by the ethtool ioctl.
//!
//! Every feature is set by its name, as `ethtool -K` does today: one request switches them all, and
//! the old per-feature commands know nothing of UDP segmentation.

use std::mem;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::namespace::Namespace;

use std::os::fd::{AsRawFd, OwnedFd};

/// Which offloads a device has; `None` leaves a feature as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The device splits TCP and UDP super-packets (TSO, GSO, `tx-udp-segmentation` and the like):
    /// super-packets pass it whole. Off: they are split before, and the wire carries MTU frames.
    pub segmentation: Option<bool>,
    /// Frames are merged on the way in (GRO). For veth this also turns on NAPI and its ring.
    pub gro: Option<bool>,
    /// Plain forwarding of UDP through GRO (`rx-udp-gro-forwarding`).
    pub udp_gro_forwarding: Option<bool>,
    /// The device computes checksums. UDP_SEGMENT on older kernels needs it on.
    pub checksum: Option<bool>,
}

impl Offloads {
    /// Neither splitting nor merging: what a capture needs at a far end.
    pub const NONE: Self = Self {
        segmentation: Some(false),
        gro: Some(false),
        udp_gro_forwarding: None,
        checksum: None,
    };

    /// What to do with the feature of this name.
    fn wanted(&self, feature: &str) -> Option<bool> {
        match feature {
            "rx-gro" => self.gro,
            // Would merge regardless of GRO's own switch.
            "rx-lro" | "rx-gro-hw" | "rx-gro-list" if self.gro == Some(false) => Some(false),
            "rx-udp-gro-forwarding" => self.udp_gro_forwarding,
            "tx-gso-partial" | "tx-gso-robust" => None,
            "tx-gso-list" => self.segmentation,
            name if name.starts_with("tx-") && name.ends_with("-segmentation") => self.segmentation,
            "tx-checksum-ip-generic" | "tx-checksum-ipv4" | "tx-checksum-ipv6" => self.checksum,
            _ => None,
        }
    }
}

const ETHTOOL_GLINK: u32 = 0x0a;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// The string set with the names of the features.
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// Sets the offloads of a device and checks that they are set.
pub fn set(namespace: &Namespace, device: &str, offloads: Offloads) -> Result<()> {
    namespace
        .run_in(|| {
            let device = Device::open(device)?;
            let names = device.feature_names()?;
            device.set_features(&names, offloads)?;
            device.check(&names, offloads)
        })?
        .with_context(|| {
            format!("cannot set the offloads of {device} in namespace {}", namespace.name())
        })
}

/// Makes a device with a carrier ready to send; an error if it has none.
///
/// A device that gets its carrier while it is up gets its queue some milliseconds later, and what is
/// sent in between is dropped. To be asked for its carrier makes the kernel do it at once
/// (`ethtool_op_get_link()`, net/ethtool/ioctl.c, since 6.8).
pub fn await_link(namespace: &Namespace, device: &str) -> Result<()> {
    let mut carrier = [ETHTOOL_GLINK, 0];
    namespace.run_in(|| Device::open(device)?.request(&mut carrier)).flatten().with_context(
        || format!("cannot ask for the carrier of {device} in namespace {}", namespace.name()),
    )?;
    if carrier[1] == 0 {
        bail!("{device} in namespace {} has no carrier", namespace.name());
    }
    Ok(())
}

/// A device in the calling thread's namespace, and a socket to speak about it.
struct Device {
    name: [libc::c_char; libc::IFNAMSIZ],
    socket: OwnedFd,
}

impl Device {
    fn open(device: &str) -> Result<Self> {
        if device.len() >= libc::IFNAMSIZ {
            bail!("{device} is too long for the name of a device");
        }
        let mut name = [0; libc::IFNAMSIZ];
        for (to, &from) in name.iter_mut().zip(device.as_bytes()) {
            *to = from as libc::c_char;
        }
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { name, socket })
    }

    /// One ethtool command; `data` starts with it and is large enough for the kernel's answer.
    fn request(&self, data: &mut [u32]) -> Result<()> {
        // SAFETY: every bit pattern, also all zeros, is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        request.ifr_name = self.name;
        request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
        // SAFETY: the request points to `data`, whose size the commands of this file announce in it
        // or, where the kernel alone decides it, leave room for.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &request) };
        nix::errno::Errno::result(result).map(drop).map_err(Into::into)
    }

    /// The names of all features, by number.
    fn feature_names(&self) -> Result<Vec<String>> {
        // struct ethtool_sset_info: cmd, reserved, u64 mask, u32 data[] (one per bit of the mask).
        let mask = 1u64 << ETH_SS_FEATURES;
        let halves = [mask.to_ne_bytes()[..4].try_into()?, mask.to_ne_bytes()[4..].try_into()?];
        let halves = halves.map(u32::from_ne_bytes);
        let mut info = [ETHTOOL_GSSET_INFO, 0, halves[0], halves[1], 0];
        self.request(&mut info).context("ETHTOOL_GSSET_INFO")?;
        let count = info[4] as usize;
        // struct ethtool_gstrings: cmd, string_set, len, then `len` names of 32 bytes.
        let mut strings = vec![0u32; 3 + count * ETH_GSTRING_LEN / 4];
        strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
        self.request(&mut strings).context("ETHTOOL_GSTRINGS")?;
        let bytes: Vec<u8> = strings[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let name = |raw: &[u8]| {
            let end = raw.iter().position(|&byte| byte == 0).unwrap_or(raw.len());
            String::from_utf8_lossy(&raw[..end]).into_owned()
        };
        Ok(bytes.chunks(ETH_GSTRING_LEN).map(name).collect())
    }

    fn set_features(&self, names: &[String], offloads: Offloads) -> Result<()> {
        // struct ethtool_sfeatures: cmd, size, then per 32 features: valid, requested.
        let blocks = names.len().div_ceil(32);
        let mut request = vec![0u32; 2 + 2 * blocks];
        request[..2].copy_from_slice(&[ETHTOOL_SFEATURES, blocks as u32]);
        for (number, name) in names.iter().enumerate() {
            if let Some(on) = offloads.wanted(name) {
                let (block, bit) = (2 + 2 * (number / 32), 1 << (number % 32));
                request[block] |= bit;
                request[block + 1] |= if on { bit } else { 0 };
            }
        }
        self.request(&mut request).context("ETHTOOL_SFEATURES")
    }

    /// Only what can be changed is compared: a feature that the device lacks cannot be on.
    fn check(&self, names: &[String], offloads: Offloads) -> Result<()> {
        // struct ethtool_gfeatures: cmd, size, then per 32: available, requested, active, never.
        let blocks = names.len().div_ceil(32);
        let mut features = vec![0u32; 2 + 4 * blocks];
        features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
        self.request(&mut features).context("ETHTOOL_GFEATURES")?;
        for (number, name) in names.iter().enumerate() {
            let (block, bit) = (2 + 4 * (number / 32), 1 << (number % 32));
            let available = features[block] & bit != 0;
            let active = features[block + 2] & bit != 0;
            if let Some(on) = offloads.wanted(name)
                && active != on
                && (available || active)
            {
                bail!("{name} stays {}", if active { "on" } else { "off" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_end_splits_and_merges_nothing() {
        for name in ["tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation"] {
            assert_eq!(Offloads::NONE.wanted(name), Some(false), "{name}");
        }
        // What `ethtool -K gso off` switches, without which TCP's super-packets still pass.
        assert_eq!(Offloads::NONE.wanted("tx-generic-segmentation"), Some(false));
        assert_eq!(Offloads::NONE.wanted("rx-gro"), Some(false));
        assert_eq!(Offloads::NONE.wanted("rx-lro"), Some(false));
        assert_eq!(Offloads::NONE.wanted("tx-checksum-ip-generic"), None);
    }
}
