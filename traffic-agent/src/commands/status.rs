//! `status`: how counting goes, from the history; needs no rights but to read it.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};

use super::report::{calendar, choose, read};
use super::{DONE, INCOMPLETE, output};
use crate::calendar::{Calendar, Span, Unit};
use crate::cli::report::Status;
use crate::kernel::pins::PinRoot;
use crate::kernel::{Glance, Seen};
use crate::past::coverage::{Known, cover, note};
use crate::past::rows::{Subject, findings};
use crate::past::status::{LiveRates, StatusReport, TargetStatus};
use crate::past::tally::{Slice, Tally};
use crate::render::{self, Stream};
use crate::report::FORMAT;
use crate::store::{self, Reader, TargetEntry};

/// How far back events are told.
const EVENTS_OF: SignedDuration = SignedDuration::from_hours(24);

/// Between the two looks into the counters.
const LOOK_FOR: Duration = Duration::from_secs(1);

/// Runs `status`; returns the exit status.
pub fn run(args: &Status) -> Result<i32> {
    let report = status(args, Timestamp::now())?;
    let mut out = io::stdout().lock();
    match args.is_json() {
        true => render::json::write(&report, &mut out),
        false => {
            let options = render::Options::detect(Stream::Stdout, args.units.units(), false);
            render::status::write(&report, &options, &mut out)
        }
    }
    .and_then(|()| out.flush())
    .context("cannot write the status")?;
    if report.targets.is_empty() {
        output::note(&format!(
            "nothing has been counted yet: the history in {} has no target",
            args.history.state_dir.display()
        ));
    }
    let all_current = report.targets.iter().all(|target| target.current);
    Ok(if args.strict && !all_current { INCOMPLETE } else { DONE })
}

fn status(args: &Status, now: Timestamp) -> Result<StatusReport> {
    let reader = Reader::open(&args.history.state_dir)?;
    let calendar = calendar(&args.history, &reader)?;
    let mut targets = Vec::new();
    let entries = choose(reader.targets()?, &args.history.targets)?;
    let mut live = live_rates(args, &entries).unwrap_or_else(|error| {
        output::note(&format!("what is used now cannot be seen: {error:#}"));
        BTreeMap::new()
    });
    for entry in entries {
        let live = live.remove(&entry.name);
        targets.push(of_target(entry, live, &reader, &calendar, now)?);
    }
    Ok(StatusReport {
        format: FORMAT,
        command: "status",
        made_at: calendar.zoned(now),
        time_zone: calendar.zone_name(),
        targets,
    })
}

/// Looks twice into the counters of those targets that are counted now.
fn live_rates(args: &Status, entries: &[TargetEntry]) -> Result<BTreeMap<String, LiveRates>> {
    let root = PinRoot::open(&args.bpffs, &args.history.state_dir)?;
    let mut first = Vec::new();
    for entry in entries {
        if let Some(glance) = Glance::open(&root, &entry.name)? {
            let seen = glance.look()?;
            first.push((entry.name.clone(), glance, seen));
        }
    }
    if !first.is_empty() {
        std::thread::sleep(LOOK_FOR);
    }
    let rate = |(name, glance, before): (String, Glance, Seen)| {
        let after = glance.look()?;
        let since = |after: u64, before: u64| after.saturating_sub(before);
        let rates = LiveRates {
            seconds: (after.at - before.at).as_secs_f64(),
            ingress_wire_bytes: since(after.ingress_wire_bytes, before.ingress_wire_bytes),
            egress_wire_bytes: since(after.egress_wire_bytes, before.egress_wire_bytes),
        };
        Ok((name, rates))
    };
    first.into_iter().map(rate).collect()
}

fn of_target(
    entry: TargetEntry,
    live: Option<LiveRates>,
    reader: &Reader,
    calendar: &Calendar,
    now: Timestamp,
) -> Result<TargetStatus, store::Error> {
    // Where the clock was set back, what was counted before that is not the future.
    let now = now.max(entry.last_flush);
    let today = calendar.containing(Unit::Day, now).span;
    // All of it, by whole days of the history's own calendar, whatever today is.
    let known = Known { since: entry.since, last_flush: entry.last_flush, now };
    let slice = |span| Slice { name: String::new(), span, day: None };
    let days = Calendar::new(reader.time_zone().clone());
    let whole = Span {
        start: days.containing(Unit::Day, entry.since).span.start,
        end: days.containing(Unit::Day, now).span.end,
    };
    let mut all = Tally::new(&[slice(whole)], &[]);
    read(reader, &days, &entry.name, &[slice(whole)], &mut all)?;
    let mut of_today = Tally::new(&[slice(today)], &[]);
    read(reader, calendar, &entry.name, &[slice(today)], &mut of_today)?;

    let events = reader.events(&entry.name, whole.start..whole.end)?;
    let recent = now.checked_sub(EVENTS_OF).unwrap_or(whole.start);
    let totals = all.total(0);
    let subject =
        Subject { name: entry.name, selector: entry.selector, known, events, quarters_from: None };
    Ok(TargetStatus {
        since: calendar.zoned(known.since),
        last_flush: calendar.zoned(known.last_flush),
        last_flush_seconds_ago: now.duration_since(known.last_flush).as_secs_f64(),
        current: known.is_current(),
        live,
        today: of_today.total(0),
        totals,
        total_wire_bytes: totals.billed.wire_bytes(),
        coverage: cover(whole, all.observed(0), &known, &[], calendar),
        events: subject
            .events
            .iter()
            .filter(|event| event.end >= recent)
            .map(|event| note(event, calendar))
            .collect(),
        findings: findings(&subject, whole, &totals, calendar),
        name: subject.name,
        selector: subject.selector,
    })
}
