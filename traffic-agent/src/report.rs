//! What a measurement found, in the shape in which it is printed.
//!
//! The types are the JSON format (`"format": 1`): field names are JSON keys, so that there is one
//! definition to read. Bytes and packets are integers; only percentages and ratios are floats. The
//! numbers are put together in `ledger` and `estimate`, and turned into text in `render`.

use std::fmt;

use jiff::ZonedDateTime;
use serde::Serialize;
use traffic_ebpf::Cell;

use crate::estimate::calibration::{CONFIDENCE_PERCENT, Calibration};

/// Version of the JSON format. Keys are added freely; a changed meaning changes this number.
pub const FORMAT: u32 = 1;

/// The result of `exec` or `compare`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The command that made it.
    pub command: &'static str,
    /// When it was measured.
    pub interval: Interval,
    /// One element per target.
    pub targets: Vec<TargetReport>,
    /// How the measured command ended; only where one was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<ExitStatus>,
}

/// The result of `demo`.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// [`FORMAT`].
    pub format: u32,
    /// `demo`.
    pub command: &'static str,
    /// What carried the traffic.
    pub proxy: String,
    /// One element per workload.
    pub workloads: Vec<DemoWorkload>,
}

/// One workload of the demo.
#[derive(Clone, Debug, Serialize)]
pub struct DemoWorkload {
    /// Short name.
    pub name: &'static str,
    /// In words.
    pub description: String,
    /// What the application at the far end sent and received.
    pub application_bytes: u64,
    /// L3 bytes that the far ends received and sent, captured there, both legs and directions.
    pub far_ends_bytes: u64,
    /// Of those, what certainly passed no socket of the proxy: resets for connections that were over
    /// and what they answer, found in the capture packet by packet.
    pub answered_by_kernel_bytes: u64,
    /// The exact figure less that of the far ends.
    pub difference_bytes: i64,
    /// What was measured.
    pub target: TargetReport,
}

/// A span of time, RFC 3339 with offset.
#[derive(Clone, Debug, Serialize)]
pub struct Interval {
    /// When counting began.
    #[serde(serialize_with = "rfc3339")]
    pub start: ZonedDateTime,
    /// When the last sample was taken.
    #[serde(serialize_with = "rfc3339")]
    pub end: ZonedDateTime,
    /// Length by the monotonic clock.
    pub seconds: f64,
}

/// RFC 3339 has no zone name in brackets, which is what `ZonedDateTime` would print.
pub(crate) fn rfc3339<S: serde::Serializer>(
    time: &ZonedDateTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&time.timestamp().display_with_offset(time.offset()))
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExitStatus {
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
}

/// What one target used.
#[derive(Clone, Debug, Serialize)]
pub struct TargetReport {
    /// Short name of the target.
    pub name: String,
    /// The value it was selected by, such as `unit:xray.service`.
    pub selector: String,
    /// The cgroups whose sockets were counted.
    pub cgroups: Vec<CgroupReport>,
    /// The processes found in them.
    pub processes: Vec<ProcessReport>,
    /// False when traffic of the target is known or suspected to be missing, beyond the classes of packets
    /// that this kernel does not show (docs/accounting.md); the findings say why.
    pub complete: bool,
    /// Seconds of the interval during which the hooks were attached.
    pub observed_seconds: f64,
    /// Billed traffic, both directions, all origins: the exact figure.
    pub total_wire_bytes: u64,
    /// Sums by scope and direction.
    pub totals: Scopes,
    /// The client leg by listening port.
    pub ports: Vec<PortReport>,
    /// Every cell that is not zero.
    pub cells: Vec<CellReport>,
    /// What the kernel exchanged in the target's network namespaces without any socket, and nothing shows
    /// that it was the target's: in no cell, and not in the totals. Null where it is not counted.
    pub unattributed: Option<Directions>,
    /// Other ways to measure the same traffic, and what they read. Empty for `exec`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<MethodReport>,
    /// Estimates made of those readings, and their errors. Empty for `exec`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub estimates: Vec<EstimateReport>,
    /// How much of the traffic each reading saw.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capture_rates: Vec<CaptureRate>,
    /// Relation of the directions of the client leg.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// One sentence: what the numbers say.
    pub verdict: String,
    /// What is wrong, missing or worth knowing.
    pub findings: Vec<Finding>,
}

/// A counted cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CgroupReport {
    /// Path from the cgroup2 mount, such as `/system.slice/xray.service`.
    pub path: String,
    /// Inode of its directory, unique until reboot.
    pub id: u64,
}

/// A process of the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessReport {
    /// Process id in the agent's pid namespace.
    pub pid: i32,
    /// Name as in /proc/PID/comm.
    pub name: String,
}

/// Sums of the six counters; the JSON twin of [`Cell`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// sk_buffs seen by the hook.
    pub packets: u64,
    /// L3 bytes as the hook saw them: what iptables counts.
    pub bytes: u64,
    /// IP packets as on the wire.
    pub wire_packets: u64,
    /// L3 bytes as on the wire: the exact figure.
    pub wire_bytes: u64,
    /// Bytes behind the transport header.
    pub payload_bytes: u64,
    /// Of these, what TCP carried before: sent again, received again.
    pub retransmitted_bytes: u64,
}

