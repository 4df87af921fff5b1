//! Reports for spreadsheets and scripts: one flat table, one header, one row per figure.
//!
//! | Column | Meaning |
//! |---|---|
//! | `start`, `end` | the interval, RFC 3339 with offset |
//! | `target` | name of the target |
//! | `complete` | `false` where traffic of the target may be missing |
//! | `kind` | what the row is, see below; a filter on it comes first |
//! | `name` | of the method or estimate |
//! | `source` | what an estimate was made of, what a capture rate refers to |
//! | `interface`, `scope`, `origin`, `direction`, `leg`, `protocol`, `port`, `family` | as in JSON |
//! | `packets`, `bytes`, `wire_packets`, `wire_bytes`, `payload_bytes`, `retransmitted_bytes` | the counters, integers |
//! | `percent` | error of an estimate (signed), or a capture rate |
//! | `note` | layer of a method's bytes or why there are none, formula of an estimate |
//!
//! A cell is empty where the column says nothing about the row. The kinds:
//!
//! * `total`: a scope and direction; the exact figure is the sum of `wire_bytes` where scope is
//!   `billed`. Six rows, those of zero included.
//! * `port`: a listening port and direction. `port` is empty for ports beyond the table.
//! * `cell`: every cell that is not zero; they add up to the totals, so never sum over kinds.
//! * `method`: a direction of what a method read, in `bytes`, whichever layer `note` says.
//! * `estimate`: the estimated total in `bytes`, its error in `percent`.
//! * `capture-rate`: how much of a direction a method saw, in `percent`.
//! * `interval`: a direction of billed traffic since the line before (`--interval`).
//!
//! Findings and rules are not figures: for those there is JSON.

use std::io::{self, Write};

use csv::{ErrorKind, Writer, WriterBuilder};
use serde::Serialize;

use super::interval::IntervalReport;
use crate::report::{
    Counters, Direction, Directions, Family, Interval, Layer, Leg, Origin, Protocol, Report, Scope,
    TargetReport,
};

/// One row. The fields are the columns, in this order.
#[derive(Clone, Debug, Default, Serialize)]
struct Row<'a> {
    start: String,
    end: String,
    target: &'a str,
    complete: Option<bool>,
    kind: &'static str,
    name: &'static str,
    source: &'static str,
    interface: &'a str,
    scope: Option<Scope>,
    origin: Option<Origin>,
    direction: Option<Direction>,
    leg: Option<Leg>,
    protocol: Option<Protocol>,
    port: Option<u16>,
    family: Option<Family>,
    packets: Option<u64>,
    bytes: Option<u64>,
    wire_packets: Option<u64>,
    wire_bytes: Option<u64>,
    payload_bytes: Option<u64>,
    retransmitted_bytes: Option<u64>,
    percent: Option<f64>,
    note: &'a str,
}

/// The header line.
const HEADER: &str = "start,end,target,complete,kind,name,source,interface,scope,origin,direction,\
                      leg,protocol,port,family,packets,bytes,wire_packets,wire_bytes,\
                      payload_bytes,retransmitted_bytes,percent,note";

impl Row<'_> {
    fn counted(self, direction: Direction, counters: Counters) -> Self {
        Self {
            direction: Some(direction),
            packets: Some(counters.packets),
            bytes: Some(counters.bytes),
            wire_packets: Some(counters.wire_packets),
            wire_bytes: Some(counters.wire_bytes),
            payload_bytes: Some(counters.payload_bytes),
            retransmitted_bytes: Some(counters.retransmitted_bytes),
            ..self
        }
    }

    fn both(&self, directions: Directions) -> [Self; 2] {
        [
            self.clone().counted(Direction::Ingress, directions.ingress),
            self.clone().counted(Direction::Egress, directions.egress),
        ]
    }
}

/// Writes the header and every row of a report.
pub fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    write_header(out)?;
    write_rows(report, out)
}

/// Writes the header.
pub fn write_header(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{HEADER}")
}

