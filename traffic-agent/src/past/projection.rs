//! What this month comes to, if all of it is like what was observed of it.

use jiff::ZonedDateTime;
use serde::Serialize;

use crate::{
    calendar::Span,
    report::{Directions, rfc3339},
    units::format_seconds,
};

/// Less than this says nothing about a month: a day has its hours of much traffic and of little.
pub const LEAST_MILLISECONDS: u64 = 24 * 3_600_000;

/// What this month comes to.
///
/// Wire bytes that were observed, times the length of the month, divided by the time in which they were
/// observed. So gaps, and the time before the target was known, count as if they had been like the rest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Projection {
    /// The month: `2026-11`.
    pub period: String,
    /// Its first instant.
    #[serde(serialize_with = "rfc3339")]
    pub start: ZonedDateTime,
    /// The first instant of the next.
    #[serde(serialize_with = "rfc3339")]
    pub end: ZonedDateTime,
    /// Seconds of it that were observed.
    pub observed_seconds: f64,
    /// Billed wire bytes of the month, in; null where too little was observed.
    pub ingress_wire_bytes: Option<u64>,
    /// The same, out.
    pub egress_wire_bytes: Option<u64>,
    /// The same, both.
    pub total_wire_bytes: Option<u64>,
    /// How it was made, or why it was not.
    pub explanation: String,
}

/// Projects a month from the billed traffic of what was observed of it.
pub fn project(
    period: String,
    (start, end): (ZonedDateTime, ZonedDateTime),
    billed: &Directions,
    observed_milliseconds: u64,
) -> Projection {
    let month = Span { start: start.timestamp(), end: end.timestamp() }.milliseconds();
    let enough = observed_milliseconds >= LEAST_MILLISECONDS;
    let whole = |bytes: u64| enough.then(|| in_proportion(bytes, month, observed_milliseconds));
    let observed = observed_milliseconds as f64 / 1e3;
    let explanation = match enough {
        true => format!(
            "if the whole month is like the {} of it that were observed",
            format_seconds(observed)
        ),
        false => format!(
            "{} of this month were observed; it takes {} of them to say what the month comes to",
            format_seconds(observed),
            format_seconds(LEAST_MILLISECONDS as f64 / 1e3)
        ),
    };
    let [ingress, egress] = [billed.ingress.wire_bytes, billed.egress.wire_bytes];
    Projection {
        period,
        start,
        end,
        observed_seconds: observed,
        ingress_wire_bytes: whole(ingress),
        egress_wire_bytes: whole(egress),
        // Of the sum, not the sum of what was rounded.
        total_wire_bytes: whole(ingress.saturating_add(egress)),
        explanation,
    }
}

/// `bytes * whole / part`, rounded; the limit of a u64 where it is more.
fn in_proportion(bytes: u64, whole: u64, part: u64) -> u64 {
    let product = u128::from(bytes) * u128::from(whole);
    u64::try_from((product + u128::from(part) / 2) / u128::from(part)).unwrap_or(u64::MAX)
}
