//! What the self-test found: the hook beside the capture, a row per leg and direction.

use std::io::{self, Write};

use csv::WriterBuilder;

use super::Options;
use super::csv::io_error;
use super::table::write_title;
use super::text::{Grid, Style, tame, write_labelled};
use crate::proof::{Case, Payload, Row, SelftestReport};
use crate::report::{Counters, Direction, Family, Leg};
use crate::units::{NONE, format_count};

/// Writes a table per kind of traffic, what was explained and what was not, and a sentence.
pub fn write(report: &SelftestReport, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let kernel = tame(&report.kernel);
    writeln!(out, "traffic-agent {} on Linux {kernel}, wire bytes and packets:", report.version)?;
    let has_kernel = rows(report).any(|(_, row)| row.kernel.is_some());
    let mut headings = vec![
        ("traffic", '<'),
        ("leg", '<'),
        ("direction", '<'),
        ("hook B", '>'),
        ("capture B", '>'),
        ("difference", '>'),
        ("hook p", '>'),
        ("capture p", '>'),
        ("difference", '>'),
    ];
    if has_kernel {
        headings.insert(4, ("kernel B", '>'));
    }
    if options.verbose {
        headings.extend([
            ("seen B", '>'),
            ("seen p", '>'),
            ("payload B", '>'),
            ("difference", '>'),
        ]);
    }
    let mut grid = Grid::new(&headings, options);
    for case in &report.cases {
        for (index, row) in case.rows.iter().enumerate() {
            let name = if index == 0 { title(case) } else { String::new() };
            grid.styled_row(cells(name, row, has_kernel, options.verbose));
        }
    }
    grid.write(out)?;
    if report.cases.iter().any(|case| case.rows.iter().any(|row| !row.explained.is_empty())) {
        write_title("Explained differences", options, out)?;
        write_explained(report, options, out)?;
    }
    if !report.passed {
        write_title("Unexplained differences", options, out)?;
        write_unexplained(report, options, out)?;
    }
    writeln!(out)?;
    write_labelled(&[("Verdict:", Style::Bold, 9)], &verdict(report), options, out)
}

fn rows(report: &SelftestReport) -> impl Iterator<Item = (&Case, &Row)> {
    report.cases.iter().flat_map(|case| case.rows.iter().map(move |row| (case, row)))
}

fn title(case: &Case) -> String {
    let family = match case.family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    };
    let stack = if case.offload { "" } else { ", no offload" };
    format!("{}, {family}{stack}", case.description)
}

