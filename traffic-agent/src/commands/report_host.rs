//! `report --by cgroup`: what every cgroup of the host used, and the balance with the interfaces.

use std::collections::BTreeSet;

use anyhow::Result;
use jiff::Timestamp;

use super::output::{self, Sink};
use super::report::calendar;
use super::{DONE, INCOMPLETE};
use crate::calendar::Span;
use crate::cli::report::Report;
use crate::past::host::{HostPast, Sums};
use crate::past::plan::{Asked, plan};
use crate::past::rows::extent;
use crate::past::{Extent, Note};
use crate::report::FORMAT;
use crate::store::Reader;

/// Bytes before the IP header of a frame, where nothing else was asked for or configured: Ethernet.
const ETHERNET_HEADER: u32 = 14;

/// Runs it; returns the exit status.
pub fn run(args: &Report) -> Result<i32> {
    let mut sink = Sink::open(&args.printing, output::Default::Stdout)?;
    let (report, is_whole) = report(args, Timestamp::now())?;
    sink.host_past(&report)?;
    if report.cgroups.is_empty() {
        output::note(
            "nothing is known of the host's cgroups then: `host = true` in the configuration counts them",
        );
    }
    if !is_whole {
        output::note("the beginning of the interval is not kept any more by quarter of an hour");
    }
    Ok(if args.printing.strict && !is_whole { INCOMPLETE } else { DONE })
}

/// Reads the history and puts the report together. Also says whether all of the interval is kept.
fn report(args: &Report, now: Timestamp) -> Result<(HostPast, bool)> {
    let reader = Reader::open(&args.history.state_dir)?;
    let calendar = calendar(&args.history, &reader)?;
    let asked =
        Asked { from: args.from.as_deref(), to: args.to.as_deref(), unit: None, divided: true };
    let span: Span = plan(asked, &calendar, now, now)?.whole.span;
    let quarters = span.quarters();
    let mut sums = Sums::default();
    let mut interfaces = BTreeSet::new();
    reader.host_quarters(quarters.clone(), |_, series, counters| {
        interfaces.insert(series.interface.clone());
        sums.add_host(series, counters);
    })?;
    for target in reader.targets()? {
        reader.quarters(&target.name, quarters.clone(), |_, series, counters| {
            sums.add_target(series, counters);
        })?;
    }
    let counted = reader.host_interfaces(quarters.clone())?;
    let notes = reader.host_events(span.start..span.end)?.into_iter().map(|event| Note {
        kind: event.kind.name(),
        extent: Extent { start: calendar.zoned(event.start), end: calendar.zoned(event.end) },
        message: event.message,
    });
    let overhead = match args.link_overhead {
        Some(bytes) => bytes,
        None => reader.link_overhead()?.unwrap_or(ETHERNET_HEADER),
    };
    let is_whole = reader.quarters_from()?.is_none_or(|kept| kept <= quarters.start);
    let report = HostPast {
        format: FORMAT,
        command: "report",
        time_zone: calendar.zone_name(),
        made_at: calendar.zoned(now),
        interval: extent(span, &calendar),
        by: ["cgroup"],
        cgroups: sums.cgroups(),
        balance: sums.balance(&counted, overhead),
        notes: notes.collect(),
    };
    Ok((report, is_whole))
}
