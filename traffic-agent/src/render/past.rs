//! What the history says, for people: rows with bars, how much of them was observed, and below them what
//! happened when something was not.

use std::io::{self, Write};

use super::{
    Options,
    bar::{self, Column, Figures},
    past_estimates,
    table::{FIGURES, exact, word, write_findings, write_title},
    text::{Grid, Style, paint, tame, write_labelled},
};
use crate::{
    past::{Coverage, Extent, Note, PastReport, Row, TargetPast, projection::Projection},
    report::{Counters, Directions, Scope},
    units::{NONE, format_bytes, format_percent, format_seconds},
};

/// Columns before the text of a heading.
const HEADING: usize = 13;
/// Columns before the text of a note.
const KIND: usize = 12;
/// Notes that are shown; JSON has them all.
const MOST_NOTES: usize = 20;

/// Writes the report.
pub fn write(report: &PastReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if report.targets.is_empty() {
        return writeln!(out, "No target has been counted yet.");
    }
    for (index, target) in report.targets.iter().enumerate() {
        if index != 0 {
            writeln!(out)?;
        }
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.target == target.name).collect();
        write_target(report, target, &rows, options, out)?;
    }
    Ok(())
}

fn write_target(
    report: &PastReport,
    target: &TargetPast,
    rows: &[&Row],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let overview = target.projection.is_some();
    write_heading(report, target, overview, options, out)?;
    if rows.is_empty() {
        writeln!(out, "\n  nothing: it was not counted then")?;
    } else {
        if !overview {
            let total = exact(target.total_wire_bytes, options.units);
            write_title(&format!("Exact: {total} on the wire"), options, out)?;
        } else {
            writeln!(out)?;
        }
        write_rows(target, rows, options, out)?;
    }
    if let Some(projection) = &target.projection {
        write_labelled(&[("", Style::Plain, 2)], &projected(projection), options, out)?;
        write_unbilled(rows, options, out)?;
    }
    let named: Vec<(String, &Row)> =
        rows.iter().enumerate().map(|(index, row)| (period(rows, index), *row)).collect();
    past_estimates::write(target, &named, options, out)?;
    write_notes("What happened", &target.coverage.notes, options, out)?;
    if !target.findings.is_empty() {
        write_title("Findings", options, out)?;
        write_findings(&target.findings, options, out)?;
    }
    Ok(())
}

fn write_heading(
    report: &PastReport,
    target: &TargetPast,
    overview: bool,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let name = paint(&tame(&target.name), Style::Bold, options.colour);
    writeln!(out, "{name} ({})", tame(&target.selector))?;
    let mut line = |label: &str, text: &str| {
        let labels = [("", Style::Plain, 2), (label, Style::Dim, HEADING - 2)];
        write_labelled(&labels, text, options, out)
    };
    if !overview {
        line("interval", &format!("{} ({})", minutes(&report.interval), report.time_zone))?;
    }
    line("counted", &format!("since {}", target.since.strftime("%Y-%m-%d %H:%M:%S %:z")))?;
    line("observed", &observed(&target.coverage))
}

/// How much was observed, in words.
pub(super) fn observed(coverage: &Coverage) -> String {
    let [observed, observable] =
        [coverage.observed_seconds, coverage.observable_seconds].map(format_seconds);
    if coverage.complete {
        return format!("{observed} of {observable}");
    }
    let share = coverage.percent().map_or(NONE.to_owned(), share);
    format!("{observed} of {observable} ({share}): traffic may be missing")
}

/// A share that is less than all of it, and never rounded up to that.
fn share(percent: f64) -> String {
    format_percent(percent.min(99.99))
}

pub(super) fn minutes(Extent { start, end }: &Extent) -> String {
    // Both offsets, where they are not the same.
    let format =
        if start.offset() == end.offset() { "%Y-%m-%d %H:%M" } else { "%Y-%m-%d %H:%M %:z" };
    format!("{} to {}", start.strftime(format), end.strftime("%Y-%m-%d %H:%M %:z"))
}

/// A line of the table: its labels, what it shows, how much of it was observed.
struct Line {
    labels: Vec<String>,
    directions: Directions,
    link_bytes: Option<u64>,
    observed: String,
    /// Whether it is one of those that bars compare.
    compared: bool,
}

fn write_rows(
    target: &TargetPast,
    rows: &[&Row],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let labelled = Labels::of(rows);
    let mut lines: Vec<Line> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| Line {
            labels: labelled.of_row(rows, index),
            directions: row.figures(),
            link_bytes: row.modelled_link_bytes,
            observed: if row.coverage.complete {
                String::new()
            } else {
                row.coverage.percent().map_or(NONE.to_owned(), share)
            },
            compared: true,
        })
        .collect();
    if target.projection.is_none() {
        lines.extend(sums(target, rows, &labelled));
    } else if let Some(line) = projection_line(target, &labelled) {
        lines.push(line);
    }
    write_lines(&labelled.headings(), &lines, options, out)
}

