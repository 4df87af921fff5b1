//! The report that people read: the exact figures, what other methods read, how wrong the estimates
//! are, what to know about it, and one sentence at the end.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{
    Options, exec,
    text::{Grid, Style, paint, tame, write_labelled},
};
use crate::{
    ledger,
    report::{
        CellReport, Counters, Directions, ExitStatus, Finding, Interval, Leg, Origin, PortReport,
        Report, Scope, Severity, TargetReport,
    },
    units::{Units, format_bytes, format_count, format_seconds},
};

/// Columns before the text of a heading.
const HEADING: usize = 13;
/// Columns before the text of a finding.
const SEVERITY: usize = 9;
/// Processes and cgroups that a heading lists.
const MOST_LISTED: usize = 6;

/// Writes the report of `compare`, or the short one of `exec` unless it is to be verbose.
pub fn write(report: &Report, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    for (index, target) in report.targets.iter().enumerate() {
        if index != 0 {
            writeln!(out)?;
        }
        if report.command == "exec" && !options.verbose {
            exec::write(report, target, options, out)?;
        } else {
            write_target(report, target, options, out)?;
        }
    }
    Ok(())
}

fn write_target(
    report: &Report,
    target: &TargetReport,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    write_heading(report, target, options, out)?;
    write_totals(report.command, target, options, out)?;
    write_ports(target, options, out)?;
    if options.verbose {
        write_parts(target, options, out)?;
    }
    super::methods::write(target, options, out)?;
    if !target.findings.is_empty() {
        write_title("Findings", options, out)?;
        write_findings(&target.findings, options, out)?;
    }
    if !target.verdict.is_empty() {
        writeln!(out)?;
        write_labelled(&[("Verdict:", Style::Bold, 9)], &target.verdict, options, out)?;
    }
    Ok(())
}

/// Writes the title of a section, with an empty line before it.
pub(super) fn write_title(title: &str, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n{}", paint(title, Style::Bold, options.colour))
}

fn write_heading(
    report: &Report,
    target: &TargetReport,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let name = paint(&tame(&target.name), Style::Bold, options.colour);
    writeln!(out, "{name} ({})", tame(&target.selector))?;
    let mut line = |label: &str, text: &str| {
        write_labelled(
            &[("", Style::Plain, 2), (label, Style::Dim, HEADING - 2)],
            text,
            options,
            out,
        )
    };
    for cgroup in target.cgroups.iter().take(MOST_LISTED) {
        line("cgroup", &format!("{} (id {})", cgroup.path, cgroup.id))?;
    }
    if target.cgroups.len() > MOST_LISTED {
        line("", &format!("and {} more", target.cgroups.len() - MOST_LISTED))?;
    }
    if !target.processes.is_empty() {
        line("processes", &processes(target))?;
    }
    if let Some(status) = report.exit_status {
        line("command", &exit_status(status))?;
    }
    line("interval", &interval(&report.interval))?;
    let (observed, seconds) = (target.observed_seconds, report.interval.seconds);
    line("observed", &format!("{} of {}", format_seconds(observed), format_seconds(seconds)))?;
    if !target.complete {
        line("complete", "no: traffic may be missing, the findings say why")?;
    }
    Ok(())
}

fn processes(target: &TargetReport) -> String {
    let mut by_name: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for process in target.processes.iter().take(MOST_LISTED) {
        by_name.entry(&process.name).or_default().push(process.pid.to_string());
    }
    let mut listed: Vec<String> =
        by_name.iter().map(|(name, pids)| format!("{name} ({})", pids.join(", "))).collect();
    if target.processes.len() > MOST_LISTED {
        listed.push(format!("and {} more", target.processes.len() - MOST_LISTED));
    }
    listed.join(", ")
}

fn interval(Interval { start, end, .. }: &Interval) -> String {
    let end_format = match start.date() == end.date() {
        true => "%H:%M:%S %:z",
        false => "%Y-%m-%d %H:%M:%S %:z",
    };
    format!("{} to {}", start.strftime("%Y-%m-%d %H:%M:%S"), end.strftime(end_format))
}

/// Returns how a command ended, in words.
pub(super) fn exit_status(status: ExitStatus) -> String {
    match status {
        ExitStatus { signal: Some(signal), .. } => format!("killed by signal {signal}"),
        ExitStatus { code: Some(code), .. } => format!("exit status {code}"),
        _ => "still running".to_owned(),
    }
}

/// Returns a total, exact behind its rounded form.
pub(super) fn exact(bytes: u64, units: Units) -> String {
    let (rounded, exact) = (format_bytes(bytes, units), format_bytes(bytes, Units::Bytes));
    if rounded == exact { exact } else { format!("{rounded} ({exact})") }
}

fn write_totals(
    command: &str,
    target: &TargetReport,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let title = format!("Exact: {} on the wire", exact(target.total_wire_bytes, options.units));
    write_title(&title, options, out)?;
    let billed = |cell: &CellReport| cell.scope == Scope::Billed;
    let leg = |leg| ledger::sum(&target.cells, |cell| billed(cell) && cell.leg == leg);
    let client = leg(Leg::Client);
    let mut rows = Vec::new();
    // A command that serves nobody has one leg, which is the sum.
    if command != "exec" || client != Directions::default() {
        rows.push(("client leg".to_owned(), client));
        rows.push(("upstream leg".to_owned(), leg(Leg::Upstream)));
    }
    rows.push(("sum".to_owned(), target.totals.billed));
    let kernel = ledger::sum(&target.cells, |cell| billed(cell) && cell.origin != Origin::Socket);
    for (label, directions) in [
        ("incl. kernel", kernel),
        ("unbilled", target.totals.unbilled),
        ("loopback", target.totals.loopback),
    ] {
        if directions != Directions::default() {
            rows.push((label.to_owned(), directions));
        }
    }
    write_figures(&rows, options, out)?;
    write_retransmitted(target, options, out)
}

