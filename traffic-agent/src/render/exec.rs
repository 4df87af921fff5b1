//! What `exec` says when its command has ended: as short as what `time` says.

use std::io::{self, Write};

use super::{
    Options,
    table::{exit_status, write_findings},
    text::{Grid, Style, paint, tame},
};
use crate::{
    ledger,
    report::{Counters, Directions, Leg, Report, Scope, TargetReport},
    units::{Units, format_bytes, format_count, format_seconds},
};

/// Writes what a command used, and what is wrong with the figures.
pub(super) fn write(
    report: &Report,
    target: &TargetReport,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let name = paint(&tame(&target.name), Style::Bold, options.colour);
    let seconds = format_seconds(report.interval.seconds);
    let status = report.exit_status.map(|status| format!(", {}", exit_status(status)));
    let complete = if target.complete { "" } else { ", incomplete" };
    writeln!(out, "{name}: {seconds}{}{complete}", status.unwrap_or_default())?;

    // Where every figure is exact anyway, one column of them is enough.
    let rounded = options.units != Units::Bytes;
    let mut headings = vec![("", '<'), ("wire bytes", '>')];
    headings.extend(rounded.then_some(("exactly", '>')));
    headings.extend([("wire packets", '>'), ("payload", '>')]);
    let mut grid = Grid::new(&headings, options);
    for (label, counters, style) in rows(target) {
        let exact = format_bytes(counters.wire_bytes, Units::Bytes);
        let mut row = vec![(label.to_owned(), Style::Plain)];
        row.push((format_bytes(counters.wire_bytes, options.units), style));
        row.extend(rounded.then_some((exact, style)));
        row.push((format_count(counters.wire_packets), style));
        row.push((format_bytes(counters.payload_bytes, options.units), style));
        grid.styled_row(row);
    }
    grid.write(out)?;
    write_findings(&target.findings, options, out)
}

/// Returns the lines: those of the legs only if there are two, those of a scope only if it was used.
fn rows(target: &TargetReport) -> Vec<(&'static str, Counters, Style)> {
    let both = |Directions { ingress, egress }| [ingress, egress].into_iter().sum::<Counters>();
    let billed = target.totals.billed;
    let leg = |leg| {
        both(ledger::sum(&target.cells, |cell| cell.scope == Scope::Billed && cell.leg == leg))
    };
    let mut rows = vec![
        ("total", both(billed), Style::Bold),
        ("ingress", billed.ingress, Style::Plain),
        ("egress", billed.egress, Style::Plain),
    ];
    if leg(Leg::Client) != Counters::default() {
        rows.push(("client leg", leg(Leg::Client), Style::Plain));
        rows.push(("upstream leg", leg(Leg::Upstream), Style::Plain));
    }
    let apart = [("unbilled", target.totals.unbilled), ("loopback", target.totals.loopback)];
    rows.extend(
        apart
            .into_iter()
            .filter(|(_, directions)| *directions != Directions::default())
            .map(|(label, directions)| (label, both(directions), Style::Plain)),
    );
    rows
}
