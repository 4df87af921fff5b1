//! What the history says about spans of time: the result of `report`, in the shape in which it is printed.
//! Pure.
//!
//! The types are the JSON format (`"format": 1`), as in [`crate::report`]: bytes are integers, times RFC 3339
//! with the offset of the time zone that the calendar is cut in. [`plan`] says which spans are
//! reported, [`tally`] sums up what was kept of them, [`coverage`] says how much of them was observed,
//! [`projection`] what this month comes to, and [`rows`] puts it together.

pub mod coverage;
pub mod errors;
pub mod host;
pub mod plan;
pub mod projection;
pub mod rows;
pub mod status;
pub mod tally;

use jiff::{ZonedDateTime, civil::Date};
use serde::Serialize;

use crate::report::{Counters, Directions, Finding, Scope, Scopes, rfc3339};
use errors::{PastCalibration, PastEstimate};
use projection::Projection;
use tally::Group;

/// The result of `report`.
#[derive(Clone, Debug, Serialize)]
pub struct PastReport {
    /// [`crate::report::FORMAT`].
    pub format: u32,
    /// `report`.
    pub command: &'static str,
    /// The zone that hours, days, months and years are cut in.
    pub time_zone: String,
    /// When it was made: nothing can be known of what is later.
    #[serde(serialize_with = "rfc3339")]
    pub made_at: ZonedDateTime,
    /// What it is about.
    pub interval: Extent,
    /// What the rows are divided by: `day`, `leg`. Empty for the overview, whose rows overlap.
    pub by: Vec<&'static str>,
    /// Bytes of a link-layer header, where a model of what interfaces count was asked for.
    #[serde(rename = "link_overhead_bytes", skip_serializing_if = "Option::is_none")]
    pub link_overhead: Option<u32>,
    /// Whether estimates were asked for.
    #[serde(skip)]
    pub with_estimates: bool,
    /// One element per target, in the order of their names.
    pub targets: Vec<TargetPast>,
    /// By target, in the order of time.
    pub rows: Vec<Row>,
}

/// A span of time, half-open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Its first instant.
    #[serde(serialize_with = "rfc3339")]
    pub start: ZonedDateTime,
    /// The first instant after it; may be later than now.
    #[serde(serialize_with = "rfc3339")]
    pub end: ZonedDateTime,
}

/// A target, and all of the interval.
#[derive(Clone, Debug, Serialize)]
pub struct TargetPast {
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
    /// Billed traffic of the interval, both directions, all origins: the exact figure.
    pub total_wire_bytes: u64,
    /// Sums of the interval by scope and direction.
    pub totals: Scopes,
    /// How much of the interval was observed.
    #[serde(flatten)]
    pub coverage: Coverage,
    /// What this month comes to; only in the overview.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection: Option<Projection>,
    /// What `calibrated` is worth, where estimates were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<PastCalibration>,
    /// What happened to the rules and counters that estimates are made of, where estimates were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_notes: Option<Vec<Note>>,
    /// What is wrong, missing or worth knowing.
    pub findings: Vec<Finding>,
}

/// What one target used in one span of time, or a part of that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Whose traffic.
    pub target: String,
    /// Name of the span: `today`, `2026-11-24T10`, `2026-11-24`, `2026-W48`, `2026-11`, `2026`, `interval`.
    pub period: String,
    /// When.
    #[serde(flatten)]
    pub extent: Extent,
    /// The date that the span is, or is a part of; null where it is longer.
    pub day: Option<Date>,
    /// Which part of the traffic.
    #[serde(flatten)]
    pub group: Group,
    /// The sums by scope and direction.
    #[serde(flatten)]
    pub totals: Scopes,
    /// Billed traffic, both directions, all origins.
    pub total_wire_bytes: u64,
    /// The same with a link-layer header on every packet: a model, and only where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modelled_link_bytes: Option<u64>,
    /// How much of the span was observed.
    #[serde(flatten)]
    pub coverage: Coverage,
    /// The estimates and their errors, where they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub estimates: Vec<PastEstimate>,
}

impl Row {
    /// What the row is about: the scope that it is a part of, or else what is billed.
    pub fn figures(&self) -> Directions {
        self.totals.of(self.group.scope.unwrap_or(Scope::Billed))
    }
}

/// What an interface would count if each packet on the wire had so many bytes more: a model.
pub fn link_bytes(counters: &Counters, overhead: u32) -> u64 {
    let headers = counters.wire_packets.saturating_mul(overhead.into());
    counters.wire_bytes.saturating_add(headers)
}

/// How much of a span of time was observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Coverage {
    /// Seconds of it in which the target was counted.
    pub observed_seconds: f64,
    /// Seconds of it in which it could have been: since the target is known, until now.
    pub observable_seconds: f64,
    /// Whether no traffic of it may be missing.
    pub complete: bool,
    /// What happened in it: gaps, and what moves traffic from one row to another.
    pub notes: Vec<Note>,
}

impl Coverage {
    /// 100 x observed / observable; `None` where nothing could be observed.
    pub fn percent(&self) -> Option<f64> {
        let percent = 100.0 * self.observed_seconds / self.observable_seconds;
        (self.observable_seconds > 0.0).then(|| percent.min(100.0))
    }
}

/// Something that happened in a span of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// `gap`, `late`, `clock-step` or `note`.
    pub kind: &'static str,
    /// When.
    #[serde(flatten)]
    pub extent: Extent,
    /// In words, with the numbers.
    pub message: String,
}
