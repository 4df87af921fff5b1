//! What the history says, for spreadsheets and scripts: one flat table, one row per period, group, scope and
//! direction. The figures are bytes and packets, whatever `--units` says.
//!
//! | Column | Meaning |
//! |---|---|
//! | `kind` | `period`, or `projection` of this month: never sum over both |
//! | `target` | name of the target |
//! | `period` | as in JSON: `today`, `2026-11-24T10`, `2026-11-24`, `2026-W48`, `2026-11`, `2026`, `interval` |
//! | `start`, `end` | of the period, RFC 3339 with offset, half-open |
//! | `interface`, `leg`, `protocol`, `port` | what the rows are divided by; otherwise empty |
//! | `scope`, `direction` | `billed` always; `unbilled` and `loopback` where they are not zero |
//! | `packets`, `bytes`, `wire_packets`, `wire_bytes`, `payload_bytes`, `retransmitted_bytes` | the counters |
//! | `modelled_link_bytes` | `wire_bytes` with a link-layer header per packet, where one was asked for |
//! | `observed_seconds`, `observable_seconds`, `complete` | how much of the period was observed |
//! | `note` | what happened in it |

use std::io::{self, Write};

use csv::WriterBuilder;
use jiff::ZonedDateTime;
use serde::Serialize;

use super::csv::io_error;
use crate::{
    past::{Coverage, PastReport, Row, link_bytes, projection::Projection},
    report::{Direction, Directions, Leg, Protocol, Scope},
};

/// One line. The fields are the columns, in this order.
#[derive(Clone, Debug, Default, Serialize)]
struct Line<'a> {
    kind: &'static str,
    target: &'a str,
    period: &'a str,
    start: String,
    end: String,
    interface: &'a str,
    leg: Option<Leg>,
    protocol: Option<Protocol>,
    port: Option<u16>,
    scope: Option<Scope>,
    direction: Option<Direction>,
    packets: Option<u64>,
    bytes: Option<u64>,
    wire_packets: Option<u64>,
    wire_bytes: Option<u64>,
    payload_bytes: Option<u64>,
    retransmitted_bytes: Option<u64>,
    modelled_link_bytes: Option<u64>,
    observed_seconds: Option<f64>,
    observable_seconds: Option<f64>,
    complete: Option<bool>,
    note: String,
}

const HEADER: &str = "kind,target,period,start,end,interface,leg,protocol,port,scope,direction,packets,\
                      bytes,wire_packets,wire_bytes,payload_bytes,retransmitted_bytes,\
                      modelled_link_bytes,observed_seconds,observable_seconds,complete,note";

/// Writes the header and all lines.
pub fn write(report: &PastReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{HEADER}")?;
    let mut lines = WriterBuilder::new().has_headers(false).from_writer(out);
    for row in &report.rows {
        for line in of_row(row, report.link_overhead) {
            lines.serialize(line).map_err(io_error)?;
        }
    }
    for target in &report.targets {
        for line in target.projection.iter().flat_map(|it| of_projection(&target.name, it)) {
            lines.serialize(line).map_err(io_error)?;
        }
    }
    lines.flush()
}

/// What scopes a row has figures of: the one it is a part of, or what is billed, and others that are not
/// zero.
fn scopes(row: &Row) -> impl Iterator<Item = Scope> {
    let all = [Scope::Billed, Scope::Unbilled, Scope::Loopback];
    all.into_iter().filter(|&scope| match row.group.scope {
        Some(only) => scope == only,
        None => scope == Scope::Billed || row.totals.of(scope) != Directions::default(),
    })
}

fn of_row(row: &Row, link_overhead: Option<u32>) -> Vec<Line<'_>> {
    let Coverage { observed_seconds, observable_seconds, complete, notes } = &row.coverage;
    let told: Vec<_> =
        notes.iter().map(|note| format!("{}: {}", note.kind, note.message)).collect();
    let line = Line {
        kind: "period",
        target: &row.target,
        period: &row.period,
        start: offset(&row.extent.start),
        end: offset(&row.extent.end),
        interface: row.group.interface.as_deref().unwrap_or_default(),
        leg: row.group.leg,
        protocol: row.group.protocol,
        port: row.group.port.flatten(),
        observed_seconds: Some(*observed_seconds),
        observable_seconds: Some(*observable_seconds),
        complete: Some(*complete),
        note: told.join("; "),
        ..Line::default()
    };
    let mut lines = Vec::new();
    for scope in scopes(row) {
        let Directions { ingress, egress } = row.totals.of(scope);
        for (direction, counters) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
            lines.push(Line {
                scope: Some(scope),
                direction: Some(direction),
                packets: Some(counters.packets),
                bytes: Some(counters.bytes),
                wire_packets: Some(counters.wire_packets),
                wire_bytes: Some(counters.wire_bytes),
                payload_bytes: Some(counters.payload_bytes),
                retransmitted_bytes: Some(counters.retransmitted_bytes),
                modelled_link_bytes: link_overhead.map(|overhead| link_bytes(&counters, overhead)),
                ..line.clone()
            });
        }
    }
    lines
}

fn of_projection<'a>(target: &'a str, projection: &'a Projection) -> Vec<Line<'a>> {
    let directions = [
        (Direction::Ingress, projection.ingress_wire_bytes),
        (Direction::Egress, projection.egress_wire_bytes),
    ];
    let line = |(direction, wire_bytes)| Line {
        kind: "projection",
        target,
        period: &projection.period,
        start: offset(&projection.start),
        end: offset(&projection.end),
        scope: Some(Scope::Billed),
        direction: Some(direction),
        wire_bytes,
        observed_seconds: Some(projection.observed_seconds),
        note: projection.explanation.clone(),
        ..Line::default()
    };
    directions.map(line).into()
}

/// RFC 3339, as in JSON.
pub(super) fn offset(time: &ZonedDateTime) -> String {
    time.timestamp().display_with_offset(time.offset()).to_string()
}
