//! From sums to rows.

use jiff::Timestamp;

use super::{
    Coverage, Extent, Row, TargetPast,
    coverage::{Known, cover},
    link_bytes,
    plan::Plan,
    projection::{self, Projection},
    tally::{Group, Slice, Tally},
};
use crate::{
    calendar::{Calendar, Span},
    history::{Event, Quarter},
    measure::finding::at_limit,
    report::{Counters, Directions, Finding, Scopes, Severity},
    units::format_seconds,
};

/// A target, and what is kept of it besides its traffic.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its short name.
    pub name: String,
    /// How it was selected last.
    pub selector: String,
    /// When it was counted.
    pub known: Known,
    /// What happened to it in the time that is reported of.
    pub events: Vec<Event>,
    /// The first quarter that may be asked for; `None` where no quarter was needed or all are kept.
    pub quarters_from: Option<Quarter>,
}

/// Puts the rows of a target together, of a tally of [`Plan::slices`]. Spans in which it could not be
/// observed, and has no traffic, have none.
pub fn rows(
    subject: &Subject,
    plan: &Plan,
    tally: &Tally,
    calendar: &Calendar,
    link_overhead: Option<u32>,
) -> (TargetPast, Vec<Row>) {
    let mut rows = Vec::new();
    for (index, slice) in (1..).zip(&plan.rows) {
        let coverage = coverage(subject, slice, tally.observed(index), calendar);
        if coverage.observable_seconds == 0.0 && tally.is_empty(index) {
            continue;
        }
        let row = |group: Group, totals: Scopes| {
            let row = Row {
                target: subject.name.clone(),
                period: slice.name.clone(),
                extent: extent(slice.span, calendar),
                day: slice.day,
                group,
                totals,
                total_wire_bytes: totals.billed.wire_bytes(),
                modelled_link_bytes: None,
                coverage: coverage.clone(),
                estimates: Vec::new(),
            };
            let Directions { ingress, egress } = row.figures();
            let both: Counters = [ingress, egress].into_iter().sum();
            let modelled_link_bytes = link_overhead.map(|overhead| link_bytes(&both, overhead));
            Row { modelled_link_bytes, ..row }
        };
        match tally.is_divided() {
            true => {
                rows.extend(tally.sums(index).map(|(group, totals)| row(group.clone(), totals)))
            }
            false => rows.push(row(Group::default(), tally.total(index))),
        }
    }
    let totals = tally.total(0);
    let target = TargetPast {
        name: subject.name.clone(),
        selector: subject.selector.clone(),
        since: calendar.zoned(subject.known.since),
        last_flush: calendar.zoned(subject.known.last_flush),
        total_wire_bytes: totals.billed.wire_bytes(),
        totals,
        coverage: coverage(subject, &plan.whole, tally.observed(0), calendar),
        projection: project(plan, tally, calendar),
        calibration: None,
        estimate_notes: None,
        findings: findings(subject, plan.whole.span, &totals, calendar),
    };
    (target, rows)
}

/// A span with the offsets of the calendar's zone.
pub fn extent(span: Span, calendar: &Calendar) -> Extent {
    Extent { start: calendar.zoned(span.start), end: calendar.zoned(span.end) }
}

fn coverage(subject: &Subject, slice: &Slice, observed: u64, calendar: &Calendar) -> Coverage {
    cover(slice.span, observed, &subject.known, &subject.events, calendar)
}

fn project(plan: &Plan, tally: &Tally, calendar: &Calendar) -> Option<Projection> {
    let month = plan.month.as_ref()?;
    let index = plan.rows.iter().position(|slice| slice.span == month.span)? + 1;
    let Extent { start, end } = extent(month.span, calendar);
    let billed = tally.total(index).billed;
    Some(projection::project(month.name(), (start, end), &billed, tally.observed(index)))
}

/// What is to be said of a target and the span that is reported of.
pub fn findings(
    subject: &Subject,
    whole: Span,
    totals: &Scopes,
    calendar: &Calendar,
) -> Vec<Finding> {
    let Known { last_flush, now, .. } = subject.known;
    let shown = |instant: Timestamp| calendar.zoned(instant).strftime("%Y-%m-%d %H:%M:%S %:z");
    let mut findings = Vec::new();
    if !subject.known.is_current() && whole.start < now && last_flush < whole.end {
        findings.push(Finding {
            severity: Severity::Warning,
            code: "history-not-current",
            message: format!(
                "the last that was written of {} is of {}, {} ago",
                subject.name,
                shown(last_flush),
                format_seconds(now.duration_since(last_flush).as_secs_f64()),
            ),
            remedy:
                "see whether the agent runs (`systemctl status traffic-agent`) and still has this \
                     target; what the kernel counted meanwhile comes with its next start"
                    .to_owned(),
            incomplete: true,
        });
    }
    if let Some(from) = subject.quarters_from.map(Quarter::start)
        && whole.start < from
        && subject.known.since < from
    {
        findings.push(Finding {
            severity: Severity::Warning,
            code: "quarters-not-kept",
            message: format!(
                "before {} only days are kept: what was asked for cuts them, and has no traffic of then",
                shown(from),
            ),
            remedy: "ask for whole days in the time zone of the history; the configuration says how \
                     long quarters of an hour are kept (retention)"
                .to_owned(),
            incomplete: true,
        });
    }
    let sums = [totals.billed, totals.unbilled, totals.loopback];
    if sums.iter().any(|sum| sum.ingress.at_limit() || sum.egress.at_limit()) {
        findings.push(at_limit("counters of the history", true));
    }
    findings
}
