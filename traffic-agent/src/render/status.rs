//! How counting goes, for people.

use std::io::{self, Write};

use super::{
    Options,
    past::{observed, told},
    table::{write_findings, write_title},
    text::{Grid, Style, paint, tame, write_labelled},
};
use crate::{
    past::status::{StatusReport, TargetStatus},
    report::{Counters, Directions},
    units::{format_bytes, format_rate, format_seconds},
};

/// Columns before the text of a heading.
const HEADING: usize = 13;
/// Columns before the text of an event.
const KIND: usize = 12;

/// Writes how counting goes.
pub fn write(report: &StatusReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if report.targets.is_empty() {
        return writeln!(out, "No target has been counted yet.");
    }
    for (index, target) in report.targets.iter().enumerate() {
        if index != 0 {
            writeln!(out)?;
        }
        write_target(target, options, out)?;
    }
    Ok(())
}

fn write_target(target: &TargetStatus, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let name = paint(&tame(&target.name), Style::Bold, options.colour);
    writeln!(out, "{name} ({})", tame(&target.selector))?;
    let mut line = |label: &str, text: &str| {
        let labels = [("", Style::Plain, 2), (label, Style::Dim, HEADING - 2)];
        write_labelled(&labels, text, options, out)
    };
    line("counted", &format!("since {}", target.since.strftime("%Y-%m-%d %H:%M:%S %:z")))?;
    line("observed", &observed(&target.coverage))?;
    let written = target.last_flush.strftime("%Y-%m-%d %H:%M:%S %:z");
    line("written", &format!("{written}, {} ago", format_seconds(target.last_flush_seconds_ago)))?;
    if let Some(live) = target.live {
        let [ingress, egress] = [live.ingress_wire_bytes, live.egress_wire_bytes]
            .map(|bytes| format_rate(bytes, live.seconds, options.units));
        line("now", &format!("{ingress} in, {egress} out"))?;
    }
    writeln!(out)?;
    write_sums(target, options, out)?;
    if !target.events.is_empty() {
        write_title("The last 24 hours", options, out)?;
        for event in &target.events {
            let style = if event.kind == "gap" { Style::Yellow } else { Style::Dim };
            let labels = [("", Style::Plain, 2), (event.kind, style, KIND)];
            write_labelled(&labels, &told(event), options, out)?;
        }
    }
    if !target.findings.is_empty() {
        write_title("Findings", options, out)?;
        write_findings(&target.findings, options, out)?;
    }
    Ok(())
}

fn write_sums(target: &TargetStatus, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let headings = [("", '<'), ("ingress", '>'), ("egress", '>'), ("total", '>')];
    let mut grid = Grid::new(&headings, options);
    let mut row = |label: &str, Directions { ingress, egress }: Directions| {
        let total: Counters = [ingress, egress].into_iter().sum();
        let figures = [ingress, egress, total]
            .map(|counters| format_bytes(counters.wire_bytes, options.units));
        grid.row([label.to_owned()].into_iter().chain(figures));
    };
    row("today", target.today.billed);
    row("in all", target.totals.billed);
    for (label, directions) in
        [("unbilled", target.totals.unbilled), ("loopback", target.totals.loopback)]
    {
        if directions != Directions::default() {
            row(label, directions);
        }
    }
    grid.write(out)
}

#[cfg(test)]
mod tests {
    use jiff::ZonedDateTime;

    use super::super::fixture::{counters, text};
    use super::*;
    use crate::past::{Coverage, Extent, Note, status::LiveRates};
    use crate::report::Scopes;
    use crate::units::Units;

    fn at(time: &str) -> ZonedDateTime {
        format!("{time}+08:00[+08:00]").parse().unwrap()
    }

    fn status() -> StatusReport {
        let billed = |packets| Scopes {
            billed: Directions { ingress: counters(packets), egress: counters(2 * packets) },
            ..Scopes::default()
        };
        let again = Extent { start: at("2026-11-24T03:10:00"), end: at("2026-11-24T03:10:00") };
        let target = TargetStatus {
            name: "xray".to_owned(),
            selector: "unit:xray.service".to_owned(),
            since: at("2026-11-14T18:20:00"),
            last_flush: at("2026-11-24T18:20:00"),
            last_flush_seconds_ago: 4.2,
            current: true,
            live: Some(LiveRates {
                seconds: 2.0,
                ingress_wire_bytes: 2 << 20,
                egress_wire_bytes: 3 << 20,
            }),
            today: billed(1_000_000),
            totals: billed(10_000_000),
            total_wire_bytes: 45_000_000_000,
            coverage: Coverage {
                observed_seconds: 864_000.0,
                observable_seconds: 864_000.0,
                complete: true,
                notes: vec![],
            },
            events: vec![Note {
                kind: "note",
                extent: again,
                message: "xray.service was restarted; attached again".to_owned(),
            }],
            findings: vec![],
        };
        StatusReport {
            format: 1,
            command: "status",
            made_at: at("2026-11-24T18:20:04.2"),
            time_zone: "Asia/Shanghai".to_owned(),
            targets: vec![target],
        }
    }

    #[test]
    fn status_is_told_on_one_screen() {
        let expected = "\
xray (unit:xray.service)
  counted    since 2026-11-14 18:20:00 +08:00
  observed   10 d 00 h 00 min of 10 d 00 h 00 min
  written    2026-11-24 18:20:00 +08:00, 4.2 s ago
  now        1.00 MiB/s in, 1.50 MiB/s out

           ingress    egress     total
  today   1.40 GiB  2.79 GiB  4.19 GiB
  in all  14.0 GiB  27.9 GiB  41.9 GiB

The last 24 hours
  note        2026-11-24 03:10:00 +08:00: xray.service was restarted; attached
              again
";
        let options = Options { width: 80, ..Options::plain(Units::Iec, false) };
        assert_eq!(text(|out| write(&status(), &options, out)), expected);
    }

    #[test]
    fn no_rate_is_shown_where_nobody_looked() {
        let mut status = status();
        status.targets[0].live = None;
        let text = text(|out| write(&status, &Options::plain(Units::Iec, false), out));
        assert!(!text.contains("  now "), "{text}");
    }
}