/// Writes every row of a report, without the header.
pub fn write_rows(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = writer(out);
    for target in &report.targets {
        let common = Row {
            target: &target.name,
            complete: Some(target.complete),
            ..since(&report.interval)
        };
        figures(target, &common)
            .into_iter()
            .try_for_each(|row| rows.serialize(row))
            .map_err(io_error)?;
    }
    rows.flush()
}

/// Writes the rows of one interval.
pub fn write_interval(report: &IntervalReport, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = writer(out);
    let common = Row {
        target: &report.target,
        kind: "interval",
        scope: Some(Scope::Billed),
        ..since(&report.interval)
    };
    common
        .both(report.billed)
        .into_iter()
        .try_for_each(|row| rows.serialize(row))
        .map_err(io_error)?;
    rows.flush()
}

fn writer(out: &mut dyn Write) -> Writer<&mut dyn Write> {
    WriterBuilder::new().has_headers(false).from_writer(out)
}

/// The crate's own conversion would hide that a pipe was closed.
pub(super) fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

fn since<'a>(interval: &Interval) -> Row<'a> {
    let rfc3339 = |time: &jiff::ZonedDateTime| {
        time.timestamp().display_with_offset(time.offset()).to_string()
    };
    Row { start: rfc3339(&interval.start), end: rfc3339(&interval.end), ..Row::default() }
}