/// The labels that rows have: the period, and what they are divided by.
struct Labels {
    period: bool,
    interface: bool,
    scope: bool,
    leg: bool,
    protocol: bool,
    port: bool,
}

impl Labels {
    fn of(rows: &[&Row]) -> Self {
        let any = |has: fn(&Row) -> bool| rows.iter().any(|row| has(row));
        let port = any(|row| row.group.port.is_some());
        Self {
            period: any(|row| row.period != "interval")
                || any(|row| row.group == crate::past::tally::Group::default()),
            interface: any(|row| row.group.interface.is_some()),
            scope: any(|row| row.group.scope.is_some()),
            leg: any(|row| row.group.leg.is_some()),
            // A port says its own.
            protocol: !port && any(|row| row.group.protocol.is_some()),
            port,
        }
    }

    fn headings(&self) -> Vec<&'static str> {
        let columns = [
            (self.period, ""),
            (self.interface, "interface"),
            (self.scope, "scope"),
            (self.leg, "leg"),
            (self.protocol, "protocol"),
            (self.port, "port"),
        ];
        columns.into_iter().filter(|(shown, _)| *shown).map(|(_, heading)| heading).collect()
    }

    fn of_row(&self, rows: &[&Row], index: usize) -> Vec<String> {
        let row = rows[index];
        let group = &row.group;
        let mut labels = Vec::new();
        if self.period {
            let above = index.checked_sub(1).map(|above| &rows[above].extent);
            // The parts of a period are below its name.
            let repeated = above == Some(&row.extent);
            labels.push(if repeated { String::new() } else { period(rows, index) });
        }
        let mut push = |shown: bool, label: Option<String>| {
            if shown {
                labels.push(label.unwrap_or_default());
            }
        };
        push(self.interface, group.interface.clone());
        push(self.scope, group.scope.map(|scope| word(&scope)));
        push(self.leg, group.leg.map(|leg| word(&leg)));
        let protocol = group.protocol.map(|protocol| word(&protocol));
        let port = match (&protocol, group.port) {
            (Some(protocol), Some(Some(port))) => Some(format!("{protocol}/{port}")),
            (Some(protocol), Some(None)) => Some(format!("{protocol}, others")),
            // The upstream leg has no listening port.
            _ => None,
        };
        push(self.protocol, protocol);
        push(self.port, port);
        labels
    }

    /// The labels of a line that is no row.
    fn of_line(&self, name: &str) -> Vec<String> {
        let mut labels = vec![String::new(); self.headings().len()];
        if let Some(first) = labels.first_mut() {
            *first = name.to_owned();
        }
        labels
    }
}

/// Name of a row's period: hours as a clock shows them, with the offset where that comes twice.
fn period(rows: &[&Row], index: usize) -> String {
    let row = rows[index];
    if row.period == "interval" {
        return "all of it".to_owned();
    }
    if !row.period.contains('T') {
        return row.period.replace("this-", "this ").replace("last-", "last ");
    }
    let neighbours = [index.checked_sub(1), index.checked_add(1)];
    let twice = neighbours.into_iter().flatten().filter_map(|other| rows.get(other)).any(|other| {
        other.period == row.period && other.extent.start.offset() != row.extent.start.offset()
    });
    let format = if twice { "%Y-%m-%d %H:%M %:z" } else { "%Y-%m-%d %H:%M" };
    row.extent.start.strftime(format).to_string()
}

/// The sums below the rows: of what is billed, and of what is not, unless the rows are those.
fn sums(target: &TargetPast, rows: &[&Row], labels: &Labels) -> Vec<Line> {
    let line = |name: &str, directions, link_bytes| Line {
        labels: labels.of_line(name),
        directions,
        link_bytes,
        observed: String::new(),
        compared: false,
    };
    let by_scope = rows.iter().any(|row| row.group.scope.is_some());
    let mut lines = Vec::new();
    if rows.len() > 1 {
        let name = if by_scope { "billed" } else { "sum" };
        let billed =
            rows.iter().filter(|row| row.group.scope.is_none_or(|scope| scope == Scope::Billed));
        let link = billed.filter_map(|row| row.modelled_link_bytes);
        let link = link.reduce(u64::saturating_add);
        lines.push(line(name, target.totals.billed, link));
    }
    let others = [("unbilled", Scope::Unbilled), ("loopback", Scope::Loopback)];
    for (name, scope) in others.into_iter().filter(|_| !by_scope) {
        let directions = target.totals.of(scope);
        if directions != Directions::default() {
            lines.push(line(name, directions, None));
        }
    }
    lines
}

fn projection_line(target: &TargetPast, labels: &Labels) -> Option<Line> {
    let projection = target.projection.as_ref()?;
    let wire = |wire_bytes: u64| Counters { wire_bytes, ..Counters::default() };
    let directions = Directions {
        ingress: wire(projection.ingress_wire_bytes?),
        egress: wire(projection.egress_wire_bytes?),
    };
    Some(Line {
        labels: labels.of_line("projection"),
        directions,
        link_bytes: None,
        observed: String::new(),
        compared: true,
    })
}

