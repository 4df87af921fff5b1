//! `report`: what was used, from the history.

use std::ops::Range;

use anyhow::Result;
use jiff::Timestamp;

use super::output::{self, Sink};
use super::{DONE, INCOMPLETE, report_host};
use crate::calendar::{Calendar, Span};
use crate::cli::report::{By, History, Report};
use crate::history::{Method, Quarter};
use crate::past::coverage::{Known, asides};
use crate::past::errors::Errors;
use crate::past::plan::{Asked, Plan, plan};
use crate::past::rows::{Subject, extent, rows};
use crate::past::tally::{Dimension, Piece, Slice, Tally, pieces};
use crate::past::{Note, PastReport, Row, TargetPast};
use crate::report::FORMAT;
use crate::store::{self, Reader, TargetEntry};

/// What was asked for cannot be reported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two units of time.
    #[error("--by {0},{1}: a row is of one unit of time; choose one of them")]
    TwoUnits(&'static str, &'static str),
    /// Cgroups and something else.
    #[error("--by cgroup: it divides the whole host and nothing further; leave out the others")]
    CgroupAlone,
    /// An estimate is of all of a target's traffic.
    #[error(
        "--by {0} with --estimates: an estimate is of all of a target's traffic; divide by time only"
    )]
    Divided(&'static str),
    /// Names no target.
    #[error("the history has no target `{name}`; it has {known}")]
    NoSuchTarget {
        /// What was asked for.
        name: String,
        /// All that there are.
        known: String,
    },
}

/// Runs `report`; returns the exit status.
pub fn run(args: &Report) -> Result<i32> {
    if args.by.contains(&By::Cgroup) {
        return match args.by.as_slice() {
            [By::Cgroup] => report_host::run(args),
            _ => Err(Error::CgroupAlone.into()),
        };
    }
    let units: Vec<By> = args.by.iter().copied().filter(|by| by.unit().is_some()).collect();
    if let [first, second, ..] = units.as_slice() {
        return Err(Error::TwoUnits(first.name(), second.name()).into());
    }
    let divided = args.by.iter().find(|by| by.dimension().is_some());
    if let Some(by) = divided.filter(|_| args.estimates) {
        return Err(Error::Divided(by.name()).into());
    }
    let mut sink = Sink::open(&args.printing, output::Default::Stdout)?;
    let report = report(args, Timestamp::now())?;
    sink.past(&report)?;
    if report.targets.is_empty() {
        output::note(&format!(
            "nothing has been counted yet: the history in {} has no target",
            args.history.state_dir.display()
        ));
    }
    let incomplete = !report.rows.iter().all(|row| row.coverage.complete)
        || report.targets.iter().any(|target| target.findings.iter().any(|one| one.incomplete));
    if incomplete {
        output::note("some of it was not observed all the time: traffic may be missing");
    }
    Ok(if args.printing.strict && incomplete { INCOMPLETE } else { DONE })
}

/// Reads the history and puts the report together.
fn report(args: &Report, now: Timestamp) -> Result<PastReport> {
    let reader = Reader::open(&args.history.state_dir)?;
    let calendar = calendar(&args.history, &reader)?;
    let targets = choose(reader.targets()?, &args.history.targets)?;
    // Where the clock was set back, what was counted before that is not the future.
    let now = targets.iter().map(|target| target.last_flush).fold(now, Timestamp::max);
    let by: Vec<Dimension> = args.by.iter().filter_map(|by| by.dimension()).collect();
    let asked = Asked {
        from: args.from.as_deref(),
        to: args.to.as_deref(),
        unit: args.by.iter().find_map(|by| by.unit()),
        divided: !by.is_empty(),
    };
    let first = targets.iter().map(|target| target.since).min().unwrap_or(now);
    let plan = plan(asked, &calendar, now, first)?;
    let mut report = PastReport {
        format: FORMAT,
        command: "report",
        time_zone: calendar.zone_name(),
        made_at: calendar.zoned(now),
        interval: extent(plan.whole.span, &calendar),
        by: args.by.iter().map(|by| by.name()).collect(),
        link_overhead: args.link_overhead,
        with_estimates: args.estimates,
        targets: Vec::new(),
        rows: Vec::new(),
    };
    let source = Source { reader: &reader, calendar: &calendar, plan: &plan, by: &by, now };
    for entry in targets {
        let (mut target, mut rows, asides) = source.target(entry, args.link_overhead)?;
        if args.estimates {
            target.estimate_notes = Some(asides);
            let whole = plan.whole.span;
            let errors = errors(&reader, &target.name, whole)?;
            target.calibration = Some(errors.calibration(whole));
            for row in &mut rows {
                let (start, end) = (row.extent.start.timestamp(), row.extent.end.timestamp());
                row.estimates = errors.of(Span { start, end });
            }
        }
        report.targets.push(target);
        report.rows.extend(rows);
    }
    Ok(report)
}

