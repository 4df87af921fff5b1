//! What a measurement found, in the shape in which it is printed.
//!
//! The types are the JSON format (`"format": 1`): field names are JSON keys, so that there is one
//! definition to read. Bytes and packets are integers; only percentages and ratios are floats. The
//! numbers are put together in `ledger` and `estimate`, and turned into text in `render`.

mod methods;
mod traffic;

use jiff::ZonedDateTime;
pub use methods::{
    CalibrationReport, CaptureRate, Claim, Covers, EstimateReport, Layer, MethodReport, Ratio,
    RuleReport,
};
use serde::Serialize;
pub use traffic::{Counters, Direction, Directions, Family, Leg, Origin, Protocol, Scope, Scopes};

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
