//! What the host's cgroups used, and the balance of its interfaces: for people, and as one flat table.

use std::io::{self, Write};

use csv::WriterBuilder;

use super::{
    Options,
    csv::io_error,
    past::minutes,
    table::write_title,
    text::{Grid, Style, paint, write_labelled},
};
use crate::{
    balance::{Balance, Frames, Remainder},
    past::host::HostPast,
    report::Direction,
    units::{format_bytes, format_count},
};

/// Cgroups that the table shows without `--verbose`; JSON and CSV have them all.
const MOST_ROWS: usize = 30;

/// Writes the report for people.
pub fn write(report: &HostPast, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let title = paint("Host", Style::Bold, options.colour);
    writeln!(out, "{title} by cgroup, {} ({})", minutes(&report.interval), report.time_zone)?;
    write_cgroups(report, options, out)?;
    write_balance(report, options, out)?;
    if !report.notes.is_empty() {
        write_title("Notes", options, out)?;
    }
    for note in &report.notes {
        let at = note.extent.start.strftime("%m-%d %H:%M:%S").to_string();
        write_labelled(
            &[("", Style::Plain, 2), (&at, Style::Dim, 16)],
            &note.message,
            options,
            out,
        )?;
    }
    Ok(())
}

fn write_cgroups(report: &HostPast, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if report.cgroups.is_empty() {
        return writeln!(out, "\n  nothing was counted then");
    }
    write_title("Wire bytes of sockets", options, out)?;
    let columns = [
        ("cgroup", '<'),
        ("target", '<'),
        ("ingress", '>'),
        ("egress", '>'),
        ("total", '>'),
        ("loopback", '>'),
    ];
    let mut grid = Grid::new(&columns, options);
    let shown = if options.verbose { report.cgroups.len() } else { MOST_ROWS };
    for row in report.cgroups.iter().take(shown) {
        let [ingress, egress, total, loopback] = [
            row.network.ingress.wire_bytes,
            row.network.egress.wire_bytes,
            row.total_wire_bytes,
            row.loopback.wire_bytes(),
        ]
        .map(|bytes| format_bytes(bytes, options.units));
        let target = row.target.clone().unwrap_or_default();
        grid.row([row.cgroup.clone(), target, ingress, egress, total, loopback]);
    }
    grid.write(out)?;
    match report.cgroups.len().saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more: --verbose shows them"),
    }
}

fn write_balance(report: &HostPast, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if report.balance.is_empty() {
        return Ok(());
    }
    write_title("Balance: interface = targets + other cgroups + remainder", options, out)?;
    let columns = [
        ("interface", '<'),
        ("", '<'),
        ("counts", '<'),
        ("counted", '>'),
        ("targets", '>'),
        ("others", '>'),
        ("remainder", '>'),
        ("frames", '>'),
    ];
    let mut grid = Grid::new(&columns, options);
    let mut remarks = Vec::new();
    for (interface, direction, balance) in sides(report) {
        let counts = format!("{} + {} B", balance.model.name(), balance.link_header_bytes);
        let bytes = |frames: Frames| format_bytes(frames.bytes, options.units);
        let Remainder { packets, bytes: left } = balance.remainder;
        grid.row([
            interface.to_owned(),
            name(direction).to_owned(),
            counts,
            bytes(balance.device),
            bytes(balance.targets),
            bytes(balance.others),
            signed(left, |bytes| format_bytes(bytes, options.units)),
            signed(packets, format_count),
        ]);
        let causes = balance.explanations.iter();
        remarks.extend(
            causes.map(|cause| (format!("{interface} {}", name(direction)), cause.message())),
        );
    }
    grid.write(out)?;
    for (label, message) in remarks {
        write_labelled(&[("", Style::Plain, 2), (&label, Style::Dim, 20)], &message, options, out)?;
    }
    Ok(())
}

fn sides(report: &HostPast) -> impl Iterator<Item = (&str, Direction, &Balance)> {
    report.balance.iter().flat_map(|one| {
        let name = one.interface.as_str();
        [(name, Direction::Ingress, &one.ingress), (name, Direction::Egress, &one.egress)]
    })
}

fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

fn signed(number: i64, format: impl Fn(u64) -> String) -> String {
    let size = format(number.unsigned_abs());
    if number < 0 { format!("-{size}") } else { size }
}

/// Writes the report as one flat table: `kind` is `cgroup`, with what its sockets sent or received, or
/// `interface`, with what it counted, and what is left of that.
pub fn write_csv(report: &HostPast, out: &mut dyn Write) -> io::Result<()> {
    let mut writer = WriterBuilder::new().from_writer(out);
    let header = [
        "kind",
        "name",
        "target",
        "scope",
        "direction",
        "packets",
        "bytes",
        "wire_packets",
        "wire_bytes",
        "counts",
        "link_header_bytes",
        "targets_bytes",
        "others_bytes",
        "remainder_packets",
        "remainder_bytes",
    ];
    writer.write_record(header).map_err(io_error)?;
    for row in &report.cgroups {
        for (scope, both) in [("network", &row.network), ("loopback", &row.loopback)] {
            for direction in [Direction::Ingress, Direction::Egress] {
                let counters = match direction {
                    Direction::Ingress => both.ingress,
                    Direction::Egress => both.egress,
                };
                let figures =
                    [counters.packets, counters.bytes, counters.wire_packets, counters.wire_bytes];
                let target = row.target.as_deref().unwrap_or_default();
                let words =
                    ["cgroup", &row.cgroup, target, scope, name(direction)].map(str::to_owned);
                let record = words.into_iter().chain(figures.map(|number| number.to_string()));
                let empty = std::iter::repeat_n(String::new(), 6);
                writer.write_record(record.chain(empty)).map_err(io_error)?;
            }
        }
    }
    for (interface, direction, balance) in sides(report) {
        let words = ["interface", interface, "", "", name(direction)].map(str::to_owned);
        let counted =
            [balance.device.packets, balance.device.bytes].map(|number| number.to_string());
        let rest = [
            String::new(),
            String::new(),
            balance.model.name().to_owned(),
            balance.link_header_bytes.to_string(),
            balance.targets.bytes.to_string(),
            balance.others.bytes.to_string(),
            balance.remainder.packets.to_string(),
            balance.remainder.bytes.to_string(),
        ];
        writer.write_record(words.into_iter().chain(counted).chain(rest)).map_err(io_error)?;
    }
    writer.flush()
}
