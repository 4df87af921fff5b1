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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Counters;

    const HOUR: u64 = 3_600_000;

    fn november(ingress: u64, egress: u64, observed: u64) -> Projection {
        let at = |text: &str| text.parse::<ZonedDateTime>().unwrap();
        let month = (at("2026-11-01T00:00+08:00[+08:00]"), at("2026-12-01T00:00+08:00[+08:00]"));
        let wire = |wire_bytes| Counters { wire_bytes, ..Counters::default() };
        let billed = Directions { ingress: wire(ingress), egress: wire(egress) };
        project("2026-11".to_owned(), month, &billed, observed)
    }

    #[test]
    fn month_is_in_proportion_to_the_time_that_was_observed() {
        // 720 h in November. Whatever was counted in 240 of them comes three times.
        let projection = november(1_000, 50_000, 240 * HOUR);
        let bytes = [
            projection.ingress_wire_bytes,
            projection.egress_wire_bytes,
            projection.total_wire_bytes,
        ];
        assert_eq!(bytes, [Some(3_000), Some(150_000), Some(153_000)]);
        // A whole month is what it was.
        assert_eq!(november(7, 8, 720 * HOUR).total_wire_bytes, Some(15));
        // 1 byte in 31 h of 720: 23.2.
        assert_eq!(november(1, 0, 31 * HOUR).total_wire_bytes, Some(23));
    }

    #[test]
    fn sum_is_projected_and_not_summed_up_of_what_was_rounded() {
        // 720 / 480: 1 byte is 1.5, which rounds to 2; both are 3.
        let projection = november(1, 1, 480 * HOUR);
        assert_eq!(
            (projection.ingress_wire_bytes, projection.total_wire_bytes),
            (Some(2), Some(3))
        );
    }

    #[test]
    fn less_than_a_day_is_no_ground_for_a_guess() {
        let projection = november(1_000, 1_000, LEAST_MILLISECONDS - 1);
        assert_eq!(projection.total_wire_bytes, None);
        assert!(projection.explanation.contains("it takes 1 d 00 h 00 min"), "{projection:?}");
        assert_eq!(november(1, 0, LEAST_MILLISECONDS).total_wire_bytes, Some(30));
        assert_eq!(november(0, 0, 0).total_wire_bytes, None);
    }

    #[test]
    fn what_does_not_fit_stands_at_the_limit() {
        let projection = november(u64::MAX, u64::MAX, 240 * HOUR);
        assert_eq!(projection.total_wire_bytes, Some(u64::MAX));
    }
}