impl From<Cell> for Counters {
    fn from(cell: Cell) -> Self {
        let Cell { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes } =
            cell;
        Self { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes }
    }
}

impl Counters {
    /// Whether one of them is as large as a counter can be: the truth is that or more.
    pub fn at_limit(&self) -> bool {
        let Self { packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes } =
            *self;
        [packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes]
            .contains(&u64::MAX)
    }

    fn since(&self, earlier: &Self) -> Self {
        // Counters only grow; a smaller one is shown as no traffic, never as a huge number.
        Self {
            packets: self.packets.saturating_sub(earlier.packets),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            wire_packets: self.wire_packets.saturating_sub(earlier.wire_packets),
            wire_bytes: self.wire_bytes.saturating_sub(earlier.wire_bytes),
            payload_bytes: self.payload_bytes.saturating_sub(earlier.payload_bytes),
            retransmitted_bytes: self
                .retransmitted_bytes
                .saturating_sub(earlier.retransmitted_bytes),
        }
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        // A sum beyond a u64 stands at the limit, and the report says so (`Counters::at_limit`).
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.wire_packets = self.wire_packets.saturating_add(other.wire_packets);
        self.wire_bytes = self.wire_bytes.saturating_add(other.wire_bytes);
        self.payload_bytes = self.payload_bytes.saturating_add(other.payload_bytes);
        self.retransmitted_bytes =
            self.retransmitted_bytes.saturating_add(other.retransmitted_bytes);
    }
}

impl std::iter::Sum for Counters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |mut sum, counters| {
            sum += counters;
            sum
        })
    }
}

/// Both directions of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Directions {
    /// Delivered to sockets of the target.
    pub ingress: Counters,
    /// Sent by sockets of the target.
    pub egress: Counters,
}

impl Directions {
    /// Returns the counters of one direction.
    pub fn of_mut(&mut self, direction: Direction) -> &mut Counters {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }

    /// What came since an earlier sum of the same.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            ingress: self.ingress.since(&earlier.ingress),
            egress: self.egress.since(&earlier.egress),
        }
    }

    /// Wire bytes of both directions.
    pub fn wire_bytes(&self) -> u64 {
        self.ingress.wire_bytes.saturating_add(self.egress.wire_bytes)
    }
}

/// Sums by scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Scopes {
    /// What a provider sees: every interface but loopback and the unbilled ones.
    pub billed: Directions,
    /// Interfaces declared free.
    pub unbilled: Directions,
    /// Loopback; a packet between two sockets of the target is in it twice, out and in.
    pub loopback: Directions,
}

impl Scopes {
    /// Both directions of one scope.
    pub fn of(&self, scope: Scope) -> Directions {
        match scope {
            Scope::Billed => self.billed,
            Scope::Unbilled => self.unbilled,
            Scope::Loopback => self.loopback,
        }
    }

    /// Both directions of one scope, to be added to.
    pub fn of_mut(&mut self, scope: Scope) -> &mut Directions {
        match scope {
            Scope::Billed => &mut self.billed,
            Scope::Unbilled => &mut self.unbilled,
            Scope::Loopback => &mut self.loopback,
        }
    }
}

impl std::iter::Sum for Scopes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, scopes| {
            for scope in [Scope::Billed, Scope::Unbilled, Scope::Loopback] {
                let (sum, more) = (sum.of_mut(scope), scopes.of(scope));
                sum.ingress += more.ingress;
                sum.egress += more.egress;
            }
            sum
        })
    }
}

/// Seen from the cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Direction {
    Ingress,
    Egress,
}

/// Which side of the proxy a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    /// The socket's port is a listening port of the target.
    Client,
    /// Everything else.
    Upstream,
}

/// Transport protocol, as far as cells tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Other,
}

/// IP version of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the field's own")]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// Who pays for an interface's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Seen by the provider.
    Billed,
    /// Declared free (`--unbilled`).
    Unbilled,
    /// Never leaves the host.
    Loopback,
}

/// Who sent or took the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A socket of the target: the hook saw it.
    Socket,
    /// The kernel exchanged it in the target's place, without a socket, and a tracepoint showed it.
    Kernel,
    /// The same, for what no tracepoint shows but follows from a packet that one did.
    KernelDerived,
}

/// The client leg of one listening port. Loopback is included, as in the counters of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortReport {
    /// tcp or udp.
    pub protocol: Protocol,
    /// The port; null for the sum of the ports that found no slot of their own.
    pub port: Option<u16>,
    /// From the clients.
    pub ingress: Counters,
    /// To the clients.
    pub egress: Counters,
}

