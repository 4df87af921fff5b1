//! The standard lab: client - proxy - upstream, each in a namespace of its own, joined by two veth
//! pairs, and captures at both far ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::capture::{Capture, Vantage};
use crate::link::{self, DeviceCounters, End};
use crate::namespace::Namespace;
use crate::offload::{self, Offloads};
use crate::packet::{Direction, Family};
use crate::trace::{Filter, Sum, Trace};

/// The device of the client and of the upstream.
pub const FAR_DEVICE: &str = "eth0";
/// The proxy's device towards the client.
pub const CLIENT_DEVICE: &str = "eth0";
/// The proxy's device towards the upstream.
pub const UPSTREAM_DEVICE: &str = "eth1";
/// Bytes of an IP packet on the wire, as on Ethernet.
pub const MTU: u32 = 1500;

/// What the proxy's stack works on, and what its devices do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stack {
    /// An ordinary server: super-packets in the stack both ways (GSO out, GRO in), MTU frames on the
    /// wire.
    #[default]
    GsoGro,
    /// One packet per frame everywhere: neither GSO nor GRO.
    Plain,
    /// Super-packets also between the namespaces, as between containers: nothing ever splits them.
    /// A capture then shows super-packets, not the wire.
    Tso,
}

/// The addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The client's.
    pub client: IpAddr,
    /// The proxy's towards the client: where it listens.
    pub proxy_client: IpAddr,
    /// The proxy's towards the upstream.
    pub proxy_upstream: IpAddr,
    /// The upstream's.
    pub upstream: IpAddr,
}

/// The addresses of a family: 10.77.1.0/24 and 10.77.2.0/24, fd77:1::/64 and fd77:2::/64.
pub fn addresses(family: Family) -> Addresses {
    let of = |net: u8, host: u8| match family {
        Family::Ipv4 => IpAddr::V4(Ipv4Addr::new(10, 77, net, host)),
        Family::Ipv6 => {
            IpAddr::V6(Ipv6Addr::new(0xfd77, u16::from(net), 0, 0, 0, 0, 0, u16::from(host)))
        }
    };
    Addresses {
        client: of(1, 1),
        proxy_client: of(1, 2),
        proxy_upstream: of(2, 2),
        upstream: of(2, 1),
    }
}

/// Three namespaces and their links. Dropped, all is gone.
#[derive(Debug)]
pub struct Lab {
    /// Where the proxy's clients are.
    pub client: Namespace,
    /// Where the proxy is.
    pub proxy: Namespace,
    /// Where the servers are that the proxy connects to.
    pub upstream: Namespace,
    stack: Stack,
}

/// Per namespace, before there are devices, which inherit the defaults.
///
/// No packet that no program has sent: no router solicitation, no link-local address.
///
/// The sender's buffer limits what a connection has in flight: a frame that finds the ring of a veth,
/// 256 frames, full was captured at the far end and never reaches the proxy. A processor that is taken
/// away empties no ring, and then all connections together must fit: with 128 KiB three did not, with
/// 48 KiB (33 frames) seven do. The receiver's is larger, or its stack drops what its window had
/// promised: with 128 KiB each, 0.2 % of a download was sent again.
const SYSCTLS: [(&str, &str); 10] = [
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    // IN6_ADDR_GEN_MODE_NONE
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv4/tcp_rmem", "4096 524288 524288"),
    ("ipv4/tcp_wmem", "4096 49152 49152"),
    // A SYN that finds the queue of a listener full is dropped; 128 until 5.4.
    ("core/somaxconn", "4096"),
    ("ipv4/ip_local_port_range", "20000 60999"),
    // Window and round-trip of an earlier connection must not shape a later one.
    ("ipv4/tcp_no_metrics_save", "1"),
];

impl Lab {
    /// Makes the namespaces and links. Needs root.
    pub fn new(stack: Stack) -> Result<Self> {
        let lab = Self {
            client: Namespace::new("client")?,
            proxy: Namespace::new("proxy")?,
            upstream: Namespace::new("upstream")?,
            stack,
        };
        for namespace in [&lab.client, &lab.proxy, &lab.upstream] {
            for (path, value) in SYSCTLS {
                namespace.sysctl(path, value)?;
            }
            if stack == Stack::Tso {
                // Room for the largest super-packets, of which few fill no ring.
                namespace.sysctl("ipv4/tcp_wmem", "4096 131072 131072")?;
            }
        }
        let (v4, v6) = (addresses(Family::Ipv4), addresses(Family::Ipv6));
        let both = |v4, v6| [(v4, 24), (v6, 64)];
        let pairs = [
            (
                &lab.client,
                both(v4.client, v6.client),
                CLIENT_DEVICE,
                both(v4.proxy_client, v6.proxy_client),
            ),
            (
                &lab.upstream,
                both(v4.upstream, v6.upstream),
                UPSTREAM_DEVICE,
                both(v4.proxy_upstream, v6.proxy_upstream),
            ),
        ];
        for (far, far_addresses, device, near_addresses) in &pairs {
            let far_end = End { namespace: far, name: FAR_DEVICE, addresses: far_addresses };
            let near_end = End { namespace: &lab.proxy, name: device, addresses: near_addresses };
            link::connect(far_end, near_end, MTU)?;
            for (gateway, _) in near_addresses {
                link::add_default_route(far, *gateway)?;
            }
            lab.set_stack(far, device)?;
        }
        Ok(lab)
    }