/// Hours before the interval by which its first ones are calibrated: those of 90 days, so that there are
/// [`WINDOW`](crate::estimate::calibration::WINDOW) with traffic also where nights are idle.
const LOOK_BACK: i64 = 90 * 96;

/// The readings behind a target's estimates, up to the end of a span.
pub(super) fn errors(reader: &Reader, target: &str, span: Span) -> Result<Errors, store::Error> {
    let Range { start, end } = span.quarters();
    let quarters = Quarter(start.0.saturating_sub(LOOK_BACK))..end;
    let read = |method| reader.readings(target, method, quarters.clone());
    Ok(Errors::new(read(Method::IptablesPort)?, read(Method::HookPort)?))
}

/// The calendar that was asked for, or that of the history.
pub(super) fn calendar(history: &History, reader: &Reader) -> Result<Calendar> {
    Ok(match &history.time_zone {
        Some(name) => Calendar::named(name)?,
        None => Calendar::new(reader.time_zone().clone()),
    })
}

/// The targets that were asked for, by their names, selectors or what those select; all without a wish.
pub(super) fn choose(
    targets: Vec<TargetEntry>,
    wanted: &[String],
) -> Result<Vec<TargetEntry>, Error> {
    let is = |target: &TargetEntry, wish: &str| {
        let selected = target.selector.split_once(':').map(|(_, value)| value);
        target.name == wish || target.selector == wish || selected == Some(wish)
    };
    for wish in wanted {
        if !targets.iter().any(|target| is(target, wish)) {
            let names: Vec<_> = targets.iter().map(|target| target.name.as_str()).collect();
            let known = if names.is_empty() { "none yet".to_owned() } else { names.join(", ") };
            return Err(Error::NoSuchTarget { name: wish.clone(), known });
        }
    }
    let chosen =
        |target: &TargetEntry| wanted.is_empty() || wanted.iter().any(|wish| is(target, wish));
    Ok(targets.into_iter().filter(chosen).collect())
}

/// What to read, and how it is divided.
struct Source<'a> {
    reader: &'a Reader,
    calendar: &'a Calendar,
    plan: &'a Plan,
    by: &'a [Dimension],
    now: Timestamp,
}

impl Source<'_> {
    fn target(
        &self,
        entry: TargetEntry,
        link_overhead: Option<u32>,
    ) -> Result<(TargetPast, Vec<Row>, Vec<Note>), store::Error> {
        let slices = self.plan.slices();
        let mut tally = Tally::new(&slices, self.by);
        let quarters = read(self.reader, self.calendar, &entry.name, &slices, &mut tally)?;
        let whole = self.plan.whole.span;
        let subject = Subject {
            events: self.reader.events(&entry.name, whole.start..whole.end)?,
            quarters_from: if quarters { self.reader.quarters_from()? } else { None },
            known: Known { since: entry.since, last_flush: entry.last_flush, now: self.now },
            name: entry.name,
            selector: entry.selector,
        };
        let asides = asides(&subject.events, whole, self.calendar);
        let (target, rows) = rows(&subject, self.plan, &tally, self.calendar, link_overhead);
        Ok((target, rows, asides))
    }
}

/// Reads what some slices need of a target; returns whether that were quarters, some of them.
pub(super) fn read(
    reader: &Reader,
    calendar: &Calendar,
    target: &str,
    slices: &[Slice],
    tally: &mut Tally,
) -> Result<bool, store::Error> {
    let pieces = pieces(calendar, slices, calendar.zone() == reader.time_zone());
    for piece in &pieces {
        match piece {
            Piece::Days(days) => {
                reader.days(target, days.clone(), |date, series, counters| {
                    tally.add_day(calendar, date, series, counters);
                })?;
                for (date, milliseconds) in reader.observed_days(target, days.clone())? {
                    tally.observe_day(calendar, date, milliseconds);
                }
            }
            Piece::Quarters(quarters) => {
                reader.quarters(target, quarters.clone(), |quarter, series, counters| {
                    tally.add(quarter, series, counters);
                })?;
                for (quarter, milliseconds) in reader.observed(target, quarters.clone())? {
                    tally.observe(quarter, milliseconds);
                }
            }
        }
    }
    Ok(pieces.iter().any(|piece| matches!(piece, Piece::Quarters(_))))
}
