//! A line per `--interval`, as the measurement goes on.
//!
//! * `table`: a header once, then aligned columns: local time, ingress, egress, their sum and the sum
//!   per second, all of them billed wire bytes since the previous line.
//! * `json`: an [`IntervalReport`] per line, compact, told apart from the report that ends the stream
//!   by `"record": "interval"`. So the stream is JSON lines, and the report is its last
//!   ([`super::json::write_line`]).
//! * `csv`: rows of the one table that the report has too, of kind `interval` ([`super::csv`]).

use std::io::{self, Write};

use serde::Serialize;

use super::text::tame;
use crate::{
    report::{Directions, FORMAT, Interval},
    units::{Units, format_bytes, format_rate},
};

/// What one target used since the previous line.
#[derive(Clone, Debug, Serialize)]
pub struct IntervalReport {
    /// [`FORMAT`].
    pub format: u32,
    /// `interval`.
    pub record: &'static str,
    /// Name of the target.
    pub target: String,
    /// From the previous line to this one.
    #[serde(flatten)]
    pub interval: Interval,
    /// Billed traffic of the interval.
    #[serde(flatten)]
    pub billed: Directions,
    /// Billed wire bytes since the measurement began, both directions.
    pub total_wire_bytes: u64,
}

impl IntervalReport {
    /// Returns the record of an interval.
    pub fn new(
        target: impl Into<String>,
        interval: Interval,
        billed: Directions,
        total_wire_bytes: u64,
    ) -> Self {
        let target = target.into();
        Self { format: FORMAT, record: "interval", target, interval, billed, total_wire_bytes }
    }
}

/// The columns of the lines for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    units: Units,
    /// Of the longest name of a target or the heading; 0 where there is only one target.
    target: usize,
}

impl Columns {
    /// Returns columns for these targets; their names are shown only if there are several.
    pub fn new(units: Units, targets: &[&str]) -> Self {
        let names = targets.iter().copied().chain(["target"]);
        let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
        Self { units, target: if targets.len() > 1 { longest } else { 0 } }
    }

    /// Writes the header.
    pub fn write_header(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write(out, "time", "target", ["ingress", "egress", "total", "rate"].map(str::to_owned))
    }

    /// Writes a line.
    pub fn write_line(&self, report: &IntervalReport, out: &mut dyn Write) -> io::Result<()> {
        let bytes = |bytes| format_bytes(bytes, self.units);
        let Directions { ingress, egress } = report.billed;
        let total = report.billed.wire_bytes();
        let time = report.interval.end.strftime("%H:%M:%S").to_string();
        let rate = format_rate(total, report.interval.seconds, self.units);
        let figures = [bytes(ingress.wire_bytes), bytes(egress.wire_bytes), bytes(total), rate];
        self.write(out, &time, &report.target, figures)
    }

    fn write(
        &self,
        out: &mut dyn Write,
        time: &str,
        target: &str,
        [ingress, egress, total, rate]: [String; 4],
    ) -> io::Result<()> {
        // `1,023 KiB`, or `9,999,999,999 B`; a longer figure pushes its line out of the column.
        let width = if self.units == Units::Bytes { 15 } else { 9 };
        write!(out, "{time:8}")?;
        if self.target != 0 {
            write!(out, "  {:1$}", tame(target), self.target)?;
        }
        let rate_width = width + "/s".len();
        writeln!(out, "  {ingress:>width$}  {egress:>width$}  {total:>width$}  {rate:>rate_width$}")
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            fixture::{self, text},
            json,
        },
        *,
    };

    fn report(target: &str) -> IntervalReport {
        let billed =
            Directions { ingress: fixture::counters(1_000), egress: fixture::counters(100) };
        IntervalReport::new(target, fixture::interval(), billed, 9_999_999)
    }

    #[test]
    fn lines_stand_under_their_header() {
        let columns = Columns::new(Units::Iec, &["xray"]);
        // 1,650,000 B in 60 s are 27,500 B/s.
        let expected = "\
time        ingress     egress      total         rate
10:01:00   1.43 MiB    146 KiB   1.57 MiB   26.9 KiB/s
";
        let lines = text(|out| {
            columns.write_header(out)?;
            columns.write_line(&report("xray"), out)
        });
        assert_eq!(lines, expected);
    }

    #[test]
    fn several_targets_are_told_apart_and_exact_bytes_fit() {
        let columns = Columns::new(Units::Bytes, &["xray", "nginx"]);
        let expected = "\
time      target          ingress           egress            total               rate
10:01:00  xray        1,500,000 B        150,000 B      1,650,000 B         27,500 B/s
";
        let lines = text(|out| {
            columns.write_header(out)?;
            columns.write_line(&report("xray"), out)
        });
        assert_eq!(lines, expected);
    }

    #[test]
    fn json_line_says_that_it_is_an_interval() {
        let line = text(|out| json::write_line(&report("xray"), out));
        assert_eq!(
            line,
            "{\"format\":1,\"record\":\"interval\",\"target\":\"xray\",\
             \"start\":\"2026-11-23T10:00:00.25+08:00\",\"end\":\"2026-11-23T10:01:00.25+08:00\",\
             \"seconds\":60.0,\
             \"ingress\":{\"packets\":25,\"bytes\":1449300,\"wire_packets\":1000,\
             \"wire_bytes\":1500000,\"payload_bytes\":1448000,\
             \"retransmitted_bytes\":0},\
             \"egress\":{\"packets\":3,\"bytes\":144956,\"wire_packets\":100,\
             \"wire_bytes\":150000,\"payload_bytes\":144800,\
             \"retransmitted_bytes\":0},\
             \"total_wire_bytes\":9999999}\n"
        );
    }
}