    /// The stack model that it was made with.
    pub fn stack(&self) -> Stack {
        self.stack
    }

    /// Sets the offloads of one pair.
    fn set_stack(&self, far: &Namespace, device: &str) -> Result<()> {
        let all = Offloads { segmentation: Some(true), gro: Some(true), ..Offloads::default() };
        let (far_offloads, near_offloads) = match self.stack {
            Stack::GsoGro => (Offloads::NONE, Offloads { segmentation: Some(false), ..all }),
            Stack::Plain => (Offloads::NONE, Offloads::NONE),
            Stack::Tso => (all, all),
        };
        offload::set(far, FAR_DEVICE, far_offloads)?;
        offload::set(&self.proxy, device, near_offloads)?;
        if self.stack == Stack::Plain {
            link::set_gso_max_segments(&self.proxy, device, 1)?;
        }
        Ok(())
    }

    /// Starts captures at both far ends.
    pub fn capture(&self) -> Result<LabCapture<'_>> {
        let leg = |far, near_device| -> Result<LegCapture> {
            let before = link::counters(&self.proxy, near_device)?;
            let capture = Capture::start(far, FAR_DEVICE, Vantage::FarEnd)?;
            Ok(LegCapture { capture, before, near_device })
        };
        Ok(LabCapture {
            lab: self,
            client: leg(&self.client, CLIENT_DEVICE)?,
            upstream: leg(&self.upstream, UPSTREAM_DEVICE)?,
        })
    }
}

/// Captures at both far ends. Nothing may be in flight when it starts.
#[derive(Debug)]
pub struct LabCapture<'l> {
    lab: &'l Lab,
    client: LegCapture,
    upstream: LegCapture,
}

#[derive(Debug)]
struct LegCapture {
    capture: Capture,
    /// The counters of the proxy's device before.
    before: DeviceCounters,
    near_device: &'static str,
}

/// Nothing has come for so long: the traffic is over (a delayed ACK takes 40 ms).
const QUIET: Duration = Duration::from_millis(100);
/// Longer than that nobody waits for silence.
const QUIET_WITHIN: Duration = Duration::from_secs(60);

impl LabCapture<'_> {
    /// Waits until the links are silent; an error if they do not become so within a minute.
    pub fn settle(&self) -> Result<()> {
        let silent = |leg: &LegCapture| leg.capture.settle(QUIET, QUIET_WITHIN);
        // The client's once more, because it may have woken up while the upstream fell silent.
        if silent(&self.client) && silent(&self.upstream) && silent(&self.client) {
            return Ok(());
        }
        bail!("there is still traffic in the lab after {QUIET_WITHIN:?}");
    }

    /// Waits for silence and ends both captures.
    pub fn stop(self) -> Result<LabTrace> {
        self.settle()?;
        let leg = |leg: LegCapture| -> Result<LegTrace> {
            let trace = leg.capture.stop()?;
            let device = link::counters(&self.lab.proxy, leg.near_device)?.since(leg.before);
            Ok(LegTrace { trace, device })
        };
        Ok(LabTrace { client: leg(self.client)?, upstream: leg(self.upstream)? })
    }
}

/// What both links have carried.
#[derive(Debug)]
pub struct LabTrace {
    /// Between client and proxy.
    pub client: LegTrace,
    /// Between proxy and upstream.
    pub upstream: LegTrace,
}

/// What one link has carried: the capture at the far end, and what the proxy's device counted.
#[derive(Debug)]
pub struct LegTrace {
    /// The capture.
    pub trace: Trace,
    /// The proxy's device during the capture.
    pub device: DeviceCounters,
}

impl LegTrace {
    /// Frames captured at the far end less frames counted by the proxy's device, noise left aside:
    /// positive for ingress if the veth ring was full and the far end saw what the proxy never got.
    pub fn lost(&self, direction: Direction) -> i64 {
        let noise = self.trace.noise.not_ip.frames + self.trace.noise.icmpv6.frames;
        let device = match direction {
            Direction::Ingress => self.device.ingress_packets,
            Direction::Egress => self.device.egress_packets,
        };
        let captured = self.trace.frames(direction);
        // Noise has no direction in the trace; in the lab there is none.
        captured as i64 + noise as i64 - device as i64
    }
}

impl LabTrace {
    /// Sums over both legs.
    pub fn sum(&self, filter: Filter) -> Sum {
        self.client.trace.sum(filter) + self.upstream.trace.sum(filter)
    }

    /// An error if a frame was lost between a far end and the proxy: then the capture is no truth.
    pub fn check(&self) -> Result<()> {
        for (leg, name) in [(&self.client, "client"), (&self.upstream, "upstream")] {
            for direction in [Direction::Ingress, Direction::Egress] {
                let lost = leg.lost(direction);
                if lost != 0 {
                    return Err(anyhow::anyhow!(
                        "{lost} frames between the {name} and the proxy, {direction:?}"
                    ))
                    .context("the far end's capture and the proxy's device disagree");
                }
            }
        }
        Ok(())
    }
}
