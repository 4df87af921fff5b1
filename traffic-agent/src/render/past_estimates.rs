//! How wrong the estimates were: below the rows of `report`, and as a flat table of their own for scripts.
//!
//! The columns of the CSV:
//!
//! | Column | Meaning |
//! |---|---|
//! | `target`, `period`, `start`, `end` | as in the rows of traffic |
//! | `estimate`, `source` | name of the estimator, and the method whose counters it is made of |
//! | `estimated_bytes`, `exact_bytes` | the estimate, and billed wire bytes of the time in which counters were read |
//! | `compared_seconds` | that time |
//! | `error_percent` | 100 x (estimated - exact) / exact; empty where exact is 0 |
//! | `within_20_percent`, `truth_10_to_20_percent_above`, `truth_2.1_to_2.3_times` | the three published claims; empty where not to be judged |
//! | `factor`, `low`, `high`, `samples` | of `calibrated`: as the hours before the last hour of the period gave them |

use std::io::{self, Write};

use csv::WriterBuilder;

use super::{
    Options,
    csv::io_error,
    past::write_notes,
    past_csv::offset,
    table::write_title,
    text::{Grid, Style, write_labelled},
};
use crate::{
    past::{
        PastReport, Row, TargetPast,
        errors::{PastEstimate, told},
    },
    units::{NONE, format_bytes, format_signed_percent},
};

/// Estimators, in the order of their columns.
const NAMES: [&str; 5] = ["in-x2", "out-x2", "sum-x1", "sum-x2", "calibrated"];

/// Writes the errors of a target's estimates by period, what was claimed, and what `calibrated` is worth.
pub(super) fn write(
    target: &TargetPast,
    rows: &[(String, &Row)],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Some(calibration) = &target.calibration else { return Ok(()) };
    write_title("Errors of the estimates", options, out)?;
    if rows.iter().all(|(_, row)| row.estimates.is_empty()) {
        let text = "no counters of a port were read in this time";
        write_labelled(&[("", Style::Plain, 2)], text, options, out)?;
        return write_asides(target, options, out);
    }
    let mut headings = vec![("", '<'), ("compared", '>')];
    headings.extend(NAMES.map(|name| (name, '>')));
    headings.push(("made of", '<'));
    let mut grid = Grid::new(&headings, options);
    for (period, row) in rows.iter().filter(|(_, row)| !row.estimates.is_empty()) {
        let of = |name: &str| row.estimates.iter().find(|past| past.estimate.name == name);
        let exact = row.estimates.iter().map(|past| past.exact_bytes).max().unwrap_or(0);
        let errors = NAMES.map(|name| match of(name).map(|past| past.estimate.error_percent) {
            Some(Some(error)) => format_signed_percent(error),
            _ => NONE.to_owned(),
        });
        let mut sources: Vec<&str> =
            row.estimates.iter().map(|past| past.estimate.source).collect();
        sources.sort_unstable();
        sources.dedup();
        let cells = [period.clone(), format_bytes(exact, options.units)];
        grid.row(cells.into_iter().chain(errors).chain([sources.join(", ")]));
    }
    grid.write(out)?;
    for line in claims(rows) {
        write_labelled(&[("", Style::Plain, 2)], &line, options, out)?;
    }
    write_labelled(&[("", Style::Plain, 2)], &told(calibration), options, out)?;
    write_asides(target, options, out)
}

/// What happened to what the estimates are made of: an estimate is of the spans in between alone.
fn write_asides(target: &TargetPast, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let notes = target.estimate_notes.as_deref().unwrap_or_default();
    write_notes("What happened to the rules and counters", notes, options, out)
}

/// In how many periods each published claim about 2 x dport held.
fn claims(rows: &[(String, &Row)]) -> Vec<String> {
    let published: Vec<&PastEstimate> = rows
        .iter()
        .filter_map(|(_, row)| row.estimates.iter().find(|it| it.estimate.name == "in-x2"))
        .collect();
    let Some(first) = published.first() else { return Vec::new() };
    (0..first.estimate.claims.len())
        .map(|index| {
            let judged: Vec<bool> =
                published.iter().filter_map(|past| past.estimate.claims[index].holds).collect();
            let held = judged.iter().filter(|holds| **holds).count();
            let claim = first.estimate.claims[index].claim;
            format!("in-x2: \"{claim}\" held in {held} of {} rows", judged.len())
        })
        .collect()
}

const HEADER: &str = "target,period,start,end,estimate,source,estimated_bytes,exact_bytes,compared_seconds,\
                      error_percent,within_20_percent,truth_10_to_20_percent_above,\
                      truth_2.1_to_2.3_times,factor,low,high,samples";

/// Writes all estimates of all rows as CSV.
pub fn write_csv(report: &PastReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{HEADER}")?;
    let mut lines = WriterBuilder::new().has_headers(false).from_writer(out);
    for row in &report.rows {
        for PastEstimate { estimate, exact_bytes, compared_seconds } in &row.estimates {
            let claim = |index: usize| estimate.claims.get(index).and_then(|claim| claim.holds);
            let calibration = estimate.calibration;
            lines
                .serialize((
                    (&row.target, &row.period, offset(&row.extent.start), offset(&row.extent.end)),
                    (estimate.name, estimate.source, estimate.total_bytes, exact_bytes),
                    (compared_seconds, estimate.error_percent, claim(0), claim(1), claim(2)),
                    (
                        calibration.map(|it| it.factor),
                        calibration.map(|it| it.low),
                        calibration.map(|it| it.high),
                        calibration.map(|it| it.samples),
                    ),
                ))
                .map_err(io_error)?;
        }
    }
    lines.flush()
}