/// Writes what TCP carried more than once, by leg; nothing if it was nothing.
fn write_retransmitted(
    target: &TargetReport,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut legs = Vec::new();
    for leg in [Leg::Client, Leg::Upstream] {
        let sum = ledger::sum(&target.cells, |cell| cell.scope == Scope::Billed && cell.leg == leg);
        let [ingress, egress] =
            [sum.ingress, sum.egress].map(|counters| counters.retransmitted_bytes);
        if ingress != 0 || egress != 0 {
            let [ingress, egress] =
                [ingress, egress].map(|bytes| format_bytes(bytes, options.units));
            legs.push(format!("{} leg {ingress} in, {egress} out", word(&leg)));
        }
    }
    if legs.is_empty() {
        return Ok(());
    }
    let labels = [("", Style::Plain, 2), ("retransmitted payload, included:", Style::Dim, 33)];
    write_labelled(&labels, &legs.join("; "), options, out)
}

fn write_ports(target: &TargetReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let (silent, heard): (Vec<_>, Vec<_>) = target
        .ports
        .iter()
        .partition(|port| port.ingress == Counters::default() && port.egress == port.ingress);
    if target.ports.is_empty() {
        return Ok(());
    }
    let loopback =
        target.cells.iter().any(|cell| cell.scope == Scope::Loopback && cell.leg == Leg::Client);
    let title = match loopback {
        true => "By listening port (client leg, loopback included)",
        false => "By listening port (client leg)",
    };
    write_title(title, options, out)?;
    if !heard.is_empty() {
        let rows: Vec<_> = heard
            .iter()
            .map(|port| {
                (port_name(port), Directions { ingress: port.ingress, egress: port.egress })
            })
            .collect();
        write_figures(&rows, options, out)?;
    }
    if !silent.is_empty() {
        let names: Vec<_> = silent.iter().map(|port| port_name(port)).collect();
        let labels = [("", Style::Plain, 2), ("no traffic", Style::Dim, 12)];
        write_labelled(&labels, &names.join(", "), options, out)?;
    }
    Ok(())
}

fn port_name(PortReport { protocol, port, .. }: &PortReport) -> String {
    match port {
        Some(port) => format!("{}/{port}", word(protocol)),
        None => format!("{}, others", word(protocol)),
    }
}

/// Returns the word that JSON has for a value, so that both say the same.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Writes the wire bytes of all scopes by interface, by protocol and by family.
fn write_parts(target: &TargetReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let parts: [fn(&CellReport) -> String; 3] = [
        |cell| format!("{} ({})", cell.interface, word(&cell.scope)),
        |cell| word(&cell.protocol),
        |cell| word(&cell.family),
    ];
    let mut rows = Vec::new();
    for part in parts {
        let mut sums: BTreeMap<String, Directions> = BTreeMap::new();
        for cell in &target.cells {
            *sums.entry(part(cell)).or_default().of_mut(cell.direction) += cell.counters;
        }
        rows.extend(sums);
    }
    if rows.is_empty() {
        return Ok(());
    }
    write_title("By interface, protocol and family (wire bytes, all scopes)", options, out)?;
    write_figures(&rows, &Options { verbose: false, ..*options }, out)
}

/// A counter: its name and how it is taken and shown.
pub(super) type Figure = (&'static str, fn(&Counters) -> u64, fn(u64, Units) -> String);

pub(super) const FIGURES: [Figure; 6] = [
    ("wire bytes", |counters| counters.wire_bytes, format_bytes),
    ("wire packets", |counters| counters.wire_packets, |count, _| format_count(count)),
    ("bytes", |counters| counters.bytes, format_bytes),
    ("packets", |counters| counters.packets, |count, _| format_count(count)),
    ("payload", |counters| counters.payload_bytes, format_bytes),
    ("retransmitted", |counters| counters.retransmitted_bytes, format_bytes),
];

/// Writes ingress, egress and their total by row: wire bytes, or all counters if verbose.
fn write_figures(
    rows: &[(String, Directions)],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let directions = [("ingress", '>'), ("egress", '>'), ("total", '>')];
    let figures = if options.verbose { &FIGURES[..] } else { &FIGURES[..1] };
    let mut headings = vec![("", '<')];
    headings.extend(options.verbose.then_some(("", '<')));
    headings.extend(directions);
    let mut grid = Grid::new(&headings, options);
    for (label, Directions { ingress, egress }) in rows {
        let total: Counters = [*ingress, *egress].into_iter().sum();
        for (index, (name, take, show)) in figures.iter().enumerate() {
            let label = if index == 0 { label.clone() } else { String::new() };
            let name = options.verbose.then(|| (*name).to_owned());
            let numbers =
                [ingress, egress, &total].map(|counters| show(take(counters), options.units));
            grid.row([label].into_iter().chain(name).chain(numbers));
        }
    }
    grid.write(out)
}

/// Writes findings, the remedy below each.
pub(super) fn write_findings(
    findings: &[Finding],
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    for finding in findings {
        let style = match finding.severity {
            Severity::Info => Style::Dim,
            Severity::Warning => Style::Yellow,
            Severity::Error => Style::Red,
        };
        let severity = word(&finding.severity);
        let text = format!("{}: {}", finding.code, finding.message);
        let indent = ("", Style::Plain, 2);
        write_labelled(&[indent, (&severity, style, SEVERITY)], &text, options, out)?;
        if !finding.remedy.is_empty() {
            let text = format!("remedy: {}", finding.remedy);
            write_labelled(&[indent, ("", Style::Plain, SEVERITY)], &text, options, out)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
