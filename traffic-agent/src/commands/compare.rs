//! `compare`: exact totals beside every estimate, for a while or while a command runs.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::{Timestamp, ZonedDateTime};

use super::output::{self, Sink};
use super::report;
use super::subject::{self, Subject};
use super::{DONE, INCOMPLETE};
use crate::calendar::Span;
use crate::cli::Compare;
use crate::comparison::{self, Comparison};
use crate::estimate::calibration::Calibration;
use crate::history::Method;
use crate::measure::{Measurement, Plan};
use crate::render::progress::Progress;
use crate::report::{ExitStatus, FORMAT, Interval, Report};
use crate::signals::Signals;
use crate::store::{self, Reader, TargetEntry};
use crate::target::{self, Cgroup, Host, PortFilter, Selector};
use crate::units;

/// How long `compare` measures when nobody is there to end it.
const UNATTENDED: Duration = Duration::from_secs(60);

/// Runs `compare`; returns the exit status.
pub async fn run(args: Compare) -> Result<i32> {
    let runs_command = !args.command.is_empty();
    match measured(args).await {
        Ok(code) => Ok(code),
        Err(error) if runs_command => Ok(output::code_without_status(&error)),
        Err(error) => Err(error),
    }
}

async fn measured(args: Compare) -> Result<i32> {
    let mut signals = Signals::take()?;
    let mut sink = Sink::open(&args.printing, output::Default::Stdout)?;
    let ports = output::port_filter(&args.targets.ports)?;
    let options = comparison::Options {
        estimate_ports: output::port_filter(&args.estimate_port)?,
        add_rules: args.add_rules,
    };
    let host = Host::detect()?;
    let subject = match args.command.as_slice() {
        [] => None,
        command => Some(Subject::prepare(&host, command.to_vec(), args.user.as_deref())?),
    };
    let plans = match &subject {
        Some(subject) => {
            let trace = args.measuring.trace_packets;
            vec![subject.plan(&host, ports, args.measuring.unbilled.clone(), trace)?]
        }
        None => plans(&host, &args, &ports)?,
    };
    for note in plans.iter().flat_map(|plan| &plan.notes) {
        output::note(note);
    }

    let named: Vec<(&str, &[Cgroup])> =
        plans.iter().map(|plan| (plan.name.as_str(), plan.cgroups.as_slice())).collect();
    let mut overlaps = target::resolve::overlaps(&named);
    let mut comparisons = Vec::new();
    for plan in plans {
        let past = calibrations(&args.state_dir, &plan);
        let mut measurement = Measurement::start(&host, plan)?;
        // Of all targets: the first carries them.
        overlaps.drain(..).for_each(|finding| measurement.add_finding(finding));
        let mut comparison = Comparison::start(measurement, &options)?;
        match past {
            Ok(calibrations) => comparison.calibrate(calibrations),
            Err(reason) if args.printing.verbose => {
                output::note(&format!("no estimate `calibrated`: {reason}"));
            }
            Err(_) => {}
        }
        comparisons.push(comparison);
    }
    let begun = ZonedDateTime::now();
    let started = Instant::now();
    let ticking =
        Ticking { duration: duration(&args, subject.is_some()), interval: args.interval, started };
    let status =
        ticking.run(&mut comparisons, subject.as_ref(), &mut signals, &mut sink, &args).await?;

    let finish = || -> Result<i32> {
        let mut targets = Vec::new();
        for comparison in comparisons {
            targets.push(comparison.finish(sink.units())?);
        }
        if let (Some(subject), [target]) = (subject, targets.as_mut_slice())
            && let Some(finding) = subject.remove()
        {
            target.complete &= !finding.incomplete;
            target.findings.push(finding);
        }
        let complete = targets.iter().all(|target| target.complete);
        sink.report(&Report {
            format: FORMAT,
            command: "compare",
            interval: Interval {
                start: begun,
                end: ZonedDateTime::now(),
                seconds: started.elapsed().as_secs_f64(),
            },
            targets,
            exit_status: status,
        })?;
        Ok(if args.printing.strict && !complete { INCOMPLETE } else { DONE })
    };
    match status {
        Some(status) => Ok(output::code_after(status, finish())),
        None => finish(),
    }
}

