//! How counting goes: the result of `status`, in the shape in which it is printed. Pure.

use jiff::ZonedDateTime;
use serde::Serialize;

use super::{Coverage, Note};
use crate::report::{Finding, Scopes, rfc3339};

/// The result of `status`.
#[derive(Clone, Debug, Serialize)]
pub struct StatusReport {
    /// [`crate::report::FORMAT`].
    pub format: u32,
    /// `status`.
    pub command: &'static str,
    /// When it was made.
    #[serde(serialize_with = "rfc3339")]
    pub made_at: ZonedDateTime,
    /// The zone that today is of.
    pub time_zone: String,
    /// One element per target, in the order of their names.
    pub targets: Vec<TargetStatus>,
}

/// How counting a target goes.
#[derive(Clone, Debug, Serialize)]
pub struct TargetStatus {
    /// Its short name.
    pub name: String,
    /// How it was selected last.
    pub selector: String,
    /// When it was first counted.
    #[serde(serialize_with = "rfc3339")]
    pub since: ZonedDateTime,
    /// Until when it is in the history.
    #[serde(serialize_with = "rfc3339")]
    pub last_flush: ZonedDateTime,
    /// Seconds since then.
    pub last_flush_seconds_ago: f64,
    /// Whether the history is kept up.
    pub current: bool,
    /// What it uses now; null where nobody looked into the counters.
    pub live: Option<LiveRates>,
    /// Sums of today by scope and direction.
    pub today: Scopes,
    /// Sums since it was first counted.
    pub totals: Scopes,
    /// Billed traffic since it was first counted, both directions: the exact figure.
    pub total_wire_bytes: u64,
    /// How much of the time since was observed.
    #[serde(flatten)]
    pub coverage: Coverage,
    /// What happened in the last 24 hours, of every kind.
    pub events: Vec<Note>,
    /// What is wrong, missing or worth knowing.
    pub findings: Vec<Finding>,
}

/// Traffic between two looks into the counters, on all interfaces but loopback.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LiveRates {
    /// Seconds between the looks.
    pub seconds: f64,
    /// Wire bytes in.
    pub ingress_wire_bytes: u64,
    /// Wire bytes out.
    pub egress_wire_bytes: u64,
}
