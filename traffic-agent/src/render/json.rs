//! Reports for scripts, as JSON. The shape is that of the types themselves: `report` and `check`.
//!
//! One value, indented, with a newline behind it. Where `--interval` prints as it goes, standard
//! output is JSON lines instead: one object per line, each of them with `"record": "interval"`
//! ([`super::interval`]), and the report itself as the last line ([`write_line`]).

use std::io::{self, Write};

use serde::Serialize;

/// Writes a report, indented for people who look at it nevertheless.
pub fn write(report: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    out.write_all(b"\n")
}

/// Writes a report or record as one line.
pub fn write_line(record: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record)?;
    out.write_all(b"\n")
}