fn figures<'a>(target: &'a TargetReport, common: &Row<'a>) -> Vec<Row<'a>> {
    let row = |kind| Row { kind, ..common.clone() };
    let mut rows = Vec::new();
    for (scope, directions) in [
        (Scope::Billed, target.totals.billed),
        (Scope::Unbilled, target.totals.unbilled),
        (Scope::Loopback, target.totals.loopback),
    ] {
        rows.extend(Row { scope: Some(scope), ..row("total") }.both(directions));
    }
    for port in &target.ports {
        let directions = Directions { ingress: port.ingress, egress: port.egress };
        let row = Row {
            leg: Some(Leg::Client),
            protocol: Some(port.protocol),
            port: port.port,
            ..row("port")
        };
        rows.extend(row.both(directions));
    }
    rows.extend(target.cells.iter().map(|cell| {
        Row {
            interface: &cell.interface,
            scope: Some(cell.scope),
            origin: Some(cell.origin),
            leg: Some(cell.leg),
            protocol: Some(cell.protocol),
            port: cell.port,
            family: Some(cell.family),
            ..row("cell")
        }
        .counted(cell.direction, cell.counters)
    }));
    for method in &target.methods {
        let note = method.reason.as_deref().unwrap_or(match method.layer {
            Layer::L3 => "l3",
            Layer::L3Wire => "l3-wire",
            Layer::L2 => "l2",
        });
        for (direction, bytes) in
            [(Direction::Ingress, method.ingress_bytes), (Direction::Egress, method.egress_bytes)]
        {
            let direction = Some(direction);
            rows.push(Row { name: method.name, direction, bytes, note, ..row("method") });
        }
    }
    rows.extend(target.estimates.iter().map(|estimate| Row {
        name: estimate.name,
        source: estimate.source,
        bytes: Some(estimate.total_bytes),
        percent: estimate.error_percent,
        note: estimate.formula,
        ..row("estimate")
    }));
    rows.extend(target.capture_rates.iter().map(|rate| Row {
        name: rate.method,
        source: rate.reference,
        direction: Some(rate.direction),
        percent: rate.percent,
        ..row("capture-rate")
    }));
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{
        super::fixture::{self, text},
        *,
    };

    /// Reads a table back: a map from column to text for each row.
    fn rows(table: &str) -> Vec<HashMap<String, String>> {
        csv::Reader::from_reader(table.as_bytes())
            .deserialize()
            .collect::<Result<_, _>>()
            .expect("every row has the columns of the header")
    }

    #[test]
    fn header_names_the_columns_in_their_order() {
        let mut writer = Writer::from_writer(Vec::new());
        writer.serialize(Row::default()).unwrap();
        let own = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        assert_eq!(own.lines().next(), Some(HEADER));
    }

    #[test]
    fn every_figure_has_one_row_that_can_be_read_back() {
        let table = text(|out| write(&fixture::compare(), out));
        let rows = rows(&table);
        let kinds = rows.iter().fold(HashMap::new(), |mut kinds: HashMap<_, usize>, row| {
            *kinds.entry(row["kind"].as_str()).or_default() += 1;
            kinds
        });
        let expected = [
            ("total", 6),
            ("port", 4),
            ("cell", 4),
            ("method", 8),
            ("estimate", 4),
            ("capture-rate", 2),
        ];
        assert_eq!(kinds, HashMap::from(expected));
        assert!(rows.iter().all(|row| row["target"] == "xray" && row["complete"] == "true"));
        assert!(rows.iter().all(|row| row["end"] == "2026-11-23T10:01:00.25+08:00"));
        // The cells add up to the totals, and both to the exact figure.
        for kind in ["total", "cell"] {
            let sum: u64 = rows
                .iter()
                .filter(|row| row["kind"] == kind && row["scope"] == "billed")
                .map(|row| row["wire_bytes"].parse::<u64>().unwrap())
                .sum();
            assert_eq!(sum, 3_003_000_000, "{kind}");
        }
    }

    #[test]
    fn rows_look_as_documented() {
        const SINCE: &str = "2026-11-23T10:00:00.25+08:00,2026-11-23T10:01:00.25+08:00,xray,true";
        let table = text(|out| write(&fixture::compare(), out));
        let lines: Vec<_> = table.lines().collect();
        for line in [
            "total,,,,billed,,ingress,,,,,25025,1450749300,1001000,1501500000,1449448000,0,,",
            "total,,,,loopback,,egress,,,,,0,0,0,0,0,0,,",
            "port,,,,,,ingress,client,tcp,443,,25,1449300,1000,1500000,1448000,0,,",
            "cell,,,eth0,billed,socket,ingress,client,tcp,443,ipv4,\
             25,1449300,1000,1500000,1448000,0,,",
            "method,iptables-port,,,,,ingress,,,,,,1449300,,,,,,l3",
            "method,interface,,,,,egress,,,,,,,,,,,,\
             eth0 appeared after the start; measure again now that it is there",
        ] {
            let line = format!("{SINCE},{line}");
            assert!(lines.contains(&line.as_str()), "{line}\nis not in\n{table}");
        }
        let estimate =
            format!("{SINCE},estimate,out-x2,iptables-port,,,,,,,,,,2898600000,,,,,-3.47");
        assert!(table.contains(&estimate), "{table}");
    }

    #[test]
    fn text_with_commas_and_quotes_stays_in_its_column() {
        let mut report = fixture::compare();
        report.targets[0].name = "a,\"b\"\nc".to_owned();
        report.targets[0].cells[0].counters.wire_bytes = u64::MAX;
        let rows = rows(&text(|out| write(&report, out)));
        assert!(rows.iter().all(|row| row["target"] == "a,\"b\"\nc"));
        assert!(rows.iter().any(|row| row["wire_bytes"] == "18446744073709551615"));
    }

    #[test]
    fn intervals_go_into_the_same_table() {
        let billed = fixture::compare().targets[0].totals.billed;
        let interval = IntervalReport::new("xray", fixture::interval(), billed, 3_003_000_000);
        let table = text(|out| {
            write_header(out)?;
            write_interval(&interval, out)?;
            write_rows(&fixture::compare(), out)
        });
        let rows = rows(&table);
        assert_eq!(
            (rows[0]["kind"].as_str(), rows[0]["direction"].as_str()),
            ("interval", "ingress")
        );
        assert_eq!(
            (rows[1]["wire_bytes"].as_str(), rows[2]["kind"].as_str()),
            ("1501500000", "total")
        );
    }
}