/// One cell that is not zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CellReport {
    /// Name of the interface; `other` for those without a slot.
    pub interface: String,
    /// Who pays for it.
    pub scope: Scope,
    /// Who sent or took the packets.
    pub origin: Origin,
    /// Seen from the cgroup.
    pub direction: Direction,
    /// Side of the proxy.
    pub leg: Leg,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Listening port; null on the upstream leg and for ports without a slot.
    pub port: Option<u16>,
    /// IP version of the packets.
    pub family: Family,
    /// The counters.
    #[serde(flatten)]
    pub counters: Counters,
}

/// What a method counts of the target's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Covers {
    /// Both legs of the target.
    Target,
    /// The client leg only.
    ClientLeg,
    /// Everything on the interfaces, whoever sent it.
    Interfaces,
}

/// Where a method's byte count begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// From the IP header, super-packets as the hook or rule sees them.
    L3,
    /// From the IP header, as on the wire.
    L3Wire,
    /// From the link-layer header.
    L2,
}

/// One way to measure, and what it read between start and end.
#[derive(Clone, Debug, Serialize)]
pub struct MethodReport {
    /// `ebpf`, `iptables-port`, `hook-port`, `interface`.
    pub name: &'static str,
    /// What it counts.
    pub covers: Covers,
    /// Where its bytes begin.
    pub layer: Layer,
    /// Whether there is a reading.
    pub available: bool,
    /// Why there is none.
    pub reason: Option<String>,
    /// Bytes towards the target.
    pub ingress_bytes: Option<u64>,
    /// Bytes from the target.
    pub egress_bytes: Option<u64>,
    /// The rules (or interfaces) behind the numbers.
    pub rules: Vec<RuleReport>,
}

/// A counter that a method read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    /// Where it was read: `iptables-nft`, `ip6tables-legacy`, `nft`, `interface`, ...
    pub backend: String,
    /// Table of the rule.
    pub table: String,
    /// Chain of the rule.
    pub chain: String,
    /// The rule as its program prints it.
    pub rule: String,
    /// Which direction it counts.
    pub direction: Direction,
    /// Bytes between start and end.
    pub bytes: u64,
    /// Packets between start and end.
    pub packets: u64,
    /// Whether it is part of the sum; false for a rule that counts packets another one counts too.
    pub counted: bool,
    /// Why it is not counted, or to what it is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One estimate and how wrong it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EstimateReport {
    /// `in-x2`, `out-x2`, `sum-x1`, `sum-x2`, `calibrated`.
    pub name: &'static str,
    /// How it is made.
    pub formula: &'static str,
    /// The method whose reading it uses.
    pub source: &'static str,
    /// The estimated total.
    pub total_bytes: u64,
    /// `100 x (estimate - exact) / exact`; null where exact is 0 or not comparable.
    pub error_percent: Option<f64>,
    /// What was published about it, held against this measurement. Of `calibrated` nothing was.
    pub claims: Vec<Claim>,
    /// What `calibrated` was learnt from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationReport>,
}

/// A factor that was learnt from history, with its interval ([`crate::estimate::calibration`]).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CalibrationReport {
    /// Exact bytes per byte in the counters.
    pub factor: f64,
    /// Lower end of the interval in which an hour's own factor is to be expected.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// In so many of 100 hours.
    pub confidence_percent: u32,
    /// Of how many hours.
    pub samples: usize,
}

impl From<Calibration> for CalibrationReport {
    fn from(Calibration { factor, low, high, samples }: Calibration) -> Self {
        Self { factor, low, high, confidence_percent: CONFIDENCE_PERCENT, samples }
    }
}

impl fmt::Display for CalibrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { factor, low, high, confidence_percent, samples } = self;
        write!(
            f,
            "calibrated: factor {factor:.3}, {confidence_percent} % of hours between {low:.3} and \
             {high:.3}; learnt from {samples} hours"
        )
    }
}

/// A published claim.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    /// In words.
    pub claim: &'static str,
    /// Lower bound of what it says.
    pub low: f64,
    /// Upper bound of what it says.
    pub high: f64,
    /// What was measured instead; null where exact is 0 or not comparable.
    pub measured: Option<f64>,
    /// Whether it held; null where it cannot be judged.
    pub holds: Option<bool>,
}

/// How much of the traffic a method saw.
#[derive(Clone, Debug, Serialize)]
pub struct CaptureRate {
    /// The method.
    pub method: &'static str,
    /// The direction.
    pub direction: Direction,
    /// What it is a percentage of: `exact` or `interface`.
    pub reference: &'static str,
    /// 100 x seen / reference; null where the reference is 0.
    pub percent: Option<f64>,
}

/// Relation of the two directions of the client leg.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ratio {
    /// Egress bytes per ingress byte; null where there was no ingress.
    pub egress_per_ingress: Option<f64>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// The numbers mean less than they seem.
    Warning,
    /// The numbers are wrong or missing.
    Error,
}

/// Something the reader of the numbers must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable name, such as `socket-not-owned`.
    pub code: &'static str,
    /// What was seen, with the numbers.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// Whether traffic of the target may be missing from the exact figure because of it.
    pub incomplete: bool,
}