/// What the history says of a target, or why it says nothing.
fn calibrations(state_dir: &Path, plan: &Plan) -> Result<Vec<(Method, Calibration)>, String> {
    let failed = |error: store::Error| format!("{:#}", anyhow::Error::from(error));
    let reader = Reader::open(state_dir).map_err(failed)?;
    let targets = reader.targets().map_err(failed)?;
    let is = |target: &&TargetEntry| target.selector == plan.selector;
    let target = targets.iter().find(is).ok_or_else(|| {
        format!("the history in {} has no {}", state_dir.display(), plan.selector)
    })?;
    let now = Timestamp::now().max(target.last_flush);
    // All of it is past.
    let errors =
        report::errors(&reader, &target.name, Span { start: now, end: now }).map_err(failed)?;
    let newest = errors.newest();
    let calibrations: Vec<(Method, Calibration)> = newest
        .iter()
        .filter_map(|(method, one)| Some((*method, one.as_ref().ok().copied()?)))
        .collect();
    match (calibrations.is_empty(), newest) {
        (true, [_, (_, Err(too_few))]) => Err(too_few.to_string()),
        _ => Ok(calibrations),
    }
}

/// Finds the targets and what they are now.
fn plans(host: &Host, args: &Compare, ports: &PortFilter) -> Result<Vec<Plan>> {
    let selectors: Vec<Selector> = args.targets.all().map(str::parse).collect::<Result<_, _>>()?;
    let specs = match selectors.is_empty() {
        true => vec![target::default_target(host)?],
        false => target::group(selectors)?,
    };
    let resolve = |spec| {
        let unbilled = args.measuring.unbilled.clone();
        Plan::resolve(host, spec, ports.clone(), unbilled, args.measuring.trace_packets)
    };
    Ok(specs.iter().map(resolve).collect::<Result<_, _>>()?)
}

/// How long to measure; `None`: until a signal, or the end of the command.
fn duration(args: &Compare, has_command: bool) -> Option<Duration> {
    match args.duration {
        Some(duration) => Some(duration),
        None if has_command => None,
        None if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() => None,
        None => Some(UNATTENDED),
    }
}

/// The time between the first and the last reading.
struct Ticking {
    duration: Option<Duration>,
    interval: Option<Duration>,
    started: Instant,
}

impl Ticking {
    /// Follows the targets until the time is over, a signal ends it, or the command has ended.
    async fn run(
        &self,
        comparisons: &mut [Comparison<'_>],
        subject: Option<&Subject>,
        signals: &mut Signals,
        sink: &mut Sink,
        args: &Compare,
    ) -> Result<Option<ExitStatus>> {
        let mut tracer = output::Tracer::new(args.measuring.trace_packets);
        let progress = Progress::timed("measuring", self.duration);
        let mut intervals =
            output::Intervals::new(self.interval, comparisons, self.started, sink.units());
        // Returns how long to pause until the next.
        let mut tick = |comparisons: &mut [Comparison<'_>], sink: &mut Sink| -> Result<Duration> {
            for comparison in &mut *comparisons {
                comparison.follow();
                progress.suspend(|| tracer.print(comparison.measurement()));
            }
            progress.suspend(|| intervals.print_due(comparisons, sink))?;
            let mut total = 0_u64;
            for comparison in &mut *comparisons {
                total = total.saturating_add(comparison.billed_so_far()?);
            }
            progress.advance();
            progress.set_message(units::format_bytes(total, sink.units()));
            Ok(intervals.until_due().min(Duration::from_secs(1)))
        };

        if let Some(subject) = subject {
            let mut running = subject.start(signals)?;
            let mut failed = Ok(());
            let status = subject::wait(&mut running, signals, || {
                if failed.is_ok() {
                    failed = tick(comparisons, sink).map(drop);
                }
            })
            .await?;
            for comparison in &mut *comparisons {
                subject::drain(comparison.measurement()).await;
            }
            // The command has ended: what could not be shown as it went is no reason to lose the rest.
            if let Err(error) = failed.and_then(|()| tick(comparisons, sink).map(drop))
                && !output::is_closed_pipe(&error)
            {
                output::complain(&error);
            }
            return Ok(Some(status));
        }

        let mut pause = tick(comparisons, sink)?;
        loop {
            let elapsed = self.started.elapsed();
            let left = self.duration.map(|duration| duration.saturating_sub(elapsed));
            if left == Some(Duration::ZERO) {
                break;
            }
            let sleep = left.map_or(pause, |left| left.min(pause));
            tokio::select! {
                arrived = signals.next() => {
                    if arrived.context("cannot wait for signals")?.ends() {
                        break;
                    }
                }
                () = tokio::time::sleep(sleep) => pause = tick(comparisons, sink)?,
            }
        }
        tick(comparisons, sink)?;
        Ok(None)
    }
}
