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
//! | `packets`, `bytes`, `wire_packets`, `wire_bytes`, `payload_bytes` | the counters, integers |
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
    percent: Option<f64>,
    note: &'a str,
}

/// The header line.
const HEADER: &str = "start,end,target,complete,kind,name,source,interface,scope,origin,direction,\
                      leg,protocol,port,family,packets,bytes,wire_packets,wire_bytes,\
                      payload_bytes,percent,note";

impl Row<'_> {
    fn counted(self, direction: Direction, counters: Counters) -> Self {
        Self {
            direction: Some(direction),
            packets: Some(counters.packets),
            bytes: Some(counters.bytes),
            wire_packets: Some(counters.wire_packets),
            wire_bytes: Some(counters.wire_bytes),
            payload_bytes: Some(counters.payload_bytes),
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
fn io_error(error: csv::Error) -> io::Error {
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