fn projected(projection: &Projection) -> String {
    match projection.total_wire_bytes {
        Some(_) => format!("projection: {} {}", projection.period, projection.explanation),
        None => format!("no projection: {}", projection.explanation),
    }
}

/// Writes the traffic of this month that nobody bills; nothing if there is none.
fn write_unbilled(rows: &[&Row], options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let Some(month) = rows.iter().find(|row| row.period == "this-month") else { return Ok(()) };
    for (label, directions) in
        [("unbilled", month.totals.unbilled), ("loopback", month.totals.loopback)]
    {
        if directions == Directions::default() {
            continue;
        }
        let [ingress, egress] = [directions.ingress, directions.egress]
            .map(|counters| format_bytes(counters.wire_bytes, options.units));
        let text = format!("not in it: {label}, this month {ingress} in, {egress} out");
        write_labelled(&[("", Style::Plain, 2)], &text, options, out)?;
    }
    Ok(())
}

fn write_lines(
    headings: &[&str],
    lines: &[Line],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let figures = if options.verbose { &FIGURES[..] } else { &FIGURES[..1] };
    let with_link = lines.iter().any(|line| line.link_bytes.is_some());
    let with_observed = lines.iter().any(|line| !line.observed.is_empty());
    let mut columns: Vec<Column> = headings.iter().map(|heading| Column::left(heading)).collect();
    columns.extend(options.verbose.then(|| Column::left("")));
    columns.extend(["ingress", "egress", "total"].map(Column::right));
    columns.extend(with_link.then(|| Column::right("link (model)")));
    columns.extend(with_observed.then(|| Column::right("observed")));
    let mut rows: Vec<Figures> = Vec::new();
    for line in lines {
        let Directions { ingress, egress } = line.directions;
        let total: Counters = [ingress, egress].into_iter().sum();
        for (index, (name, take, show)) in figures.iter().enumerate() {
            let first = index == 0;
            let plain = |text: String| (text, Style::Plain);
            let only_first = |text: String| if first { text } else { String::new() };
            let mut row: Vec<(String, Style)> =
                line.labels.iter().map(|label| plain(only_first(label.clone()))).collect();
            row.extend(options.verbose.then(|| plain((*name).to_owned())));
            row.extend(
                [ingress, egress, total]
                    .map(|counters| plain(show(take(&counters), options.units))),
            );
            if with_link {
                let link = line.link_bytes.map(|bytes| format_bytes(bytes, options.units));
                row.push(plain(only_first(link.unwrap_or_default())));
            }
            if with_observed {
                row.push((only_first(line.observed.clone()), Style::Yellow));
            }
            let compared = (first && line.compared).then_some(total.wire_bytes);
            rows.push(Figures { cells: row, compared });
        }
    }
    let bars = bar::bars(&columns, &rows, options);
    let mut headings: Vec<(&str, char)> =
        columns.iter().map(|column| (column.heading, column.alignment)).collect();
    headings.extend(bars.is_some().then_some(("", '<')));
    let mut grid = Grid::new(&headings, options);
    for (index, Figures { mut cells, .. }) in rows.into_iter().enumerate() {
        cells.extend(bars.as_ref().map(|bars| (bars[index].clone(), Style::Green)));
        grid.styled_row(cells);
    }
    grid.write(out)
}

/// Writes what happened under a title, if anything did.
pub(super) fn write_notes(
    title: &str,
    notes: &[Note],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    if notes.is_empty() {
        return Ok(());
    }
    write_title(title, options, out)?;
    // The latest are what a reader asks about.
    let skipped = notes.len().saturating_sub(MOST_NOTES);
    if skipped != 0 {
        let text = format!("{skipped} earlier ones are in --format json");
        write_labelled(&[("", Style::Plain, 2)], &text, options, out)?;
    }
    for note in &notes[skipped..] {
        let style = if note.kind == "gap" { Style::Yellow } else { Style::Dim };
        let labels = [("", Style::Plain, 2), (note.kind, style, KIND)];
        write_labelled(&labels, &told(note), options, out)?;
    }
    Ok(())
}

/// What happened, and when.
pub(super) fn told(Note { extent: Extent { start, end }, message, .. }: &Note) -> String {
    let beginning = start.strftime("%Y-%m-%d %H:%M:%S");
    if start == end {
        return format!("{beginning} {}: {message}", start.strftime("%:z"));
    }
    let format = if start.date() == end.date() { "%H:%M:%S %:z" } else { "%Y-%m-%d %H:%M:%S %:z" };
    let length = end.timestamp().duration_since(start.timestamp()).as_secs_f64();
    format!("{beginning} to {} ({}): {message}", end.strftime(format), format_seconds(length))
}

#[cfg(test)]
#[path = "past_tests.rs"]
mod tests;
