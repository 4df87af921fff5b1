//! What other methods read of the same traffic, the estimates made of that, and how wrong they are.

use std::fmt;

use serde::Serialize;

use super::traffic::Direction;
use crate::estimate::calibration::{CONFIDENCE_PERCENT, Calibration};

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