fn leg(leg: Leg) -> &'static str {
    match leg {
        Leg::Client => "client",
        Leg::Upstream => "upstream",
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn cells(name: String, row: &Row, has_kernel: bool, verbose: bool) -> Vec<(String, Style)> {
    let plain = |text: String| (text, Style::Plain);
    let count = |number: u64| (format_count(number), Style::Plain);
    let apart = |number: i64| {
        let style = match (number, row.holds) {
            (0, true) => Style::Green,
            (_, true) => Style::Yellow,
            _ => Style::Red,
        };
        (format_signed(number), style)
    };
    let mut cells = vec![
        plain(name),
        plain(leg(row.leg).to_owned()),
        plain(direction(row.direction).to_owned()),
        count(row.hook.wire_bytes),
        count(row.capture.wire_bytes),
        apart(row.difference.wire_bytes),
        count(row.hook.wire_packets),
        count(row.capture.wire_packets),
        apart(row.difference.wire_packets),
    ];
    if has_kernel {
        let of_kernel = |counters: Counters| format_count(counters.wire_bytes);
        cells.insert(4, plain(row.kernel.map_or_else(|| NONE.to_owned(), of_kernel)));
    }
    if verbose {
        cells.extend([
            count(row.hook.bytes),
            count(row.hook.packets),
            count(row.hook.payload_bytes),
            apart(row.difference.payload_bytes),
        ]);
    }
    cells
}

fn format_signed(number: i64) -> String {
    let sign = match number {
        0 => "",
        ..0 => "-",
        _ => "+",
    };
    format!("{sign}{}", format_count(number.unsigned_abs()))
}

fn write_explained(
    report: &SelftestReport,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    for (case, row) in rows(report) {
        for one in &row.explained {
            let text = format!(
                "{}, {} {}: {} packets, {} B: {} ({})",
                title(case),
                leg(row.leg),
                direction(row.direction),
                format_count(one.packets.wire_packets),
                format_count(one.packets.wire_bytes),
                one.what,
                one.class
            );
            write_labelled(&[("", Style::Plain, 2)], &text, options, out)?;
        }
    }
    Ok(())
}

fn write_unexplained(
    report: &SelftestReport,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    for (case, row) in rows(report).filter(|(_, row)| !row.holds) {
        let text = format!(
            "{}, {} {}: {} B, {} packets, {} B of payload",
            title(case),
            leg(row.leg),
            direction(row.direction),
            format_signed(row.difference.wire_bytes),
            format_signed(row.difference.wire_packets),
            format_signed(row.difference.payload_bytes),
        );
        write_labelled(&[("", Style::Plain, 2)], &text, options, out)?;
    }
    let disagreeing = report
        .cases
        .iter()
        .flat_map(|case| case.payloads.iter().map(move |payload| (case, payload)))
        .filter(|(_, payload)| !payload.agrees());
    for (case, payload) in disagreeing {
        let Payload { application_bytes, captured_bytes, resent_bytes, .. } = payload;
        let text = format!(
            "{}, {} leg: the applications carried {} B, the capture has {} B of payload, {} B of it \
             sent again",
            title(case),
            leg(payload.leg),
            format_count(*application_bytes),
            format_count(*captured_bytes),
            format_count(*resent_bytes),
        );
        write_labelled(&[("", Style::Plain, 2)], &text, options, out)?;
    }
    let what = "Please report it, with the output of `traffic-agent selftest --json` and what \
                distribution this kernel is of.";
    write_labelled(&[("", Style::Plain, 2)], what, options, out)
}

/// One sentence.
fn verdict(report: &SelftestReport) -> String {
    let sum = |of: fn(&Row) -> u64| rows(report).map(|(_, row)| of(row)).sum::<u64>();
    let captured = sum(|row| row.capture.wire_bytes);
    let explained = sum(|row| row.explained.iter().map(|one| one.packets.wire_bytes).sum::<u64>());
    let scale = format!(
        "{} B in {} packets, {} kinds of traffic, {:.1} s",
        format_count(captured),
        format_count(sum(|row| row.capture.wire_packets)),
        report.cases.len(),
        report.seconds
    );
    match (report.passed, explained) {
        (true, 0) => format!("every byte is counted on this kernel: 0 B apart of {scale}."),
        (true, explained) => format!(
            "every byte is accounted for on this kernel: of {scale}, {} B are of classes that its \
             hook does not see, named above.",
            format_count(explained)
        ),
        (false, _) => {
            let wrong = report.cases.iter().filter(|case| !case.holds()).count();
            format!("NOT every byte is accounted for on this kernel, in {wrong} of {scale}.")
        }
    }
}

/// Writes a row per case, leg and direction.
pub fn write_csv(report: &SelftestReport, out: &mut dyn Write) -> io::Result<()> {
    let mut csv = WriterBuilder::new().from_writer(out);
    csv.write_record([
        "case",
        "family",
        "offload",
        "leg",
        "direction",
        "hook_wire_bytes",
        "kernel_wire_bytes",
        "capture_wire_bytes",
        "difference_bytes",
        "explained_bytes",
        "hook_wire_packets",
        "capture_wire_packets",
        "holds",
    ])
    .map_err(io_error)?;
    for (case, row) in rows(report) {
        let family = if case.family == Family::Ipv4 { "ipv4" } else { "ipv6" };
        let explained: u64 = row.explained.iter().map(|one| one.packets.wire_bytes).sum();
        let kernel = row.kernel.map(|counters| counters.wire_bytes.to_string());
        csv.write_record([
            case.name,
            family,
            &case.offload.to_string(),
            leg(row.leg),
            direction(row.direction),
            &row.hook.wire_bytes.to_string(),
            &kernel.unwrap_or_default(),
            &row.capture.wire_bytes.to_string(),
            &row.difference.wire_bytes.to_string(),
            &explained.to_string(),
            &row.hook.wire_packets.to_string(),
            &row.capture.wire_packets.to_string(),
            &row.holds.to_string(),
        ])
        .map_err(io_error)?;
    }
    csv.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::{Difference, Explanation, Figures, SYN_ACK_IPV6};
    use crate::render::fixture;
    use crate::units::Units;

    fn row(direction: Direction, missing: u64, explained: bool) -> Row {
        let hook = Counters {
            packets: 50,
            wire_packets: 1000,
            wire_bytes: 1_500_000,
            ..Counters::default()
        };
        let unseen =
            Figures { wire_packets: missing / 80, wire_bytes: missing, ..Figures::default() };
        let (class, what) = SYN_ACK_IPV6;
        Row {
            leg: Leg::Client,
            direction,
            hook,
            kernel: None,
            capture: Figures {
                wire_packets: 1000 + unseen.wire_packets,
                wire_bytes: 1_500_000 + missing,
                payload_bytes: 0,
            },
            difference: Difference {
                wire_packets: -(unseen.wire_packets as i64),
                wire_bytes: -(missing as i64),
                payload_bytes: 0,
            },
            explained: explained
                .then_some(Explanation { class, what, packets: unseen })
                .into_iter()
                .collect(),
            holds: explained || missing == 0,
        }
    }

    fn report(rows: Vec<Row>) -> SelftestReport {
        let case = Case {
            name: "tcp-short",
            description: "TCP, 50 short connections".to_owned(),
            family: Family::Ipv6,
            offload: true,
            payloads: Vec::new(),
            rows,
        };
        SelftestReport {
            format: 1,
            command: "selftest",
            version: "0.1.0",
            kernel: "6.1.0".to_owned(),
            passed: case.holds(),
            seconds: 5.0,
            cases: vec![case],
        }
    }

    fn text(report: &SelftestReport) -> String {
        let options = Options::plain(Units::Bytes, false);
        fixture::text(|out| write(report, &options, out))
    }

    #[test]
    fn a_kernel_without_a_difference_passes_in_one_sentence() {
        let text = text(&report(vec![row(Direction::Ingress, 0, false)]));
        assert!(text.contains("TCP, 50 short connections, IPv6  client  ingress"), "{text}");
        assert!(text.contains("every byte is counted on this kernel: 0 B apart"), "{text}");
        assert!(!text.contains("xplained") && !text.contains("report it"), "{text}");
    }

    #[test]
    fn an_explained_difference_passes_with_its_class_and_size() {
        let text = text(&report(vec![row(Direction::Egress, 4000, true)]));
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            words.contains("client egress: 50 packets, 4,000 B: SYN-ACKs of inbound"),
            "{text}"
        );
        assert!(words.contains("(syn-ack-ipv6)") && words.contains("accounted for"), "{text}");
        assert!(!words.contains("Unexplained"), "{text}");
    }

    #[test]
    fn a_difference_without_a_name_fails_and_asks_for_a_report() {
        let rows = vec![row(Direction::Egress, 4000, false), row(Direction::Ingress, 0, false)];
        let text = text(&report(rows));
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("client egress: -4,000 B, -50 packets"), "{text}");
        assert!(words.contains("Please report it") && words.contains("NOT every byte"), "{text}");
    }
}
